"""Webdatasets in the layout of CLIP_benchmark, read in place."""

import tarfile
from pathlib import Path

from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._folders import SPLITS, split_folder
from zsr_utils.datasets._opened import TarImage


IMAGES = ("jpg", "jpeg", "png", "webp")


def is_webdataset(folder: Path) -> bool:
    """Whether a folder has tar shards, in itself or in a folder of a split."""
    return any(next(inner.glob("*.tar"), None) for inner in (folder, *(folder / s for s in SPLITS)))


def webdataset(folder: Path, split: str, *, name: str) -> Dataset:
    """A folder with `classnames.txt`, `zeroshot_classification_templates.txt` and `<split>/<number>.tar`.

    A shard holds `<key>.jpg` (or png, webp) and `<key>.cls`, the index of the class, for every sample, and the id
    is `<number>/<key>`. Nothing is unpacked: the headers of a shard are read once, which takes a few seconds for
    10,000 images on a local disk, and a picture is then read from its place in the shard.

    Raises:
        FileNotFoundError: If `classnames.txt` is missing.
        ValueError: If the split is unknown, or a shard is missing, damaged or compressed, or a sample has no picture
            or no class.

    Source:
        `build_wds_dataset` and `webdataset_builder` of CLIP_benchmark.
    """
    if not (folder / "classnames.txt").is_file():
        raise FileNotFoundError(f"The webdataset {str(folder)!r} has no classnames.txt.")
    class_names = tuple((folder / "classnames.txt").read_text("utf-8").splitlines())
    samples, sizes = [], []
    for shard in _shards(split_folder(folder, split)):
        for sample, size in _indexed(shard, len(class_names)):
            samples.append(sample)
            sizes.append(f"{sample.sample_id}:{size}")
    return Dataset(
        name,
        class_names,
        samples,
        **({"templates": templates} if (templates := _templates(folder)) else {}),
        content="\n".join(sizes),
    )


def _templates(folder: Path) -> tuple[str, ...]:
    path = folder / "zeroshot_classification_templates.txt"
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()] if path.is_file() else []
    for line in lines:
        if line.count("{c}") != 1:
            raise ValueError(f"{str(path)!r} has the template {line!r}, allowed is one {{c}} in each.")
    return tuple(line.replace("{c}", "{}") for line in lines)


def _shards(folder: Path) -> list[Path]:
    shards = sorted(folder.glob("*.tar"), key=lambda p: (len(p.stem), p.stem))  # 2.tar before 10.tar
    listed = folder / "nshards.txt"
    if listed.is_file():
        expected = [f"{k}.tar" for k in range(int(listed.read_text()))]
        missing = [shard for shard in expected if not (folder / shard).is_file()]
        if missing:
            raise ValueError(
                f"{str(folder)!r} has no {missing[0]!r}: {len(missing)} of {len(expected)} shards are missing."
            )
        shards = [folder / shard for shard in expected]
    if not shards:
        raise ValueError(f"{str(folder)!r} holds no .tar shards.")
    return shards


def _indexed(shard: Path, classes: int) -> list[tuple[Sample, int]]:
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    length = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, extension = file.partition(".")  # a webdataset's key ends at the first dot
                key = f"{folder}/{stem}" if folder else stem
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("it ends within a file")
                if extension.lower() in IMAGES:
                    pictures[key] = member.offset_data, member.size
                elif extension == "cls":
                    labels[key] = int(tar.extractfile(member).read())
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"The shard {str(shard)!r} cannot be read: {error}.") from error
    for key in {**pictures, **labels}:
        if key not in pictures or key not in labels:
            raise ValueError(
                f"The shard {str(shard)!r} has no {'class' if key in pictures else 'picture'} for {key!r}."
            )
        if not 0 <= labels[key] < classes:
            raise ValueError(
                f"The class of {key!r} in {str(shard)!r} is {labels[key]}, allowed is 0 to {classes - 1}, "
                "the lines of classnames.txt."
            )
    return [
        (Sample(f"{shard.stem}/{key}", labels[key], TarImage(str(shard), *place)), place[1])
        for key, place in pictures.items()
    ]
