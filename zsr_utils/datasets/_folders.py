"""Folders of pictures: a sub-folder a class, or a list of labels beside the pictures."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from zsr_utils._text import one_of
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._opened import FileImage


EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jpe"}
HELD_OUT = ("validation", "val", "test")  # what `validation` may be called on disk, first come first
SPLITS = {*HELD_OUT, "train"}


def folder_dataset(folder: Path, split: str) -> Dataset:
    """A folder as users have it: with `labels.csv`, with folders of splits, or with a folder a class.

    Raises:
        ValueError: If there are no images, or labels, class folders and `classes.txt` do not match.
    """
    name = folder.resolve().name
    inner = _folders(folder)
    if inner and set(inner) <= SPLITS and any(_folders(folder / i) for i in inner):
        folder = split_folder(folder, split)
    else:
        one_of("split", split, ["validation"])
    if (folder / "labels.csv").is_file():
        return _labelled(folder, name)
    used = [c for c in _folders(folder) if next(_images(folder / c, c), None)]
    named, listed = [c.replace("_", " ") for c in used], _class_names(folder)
    for folder_name, class_name in zip(used, named):
        if listed and class_name not in listed:
            raise ValueError(f"The folder {folder_name!r} in {str(folder)!r} is not a class of its classes.txt.")
    labels = [listed.index(n) for n in named] if listed else range(len(used))
    return class_folders(folder, dict(zip(used, labels)), name=name, class_names=listed or named)


def class_folders(
    folder: Path,
    label_of: Mapping[str, int],
    *,
    name: str,
    class_names: Iterable[str],
    templates: tuple[str, ...] = ("a photo of a {}",),
    border: int = 0,
) -> Dataset:
    """A folder with a sub-folder a class, in the order of `label_of`; ids are paths in it.

    Listing costs a `stat` a file, and no file is opened. Class folders may be missing: the list of classes stays
    whole, so that accuracy stays that of a choice among all of them.

    Raises:
        ValueError: If there are no images at all.
    """
    samples, sizes = [], [f"border {border}"] if border else []
    for class_folder, label in label_of.items():
        if (folder / class_folder).is_dir():
            for relative, path, size in _images(folder / class_folder, class_folder):
                samples.append(Sample(relative, label, FileImage(path, border)))
                sizes.append(f"{relative}:{size}")
    if not samples:
        raise ValueError(
            f"The folder {str(folder)!r} holds no images: expected one sub-folder a class with files of type "
            f"{', '.join(sorted(EXTENSIONS))}."
        )
    return Dataset(name, tuple(class_names), samples, templates, content="\n".join(sizes))


def known_folders(folder: Path, known: Iterable[str], what: str) -> None:
    """Raise unless every sub-folder is one of the classes that the data set is known to have.

    Raises:
        ValueError: If a sub-folder is not.
    """
    known = set(known)
    for name in _folders(folder):
        if name not in known:
            raise ValueError(f"The folder {name!r} in {str(folder)!r} is not one of {what}.")


def split_folder(folder: Path, split: str) -> Path:
    """The folder of a split; `validation` is whatever its authors call the images to evaluate on.

    Raises:
        ValueError: If there is no such split.
    """
    present = [name for name in _folders(folder) if name in SPLITS]
    wanted = next((name for name in HELD_OUT if name in present), split) if split == "validation" else split
    if not present:
        raise ValueError(f"{str(folder)!r} has no folder of a split, expected are {', '.join(sorted(SPLITS))}.")
    if wanted not in present:
        one_of("split", split, present)
    return folder / wanted


def _labelled(folder: Path, name: str) -> Dataset:
    """A folder with `labels.csv`: columns `file` and `label`, a class name or an index into `classes.txt`."""
    table = folder / "labels.csv"
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"file", "label"}.difference(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{str(table)!r} has no column {min(missing)!r}, needed are 'file' and 'label'.")
        listed = [(row["file"], (row["label"] or "").strip()) for row in rows]
    if not listed:
        raise ValueError(f"{str(table)!r} has no rows.")
    by_index = all(label.isdigit() for _, label in listed)
    class_names = _class_names(folder)
    if not class_names:
        if by_index:
            raise ValueError(f"{str(table)!r} gives classes by index, and classes.txt beside it does not name them.")
        class_names = sorted({label for _, label in listed})
    label_of = {str(k) if by_index else c: k for k, c in enumerate(class_names)}
    samples, sizes, seen = [], [], set()
    for relative, label in listed:
        if by_index:
            label = str(int(label))
        if label not in label_of:
            raise ValueError(f"{str(table)!r} gives {relative!r} the class {label!r}, which classes.txt does not have.")
        if relative in seen:
            raise ValueError(f"{str(table)!r} lists {relative!r} twice.")
        seen.add(relative)
        path = folder / relative
        if not path.is_file():
            raise ValueError(f"{str(table)!r} lists {relative!r}, which is not in the folder.")
        samples.append(Sample(relative, label_of[label], FileImage(str(path))))
        sizes.append(f"{relative}:{path.stat().st_size}")
    return Dataset(name, tuple(class_names), samples, content="\n".join(sizes))


def _class_names(folder: Path) -> list[str]:
    """Names of `classes.txt`, one a line; empty if there is no such file."""
    path = folder / "classes.txt"
    names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()] if path.is_file() else []
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{str(path)!r} names the class {name!r} twice.")
    return names


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def _images(folder: str | Path, relative: str) -> Iterator[tuple[str, str, int]]:
    """Path in the data set, path on disk and size of every image below a folder, in order; hidden ones are none."""
    with os.scandir(folder) as entries:
        found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in found:
        inner = f"{relative}/{entry.name}"
        if entry.is_dir():
            yield from _images(entry.path, inner)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
            yield inner, entry.path, entry.stat().st_size
