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
from zsr_utils.scores._drift import (
    changed_answer,
    correlation_of,
    effect_size,
    equal_vulnerability,
    flip_rate,
    kept_rate,
    mean_of,
    paired_change,
    relative_to,
    same_answer,
    share_of,
    vulnerability,
)
from zsr_utils.scores._intervals import (
    Estimate,
    bootstrap,
    estimate_of,
    grouped_proportion,
    paired_difference,
    proportion,
)
from zsr_utils.scores._normality import covariance_agreement, normality, qq_points
from zsr_utils.scores._paired import holm, paired_changes, paired_mean, sign_flip
from zsr_utils.scores._similarity import auroc, overlap_coefficient, pair_estimates, pair_similarities
from zsr_utils.scores._tables import against_published, estimates
from zsr_utils.scores._tokens import band_of, change_spectrum, dirichlet_energy, mean_square_norm, power_change
from zsr_utils.scores._verdicts import decide


__all__ = [
    "Estimate",
    "accuracy",
    "accuracy_by",
    "against_published",
    "auroc",
    "band_of",
    "bootstrap",
    "change_spectrum",
    "changed_answer",
    "confident_mistakes",
    "confusion",
    "correct",
    "correlation_of",
    "covariance_agreement",
    "decide",
    "detection",
    "dirichlet_energy",
    "effect_size",
    "equal_vulnerability",
    "estimate_of",
    "estimates",
    "flip_rate",
    "grouped_proportion",
    "holm",
    "kept_rate",
    "mean_of",
    "mean_square_norm",
    "nearest_misses",
    "normality",
    "overlap_coefficient",
    "pair_estimates",
    "pair_similarities",
    "paired_change",
    "paired_changes",
    "paired_difference",
    "paired_mean",
    "power_change",
    "proportion",
    "qq_points",
    "relative_to",
    "roc_curve",
    "same_answer",
    "share_of",
    "sign_flip",
    "vulnerability",
]
