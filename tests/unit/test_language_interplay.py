"""Chapter 18 beyond the contract: the protocol in closed form, planted errors, and what a probe can find."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_vlms
from tiny import NAMES, Speaker, noise_picture, token_model, token_pictures

from zsr_utils import run
from zsr_utils.conditions import Condition, Head
from zsr_utils.datasets import Dataset, Sample, asked_scenes, load_dataset
from zsr_utils.experiments import language_interplay as interplay
from zsr_utils.measure import measure
from zsr_utils.models import _vlm
from zsr_utils.models._openclip import _check


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "cache"))


def rows_of(speaker: Speaker, **options) -> pd.DataFrame:
    net, images = token_model(), token_pictures(12)
    head, asked = Head(net.classifier(NAMES, ["{}"]), NAMES), interplay.Asked(speaker, **options)
    rows = measure(net, images, head, [Condition("shift", 1, interplay.as_they_are, asked.facts)])
    return rows.assign(language_model="speaker")


@pytest.mark.parametrize(
    ("said", "truth", "confuser", "mark"),
    [
        ("A Mug.", "mug", "lamp", "truth"), ("a lamp", "mug", "lamp", "confuser"), ("a duck", "mug", "lamp", "unclear"),
        ("a mug beside a lamp", "mug", "lamp", "unclear"), ("it is a can opener", "pen", "can opener", "confuser"),
        ("a pen, not a can opener", "pen", "can opener", "unclear"), ("the Television", "tv", "monitor", "truth"),
    ],
)  # fmt: skip
def test_an_answer_is_graded_by_whose_words_it_holds(said, truth, confuser, mark):
    assert interplay.graded(said, truth, confuser, {"tv": ["television"]}) == mark


def test_who_takes_whatever_is_listed_first_is_right_in_one_order_of_two():
    first = Speaker(lambda image, prompt, option: -float(prompt.rfind(option)))
    rows = rows_of(first)
    right = interplay.answers(rows).groupby("protocol").value.mean()
    assert right["likelihood (truth first)"] == 1 and right["likelihood (truth second)"] == 0
    assert right[interplay.BOTH] == 0.5 and right["greedy (unclear is wrong)"] == 1
    assert (rows.confuser != rows.label).all() and (rows.graded == "truth").all()


def test_candidates_hold_the_truth_and_no_model_chooses_them():
    asked = interplay.Asked(Speaker())
    drawn = asked.candidates("a", 700, 1000)
    assert len(set(drawn)) == 10 and 700 in drawn and drawn == sorted(drawn) == asked.candidates("a", 700, 1000)
    assert drawn != asked.candidates("b", 700, 1000) and asked.candidates("a", 2, 4) == [0, 1, 2, 3]


def test_a_language_model_that_repeats_its_encoder_gains_nothing_and_takes_over_every_error():
    net = token_model()
    head = Head(net.classifier(NAMES, ["{}"]), NAMES)
    logits = lambda image: head.scores(net, net.encode_image(image[None]))[0]  # noqa: E731
    repeats = Speaker(lambda image, prompt, option: float(logits(image)[NAMES.index(option)]))
    rows = rows_of(repeats, others={"same": (net, head)})
    assert 0 < (rows.prediction == rows.label).sum() < len(rows)
    answered = interplay.answers(rows)
    gains = interplay.gains(answered, ["protocol"]).set_index("protocol").value
    assert (gains.drop(gains.filter(like="greedy").index) == 0).all() and interplay.ANOTHER in gains
    taken = interplay.taken_over(interplay.fooled(answered))
    assert taken.value == 1 and taken.low < 0.95
    assert interplay.beyond_another(interplay.fooled(answered)).value.tolist() == [0]


def test_two_models_of_one_accuracy_differ_between_options_that_one_of_them_chose():
    """Planted: both see the truth through noise of their own, so that nobody knows more."""
    own, other = (np.random.default_rng(k).normal(0, 1, (2000, 10)) + 1.5 * np.eye(10)[0] for k in (1, 2))
    confuser, beside = own[:, 1:].argmax(1) + 1, {}
    beside["open_beside"] = other[:, 0] - np.take_along_axis(other, confuser[:, None], 1)[:, 0]
    margins = {name: of[:, 0] - of[:, 1:].max(1) for name, of in (("open", other), ("encoder_open", own))}
    listed = {
        f"{order}_{who}": other[:, 0] * (who == "truth")
        for order in ("first", "second")
        for who in ("truth", "confuser")
    }
    rows = pd.DataFrame({**beside, **margins, **listed, "label": 0, "prediction": own.argmax(1), "graded": "unclear"})
    rows = rows.assign(sample_id=np.arange(2000).astype(str), condition="shift")
    answered = interplay.answers(rows)
    gains = interplay.gains(answered, ["protocol"]).set_index("protocol")
    assert gains.verdict[interplay.OPEN] == "undecided" and gains.value[interplay.SAME_TWO] > 0.2
    assert "greedy (unclear left out)" not in gains.index and interplay.ANOTHER not in gains.index
    steps = interplay.by_step(answered.assign(value=answered.value - answered.encoder), "protocol", bound=2.0)
    assert steps.set_index("step").verdict["the encoder chooses the wrong option"] == "more"


def test_synonyms_fit_names_but_for_signs(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"T-Shirt": ["shirt"], "weight (exercise)": ["dumbbell"], "tv": ["television"]}))
    found = interplay.synonyms_in(str(path), ["t shirt", "weight exercise", "mug"])
    assert found == {"t shirt": ["shirt"], "weight exercise": ["dumbbell"]} and interplay.synonyms_in("", ["mug"]) == {}
    with pytest.raises(ValueError, match="has none of the 1 classes, such as 'mug'"):
        interplay.synonyms_in(str(path), ["mug"])
    path.write_text('{"mug": "cup"}')
    with pytest.raises(ValueError, match="is no table of lists of words"):
        interplay.synonyms_in(str(path), ["mug"])


def test_a_language_model_needs_its_own_encoder(monkeypatch):
    net = token_model()
    study = SimpleNamespace(name="tiny", net=net, nets={"tiny": net}, parameters={"device": "cpu", "precision": "fp32"})
    tower = SimpleNamespace(name="other-tower", fingerprint="x")
    monkeypatch.setattr(interplay, "load_vlm", lambda name, *_: SimpleNamespace(encoder=tower if name == "b" else None))
    assert interplay.speakers(study, ["a"])["a"][1] == "tiny"
    with pytest.raises(ValueError, match="'b' sees through 'other-tower', which model or models must name"):
        interplay.speakers(study, ["a", "b"])


def test_an_unknown_set_of_images_is_named():
    parameters = {"seed": 0, "split": "validation"}
    study = SimpleNamespace(images=load_dataset("tabletop", limit=2), parameters=parameters)
    with pytest.raises(ValueError, match="Unknown set of images 'sketc': nearest known names are sketch"):
        interplay.image_sets(study, ["sketc"], [], number=2, pairs=1, cosine=0.9)


def test_a_probe_finds_what_a_projector_keeps_and_not_what_it_drops():
    bright = lambda i: noise_picture(i).point(lambda v: v // 2 + 127 * (i % 2))  # noqa: E731
    images = Dataset("halves", ("dark", "light"), [Sample(str(i), i % 2, lambda i=i: bright(i)) for i in range(40)])
    facts = pd.DataFrame({"class": {s.sample_id: images.class_names[s.label] for s in images.samples}})
    parts = [images.only(facts.index[:20]), images.only(facts.index[20:])], [facts[:20], facts[20:]]
    keeps, drops = Speaker(), Speaker(tokens=lambda image: 0 * image.permute(1, 2, 0))
    for speaker, right in ((keeps, 1.0), (drops, 0.5)):
        seen = interplay.probed(speaker, token_model(), *parts).groupby("seen").value.mean()
        assert seen["tower"] == 1 and seen["projector"] == right and seen["most common"] == 0.5


def test_the_card_of_an_asked_scene_names_what_is_not_there():
    images, facts = asked_scenes(6, 0)
    assert len(images) == 6 and (facts.word != facts.kind).all() and facts["count"].isin(["one", "two"]).all()
    assert [images.class_names[s.label] for s in images.samples] == facts.kind.tolist()


def test_the_encoders_of_known_models_are_loaded_as_they_were_trained():
    for name, tag in set(_vlm.ENCODERS.values()):
        _check(name, tag)


@pytest.mark.slow
def test_a_stand_in_of_imagenet_d_and_a_random_llava_run_the_chapter_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    for split in ("background", "texture"):
        for k, name in enumerate(("band_aid", "pen", "can_opener", "t_shirt")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(5):
                noise_picture(10 * k + i).save(folder / f"{i}.png")
    (tmp_path / "words.json").write_text('{"t-shirt": ["shirt"]}')
    given = {
        "dataset": tmp_path / "background", "shifts": json.dumps([str(tmp_path / "texture")]), "pairs": 4,
        "max_steps": 2, "language_models": json.dumps([str(tiny_vlms.save("llava", tmp_path / "llava"))]),
        "synonyms": tmp_path / "words.json",
    }  # fmt: skip
    words = [str(word) for pair in given.items() for word in ("-p", *pair)]
    assert run.main(["notebooks/18-language-interplay.ipynb", "--no-progress", *words]) == 0
