"""The embedded Tabletop images and other Parquet files of encoded images."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from zsr_utils.datasets._catalogue import EMBEDDED
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._opened import BytesImage


VALIDATION, SHIFTS = (EMBEDDED / "tabletop" / f"{name}.parquet" for name in ("validation", "shifts"))


def tabletop(split: str) -> Dataset:
    """The embedded images of one of `tabletop_splits`."""
    if split == "validation":
        return parquet_dataset(VALIDATION, name="tabletop")
    return parquet_dataset(SHIFTS, name="tabletop", condition=split)


@lru_cache(maxsize=1)
def tabletop_splits() -> tuple[str, ...]:
    """Splits of the embedded data: `validation`, then the conditions of the shifted sets in their order.

    Pre-training images are no split: they are rendered when a model is trained.
    """
    import pyarrow.parquet as pq

    return ("validation", *pq.read_table(SHIFTS, columns=["condition"])["condition"].unique().to_pylist())


def parquet_dataset(path: Path, *, name: str, condition: str | None = None) -> Dataset:
    """A Parquet file with columns `sample_id`, `image` ({bytes, path}) and `label`, as written by tabletop.

    With `condition`, only the rows that have this value in the column `condition`. The encoded images are
    held in memory.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if condition is not None:
        table = table.filter(pc.equal(table["condition"], condition))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    encoded = table["image"].combine_chunks().field("bytes").to_pylist()
    ids, labels = table["sample_id"].to_pylist(), table["label"].to_pylist()
    return Dataset(
        name=name,
        class_names=tuple(features["label"]["names"]),
        samples=[Sample(i, label, BytesImage(e)) for i, label, e in zip(ids, labels, encoded, strict=True)],
        content=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


@lru_cache(maxsize=4)
def tabletop_factors() -> "object":
    """The scene factors of the embedded validation set: a frame indexed by `sample_id`."""
    return _factors(VALIDATION)


@lru_cache(maxsize=1)
def tabletop_shifts() -> "object":
    """The scene factors of the shifted Tabletop sets: a frame indexed by `sample_id`.

    Its columns are those of `tabletop_factors` and `scene_id`, `condition`, `other_kind` and `other_label`:
    the kind whose pattern (condition `pattern`) or name (`card`) the picture shows, missing elsewhere.
    """
    return _factors(SHIFTS)


def _factors(path: Path):
    import pandas as pd

    return pd.read_parquet(path).drop(columns=["image"]).set_index("sample_id")
