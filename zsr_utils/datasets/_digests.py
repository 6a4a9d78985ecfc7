"""Digests of the bytes of pictures, remembered by what the file system says of their files.

A picture is read once and its bytes hashed, which takes a few percent of the time that decoding takes.
"""

import hashlib
import os
import time
from collections.abc import Sequence

import numpy as np

from zsr_utils._cache import cache_folder, read_kept, write_kept


SIZE = 16  # bytes
FRESH = 2_000_000_000  # ns: a file that was written so lately may be written again without another time stamp
Place = tuple[str, int, int]  # file, offset and length; a length of -1 is the whole file


def digest_of(content: bytes) -> bytes:
    """16 bytes for what some bytes are."""
    return hashlib.blake2b(content, digest_size=SIZE).digest()


def digests(places: Sequence[Place]) -> list[bytes]:
    """The digests of what lies at some places, remembered in the cache folder.

    A file is read again if its size, times or inode have changed, so that one which was overwritten is noticed.
    """
    above = os.path.commonpath([os.path.dirname(path) for path, _, _ in places])
    kept = cache_folder() / "digests" / f"{digest_of(repr(above).encode()).hex()}.npz"
    pairs, found = (read_kept(kept) or {}).get("pairs", np.zeros((0, 2, SIZE), np.uint8)), []
    known = {bytes(mark): bytes(digest) for mark, digest in pairs}
    for place in places:
        try:
            if (digest := known.get(_mark(place, os.stat(place[0])))) is None:
                state, content = _read(place)
                digest = digest_of(content)
                if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > FRESH:
                    known[_mark(place, state)] = digest
        except OSError as error:  # it is an unreadable picture, and another one once it can be read
            digest = digest_of(f"unreadable: {error.errno}".encode())
        found.append(digest)
    if len(known) > len(pairs):
        both = b"".join(mark + digest for mark, digest in known.items())
        write_kept(kept, {"pairs": np.frombuffer(both, np.uint8).reshape(-1, 2, SIZE)})
    return found


def _read(place: Place) -> tuple[os.stat_result, bytes]:
    path, offset, length = place
    with open(path, "rb") as file:
        state = os.fstat(file.fileno())
        file.seek(offset)
        return state, file.read(length if length >= 0 else state.st_size)


def _mark(place: Place, state: os.stat_result) -> bytes:
    return digest_of(repr((place, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)).encode())
