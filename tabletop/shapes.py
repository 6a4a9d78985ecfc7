"""Signed-distance shapes of the object kinds.

A kind is a function of local coordinates `x, y, z` (1-D tensors of equal length; y is up, the
object stands on y = 0, faces +z and is about one unit high or wide) that returns
`{part name: distance}`. Distances are lower bounds of the true distance (to within 0.013 where parts
are sheared or tapered), which is all that sphere tracing needs. Materials are given to parts by name
in `tabletop.materials`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


Parts = dict[str, Tensor]

# Every shape fits into this sphere (centre height, radius): rays that miss it are never marched.
BOUND_HEIGHT, BOUND_RADIUS = 0.5, 0.85


def _length(*coordinates: Tensor) -> Tensor:
    total = coordinates[0] * coordinates[0]
    for c in coordinates[1:]:
        total = total.addcmul(c, c)
    return total.sqrt()


def _union(*distances: Tensor) -> Tensor:
    result = distances[0]
    for d in distances[1:]:
        result = torch.minimum(result, d)
    return result


def sphere(x, y, z, r):
    return _length(x, y, z) - r


def ellipsoid(x, y, z, rx, ry, rz):
    """Bounded approximation of the distance to an ellipsoid."""
    scaled = _length(x / rx, y / ry, z / rz)
    return (scaled - 1) * min(rx, ry, rz)


def box(x, y, z, bx, by, bz, r=0.02):
    """Box with half sizes `bx, by, bz` and rounded edges."""
    qx, qy, qz = x.abs() - (bx - r), y.abs() - (by - r), z.abs() - (bz - r)
    outside = _length(qx.clamp_min(0), qy.clamp_min(0), qz.clamp_min(0))
    return outside + torch.maximum(qx, torch.maximum(qy, qz)).clamp_max(0) - r


def cylinder(x, y, z, r, h, edge=0.02):
    """Upright cylinder of radius `r` and half height `h`, with rounded rims."""
    qr, qy = _length(x, z) - (r - edge), y.abs() - (h - edge)
    return _length(qr.clamp_min(0), qy.clamp_min(0)) + torch.maximum(qr, qy).clamp_max(0) - edge


def cone(x, y, z, bottom, top, h):
    """Upright truncated cone: radius `bottom` at y = -h and `top` at y = h."""
    slope = (bottom - top) / (2 * h)
    side = (_length(x, z) - (bottom + top) / 2 + slope * y) / math.sqrt(1 + slope * slope)
    return torch.maximum(side, y.abs() - h)


def torus(x, y, z, major, minor):
    """Ring in the x-y plane."""
    return _length(_length(x, y) - major, z) - minor


def capsule(x, y, z, a, b, r):
    """Rod of radius `r` from point `a` to point `b`."""
    dx, dy, dz = (q - p for p, q in zip(a, b, strict=True))
    px, py, pz = x - a[0], y - a[1], z - a[2]
    t = ((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz)).clamp(0, 1)
    return _length(px - t * dx, py - t * dy, pz - t * dz) - r


def mug(x, y, z) -> Parts:
    wall = cylinder(x, y - 0.54, z, 0.36, 0.50, 0.01).abs() - 0.035
    cup = torch.maximum(wall, y - 0.76)
    handle = torus(x - 0.40, y - 0.42, z, 0.22, 0.065)
    handle = torch.maximum(handle, 0.36 - _length(x, z))
    drink = cylinder(x, y - 0.35, z, 0.34, 0.28)
    return {"body": _union(cup, handle), "drink": drink}


def bottle(x, y, z) -> Parts:
    body = cylinder(x, y - 0.29, z, 0.23, 0.29, 0.05)
    shoulder = cone(x, y - 0.66, z, 0.22, 0.08, 0.10)
    neck = cylinder(x, y - 0.82, z, 0.08, 0.13)
    cap = cylinder(x, y - 0.99, z, 0.105, 0.06)
    return {"body": _union(body, shoulder, neck), "cap": cap}


def chair(x, y, z) -> Parts:
    seat = box(x, y - 0.47, z, 0.32, 0.05, 0.32)
    back = box(x, y - 0.88, z + 0.28, 0.32, 0.17, 0.04)
    posts = box(x.abs() - 0.27, y - 0.65, z + 0.28, 0.045, 0.20, 0.04)
    legs = box(x.abs() - 0.27, y - 0.22, z.abs() - 0.27, 0.05, 0.22, 0.05)
    return {"body": _union(seat, back, posts, legs)}


def mushroom(x, y, z) -> Parts:
    cap = ellipsoid(x, y - 0.50, z, 0.55, 0.46, 0.55)
    cap = torch.maximum(cap, 0.50 - y)
    stem = cone(x, y - 0.26, z, 0.21, 0.15, 0.26)
    return {"body": cap, "stem": stem}


def rocket(x, y, z) -> Parts:
    body = ellipsoid(x, y - 0.55, z, 0.23, 0.62, 0.23)
    body = torch.maximum(body, 0.14 - y)
    angle = torch.atan2(z, x)
    sector = angle - torch.round(angle / (math.tau / 4)) * (math.tau / 4)
    radius = _length(x, z)
    fx, fz = radius * torch.cos(sector), radius * torch.sin(sector)
    fin = box(fx - 0.26, y - 0.17 + (fx - 0.26) * 0.9, fz, 0.17, 0.16, 0.025) * 0.7
    nose = torch.maximum(body - 0.012, 0.88 - y)
    window = sphere(x, y - 0.66, z - 0.20, 0.10)
    return {"body": body, "fins": _union(fin, nose), "window": window}


def car(x, y, z) -> Parts:
    hull = box(x, y - 0.27, z, 0.66, 0.14, 0.29, 0.06)
    taper = 1 + 0.9 * (y - 0.5).clamp(-0.2, 0.2)
    cabin = box((x + 0.04) * taper, y - 0.50, z * taper, 0.36, 0.16, 0.25, 0.05) * 0.8
    roof = torch.maximum(cabin - 0.01, 0.615 - y)
    wheel = cylinder(x.abs() - 0.38, z.abs() - 0.27, y - 0.15, 0.15, 0.06)
    hub = cylinder(x.abs() - 0.38, z.abs() - 0.30, y - 0.15, 0.07, 0.05)
    return {"body": _union(hull, roof), "glass": cabin, "wheels": wheel, "hubs": hub}


def house(x, y, z) -> Parts:
    walls = box(x, y - 0.28, z, 0.42, 0.28, 0.36, 0.01)
    roof = torch.maximum((x.abs() * 0.66 + (y - 0.92) * 0.75), 0.52 - y)
    roof = torch.maximum(roof, z.abs() - 0.42)
    chimney = box(x - 0.24, y - 0.83, z + 0.1, 0.07, 0.17, 0.07, 0.01)
    door = box(x, y - 0.17, z - 0.36, 0.09, 0.17, 0.015, 0.005)
    window = box(x.abs() - 0.26, y - 0.33, z - 0.36, 0.08, 0.09, 0.015, 0.005)
    return {"body": walls, "roof": _union(roof, chimney), "door": door, "window": window}


def lamp(x, y, z) -> Parts:
    base = cylinder(x, y - 0.04, z, 0.24, 0.04)
    pole = cylinder(x, y - 0.35, z, 0.045, 0.33)
    shade = cone(x, y - 0.78, z, 0.45, 0.24, 0.23)
    return {"body": shade, "stand": _union(base, pole)}


def snowman(x, y, z) -> Parts:
    body = _union(sphere(x, y - 0.28, z, 0.31), sphere(x, y - 0.68, z, 0.21))
    nose = capsule(x, y, z, (0, 0.70, 0.18), (0, 0.67, 0.36), 0.035)
    eyes = _union(sphere(x.abs() - 0.08, y - 0.76, z - 0.18, 0.035), sphere(x, y - 0.36, z - 0.30, 0.04))
    hat = _union(cylinder(x, y - 0.87, z, 0.25, 0.025), cylinder(x, y - 0.97, z, 0.16, 0.11))
    return {"body": body, "nose": nose, "hat": _union(hat, eyes)}


def duck(x, y, z) -> Parts:
    body = ellipsoid(x, y - 0.29, z, 0.50, 0.29, 0.34)
    tail = ellipsoid(x + 0.45, y - 0.44, z, 0.17, 0.13, 0.15)
    head = sphere(x - 0.32, y - 0.72, z, 0.22)
    neck = sphere(x - 0.30, y - 0.54, z, 0.19)
    beak = ellipsoid(x - 0.57, y - 0.68, z, 0.15, 0.06, 0.11)
    eyes = sphere(x - 0.43, y - 0.79, z.abs() - 0.15, 0.045)
    return {"body": _union(body, tail, head, neck), "beak": beak, "eyes": eyes}


def teapot(x, y, z) -> Parts:
    pot = ellipsoid(x, y - 0.36, z, 0.42, 0.35, 0.42)
    lid = _union(ellipsoid(x, y - 0.68, z, 0.22, 0.06, 0.22), sphere(x, y - 0.77, z, 0.06))
    spout = capsule(x, y, z, (0.34, 0.28, 0), (0.70, 0.66, 0), 0.07)
    handle = torus(x + 0.46, y - 0.38, z, 0.20, 0.05)
    return {"body": _union(pot, spout, handle), "lid": lid}


def cactus(x, y, z) -> Parts:
    pot = cone(x, y - 0.13, z, 0.20, 0.28, 0.13)
    trunk = capsule(x, y, z, (0, 0.2, 0), (0, 0.92, 0), 0.14)
    right = _union(
        capsule(x, y, z, (0, 0.5, 0), (0.34, 0.5, 0), 0.085),
        capsule(x, y, z, (0.34, 0.5, 0), (0.34, 0.78, 0), 0.085),
    )
    left = _union(
        capsule(x, y, z, (0, 0.62, 0), (-0.32, 0.62, 0), 0.075),
        capsule(x, y, z, (-0.32, 0.62, 0), (-0.32, 0.86, 0), 0.075),
    )
    return {"body": _union(trunk, right, left), "pot": pot}


def umbrella(x, y, z) -> Parts:
    dome = ellipsoid(x, y - 0.60, z, 0.62, 0.42, 0.62).abs() - 0.02
    dome = torch.maximum(dome, 0.62 - y)
    pole = capsule(x, y, z, (0, 0.06, 0), (0, 1.08, 0), 0.035)
    hook = torch.maximum(torus(x - 0.09, y - 0.10, z, 0.09, 0.035), y - 0.10)
    return {"body": dome, "pole": _union(pole, hook)}


def dumbbell(x, y, z) -> Parts:
    weights = cylinder(y - 0.30, x.abs() - 0.45, z, 0.30, 0.14, 0.05)
    bar = capsule(x, y, z, (-0.4, 0.30, 0), (0.4, 0.30, 0), 0.07)
    return {"body": weights, "bar": bar}


def tree(x, y, z) -> Parts:
    trunk = cylinder(x, y - 0.12, z, 0.09, 0.12)
    leaves = _union(
        cone(x, y - 0.38, z, 0.46, 0.12, 0.18),
        cone(x, y - 0.66, z, 0.36, 0.08, 0.17),
        cone(x, y - 0.93, z, 0.26, 0.01, 0.17),
    )
    return {"body": leaves, "trunk": trunk}


def sailboat(x, y, z) -> Parts:
    hull = ellipsoid(x, y - 0.26, z, 0.60, 0.26, 0.24)
    hull = torch.maximum(hull, y - 0.26)
    mast = capsule(x, y, z, (0, 0.2, 0), (0, 1.1, 0), 0.03)
    sail = torch.maximum((x - 0.04) * 0.87 + (y - 1.08) * 0.5, 0.34 - y)
    sail = torch.maximum(torch.maximum(sail, 0.05 - x), z.abs() - 0.03)
    jib = torch.maximum(-(x + 0.04) * 0.9 + (y - 0.92) * 0.44, 0.38 - y)
    jib = torch.maximum(torch.maximum(jib, x + 0.05), z.abs() - 0.03)
    return {"body": hull, "sail": _union(sail, jib), "mast": mast}


def stool(x, y, z) -> Parts:
    seat = cylinder(x, y - 0.68, z, 0.34, 0.06)
    legs = capsule(x.abs(), y, z.abs(), (0.16, 0.64, 0.16), (0.27, 0.05, 0.27), 0.05)
    return {"body": _union(seat, legs)}


def hourglass(x, y, z) -> Parts:
    plates = cylinder(x, (y - 0.5).abs() - 0.46, z, 0.34, 0.045)
    rods = cylinder(x.abs() - 0.22, y - 0.5, z.abs() - 0.18, 0.03, 0.45)
    bulbs = cone(x, (y - 0.5).abs() - 0.22, z, 0.05, 0.26, 0.21)
    return {"body": _union(plates, rods), "glass": bulbs}


Shape = Callable[[Tensor, Tensor, Tensor], Parts]

KINDS: dict[str, Shape] = {
    f.__name__: f for f in (mug, bottle, chair, mushroom, rocket, car, house, lamp, snowman, duck)
}
HELD_OUT_KINDS: dict[str, Shape] = {
    f.__name__: f for f in (teapot, cactus, umbrella, dumbbell, tree, sailboat, stool, hourglass)
}
ALL_KINDS: dict[str, Shape] = KINDS | HELD_OUT_KINDS


def distance(kind: str, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Signed distance to the whole object, in object units."""
    return _union(*ALL_KINDS[kind](x, y, z).values())


def nearest_part(kind: str, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Index of the part nearest to each point, in the order of `part_names`."""
    return torch.stack(list(ALL_KINDS[kind](x, y, z).values())).argmin(0)


def part_names(kind: str) -> list[str]:
    """Names of the parts of a kind; the first, `body`, carries the named colour and pattern."""
    zero = torch.zeros(1)
    return list(ALL_KINDS[kind](zero, zero, zero))
