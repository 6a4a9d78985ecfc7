"""Factors and their doses: where half of the answers go, ranks and how sure they are, error ratios of annotations."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from zsr_utils.scores._intervals import Estimate, not_measured, wilson
from zsr_utils.scores.trends import redrawn, summary


def half_dose(doses: Sequence[float], kept: Float[np.ndarray, "n k"], *, unit: str = "dose", seed: int = 0) -> Estimate:
    """The dose at which half of the answers are lost that were right without it, between the doses of a grid.

    Args:
        doses: K doses above 0, growing.
        kept: 1 where an answer that was right at dose 0 is right at a dose, a row each.

    Returns: An estimate whose value or upper bound is not a number where it lies beyond the grid.

    Examples:
        >>> half_dose([1, 2], np.array([[1, 0], [1, 0]])).value
        1.5
    """
    if not len(kept) or len(doses) < 2:
        return not_measured(unit)
    at, curves = (
        np.array([0, *doses], dtype=float),
        np.asarray(kept, dtype=float)[redrawn(len(kept), 1000, seed)].mean(1),
    )
    curves = np.concatenate([np.ones((len(curves), 1)), curves], axis=1)
    j, rows = (curves <= 0.5).argmax(1), np.arange(len(curves))  # where the curve is first that low; 0 for nowhere
    drop = curves[rows, j - 1] - curves[rows, j]
    share = (curves[rows, j - 1] - 0.5) / np.where(j > 0, drop, 1)
    found = np.where(j > 0, at[j - 1] + (at[j] - at[j - 1]) * share, np.inf)
    ends = [found[0], *np.quantile(found[1:], [0.025, 0.975], method="inverted_cdf")]
    return Estimate(*(float(v) if v < np.inf else np.nan for v in ends), "bootstrap 95 % (1000)", len(kept), unit)


def column_means(values: Float[np.ndarray, "n k"], *, seed: int = 0) -> Float[np.ndarray, "r k"]:
    """Means of columns over their numbers, then of 1,000 resamples of rows; that of all columns where one has none."""
    here = np.isfinite(values)
    index, sums = redrawn(len(values), 1000, seed), np.where(here, values, 0.0)
    total, count = (np.stack([part[i].sum(0) for i in index]) for part in (sums, here))
    return np.where(count > 0, total / np.maximum(count, 1), total.sum(1, keepdims=True) / count.sum(1, keepdims=True))


def ranks(means: Float[np.ndarray, "r k"], names: Sequence[str]) -> pd.DataFrame:
    """Places of `column_means`, the largest first: a row of an estimate each, in order, with its `label`.

    Examples:
        >>> ranks(np.array([[0.1, 0.9], [0.2, 0.8]]), ["a", "b"]).set_index("label").value.to_dict()
        {'b': 1.0, 'a': 2.0}
    """
    places = stats.rankdata(-means, axis=1)
    found = [{"label": name, **asdict(summary(p, len(means[0]), "rank"))} for name, p in zip(names, places.T)]
    return pd.DataFrame(found).assign(interval="bootstrap 95 % (1000)").sort_values("value", kind="stable")


def rank_agreement(one: Float[np.ndarray, "r k"], other: Float[np.ndarray, "r k"]) -> Estimate:
    """Spearman's correlation of two `column_means`; resamples add noise to ranks, so that its interval lies low."""
    rho = np.array([stats.spearmanr(a, b).statistic for a, b in zip(one, other)])
    return replace(summary(np.nan_to_num(rho), one.shape[1], "1"), interval="bootstrap 95 % (images, 1000)")


def error_ratio(wrong: Float[np.ndarray, "n"], has: Float[np.ndarray, "n"]) -> Estimate:
    """Error rate where a factor is, over the error rate of all: (1 - acc_k) / (1 - acc_avg).

    Examples:
        >>> error_ratio(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 1])).value
        1.0

    Source: Idrissi et al. (2023). The interval is Wilson's of the numerator; the rate of all is taken as known.
    """
    wrong, has = np.asarray(wrong, dtype=bool), np.asarray(has, dtype=bool)
    if not has.any() or not wrong.any():
        return not_measured("ratio")
    low, high = wilson(wrong[has].mean(), has.sum())
    ends = (float(v / wrong.mean()) for v in (wrong[has].mean(), low, high))
    return Estimate(*ends, "wilson 95 % over the rate of all", int(has.sum()), "ratio")
