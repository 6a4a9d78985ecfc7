"""What is finished, in the cache folder: an interrupted run goes on and a second one computes nothing."""

import os
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from zsr_utils._cache import cache_folder, code, digest, read_kept, write_kept


CODE = ("models", "conditions")
EVERY = 64  # finished pairs between two files


class FinishedPairs:
    """Finished pairs in the cache folder, found again by source, goal and everything that made them."""

    def __init__(self, net, sources, goal, until, settings, names):
        self._folder = cache_folder() / "aligned" / digest(net.fingerprint, net.precision, settings, code(*CODE))
        noise = names if settings.random else [""] * len(names)  # by which it is drawn
        self._keys = [digest(as_bytes(sources[i]), goal.key(i), until.key(i), noise[i]) for i in range(len(goal))]
        self._new: list[int] = []

    def load(self, found) -> list[int]:
        """Fill in what is known and return the rows that are not."""
        rows_of: dict[str, list[int]] = {}
        for row, key in enumerate(self._keys):
            rows_of.setdefault(key, []).append(row)
        for path in sorted(self._folder.glob("*.npz")):
            if (part := read_kept(path)) is None:
                continue
            keys = part["keys"]
            known = [(i, row) for i, key in enumerate(keys) for row in rows_of.pop(str(key), ())]
            if known:
                here, there = (list(v) for v in zip(*known))
                for field in fields(found):
                    getattr(found, field.name)[there] = torch.from_numpy(part[field.name][here])
        return sorted(row for rows in rows_of.values() for row in rows)

    def add(self, found, rows: Tensor) -> None:
        self._new += rows.tolist()
        if len(self._new) >= EVERY:
            self.flush(found)

    def flush(self, found) -> None:
        if self._new:
            arrays = {f.name: getattr(found, f.name)[self._new].numpy() for f in fields(found)}
            number = len(list(self._folder.glob("*.npz")))
            keys = np.array([self._keys[row] for row in self._new])
            write_kept(self._folder / f"{number:06d}-{os.getpid()}.npz", {"keys": keys, **arrays})
            self._new = []


def as_bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().numpy().tobytes()
