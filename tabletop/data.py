"""The pre-training set, rendered when needed, and the validation set, kept as Parquet."""

import csv
import hashlib
import io
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tabletop.captions import caption
from tabletop.materials import SETTINGS, TYPICAL_PATTERN
from tabletop.render import render
from tabletop.scene import ALL_KINDS, KINDS, Scene, SceneDistribution


SIZE = 64
BLOCK = 512  # scenes rendered at a time; a block is the unit that resumes
VALIDATION = SceneDistribution()
VALIDATION_IMAGES = 1_200
VALIDATION_SEED = 0
SHIFT_SCENES = 120
SHIFT_SEED = 1
# What each shifted condition changes in a scene; everything else stays as it is in `photo`.
SHIFTS = {
    "photo": (),
    "cartoon": ("style",),
    "sketch": ("style",),
    "silhouette": ("style",),
    "backdrop": ("setting",),
    "viewpoint": ("yaw", "camera_elevation"),
    "lighting": ("light_azimuth", "light_elevation", "light_strength"),
    "pattern": ("pattern",),
    "card": ("card",),
}


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Pixels (N, 3, H, W) in [0, 1] as grey levels (N, H, W, 3)."""
    return (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class Twin:
    """A near-duplicate of a validation scene that takes the place of an ordinary pre-training scene.

    Attributes:
        sample_id: The validation scene it resembles.
        change: What was changed, a key of `NUDGES`.
        index: Its number in the pre-training set.
        scene: The scene itself.
    """

    sample_id: str
    change: str
    index: int
    scene: Scene


# What a near-duplicate changes: per field the least and the greatest step, taken in either direction.
NUDGES = {
    "camera": {"camera_azimuth": (1.0, 3.0), "camera_elevation": (0.5, 1.5)},
    "light": {"light_azimuth": (6.0, 15.0)},
    "brightness": {"light_strength": (0.05, 0.1)},
    "position": {"x": (0.02, 0.05), "z": (0.02, 0.05)},
}


def validation_id(index: int) -> str:
    return f"val/{index:05d}"


def overlap_twins(*, seed: int, scenes: int, validation_scenes: int) -> list[Twin]:
    """Near-duplicates of a random part of the validation set, one for every change in `NUDGES`.

    As many of each kind are chosen, and the twins are the last scenes of the pre-training set.

    Examples:
        >>> twins = overlap_twins(seed=0, scenes=100, validation_scenes=10)
        >>> len(twins), twins[0].change, twins[0].index, twins[-1].index
        (40, 'camera', 60, 99)

    Args:
        seed: Seed of the pre-training set.
        scenes: Size of the pre-training set, twins included.
        validation_scenes: How many validation scenes have twins, a multiple of the number of kinds.

    Raises:
        ValueError: If that many validation scenes cannot be chosen, or their twins do not fit.
    """
    kinds, number = len(VALIDATION.kinds), validation_scenes * len(NUDGES)
    if validation_scenes % kinds or not 0 < validation_scenes <= VALIDATION_IMAGES or number > scenes:
        raise ValueError(
            f"overlap is {validation_scenes} validation scenes, allowed are multiples of {kinds} up to "
            f"{min(VALIDATION_IMAGES, scenes // len(NUDGES))} for a pre-training set of {scenes} scenes."
        )
    rng = np.random.default_rng([seed, 98])
    rounds = np.arange(VALIDATION_IMAGES).reshape(-1, kinds)  # scene i shows kind i modulo the number of kinds
    chosen = np.sort(rng.permuted(rounds, axis=0)[: validation_scenes // kinds].ravel())
    twins = []
    for index in chosen.tolist():
        scene = VALIDATION.draw(VALIDATION_SEED, "validation", index)
        for change, fields in NUDGES.items():
            steps = {name: float(rng.choice([-1, 1]) * rng.uniform(*bounds)) for name, bounds in fields.items()}
            near = replace(scene, **{name: round(getattr(scene, name) + step, 4) for name, step in steps.items()})
            twins.append(Twin(validation_id(index), change, scenes - number + len(twins), near))
    return twins


def pretraining_scenes(
    distribution: SceneDistribution, *, seed: int, scenes: int, twins: Sequence[Twin] = ()
) -> Iterator[Scene]:
    """Every scene of a pre-training set, in order."""
    return _scenes(distribution, seed, range(scenes), {t.index: t.scene for t in twins})


def _scenes(distribution, seed, indices: Iterable[int], replaced: Mapping[int, Scene]) -> Iterator[Scene]:
    for index in indices:
        yield replaced[index] if index in replaced else distribution.draw(seed, "pretrain", index)


def _render_block(job: tuple[SceneDistribution, int, int, int, Mapping[int, Scene]]) -> tuple[int, np.ndarray]:
    distribution, seed, start, stop, replaced = job
    torch.set_num_threads(1)
    scenes = list(_scenes(distribution, seed, range(start, stop), replaced))
    return start, to_uint8(render(scenes, size=SIZE).pixels)


def pretraining_images(
    folder: Path, distribution: SceneDistribution, *, seed: int, scenes: int, twins: Sequence[Twin] = ()
) -> Iterator[int]:
    """Render the pre-training images into `folder/images.npy`, resuming after an interruption.

    Yields the number of finished images after each block; the array itself is read with
    `open_images`. As many processes render as torch has threads: one for each core, unless it was told otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"distribution": asdict(distribution), "seed": seed, "scenes": scenes, "size": SIZE, "block": BLOCK}
    if twins:
        recipe["twins"] = hashlib.sha256(json.dumps([asdict(t) for t in twins]).encode()).hexdigest()
    replaced = {t.index: t.scene for t in twins}
    recipe_file, done_file = folder / "recipe.json", folder / "done.json"
    text = json.dumps(recipe, sort_keys=True)
    if not recipe_file.exists() or recipe_file.read_text() != text:
        for stale in (done_file, folder / "images.npy"):
            stale.unlink(missing_ok=True)
        recipe_file.write_text(text)
    done = set(json.loads(done_file.read_text())) if done_file.exists() else set()
    images = open_images(folder, scenes, mode="r+" if done else "w+")
    jobs = []
    for start in range(0, scenes, BLOCK):
        stop = min(start + BLOCK, scenes)
        if start not in done:
            here = {i: replaced[i] for i in range(start, stop) if i in replaced}
            jobs.append((distribution, seed, start, stop, here))
    if not jobs:
        return
    with multiprocessing.get_context("spawn").Pool(torch.get_num_threads()) as pool:
        for start, block in pool.imap_unordered(_render_block, jobs):
            images[start : start + len(block)] = block
            images.flush()
            done.add(start)
            _write_whole(done_file, json.dumps(sorted(done)))
            yield min(len(done) * BLOCK, scenes)


