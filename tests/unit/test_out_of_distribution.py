"""Out-of-distribution scores and their numbers: closed forms, conventions, and sets that stand outside."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from tiny import tiny_model

from zsr_utils import datasets, scores
from zsr_utils.conditions import Batch, Head, Seen
from zsr_utils.experiments import out_of_distribution as ood


RNG = np.random.default_rng(0)
INSIDE, OUTSIDE = RNG.normal(1, 1, 300).round(1), RNG.normal(0, 1.5, 200).round(1)  # with ties


def test_inside_is_positive_as_in_ninco_and_ties_count_half():
    found = scores.separation(INSIDE, OUTSIDE, resamples=2)
    auroc = roc_auc_score(np.repeat([1, 0], [300, 200]), np.concatenate([INSIDE, OUTSIDE]))
    assert found["auroc"].value == pytest.approx(auroc)
    assert found["fpr95"].value == (np.quantile(INSIDE, 0.05) <= OUTSIDE).mean()  # NINCO's formula
    turned = scores.separation(-OUTSIDE, -INSIDE, resamples=2)  # outside as positive, as in pytorch-ood
    assert turned["auroc"].value == pytest.approx(auroc)
    assert turned["fpr95"].value == (np.quantile(OUTSIDE, 0.95) >= INSIDE).mean() != found["fpr95"].value


def test_a_mean_over_classes_weighs_a_class_of_one_image_as_any_other():
    outside, classes = np.array([1000.0] + [0.0] * 9), np.array(["few"] + ["many"] * 9)
    found = scores.separation(np.arange(1.0, 101), outside, classes, resamples=20)
    assert {k: e.value for k, e in found.items()} == {"auroc": 0.9, "auroc_mean": 0.5, "fpr95": 0.1, "fpr95_mean": 0.5}


def test_intervals_have_width_at_an_end_and_classes_are_a_sample_of_classes():
    far = scores.separation(INSIDE + 100, OUTSIDE)["auroc"]
    assert far.value == 1 and far.low == pytest.approx(scores.wilson(1, 200)[0])
    flat = scores.separation(np.ones(30), np.ones(20))  # no spread
    assert flat["auroc"].value == 0.5 and flat["auroc"].low < 0.4 and flat["fpr95"].value == 1
    assert np.isnan(scores.separation(np.ones(3), np.full(3, np.nan))["auroc"].value)
    classes = np.repeat(np.arange(8), 25)
    apart = OUTSIDE + 3 * classes  # classes differ much, images of one little
    images, whole = (scores.separation(INSIDE, apart, classes, draw=d)["auroc_mean"] for d in ("images", "classes"))
    assert whole.value == images.value and whole.high - whole.low > 3 * (images.high - images.low)
    assert np.isnan(scores.separation(INSIDE, OUTSIDE, classes % 5, draw="classes")["auroc"].low)


def test_aurocs_are_compared_as_by_delong():
    other, parts, won = (INSIDE + RNG.normal(0, 1, 300), OUTSIDE + RNG.normal(0, 1, 200)), [], []
    for inside, outside in ((INSIDE, OUTSIDE), other):
        wins = (inside[:, None] > outside) + (inside[:, None] == outside) / 2
        parts.append(scores.auroc_parts(pd.Series(inside), pd.Series(outside)).value.to_numpy())
        assert parts[-1].mean() == pytest.approx(wins.mean())
        won.append((wins.mean(1), wins.mean(0)))
    delong = sum(np.var(a - b, ddof=1) / len(a) for a, b in zip(*won))
    difference, drawn = scores.paired_mean(parts[0] - parts[1]), scores.separation(INSIDE, OUTSIDE)["auroc"]
    assert (difference.high - difference.low) / 3.93 == pytest.approx(np.sqrt(delong), rel=0.03)
    own = sum(np.var(v, ddof=1) / len(v) for v in won[0])
    assert (drawn.high - drawn.low) / 3.92 == pytest.approx(np.sqrt(own), rel=0.1)


def test_scores_are_their_formulas_and_none_ties_near_one():
    net, names = tiny_model(), ("a", "b", "c")
    weights = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double()
    head, ids = Head(weights[:3], names), [str(k) for k in range(6)]
    seen = Seen(torch.zeros(6, 3, 8, 8), features, head.scores(net, features))
    found = ood.Scores({"4": "owl"}, weights[3:], (2.0,))(Batch(net, head, ids, torch.zeros(6).long(), seen), seen)
    cosines, scale = torch.nn.functional.normalize(features) @ weights.T.double(), float(np.exp(3))
    own = cosines[:, :3]
    expected = {"mcm": own.softmax(1).amax(1), "msp": (scale * own).softmax(1).amax(1)}
    expected |= {"softmax_2": (scale / 2 * own).softmax(1).amax(1)}
    expected |= {"negative_words": (scale * cosines).softmax(1)[:, :3].sum(1)}
    for name, probability in expected.items():
        np.testing.assert_allclose(1 / (1 + np.exp(-found[name])), probability, rtol=1e-4)
    np.testing.assert_allclose(found["energy"], (scale * own).exp().sum(1).log(), rtol=1e-5)
    np.testing.assert_allclose(found["max_dot"], (features @ weights[:3].T.double()).amax(1), rtol=1e-6)
    assert found["outside"].tolist() == ["", "", "", "", "owl", ""]
    sure = torch.tensor([[50.0, 0, 0], [60.0, 0, 0]]).double()
    assert (sure.softmax(1).amax(1) == 1).all() and ood.odds(sure)[0] < ood.odds(sure)[1]


def test_what_is_outside_is_no_answer(module_cache):
    with pytest.raises(ValueError, match=r"pets shows 'Dog', allowed are classes outside of the 2 answers"):
        ood.refuse_inside("pets", ["cat", "Dog"], ["dog", "car"])
    sets, known = datasets.tabletop_outside(16, 0), set(datasets.load_dataset("tabletop").class_names)
    assert {name: len(images) for name, images in sets.items()} == dict.fromkeys(sets, 16)
    assert not known & {c for images in sets.values() for c in images.class_names}
    texts = tiny_model()  # by the length of their words modulo four: all but "1234" are as far from both names
    far = ood.far_words(texts, ["abcd", "efgh"], ["1234", "123", "12", "1"], ["{}"])
    torch.testing.assert_close(far, texts.classifier(["123", "12"], ["{}"]))


def test_outside_pictures_lie_as_their_archives_hold_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    places = ["sun/images/1.png", "sun/images/2.png", "textures/dtd/images/banded/1.png", "textures/dtd/labels/a.txt",
              "ninco/classes/amphiuma_means/1.png", "imagenet-o/n01443537/1.png"]  # fmt: skip
    for k, place in enumerate(places):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / place, "PNG")
    said = []
    study = SimpleNamespace(parameters={"seed": 0}, images=SimpleNamespace(name="pets"), names=("goldfish", "dog"))
    study.say = lambda text, **words: said.append(text.format(**words))
    sets = ood.outside_sets(study, ["sun", "textures", "ninco", "imagenet-o", "places"], 10)
    classes = {"sun": ("sun",), "textures": ("banded",), "ninco": ("amphiuma means",)}
    assert {name: images.class_names for name, images in sets.items()} == {
        **classes, "imagenet-o": ("taken for goldfish",)
    }  # fmt: skip
    assert len(sets["sun"]) == 2 and said == ["places is not here, and left out."]


def test_a_comparison_is_of_one_set_at_a_time():
    ids = [str(k) for k in range(60)]
    base = pd.DataFrame({"sample_id": ids, "value": np.arange(60.0), "model": "m", "outside": "x", "set": "noise"})
    sides = {"a": 10, "b": 30}
    inside = [base.assign(score=s, set="inside", value=base.value + up) for s, up in sides.items()]
    rows = pd.concat([*inside, *(base.assign(score=s) for s in sides)])
    table = ood.compared(rows, "score", "a")
    assert table.verdict.tolist() == ["more"] and table.n.tolist() == [120]
    assert "b: higher on noise" in ood.compared_in_words(table, "score", "a")
    assert "nothing to compare" in ood.compared_in_words(ood.compared(rows, "score", "c"), "score", "c")


def test_shifts_that_raise_false_alarms_are_told_all_at_once():
    ways = {"far": 0.5, "near": 0.929, "on_it": 0.95}
    found = [
        {"set": s, "what": "all", **vars(scores.Estimate(v, v - 0.02, v + 0.02, "95 %", 9))} for s, v in ways.items()
    ]
    said = ood.alarms_in_words(pd.DataFrame(found))
    assert "fewer pass under far (50.0 % [48.0, 52.0]); not decided for near (92.9 % [90.9, 94.9]), on it" in said
    assert "fewer pass under near" in ood.alarms_in_words(pd.DataFrame(found[1:2]))
    assert "no shift" in ood.alarms_in_words(pd.DataFrame({"set": [], "what": []}))
