"""Cosine similarity of image pairs: within and between classes."""

import numpy as np
import scipy
from jaxtyping import Float, Int

from zsr_utils.scores._intervals import Estimate, not_measured


def pair_similarities(embeddings: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"]) -> tuple:
    """Cosines of all pairs of different images, as two arrays: (same class, different class).

    Source: Salman et al. (2024), Fig. 4.
    """
    if len(embeddings) < 2:
        raise ValueError(f"{len(embeddings)} embeddings given, at least two are needed to make a pair.")
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = unit @ unit.T
    first, second = np.triu_indices(len(unit), k=1)
    values, same = cosines[first, second], labels[first] == labels[second]
    return values[same], values[~same]


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive score exceeds a negative one, ties counted half.

    Examples:
        >>> auroc(np.array([0.9, 0.8]), np.array([0.1, 0.8]))
        0.875
    """
    if len(positive) == 0 or len(negative) == 0:
        raise ValueError("auroc needs at least one positive and one negative score.")
    above = scipy.stats.mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(above / (len(positive) * len(negative)))


def overlap_coefficient(a: np.ndarray, b: np.ndarray, *, bins: int = 100) -> float:
    """Shared area of two normalised histograms on common bins: 0 is apart, 1 the same.

    Examples:
        >>> overlap_coefficient(np.array([0.0, 0.1]), np.array([0.9, 1.0]))
        0.0
    """
    edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()) + 1e-9, bins + 1)
    p, q = (np.histogram(v, edges)[0] / len(v) for v in (a, b))
    return float(np.minimum(p, q).sum())


def pair_estimates(
    embeddings: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], *, resamples: int = 200, seed: int = 0
) -> dict[str, Estimate]:
    """Mean cosines, AUROC and overlap of same-class against different-class pairs, with intervals.

    The interval resamples images, not pairs: pairs share images, so resampling pairs would make it far too narrow. A
    resample gives image i the weight w_i it was drawn, and a pair the weight w_i w_j, so that an image is never paired
    with itself. Resamples are read off a histogram of 2,000 bins; the values themselves are exact.

    Returns:
        `auroc`, `overlap` (fractions), `within_mean`, `between_mean` (cosines); without two images of one class and
        images of two classes none of them is measured.

    Source: Salman et al. (2024), Fig. 4, shows the two histograms; the summary numbers are ours.
    """
    within, between = pair_similarities(embeddings, labels)
    names = (("auroc", "fraction"), ("overlap", "fraction"), ("within_mean", "cosine"), ("between_mean", "cosine"))
    if len(within) == 0 or len(between) == 0:
        return {name: not_measured(unit) for name, unit in names}
    low, high, coarse, fine = min(within.min(), between.min()), max(within.max(), between.max()), 100, 20
    width = (high - low + 1e-9) / (coarse * fine)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(len(unit), k=1)
    bins = (((unit @ unit.T)[first, second] - low) / width).astype(np.int64)
    bins = bins.clip(0, coarse * fine - 1) + coarse * fine * (labels[first] != labels[second])
    middle = low + (np.arange(coarse * fine) + 0.5) * width

    def summary(weights: np.ndarray) -> tuple[float, ...]:
        counts = np.bincount(bins, weights[first] * weights[second], minlength=2 * coarse * fine)
        p, q = (c / c.sum() for c in counts.reshape(2, -1))
        below = np.cumsum(q) - q / 2
        p_coarse, q_coarse = (c.reshape(coarse, fine).sum(1) for c in (p, q))
        return p @ below, np.minimum(p_coarse, q_coarse).sum(), p @ middle, q @ middle

    rng = np.random.default_rng(seed)
    n = len(unit)
    with np.errstate(invalid="ignore"):  # of a few images, one draw in many holds no pair of one class
        draws = [summary(np.bincount(rng.integers(n, size=n), minlength=n)) for _ in range(resamples)]
    values = (auroc(within, between), overlap_coefficient(within, between), within.mean(), between.mean())
    # resampled histograms are rougher than the original, which pulls their overlap down: take that bias out
    bias = np.nanmean(draws, axis=0) - values
    bounds = (np.nanquantile(draws, [0.025, 0.975], axis=0) - bias).clip([0, 0, -1, -1], 1)
    label = f"bootstrap 95 % (images, {resamples}, bias-corrected)"
    return {
        name: Estimate(float(value), float(lo), float(hi), label, n, unit_name)
        for (name, unit_name), value, lo, hi in zip(names, values, *bounds, strict=True)
    }
