"""Rows of predictions -> accuracies, confusion, sensitivity. Frames in, frames and estimates out."""

import numpy as np
import pandas as pd

from zsr_utils.scores._drift import Statistic, paired_change
from zsr_utils.scores._intervals import Estimate, proportion


def correct(rows: pd.DataFrame) -> np.ndarray:
    """1.0 where the prediction is the label, else 0.0.

    Examples:
        >>> correct(pd.DataFrame({"label": [0, 1], "prediction": [0, 0]})).tolist()
        [1.0, 0.0]
    """
    return (rows.label == rows.prediction).to_numpy(dtype=float)


def accuracy(rows: pd.DataFrame) -> Estimate:
    """Share of rows whose prediction is the label, with its Wilson interval.

    Examples:
        >>> rows = pd.DataFrame({"label": [0, 1, 1, 0], "prediction": [0, 1, 0, 0]})
        >>> accuracy(rows).value
        0.75

    Raises:
        ValueError: If there is no row.
    """
    return proportion(int(correct(rows).sum()), len(rows))


def accuracy_against(base: pd.DataFrame) -> Statistic:
    """Accuracy less that of other rows of the same images, image by image.

    Examples:
        >>> base = pd.DataFrame({"sample_id": list("ab"), "label": [0, 1], "prediction": [0, 0]})
        >>> accuracy_against(base)(base.assign(prediction=[0, 1])).value
        0.5
    """
    return lambda rows: paired_change(*(r.assign(right=correct(r)) for r in (base, rows)), "right")


def confusion(rows: pd.DataFrame, n_classes: int) -> np.ndarray:
    """Counts (n_classes, n_classes): row is the label, column the prediction.

    Examples:
        >>> rows = pd.DataFrame({"label": [0, 1, 1], "prediction": [0, 1, 0]})
        >>> confusion(rows, 2).tolist()
        [[1, 0], [1, 1]]
    """
    counts = np.zeros((n_classes, n_classes), dtype=int)
    np.add.at(counts, (rows.label.to_numpy(), rows.prediction.to_numpy()), 1)
    return counts


def confident_mistakes(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` wrong rows with the highest confidence, highest first.

    Examples:
        >>> rows = pd.DataFrame(
        ...     {"label": [0, 1, 1], "prediction": [1, 1, 0], "confidence": [0.6, 0.9, 0.8]})
        >>> confident_mistakes(rows, 1).confidence.tolist()
        [0.8]
    """
    return rows[rows.label != rows.prediction].nlargest(n, "confidence")


def nearest_misses(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` right rows with the smallest margin, smallest first.

    Examples:
        >>> rows = pd.DataFrame({"label": [0, 1], "prediction": [0, 1], "margin": [3.0, 0.5]})
        >>> nearest_misses(rows, 1).margin.tolist()
        [0.5]
    """
    return rows[rows.label == rows.prediction].nsmallest(n, "margin")
