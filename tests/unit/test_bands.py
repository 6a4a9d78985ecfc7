"""Frequency bands: filters and noise in closed form, and an attack on an encoder whose gradient is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import grey_images, linear_head, linear_model, texts_apart
from torch.nn import functional as F

from zsr_utils import conditions
from zsr_utils.conditions import band_mask, band_noise, energy_outside, high_pass, low_pass, project
from zsr_utils.experiments import bands, noise as gaussian


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
    return linear_head(net, images, texts)


@pytest.fixture
def seen(net):
    """What the encoder was shown, one entry a forward pass."""
    shown, original = [], net.net.encode_image
    net.net.encode_image = lambda x: shown.append(x.detach().clone()) or original(x)
    return shown


@pytest.fixture(params=[(8, 8), (9, 9), (6, 11)])
def pictures(request):
    return torch.rand(4, 3, *request.param, generator=torch.Generator().manual_seed(3))


def test_the_radius_runs_from_the_mean_to_the_corner():
    radius = conditions.radial_frequency(224, 224)
    assert radius[0, 0] == 0 and radius.max() == radius[112, 112] == 1
    assert radius[0, 56].item() == pytest.approx(0.25 / 0.5 / 2**0.5, rel=1e-12)  # 0.25 cycles a pixel
    assert band_mask(224, 224, "low").double().mean() == pytest.approx(np.pi * (0.25 / 2**0.5) ** 2, rel=0.01)
    wide = conditions.radial_frequency(8, 16)
    assert wide[2, 0] == wide[0, 4]  # both a quarter of a cycle a pixel


def test_the_two_bands_share_all_frequencies_between_them():
    for cutoff in (0.0, 0.25, 1 / 3, 0.9):
        low, high, whole = (band_mask(9, 6, band, cutoff) for band in conditions.BANDS)
        assert torch.equal(low ^ high, whole) and whole.all() and low[0, 0]
    assert band_mask(8, 8, "low", 0.25)[1, 1]  # on the cutoff: low


def test_filters_at_their_ends(pictures):
    mean = pictures.mean((2, 3), keepdim=True).expand_as(pictures)
    near = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(low_pass(pictures, 1), pictures, **near)
    torch.testing.assert_close(high_pass(pictures, 0), pictures, **near)
    torch.testing.assert_close(low_pass(pictures, 0), mean, **near)
    torch.testing.assert_close(high_pass(pictures, 1), mean, **near)


@pytest.mark.parametrize("cutoff", [0.2, 0.25, 4 / 9])
def test_low_and_high_make_the_image_again(pictures, cutoff):
    soft = 0.5 + (pictures - 0.5) / 5  # far from black and white: nothing is clipped
    low, high = low_pass(soft, cutoff), high_pass(soft, cutoff)
    mean = soft.mean((2, 3), keepdim=True)
    torch.testing.assert_close(low + high - mean, soft, atol=1e-6, rtol=0)
    assert (low - soft).abs().max() > 0.01 < (high - soft).abs().max()
    assert abs(((low - mean) * (high - mean)).sum((1, 2, 3))).max() < 1e-4
    for name, kept in (("low", low), ("high", high)):
        assert energy_outside(kept - mean, name, cutoff).max() < 1e-10


def test_filters_stay_within_black_and_white(pictures):
    step, spike = torch.zeros_like(pictures), torch.zeros_like(pictures)
    step[..., : step.shape[-1] // 2] = 1
    spike[..., 2, 3] = 1
    wave = project(step, "low")
    assert wave.min() < -0.04 and wave.max() > 1.04
    torch.testing.assert_close(low_pass(step, 0.25), wave.clamp(0, 1), atol=1e-6, rtol=0)
    for image, end in ((spike, 0), (1 - spike, 1)):
        sharp = project(image, "high") + image.mean((2, 3), keepdim=True)
        assert (sharp * (1 - sharp)).min() < -0.05
        found = high_pass(image, 0.25)
        torch.testing.assert_close(found, sharp.clamp(0, 1), atol=1e-6, rtol=0)
        assert (found == end).any()


@pytest.mark.parametrize("band", ["low", "high", "all"])
def test_noise_has_its_rms_and_stays_in_its_band(band):
    noise = band_noise((3, 12, 17), band, 0.03, seeds=range(5))
    assert noise.shape == (5, 3, 12, 17)
    rms = noise.double().square().mean((1, 2, 3)).sqrt()
    assert (abs(rms / 0.03 - 1) < 1e-5).all()
    assert energy_outside(noise, band).max() < 1e-10
    power = torch.fft.fft2(noise.double()).abs().square()
    outside = power[..., ~band_mask(12, 17, band)].sum((1, 2)) / power.sum((1, 2, 3))
    assert outside.max() < 1e-6
    np.testing.assert_allclose(energy_outside(noise, band), outside, atol=1e-12)
    assert band_noise((3, 12, 17), band, 0.0, seeds=[1]).abs().max() == 0


def test_one_seed_is_one_noise_in_every_band_and_batch():
    low, high, whole = (band_noise((3, 9, 9), band, 1, seeds=[3, 4]) for band in conditions.BANDS)
    assert (abs((low * high).sum((1, 2, 3))) < 1e-3).all()  # of 243
    for part, band in ((low, "low"), (high, "high")):
        torch.testing.assert_close(conditions.at_rms(project(whole, band), 1), part, atol=1e-5, rtol=0)
    assert torch.equal(band_noise((3, 9, 9), "low", 1, seeds=[4])[0], low[1])
    assert abs(F.cosine_similarity(whole[0].flatten(), whole[1].flatten(), dim=0)) < 4 / 243**0.5


def test_energy_outside_splits_a_change_by_its_squares():
    low, high = (band_noise((3, 8, 8), band, rms, seeds=[1]) for band, rms in (("low", 1), ("high", 2)))
    found = [energy_outside(low + high, band).item() for band in conditions.BANDS]
    assert found == pytest.approx([0.8, 0.2, 0], abs=1e-5)
    assert energy_outside(torch.zeros(1, 3, 8, 8), "low").isnan().all()


def test_sweep_has_a_row_a_filter_cutoff_and_image(net, images, texts):
    found = bands.sweep(net, images, texts, cutoffs=[0, 0.5, 1], batch_size=4)
    assert found.columns.tolist() == ["row", "filter", "cutoff", "prediction", "clean_prediction", "margin"]
    assert found.row.tolist() == [*range(6)] * 6 and found.index.tolist() == [*range(36)]
    assert found["filter"].tolist() == ["low_pass"] * 18 + ["high_pass"] * 18
    assert found.cutoff.tolist() == ([0.0] * 6 + [0.5] * 6 + [1.0] * 6) * 2
    logits = net.logits(images, texts).double()
    base = logits.argmax(1)
    two = logits.topk(2).values
    assert found.clean_prediction.tolist() == base.tolist() * 6
    whole = found[(found["filter"] == "low_pass") & (found.cutoff == 1)]
    np.testing.assert_allclose(whole.margin, two[:, 0] - two[:, 1], atol=1e-5)
    half = found[(found["filter"] == "high_pass") & (found.cutoff == 0.5)]
    logits = net.logits(high_pass(images, 0.5), texts)
    others = [max(v for k, v in enumerate(row) if k != b) for row, b in zip(logits.tolist(), base.tolist())]
    np.testing.assert_allclose(half.margin, logits[range(6), base] - torch.tensor(others), atol=1e-5)
    assert half.prediction.tolist() == logits.argmax(1).tolist()
    assert ((found.margin < 0) <= (found.prediction != found.clean_prediction)).all()
    assert (found.margin < 0).any()


def test_sweep_takes_the_cutoffs_of_the_paper(net, images, texts):
    found = bands.sweep(net, images, texts)
    assert found.cutoff.unique().tolist() == [i / 9 for i in range(10)]
    small = bands.sweep(net, images, texts, batch_size=4)
    pd.testing.assert_frame_equal(found, small, rtol=1e-5, atol=1e-6)


def test_noise_is_paired_over_bands_and_levels(net, images, texts, seen):
    found = bands.noise(net, images, texts, rms=[0.01, 0.02], draws=3)
    assert found.columns.tolist() == [
        "row", "band", "rms", "draw", "prediction", "clean_prediction", "margin", "drift", "outside",
    ]  # fmt: skip
    assert len(found) == 6 * 3 * 2 * 3 and found.index.is_monotonic_increasing
    assert found.row[:18].tolist() == np.repeat(range(6), 3).tolist() and found.draw[:4].tolist() == [0, 1, 2, 0]
    changes = [x - images.repeat_interleave(3, 0) for x in seen[1:]]
    for weak, strong in zip(changes[::2], changes[1::2]):
        torch.testing.assert_close(2 * weak, strong, atol=1e-6, rtol=0)
        rms = weak.square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(rms, torch.full_like(rms, 0.01), atol=0, rtol=1e-5)
    low, high, whole = changes[::2]
    for part, band in ((low, "low"), (high, "high")):
        torch.testing.assert_close(conditions.at_rms(project(whole, band), 0.01), part, atol=1e-6, rtol=0)
    assert found.outside.max() < 1e-6
    seen.clear()
    gaussian.response(net, images, texts, sigmas=[0.01], draws=3)
    white = conditions.at_rms(seen[1] - images.repeat_interleave(3, 0), 0.01)
    torch.testing.assert_close(whole, white, atol=1e-6, rtol=0)


def test_noise_does_not_depend_on_the_batch(net, images, texts):
    found = bands.noise(net, images, texts, rms=[0.01, 0.1], bands=["high", "low"], draws=4)
    small = bands.noise(net, images, texts, rms=[0.01, 0.1], bands=["high", "low"], draws=4, batch_size=5)
    pd.testing.assert_frame_equal(found, small, rtol=1e-4, atol=1e-6)
    fewer = bands.noise(net, images, texts, rms=[0.1], bands=["low"], draws=2)
    same = found[(found.band == "low") & (found.rms == 0.1) & (found.draw < 2)].reset_index(drop=True)
    pd.testing.assert_frame_equal(fewer, same, rtol=1e-4, atol=1e-6)
    other = bands.noise(net, images, texts, rms=[0.1], bands=["low"], draws=2, seed=1)
    assert (other.drift != fewer.drift).all()


def test_small_noise_drifts_as_the_projected_jacobian_says(net, images, texts):
    """E drift = rms^2 P / m ||(I - u u^T) A p||^2 / (2 ||f||^2): p is the projection on a band of m dimensions."""
    rms, draws = 1e-3, 600
    found = bands.noise(net, images, texts, rms=[rms], draws=draws)
    f, a = net.encode_image(images).double(), net.net.matrix.double()
    for band in ("low", "high", "all"):
        seen = project(a.view(5, 3, 8, 8), band).flatten(1)
        along = (F.normalize(f) @ seen).square().sum(1)
        size = 3 * int(band_mask(8, 8, band).sum())
        expected = rms**2 * 192 / size * (seen.square().sum() - along) / (2 * f.square().sum(1))
        drift = found[found.band == band].groupby("row").drift.mean()
        assert (abs(drift / expected.numpy() - 1) < 4 * (2 / (4 * draws)) ** 0.5).all()


def test_clipping_puts_energy_outside_the_band(net, images, texts):
    sources = torch.cat([images[:2], images[:2].round()])
    found = bands.noise(net, sources, texts, rms=[0.02], bands=["low"], draws=2)
    assert (found.outside[:4] < 1e-6).all() and (found.outside[4:] > 0.05).all()


def test_no_noise_changes_nothing(net, images, texts):
    found = bands.noise(net, images, texts, rms=[0], draws=1, batch_size=4)
    assert (found.drift == 0).all() and (found.prediction == found.clean_prediction).all()
    assert found.outside.isna().all()


def raw_logits(net):
    """Logits without the normalisation: their gradient is one matrix everywhere."""
    net.logits_of = lambda features, classifier: features @ classifier.T


@pytest.mark.parametrize("band", ["low", "high", "all"])
def test_the_attack_goes_straight_down_the_margin_of_a_linear_model(net, images, band):
    raw_logits(net)
    classifier = torch.eye(5)[:2]
    base = net.logits(images, classifier).argmax(1)
    delta = bands._pgd(net, images, classifier, base, band, 0.02, 10, 0.25, torch.arange(6))
    w = (net.net.matrix[base] - net.net.matrix[1 - base]).view(6, 3, 8, 8)
    expected = -0.02 * 192**0.5 * F.normalize(project(w, band).flatten(1)).view_as(w)
    torch.testing.assert_close(delta, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("certainty", [1, 300])
def test_steps_follow_the_log_probability_however_certain_the_model_is(net, images, texts, certainty):
    sharp = certainty * texts
    raw_logits(net)
    logits = net.logits(images, sharp)
    base = logits.argmax(1)
    delta = bands._pgd(net, images, sharp, base, "all", 1e-4, 1, 0.25, torch.arange(6))
    # d log p / d logits is (1 - p) times: 1 for the answer, and less the others' shares of 1 - p
    shares = logits.double().scatter(1, base[:, None], -torch.inf).softmax(1)
    up = (texts[base].double() - shares @ texts.double()) @ net.net.matrix.double()
    cosine = F.cosine_similarity(delta.flatten(1).double(), -up)
    assert (1 - cosine).max() < 1e-6
    pixels = images.clone().requires_grad_(True)
    scores = net.logits(pixels, sharp).log_softmax(1).gather(1, base[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    direct = 1 - F.cosine_similarity(gradient.flatten(1).double(), up)
    if certainty == 1:
        assert direct.max() < 1e-6
    else:
        assert direct.max() > 0.1  # what float32 loses where p is 1


def test_black_and_white_move_only_inwards(net, images):
    raw_logits(net)
    classifier = torch.eye(5)[:2]
    for image, inwards in ((torch.zeros_like(images), 1), (torch.ones_like(images), -1)):
        base = net.logits(image, classifier).argmax(1)
        delta = bands._pgd(net, image, classifier, base, "all", 0.01, 1, 0.25, torch.arange(6))
        down = net.net.matrix[1 - base] - net.net.matrix[base]
        expected = 0.01 * 192**0.5 * F.normalize(inwards * (inwards * down).clamp_min(0))
        torch.testing.assert_close(delta.flatten(1), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("band", ["low", "high", "all"])
@pytest.mark.parametrize(("rms", "least"), [(0.001, 0.999), (0.05, 0.999), (0.4, 0.5)])
def test_the_change_stays_in_its_ball_and_its_band(net, images, texts, band, rms, least):
    sources = torch.cat([images[:3], images[3:].round()])  # the latter are clipped in every forward pass
    base = net.logits(sources, texts).argmax(1)
    delta = bands._pgd(net, sources, texts, base, band, rms, 10, 0.25, torch.arange(6))
    reached = delta.double().square().mean((1, 2, 3)).sqrt()
    assert (reached <= rms * (1 + 1e-5)).all() and (reached[:3] >= rms * least).all()
    assert energy_outside(delta, band).max() < 1e-6


def test_the_attack_finds_more_flips_than_noise_of_the_same_energy(net, images, texts):
    rms = 0.03
    random = bands.noise(net, images, texts, rms=[rms], draws=20)
    random = (random.prediction != random.clean_prediction).groupby(random.band).mean()
    found = bands.attack(net, images, texts, rms=[rms])
    worst = found.groupby("band").success.mean()
    assert (worst > random + 0.2).all()
    drop = found.groupby("band").margin.mean()
    assert drop["all"] < min(drop["low"], drop["high"])  # the whole spectrum is the larger set


def test_attack_rows_are_of_the_image_an_8_bit_file_keeps(net, images, texts, seen):
    found = bands.attack(net, images, texts, rms=[0.01, 0.04], steps=3)
    assert found.columns.tolist() == [
        "row", "band", "rms", "prediction", "clean_prediction", "success", "flip", "margin", "drift", "outside",
        "achieved_rms",
    ]  # fmt: skip
    assert (
        found.row.tolist() == [*range(6)] * 6 and found.band.tolist() == np.repeat(["low", "high", "all"], 12).tolist()
    )
    assert len(seen) == 1 + 6 * (3 + 1)  # clean, and for each band and level three steps and the result
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    final = torch.cat(seen[4::4])
    torch.testing.assert_close(final * 255, (final * 255).round(), atol=1e-4, rtol=0)
    logits = net.logits(final, texts)
    assert found.prediction.tolist() == logits.argmax(1).tolist()
    change = (final - images.repeat(6, 1, 1, 1)).double()
    np.testing.assert_allclose(found.achieved_rms, change.square().mean((1, 2, 3)).sqrt(), rtol=1e-6)
    assert found.flip.tolist() == (found.prediction != found.clean_prediction).tolist()
    base = torch.tensor(found.clean_prediction.to_numpy())[:, None]
    clean_logits = net.logits(images, texts).repeat(6, 1)
    before, after = (x.double().log_softmax(1).gather(1, base)[:, 0] for x in (clean_logits, logits))
    assert found.success.tolist() == (found.flip.to_numpy() & (after < before).numpy()).tolist()
    cosine = F.cosine_similarity(net.encode_image(final).double(), net.encode_image(images).double().repeat(6, 1))
    np.testing.assert_allclose(found.drift, 1 - cosine, rtol=1e-4)
    # rounding is white: a twelfth of a squared grey level, of which a band keeps its share of frequencies
    low = found[(found.band == "low") & (found.rms == 0.04)]
    outside = 55 / 64 / 12 / (low.achieved_rms.to_numpy() * 255) ** 2
    np.testing.assert_allclose(low.outside, outside, rtol=0.35)


def test_a_success_is_a_flip_with_a_lower_score(net, images, texts, monkeypatch):
    """Where both scores rise the answer may flip without the clean one losing: no success."""
    monkeypatch.setattr(bands, "_log_probability", lambda logits, base: torch.arange(6.0))  # of no attack's making
    found = bands.attack(net, images, texts, rms=[0.2], bands=["all"])
    assert found.flip.all() and not found.success.any()


def test_attacks_do_not_depend_on_the_batch_and_take_images_as_saved(net, images, texts):
    found = bands.attack(net, images, texts, rms=[0.02], bands=["high"])
    small = bands.attack(net, images, texts, rms=[0.02], bands=["high"], batch_size=4)
    pd.testing.assert_frame_equal(found, small, rtol=0.02, atol=1e-4)  # a pixel may round to another grey level
    unsaved = bands.attack(net, images + 0.3 / 255, texts, rms=[0], bands=["high"])
    assert (unsaved.achieved_rms == 0).all() and (unsaved.drift == 0).all() and not unsaved.flip.any()


def test_a_gradient_that_is_not_finite_names_its_image(net, images, texts):
    original = net.net.encode_image
    net.net.encode_image = lambda x: original(x) * (torch.nan if torch.is_grad_enabled() else 1.0)
    with pytest.raises(FloatingPointError, match="The gradient of image 0 is not finite at step 0"):
        bands.attack(net, images, texts, rms=[0.01])


def test_a_trained_head_gives_its_own_logits(head, images):
    classifier = head.classifier("abcd")
    logits = head.logits(images, classifier).double()
    two = logits.topk(2)
    assert len(set(two.indices[:, 0].tolist())) > 1
    whole = bands.sweep(head, images, classifier, cutoffs=[1])[:6]
    assert whole.prediction.tolist() == whole.clean_prediction.tolist() == two.indices[:, 0].tolist()
    np.testing.assert_allclose(whole.margin, two.values[:, 0] - two.values[:, 1], atol=1e-5)
    random = bands.noise(head, images, classifier, rms=[0], draws=1)
    assert random.margin[:6].tolist() == pytest.approx(whole.margin.tolist(), abs=1e-6)


@pytest.mark.parametrize("band", ["low", "high", "all"])
def test_the_attack_on_a_trained_head_takes_its_weights_down_the_margin(head, net, images, band):
    """Of two classes the log-odds are the margin, w f(x) + b: linear, so all steps go one way."""
    classifier = head.classifier("ab")
    base = head.logits(images, classifier).argmax(1)
    rows = classifier[base, :-1] - classifier[1 - base, :-1]
    down = project((rows @ net.net.matrix).view(6, 3, 8, 8), band)
    delta = bands._pgd(head, images, classifier, base, band, 0.02, 10, 0.25, torch.arange(6))
    expected = -0.02 * 192**0.5 * F.normalize(down.flatten(1)).view_as(down)
    torch.testing.assert_close(delta, expected, atol=1e-5, rtol=0)
    found = bands.attack(head, images, classifier, rms=[0.02], bands=[band])
    lost = 0.02 * 192**0.5 * down.flatten(1).norm(dim=1)
    clean = head.logits(images, classifier)[range(6), base] - head.logits(images, classifier)[range(6), 1 - base]
    np.testing.assert_allclose(found.margin, clean - lost, atol=0.02)  # less what rounding to grey levels changes


@pytest.mark.parametrize("probe", ["sweep", "noise", "attack"])
def test_a_classifier_of_another_kind_of_model_is_refused(net, head, images, texts, probe):
    options = {} if probe == "sweep" else {"rms": [0.01]}
    for model, rows, width in ((net, head.classifier("abcd"), 5), (head, texts, 6)):
        with pytest.raises(
            ValueError, match=rf"shape \(4, {11 - width}\), allowed is \(K, {width}\) with K at least 2"
        ):
            getattr(bands, probe)(model, images, rows, **options)


SHARED = [
    ({"batch_size": 0}, "batch_size is 0, allowed is 1 or more"),
    ({"pixels": torch.ones(0, 3, 8, 8)}, r"images have shape \(0, 3, 8, 8\)"),
    ({"classifier": torch.ones(4, 3)}, r"classifier has shape \(4, 3\), allowed is \(K, 5\) with K at least 2"),
    ({"classifier": torch.ones(1, 5)}, r"classifier has shape \(1, 5\), allowed is \(K, 5\) with K at least 2"),
]
BANDED = [
    *SHARED,
    ({"rms": []}, "rms is empty, allowed is one value or more"),
    ({"rms": [0.1, -0.1]}, "rms is -0.1, allowed is 0 or more"),
    ({"rms": [float("nan")]}, "rms is nan, allowed is 0 or more"),
    ({"bands": []}, "bands is empty, allowed is one value or more"),
    ({"bands": ["middle"]}, "band is 'middle', allowed are 'low', 'high', 'all'"),
    ({"cutoff": 1.4}, "cutoff is 1.4, allowed is 0 to 1"),
    ({"cutoff": 1.0}, "cutoff is 1.0, allowed is a lower one: band 'high' of 8 x 8 pixels is empty"),
]


@pytest.mark.parametrize(
    ("probe", "changes", "words"),
    [
        *(("sweep", *case) for case in SHARED),
        ("sweep", {"cutoffs": []}, "cutoffs is empty, allowed is one value or more"),
        ("sweep", {"cutoffs": [0.5, -0.1]}, "cutoff is -0.1, allowed is 0 to 1"),
        *(("noise", *case) for case in BANDED),
        ("noise", {"draws": 0}, "draws is 0, allowed is 1 or more"),
        *(("attack", *case) for case in BANDED),
        ("attack", {"steps": 0}, "steps is 0, allowed is 1 or more"),
    ],
)
def test_bad_input_gets_one_clear_sentence(net, images, texts, probe, changes, words):
    arguments = {"pixels": images, "classifier": texts} | ({} if probe == "sweep" else {"rms": [0.01]}) | changes
    with pytest.raises(ValueError, match=words):
        getattr(bands, probe)(net, **arguments)


def test_bad_bands_of_pixels_get_one_clear_sentence(images):
    for call in (low_pass, high_pass, lambda x, cutoff: project(x, "low", cutoff)):
        with pytest.raises(ValueError, match=r"cutoff is 1\.4, allowed is 0 to 1"):
            call(images, 1.4)
    with pytest.raises(ValueError, match="band is 'mid', allowed are 'low', 'high', 'all'"):
        project(images, "mid")
    with pytest.raises(ValueError, match="rms is -1, allowed is 0 or more"):
        band_noise((3, 8, 8), "low", -1, seeds=[0])
