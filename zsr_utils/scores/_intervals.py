"""Numbers with their intervals."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import scipy


AT_ONCE = 2**22  # numbers of a column drawn at once


@dataclass(frozen=True)
class Estimate:
    """A value with its interval and the number of samples behind it.

    Attributes:
        value: The estimate.
        low, high: Bounds of the interval.
        interval: How the bounds were found, such as `wilson 95 %`.
        n: Number of samples.
        unit: `fraction`, `cosine`, `images`, …
    """

    value: float
    low: float
    high: float
    interval: str
    n: int
    unit: str = "fraction"

    def __format__(self, spec: str) -> str:
        """`pct` gives percentages, `points` a difference of shares in percentage points; any other format
        applies to value and bounds.

        Examples:
            >>> e = Estimate(0.9876, 0.98, 0.993, "wilson 95 %", 800)
            >>> f"{e:pct}", f"{e:.2f}"
            ('98.8 % [98.0, 99.3]', '0.99 [0.98, 0.99]')
            >>> f"{Estimate(-0.0008, -0.002, 0.0, 'bootstrap 95 %', 1200):points}"
            '-0.1 points [-0.2, +0.0]'
        """
        if spec == "pct":
            return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        if spec == "points":
            value, low, high = (f"{100 * v:+.1f}" for v in (self.value, self.low, self.high))
            return f"{value} points [{low}, {high}]"
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def estimate_of(row) -> Estimate:
    """The estimate in a row of a table of estimates."""
    return Estimate(*(getattr(row, f.name) if hasattr(row, f.name) else row[f.name] for f in fields(Estimate)))


def proportion(successes: int, n: int, *, confidence: float = 0.95, unit: str = "fraction") -> Estimate:
    """A proportion with its Wilson interval.

    Examples:
        >>> e = proportion(0, 900)
        >>> e.value, e.low, round(e.high, 4)
        (0.0, 0.0, 0.0043)

    Raises:
        ValueError: If `n` is not positive or `successes` is not in 0 … n.

    Source:
        Wilson (1927); computed by `scipy.stats.binomtest`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} of n = {n}, allowed are 0 to n with n at least 1.")
    interval = scipy.stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    low, high = float(interval.low), float(interval.high)
    return Estimate(float(successes / n), low, high, f"wilson {100 * confidence:.0f} %", int(n), unit)


def grouped_proportion(successes: np.ndarray, groups: np.ndarray, *, unit: str = "fraction") -> Estimate:
    """A proportion over samples that come in groups, such as pairs that share a source image.

    Samples of one group are not independent, so the Wilson interval gets the effective number of
    samples, n over the design effect. Where the successes, or the failures, lie in one group or
    none, the design effect cannot be estimated, and every group counts once.

    Examples:
        >>> alike = grouped_proportion(np.repeat([1, 0, 1, 0], 9), np.repeat([0, 1, 2, 3], 9))
        >>> alike.n, round(alike.low, 2)  # as wide as four samples, not 36
        (36, 0.13)
        >>> grouped_proportion(np.zeros(36), np.repeat([0, 1, 2], 12)).low
        0.0

    Raises:
        ValueError: If there is no sample, or not one group a sample.

    Source:
        Korn & Graubard (1998), with the Wilson interval in place of the exact one.
    """
    successes, groups = np.asarray(successes, dtype=float), np.asarray(groups)
    n = len(successes)
    if n == 0 or len(groups) != n:
        raise ValueError(
            f"{n} samples and {len(groups)} groups given, allowed is one group a sample and at least one sample."
        )
    share = successes.mean()
    _, index = np.unique(groups, return_inverse=True)
    number = index.max() + 1
    rarer = successes if share < 0.5 else 1 - successes
    if number == 1 or (np.bincount(index, rarer) > 0).sum() < 2:  # too few to see how they cluster
        effective = number
    else:
        off = np.bincount(index, successes - share)
        variance = number / (number - 1) * np.square(off).sum() / n**2
        effective = min(n, max(1, share * (1 - share) / variance)) if variance > 0 else n
    z = scipy.stats.norm.ppf(0.975)
    middle = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z / (1 + z**2 / effective) * np.sqrt(share * (1 - share) / effective + z**2 / (4 * effective**2))
    # where all fail or all succeed, one end is the value itself, which rounding would miss
    low = 0.0 if share == 0 else max(0.0, middle - half)
    high = 1.0 if share == 1 else min(1.0, middle + half)
    return Estimate(float(share), float(low), float(high), f"wilson 95 % ({number} groups)", n, unit)


def bootstrap(
    statistic: Callable[..., float],
    *columns: np.ndarray,
    groups: np.ndarray | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    unit: str = "fraction",
    paired: bool = True,
) -> Estimate:
    """Percentile bootstrap of a statistic of columns that belong to the same samples.

    The rows are drawn together, so a difference between two columns is a paired difference. With
    `groups`, whole groups are drawn, such as all pairs of one source image. Without, a statistic that has
    a parameter `axis`, as those of numpy, sees many resamples at once.

    Examples:
        >>> before, after = np.array([1, 1, 1, 0, 1.0]), np.array([1, 0, 1, 0, 1.0])
        >>> e = bootstrap(lambda a, b: b.mean() - a.mean(), before, after)
        >>> round(e.value, 2), e.interval
        (-0.2, 'bootstrap 95 % (paired, 1000)')

    Raises:
        ValueError: If columns are empty or differ in length.

    Source:
        Efron (1979).
    """
    columns = tuple(np.asarray(c) for c in columns)
    n = len(columns[0])
    if n == 0 or any(len(c) != n for c in columns):
        raise ValueError(f"columns have lengths {[len(c) for c in columns]}, allowed are equal lengths above 0.")
    rng = np.random.default_rng(seed)
    members = None if groups is None else [np.flatnonzero(np.asarray(groups) == g) for g in np.unique(groups)]
    together = members is None and "axis" in inspect.signature(statistic).parameters
    step = max(1, AT_ONCE // n) if together else 1
    draws = np.empty(resamples)
    for i in range(0, resamples, step):
        if together:
            rows = rng.integers(n, size=(min(step, resamples - i), n))
            draws[i : i + step] = statistic(*(c[rows] for c in columns), axis=-1)
            continue
        if members is None:
            rows = rng.integers(n, size=n)
        else:
            rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        draws[i] = statistic(*(c[rows] for c in columns))
    low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    kind = f"paired, {resamples}" if paired and len(columns) > 1 else str(resamples)
    if members is not None:
        kind += f", {len(members)} groups"
    label = f"bootstrap {100 * confidence:.0f} % ({kind})"
    return Estimate(float(statistic(*columns)), float(low), float(high), label, n, unit)


def paired_difference(before: np.ndarray, after: np.ndarray, *, seed: int = 0, unit: str = "fraction") -> Estimate:
    """Mean of `after - before` over the same samples, with a paired bootstrap interval.

    Examples:
        >>> same = np.array([1.0, 0.0, 1.0])
        >>> paired_difference(same, same).high
        0.0
    """
    return bootstrap(lambda a, b, axis=-1: (b - a).mean(axis), before, after, seed=seed, unit=unit)
