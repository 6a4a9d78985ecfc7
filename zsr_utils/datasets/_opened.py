"""What opens one picture: small values that can be sent to the processes that decode."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class FileImage:
    """A picture in a file, less `border` pixels on every side."""

    path: str
    border: int = 0

    def __call__(self) -> Image.Image:
        image = Image.open(self.path)
        if not self.border:
            return image
        width, height = image.size
        return image.crop((self.border, self.border, width - self.border, height - self.border))


@dataclass(frozen=True)
class BytesImage:
    """An encoded picture in memory."""

    encoded: bytes

    def __call__(self) -> Image.Image:
        return Image.open(io.BytesIO(self.encoded))


@dataclass(frozen=True)
class TarImage:
    """An encoded picture inside an uncompressed tar file: `size` bytes from `offset` on."""

    path: str
    offset: int
    size: int

    def __call__(self) -> Image.Image:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """A decoded picture in memory, (H, W, 3) uint8."""

    pixels: np.ndarray

    def __call__(self) -> Image.Image:
        return Image.fromarray(self.pixels)
