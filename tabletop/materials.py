"""Colours, surface patterns and settings (table and wall) of the tabletop world."""

import math

import torch
from torch import Tensor


COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.13, 0.12),
    "orange": (0.95, 0.52, 0.08),
    "yellow": (0.96, 0.84, 0.16),
    "green": (0.18, 0.58, 0.20),
    "blue": (0.13, 0.32, 0.82),
    "purple": (0.52, 0.20, 0.66),
    "pink": (0.96, 0.56, 0.70),
    "brown": (0.46, 0.28, 0.14),
    "white": (0.93, 0.93, 0.91),
    "black": (0.10, 0.10, 0.11),
}

# The second colour of a pattern: what contrasts with the named one.
SECOND_COLORS: dict[str, tuple[float, float, float]] = {
    name: COLORS["white"] if name not in ("white", "yellow", "pink") else (0.22, 0.22, 0.30) for name in COLORS
}

# Parts other than the body look the same on every object of a kind, as wheels and stems do.
PART_COLORS: dict[str, tuple[float, float, float]] = {
    "drink": (0.22, 0.12, 0.06),
    "cap": (0.30, 0.30, 0.33),
    "stem": (0.93, 0.88, 0.76),
    "fins": (0.75, 0.16, 0.14),
    "window": (0.45, 0.72, 0.90),
    "glass": (0.55, 0.75, 0.88),
    "wheels": (0.09, 0.09, 0.10),
    "hubs": (0.75, 0.75, 0.78),
    "roof": (0.55, 0.20, 0.16),
    "door": (0.32, 0.19, 0.10),
    "stand": (0.36, 0.32, 0.28),
    "nose": (0.95, 0.50, 0.10),
    "hat": (0.10, 0.10, 0.12),
    "beak": (0.96, 0.55, 0.08),
    "eyes": (0.05, 0.05, 0.05),
    "lid": (0.80, 0.72, 0.55),
    "pot": (0.70, 0.36, 0.20),
    "pole": (0.35, 0.25, 0.18),
    "bar": (0.65, 0.65, 0.68),
    "trunk": (0.40, 0.26, 0.14),
    "sail": (0.95, 0.94, 0.90),
    "mast": (0.45, 0.32, 0.20),
}


def _wave(x: Tensor, sharpness: float = 4.0) -> Tensor:
    """Soft square wave in [0, 1] of period 2 pi: edges a few pixels wide do not alias at 64 px."""
    return (torch.sin(x) * sharpness).clamp(-1, 1) * 0.5 + 0.5


def _noise(x: Tensor, y: Tensor, z: Tensor, phase: Tensor, frequency: float) -> Tensor:
    """Smooth pseudo-noise in about [-1, 1]: a sum of tilted sines shifted by `phase`."""
    total = torch.sin(frequency * (x + 0.7 * y) + 5.1 * phase)
    total = total + torch.sin(frequency * (1.3 * z - 0.8 * x) + 9.7 * phase + 2 * total)
    total = total + torch.sin(frequency * (1.1 * y + 0.9 * z) + 3.3 * phase + total)
    return total / 3


def plain(x, y, z, phase):
    return torch.zeros_like(x)


def striped(x, y, z, phase):
    return _wave(y * 26 + math.tau * phase)


def dotted(x, y, z, phase):
    cells = [(c * 3.6 + phase) % 1 - 0.5 for c in (x, y, z)]
    other = [(c * 3.6 + phase + 0.5) % 1 - 0.5 for c in (x, y, z)]
    radius = torch.minimum(sum(c * c for c in cells), sum(c * c for c in other)).sqrt()
    return ((0.34 - radius) * 12).clamp(0, 1)


def checkered(x, y, z, phase):
    waves = torch.sin(x * 15 + 0.6) * torch.sin(y * 15 + math.tau * phase) * torch.sin(z * 15 + 0.6)
    return (waves * 8).clamp(-1, 1) * 0.5 + 0.5


def wooden(x, y, z, phase):
    rings = torch.sqrt((x + 0.9) ** 2 + (z * 1.4) ** 2) * 34 + 3 * torch.sin(y * 3 + 6 * phase)
    return 0.62 * _wave(rings, 1.6)


def marble(x, y, z, phase):
    veins = torch.sin(7 * (x + y * 0.8) + 5 * _noise(x, y, z, phase, 5.0) + 6 * phase)
    return (1.15 - 2.6 * veins.abs()).clamp(0, 1)


