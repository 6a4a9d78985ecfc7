"""Digests of the bytes of pictures, remembered by what the file system says of their files.

A picture is read once and its bytes hashed, which takes a few percent of the time that decoding takes.
"""

import hashlib
import os
import time

import numpy as np

from zsr_utils._cache import cache_folder, read_kept, write_kept


SIZE = 16  # bytes
FRESH = 2_000_000_000  # ns: a file that was written so lately may be written again without another time stamp
Place = tuple[str, int, int]  # file, offset and length; a length of -1 is the whole file


def digest_of(content: bytes) -> bytes:
    """16 bytes for what some bytes are."""
    return hashlib.blake2b(content, digest_size=SIZE).digest()


def digests(shelf: str, slots: int, places: dict[int, Place]) -> list[bytes]:
    """The digest of what lies at some places, by slot of a data set, whose file in the cache folder remembers them.

    A file is read again if its size, times or inode have changed, so that one which was overwritten is noticed.
    """
    path = cache_folder() / "digests" / f"{shelf}.npz"
    known = (read_kept(path) or {}).get("known", np.zeros((slots, 2, SIZE), np.uint8))
    marks, found, new = memoryview(known.reshape(-1)), [], False
    for slot, place in places.items():
        start = 2 * SIZE * slot
        mark, digest = marks[start : start + SIZE], marks[start + SIZE : start + 2 * SIZE]
        try:
            if any(mark) and _mark(os.stat(place[0])) == mark:
                found.append(bytes(digest))
                continue
            state, content = _read(place)
        except OSError as error:  # it is an unreadable picture, and another one once it can be read
            found.append(digest_of(f"unreadable: {error.errno}".encode()))
            continue
        found.append(digest_of(content))
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > FRESH:
            mark[:], digest[:], new = _mark(state), found[-1], True
    if new:
        write_kept(path, {"known": known})
    return found


def _read(place: Place) -> tuple[os.stat_result, bytes]:
    path, offset, length = place
    with open(path, "rb") as file:
        state = os.fstat(file.fileno())
        file.seek(offset)
        return state, file.read(length if length >= 0 else state.st_size)


def _mark(state: os.stat_result) -> bytes:
    return digest_of(repr((state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)).encode())
