"""How an image is shown again: geometry, overlays, bands of spatial frequency, noise, alignment, attacks."""

from zsr_utils.conditions._attacks import ATTACKS, GRADIENTS, LOSSES, WHOLE, Attack, Fooled, attack, random_noise
from zsr_utils.conditions._bands import (
    BANDS, at_rms, band_attacks, band_mask, band_noise, energy_outside, filters, high_pass, low_pass, project,
    radial_frequency,
)  # fmt: skip
from zsr_utils.conditions._condition import (
    ORIGINAL, Batch, Condition, Head, Seen, drift_between, generator, made_before, margin_of, unchanged, unit_noise,
)  # fmt: skip
from zsr_utils.conditions._corruptions import (
    CORRUPTIONS, NOISES, SEQUENCES, SEVERITIES, corruptions, published_size, sequences,
)  # fmt: skip
from zsr_utils.conditions._cues import without_cue
from zsr_utils.conditions._depth import STRENGTHS, corrupted, in_depth, transmission
from zsr_utils.conditions._families import PAPER, VARIANTS, Views, as_conditions, families
from zsr_utils.conditions._geometry import Perturbation, View
from zsr_utils.conditions._noise import gaussian_noise, random_control, rms, sizes
from zsr_utils.conditions._questions import OptionHead, Spoken
from zsr_utils.conditions._steps import Settings
