"""Data sets: `load_dataset` and what it returns."""

from zsr_utils.datasets._dataset import Dataset, Sample, UnreadableImages
from zsr_utils.datasets._sources import data_folder, load_dataset, parquet_dataset, tabletop_factors


__all__ = [
    "Dataset",
    "Sample",
    "UnreadableImages",
    "data_folder",
    "load_dataset",
    "parquet_dataset",
    "tabletop_factors",
]
