"""Folders of pictures: a sub-folder a class, or a list of labels beside the pictures."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from zsr_utils._text import one_of
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._decode import open_file


EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jpe"}
HELD_OUT = ("validation", "val", "test")  # what `validation` may be called on disk, first come first
SPLITS = {*HELD_OUT, "train"}


def folder_dataset(folder: Path, split: str) -> Dataset:
    """A folder as users have it: with `labels.csv`, with folders of splits, or with a folder a class."""
    name = folder.resolve().name
    inner = _folders(folder)
    if inner and set(inner) <= SPLITS and any(_folders(folder / i) for i in inner):
        folder = split_folder(folder, split)
    else:
        one_of("split", split, ["validation"])
    listed, labels = read_lines(folder / "classes.txt"), (folder / "labels.csv").is_file()
    used = [] if labels else [c for c in _folders(folder) if next(_images(folder / c, c), None)]
    class_names = listed or [c.replace("_", " ") for c in used]
    for class_name, count in Counter(class_names).items():
        if count > 1:
            where = folder / "classes.txt" if listed else folder
            raise ValueError(f"{str(where)!r} names the class {class_name!r} twice.")
    if labels:
        return _labelled(folder, name, listed)
    for class_folder in used:
        if class_folder.replace("_", " ") not in class_names:
            raise ValueError(f"The folder {class_folder!r} in {str(folder)!r} is not a class of its classes.txt.")
    label_of = {c: class_names.index(c.replace("_", " ")) for c in used}
    return class_folders(folder, label_of, name=name, class_names=class_names)


def class_folders(folder: Path, label_of: Mapping[str, int], *, border: int = 0, **attributes) -> Dataset:
    """A folder with a sub-folder a class, in the order of `label_of`; ids are paths in it, and no file is opened.

    Class folders may be missing: the list of classes stays whole, so that accuracy stays that of a choice among all.
    `attributes` are the data set's name, class names and templates.
    """
    samples, sizes = [], [f"border {border}"] if border else []
    for class_folder, label in label_of.items():
        if (folder / class_folder).is_dir():
            for relative, path, size in _images(folder / class_folder, class_folder):
                samples.append(Sample(relative, label, partial(open_file, path, border)))
                sizes.append(f"{relative}:{size}")
    if not samples:
        wanted = f"one sub-folder a class with files of type {', '.join(sorted(EXTENSIONS))}"
        raise ValueError(f"The folder {str(folder)!r} holds no images: expected {wanted}.")
    return Dataset(samples=samples, content="\n".join(sizes), **attributes)


def known_folders(folder: Path, known: Iterable[str], what: str) -> None:
    """Raise a ValueError unless every sub-folder is one of the classes that the data set is known to have."""
    if new := sorted(set(_folders(folder)).difference(known)):
        raise ValueError(f"The folder {new[0]!r} in {str(folder)!r} is not one of {what}.")


def split_folder(folder: Path, split: str) -> Path:
    """The folder of a split; `validation` is whatever its authors call the images to evaluate on."""
    present = [name for name in _folders(folder) if name in SPLITS]
    if not present:
        raise ValueError(f"{str(folder)!r} has no folder of a split, expected are {', '.join(sorted(SPLITS))}.")
    if split == "validation":
        split = next((name for name in HELD_OUT if name in present), split)
    one_of("split", split, present)
    return folder / split


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty, without the spaces around them; none if there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [line.strip() for line in lines if line.strip()]


def _labelled(folder: Path, name: str, class_names: list[str]) -> Dataset:
    """A folder with `labels.csv`: columns `file` and `label`, a class name or an index into `classes.txt`."""
    table = folder / "labels.csv"
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for column in ("file", "label"):
            if column not in (rows.fieldnames or ()):
                raise ValueError(f"{str(table)!r} has no column {column!r}, needed are 'file' and 'label'.")
        listed = [(row["file"], (row["label"] or "").strip()) for row in rows]
    if not listed:
        raise ValueError(f"{str(table)!r} has no rows.")
    by_index = all(label.isdigit() for _, label in listed)
    if by_index and not class_names:
        raise ValueError(f"{str(table)!r} gives classes by index, and classes.txt beside it does not name them.")
    class_names = class_names or sorted({label for _, label in listed})
    label_of = {str(k) if by_index else c: k for k, c in enumerate(class_names)}
    samples, sizes = {}, []
    for relative, label in listed:
        label = str(int(label)) if by_index else label
        path = folder / relative
        if label not in label_of:
            raise ValueError(f"{str(table)!r} gives {relative!r} the class {label!r}, which classes.txt does not have.")
        if relative in samples:
            raise ValueError(f"{str(table)!r} lists {relative!r} twice.")
        if not path.is_file():
            raise ValueError(f"{str(table)!r} lists {relative!r}, which is not in the folder.")
        samples[relative] = Sample(relative, label_of[label], partial(open_file, str(path)))
        sizes.append(f"{relative}:{path.stat().st_size}")
    return Dataset(name, class_names, list(samples.values()), content="\n".join(sizes))


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def _images(folder: str | Path, relative: str) -> Iterator[tuple[str, str, int]]:
    """Path in the data set, path on disk and size of every image below a folder, in order; hidden ones are none."""
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in visible:
        inner = f"{relative}/{entry.name}"
        if entry.is_dir():
            yield from _images(entry.path, inner)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
            yield inner, entry.path, entry.stat().st_size
