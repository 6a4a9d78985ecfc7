"""Folders of pictures: a sub-folder a class, or a list of labels beside the pictures.

What a folder is meant to be is recognised or refused: a sentence says what it looks like, and what is expected.
"""

import os
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from posixpath import normpath

from PIL import Image

from zsr_utils._text import one_of
from zsr_utils.datasets._dataset import Dataset, LeftOut, Sample
from zsr_utils.datasets._decode import open_file
from zsr_utils.datasets._names import class_names, index, read_lines, read_names, read_table


Image.init()
# formats of which Pillow knows no more than the name, or which other programs draw
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
EXTENSIONS = {extension for extension, kind in Image.registered_extensions().items() if kind not in NO_PICTURES}
SPLIT = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<validation>val|valid|validation|dev)|(?P<test>test(?:ing)?|eval(?:uation)?))"
    r"(?:[ _-]?(?:set|data|split|images?|\d{4}))?",
    re.IGNORECASE,
)
# folders beside classes or splits, that are neither
NO_CLASS = {"annotations", "annots", "data", "dataset", "image", "images", "img", "imgs", "jpegimages", "labels",
            "masks", "meta", "metadata", "photos", "pictures"}  # fmt: skip
USED = ("labels.csv", "classes.txt", "val_annotations.txt")
LINKS, DANGLING, HIDDEN = "links to folders", "links to nothing", "hidden files or folders"
EXPECTED = (
    "expected one sub-folder of pictures a class, these folders in a folder a split (train, val, test), or labels.csv "
    "with columns file and label beside the pictures"
)


def folder_dataset(folder: Path, split: str, asked: Collection[str] = ()) -> Dataset:
    """A folder as users have it: with `labels.csv`, with folders of splits, or with a folder a class.

    If classes are asked for by name, folders without pictures are classes too.
    """
    name, left, top = readable(folder.resolve().name), LeftOut(), folder
    if not (folder / "labels.csv").is_file() and splits(folder):
        folder = split_folder(folder, split)
        _leave(top, [folder.name], "folders outside of the split", left)
    else:
        one_of("split", split, ["validation"])
    names = next((read_names(f / "classes.txt") for f in (folder, top) if (f / "classes.txt").is_file()), [])
    for table in (folder / "labels.csv", folder / "val_annotations.txt"):  # the second is Tiny-ImageNet's
        if table.is_file():
            return _labelled(folder, name, table, names, left)
    folders = _class_folders(folder)
    spoken = class_names(folders, str(folder))
    wanted = {*names, *class_names(list(asked), "classes")}
    for class_folder, class_name in zip(folders, spoken):
        if names and class_name not in names:
            raise ValueError(f"The folder {class_folder!r} in {str(folder)!r} is not a class of its classes.txt.")
        if not wanted and not _pictures(folder / class_folder, held := LeftOut()):
            inside = ", ".join(f"{why}: {count:,}" for why, (count, _) in held.items()) or "it is empty"
            what = f"The folder {class_folder!r} in {str(folder)!r} has no pictures ({inside})"
            raise ValueError(f"{what}: remove it, or name the classes that you want.")
    label_of = {f: (names or spoken).index(c) for f, c in zip(folders, spoken)}
    return class_folders(folder, label_of, left, name=name, class_names=names or spoken)


def class_folders(
    folder: Path, label_of: Mapping[str, int], left: LeftOut | None = None, *, border: int = 0, **attributes
) -> Dataset:
    """A folder with a sub-folder a class, in the order of `label_of`; ids are paths in it, and no file is opened.

    Class folders may be missing: the list of classes stays whole, so that accuracy stays that of a choice among all.
    """
    samples, left = [], LeftOut() if left is None else left
    for class_folder, label in label_of.items():
        if (folder / class_folder).is_symlink():
            left.add(LINKS, class_folder)
        for relative, path in _images(folder / class_folder, class_folder, left, (_identity(folder),)):
            samples.append(Sample(relative, label, partial(open_file, path, border), (path, 0, -1)))
    _leave(folder, label_of, "folders that are no classes", left)
    if not samples:
        raise ValueError(f"The folder {str(folder)!r} holds no images: {EXPECTED}.")
    return made(samples, left, content=f"border {border}" if border else "", **attributes)


