"""Which way a number points."""

from zsr_utils.scores._intervals import Estimate


def decide(estimate: Estimate, reference: float = 0.0) -> str:
    """`more` if the whole interval lies above the reference, `less` if below, else `undecided`."""
    if estimate.low > reference:
        return "more"
    return "less" if estimate.high < reference else "undecided"
