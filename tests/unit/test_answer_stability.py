"""Chapter 06: closed forms of its statistics, its question files, and a run of a stand-in to its end."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_vlms
from tiny import noise_picture

from zsr_utils import run, scores
from zsr_utils.conditions import ORIGINAL, OptionHead
from zsr_utils.datasets import (
    Dataset,
    Sample,
    _questions,
    choices,
    load_dataset,
    prior_questions,
    question_file,
    yes_or_no,
)  # fmt: skip
from zsr_utils.experiments import answer_stability as stability
from zsr_utils.measure import measure
from zsr_utils.models import load_vlm


ROOT = Path(__file__).resolve().parents[2]
POPE = ROOT.parent / "shared" / "data" / "annotations" / "pope"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return load_vlm(str(tiny_vlms.save("llava", tmp_path_factory.mktemp("models") / "llava")), device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "cache"))


def photographs(n: int = 4) -> Dataset:
    names = ("mug", "car", "old lamp")
    return Dataset("noise", names, [Sample(f"s{i}", i % 3, lambda i=i: noise_picture(i, 56)) for i in range(n)])


def asked(vlm, questions, conditions) -> pd.DataFrame:
    head = OptionHead({s.sample_id: questions.asked[s.sample_id] for s in questions.samples})
    return measure(vlm, questions, head, conditions, batch_size=4)


def rows(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    return pd.DataFrame({"sample_id": [f"p{k}/q" for k in range(n)], "family": "scale", "condition": "scale"} | columns)


def test_an_order_that_is_not_shown_changes_no_answer(vlm):
    questions = choices(photographs())
    base = asked(vlm, questions.put("open"), [ORIGINAL])
    for seed in (1, 2):
        shuffled = questions.shuffled("open", seed)
        assert any(shuffled.asked[i].options != q.options for i, q in questions.asked.items())
        back = stability.reordered(asked(vlm, shuffled, [ORIGINAL]), shuffled, questions)
        assert back.prediction.tolist() == base.prediction.tolist()
        right = [shuffled.asked[s.sample_id].options[s.label] for s in shuffled.samples]
        assert right == [questions.asked[s.sample_id].options[s.label] for s in questions.samples]


def test_a_blank_picture_does_not_drift_from_itself_and_others_do(vlm):
    white = Dataset("white", ("a", "b"), [Sample("w", 0, lambda: noise_picture(0, 56).point(lambda _: 255))])
    found = asked(vlm, choices(white), stability.blanks(vlm, white)).set_index("condition").drift
    assert found["white"] == found["mean"] == 0 < found["grey"]


def test_another_picture_is_never_that_of_the_question(vlm):
    questions = yes_or_no(photographs())
    other = stability.others(questions, 9, 0).change.__self__.instead
    assert all(len(chosen) == 6 for chosen in other.values())
    assert all(stability.picture_of(i) != stability.picture_of(j) for i, chosen in other.items() for j in chosen)


def test_ways_of_answers_are_a_partition_and_one_view_has_one_rate():
    table = rows(label=[0, 0, 0, 1], clean_prediction=[0, 0, 1, 0], prediction=[0, 1, 0, 2])
    changed = stability.changed(table)
    assert [changed[way].sum() for way in stability.WAYS] == [1, 1, 1, 1]
    assert sum(scores.share_of(way)(changed).value for way in stability.WAYS) == 1
    assert scores.flip_rate(changed).value == scores.vulnerability(changed).value == 0.75
    (line,) = stability.accuracy_changes(changed).itertuples()
    assert (line.base, line.other, line.value, line.verdict) == (0.5, 0.5, 0, "undecided")


def test_every_yes_or_no_lies_in_one_quadrant():
    table = rows(label=[0, 0, 1, 1], clean_prediction=[0, 1, 0, 1], prediction=[1, 0, 0, 0])
    found = stability.quadrants(table)
    assert found.quadrant.value_counts(normalize=True).sum() == 1
    assert found.quadrant.tolist() == ["right yes to no", "wrong no to yes", "wrong yes to no", "right no to yes"]
    both = pd.concat([table.assign(condition="original", family=None, prediction=table.clean_prediction), table])
    numbers = stability.yes_no_scores(both).set_index(["pictures", "quantity"]).value
    expected = {"accuracy": 0.25, "precision": 1 / 3, "recall": 0.5, "f1": 0.4, "false_positives": 1, "yes_rate": 0.75}
    assert numbers["views"].to_dict() == pytest.approx(expected)


def test_the_way_to_the_blank_picture_is_none_at_the_picture_and_whole_at_the_blank():
    of = {"original": [4.0, 0.0], "white": [-2.0, 0.0], "stays": [4.0, 0.0], "half": [1.0, 0.0], "blank": [-2.0, 0.0]}
    table = pd.DataFrame(of.values(), columns=["score_0", "score_1"]).assign(condition=list(of), sample_id="p/q")
    table["family"] = table.condition.where(~table.condition.isin(["original", "white"]))
    assert stability.towards_blank(table).dtp.tolist() == pytest.approx([0, 0.5, 1])
    assert stability.towards_blank(table).same_side.tolist() == [False, False, True]
    found = stability.towards_blank(table.assign(score_2=0.5)).dtp.tolist()
    assert found[0] == pytest.approx(0) and 0 < found[1] < 1 and found[2] == pytest.approx(1)


def test_scores_a_token_can_choose_another_option():
    table = rows(prediction=[0], score_0=[-2.0], score_1=[-3.0], length_0=[1.0], length_1=[3.0])
    found = stability.normalised(table.assign(condition="original"))
    assert found.prediction.tolist() == found.clean_prediction.tolist() == [1]


def test_statistics_of_stability_have_their_closed_forms():
    one, other = np.array([1.0, 2, 3]), np.array([3.0, 4, 5])
    assert stability.cohens_d(one, other) == -2
    assert np.isnan(stability.cohens_d(one[:1], other[:1]))
    table = rows(prediction=[0, 1, 1, 1]).assign(sample_id=list("aabb"))
    assert stability.entropy(table).value == pytest.approx(np.log(2) / 2)
    n = 12
    table = rows(label=[0] * n, clean_prediction=[0, 1] * (n // 2), prediction=[0] * n)
    assert stability.predicts(table).value == 1  # the right answers stay, the wrong ones change
    assert np.isnan(stability.predicts(table[table.clean_prediction == 0]).value)
    known = pd.DataFrame({"known": np.arange(8), "found": np.arange(8) ** 2})
    assert stability.agreement(known).value == pytest.approx(1)


def test_another_model_is_compared_on_the_same_views():
    own = rows(label=[0] * 9, clean_prediction=[0] * 9, prediction=[0] * 9)
    every = pd.concat([own.assign(model="a"), own.assign(model="b", prediction=[1] * 8 + [0])])
    found = stability.beside(every, "model", "a").set_index("quantity")
    assert found.value.to_dict() == pytest.approx({"accuracy": -8 / 9, "flips": 8 / 9})
    assert found.verdict.to_dict() == {"accuracy": "less", "flips": "more"}
    assert stability.in_words(stability.beside(own.assign(model="a"), "model", "a"), "more", "less") == "none"


def test_what_a_model_was_taught_of_blank_pictures_is_asked_of_every_kind():
    images = load_dataset("tabletop", limit=4)
    questions, usual = prior_questions(images)
    assert len(questions) == len(usual) == 30 and len(questions.fingerprint) == 32
    yes = {q.text: usual[i][1] for i, q in questions.asked.items() if q.topic == "yes"}
    assert yes["Is there a mug in the image?"] == 0.35 and len(set(yes.values())) == 10
    staged = choices(images)
    assert {q.topic for q in staged.asked.values()} == {"pattern", "what", "colour"}
    there = yes_or_no(images)
    assert [s.label for s in there.samples] == [0, 1] * 4


def encoded(side: int) -> bytes:
    noise_picture(side, side).save(held := io.BytesIO(), "PNG")
    return held.getvalue()


def seedbench(folder: Path, n: int = 6) -> Path:
    """A table as VLMEvalKit's: pictures as base64 text, a later question about one names its row."""
    texts = [base64.b64encode(encoded(48 + 16 * k)).decode() for k in range(n)]
    options = {letter: [f"{letter.lower()} {k}" for k in range(n + 1)] for letter in "ABC"}
    table = pd.DataFrame({"index": range(n + 1), "image": [*texts, "1"], "question": "what is it?", **options})
    table["D"] = [None, *["another"] * n]
    table.assign(answer=[*"ABCDA"[:n], *"B" * (n - 4)], category="kind").to_csv(folder / "SEED.tsv", sep="\t")
    return folder / "SEED.tsv"


