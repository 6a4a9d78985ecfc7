"""Calibration: libraries, closed forms, and what must not be mixed."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special
from torchmetrics.functional.classification import multiclass_calibration_error

from zsr_utils import scores
from zsr_utils.datasets import load_dataset
from zsr_utils.experiments import calibration as cal


RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (400, 5))
LABELS = np.array([RNG.choice(5, p=p) for p in special.softmax(LOGITS, axis=1)])


def ece(confidence, correct, **options) -> float:
    return scores.calibration_error(np.array(confidence), np.array(correct), resamples=2, **options).value


def test_a_confidence_of_one_has_no_bin_of_its_own_and_empty_bins_count_nothing():
    assert ece([0.95, 1.0], [True, False]) == pytest.approx(0.475)
    assert ece([1.0] * 10, [True] * 9 + [False]) == pytest.approx(0.1)
    assert ece([0.55, 0.95], [True, True], bins=10) == pytest.approx(0.25)
    with pytest.raises(ValueError, match=r"A confidence is 1\.5, allowed is 0 to 1"):
        ece([1.5], [True])
    sure = scores.calibration_error(np.ones(40), np.ones(40, bool))
    assert sure.value == sure.low == 0 and sure.high == pytest.approx(1 - scores.wilson(1, 40)[0])


def test_below_one_it_is_torchmetrics_error():
    p = special.softmax(LOGITS, axis=1)
    for bins in (10, 15):
        theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(LABELS), 5, n_bins=bins)
        assert ece(p.max(1), p.argmax(1) == LABELS, bins=bins) == pytest.approx(float(theirs), abs=1e-6)


def test_class_wise_error_is_the_mean_over_names_also_of_one_that_is_never_predicted():
    p, truth = special.softmax(LOGITS - 9 * (np.arange(5) == 2), axis=1), LABELS[:, None] == np.arange(5)
    assert (p.argmax(1) != 2).all()
    single = [ece(p[:, k], truth[:, k]) for k in range(5)]
    assert ece(p, truth) == pytest.approx(np.mean(single)) and min(single) > 0


def test_equal_confidences_share_a_bin_of_equal_mass():
    assert scores.confidence_bins(np.array([0.2, 0.4, 0.6, 1, 1, 1.0]), 3, mass=True).tolist() == [0, 0, 1, 2, 2, 2]
    assert np.bincount(scores.confidence_bins(RNG.random(150), 15, mass=True)).tolist() == [10] * 15


def test_the_debiased_error_of_a_calibrated_model_is_zero_within_its_interval():
    covers, squares, plain = [], [], []
    for _ in range(60):
        confidence = RNG.uniform(0.3, 1, 200)
        right = RNG.random(200) < confidence
        found = scores.calibration_error(confidence, right, debiased=True, resamples=200)
        covers.append(found.low <= 0 <= found.high)
        squares.append(np.sign(found.value) * found.value**2)
        plain.append(ece(confidence, right))
    assert np.mean(covers) >= 0.9
    assert abs(np.mean(squares)) < 3 * np.std(squares) / np.sqrt(60) and min(plain) > 0.02
    over = scores.calibration_error(np.full(500, 0.9), np.arange(500) % 2 == 0, debiased=True)
    assert over.value == pytest.approx(0.4, abs=2e-3) and over.low > 0.3


def test_the_temperature_of_scaled_logits_is_found():
    share = np.arange(1, 10) / 10  # ten images each, of which as many as said are of the first class
    logits = np.repeat(np.stack([np.log(share), np.log(1 - share)], 1), 10, axis=0)
    labels = np.concatenate([np.arange(10) >= round(10 * p) for p in share]).astype(int)
    for factor in (0.2, 1, 2.5, 40):
        assert scores.fit_temperature(factor * logits, labels).value == pytest.approx(factor, rel=1e-3)
    found, rows = scores.fit_temperature(LOGITS, LABELS), RNG.integers(400, size=(100, 400))
    drawn = np.log([scores.fit_temperature(LOGITS[r], LABELS[r]).value for r in rows])
    assert np.log(found.high / found.low) / 3.92 == pytest.approx(drawn.std(), rel=0.25)
    assert np.isnan(scores.fit_temperature(LOGITS, LOGITS.argmax(1)).value)


def test_the_parts_of_a_brier_score_make_it_up():
    p = special.softmax(LOGITS / 0.5, axis=1).max(1)
    right = LOGITS.argmax(1) == LABELS
    parts = {name: e.value for name, e in scores.brier_parts(p, right).items()}
    assert parts["brier"] == pytest.approx(np.square(p - right).mean())
    total = parts["miscalibration"] - parts["discrimination"] + parts["uncertainty"]
    assert parts["brier"] == pytest.approx(total) and parts["uncertainty"] == pytest.approx(right.var())


def test_consistency_bands_hold_a_calibrated_model_and_not_one_too_sure():
    confidence = RNG.uniform(0.3, 1, 4000)
    table = scores.reliability(confidence, RNG.random(4000) < confidence, bins=40)
    assert ((table.low <= table.value) & (table.value <= table.high)).mean() > 0.85
    table = scores.reliability(confidence, RNG.random(4000) < confidence - 0.25)
    assert (table.value < table.low).all()


def test_rows_are_read_as_trained_scaled_and_as_sigmoids_with_cut_logits_left_out():
    shown = {"fit": LOGITS, "clean": 2 * LOGITS, "few": LOGITS[:, :3]}
    frames = [pd.DataFrame({"logits": list(z), "label": LABELS % z.shape[1], "set": s}) for s, z in shown.items()]
    rows, net = pd.concat(frames, ignore_index=True).assign(model="m"), SimpleNamespace(logit_bias=torch.tensor(1.0))
    found = cal.temperatures(rows)
    assert found.value.tolist() == [scores.fit_temperature(LOGITS, LABELS).value]
    read = cal.read(rows, found.assign(value=2.0), {"m": net}).set_index(["set", "reading"])
    np.testing.assert_allclose(read.loc[("clean", cal.SCALED)].confidence, special.softmax(LOGITS, axis=1).max(1))
    few, one, own = special.softmax(LOGITS[:, :3], axis=1), np.eye(3)[LABELS % 3], read.loc[("few", cal.AS_IS)]
    np.testing.assert_allclose(own.confidence, few.max(1))
    np.testing.assert_allclose(own.brier, np.square(few - one).sum(1))
    np.testing.assert_allclose(own.nll, -np.log((few * one).sum(1)))
    np.testing.assert_allclose(read.loc[("few", cal.SIGMOID)].confidence, special.expit(LOGITS[:, :3]).max(1))
    read = cal.read(rows, found.assign(value=np.nan), {"m": SimpleNamespace(logit_bias=0.0)})
    assert set(read.reading) == {cal.AS_IS}


def test_no_image_is_fitted_on_and_evaluated_on():
    images = load_dataset("tabletop", limit=50)
    fit, evaluation = (set(s.sample_id for s in half.samples) for half in cal.halves(images, 333))
    assert len(fit) == len(evaluation) == 25 and not fit & evaluation


def test_who_abstains_keeps_ties():
    rows = pd.DataFrame({"confidence": [0.9, 0.8, 0.8, 0.1], "right": [True, True, False, False]})
    assert [cal.at_coverage(s)(rows).value for s in (0.25, 0.5, 1)] == [1, pytest.approx(2 / 3), 0.5]
    assert cal.at_coverage(0.5)(rows).n == 3
