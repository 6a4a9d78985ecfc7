"""Factors and their doses: where half of the answers go, ranks and how sure they are, error ratios of annotations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from zsr_utils.scores._intervals import Estimate, proportion
from zsr_utils.scores.trends import redrawn


BEYOND = "beyond the grid"


def half_dose(
    doses: Sequence[float], kept: Float[np.ndarray, "n k"], *, unit: str = "dose", resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The dose at which half of the answers are lost that were right without it, between the doses of a grid.

    Args:
        doses: K doses above 0, growing.
        kept: 1 where an answer that was right at dose 0 is right at a dose, a row each.

    Returns: An estimate whose value is not measured where the grid ends before, and whose upper bound is not a number
        where it ends before in more than 2.5 % of the resamples of images.

    Examples:
        >>> half_dose([1, 2], np.array([[1, 0], [1, 0]])).value
        1.5
    """
    kept, at = np.asarray(kept, dtype=float), np.array([0, *doses], dtype=float)
    if not len(kept):
        return Estimate(*[float("nan")] * 3, "not measured", 0, unit)
    means = kept[redrawn(len(kept), resamples, seed)].mean(1)
    curves = np.concatenate([np.ones((len(means), 1)), means], axis=1)
    low = curves <= 0.5
    j = low.argmax(1)
    rows = np.arange(len(j))
    above, below = curves[rows, j - 1], curves[rows, j]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = at[j - 1] + (at[j] - at[j - 1]) * (above - 0.5) / (above - below)
    found[~low.any(1)] = np.inf
    bounds = np.quantile(found[1:], [0.025, 0.975], method="inverted_cdf")
    value, least, most = (float(v) if np.isfinite(v) else float("nan") for v in (found[0], *bounds))
    return Estimate(value, least, most, f"bootstrap 95 % ({resamples})" if value == value else BEYOND, len(kept), unit)


def ranks(losses: Float[np.ndarray, "n k"], names: Sequence[str], *, resamples: int = 1000, seed: int = 0):
    """Columns by their mean, the largest first, with the places that resamples of the rows give them.

    Returns: A frame by name: `mean`, `rank`, `low` and `high` (95 % of its places) and `first` (share of resamples in
        which it is first), in the order of the ranks.
    """
    means = np.asarray(losses, dtype=float)[redrawn(len(losses), resamples, seed)].mean(1)
    places = stats.rankdata(-means, axis=1)
    low, high = np.quantile(places[1:], [0.025, 0.975], axis=0)
    first = (places[1:] == places[1:].min(1, keepdims=True)).mean(0)
    table = {"mean": means[0], "rank": places[0], "low": low, "high": high, "first": first}
    return pd.DataFrame(table, index=list(names)).sort_values("rank", kind="stable")


def error_ratio(wrong: Float[np.ndarray, "n"], has: Float[np.ndarray, "n"]) -> Estimate:
    """Error rate where a factor is, over the error rate of all: (1 - acc_k) / (1 - acc_avg).

    Its interval has width where no answer or every one is wrong; it takes the two rates as independent, which makes it
    wider than it need be.

    Examples:
        >>> error_ratio(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 1])).value
        1.0

    Source: Idrissi et al. (2023); Wilson intervals of the rates, combined as by Zou & Donner (2008) for a ratio.
    """
    wrong, has = np.asarray(wrong, dtype=bool), np.asarray(has, dtype=bool)
    if not has.any() or not wrong.any():
        return Estimate(*[float("nan")] * 3, "not measured", int(has.sum()), "ratio")
    one, whole = proportion(int(wrong[has].sum()), int(has.sum())), proportion(int(wrong.sum()), len(wrong))
    p, q = one.value, whole.value

    def bound(end: float, other: float, sign: int) -> float:
        inside = (p * q) ** 2 - end * other * (2 * p - end) * (2 * q - other)
        return (p * q + sign * np.sqrt(max(0, inside))) / (other * (2 * q - other))

    low, high = max(0.0, bound(one.low, whole.high, -1)), bound(one.high, whole.low, 1)
    return Estimate(p / q, float(low), float(high), "wilson 95 %, ratio of two", int(has.sum()), "ratio")


def rank_agreement(one: Float[np.ndarray, "r k"], other: Float[np.ndarray, "r k"]) -> Estimate:
    """Spearman's correlation of two rows of numbers, row 0 their values and the others resamples of each.

    Resampling adds noise to ranks that have some already, so that the interval lies low rather than high.
    """
    finite = np.isfinite(one[0]) & np.isfinite(other[0])
    if finite.sum() < 3:
        return Estimate(*[float("nan")] * 3, "not measured", int(finite.sum()), "1")
    a, b = (stats.rankdata(np.nan_to_num(v[:, finite], nan=0.0), axis=1) for v in (one, other))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    rho = (a * b).sum(1) / np.maximum(np.sqrt((a**2).sum(1) * (b**2).sum(1)), 1e-12)
    low, high = np.quantile(rho[1:], [0.025, 0.975])
    kind = f"bootstrap 95 % ({len(rho) - 1}, images of both)"
    return Estimate(float(rho[0]), float(low), float(high), kind, int(finite.sum()), "1")
