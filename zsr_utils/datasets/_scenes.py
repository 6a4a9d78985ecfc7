"""Tabletop scenes under the shifts of ImageNet's relatives: drawn anew, staged otherwise, hard, and in motion."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from PIL import Image

from tabletop import KINDS, Scene, SceneDistribution
from tabletop.captions import article, caption, claims
from tabletop.data import NUDGES, SETTINGS, VALIDATION, overlap_twins, to_uint8
from tabletop.dialogue import staged
from tabletop.materials import COLORS, PATTERNS, SECOND_COLORS, TYPICAL_PATTERN
from tabletop.render import render
from tabletop.scene import HELD_OUT_KINDS
from tabletop.views import Views, seen_in, views
from zsr_utils._cache import digest, kept
from zsr_utils.datasets._captioned import Captioned
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._pairs import Pair
from zsr_utils.datasets._rendered import rendered, renderer, tabletop_scenes


REACH = 10  # frames on both sides of an anchor
NAMED = {"kind": KINDS, "color": COLORS}  # of both objects of a scene


def tabletop_shifts(ids: Sequence[str], split: str, seed: int) -> dict[str, dict[str, Scene]]:
    """Scenes of a split, by shift and sample id: the same still life under each shift, but for `v2`, drawn anew."""
    every = tabletop_scenes(split)
    found = {"v2": {f"v2/{k:05d}": VALIDATION.draw(seed + 1, "test", k) for k in range(len(ids))}}
    found |= {name: {i: replace(every[i], style=name) for i in ids} for name in ("cartoon", "silhouette", "sketch")}
    return found | {name: _altered({i: every[i] for i in ids}, name, seed) for name in ("objectnet", "stylized")}


def altered(scene: Scene, how: str, rng: np.random.Generator) -> Scene:
    """A scene staged as for `objectnet`, in another kind's pattern (`stylized`), or with all of it (`hard`)."""
    if how == "stylized":
        others = [p for k, p in TYPICAL_PATTERN.items() if k != scene.kind and p not in ("plain", scene.pattern)]
        return replace(scene, pattern=str(rng.choice(others)), setting=str(rng.choice(list(SETTINGS))))
    unseen = [name for name in SETTINGS if name not in VALIDATION.settings]
    staged = replace(
        scene, setting=str(rng.choice(unseen)), yaw=scene.yaw + rng.uniform(90, 270), x=rng.uniform(-0.45, 0.45),
        z=rng.uniform(-0.4, 0.4), camera_elevation=rng.uniform(36, 60), camera_distance=rng.uniform(3.5, 5.0),
    )  # fmt: skip
    if how == "objectnet":
        return staged
    style, light = str(rng.choice(["photo", "cartoon", "sketch", "silhouette"])), rng.uniform(0.4, 1.2)
    return replace(altered(staged, "stylized", rng), style=style, light_strength=light)


def _altered(scenes: dict[str, Scene], how: str, *seed: int) -> dict[str, Scene]:
    return {i: altered(s, how, np.random.default_rng([*seed, k])) for k, (i, s) in enumerate(scenes.items())}


def hard_scenes(number: int, seed: int) -> tuple[Dataset, dict[str, Scene]]:
    """Fresh scenes that are hard in many ways at once, a pool to choose from, and the scenes they are made of."""
    plain = {f"pool/{k:05d}": VALIDATION.draw(seed + 2, "test", k) for k in range(number)}
    return rendered("pool", _altered(plain, "hard", seed, 5)), plain


def tabletop_frames(ids: Sequence[str], split: str, name: str) -> Dataset:
    """Frames around every scene, `<id>#<offset>`: `vid` moves the camera, `youtube-bb` the light."""
    moves, step = {"vid": ("camera_azimuth", 4.0), "youtube-bb": ("light_azimuth", 12.0)}[name]
    scenes, offsets = tabletop_scenes(split), range(-REACH, REACH + 1)
    at = {(i, k): {moves: getattr(scenes[i], moves) + step * k} for i in ids for k in offsets}
    return rendered(name, {f"{i}#{k}": replace(scenes[i], **moved) for (i, k), moved in at.items()})


def captioned_scenes(images: Dataset, split: str, per_image: int, seed: int) -> Captioned:
    """Pictures of a split with captions as its models were trained on, and of which pictures each caption is true."""
    every, texts = tabletop_scenes(split), {}
    for i in (s.sample_id for s in images.samples):
        rng = np.random.default_rng([seed, crc32(i.encode())])
        texts[i] = list(dict.fromkeys(caption(every[i], rng) for _ in range(per_image)))
    facts = pd.DataFrame([vars(every[i]) for i in texts])
    facts["size"] = np.where(facts["size"] < 0.97, "small", "large")
    facts["view"] = np.where(facts.camera_elevation > 21, "above", "side")
    facts["box"] = np.where(facts.occlusion > 0, "box", "")
    said = [tuple(claims(text).items()) for of in texts.values() for text in of]
    number = {claim: k for k, claim in enumerate(dict.fromkeys(said))}
    holds = np.array([np.all([facts[name] == value for name, value in claim], axis=0) for claim in number])
    return Captioned.of(images, texts, np.array([number[claim] for claim in said]), holds)


