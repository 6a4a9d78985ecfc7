"""The embedded Tabletop images: Parquet files of encoded pictures with the factors of their scenes."""

import hashlib
import json
from functools import lru_cache, partial

import pandas as pd
import pyarrow.parquet as pq

from zsr_utils._text import one_of, read_yaml
from zsr_utils.datasets._catalogue import EMBEDDED
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._decode import open_bytes


VALIDATION, SHIFTS = (EMBEDDED / "tabletop" / f"{name}.parquet" for name in ("validation", "shifts"))


@lru_cache(maxsize=1)
def tabletop_splits() -> tuple[str, ...]:
    """Splits of the embedded data: `validation`, then the conditions of the shifted sets in their order."""
    return ("validation", *pq.read_table(SHIFTS, columns=["condition"])["condition"].unique().to_pylist())


def tabletop(split: str) -> Dataset:
    """The embedded images of one of `tabletop_splits`; the encoded ones are held in memory."""
    one_of("split", split, tabletop_splits())
    path = VALIDATION if split == "validation" else SHIFTS
    features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    rows = _rows(split, ["sample_id", "label", "image"])
    return Dataset(
        "tabletop",
        features["label"]["names"],
        [Sample(i, k, partial(open_bytes, image["bytes"])) for i, k, image in rows.itertuples(index=False)],
        content=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def tabletop_factors(split: str = "validation") -> pd.DataFrame:
    """The factors of the scenes of one of `tabletop_splits`: a frame indexed by `sample_id`.

    Those of the shifted sets have the columns of `validation` and `scene_id`, `condition`, `other_kind` and
    `other_label`: the kind whose pattern (split `pattern`) or name (`card`) the picture shows, missing elsewhere.
    """
    one_of("split", split, tabletop_splits())
    return _rows(split).drop(columns=["image"]).set_index("sample_id")


def reading_doses() -> pd.DataFrame:
    """What fine-tunings answer that differ in how many captions are about a card's word: a row a run and quantity."""
    return pd.read_csv(EMBEDDED / "tabletop" / "reading_doses.csv")


def tabletop_words() -> dict[str, dict]:
    """What else a kind may be called: `descriptions` with a place for the name, a `synonym`, its name in `german`."""
    return read_yaml(EMBEDDED / "tabletop" / "words.yaml")


def _rows(split: str, columns: list[str] | None = None) -> pd.DataFrame:
    if split == "validation":
        return pd.read_parquet(VALIDATION, columns=columns)
    return pd.read_parquet(SHIFTS, columns=columns, filters=[("condition", "==", split)])
