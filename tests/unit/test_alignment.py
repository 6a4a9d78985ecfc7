"""Embedding alignment on an encoder whose answers are known."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import linear_model, tiny_model
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from zsr_utils.conditions import Settings, _steps, alignment


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
    aligned = alignment.align(net, sources, match(targets), Settings("gradient_descent", 0.1, max_steps=3))
    x = sources.flatten(1)
    for _ in range(3):
        x = (x - 0.1 * (x @ net.net.matrix.T - targets) @ net.net.matrix).clamp(0, 1)
    torch.testing.assert_close(aligned.pixels.flatten(1), x, atol=1e-6, rtol=1e-5)
    assert aligned.steps.tolist() == [3] * 7


@pytest.mark.parametrize("optimizer", ["polyak", "gradient_descent"])
def test_every_pair_reaches_the_stop_rule_and_is_where_it_says(net, pairs, optimizer):
    sources, targets = pairs
    aligned = alignment.align(net, sources, match(targets), Settings(optimizer, 0.5, max_steps=3000))
    assert aligned.reached.all()
    features = net.encode_image(aligned.pixels)
    distance = (features - targets).square().sum(1)
    assert (distance < 1e-6).all() and aligned.pixels.min() >= 0 and aligned.pixels.max() <= 1


@pytest.mark.parametrize("optimizer", ["polyak", "gradient_descent"])
def test_batching_changes_nothing(net, pairs, optimizer):
    settings = Settings(optimizer, 0.5, max_steps=400)
    whole = alignment.align(net, pairs[0], match(pairs[1]), settings)
    small = alignment.align(net, pairs[0], match(pairs[1]), settings, batch_size=2)
    assert whole.steps.tolist() == small.steps.tolist()
    torch.testing.assert_close(whole.pixels, small.pixels, atol=1e-6, rtol=0)


def test_finished_pairs_leave_the_batch(net, pairs):
    sources, targets = pairs
    targets = targets.clone()
    targets[:4] = net.encode_image(sources[:4])
    sizes = []
    original = net.net.encode_image
    net.net.encode_image = lambda x: sizes.append(len(x)) or original(x)
    aligned = alignment.align(net, sources, match(targets), Settings(max_steps=300))
    assert aligned.steps[:4].tolist() == [0] * 4 and (aligned.steps[4:] > 0).all()
    torch.testing.assert_close(aligned.pixels[:4], sources[:4], atol=0, rtol=0)
    assert sizes[:2] == [7, 3] and sizes == sorted(sizes, reverse=True)


def test_one_forward_pass_a_step_and_no_gradient_for_weights(net, pairs):
    calls = []
    original = net.net.encode_image
    net.net.encode_image = lambda x: calls.append(1) or original(x)
    settings = Settings("gradient_descent", 0.1, max_steps=5)
    alignment.align(net, pairs[0], match(pairs[1], distance=1e-30), settings)
    assert len(calls) == 6  # five steps, and the pass that reads where the last one led
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("eps", [0.0, 0.25 / 255, 2 / 255])
def test_no_pixel_leaves_its_budget(net, pairs, eps):
    aligned = alignment.align(net, pairs[0], match(pairs[1]), Settings(eps=eps, max_steps=20))
    assert (aligned.pixels - pairs[0]).abs().max() <= eps + 1e-7
    assert eps or torch.equal(aligned.pixels, pairs[0])


def test_both_halves_of_the_stop_rule_count(net, pairs):
    sources, targets = pairs
    near = alignment.align(net, sources, match(targets, 0.9999, 1e9), Settings(max_steps=300))
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
    aligned = alignment.align(
        net, pairs[0], alignment.Answer(net, classifier, labels), Settings(step=1.1, eight_bit=True)
    )
    assert aligned.reached.all() and (net.logits(aligned.pixels, classifier).argmax(1) == labels).all()
    assert torch.equal(alignment.saved_as_png(aligned.pixels), aligned.pixels)


def test_one_polyak_step_closes_the_margin_of_a_linear_model_at_least_change(net):
    """Two classes and unit-length features replaced by raw ones: the step is the projection on the boundary."""
    net.logits_of = lambda features, classifier: features @ classifier.T
    source = torch.full((1, 3, 8, 8), 0.5)
    classifier = torch.eye(5)[:2]
    label = net.logits_of(net.encode_image(source), classifier).argmin(1)
    aligned = alignment.align(net, source, alignment.Answer(net, classifier, label), Settings(max_steps=1))
    w = (classifier[label] - classifier[1 - label]) @ net.net.matrix
    margin = -(w @ source.flatten()).item()
    assert (aligned.pixels - source).norm().item() == pytest.approx(margin / w.norm().item(), rel=1e-4)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 3 / 255), ("l2", 0.05)])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_pgd_stays_in_its_ball_and_gets_nearer(net, pairs, norm, eps, momentum):
    sources, targets = pairs
    settings = Settings("pgd", eps=eps, norm=norm, momentum=momentum, max_steps=20)
    aligned = alignment.align(net, sources, match(targets), settings)
    change = (aligned.pixels - sources).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (size <= eps * (1 + 1e-4)).all() and (size > 0.9 * eps).all()
    before, after = ((net.encode_image(x) - targets).square().sum(1) for x in (sources, aligned.pixels))
    assert (after < before).all()


@pytest.mark.parametrize(("eps", "levels"), [(0.5 / 255, 0), (1 / 255, 1), (2.9 / 255, 2)])
def test_an_8_bit_ball_holds_whole_grey_levels(net, pairs, eps, levels):
    sources = alignment.saved_as_png(pairs[0])
    aligned = alignment.align(net, sources, match(pairs[1]), Settings("pgd", eps=eps, eight_bit=True, max_steps=10))
    change = 255 * (aligned.pixels - sources)
    torch.testing.assert_close(change, change.round(), atol=1e-3, rtol=0)
    assert change.abs().max().round() == levels


def test_larger_budgets_never_lose_a_success(net, pairs):
    classifier = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(3)))
    labels = (net.logits(pairs[0], classifier).argmax(1) + 1) % 4
    goal = alignment.Answer(net, classifier, labels)
    balls = alignment.smallest_budgets(net, pairs[0], goal, [0.01, 0.1, 0.3], Settings("pgd", max_steps=20))
    shares = [f.reached.float().mean().item() for f in balls.values()]
    assert shares == sorted(shares) and shares[0] < shares[1] < shares[2] == 1
    for eps, f in balls.items():
        assert (f.pixels - pairs[0]).abs().max() <= eps + 1e-6
    small, large = balls[0.1], balls[0.3]
    assert torch.equal(small.pixels[small.reached], large.pixels[small.reached])
    with pytest.raises(ValueError, match="allowed are growing numbers"):
        alignment.smallest_budgets(net, pairs[0], goal, [0.1, 0.01], Settings("pgd"))


def test_noise_in_the_loss_averages_its_gradient(net, pairs):
    """For a linear model the loss under noise has the same gradient on average, whatever the noise."""
    goal, options = match(pairs[1]), {"step": 0.1, "max_steps": 1}
    plain = alignment.align(net, pairs[0], goal, Settings("gradient_descent", **options))
    noisy = alignment.align(net, pairs[0], goal, Settings("gradient_descent", noise=0.05, draws=400, **options))
    torch.testing.assert_close(noisy.pixels, plain.pixels, atol=2e-3, rtol=0)
    assert not torch.equal(noisy.pixels, plain.pixels)


class Interrupted:
    """Counts the images of every pass, and stops after some passes."""

    def __init__(self, net, monkeypatch):
        self.sizes, self.after, self.encode = [], None, net.net.encode_image
        monkeypatch.setattr(net.net, "encode_image", self)

    def __call__(self, x):
        self.sizes.append(len(x))
        if self.after is not None and len(self.sizes) > self.after:
            raise KeyboardInterrupt
        return self.encode(x)


def test_an_interrupted_run_goes_on_and_a_second_one_computes_nothing(net, pairs, monkeypatch, tmp_path):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    passes, goal = Interrupted(net, monkeypatch), match(pairs[1], distance=1e-3)
    arguments = {"settings": Settings("gradient_descent", 0.5, max_steps=400), "batch_size": 2}
    passes.after = 12
    with pytest.raises(KeyboardInterrupt):
        alignment.align(net, pairs[0], goal, keep=True, **arguments)
    passes.after = None
    seen = []
    for keep in (True, True, False):
        passes.sizes.clear()
        seen.append((alignment.align(net, pairs[0], goal, keep=keep, **arguments), sum(passes.sizes)))
    (resumed, some), (again, none), (alone, every) = seen
    assert none == 0 < some < every
    assert torch.equal(resumed.pixels, again.pixels) and torch.equal(resumed.steps, again.steps)
    torch.testing.assert_close(resumed.pixels, alone.pixels, atol=1e-6, rtol=0)
    passes.sizes.clear()
    alignment.align(net, pairs[0][:2], match(pairs[1][:2], distance=2e-3), keep=True, **arguments)
    assert passes.sizes, "another goal is another result"


def test_noise_knows_only_the_pair_the_step_and_the_draw(net, pairs, monkeypatch, tmp_path):
    """A pair alone, beside three others, in other batches or after an interruption: the same image."""
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    settings, names = Settings("gradient_descent", 0.3, max_steps=20, noise=0.1, draws=2, seed=3), list("abcd")

    def moved(rows, **options):
        chosen = [names[row] for row in rows]
        return alignment.align(
            net, pairs[0][rows], match(pairs[1][rows], 0.9999, 1e9), settings, names=chosen, **options
        )

    whole = moved([0, 1, 2, 3])
    for rows, options in (([2], {}), ([3, 2], {}), ([0, 1, 2, 3], {"batch_size": 3})):
        torch.testing.assert_close(moved(rows, **options).pixels, whole.pixels[rows], atol=1e-6, rtol=0)
    passes = Interrupted(net, monkeypatch)
    passes.after = 25
    with pytest.raises(KeyboardInterrupt):
        moved([0, 1, 2, 3], batch_size=2, keep=True)
    passes.after = None
    torch.testing.assert_close(moved([0, 1, 2, 3], keep=True).pixels, whole.pixels, atol=1e-6, rtol=0)
    assert len(list(tmp_path.rglob("*.npz"))) > 1
    names[2] = "another"
    assert (moved([2]).pixels - whole.pixels[2]).abs().max() > 1e-3


@pytest.mark.parametrize(("eps", "most"), [(0.6, 0.6), (1, 1), (2.5, 2.5)])
def test_an_8_bit_image_stays_in_the_ball_of_a_source_between_grey_levels(net, pairs, eps, most):
    settings = Settings("pgd", eps=eps / 255, eight_bit=True, max_steps=10)
    aligned = alignment.align(net, pairs[0], match(pairs[1]), settings)
    assert 255 * (aligned.pixels - pairs[0]).abs().max() <= most + 1e-3
    assert torch.equal(aligned.pixels, alignment.saved_as_png(aligned.pixels))
    with pytest.raises(ValueError, match="no 8-bit image lies in the ball of pair 0, whose source lies between"):
        alignment.align(net, pairs[0], match(pairs[1]), replace(settings, eps=0.2 / 255))


def test_a_blend_is_the_least_that_meets_the_goal(net):
    """For an affine model and the distance as goal, how far to blend is known."""
    sources, others = torch.full((2, 3, 8, 8), 0.2), torch.full((2, 3, 8, 8), 0.8)
    targets = net.encode_image(others)
    whole = (net.encode_image(sources) - targets).square().sum(1)
    goal = alignment.Match(targets, cosine=-0.999, distance=float(whole[0]) / 4)
    end = alignment.blended(net, sources, others, goal, batch_size=1, halvings=10)
    assert end.reached.all() and end.steps.tolist() == [0, 0]
    torch.testing.assert_close(end.pixels, torch.full_like(sources, 0.5), atol=1 / 255, rtol=0)


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
        ({"optimizer": "gradient_descent"}, "gradient_descent needs a step"),
        ({"norm": "l1"}, "norm is 'l1', allowed are 'linf', 'l2'"),
        ({"eps": -1.0, "norm": "l2"}, "eps is -1.0, allowed is 0 or more"),
        ({"noise": -0.1}, "noise is -0.1, allowed is 0 to 1"),
        ({"draws": 0}, "draws is 0, allowed is 1 or more"),
        ({"momentum": 1.0}, "momentum is 1.0, allowed is 0 to below 1"),
    ],
)
def test_bad_settings_get_one_clear_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**changes)


def test_pairs_must_match(net, pairs):
    with pytest.raises(ValueError, match="7 sources and 6 targets"):
        alignment.align(net, pairs[0], match(pairs[1][:6]))
    with pytest.raises(ValueError, match=r"takes \(N, 3, 8, 8\)"):
        alignment.align(net, torch.zeros(7, 3, 9, 9), match(pairs[1]))
    with pytest.raises(ValueError, match="pgd needs eps"):
        alignment.align(net, pairs[0], match(pairs[1]), Settings("pgd"))


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
    aligned = alignment.align(net, sources, goal, Settings(max_steps=1))
    assert float((aligned.pixels - sources).square().mean().sqrt()) == pytest.approx(_steps.LONGEST, rel=1e-3)


def test_the_last_look_takes_no_gradient(monkeypatch):
    net, taken = linear_model(), []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (taken.append(1), original(*a, **k))[1])
    sources = torch.full((3, 3, 8, 8), 0.5)
    goal = alignment.Match(net.encode_image(sources) + 100.0, cosine=0.99)  # out of reach
    aligned = alignment.align(net, sources, goal, Settings("pgd", max_steps=4, eps=4 / 255))
    assert len(taken) == 4 and aligned.steps.tolist() == [4, 4, 4] and not aligned.reached.any()


def test_ssim_of_flat_pictures_is_its_luminance_term():
    """(2 a b + c) / (a^2 + b^2 + c) with c = (0.01 L)^2, where the range L of pixels is 1."""
    one, other = (torch.full((1, 3, 16, 16), grey) for grey in (0.1, 0.2))
    c = 1e-4
    assert alignment.closeness(one, other)["ssim"][0] == pytest.approx((2 * 0.02 + c) / (0.01 + 0.04 + c), rel=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_in_a_ball_decay_from_its_radius_to_nothing(norm):
    """eps (1 + cos(pi k / K)) / 2 in step k of K, along the sign or the unit vector of the gradient."""
    settings = Settings("pgd", eps=0.1, norm=norm, max_steps=12)
    gradient = torch.full((4, 3, 2, 2), 5.0)
    moves = settings.move({"steps": torch.tensor([0, 4, 6, 12])}, gradient, torch.zeros(4), []).flatten(1)
    length = -moves[:, 0] if norm == "linf" else moves.norm(dim=1)
    torch.testing.assert_close(length, 0.1 * torch.tensor([1, 0.75, 0.5, 0]), atol=1e-7, rtol=1e-5)


def test_momentum_keeps_a_share_of_the_last_move(net, pairs):
    """v <- -step * gradient + m v, x <- x + v: Polyak's heavy ball."""
    sources, targets = pairs
    settings = Settings("gradient_descent", 0.1, momentum=0.5, max_steps=3)
    aligned = alignment.align(net, sources, match(targets), settings)
    x, v = sources.flatten(1), 0
    for _ in range(3):
        v = 0.5 * v - 0.1 * (x @ net.net.matrix.T - targets) @ net.net.matrix
        x = x + v
    torch.testing.assert_close(aligned.pixels.flatten(1), x, atol=1e-6, rtol=1e-5)


