"""Whole files or none: a result appears under its final name only when it is complete."""

import json
import os
from pathlib import Path

import pandas as pd

from zsr_utils._cache import write_whole


FORMAT = 1  # of a results folder; a folder without a number is older than the numbers


def write_json(path: Path, content) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda p: p.write_text(text))


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    write_whole(path, lambda p: frame.to_parquet(p, index=False))


def results_root() -> Path:
    """Where results go: `ZSR_RESULTS`, or `results` at the top of the project."""
    return Path(os.environ.get("ZSR_RESULTS") or Path(__file__).resolve().parents[2] / "results")


def safe_name(name: str) -> str:
    """One folder name for a model or data-set address.

    Examples:
        >>> safe_name("hf-hub:timm/ViT-B-16-SigLIP"), safe_name("/photos/pacs/")
        ('hf-hub-timm-ViT-B-16-SigLIP', 'photos-pacs')
    """
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in name.strip("/"))
    return kept.strip("-.") or "unnamed"


def result_folder(model: str, dataset: str, notebook: str, pretrained: str | None = None) -> Path:
    """`results/<model>@<data set>/<notebook>`; a pretrained tag is part of the model's name.

    Examples:
        >>> result_folder("ViT-B-32", "imagenette", "01-x", "laion2b").parts[-2:]
        ('ViT-B-32-laion2b@imagenette', '01-x')
    """
    model = f"{model}-{pretrained}" if pretrained else model
    return results_root() / f"{safe_name(model)}@{safe_name(dataset)}" / notebook


def read_provenance(folder: Path) -> dict:
    """The provenance of one result folder."""
    provenance = json.loads((folder / "provenance.json").read_text())
    if provenance.get("format", 0) > FORMAT:
        found = f"{str(folder)!r} has results of format {provenance['format']}, allowed is up to {FORMAT}"
        raise ValueError(f"{found}: a newer version of this package wrote it, so update.")
    return provenance


def concat(frames) -> pd.DataFrame:
    """Rows of several conditions as one frame."""
    return pd.concat(frames, ignore_index=True)
