"""What every chapter opens with: numbers by name, words by rule, parameters that reach every call."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import token_model, token_pictures

import zsr_utils.study
from zsr_utils import parameters, run, scores
from zsr_utils.conditions import ORIGINAL, gaussian_noise
from zsr_utils.datasets import choices
from zsr_utils.records import _run
from zsr_utils.study import open_study


@pytest.fixture
def open_tiny(tmp_path, monkeypatch):
    for name in ("ZSR_CACHE", "ZSR_RESULTS"):
        monkeypatch.setenv(name, str(tmp_path / name))
    asked = []

    def load_model(name, pretrained="", **options):
        asked.append((name, pretrained, options))
        net = token_model()
        net.name = name
        return net

    def load_dataset(name, **options):
        asked.append((name, options))
        return token_pictures(6, 8)

    monkeypatch.setattr(zsr_utils.study, "load_model", load_model)
    monkeypatch.setattr(zsr_utils.study, "load_dataset", load_dataset)
    given = {"model": "one", "models": ["two@tag"], "dataset": "noise", "batch_size": 4, "seed": 3}

    def opened(needs=(), **changes):
        study = open_study("99-x", given | changes, **dict(needs))
        study.asked = asked
        return study

    return opened


def test_what_is_left_out_is_said_when_a_study_opens(open_tiny, capsys):
    study = open_tiny()
    study.images.left_out["links to nothing"] = (3, "cat/1.png")
    study.opened()
    assert "Left out: links to nothing: 3, such as 'cat/1.png'\n" in capsys.readouterr().out


def test_parameters_reach_models_data_and_rows(open_tiny, monkeypatch):
    study = open_tiny(pretrained="w", precision="tf32", limit=5, split="test")
    data, one, two = study.asked
    assert data == ("noise", {"split": "test", "classes": 0, "ids": "", "limit": 5, "seed": 3})
    assert one == ("one", "w", {"device": "auto", "precision": "tf32"}) and two[:2] == ("two", "tag")
    given = {}
    original = zsr_utils.study.measure
    monkeypatch.setattr(zsr_utils.study, "measure", lambda *a, **k: given.update(k) or original(*a, **k))
    study.measure(gaussian_noise([4]), draws=2)
    assert given == {"seed": 3, "batch_size": 4, "draws": 2}


def test_numbers_that_answer_the_question_leave_what_they_are_on_halves_of_the_images(open_tiny, monkeypatch):
    known = {"99-x": {"numbers": dict.fromkeys(("a/kept", "a/estimated", "a/median", "a/alone"))}}
    monkeypatch.setattr(_run, "read_chapters", lambda **_: known)
    study, rng = open_tiny(models=[]), np.random.default_rng(0)
    rows = pd.DataFrame({"sample_id": [f"{i}" for i in range(300)], "x": rng.normal(size=300), "set": "kept"})
    median = scores.median_of("x", "units")
    study.keep(lambda part: scores.estimates(part, "set", median), "a/{set}", rows=rows)
    study.estimate(rows, "a/estimated", median)
    study.number("a/median", median, rows)
    study.number("a/alone", median(rows))
    study.number("a/other", median, rows)  # answers nothing
    study.close()
    found = json.loads((study.run.folder / "halves.json").read_text())
    assert set(found) == {"a/kept", "a/estimated", "a/median"} and found["a/kept"] == found["a/median"]
    assert found["a/median"]["images"] == 300 and len(found["a/median"]["values"]) == 64
    assert np.std(found["a/median"]["values"]) == pytest.approx(1.25 / 300**0.5, rel=0.4)


def test_rows_of_all_models_are_kept_with_their_model(open_tiny):
    study = open_tiny()
    rows = study.measure([ORIGINAL, *gaussian_noise([4])])
    study.measure([ORIGINAL], models=["one"], keep=False)
    assert rows.groupby("model").size().to_dict() == {"one": 12, "two@tag": 12} and study.name == "one"
    study.number("a/b", scores.proportion(1, 2))
    study.close()
    kept = pd.read_parquet(study.run.folder / "samples.parquet")
    assert len(kept) == 24 and kept.model.nunique() == 2


def test_no_images_are_not_all_images(open_tiny):
    study = open_tiny()
    with pytest.raises(ValueError, match="0 images and 1 conditions given"):
        study.measure([ORIGINAL], images=study.images.only([]))


def test_questions_are_no_images_to_classify(open_tiny, monkeypatch):
    questions = choices(token_pictures(6, 8))
    assert questions.class_names == tuple("ABCD") and not questions.caution
    monkeypatch.setattr(zsr_utils.study, "load_dataset", lambda name, **_: questions)
    with pytest.raises(ValueError, match="noise holds questions, 99-x needs images: chapter 06 asks questions"):
        open_tiny()


def test_numbers_get_names_labels_and_the_model_where_it_is_another(open_tiny):
    study = open_tiny()
    rows = study.measure([ORIGINAL, *gaussian_noise([0.5, 4])])
    table = study.estimate(rows, "noise/flips", scores.flip_rate, ["condition", "severity"])
    assert table.name.tolist()[:2] == ["noise/flips/original_0", "noise/flips/gaussian_noise_0_5"]
    assert table.label.tolist()[1] == "gaussian noise, 0.5" and "noise/flips/gaussian_noise_4/two_tag" in set(
        table.name
    )
    assert study["noise/flips/gaussian_noise_4"].n == 6
    plain = study.estimate(rows[rows.condition == "original"], "zero_shot/accuracy", scores.accuracy)
    assert plain.name.tolist() == ["zero_shot/accuracy", "zero_shot/accuracy/two_tag"]
    assert plain.label.tolist() == ["one", "two@tag"]
    with pytest.raises(ValueError, match="Unknown recorded number 'noise/flip'"):
        study["noise/flip"]


def test_sentences_take_recorded_numbers_and_words_chosen_by_a_rule(open_tiny, monkeypatch):
    study, said = open_tiny(), []
    monkeypatch.setattr(study.run, "say", said.append)
    words = {"more": "more", "less": "less", "undecided": "not decided"}
    for low, high, reference, expected in (
        (0.1, 0.3, 0, "more"),
        (0.1, 0.3, 0.5, "less"),
        (-0.1, 0.3, 0, "not decided"),
    ):
        study.number("a/b", scores.Estimate(0.2, low, high, "x", 10))
        study.say("{a/b:pct} of {n}: {verdict}", n=10, verdict=study.decide("a/b", reference, **words))
        assert said[-1] == f"20.0 % [{100 * low:.1f}, {100 * high:.1f}] of 10: {expected}"
    assert study.decide("a/b", margin=1, same="the same", **words) == "the same"
    study.number("a/none", scores.not_measured())
    assert study.decide("a/none", **words) == "nothing was measured that could decide it"
    with pytest.raises(ValueError, match="Unknown recorded number 'a/c': nearest known names are a/b"):
        study.say("{a/c:pct}")


def test_prompts_change_the_head_and_are_recorded(open_tiny):
    study = open_tiny()
    study.measure([ORIGINAL], prompts="bare name", models=["one"])
    study.measure([ORIGINAL], prompts=zsr_utils.study.OWN_PROMPTS, models=["one"])
    prompts = study.run.provenance()["prompts"]
    assert prompts["bare name"] == ["{}"] and set(prompts) == {"plain prompt", "bare name", zsr_utils.study.OWN_PROMPTS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, allowed is 1 or more"),
        ({"seed": -1}, "seed is -1, allowed is 0 or more"),
        ({"limit": -5}, "limit is -5, allowed is 0 or more"),
        ({"models": ["a@b@c"]}, "models holds 'a@b@c', allowed are names such as 'ViT-B-32' or 'ViT-B-32@openai'"),
        ({"prompts": "plane prompt"}, "Unknown prompt set 'plane prompt': nearest known names are plain prompt"),
        ({"number": -5}, "number is -5, allowed is 0 or more"),
        ({"text_cosine": 1.5}, "text_cosine is 1.5, allowed is above -1 and below 1"),
        ({"budgets": [4, 2]}, r"budgets is \[4, 2\], allowed are growing numbers"),
        ({"sigmas": []}, "sigmas is empty, allowed is one value or more"),
        ({"sigmas": [1, "4"]}, "sigmas is '4', allowed is above 0"),
        ({"draws": True}, "draws is True, allowed is 1 or more"),
        ({"adaptive_goals": ["blended"]}, "adaptive_goals is 'blended', allowed are 'named', 'aligned'"),
    ],
)
def test_bad_parameters_are_refused_by_name(open_tiny, change, message):
    with pytest.raises(ValueError, match=message):
        open_tiny(**change)


def test_every_number_among_the_parameters_of_a_notebook_has_its_rule():
    for notebook in (Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"):
        for name, value in run.defaults(notebook).items():
            numbers = [v for v in (value if isinstance(value, list) else [value]) if type(v) in (int, float)]
            assert not numbers or name in parameters.ALLOWED, f"{notebook.name}: {name}"


def test_a_chapter_says_at_once_what_it_needs(open_tiny):
    with pytest.raises(ValueError, match="has 6 of the 20 images that 99-x needs at least"):
        open_tiny(needs={"images": 20})
    with pytest.raises(ValueError, match="draws is 4, allowed is 16 or more"):
        open_tiny(draws=4, needs={"draws": 16})


def test_the_one_sentence_of_a_chapter_carries_the_caution(open_tiny, monkeypatch):
    study, said = open_tiny(), []
    monkeypatch.setattr(study.run, "say", said.append)
    study.number("a/none", scores.not_measured())
    study.say("**In short:** {a/none:pct}.")
    study.say("Else {a/none:pct}.")
    assert said == [
        "**In short:** not measured. **Caution:** 6 images are too few for most comparisons to be decided.",
        "Else not measured.",
    ]


def test_facts_of_a_study_can_be_kept_as_rows(open_tiny):
    study = open_tiny()
    rows = study.measure([ORIGINAL], models=["one"], keep=False)
    study.keep_rows(rows.assign(largest=1.0))
    study.number("a/b", scores.proportion(1, 2))
    study.close()
    assert "largest" in pd.read_parquet(study.run.folder / "samples.parquet")
