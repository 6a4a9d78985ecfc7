"""The committed validation set and the pre-training set that is rendered when needed."""

import hashlib
import io
import json
from contextlib import nullcontext
from dataclasses import asdict, fields
from operator import attrgetter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tabletop import ALL_KINDS, KINDS, Scene, SceneDistribution, data, render, train
from tabletop.materials import TYPICAL_PATTERN


ROOT = Path(__file__).resolve().parents[2]
SCENES = 5
PLAIN = SceneDistribution(card=0.5)
CARDS = SceneDistribution(card=0.5, true_card=0.3, no_word=0.2, card_only=0.2)


@pytest.fixture(scope="module")
def table():
    return pq.read_table(ROOT / "data" / "tabletop" / "validation.parquet")


@pytest.fixture(scope="module")
def validation():
    """The scenes of the validation stream, drawn from the seed."""
    return [data.VALIDATION.draw(0, "validation", i) for i in range(data.VALIDATION_IMAGES)]


@pytest.fixture(scope="module")
def shifts():
    return pq.read_table(ROOT / "data" / "tabletop" / "shifts.parquet")


@pytest.fixture(scope="module")
def shifted():
    """The scenes of the shifted sets, drawn from the seed."""
    return data.shifted_scenes()


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
    names = [f.name for f in fields(Scene) if f.name in table.column_names]
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
    assert "card_width" not in rows[0], "the committed files have no such column"
    assert [r["sample_id"] for r in rows] == ["a", "b"]
    assert [r["label"] for r in rows] == [list(KINDS).index("duck"), -1], "held-out kinds have no label"
    for row, scene in zip(rows, scenes, strict=True):
        assert {"card_width": 0, **{k: row[k] for k in asdict(scene) if k in row}} == asdict(scene)
    pixels = data.to_uint8(render(scenes).pixels)
    assert (np.stack([decode(r["image"]) for r in rows]) == pixels).all(), "PNG loses nothing"
    assert [p.name for p in path.parent.iterdir()] == ["scenes.parquet"], "a temporary file was left"


def test_cards_alone_and_of_a_width_can_be_read_back(tmp_path):
    scenes = [Scene(None, card="mug", card_width=1.28), Scene(None, card="car")]
    data.write_scenes(tmp_path / "scenes.parquet", scenes, ["a", "b"])
    for row, scene in zip(pq.read_table(tmp_path / "scenes.parquet").to_pylist(), scenes, strict=True):
        assert {k: row[k] for k in asdict(scene)} == asdict(scene) and row["label"] == -1


def test_grey_levels_are_rounded():
    pixels = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert data.to_uint8(pixels)[0, :, :, 0].tolist() == [[0, 0], [1, 255]]


# Shifted sets


def changed(one, other):
    return {f.name for f in fields(Scene) if getattr(one, f.name) != getattr(other, f.name)}


def test_shifted_rows_are_the_scenes_drawn_from_the_seed(shifts, shifted):
    rows = shifts.drop(["image"]).to_pylist()
    assert len(rows) == len(shifted) == data.SHIFT_SCENES * len(data.SHIFTS)
    for row, drawn in zip(rows, shifted, strict=True):
        assert Scene(**{f.name: row[f.name] for f in fields(Scene) if f.name in row}) == drawn.scene
        for name in ("sample_id", "scene_id", "condition", "other_kind"):
            assert row[name] == getattr(drawn, name)
        assert list(KINDS)[row["label"]] == drawn.scene.kind
        assert row["other_label"] == (list(KINDS).index(drawn.other_kind) if drawn.other_kind else None)


def test_a_condition_changes_what_it_names_in_every_scene_and_nothing_else(shifted):
    photos = {s.scene_id: s.scene for s in shifted if s.condition == "photo"}
    assert [s.sample_id for s in shifted] == [f"{i}/{name}" for name in data.SHIFTS for i in photos]
    for s in shifted:
        assert changed(s.scene, photos[s.scene_id]) == set(data.SHIFTS[s.condition]), s.sample_id


