"""Data sets: `load_dataset` and what it returns."""

from zsr_utils.datasets._catalogue import NAMES, data_folder, source
from zsr_utils.datasets._dataset import Dataset, Sample, UnreadableImages
from zsr_utils.datasets._download import DownloadError, download, fetch
from zsr_utils.datasets._embedded import parquet_dataset, tabletop_factors, tabletop_shifts, tabletop_splits
from zsr_utils.datasets._imagenet import FACTORS, imagenet_classes, imagenet_templates, imagenet_x
from zsr_utils.datasets._opened import ArrayImage, BytesImage, FileImage, TarImage
from zsr_utils.datasets._published import PUBLISHED_IMAGES, claims, published, published_accuracy
from zsr_utils.datasets._sources import load_dataset


__all__ = [
    "FACTORS",
    "NAMES",
    "PUBLISHED_IMAGES",
    "ArrayImage",
    "BytesImage",
    "Dataset",
    "DownloadError",
    "FileImage",
    "Sample",
    "TarImage",
    "UnreadableImages",
    "claims",
    "data_folder",
    "download",
    "fetch",
    "imagenet_classes",
    "imagenet_templates",
    "imagenet_x",
    "load_dataset",
    "parquet_dataset",
    "published",
    "published_accuracy",
    "source",
    "tabletop_factors",
    "tabletop_shifts",
    "tabletop_splits",
]
