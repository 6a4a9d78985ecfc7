"""What a condition is, and what it gets to see of a batch."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zsr_utils.models import Model


@dataclass(frozen=True)
class Seen:
    """What a model makes of some images, on the CPU in float64 but for pixels and token grids."""

    pixels: Float[Tensor, "n 3 h w"]  # float32 in [0, 1], on the model's device
    features: Float[Tensor, "n d"]  # raw embeddings
    logits: Float[Tensor, "n k"]
    grids: tuple[Float[Tensor, "n rows columns c"], ...] = ()  # float32, after every block or the last; if asked for
    further: Mapping[str, Tensor] = field(default_factory=dict)  # what a head keeps beside, (n, ...) each

    @property
    def predictions(self) -> Int[Tensor, "n"]:
        return self.logits.argmax(1)

    def rows(self, chosen: Int[Tensor, "m"]) -> "Seen":
        """Some of the images."""
        pixels, grids = self.pixels[chosen.to(self.pixels.device)], tuple(g[chosen] for g in self.grids)
        further = {name: values[chosen] for name, values in self.further.items()}
        return Seen(pixels, self.features[chosen], self.logits[chosen], grids, further)


@dataclass(frozen=True)
class Head:
    """Who answers: a zero-shot classifier, or the head a supervised network was trained with; else see `OptionHead`."""

    weights: Float[Tensor, "k d"]  # rows of `Model.classifier`
    class_names: tuple[str, ...]  # K
    merged: tuple[tuple[int, ...], ...] = ()  # rows of each class, K, where a class is several of them

    embeds = True  # whether the embedding of an image is all that its answer needs

    def __post_init__(self):
        if len(self.class_names) < 2:
            raise ValueError(f"{len(self.class_names)} class given, zero-shot classification needs at least two.")
        rows = len(self.merged or self.weights)
        if rows != len(self.class_names):
            raise ValueError(f"classifier has {rows} rows, there are {len(self.class_names)} class names.")

    def names_of(self, sample_id: str) -> Sequence[str]:
        """What may be answered to a sample."""
        return self.class_names

    def facts(self, batch: "Batch", seen: Seen) -> dict:
        """Columns that the rows of every condition get."""
        return {}

    def logits(self, net: Model, pixels: Float[Tensor, "n 3 h w"], ids: Sequence[str]) -> Float[Tensor, "n k"]:
        """Logits of some samples, differentiable in the pixels; of merged classes those of the rows."""
        return net.logits(pixels, self.weights.to(pixels.device))

    @torch.no_grad()
    def see(
        self, net: Model, pixels: Float[Tensor, "n 3 h w"], ids: Sequence[str] = (), *, detail: str = "answers"
    ) -> Seen:
        """One pass of some images; `detail` is `answers`, `tokens` (the last grid too) or `layers` (every grid)."""
        features, grids = (net.encode_image(pixels), []) if detail == "answers" else net.encode_layers(pixels)
        shown = grids if detail == "layers" else grids[-1:]
        return Seen(pixels, features.double().cpu(), self.scores(net, features), tuple(g.cpu() for g in shown))

    @torch.no_grad()
    def scores(self, net: Model, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits of raw embeddings, float64 on the CPU; of merged classes the logarithm of their mean probability."""
        net.check_classifier(self.weights, features.shape[1])
        logits = net.logits_of(features.to(net.device).float(), self.weights.to(net.device)).cpu().double()
        return self.merge(logits)

    def merge(self, logits: Float[Tensor, "n rows"]) -> Float[Tensor, "n k"]:
        """Logits of the classes, from those of the rows."""
        if not self.merged:
            return logits
        each = logits.log_softmax(1)
        return torch.stack([each[:, list(rows)].logsumexp(1) - math.log(len(rows)) for rows in self.merged], 1)


