"""Whole files or none, and the folder where what can be computed again is kept."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


def cache_folder() -> Path:
    """Folder of embeddings, classifiers, decoded pictures and finished batches: `ZSR_CACHE`, or the user's cache.

    Raises:
        OSError: If it cannot be made or written to; the message names it and the way out.
    """
    from platformdirs import user_cache_dir

    folder = Path(os.environ.get("ZSR_CACHE") or user_cache_dir("zsr"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise OSError(f"The cache folder {str(folder)!r} cannot be used ({reason}): set ZSR_CACHE to another folder.")
    return folder


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it its final name.

    A kill or a full disk in the middle leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: Path, arrays: dict) -> None:
    """Write arrays under `path` whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)


def kept_arrays(kind: str, key: bytes, write: Callable[[Path], None]) -> Mapping[str, np.ndarray]:
    """Arrays that are computed once: of several processes that want them at once, one computes, the others wait.

    Args:
        kind: Folder within the cache.
        key: Everything that the arrays depend on.
        write: Computes them and writes the `.npz` file it is given.
    """
    from filelock import FileLock

    final = cache_folder() / kind / f"{hashlib.sha256(key).hexdigest()[:32]}.npz"
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{final.stem}.lock"):
        if not final.exists():
            write(final)
    return np.load(final)
