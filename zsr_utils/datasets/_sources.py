"""Where labelled images come from: Parquet files, folders, torchvision."""

import hashlib
import io
import json
import os
from functools import lru_cache
from pathlib import Path

from PIL import Image

from zsr_utils._text import one_of, unknown
from zsr_utils.datasets._dataset import Dataset, Sample, subset


ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "data"
VALIDATION, SHIFTS = (EMBEDDED / "tabletop" / f"{name}.parquet" for name in ("validation", "shifts"))
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jpe"}

# The names in the order of the folders, as commonly given for Imagenette's ten ImageNet classes.
IMAGENETTE_CLASSES = (
    "tench", "English springer", "cassette player", "chain saw", "church",
    "French horn", "garbage truck", "gas pump", "golf ball", "parachute",
)  # fmt: skip
NAMES = ("tabletop", "imagenette")


def data_folder() -> Path:
    """Where downloaded data sets are looked for: `ZSR_DATA`, or `~/.cache/zsr/data` on Linux."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("ZSR_DATA") or Path(user_cache_dir("zsr")) / "data")


def load_dataset(name_or_folder: str, split: str = "validation", limit: int | None = None, seed: int = 0) -> Dataset:
    """Labelled images by name or folder.

    Args:
        name_or_folder: `tabletop`, `imagenette`, or a folder with one sub-folder of images a class.
        split: `validation` or `train`, where a data set has both; a folder of class folders has one.
            `tabletop` has `validation` and the conditions of its shifted sets, the same scenes in each:
            `photo`, `cartoon`, `sketch`, `silhouette`, `backdrop`, `viewpoint`, `lighting`, `pattern`, `card`.
        limit: At most this many images, drawn by `seed` and spread over the classes; None or 0 is all.
        seed: Seed of that draw.

    Raises:
        ValueError: If the name is unknown (the nearest ones are listed), the folder holds no class
            folders with images, or `split` or `limit` is not allowed.
        FileNotFoundError: If a data set has not been downloaded; the message says how.
    """
    one_of("split", split, tabletop_splits() if name_or_folder == "tabletop" else ("validation", "train"))
    if name_or_folder == "tabletop":
        dataset = _tabletop(split)
    elif name_or_folder == "imagenette":
        dataset = _imagenette(split)
    elif Path(name_or_folder).is_dir():
        dataset = _folder(Path(name_or_folder))
    else:
        raise ValueError(f"{unknown('data set', name_or_folder, NAMES)} It is not a folder here either.")
    dataset.samples = subset(dataset.samples, limit, seed)
    return dataset


def _tabletop(split: str) -> Dataset:
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

    With `condition`, only the rows that have this value in the column `condition`.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if condition is not None:
        table = table.filter(pc.equal(table["condition"], condition))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    ids, labels = table["sample_id"].to_pylist(), table["label"].to_pylist()
    encoded = table["image"].combine_chunks().field("bytes")
    samples = [
        Sample(i, label, _opener(lambda row=row: io.BytesIO(encoded[row].as_py())))
        for row, (i, label) in enumerate(zip(ids, labels, strict=True))
    ]
    return Dataset(
        name=name,
        class_names=tuple(features["label"]["names"]),
        samples=samples,
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


def _opener(source):
    return lambda: Image.open(source())


def _folder(folder: Path, *, name: str | None = None, class_names: tuple[str, ...] | None = None) -> Dataset:
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    samples, sizes = [], []
    used = []
    for class_folder in classes:
        files = sorted(p for p in class_folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if not files:
            continue
        for path in files:
            relative = path.relative_to(folder).as_posix()
            samples.append(Sample(relative, len(used), _opener(lambda path=path: path)))
            sizes.append(f"{relative}:{path.stat().st_size}")
        used.append(class_folder.name)
    if not samples:
        raise ValueError(
            f"The folder {str(folder)!r} holds no images: expected one sub-folder a class with files of type "
            f"{', '.join(sorted(EXTENSIONS))}."
        )
    return Dataset(
        name=name or folder.resolve().name,
        class_names=class_names or tuple(c.replace("_", " ") for c in used),
        samples=samples,
        content="\n".join(sizes),
    )


def _imagenette(split: str) -> Dataset:
    root = data_folder() / "imagenette2"
    folder = root / ("val" if split == "validation" else "train")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"imagenette is not in {str(root)!r}: fetch its 1.5 GB archive with "
            f"torchvision.datasets.Imagenette(root={str(data_folder())!r}, download=True), "
            "or set ZSR_DATA to the folder that holds imagenette2."
        )
    return _folder(folder, name="imagenette", class_names=IMAGENETTE_CLASSES)
