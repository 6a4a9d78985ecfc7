"""Rows -> numbers: pure functions of arrays and frames, no model in sight."""

from zsr_utils.scores._classification import (
    accuracy,
    accuracy_by,
    confident_mistakes,
    confusion,
    correct,
    nearest_misses,
)
from zsr_utils.scores._detection import detection, roc_curve
from zsr_utils.scores._intervals import Estimate, bootstrap, grouped_proportion, paired_difference, proportion
from zsr_utils.scores._normality import covariance_agreement, normality, qq_points
from zsr_utils.scores._similarity import auroc, overlap_coefficient, pair_estimates, pair_similarities
from zsr_utils.scores._tables import estimates


__all__ = [
    "Estimate",
    "accuracy",
    "accuracy_by",
    "auroc",
    "bootstrap",
    "confident_mistakes",
    "confusion",
    "correct",
    "covariance_agreement",
    "detection",
    "estimates",
    "grouped_proportion",
    "nearest_misses",
    "normality",
    "overlap_coefficient",
    "pair_estimates",
    "pair_similarities",
    "paired_difference",
    "proportion",
    "qq_points",
    "roc_curve",
]
