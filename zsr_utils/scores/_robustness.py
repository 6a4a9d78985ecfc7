"""Robustness to shifts: drops, errors relative to a normaliser, flips of sequences, and what lies off a line."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from zsr_utils.scores._intervals import Estimate, bootstrap, proportion, unpaired_difference
from zsr_utils.scores._overlap import exact_proportion
from zsr_utils.scores._rows import accuracy, accuracy_against, correct
from zsr_utils.scores.trends import Line, summary


def drop(clean: pd.DataFrame, shown: pd.DataFrame, *, paired: bool) -> dict:
    """Accuracy under a shift less that without it, with the p value of no difference: an estimate's fields and `p`.

    Paired, it is sample by sample, with McNemar's exact test; else the images are others, and Fisher's test is taken.
    """
    before, after = (pd.Series(correct(r), r.sample_id) for r in (clean, shown))
    if paired:
        gained, lost = (int((after - before == way).sum()) for way in (1, -1))
        p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        return asdict(accuracy_against(clean)(shown)) | {"p": float(p)}
    p = stats.fisher_exact([[right.sum(), (1 - right).sum()] for right in (before, after)]).pvalue
    return asdict(unpaired_difference(*map(accuracy, (clean, shown)))) | {"p": float(p)}


def by_cell(rows: pd.DataFrame) -> Float[np.ndarray, "n c s"]:
    """Errors of every image by condition and severity, all sorted."""
    keys = ["sample_id", "condition", "severity"]
    counts = [rows[key].nunique() for key in keys]
    return (1 - correct(rows.sort_values(keys))).reshape(counts)


def relative_errors(
    errors: Float[np.ndarray, "n c s"], reference: Float[np.ndarray, "n c s"], least: float = 0.5
) -> Estimate:
    """Mean of every corruption's errors over a normaliser's, in percent: mCE; of flips of sequences it is the mFR.

    Corruptions under which the normaliser makes no error are left out, and `least` is taken for none where the
    bootstrap draws none. Images are drawn together; shares over many images are one row, and have no interval.

    Source: Hendrycks & Dietterich (2019), mCE and mFR; the interval is ours.
    """
    kept = reference.sum((0, 2)) > 0

    def relative(own: np.ndarray, its: np.ndarray) -> float:
        return 100 * (own.sum((0, 2)) / np.maximum(its.sum((0, 2)), least)).mean() if kept.any() else np.nan

    return bootstrap(relative, errors[:, kept], reference[:, kept], unit="percent")


def flips(rows: pd.DataFrame, *, noise: bool) -> Float[np.ndarray, "n"]:
    """Share of the frames of a sequence whose answer is another than that to the frame before; of noise, to the first.

    Source: Hendrycks & Dietterich (2019), flip probability.
    """
    answers = rows.pivot(index="sample_id", columns="severity", values="prediction").sort_index(axis=1).to_numpy()
    return (answers[:, 1:] != (answers[:, :1] if noise else answers[:, :-1])).mean(1)


def around_anchors(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Accuracy on frames of videos, whose ids are `<anchor>#<offset>`: `pm-0`, `pm-10` and their `mean`.

    `pm-0` is that on the anchors, `pm-10` counts an anchor only if every frame around it is right.

    Source: Shankar et al. (2021); the mean is that of Radford et al. (2021).
    """
    parts = rows.sample_id.str.rsplit("#", n=1, expand=True)
    right = pd.Series(correct(rows), [parts[0], parts[1].astype(int)])
    both = pd.DataFrame({"pm-0": right.xs(0, level=1), "pm-10": right.groupby(level=0, sort=False).min()})
    each = {name: proportion(int(column.sum()), len(column)) for name, column in both.items()}
    return each | {"mean": bootstrap(np.mean, both.mean(1).to_numpy())}


def clipped(rows: pd.DataFrame) -> Estimate:
    """An accuracy for a stretched axis: half an image from 0 and 1 at least, its interval exact at 99.5 %.

    Source: Clopper & Pearson (1934), at the level of Taori et al. (2020); half an image is ours.
    """
    right, n = int(correct(rows).sum()), len(rows)
    return replace(exact_proportion(right, n), value=min(max(right, 0.5), n - 0.5) / n)


def effective_robustness(line: Line, clean: Estimate, shifted: Estimate) -> Estimate:
    """Accuracy under a shift less what the line through standard models expects of the accuracy without it.

    The interval holds the images of both accuracies, taken as independent, and the models of the line.

    Source: Taori et al. (2020), effective robustness ρ; the interval is ours.
    """
    ends = np.clip([clean.low, clean.value, clean.high], 0.5 / clean.n, 1 - 0.5 / clean.n)
    low, at, high = (summary(draws, line.n) for draws in line(ends).T)
    expected = replace(at, low=min(low.low, high.low), high=max(low.high, high.high))
    return unpaired_difference(expected, shifted)
