"""Words on pictures: cards, copies all over, and the typographic sets that are built or taken with a camera."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from zsr_utils._text import one_of
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._decode import open_file
from zsr_utils.datasets._names import imagenet_classes


Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
SMALLEST = 6  # font size in pixels below which letters have no shape
TRIES = 500  # places that are tried for all copies of a word
VARIANTS = ("NoSCAM", "SCAM", "SynthSCAM")
FILE_NAME = re.compile(r"label=(.+)_text=(.+)")


@dataclass(frozen=True)
class Form:
    """How one of the sets of Wang et al. is drawn; lengths in pixels are those of the authors' code."""

    copies: int
    letters: float  # font size as a share of the shorter side, in the corrected form
    paper_letters: int  # font size in pixels, in the paper-compatible one


# Capitals of OpenCV's HERSHEY_DUPLEX at scale 0.8 are 17 px high, as at 24 px of this font; 20 pt at 150 dpi are 42 px.
FORMS = {"imagenet-t": Form(8, 1 / 16, 24), "cifar10-t": Form(4, 1 / 13, 42)}
SIZE = 224  # of a picture in the corrected form
CANVAS, AXES = (960, 720), (203, 86, 554)  # of the authors' plot of a CIFAR picture: left, top and side of the picture


def random_of(sample_id: str, seed: int, purpose: str = "") -> np.random.Generator:
    """A generator of one sample's own, whatever else is drawn."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed}\0{purpose}\0{sample_id}".encode()).digest()))


def one_words(images: Dataset) -> dict[int, str]:
    """What is written for each class: names of one word, by label.

    Of ImageNet's 1,000 classes these are the 309 whose WordNet synset has neither a comma nor a space, and the synset's
    word is written, which need not be the name that prompts use ("cock", "rooster"). Else it is every name of one word.

    Source: Wang et al. (2024), `valid_label_set.pickle`.
    """
    if list(images.class_names) == list(imagenet_classes().values()):
        from timm.data import ImageNetInfo

        names = ImageNetInfo().label_descriptions()
    else:
        names = images.class_names
    words = {label: name for label, name in enumerate(names) if "," not in name and " " not in name}
    if len(words) < 2:
        raise ValueError(f"{images.name} has {len(words)} class names of one word, needed are 2 or more.")
    return words


def card(
    picture: Image.Image, word: str, *, height: float = 0.2, width: float = 0.6, place: tuple[float, float] = (0.5, 0.8)
) -> Image.Image:  # fmt: skip
    """A picture with a white card in front of it; its size and place do not depend on the word, "" leaves it blank.

    Args:
        height, width: Of the card, as shares of the picture's; letters fill four fifths of it, less if the word is long.
        place: Of the card's middle, as shares of the picture's width and height.
    """
    w, h = max(1, round(width * picture.width)), max(1, round(height * picture.height))
    left, top = (round(at * side - half / 2) for at, side, half in zip(place, picture.size, (w, h)))
    shown = picture.convert("RGB")
    shown.paste("white", (left, top, left + w, top + h))
    if word:
        ink = printed(word, 0.8 * h, 0.92 * w)
        shown.paste("black", (left + (w - ink.width) // 2, top + (h - ink.height) // 2), ink)
    return shown


def printed(word: str, height: float, width: float) -> Image.Image:
    """The ink of a word, mode L, in the largest letters up to a font size that a width holds, both in pixels.

    Raises: ValueError for a word that is too long in the smallest letters, or has one that the font lacks.
    """
    if lacking := [sign for sign in word if _glyph(sign) == _glyph("\uffff")]:
        raise ValueError(
            f"word {word!r} has {lacking[0]!r}, which Pillow's font lacks: allowed is what is on a US keyboard."
        )
    for size in range(max(SMALLEST, round(height)), SMALLEST - 1, -1):
        left, top, right, bottom = map(round, _font(size).getbbox(word))
        if right - left <= width:
            ink = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(ink).text((-left, -top), word, 255, _font(size))
            return ink
    raise ValueError(f"word {word!r} is {right - left} px long in the smallest letters, allowed are {int(width)} px.")


def scattered(
    picture: Image.Image, word: str, rng: np.random.Generator, *, copies: int, letters: float, corners: bool = False
) -> tuple[Image.Image, list[Box]]:  # fmt: skip
    """A picture with white copies of a word in random places, and their boxes: as many as find one, up to `copies`.

    Args:
        letters: Font size in pixels, at least 6; a word that is longer than the picture then gets no box.
        corners: Boxes may cross so long as no corner of one lies in an earlier one, as in the authors' code.
    """
    size = max(SMALLEST, round(letters))
    needed, boxes, shown = _font(size).getlength(word), [], picture.convert("RGB")
    ink = printed(word, size, max(needed + 2, 1))
    if ink.width >= picture.width or ink.height >= picture.height:
        return shown, []
    for _ in range(TRIES):
        left, top = rng.integers(picture.width - ink.width), rng.integers(picture.height - ink.height)
        box = (int(left), int(top), int(left) + ink.width, int(top) + ink.height)
        if not any(_corner_inside(box, other) if corners else _overlap(box, other) for other in boxes):
            boxes.append(box)
            shown.paste("white", box[:2], ink)
        if len(boxes) == copies:
            break
    return shown, boxes


def typographic(
    images: Dataset, folder: Path | str, *, form: str = "imagenet-t", paper: bool = False, seed: int = 0
) -> pd.DataFrame:  # fmt: skip
    """Build ImageNet-T or CIFAR-10-T of any data set: pictures, `labels.csv` and `classes.txt`, which load as a folder.

    The corrected form, the default, draws on the picture after resize and centre crop to 224 px, so that no copy is cut
    away, keeps boxes disjoint, draws every word with the same chance and saves without loss. The paper-compatible one
    keeps the defects of the authors' code but for the missing seed: it draws before the crop, lets boxes cross, takes
    the first word that is too long for the picture (which is then lost), and saves as JPEG; CIFAR's pictures are put
    into the margins of a plot, with a frame (not its ticks), where words leave the picture.

    Returns: A row a picture: `sample_id`, `label`, `wrong` (class whose name is written), `word`, `copies` that found a
        place and `file`, which is empty where these are not all: such a picture is left out, as in the paper.

    Source: Wang et al. (2024), scripts of typographic_attack.
    """
    one_of("form", form, FORMS)
    how, words, rows = FORMS[form], one_words(images), []
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    for sample_id, picture, label in images:
        rng = random_of(sample_id, seed, form)
        picture, letters = _prepared(picture, form, how, paper)
        fits = (lambda word, p=picture, size=letters: _font(size).getlength(word) < p.width) if paper else None
        wrong = _wrong(rng, list(words), label, lambda k: fits is None or fits(words[k]))
        shown, boxes = scattered(picture, words[wrong], rng, copies=how.copies, letters=letters, corners=paper)
        name = f"{len(rows):06d}{'.jpg' if paper else '.png'}" if len(boxes) == how.copies else ""
        if name:
            shown.save(folder / name)
        rows.append((sample_id, label, wrong, words[wrong], len(boxes), name))
    table = pd.DataFrame(rows, columns=["sample_id", "label", "wrong", "word", "copies", "file"])
    if not table.file.any():
        raise ValueError(f"{images.name}: no picture holds {how.copies} copies of its word, such as {rows[0][3]!r}.")
    table[table.file != ""].to_csv(folder / "labels.csv", index=False)
    (folder / "classes.txt").write_text("\n".join(images.class_names) + "\n", encoding="utf-8")
    return table


def scam(folder: Path | str) -> tuple[dict[str, Dataset], dict[str, str]]:
    """SCAM by variant (`NoSCAM`, `SCAM`, `SynthSCAM`), photographs of things beside a hand-written word, and the words.

    Classes are all things and words; the authors let a model choose between the two of a picture. Ids are those of the
    thing, the same in every variant.

    Args:
        folder: Unpacked `images.zip` of `BLISS-e-V/SCAM`, with `metadata.jsonl`; or a folder a variant, with pictures
            called `label=…_text=….png`, as those of RTA-100 are.

    Source: Westerhoff et al. (2025).
    """
    folder = Path(folder)
    table = next(
        (f / "metadata.jsonl" for f in (folder, folder / "images/train") if (f / "metadata.jsonl").is_file()), None
    )
    if table:
        listed = [json.loads(line) for line in table.read_text("utf-8").splitlines() if line.strip()]
        found = [(r["type"], r["id"].removeprefix(r["type"]), r["object_label"], r["attack_word"],
                  table.parent / r["file_name"]) for r in listed]  # fmt: skip
    else:
        paths = [p for variant in VARIANTS for p in sorted((folder / variant).glob("*.*"))]
        if odd := [p.name for p in paths if not FILE_NAME.fullmatch(p.stem)]:
            raise ValueError(f"{odd[0]!r} in {str(folder)!r} names no thing and word, expected is label=…_text=….png.")
        found = [(p.parent.name, p.stem, *FILE_NAME.fullmatch(p.stem).groups(), p) for p in paths]
    names = tuple(sorted({name for row in found for name in row[2:4]}))
    samples: dict[str, list[Sample]] = {variant: [] for variant in VARIANTS}
    for variant, sample_id, thing, _, path in found:
        samples[variant].append(
            Sample(sample_id, names.index(thing), partial(open_file, str(path)), (str(path), 0, -1))
        )
    if not all(samples.values()):
        missing = next(v for v in VARIANTS if not samples[v])
        raise ValueError(f"{str(folder)!r} has no pictures of {missing}, expected are {', '.join(VARIANTS)}.")
    return {v: Dataset(v, names, s) for v, s in samples.items()}, {row[1]: row[3] for row in found}


def _prepared(picture: Image.Image, form: str, how: Form, paper: bool) -> tuple[Image.Image, float]:
    """The picture to write on, and the font size."""
    if not paper:
        return ImageOps.fit(picture, (SIZE, SIZE), Image.Resampling.BICUBIC), how.letters * SIZE
    if form == "imagenet-t":
        return picture, how.paper_letters
    left, top, side = AXES
    canvas = Image.new("RGB", CANVAS, "white")
    canvas.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, top))
    ImageDraw.Draw(canvas).rectangle((left, top, left + side, top + side), outline="black")
    return canvas, how.paper_letters


def _wrong(rng: np.random.Generator, labels: Sequence[int], label: int, fits: Callable[[int], bool]) -> int:
    """A class that is not the true one; the first that does not fit ends the choice, as in the authors' code."""
    others = [k for k in labels if k != label]
    tried = (others[rng.integers(len(others))] for _ in range(100))
    return next((k for k in tried if not fits(k)), others[rng.integers(len(others))])


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _corner_inside(box: Box, earlier: Box) -> bool:
    return any(earlier[0] <= x <= earlier[2] and earlier[1] <= y <= earlier[3] for x in box[::2] for y in box[1::2])


@cache
def _glyph(sign: str) -> tuple:
    ink = _font(32).getmask(sign)
    return ink.size, bytes(ink)


@lru_cache(maxsize=128)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
