"""Pictures as users have them, made what a model's transform expects: upright RGB of 8 bits a channel."""

import numpy as np
from PIL import Image, ImageOps


GREYS_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes of one channel with more than 8 bits


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode a picture: turned as its EXIF orientation asks, the first frame, 16 bits scaled to 8, then RGB.

    Pillow alone clips 16-bit grey levels at 255, which makes most of them white. Transparency is dropped as
    open_clip and torchvision drop it: the colours below it show.

    Examples:
        >>> upright_rgb(Image.new("I;16", (1, 1), 32896)).getpixel((0, 0))
        (128, 128, 128)

    Raises:
        OSError: If the file is truncated.
        ValueError: If its pixels have no defined range.
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a defined range")
    if image.mode in GREYS_16:
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    return image.convert("RGB")


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its grey levels run from {low} to {high}, allowed are 0 to 65535")
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def reason(error: Exception) -> str:
    """Why a picture could not be decoded, on one line."""
    text = " ".join(str(error).split())
    return "not an image" if "cannot identify" in text else text or type(error).__name__
