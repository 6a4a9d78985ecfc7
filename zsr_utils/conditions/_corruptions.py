"""The corruptions of ImageNet-C and the sequences of ImageNet-P, made on the fly for any image.

Whole batches are changed at once; what is random comes from a generator for every sample id.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
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
FRAMES = 31
NOISES = ("gaussian_noise", "shot_noise")  # of the sequences: every frame is drawn anew, and compared with the first
SEQUENCES = (*NOISES, "motion_blur", "zoom_blur", "snow", "brightness", "translate", "rotate", "tilt", "scale")
# of the sequences by size: noise, photons, motion (radius, sigma, degrees a frame), snow as for `PARAMETERS`
MILD = {
    64: (0.025, 500, (14, 3, 5), (0.05, 0.28, 2, 0.5, 10, 2.5, 0.85)),
    224: (0.03, 300, (10, 3, 4), (0.05, 0.3, 3, 0.5, 14, 4, 0.85)),
}
GREY = (0.299, 0.587, 0.114)
ICE = (-0.08, 0.01, 0.05)  # what red, green and blue of drawn ice are beyond its mean


def corruptions(
    names: Sequence[str] = CORRUPTIONS, severities: Sequence[int] = SEVERITIES, *, frost: str | Path = ""
) -> list[Condition]:
    """The corruptions of ImageNet-C at the published severities; 0 is the image.

    The parameters are those published for 64 or for 224 px, whichever is nearer to the model's input size.

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
        ice = _pictures(Path(frost)) if frost and name == "frost" else ()
        for severity in severities:
            one_of(f"severity of {name}", severity, (0, *SEVERITIES))
            published = tuple((size, values[severity - 1]) for size, values in PARAMETERS[name].items())
            change = Corrupted(name, published, ice).change if severity else unchanged
            found.append(Condition(name, severity, change, draws=1))
    return found


def sequences(names: Sequence[str] = SEQUENCES) -> list[Condition]:
    """The sequences of ImageNet-P, a condition a frame: its severity is its number, from 1 to 31.

    Source: Hendrycks & Dietterich (2019), `make_imagenet_p` and `make_tinyimagenet_p`. Simpler than theirs: frames are
        made of the pixels that the model sees (where theirs are cut from a larger picture, the edge is repeated) and
        are not compressed as a video; a translation has 31 frames at every size.
    """
    for name in names:
        one_of("sequence", name, SEQUENCES)
    return [
        Condition(f"{name}_sequence", number, Frame(name, number - 1).change, draws=1)
        for name in names
        for number in range(1, FRAMES + 1)
    ]


def published_size(side: int) -> int:
    """The size, of those with published parameters, that is nearest to an image's side, by ratio.

    Examples:
        >>> published_size(96), published_size(224)
        (64, 224)
    """
    return min((64, 224), key=lambda size: abs(np.log(size / side)))


@dataclass(frozen=True)
class Corrupted:
    """The change of one corruption at one severity."""

    name: str
    published: tuple[tuple[int, float | list], ...]  # parameters by size
    ice: tuple[Image.Image, ...] = ()

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        chance = [generator(i, (batch.seed, batch.draw, self.name)) for i in batch.sample_ids]
        c = dict(self.published)[published_size(batch.pixels.shape[-1])]
        more = (self.ice,) if self.name == "frost" else ()
        return CHANGES[self.name](batch.pixels, c, chance, *more).clamp(0, 1).to(batch.pixels)


@dataclass(frozen=True)
class Frame:
    """The change of one frame of a sequence, counted from 0."""

    name: str
    k: int

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        x, k, name = batch.pixels, self.k, self.name
        key = (batch.seed, batch.draw, f"{name} sequence", k if name in NOISES else 0)
        chance = [generator(i, key) for i in batch.sample_ids]
        noise, photons, (radius, sigma, turn), flakes = MILD[published_size(x.shape[-1])]
        if name in NOISES:
            made = x if k == 0 else CHANGES[name](x, noise if name == "gaussian_noise" else photons, chance)
        elif name == "motion_blur":
            made = _moved(x, radius, sigma, torch.full((len(x),), turn * (k - 30.0)))
        elif name == "zoom_blur":
            made = sum(_zoomed(x, 1 + 0.004 * j) for j in range(k + 1)) / (k + 1)
        elif name == "snow":
            made = snow(x, flakes, chance, torch.full((len(x),), 4 * k - 150.0))
        elif name == "brightness":
            made = brightness(x, (k - 15) / 50, chance)
        else:
            made = _seen_by(x, _camera(name, k, *x.shape[2:]), "zeros" if name == "scale" else "border")
        return made.clamp(0, 1).to(x)


