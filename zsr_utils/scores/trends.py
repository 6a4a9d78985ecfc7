"""Trends over models: accuracy under shift against accuracy without it, and what lies off the line.

Accuracies are fractions in [0, 1]. Lines are fitted on a scale that stretches both ends, logit or probit, and read
back as accuracies. Every interval draws models anew: it says how far a number would move with other models of the
same kind, and leaves out that all models saw the same test images.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special, stats

from zsr_utils._text import one_of
from zsr_utils.scores._intervals import Estimate


SCALES = {"logit": (special.logit, special.expit), "probit": (special.ndtri, special.ndtr)}
METHODS = ("least squares", "huber")
FEWEST = 3  # models a line needs: two always fit
HUBER = 1.35  # residuals beyond so many scales pull no harder; 95 % efficient where they are normal
ROUNDS = 40  # of reweighting
TINY = 1e-12


@dataclass(frozen=True)
class Line:
    """A straight line on a stretched scale, and those of the same models drawn anew.

    Called with (K,) accuracies it gives the accuracies under shift that it expects, (1 + resamples, K), row 0 its own.
    """

    slope: Float[np.ndarray, "r p"]  # by resample and piece, on the scale; row 0 is the fit to the models as they are
    intercept: Float[np.ndarray, "r p"]
    squares: Float[np.ndarray, "r p"]  # sum about the mean of x: the weight of a slope
    scale: str
    pivot: float  # accuracy without shift above which the second piece begins; infinite where there is one piece
    n: int

    def __call__(self, accuracy: Float[np.ndarray, "k"]) -> Float[np.ndarray, "r k"]:
        at, piece = stretched(accuracy, self.scale), self._piece(accuracy)
        return SCALES[self.scale][1](self.slope[:, piece] * at + self.intercept[:, piece])

    def band(self, at: Float[np.ndarray, "g"]) -> pd.DataFrame:
        """The line at some accuracies, with its pointwise band: `x`, `piece` and the columns of an estimate."""
        return pd.DataFrame([asdict(summary(d, self.n)) for d in self(at).T]).assign(x=at, piece=self._piece(at))

    def _piece(self, accuracy) -> np.ndarray:
        return (np.asarray(accuracy, dtype=float) > self.pivot).astype(int)


def fit_line(
    x: Float[np.ndarray, "k"], y: Float[np.ndarray, "k"], *, scale: str = "logit", method: str = "least squares",
    pivot: float = np.inf, resamples: int = 1000, seed: int | Sequence[int] = 0,
) -> Line:  # fmt: skip
    """The line scale(y) = slope · scale(x) + intercept through accuracies of models.

    Examples:
        >>> x = np.array([0.5, 0.6, 0.7, 0.8])
        >>> line = fit_line(x, special.expit(1.1 * special.logit(x) - 0.5))
        >>> [round(float(v[0, 0]), 3) for v in (line.slope, line.intercept, line([0.5]))]
        [1.1, -0.5, 0.378]

    Args:
        pivot: Accuracy without shift at which the line breaks in two, each with its own models.
        seed: Groups that are compared need different ones, or their models are drawn alike.

    Source: Least squares on the logit scale: Taori et al. (2020). Huber's regression, which bounds the pull of
        outliers, on the probit scale: Tu et al. (2024), as scikit-learn's `HuberRegressor` (epsilon 1.35, no penalty).
    """
    one_of("scale", scale, SCALES)
    one_of("method", method, METHODS)
    u, v = stretched(x, scale), stretched(y, scale)
    if u.ndim != 1 or u.shape != v.shape:
        raise ValueError(f"x and y have shapes {u.shape} and {v.shape}, allowed is one value a model in both.")
    above = np.asarray(x, dtype=float) > pivot
    pieces = []
    for number, side in enumerate([~above, above] if np.isfinite(pivot) else [~above]):
        if side.sum() < FEWEST or np.ptp(u[side]) == 0:
            where = f" on one side of the pivot {pivot:g}" if np.isfinite(pivot) else ""
            allowed = f"{FEWEST} models or more with 2 or more different x to fit a line"
            given = f"{side.sum()} models{where} with {len(set(u[side]))} different x given"
            raise ValueError(f"{given}, allowed is {allowed}.")
        index = redrawn(side.sum(), resamples, seed, number)
        pieces.append(_fits(u[side][index], v[side][index], method))
    return Line(*(np.stack(parts, axis=1) for parts in zip(*pieces)), scale, pivot, len(u))


def common_slope(lines: Sequence[Line]) -> Float[np.ndarray, "r"]:
    """Draws of the one slope of groups at different heights: the pooled one of the analysis of covariance."""
    return sum(line.slope[:, 0] * line.squares[:, 0] for line in lines) / sum(line.squares[:, 0] for line in lines)


def straightness(x, y, *, scale: str = "probit", resamples: int = 1000, seed: int = 0, **how) -> dict[str, Estimate]:
    """How well a line says what y is: its `slope`, `r2`, `r2_least_squares` and `spearman`.

    `r2` is 1 - SS(residuals) / SS(total) of the line on the scale, which can be negative for a robust one,
    `r2_least_squares` the squared Pearson correlation on the scale, and `spearman` that of the raw values, whose
    interval is at least as wide as if two neighbours had changed places.

    Args:
        x, y: Fractions, one a model: accuracies, or any other score in [0, 1], such as an FPR.

    Source: Tu et al. (2024), trend statistics; R² of both lines and the bootstrap are ours. Bonett & Wright (2000) for
        the interval of `spearman`.
    """
    line = fit_line(x, y, scale=scale, resamples=resamples, seed=seed, **how)
    index = redrawn(line.n, resamples, seed, 0)
    a, b = stretched(x, scale)[index], stretched(y, scale)[index]
    residuals = b - line.slope * a - line.intercept
    draws = {
        "slope": line.slope[:, 0],
        "r2": 1 - np.square(residuals).sum(1) / np.maximum(line.n * b.var(axis=1), TINY),
        "r2_least_squares": _correlation(a, b) ** 2,
    }
    found = {quantity: summary(values, line.n, "1") for quantity, values in draws.items()}
    rho, swapped = stats.spearmanr(x, y).statistic, 1 - 12 / (line.n**3 - line.n)
    inside = np.clip(rho, -swapped, swapped)
    half = stats.norm.ppf(0.975) * np.sqrt((1 + inside**2 / 2) / max(line.n - 3, TINY))
    low, high = np.tanh(np.arctanh(inside) - half), np.tanh(np.arctanh(inside) + half)
    ends = float(min(low, rho)), float(max(high, rho))
    return found | {"spearman": Estimate(float(rho), *ends, "bonett-wright 95 %", line.n, "1")}


def summary(draws: Float[np.ndarray, "r"], n: int, unit: str = "fraction") -> Estimate:
    """The first draw as the value, the others as its percentile interval of 95 %."""
    low, high = np.nanquantile(draws[1:], [0.025, 0.975])
    return Estimate(float(draws[0]), float(low), float(high), f"bootstrap 95 % (models, {len(draws) - 1})", n, unit)


def mean_over(draws: Float[np.ndarray, "r k"], seed: int | Sequence[int]) -> Float[np.ndarray, "r"]:
    """Draws of a mean over models, which are drawn anew as well, by another seed than those of the line."""
    return np.take_along_axis(draws, redrawn(draws.shape[1], len(draws) - 1, seed), axis=1).mean(1)


def redrawn(n: int, resamples: int, seed: int | Sequence[int], *further: int) -> np.ndarray:
    """Rows of positions, (1 + resamples, n): all of them in order, then drawn with replacement."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, allowed is 1 or more.")
    rng = np.random.default_rng([*np.atleast_1d(seed), *further])
    return np.concatenate([np.arange(n)[None], rng.integers(n, size=(resamples, n))])


