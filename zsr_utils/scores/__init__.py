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
from zsr_utils.scores._noise import (
    beside_predicted,
    detect,
    detect_at_best_sigma,
    not_normal,
    per_image,
    qq_clouds,
    squared_moves,
)
from zsr_utils.scores._normality import normality, qq_points
from zsr_utils.scores._paired import holm, paired_changes, paired_mean, sign_flip
from zsr_utils.scores._similarity import auroc, overlap_coefficient, pair_estimates, pair_similarities
from zsr_utils.scores._spectra import JACOBIAN_UNITS, linear_reach, spectrum_by_rank, spectrum_summary
from zsr_utils.scores._tables import against_published, estimates
from zsr_utils.scores._tokens import band_of, change_spectrum, dirichlet_energy, mean_square_norm, power_change
from zsr_utils.scores._verdicts import decide, within


__all__ = [
    "JACOBIAN_UNITS",
    "Estimate",
    "Statistic",
    "accuracy",
    "accuracy_against",
    "against_published",
    "auroc",
    "band_of",
    "beside_predicted",
    "bootstrap",
    "change_spectrum",
    "changed_answer",
    "correct",
    "correlation_of",
    "decide",
    "detect",
    "detect_at_best_sigma",
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
    "linear_reach",
    "mean_of",
    "mean_square_norm",
    "median_of",
    "normality",
    "not_normal",
    "overlap_coefficient",
    "pair_estimates",
    "pair_similarities",
    "paired_change",
    "paired_changes",
    "paired_difference",
    "paired_mean",
    "per_image",
    "power_change",
    "proportion",
    "qq_clouds",
    "qq_points",
    "relative_to",
    "same_answer",
    "share_of",
    "sign_flip",
    "spectrum_by_rank",
    "spectrum_summary",
    "squared_moves",
    "vulnerability",
    "wilson",
    "within",
]
