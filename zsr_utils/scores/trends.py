"""Trends over models: accuracy under shift against accuracy without it, and what lies off the line.

Accuracies are fractions in [0, 1]. Lines are fitted on a scale that stretches both ends, logit or probit,
and read back as accuracies. Every interval draws models anew: it says how far a line would move with
other models of the same kind, and leaves out that all models saw the same test images.
"""

from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float

from zsr_utils._text import one_of
from zsr_utils.scores._intervals import Estimate


SCALES = {"logit": (scipy.special.logit, scipy.special.expit), "probit": (scipy.special.ndtri, scipy.special.ndtr)}
METHODS = ("least squares", "huber")
FEWEST = 3  # models a line needs: two always fit
EPSILON = 1.35  # Huber's constant in units of the residuals' scale: 95 % efficient where they are normal


@dataclass(frozen=True)
class Line:
    """A straight line on a stretched scale, called with accuracies.

    Examples:
        >>> line = Line(1.0, -1.0, "logit", n=20)
        >>> round(float(line(0.5)), 3)  # expit(-1)
        0.269

    Attributes:
        slope, intercept: On the scale.
        scale: `logit` or `probit`.
        n: Models behind it.
    """

    slope: float
    intercept: float
    scale: str
    n: int

    def __call__(self, accuracy: Float[np.ndarray, "k"] | float, *, images: int | None = None) -> np.ndarray:
        """Accuracy under shift that the line expects at these accuracies; `images` as for `logit`."""
        return SCALES[self.scale][1](self.slope * _stretched(accuracy, self.scale, images) + self.intercept)


def logit(accuracy: Float[np.ndarray, "k"] | float, *, images: int | None = None) -> np.ndarray:
    """ln(a / (1 - a)), with accuracies of 0 and 1 half an image away from the end.

    Examples:
        >>> logit(np.array([0.5, 0.75])).round(3).tolist()
        [0.0, 1.099]
        >>> round(float(logit(1.0, images=100)), 3)  # as 99.5 of 100
        5.293

    Args:
        accuracy: Fractions in [0, 1].
        images: Images behind every accuracy, or one number an accuracy. Accuracies are clipped to
            [1 / (2 images), 1 - 1 / (2 images)]. Needed only where one is exactly 0 or 1.

    Raises:
        ValueError: If an accuracy is not in [0, 1] or is exactly 0 or 1 without `images`, or `images`
            is below 1.

    Source:
        Taori et al. (2020) for the scale; clipping by half an image is ours.
    """
    return _stretched(accuracy, "logit", images)


def probit(accuracy: Float[np.ndarray, "k"] | float, *, images: int | None = None) -> np.ndarray:
    """The standard normal quantile of accuracies, clipped as for `logit`.

    Examples:
        >>> probit(np.array([0.5, 0.975])).round(2).tolist()
        [0.0, 1.96]

    Raises:
        ValueError: As `logit`.

    Source:
        The axes of Tu et al. (2024); clipping by half an image is ours.
    """
    return _stretched(accuracy, "probit", images)


def fit_line(
    x: Float[np.ndarray, "k"],
    y: Float[np.ndarray, "k"],
    *,
    scale: str = "logit",
    method: str = "least squares",
    images: tuple[int | None, int | None] = (None, None),
) -> Line:
    """The line scale(y) = slope · scale(x) + intercept through accuracies of models.

    Examples:
        >>> x = np.array([0.5, 0.6, 0.7, 0.8])
        >>> line = fit_line(x, Line(1.1, -0.5, "logit", n=4)(x))
        >>> round(line.slope, 6), round(line.intercept, 6)
        (1.1, -0.5)

    Args:
        x: Accuracy without shift, one a model.
        y: Accuracy under shift of the same models.
        scale: `logit` (Taori et al., Wang et al.) or `probit` (Tu et al.).
        method: `least squares`, or `huber`, which bounds the pull of outliers.
        images: Images behind x and behind y, as for `logit`.

    Raises:
        ValueError: If scale or method is unknown, lengths differ, there are fewer than three models or
            all have the same x, Huber's fit does not converge, and as `logit`.

    Source:
        Ordinary least squares on the logit scale: Taori et al. (2020). Huber's regression on the probit
        scale: Tu et al. (2024); scikit-learn's `HuberRegressor` with epsilon 1.35 and no penalty is ours.
    """
    one_of("scale", scale, SCALES)
    one_of("method", method, METHODS)
    u, v = _pair(x, y, scale, images)
    slope, intercept = _fits(u, v, np.arange(len(u))[None], method)
    if not np.isfinite(slope[0]):
        raise ValueError(f"Huber's fit of {len(u)} models does not converge, method 'least squares' always does.")
    return Line(float(slope[0]), float(intercept[0]), scale, len(u))


