"""Numbers with their intervals."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace

import numpy as np
import scipy


Z = float(scipy.stats.norm.ppf(0.975))
FEW = 6  # 2 / 2^n is below 5 % from here on
AT_ONCE = 2**22  # numbers of a column drawn at once
_BARE = ContextVar("bare", default=False)


@contextmanager
def without_intervals() -> Iterator[None]:
    """Within it nothing is resampled: for a statistic of which only the value is asked, many times."""
    token = _BARE.set(True)
    try:
        yield
    finally:
        _BARE.reset(token)


def bare() -> bool:
    """Whether no intervals are wanted."""
    return _BARE.get()


@dataclass(frozen=True)
class Estimate:
    """A value with its interval and the number of samples behind it.

    A value that is not a number was not measured; bounds that are none leave a value without an interval.
    """

    value: float
    low: float
    high: float
    interval: str  # how the bounds were found, such as `wilson 95 %`
    n: int
    unit: str = "fraction"  # or `cosine`, `images`, …

    def __format__(self, spec: str) -> str:
        """`pct` gives percentages, `points` a difference in percentage points, else the format of value and bounds.

        Examples:
            >>> e = Estimate(0.9876, 0.98, 0.993, "wilson 95 %", 800)
            >>> f"{e:pct}", f"{e:.2f}"
            ('98.8 % [98.0, 99.3]', '0.99 [0.98, 0.99]')
        """
        if np.isnan(self.value):
            return "not measured"
        number, unit = {"pct": (".1f", " %"), "points": ("+.1f", " points")}.get(spec, (spec or ".3f", ""))
        value, low, high = (f"{(100 if unit else 1) * v:{number}}" for v in (self.value, self.low, self.high))
        bounds = f"{low}, {high}" if np.isfinite([self.low, self.high]).all() else f"no interval, n = {self.n}"
        return f"{value}{unit} [{bounds}]"


def not_measured(unit: str = "fraction") -> Estimate:
    """The estimate of what no sample tells."""
    return Estimate(float("nan"), float("nan"), float("nan"), "not measured", 0, unit)


def estimate_of(row) -> Estimate:
    """The estimate in a row of a table of estimates."""
    return Estimate(*(getattr(row, f.name) if hasattr(row, f.name) else row[f.name] for f in fields(Estimate)))


def proportion(successes: int, n: int) -> Estimate:
    """A proportion with its interval of Wilson (1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} of n = {n}, allowed are 0 to n with n at least 1.")
    return Estimate(float(successes / n), *wilson(successes / n, n), "wilson 95 %", int(n))


def grouped_proportion(successes: np.ndarray, groups: np.ndarray) -> Estimate:
    """A proportion over samples that come in groups, such as pairs that share a source image.

    The Wilson interval gets the effective number of samples: n over the design effect, and less where few groups show
    that effect. Where the successes (0, 1 or shares between), or the failures, lie in one group or none, it cannot be
    estimated, and every group counts once.

    Source: Korn & Graubard (1998), with the Wilson interval in place of the exact one.
    """
    successes, groups = np.asarray(successes, dtype=float), np.asarray(groups)
    n = len(successes)
    if len(groups) != n:
        raise ValueError(f"{n} samples and {len(groups)} groups given, allowed is one group a sample.")
    if n == 0:
        return not_measured()
    share = successes.mean()
    _, index = np.unique(groups, return_inverse=True)
    number = index.max() + 1
    rarer = successes if share < 0.5 else 1 - successes
    if number == 1 or (np.bincount(index, rarer) > 0).sum() < 2:  # too few to see how they cluster
        effective = number
    else:
        off = np.bincount(index, successes - share)
        variance = number / (number - 1) * np.square(off).sum() / n**2
        few = (Z / scipy.stats.t.ppf(0.975, number - 1)) ** 2
        effective = min(n, max(1, few * share * (1 - share) / variance)) if variance > 0 else n
    return Estimate(float(share), *wilson(share, effective), f"wilson 95 % ({number} groups)", n)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Bounds of a share of n samples; n need not be whole."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # where all fail or all succeed, one end is the value itself, which rounding would miss
    low = 0.0 if share == 0 else max(0.0, middle - half)
    high = 1.0 if share == 1 else min(1.0, middle + half)
    return float(low), float(high)