def test_tables_of_seedbench_are_read_in_their_order(tmp_path):
    questions = load_dataset(seedbench(tmp_path), limit=3)
    assert [s.sample_id for s in questions.samples] == ["0/0", "1/1", "2/2"]
    whole = question_file(seedbench(tmp_path))
    first, last = whole.asked["0/0"], whole.samples[-1]
    assert first.options == ("a 0", "b 0", "c 0") and first.written == tuple("ABC") and whole.samples[1].label == 1
    assert last.sample_id == "1/6" and last.image().size == (64, 64) and whole.fingerprint != questions.fingerprint
    assert "Options:\nA. a 0\nB. b 0" in first.prompt and "Options" not in whole.put("open").asked["0/0"].prompt
    derived = yes_or_no(whole).asked["0/0/a 0"]
    assert derived.text == "what is it? Is it a 0?" and derived.options == ("Yes", "No")


def test_mmmu_has_its_pictures_in_place_and_what_cannot_be_asked_is_counted(tmp_path):
    one, several = {"bytes": encoded(40), "path": "x.png"}, {"image_2": {"bytes": encoded(8)}}
    base = {"options": "['x', 'y']", "answer": "B", "image_1": one, "image_2": None}
    kinds = [{}, several, {"options": "[]"}, {"answer": "open text"}, {"options": "['x', 'x']"}, {"image_1": None}]
    table = [{"id": f"m{k}", "question": "what is <image 1> ?", **base, **kind} for k, kind in enumerate(kinds)]
    pd.DataFrame(table).to_parquet(tmp_path / "mmmu.parquet")
    questions = question_file(tmp_path / "mmmu.parquet")
    assert list(questions.asked) == ["m0/m0"] and "<image" not in questions.asked["m0/m0"].prompt
    assert len(questions.left_out) == 5 and "several pictures: 1, such as 'm1'" in questions.notes[0]