def open_images(folder: Path, scenes: int, mode: str = "r") -> np.memmap:
    return np.lib.format.open_memmap(folder / "images.npy", mode=mode, dtype=np.uint8, shape=(scenes, SIZE, SIZE, 3))


def pretraining_captions(
    distribution: SceneDistribution,
    *,
    seed: int,
    scenes: int,
    per_scene: int,
    twins: Sequence[Twin] = (),
    about_word: float = 0.0,
    mention_card: float = 0.6,
) -> list[list[str]]:
    """`per_scene` captions for every scene of the pre-training set.

    Args:
        distribution: From which the scenes are drawn.
        seed: Seed of the scenes and of the captions.
        scenes: How many scenes.
        per_scene: How many captions each.
        twins: Near-duplicates of validation scenes that take the place of scenes.
        about_word: Share of the captions of an object with a card that name what the card says in its place.
        mention_card: Share of the captions of an object with a card that say what is on the card.
    """
    result = []
    for index, scene in enumerate(pretraining_scenes(distribution, seed=seed, scenes=scenes, twins=twins)):
        rng = np.random.default_rng([seed, 99, index])
        told = [scene] * per_scene
        if about_word and scene.kind is not None and scene.card in ALL_KINDS:
            # from numbers of their own: whatever the share is, all else in a caption stays as it is
            about = np.random.default_rng([seed, 96, index]).random(per_scene) < about_word
            told = [replace(scene, kind=scene.card) if a else scene for a in about]
        result.append([caption(s, rng, mention_card=mention_card) for s in told])
    return result


