"""The corruptions of ImageNet-C and the sequences of ImageNet-P, made on the fly for any image.

Whole batches are changed at once; what is random comes from a generator for every sample id.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from zsr_utils._text import one_of, read_yaml
from zsr_utils.conditions._condition import Batch, Condition, generator, unchanged


# by name, size in pixels and severity
PARAMETERS = read_yaml(Path(__file__).resolve().parents[2] / "data" / "published" / "corruptions.yaml")
CORRUPTIONS = tuple(PARAMETERS)
SEVERITIES = (1, 2, 3, 4, 5)
NOISES = ("gaussian_noise", "shot_noise")  # of the sequences: every frame is drawn anew, and compared with the first
CAMERA = ("translate", "rotate", "tilt", "scale")
SEQUENCES = (*NOISES, "motion_blur", "zoom_blur", "snow", "brightness", *CAMERA)
# of the sequences by size: noise, photons, motion (radius, sigma, degrees a frame), snow as for `PARAMETERS`
MILD = {
    64: (0.025, 500, (14, 3, 5), (0.05, 0.28, 2, 0.5, 10, 2.5, 0.85)),
    224: (0.03, 300, (10, 3, 4), (0.05, 0.3, 3, 0.5, 14, 4, 0.85)),
}
# of 3DCC's corruptions without depth, by severity: bits a colour, noise, brightest level
WITHOUT_DEPTH = {
    "color_quant": (5, 4, 3, 2, 1),
    "iso_noise": (0.056, 0.084, 0.126, 0.182, 0.266),
    "low_light": (0.6, 0.5, 0.4, 0.3, 0.2),
}
BOX = Image.Resampling.BOX


def corruptions(
    names: Sequence[str] = CORRUPTIONS, severities: Sequence[int] = SEVERITIES, *, frost: str | Path = ""
) -> list[Condition]:
    """The corruptions of ImageNet-C at the severities published for 64 or 224 px, the nearer; 0 is the image.

    Args:
        frost: A folder with the pictures of frost that the authors lay over images; without, ice is drawn.

    Source: Hendrycks & Dietterich (2019), formulas and parameters of their `make_imagenet_c` and `make_tinyimagenet_c`.
        Different are: the drawn ice; no rounding and no JPEG compression of what comes out; one draw for all severities
        of an image; motion in whole pixels, as in `imagecorruptions`. The shuffle of glass copies pixels and does not
        swap them, which is what the authors' code does.
    """
    found = []
    for name in names:
        one_of("corruption", name, CORRUPTIONS)
        files = sorted(Path(frost).glob("*")) if frost and name == "frost" else ()
        ice = [Image.open(file).convert("RGB") for file in files if file.suffix.lower() in (".png", ".jpg")]
        if frost and name == "frost" and not ice:
            raise ValueError(f"frost is {str(frost)!r}, allowed is a folder with pictures of frost (.png or .jpg).")
        for severity in severities:
            one_of(f"severity of {name}", severity, (0, *SEVERITIES))
            published = {size: values[severity - 1] for size, values in PARAMETERS[name].items()}
            made = partial(CHANGES[name], ice=ice) if ice else CHANGES[name]
            change = partial(_shown, made, published, (name,)) if severity else unchanged
            found.append(Condition(name, severity, change, draws=1))
    return found


def without_depth(severities: Sequence[int] = SEVERITIES) -> list[Condition]:
    """Those of 3DCC that need neither depth nor a video: formulas and parameters of its authors' `create_non3d`.

    Source: Kar et al. (2022).
    """
    found = []
    for name, k in product(WITHOUT_DEPTH, severities):
        one_of(f"severity of {name}", k, SEVERITIES)
        change = partial(_shown, CHANGES[name], dict.fromkeys(MILD, WITHOUT_DEPTH[name][k - 1]), (name,))
        found.append(Condition(name, k, change, draws=1))
    return found


def sequences(names: Sequence[str] = SEQUENCES) -> list[Condition]:
    """The sequences of ImageNet-P, a condition a frame: its severity is its number, from 1 to 31.

    Source: Hendrycks & Dietterich (2019), `make_imagenet_p` and `make_tinyimagenet_p`. Simpler than theirs: frames are
        made of the pixels that the model sees (where theirs are cut from a larger picture, the edge is repeated) and
        are not compressed as a video; a translation has 31 frames at every size.
    """
    found = []
    for name in names:
        one_of("sequence", name, SEQUENCES)
        for k in range(31):
            change = partial(_shown, partial(_frame, name, k), MILD, (f"{name} sequence", k if name in NOISES else 0))
            found.append(Condition(f"{name}_sequence", k + 1, change, draws=1))
    return found


def published_size(side: int) -> int:
    """The size, of those with published parameters, that is nearest to an image's side, by ratio."""
    return min((64, 224), key=lambda size: abs(np.log(size / side)))


