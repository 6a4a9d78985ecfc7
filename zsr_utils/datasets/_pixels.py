"""Decoded pictures kept on disk at a model's size, so that a second chapter decodes nothing."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from zsr_utils._cache import cache_folder, code, digest, write_whole


def grey_levels(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, if that is exact; as they are, if they lie between two grey levels.

    Examples:
        >>> grey_levels(torch.tensor([0.0, 1 / 255])), grey_levels(torch.tensor([0.5]))
        (tensor([0, 1], dtype=torch.uint8), tensor([0.5000]))
    """
    levels = (pixels * 255).round().to(torch.uint8)
    return levels if torch.equal(as_pixels(levels), pixels) else pixels


def as_pixels(levels: Tensor) -> Tensor:
    """Grey levels as pixels in [0, 1]; pixels as they are."""
    return levels.float() / 255 if levels.dtype == torch.uint8 else levels


def stacked(levels: Sequence[Tensor]) -> Tensor:
    """Pixels (N, 3, H, W) of several pictures; grey levels are stacked before they are divided, which is faster."""
    alike = len({picture.dtype for picture in levels}) == 1
    return as_pixels(torch.stack(levels if alike else [as_pixels(picture) for picture in levels]))


class PixelStore:
    """Pictures behind one transform, a file of uint8 each, by the digest of what they were made of; or none is kept."""

    def __init__(self, preprocess: Callable):
        key, self._folder = getattr(preprocess, "key", None), None  # a transform without a key is not known again
        if key and os.environ.get("ZSR_PIXELS") != "0":
            self._folder = cache_folder() / "pixels" / digest(key, code("datasets/_decode"), PIL.__version__)
            self._shape = 3, preprocess.size, preprocess.size

    @property
    def keeps(self) -> bool:
        """Whether pictures are kept at all."""
        return self._folder is not None

    def path(self, mark: bytes) -> Path:
        return self._folder / mark[:1].hex() / mark.hex()

    def holds(self, mark: bytes) -> bool:
        return self.keeps and self.path(mark).is_file()

    def read(self, mark: bytes) -> Tensor:
        """The grey levels (3, size, size), uint8, of a picture that it holds."""
        return torch.from_numpy(np.fromfile(self.path(mark), np.uint8).reshape(self._shape))

    def write(self, mark: bytes, levels: Tensor) -> None:
        """Keep the grey levels of a picture; pixels between two grey levels are not kept."""
        if not self.keeps or levels.dtype != torch.uint8:
            return
        try:
            write_whole(self.path(mark), lambda path: levels.numpy().tofile(path))
        except OSError as error:
            failed = f"decoded pictures cannot be kept in {str(self._folder)!r} ({error.strerror or error})"
            way_out = "make room, set ZSR_CACHE to another folder, or ZSR_PIXELS=0 to keep none"
            raise OSError(error.errno, f"{failed}: {way_out}") from error