def test_steps_in_all_balls_are_counted(net, pairs):
    sources, targets = pairs
    settings, budgets = Settings("pgd", max_steps=3), [0.001, 0.002, 0.003]
    found = alignment.smallest_budgets(net, sources, match(targets, 0.99999, 1e-12), budgets, settings)
    assert [found[eps].steps.tolist() for eps in budgets] == [[3] * 7, [6] * 7, [9] * 7]


@pytest.mark.parametrize("optimizer", ["polyak", "pgd"])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_device_that_is_read_one_step_late_gives_the_same_pairs(net, pairs, optimizer, batch_size, monkeypatch):
    settings = Settings(optimizer, 1.0, max_steps=40, eps=0.3 if optimizer == "pgd" else None)
    goal = match(pairs[1], 0.99, 1e-3)
    at_once = alignment.align(net, pairs[0], goal, settings, batch_size=batch_size)
    monkeypatch.setattr(_steps, "LATE", ("cpu",))
    late = alignment.align(net, pairs[0], goal, settings, batch_size=batch_size)
    assert at_once.steps.tolist() == late.steps.tolist() and len(set(late.steps.tolist())) > 1
    assert at_once.reached.tolist() == late.reached.tolist()
    torch.testing.assert_close(at_once.pixels, late.pixels, atol=1e-6, rtol=0)


