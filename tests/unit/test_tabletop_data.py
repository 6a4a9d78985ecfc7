"""The committed validation set and the pre-training set that is rendered when needed."""

import io
import json
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tabletop import ALL_KINDS, KINDS, Scene, SceneDistribution, data, render


ROOT = Path(__file__).resolve().parents[2]
SCENES = 5
PLAIN = SceneDistribution(card=0.5)


@pytest.fixture(scope="module")
def table():
    return pq.read_table(ROOT / "data" / "tabletop" / "validation.parquet")


@pytest.fixture(scope="module")
def validation():
    """The scenes of the validation stream, drawn from the seed."""
    return [data.VALIDATION.draw(0, "validation", i) for i in range(data.VALIDATION_IMAGES)]


@pytest.fixture
def serial_pool(monkeypatch):
    """Renders blocks of two scenes in this process; returns the list of blocks rendered."""
    rendered = []

    class Pool:
        def imap_unordered(self, function, jobs):
            for job in reversed(jobs):  # out of order, as a real pool may answer
                rendered.append(job[2])
                yield function(job)

    class Context:
        def Pool(self, _):
            return nullcontext(Pool())

    monkeypatch.setattr(data, "BLOCK", 2)
    monkeypatch.setattr(data.multiprocessing, "get_context", lambda _: Context())
    threads = torch.get_num_threads()
    yield rendered
    torch.set_num_threads(threads)


def decode(image):
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


# Validation set


def test_validation_rows_are_the_scenes_of_the_validation_stream(table, validation):
    assert table.num_rows == data.VALIDATION_IMAGES >= 1000
    names = [f.name for f in fields(Scene)]
    for i, row in enumerate(table.select(["sample_id", "label", *names]).to_pylist()):
        scene = Scene(**{name: row[name] for name in names})
        assert scene == validation[i]
        assert row["sample_id"] == f"val/{i:05d}"
        assert list(KINDS)[row["label"]] == scene.kind


def test_validation_set_is_balanced(table):
    counts = np.bincount(table["label"].to_numpy(), minlength=len(KINDS))
    assert (counts == data.VALIDATION_IMAGES // len(KINDS)).all()


def test_validation_images_render_again_within_one_grey_level(table, validation):
    rows = [*range(50, data.VALIDATION_IMAGES, 100), 0, data.VALIDATION_IMAGES - 1]
    images = [decode(table["image"][i].as_py()) for i in rows]
    assert {(i.shape, i.dtype.name) for i in images} == {((64, 64, 3), "uint8")}
    again = data.to_uint8(render([validation[i] for i in rows]).pixels)
    assert np.abs(np.stack(images).astype(int) - again).max() <= 1


def test_no_two_validation_images_are_the_same(table):
    encoded = [row["bytes"] for row in table["image"].to_pylist()]
    assert len(set(encoded)) == len(encoded)


def test_parquet_declares_images_and_class_names(table):
    declared = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert declared["image"] == {"_type": "Image"}
    assert declared["label"]["names"] == list(KINDS)


def test_streams_stay_apart_even_for_the_same_distribution_and_seed(validation):
    pretrain = {data.VALIDATION.draw(0, "pretrain", i) for i in range(500)}
    assert not pretrain & set(validation)
    assert len({s.phase for s in pretrain} & {s.phase for s in validation}) < 0.3 * len(pretrain)


def test_written_scenes_can_be_read_back(tmp_path):
    scenes = [Scene("duck", card="mug"), Scene("teapot", second_kind="car")]
    path = tmp_path / "new" / "scenes.parquet"
    data.write_scenes(path, scenes, ["a", "b"])
    rows = pq.read_table(path).to_pylist()
    assert [r["sample_id"] for r in rows] == ["a", "b"]
    assert [r["label"] for r in rows] == [list(KINDS).index("duck"), -1], "held-out kinds have no label"
    for row, scene in zip(rows, scenes, strict=True):
        assert {k: row[k] for k in asdict(scene)} == asdict(scene)
    pixels = data.to_uint8(render(scenes).pixels)
    assert (np.stack([decode(r["image"]) for r in rows]) == pixels).all(), "PNG loses nothing"
    assert [p.name for p in path.parent.iterdir()] == ["scenes.parquet"], "a temporary file was left"


def test_grey_levels_are_rounded():
    pixels = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert data.to_uint8(pixels)[0, :, :, 0].tolist() == [[0, 0], [1, 255]]


# Pre-training set


def test_pretraining_images_are_those_of_the_pretraining_stream(tmp_path, serial_pool):
    progress = list(data.pretraining_images(tmp_path, PLAIN, seed=3, scenes=SCENES))
    assert progress == [2, 4, 5]
    expected = data.to_uint8(render([PLAIN.draw(3, "pretrain", i) for i in range(SCENES)]).pixels)
    images = data.open_images(tmp_path, SCENES)
    assert np.abs(images.astype(int) - expected).max() <= 1


def test_interrupted_rendering_goes_on_where_it_stopped(tmp_path, serial_pool):
    run = data.pretraining_images(tmp_path, PLAIN, seed=3, scenes=SCENES)
    next(run)
    run.close()
    whole = np.array(data.open_images(tmp_path, SCENES))
    assert serial_pool == [4] and json.loads((tmp_path / "done.json").read_text()) == [4]
    assert whole[4].any() and not whole[:4].any()

    list(data.pretraining_images(tmp_path, PLAIN, seed=3, scenes=SCENES))
    assert serial_pool == [4, 2, 0], "a finished block was rendered again"
    images = data.open_images(tmp_path, SCENES)
    assert (images[4] == whole[4]).all()
    assert all(image.any() for image in images)

    list(data.pretraining_images(tmp_path, PLAIN, seed=3, scenes=SCENES))
    assert len(serial_pool) == 3, "a finished set was rendered again"


@pytest.mark.parametrize("other", [{"seed": 4}, {"scenes": 4}, {"distribution": SceneDistribution()}])
def test_other_recipe_starts_anew(tmp_path, serial_pool, other):
    recipe = {"distribution": PLAIN, "seed": 3, "scenes": SCENES}
    for chosen in (recipe, recipe | other):
        distribution = chosen["distribution"]
        list(data.pretraining_images(tmp_path, distribution, seed=chosen["seed"], scenes=chosen["scenes"]))
    blocks = -(-chosen["scenes"] // 2)
    assert serial_pool == [4, 2, 0, *reversed(range(0, 2 * blocks, 2))]
    expected = data.to_uint8(render([distribution.draw(chosen["seed"], "pretrain", 0)]).pixels)[0]
    first = data.open_images(tmp_path, chosen["scenes"])[0]
    assert np.abs(first.astype(int) - expected).max() <= 1


def test_pretraining_captions_belong_to_their_scenes():
    texts = data.pretraining_captions(PLAIN, seed=3, scenes=40, per_scene=4)
    assert texts == data.pretraining_captions(PLAIN, seed=3, scenes=40, per_scene=4)
    assert texts[:10] == data.pretraining_captions(PLAIN, seed=3, scenes=10, per_scene=4)
    for i, group in enumerate(texts):
        assert len(group) == 4
        assert all(PLAIN.draw(3, "pretrain", i).kind in text.split() for text in group)


def test_pretraining_never_draws_a_held_out_kind():
    kinds = {PLAIN.draw(0, "pretrain", i).kind for i in range(100)}
    assert kinds == set(KINDS) < set(ALL_KINDS)
