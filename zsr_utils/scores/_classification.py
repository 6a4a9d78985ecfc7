"""Rows of predictions -> accuracies."""

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
