"""Questions as samples: the head of a generative model under the contract of `measure`, and what is asked."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny_vlms
import torch
from tiny import noise_picture

from zsr_utils.conditions import (
    ORIGINAL,
    Condition,
    OptionHead,
    Spoken,
    as_conditions,
    band_attacks,
    families,
    filters,
    gaussian_noise,
)  # fmt: skip
from zsr_utils.datasets import Dataset, Question, Questions, Sample
from zsr_utils.measure import COLUMNS, measure
from zsr_utils.models import load_vlm


ASKED = (("what is it?", ("mug", "car", "lamp")), ("is it a mug?", ("yes", "no")))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return load_vlm(str(tiny_vlms.save("llava", tmp_path_factory.mktemp("models") / "llava")), device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))


def asked(n: int = 4, side: int = 56, of=ASKED) -> Questions:
    pictures = Dataset("noise", ("a", "b"), [Sample(f"s{i}", 0, lambda i=i: noise_picture(i, side)) for i in range(n)])
    rows = [(f"s{i}", f"{k}", Question(*q), (i + k) % len(q[1])) for i in range(n) for k, q in enumerate(of)]
    return Questions.about("asked", pictures, rows)


def rows_of(vlm, questions, conditions, **options) -> pd.DataFrame:
    head = OptionHead({s.sample_id: questions.asked[s.sample_id] for s in questions.samples})
    rows = measure(vlm, questions, head, conditions, **({"batch_size": 4} | options))
    return rows.sort_values(["condition", "severity", "draw", "sample_id"]).reset_index(drop=True)


def shown() -> list[Condition]:
    views = as_conditions(families(["rotation", "text_semantic", "text_random"], words=1))
    return [replace(ORIGINAL, facts=Spoken(3).facts), *views, *filters([0.3]), *gaussian_noise([9])]


def test_rows_of_questions_keep_the_contract(vlm):
    questions = asked()
    rows = rows_of(vlm, questions, shown(), detail="tokens")
    assert tuple(rows.columns[: len(COLUMNS)]) == COLUMNS and not rows[list(COLUMNS)].isna().any(axis=None)
    assert set(zip(rows.condition, rows.sample_id)) == {(c.name, i) for c in shown() for i in questions.asked}
    assert (rows.drift[rows.condition == "original"] == 0).all() and (
        rows.drift[rows.condition == "rotation"] > 0
    ).all()
    scores = rows.filter(regex=r"^score_\d").to_numpy()
    assert (np.nanargmax(scores, 1) == rows.prediction).all()
    yes_no = rows.sample_id.str.endswith("/1").to_numpy()
    assert np.isnan(scores[yes_no, 2]).all() and not np.isnan(scores[~yes_no]).any()
    assert (rows.length_0[~yes_no] == 4).all(), "three letters and what closes the turn"
    written = rows[rows.condition == "text_semantic"]
    assert (written.word_label != written.clean_prediction).all() and (written.word_label >= 0).all()
    assert (written[written.sample_id.str.endswith("/1")].word_label <= 1).all(), "an option of its own question"


def test_rows_of_questions_do_not_depend_on_batch_or_company(vlm):
    rows = rows_of(vlm, asked(), shown())
    for other in (rows_of(vlm, asked(), shown(), batch_size=1), rows_of(vlm, asked(3), shown(), batch_size=20)):
        part = rows[rows.sample_id.isin(other.sample_id)].reset_index(drop=True)
        pd.testing.assert_frame_equal(other, part, rtol=1e-3, atol=1e-4)


def test_a_row_says_what_the_model_says_of_the_question_alone(vlm):
    questions = asked(2)
    rows = rows_of(vlm, questions, [ORIGINAL]).set_index("sample_id")
    for sample_id, picture, label in questions:
        question, image = questions.asked[sample_id], vlm.from_pil(picture)
        found = vlm.read([image], [question.prompt], [question.options])
        row, scores = rows.loc[sample_id], found.scores[0].double()
        assert row.prediction == int(scores.argmax()) and row.label == label
        assert row.margin == pytest.approx(float(scores[label] - np.delete(scores, label).max()), abs=1e-3)
        assert row.score_1 == pytest.approx(float(scores[1]), abs=1e-3)


def test_pictures_of_their_own_size_are_shown_as_they_are(tmp_path):
    qwen = load_vlm(str(tiny_vlms.save("qwen3-vl", tmp_path / "qwen")), device="cpu")
    questions = asked(1, side=96)
    assert qwen.image_size is None and qwen.from_pil(noise_picture(0, 2000)).shape == (3, 1024, 1024)
    seen = []
    padded = Condition("pad", 1, lambda b: torch.nn.functional.pad(b.pixels, (32,) * 4))
    watched = replace(padded, facts=lambda b, s: seen.append(s.grids[0].shape[1:3]) or {})
    rows = rows_of(qwen, questions, [ORIGINAL, watched], batch_size=1, detail="tokens")
    assert len(rows) == 4 and seen == [(5, 5)] * 2


def test_an_attack_in_a_band_follows_the_scores_of_the_options(vlm):
    of = [ASKED[0]]
    rows = rows_of(vlm, asked(3, of=of), [ORIGINAL, *band_attacks([30], ["all"], steps=4)]).set_index("condition")
    before, after = rows.loc["original"].clean_margin, rows.loc["attack_all"].clean_margin
    assert (after.to_numpy() < before.to_numpy()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), r"'what\?' has options \[\], allowed are two or more, none empty"),
        (("a", " "), "allowed are two or more, none empty"),
        (("a", "a"), r"has options \['a', 'a'\], of which one is there twice"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Question("what?", options)


def test_questions_are_known_by_their_words_and_pictures():
    assert asked().fingerprint == asked().fingerprint != asked(of=[("What is it?", ASKED[0][1]), ASKED[1]]).fingerprint
    few = asked().subset(3)
    assert len(few) == 3 and few.asked[few.samples[0].sample_id].options and few.class_names == tuple("ABC")