def changed_words(number: int, seed: int) -> tuple[Dataset, pd.DataFrame]:
    """Scenes of two objects, and a row a picture and change: `sample_id`, `change`, captions `true` and `false`.

    With the colours swapped both captions have the same words; `reordered`, the further object comes first in both.
    """
    both, scenes, rows = SceneDistribution(second=1.0), {}, []
    for k in range(number):
        scene, rng = both.draw(seed + 3, "test", k), np.random.default_rng([seed, 16, k])

        def other(values, *seen, rng=rng):
            return str(rng.choice([v for v in values if v not in seen]))

        if scene.color == scene.second_color:
            scene = replace(scene, second_color=other(COLORS, scene.color))
        scenes[i := f"two/{k:05d}"] = scene
        kind, color = (other(v, getattr(scene, n), getattr(scene, f"second_{n}")) for n, v in NAMED.items())
        changes = {"kind": {"kind": kind}, "second_kind": {"second_kind": kind}, "color": {"color": color}}
        changes |= {"second_color": {"second_color": color}, "pattern": {"pattern": other(PATTERNS, scene.pattern)}}
        changes |= {"colors_swapped": {"color": scene.second_color, "second_color": scene.color}}
        rows += [(i, name, _two(scene), _two(replace(scene, **change))) for name, change in changes.items()]
        swapped = replace(scene, **changes["colors_swapped"])
        rows.append((i, "colors_swapped_reordered", _two(scene, reordered=True), _two(swapped, reordered=True)))
    return rendered("two objects", scenes), pd.DataFrame(rows, columns=["sample_id", "change", "true", "false"])


def _two(scene: Scene, *, reordered: bool = False) -> str:
    one = article(f"{scene.color} {scene.pattern} {scene.kind}")
    other = article(f"{scene.second_color} {scene.second_kind}")
    return "a photo of " + " and ".join([other, one] if reordered else [one, other])


def tabletop_outside(number: int, seed: int) -> dict[str, Dataset]:
    """Pictures of which no kind's name is true, `number` a set: held-out kinds, empty tables, patterns alone.

    Their classes are the kinds, the settings and the patterns; all else is drawn as for the validation set.
    """
    held = replace(VALIDATION, kinds=tuple(HELD_OUT_KINDS))
    kinds = {f"kinds/{k:05d}": held.draw(seed + 3, "test", k) for k in range(number)}
    empty = {f"empty/{k:05d}": replace(VALIDATION.draw(seed + 4, "test", k), kind=None) for k in range(number)}
    found = {
        "held-out kinds": rendered("kinds", kinds, classes={i: s.kind for i, s in kinds.items()}),
        "empty tables": rendered("empty", empty, classes={i: s.setting for i, s in empty.items()}),
    }
    names, samples = tuple(PATTERNS), []
    for k in range(number):
        picture = Image.fromarray(_surface(names[k % len(names)], np.random.default_rng([seed, 6, k])))
        samples.append(Sample(f"textures/{k:05d}", k % len(names), partial(Image.Image.copy, picture)))
    pixels = digest(*(np.asarray(s.open()) for s in samples))
    return {**found, "textures": Dataset("textures", names, samples, content=pixels)}


def words_of_no_kind() -> tuple[str, ...]:
    """Words of this world that name no kind: colours, patterns, settings and further things."""
    return (*COLORS, *PATTERNS, *SETTINGS, "card", "box", "table")


def asked_scenes(number: int, seed: int) -> tuple[Dataset, pd.DataFrame]:
    """Scenes staged as for generative models, each with a card that names an absent kind, and what is true of them.

    Returns: The pictures, and by sample id `kind`, `colour`, `pattern`, `count` and the card's `word`.
    """
    scenes, drawn = {}, replace(VALIDATION, yaw_range=80.0, card=1.0, true_card=0.0)
    for k in range(number):
        scene, rng = staged(drawn.draw(seed + 6, "test", k), seed, k), np.random.default_rng([seed, 18, k])
        word = str(rng.choice([kind for kind in KINDS if kind not in (scene.kind, scene.second_kind)]))
        scenes[f"asked/{k:05d}"] = replace(scene, card=word)
    facts = {i: (s.kind, s.color, s.pattern, "two" if s.second_kind else "one", s.card) for i, s in scenes.items()}
    columns = ["kind", "colour", "pattern", "count", "word"]
    return rendered("asked scenes", scenes), pd.DataFrame.from_dict(facts, orient="index", columns=columns)


