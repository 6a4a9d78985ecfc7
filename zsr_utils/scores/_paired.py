"""Differences on the same samples: intervals that are never of width zero, exact tests, several at once."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import reduce

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from zsr_utils.scores._intervals import Estimate, bare, estimate_of, no_difference


EXACT = 30  # differences that are not zero: below, all signs are counted


def paired_mean(differences: Float[np.ndarray, "n"], *, bound: float | None = None, unit: str = "fraction") -> Estimate:
    """Mean of paired differences, with its interval.

    Args:
        bound: The largest that a difference can be, such as 1 for shares. The interval is then not of width zero where
            nothing differs: half a sample as far as can be each way, and one that does not differ, are added to it.

    Examples:
        >>> f"{paired_mean(np.zeros(16), bound=1):.2f}"
        '0.00 [-0.11, 0.11]'

    Source: Agresti & Min (2005) with a bound, here also for shares of several views a sample; Student's t without.
    """
    d = np.asarray(differences, dtype=float)
    n = len(d)
    if bound:
        middle = d.sum() / (n + 2)
        spread = np.sqrt((np.square(d).sum() + bound**2) / (n + 2) - middle**2)
        half, kind = stats.norm.ppf(0.975) * spread / np.sqrt(n + 2), "agresti-min"
    else:
        middle, kind = d.mean(), "paired t"
        half = stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
    low, high = np.clip([middle - half, middle + half], -(bound or np.inf), bound or np.inf)
    return Estimate(float(d.mean()), float(low), float(high), f"{kind} 95 %", n, unit)


def sign_flip(differences: Float[np.ndarray, "n"]) -> float:
    """Two-sided p of the hypothesis that every difference might as well have the other sign.

    Exact where fewer than 30 differ from zero, else by Student's t. Of differences of right and wrong answers it is
    McNemar's exact test.

    Examples:
        >>> sign_flip(np.array([1, 1, 1, 1, 1, 0.0]))
        0.0625

    Source: Fisher (1935). All sums of two halves of the differences are paired, so that 2^29 signs take no time.
    """
    d = np.asarray(differences, dtype=float)
    d = d[d != 0]
    if len(d) >= EXACT and len(d) == len(differences) and np.ptp(d) == 0:
        return 2.0 ** (1 - len(d))  # all as one, of which Student's t knows no spread
    if len(d) >= EXACT:
        return float(stats.ttest_1samp(np.asarray(differences, dtype=float), 0).pvalue)
    one, other = (reduce(lambda s, v: np.concatenate([s - v, s + v]), half, np.zeros(1)) for half in (d[::2], d[1::2]))
    other, reached = np.sort(other), abs(d.sum()) - 1e-9 * abs(d).sum()  # a tie is one but for rounding
    below = np.searchsorted(other, -reached - one, "right")
    above = len(other) - np.searchsorted(other, reached - one, "left")
    return float(min(1, (below + above).sum() / 2 ** len(d)))


def holm(p: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """P values of a table for all its tests at once; a missing one is no test.

    Examples:
        >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
        [0.03, 0.06, nan, 0.06]

    Source: Holm (1979).
    """
    p = np.asarray(p, dtype=float)
    order, tests = np.argsort(p), np.isfinite(p).sum()  # NaN comes last
    adjusted = np.full(len(p), np.nan)
    adjusted[order[:tests]] = np.maximum.accumulate(p[order[:tests]] * np.arange(tests, 0, -1)).clip(max=1)
    return adjusted


def paired_changes(
    base: pd.DataFrame, other: pd.DataFrame, by: str | Sequence[str], *, bounds: float | Mapping | None = None,
    within: str | None = None, unit: str = "fraction",
) -> pd.DataFrame:  # fmt: skip
    """Mean difference `other - base` in every group, sample by sample; several values of a sample are averaged first.

    Both have the columns `by`, `sample_id`, `value`; samples that only one of them has are left out.

    Args:
        bounds: Of the differences, as for `paired_mean`: one for all groups, or by the value of the last of `by`.
        within: The column of `by` whose values are families of tests of their own; else the whole table is one.

    Returns: The columns `by`, the means `base` and `other` over the common samples, the columns of an estimate of the
        difference, `p` of `sign_flip`, `p_holm` over the family, and what that and the interval decide, `verdict`:
        `more`, `less` or `undecided`. A group without a common sample has no row.

    Examples:
        >>> base = pd.DataFrame({"m": "a", "sample_id": [1, 2, 3], "value": [0.0, 0.0, 1.0]})
        >>> other = pd.DataFrame({"m": "a", "sample_id": [1, 2, 4], "value": [1.0, 0.0, 1.0]})
        >>> paired_changes(base, other, "m")[["base", "other", "value", "p", "verdict"]].values.tolist()
        [[0.0, 0.5, 0.5, 1.0, 'undecided']]
    """
    by = [by] if isinstance(by, str) else list(by)
    means = [table.groupby([*by, "sample_id"], sort=False).value.mean() for table in (base, other)]
    both = pd.concat(means, axis=1, join="inner", keys=["base", "other"])
    found = []
    for group, part in both.groupby(level=by, sort=False):
        d = (part.other - part.base).to_numpy()
        bound = bounds.get(group[-1]) if isinstance(bounds, Mapping) else bounds
        change = paired_mean(d, bound=bound, unit=unit)
        found.append({**dict(zip(by, group)), **part.mean(), **asdict(change), "p": np.nan if bare() else sign_flip(d)})
    if not found:
        return pd.DataFrame(
            columns=[*by, "base", "other", *(f.name for f in fields(Estimate)), "p", "p_holm", "verdict"]
        )
    return corrected(pd.DataFrame(found), within)


def corrected(table: pd.DataFrame, within: str | None = None) -> pd.DataFrame:
    """A table of estimates with `p`, and the `p_holm` and `verdict` that `paired_changes` describes."""
    p_holm = table.groupby(within).p.transform(holm) if within else holm(table.p)
    sure = (p_holm < 0.05) & ((table.low > 0) | (table.high < 0))  # the interval is wider than the test for shares
    verdict = np.select([~sure, table.value > 0], ["undecided", "more"], "less")
    return table.assign(p_holm=p_holm, verdict=verdict)


def tested(table: pd.DataFrame, reference: float = 0.0) -> pd.DataFrame:
    """A table of estimates with `p` of the reference as `no_difference` gives it, all tested at once, as `corrected`.

    Examples:
        >>> table = pd.DataFrame([vars(Estimate(v, v - 2, v + 2, "t 95 %", 9)) for v in (2.1, 5.0, 0.5)])
        >>> tested(table).verdict.tolist(), tested(table[:1]).verdict.tolist(), tested(table[1:], 9).verdict.tolist()
        (['undecided', 'more', 'undecided'], ['more'], ['less', 'less'])
    """
    ends = table.assign(**table[["value", "low", "high"]] - reference)
    found = corrected(ends.assign(p=[no_difference(estimate_of(row)) for row in ends.itertuples()]))
    return table.assign(**found[["p", "p_holm", "verdict"]])


def changes_from(rows: pd.DataFrame, column: str, base, by: str | Sequence[str], **options) -> pd.DataFrame:
    """`paired_changes` of all other values of a column from one of them, `base`; `by` holds that column.

    Examples:
        >>> rows = pd.DataFrame({"m": list("aabb"), "sample_id": [1, 2, 1, 2], "value": [0.0, 0, 1, 0]})
        >>> changes_from(rows, "m", "a", "m")[["m", "value"]].values.tolist()
        [['b', 0.5]]
    """
    own, others = rows[rows[column] == base], rows[rows[column] != base]
    every = [own.assign(**{column: value}) for value in others[column].unique()]
    return paired_changes(pd.concat(every or [own[:0]]), others, by, **options)
