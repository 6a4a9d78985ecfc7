"""Tabletop scenes under the shifts of ImageNet's relatives: drawn anew, staged otherwise, hard, and in motion."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tabletop import Scene, SceneDistribution
from tabletop.data import NUDGES, SETTINGS, VALIDATION, overlap_twins
from tabletop.materials import TYPICAL_PATTERN
from zsr_utils.datasets._dataset import Dataset
from zsr_utils.datasets._rendered import rendered, tabletop_scenes


REACH = 10  # frames on both sides of an anchor


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


def training_images(recipe: dict, number: int, seed: int) -> Dataset:
    """Scenes drawn by the recipe of a pre-training set, as an embedded model's training says it."""
    drawn = SceneDistribution(**recipe)
    return rendered("training scenes", {f"train/{k:05d}": drawn.draw(seed, "pretrain", k) for k in range(number)})


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
