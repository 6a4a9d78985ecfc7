"""Webdatasets in the layout of CLIP_benchmark, read in place."""

import tarfile
from functools import partial
from pathlib import Path

from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._decode import open_member
from zsr_utils.datasets._folders import SPLITS, split_folder


IMAGES = ("jpg", "jpeg", "png", "webp")


def is_webdataset(folder: Path) -> bool:
    """Whether a folder has tar shards, in itself or in a folder of a split."""
    return any(next(inner.glob("*.tar"), None) for inner in (folder, *(folder / s for s in SPLITS)))


def webdataset(folder: Path, split: str, *, name: str) -> Dataset:
    """A folder with `classnames.txt`, `zeroshot_classification_templates.txt` and `<split>/<number>.tar`.

    A shard holds `<key>.jpg` (or png, webp) and `<key>.cls`, the index of the class, for every sample, and the id is
    `<number>/<key>`. Nothing is unpacked: the headers of a shard are read once, and a picture from its place in it.

    Source: `build_wds_dataset` and `webdataset_builder` of CLIP_benchmark.
    """
    if not (folder / "classnames.txt").is_file():
        raise FileNotFoundError(f"The webdataset {str(folder)!r} has no classnames.txt.")
    class_names = (folder / "classnames.txt").read_text("utf-8").splitlines()
    samples, sizes = [], []
    for shard in _shards(split_folder(folder, split)):
        for key, label, place in _indexed(shard, len(class_names)):
            samples.append(Sample(f"{shard.stem}/{key}", label, partial(open_member, str(shard), *place)))
            sizes.append(f"{shard.stem}/{key}:{place[1]}")
    return Dataset(name, class_names, samples, _templates(folder), "\n".join(sizes))


def _templates(folder: Path) -> tuple[str, ...]:
    path = folder / "zeroshot_classification_templates.txt"
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()] if path.is_file() else []
    for line in lines:
        if line.count("{c}") != 1:
            raise ValueError(f"{str(path)!r} has the template {line!r}, allowed is one {{c}} in each.")
    return tuple(line.replace("{c}", "{}") for line in lines) or Dataset.templates


def _shards(folder: Path) -> list[Path]:
    listed = folder / "nshards.txt"
    if listed.is_file():
        shards = [folder / f"{k}.tar" for k in range(int(listed.read_text()))]
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            few = f"{len(missing)} of {len(shards)}"
            raise ValueError(f"{str(folder)!r} has no {missing[0]!r}: {few} shards are missing.")
    else:
        shards = sorted(folder.glob("*.tar"), key=lambda p: (len(p.stem), p.stem))  # 2.tar before 10.tar
    if not shards:
        raise ValueError(f"{str(folder)!r} holds no .tar shards.")
    return shards


def _indexed(shard: Path, classes: int) -> list[tuple[str, int, tuple[int, int]]]:
    """Key, label, and where the picture lies (offset and size), of every sample."""
    places: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    length = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("it ends within a file")
                folder, _, file = member.name.rpartition("/")
                stem, _, extension = file.partition(".")  # a webdataset's key ends at the first dot
                key = f"{folder}/{stem}" if folder else stem
                if extension.lower() in IMAGES:
                    places[key] = member.offset_data, member.size
                elif extension == "cls":
                    labels[key] = int(tar.extractfile(member).read())
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"The shard {str(shard)!r} cannot be read: {error}.") from error
    for key in {**places, **labels}:
        if key not in places or key not in labels:
            raise ValueError(f"The shard {str(shard)!r} has no {'class' if key in places else 'picture'} for {key!r}.")
        if not 0 <= labels[key] < classes:
            allowed = f"0 to {classes - 1}, the lines of classnames.txt"
            raise ValueError(f"The class of {key!r} in {str(shard)!r} is {labels[key]}, allowed is {allowed}.")
    return [(key, labels[key], place) for key, place in places.items()]
