"""Robustness to shifts: drops, errors relative to a normaliser, flips of sequences, and what lies off a line."""

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from zsr_utils.scores._intervals import Estimate, bootstrap, proportion, unpaired_difference
from zsr_utils.scores._rows import accuracy, accuracy_against, correct
from zsr_utils.scores.trends import Line, summary


def drop(clean: pd.DataFrame, shown: pd.DataFrame, *, paired: bool) -> dict:
    """Accuracy under a shift less that without it, with the p value of no difference: an estimate's fields and `p`.

    Paired, it is sample by sample, with McNemar's exact test; else the images are others, and Fisher's test is taken.

    Examples:
        >>> clean = pd.DataFrame({"sample_id": list("abcdef"), "label": 0, "prediction": 0})
        >>> found = drop(clean, clean.assign(prediction=[0, 1, 1, 1, 1, 1]), paired=True)
        >>> round(found["value"], 3), found["p"]
        (-0.833, 0.0625)
    """
    if paired:
        both = pd.concat([pd.Series(correct(r), list(r.sample_id)) for r in (clean, shown)], axis=1, join="inner")
        gained, lost = (int((both[1] - both[0] == way).sum()) for way in (1, -1))
        p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        return asdict(accuracy_against(clean)(shown)) | {"p": float(p)}
    right = [(int(correct(r).sum()), len(r)) for r in (clean, shown)]
    table = [[k, n - k] for k, n in right]
    return asdict(unpaired_difference(*map(accuracy, (clean, shown)))) | {"p": float(stats.fisher_exact(table).pvalue)}


def by_cell(rows: pd.DataFrame) -> Float[np.ndarray, "n c s"]:
    """Errors of every image by condition and severity, in the order of the names; images as they are sorted."""
    wrong = rows.assign(wrong=1 - correct(rows)).pivot(
        index="sample_id", columns=["condition", "severity"], values="wrong"
    )
    return wrong.sort_index(axis=1).to_numpy().reshape(len(wrong), rows.condition.nunique(), -1)


def corruption_error(errors: Float[np.ndarray, "n c s"], reference: Float[np.ndarray, "n c s"]) -> Estimate:
    """Mean corruption error (mCE), in percent: 100 is the normaliser's.

    The errors of every corruption are summed over severities and divided by those of the normaliser, and then averaged.
    Corruptions under which the normaliser makes no error are left out (and half an error is taken where the bootstrap
    draws none).

    Args:
        errors, reference: By image, corruption and severity, of the same images, which are drawn together; shares over
            many images have one row, and then no interval.

    Examples:
        >>> alexnet = np.full((1, 15, 5), 0.8)
        >>> corruption_error(alexnet, alexnet).value
        100.0

    Source: Hendrycks & Dietterich (2019), mCE; the interval is ours.
    """
    kept = reference.sum((0, 2)) > 0
    return bootstrap(partial(_relative, least=0.5), errors[:, kept], reference[:, kept], unit="percent")


def _relative(errors: np.ndarray, reference: np.ndarray, least: float) -> float:
    own, its = (e.sum((0, 2)) for e in (errors, reference))
    return float(100 * (own / np.maximum(its, least)).mean()) if len(its) else float("nan")


def flips(rows: pd.DataFrame, *, noise: bool) -> Float[np.ndarray, "n"]:
    """Share of the frames of a sequence whose answer is another than that to the frame before; of noise, to the first.

    One value an image, as the images are sorted.

    Source: Hendrycks & Dietterich (2019), flip probability.
    """
    answers = rows.pivot(index="sample_id", columns="severity", values="prediction").sort_index(axis=1).to_numpy()
    return (answers[:, 1:] != (answers[:, :1] if noise else answers[:, :-1])).mean(1)


def flip_rates(own: Float[np.ndarray, "n p"], reference: Float[np.ndarray, "n p"]) -> Estimate:
    """Mean flip rate (mFR), in percent of the normaliser's, from the flips of every image and sequence."""
    kept = reference.sum(0) > 0
    own, reference = own[:, kept, None], reference[:, kept, None]
    return bootstrap(partial(_relative, least=1 / 60), own, reference, unit="percent")


def around_anchors(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Accuracy on frames of videos, whose ids are `<anchor>#<offset>`: `pm-0`, `pm-10` and their `mean`.

    `pm-0` is that on the anchors, `pm-10` counts an anchor only if every frame around it is right.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": ["a#-1", "a#0", "a#1", "b#0"], "label": 0, "prediction": [1, 0, 0, 0]})
        >>> {name: e.value for name, e in around_anchors(rows).items()}
        {'pm-0': 1.0, 'pm-10': 0.5, 'mean': 0.75}

    Source: Shankar et al. (2021); the mean is that of Radford et al. (2021).
    """
    parts = rows.sample_id.str.rsplit("#", n=1, expand=True)
    right = pd.Series(correct(rows), [parts[0], parts[1].astype(int)])
    anchors, worst = right.xs(0, level=1), right.groupby(level=0, sort=False).min()
    both = np.stack([anchors, worst.loc[anchors.index]], 1)
    counted = {name: proportion(int(column.sum()), len(column)) for name, column in zip(("pm-0", "pm-10"), both.T)}
    return counted | {"mean": bootstrap(np.mean, both.mean(1))}


def clipped(right: int, n: int) -> Estimate:
    """An accuracy for a stretched axis: half an image from 0 and 1 at least, its interval exact at 99.5 %.

    Examples:
        >>> clipped(100, 100).value
        0.995

    Source: Clopper & Pearson (1934), at the level of Taori et al. (2020); half an image is ours.
    """
    low, high = stats.binomtest(right, n).proportion_ci(0.995)
    return Estimate(min(max(right, 0.5), n - 0.5) / n, float(low), float(high), "clopper-pearson 99.5 %", n)


def effective_robustness(line: Line, clean: Estimate, shifted: Estimate) -> Estimate:
    """Accuracy under a shift less what the line through standard models expects of the accuracy without it.

    The interval holds the images of both accuracies, taken as independent, and the models of the line.

    Source: Taori et al. (2020), effective robustness ρ; the interval is ours.
    """
    low, at, high = (summary(draws, line.n) for draws in line(np.array([clean.low, clean.value, clean.high])).T)
    expected = replace(at, low=min(low.low, high.low), high=max(low.high, high.high))
    return unpaired_difference(expected, shifted)
