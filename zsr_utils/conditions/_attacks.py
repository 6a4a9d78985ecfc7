"""Adversarial attacks, by the stepping loop of embedding alignment: an image changed until its class is not named."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from zsr_utils._text import one_of
from zsr_utils.conditions import _steps
from zsr_utils.conditions._condition import Batch, Condition, Head, Seen, generator
from zsr_utils.conditions._noise import sizes
from zsr_utils.conditions._steps import Settings
from zsr_utils.conditions.alignment import Goal, align
from zsr_utils.models import Model


LOSSES = ("cross_entropy", "margin", "dlr")
SPACES = ("pixel", "normalised")
WHOLE = 255.0  # grey levels: the ball that holds every image
ROUNDING = 1e-5  # of the largest logit: a smaller lead is not an answer that another batch would give
VANISHED = 1e-30  # gradient of the loss at the logits that float32 loses on its way back
# iterations of ten thousand from which a square has half the area of the one before
SHRINKS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Fooled(Goal):
    """Goal: another class than the label is named. The loss falls towards it.

    `cross_entropy`, of the logits over `temperature`, vanishes where the label's probability is 1; `margin` is the
    label's logit less the largest other one (Carlini & Wagner 2017); `dlr` (Croce & Hein 2020) is the margin over the
    distance of the largest logit from the third (towards a target: from the mean of third and fourth).
    """

    net: Model
    head: Head
    labels: Int[Tensor, "n"]
    kind: str = "cross_entropy"
    temperature: float = 1.0
    targets: Int[Tensor, "n"] | None = None  # to be named by `margin` and `dlr`; by default the best other class
    leave: bool = True  # an image is finished when the model errs, as it is for the victim and not for a substitute
    own = ("labels", "targets")

    def logits(self, features: Tensor) -> Tensor:
        return self.head.merge(self.net.logits_of(features, self.head.weights.to(features.device)))

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        logits = self.logits(features)
        if self.kind == "cross_entropy":
            return -F.cross_entropy(logits / self.temperature, self.labels[rows], reduction="none")
        lead = self.leads(logits, rows)
        lead = lead.amin(1) if self.targets is None else lead.gather(1, self.targets[rows][:, None])[:, 0]
        if self.kind == "dlr":
            best = logits.sort(dim=1, descending=True).values
            third = best[:, 2] if self.targets is None else best[:, 2:4].mean(1)
            lead = lead / (best[:, 0] - third).clamp_min(_steps.TINY)
        return lead

    def leads(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The label's logit less that of every class, infinite for its own."""
        own = self.labels[rows][:, None]
        return (logits.gather(1, own) - logits).scatter(1, own, torch.inf)

    def reached(self, features: Tensor, rows: Tensor) -> Tensor:
        logits = self.logits(features)
        return (self.leads(logits, rows).amin(1) < -ROUNDING * logits.abs().amax(1)) & self.leave


