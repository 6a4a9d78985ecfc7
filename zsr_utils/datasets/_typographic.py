"""Words on pictures: cards, copies all over, and the typographic sets that are drawn or taken with a camera."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from zsr_utils._text import one_of
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._decode import open_file
from zsr_utils.datasets._names import imagenet_classes


Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
SMALLEST, TRIES = 6, 500  # font size below which letters have no shape; places tried for all copies
# Copies; font size as a share of the 224 px of a picture; in pixels, for capitals as high as OpenCV's HERSHEY_DUPLEX at
# scale 0.8, and 20 pt at 150 dpi; and the size of CIFAR's pictures in the authors' plot.
FORMS, SIZE = {"imagenet-t": (8, 1 / 16, 24, None), "cifar10-t": (4, 1 / 13, 42, 554)}, 224


def random_of(sample_id: str, seed: int, purpose: str) -> np.random.Generator:
    """A generator of one sample's own, whatever else is drawn."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed}\0{purpose}\0{sample_id}".encode()).digest()))


def one_words(class_names: Sequence[str]) -> dict[int, str]:
    """What is written for each class that has a name of one word, by label.

    Of ImageNet these are the 309 of Wang et al. (2024), whose WordNet synset has neither a comma nor a space; it need
    not be the name that prompts use ("cock", "rooster").
    """
    if list(class_names) == list(imagenet_classes().values()):
        from timm.data import ImageNetInfo

        class_names = ImageNetInfo().label_descriptions()
    return {label: name for label, name in enumerate(class_names) if "," not in name and " " not in name}


