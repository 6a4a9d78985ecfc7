"""Rows -> numbers: pure functions of arrays and frames, no model in sight."""

from zsr_utils.scores._classification import accuracy, accuracy_against, correct
from zsr_utils.scores._detection import detection
from zsr_utils.scores._drift import (
    Statistic,
    changed_answer,
    correlation_of,
    effect_size,
    equal_vulnerability,
    flip_rate,
    kept_rate,
    mean_of,
    median_of,
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
    wilson,
)
from zsr_utils.scores._normality import covariance_agreement, normality
from zsr_utils.scores._similarity import auroc, overlap_coefficient, pair_estimates, pair_similarities
from zsr_utils.scores._spectra import JACOBIAN_UNITS, linear_reach, spectrum_by_rank, spectrum_summary
from zsr_utils.scores._tables import against_published, estimates, paired_changes
from zsr_utils.scores._tokens import band_of, change_spectrum, dirichlet_energy, mean_square_norm, power_change
from zsr_utils.scores._verdicts import decide


__all__ = [
    "JACOBIAN_UNITS",
    "Estimate",
    "Statistic",
    "accuracy",
    "accuracy_against",
    "against_published",
    "auroc",
    "band_of",
    "bootstrap",
    "change_spectrum",
    "changed_answer",
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
    "kept_rate",
    "linear_reach",
    "mean_of",
    "mean_square_norm",
    "median_of",
    "normality",
    "overlap_coefficient",
    "pair_estimates",
    "pair_similarities",
    "paired_change",
    "paired_changes",
    "paired_difference",
    "power_change",
    "proportion",
    "relative_to",
    "same_answer",
    "share_of",
    "spectrum_by_rank",
    "spectrum_summary",
    "vulnerability",
    "wilson",
]