def _shown(change: Callable, parameters: dict, key: tuple, batch: Batch) -> Float[Tensor, "n 3 h w"]:
    x, chance = batch.pixels, [generator(i, (batch.seed, batch.draw, *key)) for i in batch.sample_ids]
    return change(x, parameters[published_size(x.shape[-1])], chance).clamp(0, 1).to(x)


def _frame(name: str, k: int, x: Tensor, c: tuple, chance: Iterable) -> Tensor:
    """One frame of a sequence, counted from 0."""
    noise, photons, (radius, sigma, turn), flakes = c
    made = {
        "gaussian_noise": lambda: CHANGES[name](x, noise, chance) if k else x,
        "shot_noise": lambda: CHANGES[name](x, photons, chance) if k else x,
        "motion_blur": lambda: _moved(x, radius, sigma, turn * (k - 30)),
        "zoom_blur": lambda: sum(_filtered(x, _zoom, 1 + 0.004 * j) for j in range(k + 1)) / (k + 1),
        "snow": lambda: snow(x, flakes, chance, 4 * k - 150),
        "brightness": lambda: brightness(x, (k - 15) / 50),
    }
    return made.get(name, lambda: _filmed(x, name, k))()


def _drawn(x: Tensor, each: Iterable, draw: Callable) -> Tensor:
    """What `draw` makes of every image's generator, or of what else is given for each, as `x` is kept."""
    return torch.from_numpy(np.stack([draw(one) for one in each])).to(x)


def _random(x: Tensor, chance: Iterable, how: str, *shape: int) -> Tensor:
    return _drawn(x, chance, lambda g: getattr(g, how)(shape, dtype=np.float32))


