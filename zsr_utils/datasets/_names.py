"""Lists and class names as users have them: texts in their encodings, names cleaned, unique and in words."""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path


UTF_16 = (b"\xff\xfe", b"\xfe\xff")
WNID = re.compile(r"n\d{8}")
INVISIBLE = dict.fromkeys([0xFEFF, 0x200B, *range(32), *range(127, 160)], " ")
A_WORD = re.compile(r"[^\W\d_]{2,}|[^\W\d_\u0000-\u024f]")  # two letters, or a sign of a script whose words are short
AN_ID = re.compile(r"(?:class|label|category|group|folder|id)\W*\w?\d+|[a-z]{1,3}\W*\d{4,}|(?=.*\d)[0-9a-f-]{8,}", re.I)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Lines of a text that are not blank, without the spaces around them, and their numbers.

    UTF-8, or UTF-16 with its mark: what another encoding says would be guessed.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith(UTF_16) else "utf-8-sig"
    try:
        text, sound = content.decode(encoding), True
    except UnicodeDecodeError as error:
        text, sound = content[: error.start].decode(encoding, "ignore"), False
    sound, text = sound and "\0" not in text, text.partition("\0")[0]  # as in UTF-16 without its mark
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not sound:
        raise ValueError(f"{str(path)!r} is not in UTF-8 (line {len(lines)}, after {lines[-1][-40:]!r}): save it so.")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def read_names(path: Path) -> list[str]:
    """The class names in a text file, one a line; a blank line between them would give the ones below other indices."""
    lines = read_lines(path)
    for expected, (number, _) in enumerate(lines, 1):
        if number != expected:
            raise ValueError(f"{str(path)!r} line {expected} is blank, allowed is a class name a line.")
    return class_names([line for _, line in lines], str(path))


def read_table(path: Path, *columns: str) -> list[tuple[int, tuple[str, ...]]]:
    """Some columns of a CSV file with a header, by line."""
    rows = []
    for number, line in read_lines(path):
        try:
            rows.append((number, [field.strip() for field in next(csv.reader([line], strict=True))]))
        except csv.Error as error:
            raise ValueError(f"{str(path)!r} line {number} is no row with commas ({error}): {line!r}.") from error
    header = rows[0][1] if rows else []
    for column in columns:
        if column not in header:
            needed = " and ".join(map(repr, columns))
            raise ValueError(f"{str(path)!r} has no column {column!r}, needed are {needed}.")
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise ValueError(f"{str(path)!r} line {number} has {len(row)} fields, its header {len(header)}: {row!r}.")
    return [(number, tuple(row[header.index(column)] for column in columns)) for number, row in rows[1:]]


def index(text: str) -> int | None:
    """A class index as text, also as spreadsheets save it (`3.0`), or None.

    Examples:
        >>> index("3"), index("3.0"), index("²"), index("cat")
        (3, 3, None, None)
    """
    return int(float(text)) if re.fullmatch(r"[0-9]{1,9}(\.0+)?", text) else None


def class_names(raw: Sequence[str], where: str) -> list[str]:
    """Names that a text encoder can answer by: WordNet ids are translated, `_` is a space, and no two are one.

    Examples:
        >>> class_names(["golden_retriever", "n02084071", " mug "], "a list")
        ['golden retriever', 'dog', 'mug']

    Raises: ValueError for a name without a letter or digit, and for two names that are one.
    """
    names = [" ".join(unicodedata.normalize("NFC", r).translate(INVISIBLE).replace("_", " ").split()) for r in raw]
    words = wordnet_words() if any(map(WNID.fullmatch, names)) else {}
    short = [words[name].split(", ")[0] if name in words else name for name in names]
    often = Counter(map(str.casefold, short))
    names = [words[n] if n in words and often[s.casefold()] > 1 else s for n, s in zip(names, short)]
    first: dict[str, str] = {}
    for given, name in zip(raw, names):
        if not any(map(str.isalnum, name)) or any("\ud800" <= sign <= "\udfff" for sign in name):
            raise ValueError(f"{where!r} has the class {given!r}, allowed are names with letters or digits in UTF-8.")
        if (one := name.casefold()) in first and one not in _twice():
            raise ValueError(f"{where!r} names the class {name!r} twice: as {first[one]!r} and as {given!r}.")
        first.setdefault(one, given)
    return names


def no_words(names: Sequence[str]) -> str:
    """What is to be said of names that are numbers or ids, or that stand for two classes; empty if all is well.

    That two of ImageNet's own names stand for two classes each is part of every published accuracy, and not said.
    """
    said = []
    if odd := [name for name in names if not A_WORD.search(name) or AN_ID.fullmatch(name)]:
        few = f"{len(odd)} of {len(names)} class names are numbers or ids and no words, such as {odd[0]!r}"
        said.append(f"{few}: a model that answers by name can hardly know them")
    double = [name for name, count in Counter(map(str.casefold, names)).items() if count > 1]
    if double and list(names) != list(imagenet_classes().values()):
        said.append(f"two classes each are called {', '.join(double)}, and the first gets the answers of both")
    return "; ".join(said)


@lru_cache(maxsize=1)
def wordnet_words() -> dict[str, str]:
    """Names of WordNet ids, as common for ImageNet's 1,000 and as timm lists those of its 22,000."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet22k")
    return dict(zip(info.label_names(), info.label_descriptions())) | imagenet_classes()


@lru_cache(maxsize=8)
def imagenet_classes(name: str = "imagenet") -> dict[str, str]:
    """Class names by WordNet id, in label order: 1,000, or the 200 of `imagenet-a` and of `imagenet-r`.

    Examples:
        >>> list(imagenet_classes().items())[0]
        ('n01440764', 'tench')

    Source: Ids and the lists of 200 are timm's; names are those of Radford et al. (2021) as open_clip ships them.
    """
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    names = dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))
    if name not in ("imagenet-a", "imagenet-r"):
        return names
    listed = files("timm.data").joinpath("_info", f"{name.replace('-', '_')}_synsets.txt").read_text().split()
    return {wnid: names[wnid] for wnid in listed}


def _twice() -> set[str]:
    """Names that ImageNet's common list gives two classes, and so do the data sets made with it."""
    return {name.casefold() for name, count in Counter(imagenet_classes().values()).items() if count > 1}
