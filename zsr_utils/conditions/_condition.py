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
    """What a model makes of some images, on the CPU in float64 but for the token grids.

    Attributes:
        pixels: (N, 3, H, W) float32 in [0, 1], on the model's device.
        features: (N, D) raw embeddings.
        logits: (N, K) scores of the classes.
        grids: Token grids (N, h, w, C) float32, after every block or the last one alone; empty if not asked for.
    """

    pixels: Float[Tensor, "n 3 h w"]
    features: Float[Tensor, "n d"]
    logits: Float[Tensor, "n k"]
    grids: tuple[Float[Tensor, "n rows columns c"], ...] = ()

    @property
    def predictions(self) -> Int[Tensor, "n"]:
        return self.logits.argmax(1)

    def rows(self, chosen: Int[Tensor, "m"]) -> "Seen":
        """Some of the images."""
        device = chosen.to(self.pixels.device)
        return Seen(
            self.pixels[device], self.features[chosen], self.logits[chosen], tuple(g[chosen] for g in self.grids)
        )


@dataclass(frozen=True)
class Head:
    """Who answers: a zero-shot classifier, or the head a supervised network was trained with.

    A model that answers otherwise, such as one that scores option texts, brings its own `see`.

    Attributes:
        weights: (K, D) rows of `Model.classifier`.
        class_names: K names.
    """

    weights: Float[Tensor, "k d"]
    class_names: tuple[str, ...]

    def __post_init__(self):
        if len(self.class_names) < 2:
            raise ValueError(f"{len(self.class_names)} class given, zero-shot classification needs at least two.")
        if len(self.weights) != len(self.class_names):
            raise ValueError(f"classifier has {len(self.weights)} rows, there are {len(self.class_names)} class names.")

    @torch.no_grad()
    def see(self, net: Model, pixels: Float[Tensor, "n 3 h w"], *, detail: str = "answers") -> Seen:
        """One pass of some images; `detail` is `answers`, `tokens` (the last grid too) or `layers` (every grid)."""
        features, grids = (net.encode_image(pixels), []) if detail == "answers" else net.encode_layers(pixels)
        shown = grids if detail == "layers" else grids[-1:]
        return Seen(pixels, features.double().cpu(), self.scores(net, features), tuple(g.cpu() for g in shown))

    @torch.no_grad()
    def scores(self, net: Model, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits of raw embeddings, float64 on the CPU."""
        net.check_classifier(self.weights, features.shape[1])
        return net.logits_of(features.to(net.device).float(), self.weights.to(net.device)).cpu().double()


@dataclass(frozen=True)
class Batch:
    """Some images as they are, for a condition to change.

    Attributes:
        net: The model that will look at them.
        head: Who answers.
        sample_ids: (N,) ids.
        labels: (N,) class indices.
        clean: What the model makes of the unchanged images; `clean.pixels` are these.
        draw: Which repetition of a random condition this is, from 0.
        seed: Of everything random.
        open: Opens the picture of a sample id, before the model's own resize.
    """

    net: Model
    head: Head
    sample_ids: Sequence[str]
    labels: Int[Tensor, "n"]
    clean: Seen
    draw: int = 0
    seed: int = 0
    open: Callable[[str], Image.Image] | None = field(default=None, repr=False)

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


def nothing(batch: Batch, seen: Seen) -> dict:
    """No further facts."""
    return {}


@dataclass(frozen=True)
class Condition:
    """One way to show images again.

    Attributes:
        name: The rows' `condition`, a term of the field such as `gaussian_noise`.
        severity: How strongly; 0 is the unchanged image.
        change: Gives the pixels (N, 3, H, W) in [0, 1] that are shown.
        facts: Further columns of the rows by name, (N,) each, from the batch and what the model made of it.
        draws: Repetitions: those that `measure` is asked for (None), a number, or a number by sample id; samples that
            it does not name are left out.
    """

    name: str
    severity: float
    change: Callable[[Batch], Float[Tensor, "n 3 h w"]]
    facts: Callable[[Batch, Seen], dict] = nothing
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


@dataclass(frozen=True)
class Lookup:
    """A change that was made before, such as an alignment: final pixels by sample id and draw.

    Attributes:
        rows: Position in `pixels` by (sample id, draw).
        pixels: (N, 3, H, W) in [0, 1].
        columns: Facts by name, (N,) each.
    """

    rows: Mapping[tuple[str, int], int]
    pixels: Float[Tensor, "n 3 h w"]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        return self.pixels[self._positions(batch)].to(batch.pixels.device)

    def facts(self, batch: Batch, seen: Seen) -> dict:
        positions = self._positions(batch)
        return {name: np.asarray(values)[positions] for name, values in self.columns.items()}

    def _positions(self, batch: Batch) -> list[int]:
        return [self.rows[sample_id, batch.draw] for sample_id in batch.sample_ids]


def made_before(
    name: str,
    severity: float,
    sample_ids: Iterable[str],
    pixels: Float[Tensor, "n 3 h w"],
    columns: Mapping[str, np.ndarray] | None = None,
) -> Condition:
    """A condition of images that were made already; several of one sample are its draws, in their order.

    Examples:
        >>> condition = made_before("aligned", 1, ["a", "a", "b"], torch.zeros(3, 3, 2, 2))
        >>> condition.draws
        {'a': 2, 'b': 1}
    """
    draws: dict[str, int] = {}
    rows = {}
    for position, sample_id in enumerate(sample_ids):
        rows[sample_id, draws.get(sample_id, 0)] = position
        draws[sample_id] = draws.get(sample_id, 0) + 1
    lookup = Lookup(rows, pixels, columns or {})
    return Condition(name, severity, lookup.change, lookup.facts, draws)


def unit_noise(shape: Sequence[int], names: Iterable[str], seed: Sequence[int]) -> Float[Tensor, "n 3 h w"]:
    """Standard normal noise: a generator a name, so that no batch, order or subset can change it.

    Examples:
        >>> both, one = unit_noise((3, 2, 2), ["a", "b"], (0, 0)), unit_noise((3, 2, 2), ["b"], (0, 0))
        >>> bool((both[1] == one[0]).all())
        True
    """
    drawn = []
    for name in names:
        key = hashlib.sha256(f"{tuple(seed)}\0{name}".encode()).digest()
        drawn.append(np.random.default_rng(np.frombuffer(key, np.uint32)).standard_normal(shape, dtype=np.float32))
    return torch.from_numpy(np.stack(drawn)) if drawn else torch.empty(0, *shape)


def drift_between(one: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """1 - cosine, as half the squared distance of the unit vectors: no cancellation hides a small one."""
    return (F.normalize(one.double(), dim=1) - F.normalize(other.double(), dim=1)).square().sum(1) / 2


def margin_of(logits: Float[Tensor, "n k"], classes: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Logit of one class of every image less the largest other one."""
    own = classes.long()[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)
