"""Whether confidences mean what they say: errors of calibration, what a temperature mends, who may abstain."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import optimize, special, stats
from sklearn.isotonic import IsotonicRegression

from zsr_utils.scores._intervals import Estimate, Z, not_measured, wilson


BOUNDS = (np.log(1e-3), np.log(1e3))  # of the logarithm of a temperature


def confidence_bins(confidence: Float[np.ndarray, "n"], bins: int = 15, *, mass: bool = False) -> Int[np.ndarray, "n"]:
    """The bin of every confidence: ((k - 1)/bins, k/bins], with 0 in the first, or of equal mass; ties share it."""
    if len(wrong := confidence[~((confidence >= 0) & (confidence <= 1))]):
        raise ValueError(f"A confidence is {wrong[0]}, allowed is 0 to 1.")
    place = (stats.rankdata(confidence) - 0.5) / len(confidence) if mass else confidence
    return np.ceil(np.round(place * bins, 12)).astype(int).clip(1, bins) - 1


def calibration_error(
    confidence: Float[np.ndarray, "n *k"], correct: Bool[np.ndarray, "n *k"], *, bins: int = 15, mass: bool = False,
    debiased: bool = False, resamples: int = 1000, seed: int = 0,
) -> Estimate:  # fmt: skip
    """Expected calibration error (ECE): mean gap between confidence and accuracy over bins, weighed by their images.

    Of probabilities of every class it is the mean over classes (class-wise ECE). Chance alone makes gaps: ECE is above
    0 for a calibrated model, and its resamples are above itself, so that bounds are moved down by as much. `debiased`
    is the root, with its sign, of a mean squared gap that is right on average: below 0 if chance would make more.

    Examples:
        >>> round(calibration_error(np.array([0.95, 1.0]), np.array([True, False])).value, 3)
        0.475

    Source: Guo et al. (2017); equal mass and the square without its bias after Kumar et al. (2019).
    """
    confidence = np.asarray(confidence, float)
    if not (n := len(confidence)):
        return not_measured()
    columns, right = (np.reshape(v, (n, -1)).astype(float) for v in (confidence, correct))
    k, d = columns.shape[1], right - columns
    index = np.stack([confidence_bins(c, bins, mass=mass) for c in columns.T], 1) + bins * np.arange(k)
    rng, cells, draws = np.random.default_rng(seed), bins * k, np.empty(resamples)

    def plain(rows: np.ndarray | slice) -> float:
        sums, sizes = (np.bincount(index[rows].ravel(), w, cells) for w in (d[rows].ravel(), None))
        return float((sums**2 / np.maximum(sizes, 1) if debiased else np.abs(sums)).sum() / (n * k))

    for i in range(resamples):
        draws[i] = plain(rng.integers(n, size=n))
    value = plain(slice(None))
    if debiased:
        sums, squares, sizes = (np.bincount(index.ravel(), w, cells) for w in (d.ravel(), d.ravel() ** 2, None))
        value = float(((sums**2 - squares) / np.maximum(sizes - 1, 1))[sizes > 1].sum() / (n * k))
    low, high = np.quantile(draws, [0.025, 0.975]) - draws.mean() + value
    label = f"bootstrap 95 % (images, {resamples}, bias-corrected)"
    if draws.std() < 1e-12:
        ends = np.abs(np.array(wilson(right.mean(), n)) - columns.mean())
        low, high, label = 0.0, max(ends) ** (2 if debiased else 1), f"wilson 95 % of {n}, no variation"
    root = (lambda v: float(np.sign(v) * np.sqrt(abs(v)))) if debiased else lambda v: max(0.0, float(v))
    return Estimate(*map(root, (value, low, high)), label, n)


def reliability(
    confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], *, bins: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Bins of equal mass: `n`, mean `confidence`, accuracy (`value`), and the consistency band, `low` to `high`.

    It holds the accuracy of 95 % of the samples of a model that is calibrated and as confident.

    Source: Bröcker & Smith (2007).
    """
    index, rng = confidence_bins(confidence, bins, mass=True), np.random.default_rng(seed)
    right = np.concatenate([np.asarray(correct, float)[None], rng.random((1000, len(confidence))) < confidence])
    found = []
    for k in np.unique(index):
        accuracy = right[:, index == k].mean(1)
        low, high = np.quantile(accuracy[1:], [0.025, 0.975])
        own = confidence[index == k]
        found.append({"n": len(own), "confidence": own.mean(), "value": accuracy[0], "low": low, "high": high})
    return pd.DataFrame(found)


def brier_parts(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> dict[str, Estimate]:
    """Brier score of "the answer is right" and its parts: brier = miscalibration - discrimination + uncertainty.

    Source: Brier (1950); the parts by isotonic regression, exact and without bins, as of Dimitriadis et al. (2021).
    """
    c, y = np.asarray(confidence, float), np.asarray(correct, float)

    def parts(c: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
        fitted = IsotonicRegression(y_min=0, y_max=1).fit_transform(c, y)
        brier, best, base = (np.square(p - y).mean() for p in (c, fitted, y.mean()))
        return brier, brier - best, base - best, base

    values, rng = parts(c, y), np.random.default_rng(0)
    draws = np.array([parts(c[r], y[r]) for r in rng.integers(len(c), size=(200, len(c)))])
    ends = np.quantile(draws, [0.025, 0.975], axis=0) - draws.mean(0) + values  # a fit to fewer images fits too well
    ends = np.where(draws.std(0) > 0, ends.clip(0), np.nan)  # what does not vary has no interval
    names = ("brier", "miscalibration", "discrimination", "uncertainty")
    kind = "bootstrap 95 % (images, 200, bias-corrected)"
    found = zip(names, values, *ends)
    return {name: Estimate(float(v), float(low), float(high), kind, len(c), "1") for name, v, low, high in found}


def fit_temperature(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> Estimate:
    """The temperature that, dividing the logits, makes the labels likeliest.

    Not measured where every answer is right, since the likelihood then grows without end as the temperature falls, nor
    of logits without spread.

    Source: Guo et al. (2017); the interval is that of an M-estimator (Huber 1967) on the logarithm.
    """
    logits, rows = np.asarray(logits, float), np.arange(len(labels))
    if (logits.argmax(1) == labels).all() or not np.ptp(logits, axis=1).any():
        return not_measured("1")

    def nll(at: float) -> float:
        return -special.log_softmax(logits / np.exp(at), axis=1)[rows, labels].mean()

    at = optimize.minimize_scalar(nll, bounds=BOUNDS, method="bounded", options={"xatol": 1e-8}).x
    z = logits / np.exp(at)
    p = special.softmax(z, axis=1)
    mean = (p * z).sum(1)
    slope, curve = z[rows, labels] - mean, (p * (z - mean[:, None]) ** 2).sum()
    half = Z * np.sqrt(np.square(slope).sum()) / curve if curve > 0 else np.inf
    return Estimate(*map(float, np.exp([at, at - half, at + half])), "m-estimator 95 %", len(labels), "1")
