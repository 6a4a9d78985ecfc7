"""Estimates of every group of a frame."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pandas as pd

from zsr_utils.scores._intervals import Estimate


def estimates(
    rows: pd.DataFrame, by: str | Sequence[str], estimate: Callable[[pd.DataFrame], Estimate]
) -> pd.DataFrame:
    """One estimate a group, groups in the order in which they first appear.

    Args:
        rows: Per-sample rows.
        by: Columns that make the groups.
        estimate: From the rows of a group to its estimate.

    Returns:
        The columns of `by` and those of an estimate: value, low, high, interval, n, unit.

    Examples:
        >>> from zsr_utils.scores import proportion
        >>> rows = pd.DataFrame({"sigma": [1, 1, 2], "hit": [1, 0, 1]})
        >>> estimates(rows, "sigma", lambda part: proportion(part.hit.sum(), len(part))).value.tolist()
        [0.5, 1.0]
    """
    by = [by] if isinstance(by, str) else list(by)
    groups = rows.groupby(by, sort=False, observed=True)
    return pd.DataFrame([{**dict(zip(by, keys)), **asdict(estimate(part))} for keys, part in groups])