def any_pictures(folder: Path) -> Dataset:
    """Every picture below a folder, in whatever folders: the one that it lies in is its class, if that names something.

    For pictures that are to show none of the answers: their archives hold folders a class, below others or not, or all
    pictures in one folder `images`, which is of one class then, called as the whole.
    """
    left, name = LeftOut(), readable(folder.resolve().name)
    found = [(*pair, Path(pair[0]).parent.name) for pair in _images(folder, ".", left)]
    if not found:
        raise ValueError(f"The folder {str(folder)!r} holds no images.")
    called = {f: name if f.lower() in {"", *NO_CLASS} or SPLIT.fullmatch(f) else f for f in {f for *_, f in found}}
    names = sorted(set(called.values()))
    samples = [Sample(i, names.index(called[f]), partial(open_file, path), (path, 0, -1)) for i, path, f in found]
    return made(samples, left, name=name, class_names=class_names(names, str(folder)))


def known_folders(folder: Path, known: Iterable[str], what: str) -> None:
    """Raise a ValueError unless every sub-folder is one of the classes that the data set is known to have."""
    if new := sorted(set(_folders(folder)).difference(known)):
        raise ValueError(f"The folder {new[0]!r} in {str(folder)!r} is not one of {what}.")


def splits(folder: Path) -> dict[str, str]:
    """What the folders of splits in a folder are, `train`, `validation` or `test`; none where folders are classes.

    Raises: ValueError where some look like splits and others like classes.
    """
    if not (named := _named(folder)):
        return {}
    rest = [name for name in _folders(folder) if name not in named and name.lower() not in NO_CLASS]
    listed = [name for name in named if any((folder / name / used).is_file() for used in USED)]
    deep = [n for n in named if n in listed or any(_pictures(folder / n / f) for f in _folders(folder / n))]
    others = [name for name in rest if _pictures(folder / name)]
    if deep and (len(named) > 1 or not others):
        return named
    if not deep and others and list(named.values()) == ["train"]:
        return {}  # it is a railway train
    first = f"{str(folder)!r} has {next(iter(deep or named))!r}, the name of a split, "
    beside = f"beside folders such as {others[0]!r}" if others else "without folders of classes in it"
    raise ValueError(f"{first}{beside}: {EXPECTED}.")


def split_folder(folder: Path, split: str) -> Path:
    """The folder of a split; `validation` is whatever its authors call the images to evaluate on."""
    if not (named := _named(folder)):
        raise ValueError(f"{str(folder)!r} has no folder of a split, expected are test, train, val, validation.")
    meant = SPLIT.fullmatch(split)
    found = [split] if split in named else [name for name, kind in named.items() if meant and kind == meant.lastgroup]
    if split == "validation" and not found:
        found = [name for name, kind in named.items() if kind == "test"]
    if len(found) > 1:
        raise ValueError(f"split is {split!r}, which may be {' or '.join(map(repr, found))} in {str(folder)!r}.")
    one_of("split", split, [split] if found else named)
    return folder / found[0]


def _named(folder: Path) -> dict[str, str]:
    """Folders called like a split, and which it is."""
    return {name: found.lastgroup for name in _folders(folder) if (found := SPLIT.fullmatch(name))}