@dataclass(frozen=True)
class Attack(Settings):
    """How an attack moves an image.

    Optimizers are `sign`, steps of `step * eps`, `pgd`, whose steps decay, `apgd`, which halves its step where it makes
    no progress, `deepfool`, to the nearest border of `candidates` classes by a linear account, and `square`.
    """

    optimizer: str = "sign"
    asks: str = "gradient"  # or `nes` or `spsa`, which estimate it, or `score`, answers alone
    start: str = "source"  # or `random` (uniform in the ball) or `stripes` (of `square`)
    diversity: float = 0.0  # chance that a step looks through a picture made up to 10 % smaller, on black (DIM)
    queries: int = 100  # pairs of answers a step, of `nes` and `spsa`
    probe: float = 0.001  # and how far apart they are
    candidates: int = 10

    def optimizers(self) -> dict[str, Callable]:
        return MOVES

    def bounds(self) -> dict[str, tuple[bool, str]]:
        one_of("asks", self.asks, ("gradient", *PROBES, "score"))
        return super().bounds() | {
            "momentum": (0 <= self.momentum <= 1, "0 to 1"),
            "diversity": (0 <= self.diversity <= 1, "0 to 1"),
            "queries": (self.queries >= 1, "1 or more"),
            "probe": (0 < self.probe <= 1, "above 0 and at most 1"),
            "candidates": (self.candidates >= 1, "1 or more"),
            "norm": (self.norm == "linf" or self.optimizer in ("sign", "pgd"), "'linf'"),
        }

    @property
    def random(self) -> bool:
        return super().random or self.asks != "gradient" or self.diversity > 0 or self.start != "source"

    def passes(self, steps: np.ndarray) -> np.ndarray:
        """Images that the model was shown in so many steps, and at the last look."""
        return steps + 1 + (2 * self.queries * steps if self.asks in PROBES else 0)

    def begin(self, sources: Tensor, rows: list[int], names: list[str], device) -> dict[str, Tensor]:
        state = super().begin(sources, rows, names, device)
        if not rows:
            return state
        draws, shape = [generator(names[row], (self.seed, "start")) for row in rows], sources.shape[1:]
        if self.start == "random":
            share = torch.from_numpy(np.stack([draw.random(shape, dtype=np.float32) for draw in draws]))
            state["pixels"] = _steps.project(torch.lerp(state["low"], state["high"], share.to(device)), state, self)
        if self.start == "stripes":
            reach = torch.from_numpy(np.stack([2 * draw.integers(0, 2, (shape[0], 1, shape[2])) - 1 for draw in draws]))
            change = (_steps.radius(self, sources) * reach).to(state["pixels"])
            state["pixels"] = _steps.project(state["source"] + change, state, self)
        if self.optimizer in ("apgd", "square"):
            never, pixels = state["best"], state["pixels"]
            state |= {"rises": 0 * state["steps"], "halved": 0 * state["steps"], "checked": never, "loss": -never}
            state |= {"best_pixels": pixels, "best_gradient": torch.zeros_like(pixels), "previous": pixels}
        return state

    def look(self, net, pixels, goal, until, batch, names, last) -> tuple[Tensor, Tensor, Tensor]:
        if self.asks in PROBES:
            return self._estimated(net, pixels, goal, until, batch, names)
        if self.optimizer == "deepfool" and not last:
            return self._nearest(net, pixels, goal, until, batch)
        look = partial(_steps.gradient_step, net, pixels, goal, until, batch, names, self)
        if self.asks == "score" or last or not self.diversity:
            return look(last or self.asks == "score")
        grid, plain = self._views(pixels, batch, names)
        gradient, loss, reached = look(view=lambda x: F.grid_sample(x, grid, align_corners=False).clamp(0, 1))
        return gradient, loss, reached & plain  # an answer to a smaller picture is not one to this

    def move(self, batch: dict[str, Tensor], gradient: Tensor, loss: Tensor, names: list[str]) -> Tensor:
        return MOVES[self.optimizer](batch, gradient, loss, self, names)

    def randoms(self, batch: dict[str, Tensor], names: list[str], what: str) -> list[np.random.Generator]:
        """Random numbers of every image and step."""
        rows, steps = batch["rows"].tolist(), batch["steps"].tolist()
        return [generator(f"{names[row]}\0{step}", (self.seed, what)) for row, step in zip(rows, steps)]

    def _views(self, pixels: Tensor, batch: dict[str, Tensor], names: list[str]) -> tuple[Tensor, Tensor]:
        """Where each pixel of a view comes from, and which views are the image as it is."""
        size, placed = pixels.shape[-1], []
        for draw, last in zip(self.randoms(batch, names, "diversity"), (batch["steps"] >= batch["limit"]).tolist()):
            smaller = not last and draw.random() < self.diversity
            side = int(draw.integers(int(0.9 * size), size)) if smaller else size
            placed.append([side, *draw.integers(0, size - side + 1, 2)])
        side, left, top = torch.tensor(placed, dtype=pixels.dtype, device=pixels.device).T
        scale, zero = size / side, torch.zeros_like(side)
        shift = [-scale * ((2 * begins + side) / size - 1) for begins in (left, top)]
        rows = torch.stack([scale, zero, shift[0], zero, scale, shift[1]], 1).view(-1, 2, 3)
        return F.affine_grid(rows, list(pixels.shape), align_corners=False), side == size

    @torch.no_grad()
    def _estimated(self, net, pixels, goal, until, batch, names) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient from answers to pairs of images a little apart, for those that will move."""
        features, rows = net.encode_image(pixels), batch["rows"]
        reached, gradient = until.reached(features, rows), torch.zeros_like(pixels)
        going = ~reached & (batch["steps"] < batch["limit"])
        draws = [draw for draw, on in zip(self.randoms(batch, names, self.asks), going.tolist()) if on]
        for _ in range(self.queries if draws else 0):
            drawn = np.stack([PROBES[self.asks](draw, pixels.shape[1:]) for draw in draws])
            ways = torch.from_numpy(drawn).to(pixels)
            ends = [(pixels[going] + sign * self.probe * ways).clamp(0, 1) for sign in (1, -1)]
            losses = goal.loss(net.encode_image(torch.cat(ends)), rows[going].repeat(2)).view(2, -1)
            gradient[going] += (losses[0] - losses[1])[:, None, None, None] * ways / (2 * self.probe * self.queries)
        return gradient, goal.loss(features, rows), reached

    @torch.enable_grad()
    def _nearest(self, net, pixels, goal, until, batch) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient and size of the lead over the class whose border is nearest by the linear account."""
        pixels, rows = pixels.detach().requires_grad_(), batch["rows"]
        features = net.encode_image(pixels)
        leads = goal.leads(goal.logits(features), rows)
        leads = leads.sort(dim=1).values[:, : min(self.candidates, leads.shape[1] - 1)]
        each = [_steps.gradient_of(lead, pixels, net, retain_graph=True) for lead in leads.T]
        far = torch.stack([lead.abs() / _length(g) for lead, g in zip(leads.T, each)])
        chosen, every = far.argmin(0), torch.arange(len(rows), device=rows.device)
        return torch.stack(each)[chosen, every], leads[every, chosen].detach(), until.reached(features.detach(), rows)