@dataclass(frozen=True)
class Batch:
    """Some images as they are, for a condition to change."""

    net: Model  # that will look at them
    head: Head
    sample_ids: Sequence[str]
    labels: Int[Tensor, "n"]
    clean: Seen  # what the model makes of the unchanged images
    draw: int = 0  # which repetition of a random condition this is
    seed: int = 0  # of everything random
    open: Callable[[str], Image.Image] | None = field(default=None, repr=False)  # a picture by its sample id

    # what the changes of conditions found out beside pixels, for their facts
    memo: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def pixels(self) -> Float[Tensor, "n 3 h w"]:
        return self.clean.pixels

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """The pictures before the model's own resize and crop, RGB."""
        if self.open is None:
            raise ValueError("These images are pixels at the model's size, a change of pictures needs a data set.")
        return [self.open(sample_id) for sample_id in self.sample_ids]

    @cached_property
    def noise(self) -> Float[Tensor, "n 3 h w"]:
        """Standard normal noise, the same for an image and draw whatever else is in the batch."""
        return unit_noise(self.pixels.shape[1:], self.sample_ids, (self.seed, self.draw)).to(self.pixels.device)


@dataclass(frozen=True)
class Condition:
    """One way to show images again."""

    name: str  # the rows' `condition`, a term of the field such as `gaussian_noise`
    severity: float  # 0 is the unchanged image
    change: Callable[[Batch], Float[Tensor, "n 3 h w"]]  # gives the pixels in [0, 1] that are shown
    facts: Callable[[Batch, Seen], dict] = lambda batch, seen: {}  # further columns of the rows by name, (N,) each
    # repetitions: as many as `measure` is asked for, a number, or one by sample id: samples not named are left out
    draws: int | Mapping[str, int] | None = None

    def __post_init__(self):
        number = isinstance(self.severity, (int, float, np.number)) and not isinstance(self.severity, bool)
        if not number or not math.isfinite(self.severity):
            raise ValueError(f"Condition {self.name!r}: severity is {self.severity!r}, allowed is a number.")

    def repeats(self, sample_id: str, default: int) -> int:
        """Draws of one sample."""
        if isinstance(self.draws, Mapping):
            return self.draws.get(sample_id, 0)
        return default if self.draws is None else self.draws


def unchanged(batch: Batch) -> Float[Tensor, "n 3 h w"]:
    """The images as they are."""
    return batch.pixels


ORIGINAL = Condition("original", 0.0, unchanged, draws=1)


def made_before(
    name: str, severity: float, sample_ids: Iterable[str], pixels: Float[Tensor, "n 3 h w"],
    columns: Mapping[str, np.ndarray] | None = None,
) -> Condition:  # fmt: skip
    """A condition of images that were made already; several of a sample are its draws, `columns` the facts."""
    rows: dict[str, list[int]] = {}
    for position, sample_id in enumerate(sample_ids):
        rows.setdefault(sample_id, []).append(position)

    def positions(batch: Batch) -> list[int]:
        return [rows[sample_id][batch.draw] for sample_id in batch.sample_ids]

    def change(batch: Batch) -> Float[Tensor, "n 3 h w"]:
        return pixels[positions(batch)].to(batch.pixels.device)

    def facts(batch: Batch, seen: Seen) -> dict:
        return {name: np.asarray(values)[positions(batch)] for name, values in (columns or {}).items()}

    return Condition(name, severity, change, facts, {sample_id: len(of) for sample_id, of in rows.items()})


def unit_noise(shape: Sequence[int], names: Iterable[str], seed: Sequence[int]) -> Float[Tensor, "n 3 h w"]:
    """Standard normal noise: a generator a name, so that no batch, order or subset can change it."""
    drawn = [generator(name, seed).standard_normal(shape, dtype=np.float32) for name in names]
    return torch.from_numpy(np.stack(drawn)) if drawn else torch.empty(0, *shape)


def generator(name: str, seed: Sequence) -> np.random.Generator:
    """Random numbers that depend on a name and a seed alone."""
    key = hashlib.sha256(f"{tuple(seed)}\0{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(key, np.uint32))


def drift_between(one: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """1 - cosine, as half the squared distance of the unit vectors: no cancellation hides a small one."""
    return (F.normalize(one.double(), dim=1) - F.normalize(other.double(), dim=1)).square().sum(1) / 2


def margin_of(logits: Float[Tensor, "n k"], classes: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Logit of one class of every image less the largest other one."""
    own = classes.long()[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)
