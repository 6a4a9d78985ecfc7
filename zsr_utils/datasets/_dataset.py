"""Labelled images that stream: nothing is decoded before it is asked for."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor


MAX_UNREADABLE = 0.01


class UnreadableImages(RuntimeError):
    """Too large a share of a data set's images cannot be decoded."""


@dataclass(frozen=True)
class Sample:
    """One labelled image; `open` decodes it."""

    sample_id: str
    label: int
    open: Callable[[], Image.Image]


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
    """

    name: str
    class_names: tuple[str, ...]
    samples: Sequence[Sample]
    templates: tuple[str, ...] = ("a photo of a {}",)
    content: str = ""
    unreadable: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[str, Image.Image, int]]:
        for sample in self.samples:
            image = self._open(sample)
            if image is not None:
                yield sample.sample_id, image, sample.label

    @property
    def fingerprint(self) -> str:
        """sha256 over class names, ids, labels and content."""
        digest = hashlib.sha256(repr((self.class_names, self.content)).encode())
        for sample in self.samples:
            digest.update(f"{sample.sample_id}\0{sample.label}\n".encode())
        return digest.hexdigest()

    def image(self, sample_id: str) -> Image.Image:
        """The image of one id.

        Raises:
            KeyError: If no sample has this id.
        """
        for sample in self.samples:
            if sample.sample_id == sample_id:
                return sample.open()
        raise KeyError(f"{self.name} has no sample {sample_id!r}.")

    def pixels(self, sample_ids: Sequence[str], from_pil: Callable[[Image.Image], Tensor]) -> Tensor:
        """Pixels (N, 3, H, W) of some samples in the order asked, each decoded once.

        Raises:
            KeyError: If an id is not in the data set.
        """
        sample_of = {s.sample_id: s for s in self.samples}
        missing = [i for i in sample_ids if i not in sample_of]
        if missing:
            raise KeyError(f"{self.name} has no sample {missing[0]!r}.")
        decoded = {i: from_pil(sample_of[i].open()) for i in dict.fromkeys(sample_ids)}
        return torch.stack([decoded[i] for i in sample_ids])

    def batches(
        self, from_pil: Callable[[Image.Image], Tensor], batch_size: int = 64, *, workers: int = 2, start: int = 0
    ) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Batches `(sample_ids, pixels (N, 3, H, W), labels (N,))` through a model's `from_pil`.

        A batch holds `batch_size` samples less the unreadable ones (it may be empty), so that batch k
        always covers the same samples, and a run that was interrupted goes on at batch `start`.
        Memory is bounded by one batch.

        Raises:
            UnreadableImages: At the end, if more than 1 % of the images could not be decoded.
        """
        todo = iter(self.samples[start * batch_size :])
        with ThreadPoolExecutor(workers) as pool:
            while chunk := list(islice(todo, batch_size)):
                decoded = pool.map(lambda s: self._decode(s, from_pil), chunk)
                kept = [(s, p) for s, p in zip(chunk, decoded, strict=True) if p is not None]
                pixels = torch.stack([p for _, p in kept]) if kept else torch.empty(0, 3, 0, 0)
                yield [s.sample_id for s, _ in kept], pixels, torch.tensor([s.label for s, _ in kept])
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

    def _open(self, sample: Sample) -> Image.Image | None:
        try:
            image = sample.open()
            image.load()
            return image
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.unreadable[sample.sample_id] = "not an image" if "cannot identify" in reason else reason
            return None

    def _decode(self, sample: Sample, from_pil) -> Tensor | None:
        image = self._open(sample)
        return None if image is None else from_pil(image)


def subset(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` samples, spread evenly over the classes, in the original order.

    Raises:
        ValueError: If `limit` is negative.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit is {limit}, allowed is 0 (all images) or more.")
    if not limit or limit >= len(samples):
        return list(samples)
    rng = np.random.default_rng(seed)
    by_class: dict[int, list[int]] = {}
    for position in rng.permutation(len(samples)):
        by_class.setdefault(samples[position].label, []).append(int(position))
    # the first of every class, then the second of every class, and so on
    turns = sorted((turn, label) for label, found in by_class.items() for turn in range(len(found)))
    chosen = sorted(by_class[label][turn] for turn, label in turns[:limit])
    return [samples[i] for i in chosen]
