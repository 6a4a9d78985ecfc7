"""Embedding alignment: move an image, as little as may be, until its embedding is another's.

Many pairs of (source image, goal) are stepped at once. Each step is one forward and one input-gradient
pass; a pair that meets its goal leaves the batch and the next one takes its place, so that no step is
spent on finished pairs. `align` moves, `score` says what the model makes of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from zsr_utils._progress import hidden
from zsr_utils._text import one_of
from zsr_utils.conditions import _steps
from zsr_utils.conditions._kept import Kept, as_bytes
from zsr_utils.conditions._steps import OPTIMIZERS, Settings
from zsr_utils.models import Model


NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Match:
    """Goal: the embedding is the target's. Loss `1/2 ||f(x) - t||^2` on raw features.

    Reached when both hold: squared distance below, and cosine above.

    Attributes:
        targets: (N, D) raw target embeddings, one a source.
        cosine: Bound on the cosine similarity.
        distance: Bound on the squared distance, in embedding units; None is `2 (1 - cosine) ||t||^2`,
            where the two bounds say the same of embeddings of equal length, whatever the model's scale.

    Source:
        Salman et al. (2024); 16 and 0.96 in the authors' code for the raw features of ViT-H-14.
    """

    targets: Float[Tensor, "n d"]
    cosine: float = 0.96
    distance: float | None = None

    def __post_init__(self):
        if self.distance is not None and not self.distance > 0:
            raise ValueError(f"Match: distance is {self.distance}, allowed is above 0.")
        if not -1 < self.cosine < 1:
            raise ValueError(f"Match: cosine is {self.cosine}, allowed is between -1 and 1.")

    def __len__(self) -> int:
        return len(self.targets)

    def key(self, row: int) -> bytes:
        return as_bytes(self.targets[row]) + repr((self.cosine, self.distance)).encode()

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        return 0.5 * (features - self._targets(features, rows)).square().sum(1)

    def reached(self, features: Tensor, rows: Tensor) -> Tensor:
        targets = self._targets(features, rows)
        bound = 2 * (1 - self.cosine) * targets.square().sum(1) if self.distance is None else self.distance
        near = (features - targets).square().sum(1) < bound
        return near & (F.cosine_similarity(features, targets) > self.cosine)

    def _targets(self, features, rows):
        return self.targets[rows.cpu()].to(features.device)


@dataclass(frozen=True)
class Answer:
    """Goal: the model names the target class. Loss: how far its logit is behind the largest other one.

    Attributes:
        net: The model, for its logit scale.
        classifier: (K, D) unit text weights.
        labels: (N,) target classes.

    Source:
        The margin loss of Carlini & Wagner (2017); with Polyak's step it is the step of DeepFool
        (Moosavi-Dezfooli et al. 2016).
    """

    net: Model
    classifier: Float[Tensor, "k d"]
    labels: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, row: int) -> bytes:
        return as_bytes(self.classifier) + repr(int(self.labels[row])).encode()

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        logits = self.net.logits_of(features, self.classifier.to(features.device))
        own = self.labels[rows.cpu()].to(features.device)[:, None]
        return (logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own)[:, 0]).clamp_min(0)

    def reached(self, features: Tensor, rows: Tensor) -> Tensor:
        logits = self.net.logits_of(features, self.classifier.to(features.device))
        return logits.argmax(1) == self.labels[rows.cpu()].to(features.device)


Goal = Match | Answer


@dataclass(frozen=True)
class Aligned:
    """What became of every pair.

    Attributes:
        pixels: (N, 3, H, W) float32 in [0, 1].
        steps: (N,) gradient steps taken.
        reached: (N,) whether the goal was met at `pixels`.
    """

    pixels: Float[Tensor, "n 3 h w"]
    steps: Int[Tensor, "n"]
    reached: Bool[Tensor, "n"]


def align(
    net: Model,
    sources: Float[Tensor, "n 3 h w"],
    goal: Goal,
    *,
    until: Goal | None = None,
    optimizer: str = "polyak",
    step: float | None = None,
    momentum: float = 0.0,
    max_steps: int = 200,
    eps: float | None = None,
    norm: str = "linf",
    eight_bit: bool = False,
    noise: float = 0.0,
    draws: int = 4,
    batch_size: int = 64,
    seed: int = 0,
    names: Sequence[str] | None = None,
    keep: bool = False,
) -> Aligned:
    """Move every source image towards its goal, and stop there.

    Args:
        net: The model handle.
        sources: Source images in [0, 1].
        goal: What to minimise, one entry a source.
        until: When a pair is finished, if that is another goal than the one minimised.
        optimizer: `polyak`, whose step length `step * L / ||gradient||^2` follows from the known least
            loss 0; `gradient_descent`, the paper's fixed step length, halved for a pair after 50 steps
            without progress; or `pgd`, steps of a length that decays from `step * eps` to 0 along the
            steepest direction of the ball's norm (the sign of the gradient for `linf`).
        step: Relative step length of `polyak` and `pgd` (default 1), or the absolute one of
            `gradient_descent`, in squared pixels per unit of loss.
        momentum: Share of the last move (`polyak`) or of the accumulated gradient (`pgd`) kept.
        max_steps: Steps after which a pair is given up.
        eps: Radius of the ball around the source that the image may not leave, in units of [0, 1]
            pixels; None leaves only the box [0, 1].
        norm: `linf` bounds the change of every pixel, `l2` its Euclidean norm over the image.
        eight_bit: Look at the model, in every step, through an image rounded to 256 grey levels, so
            that what is reached holds for the saved file. An L-infinity ball then holds whole levels.
        noise: Standard deviation of Gaussian noise in [0, 1] units; above 0 the loss is averaged over
            `draws` noisy copies and the image itself, and all of them must meet the goal.
        draws: Noisy copies a step.
        batch_size: Pairs stepped at a time.
        seed: Of the noise.
        names: Names of the pairs for messages; their numbers by default.
        keep: Keep finished pairs in the cache folder by model, source, goal and settings: an
            interrupted run goes on from there, and a second one computes nothing.

    Raises:
        ValueError: If shapes do not match, or a parameter is out of range.
        FloatingPointError: If a gradient is not finite; the message names pair and step.

    Source:
        Salman et al. (2024): loss, start at the source and stop rule as in the authors' code, at [0, 1]
        pixels. Steps: Polyak (1987); Madry et al. (2018), with momentum Dong et al. (2018).
    """
    until = until or goal
    settings = Settings(optimizer, _step(optimizer, step), momentum, max_steps, eps, norm, eight_bit, noise, draws)
    _check(net, sources, goal, until, settings, batch_size)
    names = list(map(str, range(len(sources)))) if names is None else names
    found = Aligned(sources.clone(), torch.zeros(len(sources), dtype=torch.long), torch.zeros(len(sources)).bool())
    if eight_bit:
        found.pixels.copy_(saved_as_png(sources))
    store = Kept(net, sources, goal, until, settings, seed) if keep else None
    waiting = store.load(found) if store else list(range(len(sources)))
    generator = torch.Generator(net.device).manual_seed(seed)
    batch: dict[str, Tensor] = {}
    with tqdm(total=len(sources), initial=len(sources) - len(waiting), desc="align", disable=hidden()) as progress:
        while waiting or len(batch.get("rows", ())):
            free = batch_size - len(batch.get("rows", ()))
            taken, waiting = waiting[:free], waiting[free:]
            batch = _steps.join(batch, _steps.begin(sources, taken, settings, net.device))
            pixels = saved_as_png(batch["pixels"]) if eight_bit else batch["pixels"]
            given_up = batch["steps"] >= (0 if settings.radius == 0 else max_steps)
            last = bool(given_up.all())
            gradient, loss, reached = _steps.look(net, pixels, goal, until, batch["rows"], settings, generator, last)
            done = reached | given_up
            _refuse_not_finite(gradient, done, batch, names)
            if done.any():
                rows = batch["rows"][done].cpu()
                found.pixels[rows] = pixels[done].cpu()
                found.steps[rows] = batch["steps"][done].cpu()
                found.reached[rows] = reached[done].cpu()
                progress.update(len(rows))
                if store:
                    store.add(found, rows)
                batch = {name: value[~done] for name, value in batch.items()}
                gradient, loss = gradient[~done], loss[~done]
            batch["pixels"] = _steps.project(
                batch["pixels"] + _steps.move(batch, gradient, loss, settings), batch, settings
            )
            batch["steps"] = batch["steps"] + 1
    if store:
        store.flush(found)
    return found


def smallest_budgets(
    net: Model, sources: Float[Tensor, "n 3 h w"], goal: Goal, budgets: Sequence[float], **settings
) -> dict[float, Aligned]:
    """`align` in balls of growing radius; a pair that succeeds keeps its image in all larger balls.

    An image inside a small ball is inside every larger one, so success cannot fall with the budget, and
    only pairs that resist are tried again.

    Args:
        net: The model handle.
        sources: Source images in [0, 1].
        goal: As in `align`.
        budgets: Radii in units of [0, 1] pixels, growing.
        **settings: Passed on to `align`.

    Raises:
        ValueError: If the budgets do not grow, and as `align`.
    """
    if list(budgets) != sorted(set(budgets)):
        raise ValueError(f"budgets are {list(budgets)}, allowed are growing numbers.")
    settings = {"optimizer": "pgd", **settings}
    found: dict[float, Aligned] = {}
    last = Aligned(sources, torch.zeros(len(sources), dtype=torch.long), torch.zeros(len(sources)).bool())
    for eps in budgets:
        rows = (~last.reached).nonzero()[:, 0]
        last = Aligned(last.pixels.clone(), last.steps.clone(), last.reached.clone())
        if len(rows):
            part = {k: _Rows(v, rows) for k, v in {"goal": goal, "until": settings.get("until") or goal}.items()}
            new = align(net, sources[rows], part["goal"], **{**settings, "until": part["until"], "eps": eps})
            last.pixels[rows], last.reached[rows] = new.pixels, new.reached
            last.steps[rows] += new.steps
        found[eps] = last
    return found


def saved_as_png(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """What an 8-bit PNG file gives back: every success is measured on these pixels.

    Examples:
        >>> saved_as_png(torch.tensor([0.5003])).mul(255).item()
        128.0
    """
    return (pixels * 255).round() / 255


def make_pairs(rows: pd.DataFrame, *, per_class: int = 10, seed: int = 0) -> pd.DataFrame:
    """Ordered pairs: random images of every class, each with a random image of every other class.

    Args:
        rows: One row an image, columns `sample_id` and `label`.
        per_class: Source images a class; 10 classes give `90 * per_class` pairs.
        seed: Of the draws.

    Returns:
        Columns `sample_id`, `label` (the source's), `target_id`, `target_label`.

    Raises:
        ValueError: If a class has fewer images than asked, or there is only one class.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": list("abcd"), "label": [0, 0, 1, 1]})
        >>> make_pairs(rows, per_class=1).label.tolist()
        [0, 1]

    Source:
        Salman et al. (2024), Fig. 1: one aligned image for each other class; 10 sources a class is ours.
    """
    by_class = {label: part.sample_id.to_numpy() for label, part in rows.groupby("label", sort=True)}
    if len(by_class) < 2:
        raise ValueError(f"{len(by_class)} class given, pairs need at least two.")
    few = min(by_class, key=lambda label: len(by_class[label]))
    if not 1 <= per_class <= len(by_class[few]):
        most = len(by_class[few])
        raise ValueError(f"per_class is {per_class}, allowed is 1 to {most}, the number of images of class {few}.")
    rng = np.random.default_rng(seed)
    pairs = [
        (source, label, rng.choice(others), target_label)
        for label, own in by_class.items()
        for source in rng.choice(own, per_class, replace=False)
        for target_label, others in by_class.items()
        if target_label != label
    ]
    return pd.DataFrame(pairs, columns=["sample_id", "label", "target_id", "target_label"])


def text_targets(
    net: Model, texts: Sequence[str], features: Float[Tensor, "n d"], *, scale: str = "min-max"
) -> Float[Tensor, "n d"]:
    """Text embeddings brought to the scale of image embeddings, as targets for `Match`.

    Args:
        net: The model handle.
        texts: One a source image.
        features: Raw embeddings of the source images.
        scale: `min-max` stretches each text embedding to the smallest and largest coordinate of the
            image's, as the authors' code does; `norm` keeps its direction and takes the image's length.

    Raises:
        TypeError: If the model has no text tower.
        ValueError: If `scale` is unknown or there is not one text an image.

    Source:
        Salman et al. (2024) and their code for text targets (arXiv 2407.01157); `norm` is ours.
    """
    one_of("scale", scale, ("min-max", "norm"))
    if len(texts) != len(features):
        raise ValueError(f"{len(texts)} texts and {len(features)} images given, allowed is one text an image.")
    unique = list(dict.fromkeys(texts))
    encoded = net.encode_text(unique).to(features.device)
    values = encoded[[unique.index(t) for t in texts]]
    if scale == "norm":
        return F.normalize(values) * features.norm(dim=1, keepdim=True)
    (low, high), (to_low, to_high) = (v.aminmax(dim=1, keepdim=True) for v in (values, features))
    return (values - low) / (high - low) * (to_high - to_low) + to_low


def score(
    net: Model,
    pairs: pd.DataFrame,
    sources: Float[Tensor, "n 3 h w"],
    found: Aligned,
    classifier: Float[Tensor, "k d"],
    targets: Float[Tensor, "n d"],
    *,
    condition: str,
    severity: float = 0.0,
    eight_bit: bool = True,
    source_features: Float[Tensor, "n d"] | None = None,
) -> tuple[pd.DataFrame, Float[Tensor, "n d"]]:
    """Rows: what the model says of the moved images, after a round trip through an 8-bit file.

    Args:
        net: The model handle.
        pairs: Columns as `make_pairs` gives them.
        sources: Source images.
        found: What `align` made of them.
        classifier: (K, D) unit text weights.
        targets: Raw embeddings of the target images or texts.
        condition: Name of the experiment in the rows.
        severity: Its strength, such as the pixel budget in grey levels.
        eight_bit: Round to grey levels first; False measures the float images.
        source_features: Raw embeddings of the sources, where they are known already.

    Returns:
        Rows with the columns of `pairs` and `condition`, `severity`, `prediction`, `confidence`,
        `margin` (logit of the source's class less the largest other one), `target_probability`,
        `target_cosine`, `source_cosine`, `linf` and `rms` (grey levels), `psnr` (dB), `ssim`, `steps`,
        `reached`; and the raw embeddings of the images that were measured.

    Raises:
        ValueError: If a target is of its source's own class.

    Source:
        Salman et al. (2024); closeness is this project's choice, SSIM as in torchmetrics.
    """
    own = pairs[pairs.label == pairs.target_label]
    if len(own):
        raise ValueError(f"The target of {own.sample_id.iloc[0]!r} is of its own class, allowed is another class.")
    pixels = saved_as_png(found.pixels) if eight_bit else found.pixels
    features = encode(net, pixels)
    before = encode(net, sources) if source_features is None else source_features
    logits = net.logits_of(features.to(net.device), classifier).cpu().double()
    probabilities = logits.softmax(1)
    index = torch.arange(len(logits))
    label, target = (torch.tensor(pairs[c].to_numpy()) for c in ("label", "target_label"))
    others = logits.clone()
    others[index, label] = -torch.inf
    rows = pairs.assign(
        condition=condition,
        severity=severity,
        prediction=logits.argmax(1).numpy(),
        confidence=probabilities.amax(1).numpy(),
        margin=(logits[index, label] - others.amax(1)).numpy(),
        target_probability=probabilities[index, target].numpy(),
        target_cosine=F.cosine_similarity(features, targets.cpu()).numpy(),
        source_cosine=F.cosine_similarity(features, before.cpu()).numpy(),
        **closeness(sources, pixels),
        steps=found.steps.numpy(),
        reached=found.reached.numpy(),
    )
    return rows, features


def closeness(sources: Float[Tensor, "n 3 h w"], pixels: Float[Tensor, "n 3 h w"]) -> dict[str, np.ndarray]:
    """How near two images are: `linf`, `rms` (grey levels), `psnr` (dB), `ssim`, and `lpips` where possible.

    LPIPS is measured when the AlexNet weights it needs lie in torch's own cache; nothing is downloaded.

    Examples:
        >>> found = closeness(torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 2 / 255))
        >>> round(float(found["linf"][0]), 3), round(float(found["rms"][0]), 3), round(float(found["psnr"][0]), 1)
        (2.0, 2.0, 42.1)
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    change = 255 * (pixels - sources).flatten(1).double()
    rms = change.square().mean(1).sqrt()
    found = {
        "linf": change.abs().amax(1),
        "rms": rms,
        "psnr": 20 * torch.log10(255 / rms),
        "ssim": torch.cat(
            [
                ssim(a, b, data_range=1.0, reduction="none").reshape(-1)
                for a, b in zip(pixels.split(256), sources.split(256))
            ]
        ),
    }
    if lpips_available():
        from torchmetrics.functional.image.lpips import _LPIPS

        distance = _LPIPS(pretrained=True, net="alex").eval()
        with torch.no_grad():
            found["lpips"] = torch.cat(
                [distance(a, b, normalize=True).reshape(-1) for a, b in zip(pixels.split(256), sources.split(256))]
            )
    return {name: value.numpy() for name, value in found.items()}


def lpips_available() -> bool:
    """Whether the AlexNet weights that LPIPS reads are in torch's cache."""
    return any((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-owt-*.pth"))


@torch.no_grad()
def encode(net: Model, pixels: Float[Tensor, "n 3 h w"], *, batch_size: int = 256) -> Float[Tensor, "n d"]:
    """Raw features of images in memory, on the CPU."""
    return torch.cat([net.encode_image(part.to(net.device)).cpu() for part in pixels.split(batch_size)])


class _Rows:
    """A goal for some of its rows."""

    def __init__(self, goal: Goal, rows: Tensor):
        self._goal, self._rows = goal, rows

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: int) -> bytes:
        return self._goal.key(int(self._rows[row]))

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        return self._goal.loss(features, self._rows[rows.cpu()])

    def reached(self, features: Tensor, rows: Tensor) -> Tensor:
        return self._goal.reached(features, self._rows[rows.cpu()])


def _step(optimizer: str, step: float | None) -> float:
    one_of("optimizer", optimizer, OPTIMIZERS)
    if step is None and optimizer == "gradient_descent":
        raise ValueError("gradient_descent needs a step, in squared pixels per unit of loss.")
    return 1.0 if step is None else float(step)


def _check(net, sources, goal, until, settings: Settings, batch_size: int) -> None:
    one_of("norm", settings.norm, NORMS)
    if len(sources) == 0 or not len(sources) == len(goal) == len(until):
        raise ValueError(f"{len(sources)} sources and {len(goal)} targets given, allowed is one target a source.")
    if sources.shape[1:] != (3, net.image_size, net.image_size):
        shape, size = tuple(sources.shape), net.image_size
        raise ValueError(f"sources have shape {shape}, {net.name} takes (N, 3, {size}, {size}).")
    bounds = {
        "step": (settings.step, settings.step > 0, "above 0"),
        "momentum": (settings.momentum, 0 <= settings.momentum < 1, "0 to below 1"),
        "max_steps": (settings.max_steps, settings.max_steps >= 1, "1 or more"),
        "batch_size": (batch_size, batch_size >= 1, "1 or more"),
        "noise": (settings.noise, 0 <= settings.noise <= 1, "0 to 1 (8 grey levels are 8/255)"),
        "draws": (settings.draws, settings.draws >= 1, "1 or more"),
    }
    for name, (value, good, allowed) in bounds.items():
        if not good:
            raise ValueError(f"{name} is {value}, allowed is {allowed}.")
    if settings.eps is not None and not (settings.eps >= 0 and (settings.norm == "l2" or settings.eps <= 1)):
        allowed = "0 or more" if settings.norm == "l2" else "0 to 1 (8 grey levels are 8/255)"
        raise ValueError(f"eps is {settings.eps}, allowed is {allowed}.")
    if settings.optimizer == "pgd" and settings.eps is None:
        raise ValueError("pgd needs eps, the radius of its ball.")


def _refuse_not_finite(gradient: Tensor, done: Tensor, batch: dict[str, Tensor], names: Sequence[str]) -> None:
    wrong = ~gradient.flatten(1).isfinite().all(1) & ~done
    if wrong.any():
        first = int(wrong.nonzero()[0])
        pair, step = names[int(batch["rows"][first])], int(batch["steps"][first])
        raise FloatingPointError(f"The gradient of pair {pair} is not finite at step {step}.")
