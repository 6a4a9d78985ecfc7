"""Decoded pictures kept on disk at a model's size, so that a second chapter decodes nothing."""

import os
import sqlite3
from collections.abc import Callable, Sequence

import PIL
import torch
from torch import Tensor

from zsr_utils._cache import cache_folder, code, digest


SETTINGS = (  # what is lost when the power fails is decoded again
    "PRAGMA page_size = 16384", "PRAGMA journal_mode = TRUNCATE", "PRAGMA synchronous = OFF",
    "CREATE TABLE IF NOT EXISTS pictures (mark BLOB PRIMARY KEY, levels BLOB)",
)  # fmt: skip


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
    """Pictures behind one transform in one SQLite file, by the digest of what they were made of; or none is kept.

    A picture is there whole or not at all, whenever a run is killed.
    """

    def __init__(self, preprocess: Callable):
        key, self._database = getattr(preprocess, "key", None), None
        self.keeps = bool(key) and os.environ.get("ZSR_PIXELS") != "0"  # without a key it would not be known again
        if self.keeps:
            self._shape = 3, preprocess.size, preprocess.size
            self._file = cache_folder() / "pixels" / digest(key, code("datasets/_decode"), PIL.__version__)

    def holds(self, mark: bytes) -> bool:
        """Whether it has the picture of this digest."""
        return self.keeps and self._do("SELECT 1 FROM pictures WHERE mark = ?", mark) is not None

    def read(self, mark: bytes) -> Tensor:
        """The grey levels (3, size, size), uint8, of a picture that it holds."""
        (levels,) = self._do("SELECT levels FROM pictures WHERE mark = ?", mark)
        return torch.frombuffer(bytearray(levels), dtype=torch.uint8).view(self._shape)

    def write(self, mark: bytes, levels: Tensor) -> None:
        """Keep the grey levels of a picture; pixels between two grey levels are not kept."""
        if self.keeps and levels.dtype == torch.uint8:
            self._do("INSERT OR REPLACE INTO pictures VALUES (?, ?)", mark, levels.numpy().tobytes())

    def _do(self, command: str, *values: bytes) -> tuple | None:
        try:
            if not self._database:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(self._file, timeout=600, isolation_level=None)
                for setting in SETTINGS:
                    self._database.execute(setting)
            return self._database.execute(command, values).fetchone()
        except (OSError, sqlite3.Error) as error:
            failed = f"decoded pictures cannot be kept in {str(self._file)!r} ({error})"
            way_out = "make room or remove it, set ZSR_CACHE to another folder, or ZSR_PIXELS=0 to keep none"
            raise OSError(f"{failed}: {way_out}") from error
