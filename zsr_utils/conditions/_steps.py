"""One step of many pairs at once: a pass each way, a move, and back into the ball."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zsr_utils._text import one_of
from zsr_utils.conditions._condition import unit_noise


PATIENCE = 50  # steps without progress after which gradient descent halves its step
TINY = 1e-30
ROUNDING = 1e-4  # grey levels by which float32 pixels miss the level they stand for
LONGEST = 0.1  # Polyak step (RMS over the pixels): a vanishing gradient must not throw the image to the box's corners


@dataclass(frozen=True)
class Settings:
    """How images are moved.

    Optimizers are `polyak`, whose step length `step * L / ||gradient||^2` follows from the known least loss 0,
    `gradient_descent`, the paper's fixed step length, halved for a pair after 50 steps without progress, and `pgd`,
    steps of a length that decays from `step * eps` to 0 along the steepest direction of the norm.

    Source: Salman et al. (2024): loss, start at the source and stop rule as in the authors' code, at [0, 1] pixels.
        Steps: Polyak (1987); Madry et al. (2018), with momentum Dong et al. (2018).
    """

    optimizer: str = "polyak"
    step: float | None = None  # relative (default 1), or of `gradient_descent` squared pixels per unit of loss
    momentum: float = 0.0  # share of the last move (of `pgd`: of the accumulated gradient) kept
    max_steps: int = 200
    # radius of the ball in [0, 1] pixels, or L-infinity radii of the channels; None leaves only the box [0, 1]
    eps: float | tuple[float, float, float] | None = None
    norm: str = "linf"  # or `l2`, whose ball is kept before rounding
    eight_bit: bool = False  # look at rounded images, so that what is reached holds for the saved file
    noise: float = 0.0  # standard deviation in [0, 1] pixels: the loss is averaged over noisy copies and the image
    draws: int = 4  # noisy copies, all of which must meet the goal
    seed: int = 0  # of the noise, which depends on the pair's name, the step and the draw alone

    def __post_init__(self):
        one_of("optimizer", self.optimizer, self.optimizers())
        one_of("norm", self.norm, ("linf", "l2"))
        if self.step is None:
            if self.optimizer == "gradient_descent":
                raise ValueError("gradient_descent needs a step, in squared pixels per unit of loss.")
            object.__setattr__(self, "step", 1.0)
        for name, (good, allowed) in self.bounds().items():
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed is {allowed}.")

    def optimizers(self) -> dict[str, Callable]:
        return STEPS

    def bounds(self) -> dict[str, tuple[bool, str]]:
        """Whether each value is good, and what is allowed."""
        found = {
            "step": (self.step > 0, "above 0"),
            "momentum": (0 <= self.momentum < 1, "0 to below 1"),
            "max_steps": (self.max_steps >= 1, "1 or more"),
            "noise": (0 <= self.noise <= 1, "0 to 1 (8 grey levels are 8/255)"),
            "draws": (self.draws >= 1, "1 or more"),
        }
        if self.eps is not None:
            radii = np.atleast_1d(self.eps)
            good = (radii >= 0).all() and (len(radii) == 1 if self.norm == "l2" else (radii <= 1).all())
            found["eps"] = (good, "0 to 1" if self.norm == "linf" else "0 or more")
        return found

    @property
    def random(self) -> bool:
        """Whether what becomes of a pair depends on its name."""
        return self.noise > 0

    def begin(self, sources: Tensor, rows: list[int], names: list[str], device) -> dict[str, Tensor]:
        """State of pairs that enter the batch; every entry has one row a pair."""
        low, high = (ends.to(device) for ends in box(sources[rows], self))
        source = sources[rows].to(device)
        pixels, n = source.clamp(low, high), len(rows)
        room = (low < high).flatten(1).any(1) & (self.eps != 0)
        state = {"source": source, "low": low, "high": high, "pixels": pixels, "limit": self.max_steps * room}
        return state | {
            "rows": torch.tensor(rows, dtype=torch.long, device=device),
            "velocity": torch.zeros_like(pixels) if self.momentum else torch.zeros(n, 1, 1, 1, device=device),
            "steps": torch.zeros(n, dtype=torch.long, device=device),
            "length": torch.full((n,), self.step, device=device),
            "best": torch.full((n,), torch.inf, device=device),
            "stalled": torch.zeros(n, device=device),
        }

    def look(self, net, pixels, goal, until, batch, names, last) -> tuple[Tensor, Tensor, Tensor]:
        """Pixel gradient, or what stands for it, loss, and whether each pair is finished."""
        return gradient_step(net, pixels, goal, until, batch, names, self, last)

    def move(self, batch: dict[str, Tensor], gradient: Tensor, loss: Tensor, names: list[str]) -> Tensor:
        """How every pair's image changes; the step may leave the ball."""
        move = STEPS[self.optimizer](batch, gradient, loss, self)
        if self.momentum and self.optimizer != "pgd":
            move = batch["velocity"] = move + self.momentum * batch["velocity"]
        return move