def _drawn(x: Tensor, chance: Sequence[np.random.Generator], draw: Callable) -> Tensor:
    """What `draw` makes of every image's generator, on the device of the images."""
    return torch.from_numpy(np.stack([draw(g) for g in chance])).to(x)


def _uniform(x: Tensor, chance, *shape: int, reach: float = 1.0) -> Tensor:
    return _drawn(x, chance, lambda g: reach * (2 * g.random(shape, dtype=np.float32) - 1))


def gaussian_noise(x, c, chance):
    return x + c * _drawn(x, chance, lambda g: g.standard_normal(x.shape[1:], dtype=np.float32))


def shot_noise(x, c, chance):
    light = np.float64(c) * x.cpu().numpy()
    return torch.from_numpy(np.stack([g.poisson(one) for g, one in zip(chance, light)])).to(x) / c


def impulse_noise(x, c, chance):
    u = _drawn(x, chance, lambda g: g.random(x.shape[1:], dtype=np.float32))
    return torch.where(u < c / 2, 1.0, torch.where(u < c, 0.0, x))


def defocus_blur(x, c, chance):
    radius, blur = c
    reach = max(8, int(radius))
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(float)
    disk /= disk.sum()
    edge = np.exp(-(np.arange(-(k := 1 if radius <= 8 else 2), k + 1) ** 2) / (2 * blur**2))
    for axis in (0, 1):
        disk = ndimage.convolve1d(disk, edge / edge.sum(), axis, mode="mirror")
    kept = np.flatnonzero(disk.max(0) > 1e-6)
    kernel = torch.from_numpy(disk[kept[0] : kept[-1] + 1, kept[0] : kept[-1] + 1]).to(x)
    flat = F.pad(x.flatten(0, 1)[:, None], [len(kernel) // 2] * 4, mode="reflect")
    return F.conv2d(flat, kernel[None, None])[:, 0].unflatten(0, x.shape[:2])


def glass_blur(x, c, chance):
    sigma, reach, rounds = c
    (n, _, h, w), blurred = x.shape, (255 * _blurred(x, sigma) + 1e-4).floor() / 255
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
    return _blurred(blurred, sigma)


def motion_blur(x, c, chance):
    return _moved(x, *c, _drawn(x, chance, lambda g: g.uniform(-45, 45)))


def zoom_blur(x, c, chance):
    number, step = c
    zooms = [_zoomed(x, 1 + k * step) for k in range(number)]
    return (x + sum(zooms)) / (number + 1)


def snow(x, c, chance, angles=None):
    mean, std, size, threshold, radius, sigma, stays = c
    layer = _drawn(x, chance, lambda g: g.standard_normal((1, *x.shape[2:]), dtype=np.float32))
    layer = _zoomed(mean + std * layer, size)
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    angles = _drawn(x, chance, lambda g: g.uniform(-135, -45)) if angles is None else angles
    layer = _moved(layer, radius, sigma, angles)
    pale = torch.einsum("nchw,c->nhw", x, torch.tensor(GREY).to(x))[:, None] * 1.5 + 0.5
    return stays * x + (1 - stays) * torch.maximum(x, pale) + layer + layer.rot90(2, (2, 3))


def frost(x, c, chance, ice=()):
    if not ice:
        return c[0] * x + c[1] * _ice(x, chance)
    factor = 0.3 if published_size(x.shape[-1]) == 64 else 1.0

    def cut(g):
        picture = ice[g.integers(min(5, len(ice)))]  # the authors never draw their sixth
        scale = max(factor, *((side + 1) / full for side, full in zip(x.shape[:1:-1], picture.size)))
        small = np.asarray(picture.resize([round(scale * s) for s in picture.size], Image.Resampling.BILINEAR))
        top, left = (g.integers(full - side + 1) for full, side in zip(small.shape, x.shape[2:]))
        return small[top : top + x.shape[2], left : left + x.shape[3]].transpose(2, 0, 1) / np.float32(255)

    return c[0] * x + c[1] * _drawn(x, chance, cut)


def fog(x, c, chance):
    weight, decay = c
    side = 1 << (max(x.shape[2:]) - 1).bit_length()
    chances, wibble = _uniform(x, chance, side, side), 100.0
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


def brightness(x, c, chance):
    value = x.amax(1, keepdim=True)  # of hue, saturation and value
    raised = (value + c).clamp(0, 1)
    return torch.where(value > 0, x * raised / value.clamp(min=1e-9), raised)


def contrast(x, c, chance):
    means = x.mean((2, 3), keepdim=True)
    return (x - means) * c + means


def elastic_transform(x, c, chance):
    n, _, h, w = x.shape
    strength, sigma, reach = (v * h for v in c)
    middle, arm = np.array([h // 2, w // 2], np.float32), min(h, w) // 3
    corners = torch.from_numpy(middle + arm * np.float32([[1, 1], [1, -1], [-1, -1]])).to(x)
    ones = torch.ones(n, 3, 1).to(x)
    moved = torch.cat([corners + _uniform(x, chance, 3, 2, reach=reach), ones], 2)
    back = torch.linalg.solve(moved.double(), corners.double().expand(n, -1, -1)).to(x)  # where a pixel comes from
    x = _sampled(x, torch.einsum("hwi,nij->nhwj", _places(x), back))
    if not strength:
        return x
    field = strength * _blurred(_uniform(x, chance, 2, h, w), sigma, "reflect", 3)
    return _sampled(x, _places(x)[..., :2] + field.permute(0, 2, 3, 1), outer=True)


def pixelate(x, c, chance):
    return _filtered(x, lambda side: _boxes(int(side * c), side) @ _boxes(side, int(side * c)))


def jpeg_compression(x, c, chance):
    def saved(levels):
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "JPEG", quality=c)
        return np.asarray(Image.open(file)).transpose(2, 0, 1) / np.float32(255)

    levels = (255 * x).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return torch.from_numpy(np.stack([saved(one) for one in levels])).to(x)


CHANGES = {name: globals()[name] for name in CORRUPTIONS}


def _moved(x: Tensor, radius: int, sigma: float, angles: Tensor) -> Tensor:
    """Every image blurred along its angle, in degrees, to one side; what lies outside repeats the edge."""
    steps, (h, w) = np.arange(2 * radius + 1), x.shape[2:]
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights, angles = weights / weights.sum(), torch.deg2rad(angles.double().cpu())
    rows, columns, out = torch.arange(h)[:, None], torch.arange(w), torch.zeros_like(x)
    for step, weight in zip(steps, weights):
        if weight < 1e-4:
            break
        down, right = (-torch.ceil(step * along - 0.5).long()[:, None, None] for along in (angles.sin(), angles.cos()))
        index = (rows - down).clamp(0, h - 1) * w + (columns - right).clamp(0, w - 1)
        index = index.flatten(1)[:, None].expand(-1, x.shape[1], -1).to(x.device)
        out += weight * x.flatten(2).gather(2, index).view_as(x)
    return out


def _filtered(x: Tensor, line: Callable[[int], Tensor]) -> Tensor:
    """Rows and columns through the matrix of a line of pixels."""
    rows, columns = (line(side).to(x) for side in x.shape[2:])
    return rows @ x @ columns.T


def _blurred(x: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4) -> Tensor:
    return _filtered(x, lambda side: _gauss(side, sigma, mode, truncate))


def _zoomed(x: Tensor, factor: float) -> Tensor:
    return _filtered(x, lambda side: _zoom(side, factor))


@cache
def _gauss(side: int, sigma: float, mode: str, truncate: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode=mode, truncate=truncate))


@cache
def _zoom(side: int, factor: float) -> Tensor:
    """The middle of a line of pixels, drawn larger by linear interpolation to its own length again."""
    cut = int(np.ceil(side / factor))
    large = round(cut * factor)
    middle = np.eye(side)[(side - cut) // 2 :][:cut]
    at = np.linspace(0, cut - 1, large)[(large - side) // 2 :][:side]
    return torch.from_numpy(ndimage.map_coordinates(middle, np.meshgrid(at, np.arange(side), indexing="ij"), order=1))


@cache
def _boxes(here: int, there: int) -> Tensor:
    """A line of pixels brought to another length by means over boxes, as Pillow does: (there, here)."""
    line = Image.fromarray(np.eye(here, dtype=np.float32)).resize((here, max(1, there)), Image.Resampling.BOX)
    return torch.from_numpy(np.array(line, dtype=np.float64))


def _sampled(x: Tensor, at: Float[Tensor, "n h w 2"], *, padding: str = "reflection", outer: bool = False) -> Tensor:
    """Pixels at places (x, y), linearly interpolated; mirrored at the outermost pixels, or at their outer edge."""
    size = torch.tensor([x.shape[3], x.shape[2]]).to(x)
    grid = (2 * at + 1) / size - 1 if outer else 2 * at / (size - 1) - 1
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=not outer)


def _places(x: Tensor) -> Float[Tensor, "h w 3"]:
    """Homogeneous coordinates (x, y, 1) of the pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in x.shape[2:]), indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], -1).to(x)


def _camera(name: str, k: int, h: int, w: int) -> np.ndarray:
    """The map of a frame, (3, 3), from places in the image to places in the frame, about the middle."""
    turn, far = np.deg2rad(k - 15), np.hypot(h, w)
    c, s = np.cos(turn), np.sin(turn)
    return {
        "translate": np.array([[1, 0, k - 15], [0, 1, 0], [0, 0, 1.0]]),
        "rotate": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
        "scale": np.diag([0.4 + 0.025 * k, 0.4 + 0.025 * k, 1]),
        "tilt": np.array([[far * c, 0, 0], [-far * s * s, far * c, 0], [c * s, s, far]]),
    }[name]


def _seen_by(x: Tensor, camera: np.ndarray, padding: str) -> Tensor:
    middle = torch.tensor([(x.shape[3] - 1) / 2, (x.shape[2] - 1) / 2, 0]).to(x)
    source = (_places(x) - middle) @ torch.from_numpy(np.linalg.inv(camera)).to(x).T
    at = source[..., :2] / source[..., 2:] + middle[:2]
    return _sampled(x, at.expand(len(x), -1, -1, -1), padding=padding)


def _ice(x: Tensor, chance) -> Tensor:
    """Drawn ice: noise whose spectrum falls with frequency and has six arms, in pale blue."""
    h, w = x.shape[2:]
    up, across = np.meshgrid(np.fft.fftfreq(h), np.fft.rfftfreq(w), indexing="ij")
    fall = 1 / np.maximum(np.hypot(up, across), 1 / max(h, w)) ** 1.3

    def drawn(g):
        arms = np.exp(2 * np.cos(6 * np.arctan2(up, across) + g.uniform(0, 2 * np.pi)))
        field = np.fft.irfft2(np.fft.rfft2(g.standard_normal((h, w))) * fall * arms, s=(h, w))
        light = g.uniform(0.45, 0.85) + 0.11 * (field - field.mean()) / field.std()
        return np.float32(light + np.array(ICE)[:, None, None])

    return _drawn(x, chance, drawn).clamp(0, 1)


def _pictures(folder: Path) -> tuple[Image.Image, ...]:
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg"))
    if not files:
        raise ValueError(f"frost is {str(folder)!r}, allowed is a folder with pictures of frost (.png or .jpg).")
    return tuple(Image.open(file).convert("RGB") for file in files)
