"""Rows -> numbers: pure functions of arrays and frames, no model in sight."""

from zsr_utils.scores._classification import (
    accuracy,
    accuracy_by,
    confident_mistakes,
    confusion,
    correct,
    nearest_misses,
)
from zsr_utils.scores._intervals import Estimate, bootstrap, paired_difference, proportion
from zsr_utils.scores._similarity import auroc, overlap_coefficient, pair_estimates, pair_similarities


__all__ = [
    "Estimate",
    "accuracy",
    "accuracy_by",
    "auroc",
    "bootstrap",
    "confident_mistakes",
    "confusion",
    "correct",
    "nearest_misses",
    "overlap_coefficient",
    "pair_estimates",
    "pair_similarities",
    "paired_difference",
    "proportion",
]
