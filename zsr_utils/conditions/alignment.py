"""Embedding alignment: move an image, as little as may be, until its embedding is another's.

Many pairs of (source image, goal) are stepped at once, one forward and one input-gradient pass a step. A pair that
meets its goal leaves the batch and the next one takes its place, so that no step is spent on finished pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from zsr_utils._cache import cache_folder, code, digest, read_kept, write_kept
from zsr_utils._progress import progress
from zsr_utils._text import one_of
from zsr_utils.conditions import _steps
from zsr_utils.conditions._steps import Settings
from zsr_utils.models import Model, trusted


DEFAULT = Settings()


class Goal:
    """What pairs are moved towards: a loss, and when a pair is finished. The fields `own` have an entry a pair."""

    own: tuple[str, ...]

    def __len__(self) -> int:
        return len(getattr(self, self.own[0]))

    def rows(self, chosen: Int[Tensor, "m"] | int) -> "Goal":
        """The goal for some of the pairs."""
        values = {name: getattr(self, name) for name in self.own}
        return replace(self, **{name: value[chosen] for name, value in values.items() if value is not None})

    def to(self, device: torch.device) -> "Goal":
        """The goal with its tensors on a device, so that no step waits for them."""
        return replace(self, **{name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Match(Goal):
    """Goal: the embedding is the target's, by squared distance and cosine. Loss `1/2 ||f(x) - t||^2` on raw features.

    Source: Salman et al. (2024); 16 and 0.96 in the authors' code for the raw features of ViT-H-14.
    """

    targets: Float[Tensor, "n d"]  # raw embeddings, one a source
    cosine: float = 0.96  # bound on the similarity
    # bound on the squared distance; None is `2 (1 - cosine) ||t||^2`, which says the same of embeddings of equal length
    distance: float | None = None
    own = ("targets",)

    def __post_init__(self):
        if self.distance is not None and not self.distance > 0:
            raise ValueError(f"Match: distance is {self.distance}, allowed is above 0.")
        if not -1 < self.cosine < 1:
            raise ValueError(f"Match: cosine is {self.cosine}, allowed is between -1 and 1.")

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        return 0.5 * (features - self.targets[rows]).square().sum(1)

    def reached(self, features: Tensor, rows: Tensor) -> Tensor:
        targets = self.targets[rows]
        bound = 2 * (1 - self.cosine) * targets.square().sum(1) if self.distance is None else self.distance
        near = (features - targets).square().sum(1) < bound
        return near & (F.cosine_similarity(features, targets) > self.cosine)


@dataclass(frozen=True)
class Answer(Goal):
    """Goal: the model names the target class. Loss: how far its logit is behind the largest other one.

    The model gives the logit scale, the classifier unit text weights.

    Source: The margin loss of Carlini & Wagner (2017); with Polyak's step it is the step of DeepFool (Moosavi-Dezfooli
        et al. 2016).
    """

    net: Model
    classifier: Float[Tensor, "k d"]
    labels: Int[Tensor, "n"]
    own = ("labels",)

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        logits, own = self.net.logits_of(features, self.classifier), self.labels[rows][:, None]
        return (logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own)[:, 0]).clamp_min(0)

    def reached(self, features: Tensor, rows: Tensor) -> Tensor:
        return self.net.logits_of(features, self.classifier).argmax(1) == self.labels[rows]


@dataclass(frozen=True)
class Aligned:
    """What became of every pair: the image in [0, 1], gradient steps taken, and whether the goal was met there."""

    pixels: Float[Tensor, "n 3 h w"]
    steps: Int[Tensor, "n"]
    reached: Bool[Tensor, "n"]


def align(
    net: Model, sources: Float[Tensor, "n 3 h w"], goal: Goal, settings: Settings = DEFAULT, *,
    until: Goal | None = None, names: Sequence[str] | None = None, batch_size: int = 64, keep: bool = False,
    hidden: bool = False,
) -> Aligned:  # fmt: skip
    """Move every source image, in [0, 1], towards its goal, and stop there.

    Args:
        goal: What to minimise, one entry a source.
        until: When a pair is finished, if that is another goal than the one minimised.
        names: Of the pairs, for messages and for their noise; their numbers by default.
        keep: Keep finished pairs in the cache folder by model, source, goal and settings: an interrupted run goes on
            from there, and a second one computes nothing.
        hidden: No progress bar, for a step of something that has one.

    Raises: ValueError for sources, goals or names that do not fit each other; FloatingPointError where a gradient is
        not finite.
    """
    until = until or goal
    names = list(map(str, range(len(sources)))) if names is None else list(map(str, names))
    _check(net, sources, goal, until, settings, names, batch_size)
    aligned = _nothing_done(sources)
    files, waiting = [], list(range(len(sources)))
    if keep:
        made_by = digest(net.fingerprint, net.precision, settings, code("models", "conditions"))
        folder = cache_folder() / "aligned" / made_by
        noise = names if settings.random else [""] * len(names)  # by which it is drawn
        files = [folder / f"{digest(sources[k], goal.rows(k), until.rows(k), noise[k])}.npz" for k in waiting]
        known = {k: found for k, file in enumerate(files) if (found := read_kept(file)) is not None}
        waiting = [k for k in waiting if k not in known]
        for k, found in known.items():
            for name, values in vars(aligned).items():
                values[k] = torch.from_numpy(found[name])
    goal, until, late = goal.to(net.device), until.to(net.device), net.device.type in _steps.LATE
    batch, inside, limits, before = {}, {}, {}, None  # steps that pairs in the batch took, and those they may take
    told = progress(len(sources), "align", unit="pair", initial=len(sources) - len(waiting), hidden=hidden)
    with told as bar, trusted(net):
        while waiting or inside:
            if taken := waiting[: batch_size - len(inside)]:
                waiting = waiting[len(taken) :]
                new = settings.begin(sources, taken, names, net.device)
                batch = _steps.join(batch, new)
                inside |= dict.fromkeys(taken, 0)
                limits |= zip(taken, new["limit"].tolist())
            pixels = saved_as_png(batch["pixels"]) if settings.eight_bit else batch["pixels"]
            given_up = [steps >= limits[row] for row, steps in inside.items()]
            gradient, loss, reached = settings.look(net, pixels, goal, until, batch, names, all(given_up))
            looks = [before, _steps.Look(pixels, gradient, reached, batch["steps"] >= batch["limit"], inside)]
            # a device is read one step late, so that it need not wait for the host in every step
            before = looks.pop() if late and not any(given_up) else None
            for look in filter(None, looks):
                if not (done := look.finished(inside, names)):
                    continue
                rows, at = list(done), list(done.values())
                aligned.pixels[rows] = look.pixels[at].cpu()
                aligned.steps[rows] = torch.tensor([look.steps[row] for row in rows])
                aligned.reached[rows] = look.reached[at].cpu()
                bar.update(len(rows))
                for row in rows if keep else ():
                    write_kept(files[row], {name: values[row].numpy() for name, values in vars(aligned).items()})
                kept = torch.tensor([k for k, row in enumerate(inside) if row not in done], device=net.device).long()
                inside = {row: steps for row, steps in inside.items() if row not in done}
                batch = {name: value[kept] for name, value in batch.items()}
                gradient, loss = gradient[kept], loss[kept]
            moved = batch["pixels"] + settings.move(batch, gradient, loss, names)
            batch["pixels"] = _steps.project(moved, batch, settings)
            batch["steps"] = batch["steps"] + 1
            inside = {row: steps + 1 for row, steps in inside.items()}
    return aligned


def smallest_budgets(
    net: Model, sources: Float[Tensor, "n 3 h w"], goal: Goal, budgets: Sequence[float], settings: Settings, *,
    names: Sequence[str] | None = None, batch_size: int = 64, keep: bool = False,
) -> dict[float, Aligned]:  # fmt: skip
    """`align` in balls of growing radius, in place of `settings.eps`: only pairs that resist are tried again.

    A pair that succeeds keeps its image, which lies inside of every larger ball.
    """
    if list(budgets) != sorted(set(budgets)):
        raise ValueError(f"budgets are {list(budgets)}, allowed are growing numbers.")
    names = list(map(str, range(len(sources)))) if names is None else list(map(str, names))
    by_budget: dict[float, Aligned] = {}
    last = _nothing_done(sources)
    for eps in budgets:
        rows = (~last.reached).nonzero()[:, 0]
        last = Aligned(last.pixels.clone(), last.steps.clone(), last.reached.clone())
        if len(rows):
            new = align(
                net, sources[rows], goal.rows(rows), replace(settings, eps=eps),
                names=[names[row] for row in rows], batch_size=batch_size, keep=keep,
            )  # fmt: skip
            last.pixels[rows], last.reached[rows] = new.pixels, new.reached
            last.steps[rows] += new.steps
        by_budget[eps] = last
    return by_budget


@torch.no_grad()
def blended(
    net: Model, sources: Float[Tensor, "n 3 h w"], others: Float[Tensor, "n 3 h w"], goal: Goal, *,
    batch_size: int = 64, halvings: int = 8,
) -> Aligned:  # fmt: skip
    """Sources blended with other pictures, as little as meets the goal in an 8-bit file: a crossing, by bisection."""
    goal = goal.to(net.device)

    def blend(share: Tensor) -> tuple[Tensor, Tensor]:
        pixels = saved_as_png(torch.lerp(sources, others, share[:, None, None, None]))
        features = torch.cat([net.encode_image(part.to(net.device)) for part in pixels.split(batch_size)])
        return pixels, goal.reached(features, torch.arange(len(pixels), device=net.device)).cpu()

    low, high = torch.zeros(len(sources)), torch.ones(len(sources))
    for _ in range(halvings):
        middle = (low + high) / 2
        reached = blend(middle)[1]
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    pixels, reached = blend(high)
    return Aligned(pixels, torch.zeros(len(sources), dtype=torch.long), reached)


def saved_as_png(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """What an 8-bit PNG file gives back: every success is measured on these pixels."""
    return (pixels * 255).round() / 255


def text_targets(
    net: Model, texts: Sequence[str], features: Float[Tensor, "n d"], *, scale: str = "min-max"
) -> Float[Tensor, "n d"]:
    """Text embeddings, one an image, brought to the scale of the images' raw embeddings, as targets for `Match`.

    `min-max` stretches each to the smallest and largest coordinate of the image's, as the authors' code does; `norm`
    keeps its direction and takes the image's length.

    Source: Salman et al. (2024) and their code for text targets (arXiv 2407.01157); `norm` is ours.
    """
    one_of("scale", scale, ("min-max", "norm"))
    if len(texts) != len(features):
        raise ValueError(f"{len(texts)} texts and {len(features)} images given, allowed is one text an image.")
    unique = list(dict.fromkeys(texts))
    values = net.encode_text(unique).to(features.device)[[unique.index(t) for t in texts]]
    if scale == "norm":
        return F.normalize(values) * features.norm(dim=1, keepdim=True)
    (low, high), (to_low, to_high) = (v.aminmax(dim=1, keepdim=True) for v in (values, features))
    return (values - low) / (high - low) * (to_high - to_low) + to_low


def closeness(sources: Float[Tensor, "n 3 h w"], pixels: Float[Tensor, "n 3 h w"]) -> dict[str, np.ndarray]:
    """How near two images are: `psnr` (dB), `ssim`, and `lpips` where possible.

    LPIPS is measured when the AlexNet weights it needs lie in torch's own cache; nothing is downloaded.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    rms = 255 * (pixels - sources).flatten(1).double().square().mean(1).sqrt()
    both = list(zip(pixels.split(256), sources.split(256)))
    alike = [ssim(a, b, data_range=1.0, reduction="none").reshape(-1) for a, b in both]
    found = {"psnr": 20 * torch.log10(255 / rms), "ssim": torch.cat(alike)}
    if (lpips := _lpips()) is not None:
        with torch.no_grad():
            found["lpips"] = torch.cat([lpips(a, b, normalize=True).reshape(-1) for a, b in both])
    return {name: value.numpy() for name, value in found.items()}


