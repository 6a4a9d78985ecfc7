"""Factors and their doses: where half of the answers go, ranks and how sure they are, error ratios of annotations."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from zsr_utils.scores._intervals import Estimate, not_measured, wilson
from zsr_utils.scores.trends import redrawn, summary


def half_dose(rows: pd.DataFrame) -> Estimate:
    """The dose (`severity`) at which half of the answers are lost that are `right` at dose 0; straight between doses.

    A value or upper bound that lies beyond the largest dose is not a number. One dose alone has no curve.
    """
    right = rows.pivot(index="sample_id", columns="severity", values="right").sort_index(axis=1)
    at, kept = right.columns.to_numpy(dtype=float), right[right[0.0] == 1].to_numpy(dtype=float)
    if not len(kept) or len(at) < 3:
        return not_measured("dose")
    curves = kept[redrawn(len(kept), 1000, 0)].mean(1)
    j, r = (curves <= 0.5).argmax(1), np.arange(len(curves))  # where a curve is first that low, 0 for nowhere
    drop = np.where(j > 0, curves[r, j - 1] - curves[r, j], 1)
    found = np.where(j > 0, at[j - 1] + (at[j] - at[j - 1]) * (curves[r, j - 1] - 0.5) / drop, np.inf)
    ends = [found[0], *np.quantile(found[1:], [0.025, 0.975], method="inverted_cdf")]
    kind = "bootstrap 95 % (1000)" + ("" if ends[-1] < np.inf else ", open: beyond the largest dose")
    return Estimate(*(float(v) if v < np.inf else np.nan for v in ends), kind, len(kept), "dose")


def column_means(values: Float[np.ndarray, "n k"], *, low: float = 0.0, seed: int = 0) -> Float[np.ndarray, "r k"]:
    """Mean of every column over its numbers, which lie in [low, 1], then 1,000 draws of it that always vary.

    Source: The Bayesian bootstrap of Rubin (1981), with half an observation at each end as in Jeffreys' prior.
    """
    here, rng = np.isfinite(values), np.random.default_rng(seed)
    weights = np.concatenate([np.ones((1, len(here))), rng.exponential(size=(1000, len(here)))])
    ends = rng.gamma(0.5, size=(2, 1001, here.shape[1]))
    ends[:, 0] = 1e-9  # none at all, but that a column without numbers gets the middle
    return (weights @ np.where(here, values, 0.0) + ends[0] + low * ends[1]) / (weights @ here + ends.sum(0))


def ranks(means: Mapping[str, Float[np.ndarray, "r k"]], names: Sequence[str]) -> pd.DataFrame:
    """Places of `column_means`, the largest first: estimates with `label`, and `by`, the key; in order of the first."""
    found = [(by, zip(names, stats.rankdata(-m, axis=1).T)) for by, m in means.items()]
    table = [{"by": by, "label": n, **asdict(summary(p, len(names), "rank"))} for by, part in found for n, p in part]
    order = dict(zip(names, stats.rankdata(-next(iter(means.values()))[0])))
    table = pd.DataFrame(table).assign(interval="bayesian bootstrap 95 %")
    return table.sort_values("label", key=lambda c: c.map(order), kind="stable", ignore_index=True)


def rank_agreement(one: Float[np.ndarray, "r k"], other: Float[np.ndarray, "r k"]) -> Estimate:
    """Spearman's correlation of two `column_means`; its interval is the spread of the draws, put around it.

    Draws add noise to ranks, so that they agree less than the ranks themselves do: they tell the width alone.
    """
    a, b = (stats.rankdata(v, axis=1) - (v.shape[1] + 1) / 2 for v in (one, other))
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    rho = ((a * b).sum(1) / np.where(spread > 0, spread, 1)).clip(-1, 1)  # 0 where all ranks are equal
    z = np.arctanh(0.999 * rho)  # Fisher's, on which a spread is the same everywhere
    low, high = np.tanh(z[0] + np.quantile(z[1:], [0.025, 0.975]) - np.median(z[1:]))
    return Estimate(float(rho[0]), float(low), float(high), "bayesian bootstrap 95 %", one.shape[1], "1")


def error_ratio(wrong: Float[np.ndarray, "n"], has: Float[np.ndarray, "n"]) -> Estimate:
    """Error rate where a factor is, over the error rate of all: (1 - acc_k) / (1 - acc_avg).

    Source: Idrissi et al. (2023). The interval is Wilson's of the numerator; the rate of all is taken as known.
    """
    wrong, has = np.asarray(wrong, dtype=bool), np.asarray(has, dtype=bool)
    if not has.any() or not wrong.any():
        return not_measured("ratio")
    ends = [float(v / wrong.mean()) for v in (wrong[has].mean(), *wilson(wrong[has].mean(), has.sum()))]
    return Estimate(*ends, "wilson 95 % over the rate of all", int(has.sum()), "ratio")