PROBES = {
    "nes": lambda draw, shape: draw.standard_normal(shape, dtype=np.float32),
    "spsa": lambda draw, shape: 2 * draw.integers(0, 2, shape).astype(np.float32) - 1,
}


def _length(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).abs().sum(1).clamp_min(_steps.TINY)


def _sign(batch, gradient, loss, attack, names):
    return -attack.step * _steps.radius(attack, gradient) * _steps.steepest(batch, gradient, attack)


def _pgd(batch, gradient, loss, attack, names):
    decay = 0.5 * (1 + torch.cos(torch.pi * batch["steps"] / attack.max_steps))
    return _steps.wide(decay) * _sign(batch, gradient, loss, attack, names)


def _deepfool(batch, gradient, loss, attack, names):
    return -attack.step * _steps.wide((loss.abs() / _length(gradient)).clamp_max(1) + 1e-4) * gradient.sign()


def _apgd(batch, gradient, loss, attack, names):
    """Momentum, and at checkpoints half the step from the best image so far where few steps made progress."""
    due, spans = (v.to(loss.device)[batch["steps"]] for v in _checkpoints(attack.max_steps))
    batch["rises"] = batch["rises"] + (loss < batch["loss"])
    _keep_best(batch, gradient, loss)
    stuck = (batch["halved"] == 0) & (batch["checked"] <= batch["best"])
    halve = due & ((batch["rises"] < 0.75 * spans) | stuck)
    batch["length"] = torch.where(halve, batch["length"] / 2, batch["length"])
    batch["halved"] = torch.where(due, halve.long(), batch["halved"])
    batch["checked"] = torch.where(due, batch["best"], batch["checked"])
    batch["rises"] = torch.where(due, 0, batch["rises"])
    pixels = torch.where(_steps.wide(halve), batch["best_pixels"], batch["pixels"])
    gradient = torch.where(_steps.wide(halve), batch["best_gradient"], gradient)
    length = _steps.wide(batch["length"]) * _steps.radius(attack, pixels)
    ahead = _steps.project(pixels - length * gradient.sign(), batch, attack) - pixels
    share = _steps.wide(torch.where(batch["steps"] == 0, 1.0, 0.75))
    moved = pixels + share * ahead + (1 - share) * (pixels - batch["previous"]) - batch["pixels"]
    batch["previous"], batch["loss"] = pixels, loss
    return moved


def _keep_best(batch, gradient, loss):
    better = loss < batch["best"]
    for name, value in (("best_pixels", batch["pixels"]), ("best_gradient", gradient)):
        batch[name] = torch.where(_steps.wide(better), value, batch[name])
    batch["best"] = torch.where(better, loss, batch["best"])


@cache  # of every step of a run it is asked anew
def _checkpoints(steps: int) -> tuple[Tensor, Tensor]:
    """For every step whether progress is looked at, and over how many steps then."""
    due, spans = torch.zeros(steps + 1, dtype=torch.bool), torch.ones(steps + 1)
    least, less = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    span = at = max(int(0.22 * steps), 1)
    while at <= steps:
        due[at], spans[at] = True, span
        span = max(span - less, least)
        at += span
    return due, spans


def _square(batch, gradient, loss, attack, names):
    """Another random square from the best image so far."""
    _keep_best(batch, gradient, loss)
    tried, size = batch["best_pixels"].clone(), gradient.shape[-1]
    reach = 2 * _steps.radius(attack, tried)
    for image, draw, step in zip(tried, attack.randoms(batch, names, "square"), batch["steps"].tolist()):
        share = 0.8 * 0.5 ** sum(10_000 * step / attack.max_steps > k for k in SHRINKS)
        side = min(max(round(share**0.5 * size), 1), size - 1)
        top, left = draw.integers(0, size - side + 1, 2)
        sign = torch.from_numpy(2 * draw.integers(0, 2, (3, 1, 1)) - 1).to(image)
        image[:, top : top + side, left : left + side] += reach * sign
    return _steps.project(tried, batch, attack) - batch["pixels"]


MOVES = {"sign": _sign, "pgd": _pgd, "apgd": _apgd, "deepfool": _deepfool, "square": _square}
# by name: how it moves, its loss, and its steps where none are asked for
ATTACKS: dict[str, tuple[Attack, str, int]] = {
    "fgsm": (Attack(), "cross_entropy", 1),
    "bim": (Attack(step=0.15), "cross_entropy", 10),
    "mim": (Attack(step=0.15, momentum=1.0), "cross_entropy", 20),
    "dim": (Attack(step=0.15, momentum=1.0, diversity=0.5), "cross_entropy", 20),
    "pgd": (Attack("pgd", momentum=0.7, start="random"), "cross_entropy", 20),
    "apgd_ce": (Attack("apgd", step=2.0, start="random"), "cross_entropy", 100),
    "apgd_dlr": (Attack("apgd", step=2.0, start="random"), "dlr", 100),
    "deepfool": (Attack("deepfool", step=1.02), "margin", 50),
    "square": (Attack("square", asks="score", start="stripes"), "margin", 5000),
    "nes": (Attack(step=0.15, asks="nes"), "margin", 10),
    "spsa": (Attack(step=0.15, asks="spsa"), "margin", 10),
}
TARGETED = ("apgd_dlr",)  # one run for each of the nearest other classes, as AutoAttack has it


@dataclass(frozen=True)
class Attacked:
    """The change of `attack`."""

    attack: Attack
    kind: str  # of loss
    temperature: float
    space: str
    targets: int  # classes that are asked for one after the other, or 0
    substitute: tuple[Model, Head] | None = None

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        made, batch.memo[id(self)] = self._made(batch)
        return made

    def facts(self, batch: Batch, seen: Seen) -> dict:
        """`rms` and `linf` of the change in grey levels, `steps`, `passes` (images that the attacked network was
        shown), and `fooled`: the victim erred when the attack looked last; missing where it did not look.
        """
        return sizes(batch, seen) | batch.memo.pop(id(self))

    def _made(self, batch: Batch) -> tuple[Tensor, dict[str, np.ndarray]]:
        net, head = self.substitute or (batch.net, batch.head)
        self._check(batch, net, head)
        std = batch.net.std.flatten().tolist()
        eps = self.attack.eps if self.space == "pixel" else tuple(min(1.0, self.attack.eps * s) for s in std)
        attack = replace(self.attack, seed=batch.seed, eps=eps)
        pixels, steps, passes = batch.pixels.clone(), *(np.zeros(len(batch), int) for _ in range(2))
        # what is wrong already counts as broken by a change of 0; a substitute does not know
        fooled = (batch.clean.predictions != batch.labels) & (self.substitute is None)
        ranks = batch.clean.logits.scatter(1, batch.labels[:, None], -torch.inf).argsort(1, descending=True)
        for k in range(min(self.targets, ranks.shape[1] - 1) or 1):
            if not len(rows := (~fooled).nonzero()[:, 0]):
                break
            targets = ranks[rows, k] if self.targets else None
            goal = Fooled(net, head, batch.labels[rows], self.kind, self.temperature, targets, self.substitute is None)
            names = [f"{batch.sample_ids[row]}\0{batch.draw}\0{k}" for row in rows.tolist()]
            sources, there = batch.pixels.cpu()[rows], rows.to(pixels.device)
            options = {"names": names, "batch_size": len(rows), "keep": self.substitute is not None, "hidden": True}
            with _steps.answers_have_gradients(net):
                found = align(net, sources, goal, attack, **options)
            pixels[there], fooled[rows] = found.pixels.to(pixels.device), found.reached
            steps[rows.numpy()] += found.steps.numpy()
            passes[rows.numpy()] += attack.passes(found.steps.numpy())
        counts = {"steps": steps, "passes": passes}
        return pixels, counts if self.substitute else counts | {"fooled": fooled.numpy()}

    def _check(self, batch: Batch, net: Model, head: Head) -> None:
        if self.kind == "dlr" and len(head.class_names) < 4:
            raise ValueError(f"dlr compares four logits, {net.name} has {len(head.class_names)} classes.")
        if net.image_size != (size := batch.net.image_size):
            allowed = f"allowed are the {size} of {batch.net.name}"
            raise ValueError(f"The substitute {net.name} takes {net.image_size} pixels, {allowed}.")
        if tuple(head.class_names) != tuple(batch.head.class_names):
            raise ValueError(f"The substitute {net.name} has other classes than {batch.net.name}.")


def attack(
    name: str, eps: float, *, steps: int = 0, loss: str = "", temperature: float = 1.0, targets: int = 9,
    substitute: tuple[Model, Head] | None = None, space: str = "pixel", called: str = "", draws: int = 1, **options,
) -> Condition:  # fmt: skip
    """An attack in an L-infinity ball, as a condition: an image is left when the victim errs, or changed all the way.

    `apgd_ce`, `apgd_dlr` (targeted) and `square` are those of AutoAttack; `pgd` has a random start, decaying steps and
    momentum; the others are those of Wang et al.

    Args:
        eps: Radius in units of [0, 1]; the severity is 255 times that. `deepfool` stops by itself, in any ball.
        steps: At most so many; 0 is what the attack's source has. Of `square`, its answers.
        loss: One of `LOSSES`, by default the attack's own; `temperature` divides the logits for the cross-entropy.
        targets: Classes that `apgd_dlr` asks for, the nearest first.
        substitute: A network and its head whose gradient is followed all the way in place of the victim's (transfer).
        space: `normalised` takes eps in units of the victim's normalised input, as the code of Wang et al. does.
        called, draws: The condition's name, where it is not the attack's, and its random starts.
        options: Fields of `Attack`, such as `queries` or `eight_bit`.

    Source: Goodfellow et al. (2015), Kurakin et al. (2017), Dong et al. (2018), Xie et al. (2019), Moosavi-Dezfooli et
        al. (2016), Ilyas et al. (2018), Uesato et al. (2018), Madry et al. (2018), Croce & Hein (2020), Andriushchenko
        et al. (2020); settings of the first seven after the code of Wang et al. (2024).
    """
    one_of("attack", name, ATTACKS)
    one_of("space", space, SPACES)
    made, own, usual = ATTACKS[name]
    one_of("loss", loss or own, LOSSES)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, allowed is above 0.")
    moves = replace(made, eps=eps, max_steps=steps or usual, **options)
    shown = Attacked(moves, loss or own, temperature, space, targets if name in TARGETED else 0, substitute)
    return Condition(called or name, round(255 * eps, 6), shown.change, shown.facts, draws)


def random_noise(eps: float, draws: int = 1) -> Condition:
    """Every value moved up or down by the radius, at random: how much of an attack any change of its size does."""

    def change(batch: Batch) -> Float[Tensor, "n 3 h w"]:
        return (batch.pixels + eps * batch.noise.sign()).clamp(0, 1)

    return Condition("random_noise", round(255 * eps, 6), change, sizes, draws)


def looked_at(batch: Batch) -> Float[Tensor, "n 3 h w"]:
    """The images as they are, decoded for what is told of their pixels."""
    return batch.pixels


def gradient_facts(batch: Batch, seen: Seen) -> dict:
    """Of the cross-entropy at an image: `zero_gradient`, the share of pixels at which its gradient is exactly 0, and
    `saturated`, whether it is lost in float32 at the logits already.
    """
    device = batch.pixels.device
    goal, rows = Fooled(batch.net, batch.head, batch.labels.to(device)), torch.arange(len(batch), device=device)
    with torch.enable_grad(), _steps.answers_have_gradients(batch.net):
        pixels = batch.pixels.detach().requires_grad_()
        gradient = _steps.gradient_of(goal.loss(batch.net.encode_image(pixels), rows), pixels, batch.net)
    others = batch.clean.logits.softmax(1).scatter(1, batch.labels[:, None], 0).amax(1)
    vanished = (gradient == 0).flatten(1).double().mean(1).cpu()
    return {"zero_gradient": vanished.numpy(), "saturated": (others < VANISHED).numpy()}


GRADIENTS = Condition("original", 0.0, looked_at, gradient_facts, draws=1)
