"""Embedding alignment: move an image, hardly visibly, until its embedding is another's.

Minimises `L = 1/2 ||f(x) - t||^2` over pixels in [0, 1], from the source image, for many pairs of
(source image, target embedding t) at once. A pair that meets the stop rule leaves the batch and the
next one takes its place, so that no step is spent on finished pairs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from zsr_utils._text import one_of
from zsr_utils.models import Model
from zsr_utils.probes._progress import hidden


OPTIMIZERS = ("polyak", "gradient_descent")
PATIENCE = 50  # steps without progress after which gradient descent halves its step


@dataclass(frozen=True)
class StopRule:
    """A pair is aligned when both hold: squared distance below, and cosine above.

    Attributes:
        distance: Bound on the squared Euclidean distance of the raw embeddings, in embedding units.
        cosine: Bound on their cosine similarity.

    Source:
        Salman et al. (2024), stop test of the authors' code; 16 and 0.96 there, for 1,024 dimensions.
    """

    distance: float
    cosine: float = 0.96

    def __post_init__(self):
        if not self.distance > 0:
            raise ValueError(f"StopRule: distance is {self.distance}, allowed is above 0.")
        if not -1 < self.cosine < 1:
            raise ValueError(f"StopRule: cosine is {self.cosine}, allowed is between -1 and 1.")


@dataclass(frozen=True)
class Aligned:
    """What became of every pair.

    Attributes:
        pixels: (N, 3, H, W) float32 in [0, 1], before any rounding to grey levels.
        steps: (N,) gradient steps taken.
        reached: (N,) whether the stop rule was met.
        distance: (N,) squared distance to the target embedding at `pixels`.
        cosine: (N,) cosine similarity to the target embedding at `pixels`.
    """

    pixels: Float[Tensor, "n 3 h w"]
    steps: Int[Tensor, "n"]
    reached: Bool[Tensor, "n"]
    distance: Float[Tensor, "n"]
    cosine: Float[Tensor, "n"]


def align(
    net: Model,
    sources: Float[Tensor, "n 3 h w"],
    targets: Float[Tensor, "n d"],
    *,
    stop: StopRule,
    optimizer: str = "polyak",
    step: float = 1.0,
    max_steps: int = 200,
    eps: float | None = None,
    batch_size: int = 64,
) -> Aligned:
    """Align every source image with its target embedding.

    Each step is one forward and one input-gradient pass over the active pairs; the stop test reads
    the same forward pass, and weights never get a gradient.

    Args:
        net: The model handle.
        sources: Source images in [0, 1].
        targets: Raw target embeddings, one a source.
        stop: When a pair is aligned.
        optimizer: `polyak`, whose step length `step * L / ||grad||^2` follows from the known minimum
            L = 0, or `gradient_descent`, the fixed step length of the paper, halved for a pair after
            50 steps without progress.
        step: Relative step length of `polyak` (2 would be exact for a linear f with J J^T = I), or the
            absolute one of `gradient_descent` in squared pixels per squared embedding unit.
        max_steps: Steps after which a pair is given up.
        eps: Bound on the change of a pixel (L-infinity), in [0, 1]; None leaves only the box.
        batch_size: Pairs stepped at a time.

    Raises:
        ValueError: If shapes do not match, or a parameter is out of range.
        FloatingPointError: If a gradient is not finite; the message names pair and step.

    Source:
        Salman et al. (2024); update and stop rule as in the authors' code, at [0, 1] pixels. The step
        rule is Polyak's (1987).
    """
    _check(sources, targets, optimizer, step, max_steps, eps)
    n = len(sources)
    result = sources.clone()
    steps = torch.zeros(n, dtype=torch.long)
    reached = torch.zeros(n, dtype=torch.bool)
    distance, cosine = torch.full((n,), torch.inf), torch.zeros(n)
    best, stalled, length = torch.full((n,), torch.inf), torch.zeros(n), torch.full((n,), float(step))
    waiting, active = list(range(n)), []
    with tqdm(total=n, desc="align", unit="pair", disable=hidden()) as progress:
        while waiting or active:
            taken = batch_size - len(active)
            active, waiting = active + waiting[:taken], waiting[taken:]
            rows = torch.tensor(active)
            pixels = result[rows].to(net.device).requires_grad_(True)
            gradient, loss, similarity = _gradient(net, pixels, targets[rows].to(net.device))
            distance[rows], cosine[rows] = 2 * loss.cpu(), similarity.cpu()
            reached[rows] = (distance[rows] < stop.distance) & (cosine[rows] > stop.cosine)
            done = reached[rows] | (steps[rows] >= max_steps)
            wrong = ~gradient.flatten(1).isfinite().all(1).cpu() & ~done
            if wrong.any():
                pair = int(rows[wrong][0])
                raise FloatingPointError(f"The gradient of pair {pair} is not finite at step {int(steps[pair])}.")
            if optimizer == "polyak":
                square = gradient.flatten(1).square().sum(1).clamp_min(1e-30)
                rate = length[rows].to(net.device) * loss / square
            else:
                stalled[rows] = torch.where(distance[rows] < best[rows], 0.0, stalled[rows] + 1)
                best[rows] = torch.minimum(best[rows], distance[rows])
                length[rows] = torch.where(stalled[rows] >= PATIENCE, length[rows] / 2, length[rows])
                stalled[rows] = torch.where(stalled[rows] >= PATIENCE, 0.0, stalled[rows])
                rate = length[rows].to(net.device)
            moved = (pixels - rate[:, None, None, None] * gradient).detach().cpu()
            go_on = ~done
            kept = rows[go_on]
            result[kept] = _project(moved[go_on], sources[kept], eps)
            steps[kept] += 1
            active = kept.tolist()
            progress.update(int(done.sum()))
    return Aligned(result, steps, reached, distance, cosine)


def _gradient(net: Model, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel gradient, loss and cosine of every pair, from one pass each way."""
    with torch.enable_grad():
        features = net.encode_image(pixels)
        loss = 0.5 * (features - targets).square().sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), pixels)
    similarity = F.cosine_similarity(features.detach(), targets, dim=1)
    return gradient, loss.detach(), similarity


def _project(pixels: Tensor, sources: Tensor, eps: float | None) -> Tensor:
    if eps is not None:
        pixels = sources + (pixels - sources).clamp(-eps, eps)
    return pixels.clamp(0, 1)


def _check(sources, targets, optimizer, step, max_steps, eps) -> None:
    one_of("optimizer", optimizer, OPTIMIZERS)
    if len(sources) == 0 or len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets given, allowed is one target a source.")
    if not step > 0:
        raise ValueError(f"step is {step}, allowed is above 0.")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, allowed is 1 or more.")
    if eps is not None and not 0 <= eps <= 1:
        raise ValueError(f"eps is {eps}, allowed is 0 to 1 (8 grey levels are 8/255).")


def saved_as_png(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """What an 8-bit PNG file gives back: every success is measured on these pixels.

    Examples:
        >>> saved_as_png(torch.tensor([0.5003])).mul(255).item()
        128.0
    """
    return (pixels * 255).round() / 255
