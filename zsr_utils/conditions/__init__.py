"""Perturbations of images, before a model's own resize and crop, and where each still shows the original."""

from zsr_utils.conditions._bands import (
    BANDS,
    at_rms,
    band_mask,
    band_noise,
    energy_outside,
    high_pass,
    low_pass,
    project,
    radial_frequency,
)
from zsr_utils.conditions._families import PAPER, VARIANTS, families
from zsr_utils.conditions._geometry import Perturbation, View


__all__ = [
    "BANDS",
    "PAPER",
    "VARIANTS",
    "Perturbation",
    "View",
    "at_rms",
    "band_mask",
    "band_noise",
    "energy_outside",
    "families",
    "high_pass",
    "low_pass",
    "project",
    "radial_frequency",
]