def defocus_blur(x, c, chance):
    radius, blur = c
    steps = np.arange(-(reach := max(8, int(radius))), reach + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(float)
    disk = ndimage.gaussian_filter(disk / disk.sum(), blur, mode="mirror", radius=1 if radius <= 8 else 2)
    left = int(np.argmax(disk.max(0) > 1e-6))  # what the disk does not reach needs no padding
    kernel = torch.from_numpy(disk).to(x)[left : len(disk) - left, left : len(disk) - left]
    flat = F.pad(x.flatten(0, 1)[:, None], [reach - left] * 4, mode="reflect")
    return F.conv2d(flat, kernel[None, None])[:, 0].unflatten(0, x.shape[:2])


def glass_blur(x, c, chance):
    sigma, reach, rounds = c
    (n, _, h, w), blurred = x.shape, (255 * _filtered(x, _blur, sigma) + 1e-4).floor() / 255
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    inside = (rows > reach) & (rows <= h - reach) & (columns > reach) & (columns <= w - reach)
    order = (rows * w + columns).flatten()  # pixels are visited from the last to the first
    for _ in range(rounds):
        steps = np.stack([g.integers(-reach, reach, (2, h, w)) for g in chance])
        down, right = torch.from_numpy(steps).unbind(1)
        other = ((rows + down).clamp(0, h - 1) * w + (columns + right).clamp(0, w - 1)).flatten(1)
        other = torch.where(inside.flatten(), other, order)
        # What was visited before holds what it got by then: the first half of `source` points on, the second is old.
        source = torch.cat([torch.where(other > order, other, other + h * w), order.expand(n, -1) + h * w], 1)
        while (source[:, : h * w] < h * w).any():
            source = source.gather(1, source)
        taken = (source[:, : h * w] - h * w).to(x.device)[:, None].expand(-1, 3, -1)
        blurred = blurred.flatten(2).gather(2, taken).unflatten(2, (h, w))
    return _filtered(blurred, _blur, sigma)


def snow(x, c, chance, angles=None):
    mean, std, size, threshold, radius, sigma, stays = c
    layer = _filtered(mean + std * _random(x, chance, "standard_normal", 1, *x.shape[2:]), _zoom, size)
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    angles = _drawn(x, chance, lambda g: g.uniform(-135, -45)) if angles is None else angles
    layer = _moved(layer, radius, sigma, angles)
    pale = torch.einsum("nchw,c->nhw", x, torch.tensor((0.299, 0.587, 0.114)).to(x))[:, None] * 1.5 + 0.5
    return stays * x + (1 - stays) * torch.maximum(x, pale) + layer + layer.rot90(2, (2, 3))


def fog(x, c, chance):
    weight, decay = c
    side = 1 << (max(x.shape[2:]) - 1).bit_length()
    chances, wibble = 2 * _random(x, chance, "random", side, side) - 1, 100.0
    plasma, step = torch.zeros_like(chances), side

    def fill(rows, columns, four):  # the mean of four neighbours, and a random height
        plasma[:, rows, columns] = four / 4 + wibble**2 * chances[:, rows, columns]

    while step >= 2:  # squares, then diamonds: every height is drawn once
        corners, on, between = plasma[:, ::step, ::step], slice(0, None, step), slice(step // 2, None, step)
        pairs = corners + corners.roll(-1, 1)
        fill(between, between, pairs + pairs.roll(-1, 2))
        middles = plasma[:, between, between]
        fill(on, between, middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        fill(between, on, middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wibble = step // 2, wibble / decay
    plasma = plasma - plasma.amin((1, 2), keepdim=True)
    plasma = (plasma / plasma.amax((1, 2), keepdim=True))[:, None, : x.shape[2], : x.shape[3]]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + weight * plasma) * brightest / (brightest + weight)


def brightness(x, c, chance=()):
    value = x.amax(1, keepdim=True)  # of hue, saturation and value
    raised = (value + c).clamp(0, 1)
    return torch.where(value > 0, x * raised / value.clamp(min=1e-9), raised)


def elastic_transform(x, c, chance):
    n, _, h, w = x.shape
    strength, sigma, reach = (v * h for v in c)
    corners = torch.tensor([h // 2, w // 2]).to(x) + min(h, w) // 3 * torch.tensor([[1, 1], [1, -1], [-1, -1]]).to(x)
    moved = F.pad(corners + reach * (2 * _random(x, chance, "random", 3, 2) - 1), (0, 1), value=1)  # homogeneous
    back = torch.linalg.solve(moved.double(), corners.double().expand(n, -1, -1)).to(x)  # where a pixel comes from
    x = _sampled(x, torch.einsum("hwi,nij->nhwj", _places(x), back))
    if not strength:
        return x
    field = strength * _filtered(2 * _random(x, chance, "random", 2, h, w) - 1, _blur, sigma, "reflect", 3)
    return _sampled(x, _places(x)[..., :2] + field.permute(0, 2, 3, 1), outer=True)


def jpeg_compression(x, c, chance):
    def saved(levels):
        Image.fromarray(levels).save(file := io.BytesIO(), "JPEG", quality=c)
        return np.asarray(Image.open(file)).transpose(2, 0, 1) / np.float32(255)

    return _drawn(x, (255 * x).round().byte().permute(0, 2, 3, 1).cpu().numpy(), saved)


def low_light(x, c, chance):
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    dark = c * ((x - low) / (high - low).clamp(min=1e-9)).square()
    return CHANGES["gaussian_noise"](CHANGES["shot_noise"](dark, 120, chance).clamp(0, 1), 0.018, chance)


CHANGES = {  # of images, with parameters and a generator for every image
    "gaussian_noise": lambda x, c, g: x + c * _random(x, g, "standard_normal", *x.shape[1:]),
    "shot_noise": lambda x, c, g: _drawn(x, zip(g, c * x.cpu().double().numpy()), lambda g: g[0].poisson(g[1])) / c,
    "impulse_noise": lambda x, c, g: torch.where((u := _random(x, g, "random", *x.shape[1:])) < c / 2, 1, x * (u >= c)),
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": lambda x, c, g: _moved(x, *c, _drawn(x, g, lambda g: g.uniform(-45, 45))),
    "zoom_blur": lambda x, c, _: (x + sum(_filtered(x, _zoom, 1 + k * c[1]) for k in range(c[0]))) / (c[0] + 1),
    "snow": snow,
    "frost": lambda x, c, g, ice=(): c[0] * x + c[1] * _drawn(x, g, lambda g: _frost(*x.shape[2:], g, *ice)),
    "fog": fog,
    "brightness": brightness,
    "contrast": lambda x, c, _: (x - (means := x.mean((2, 3), keepdim=True))) * c + means,
    "elastic_transform": elastic_transform,
    "pixelate": lambda x, c, _: _filtered(x, _coarse, c),
    "jpeg_compression": jpeg_compression,
    "color_quant": lambda x, c, _: ((255 * x).round() / 2 ** (8 - c)).floor() * 2 ** (8 - c) / 255,
    "iso_noise": lambda x, c, g: CHANGES["gaussian_noise"](CHANGES["shot_noise"](x, 25, g).clamp(0, 1), c, g),
    "low_light": low_light,
}


def _moved(x: Tensor, radius: int, sigma: float, angles: Float[Tensor, "n"] | float) -> Tensor:
    """Every image blurred along its angle, in degrees, to one side; what lies outside repeats the edge."""
    weights, (h, w), out = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2)), x.shape[2:], torch.zeros_like(x)
    turn = torch.deg2rad(torch.as_tensor(angles).double().cpu()).reshape(-1, 1, 1)
    for step, weight in enumerate(weights / weights.sum()):
        if weight < 1e-4:
            break
        down, right = (torch.ceil(step * along - 0.5).long() for along in (turn.sin(), turn.cos()))
        index = (torch.arange(h)[:, None] + down).clamp(0, h - 1) * w + (torch.arange(w) + right).clamp(0, w - 1)
        index = index.flatten(1)[:, None].expand(*x.shape[:2], -1).to(x.device)
        out += weight * x.flatten(2).gather(2, index).view_as(x)
    return out


def _filtered(x: Tensor, line: Callable[..., np.ndarray], *c) -> Tensor:
    """Rows and columns through the matrix that `line` makes for their length."""
    rows, columns = (torch.from_numpy(line(side, *c)).to(x) for side in x.shape[2:])
    return rows @ x @ columns.T


@cache
def _blur(side: int, sigma: float, mode: str = "nearest", truncate: float = 4) -> np.ndarray:
    return ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode=mode, truncate=truncate)


@cache
def _zoom(side: int, factor: float) -> np.ndarray:
    """The middle of a line of pixels, drawn larger by linear interpolation to its own length again."""
    cut = int(np.ceil(side / factor))
    large = round(cut * factor)
    at = np.linspace(0, cut - 1, large)[(large - side) // 2 :][:side] + (side - cut) // 2
    return ndimage.map_coordinates(np.eye(side), np.meshgrid(at, np.arange(side), indexing="ij"), order=1)


@cache
def _coarse(side: int, share: float) -> np.ndarray:
    """A line of pixels brought to a share of its length and back by means over boxes, as Pillow does."""
    line = Image.fromarray(np.eye(side, dtype=np.float32)).resize((side, max(1, int(side * share))), BOX)
    return np.array(line.resize((side, side), BOX), float)


def _sampled(x: Tensor, at: Float[Tensor, "n h w 2"], padding: str = "reflection", *, outer: bool = False) -> Tensor:
    """Pixels at places (x, y), linearly interpolated; mirrored at the outermost pixels, or at their outer edge."""
    size = torch.tensor([x.shape[3], x.shape[2]]).to(x)
    grid = (2 * at + 1) / size - 1 if outer else 2 * at / (size - 1) - 1
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=not outer)


def _places(x: Tensor) -> Float[Tensor, "h w 3"]:
    """Homogeneous coordinates (x, y, 1) of the pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in x.shape[2:]), indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], -1).to(x)


def _filmed(x: Tensor, name: str, k: int) -> Tensor:
    """Frame k of a camera, a map from places about the middle; outside is the edge, or black where pictures shrink."""
    turn, far, zoom = np.deg2rad(k - 15), np.hypot(*x.shape[2:]), 0.4 + 0.025 * k
    c, s = np.cos(turn), np.sin(turn)
    camera = {
        "translate": [[1, 0, k - 15], [0, 1, 0], [0, 0, 1]],
        "rotate": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        "scale": [[zoom, 0, 0], [0, zoom, 0], [0, 0, 1]],
        "tilt": [[far * c, 0, 0], [-far * s * s, far * c, 0], [c * s, s, far]],
    }[name]
    middle = torch.tensor([(x.shape[3] - 1) / 2, (x.shape[2] - 1) / 2, 0]).to(x)
    source = (_places(x) - middle) @ torch.from_numpy(np.linalg.inv(camera)).to(x).T
    at = source[..., :2] / source[..., 2:] + middle[:2]
    return _sampled(x, at.expand(len(x), -1, -1, -1), "zeros" if name == "scale" else "border")


def _frost(h: int, w: int, g: np.random.Generator, *ice: Image.Image) -> np.ndarray:
    """A place of one of the pictures, made smaller as the authors do; without any, ice is drawn in pale blue."""
    if ice:
        picture = ice[g.integers(min(5, len(ice)))]  # the authors never draw their sixth
        scale = max(0.3 if published_size(w) == 64 else 1, (w + 1) / picture.width, (h + 1) / picture.height)
        small = np.asarray(picture.resize([round(scale * s) for s in picture.size], Image.Resampling.BILINEAR))
        top, left = (g.integers(full - side + 1) for full, side in zip(small.shape, (h, w)))
        return small[top : top + h, left : left + w].transpose(2, 0, 1) / np.float32(255)
    up, across = np.meshgrid(np.fft.fftfreq(h), np.fft.rfftfreq(w), indexing="ij")
    arms = np.exp(2 * np.cos(6 * np.arctan2(up, across) + g.uniform(0, 2 * np.pi)))  # six
    fall = 1 / np.maximum(np.hypot(up, across), 1 / max(h, w)) ** 1.3
    field = np.fft.irfft2(np.fft.rfft2(g.standard_normal((h, w))) * fall * arms, s=(h, w))
    light = g.uniform(0.45, 0.85) + 0.11 * (field - field.mean()) / field.std()
    return np.float32(light + np.reshape([-0.08, 0.01, 0.05], (3, 1, 1))).clip(0, 1)
