"""The distribution shifts of a data set: what is shown, beside what its accuracy without the shift is measured on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from zsr_utils.datasets._catalogue import folder_of
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._imagenet import objectnet_classes
from zsr_utils.datasets._rendered import rendered, tabletop_scenes
from zsr_utils.datasets._sources import load_dataset


if TYPE_CHECKING:
    from tabletop import Scene

IMAGENET_SHIFTS = (
    "imagenet-v2", "imagenet-v2-threshold-0.7", "imagenet-v2-top-images", "imagenet-r", "imagenet-sketch", "objectnet",
    "imagenet-a", "stylized-imagenet",
)  # fmt: skip
REACH = 10  # frames on both sides of an anchor


@dataclass(frozen=True)
class Shift:
    """Shifted images and unshifted ones with the same list of classes; `paired` where they share their sample ids."""

    shown: Dataset
    clean: Dataset
    paired: bool = False


def natural_shifts(
    images: Dataset, folders: Sequence[str] = (), *, split: str = "validation", limit: int = 0, seed: int = 0
) -> dict[str, Shift]:
    """What is known as a shift of a data set: a `Shift` by name, none where nothing is known.

    For `tabletop` they are rendered; for `imagenet` they are the sets that lie in the data folder. `folders` with
    classes in common are added for any data set, under the folder's name. `limit` is that of every set.
    """
    found: dict[str, Shift] = {}
    if images.name == "tabletop":
        for name, scenes in tabletop_shifts([s.sample_id for s in images.samples], split, seed).items():
            found[name] = Shift(rendered(name, scenes), images, paired=name != "v2")
    for name in (*(IMAGENET_SHIFTS if images.name == "imagenet" else ()), *folders):
        try:
            shown = load_dataset(name, limit=limit, seed=seed)
        except FileNotFoundError:
            continue
        if name == "objectnet":
            found[name] = Shift(shown, _as_objectnet(images))
            continue
        common = [c for c in images.class_names if c in shown.class_names]
        if len(common) < 2:
            raise ValueError(f"{name} has {len(common)} of the classes of {images.name}, allowed are 2 or more.")
        found[Path(name).name] = Shift(shown.restricted(common), images.restricted(common))
    return found


def tabletop_shifts(ids: Sequence[str], split: str, seed: int) -> dict[str, dict[str, "Scene"]]:
    """Scenes of a split, by shift and sample id: the same still life under each shift, but for `v2`, drawn anew."""
    from tabletop.data import VALIDATION

    every = tabletop_scenes(split)
    scenes = {i: every[i] for i in ids}
    anew = {f"v2/{k:05d}": VALIDATION.draw(seed + 1, "test", k) for k in range(len(ids))}
    styles = {"cartoon": "cartoon", "silhouette": "silhouette", "sketch": "sketch"}
    found = {"v2": anew} | {n: {i: replace(s, style=style) for i, s in scenes.items()} for n, style in styles.items()}
    for name in ("objectnet", "stylized"):
        found[name] = {i: altered(s, name, np.random.default_rng([seed, k])) for k, (i, s) in enumerate(scenes.items())}
    return found


def altered(scene: "Scene", how: str, rng: np.random.Generator) -> "Scene":
    """A scene staged as for `objectnet`, in another kind's pattern (`stylized`), or with all of it (`hard`)."""
    from tabletop.data import SETTINGS, VALIDATION
    from tabletop.materials import TYPICAL_PATTERN

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


def hard_scenes(number: int, seed: int) -> tuple[Dataset, dict[str, "Scene"]]:
    """Fresh scenes that are hard in many ways at once, a pool to choose from, and the scenes they are made of."""
    from tabletop.data import VALIDATION

    plain = {f"pool/{k:05d}": VALIDATION.draw(seed + 2, "test", k) for k in range(number)}
    hard = {i: altered(s, "hard", np.random.default_rng([seed, 5, k])) for k, (i, s) in enumerate(plain.items())}
    return rendered("pool", hard), plain


def tabletop_frames(ids: Sequence[str], split: str, name: str) -> Dataset:
    """Frames around every scene, `<id>#<offset>`: `vid` moves the camera, `youtube-bb` the light."""
    moves, step = {"vid": ("camera_azimuth", 4.0), "youtube-bb": ("light_azimuth", 12.0)}[name]
    scenes, offsets = tabletop_scenes(split), range(-REACH, REACH + 1)
    frames = {
        f"{i}#{k}": replace(scenes[i], **{moves: getattr(scenes[i], moves) + step * k}) for i in ids for k in offsets
    }
    return rendered(name, frames)


def pm_sets(folder: str | Path, *, reach: int = REACH) -> dict[str, dict[int, Path]]:
    """Anchors of a folder of video frames with their neighbours by offset: those of `pmsets.json`, or the middle frame.

    Args:
        folder: Frames whose names end in their numbers. `pmsets.json` names, for every anchor, the valid frames
            around it; without it every frame within reach of the middle one must be there.

    Source: Shankar et al. (2021), the frames within 10 of an anchor that people found similar to it.
    """
    root = Path(folder)
    listed = root / "pmsets.json"
    if listed.is_file():
        sets = {a: [a, *near] for a, near in json.loads(listed.read_text("utf-8")).items()}
    else:
        names = sorted(p.name for p in root.glob("*.jp*g"))
        sets = {names[len(names) // 2]: names} if names else {}
    if not sets:
        raise ValueError(f"{str(root)!r} has no pmsets.json and no frames, needed is one of them.")
    found = {}
    for anchor, names in sets.items():
        offsets = {_number(name) - _number(anchor): root / name for name in names}
        offsets = {k: path for k, path in offsets.items() if abs(k) <= reach}
        expected = offsets if listed.is_file() else range(-reach, reach + 1)
        if missing := [k for k in expected if k not in offsets or not offsets[k].is_file()]:
            raise ValueError(
                f"{str(root)!r}: {len(missing)} of the {2 * reach} frames around {anchor!r} are missing, "
                f"such as number {_number(anchor) + missing[0]}."
            )
        found[anchor] = dict(sorted(offsets.items()))
    return found


def video_frames(folder: str | Path) -> Dataset:
    """The frames of `pm_sets` as a data set, `<anchor>#<offset>`; `labels.json` has the class name of every anchor."""
    labels = json.loads((Path(folder) / "labels.json").read_text("utf-8"))
    names, samples = sorted(set(labels.values())), []
    for anchor, frames in pm_sets(folder).items():
        if anchor not in labels:
            raise ValueError(f"{str(folder)!r}: labels.json has no class for the anchor {anchor!r}.")
        label = names.index(labels[anchor])
        samples += [Sample(f"{anchor}#{k}", label, partial(Image.open, path)) for k, path in frames.items()]
    return Dataset(Path(folder).name, names, samples)


def _number(name: str) -> int:
    return int("".join(c for c in Path(name).stem.split("-")[-1] if c.isdigit()) or 0)


def _as_objectnet(images: Dataset) -> Dataset:
    """ImageNet images of the classes that ObjectNet has, under ObjectNet's names, many to one."""
    names, label_of = objectnet_classes(images.class_names, folder_of("objectnet", "objectnet-1.0"))
    few = images._at([row for row, s in enumerate(images.samples) if s.label in label_of])
    return replace(few, class_names=names, samples=[replace(s, label=label_of[s.label]) for s in few.samples])
