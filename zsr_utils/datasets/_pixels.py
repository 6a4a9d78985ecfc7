"""Decoded pictures kept on disk at a model's size, so that a second chapter decodes nothing."""

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zsr_utils._cache import cache_folder


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

    A slot counts once its mark is written, after its pixels, so a killed run leaves no half picture; two runs that fill
    the same slot write the same bytes. Files are sparse, and without a folder none is kept.
    """

    def __init__(self, folder: Path | None, slots: int, size: int):
        self._folder, self._shape, self._kept = folder, (3, size, size), bytearray(slots)
        self._lengths = {"pixels.u8": slots * 3 * size * size, "kept.u8": slots}
        self._files = ()
        if folder and (folder / "kept.u8").is_file():
            self._open()

    def __contains__(self, slot: int) -> bool:
        return bool(self._kept[slot])

    def read(self, slot: int) -> Tensor:
        """The grey levels (3, size, size), uint8, of a filled slot."""
        levels = torch.empty(self._shape, dtype=torch.uint8)
        self._files[0].seek(slot * levels.numel())
        self._files[0].readinto(levels.numpy())
        return levels

    def write(self, slot: int, levels: Tensor) -> None:
        """Keep the grey levels (3, size, size) of a picture; pixels between two grey levels are not kept."""
        if self._folder is None or levels.dtype != torch.uint8:
            return
        try:
            if not self._files:
                self._open()
            for file, content in zip(self._files, (levels.numpy().tobytes(), b"\1"), strict=True):
                file.seek(slot * len(content))
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            failed = f"decoded pictures cannot be kept in {str(self._folder)!r} ({error.strerror or error})"
            room = f"make room for {self._lengths['pixels.u8'] / 2**20:,.0f} MiB"
            way_out = f"{room}, set ZSR_CACHE to another folder, or ZSR_PIXELS=0 to keep none"
            raise OSError(error.errno, f"{failed}: {way_out}") from error
        self._kept[slot] = 1

    def _open(self) -> None:
        """Open both files, as long as they will ever be."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, length in self._lengths.items():
            with (self._folder / name).open("ab") as file:
                file.truncate(length)
        self._files = tuple((self._folder / name).open("r+b", buffering=0) for name in self._lengths)
        self._kept = bytearray(self._files[1].read())


def pixel_store(data: str, slots: int, preprocess: Callable) -> PixelStore:
    """The store of a data set, by fingerprint, behind a transform; without a transform's key it keeps nothing."""
    key = getattr(preprocess, "key", None)
    if key is None or os.environ.get("ZSR_PIXELS") == "0":
        return PixelStore(None, slots, 0)
    name = hashlib.sha256(f"{data} {key}".encode()).hexdigest()[:32]
    return PixelStore(cache_folder() / "pixels" / name, slots, preprocess.size)
