"""Translation, pad and crop, scale and rotation, and what a perturbation and its result are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image, ImageFilter, ImageOps, ImageStat


STEPS = (-4, -3, -2, -1, 1, 2, 3, 4)
STEP = {"relative": "/64", "pixels": " px"}
SCALE = 0.9
ANGLES = (-30, 30)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
MEAN = None  # fill with the mean colour of the image at hand
BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class View:
    """A perturbed image, and where it shows the original."""

    image: Image.Image  # RGB, maybe of another size than the original
    content: Image.Image  # mode L, size of `image`: 255 where it shows original content, 0 where fill or a box
    kept: Image.Image  # mode L, size of the original: 255 where the original picture is still shown in the view


@dataclass(frozen=True)
class Perturbation:
    """One way to change a picture; call it with an image. `families` makes them.

    Its severity is the instance as a number: 64ths of the shorter side or pixels, degrees, the share by which the
    picture shrinks, or the height of the letters as a share of the image's (in pixels for `units="pixels"`).
    """

    family: str  # such as `translation`
    instance: str  # such as `+4/64`; unique within the family
    severity: float
    number: int  # position within the family; text overlays write the class name of this position
    keeps_size: bool  # whether the view always has the size of the original
    change: Callable[[Image.Image, str, Sequence[str]], View] = field(repr=False, compare=False)

    def __call__(self, image: Image.Image, *, sample_id: str = "", words: Sequence[str] = ()) -> View:
        """The view of an image: `sample_id` seeds random text, `words` are class names for text overlays."""
        if not isinstance(image, Image.Image):
            raise TypeError(f"image is of type {type(image).__name__}, allowed is a PIL image.")
        if not all(image.size):
            raise ValueError(f"image has {_by(image.size)} px, allowed is 1 or more on both sides.")
        return self.change(image.convert("RGB"), sample_id, words)


def geometric(units: str) -> dict[str, list[tuple[str, float, Callable]]]:
    """Instance names, severities and functions of every family that draws no text."""
    size = 1 if units == "relative" else 4
    steps = [(f"{size * step:+d}{STEP[units]}", size * step, step) for step in STEPS]
    turns = [(f"{angle:+d}°", angle) for angle in ANGLES]
    shift, pad = partial(_translation, units=units), partial(_pad_crop, units=units)
    shrink = round(1 - SCALE, 3)
    return {
        "translation": [(name, severity, partial(shift, step=step)) for name, severity, step in steps],
        "pad_crop": [(name, severity, partial(pad, step=step, fill=BLACK)) for name, severity, step in steps],
        "scale": [(f"{SCALE}", shrink, _scale)],
        "scale_pad": [(n, shrink, partial(_scale_pad, fill=f)) for n, f in (("black", BLACK), ("white", WHITE))],
        "rotation": [(name, angle, partial(_rotation, angle=angle, fill=WHITE)) for name, angle in turns],
        "scale_restored": [(f"{SCALE}", shrink, _scale_restored)],
        "pad_crop_mean": [(name, severity, partial(pad, step=step, fill=MEAN)) for name, severity, step in steps],
        "scale_pad_mean": [("mean", shrink, partial(_scale_pad, fill=MEAN))],
        "rotation_mean": [(name, angle, partial(_rotation, angle=angle, fill=MEAN)) for name, angle in turns],
        "rotation_content": [(name, angle, partial(_rotation_content, angle=angle)) for name, angle in turns],
    }


# All functions below take (image, sample_id, words), as Perturbation calls them; geometry needs the image alone.


def _translation(image: Image.Image, *_, step: int, units: str) -> View:
    shift = _length(image, step, units)
    if abs(shift) >= image.width:
        raise ValueError(f"translation is {shift} px, allowed is less than the width of the image, {image.width} px.")
    return View(Image.fromarray(np.roll(np.asarray(image), shift, axis=1)), mask(image.size), mask(image.size))


def _pad_crop(image: Image.Image, *_, step: int, units: str, fill: tuple[int, int, int] | None) -> View:
    border = _length(image, step, units)
    whole = mask(image.size)
    if border > 0:
        return View(ImageOps.expand(image, border, _colour(fill, image)), ImageOps.expand(whole, border, 0), whole)
    if 2 * -border >= min(image.size):
        most = f"{(min(image.size) - 1) // 2} at most for an image of {_by(image.size)} px"
        raise ValueError(f"crop is {-border} px on every side, allowed is {most}.")
    content = ImageOps.crop(whole, -border)
    return View(ImageOps.crop(image, -border), content, ImageOps.expand(content, -border, 0))


def _scale(image: Image.Image, *_) -> View:
    small = image.resize([max(1, round(SCALE * side)) for side in image.size], BICUBIC)
    return View(small, mask(small.size), mask(image.size))


def _scale_restored(image: Image.Image, *_) -> View:
    return View(_scale(image).image.resize(image.size, BICUBIC), mask(image.size), mask(image.size))


def _scale_pad(image: Image.Image, *_, fill: tuple[int, int, int] | None) -> View:
    small = _scale(image).image
    canvas = Image.new("RGB", image.size, _colour(fill, image))
    box = centred(small.size, image.size)
    canvas.paste(small, box)
    return View(canvas, mask(image.size, box), mask(image.size))


def _rotation(image: Image.Image, *_, angle: float, fill: tuple[int, int, int] | None) -> View:
    turned = image.rotate(angle, BICUBIC, expand=True, fillcolor=_colour(fill, image))
    content = mask(image.size).rotate(angle, Image.Resampling.NEAREST, expand=True, fillcolor=0)
    # Half of what the outermost pixels are interpolated from lies outside the picture, and some of them are fill:
    # Pillow places the mask, not interpolated, by slightly other arithmetic.
    return View(turned, content.filter(ImageFilter.MinFilter(3)), mask(image.size))


def _rotation_content(image: Image.Image, *_, angle: float) -> View:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    (width, height), (c, s) = image.size, (abs(cos), abs(sin))
    shrink = min(width / (width * c + height * s), height / (width * s + height * c))
    size = [max(1, int(shrink * side)) for side in image.size]
    # Rotated and cut in one step, centre on centre: a cut out of the expanded canvas may be half a pixel off.
    shift = [width / 2 - cos * size[0] / 2 + sin * size[1] / 2, height / 2 - sin * size[0] / 2 - cos * size[1] / 2]
    matrix = (cos, -sin, shift[0], sin, cos, shift[1])
    turned = image.transform(size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=WHITE)
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = x - width / 2, y - height / 2
    inside = (abs(cos * x + sin * y) <= size[0] / 2) & (abs(cos * y - sin * x) <= size[1] / 2)
    return View(turned, mask(turned.size), Image.fromarray(inside.astype(np.uint8) * 255))


def mask(size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """255 inside the box (everywhere without one), 0 outside."""
    found = Image.new("L", size, 0)
    found.paste(255, box or (0, 0, *size))
    return found


def centred(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box in the middle of a canvas."""
    left, top = ((outer - inner) // 2 for inner, outer in zip(size, canvas))
    return left, top, left + size[0], top + size[1]


def _length(image: Image.Image, step: int, units: str) -> int:
    if units == "pixels":
        return 4 * step
    return int(math.copysign(max(1, int(abs(step) * min(image.size) / 64 + 0.5)), step))


def _colour(fill: tuple[int, int, int] | None, image: Image.Image) -> tuple[int, ...]:
    return tuple(round(value) for value in ImageStat.Stat(image).mean) if fill is MEAN else fill


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
