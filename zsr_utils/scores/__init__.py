"""Rows -> numbers: pure functions of arrays and frames, no model in sight."""

from zsr_utils.scores._attacks import (
    LEVEL, alarms, bisected, by_radius, held, median_radius, not_monotone, robust_accuracy, robustness_curve,
    smallest_change,
)  # fmt: skip
from zsr_utils.scores._calibration import (
    brier_parts, calibration_error, confidence_bins, fit_temperature, reliability,
)  # fmt: skip
from zsr_utils.scores._detection import auroc_parts, detection, separation
from zsr_utils.scores._factors import column_means, error_ratio, half_dose, rank_agreement, ranks
from zsr_utils.scores._halves import halves, halves_difference, in_halves, source_ids
from zsr_utils.scores._intervals import (
    Estimate, bootstrap, estimate_of, grouped_proportion, no_difference, not_measured, paired_difference, proportion,
    unpaired_difference, wilson,
)  # fmt: skip
from zsr_utils.scores._noise import (
    ACCOUNTS, CLEAN, HELD_OUT, beside_predicted, detect, detect_at_best_sigma, normality, not_normal, per_image,
    qq_clouds, qq_points, squared_moves,
)  # fmt: skip
from zsr_utils.scores._overlap import detectable_gain, exact_proportion, overlap_effect
from zsr_utils.scores._paired import changes_from, corrected, holm, paired_changes, paired_mean, sign_flip, tested
from zsr_utils.scores._retrieval import TIE, by_image, by_luck, found, median_rank, placed, recall, true_misses
from zsr_utils.scores._robustness import (
    around_anchors, by_cell, clipped, drop, effective_robustness, flips, relative_errors,
)  # fmt: skip
from zsr_utils.scores._rows import (
    Statistic, accuracy, accuracy_against, changed_answer, correct, equal_vulnerability, estimates, flip_rate,
    kept_rate, mean_of, median_of, paired_change, relative_to, same_answer, share_of, vulnerability,
)  # fmt: skip
from zsr_utils.scores._sequential import confidence_sequence, price
from zsr_utils.scores._similarity import auroc, overlap_coefficient, pair_estimates, pair_similarities
from zsr_utils.scores._spectra import JACOBIAN_UNITS, linear_reach, spectrum_by_rank, spectrum_summary
from zsr_utils.scores._tokens import band_of, change_spectrum, dirichlet_energy, mean_square_norm, power_change
from zsr_utils.scores._verdicts import against_published, by_verdict, decide, in_words, within
