"""Decoded pictures kept on disk at a model's size, so that a second chapter decodes nothing."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import PIL
import torch
from torch import Tensor

from zsr_utils._cache import cache_folder, code, digest
from zsr_utils.datasets._digests import SIZE


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
    """Pictures of one data set behind one transform: a slot of uint8 for every sample, filled as they come.

    A slot counts once its mark, the digest of its picture, is written, after its pixels: a killed run leaves no half
    picture, and another picture is never taken for it. Files are sparse, and without a folder none is kept.
    """

    def __init__(self, folder: Path | None, slots: int, size: int):
        self._folder, self._shape, self._marks = folder, (3, size, size), bytearray(slots * SIZE)
        self._lengths = {"pixels.u8": slots * 3 * size * size, "marks": slots * SIZE}
        self._files = ()
        if folder and (folder / "marks").is_file():
            self._open()

    @property
    def keeps(self) -> bool:
        """Whether pictures are kept at all."""
        return self._folder is not None

    def holds(self, slot: int, mark: bytes) -> bool:
        """Whether a slot has the picture of this digest."""
        return self.keeps and self._marks[slot * SIZE : (slot + 1) * SIZE] == mark

    def read(self, slot: int) -> Tensor:
        """The grey levels (3, size, size), uint8, of a filled slot."""
        levels = torch.empty(self._shape, dtype=torch.uint8)
        self._files[0].seek(slot * levels.numel())
        self._files[0].readinto(levels.numpy())
        return levels

    def write(self, slot: int, mark: bytes, levels: Tensor) -> None:
        """Keep the grey levels (3, size, size) of a picture; pixels between two grey levels are not kept."""
        if not self.keeps or levels.dtype != torch.uint8:
            return
        try:
            if not self._files:
                self._open()
            pixels, marks = self._files
            old = any(self._marks[slot * SIZE : (slot + 1) * SIZE])  # of a picture that was there before
            steps = [(marks, bytes(SIZE))] * old + [(pixels, levels.numpy().tobytes()), (marks, mark)]
            for file, content in steps:
                file.seek(slot * len(content))
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            failed = f"decoded pictures cannot be kept in {str(self._folder)!r} ({error.strerror or error})"
            room = f"make room for {self._lengths['pixels.u8'] / 2**20:,.0f} MiB"
            way_out = f"{room}, set ZSR_CACHE to another folder, or ZSR_PIXELS=0 to keep none"
            raise OSError(error.errno, f"{failed}: {way_out}") from error
        self._marks[slot * SIZE : (slot + 1) * SIZE] = mark

    def _open(self) -> None:
        """Open both files, as long as they will ever be."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, length in self._lengths.items():
            with (self._folder / name).open("ab") as file:
                file.truncate(length)
        self._files = tuple((self._folder / name).open("r+b", buffering=0) for name in self._lengths)
        self._marks = bytearray(self._files[1].read())


def pixel_store(data: str, slots: int, preprocess: Callable) -> PixelStore:
    """The store of a data set's shelf behind a transform; without a transform's key it keeps nothing."""
    key = getattr(preprocess, "key", None)
    if key is None or os.environ.get("ZSR_PIXELS") == "0":
        return PixelStore(None, slots, 0)
    name = digest(data, key, code("datasets/_decode"), PIL.__version__)
    return PixelStore(cache_folder() / "pixels" / name, slots, preprocess.size)
