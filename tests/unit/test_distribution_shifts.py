"""Chapter 07: closed forms of its numbers, and where its shifts come from."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import special
from test_sources import save, tree

from zsr_utils import scores
from zsr_utils.datasets import Dataset, Sample, load_dataset, natural_shifts, pm_sets, tabletop_scenes, video_frames
from zsr_utils.datasets._scenes import tabletop_shifts
from zsr_utils.experiments import distribution_shifts as dist
from zsr_utils.scores import trends


TENCH, HEN, STINGRAY, TOILET_PAPER = "n01440764", "n01514859", "n01498041", "n15075141"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def rows(predictions, **columns) -> pd.DataFrame:
    ids = [f"s{k}" for k in range(len(predictions))]
    return pd.DataFrame({"sample_id": ids, "label": 0, "prediction": predictions, **columns})


@pytest.mark.parametrize("paired", [True, False])
def test_a_drop_is_the_difference_with_its_exact_test(paired):
    clean, shown = rows([0] * 40), rows([1] * 10 + [0] * 30)
    found = scores.drop(clean, shown, paired=paired)
    assert found["value"] == pytest.approx(-0.25) and found["low"] < -0.25 < found["high"] < 0
    assert found["p"] == pytest.approx(2 / 2**10 if paired else 0.00105, rel=0.02)
    assert scores.drop(clean, clean, paired=paired)["p"] == 1


def test_flips_are_counted_from_frame_to_frame_or_from_the_first():
    frames = pd.concat([rows([1, k], severity=severity) for severity, k in enumerate([0, 1, 0, 0, 0])])
    assert [scores.flips(frames, noise=noise).tolist() for noise in (False, True)] == [[0, 0.5], [0, 0.25]]


def test_relative_errors_are_100_for_the_normaliser_and_leave_out_what_it_never_gets_wrong():
    wrong = (np.random.default_rng(0).random((30, 4, 5)) < 0.4).astype(float)
    never, twice = wrong * np.array([1, 1, 1, 0])[:, None], np.concatenate([wrong, wrong])
    given = [(wrong, wrong), (wrong, never), (twice, np.concatenate([wrong, 0 * wrong])), (wrong, 0 * wrong)]
    found = [scores.relative_errors(*both).value for both in given]
    assert found == pytest.approx([100, 100, 200, np.nan], nan_ok=True)


def test_cells_are_sorted_by_name_and_severity():
    given = (("b", 2, 0), ("a", 1, 1), ("b", 1, 1), ("a", 2, 0))
    cells = [rows([0, k], condition=name, severity=severity) for name, severity, k in given]
    assert scores.by_cell(pd.concat(cells)).tolist() == [[[0, 0], [0, 0]], [[1, 0], [1, 0]]]


def test_an_anchor_counts_alone_and_with_every_frame_around_it():
    frames = pd.DataFrame({"sample_id": ["a#-1", "a#0", "a#1", "b#0"], "label": 0, "prediction": [1, 0, 0, 0]})
    found = {name: e.value for name, e in scores.around_anchors(frames).items()}
    assert found == {"pm-0": 1, "pm-10": 0.5, "mean": 0.75}


def test_a_model_on_the_line_has_no_effective_robustness():
    x = np.array([0.3, 0.5, 0.7, 0.9])
    line = trends.fit_line(x, special.expit(0.9 * special.logit(x) - 0.4))
    y = float(special.expit(0.9 * special.logit(0.6) - 0.4))
    at, shifted = (scores.Estimate(v, v - 0.05, v + 0.05, "", 100) for v in (0.6, y))
    found = scores.effective_robustness(line, at, shifted)
    assert abs(found.value) < 1e-9 and found.low < -0.05 and found.high > 0.05
    every = scores.clipped(rows([0] * 100))
    assert every.value == 0.995 and np.isfinite(scores.effective_robustness(line, every, every).low)


def test_words_name_what_is_decided_after_the_correction():
    numbers = {"shift": ["v_2", "r", "s"], "value": [0.1, -0.5, -0.1], "p": [0.01, 0.001, 0.2]}
    said = dist.in_words(pd.DataFrame({"model": "m", **numbers}), "m")
    assert said == "its accuracy falls under r; it rises under v 2; not decided under s"


def test_videos_are_read_by_their_pmsets_and_a_missing_frame_is_named(tmp_path):
    for k in (10, 11, 13, 30):
        save(tmp_path / f"f-{k}.jpg", k)
    (tmp_path / "labels.json").write_text(json.dumps({"f-11.jpg": "dog", "f-30.jpg": "cat"}))
    (tmp_path / "pmsets.json").write_text(json.dumps({"f-11.jpg": ["f-10.jpg", "f-13.jpg"], "f-30.jpg": []}))
    found = [(s.sample_id, s.label) for s in video_frames(tmp_path).samples]
    assert found == [("f-11.jpg#-1", 1), ("f-11.jpg#0", 1), ("f-11.jpg#2", 1), ("f-30.jpg#0", 0)]
    (tmp_path / "f-13.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of the 20 frames around 'f-11.jpg' are missing, such as number 13\.$"):
        pm_sets(tmp_path)


@pytest.mark.parametrize("kind", ["threshold0.7", "top-images"])
def test_the_further_sets_of_imagenet_v2_have_names_of_their_own(home, kind):
    name = f"imagenet-v2-{kind.replace('d0', 'd-0')}"
    tree(home / name / f"imagenetv2-{kind}-format-val", "10", "2")
    assert [s.label for s in load_dataset(name).samples] == [2, 10]


def test_the_shifts_of_imagenet_are_those_in_the_data_folder_with_their_own_classes(home):
    tree(home / "imagenet" / "val", TENCH, HEN, STINGRAY, TOILET_PAPER)
    tree(home / "imagenet-sketch", TENCH)
    tree(home / "imagenet-r", HEN)
    found = natural_shifts(load_dataset("imagenet"))
    assert {k: (len(s.clean), s.paired) for k, s in found.items()} == {"imagenet-r": (2, 0), "imagenet-sketch": (4, 0)}
    clean, shown = found["imagenet-r"].clean, found["imagenet-r"].shown
    assert len(clean.class_names) == 200 and clean.class_names == shown.class_names
    assert clean.samples[1].sample_id[:9] == HEN and clean.samples[1].label == shown.samples[0].label


def test_objectnet_is_beside_imagenet_many_to_one_and_its_map_must_fit(home, capsys):
    tree(home / "objectnet" / "images", "fish", "roll")
    tree(home / "imagenet" / "val", TENCH, HEN, STINGRAY, TOILET_PAPER)
    (mappings := home / "objectnet" / "mappings").mkdir()
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps({"fish": "Fish", "roll": "Roll"}))
    overlap = {"Fish": "tench, Tinca tinca; stingray", "Roll": "toilet tissue, toilet paper, bathroom tissue"}
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(overlap))
    images = load_dataset("imagenet")
    clean = natural_shifts(images)["objectnet"].clean
    assert clean.class_names == ("fish", "roll") and [s.label for s in clean.samples] == [0, 0, 1]
    (hen,) = (s.sample_id for s in images.samples if s.sample_id.startswith(HEN))
    assert natural_shifts(images.only([hen])) == {}  # of few images none may show a class of it
    assert "objectnet is left out: none of the 1 images shows one of its classes" in capsys.readouterr().out
    with pytest.raises(ValueError, match="leaves the ImageNet images without 1 of its 2 classes, such as 'Roll'"):
        natural_shifts(images.restricted(["tench", "hen", "stingray"]))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(overlap | {"Fish": "carp"}))
    with pytest.raises(ValueError, match="maps 'Fish' to 'carp', which is no class of ImageNet"):
        natural_shifts(images)


def test_a_folder_is_a_shift_of_the_classes_that_both_have(tmp_path):
    tree(tmp_path / "photo", "cat", "dog", "horse")
    tree(tmp_path / "sketch", "dog", "cat", "house")
    images = load_dataset(str(tmp_path / "photo"))
    assert natural_shifts(images) == {}
    shift = natural_shifts(images, [str(tmp_path / "sketch")])["sketch"]
    assert shift.clean.class_names == shift.shown.class_names == ("cat", "dog") and len(shift.clean) == 2
    alone = Dataset("one", ("cat", "bird"), [Sample("a", 0, None)])
    with pytest.raises(ValueError, match="has 1 of the classes of one, allowed are 2 or more"):
        natural_shifts(alone, [str(tmp_path / "sketch")])


def test_a_shift_that_was_asked_for_by_name_is_not_left_out_in_silence(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path / "data"))
    tree(tmp_path / "photo", "cat", "dog")
    with pytest.raises(FileNotFoundError, match=r"^imagenet-r is not in"):
        natural_shifts(load_dataset(str(tmp_path / "photo")), ["imagenet-r"])


def test_scenes_keep_what_a_shift_does_not_change():
    clean = dict(list(tabletop_scenes().items())[:6])
    found = tabletop_shifts(list(clean), "validation", 0)
    assert not set(found.pop("v2")) & set(clean) and all(set(scenes) == set(clean) for scenes in found.values())
    for i, scene in clean.items():
        assert {scenes[i].kind for scenes in found.values()} == {scene.kind}
        assert found["stylized"][i].pattern != scene.pattern and found["sketch"][i].yaw == scene.yaw
        assert found["objectnet"][i].setting in ("beach", "night")


def test_shifts_are_told_from_the_line_all_at_once():
    ways = {"far": 0.1, "near": 0.021, "on_it": 0.0, "under": -0.1}
    shifts = [
        {"model": "m", "shift": s, **vars(scores.Estimate(v, v - 0.02, v + 0.02, "95 %", 9))} for s, v in ways.items()
    ]
    table, study = pd.DataFrame(shifts), SimpleNamespace(name="m")
    said = dist.above_in_words(study, table)
    assert said.endswith("at once (Holm), m is above the line under far and below the line under under.")
    assert "above the line under near" in dist.above_in_words(study, table[1:2])
    assert "not told from the line under any shift" in dist.above_in_words(study, table[2:3])
    assert "there is no line" in dist.above_in_words(study, table[:0])
