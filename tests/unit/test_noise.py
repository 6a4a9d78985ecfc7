"""Noise on an encoder whose answers are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import grey_images, linear_head, linear_model, texts_apart
from torch.nn import functional as F

from zsr_utils import scores
from zsr_utils.experiments import noise


@pytest.fixture
def net():
    return linear_model()


@pytest.fixture
def images():
    return grey_images()


@pytest.fixture
def texts(net, images):
    return texts_apart(net, images)


@pytest.fixture
def head(net, images, texts):
    return linear_head(net, images, texts, scale=3)


@pytest.fixture
def seen(net):
    """What the encoder was shown, one entry a forward pass."""
    shown, original = [], net.net.encode_image
    net.net.encode_image = lambda x: shown.append(x.clone()) or original(x)
    return shown


def test_small_drift_is_its_closed_form(net, images, texts):
    sigma, draws = 1e-3, 1200
    found = noise.response(net, images, texts, sigmas=[sigma], draws=draws)
    f, a = net.encode_image(images).double(), net.net.matrix.double()
    along = (F.normalize(f) @ a).square().sum(1)
    expected = sigma**2 * (a.square().sum() - along) / (2 * f.square().sum(1))
    ratio = found.drift.to_numpy() / expected.numpy()
    error = (2 / (4 * draws)) ** 0.5  # four directions across f
    assert (abs(ratio - 1) < 4 * error).all() and abs(ratio.mean() - 1) < 4 * error / 6**0.5


def test_a_huge_noise_forgets_the_image(net, images, texts):
    """Every pixel ends black or white by a coin: the drift is that of coin images."""
    found = noise.response(net, images, texts, sigmas=[1e6], draws=400)
    coins = torch.randint(0, 2, (4000, 3, 8, 8), generator=torch.Generator().manual_seed(7)).float()
    cosines = F.normalize(net.encode_image(images)) @ F.normalize(net.encode_image(coins)).T
    error = cosines.std(1).numpy() / 400**0.5
    assert (abs(found.drift - (1 - cosines.mean(1).numpy())) < 4 * error).all()


def test_columns_and_answers(net, images, texts):
    found = noise.response(net, images, texts, sigmas=[1e-6, 0.2], draws=40)
    assert found.columns.tolist() == [
        "row", "sigma", "conversion", "drift", "consistency", "prediction", "noisy_prediction",
    ]  # fmt: skip
    assert found.row.tolist() == [*range(6)] * 2 and found.sigma.tolist() == [1e-6] * 6 + [0.2] * 6
    tiny, large = found[:6], found[6:]
    expected = (F.normalize(net.encode_image(images)) @ texts.T).argmax(1).tolist()
    assert tiny.prediction.tolist() == large.prediction.tolist() == expected == tiny.noisy_prediction.tolist()
    assert (tiny.consistency == 1).all() and large.consistency.mean() < 1


def test_consistency_and_smoothed_answer_are_those_of_the_noisy_copies(net, images, texts, seen):
    found = noise.response(net, images, texts, sigmas=[0.2], draws=25).reset_index()
    unit = F.normalize(net.encode_image(seen[1]))
    answers = (unit @ texts.T).argmax(1).view(6, 25)
    consistency = (answers == torch.tensor(found.prediction)[:, None]).double().mean(1)
    assert found.consistency.tolist() == pytest.approx(consistency.tolist()) and 0 < consistency.mean() < 1
    smoothed = (unit.view(6, 25, -1).mean(1) @ texts.T).argmax(1)
    assert found.noisy_prediction.tolist() == smoothed.tolist() and len(set(smoothed.tolist())) > 1


def test_a_trained_head_answers_for_every_copy_and_for_the_mean_of_its_logits(head, images):
    shown, original = [], head.net.encode_image
    head.net.encode_image = lambda x: shown.append(x.clone()) or original(x)
    classifier = head.classifier("abcd")
    found = noise.response(head, images, classifier, sigmas=[0.2], draws=25)
    assert found.prediction.tolist() == head.logits(images, classifier).argmax(1).tolist()
    features = original(shown[1])
    logits = head.logits_of(features, classifier)
    same = logits.argmax(1).view(6, 25) == torch.tensor(found.prediction.to_numpy())[:, None]
    assert found.consistency.tolist() == pytest.approx(same.double().mean(1).tolist()) and 0 < same.double().mean() < 1
    smoothed = logits.view(6, 25, 4).mean(1).argmax(1).tolist()
    assert found.noisy_prediction.tolist() == smoothed and len(set(smoothed)) > 1
    unit = F.normalize(features).view(6, 25, -1).mean(1)  # right for cosines only
    assert head.logits_of(unit, classifier).argmax(1).tolist() != smoothed
    with pytest.raises(ValueError, match=r"classifier has shape \(4, 5\), allowed is \(K, 6\) with K at least 2"):
        noise.response(head, images, classifier[:, :-1], sigmas=[0.2])


def test_batch_size_and_order_of_sigmas_change_nothing(net, images, texts):
    whole = noise.response(net, images, texts, sigmas=[0.01, 0.1], draws=5)
    small = noise.response(net, images, texts, sigmas=[0.1, 0.01], draws=5, batch_size=4)
    small = small.sort_values(["sigma", "row"], ignore_index=True)
    pd.testing.assert_frame_equal(whole, small, rtol=1e-5)


def test_every_condition_meets_the_same_noise(net, images, texts, seen):
    noise.response(net, images, texts, sigmas=[0.01, 0.02], draws=4)
    (_, first, second), unit = seen, (seen[1] - images.repeat_interleave(4, 0)) / 0.01
    torch.testing.assert_close(second, images.repeat_interleave(4, 0) + 0.02 * unit, atol=1e-6, rtol=0)
    assert abs(unit.std() - 1) < 0.03 and abs(torch.corrcoef(unit.flatten(1)).triu(1)).max() < 0.35
    for conversion in ("round", "truncate"):
        seen.clear()
        noise.response(net, images, texts, sigmas=[0.01], draws=4, conversion=conversion)
        assert torch.equal(seen[1], noise.CONVERSIONS[conversion](first))
    seen.clear()
    noise.response(net, images, texts, sigmas=[0.01], draws=2, batch_size=5)  # the first draws of four
    assert torch.equal(torch.cat(seen[2:]).view(6, 2, -1), first.view(6, 4, -1)[:, :2])


def test_another_seed_is_other_noise(net, images, texts):
    one, two = (noise.response(net, images, texts, sigmas=[0.01], draws=3, seed=s).drift for s in (0, 1))
    assert (one != two).all()


@pytest.mark.parametrize("sigma", [1e-6, 1e-5, 1e-4])
def test_truncation_makes_a_fixed_dither_of_any_tiny_noise(net, images, texts, seen, sigma):
    """Trap 1: about half of all pixels fall by exactly one grey level; rounding gives the image back."""
    rounded = noise.response(net, images, texts, sigmas=[sigma], draws=16, conversion="round")
    assert (rounded.drift == 0).all()
    seen.clear()
    truncated = noise.response(net, images, texts, sigmas=[sigma], draws=16, conversion="truncate")
    assert torch.equal(seen[0], images)  # on whole grey levels: truncation alone changes nothing
    levels = ((images.repeat_interleave(16, 0) - seen[1]) * 255).round().int()
    assert set(levels.unique().tolist()) == {0, 1}
    assert 0.46 < levels.float().mean() < 0.51
    kept = noise.response(net, images, texts, sigmas=[sigma], draws=16)
    assert (truncated.drift > 100 * kept.drift).all()


def test_a_linear_encoder_makes_the_predicted_normal_cloud(net, images):
    sigma = 4 / 255
    cloud = noise.samples(net, images[0], sigma=sigma, draws=2000).numpy()
    assert cloud.shape == (2000, 5)
    predicted = sigma**2 * (net.net.matrix @ net.net.matrix.T).double().numpy()
    found = scores.covariance_agreement(cloud, predicted)
    assert found["trace_ratio"].low < 1 < found["trace_ratio"].high
    assert found["frobenius"].value < found["frobenius_by_sampling"].high < 0.1
    z = (cloud.mean(0) - net.encode_image(images[:1])[0].numpy()) / np.sqrt(np.diag(predicted) / 2000)
    assert abs(z).max() < 3.5
    assert (scores.normality(cloud, np.eye(5)).p_holm > 0.05).all()


def test_samples_are_the_noise_of_the_first_image_and_clipped(net, images, texts, seen):
    cloud = noise.samples(net, images[0], sigma=0.4, draws=7, batch_size=3)
    again = torch.cat(seen)
    assert [len(s) for s in seen] == [3, 3, 1] and again.min() == 0 and again.max() == 1
    torch.testing.assert_close(cloud, net.encode_image(again))
    seen.clear()
    noise.response(net, images, texts, sigmas=[0.4], draws=7)
    assert torch.equal(seen[1][:7], again)


@pytest.mark.parametrize("levels", [1, 4, 40])
def test_the_random_control_moves_as_far_in_another_direction(images, levels):
    generator = torch.Generator().manual_seed(4)
    sources = torch.cat([images, images.round()])  # mid-grey, and black and white where clipping costs length
    change = torch.randint(-levels, levels + 1, sources.shape, generator=generator) / 255
    aligned = (sources + change).clamp(0, 1)
    control = noise.random_control(sources, aligned)
    wanted, got = ((x - sources).flatten(1) for x in (aligned, control))
    assert (abs(got.norm(dim=1) / wanted.norm(dim=1) - 1) < 0.02).all()
    torch.testing.assert_close(control * 255, (control * 255).round(), atol=1e-4, rtol=0)
    assert control.min() >= 0 and control.max() <= 1
    assert abs(F.cosine_similarity(got[:6], wanted[:6])).max() < 4 / 192**0.5
    assert torch.equal(control, noise.random_control(sources, aligned))
    assert not torch.equal(control, noise.random_control(sources, aligned, seed=1))


def test_the_random_control_of_an_image_that_did_not_move_is_itself(images):
    assert torch.equal(noise.random_control(images, images), images)


def test_the_random_control_is_not_the_noise_of_response(net, images, texts, seen):
    control = noise.random_control(images, (images + 8 / 255).clamp(0, 1))
    noise.response(net, images, texts, sigmas=[0.01], draws=3)
    added = (seen[1].view(6, 3, -1) - images.flatten(1)[:, None]).flatten(0, 1)
    moved = (control - images).flatten(1).repeat_interleave(3, 0)
    assert abs(F.cosine_similarity(added, moved)).max() < 4 / 192**0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sigmas": [0.1, 0.0]}, "sigma is 0.0, allowed is above 0"),
        ({"sigmas": [float("nan")]}, "sigma is nan, allowed is above 0"),
        ({"sigmas": []}, "sigmas is empty"),
        ({"draws": 0}, "draws is 0, allowed is 1 or more"),
        ({"batch_size": 0}, "batch_size is 0, allowed is 1 or more"),
        ({"conversion": "floor"}, "conversion is 'floor', allowed are 'float', 'round', 'truncate'"),
        ({"classifier": torch.ones(4, 3)}, r"classifier has shape \(4, 3\), allowed is \(K, 5\) with K at least 2"),
        ({"pixels": torch.ones(3, 8, 8)}, r"images have shape \(3, 8, 8\), allowed is \(N, 3, H, W\)"),
        ({"pixels": torch.ones(0, 3, 8, 8)}, r"images have shape \(0, 3, 8, 8\)"),
    ],
)
def test_bad_input_gets_one_clear_sentence(net, images, texts, changes, words):
    arguments = {"pixels": images, "classifier": texts, "sigmas": [0.1]} | changes
    with pytest.raises(ValueError, match=words):
        noise.response(net, **arguments)


def test_bad_input_of_samples_and_control(net, images):
    with pytest.raises(ValueError, match="sigma is -1, allowed is above 0"):
        noise.samples(net, images[0], sigma=-1, draws=3)
    with pytest.raises(ValueError, match="draws is 0"):
        noise.samples(net, images[0], sigma=1, draws=0)
    with pytest.raises(ValueError, match=r"images have shape \(1, 6, 3, 8, 8\)"):
        noise.samples(net, images, sigma=1, draws=1)
    with pytest.raises(ValueError, match=r"aligned has shape \(5, 3, 8, 8\), allowed is \(6, 3, 8, 8\)"):
        noise.random_control(images, images[:5])
    with pytest.raises(ValueError, match=r"aligned image 1 differs by 255 grey levels \(RMS\)"):
        black = torch.zeros(2, 3, 8, 8)
        noise.random_control(black, torch.stack([black[0], black[0] + 1]))


def test_detect_asks_every_kind_at_every_sigma():
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {"kind": kind, "sigma": sigma, "drift": rng.normal(shift * (sigma > 1), 1, 200), "consistency": 1.0}
        )
        for kind, shift in (("clean", 0), ("held out", 0), ("far", 3), ("same", 0))
        for sigma in (1, 2)
    ]
    rows = pd.concat(parts, ignore_index=True)
    found = noise.detect(rows, ["far", "same"], resamples=100).set_index(["kind", "sigma", "statistic", "quantity"])
    assert len(found) == 2 * 2 * 2 * 3
    assert found.value["far", 2, "drift", "auroc"] == pytest.approx(0.983, abs=0.01)  # Phi(3 / sqrt 2)
    assert found.low["far", 1, "drift", "auroc"] < 0.5 < found.high["far", 1, "drift", "auroc"]
    assert found.value["far", 2, "answer", "auroc"] == 0.5
    with pytest.raises(ValueError, match="kind is 'near', allowed are"):
        noise.detect(rows, ["near"])
