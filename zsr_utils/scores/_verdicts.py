"""Which way a number points."""

import pandas as pd

from zsr_utils.scores._intervals import Estimate


def decide(estimate: Estimate, reference: float = 0.0) -> str:
    """`more` if the whole interval lies above the reference, `less` if below, else `undecided`."""
    if estimate.low > reference:
        return "more"
    return "less" if estimate.high < reference else "undecided"


def within(table: pd.DataFrame, reference: float, margin: float) -> pd.DataFrame:
    """Rows of estimates whose whole interval lies within a margin of a reference: they agree with it.

    An interval that only holds the reference is no agreement, it may be wide.

    Examples:
        >>> within(pd.DataFrame({"low": [0.95, 0.5], "high": [1.05, 1.5]}), 1, 0.1).index.tolist()
        [0]
    """
    return table[(table.low > reference - margin) & (table.high < reference + margin)]