@cache
def _lpips() -> torch.nn.Module | None:
    """LPIPS over AlexNet, where its weights are in torch's cache."""
    from torchmetrics.functional.image.lpips import _LPIPS

    known = any((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-owt-*.pth"))
    return _LPIPS(pretrained=True, net="alex").eval() if known else None


def _nothing_done(sources: Tensor) -> Aligned:
    return Aligned(sources.clone(), torch.zeros(len(sources), dtype=torch.long), torch.zeros(len(sources)).bool())


def _check(net, sources, goal, until, settings: Settings, names: Sequence[str], batch_size: int) -> None:
    if len(sources) == 0 or not len(sources) == len(goal) == len(until):
        raise ValueError(f"{len(sources)} sources and {len(goal)} targets given, allowed is one target a source.")
    if sources.shape[1:] != (3, net.image_size, net.image_size):
        shape, size = tuple(sources.shape), net.image_size
        raise ValueError(f"sources have shape {shape}, {net.name} takes (N, 3, {size}, {size}).")
    low, high = sources.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"sources run from {float(low):.4g} to {float(high):.4g}, allowed is [0, 1].")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, allowed is 1 or more.")
    if settings.optimizer == "pgd" and settings.eps is None:
        raise ValueError("pgd needs eps, the radius of its ball.")
    if settings.eight_bit and settings.eps is not None and np.min(settings.eps) < 0.5 / 255:
        low, high = _steps.box(sources, settings)
        empty = (low > high).flatten(1).any(1)
        if empty.any():
            pair = names[int(empty.nonzero()[0])]
            lost = f"no 8-bit image lies in the ball of pair {pair}, whose source lies between grey levels"
            raise ValueError(f"eps is {np.min(settings.eps):.2g}: {lost}.")
