"""Text on the image, with its two controls."""

import hashlib
import string
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from zsr_utils.conditions._geometry import WHITE, View, centred, mask


OVERLAYS = ("text_semantic", "text_random", "text_empty")
RED = (255, 0, 0)
SMALLEST = 6  # font size in pixels below which letters have no shape
CHARACTERS = string.ascii_uppercase + string.digits


def overlay(
    image: Image.Image, sample_id: str, words: Sequence[str], *,
    kind: str, number: int, phrase: str, text_height: float | None,
) -> View:  # fmt: skip
    if isinstance(words, str) or len(words) <= number:
        raise ValueError(f"words is {words!r}, allowed for {kind} 'word {number + 1}' are {number + 1} or more words.")
    text = phrase.replace("{}", words[number])
    if not (text.strip() and text.isascii() and text.isprintable()):  # the font has little else
        raise ValueError(f"text is {text!r}, allowed are printable ASCII characters.")
    size = max(14, image.height // 32) if text_height is None else max(SMALLEST, round(text_height * image.height))
    font, box, width = _fitting(text, size, 4 if text_height is None else None, image.size)
    if kind == "text_random":
        text = _random_text(f"{sample_id}\0{number}", width, font)
    if kind != "text_empty":
        (left, top), (width, height) = _extent(font, text)
        corner = (box.width - width) // 2 - left, (box.height - height) // 2 - top
        ImageDraw.Draw(box).text(corner, text, RED, font)  # on the box alone, so that no letter leaves it
    where = centred(box.size, image.size)
    image.paste(box, where)
    content = ImageChops.invert(mask(image.size, where))
    return View(image, content, content.copy())


def _fitting(text: str, size: int, pad: int | None, allowed: tuple[int, int]) -> tuple:
    """The largest font up to a size whose box fits the image, the empty box, and the width of the text."""
    for smaller in range(size, SMALLEST - 1, -1):
        font, around = _font(smaller), max(1, round(smaller / 4)) if pad is None else pad
        width, height = (side + 2 * around for side in _extent(font, text)[1])
        if width <= allowed[0] and height <= allowed[1]:
            return font, Image.new("RGB", (width, height), WHITE), width - 2 * around
    needs = f"a box of {width} x {height} px in the smallest letters"
    raise ValueError(f"text {text!r} needs {needs}, allowed is that of the image, {allowed[0]} x {allowed[1]}.")


def _random_text(seed: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """6 to 12 characters, as many of them as fit into the width, at least one."""
    rng = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    text = "".join(rng.choice(list(CHARACTERS), rng.integers(6, 13)))
    while len(text) > 1 and _extent(font, text)[1][0] > width:
        text = text[:-1]
    return text


def _extent(font: ImageFont.FreeTypeFont, text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a text begins (left, top), and its width, with the room after its last letter, and height."""
    left, top, right, bottom = map(round, font.getbbox(text))
    return (left, top), (right - left, bottom - top)


@lru_cache(maxsize=128)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
