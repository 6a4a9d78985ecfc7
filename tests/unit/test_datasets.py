"""Folders of pictures as users have them: mixed modes, broken files, odd names."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from tabletop.data import SHIFTS
from zsr_utils.datasets import Dataset, Sample, UnreadableImages, load_dataset, tabletop_factors
from zsr_utils.datasets._sources import tabletop_shifts, tabletop_splits


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


def test_a_folder_without_images_says_what_was_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images: expected one sub-folder a class"):
        load_dataset(str(tmp_path))


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="Unknown data set 'tabeltop': nearest known names are tabletop"):
        load_dataset("tabeltop")


def test_a_missing_download_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"fetch its 1\.5 GB archive"):
        load_dataset("imagenette")


def test_a_local_imagenette_tree_is_read_with_its_curated_names(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    for i in range(10):
        save(tmp_path / "imagenette2" / "val" / f"n{i:08d}" / "a.JPEG".lower())
    dataset = load_dataset("imagenette")
    assert dataset.class_names[0] == "tench" and len(dataset) == 10


@pytest.mark.parametrize("split", ["test", "train"])
def test_an_unknown_split_of_tabletop_is_refused_with_all_its_conditions(split):
    known = ", ".join(map(repr, ("validation", *SHIFTS)))
    with pytest.raises(ValueError, match=re.escape(f"split is '{split}', allowed are {known}.")):
        load_dataset("tabletop", split=split)


@pytest.mark.parametrize("split", ["test", "sketch"])
def test_an_unknown_split_of_another_data_set_is_refused(folder, split):
    with pytest.raises(ValueError, match=f"split is '{split}', allowed are 'validation', 'train'"):
        load_dataset(str(folder), split=split)


def test_every_condition_is_a_split_with_the_same_scenes_and_labels():
    frame, photo, sets = tabletop_shifts(), load_dataset("tabletop", split="photo"), {}
    assert tabletop_splits() == ("validation", *SHIFTS)
    for condition in SHIFTS:
        dataset = sets[condition] = load_dataset("tabletop", split=condition)
        ids = [s.sample_id for s in dataset.samples]
        assert ids == [s.sample_id.replace("photo", condition) for s in photo.samples]
        assert ids == frame.index[frame.condition == condition].tolist()
        assert [s.label for s in dataset.samples] == frame.label[ids].tolist() == [s.label for s in photo.samples]
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
    frame, factors = tabletop_shifts(), tabletop_factors()
    assert set(frame.columns) - set(factors.columns) == {"scene_id", "condition", "other_kind", "other_label"}
    assert set(factors.columns) < set(frame.columns) and frame.index.is_unique
    other = frame.condition.isin(["pattern", "card"])
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
