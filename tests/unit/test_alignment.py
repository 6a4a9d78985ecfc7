"""Embedding alignment on an encoder whose answers are known."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import linear_model, tiny_model
from torch.nn import functional as F

from zsr_utils.conditions import _kept, _steps, alignment


@pytest.fixture
def net():
    return linear_model()


@pytest.fixture
def pairs(net):
    generator = torch.Generator().manual_seed(2)
    sources = 0.4 + 0.2 * torch.rand(7, 3, 8, 8, generator=generator)
    others = 0.4 + 0.2 * torch.rand(7, 3, 8, 8, generator=generator)
    return sources, net.encode_image(others)


def match(targets, cosine=0.999, distance=1e-6):
    return alignment.Match(targets, cosine, distance)


def test_gradient_descent_is_the_papers_update(net, pairs):
    sources, targets = pairs
    found = alignment.align(net, sources, match(targets), optimizer="gradient_descent", step=0.1, max_steps=3)
    x = sources.flatten(1)
    for _ in range(3):
        x = (x - 0.1 * (x @ net.net.matrix.T - targets) @ net.net.matrix).clamp(0, 1)
    torch.testing.assert_close(found.pixels.flatten(1), x, atol=1e-6, rtol=1e-5)
    assert found.steps.tolist() == [3] * 7


@pytest.mark.parametrize("optimizer", ["polyak", "gradient_descent"])
def test_every_pair_reaches_the_stop_rule_and_is_where_it_says(net, pairs, optimizer):
    sources, targets = pairs
    found = alignment.align(net, sources, match(targets), optimizer=optimizer, step=0.5, max_steps=3000)
    assert found.reached.all()
    features = net.encode_image(found.pixels)
    distance = (features - targets).square().sum(1)
    assert (distance < 1e-6).all() and found.pixels.min() >= 0 and found.pixels.max() <= 1


@pytest.mark.parametrize("optimizer", ["polyak", "gradient_descent"])
def test_batching_changes_nothing(net, pairs, optimizer):
    arguments = {"optimizer": optimizer, "step": 0.5, "max_steps": 400}
    whole = alignment.align(net, pairs[0], match(pairs[1]), **arguments)
    small = alignment.align(net, pairs[0], match(pairs[1]), batch_size=2, **arguments)
    assert whole.steps.tolist() == small.steps.tolist()
    torch.testing.assert_close(whole.pixels, small.pixels, atol=1e-6, rtol=0)


def test_finished_pairs_leave_the_batch(net, pairs):
    sources, targets = pairs
    targets = targets.clone()
    targets[:4] = net.encode_image(sources[:4])
    sizes = []
    original = net.net.encode_image
    net.net.encode_image = lambda x: sizes.append(len(x)) or original(x)
    found = alignment.align(net, sources, match(targets), max_steps=300)
    assert found.steps[:4].tolist() == [0] * 4 and (found.steps[4:] > 0).all()
    torch.testing.assert_close(found.pixels[:4], sources[:4], atol=0, rtol=0)
    assert sizes[:2] == [7, 3] and sizes == sorted(sizes, reverse=True)


def test_one_forward_pass_a_step_and_no_gradient_for_weights(net, pairs):
    calls = []
    original = net.net.encode_image
    net.net.encode_image = lambda x: calls.append(1) or original(x)
    alignment.align(net, pairs[0], match(pairs[1], distance=1e-30), optimizer="gradient_descent", step=0.1, max_steps=5)
    assert len(calls) == 6  # five steps, and the pass that reads where the last one led
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("eps", [0.0, 0.25 / 255, 2 / 255])
def test_no_pixel_leaves_its_budget(net, pairs, eps):
    found = alignment.align(net, pairs[0], match(pairs[1]), eps=eps, max_steps=20)
    assert (found.pixels - pairs[0]).abs().max() <= eps + 1e-7
    assert eps or torch.equal(found.pixels, pairs[0])


def test_both_halves_of_the_stop_rule_count(net, pairs):
    sources, targets = pairs
    near = alignment.align(net, sources, match(targets, 0.9999, 1e9), max_steps=300)
    cosine = F.cosine_similarity(net.encode_image(near.pixels), targets)
    assert near.reached.all() and (cosine > 0.9999).all() and (near.steps > 0).any()


def test_without_a_distance_the_two_halves_agree_for_equal_lengths(net, pairs):
    targets = F.normalize(pairs[1]) * 3
    goal = alignment.Match(targets, cosine=0.96)
    angle = torch.acos(torch.tensor(0.96))
    across = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))
    across = F.normalize(across - (across * F.normalize(targets)).sum(1, keepdim=True) * F.normalize(targets))
    for factor, expected in ((0.99, True), (1.01, False)):
        turned = 3 * (torch.cos(factor * angle) * F.normalize(targets) + torch.sin(factor * angle) * across)
        assert (goal.reached(turned, torch.arange(7)) == expected).all()


def test_an_answer_is_reached_when_the_model_names_the_target(net, pairs):
    classifier = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(3)))
    before = net.logits(pairs[0], classifier).argmax(1)
    labels = (before + 1) % 4
    found = alignment.align(net, pairs[0], alignment.Answer(net, classifier, labels), step=1.1, eight_bit=True)
    assert found.reached.all() and (net.logits(found.pixels, classifier).argmax(1) == labels).all()
    assert torch.equal(alignment.saved_as_png(found.pixels), found.pixels)


def test_one_polyak_step_closes_the_margin_of_a_linear_model_at_least_change(net):
    """Two classes and unit-length features replaced by raw ones: the step is the projection on the boundary."""
    net.logits_of = lambda features, classifier: features @ classifier.T
    source = torch.full((1, 3, 8, 8), 0.5)
    classifier = torch.eye(5)[:2]
    label = net.logits_of(net.encode_image(source), classifier).argmin(1)
    found = alignment.align(net, source, alignment.Answer(net, classifier, label), max_steps=1)
    w = (classifier[label] - classifier[1 - label]) @ net.net.matrix
    margin = -(w @ source.flatten()).item()
    assert (found.pixels - source).norm().item() == pytest.approx(margin / w.norm().item(), rel=1e-4)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 3 / 255), ("l2", 0.05)])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_pgd_stays_in_its_ball_and_gets_nearer(net, pairs, norm, eps, momentum):
    sources, targets = pairs
    found = alignment.align(
        net, sources, match(targets), optimizer="pgd", eps=eps, norm=norm, momentum=momentum, max_steps=20
    )
    change = (found.pixels - sources).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (size <= eps * (1 + 1e-4)).all() and (size > 0.9 * eps).all()
    before, after = ((net.encode_image(x) - targets).square().sum(1) for x in (sources, found.pixels))
    assert (after < before).all()


@pytest.mark.parametrize(("eps", "levels"), [(0.5 / 255, 0), (1 / 255, 1), (2.9 / 255, 2)])
def test_an_8_bit_ball_holds_whole_grey_levels(net, pairs, eps, levels):
    sources = alignment.saved_as_png(pairs[0])
    found = alignment.align(net, sources, match(pairs[1]), optimizer="pgd", eps=eps, eight_bit=True, max_steps=10)
    change = 255 * (found.pixels - sources)
    torch.testing.assert_close(change, change.round(), atol=1e-3, rtol=0)
    assert change.abs().max().round() == levels


def test_larger_budgets_never_lose_a_success(net, pairs):
    classifier = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(3)))
    labels = (net.logits(pairs[0], classifier).argmax(1) + 1) % 4
    goal = alignment.Answer(net, classifier, labels)
    found = alignment.smallest_budgets(net, pairs[0], goal, [0.01, 0.1, 0.3], max_steps=20)
    shares = [f.reached.float().mean().item() for f in found.values()]
    assert shares == sorted(shares) and shares[0] < shares[1] < shares[2] == 1
    for eps, f in found.items():
        assert (f.pixels - pairs[0]).abs().max() <= eps + 1e-6
    small, large = found[0.1], found[0.3]
    assert torch.equal(small.pixels[small.reached], large.pixels[small.reached])
    with pytest.raises(ValueError, match="allowed are growing numbers"):
        alignment.smallest_budgets(net, pairs[0], goal, [0.1, 0.01])


def test_noise_in_the_loss_averages_its_gradient(net, pairs):
    """For a linear model the loss under noise has the same gradient on average, whatever the noise."""
    sources, targets = pairs
    plain = alignment.align(net, sources, match(targets), optimizer="gradient_descent", step=0.1, max_steps=1)
    noisy = alignment.align(
        net, sources, match(targets), optimizer="gradient_descent", step=0.1, max_steps=1, noise=0.05, draws=4000
    )
    torch.testing.assert_close(noisy.pixels, plain.pixels, atol=5e-4, rtol=0)
    assert not torch.equal(noisy.pixels, plain.pixels)


def test_an_interrupted_run_goes_on_and_a_second_one_computes_nothing(net, pairs, monkeypatch, tmp_path):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    arguments = {"optimizer": "gradient_descent", "step": 0.5, "max_steps": 400, "batch_size": 2, "keep": True}
    monkeypatch.setattr(_kept, "EVERY", 2)
    sizes = []
    original = net.net.encode_image

    def counted(x):
        sizes.append(len(x))
        if broken and len(sizes) > stop_after:
            raise KeyboardInterrupt
        return original(x)

    net.net.encode_image = counted
    broken, stop_after = True, 12
    with pytest.raises(KeyboardInterrupt):
        alignment.align(net, pairs[0], match(pairs[1], distance=1e-3), **arguments)
    broken = False
    sizes.clear()
    found = alignment.align(net, pairs[0], match(pairs[1], distance=1e-3), **arguments)
    resumed = sum(sizes)
    sizes.clear()
    again = alignment.align(net, pairs[0], match(pairs[1], distance=1e-3), **arguments)
    assert not sizes and torch.equal(found.pixels, again.pixels) and torch.equal(found.steps, again.steps)
    alone = alignment.align(net, pairs[0], match(pairs[1], distance=1e-3), **arguments | {"keep": False})
    torch.testing.assert_close(found.pixels, alone.pixels, atol=1e-6, rtol=0)
    assert 0 < resumed < sum(sizes)
    sizes.clear()
    alignment.align(net, pairs[0][:2], match(pairs[1][:2], distance=2e-3), **arguments)
    assert sizes, "another goal is another result"


def test_pairs_are_ordered_and_never_within_a_class():
    rows = pd.DataFrame({"sample_id": [f"s{i}" for i in range(30)], "label": np.repeat([0, 1, 2], 10)})
    pairs = alignment.make_pairs(rows, per_class=4, seed=1)
    assert len(pairs) == 3 * 4 * 2 and (pairs.label != pairs.target_label).all()
    label = rows.set_index("sample_id").label
    assert (label[pairs.sample_id].to_numpy() == pairs.label).all()
    assert (label[pairs.target_id].to_numpy() == pairs.target_label).all()
    assert pairs.groupby("label").sample_id.nunique().tolist() == [4, 4, 4]
    assert pairs.equals(alignment.make_pairs(rows, per_class=4, seed=1))
    with pytest.raises(ValueError, match="per_class is 11, allowed is 1 to 10"):
        alignment.make_pairs(rows, per_class=11)
    with pytest.raises(ValueError, match="1 class given"):
        alignment.make_pairs(rows[:10])


def test_text_targets_take_the_scale_of_the_image():
    net = tiny_model()
    features = torch.tensor([[-1.0, 0.0, 2.0, 3.0], [5.0, 6.0, 7.0, 9.0]])
    stretched = alignment.text_targets(net, ["a", "bb"], features)
    torch.testing.assert_close(stretched.amin(1), features.amin(1))
    torch.testing.assert_close(stretched.amax(1), features.amax(1))
    turned = alignment.text_targets(net, ["a", "bb"], features, scale="norm")
    torch.testing.assert_close(turned.norm(dim=1), features.norm(dim=1))
    torch.testing.assert_close(F.normalize(turned), F.normalize(net.encode_text(["a", "bb"])))
    with pytest.raises(TypeError, match="no text tower"):
        alignment.text_targets(tiny_model(tokenizer=None), ["a", "bb"], features)
    with pytest.raises(ValueError, match="scale is 'max'"):
        alignment.text_targets(net, ["a", "bb"], features, scale="max")


def test_scores_are_of_the_saved_image_and_closeness_is_in_grey_levels(net):
    sources = torch.full((1, 3, 8, 8), 100 / 255)
    found = alignment.Aligned(sources + 0.4 / 255, torch.tensor([3]), torch.tensor([True]))
    pairs = pd.DataFrame({"sample_id": ["a"], "label": [0], "target_id": ["b"], "target_label": [1]})
    classifier, targets = torch.eye(5)[:2], torch.ones(1, 5)
    arguments = (net, pairs, sources, found, classifier, targets)
    rows, features = alignment.score(*arguments, condition="c", severity=2)
    assert rows.rms[0] == 0 and rows.linf[0] == 0 and rows.source_cosine[0] == pytest.approx(1)
    torch.testing.assert_close(features, net.encode_image(sources))
    rows, _ = alignment.score(*arguments, condition="c", eight_bit=False)
    assert rows.rms[0] == pytest.approx(0.4, rel=1e-4) and rows.psnr[0] == pytest.approx(
        20 * np.log10(255 / 0.4), rel=1e-4
    )
    logits = net.logits(found.pixels, classifier)[0].double()
    assert rows.margin[0] == pytest.approx((logits[0] - logits[1]).item(), rel=1e-5)
    assert rows.target_probability[0] == pytest.approx(logits.softmax(0)[1].item(), rel=1e-5)
    with pytest.raises(ValueError, match="'a' is of its own class"):
        alignment.score(net, pairs.assign(target_label=0), *arguments[2:], condition="c")


def test_a_png_file_gives_back_the_same_pixels(pairs):
    pixels = pairs[0][:1]
    buffer = io.BytesIO()
    array = (pixels[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(array).save(buffer, "PNG")
    back = np.asarray(Image.open(buffer), dtype=np.float32) / 255
    torch.testing.assert_close(alignment.saved_as_png(pixels)[0], torch.from_numpy(back).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": -0.1}, "eps is -0.1, allowed is 0 to 1"),
        ({"step": 0.0}, "step is 0.0, allowed is above 0"),
        ({"max_steps": 0}, "max_steps is 0, allowed is 1 or more"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd', allowed are 'polyak', 'gradient_descent', 'pgd'"),
        ({"optimizer": "pgd"}, "pgd needs eps"),
        ({"optimizer": "gradient_descent"}, "gradient_descent needs a step"),
        ({"norm": "l1"}, "norm is 'l1', allowed are 'linf', 'l2'"),
        ({"eps": -1.0, "norm": "l2"}, "eps is -1.0, allowed is 0 or more"),
        ({"noise": -0.1}, "noise is -0.1, allowed is 0 to 1"),
        ({"draws": 0}, "draws is 0, allowed is 1 or more"),
        ({"momentum": 1.0}, "momentum is 1.0, allowed is 0 to below 1"),
    ],
)
def test_bad_parameters_get_one_clear_sentence(net, pairs, changes, words):
    with pytest.raises(ValueError, match=words):
        alignment.align(net, pairs[0], match(pairs[1]), **changes)


def test_pairs_must_match(net, pairs):
    with pytest.raises(ValueError, match="7 sources and 6 targets"):
        alignment.align(net, pairs[0], match(pairs[1][:6]))
    with pytest.raises(ValueError, match=r"takes \(N, 3, 8, 8\)"):
        alignment.align(net, torch.zeros(7, 3, 9, 9), match(pairs[1]))


@pytest.mark.parametrize(("distance", "cosine"), [(0, 0.9), (1, 1.0)])
def test_an_impossible_stop_rule_is_refused(pairs, distance, cosine):
    with pytest.raises(ValueError, match="Match"):
        match(pairs[1], cosine, distance)


def test_a_gradient_that_is_not_finite_names_pair_and_step(net, pairs):
    targets = pairs[1].clone()
    targets[3] = torch.nan
    with pytest.raises(FloatingPointError, match="pair 3 is not finite at step 0"):
        alignment.align(net, pairs[0], match(targets))


def test_a_vanishing_gradient_does_not_throw_the_image_away():
    # A loss that hardly depends on the pixels: Polyak's step would be 1e4 times the length of the box.
    net = linear_model()
    net.net.matrix.mul_(1e-4)
    sources = torch.full((1, 3, 8, 8), 0.5)
    goal = alignment.Match(net.encode_image(sources) + 1.0, cosine=0.99)
    found = alignment.align(net, sources, goal, max_steps=1)
    assert float((found.pixels - sources).square().mean().sqrt()) == pytest.approx(_steps.LONGEST, rel=1e-3)


def test_the_last_look_takes_no_gradient(monkeypatch):
    net, taken = linear_model(), []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (taken.append(1), original(*a, **k))[1])
    sources = torch.full((3, 3, 8, 8), 0.5)
    goal = alignment.Match(net.encode_image(sources) + 100.0, cosine=0.99)  # out of reach
    found = alignment.align(net, sources, goal, max_steps=4, optimizer="pgd", eps=4 / 255)
    assert len(taken) == 4 and found.steps.tolist() == [4, 4, 4] and not found.reached.any()