def readable(name: str) -> str:
    """A file's name as text, also where it is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _class_folders(folder: Path) -> list[str]:
    """The folders of a folder, if they are classes."""
    folders = _folders(folder)
    for name in folders:
        inner = folder / name
        deeper = [f for f in _folders(inner) if _pictures(inner / f)]
        alone = len(folders) == 1 and not _pictures(inner, deep=False)
        if deeper and (alone or splits(inner)):
            raise ValueError(f"{str(folder)!r} holds folders of pictures in its folder {name!r}: give {str(inner)!r}.")
        if name.lower() in NO_CLASS and _pictures(inner):
            where = f"give {str(inner)!r}" if deeper else EXPECTED
            raise ValueError(f"{str(folder)!r} holds pictures in {name!r}, which is no class: {where}.")
    if not any(_pictures(folder / name) for name in folders) and _pictures(folder, deep=False):
        raise ValueError(f"{str(folder)!r} holds pictures and no folders of classes: {EXPECTED}.")
    to_nothing = [e.name for e in _entries(folder) if _kind(e) == DANGLING and not os.path.splitext(e.name)[1]]
    return sorted([name for name in folders if name.lower() not in NO_CLASS] + to_nothing)


def _labelled(folder: Path, name: str, table: Path, names: Sequence[str], left: LeftOut) -> Dataset:
    """A folder with `labels.csv`: columns `file` and `label`, a class name or an index into `classes.txt`.

    Or with Tiny-ImageNet's `val_annotations.txt`: file, WordNet id and a box in a line.
    """
    if table.suffix == ".csv":
        listed = [(number, *row) for number, row in read_table(table, "file", "label")]
    else:
        listed = [(number, *f"images/{line}\t".split("\t")[:2]) for number, line in read_lines(table)]
    if not listed:
        raise ValueError(f"{str(table)!r} has no rows.")
    for number, file, label in listed:
        if not file or not label:
            raise ValueError(f"{str(table)!r} line {number} has no {'class' if file else 'file'}.")
    by_index = all(index(label) is not None for _, _, label in listed)
    if by_index and not names:
        raise ValueError(f"{str(table)!r} gives classes by index, and classes.txt beside it does not name them.")
    given = sorted({label for _, _, label in listed})
    spoken = {} if by_index else dict(zip(given, class_names(given, str(table))))
    names = names or list(spoken.values())
    label_of = {k if by_index else c: k for k, c in enumerate(names)}
    samples: dict[str, Sample] = {}
    for number, file, label in listed:
        relative, path = normpath(file), str(folder / file)
        key = index(label) if by_index else spoken[label]
        if key not in label_of:
            raise ValueError(f"{str(table)!r} gives {file!r} the class {label!r}, which classes.txt does not have.")
        if relative in samples:
            raise ValueError(f"{str(table)!r} lists {file!r} twice.")
        if not os.path.isfile(path):
            raise ValueError(f"{str(table)!r} lists {file!r} (line {number}), which is not in the folder.")
        samples[relative] = Sample(relative, label_of[key], partial(open_file, path), (path, 0, -1))
    for relative, _ in _images(folder, ".", left):
        if relative not in samples:
            left.add(f"pictures that {table.name} does not list", relative)
    return made(list(samples.values()), left, name=name, class_names=names)


def made(samples: list[Sample], left: LeftOut, **attributes) -> Dataset:
    """A data set of what was found, with what was not taken."""
    if len(ids := {sample.sample_id for sample in samples}) < len(samples):
        raise ValueError(f"{attributes['name']} has {len(samples) - len(ids)} pictures of the same name.")
    links, _ = left.pop(LINKS, (0, ""))
    used = {sample.label for sample in samples}
    for label, class_name in enumerate(attributes["class_names"]):
        if label not in used:
            left.add("classes without pictures, which stay possible answers", class_name)
    return Dataset(samples=samples, left_out=left, links=links, **attributes)


def _leave(folder: Path, taking_part: Container[str], what: str, left: LeftOut) -> None:
    """Count what lies in a folder beside what takes part; `what` its folders are."""
    for entry in _entries(folder):
        if entry.name not in taking_part:
            kind = _kind(entry)
            found = {"folder": what, "picture": "pictures outside of a class folder"}.get(kind, kind)
            left.add(found, readable(entry.name))


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _kind(entry) == "folder"]


def _pictures(folder: Path, left: LeftOut | None = None, *, deep: bool = True) -> bool:
    """Whether there are pictures in a folder, or below it."""
    if not deep:
        return any(_kind(entry) == "picture" for entry in _entries(folder))
    return next(_images(folder, ".", LeftOut() if left is None else left), None) is not None


def _images(folder: Path | str, relative: str, left: LeftOut, above: tuple = ()) -> Iterator[tuple[str, str]]:
    """Path in the data set and path on disk of every picture below a folder, in order; counts the rest in `left`."""
    if not os.path.isdir(folder):
        return left.add(DANGLING, readable(relative)) if os.path.islink(folder) else None
    if (here := _identity(folder)) in above:
        raise ValueError(f"The link {str(folder)!r} leads to a folder that holds it, so there is no end: remove it.")
    for entry in _entries(folder):
        inner, kind = normpath(f"{relative}/{entry.name}"), _kind(entry)
        if kind == "folder":
            if entry.is_symlink():
                left.add(LINKS, readable(inner))
            yield from _images(entry.path, inner, left, (*above, here))
        elif kind == "picture":
            yield readable(inner), entry.path
        else:
            left.add(kind, readable(inner))


def _entries(folder: Path | str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if e.name not in USED), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"The folder {str(folder)!r} cannot be read: {error.strerror}.") from error


def _kind(entry: os.DirEntry) -> str:
    """`folder`, `picture`, or why it does not take part."""
    if entry.name.startswith(".") or entry.name == "__MACOSX":
        return HIDDEN
    try:
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return DANGLING if entry.is_symlink() else "neither files nor folders"
    except OSError:  # a link to itself
        return DANGLING
    extension = os.path.splitext(entry.name)[1].lower()
    return "picture" if extension in EXTENSIONS else f"files of type {readable(extension) or '(none)'}"


def _identity(folder: Path | str) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino
