"""Corruptions that follow the depth of a scene, each beside one of the same mean strength that does not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from zsr_utils._text import one_of
from zsr_utils.conditions._condition import Batch, Condition
from zsr_utils.conditions._corruptions import SEVERITIES
from zsr_utils.models import Model


# by severity, for lengths in object heights: widths of an aperture, density of fog, light of a flash, ways of a camera
STRENGTHS = {
    "near_focus": (0.2, 0.35, 0.55, 0.8, 1.1),
    "far_focus": (0.2, 0.35, 0.55, 0.8, 1.1),
    "fog_3d": (0.03, 0.06, 0.1, 0.15, 0.22),
    "flash": (0.4, 0.8, 1.4, 2.2, 3.5),
    "xy_motion_blur": (0.05, 0.1, 0.16, 0.23, 0.32),
    "z_motion_blur": (0.3, 0.6, 0.9, 1.3, 1.8),
}
SIGMAS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the blurs that a focus is mixed of, in 1/64 of the side
HAZE, FIELD, FRAMES = 0.8, 24.0, 9  # the grey of fog; the angle that a picture spans; pictures of a moving camera


@dataclass(frozen=True)
class InDepth:
    """One corruption at one strength; `flat` puts its mean over the picture in place of what every depth would get."""

    name: str
    strength: float
    depth: Mapping[str, Float[np.ndarray, "h w"]]  # by sample id, in object heights
    flat: bool = False

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        known = [torch.as_tensor(np.asarray(self.depth[i]), dtype=torch.float32) for i in batch.sample_ids]
        depth = torch.stack([as_seen(d[None], batch.net) for d in known])
        return corrupted(batch.pixels, depth.to(batch.pixels), self.name, self.strength, flat=self.flat)


def as_seen(field: Float[Tensor, "*n c h w"], net: Model) -> Float[Tensor, "*n c s s"]:
    """What is known of every pixel, brought to the part of the picture that a model sees, at its size."""
    resize = net.preprocessing.get("resize", net.image_size)
    if min(field.shape[-2:]) != resize:
        field = TF.resize(field, resize)
    return TF.center_crop(field, net.image_size)


def in_depth(depth: Mapping[str, np.ndarray], severities=SEVERITIES, *, flat: bool = False) -> list[Condition]:
    """Six corruptions of 3DCC at some severities of five, from true depth; names of flat ones end in `_flat`.

    Source: Kar et al. (2022) for the corruptions; formulas and strengths are this project's, for Tabletop's lengths.
    """
    for i, d in depth.items():
        if np.ndim(d) != 2 or not (np.isfinite(d).all() and np.min(d) > 0):
            raise ValueError(f"The depth of {i!r} is not a picture of numbers above 0.")
    found = []
    for name, strengths in STRENGTHS.items():
        for k in severities:
            one_of(f"severity of {name}", k, SEVERITIES)
            made = InDepth(name, strengths[k - 1], depth, flat)
            found.append(Condition(name + "_flat" * flat, k, made.change, draws=1))
    return found


def corrupted(
    x: Float[Tensor, "n 3 h w"], depth: Float[Tensor, "n 1 h w"], name: str, strength: float, *, flat: bool = False
) -> Float[Tensor, "n 3 h w"]:  # fmt: skip
    """Pictures changed by what their depth asks for; strength 0 is the picture.

    Near and far focus blur by the distance in inverse depth from what is sharp; fog lets exp(-strength · depth) of the
    light pass; a flash lights by the inverse square; a camera that moves across or towards the scene while the shutter
    is open shifts every point by its parallax.
    """
    one_of("corruption", name, STRENGTHS)
    side = x.shape[-1]

    def even(field: Tensor) -> Tensor:
        return field.mean((2, 3), keepdim=True).expand_as(field) if flat else field

    if name in ("near_focus", "far_focus"):
        inverse = 1 / depth
        sharp = inverse.flatten(1).quantile(0.99 if name == "near_focus" else 0.01, dim=1)[:, None, None, None]
        return _focused(x, even(strength * side / 2 * (inverse - sharp).abs()))
    if name == "fog_3d":
        passes = even(transmission(depth, strength))
        return x * passes + HAZE * (1 - passes)
    if name == "flash":
        near = depth.flatten(1).amin(1)[:, None, None, None]
        return (x * (1 + even(strength * (near / depth).square()))).clamp(max=1)
    if name == "xy_motion_blur":
        across = even(strength / depth) / math.tan(math.radians(FIELD / 2))  # in half sides
        return _averaged(x, torch.cat([across, torch.zeros_like(across)], 1), np.linspace(-0.5, 0.5, FRAMES))
    ticks = (torch.arange(side, device=x.device) + 0.5) / side * 2 - 1
    from_middle = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy")).to(x)
    return _averaged(x, -from_middle * even(strength / depth), np.linspace(0, 1, FRAMES))


def transmission(depth: Tensor, density: float) -> Tensor:
    """Share of the light that fog lets pass, by the law of Bouguer, Lambert and Beer."""
    return torch.exp(-density * depth)


def _focused(x: Tensor, sigma: Float[Tensor, "n 1 h w"]) -> Tensor:
    """Every pixel blurred by its own sigma, in pixels: between two of a few Gaussian blurs."""
    unit = x.shape[-1] / 64
    blurs = [_blurred(x, s * unit) if s else x for s in SIGMAS]
    total = torch.zeros_like(x)
    for k, blur in enumerate(blurs):
        below, here, above = (SIGMAS[j] * unit if 0 <= j < len(SIGMAS) else None for j in (k - 1, k, k + 1))
        up = torch.ones_like(sigma) if below is None else ((sigma - below) / (here - below)).clamp(0, 1)
        down = torch.ones_like(sigma) if above is None else ((above - sigma) / (above - here)).clamp(0, 1)
        total += torch.minimum(up, down) * blur
    return total


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Rows first, then columns: torchvision's kernel of both is slow."""
    reach = 2 * math.ceil(3 * sigma) + 1
    return TF.gaussian_blur(TF.gaussian_blur(x, [reach, 1], sigma), [1, reach], sigma)


def _averaged(x: Tensor, way: Float[Tensor, "n 2 h w"], shares) -> Tensor:
    """Mean of pictures in which every point is shifted by shares of its way, in half sides; edges are repeated."""
    h, w = x.shape[-2:]
    if not way.abs().max():
        return x
    ys, xs = ((torch.arange(k, device=x.device) + 0.5) / k * 2 - 1 for k in (h, w))
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).to(x)
    moved = (grid + share * way.permute(0, 2, 3, 1) for share in map(float, shares))
    return sum(F.grid_sample(x, at, padding_mode="border", align_corners=False) for at in moved) / len(shares)
