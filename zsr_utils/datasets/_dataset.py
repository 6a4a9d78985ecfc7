"""Labelled images that stream: nothing is decoded before it is asked for."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from zsr_utils._text import unknown
from zsr_utils.datasets._decode import reason, upright_rgb
from zsr_utils.datasets._digests import Place, digest_of, digests
from zsr_utils.datasets._names import no_words
from zsr_utils.datasets._pixels import PixelStore, grey_levels, stacked


MAX_UNREADABLE = 0.01
WORTH_WORKERS = 2000  # pictures: to decode fewer takes less time than to start processes for them
HANDED_OVER = 16  # pictures that a worker hands over at once
FromPil = Callable[[Image.Image], Tensor]


class UnreadableImages(RuntimeError):
    """Images that are needed, or too large a share of a data set, cannot be decoded."""


@dataclass(frozen=True)
class Sample:
    """One labelled image: its id, unique in the data set, the index of its class, and what opens its picture."""

    sample_id: str
    label: int
    open: Callable[[], Image.Image]
    place: Place | None = None  # of its encoded bytes, if they lie in a file

    def image(self) -> Image.Image:
        """The picture, upright and RGB."""
        return upright_rgb(self.open())


class LeftOut(dict):
    """How many files, folders, links or classes do not take part, by the reason, and the first of them."""

    def add(self, why: str, example: str) -> None:
        count, first = self.get(why, (0, example))
        self[why] = count + 1, first


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, decoded as they are iterated: `(sample_id, image, label)`, or several at once by `batches`.

    An image that cannot be decoded is left out, and `unreadable` then holds its id and the reason; more than 1 % stop
    the iteration at its end.
    """

    name: str  # it was loaded by
    class_names: Sequence[str]  # in label order
    samples: Sequence[Sample]
    templates: tuple[str, ...] = ("a photo of a {}",)  # default prompts
    merged: tuple[tuple[int, ...], ...] = ()  # ImageNet's classes of each class, where a class is several of them
    content: str = ""  # how pictures are read, and what they are if they lie in no files
    left_out: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # how many by the reason, and the first
    links: int = 0  # to folders, that were followed
    unreadable: dict[str, str] = field(default_factory=dict, init=False)  # why, by sample id, so far

    def __post_init__(self):
        for name in ("class_names", "samples"):  # as tuples, so that a fingerprint stays true
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[str, Image.Image, int]]:
        for sample_ids, pictures, labels in self.pictures(1):
            yield from zip(sample_ids, pictures, labels.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over class names, ids, labels, the bytes of the pictures and how they are read."""
        digest = hashlib.sha256(repr((self.class_names, self.content)).encode())
        for sample, picture in zip(self.samples, self._digests):
            digest.update(repr((sample.sample_id, sample.label)).encode() + picture)
        return digest.hexdigest()

    @property
    def caution(self) -> str:
        """What is wrong with the class names, if anything is."""
        return no_words(self.class_names)

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not take part, and what was followed."""
        reasons = dict(self.left_out)
        if self.unreadable:
            reasons["pictures that cannot be read"] = len(self.unreadable), next(iter(self.unreadable))
        left = "; ".join(f"{why}: {count:,}, such as {first!r}" for why, (count, first) in reasons.items())
        links = f"links to folders, followed: {self.links:,}" if self.links else ""
        return tuple(filter(None, [left and f"Left out: {left}", links]))

    @cached_property
    def _digests(self) -> list[bytes]:
        """What tells the picture of every sample from others."""
        if all(sample.place for sample in self.samples):
            return digests([sample.place for sample in self.samples]) if self.samples else []
        if self.content:
            return [digest_of(f"{self.content}\0{sample.sample_id}".encode()) for sample in self.samples]
        pictures = (_or_reason(sample.image) for sample in self.samples)
        return [digest_of(p.encode() if isinstance(p, str) else repr(p.size).encode() + p.tobytes()) for p in pictures]

    @cached_property
    def _row_of(self) -> Mapping[str, int]:
        return {sample.sample_id: row for row, sample in enumerate(self.samples)}

    def subset(self, limit: int | None, seed: int = 0) -> "Dataset":
        """At most `limit` samples, drawn by `seed`, spread evenly over the classes, in the original order."""
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}, allowed is 0 (all images) or more.")
        if not limit or limit >= len(self):
            return self
        by_class: dict[int, list[int]] = {}
        for row in np.random.default_rng(seed).permutation(len(self)).tolist():
            by_class.setdefault(self.samples[row].label, []).append(row)
        # the first of every class, then the second of every class, and so on
        turns = sorted((turn, label) for label, rows in by_class.items() for turn in range(len(rows)))
        rows = sorted(by_class[label][turn] for turn, label in turns[:limit])
        return replace(self, samples=[self.samples[row] for row in rows])

    def only(self, sample_ids: Sequence[str]) -> "Dataset":
        """The samples of these ids, in the original order."""
        wanted = set(sample_ids)
        if missing := wanted - self._row_of.keys():
            few = f"{len(missing):,} of {len(wanted):,}"
            raise ValueError(f"{self.name} has no sample {min(missing)!r}; {few} are not in it.")
        return replace(self, samples=[sample for sample in self.samples if sample.sample_id in wanted])

    def restricted(self, classes: int | Sequence[str], seed: int = 0) -> "Dataset":
        """Only the classes of these names, or this many drawn by `seed` (0 is all); other names are no answers then."""
        names = self.class_names
        if isinstance(classes, int):
            if classes in (0, len(names)):
                return self
            if not 2 <= classes < len(names):
                raise ValueError(f"classes is {classes}, allowed is 0 (all) and 2 to {len(names)}.")
            kept = sorted(np.random.default_rng(seed).choice(len(names), classes, replace=False).tolist())
        elif tuple(classes) == names:  # two of ImageNet's are called alike
            return self
        else:
            for name in classes:
                if name not in names:
                    raise ValueError(unknown(f"class of {self.name}", name, names))
            kept = sorted(names.index(name) for name in set(classes))
        label_of = {old: new for new, old in enumerate(kept)}
        samples = [replace(s, label=label_of[s.label]) for s in self.samples if s.label in label_of]
        merged = tuple(self.merged[old] for old in kept if self.merged)
        return replace(self, samples=samples, class_names=[names[old] for old in kept], merged=merged)

    def image(self, sample_id: str) -> Image.Image:
        """The image of one id, upright and RGB."""
        return self.samples[self._row(sample_id)].image()

    def pixels(self, sample_ids: Sequence[str], from_pil: FromPil) -> Tensor:
        """Pixels (N, 3, H, W) of some samples in the order asked, each decoded once, and never if it is kept."""
        rows = [self._row(sample_id) for sample_id in sample_ids]
        once = list(dict.fromkeys(rows))
        levels = dict(zip(once, self._levels(once, from_pil, 0)))
        for row, picture in levels.items():
            if isinstance(picture, str):
                raise UnreadableImages(f"{self.name}: {self.samples[row].sample_id!r} cannot be read: {picture}.")
        return stacked([levels[row] for row in rows])

    def pictures(self, batch_size: int = 64, *, start: int = 0) -> Iterator[tuple[list[str], list, Tensor]]:
        """Batches `(sample_ids, pictures, labels (N,))`, before a model's own resize; batch k is that of `batches`."""
        rows = range(start * batch_size, len(self))
        return self._batched((_or_reason(self.samples[row].image) for row in rows), batch_size, start)

    def batches(
        self, from_pil: FromPil, batch_size: int = 64, *, workers: int | None = None, start: int = 0
    ) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Batches `(sample_ids, pixels (N, 3, H, W), labels (N,))` through a model's `from_pil`, kept on disk.

        A batch holds `batch_size` samples less the unreadable ones (it may be empty), so that batch k always covers the
        same samples, and a run that was interrupted goes on at batch `start`. So many `workers` decode while the model
        computes; 0 decodes here, None takes a process a core where there are enough pictures to decode.
        """
        decoded = self._levels(range(start * batch_size, len(self)), from_pil, workers)
        for sample_ids, levels, labels in self._batched(decoded, batch_size, start):
            yield sample_ids, stacked(levels) if levels else torch.empty(0, 3, 0, 0), labels

    def _batched(self, decoded: Iterator, batch_size: int, start: int) -> Iterator[tuple[list[str], list, Tensor]]:
        """Batches of what decoded, in the order of the samples; why a sample did not goes to `unreadable`."""
        for first in range(start * batch_size, len(self), batch_size):
            sample_ids, pictures, labels = [], [], []
            for sample, picture in zip(self.samples[first : first + batch_size], decoded):
                if isinstance(picture, str):
                    self.unreadable[sample.sample_id] = picture
                    continue
                sample_ids.append(sample.sample_id)
                pictures.append(picture)
                labels.append(sample.label)
            yield sample_ids, pictures, torch.tensor(labels, dtype=torch.long)
        if (broken := len(self.unreadable)) > MAX_UNREADABLE * len(self):
            listed = "; ".join(f"{k} ({v})" for k, v in islice(self.unreadable.items(), 5))
            few = f"{broken} of {len(self)} images cannot be read, allowed is {MAX_UNREADABLE:.0%}"
            raise UnreadableImages(f"{self.name}: {few}: {listed}{' …' if broken > 5 else '.'}")

    def _row(self, sample_id: str) -> int:
        if sample_id not in self._row_of:
            raise KeyError(f"{self.name} has no sample {sample_id!r}.")
        return self._row_of[sample_id]

    def _levels(self, rows: Sequence[int], from_pil: Callable, workers: int | None) -> Iterator[Tensor | str]:
        """Grey levels (or pixels, where they lie between two) of these rows in order, or why there are none."""
        store = PixelStore(from_pil)
        of = self.content.encode()  # how they are read, too
        marks = {row: digest_of(of + self._digests[row]) if store.keeps else b"" for row in rows}
        missing = {row: self.samples[row] for row in rows if not store.holds(marks[row])}
        decoded = _decoded(list(missing.values()), from_pil, workers)
        for row in rows:
            if row not in missing:
                yield store.read(marks[row])
                continue
            levels = next(decoded)
            if not isinstance(levels, str):
                store.write(marks[row], levels)
            yield levels


def _decoded(samples: Sequence[Sample], from_pil: Callable, workers: int | None) -> Iterator[Tensor | str]:
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(16, cores) if len(samples) >= WORTH_WORKERS else 0
    # samples and transforms of users need not pickle, and workers touch no accelerator
    start = "fork" if workers and sys.platform == "linux" else None
    options = {"batch_size": HANDED_OVER if workers else 1, "num_workers": workers, "multiprocessing_context": start}
    for pictures in DataLoader(samples, collate_fn=partial(_decode, from_pil), **options):
        yield from (picture if isinstance(picture, str) else torch.from_numpy(picture) for picture in pictures)


def _decode(from_pil: Callable, samples: Sequence[Sample]) -> list[np.ndarray | str]:
    """Arrays, because each tensor would cost a handle between processes."""
    pictures = (_or_reason(sample.image) for sample in samples)
    return [picture if isinstance(picture, str) else grey_levels(from_pil(picture)).numpy() for picture in pictures]


def _or_reason(decode: Callable[[], Image.Image]) -> Image.Image | str:
    """A picture, or why there is none."""
    try:
        return decode()
    except Exception as error:  # Pillow raises many kinds for broken files
        return reason(error)