def line_band(
    x: Float[np.ndarray, "k"],
    y: Float[np.ndarray, "k"],
    at: Float[np.ndarray, "g"],
    *,
    scale: str = "logit",
    method: str = "least squares",
    images: tuple[int | None, int | None] = (None, None),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The fitted line on a grid of accuracies, with its pointwise bootstrap band.

    Examples:
        >>> x = np.array([0.5, 0.6, 0.7, 0.8])
        >>> line_band(x, x, np.array([0.55]), resamples=50)[["x", "value", "high"]].round(6).values.tolist()
        [[0.55, 0.55, 0.55]]

    Args:
        x, y, scale, method, images: As for `fit_line`.
        at: Accuracies without shift, strictly between 0 and 1, at which the line is read.
        resamples: Bootstrap resamples of the models.
        confidence: Of the band.
        seed: Of the bootstrap.

    Returns:
        A row a grid point: `x` and the columns of an estimate, all as accuracies.

    Raises:
        ValueError: As `fit_line`, or if resamples is below 1.

    Source:
        The band of Taori et al. (2020).
    """
    line = fit_line(x, y, scale=scale, method=method, images=images)
    u, v = _pair(x, y, scale, images)
    slope, intercept = _fits(u, v, _redrawn(len(u), resamples, np.random.default_rng(seed)), method)
    grid = _stretched(at, scale, None)
    values = SCALES[scale][1](slope[:, None] * grid + intercept[:, None])
    low, high = _quantiles(values, confidence)
    label = f"bootstrap {100 * confidence:.0f} % ({len(u)} models, {resamples})"
    columns = {"x": np.asarray(at, dtype=float), "value": line(at), "low": low, "high": high}
    return pd.DataFrame({**columns, "interval": label, "n": len(u), "unit": "fraction"})


def effective_robustness(
    accuracy: Float[np.ndarray, "k"], shifted: Float[np.ndarray, "k"], line: Line, *, images: int | None = None
) -> np.ndarray:
    """How far accuracy under shift lies above what the line expects: rho = shifted - line(accuracy).

    Examples:
        >>> line = Line(1.0, -1.0, "logit", n=20)
        >>> effective_robustness(np.array([0.5, 0.5]), np.array([line(0.5), 0.5]), line).round(3).tolist()
        [0.0, 0.231]

    Args:
        accuracy: Accuracy without shift, on the classes of the shifted set.
        shifted: Accuracy under shift.
        line: Fitted through standard models.
        images: Images behind `accuracy`, as for `logit`.

    Returns:
        Differences of accuracies: 0.05 is five points.

    Raises:
        ValueError: As `logit`.

    Source:
        Taori et al. (2020).
    """
    return _fractions(shifted, "accuracy under shift") - line(accuracy, images=images)


def relative_robustness(shifted: Float[np.ndarray, "k"], base: Float[np.ndarray, "k"]) -> np.ndarray:
    """What a change of a model gains under shift: tau = shifted(changed) - shifted(base).

    From accuracies alone there is no interval: with answers of both models to the same images,
    `paired_difference` gives one.

    Examples:
        >>> relative_robustness(np.array([0.45]), np.array([0.4])).round(3).tolist()
        [0.05]

    Args:
        shifted: Accuracy under shift of changed models.
        base: Of the model that each was made from.

    Raises:
        ValueError: If an accuracy is not in [0, 1] or the lengths differ.

    Source:
        Taori et al. (2020).
    """
    shifted, base = _fractions(shifted, "accuracy under shift"), _fractions(base, "accuracy of the base model")
    if shifted.shape != base.shape:
        raise ValueError(f"shapes are {shifted.shape} and {base.shape}, allowed is one base model a changed model.")
    return shifted - base


def robustness(
    rows: pd.DataFrame,
    *,
    x: str = "x",
    y: str = "y",
    by: str | None = None,
    baseline: str = "standard",
    scale: str = "logit",
    pivot: float | None = None,
    images: tuple[int | None, int | None] = (None, None),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Effective robustness of every model of a table, or its mean in every group, with intervals.

    The line is fitted through the baseline models and redrawn with them. With `images`, each model's own
    two accuracies are redrawn as well, from their beta distributions (Jeffreys); they are of different
    images, hence independent. Group means also redraw the models of the group.

    Examples:
        >>> points = np.array([0.5, 0.6, 0.7, 0.6])
        >>> rows = pd.DataFrame({"model": list("abcd"), "group": ["standard"] * 3 + ["clip"], "x": points})
        >>> rows["y"] = [0.5, 0.6, 0.7, 0.75]
        >>> robustness(rows).value.round(3).tolist()
        [0.0, 0.0, 0.0, 0.15]

    Args:
        rows: One row a model, columns `model`, `group`, and those named by x and y.
        x: Column of the accuracy without shift.
        y: Column of the accuracy under shift.
        by: None for a row a model; else a column, such as `group`, for the mean of its groups, models of
            the baseline left out, whose mean is near 0 by construction.
        baseline: The group through which the line is fitted, at least three models.
        scale: As for `fit_line`.
        pivot: Accuracy without shift at which the line breaks in two, one on each side: ImageNet-A was
            filtered by a ResNet-50, and bends there. Each side needs its own three baseline models.
        images: Images behind x and behind y. They clip accuracies of 0 and 1 and widen the intervals.
        resamples: Bootstrap resamples.
        confidence: Of the intervals.
        seed: Of the bootstrap.

    Returns:
        `model`, `group`, x, y and `expected` (what the line gives), or the column `by` and `models`; then
        the columns of an estimate, whose n is the number of baseline models.

    Raises:
        ValueError: If columns are missing, the baseline has fewer than three models, and as `fit_line`.

    Source:
        Taori et al. (2020); intervals and the pivot for other sets than ImageNet-A are ours.
    """
    _columns(rows, ["model", "group", x, y, *([by] if by else [])])
    one_of("scale", scale, SCALES)
    for name in (x, y):
        _fractions(rows[name], name)
    accuracy, shifted = (rows[name].to_numpy(dtype=float) for name in (x, y))
    standard = (rows.group == baseline).to_numpy()
    above = np.zeros(len(rows), dtype=bool) if pivot is None else accuracy > pivot
    expected, draws = np.empty(len(rows)), np.empty((resamples, len(rows)))
    line_rng, model_rng = np.random.default_rng(seed).spawn(2)
    for side in np.unique(above):
        on = above == side
        fitted = on & standard
        if fitted.sum() < FEWEST:
            where = "" if pivot is None else f" {'above' if side else 'up to'} the pivot {pivot}"
            raise ValueError(
                f"Group {baseline!r} has {fitted.sum()} models{where}, allowed is {FEWEST} or more to fit a line."
            )
        line = fit_line(accuracy[fitted], shifted[fitted], scale=scale, images=images)
        expected[on] = line(accuracy[on], images=images[0])
        u, v = _pair(accuracy[fitted], shifted[fitted], scale, images)
        slope, intercept = _fits(u, v, _redrawn(len(u), resamples, line_rng), "least squares")
        before, after = (
            _jeffreys(values[on], n, resamples, model_rng)
            for values, n in zip((accuracy, shifted), images, strict=True)
        )
        into, back = SCALES[scale]
        draws[:, on] = after - back(slope[:, None] * into(before) + intercept[:, None])
    n, value = int(standard.sum()), shifted - expected
    label = f"bootstrap {100 * confidence:.0f} % ({n} {baseline} models{', images' * any(images)}, {resamples})"
    if by is None:
        low, high = _quantiles(draws, confidence)
        # an accuracy of 0 or 1 is at the end of its own beta distribution
        found = rows[["model", "group", x, y]].assign(
            expected=expected, value=value, low=np.minimum(low, value), high=np.maximum(high, value)
        )
        return found.assign(interval=label, n=n, unit="fraction").reset_index(drop=True)
    means = []
    for name in rows[by][~standard].unique():
        members = np.flatnonzero(~standard & (rows[by] == name).to_numpy())
        drawn = np.take_along_axis(draws[:, members], _redrawn(len(members), resamples, model_rng), axis=1)
        low, high = _quantiles(drawn.mean(1), confidence)
        mean = Estimate(float(value[members].mean()), float(low), float(high), f"{label[:-1]}, group)", n)
        means.append({by: name, "models": len(members), **asdict(mean)})
    return pd.DataFrame(means)


def trends(
    rows: pd.DataFrame,
    *,
    x: str = "x",
    y: str = "y",
    by: str | Sequence[str] = "group",
    scale: str = "probit",
    method: str = "huber",
    images: tuple[int | None, int | None] = (None, None),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """One line a group of models, with how well x predicts y.

    Args:
        rows: One row a model, with the columns named by `by`, x and y.
        x, y: Columns of fractions: accuracies, or any other score in [0, 1], such as an FPR.
        by: Columns that make the groups, each of at least three models.
        scale, method, images: As for `fit_line`.
        resamples: Bootstrap resamples of the models; about 5 s a group with `huber` and 1000.
        confidence: Of the intervals.
        seed: Of the bootstrap.

    Returns:
        A row a group and quantity, with the columns of an estimate. Quantities: `slope` and `intercept`
        of the line; `r2`, 1 - SS(residuals) / SS(total) of that line on the scale, which can be negative
        for a robust line; `r2_least_squares`, the squared Pearson correlation on the scale; and
        `spearman`, of the raw values. A quantity that a group does not define (no variation) is NaN.

    Raises:
        ValueError: If columns are missing, a group has fewer than three models, and as `fit_line`.

    Examples:
        >>> rows = pd.DataFrame({"group": "LAION", "x": [0.5, 0.6, 0.7, 0.8], "y": [0.3, 0.4, 0.5, 0.65]})
        >>> found = trends(rows, resamples=20)
        >>> dict(zip(found.quantity, found.value.round(2)))["spearman"]
        1.0

    Source:
        Tu et al. (2024), trend statistics; R² of both lines and the bootstrap are ours.
    """
    by = [by] if isinstance(by, str) else list(by)
    _columns(rows, [*by, x, y])
    one_of("scale", scale, SCALES)
    found = []
    for keys, part in rows.groupby(by, sort=False, observed=True):
        name = ", ".join(map(str, keys))
        if len(part) < FEWEST:
            raise ValueError(f"{name} has {len(part)} models, allowed is {FEWEST} or more: merge it or leave it out.")
        fit_line(part[x], part[y], scale=scale, method=method, images=images)  # its sentences, for what follows
        u, v = _pair(part[x], part[y], scale, images)
        raw = part[x].to_numpy(), part[y].to_numpy()
        index = _redrawn(len(part), resamples, np.random.default_rng(seed))
        values = _statistics(u, v, *raw, np.arange(len(part))[None], method)
        drawn = _statistics(u, v, *raw, index, method)
        label = f"bootstrap {100 * confidence:.0f} % ({len(part)} models, {resamples})"
        for quantity, value in values.items():
            low, high = _quantiles(drawn[quantity], confidence)
            unit = scale if quantity == "intercept" else "1"
            estimate = Estimate(float(value[0]), float(low), float(high), label, len(part), unit)
            found.append({**dict(zip(by, keys)), "quantity": quantity, **asdict(estimate)})
    return pd.DataFrame(found)


def _jeffreys(accuracy: np.ndarray, images: int | None, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of the accuracies, (resamples, models); the accuracies themselves where images is None."""
    if images is None:
        return np.broadcast_to(accuracy, (resamples, len(accuracy)))
    right = accuracy * images
    return rng.beta(right + 0.5, images - right + 0.5, size=(resamples, len(accuracy)))


def _statistics(u, v, x, y, index, method: str) -> dict[str, np.ndarray]:
    """Statistics of every resample: rows of `index` choose models; u, v are on the scale, x, y raw."""
    slope, intercept = _fits(u, v, index, method)
    a, b = u[index], v[index]
    total = np.square(b - b.mean(1, keepdims=True)).sum(1)
    residual = np.square(b - slope[:, None] * a - intercept[:, None]).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(np.ptp(b, axis=1) > 0, 1 - residual / total, np.nan)
    ranks = scipy.stats.rankdata(x[index], axis=1), scipy.stats.rankdata(y[index], axis=1)
    squared = np.square(_correlation(a, b))
    return {
        "slope": slope, "intercept": intercept, "r2": r2,
        "r2_least_squares": squared, "spearman": _correlation(*ranks),
    }  # fmt: skip


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, row by row; NaN where a row does not vary."""
    varies = (np.ptp(a, axis=1) > 0) & (np.ptp(b, axis=1) > 0)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(varies, (a * b).sum(1) / np.sqrt(np.square(a).sum(1) * np.square(b).sum(1)), np.nan)


def _fits(u: np.ndarray, v: np.ndarray, index: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of every resample of points on the scale; NaN where it does not define a line."""
    a, b = u[index], v[index]
    a0, b0 = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = ((a - a0) * (b - b0)).sum(1) / np.square(a - a0).sum(1)
    slope[np.ptp(a, axis=1) == 0] = np.nan
    intercept = b0[:, 0] - slope * a0[:, 0]
    if method == "huber":
        _robust(u, v, index, slope, intercept)
    return slope, intercept


def _robust(u: np.ndarray, v: np.ndarray, index: np.ndarray, slope: np.ndarray, intercept: np.ndarray) -> None:
    """Huber's fits in place of the least-squares ones."""
    from sklearn.linear_model import HuberRegressor

    # standardised, so that the solver's tolerance means the same for all data
    (u0, su), (v0, sv) = ((values.mean(), values.std() or 1) for values in (u, v))
    a, b = (u - u0) / su, (v - v0) / sv
    start = HuberRegressor(epsilon=EPSILON, alpha=0, max_iter=1000, warm_start=True)
    with suppress(ValueError):
        whole = copy(start).fit(a[:, None], b)
        if whole.scale_ > 1e-6:
            start = whole  # from there a resample takes half the steps, to the same end
    for i, rows in enumerate(index):
        residuals = v[rows] - slope[i] * u[rows] - intercept[i]
        if not np.isfinite(slope[i]) or abs(residuals).max() < 1e-9 * sv:
            continue  # no line, or points on one, which have no scale to be robust by
        try:
            model = copy(start).fit(a[rows, None], b[rows])
            slope[i] = model.coef_[0] * sv / su
            intercept[i] = v0 + sv * model.intercept_ - slope[i] * u0
        except ValueError:  # most points lie exactly on a line, and the residuals' scale goes to 0
            slope[i] = intercept[i] = np.nan


def _redrawn(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, allowed is 1 or more.")
    return rng.integers(n, size=(resamples, n))


def _quantiles(draws: np.ndarray, confidence: float) -> np.ndarray:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, allowed is between 0 and 1.")
    if np.isnan(draws).all():
        return np.full((2, *draws.shape[1:]), np.nan)
    return np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def _pair(x, y, scale: str, images) -> tuple[np.ndarray, np.ndarray]:
    u, v = (_stretched(values, scale, n) for values, n in zip((x, y), images, strict=True))
    if u.ndim != 1 or u.shape != v.shape:
        raise ValueError(f"x and y have shapes {u.shape} and {v.shape}, allowed is one value a model in both.")
    if len(u) < FEWEST:
        raise ValueError(f"{len(u)} models given, allowed is {FEWEST} or more to fit a line.")
    if np.ptp(u) == 0:
        raise ValueError(f"All {len(u)} models have the same x, allowed is two values or more to fit a line.")
    return u, v


def _stretched(accuracy, scale: str, images) -> np.ndarray:
    accuracy = _fractions(accuracy, "accuracy")
    if images is None:
        ends = accuracy[(accuracy == 0) | (accuracy == 1)]
        if ends.size:
            raise ValueError(
                f"accuracy is {ends.flat[0]}, whose {scale} is infinite: give images, the number behind it, "
                "to stay half an image away."
            )
    else:
        images = np.asarray(images, dtype=float)
        if not (images >= 1).all():
            raise ValueError(f"images is {images.min():g}, allowed is 1 or more.")
        accuracy = np.clip(accuracy, 1 / (2 * images), 1 - 1 / (2 * images))
    return SCALES[scale][0](accuracy)


def _fractions(values, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    wrong = values[~((values >= 0) & (values <= 1))]
    if wrong.size:
        hint = ": divide percentages by 100." if wrong.flat[0] > 1 else "."
        raise ValueError(f"{name} is {wrong.flat[0]}, allowed is a fraction from 0 to 1{hint}")
    return values


def _columns(rows: pd.DataFrame, needed: Sequence[str]) -> None:
    missing = [name for name in dict.fromkeys(needed) if name not in rows]
    if missing:
        raise ValueError(f"rows have no column {', '.join(map(repr, missing))}, they have {', '.join(rows)}.")
