"""Labelled images that stream: nothing is decoded before it is asked for."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data

from zsr_utils._text import unknown
from zsr_utils.datasets._decode import reason, upright_rgb
from zsr_utils.datasets._pixels import PixelStore, as_pixels, grey_levels, pixel_store


MAX_UNREADABLE = 0.01
WORTH_WORKERS = 2000  # pictures: to decode fewer takes less time than to start processes for them
HANDED_OVER = 16  # pictures that a worker hands over at once


class UnreadableImages(RuntimeError):
    """Too large a share of a data set's images cannot be decoded."""


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        sample_id: Its id, unique in the data set.
        label: Index of its class.
        open: Opens the picture; decoding it is left to `image`.
    """

    sample_id: str
    label: int
    open: Callable[[], Image.Image]

    def image(self) -> Image.Image:
        """The picture, upright and RGB.

        Raises:
            Exception: What Pillow raises for a file it cannot read; there are many kinds.
        """
        return upright_rgb(self.open())


@dataclass
class Dataset:
    """Labelled images, decoded one by one as they are iterated.

    Iterating gives `(sample_id, image, label)`; an image that cannot be decoded is left out, and
    `unreadable` then holds its id and the reason.

    Attributes:
        name: Name it was loaded by.
        class_names: Name of each label, in label order.
        templates: Default prompt templates, each with one `{}`.
        samples: What is in it; opening is lazy.
        content: What the fingerprint is made of beside ids and labels, such as file sizes.
        unreadable: `{sample_id: reason}` of images that could not be decoded so far.
        whole: Fingerprint and length of the data set that this is a subset of; None if it is none.
        positions: Where each sample stands in that whole.
    """

    name: str
    class_names: tuple[str, ...]
    samples: Sequence[Sample]
    templates: tuple[str, ...] = ("a photo of a {}",)
    content: str = ""
    unreadable: dict[str, str] = field(default_factory=dict)
    whole: tuple[str, int] | None = None
    positions: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[str, Image.Image, int]]:
        for sample in self.samples:
            try:
                image = sample.image()
            except Exception as error:
                self.unreadable[sample.sample_id] = reason(error)
                continue
            yield sample.sample_id, image, sample.label

    @property
    def fingerprint(self) -> str:
        """sha256 over class names, ids, labels and content."""
        digest = hashlib.sha256(repr((self.class_names, self.content)).encode())
        for sample in self.samples:
            digest.update(f"{sample.sample_id}\0{sample.label}\n".encode())
        return digest.hexdigest()

    def subset(self, limit: int | None, seed: int = 0) -> "Dataset":
        """At most `limit` samples, drawn by `seed`, spread evenly over the classes, in the original order.

        Raises:
            ValueError: If `limit` is negative.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}, allowed is 0 (all images) or more.")
        if not limit or limit >= len(self):
            return self
        rng = np.random.default_rng(seed)
        by_class: dict[int, list[int]] = {}
        for position in rng.permutation(len(self)):
            by_class.setdefault(self.samples[position].label, []).append(int(position))
        # the first of every class, then the second of every class, and so on
        turns = sorted((turn, label) for label, found in by_class.items() for turn in range(len(found)))
        return self._at(sorted(by_class[label][turn] for turn, label in turns[:limit]))

    def only(self, sample_ids: Sequence[str]) -> "Dataset":
        """The samples of these ids, in the original order.

        Raises:
            ValueError: If an id is not in the data set.
        """
        wanted = set(sample_ids)
        found = [k for k, sample in enumerate(self.samples) if sample.sample_id in wanted]
        if len(found) < len(wanted):
            missing = wanted.difference(self.samples[k].sample_id for k in found)
            raise ValueError(
                f"{self.name} has no sample {min(missing)!r}; {len(missing):,} of {len(wanted):,} are not in it."
            )
        return self._at(found)

    def restricted(self, classes: int | Sequence[str], seed: int = 0) -> "Dataset":
        """Only some classes, in their order: the names of the others are no answers any more.

        Args:
            classes: Their names, or how many are drawn.
            seed: Of the draw.

        Raises:
            ValueError: If a name is unknown, or the number is not from 2 to all of them (0 is all of them, too).
        """
        names = self.class_names
        if isinstance(classes, int):
            if classes == 0 or classes == len(names):
                return self
            if not 2 <= classes < len(names):
                raise ValueError(f"classes is {classes}, allowed is 0 (all) and 2 to {len(names)}.")
            kept = sorted(np.random.default_rng(seed).choice(len(names), classes, replace=False).tolist())
        else:
            for name in classes:
                if name not in names:
                    raise ValueError(unknown(f"class of {self.name}", name, names))
            kept = sorted(names.index(name) for name in set(classes))
        label_of = {old: new for new, old in enumerate(kept)}
        found = self._at([k for k, sample in enumerate(self.samples) if sample.label in label_of])
        found.samples = [replace(sample, label=label_of[sample.label]) for sample in found.samples]
        found.class_names = tuple(names[old] for old in kept)
        return found

    def _at(self, chosen: Sequence[int]) -> "Dataset":
        whole, positions = self.whole or (self.fingerprint, len(self)), self.positions
        return replace(
            self,
            samples=[self.samples[k] for k in chosen],
            whole=whole,
            positions=[positions[k] for k in chosen] if positions else list(chosen),
        )

    def image(self, sample_id: str) -> Image.Image:
        """The image of one id, upright and RGB.

        Raises:
            KeyError: If no sample has this id.
        """
        return self.samples[self._rows([sample_id])[0]].image()

    def pixels(self, sample_ids: Sequence[str], from_pil: Callable[[Image.Image], Tensor]) -> Tensor:
        """Pixels (N, 3, H, W) of some samples in the order asked, each decoded once, and never if it is kept.

        Raises:
            KeyError: If an id is not in the data set.
        """
        rows, store = self._rows(sample_ids), self._store(from_pil)
        found = {row: self._seen(row, store) for row in dict.fromkeys(rows)}
        for row, levels in found.items():
            if levels is None:
                found[row] = grey_levels(from_pil(self.samples[row].image()))
                self._keep(row, found[row], store)
        return torch.stack([as_pixels(found[row]) for row in rows])

    def batches(
        self,
        from_pil: Callable[[Image.Image], Tensor],
        batch_size: int = 64,
        *,
        workers: int | None = None,
        start: int = 0,
    ) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Batches `(sample_ids, pixels (N, 3, H, W), labels (N,))` through a model's `from_pil`.

        A batch holds `batch_size` samples less the unreadable ones (it may be empty), so that batch k
        always covers the same samples, and a run that was interrupted goes on at batch `start`.
        Pictures that were decoded before for a transform of the same settings are read from the cache.
        Memory is bounded by the batches that workers have ready.

        Args:
            from_pil: From a picture to pixels; a model's own is kept on disk.
            batch_size: Samples in a batch.
            workers: Processes that decode while the model computes; 0 decodes here, None takes a process a
                core (at most 16) where there are enough pictures to decode.
            start: Batches to leave out.

        Raises:
            UnreadableImages: At the end, if more than 1 % of the images could not be decoded.
        """
        store, todo = self._store(from_pil), range(start * batch_size, len(self))
        missing = [row for row in todo if store is None or self._slot(row) not in store]
        decoded = self._decoded(missing, from_pil, _workers(len(missing)) if workers is None else workers)
        wanted = set(missing)
        for first in todo[::batch_size]:
            kept = []
            for row in todo[first - todo.start : first - todo.start + batch_size]:
                levels = next(decoded) if row in wanted else self._seen(row, store)
                if isinstance(levels, str):
                    self.unreadable[self.samples[row].sample_id] = levels
                    continue
                if row in wanted:
                    self._keep(row, levels, store)
                kept.append((self.samples[row], levels))
            stacked = _stacked([levels for _, levels in kept]) if kept else torch.empty(0, 3, 0, 0)
            yield [s.sample_id for s, _ in kept], stacked, torch.tensor([s.label for s, _ in kept], dtype=torch.long)
        self.check_readable()

    def check_readable(self) -> None:
        """Raise if more than 1 % of the images turned out to be unreadable."""
        if len(self.unreadable) > MAX_UNREADABLE * len(self):
            listed = "; ".join(f"{k} ({v})" for k, v in islice(self.unreadable.items(), 5))
            more = f" and {len(self.unreadable) - 5} more" if len(self.unreadable) > 5 else ""
            raise UnreadableImages(
                f"{self.name}: {len(self.unreadable)} of {len(self)} images cannot be read, "
                f"allowed is {MAX_UNREADABLE:.0%}: {listed}{more}."
            )

    def _rows(self, sample_ids: Sequence[str]) -> list[int]:
        row_of = {sample.sample_id: row for row, sample in enumerate(self.samples)}
        missing = [i for i in sample_ids if i not in row_of]
        if missing:
            raise KeyError(f"{self.name} has no sample {missing[0]!r}.")
        return [row_of[i] for i in sample_ids]

    def _store(self, from_pil) -> PixelStore | None:
        fingerprint, slots = self.whole or (self.fingerprint, len(self))
        return pixel_store(fingerprint, slots, from_pil)

    def _slot(self, row: int) -> int:
        return self.positions[row] if self.positions else row

    def _seen(self, row: int, store: PixelStore | None) -> Tensor | None:
        return store.read(self._slot(row)) if store is not None and self._slot(row) in store else None

    def _keep(self, row: int, levels: Tensor, store: PixelStore | None) -> None:
        if store is not None and levels.dtype == torch.uint8:  # pixels between two grey levels would change
            store.write(self._slot(row), levels)

    def _decoded(self, rows: Sequence[int], from_pil, workers: int) -> Iterator[Tensor | str]:
        """Grey levels (or pixels, where they lie between two) of these rows in order, or why there are none."""
        loader = data.DataLoader(
            _Pictures([self.samples[row] for row in rows], from_pil),
            batch_size=HANDED_OVER if workers else 1,
            num_workers=workers,
            collate_fn=_together,
            # samples and transforms of users need not pickle, and workers touch no accelerator
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        for levels, reasons in loader:
            following = iter(levels)
            yield from (next(following) if why is None else why for why in reasons)


class _Pictures(data.Dataset):
    """What the processes of a loader decode."""

    def __init__(self, samples: Sequence[Sample], from_pil):
        self._samples, self._from_pil = samples, from_pil

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: int) -> Tensor | str:
        try:
            image = self._samples[row].image()
        except Exception as error:  # Pillow raises many kinds for broken files
            return reason(error)
        return grey_levels(self._from_pil(image))


def _together(found: list[Tensor | str]) -> tuple[Tensor | list[Tensor], list[str | None]]:
    """Grey levels as one tensor, which costs one handle between processes, and where there are none, why."""
    levels = [p for p in found if not isinstance(p, str)]
    alike = levels and all(p.dtype == torch.uint8 for p in levels)
    return torch.stack(levels) if alike else levels, [p if isinstance(p, str) else None for p in found]


def _stacked(levels: list[Tensor]) -> Tensor:
    """One tensor of pixels."""
    if all(p.dtype == torch.uint8 for p in levels):
        return as_pixels(torch.stack(levels))
    return torch.stack([as_pixels(p) for p in levels])


def _workers(pictures: int) -> int:
    if pictures < WORTH_WORKERS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)
