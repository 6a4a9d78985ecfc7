"""Webdatasets in the layout of CLIP_benchmark, read in place."""

import os
import re
import tarfile
from functools import partial
from pathlib import Path

from zsr_utils.datasets._dataset import Dataset, LeftOut, Sample
from zsr_utils.datasets._decode import open_member
from zsr_utils.datasets._folders import EXTENSIONS, SPLIT, made, readable, split_folder
from zsr_utils.datasets._names import index, read_lines, read_names


NSHARDS = "nshards.txt"
WORDS = {".cls": ("class", "classes", 99), ".txt": ("caption", "captions", 99_999)}  # and bytes at most


def is_webdataset(folder: Path) -> bool:
    """Whether a folder has tar shards, in itself or in a folder of a split."""
    inner = [folder, *(f for f in folder.iterdir() if SPLIT.fullmatch(f.name))]
    return any(next(f.glob("*.tar"), None) for f in inner)


def webdataset(folder: Path, split: str, *, name: str) -> Dataset:
    """A folder with `classnames.txt`, `zeroshot_classification_templates.txt` and `<split>/<number>.tar`.

    A shard holds `<key>.jpg` (or another format) and `<key>.cls`, the index of the class, for every sample, and the id
    is `<number>/<key>`. Nothing is unpacked.

    Source: `build_wds_dataset` and `webdataset_builder` of CLIP_benchmark.
    """
    if not (folder / "classnames.txt").is_file():
        raise FileNotFoundError(f"The webdataset {str(folder)!r} has no classnames.txt.")
    class_names, left, samples = read_names(folder / "classnames.txt"), LeftOut(), []
    for shard in shards(split_folder(folder, split), left):
        for key, text, place in members(shard, ".cls", left):
            if (label := index(text)) is None or label >= len(class_names):
                allowed = f"0 to {len(class_names) - 1}, the lines of classnames.txt"
                raise ValueError(f"The class of {key!r} in {str(shard)!r} is {text}, allowed is {allowed}.")
            open_it = partial(open_member, str(shard), *place)
            samples.append(Sample(f"{readable(shard.stem)}/{key}", label, open_it, (str(shard), *place)))
    return made(samples, left, name=name, class_names=class_names, templates=_templates(folder))


def _templates(folder: Path) -> tuple[str, ...]:
    path = folder / "zeroshot_classification_templates.txt"
    lines = [line for _, line in read_lines(path)] if path.is_file() else []
    for line in lines:
        if line.count("{c}") != 1:
            raise ValueError(f"{str(path)!r} has the template {line!r}, allowed is one {{c}} in each.")
    return tuple(line.replace("{c}", "{}") for line in lines) or Dataset.templates


def shards(folder: Path, left: LeftOut) -> list[Path]:
    found = sorted(folder.glob("*.tar"), key=lambda p: (len(p.stem), p.stem))  # 2.tar before 10.tar
    if (folder / NSHARDS).is_file():
        text = " ".join(line for _, line in read_lines(folder / NSHARDS))
        if not (count := index(text)):
            raise ValueError(f"{str(folder / NSHARDS)!r} is {text!r}, allowed is the number of shards.")
        there = {shard.name for shard in found}
        listed = [f"{k}.tar" for k in range(min(count, len(there) + 1))]  # one more than there are is missing for sure
        if missing := [name for name in listed if name not in there]:
            counted = sum(f"{index(name[:-4])}.tar" == name and int(name[:-4]) < count for name in there)
            few = f"{count - counted:,} of {count:,}"
            raise ValueError(f"{str(folder)!r} has no {missing[0]!r}: {few} shards are missing.")
        for name in sorted(there.difference(listed)):
            left.add(f"shards beyond the number in {NSHARDS}", readable(name))
        found = [folder / name for name in listed]
    if not found:
        raise ValueError(f"{str(folder)!r} holds no .tar shards.")
    return found


def members(shard: Path, kind_of_text: str, left: LeftOut) -> list[tuple[str, str, tuple[int, int]]]:
    """Key, text in the file `<key>.cls` or `.txt`, and where the picture lies (offset and size), of every sample.

    A key ends at the last dot of a name, so that `a.v2.jpg` and `a.v2.cls` are a sample; a picture `a.mask.png` without
    a class of its own is a further file of the sample `a`.
    """
    places: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    length = shard.stat().st_size
    what, (one, several, at_most) = f"The shard {str(shard)!r}", WORDS[kind_of_text]
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                if not member.isfile() or member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"it ends within {member.name!r}" if member.isfile() else "it holds links")
                key, extension = os.path.splitext(readable(member.name))
                extension = extension.lower()
                if extension not in EXTENSIONS and extension != kind_of_text:
                    where = f"{readable(shard.stem)}/{readable(member.name)}"
                    left.add(f"files of type {extension or '(none)'}", where)
                    continue
                kind = labels if extension == kind_of_text else places
                if key in kind:
                    raise ValueError(f"{what} has two {several if kind is labels else 'pictures'} for {key!r}.")
                if kind is labels:
                    labels[key] = tar.extractfile(member).read(at_most).decode("utf-8", "backslashreplace").strip()
                else:
                    places[key] = member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ValueError(f"{what} cannot be read: {reason}.") from error
    first = {key: re.sub(r"\.[^/]*$", "", key) for key in places}  # up to the first dot of its file's name
    for key in [key for key, own in first.items() if key not in labels and own in labels and own in places]:
        left.add("further pictures of a sample", f"{readable(shard.stem)}/{key}")
        del places[key]
    for key in {**places, **labels}:
        if key not in places or key not in labels:
            raise ValueError(f"{what} has no {one if key in places else 'picture'} for {key!r}.")
    return [(key, labels[key], place) for key, place in places.items()]