def stretched(accuracy: Float[np.ndarray, "k"], scale: str = "logit") -> Float[np.ndarray, "k"]:
    """Accuracies on a scale: ln(a / (1 - a)) for `logit`, the standard normal quantile for `probit`."""
    accuracy = np.asarray(accuracy, dtype=float)
    if (wrong := accuracy[~((accuracy > 0) & (accuracy < 1))]).size:
        hint = "divide percentages by 100" if wrong.flat[0] > 1 else "clip 0 and 1 by half an image"
        raise ValueError(f"accuracy is {wrong.flat[0]}, allowed is a fraction between 0 and 1: {hint}.")
    return SCALES[scale][0](accuracy)


def _fits(a: np.ndarray, b: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope, intercept and squares of every row of points; a row whose points have one x has no line."""
    weights, bound = np.ones_like(a), np.inf
    for _ in range(1 if method == "least squares" else ROUNDS):
        share = weights / weights.sum(1, keepdims=True)
        a0, b0 = (share * a).sum(1, keepdims=True), (share * b).sum(1, keepdims=True)
        squares = (weights * (a - a0) ** 2).sum(1)
        slope = (weights * (a - a0) * (b - b0)).sum(1) / np.where(np.ptp(a, axis=1) > 0, squares, np.nan)
        intercept = b0[:, 0] - slope * a0[:, 0]
        off = abs(b - slope[:, None] * a - intercept[:, None])
        bound = HUBER * np.sqrt(np.square(np.minimum(off, bound)).mean(1, keepdims=True))
        weights = np.fmin(1, (bound + TINY) / (off + TINY))
    return slope, intercept, squares


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, row by row; 0 where a row does not vary."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / np.maximum(np.sqrt(np.square(a).sum(1) * np.square(b).sum(1)), TINY)
