"""Where a point of an object that one picture shows lies in another picture, in which the object is turned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tabletop.render import FOV, Rendering, camera, render
from tabletop.scene import Scene


SEEN = 0.06  # object heights: a point that lies so near to what a picture shows is seen there


@dataclass(frozen=True)
class Views:
    """Pictures of scenes and, for every pixel, what it shows."""

    rendering: Rendering
    points: Float[Tensor, "n h w 3"]  # in the coordinates of the main object, as it stands upright at yaw 0

    @property
    def on_object(self) -> Bool[Tensor, "n h w"]:
        return self.rendering.mask > 0.9


def views(scenes: Sequence[Scene], size: int = 64) -> Views:
    """Render scenes, and find the point that every pixel shows."""
    rendering = render(scenes, size=size)
    eye, rays = camera(scenes, size, torch.device("cpu"))
    world = eye[:, None, None] + rendering.depth[..., None] * rays
    return Views(rendering, torch.stack([_turned(p - _foot(s), -s.yaw) for p, s in zip(world, scenes)]))


def project(points: Float[Tensor, "m 3"], scene: Scene, size: int = 64) -> tuple[Float[Tensor, "m 2"], Tensor]:
    """Where points of the main object lie in a picture, x and y in pixels from its corner, and how far from the camera.

    Examples:
        >>> foot, distance = project(torch.zeros(1, 3), Scene("mug", camera_elevation=0.0))
        >>> foot[0, 0].item(), round(distance.item(), 2)
        (32.0, 4.02)
    """
    (eye,), _ = camera([scene], 8, torch.device("cpu"))
    azimuth, elevation = math.radians(scene.camera_azimuth), math.radians(scene.camera_elevation)
    back = torch.tensor(
        [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    )
    right = torch.tensor([math.cos(azimuth), 0.0, -math.sin(azimuth)])
    offset = _turned(points, scene.yaw) + _foot(scene) - eye
    depth = -(offset @ back) * math.tan(math.radians(FOV / 2))
    plane = torch.stack([offset @ right, -(offset @ torch.linalg.cross(back, right))], -1) / depth[..., None]
    return (plane + 1) / 2 * size, offset.norm(dim=-1)


def seen_in(points: Float[Tensor, "m 3"], scene: Scene, view: Rendering, row: int) -> tuple[Tensor, Bool[Tensor, "m"]]:
    """Where points lie in a rendered picture, and which of them it shows: what lies in front hides them."""
    size = view.depth.shape[-1]
    at, distance = project(points, scene, size)
    inside = ((at >= 0) & (at < size)).all(-1)
    x, y = at.long().clamp(0, size - 1).unbind(-1)
    return at, inside & (view.mask[row, y, x] > 0.9) & ((view.depth[row, y, x] - distance).abs() < SEEN)


def _foot(scene: Scene) -> Tensor:
    return torch.tensor([scene.x, 0.0, scene.z])


def _turned(points: Tensor, yaw: float) -> Tensor:
    """Points turned about the vertical axis, as the renderer turns an object."""
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    x, y, z = points.unbind(-1)
    return torch.stack([c * x + s * z, y, c * z - s * x], -1)