def card(
    picture: Image.Image, word: str, *, height: float = 0.2, width: float = 0.6, place: tuple[float, float] = (0.5, 0.8)
) -> Image.Image:  # fmt: skip
    """A picture with a white card, whose size and middle are shares of the picture's whatever it says; "" is blank."""
    w, h = max(1, round(width * picture.width)), max(1, round(height * picture.height))
    left, top = (round(at * side - own / 2) for at, side, own in zip(place, picture.size, (w, h)))
    shown = picture.convert("RGB")
    shown.paste("white", (left, top, left + w, top + h))
    if word:
        ink = printed(word, 0.8 * h, 0.92 * w)
        shown.paste("black", (left + (w - ink.width) // 2, top + (h - ink.height) // 2), ink)
    return shown


def printed(word: str, size: float, width: float) -> Image.Image:
    """The ink of a word, mode L, in the largest letters up to a font size that a width holds, both in pixels.

    Raises: ValueError for a word that is too long in the smallest letters, or has a letter that the font lacks.
    """
    for sign in word:
        if bytes(_font(32).getmask(sign)) == bytes(_font(32).getmask("\uffff")):
            raise ValueError(f"word {word!r} has {sign!r}, which Pillow's font lacks: allowed is printable ASCII.")
    for smaller in range(max(SMALLEST, round(size)), SMALLEST - 1, -1):
        left, top, right, bottom = map(round, _font(smaller).getbbox(word))
        if right - left <= width:
            ink = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(ink).text((-left, -top), word, 255, _font(smaller))
            return ink
    raise ValueError(f"word {word!r} is {right - left} px long in the smallest letters, allowed are {int(width)} px.")


def scattered(
    picture: Image.Image, word: str, rng: np.random.Generator, *, copies: int, size: float, corners: bool = False
) -> tuple[Image.Image, list[Box]]:  # fmt: skip
    """A picture with white copies of a word at random, font size in pixels, and boxes of those that found a place.

    With `corners`, boxes may cross so long as no corner of one lies in an earlier one, as in the authors' code.
    """
    ink, shown, boxes = printed(word, size, np.inf), picture.convert("RGB"), []
    room = picture.width - ink.width, picture.height - ink.height
    for _ in range(TRIES if min(room) > 0 else 0):
        left, top = map(int, rng.integers(room))
        box = left, top, left + ink.width, top + ink.height
        if len(boxes) < copies and not any(_meet(box, other, corners) for other in boxes):
            boxes.append(box)
            shown.paste("white", box[:2], ink)
    return shown, boxes


def typographic(images: Dataset, folder: Path, form: str, *, paper: bool = False, seed: int = 0) -> pd.DataFrame:
    """Build ImageNet-T or CIFAR-10-T of any data set: pictures, `labels.csv` and `classes.txt`, which load as a folder.

    The corrected form draws on the picture after resize and centre crop to 224 px, so that no copy is cut away, keeps
    boxes disjoint and saves without loss. The paper-compatible one keeps defects of the authors' code: it draws before
    the crop, lets boxes cross, stops its choice at the first word that does not fit, and saves as JPEG.

    Returns: A row a picture: `sample_id`, `label`, `wrong` (class that is written), `word`, `copies` that fit and
        `file`, which is empty where some did not: such a picture is left out, as in the paper.

    Source: Wang et al. (2024), scripts of typographic_attack.
    """
    one_of("form", form, FORMS)
    (copies, share, pixels, side), words, rows = FORMS[form], one_words(images.class_names), []
    if len(words) < 2:
        raise ValueError(f"{images.name} has {len(words)} class names of one word, needed are 2 or more.")
    folder.mkdir(parents=True, exist_ok=True)
    for sample_id, picture, label in images:
        rng, size = random_of(sample_id, seed, form), pixels if paper else share * SIZE
        if not paper or side:
            picture = ImageOps.fit(picture, (side if paper else SIZE,) * 2, Image.Resampling.BICUBIC)
        tried = rng.choice([k for k in words if k != label], 100).tolist()
        wrong = next((k for k in tried if paper and _font(pixels).getlength(words[k]) >= picture.width), tried[0])
        shown, boxes = scattered(picture, words[wrong], rng, copies=copies, size=size, corners=paper)
        file = f"{len(rows):06d}{'.jpg' if paper else '.png'}" if len(boxes) == copies else ""
        if file:
            shown.save(folder / file)
        rows.append((sample_id, label, wrong, words[wrong], len(boxes), file))
    table = pd.DataFrame(rows, columns=["sample_id", "label", "wrong", "word", "copies", "file"])
    table[table.file != ""].to_csv(folder / "labels.csv", index=False)
    (folder / "classes.txt").write_text("\n".join(images.class_names) + "\n", encoding="utf-8")
    return table


def scam(folder: Path | str) -> tuple[dict[str, Dataset], dict[str, str]]:
    """SCAM: photographs of things without a word (`NoSCAM`), beside one by hand and beside a drawn one; and the words.

    Classes are all things and words; ids are the same in every variant, and the words are by id. The folder is the
    unpacked `images.zip` of `BLISS-e-V/SCAM` on the Hugging Face hub, which has `metadata.jsonl`.

    Source: Westerhoff et al. (2025).
    """
    table = next(iter(sorted(Path(folder).rglob("metadata.jsonl"))), None)
    listed = [json.loads(line) for line in table.read_text("utf-8").splitlines()] if table else []
    names = sorted({row[name] for row in listed for name in ("object_label", "attack_word")})
    samples, words = {"NoSCAM": [], "SCAM": [], "SynthSCAM": []}, {}
    for row in listed:
        sample_id, path = row["id"].removeprefix(f"{row['type']}_"), str(table.parent / row["file_name"])
        opened = partial(open_file, path), (path, 0, -1)
        samples[row["type"]].append(Sample(sample_id, names.index(row["object_label"]), *opened))
        words[sample_id] = row["attack_word"]
    if missing := [variant for variant, found in samples.items() if len(found) != len(words) or not found]:
        few = f"{len(samples[missing[0]])} pictures of {missing[0]} for {len(words)} things"
        raise ValueError(f"{str(folder)!r} lists {few}, allowed is one each.")
    return {variant: Dataset(variant, names, found) for variant, found in samples.items()}, words


def _meet(box: Box, other: Box, corners: bool) -> bool:
    """Whether two boxes overlap, or one has a corner in the other."""
    if corners:
        return any(other[0] <= x <= other[2] and other[1] <= y <= other[3] for x in box[::2] for y in box[1::2])
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


@lru_cache(maxsize=128)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