LATE = ("cuda",)  # devices that are read one step late


class Look:
    """What a look at the pairs `inside` the batch, with the steps of each, found, on its way to the host."""

    def __init__(self, pixels: Tensor, gradient: Tensor, reached: Tensor, given_up: Tensor, inside: dict[int, int]):
        self.pixels, self.reached, self.steps = pixels, reached, inside
        done = reached | given_up
        wrong = ~gradient.flatten(1).isfinite().all(1) & ~done
        self._flags = torch.stack([done, wrong]).to("cpu", non_blocking=True)
        self._sent = torch.cuda.Event() if pixels.is_cuda else None
        if self._sent:
            self._sent.record()

    def finished(self, inside: dict[int, int], names: list[str]) -> dict[int, int]:
        """Pairs that are done, of those still inside, and their positions; refuses a gradient that is not finite."""
        if self._sent:
            self._sent.synchronize()
        done, wrong = self._flags.tolist()
        for k, (row, step) in enumerate(self.steps.items()):
            if wrong[k] and row in inside:
                pair = names[row].split("\0")[0]
                raise FloatingPointError(f"The gradient of pair {pair} is not finite at step {step}.")
        return {row: k for k, row in enumerate(self.steps) if done[k] and row in inside}


def box(source: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Least and largest value of every pixel; where no grey level lies between them, the first is the larger one."""
    if settings.eps is None or settings.norm == "l2":
        return source.new_zeros(len(source), 1, 1, 1), source.new_ones(len(source), 1, 1, 1)
    levels, reach = 255 * source.double(), 255 * radius(settings, source.double())
    low, high = (levels - reach).clamp_min(0), (levels + reach).clamp_max(255)
    if settings.eight_bit:
        low, high = (low - ROUNDING).ceil(), (high + ROUNDING).floor()
    return (low / 255).float(), (high / 255).float()


def radius(settings: Settings, like: Tensor) -> float | Tensor:
    """The radius of the ball, of every channel where they differ."""
    return like.new_tensor(settings.eps)[:, None, None] if isinstance(settings.eps, tuple) else settings.eps


def join(batch: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    if not batch or not len(new["rows"]):
        return batch or new
    return {name: torch.cat([value, new[name]]) for name, value in batch.items()}


def gradient_step(
    net, pixels, goal, until, batch, names, settings, last=False, view=None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Pixel gradient and loss of every pair and whether it is finished, from one pass each way.

    After the `last` one no pair moves, so it needs no way back: its gradient is zero. The model sees a `view` of the
    pixels. Where the device's memory does not suffice, it is done in two parts, and so on.
    """
    try:
        return _gradient_step(net, pixels, goal, until, batch, names, settings, last, view)
    except torch.OutOfMemoryError:
        if view or len(pixels) < 2:
            raise
    half = len(pixels) // 2  # outside of the handler, which would keep the failed pass alive
    torch.cuda.empty_cache()
    parts = [
        gradient_step(net, pixels[k], goal, until, {n: v[k] for n, v in batch.items()}, names, settings, last)
        for k in (slice(half), slice(half, None))
    ]
    return tuple(map(torch.cat, zip(*parts)))


def _gradient_step(net, pixels, goal, until, batch, names, settings, last, view):
    rows, copies = batch["rows"], 1
    pixels = pixels.detach().requires_grad_(not last)
    with torch.set_grad_enabled(not last):
        shown = view(pixels) if view else pixels
        if settings.noise:
            copies += settings.draws
            keys = [f"{names[row]}\0{step}" for row, step in zip(rows.tolist(), batch["steps"].tolist())]
            noise = [unit_noise(pixels.shape[1:], keys, (settings.seed, draw)) for draw in range(settings.draws)]
            noisy = pixels.repeat(settings.draws, 1, 1, 1) + settings.noise * torch.cat(noise).to(pixels.device)
            shown = torch.cat([pixels, noisy.clamp(0, 1)])
        features = net.encode_image(shown)
        rows = rows.repeat(copies)
        loss = goal.loss(features, rows).view(copies, -1).mean(0)
        gradient = torch.zeros_like(pixels) if last else gradient_of(loss, pixels, net)
    reached = until.reached(features.detach(), rows).view(copies, -1).all(0)
    return gradient, loss.detach(), reached


@contextmanager
def answers_have_gradients(net) -> Iterator[None]:
    """One clear sentence where a model answers through other libraries than torch."""
    try:
        yield
    except RuntimeError as error:
        if "require" not in str(error) or "grad" not in str(error):
            raise
        raise ValueError(f"{net.name} gives no gradient of its answers, allowed are nes, spsa and square.") from error


def gradient_of(loss: Tensor, pixels: Tensor, net, **options) -> Tensor:
    with answers_have_gradients(net):
        return torch.autograd.grad(loss.sum(), pixels, **options)[0]


def _polyak(batch, gradient, loss, settings):
    squares = _squares(gradient)
    longest = LONGEST * (gradient.shape[1:].numel() / squares).sqrt()
    return -wide(torch.minimum(settings.step * loss / squares, longest)) * gradient


def _gradient_descent(batch, gradient, loss, settings):
    better = loss < batch["best"]
    stalled = torch.where(better, 0.0, batch["stalled"] + 1)
    batch["best"] = torch.minimum(loss, batch["best"])
    batch["length"] = torch.where(stalled >= PATIENCE, batch["length"] / 2, batch["length"])
    batch["stalled"] = torch.where(stalled >= PATIENCE, 0.0, stalled)
    return -wide(batch["length"]) * gradient


def _pgd(batch, gradient, loss, settings):
    decay = 0.5 * (1 + torch.cos(torch.pi * batch["steps"] / settings.max_steps))
    return -wide(settings.step * settings.eps * decay) * steepest(batch, gradient, settings)


def steepest(batch: dict[str, Tensor], gradient: Tensor, settings: Settings) -> Tensor:
    """The direction, of length 1 in the ball's norm, in which the loss (or its accumulated gradient) grows fastest."""
    if settings.momentum:  # gradients of different steps are comparable only at equal length
        size = gradient.flatten(1).abs().sum(1).clamp_min(TINY)
        gradient = batch["velocity"] = settings.momentum * batch["velocity"] + gradient / wide(size)
    return gradient.sign() if settings.norm == "linf" else gradient / wide(_squares(gradient).sqrt())


STEPS = {"polyak": _polyak, "gradient_descent": _gradient_descent, "pgd": _pgd}


def project(pixels: Tensor, batch: dict[str, Tensor], settings: Settings) -> Tensor:
    if settings.eps is not None and settings.norm == "l2":
        change = pixels - batch["source"]
        pixels = batch["source"] + change * wide((settings.eps / _squares(change).sqrt()).clamp_max(1))
    return pixels.clamp(batch["low"], batch["high"])


def _squares(values: Tensor) -> Tensor:
    return values.flatten(1).square().sum(1).clamp_min(TINY)


def wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
