"""Embedding alignment on an encoder whose answers are known."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model
from torch import nn

from zsr_utils.probes import alignment


class Linear(nn.Module):
    """f(x) = A vec(x): the gradient is A^T (A x - t)."""

    def __init__(self, d=5):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.matrix = nn.Parameter(torch.randn(d, 3 * 8 * 8, generator=generator) / 14)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_image(self, x):
        return x.flatten(1) @ self.matrix.T


@pytest.fixture
def net():
    model = tiny_model(mean=(0.0,) * 3, std=(1.0,) * 3)
    model.net = Linear().eval().requires_grad_(False)
    return model


@pytest.fixture
def pairs(net):
    generator = torch.Generator().manual_seed(2)
    sources = 0.4 + 0.2 * torch.rand(7, 3, 8, 8, generator=generator)
    others = 0.4 + 0.2 * torch.rand(7, 3, 8, 8, generator=generator)
    return sources, net.encode_image(others)


STOP = alignment.StopRule(distance=1e-6, cosine=0.999)


def test_gradient_descent_is_the_papers_update(net, pairs):
    sources, targets = pairs
    found = alignment.align(net, sources, targets, stop=STOP, optimizer="gradient_descent", step=0.1, max_steps=3)
    x = sources.flatten(1)
    for _ in range(3):
        x = (x - 0.1 * (x @ net.net.matrix.T - targets) @ net.net.matrix).clamp(0, 1)
    torch.testing.assert_close(found.pixels.flatten(1), x, atol=1e-6, rtol=1e-5)
    assert found.steps.tolist() == [3] * 7


@pytest.mark.parametrize("optimizer", alignment.OPTIMIZERS)
def test_every_pair_reaches_the_stop_rule_and_is_where_it_says(net, pairs, optimizer):
    sources, targets = pairs
    found = alignment.align(net, sources, targets, stop=STOP, optimizer=optimizer, step=0.5, max_steps=3000)
    assert found.reached.all()
    features = net.encode_image(found.pixels)
    distance = (features - targets).square().sum(1)
    torch.testing.assert_close(found.distance, distance, atol=1e-9, rtol=1e-3)
    assert (distance < 1e-6).all() and found.pixels.min() >= 0 and found.pixels.max() <= 1


@pytest.mark.parametrize("optimizer", alignment.OPTIMIZERS)
def test_batching_changes_nothing(net, pairs, optimizer):
    arguments = {"stop": STOP, "optimizer": optimizer, "step": 0.5, "max_steps": 400}
    whole = alignment.align(net, *pairs, **arguments)
    small = alignment.align(net, *pairs, batch_size=2, **arguments)
    assert whole.steps.tolist() == small.steps.tolist()
    torch.testing.assert_close(whole.pixels, small.pixels, atol=1e-6, rtol=0)


def test_finished_pairs_leave_the_batch(net, pairs):
    sources, targets = pairs
    targets = targets.clone()
    targets[:4] = net.encode_image(sources[:4])
    sizes = []
    original = net.net.encode_image
    net.net.encode_image = lambda x: sizes.append(len(x)) or original(x)
    found = alignment.align(net, sources, targets, stop=STOP, max_steps=300)
    assert found.steps[:4].tolist() == [0] * 4 and (found.steps[4:] > 0).all()
    torch.testing.assert_close(found.pixels[:4], sources[:4], atol=0, rtol=0)
    assert sizes[:2] == [7, 3] and sizes == sorted(sizes, reverse=True)


def test_one_forward_pass_a_step_and_no_gradient_for_weights(net, pairs):
    calls = []
    original = net.net.encode_image
    net.net.encode_image = lambda x: calls.append(1) or original(x)
    alignment.align(net, *pairs, stop=alignment.StopRule(1e-30), optimizer="gradient_descent", step=0.1, max_steps=5)
    assert len(calls) == 6  # five steps, and the pass that reads where the last one led
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("eps", [0.0, 0.25 / 255, 2 / 255])
def test_no_pixel_leaves_its_budget(net, pairs, eps):
    found = alignment.align(net, *pairs, stop=STOP, eps=eps, max_steps=20)
    assert (found.pixels - pairs[0]).abs().max() <= eps + 1e-7
    assert eps or torch.equal(found.pixels, pairs[0])


def test_both_halves_of_the_stop_rule_count(net, pairs):
    sources, targets = pairs
    near = alignment.align(net, sources, targets, stop=alignment.StopRule(1e9, 0.9999), max_steps=300)
    assert near.reached.all() and (near.cosine > 0.9999).all() and (near.steps > 0).any()


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
        ({"optimizer": "sgd"}, "optimizer is 'sgd', allowed are 'polyak', 'gradient_descent'"),
    ],
)
def test_bad_parameters_get_one_clear_sentence(net, pairs, changes, words):
    with pytest.raises(ValueError, match=words):
        alignment.align(net, *pairs, stop=STOP, **changes)


def test_pairs_must_match(net, pairs):
    with pytest.raises(ValueError, match="7 sources and 6 targets"):
        alignment.align(net, pairs[0], pairs[1][:6], stop=STOP)
    with pytest.raises(ValueError, match=r"takes \(N, 3, 8, 8\)"):
        alignment.align(net, torch.zeros(7, 3, 9, 9), pairs[1], stop=STOP)


@pytest.mark.parametrize(("distance", "cosine"), [(0, 0.9), (1, 1.0)])
def test_an_impossible_stop_rule_is_refused(distance, cosine):
    with pytest.raises(ValueError, match="StopRule"):
        alignment.StopRule(distance, cosine)


def test_a_gradient_that_is_not_finite_names_pair_and_step(net, pairs):
    targets = pairs[1].clone()
    targets[3] = torch.nan
    with pytest.raises(FloatingPointError, match="pair 3 is not finite at step 0"):
        alignment.align(net, pairs[0], targets, stop=STOP)
