"""What singular values, and the error of a linear account, say of an encoder."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float


ROUNDING = 1e-6  # of the largest singular value: what lies below comes from float32 rows
# of the columns below and of `zsr_utils.jacobian`
JACOBIAN_UNITS = dict.fromkeys(("largest", "frobenius", "lipschitz"), "embedding units per unit of [0, 1] pixels")
JACOBIAN_UNITS |= dict.fromkeys(("effective_rank", "rank"), "directions")
JACOBIAN_UNITS |= {"condition_number": "ratio", "reach": "grey levels"}


def spectrum_summary(values: Float[np.ndarray, "n d"], sample_ids: Sequence | None = None) -> pd.DataFrame:
    """A row an image: how strongly, and in how many directions, the embedding answers to the pixels.

    From singular values, descending: `largest` (s_1), `frobenius` (root of the sum of s^2), `effective_rank`
    ((sum s^2)^2 / sum s^4, from 1 to D), `rank` (values above 1e-6 of the largest; below it is rounding) and
    `condition_number` (s_1 by the smallest of those); units in `JACOBIAN_UNITS`.

    Source: Salman et al. (2024) show spectra; the numbers are this project's choice.
    """
    values = np.asarray(values)
    squares, rank = np.square(values), (values > ROUNDING * values[:, :1]).sum(1)
    ids = range(len(values)) if sample_ids is None else list(sample_ids)
    effective = np.square(squares.sum(1)) / np.square(squares).sum(1)
    condition = values[:, 0] / values[np.arange(len(values)), rank - 1]
    found = {"sample_id": ids, "largest": values[:, 0], "frobenius": np.sqrt(squares.sum(1))}
    return pd.DataFrame(found | {"effective_rank": effective, "rank": rank, "condition_number": condition})


def spectrum_by_rank(values: Float[np.ndarray, "n d"]) -> pd.DataFrame:
    """The median spectrum of images by `rank`, from 1, while above 1e-6 of the largest; `low`, `high` hold 90 %."""
    low, middle, high = np.quantile(np.asarray(values), [0.05, 0.5, 0.95], axis=0)
    table = pd.DataFrame({"rank": np.arange(1, len(middle) + 1), "value": middle, "low": low, "high": high})
    return table[table["value"] > ROUNDING * middle[0]]


def linear_reach(rows: pd.DataFrame, tolerance: float = 0.1, *, by: Sequence[str] = ("sample_id",)) -> pd.DataFrame:
    """The largest size up to which the linear account holds: no relative error above the tolerance until there.

    Rows are of `jacobian.linear_error`. `reach`, in grey levels for each of `by`, lies between the last size that holds
    (or none, of no error) and the first that fails, where the straight line through their errors passes the tolerance;
    it is the largest size if all hold.
    """

    def reach(part: pd.DataFrame) -> float:
        sizes, errors = ([0.0, *part[column]] for column in ("size", "relative_error"))
        fails = next((k for k, error in enumerate(errors) if error > tolerance), None)
        if fails is None:
            return sizes[-1]
        return float(np.interp(tolerance, errors[fails - 1 : fails + 1], sizes[fails - 1 : fails + 1]))

    groups = rows.sort_values("size", kind="stable").groupby(list(by), sort=False)
    return groups[["size", "relative_error"]].apply(reach).reset_index(name="reach")
