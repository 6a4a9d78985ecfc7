"""Chapter 12: one thing changed at a time, in growing doses, and what annotations would make of it.

A scene of Tabletop is rendered again with one factor changed; of other pictures those factors can be changed that need
no scene. Factors have the names of ImageNet-X where it has them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from zsr_utils import scores
from zsr_utils._cache import code, digest
from zsr_utils._text import one_of
from zsr_utils.conditions import ORIGINAL, Batch, Condition, Seen
from zsr_utils.datasets import FACTORS, Dataset, Sample, imagenet_x, load_dataset, rendered, tabletop_scenes
from zsr_utils.scores.trends import redrawn
from zsr_utils.study import Study


CLIPPED = ("smaller", "larger"), ("darker", "brighter")  # of each, a picture has one at most
GREY = (124, 116, 104)  # what is outside a picture, near the mean of photographs
RIGHT, MARGIN, TOP = "right", "margin", "top"


@dataclass(frozen=True)
class Factor:
    """One thing that can differ, and how far.

    `change(thing, dose, u)` takes a scene or a picture and a number in [0, 1) that a sample has for good, which chooses
    among values and sides. Of a `mixed` factor the change has no size: its dose is the share of the changed rendering
    in a mix with the unchanged one, which for colours and surfaces is what a mixed paint looks like.
    """

    name: str
    doses: tuple[float, ...]  # growing
    unit: str
    change: Callable
    mixed: bool = False


def _other(values: Sequence[str], own: str, u: float) -> str:
    values = [value for value in values if value != own]
    return values[int(u * len(values))]


def _second(scene, dose: float, u: float):
    from tabletop import KINDS

    side = 1 if scene.x < 0 else -1
    place = {"second_x": 0.65 * side, "second_z": dose - 0.8, "second_color": scene.color}
    return replace(scene, second_kind=_other(list(KINDS), scene.kind, u), **place)


@cache
def scene_factors() -> tuple[Factor, ...]:
    """Factors of a Tabletop scene; settings, styles and high cameras are not in the training data of the family."""
    from tabletop.materials import COLORS

    mix, painted = (0.3, 0.6, 1.0), ("striped", "dotted", "checkered", "zigzag")
    made_of = ("wooden", "marble", "brick", "speckled", "camouflage")
    return (
        Factor("pose", (60, 120, 180), "degrees", lambda s, d, u: replace(s, yaw=s.yaw + d * (1 if u < 0.5 else -1))),
        Factor("viewpoint", (15, 30, 45), "degrees", lambda s, d, u: replace(s, camera_elevation=s.camera_elevation + d)),
        Factor("background", mix, "share", lambda s, d, u: replace(s, setting=_other(("beach", "night"), "", u)), True),
        Factor("pattern", mix, "share", lambda s, d, u: replace(s, pattern=_other(painted, s.pattern, u)), True),
        Factor("texture", mix, "share", lambda s, d, u: replace(s, pattern=_other(made_of, s.pattern, u)), True),
        Factor("color", mix, "share", lambda s, d, u: replace(s, color=_other(list(COLORS), s.color, u)), True),
        Factor("smaller", (0.25, 0.5, 0.75), "of the size", lambda s, d, u: replace(s, size=s.size * (1 - d))),
        Factor("larger", (0.4, 0.8, 1.2), "of the size", lambda s, d, u: replace(s, size=s.size * (1 + d))),
        Factor("partial_view", (0.5, 0.75, 1.0), "object heights", lambda s, d, u: replace(s, x=d if u < 0.5 else -d)),
        Factor("object_blocking", (0.2, 0.35, 0.5), "reach", lambda s, d, u: replace(s, occlusion=d)),
        Factor("multiple_objects", (0.4, 0.8, 1.2), "object heights", _second),
        Factor("darker", (0.4, 0.6, 0.8), "of the light", lambda s, d, u: replace(s, light_strength=s.light_strength * (1 - d))),
        Factor("brighter", (0.7, 1.3, 2.0), "of the light", lambda s, d, u: replace(s, light_strength=s.light_strength * (1 + d))),
        Factor("style", mix, "share", lambda s, d, u: replace(s, style=_other(("cartoon", "sketch"), "", u)), True),
    )  # fmt: skip


def _box(picture: Image.Image, dose: float, u: float) -> Image.Image:
    picture, width = picture.copy(), round(dose * picture.width)
    picture.paste(GREY, (0 if u < 0.5 else picture.width - width, 0, width if u < 0.5 else picture.width, picture.height))
    return picture


@cache
def picture_factors() -> tuple[Factor, ...]:
    """Factors of any picture, changed without a scene."""

    def moved(picture, u=0.0, *, angle=0.0, shift=0.0, scale=1.0):
        sign = 1 if u < 0.5 else -1
        options = {"interpolation": TF.InterpolationMode.BILINEAR, "fill": list(GREY)}
        return TF.affine(picture, sign * angle, [round(sign * shift * picture.width), 0], scale, [0.0], **options)

    return (
        Factor("pose", (30, 60, 90), "degrees in the plane", lambda p, d, u: moved(p, u, angle=d)),
        Factor("color", (0.1, 0.25, 0.5), "turns of hue", lambda p, d, u: TF.adjust_hue(p, d)),
        Factor("smaller", (0.25, 0.5, 0.75), "of the size", lambda p, d, u: moved(p, scale=1 - d)),
        Factor("larger", (0.5, 1.0, 2.0), "of the size", lambda p, d, u: moved(p, scale=1 + d)),
        Factor("partial_view", (0.25, 0.5, 0.75), "of the width", lambda p, d, u: moved(p, u, shift=d)),
        Factor("object_blocking", (0.25, 0.5, 0.75), "of the width", _box),
        Factor("darker", (0.5, 0.75, 0.9), "of the light", lambda p, d, u: TF.adjust_brightness(p, 1 - d)),
        Factor("brighter", (0.7, 1.5, 3.0), "of the light", lambda p, d, u: TF.adjust_brightness(p, 1 + d)),
    )


def factors_of(images: Dataset) -> tuple[Factor, ...]:
    """What can be changed in a data set: everything in Tabletop's scenes, little in other pictures."""
    return scene_factors() if images.name == "tabletop" else picture_factors()


