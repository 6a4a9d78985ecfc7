"""What near-duplicates between a test set and a training set do to its accuracy, and what could be seen of it."""

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from zsr_utils.scores._intervals import Estimate, not_measured


def exact_proportion(successes: int, n: int, level: float = 0.995) -> Estimate:
    """A proportion with its Clopper-Pearson interval.

    Examples:
        >>> f"{exact_proportion(0, 10):.3f}"
        '0.000 [0.000, 0.451]'
    """
    if n == 0:
        return not_measured()
    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="exact")
    return Estimate(successes / n, float(low), float(high), f"clopper-pearson {100 * level:g} %", int(n))


def overlap_effect(right: Float[np.ndarray, "n"], flagged: Bool[np.ndarray, "n"]) -> tuple[dict[str, Estimate], float]:
    """Contamination, the accuracies of Overlap, Clean and All, their `change`, and the p of a gain by duplicates.

    The change is the accuracy on All less that on Clean; its interval is that of the accuracy on Overlap, with Clean's
    held fixed. The one-sided binomial test asks whether Overlap is right more often than Clean. With an empty part
    neither is measured, and p is missing; so it is where Clean is right throughout, which nothing can exceed.

    Source: Radford et al. (2021), section 5.
    """
    right, flagged = np.asarray(right, float), np.asarray(flagged, bool)
    parts = {"overlap": right[flagged], "clean": right[~flagged], "all": right}
    found = {name: exact_proportion(int(part.sum()), len(part)) for name, part in parts.items()}
    found["contamination"] = share = exact_proportion(int(flagged.sum()), len(flagged))
    overlap, clean = found["overlap"], found["clean"]
    if not overlap.n or not clean.n:
        return found | {"change": not_measured()}, float("nan")
    change = (share.value * (each - clean.value) for each in (overlap.value, overlap.low, overlap.high))
    found["change"] = Estimate(*change, overlap.interval, len(right))
    p = stats.binomtest(int(parts["overlap"].sum()), overlap.n, clean.value, alternative="greater").pvalue
    return found, float(p) if clean.value < 1 else float("nan")


def detectable_gain(n: int, clean: float, *, power: float = 0.8, level: float = 0.05) -> float:
    """By how much n duplicates must be easier for the binomial test to notice it with that power; NaN where it cannot.

    Examples:
        >>> round(detectable_gain(100, 0.5), 2), detectable_gain(100, 0.995)
        (0.13, nan)
    """
    needed = int(stats.binom.isf(level, n, clean)) + 1  # the fewest right ones that are significant
    if needed > n:
        return float("nan")
    return float(stats.beta.ppf(power, needed, n - needed + 1)) - clean
