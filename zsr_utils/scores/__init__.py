"""Rows -> numbers: pure functions of arrays and frames, no model in sight."""

from zsr_utils.scores._classification import accuracy, correct
from zsr_utils.scores._detection import detection
from zsr_utils.scores._drift import correlations, drift_ratios, image_means, instability
from zsr_utils.scores._intervals import Estimate, bootstrap, grouped_proportion, paired_difference, proportion
from zsr_utils.scores._normality import covariance_agreement, normality
from zsr_utils.scores._similarity import auroc, overlap_coefficient, pair_estimates, pair_similarities
from zsr_utils.scores._spectra import JACOBIAN_UNITS, linear_reach, spectrum_by_rank, spectrum_summary
from zsr_utils.scores._tables import against_published, estimates, paired_changes
from zsr_utils.scores._tokens import band_of, change_spectrum, dirichlet_energy, mean_square_norm, power_change
from zsr_utils.scores._verdicts import decide


__all__ = [
    "JACOBIAN_UNITS",
    "Estimate",
    "accuracy",
    "against_published",
    "auroc",
    "band_of",
    "bootstrap",
    "change_spectrum",
    "correct",
    "correlations",
    "covariance_agreement",
    "decide",
    "detection",
    "dirichlet_energy",
    "drift_ratios",
    "estimates",
    "grouped_proportion",
    "image_means",
    "instability",
    "linear_reach",
    "mean_square_norm",
    "normality",
    "overlap_coefficient",
    "pair_estimates",
    "pair_similarities",
    "paired_changes",
    "paired_difference",
    "power_change",
    "proportion",
    "spectrum_by_rank",
    "spectrum_summary",
]
