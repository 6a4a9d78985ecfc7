"""Whole files or none, and the folder where what can be computed again is kept.

What is kept is found again only by what made it, code included, so that a changed line never meets a stale result.
"""

import functools
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd


PACKAGE = Path(__file__).parent
READS = {".npz": lambda path: dict(np.load(path)), ".parquet": pd.read_parquet}


def cache_folder() -> Path:
    """Folder of embeddings, classifiers, decoded pictures and finished batches: `ZSR_CACHE`, or the user's cache."""
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
    """Let `write` fill a temporary file, then give it the name `path`: a kill in between leaves that as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_kept(path: Path, content: dict[str, np.ndarray] | pd.DataFrame) -> None:
    """Write arrays (`.npz`) or a frame (`.parquet`) whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            if isinstance(content, pd.DataFrame):
                content.to_parquet(file, index=False)
            else:
                np.savez(file, **content)

    write_whole(path, write)


def read_kept(path: Path) -> dict[str, np.ndarray] | pd.DataFrame | None:
    """What `write_kept` wrote, or None where there is no such file; a damaged one is named and set aside."""
    if not path.exists():
        return None
    try:
        return READS[path.suffix](path)
    except Exception as error:  # zipfile, numpy and pyarrow each have their own kinds
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        why = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"{str(path)!r} was damaged ({why}): set aside as {aside.name!r}, computed again.", stacklevel=2)
        return None


def kept(kind: str, key: str, compute: Callable[[], dict | pd.DataFrame], suffix: str = ".npz"):
    """What `compute` gives, computed once: of several processes that want it at once, one computes, the others wait.

    The key is everything that the content (arrays by name, or a `.parquet` frame) depends on, code included.
    """
    from filelock import FileLock

    final = cache_folder() / kind / f"{digest(key)}{suffix}"
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{final.stem}.lock"):
        if (content := read_kept(final)) is None:
            write_kept(final, content := compute())
    return content


def kept_in_parts(kind: str, key: str, parts: Callable[[int], Iterator[dict | pd.DataFrame]], suffix: str = ".npz"):
    """As `kept`, for parts that `parts` gives from a number on: an interrupted run goes on at the first missing one."""
    folder = cache_folder() / kind / f"{digest(key)}.parts"

    def compute():
        contents = []
        while (content := read_kept(folder / f"{len(contents):07d}{suffix}")) is not None:
            contents.append(content)
        for number, content in enumerate(parts(len(contents)), start=len(contents)):
            write_kept(folder / f"{number:07d}{suffix}", content)
            contents.append(content)
        if isinstance(contents[0], pd.DataFrame):  # empty parts, such as those of broken pictures alone, say no type
            return pd.concat([c for c in contents if len(c)] or contents[:1], ignore_index=True)
        filled = {name: [c[name] for c in contents if len(c[name])] or [contents[0][name]] for name in contents[0]}
        return {name: np.concatenate(arrays) for name, arrays in filled.items()}

    whole = kept(kind, key, compute, suffix)
    shutil.rmtree(folder, ignore_errors=True)
    return whole


@cache
def code(*layers: str) -> str:
    """Digest of the source of some layers of this package, and of the versions of what computes for them."""
    import torch

    paths = [p for layer in layers for p in sorted((PACKAGE / layer).rglob("*.py")) or [PACKAGE / f"{layer}.py"]]
    return digest(torch.__version__, *(p.read_bytes() for p in paths))


def digest(*values) -> str:
    """32 digits for what some values are: numbers, texts, arrays, tensors, functions and records of them."""
    found = hashlib.sha256()
    for part in _parts(values):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()[:32]


def _parts(value) -> Iterable[bytes]:
    import dataclasses

    import torch

    yield type(value).__name__.encode()
    if value is None or value is ... or isinstance(value, (bool, int, float, str, Path, np.generic, slice)):
        yield repr(value).encode()
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        yield repr((array.shape, array.dtype.str)).encode()
        yield array.astype("U").tobytes() if array.dtype == object else np.ascontiguousarray(array).tobytes()
    elif hasattr(value, "tobytes"):  # a picture
        yield from _parts((value.mode, value.size, value.tobytes()))
    elif isinstance(value, pd.DataFrame):
        yield from _parts({name: value[name].to_numpy() for name in value})
    elif isinstance(value, dict):
        yield from (part for pair in value.items() for one in pair for part in _parts(one))
    elif isinstance(value, (list, tuple, range)):
        yield from (part for one in value for part in _parts(one))
    elif isinstance(value, (set, frozenset)):
        yield from _parts(sorted(value))
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords))
    elif hasattr(value, "fingerprint"):
        yield value.fingerprint.encode()
    elif dataclasses.is_dataclass(value):
        yield from _parts({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif hasattr(value, "__func__"):
        yield from _parts((value.__func__, value.__self__))
    elif hasattr(value, "__code__"):  # a function is its code and what it closes over
        cells = [c.cell_contents for c in value.__closure__ or ()]
        yield from _parts((value.__module__, value.__qualname__, value.__code__, cells, value.__defaults__))
    elif isinstance(value, type(_parts.__code__)):
        yield from _parts((value.co_code, value.co_names, value.co_consts))
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif hasattr(value, "__dict__"):
        yield from _parts((type(value), vars(value)))
    else:
        raise TypeError(f"{value!r} is of type {type(value).__name__}, which has no content to compare.")
