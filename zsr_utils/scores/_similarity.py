"""Cosine similarity of image pairs: within and between classes."""

import numpy as np
import scipy
from jaxtyping import Float, Int

from zsr_utils.scores._intervals import Estimate, not_measured


def pair_similarities(embeddings: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"]) -> tuple:
    """Cosines of all pairs of different images, as two arrays: (same class, different class).

    Source: Salman et al. (2024), Fig. 4.
    """
    values, same, _ = _pairs(embeddings, labels)
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
    """Shared area of two normalised histograms on common bins: 0 is apart, 1 the same."""
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
    cosines, same, (first, second) = _pairs(embeddings, labels)
    units = {"auroc": "fraction", "overlap": "fraction", "within_mean": "cosine", "between_mean": "cosine"}
    if same.all() or not same.any():
        return {name: not_measured(unit) for name, unit in units.items()}
    within, between, low, coarse, fine = cosines[same], cosines[~same], cosines.min(), 100, 20
    width = (cosines.max() - low + 1e-9) / (coarse * fine)
    bins = ((cosines - low) / width).astype(np.int64).clip(0, coarse * fine - 1) + coarse * fine * ~same
    middle = low + (np.arange(coarse * fine) + 0.5) * width

    def summary(weights: np.ndarray) -> tuple[float, ...]:
        counts = np.bincount(bins, weights[first] * weights[second], minlength=2 * coarse * fine)
        p, q = (c / c.sum() for c in counts.reshape(2, -1))
        below = np.cumsum(q) - q / 2
        p_coarse, q_coarse = (c.reshape(coarse, fine).sum(1) for c in (p, q))
        return p @ below, np.minimum(p_coarse, q_coarse).sum(), p @ middle, q @ middle

    rng, n = np.random.default_rng(seed), len(embeddings)
    with np.errstate(invalid="ignore"):  # of a few images, one draw in many holds no pair of one class
        draws = [summary(np.bincount(rng.integers(n, size=n), minlength=n)) for _ in range(resamples)]
    values = (auroc(within, between), overlap_coefficient(within, between), within.mean(), between.mean())
    # resampled histograms are rougher than the original, which pulls their overlap down: take that bias out
    ends = np.nanquantile(draws, [0.025, 0.975], axis=0) - (np.nanmean(draws, axis=0) - values)
    label, found = f"bootstrap 95 % (images, {resamples}, bias-corrected)", {}
    for (name, unit), value, *bounds in zip(units.items(), values, *ends.clip([0, 0, -1, -1], 1)):
        found[name] = Estimate(float(value), *map(float, bounds), label, n, unit)
    return found


def _pairs(embeddings: np.ndarray, labels: np.ndarray) -> tuple:
    """Cosines of all pairs of different images, whether they are of one class, and the places of both."""
    if len(embeddings) < 2:
        raise ValueError(f"{len(embeddings)} embeddings given, at least two are needed to make a pair.")
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(len(unit), k=1)
    return (unit @ unit.T)[first, second], labels[first] == labels[second], (first, second)
