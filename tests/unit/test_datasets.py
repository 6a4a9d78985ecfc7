"""Folders of pictures as users have them: mixed modes, broken files, odd names."""

import io
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from tabletop.data import SHIFTS
from zsr_utils.datasets import (
    Dataset,
    Sample,
    UnreadableImages,
    load_dataset,
    tabletop_factors,
    tabletop_splits,
)


def from_pil(image: Image.Image) -> torch.Tensor:
    return TF.to_tensor(image.convert("RGB").resize((16, 16)))


def save(path: Path, mode: str = "RGB", size=(20, 14)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 120 if mode in ("L", "P", "1") else tuple([120] * len(mode))).save(path)


@pytest.fixture
def folder(tmp_path):
    for label in ("golden_retriever", "<b>cat</b>"):
        for i in range(60):
            save(tmp_path / label.replace("/", "_") / f"{i:03d}.png")
    return tmp_path


def test_class_names_come_from_folders_in_order(tmp_path):
    for name in ("zebra", "golden_retriever", ".hidden"):
        save(tmp_path / name / "a.png")
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("golden retriever", "zebra")
    assert [(i, label) for i, _, label in dataset] == [("golden_retriever/a.png", 0), ("zebra/a.png", 1)]


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png")]
)
def test_every_image_mode_becomes_rgb(tmp_path, mode, suffix):
    save(tmp_path / "thing" / f"a.{suffix}", mode)
    _, pixels, _ = next(load_dataset(str(tmp_path)).batches(from_pil))
    assert pixels.shape == (1, 3, 16, 16) and pixels.min() >= 0 and pixels.max() <= 1


def test_a_single_pixel_is_an_image(tmp_path):
    save(tmp_path / "thing" / "a.png", size=(1, 1))
    assert next(load_dataset(str(tmp_path)).batches(from_pil))[1].shape == (1, 3, 16, 16)


def _break_two(folder: Path) -> tuple[str, str]:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(buffer, "JPEG")
    label = sorted(p.name for p in folder.iterdir())[0]
    (folder / label / "cut.jpg").write_bytes(buffer.getvalue()[:700])
    (folder / label / "notes.png").write_text("this is not a picture")
    return f"{label}/cut.jpg", f"{label}/notes.png"


def test_unreadable_images_are_named_counted_and_left_out(tmp_path):
    for i in range(250):
        save(tmp_path / "thing" / f"{i:03d}.png")
    cut, notes = _break_two(tmp_path)
    dataset = load_dataset(str(tmp_path))
    ids = [i for batch in dataset.batches(from_pil, 32) for i in batch[0]]
    assert len(ids) == 250 and cut not in ids
    assert set(dataset.unreadable) == {cut, notes}
    assert dataset.unreadable[notes] == "not an image" and "truncated" in dataset.unreadable[cut]


def test_more_than_one_percent_unreadable_stops_and_names_them(folder):
    cut, notes = _break_two(folder)
    dataset = load_dataset(str(folder))
    with pytest.raises(UnreadableImages, match=r"2 of 122 images cannot be read, allowed is 1%") as error:
        list(dataset.batches(from_pil, 32))
    assert cut in str(error.value) and notes in str(error.value)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="Unknown data set 'tabeltop': nearest known names are tabletop"):
        load_dataset("tabeltop")


@pytest.mark.parametrize("split", ["test", "train"])
def test_an_unknown_split_of_tabletop_is_refused_with_all_its_conditions(split):
    known = ", ".join(map(repr, ("validation", *SHIFTS)))
    with pytest.raises(ValueError, match=re.escape(f"split is '{split}', allowed are {known}.")):
        load_dataset("tabletop", split=split)


@pytest.mark.parametrize("split", ["test", "sketch"])
def test_an_unknown_split_of_another_data_set_is_refused(folder, split):
    with pytest.raises(ValueError, match=rf"split is '{split}', allowed are 'validation'\."):
        load_dataset(str(folder), split=split)


def test_every_condition_is_a_split_with_the_same_scenes_and_labels():
    photo, sets = load_dataset("tabletop", split="photo"), {}
    assert tabletop_splits() == ("validation", *SHIFTS)
    for condition in SHIFTS:
        dataset = sets[condition] = load_dataset("tabletop", split=condition)
        ids = [s.sample_id for s in dataset.samples]
        assert ids == [s.sample_id.replace("photo", condition) for s in photo.samples]
        frame = tabletop_factors(condition)
        assert ids == frame.index.tolist() and set(frame.condition) == {condition}
        assert [s.label for s in dataset.samples] == frame.label.tolist() == [s.label for s in photo.samples]
        assert dataset.samples[0].open().size == (64, 64)
    validation = load_dataset("tabletop")
    for dataset in sets.values():
        assert dataset.name == validation.name == "tabletop"
        assert (dataset.class_names, dataset.templates) == (validation.class_names, validation.templates)
    assert len({d.fingerprint for d in (validation, *sets.values())}) == len(SHIFTS) + 1