def brick(x, y, z, phase):
    row = torch.floor(y * 9)
    mortar_y = ((y * 9) % 1 - 0.5).abs()
    along = ((x + z) * 4.2 + 0.5 * (row % 2) + phase) % 1 - 0.5
    return ((torch.maximum(mortar_y, (along.abs() * 1.02)) - 0.38) * 12).clamp(0, 1)


def zigzag(x, y, z, phase):
    angle = torch.atan2(z, x) / math.tau
    ramp = ((angle * 8 + phase) % 1 - 0.5).abs()
    return _wave(y * 24 + 14 * ramp)


def speckled(x, y, z, phase):
    return ((_noise(x, y, z, phase, 31.0) - 0.22) * 6).clamp(0, 1)


def camouflage(x, y, z, phase):
    return (_noise(x, y, z, phase, 9.0) * 7).clamp(-1, 1) * 0.5 + 0.5


# pattern -> mixing weight of the second colour, as a function of object coordinates and a phase
PATTERNS = {
    f.__name__: f
    for f in (
        plain, striped, dotted, checkered, wooden, marble, brick, zigzag, speckled, camouflage,
    )
}  # fmt: skip

# The pattern that goes with a kind in the correlated part of the pre-training set.
TYPICAL_PATTERN = {
    "mug": "striped",
    "bottle": "zigzag",
    "chair": "wooden",
    "mushroom": "dotted",
    "rocket": "checkered",
    "car": "camouflage",
    "house": "brick",
    "lamp": "marble",
    "snowman": "speckled",
    "duck": "plain",
}


def _wood_table(x, z, phase):
    plank = torch.floor(x * 1.6 + phase)
    grain = torch.sin(z * 2 + 18 * x + 3 * torch.sin(z * 1.3 + plank) + plank * 5)
    return 0.35 * grain + 0.25 * torch.sin(plank * 12.9)


def _cloth(x, z, phase):
    return _wave(x * 9 + phase, 3) + _wave(z * 9 + phase, 3) - 1


def _tiles(x, z, phase):
    seam = torch.maximum(((x * 1.7 + phase) % 1 - 0.5).abs(), ((z * 1.7) % 1 - 0.5).abs())
    return -((seam - 0.44) * 20).clamp(0, 1) * 2 + 0.3


def _ground(x, z, phase):
    return _noise(x, x * 0.3 - z, z, phase, 13.0)


def _smooth(x, z, phase):
    return torch.zeros_like(x)


def _bands(x, y, phase):
    return _wave(x * 7 + math.tau * phase, 3) * 2 - 1


def _panels(x, y, phase):
    return -(((((x * 0.9 + phase) % 1) - 0.5).abs() - 0.46) * 25).clamp(0, 1) * 1.5


def _clouds(x, y, phase):
    return (_noise(x, y * 2.5, y, phase, 2.6) * 2 - 0.2).clamp(0, 1.6)


def _stars(x, y, phase):
    return ((_noise(x, y, x - y, phase, 17.0) - 0.72) * 14).clamp(0, 3)


# setting -> table (colour, contrast colour, texture), wall (colour, contrast colour, texture)
SETTINGS = {
    "studio": (((0.72, 0.72, 0.73), 0.00, _smooth), ((0.80, 0.81, 0.83), 0.00, _smooth)),
    "study": (((0.55, 0.36, 0.20), 0.10, _wood_table), ((0.66, 0.70, 0.58), 0.06, _bands)),
    "kitchen": (((0.76, 0.75, 0.72), 0.05, _wood_table), ((0.74, 0.82, 0.84), 0.10, _tiles)),
    "workshop": (((0.48, 0.45, 0.41), 0.06, _ground), ((0.58, 0.44, 0.34), 0.08, _panels)),
    "picnic": (((0.80, 0.46, 0.44), 0.16, _cloth), ((0.52, 0.70, 0.90), 0.14, _clouds)),
    "garden": (((0.34, 0.52, 0.22), 0.08, _ground), ((0.60, 0.77, 0.92), 0.14, _clouds)),
    "beach": (((0.86, 0.76, 0.54), 0.05, _ground), ((0.36, 0.66, 0.84), 0.05, _bands)),
    "night": (((0.16, 0.17, 0.26), 0.03, _wood_table), ((0.06, 0.07, 0.17), 0.25, _stars)),
}


def setting_albedo(setting: str, surface: str, u: Tensor, v: Tensor, phase: Tensor) -> Tensor:
    """Colour (N, 3) of a setting's `table` (u, v = x, z) or `wall` (u, v = x, y)."""
    color, contrast, texture = SETTINGS[setting][0 if surface == "table" else 1]
    base = torch.tensor(color, dtype=u.dtype, device=u.device)
    return (base + contrast * texture(u, v, phase)[:, None]).clamp(0, 1)