class Asks(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read, and sizes that depend on values."""

    WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero")

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += str(func).startswith(self.WAITS)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["polyak", "pgd"])
def test_steps_in_which_no_pair_finishes_wait_for_nothing(net, pairs, optimizer, monkeypatch):
    monkeypatch.setattr(_steps, "LATE", ("cpu",))
    asked = []
    for steps in (5, 25):
        settings = Settings(optimizer, 0.01, max_steps=steps, eps=0.3 if optimizer == "pgd" else None)
        with Asks() as asks:
            alignment.align(net, pairs[0], match(pairs[1], 0.9999999, 1e-20), settings)
        asked.append(asks.number)
    assert asked[0] == asked[1]


def test_a_batch_that_does_not_fit_the_memory_is_done_in_parts(net, pairs, monkeypatch):
    whole = alignment.align(net, pairs[0], match(pairs[1]), Settings(max_steps=5))
    encode, sizes = net.net.encode_image, []

    def short_of_memory(x):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("no more memory")
        return encode(x)

    monkeypatch.setattr(net.net, "encode_image", short_of_memory)
    parts = alignment.align(net, pairs[0], match(pairs[1]), Settings(max_steps=5))
    torch.testing.assert_close(whole.pixels, parts.pixels, atol=1e-6, rtol=0)
    assert {s for s in sizes if s <= 2} == {1, 2}


def test_sources_outside_the_range_are_refused(net, pairs):
    with pytest.raises(ValueError, match=r"sources run from .* to 1.5, allowed is \[0, 1\]"):
        alignment.align(net, pairs[0].clone().fill_(1.5), match(pairs[1]))