def test_pictures_of_a_condition_are_those_of_its_ids():
    """A silhouette is black and white, and the photo of the same scene is not."""
    for condition, shares in (("silhouette", (0.9, 1.0)), ("photo", (0.0, 0.1))):
        pixels = np.asarray(load_dataset("tabletop", split=condition).image(f"shift-000042/{condition}"))
        assert shares[0] <= np.isin(pixels, (0, 255)).all(-1).mean() <= shares[1]


def test_a_limit_keeps_the_same_scenes_in_every_condition():
    chosen = {
        tuple(s.sample_id.split("/")[0] for s in load_dataset("tabletop", split=condition, limit=25, seed=3).samples)
        for condition in SHIFTS
    }
    assert len(chosen) == 1 and len(chosen.pop()) == 25


def test_factors_of_the_shifted_sets_have_the_columns_of_the_validation_set():
    factors = tabletop_factors()
    assert factors.index.tolist() == [s.sample_id for s in load_dataset("tabletop").samples]
    for condition in SHIFTS:
        frame, other = tabletop_factors(condition), condition in ("pattern", "card")
        assert set(frame.columns) - set(factors.columns) == {"scene_id", "condition", "other_kind", "other_label"}
        assert set(factors.columns) < set(frame.columns) and frame.index.is_unique
        assert (frame.other_label.notna() == other).all() and (frame.other_kind.notna() == other).all()
        assert (frame.other_label != frame.label).all()


def test_limit_spreads_over_classes_and_depends_on_the_seed_only(folder):
    first, again = (load_dataset(str(folder), limit=11, seed=3) for _ in range(2))
    other = load_dataset(str(folder), limit=11, seed=4)
    labels = [s.label for s in first.samples]
    assert sorted((labels.count(0), labels.count(1))) == [5, 6]
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(load_dataset(str(folder), limit=0)) == 120
    with pytest.raises(ValueError, match="limit is -1"):
        load_dataset(str(folder), limit=-1)


def test_the_fingerprint_sees_a_changed_file(folder):
    before = load_dataset(str(folder)).fingerprint
    label = sorted(p.name for p in folder.iterdir())[0]
    save(folder / label / "000.png", size=(33, 44))
    assert load_dataset(str(folder)).fingerprint != before


def test_batches_stream_and_can_start_later():
    opened = []

    def sample(i):
        def open_():
            opened.append(i)
            return Image.new("RGB", (8, 8))

        return Sample(f"s{i}", 0, open_)

    dataset = Dataset("many", ("thing",), [sample(i) for i in range(100)])
    batches = dataset.batches(from_pil, 10)
    next(batches)
    assert len(opened) == 10
    late = [ids for ids, _, _ in dataset.batches(from_pil, 10, start=8)]
    assert late == [[f"s{i}" for i in range(80, 90)], [f"s{i}" for i in range(90, 100)]]


def test_pictures_come_in_the_batches_of_pixels_and_are_as_they_were_made(folder):
    """Lazily, before any resize, from a later batch on; an unreadable one is missing in both."""
    _break_two(folder)
    for i in range(90):
        save(folder / "golden_retriever" / f"more{i:03d}.png", size=(5 + i, 9))
    whole = load_dataset(str(folder))
    several = whole.pictures(48)
    assert [len(next(several)[1]), len(whole.unreadable)] == [48, 0]
    assert [len(next(several)[1]), len(whole.unreadable)] == [46, 2]
    for start in (0, 2):
        pictures, pixels = whole.pictures(48, start=start), whole.batches(from_pil, 48, start=start)
        for (ids, images, labels), (other_ids, decoded, other_labels) in zip(pictures, pixels, strict=True):
            assert ids == other_ids and torch.equal(labels, other_labels)
            assert torch.equal(torch.stack([from_pil(image) for image in images]), decoded)
            assert images[0].size == whole.image(ids[0]).size


def test_a_data_set_does_not_change_so_its_fingerprint_stays_true(folder):
    dataset = load_dataset(str(folder))
    assert dataset.fingerprint is dataset.fingerprint and isinstance(dataset.samples, tuple)
    with pytest.raises(FrozenInstanceError):
        dataset.content = "other files"
    changed = replace(dataset, content="other files")
    assert changed.fingerprint != dataset.fingerprint and changed.unreadable is not dataset.unreadable


def test_workers_give_what_decoding_here_gives(folder):
    """Order, labels, pixels and the unreadable ones; workers are processes."""
    for i in range(150):
        save(folder / "golden_retriever" / f"more{i:03d}.png", size=(5 + i, 9))
    _break_two(folder)
    alone, beside = (load_dataset(str(folder)) for _ in range(2))
    batches = [list(data.batches(from_pil, 48, workers=n)) for data, n in ((alone, 0), (beside, 2))]
    for (ids, pixels, labels), (other_ids, other_pixels, other_labels) in zip(*batches, strict=True):
        assert ids == other_ids and torch.equal(pixels, other_pixels) and torch.equal(labels, other_labels)
    assert alone.unreadable == beside.unreadable and len(alone.unreadable) == 2