def write_twins(path: Path, twins: Sequence[Twin]) -> None:
    """Write which validation scenes have near-duplicates in a pre-training set, and what differs in each.

    The columns are `sample_id`, `pretraining_scene`, `change` and `detail`.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sample_id", "pretraining_scene", "change", "detail"])
        for twin in twins:
            before = VALIDATION.draw(VALIDATION_SEED, "validation", int(twin.sample_id.split("/")[1]))
            steps = {name: getattr(twin.scene, name) - getattr(before, name) for name in NUDGES[twin.change]}
            detail = "; ".join(f"{name} {step:+.4f}" for name, step in steps.items())
            writer.writerow([twin.sample_id, twin.index, twin.change, detail])


def write_validation_set(path: Path, *, images: int = VALIDATION_IMAGES, seed: int = VALIDATION_SEED) -> None:
    """Write the validation set: PNG images with labels and every factor, one row a scene."""
    scenes = [VALIDATION.draw(seed, "validation", i) for i in range(images)]
    write_scenes(path, scenes, [validation_id(i) for i in range(images)])


@dataclass(frozen=True)
class Shifted:
    """A scene under one condition of `SHIFTS`.

    Attributes:
        scene_id: The same for all conditions of a scene.
        condition: A key of `SHIFTS`.
        scene: The scene with what the condition changes.
        other_kind: Whose pattern the object wears (`pattern`) or whose name the card says (`card`);
            None elsewhere.
    """

    scene_id: str
    condition: str
    scene: Scene
    other_kind: str | None = None

    @property
    def sample_id(self) -> str:
        return f"{self.scene_id}/{self.condition}"


def shifted_scenes(*, scenes: int = SHIFT_SCENES, seed: int = SHIFT_SEED) -> list[Shifted]:
    """The scenes of the shifted sets: all of `photo`, then the same ones under each other condition.

    The scenes of `photo` have the distribution of the validation set and come from the stream `test`.
    Which kind is the other one is drawn once a scene, from those whose typical pattern the object does
    not wear already, so `pattern` and `card` pull the same image towards the same wrong answer.

    Examples:
        >>> drawn = shifted_scenes(scenes=10)
        >>> len(drawn), drawn[0].sample_id, drawn[-1].sample_id
        (90, 'shift-000000/photo', 'shift-000009/card')
        >>> drawn[-1].scene.kind, drawn[-1].scene.card == drawn[-1].other_kind
        ('duck', True)

    Args:
        scenes: How many different scenes, a multiple of the number of kinds.
        seed: Seed of the scenes and of what is drawn for a condition.

    Raises:
        ValueError: If the kinds cannot have equally many scenes.
    """
    kinds = len(VALIDATION.kinds)
    if scenes < 1 or scenes % kinds:
        raise ValueError(f"scenes is {scenes}, allowed are multiples of {kinds}, at least {kinds}.")
    drawn = [_conditions(index, seed) for index in range(scenes)]
    return [conditions[name] for name in SHIFTS for conditions in drawn]


def _conditions(index: int, seed: int) -> dict[str, Shifted]:
    scene = VALIDATION.draw(seed, "test", index)
    rng = np.random.default_rng([seed, 97, index])
    # a plain surface names no kind, so the duck is never the other one
    others = [k for k in VALIDATION.kinds if k != scene.kind and TYPICAL_PATTERN[k] not in ("plain", scene.pattern)]
    other = str(rng.choice(others))
    unseen = [name for name in SETTINGS if name not in VALIDATION.settings]
    elevation, light_elevation, light_strength = (
        round(float(rng.uniform(*bounds)), 4) for bounds in ((36, 48), (10, 25), (0.5, 0.7))
    )
    changes = {
        "photo": {},
        "cartoon": {"style": "cartoon"},
        "sketch": {"style": "sketch"},
        "silhouette": {"style": "silhouette"},
        "backdrop": {"setting": unseen[index // len(VALIDATION.kinds) % len(unseen)]},  # in turn within a kind
        "viewpoint": {"yaw": _opposite(scene.yaw), "camera_elevation": elevation},
        "lighting": {
            "light_azimuth": _opposite(scene.light_azimuth),
            "light_elevation": light_elevation,
            "light_strength": light_strength,
        },
        "pattern": {"pattern": TYPICAL_PATTERN[other]},
        "card": {"card": other},
    }
    return {
        name: Shifted(
            f"shift-{index:06d}", name, replace(scene, **changes[name]), other if name in ("pattern", "card") else None
        )
        for name in SHIFTS
    }


def _opposite(degrees: float) -> float:
    """The opposite direction, from -180 to 180."""
    return round(degrees - 180 if degrees > 0 else degrees + 180, 4)


def write_shifts(path: Path, *, scenes: int = SHIFT_SCENES, seed: int = SHIFT_SEED) -> None:
    """Write the shifted sets: the columns of the validation set, and which scene and condition a row is.

    The further columns are `scene_id`, `condition`, `other_kind` and `other_label`; the last two are null
    where a condition has no other kind.

    Args:
        path: The Parquet file.
        scenes: How many different scenes, a multiple of the number of kinds.
        seed: Seed of the scenes and of what is drawn for a condition.

    Raises:
        ValueError: If the kinds cannot have equally many scenes.
    """
    drawn = shifted_scenes(scenes=scenes, seed=seed)
    others = [d.other_kind for d in drawn]
    more = {
        "scene_id": pa.array([d.scene_id for d in drawn], pa.string()),
        "condition": pa.array([d.condition for d in drawn], pa.string()),
        "other_kind": pa.array(others, pa.string()),
        "other_label": pa.array([None if k is None else list(KINDS).index(k) for k in others], pa.int64()),
    }
    write_scenes(path, [d.scene for d in drawn], [d.sample_id for d in drawn], more=more)


def write_scenes(
    path: Path, scenes: Sequence[Scene], ids: Sequence[str], *, more: Mapping[str, pa.Array] | None = None
) -> None:
    """Render scenes into a Parquet file in the layout that Hugging Face `datasets` reads as images.

    `more` are further columns, one value a scene.
    """
    pixels = to_uint8(render(scenes, size=SIZE).pixels)
    columns = {
        "sample_id": list(ids),
        "image": [{"bytes": _png(p), "path": f"{i}.png"} for p, i in zip(pixels, ids, strict=True)],
        "label": [list(KINDS).index(s.kind) if s.kind in KINDS else -1 for s in scenes],
    }
    for name in asdict(scenes[0]):
        columns[name] = [getattr(s, name) for s in scenes]
    if not any(columns["card_width"]):
        del columns["card_width"]  # the files of the repository are older than this factor
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(KINDS)},
    }
    words = {name: pa.array(columns[name], pa.string()) for name in ("kind", "card", "second_kind")}
    table = pa.table(columns | words | dict(more or {})).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    temporary = path.with_suffix(".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, temporary, compression="zstd", row_group_size=200)
    temporary.replace(path)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