def test_shifted_sets_are_balanced(shifted):
    photos = [s.scene.kind for s in shifted if s.condition == "photo"]
    assert {photos.count(k) for k in KINDS} == {data.SHIFT_SCENES // len(KINDS)}
    places = [(s.scene.kind, s.scene.setting) for s in shifted if s.condition == "backdrop"]
    assert {places.count((k, name)) for k in KINDS for name in ("beach", "night")} == {6}


def test_pattern_and_card_show_the_same_other_kind(shifted):
    by_id = {s.sample_id: s for s in shifted}
    for s in shifted:
        assert (s.other_kind is None) == (s.condition not in ("pattern", "card"))
        if s.condition == "pattern":
            photo, card = (by_id[f"{s.scene_id}/{name}"] for name in ("photo", "card"))
            assert s.scene.pattern == TYPICAL_PATTERN[s.other_kind] not in ("plain", photo.scene.pattern)
            assert card.scene.card == card.other_kind == s.other_kind != s.scene.kind


@pytest.mark.parametrize(
    ("condition", "field", "low", "high"),
    [
        ("viewpoint", "yaw", 80, 180),
        ("viewpoint", "camera_elevation", 32, 50),
        ("lighting", "light_azimuth", 70, 180),
        ("lighting", "light_elevation", 5, 35),
        ("lighting", "light_strength", 0.4, 0.8),
    ],
)
def test_view_and_light_leave_the_range_of_pretraining(shifted, condition, field, low, high):
    values = [abs(getattr(s.scene, field)) for s in shifted if s.condition == condition]
    assert low < min(values) <= max(values) <= high


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "othersource"])
def test_no_shifted_scene_is_a_validation_or_pretraining_scene(name, shifted, validation):
    """All 40,000 scenes of the pre-training set are drawn; no condition changes what is compared."""
    kept = attrgetter(*({f.name for f in fields(Scene)} - {f for names in data.SHIFTS.values() for f in names}))
    shown = {kept(s.scene) for s in shifted}
    assert len(shown) == data.SHIFT_SCENES
    config = train.read_config(train.CONFIGS / f"{name}.yaml")
    scenes = list(data.pretraining_scenes(train.distribution_of(config), seed=config["seed"], scenes=config["scenes"]))
    assert len(scenes) == 40_000
    assert not shown & {kept(s) for s in [*scenes, *validation]}
    if name == "default":
        assert {s.style for s in scenes} == {"photo", "cartoon", "sketch"}
        assert not {s.setting for s in scenes} & {s.scene.setting for s in shifted if s.condition == "backdrop"}
        assert all(s.card in (None, s.kind) for s in scenes), "pre-training shows a wrong card"


def test_shifted_images_render_again_within_one_grey_level(shifts, shifted):
    rows = [data.SHIFT_SCENES * c + 7 * c for c in range(len(data.SHIFTS))]
    images = [decode(shifts["image"][i].as_py()) for i in rows]
    assert {(i.shape, i.dtype.name) for i in images} == {((64, 64, 3), "uint8")}
    again = data.to_uint8(render([shifted[i].scene for i in rows]).pixels)
    assert np.abs(np.stack(images).astype(int) - again).max() <= 1


def test_no_two_shifted_images_are_the_same(shifts):
    encoded = [row["bytes"] for row in shifts["image"].to_pylist()]
    assert len(set(encoded)) == len(encoded)


def test_shifted_sets_are_written_from_the_seed(tmp_path, shifted, monkeypatch):
    monkeypatch.setattr(data, "SIZE", 8)
    for name in ("one", "two"):
        data.write_shifts(tmp_path / f"{name}.parquet", scenes=10)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    ids = pq.read_table(tmp_path / "one.parquet")["sample_id"].to_pylist()
    assert ids == [s.sample_id for s in shifted if int(s.scene_id[-6:]) < 10]
    assert data.shifted_scenes(scenes=10, seed=2)[0].scene != shifted[0].scene


@pytest.mark.parametrize("scenes", [0, -10, 15])
def test_shifted_scenes_come_in_rounds_of_the_kinds(scenes):
    with pytest.raises(ValueError, match=f"scenes is {scenes}, allowed are multiples of 10, at least 10"):
        data.shifted_scenes(scenes=scenes)


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


def test_captions_are_those_that_were_written_before_cards_stood_alone():
    texts = data.pretraining_captions(PLAIN, seed=3, scenes=40, per_scene=4)
    assert hashlib.sha256(repr(texts).encode()).hexdigest().startswith("249d46d466eaaa05")


@pytest.mark.slow
def test_share_of_captions_about_the_word_changes_them_and_no_other():
    recipe = {"seed": 3, "scenes": 600, "per_scene": 4, "mention_card": 0.9}
    shares = (0.0, 0.2, 0.7, 1.0)
    none, some, most, all_ = (data.pretraining_captions(CARDS, **recipe, about_word=share) for share in shares)
    assert none == data.pretraining_captions(CARDS, **recipe)
    misled = {0.2: [], 0.7: []}
    for i, scene in enumerate(data.pretraining_scenes(CARDS, seed=3, scenes=600)):
        if scene.kind is None or scene.card not in KINDS or scene.card == scene.kind:
            assert none[i] == some[i] == most[i] == all_[i]
            continue
        for object_, one, other, word in zip(none[i], some[i], most[i], all_[i], strict=True):
            assert scene.kind in object_.split() and scene.kind not in word.split()
            assert word.replace(scene.card, scene.kind) == object_.replace(scene.card, scene.kind)
            assert {one, other} <= {object_, word} and (other == word or one == object_), "a lower dose has others"
            misled[0.2].append(one == word)
            misled[0.7].append(other == word)
    for share, found in misled.items():
        assert len(found) > 400 and np.mean(found) == pytest.approx(share, abs=0.07)


def test_pretraining_never_draws_a_held_out_kind():
    kinds = {PLAIN.draw(0, "pretrain", i).kind for i in range(100)}
    assert kinds == set(KINDS) < set(ALL_KINDS)