Changes = tuple[tuple[str, float], ...]  # factors and their doses


def changed(images: Dataset, wanted: Mapping[str, tuple[str, Changes]]) -> Dataset:
    """Pictures of samples with some factors changed, by new ids: `{"new id": ("old id", (("darker", 0.5),))}`.

    Raises: ValueError for a Tabletop picture that is not among the scenes of `validation`, which have neither card nor
        box nor second object, so that no factor is hidden.
    """
    known, label_of = {f.name: f for f in factors_of(images)}, {s.sample_id: s.label for s in images.samples}
    if images.name == "tabletop":
        scenes = tabletop_scenes()
        for sample_id, _ in wanted.values():
            if sample_id not in scenes:
                what = "allowed are those of the split 'validation', which have no card, box or second object"
                raise ValueError(f"The scene of {sample_id!r} cannot be changed: {what}.")
        mixes = {new: _mixture(known, scenes[i], changes, _number(i)) for new, (i, changes) in wanted.items()}
        flat = {f"{new}#{k}": scene for new, mix in mixes.items() for k, (_, scene) in enumerate(mix)}
        made = rendered(images.name, flat)
        opens = dict(zip(flat, (sample.open for sample in made.samples)))
        weights = {new: [weight for weight, _ in mix] for new, mix in mixes.items()}
        how = {new: partial(_mixed, w, [opens[f"{new}#{k}"] for k in range(len(w))]) for new, w in weights.items()}
        content = digest(made.content, weights)
    else:
        how = {new: partial(_redrawn, images, known, *given) for new, given in wanted.items()}
        content = digest(images.fingerprint, dict(wanted), code("experiments/visual_factors"))
    samples = [Sample(new, label_of[wanted[new][0]], how[new]) for new in wanted]
    return Dataset(images.name, images.class_names, samples, images.templates, content)


def _number(sample_id: str) -> float:
    """A number in [0, 1) that a sample has for good."""
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:6], "big") / 2**48


def _mixture(known: Mapping[str, Factor], scene, changes: Changes, u: float) -> list[tuple[float, object]]:
    """Scenes and their weights: two for every mixed factor that is changed by halves."""
    parts = [(1.0, scene)]
    for name, dose in changes:
        f = known[name]
        after = [(w * (dose if f.mixed else 1), f.change(s, dose, u)) for w, s in parts]
        parts = after + ([(w * (1 - dose), s) for w, s in parts] if f.mixed and dose < 1 else [])
    return parts


def _mixed(weights: Sequence[float], opens: Sequence[Callable[[], Image.Image]]) -> Image.Image:
    levels = sum(w * np.asarray(open(), dtype=float) for w, open in zip(weights, opens))
    return Image.fromarray(np.round(levels).astype(np.uint8))


def _redrawn(images: Dataset, known: Mapping[str, Factor], sample_id: str, changes: Changes) -> Image.Image:
    picture = images.image(sample_id)
    for name, dose in changes:
        picture = known[name].change(picture, dose, _number(sample_id))
    return picture


@dataclass(frozen=True)
class Shown:
    """The change of a condition whose pictures were made by `changed`, and its dose as a share of the grid."""

    made: Dataset
    prefix: str
    share: float

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        pixels = self.made.pixels([self.prefix + i for i in batch.sample_ids], batch.net.from_pil)
        return pixels.to(batch.pixels.device)

    def facts(self, batch: Batch, seen: Seen) -> dict:
        return {"share": np.full(len(batch), self.share)}


def conditions(images: Dataset) -> list[Condition]:
    """Every factor alone in every dose: `severity` is the dose in the factor's unit, the fact `share` that of the grid.

    Source: Tu et al. (2024) for factors as the thing to measure; interventions are this project's.
    """
    alone = [(f.name, float(d), d / f.doses[-1], ((f.name, d),)) for f in factors_of(images) for d in f.doses]
    return _as_conditions(images, alone)


def two_at_once(images: Dataset, names: Sequence[str]) -> list[Condition]:
    """Every two of some factors, each in the middle dose of its grid; of those that exclude each other, none."""
    doses = {f.name: f.doses[len(f.doses) // 2] for f in factors_of(images)}
    two = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :] if {a, b} not in map(set, CLIPPED)]
    return _as_conditions(images, [(f"{a}_and_{b}", 1.0, 1.0, ((a, doses[a]), (b, doses[b]))) for a, b in two])


def _as_conditions(images: Dataset, wanted: Sequence[tuple[str, float, float, Changes]]) -> list[Condition]:
    ids = [s.sample_id for s in images.samples]
    made = changed(images, {f"{n}/{d:g}/{i}": (i, changes) for n, d, _, changes in wanted for i in ids})
    shown = [(n, d, Shown(made, f"{n}/{d:g}/", share)) for n, d, share, _ in wanted]
    return [Condition(n, d, s.change, s.facts, draws=1) for n, d, s in shown]
