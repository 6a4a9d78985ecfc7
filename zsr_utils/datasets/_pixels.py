"""Decoded pictures kept on disk at a model's size, so that a second chapter decodes nothing."""

import errno
import hashlib
import os
from collections.abc import Callable
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


class PixelStore:
    """Pictures of one data set behind one transform: a slot of uint8 for every sample, filled as they come.

    A slot counts once its mark is written, which happens after its pixels, so a killed run leaves no half
    picture behind; two runs that fill the same slot write the same bytes. Files are sparse: what was not
    decoded takes no room.

    Args:
        folder: Of this data set and transform; made when the first picture is kept.
        slots: Samples of the data set.
        size: Side of the pictures.
    """

    def __init__(self, folder: Path, slots: int, size: int):
        self._folder, self._slots, self._shape = folder, slots, (3, size, size)
        self._bytes = 3 * size * size
        self._kept = bytearray(slots)
        self._files = self._open("rb") if self._paths()[1].is_file() else None

    def __contains__(self, slot: int) -> bool:
        return bool(self._kept[slot])

    def read(self, slot: int) -> Tensor:
        """The grey levels (3, size, size), uint8, of a filled slot."""
        found = torch.empty(self._bytes, dtype=torch.uint8)
        self._files[0].seek(slot * self._bytes)
        self._files[0].readinto(found.numpy())
        return found.view(self._shape)

    def write(self, slot: int, levels: Tensor) -> None:
        """Keep the grey levels (3, size, size), uint8, of a picture.

        Raises:
            OSError: If the folder cannot be written; the message names it and the ways out.
        """
        try:
            if self._files is None or not self._files[0].writable():
                self._files = self._open("r+b")
            for file, content in zip(self._files, (levels.numpy().tobytes(), b"\1"), strict=True):
                file.seek(slot * len(content))
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(
                error.errno,
                f"decoded pictures cannot be kept in {str(self._folder)!r} ({error.strerror or error}): make room for "
                f"{self._slots * self._bytes / 2**20:,.0f} MiB, set ZSR_CACHE to another folder, or ZSR_PIXELS=0 to "
                "keep none",
            ) from error
        self._kept[slot] = 1

    def _paths(self) -> tuple[Path, Path]:
        return self._folder / "pixels.u8", self._folder / "kept.u8"

    def _open(self, mode: str) -> tuple:
        """Both files; to write in them they are made first, as long as they will ever be."""
        if mode == "r+b":
            self._folder.mkdir(parents=True, exist_ok=True)
            for path, size in zip(self._paths(), (self._slots * self._bytes, self._slots), strict=True):
                with path.open("ab") as file:
                    file.truncate(size)
        files = tuple(path.open(mode, buffering=0) for path in self._paths())
        self._kept = bytearray(files[1].read())
        return files


def pixel_store(data: str, slots: int, preprocess: Callable) -> PixelStore | None:
    """The store of a data set, by fingerprint, behind a transform; None where pictures are not to be kept."""
    key = getattr(preprocess, "key", None)
    if key is None or os.environ.get("ZSR_PIXELS") == "0":
        return None
    name = hashlib.sha256(f"{data} {key}".encode()).hexdigest()[:32]
    return PixelStore(cache_folder() / "pixels" / name, slots, preprocess.size)