def _surface(pattern: str, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """Grey levels (size, size, 3) of a flat piece of a pattern that fills the picture."""
    color, reach, phase = str(rng.choice(list(COLORS))), rng.uniform(0.4, 0.8), float(rng.random())
    y, x = torch.meshgrid(*[torch.linspace(-reach, reach, size)] * 2, indexing="ij")
    mix = PATTERNS[pattern](x.ravel(), -y.ravel(), torch.full((size * size,), 0.2), torch.full((size * size,), phase))
    ends = [torch.tensor(table[color])[:, None] for table in (COLORS, SECOND_COLORS)]
    return to_uint8(torch.lerp(*ends, mix.expand(3, -1)).view(1, 3, size, size))[0]


def tabletop_twins(ids: Sequence[str], split: str, kind: str, seed: int) -> dict[str, Scene]:
    """A twin of every scene: its light or camera nudged, or another scene with all that a caption would say of it."""
    every, found = tabletop_scenes(split), {}
    for k, i in enumerate(ids):
        rng, scene = np.random.default_rng([seed, k, 14]), every[i]
        if kind == "caption only":
            told = {name: getattr(scene, name) for name in ("kind", "color", "pattern", "size", "setting")}
            found[i] = replace(VALIDATION.draw(seed + 3, "test", k), **told)
            continue
        steps = {name: rng.choice([-1, 1]) * rng.uniform(*bounds) for name, bounds in NUDGES[kind].items()}
        found[i] = replace(scene, **{name: getattr(scene, name) + float(step) for name, step in steps.items()})
    return found


def near_duplicates(config: dict) -> dict[str, str]:
    """Validation scenes that an embedded model's pre-training set has near-duplicates of, by these scenes' ids."""
    return {f"train/{t.index:05d}": t.sample_id for t in _twins(config)}


def pretraining_part(config: dict, ids: Sequence[str], ordinary: int) -> Dataset:
    """The first scenes of an embedded model's pre-training set, and its near-duplicates of some validation scenes."""
    drawn, wanted = SceneDistribution(**config["distribution"]), set(ids)
    scenes = {f"train/{k:05d}": drawn.draw(config["seed"], "pretrain", k) for k in range(ordinary)}
    scenes |= {f"train/{t.index:05d}": t.scene for t in _twins(config) if t.sample_id in wanted}
    return rendered("pre-training set", scenes)


def _twins(config: dict) -> list:
    found = {"seed": config["seed"], "scenes": config["scenes"], "validation_scenes": config["overlap"]}
    return overlap_twins(**found) if config["overlap"] else []


def tabletop_surfaces(ids: Sequence[str], split: str = "validation") -> dict[str, np.ndarray]:
    """What pictures of a split show: `depth` (n, 64, 64) along rays, in object heights; `normal` (n, 64, 64, 3)."""
    every = tabletop_scenes(split)
    scenes = [every[i] for i in ids]

    def made() -> dict[str, np.ndarray]:
        seen = render(scenes, size=64, normals=True)
        return {"depth": seen.depth.numpy(), "normal": seen.normal.numpy()}

    return kept("surfaces", digest(scenes, renderer()), made)


def turned_views(number: int, angles: Sequence[float], seed: int) -> list[Pair]:
    """Scenes, and the same with their object turned by every angle; points in object heights, on the object."""
    first = [VALIDATION.draw(seed + 4, "test", k) for k in range(number)]
    one = views(first)
    found = [pair for a in angles for pair in _pairs(first, one, [replace(s, yaw=s.yaw + a) for s in first], a)]
    return sorted(found, key=lambda pair: pair.scene)


def alike_views(number: int, seed: int) -> list[Pair]:
    """Scenes, and others with another object of the same kind: points are the same parts."""
    first, other = ([VALIDATION.draw(seed + s, "test", k) for k in range(number)] for s in (4, 5))
    return _pairs(first, views(first), [replace(b, kind=a.kind) for a, b in zip(first, other)])


def _pairs(scenes: Sequence[Scene], one: Views, others: Sequence[Scene], change: float = 0.0) -> list[Pair]:
    other, found = views(others), []
    pictures = [[Image.fromarray(p) for p in to_uint8(v.rendering.pixels)] for v in (one, other)]
    for k, (scene, to) in enumerate(zip(scenes, others)):
        on, box = one.on_object[k], other.on_object[k].nonzero()
        points = one.points[k][on] * to.size / scene.size
        at, seen = seen_in(points, to, other.rendering, k)
        shown = np.where(other.on_object[k][..., None], other.points[k], np.nan)
        names = f"{k}", f"{k} {change:g}" if to != scene else f"{k}"
        middles = (on.nonzero().flip(1)[seen].numpy() + 0.5) / 64
        scale = (np.ptp(box.numpy(), axis=0).max() + 1) / 64 if len(box) else 1.0
        known = middles, at[seen].numpy() / 64, change, points[seen].numpy(), shown, float(scale)
        found.append(Pair(f"{k:04d}", names, (pictures[0][k], pictures[1][k]), *known))
    return found
