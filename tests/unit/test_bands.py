"""Frequency bands: filters and noise in closed form, and an attack on an encoder whose gradient is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import grey_images, linear_head, linear_model, texts_apart
from torch.nn import functional as F

from zsr_utils import conditions
from zsr_utils.conditions import Batch, Head, at_rms, band_mask, energy_outside, high_pass, low_pass, project
from zsr_utils.conditions._bands import Band
from zsr_utils.measure import Pixels, measure


@pytest.fixture
def net():
    return linear_model()


@pytest.fixture
def images():
    return grey_images()


@pytest.fixture
def texts(net, images):
    return texts_apart(net, images)


def batch_of(net, images, weights) -> Batch:
    head = Head(weights, tuple("abcdefgh"[: len(weights)]))
    ids, labels = [f"s{i}" for i in range(len(images))], torch.zeros(len(images), dtype=torch.long)
    return Batch(net, head, ids, labels, head.see(net, images))


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
def test_noise_has_its_rms_and_stays_in_its_band(net, images, texts, band):
    batch = batch_of(net, images, texts)
    (condition,) = conditions.band_noise([3], [band])
    noise = condition.change(batch) - images
    rms = 255 * noise.double().square().mean((1, 2, 3)).sqrt()
    assert (abs(rms / 3 - 1) < 1e-5).all()
    power = torch.fft.fft2(noise.double()).abs().square()
    outside = power[..., ~band_mask(8, 8, band)].sum((1, 2)) / power.sum((1, 2, 3))
    assert outside.max() < 1e-6
    np.testing.assert_allclose(energy_outside(noise, band), outside, atol=1e-12)


def test_one_draw_is_one_noise_in_every_band_and_size(net, images, texts):
    batch = batch_of(net, images, texts)
    low, high, whole = (c.change(batch) - images for c in conditions.band_noise([3]))
    assert (abs(F.cosine_similarity(low.flatten(1), high.flatten(1))) < 1e-4).all()
    for part, band in ((low, "low"), (high, "high")):
        torch.testing.assert_close(at_rms(project(whole, band), 3 / 255), part, atol=1e-6, rtol=0)
    weak, strong = (c.change(batch) - images for c in conditions.band_noise([1, 2], ["low"]))
    torch.testing.assert_close(2 * weak, strong, atol=1e-6, rtol=0)
    torch.testing.assert_close(at_rms(batch.noise, 3 / 255), whole, atol=1e-6, rtol=0)
    other = conditions.band_noise([1], ["low"])[0].change(replace(batch, draw=1)) - images
    assert abs(F.cosine_similarity(other.flatten(1), weak.flatten(1))).max() < 0.5


def test_energy_outside_splits_a_change_by_its_squares():
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    low, high = (at_rms(project(noise, band), rms) for band, rms in (("low", 1), ("high", 2)))
    shares = [energy_outside(low + high, band).item() for band in conditions.BANDS]
    assert shares == pytest.approx([0.8, 0.2, 0], abs=1e-5)
    assert energy_outside(torch.zeros(1, 3, 8, 8), "low").isnan().all()


def test_small_noise_drifts_as_the_projected_jacobian_says(net, images, texts):
    """E drift = rms^2 P / m ||(I - u u^T) A p||^2 / (2 ||f||^2): p is the projection on a band of m dimensions."""
    rms, draws = 0.25, 200
    memory = Pixels([f"s{i}" for i in range(6)], np.zeros(6, dtype=int), images)
    rows = measure(net, memory, Head(texts, tuple("abcd")), conditions.band_noise([rms]), draws=draws)
    f, a = net.encode_image(images).double(), net.net.matrix.double()
    for band in ("low", "high", "all"):
        shown = project(a.view(5, 3, 8, 8), band).flatten(1)
        along = (F.normalize(f) @ shown).square().sum(1)
        size = 3 * int(band_mask(8, 8, band).sum())
        expected = (rms / 255) ** 2 * 192 / size * (shown.square().sum() - along) / (2 * f.square().sum(1))
        drift = rows[rows.condition == f"noise_{band}"].groupby("sample_id").drift.mean()
        assert (abs(drift / expected.numpy() - 1) < 4 * (2 / (4 * draws)) ** 0.5).all()


def raw_logits(net):
    """Logits without the normalisation: their gradient is one matrix everywhere."""
    net.logits_of = lambda features, classifier: features @ classifier.T


def descent(net, images, weights, band, rms, steps=10):
    """The change that an attack finds, before clipping; rms in [0, 1] pixels."""
    return Band(band, 255 * rms, steps)._descent(batch_of(net, images, weights))


@pytest.mark.parametrize("band", ["low", "high", "all"])
def test_the_attack_goes_straight_down_the_margin_of_a_linear_model(net, images, band):
    raw_logits(net)
    weights = torch.eye(5)[:2]
    base = net.logits(images, weights).argmax(1)
    w = (net.net.matrix[base] - net.net.matrix[1 - base]).view(6, 3, 8, 8)
    expected = -0.02 * 192**0.5 * F.normalize(project(w, band).flatten(1)).view_as(w)
    torch.testing.assert_close(descent(net, images, weights, band, 0.02), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("certainty", [1, 300])
def test_steps_follow_the_log_probability_however_certain_the_model_is(net, images, texts, certainty):
    sharp = certainty * texts
    raw_logits(net)
    logits = net.logits(images, sharp)
    base = logits.argmax(1)
    delta = descent(net, images, sharp, "all", 1e-4, 1)
    # d log p / d logits is (1 - p) times: 1 for the answer, and less the others' shares of 1 - p
    shares = logits.double().scatter(1, base[:, None], -torch.inf).softmax(1)
    up = (texts[base].double() - shares @ texts.double()) @ net.net.matrix.double()
    assert (1 - F.cosine_similarity(delta.flatten(1).double(), -up)).max() < 1e-6
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
    weights = torch.eye(5)[:2]
    for image, inwards in ((torch.zeros_like(images), 1), (torch.ones_like(images), -1)):
        base = net.logits(image, weights).argmax(1)
        down = net.net.matrix[1 - base] - net.net.matrix[base]
        expected = 0.01 * 192**0.5 * F.normalize(inwards * (inwards * down).clamp_min(0))
        delta = descent(net, image, weights, "all", 0.01, 1)
        torch.testing.assert_close(delta.flatten(1), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("band", ["low", "high", "all"])
@pytest.mark.parametrize(("rms", "least"), [(0.001, 0.999), (0.05, 0.999), (0.4, 0.5)])
def test_the_change_stays_in_its_ball_and_its_band(net, images, texts, band, rms, least):
    sources = torch.cat([images[:3], images[3:].round()])  # the latter are clipped in every forward pass
    delta = descent(net, sources, texts, band, rms)
    reached = delta.double().square().mean((1, 2, 3)).sqrt()
    assert (reached <= rms * (1 + 1e-5)).all() and (reached[:3] >= rms * least).all()
    assert energy_outside(delta, band).max() < 1e-6


def test_the_attack_beats_noise_and_is_what_an_8_bit_file_keeps(net, images, texts):
    memory = Pixels([f"s{i}" for i in range(6)], np.zeros(6, dtype=int), images)
    shown = [*conditions.band_noise([8]), *conditions.band_attacks([8])]
    rows = measure(net, memory, Head(texts, tuple("abcd")), shown, draws=20)
    lost = rows.groupby("condition").clean_margin.mean()
    for band in conditions.BANDS:
        assert lost[f"attack_{band}"] < lost[f"noise_{band}"]
    assert lost["attack_all"] < min(lost["attack_low"], lost["attack_high"])  # the whole spectrum is the larger set
    final = conditions.band_attacks([8], ["low"])[0].change(batch_of(net, images, texts))
    torch.testing.assert_close(final * 255, (final * 255).round(), atol=1e-4, rtol=0)
    # rounding is white: a twelfth of a squared grey level, of which a band keeps its share of frequencies
    low = rows[rows.condition == "attack_low"]
    np.testing.assert_allclose(low.outside, 55 / 64 / 12 / low.rms**2, rtol=0.35)


def test_a_gradient_that_is_not_finite_names_its_image(net, images, texts):
    batch = batch_of(net, images, texts)
    original = net.net.encode_image
    net.net.encode_image = lambda x: original(x) * (torch.nan if torch.is_grad_enabled() else 1.0)
    with pytest.raises(FloatingPointError, match="The gradient of 's0' is not finite at step 0"):
        conditions.band_attacks([2], ["all"])[0].change(batch)


@pytest.mark.parametrize("band", ["low", "high", "all"])
def test_the_attack_on_a_trained_head_takes_its_weights_down_the_margin(net, images, texts, band):
    """Of two classes the log-odds are the margin, w f(x) + b: linear, so all steps go one way."""
    head = linear_head(net, images, texts)
    weights = head.classifier("ab")
    base = head.logits(images, weights).argmax(1)
    rows = weights[base, :-1] - weights[1 - base, :-1]
    down = project((rows @ net.net.matrix).view(6, 3, 8, 8), band)
    expected = -0.02 * 192**0.5 * F.normalize(down.flatten(1)).view_as(down)
    torch.testing.assert_close(descent(head, images, weights, band, 0.02), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: conditions.band_noise([-1]), "rms is -1, allowed is 0 or more, in grey levels"),
        (lambda: conditions.band_attacks([float("nan")]), "rms is nan, allowed is 0 or more"),
        (lambda: conditions.band_noise([1], ["middle"]), "band is 'middle', allowed are 'low', 'high', 'all'"),
        (lambda: conditions.band_attacks([1], steps=0), "steps is 0, allowed is 1 or more"),
        (lambda: conditions.filters([0.5, -0.1]), "cutoff is -0.1, allowed is 0 to 1"),
        (lambda: low_pass(grey_images(), 1.4), "cutoff is 1.4, allowed is 0 to 1"),
        (lambda: high_pass(grey_images(), 1.4), "cutoff is 1.4, allowed is 0 to 1"),
        (lambda: project(grey_images(), "low", 1.4), "cutoff is 1.4, allowed is 0 to 1"),
        (lambda: band_mask(8, 8, "high", 1.0), "cutoff is 1.0, allowed is a lower one: band 'high' of 8 x 8"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_gaussian_noise_has_the_standard_deviation_it_says(net, images, texts):
    """The change is sigma times unit noise, in grey levels of 1/255; unit noise has a standard deviation of 1."""
    batch = batch_of(net, images, texts)
    (condition,) = conditions.gaussian_noise([8])
    torch.testing.assert_close(condition.change(batch) - images, 8 / 255 * batch.noise, atol=1e-6, rtol=0)
    many = conditions.unit_noise((3, 16, 16), map(str, range(1000)), (0, 0))
    assert float(many.double().square().mean()) == pytest.approx(1, abs=4 * (2 / many.numel()) ** 0.5)