def bootstrap(
    statistic: Callable[..., float], *columns: np.ndarray, groups: np.ndarray | None = None, resamples: int = 1000,
    seed: int = 0, unit: str = "fraction",
) -> Estimate:  # fmt: skip
    """Percentile bootstrap of a statistic of columns that belong to the same samples.

    The rows are drawn together, so a difference between two columns is a paired difference. With `groups`, whole groups
    are drawn, such as all pairs of one source image. Without, a statistic that has a parameter `axis`, as those of
    numpy, sees many resamples at once. A column of fractions that are all the same gives resamples no width: its
    interval is Wilson's for as many trials as there are draws. Anything else that is all the same has no interval, nor
    have fewer than six draws: all of them lie on one side of what is true with a chance above 5 %.

    Source: Efron (1979).
    """
    columns = tuple(np.asarray(c) for c in columns)
    n = len(columns[0])
    if any(len(c) != n for c in columns):
        raise ValueError(f"columns have lengths {[len(c) for c in columns]}, allowed are equal lengths.")
    if n == 0 or np.isnan(value := float(statistic(*columns))):
        return not_measured(unit)
    if bare():
        return Estimate(value, float("nan"), float("nan"), "none", n, unit)
    rng, draws = np.random.default_rng(seed), np.empty(resamples)
    members = None if groups is None else [np.flatnonzero(np.asarray(groups) == g) for g in np.unique(groups)]
    together = members is None and "axis" in inspect.signature(statistic).parameters
    step = max(1, AT_ONCE // n) if together else 1
    for i in range(0, resamples, step):
        if members is None:
            rows = rng.integers(n, size=(min(step, resamples - i), n) if together else n)
        else:
            rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        draws[i : i + step] = statistic(*(c[rows] for c in columns), **{"axis": -1} if together else {})
    low, high = np.nanquantile(draws, [0.025, 0.975])
    kind = "paired, " * (len(columns) > 1) + str(resamples) + (f", {len(members)} groups" if members else "")
    label = f"bootstrap 95 % ({kind})"
    same = len(columns) == 1 and (columns[0] == columns[0][0]).all()
    trials = n if members is None else len(members)
    if same and unit == "fraction" and 0 <= value <= 1:
        (low, high), label = wilson(value, trials), f"wilson 95 % of {trials}, no variation"
    elif trials < FEW or same:
        low, high, label = np.nan, np.nan, f"none of fewer than {FEW} or without variation"
    return Estimate(value, float(low), float(high), label, n, unit)


def ratio_of_means(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
    """A statistic of `bootstrap` for two columns."""
    return one.mean(axis) / other.mean(axis)


def paired_difference(before: np.ndarray, after: np.ndarray, *, seed: int = 0, unit: str = "fraction") -> Estimate:
    """Mean of `after - before` over the same samples.

    For fractions that are 0 or 1 the interval is Tango's, which has width even if no sample changed; otherwise it is a
    paired bootstrap. Where all samples change alike, that has no width: then it is Tango's for as many samples without
    a change, times the largest change there can be (1 for fractions, else the range of the values and 0).

    Source: Tango (1998) for the score interval of paired shares; its use without variation is this project's.
    """
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if len(before) == len(after) == 0:
        return not_measured(unit)
    n, both = len(before), np.concatenate([before, after])
    shares = unit == "fraction" and (both >= 0).all() and (both <= 1).all()
    if shares and n == len(after) > 0 and np.isin(both, (0, 1)).all():
        low, high = _tango(int((after > before).sum()), int((after < before).sum()), n)
        return Estimate(float((after - before).mean()), low, high, "tango 95 % (paired)", n, unit)
    found = bootstrap(lambda a, b, axis=-1: (b - a).mean(axis), before, after, seed=seed, unit=unit)
    if np.ptp(after - before) > 1e-12 * np.abs(both).max():
        return found
    largest = 1.0 if shares else float(np.ptp([0, *both]))
    low, high = (max(-largest, min(largest, found.value + largest * end)) for end in _tango(0, 0, n))
    low, high = (low, high) if largest else (np.nan, np.nan)
    return replace(found, low=low, high=high, interval=f"tango 95 % of {n}, no variation (paired)")


def unpaired_difference(one: Estimate, other: Estimate) -> Estimate:
    """`other - one` of two independent samples, from the intervals of both.

    Examples:
        >>> f"{unpaired_difference(proportion(0, 20), proportion(0, 20)):.2f}"
        '0.00 [-0.16, 0.16]'

    Source: Zou & Donner (2008); for two proportions the interval of Newcombe (1998).
    """
    value = other.value - one.value
    low = value - np.hypot(other.value - other.low, one.high - one.value)
    high = value + np.hypot(other.high - other.value, one.value - one.low)
    return Estimate(value, float(low), float(high), f"both: {other.interval}", min(one.n, other.n), other.unit)


def no_difference(difference: Estimate) -> float:
    """Two-sided p of zero that an interval of 95 % stands for, if an error has the normal distribution.

    Its width is that of the side towards zero; NaN where the interval has none.

    Examples:
        >>> round(no_difference(Estimate(1.96, 0, 9, "t 95 %", 20, "points")), 3)
        0.05
    """
    d = difference
    reach = d.value - d.low if d.value > 0 else d.high - d.value
    return float(2 * scipy.stats.norm.sf(abs(d.value) / reach * Z)) if reach > 0 else np.nan


def _tango(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Bounds of (gained - lost) / n: the differences d that a score test does not reject at 5 %."""
    difference = (gained - lost) / n

    def excess(d: float) -> float:
        b, c = (2 * n - gained + lost) * d - gained - lost, -lost * d * (1 - d)
        share_lost = (np.sqrt(max(0, b**2 - 8 * n * c)) - b) / (4 * n)  # the likeliest, given d
        return (gained - lost - n * d) ** 2 - Z**2 * n * (2 * share_lost + d * (1 - d))

    # just off the difference: without a change, the score has a root there too
    bounds = (difference - 1e-9, -1.0), (difference + 1e-9, 1.0)
    low, high = (end if abs(start) >= 1 else scipy.optimize.brentq(excess, start, end) for start, end in bounds)
    return float(low), float(high)
