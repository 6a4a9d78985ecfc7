"""Out-of-distribution scores and their numbers: closed forms, conventions, and sets that stand outside."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import tiny_model

from zsr_utils import datasets, scores
from zsr_utils.conditions import Batch, Head, Seen
from zsr_utils.experiments import out_of_distribution as ood


RNG = np.random.default_rng(0)
INSIDE, OUTSIDE = RNG.normal(1, 1, 300).round(1), RNG.normal(0, 1.5, 200).round(1)  # with ties


def test_inside_is_positive_as_in_ninco_and_ties_count_half():
    found = scores.separation(INSIDE, OUTSIDE, resamples=2)
    truth = np.repeat([1, 0], [300, 200])
    assert found["auroc"].value == pytest.approx(roc_auc_score(truth, np.concatenate([INSIDE, OUTSIDE])))
    threshold = np.quantile(INSIDE, 0.05)
    assert found["fpr95"].value == (threshold <= OUTSIDE).mean()  # NINCO's formula
    turned = scores.separation(-OUTSIDE, -INSIDE, resamples=2)  # outside as positive, as in pytorch-ood
    assert turned["auroc"].value == pytest.approx(found["auroc"].value)
    assert turned["fpr95"].value == (np.quantile(OUTSIDE, 0.95) >= INSIDE).mean() != found["fpr95"].value


def test_a_mean_over_classes_weighs_a_class_of_one_image_as_any_other():
    classes = np.array(["few"] + ["many"] * 9)
    found = scores.separation(np.arange(1.0, 101), np.array([1000.0] + [0.0] * 9), classes, resamples=20)
    assert {k: e.value for k, e in found.items()} == {"auroc": 0.9, "auroc_mean": 0.5, "fpr95": 0.1, "fpr95_mean": 0.5}


def test_intervals_have_width_at_an_end_and_classes_are_a_sample_of_classes():
    far = scores.separation(INSIDE + 100, OUTSIDE)
    assert far["auroc"].value == 1 and far["auroc"].low == pytest.approx(scores.wilson(1, 200)[0])
    flat = scores.separation(np.ones(30), np.ones(20))
    assert flat["auroc"].value == 0.5 and flat["auroc"].low < 0.4 and flat["fpr95"].value == 1
    missing = scores.separation(np.ones(3), np.full(3, np.nan))
    assert np.isnan(missing["auroc"].value)
    classes = np.repeat(np.arange(8), 25)
    apart = OUTSIDE + 3 * classes  # classes differ much
    images, whole = (scores.separation(INSIDE, apart, classes, draw=d)["auroc"] for d in ("images", "classes"))
    assert whole.value == images.value and whole.high - whole.low > 3 * (images.high - images.low)
    assert np.isnan(scores.separation(INSIDE, OUTSIDE, classes % 5, draw="classes")["auroc"].low)


def test_aurocs_are_compared_as_by_delong():
    other = INSIDE + RNG.normal(0, 1, 300), OUTSIDE + RNG.normal(0, 1, 200)
    parts, variance = [], []
    for inside, outside in ((INSIDE, OUTSIDE), other):
        wins = (inside[:, None] > outside) + (inside[:, None] == outside) / 2
        parts.append(scores.auroc_parts(pd.Series(inside), pd.Series(outside)).to_numpy())
        assert parts[-1].mean() == pytest.approx(wins.mean())
        variance.append((wins.mean(1), wins.mean(0)))
    delong = sum(np.var(a - b, ddof=1) / len(a) for a, b in zip(*variance))
    difference = scores.paired_mean(parts[0] - parts[1])
    assert (difference.high - difference.low) / 3.93 == pytest.approx(np.sqrt(delong), rel=0.03)
    drawn = scores.separation(INSIDE, OUTSIDE)["auroc"]
    own = sum(np.var(v, ddof=1) / len(v) for v in variance[0])
    assert (drawn.high - drawn.low) / 3.92 == pytest.approx(np.sqrt(own), rel=0.1)


def facts_of(features: torch.Tensor, weights: torch.Tensor, **options) -> dict:
    net, head = tiny_model(), Head(weights, tuple("abc"))
    seen = Seen(torch.zeros(len(features), 3, 8, 8), features, head.scores(net, features))
    batch = Batch(net, head, [str(k) for k in range(len(features))], torch.zeros(len(features)).long(), seen)
    return ood.Scores(**options)(batch, seen)


def test_scores_are_their_formulas_and_none_ties_near_one():
    weights = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double()
    found = facts_of(features, weights[:3], negatives=weights[3:], temperatures=(2.0,), outside={"4": "owl"})
    cosines = torch.nn.functional.normalize(features) @ weights.T.double()
    scale = float(np.exp(3))
    expected = {"mcm": cosines[:, :3].softmax(1).amax(1), "msp": (scale * cosines[:, :3]).softmax(1).amax(1)}
    expected |= {"softmax_2": (scale / 2 * cosines[:, :3]).softmax(1).amax(1)}
    expected |= {"negative_words": (scale * cosines).softmax(1)[:, :3].sum(1)}
    for name, probability in expected.items():
        np.testing.assert_allclose(1 / (1 + np.exp(-found[name])), probability, rtol=1e-4)
    np.testing.assert_allclose(found["energy"], (scale * cosines[:, :3]).exp().sum(1).log(), rtol=1e-5)
    np.testing.assert_allclose(found["max_dot"], (features @ weights[:3].T.double()).amax(1), rtol=1e-6)
    assert found["outside"].tolist() == ["", "", "", "", "owl", ""]
    sure = torch.tensor([[50.0, 0, 0], [60.0, 0, 0]]).double()
    assert (sure.softmax(1).amax(1) == 1).all() and ood.odds(sure)[0] < ood.odds(sure)[1]


def test_a_set_that_shows_an_answer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"pets shows 'Dog', allowed are classes outside of the 2 answers"):
        ood.refuse_inside("pets", ["cat", "Dog"], ["dog", "car"])


def test_pictures_outside_show_no_kind_of_the_list(module_cache):
    sets = datasets.tabletop_outside(16, 0)
    known = set(datasets.load_dataset("tabletop").class_names)
    assert {name: len(images) for name, images in sets.items()} == dict.fromkeys(sets, 16)
    assert not known & {c for images in sets.values() for c in images.class_names}
    again = datasets.tabletop_outside(8, 0)["textures"]
    assert again.samples[3].image().tobytes() == sets["textures"].samples[3].image().tobytes()


def test_far_words_are_the_half_that_is_least_like_the_names():
    net = tiny_model()  # texts by the length of their words modulo four
    words = ["1234", "123", "12", "1"]
    far = ood.far_words(net, ["abcd", "efgh"], words, ["{}"])
    torch.testing.assert_close(far, net.classifier(["123", "12"], ["{}"]))  # all three are as far, in their order


def test_a_comparison_is_of_one_set_at_a_time():
    def side(shift, **columns):
        base = pd.DataFrame({"sample_id": [str(k) for k in range(60)], "value": np.arange(60.0) + shift})
        return base.assign(model="m", outside="x", **columns)

    rows = pd.concat([side(10, set="inside", score="a"), side(0, set="noise", score="a"),
                      side(30, set="inside", score="b"), side(0, set="noise", score="b")])  # fmt: skip
    table = ood.compared(rows, "score", "a")
    assert table.verdict.tolist() == ["more"] and table.n.tolist() == [120]
    assert "b: higher on noise" in ood.compared_in_words(table, "score", "a")
    assert "nothing to compare" in ood.compared_in_words(ood.compared(rows, "score", "c"), "score", "c")
