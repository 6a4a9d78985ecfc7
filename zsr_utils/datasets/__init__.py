"""Data sets: `load_dataset` and what it returns."""

from zsr_utils.datasets._dataset import Dataset, Sample, UnreadableImages
from zsr_utils.datasets._published import PUBLISHED_IMAGES, claims, published, published_accuracy
from zsr_utils.datasets._sources import (
    data_folder,
    load_dataset,
    parquet_dataset,
    tabletop_factors,
    tabletop_shifts,
    tabletop_splits,
)


__all__ = [
    "PUBLISHED_IMAGES",
    "Dataset",
    "Sample",
    "UnreadableImages",
    "claims",
    "data_folder",
    "load_dataset",
    "parquet_dataset",
    "published",
    "published_accuracy",
    "tabletop_factors",
    "tabletop_shifts",
    "tabletop_splits",
]
