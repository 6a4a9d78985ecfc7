"""Pictures as users have them, made what a model's transform expects: upright RGB of 8 bits a channel."""

import io

import numpy as np
from PIL import Image, ImageOps


GREYS_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes of one channel with more than 8 bits


def open_file(path: str, border: int = 0) -> Image.Image:
    """A picture in a file, less `border` pixels on every side."""
    image = Image.open(path)
    width, height = image.size
    return image.crop((border, border, width - border, height - border)) if border else image


def open_bytes(encoded: bytes) -> Image.Image:
    """An encoded picture in memory."""
    return Image.open(io.BytesIO(encoded))


def open_member(path: str, offset: int, size: int) -> Image.Image:
    """An encoded picture inside an uncompressed tar file: `size` bytes from `offset` on."""
    with open(path, "rb") as file:
        file.seek(offset)
        return open_bytes(file.read(size))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode a picture: turned as its EXIF orientation asks, the first frame, 16 bits scaled to 8, then RGB.

    Pillow alone clips 16-bit grey levels at 255, which makes most of them white. Transparency is dropped as open_clip
    and torchvision drop it: the colours below it show.

    Examples:
        >>> upright_rgb(Image.new("I;16", (1, 1), 32896)).getpixel((0, 0))
        (128, 128, 128)
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a defined range")
    if image.mode in GREYS_16:
        levels = np.asarray(image)
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or high > 65535:
            raise ValueError(f"its grey levels run from {low} to {high}, allowed are 0 to 65535")
        image = Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """Why a picture could not be decoded, on one line."""
    text = " ".join(str(error).split())
    return "not an image" if "cannot identify" in text else text or type(error).__name__