def test_pope_finds_its_pictures_in_a_folder_beside(tmp_path):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "a.png").write_bytes(encoded(32))
    row = {"image": "a.png", "text": "Is there a mug in the image?", "label": "no"}
    lines = [json.dumps(row | {"question_id": k}) for k in (1, 2)]
    (tmp_path / "pope.json").write_text("\n".join(lines))
    questions = question_file(tmp_path / "pope.json")
    assert [(s.sample_id, s.label) for s in questions.samples] == [("a.png/1", 1), ("a.png/2", 1)]
    assert yes_or_no(questions).asked["a.png/1"].prompt.endswith("Answer with exactly one word: Yes or No.")
    (tmp_path / "val2014" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"no question that can be asked \(questions whose picture is not there: 2\)"):
        question_file(tmp_path / "pope.json")


@pytest.mark.skipif(not POPE.is_dir(), reason="POPE's questions are not on this machine")
def test_all_questions_of_pope_are_read(monkeypatch):
    monkeypatch.setattr(_questions, "_picture", lambda value, folders: (lambda: noise_picture(0), (value, 0, -1)))
    for file in sorted(POPE.glob("*.json")):
        questions = question_file(file)
        assert len(questions) >= 2900 and not questions.left_out
        assert np.mean([s.label for s in questions.samples]) == pytest.approx(0.5, abs=0.05)


def test_a_file_that_is_no_table_of_questions_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x.json' cannot be read"):
        load_dataset(tmp_path / "x.json")


@pytest.mark.slow
def test_the_chapter_runs_to_its_end_on_a_file_of_questions(tmp_path, monkeypatch):
    qwen = tiny_vlms.save("qwen3-vl", tmp_path / "qwen")
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    given = {"dataset": seedbench(tmp_path), "language_models": f"['{qwen}']", "limit": 6, "channel_images": 6}
    given |= {"draws": 1, "band_images": 3, "phrase": "Answer is {}", "orders": 1}
    words = [part for name, value in given.items() for part in ("-p", name, str(value))]
    notebook = ROOT / "notebooks" / "06-answer-stability.ipynb"
    assert run.main([str(notebook), "--no-progress", *words]) == 0
    numbers = json.loads(next((tmp_path / "results").rglob("metrics.json")).read_text())
    assert {"stability/ifr/any", "channels/ratio/ctx_mcq_all/any"} <= {n["name"] for n in numbers}
