"""Telling modified images from clean ones by a score: the higher, the more suspicious."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from zsr_utils.scores._intervals import AT_ONCE, FEW, Estimate, bare, not_measured, wilson
from zsr_utils.scores._similarity import auroc


def detection(
    positive: Float[np.ndarray, "p"], negative: Float[np.ndarray, "n"], held_out: Float[np.ndarray, "h"], *,
    groups: np.ndarray | None = None, false_alarm: float = 0.05, resamples: int = 1000, seed: int = 0,
) -> dict[str, Estimate]:  # fmt: skip
    """How well a score tells modified from clean images, at a threshold set on other clean images.

    An image is flagged if its score is above the threshold, the `1 - false_alarm` quantile of `held_out` by the (n + 1)
    rule, which flags a new clean image with probability `false_alarm`.

    Every interval is a percentile bootstrap. All three samples are drawn anew, so the intervals of `tpr` and `fpr` hold
    the uncertainty of the threshold as well; positives are drawn by group. A value of exactly 0 or 1, or scores that
    are all tied, leave a bootstrap (and DeLong's method) without width, so there the interval is widened to the Wilson
    interval of as many independent trials as there surely are: groups for `tpr`, negatives for `fpr`, and for `auroc`
    disjoint pairs of a group and a negative.

    Examples:
        >>> found = detection(np.arange(100) + 90.0, np.arange(100.0), np.arange(99.0))
        >>> {name: round(e.value, 3) for name, e in found.items()}
        {'auroc': 0.995, 'threshold': 94.0, 'tpr': 0.95, 'fpr': 0.05}
        >>> f"{detection(np.ones(100), np.zeros(100), np.zeros(99))['auroc']:pct}"
        '100.0 % [96.3, 100.0]'

    Args:
        positive, negative: Scores of modified and of clean images.
        held_out: Scores of clean images that are not among the negatives; only these set the threshold.
        groups: One label a positive; images that share one, such as the source they were made from, are not
            independent. None: every positive is its own group.
        false_alarm: Share of clean images that may be flagged.

    Returns: `auroc`, `tpr`, `fpr` (fractions) and `threshold` (in units of the score).

    Source: Salman et al. (2024) for the question; bootstrap of Efron (1979), ties in the AUROC count half.
    """
    positive, negative, held_out = _scores(positive=positive, negative=negative, held_out=held_out)
    if groups is not None and len(groups) != len(positive):
        raise ValueError(f"{len(groups)} groups and {len(positive)} positive scores given, allowed is one group each.")
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm is {false_alarm}, allowed is between 0 and 1.")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, allowed is 1 or more.")
    resamples = 1 if bare() else resamples
    members = np.arange(len(positive)) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_groups = int(members.max()) + 1
    groups_rng, negative_rng, held_out_rng = np.random.default_rng(seed).spawn(3)
    negative = np.sort(negative)
    # negatives below each positive, counted by weight: the start and the end of a tie give its two halves
    start, end = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
    draws, step = [], max(1, AT_ONCE // max(len(positive), len(negative), len(held_out)))
    for r in (min(step, resamples - i) for i in range(0, resamples, step)):
        w, v = _times(groups_rng, n_groups, r)[:, members], _times(negative_rng, len(negative), r)
        limits = np.quantile(held_out_rng.choice(held_out, (r, len(held_out))), 1 - false_alarm, 1, method="weibull")
        below, above = np.pad(v.cumsum(1), ((0, 0), (1, 0))), limits[:, None]
        won = (w * (below[:, start] + below[:, end])).sum(1) / (2 * w.sum(1) * len(negative))
        flagged = (w * (positive > above)).sum(1) / w.sum(1), (v * (negative > above)).mean(1)
        draws.append(np.stack([won, limits, *flagged], axis=1))
    limit = clean_limit(held_out, false_alarm)
    drawn = "positives" if groups is None else f"{n_groups} groups"
    columns = [
        ("auroc", auroc(positive, negative), f"{drawn}, negatives", len(positive), min(n_groups, len(negative))),
        ("threshold", limit, "held-out", len(held_out), None),
        ("tpr", float(np.mean(positive > limit)), f"{drawn}, held-out", len(positive), n_groups),
        ("fpr", float(np.mean(negative > limit)), "negatives, held-out", len(negative), len(negative)),
    ]
    found, ends = {}, np.quantile(np.concatenate(draws), [0.025, 0.975], axis=0).T
    for (name, value, what, n, trials), (low, high) in zip(columns, ends):
        label, unit = f"bootstrap 95 % ({what}, {resamples})", "score" if trials is None else "fraction"
        if trials and (value in (0, 1) or low == high):
            wide = wilson(value, trials)
            low, high, label = min(low, wide[0]), max(high, wide[1]), f"{label}, wilson 95 % of {trials}"
        found[name] = Estimate(value, float(low), float(high), label, n, unit)
    return found


def separation(
    inside: Float[np.ndarray, "n"], outside: Float[np.ndarray, "m"], classes: np.ndarray | None = None, *,
    draw: str = "images", resamples: int = 1000, seed: int = 0,
) -> dict[str, Estimate]:  # fmt: skip
    """How well a score, the higher the more inside, tells what is inside a list of classes: inside is positive.

    Intervals are a percentile bootstrap of both sides, widened as in `detection` where a value is exactly 0 or 1.

    Examples:
        >>> found = separation(np.arange(100.0), np.array([3.0, 4, 50, 91]), np.array(list("aaab")))
        >>> {name: round(e.value, 3) for name, e in found.items()}
        {'auroc': 0.625, 'auroc_mean': 0.445, 'fpr95': 0.5, 'fpr95_mean': 0.667}

    Args:
        classes: Of the outside images; None is one class.
        draw: `images` draws images anew, `classes` whole outside classes (six or more) and the inside images.

    Returns: `auroc` and `fpr95`, the share of outside images at or above the 5 % quantile of the inside ones; and
        their means over outside classes. Scores that are not numbers measure nothing.

    Source: Bitterwolf et al. (2023, NINCO) for the two ways to average and the threshold; ties count half in AUROC.
    """
    names = ("auroc", "auroc_mean", "fpr95", "fpr95_mean")
    if np.isnan(inside).any() or np.isnan(outside).any():
        return {name: not_measured() for name in names}
    inside, outside = _scores(inside=np.sort(inside), outside=outside)
    codes = np.zeros(len(outside), int) if classes is None else np.unique(classes, return_inverse=True)[1]
    order, sizes, rng = np.argsort(codes, kind="stable"), np.bincount(codes), np.random.default_rng(seed)
    outside, codes = outside[order], codes[order]
    first, n, m, k = np.cumsum(sizes) - sizes, len(inside), len(outside), len(sizes)
    start, end = (np.searchsorted(inside, outside, side) for side in ("left", "right"))

    def values(counts: np.ndarray, weights: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """The numbers (4, R), where pictures count (R, n) and (R, m), and classes (R, k) or once if they are there."""
        up, held = np.pad(counts.cumsum(1), ((0, 0), (1, 0))), np.add.reduceat(weights, first, axis=1)
        lower, upper = (inside[(up[:, 1:] <= place).sum(1)] for place in (int(0.05 * (n - 1)), -(-(n - 1) // 20)))
        limit, found = lower + 0.05 * (n - 1) % 1 * (upper - lower), []
        times = held > 0 if times is None else times
        for each in (1 - (up[:, start] + up[:, end]) / (2 * n), outside >= limit[:, None]):
            sums = np.add.reduceat(each * weights, first, axis=1)
            found += [sums.sum(1) / held.sum(1), (sums / held.clip(1) * times).sum(1) / times.sum(1)]
        return np.stack(found)

    def drawn(size: int, r: int) -> np.ndarray:
        return rng.multinomial(size, np.full(size, 1 / size), size=r)

    draws, step = [], max(1, AT_ONCE // max(n, m))
    resamples = 1 if bare() else resamples
    for r in (min(step, resamples - i) for i in range(0, resamples, step)):
        whole = drawn(k, r) if draw == "classes" else None
        draws.append(values(drawn(n, r), drawn(m, r) if whole is None else whole[:, codes], whole))
    found, trials = {}, min(n, m if draw == "images" else k)
    ends = np.quantile(np.concatenate(draws, axis=1), [0.025, 0.975], axis=1)
    for name, value, low, high in zip(names, values(np.ones((1, n), int), np.ones((1, m), int))[:, 0], *ends):
        label = f"bootstrap 95 % ({'images' if draw == 'images' else 'outside classes'}, {resamples})"
        if draw == "classes" and k < FEW:
            low, high, label = np.nan, np.nan, f"none of fewer than {FEW} classes"
        elif value in (0, 1) or low == high:
            wide = wilson(value, trials)
            low, high, label = min(low, wide[0]), max(high, wide[1]), f"{label}, wilson 95 % of {trials}"
        found[name] = Estimate(float(value), float(low), float(high), label, m)
    return found


def auroc_parts(inside: pd.Series, outside: pd.Series) -> pd.DataFrame:
    """A `value` for every `sample_id`, the indices of both sides, whose mean is the AUROC: to compare AUROCs by image.

    Source: The jackknife's pseudo-values, whose variance is that of DeLong et al. (1988) but for small samples.
    """
    n, m = len(inside), len(outside)
    if n < 2 or m < 2:
        raise ValueError(f"{n} inside and {m} outside scores given, allowed are two or more each.")
    before, after = (np.searchsorted(np.sort(outside), inside, side) for side in ("left", "right"))
    left, right = (np.searchsorted(np.sort(inside), outside, side) for side in ("left", "right"))
    won = [(before + after) / (2 * m), 1 - (left + right) / (2 * n)]
    value, total = won[0].mean(), n + m
    parts = [total * value - (total - 1) * (len(w) * value - w) / (len(w) - 1) for w in won]
    return pd.DataFrame({"sample_id": [*inside.index, *outside.index], "value": np.concatenate(parts)})


def clean_limit(held_out: np.ndarray, false_alarm: float = 0.05) -> float:
    """The threshold that held-out clean images set: a new one is above it with probability `false_alarm`."""
    return float(np.quantile(held_out, 1 - false_alarm, method="weibull"))


def _times(rng: np.random.Generator, n: int, draws: int) -> np.ndarray:
    """How often each of n is among n drawn with replacement, (draws, n)."""
    index = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(index.ravel(), minlength=draws * n).reshape(draws, n)


def _scores(**columns: np.ndarray) -> list[np.ndarray]:
    found = []
    for name, values in columns.items():
        values = np.asarray(values, dtype=float)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"{name} scores have shape {values.shape}, allowed is (n,) with n at least 1.")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} score {int((~np.isfinite(values)).argmax())} is not finite.")
        found.append(values)
    return found
