"""The pre-training set, rendered when needed, and the validation set, kept as Parquet."""

import io
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tabletop.captions import caption
from tabletop.render import render
from tabletop.scene import KINDS, Scene, SceneDistribution


SIZE = 64
BLOCK = 512  # scenes rendered at a time; a block is the unit that resumes
VALIDATION = SceneDistribution()
VALIDATION_IMAGES = 1_200


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Pixels (N, 3, H, W) in [0, 1] as grey levels (N, H, W, 3)."""
    return (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _render_block(job: tuple[SceneDistribution, int, int, int]) -> tuple[int, np.ndarray]:
    distribution, seed, start, stop = job
    torch.set_num_threads(1)
    scenes = [distribution.draw(seed, "pretrain", i) for i in range(start, stop)]
    return start, to_uint8(render(scenes, size=SIZE).pixels)


def pretraining_images(
    folder: Path, distribution: SceneDistribution, *, seed: int, scenes: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Render the pre-training images into `folder/images.npy`, resuming after an interruption.

    Yields the number of finished images after each block; the array itself is read with
    `open_images`. All cores are used, one process each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"distribution": asdict(distribution), "seed": seed, "scenes": scenes, "size": SIZE, "block": BLOCK}
    recipe_file, done_file = folder / "recipe.json", folder / "done.json"
    text = json.dumps(recipe, sort_keys=True)
    if not recipe_file.exists() or recipe_file.read_text() != text:
        for stale in (done_file, folder / "images.npy"):
            stale.unlink(missing_ok=True)
        recipe_file.write_text(text)
    done = set(json.loads(done_file.read_text())) if done_file.exists() else set()
    images = open_images(folder, scenes, mode="r+" if done else "w+")
    jobs = [
        (distribution, seed, start, min(start + BLOCK, scenes))
        for start in range(0, scenes, BLOCK)
        if start not in done
    ]
    if not jobs:
        return
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for start, block in pool.imap_unordered(_render_block, jobs):
            images[start : start + len(block)] = block
            images.flush()
            done.add(start)
            _write_whole(done_file, json.dumps(sorted(done)))
            yield min(len(done) * BLOCK, scenes)


def open_images(folder: Path, scenes: int, mode: str = "r") -> np.memmap:
    return np.lib.format.open_memmap(folder / "images.npy", mode=mode, dtype=np.uint8, shape=(scenes, SIZE, SIZE, 3))


def pretraining_captions(distribution: SceneDistribution, *, seed: int, scenes: int, per_scene: int) -> list[list[str]]:
    """`per_scene` captions for every scene of the pre-training set."""
    result = []
    for index in range(scenes):
        scene = distribution.draw(seed, "pretrain", index)
        rng = np.random.default_rng([seed, 99, index])
        result.append([caption(scene, rng) for _ in range(per_scene)])
    return result


def write_validation_set(path: Path, *, images: int = VALIDATION_IMAGES, seed: int = 0) -> None:
    """Write the validation set: PNG images with labels and every factor, one row a scene."""
    scenes = [VALIDATION.draw(seed, "validation", i) for i in range(images)]
    write_scenes(path, scenes, [f"val/{i:05d}" for i in range(images)])


def write_scenes(path: Path, scenes: Sequence[Scene], ids: Sequence[str]) -> None:
    """Render scenes into a Parquet file in the layout that Hugging Face `datasets` reads as images."""
    pixels = to_uint8(render(scenes, size=SIZE).pixels)
    columns = {
        "sample_id": list(ids),
        "image": [{"bytes": _png(p), "path": f"{i}.png"} for p, i in zip(pixels, ids, strict=True)],
        "label": [list(KINDS).index(s.kind) if s.kind in KINDS else -1 for s in scenes],
    }
    for name in asdict(scenes[0]):
        columns[name] = [getattr(s, name) for s in scenes]
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(KINDS)},
    }
    words = {name: pa.array(columns[name], pa.string()) for name in ("card", "second_kind")}
    table = pa.table(columns | words).replace_schema_metadata(
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
