"""Batched ray marching of scenes: pixels, depth and object mask.

Table and wall are planes and are met analytically; only rays that cross an object's bounding
sphere are marched, all objects of one kind together, so a batch of mixed scenes costs about
what its object pixels cost. Edges are anti-aliased by the distance at which a ray passes an
object (cone tracing), not by supersampling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from tabletop import materials, shapes
from tabletop.scene import Scene


FOV = 24.0  # vertical field of view, degrees
LOOK_AT = 0.36  # height the camera looks at
WALL_Z = -1.9
STEPS, SHADOW_STEPS = 24, 8
HIT = 0.004  # object units: nearer than this is a hit
SOLID = 0.84  # coverage from which a ray has certainly hit
COMPACT_AFTER = (1, 3, 5, 8, 11, 15, 19, STEPS - 1)  # steps after which finished rays are dropped
CHUNK = 131_072  # rays per marching chunk: bounds memory, and is large enough for torch to use all cores


@dataclass
class Rendering:
    """What the camera sees.

    Attributes:
        pixels: (N, 3, H, W) float32 in [0, 1], RGB.
        depth: (N, H, W) distance from the camera along each ray, in object heights.
        mask: (N, H, W) float32 coverage of the main object, 0 where a card or box hides it or there is none.
        normal: (N, H, W, 3) unit normals of what is seen, +x right, +y up, +z out of the wall; only if asked for.
    """

    pixels: Tensor
    depth: Tensor
    mask: Tensor
    normal: Tensor | None = None


def render(
    scenes: Sequence[Scene], *, size: int = 64, batch_size: int = 256, device: str = "cpu", normals: bool = False
) -> Rendering:
    """Render scenes at `size` x `size` pixels.

    The same scenes give the same pixels on any machine to within one grey level.

    Examples:
        >>> from tabletop.scene import Scene
        >>> picture = render([Scene("mug")], size=32)
        >>> tuple(picture.pixels.shape), tuple(picture.depth.shape)
        ((1, 3, 32, 32), (1, 32, 32))

    Args:
        scenes: One or more scenes.
        size: Width and height in pixels.
        batch_size: Scenes rendered at a time; bounds the memory.
        device: Where to render; the result stays there.
        normals: Whether to give normals too, which take as much memory as the pixels.

    Raises:
        ValueError: If there is no scene or `size` is below 8.
    """
    if len(scenes) == 0:
        raise ValueError("render: no scene was given, at least one is needed.")
    if size < 8:
        raise ValueError(f"render: size is {size}, allowed is 8 or more.")
    batches = [scenes[i : i + batch_size] for i in range(0, len(scenes), batch_size)]
    parts = [_render_batch(batch, size, torch.device(device), normals) for batch in batches]
    fields = ("pixels", "depth", "mask", *(["normal"] if normals else []))
    return Rendering(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))


def _column(values, device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=device)


@dataclass
class _Object:
    """One further or main object of every scene that has one: `scene` indexes into the batch."""

    is_main: bool
    scene: Tensor
    kinds: list[str]
    colors: list[str]
    patterns: list[str]
    x: Tensor
    z: Tensor
    yaw: Tensor
    size: Tensor
    phase: Tensor


def _objects(scenes: Sequence[Scene], device) -> list[_Object]:
    """Far objects first, so that painting them in order hides what is behind."""
    layers = []
    second = [i for i, s in enumerate(scenes) if s.second_kind is not None]
    if second:
        chosen = [scenes[i] for i in second]
        layers.append(
            _Object(
                False,
                torch.tensor(second, device=device),
                [s.second_kind for s in chosen],
                [s.second_color for s in chosen],
                [s.second_pattern for s in chosen],
                _column((s.second_x for s in chosen), device),
                _column((s.second_z for s in chosen), device),
                torch.deg2rad(_column((s.yaw * 1.7 + 40 for s in chosen), device)),
                _column((s.size * 0.8 for s in chosen), device),
                _column(((s.phase * 7) % 1 for s in chosen), device),
            )
        )
    main = [i for i, s in enumerate(scenes) if s.kind is not None]
    if main:
        chosen = [scenes[i] for i in main]
        layers.append(
            _Object(
                True,
                torch.tensor(main, device=device),
                [s.kind for s in chosen],
                [s.color for s in chosen],
                [s.pattern for s in chosen],
                _column((s.x for s in chosen), device),
                _column((s.z for s in chosen), device),
                torch.deg2rad(_column((s.yaw for s in chosen), device)),
                _column((s.size for s in chosen), device),
                _column((s.phase for s in chosen), device),
            )
        )
    return layers


def _to_local(obj: _Object, which: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """World points (M, 3) into the coordinates of object `which` (M,)."""
    dx, dz = points[:, 0] - obj.x[which], points[:, 2] - obj.z[which]
    c, s, inv = torch.cos(obj.yaw)[which], torch.sin(obj.yaw)[which], 1 / obj.size[which]
    return (c * dx - s * dz) * inv, points[:, 1] * inv, (s * dx + c * dz) * inv


def _rotate(obj: _Object, which: Tensor, v: Tensor, *, back: bool = False) -> Tensor:
    c, s = torch.cos(obj.yaw)[which], torch.sin(obj.yaw)[which]
    s = -s if back else s
    return torch.stack([c * v[:, 0] - s * v[:, 2], v[:, 1], s * v[:, 0] + c * v[:, 2]], 1)


def _bound_interval(origin, direction) -> tuple[Tensor, Tensor]:
    """Where rays (3 columns each, local) enter and leave the bounding sphere; enter > leave: never."""
    ox, oy, oz = origin
    oy = oy - shapes.BOUND_HEIGHT
    b = ox * direction[0] + oy * direction[1] + oz * direction[2]
    disc = b * b - (ox * ox + oy * oy + oz * oz - shapes.BOUND_RADIUS**2)
    root = disc.clamp_min(0).sqrt()
    near, far = (-b - root).clamp_min(0), -b + root
    return near, torch.where(disc > 0, far, near - 1)


def _march(kind: str, origin, direction, near: Tensor, far: Tensor, cone: float):
    """Sphere-trace local rays; returns distance of the hit or nearest pass, and coverage in [0, 1]."""
    best_t, coverage = near.clone(), torch.zeros_like(near)
    for start in range(0, len(near), CHUNK):
        piece = slice(start, start + CHUNK)
        alive = torch.arange(start, min(start + CHUNK, len(near)), device=near.device)
        o, d = [c[piece] for c in origin], [c[piece] for c in direction]
        t, end = near[piece], far[piece]
        seen, where = torch.zeros_like(t), t
        for step in range(STEPS):
            gap = shapes.distance(kind, *(torch.addcmul(a, t, b) for a, b in zip(o, d, strict=True)))
            now = (1 - gap / (cone * t)).clamp_(0, 1)
            where = torch.where(now > seen, t, where)
            seen = torch.maximum(now, seen)
            go_on = (gap > HIT) & (t < end)
            t = t + gap.clamp_min(0.003)
            if step in COMPACT_AFTER:
                best_t[alive], coverage[alive] = where, seen
                keep = go_on.nonzero().squeeze(1)
                if len(keep) == 0:
                    break
                alive, t, end, seen, where = (c[keep] for c in (alive, t, end, seen, where))
                o, d = [c[keep] for c in o], [c[keep] for c in d]
    return best_t, coverage


def _normals(kind: str, x: Tensor, y: Tensor, z: Tensor, h: float = 0.012) -> Tensor:
    """Outward unit normals (M, 3) from four samples of the distance (tetrahedron rule)."""
    total = torch.zeros(len(x), 3, device=x.device)
    for i, j, k in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        gap = shapes.distance(kind, x + i * h, y + j * h, z + k * h)
        total += gap[:, None] * torch.tensor([i, j, k], dtype=x.dtype, device=x.device)
    return F.normalize(total, dim=1)


def _groups(kinds: list[str], device) -> list[tuple[str, Tensor]]:
    return [
        (k, torch.tensor([i for i, other in enumerate(kinds) if other == k], device=device))
        for k in dict.fromkeys(kinds)
    ]


def _light_and_contact(objects, scene_of, points, light) -> tuple[Tensor, Tensor]:
    """Share of direct light, and nearness of an object, at world points (M, 3) of given scenes."""
    lit, contact = torch.ones_like(points[:, 0]), torch.ones_like(points[:, 0])
    kinds = list(shapes.ALL_KINDS)
    for obj in objects:
        # which object of this layer, and of what kind, each point's scene holds; -1 for none
        index_in = torch.full((len(light),), -1, device=points.device)
        index_in[obj.scene] = torch.arange(len(obj.scene), device=points.device)
        code_in = torch.full((len(light),), -1, device=points.device)
        code_in[obj.scene] = torch.tensor([kinds.index(k) for k in obj.kinds], device=points.device)
        codes = code_in[scene_of]
        reach = (points[:, 0] - obj.x[index_in][scene_of]).abs() < 2.6
        for kind in dict.fromkeys(obj.kinds):
            rows = ((codes == kinds.index(kind)) & reach).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            which = index_in[scene_of[rows]]
            origin = _to_local(obj, which, points[rows])
            direction = _rotate(obj, which, light[scene_of[rows]]).unbind(1)
            near, far = _bound_interval(origin, direction)
            crossing = (far > near).nonzero().squeeze(1)
            if len(crossing):
                o, d = ([c[crossing] for c in v] for v in (origin, direction))
                lit[rows[crossing]] *= _shadow(kind, o, d, near[crossing], far[crossing])
            close = (origin[0] ** 2 + origin[2] ** 2 < 0.6).nonzero().squeeze(1)
            if len(close):
                gap = shapes.distance(kind, *(c[close] for c in origin))
                contact[rows[close]] *= (0.5 + 4 * gap.clamp_min(0)).clamp(max=1)
    return lit, contact


def _shadow(kind, origin, direction, near, far) -> Tensor:
    """Soft shadow: how closely a ray towards the light passes the object."""
    lit = torch.ones_like(near)
    for start in range(0, len(near), CHUNK):
        piece = slice(start, start + CHUNK)
        o, d = [c[piece] for c in origin], [c[piece] for c in direction]
        t, end, here = near[piece].clamp_min(0.05), far[piece], lit[piece]
        for _ in range(SHADOW_STEPS):
            gap = shapes.distance(kind, *(a + t * b for a, b in zip(o, d, strict=True)))
            inside = (t < end).float()
            here = torch.minimum(here, 1 - inside * (1 - 9 * gap / t).clamp(0, 1))
            t = t + gap.clamp_min(0.05)
        lit[piece] = here
    return lit


@torch.no_grad()
def _render_batch(scenes: Sequence[Scene], size: int, device: torch.device, normals: bool) -> Rendering:
    n = len(scenes)
    eye, rays = camera(scenes, size, device)
    light = _light(scenes, device)
    cone = 2 * math.tan(math.radians(FOV / 2)) / size  # width of a pixel at distance 1
    objects = _objects(scenes, device)

    depth, normal, albedo = _room(scenes, eye, rays, device)
    depth, normal, albedo = depth.flatten(), normal.reshape(-1, 3), albedo.reshape(-1, 3)
    flat_rays, pixels_each = rays.reshape(-1, 3), size * size
    scene_of = torch.arange(n, device=device).repeat_interleave(pixels_each)
    points = eye[scene_of] + depth[:, None] * flat_rays
    table = normal[:, 1] > 0.5
    color = torch.zeros_like(albedo)
    lit, contact = torch.ones_like(depth), torch.ones_like(depth)
    rows = table.nonzero().squeeze(1)
    if len(rows):
        lit[rows], contact[rows] = _light_and_contact(objects, scene_of[rows], points[rows], light)
    color = _shade(albedo, normal, flat_rays, light[scene_of], lit, contact, scenes, scene_of, gloss=0.05)

    mask, edges = torch.zeros_like(depth), albedo.clone()
    shape_normal, coverage_any = normal.clone(), torch.zeros_like(depth)
    for obj in objects:
        for kind, members in _groups(obj.kinds, device):
            hit = _visible(kind, obj, members, eye, rays, cone)
            if hit is None:
                continue
            pixel, which, t, coverage, local = hit
            surface, gloss = _paint(kind, obj, which, local)
            n_local = _normals(kind, *local)
            n_world = _rotate(obj, which, n_local, back=True)
            owner = obj.scene[which]
            where = eye[owner] + t[:, None] * flat_rays[pixel] + 0.02 * n_world
            lit, contact = _light_and_contact(objects, owner, where, light)
            shaded = _shade(
                surface, n_world, flat_rays[pixel], light[owner], lit, torch.ones_like(lit), scenes, owner, gloss=gloss
            )
            keep = (coverage * (t < depth[pixel] + 0.05))[:, None]
            color[pixel] = keep * shaded + (1 - keep) * color[pixel]
            edges[pixel] = keep * surface + (1 - keep) * edges[pixel]
            solid = (keep[:, 0] > 0.5).nonzero().squeeze(1)
            depth[pixel[solid]] = t[solid]
            shape_normal[pixel[solid]] = n_world[solid]
            coverage_any[pixel] = torch.maximum(coverage_any[pixel], keep[:, 0])
            # a hit up to HIT short of the surface leaves coverage a little below one
            mask[pixel] = (keep[:, 0] / SOLID).clamp(max=1) if obj.is_main else mask[pixel] * (1 - keep[:, 0])

    shape = (n, size, size)
    layers = {
        "color": color.view(*shape, 3), "albedo": edges.view(*shape, 3), "depth": depth.view(shape),
        "normal": shape_normal.view(*shape, 3), "mask": mask.view(shape), "any": coverage_any.view(shape),
    }  # fmt: skip
    for foreground in (_occluder, _card):
        foreground(scenes, eye, rays, light, layers)
    styled = _stylise(scenes, layers, device)
    pixels = styled.permute(0, 3, 1, 2).clamp(0, 1).contiguous()
    return Rendering(pixels, layers["depth"], layers["mask"], layers["normal"] if normals else None)


def camera(scenes, size, device) -> tuple[Tensor, Tensor]:
    """Eye positions (N, 3) and unit ray directions (N, size, size, 3)."""
    azimuth = torch.deg2rad(_column((s.camera_azimuth for s in scenes), device))
    elevation = torch.deg2rad(_column((s.camera_elevation for s in scenes), device))
    distance = _column((s.camera_distance for s in scenes), device)
    toward = torch.stack(
        [torch.sin(azimuth) * torch.cos(elevation), torch.sin(elevation), torch.cos(azimuth) * torch.cos(elevation)], 1
    )
    eye = toward * distance[:, None]
    eye[:, 1] += LOOK_AT
    right = F.normalize(torch.stack([toward[:, 2], torch.zeros_like(azimuth), -toward[:, 0]], 1), dim=1)
    up = torch.linalg.cross(toward, right)
    half = math.tan(math.radians(FOV / 2))
    ticks = ((torch.arange(size, device=device) + 0.5) / size * 2 - 1) * half
    v, u = torch.meshgrid(-ticks, ticks, indexing="ij")
    rays = u[None, ..., None] * right[:, None, None] + v[None, ..., None] * up[:, None, None] - toward[:, None, None]
    return eye, F.normalize(rays, dim=-1)


def _light(scenes, device) -> Tensor:
    azimuth = torch.deg2rad(_column((s.light_azimuth for s in scenes), device))
    elevation = torch.deg2rad(_column((s.light_elevation for s in scenes), device))
    return torch.stack(
        [torch.sin(azimuth) * torch.cos(elevation), torch.sin(elevation), torch.cos(azimuth) * torch.cos(elevation)], 1
    )


def _room(scenes, eye, rays, device):
    """Depth, normal and albedo of table and wall."""
    n, size = len(scenes), rays.shape[1]
    down = -eye[:, None, None, 1] / rays[..., 1].clamp(max=-1e-6)
    down = torch.where(rays[..., 1] < -1e-6, down, torch.full_like(down, 1e6))
    back = (WALL_Z - eye[:, None, None, 2]) / rays[..., 2].clamp(max=-1e-6)
    depth = torch.minimum(down, back)
    is_table = down < back
    points = eye[:, None, None] + depth[..., None] * rays
    normal = torch.zeros(n, size, size, 3, device=device)
    normal[..., 1], normal[..., 2] = is_table.float(), (~is_table).float()
    phase = _column((s.phase for s in scenes), device)[:, None, None].expand(n, size, size)
    albedo = torch.zeros(n, size, size, 3, device=device)
    for setting, members in _groups([s.setting for s in scenes], device):
        p, ph, on = points[members], phase[members], is_table[members]
        here = torch.zeros(len(members), size, size, 3, device=device)
        here[on] = materials.setting_albedo(setting, "table", p[..., 0][on], p[..., 2][on], ph[on])
        here[~on] = materials.setting_albedo(setting, "wall", p[..., 0][~on], p[..., 1][~on], ph[~on])
        albedo[members] = here
    return depth, normal, albedo


def _visible(kind, obj, members, eye, rays, cone):
    """Pixels that see objects of a kind: flat pixel index, object, world distance, coverage, local points."""
    size = rays.shape[1]
    pixels_each = size * size
    which = members.repeat_interleave(pixels_each)
    owner = obj.scene[which]
    pixel = owner * pixels_each + torch.arange(pixels_each, device=eye.device).repeat(len(members))
    direction_world = rays.reshape(-1, 3)[pixel]
    start = _to_local(obj, members, eye[obj.scene[members]])
    origin = [c.repeat_interleave(pixels_each) for c in start]
    direction = list(_rotate(obj, which, direction_world).unbind(1))
    near, far = _bound_interval(origin, direction)
    rows = (far > near).nonzero().squeeze(1)
    origin, direction = [c[rows] for c in origin], [c[rows] for c in direction]
    t, coverage = _march(kind, origin, direction, near[rows], far[rows], cone)
    seen = (coverage > 0.02).nonzero().squeeze(1)
    if len(seen) == 0:
        return None
    local = [o[seen] + t[seen] * d[seen] for o, d in zip(origin, direction, strict=True)]
    which = which[rows][seen]
    return pixel[rows][seen], which, t[seen] * obj.size[which], coverage[seen], local


def _paint(kind, obj, which, local) -> tuple[Tensor, Tensor]:
    """Surface colour (M, 3) and gloss (M,) at local points: pattern on the body, fixed colours elsewhere."""
    device = local[0].device
    part = shapes.nearest_part(kind, *local)
    base = torch.tensor([materials.COLORS[c] for c in obj.colors], device=device)[which]
    second = torch.tensor([materials.SECOND_COLORS[c] for c in obj.colors], device=device)[which]
    mix = torch.zeros(len(which), device=device)
    phase = obj.phase[which]
    pattern_of = obj.patterns
    for pattern in dict.fromkeys(pattern_of[i] for i in set(which.tolist())):
        has = torch.tensor([p == pattern for p in pattern_of], device=device)[which]
        mix[has] = materials.PATTERNS[pattern](*(c[has] for c in local), phase[has])
    surface = base + mix[:, None] * (second - base)
    for i, name in enumerate(shapes.part_names(kind)[1:], start=1):
        surface[part == i] = torch.tensor(materials.PART_COLORS[name], device=device)
    shiny = torch.tensor([p not in ("wooden", "brick", "speckled", "camouflage") for p in pattern_of], device=device)
    return surface, 0.06 + 0.22 * shiny[which].float()


def _shade(albedo, normal, rays, light, lit, contact, scenes, scene_of, *, gloss) -> Tensor:
    device = albedo.device
    warmth = _column((s.light_warmth for s in scenes), device)[scene_of]
    strength = _column((s.light_strength for s in scenes), device)[scene_of]
    tint = 1 + warmth[:, None] * torch.tensor([0.10, 0.0, -0.14], device=device)
    facing = (normal * light).sum(1)
    diffuse = (facing * 0.85 + 0.15).clamp_min(0) * lit
    half = F.normalize(light - rays, dim=1)
    highlight = (normal * half).sum(1).clamp_min(0) ** 40 * lit * gloss
    sky = 0.42 + 0.10 * normal[:, 1]
    total = (sky * contact + 0.68 * diffuse * contact.sqrt()) * strength
    return albedo * total[:, None] * tint + highlight[:, None] * strength[:, None]


def _occluder(scenes, eye, rays, light, layers) -> None:
    """A cardboard box in the foreground that hides `occlusion` of the image width from one side."""
    device = eye.device
    rows = [i for i, s in enumerate(scenes) if s.occlusion > 0]
    if not rows:
        return
    which = torch.tensor(rows, device=device)
    size = rays.shape[1]
    width = _column((scenes[i].occlusion for i in rows), device)
    side = _column((1.0 if scenes[i].phase < 0.5 else -1.0 for i in rows), device)
    u = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    # the hidden strip begins beside the object and covers its middle by up to the given width
    inner = (0.45 - 1.8 * width) * side
    inside_x = ((u[None] - inner[:, None]) * side[:, None] * size / 2).clamp(0, 1)
    inside_y = ((u + 0.55) * size / 2).clamp(0, 1)
    alpha = inside_x[:, None, :] * inside_y[None, :, None]
    grain = 0.04 * torch.sin(u * 40)[None, :, None] + 0.10 * (u[None, None, :] * side[:, None, None])
    tone = torch.tensor([0.72, 0.55, 0.36], device=device) * (0.85 + grain)[..., None].expand(-1, size, size, 3)
    _over(layers, which, alpha, tone, distance=2.2)


@lru_cache(maxsize=256)
def lettering(word: str) -> np.ndarray:
    """The card's print: (H, W) float32, 1 where there is ink."""
    font = ImageFont.load_default(size=44)
    box = font.getbbox(word, stroke_width=2)
    image = Image.new("L", (box[2] - box[0] + 28, 64), 0)
    ImageDraw.Draw(image).text(
        (14 - box[0], 32), word, fill=255, font=font, anchor="lm", stroke_width=2, stroke_fill=255
    )
    small = image.resize((round(image.width * 0.36), 23), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


CARD_HEIGHT, CARD_PER_PIXEL, CARD_Z = 0.335, 0.335 / 23, 0.80


def card_width(word: str) -> float:
    """How wide a card with a word is, in object heights: a blank card of that `card_width` is as large."""
    return lettering(word).shape[1] * CARD_PER_PIXEL


def _card(scenes, eye, rays, light, layers) -> None:
    """A label that stands in front of the object and faces the camera."""
    device = eye.device
    for i, scene in enumerate(scenes):
        if scene.card is None:
            continue
        ink = torch.from_numpy(lettering(scene.card)).to(device)
        print_half = card_width(scene.card) / 2
        half = max(print_half, scene.card_width / 2)
        tilt = 0.35  # leans back, like an easel card
        t = (CARD_Z - eye[i, 2] - tilt * eye[i, 1]) / (rays[i, ..., 2] + tilt * rays[i, ..., 1])
        point = eye[i] + t[..., None] * rays[i]
        u, v = point[..., 0] / half, point[..., 1] / CARD_HEIGHT * 2 - 1
        grid = torch.stack([point[..., 0] / print_half, -v], -1)[None]  # beyond the print there is no ink
        print_ = F.grid_sample(ink[None, None], grid, align_corners=False)[0, 0]
        cone = 2 * math.tan(math.radians(FOV / 2)) / rays.shape[1] * t
        alpha = ((half * (1 - u.abs())) / cone + 0.5).clamp(0, 1)
        alpha = alpha * ((CARD_HEIGHT / 2 * (1 - v.abs())) / cone + 0.5).clamp(0, 1)
        paper = torch.tensor([0.97, 0.96, 0.92], device=device)
        tone = paper * (1 - 0.92 * print_[..., None])
        _over(layers, torch.tensor([i], device=device), alpha[None], tone[None], distance=t[None])


def _over(layers, which, alpha, tone, *, distance) -> None:
    """Paint a foreground surface over the layers of the scenes `which`."""
    a = alpha[..., None]
    for name in ("color", "albedo"):
        layers[name][which] = a * tone + (1 - a) * layers[name][which]
    layers["mask"][which] = layers["mask"][which] * (1 - alpha)
    layers["any"][which] = torch.maximum(layers["any"][which] * (1 - alpha), alpha)
    solid = alpha > 0.5
    layers["depth"][which] = torch.where(solid, torch.as_tensor(distance, device=alpha.device), layers["depth"][which])
    flat = torch.tensor([0.0, 0.0, 1.0], device=alpha.device)
    layers["normal"][which] = torch.where(solid[..., None], flat, layers["normal"][which])


def _outline(layers) -> Tensor:
    """Strength (N, H, W) of contour lines: jumps of depth, orientation or colour between pixels."""

    def jump(field):
        dx = F.pad((field[:, :, 1:] - field[:, :, :-1]).abs().sum(-1), (0, 1))
        dy = F.pad((field[:, 1:] - field[:, :-1]).abs().sum(-1), (0, 0, 0, 1))
        return dx + dy

    depth = jump(layers["depth"].clamp(max=8)[..., None])
    return (
        ((depth - 0.12) * 4).clamp(0, 1)
        + ((jump(layers["normal"]) - 0.55) * 1.3).clamp(0, 1)
        + ((jump(layers["albedo"]) - 0.35) * 1.2).clamp(0, 1)
    ).clamp(0, 1)


def _photo(layers):
    return layers["color"]


def _cartoon(layers):
    """Flat saturated colours in three tones with dark outlines."""
    albedo, color = layers["albedo"], layers["color"]
    tone = (color.sum(-1) / albedo.sum(-1).clamp_min(0.05))[..., None]
    flat = torch.where(tone > 0.85, 1.05, torch.where(tone > 0.55, 0.82, 0.58))
    grey = albedo.mean(-1, keepdim=True)
    vivid = grey + 1.35 * (albedo - grey)
    return vivid.clamp(0, 1) * flat * (1 - 0.9 * _outline(layers)[..., None])


def _sketch(layers):
    """Pencil on paper: contours, and hatching where the shaded picture is dark."""
    grey = layers["color"].mean(-1)
    size = grey.shape[-1]
    row, column = torch.meshgrid(*(torch.arange(size, device=grey.device),) * 2, indexing="ij")
    hatch = torch.sin((row + column) * (math.tau * 16 / size)) * 0.5 + 0.5
    object_only = layers["any"].clamp(0, 1)
    dark = ((0.62 - grey) * 1.5).clamp(0, 0.75) * (0.25 + 0.75 * object_only)
    pencil = (_outline(layers) * 0.85 + dark * hatch).clamp(0, 0.92)
    paper = torch.tensor([0.97, 0.96, 0.94], device=grey.device)
    return paper * (1 - pencil[..., None])


def _silhouette(layers):
    """Black objects on white; a card keeps its print."""
    cover = (layers["any"] / SOLID).clamp(max=1)[..., None]
    paper = (layers["albedo"].min(-1, keepdim=True).values > 0.9) & (layers["normal"][..., 2:] > 0.999)
    return 1 - cover * torch.where(paper, 0.15, 1.0)


STYLE_FUNCTIONS = {"photo": _photo, "cartoon": _cartoon, "sketch": _sketch, "silhouette": _silhouette}


def _stylise(scenes, layers, device) -> Tensor:
    result = torch.empty_like(layers["color"])
    for style, members in _groups([s.style for s in scenes], device):
        result[members] = STYLE_FUNCTIONS[style]({k: v[members] for k, v in layers.items()})
    return result
