"""One step of many pairs at once: look at the model, move the images, stay in the ball."""

from dataclasses import dataclass

import torch
from torch import Tensor


PATIENCE = 50  # steps without progress after which gradient descent halves its step
TINY = 1e-30
LONGEST = 0.1  # Polyak step (RMS over the pixels): a vanishing gradient must not throw the image to the box's corners


@dataclass(frozen=True)
class Settings:
    optimizer: str
    step: float
    momentum: float
    max_steps: int
    eps: float | None
    norm: str
    eight_bit: bool
    noise: float
    draws: int

    @property
    def radius(self) -> float | None:
        """The radius that counts: whole grey levels for images that are rounded to them."""
        if self.eps is None or self.norm == "l2" or not self.eight_bit:
            return self.eps
        return int(255 * self.eps + 1e-6) / 255


def begin(sources: Tensor, rows: list[int], settings: Settings, device) -> dict[str, Tensor]:
    """State of pairs that enter the batch; every entry has one row a pair."""
    pixels = sources[rows].to(device)
    n = len(rows)
    return {
        "rows": torch.tensor(rows, dtype=torch.long, device=device),
        "source": pixels,
        "pixels": pixels,
        "velocity": torch.zeros_like(pixels) if settings.momentum else torch.zeros(n, 1, 1, 1, device=device),
        "steps": torch.zeros(n, dtype=torch.long, device=device),
        "length": torch.full((n,), settings.step, device=device),
        "best": torch.full((n,), torch.inf, device=device),
        "stalled": torch.zeros(n, device=device),
    }


def join(batch: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    if not batch or not len(new["rows"]):
        return batch or new
    return {name: torch.cat([value, new[name]]) for name, value in batch.items()}


def look(net, pixels, goal, until, rows, settings, generator, last=False) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel gradient and loss of every pair and whether it is finished, from one pass each way.

    The `last` look, after which no pair moves, needs no way back: its gradient is zero.
    """
    pixels = pixels.detach().requires_grad_(not last)
    copies = 1
    with torch.set_grad_enabled(not last):
        seen = pixels
        if settings.noise:
            copies += settings.draws
            shape = (settings.draws, *pixels.shape)
            noise = torch.randn(shape, generator=generator, device=pixels.device).flatten(0, 1)
            noisy = (pixels.repeat(settings.draws, 1, 1, 1) + settings.noise * noise).clamp(0, 1)
            seen = torch.cat([pixels, noisy])
        features = net.encode_image(seen)
        rows = rows.repeat(copies)
        loss = goal.loss(features, rows).view(copies, -1).mean(0)
        gradient = torch.zeros_like(pixels) if last else torch.autograd.grad(loss.sum(), pixels)[0]
    reached = until.reached(features.detach(), rows).view(copies, -1).all(0)
    return gradient, loss.detach(), reached


def move(batch: dict[str, Tensor], gradient: Tensor, loss: Tensor, settings: Settings) -> Tensor:
    move = STEPS[settings.optimizer](batch, gradient, loss, settings)
    if settings.momentum and settings.optimizer != "pgd":
        move = batch["velocity"] = move + settings.momentum * batch["velocity"]
    return move


def _polyak(batch, gradient, loss, settings):
    squares = _squares(gradient)
    longest = LONGEST * (gradient.shape[1:].numel() / squares).sqrt()
    return -_wide(torch.minimum(settings.step * loss / squares, longest)) * gradient


def _gradient_descent(batch, gradient, loss, settings):
    better = loss < batch["best"]
    stalled = torch.where(better, 0.0, batch["stalled"] + 1)
    batch["best"] = torch.minimum(loss, batch["best"])
    batch["length"] = torch.where(stalled >= PATIENCE, batch["length"] / 2, batch["length"])
    batch["stalled"] = torch.where(stalled >= PATIENCE, 0.0, stalled)
    return -_wide(batch["length"]) * gradient


def _pgd(batch, gradient, loss, settings):
    if settings.momentum:  # gradients of different steps are comparable only at equal length
        size = gradient.flatten(1).abs().sum(1).clamp_min(TINY)
        gradient = batch["velocity"] = settings.momentum * batch["velocity"] + gradient / _wide(size)
    direction = gradient.sign() if settings.norm == "linf" else gradient / _wide(_squares(gradient).sqrt())
    decay = 0.5 * (1 + torch.cos(torch.pi * batch["steps"] / settings.max_steps))
    return -_wide(settings.step * settings.radius * decay) * direction


STEPS = {"polyak": _polyak, "gradient_descent": _gradient_descent, "pgd": _pgd}
OPTIMIZERS = tuple(STEPS)


def project(pixels: Tensor, batch: dict[str, Tensor], settings: Settings) -> Tensor:
    radius = settings.radius
    if radius is not None:
        change = pixels - batch["source"]
        if settings.norm == "linf":
            change = change.clamp(-radius, radius)
        else:
            change = change * _wide((radius / _squares(change).sqrt()).clamp_max(1))
        pixels = batch["source"] + change
    return pixels.clamp(0, 1)


def _squares(values: Tensor) -> Tensor:
    return values.flatten(1).square().sum(1).clamp_min(TINY)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