def test_a_transform_that_fails_is_an_error_and_no_unreadable_image(folder):
    def broken(image):
        raise TypeError("no such filter")

    with pytest.raises(TypeError, match="no such filter"):
        next(load_dataset(str(folder)).batches(broken))


def camera(path: Path) -> Image.Image:
    """A picture that is left half red, right half blue, taken with the camera turned: EXIF orientation 6."""
    upright = np.zeros((10, 20, 3), np.uint8)
    upright[:, :10, 0], upright[:, 10:, 2] = 255, 255
    picture = Image.fromarray(upright)
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(path, exif=exif)
    return picture


def test_a_turned_photograph_is_seen_upright(tmp_path):
    upright = camera(tmp_path / "thing" / "a.png")
    dataset = load_dataset(str(tmp_path))
    assert np.array_equal(dataset.image("thing/a.png"), upright)
    assert np.array_equal(next(iter(dataset))[1], upright)
    assert torch.equal(dataset.pixels(["thing/a.png"], TF.to_tensor)[0], TF.to_tensor(upright))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_become_eight_and_are_not_cut_off(tmp_path, suffix):
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    (tmp_path / "thing").mkdir()
    Image.fromarray(levels).save(tmp_path / "thing" / f"a.{suffix}")
    seen = np.asarray(load_dataset(str(tmp_path)).image(f"thing/a.{suffix}"))
    assert np.array_equal(seen[..., 0].ravel(), np.arange(256)) and (seen[..., 0] == seen[..., 2]).all()


def test_of_an_animation_the_first_frame_is_seen(tmp_path):
    (tmp_path / "thing").mkdir()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "thing" / "a.gif", save_all=True, append_images=frames[1:])
    assert load_dataset(str(tmp_path)).image("thing/a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_pictures_that_cannot_be_meant_are_named_with_the_reason(tmp_path):
    for i in range(300):
        save(tmp_path / "thing" / f"{i:03d}.png")
    wide = tmp_path / "thing" / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(wide)
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "thing" / "float.tif")
    Image.fromarray(np.full((8, 8), -3, np.int32)).save(tmp_path / "thing" / "signed.tif")
    dataset = load_dataset(str(tmp_path))
    assert len(list(dataset)) == 300
    words = {"bomb.png": "400000000 pixels", "float.tif": "without a defined range", "signed.tif": "run from -3 to -3"}
    assert {i.removeprefix("thing/") for i in dataset.unreadable} == set(words)
    for name, text in words.items():
        assert text in dataset.unreadable[f"thing/{name}"]


def test_only_keeps_the_order_of_the_data_set_and_refuses_unknown_ids(folder):
    dataset = load_dataset(str(folder))
    wanted = [dataset.samples[k].sample_id for k in (70, 3, 118)]
    few = dataset.only(wanted)
    assert [s.sample_id for s in few.samples] == [wanted[1], wanted[0], wanted[2]]
    assert few.class_names == dataset.class_names and few.fingerprint != dataset.fingerprint
    with pytest.raises(ValueError, match=r"has no sample 'cat/x.png'; 1 of 2 are not in it\."):
        dataset.only([wanted[0], "cat/x.png"])


def test_a_restricted_class_list_leaves_the_other_names_out(tmp_path):
    for name in ("ant", "bee", "cat", "dog"):
        for i in range(3):
            save(tmp_path / name / f"{i}.png")
    dataset = load_dataset(str(tmp_path))
    two = dataset.restricted(["dog", "bee"])
    assert two.class_names == ("bee", "dog")
    assert [(s.sample_id, s.label) for s in two.samples][2:4] == [("bee/2.png", 0), ("dog/0.png", 1)]
    drawn, again = (dataset.restricted(3, seed=5) for _ in range(2))
    assert drawn.class_names == again.class_names and len(drawn) == 9 and {s.label for s in drawn.samples} == {0, 1, 2}
    assert dataset.restricted(0) is dataset.restricted(4) is dataset
    alike = replace(dataset, class_names=("missile", "ant", "missile", "owl"))  # as two of ImageNet's are
    assert alike.restricted(list(alike.class_names)) is alike


def test_a_class_that_is_not_there_is_refused(folder):
    dataset = load_dataset(str(folder))
    with pytest.raises(ValueError, match=r"Unknown class of .* 'golden retreiver': nearest known names are golden"):
        dataset.restricted(["golden retreiver"])
    with pytest.raises(ValueError, match=r"classes is 3, allowed is 0 \(all\) and 2 to 2"):
        dataset.restricted(3)
