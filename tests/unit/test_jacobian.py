"""Jacobian spectra against torch's own, and the linear account on an encoder where it is exact."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from tiny import tiny_model
from torch import nn

import zsr_utils
from zsr_utils import jacobian
from zsr_utils.models import SupervisedModel


ROUTES = ("loop", "tiled", "batched", "jacrev")


class Curved(nn.Module):
    def __init__(self, d=6):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(144, d)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_image(self, x):
        return self.out(self.conv(x).tanh().flatten(1)).sin()


class Linear(nn.Module):
    """f(x) = A vec(x), x less the model's mean."""

    def __init__(self, d=5):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(d, 192, generator=torch.Generator().manual_seed(1)) / 14)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_image(self, x):
        return x.flatten(1) @ self.matrix.T


def model_of(encoder, **changes):
    model = tiny_model(**changes)
    model.net = encoder.eval().requires_grad_(False)
    return model


@pytest.fixture
def net():
    return model_of(Curved())


@pytest.fixture
def linear():
    return model_of(Linear(), mean=(0.5,) * 3, std=(1.0,) * 3)


@pytest.fixture
def pixels():
    return 0.4 + 0.2 * torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def reference(net, pixels):
    whole = [torch.func.jacrev(lambda x: net.encode_image(x[None])[0])(image).flatten(1) for image in pixels]
    return torch.stack(whole).double()


def same_values(found, expected):
    """Within 1e-4 of themselves; the smallest of them also within the rounding of float32 rows."""
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(b.max()))


@pytest.mark.parametrize("route", [*ROUTES, "auto"])
@pytest.mark.parametrize("rows_at_once", [None, 4])
def test_every_route_agrees_with_torchs_jacobian(net, pixels, route, rows_at_once):
    whole = reference(net, pixels)
    found = jacobian.spectra(net, pixels, route=route, rows_at_once=rows_at_once)
    assert found.values.dtype == torch.float64
    same_values(found.values, torch.linalg.svdvals(whole))
    torch.testing.assert_close(found.gram, whole @ whole.mT, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def embedded():
    """The embedded model, an image, and its Jacobian by torch."""
    net = zsr_utils.load_model("tabletop-base")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = torch.func.jacrev(lambda x: net.encode_image(x[None])[0], chunk_size=32)(image[0]).flatten(1)
    return net, image, whole.double()


def test_the_spectrum_of_the_embedded_model_agrees_with_torchs(embedded):
    net, image, whole = embedded
    same_values(jacobian.spectra(net, image, vectors=False).values, torch.linalg.svdvals(whole.T)[None])
    values, _, _ = jacobian.top_singular(net, image[0], 2)
    same_values(values[None], torch.linalg.svdvals(whole.T)[None, :2])


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_agrees_on_rows_of_the_embedded_model(embedded, route):
    net, image, whole = embedded
    blocks = list(jacobian.ROUTES[route](net, image, torch.eye(128)[:12, None], 5))
    assert [len(b) for b in blocks] == ([1] * 12 if route == "loop" else [5, 5, 2])
    rows = torch.cat(blocks)[:, 0].double()
    assert float(((rows - whole[:12]).norm(dim=1) / whole[:12].norm(dim=1)).max()) < 1e-5


@pytest.mark.parametrize(("memory_mb", "together"), [(64, 5), (0.01, 2), (0.001, 1)])
def test_memory_changes_only_where_rows_are_kept(net, pixels, monkeypatch, memory_mb, together):
    """One Jacobian takes 6 * 192 * 4 bytes: all five, two at a time, or one in a file."""
    calls = []
    for name in ("_panels_kept", "_panels_filed"):
        original = getattr(jacobian, name)
        monkeypatch.setattr(
            jacobian, name, lambda b, s, w, f=original, n=name: calls.append((n, s[0], w)) or f(b, s, w)
        )
    found = jacobian.spectra(net, pixels, memory_mb=memory_mb)
    assert calls[0][:2] == ("_panels_filed" if memory_mb == 0.001 else "_panels_kept", together)
    assert calls[0][2] < 192 or memory_mb == 64
    torch.testing.assert_close(found.gram, jacobian.spectra(net, pixels).gram, rtol=1e-5, atol=1e-7)


def test_spectra_of_a_linear_model_are_its_matrix(linear, pixels):
    found = jacobian.spectra(linear, pixels)
    u, s, _ = torch.linalg.svd(linear.net.matrix.double(), full_matrices=False)
    torch.testing.assert_close(found.values, s.expand(5, -1), rtol=1e-5, atol=0)
    torch.testing.assert_close((found.left @ u).abs(), torch.eye(5).double().expand(5, -1, -1), rtol=0, atol=1e-5)
    rows = jacobian.summary(found, list("abcde"))
    matrix = linear.net.matrix.double()
    assert rows.sample_id.tolist() == list("abcde")
    np.testing.assert_allclose(rows.largest, float(torch.linalg.matrix_norm(matrix, 2)), rtol=1e-5)
    np.testing.assert_allclose(rows.frobenius, float(matrix.norm()), rtol=1e-5)
    np.testing.assert_allclose(rows.condition, float(torch.linalg.cond(matrix)), rtol=1e-5)
    assert ((rows.effective_rank > 1) & (rows.effective_rank < 5)).all()


def test_lanczos_agrees_with_the_full_spectrum(net, pixels):
    whole = jacobian.spectra(net, pixels[:1])
    values, left, right = jacobian.top_singular(net, pixels[0], 3)
    torch.testing.assert_close(values, whole.values[0, :3], rtol=1e-5, atol=0)
    torch.testing.assert_close((left * whole.left[0, :3]).sum(1).abs(), torch.ones(3).double(), rtol=1e-4, atol=0)
    images = jacobian.right_singular_images(net, pixels[:1], whole.left, 3)[0].double()
    torch.testing.assert_close((right * images).sum((1, 2, 3)).abs(), torch.ones(3).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("route", ROUTES)
def test_right_singular_images_are_orthonormal_and_map_to_left_vectors(net, pixels, route):
    found = jacobian.spectra(net, pixels)
    images = jacobian.right_singular_images(net, pixels, found.left, 4, route=route)
    assert images.shape == (5, 4, 3, 8, 8)
    flat = images.flatten(2).double()
    torch.testing.assert_close(flat @ flat.mT, torch.eye(4).double().expand(5, -1, -1), rtol=0, atol=1e-4)
    pushed = flat @ reference(net, pixels).mT
    torch.testing.assert_close(pushed, found.values[:, :4, None] * found.left[:, :4], rtol=1e-4, atol=1e-5)


def test_the_linear_account_of_a_linear_model_has_no_error(linear, pixels):
    directions = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(4))
    rows = jacobian.linear_error(linear, pixels, directions, [1, 16], sample_ids=list("abcde"), batch_size=2)
    assert rows.relative_error.max() < 1e-4
    assert sorted(rows.sample_id) == sorted(2 * list("abcde"))
    np.testing.assert_allclose(rows.predicted, rows.measured, rtol=1e-4)
    np.testing.assert_allclose(rows.rms, rows["size"], rtol=1e-5)
    change = directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = linear.encode_image(change.clamp(0)) - linear.encode_image((-change).clamp(0))
    np.testing.assert_allclose(rows[rows["size"] == 16].lipschitz, expected.norm(dim=1), rtol=1e-4)
    assert (jacobian.reach(rows, 1e-3).reach == 16).all()


def test_the_prediction_is_for_the_change_that_clipping_leaves(linear, pixels):
    rows = jacobian.linear_error(linear, pixels.round(), torch.randn(pixels.shape), [64])
    assert rows.relative_error.max() < 1e-4 and (rows.rms < 60).all()


def test_error_of_a_curved_model_grows_in_proportion_to_the_size(net, pixels):
    rows = jacobian.linear_error(net, pixels, torch.ones_like(pixels), [0.25, 0.5, 1, 32])
    error = rows.pivot(index="sample_id", columns="size", values="relative_error")
    np.testing.assert_allclose(error[1] / error[0.5], 2, rtol=0.1)
    found = jacobian.reach(rows, float(error[1].max()))
    assert found.columns.tolist() == ["sample_id", "reach"] and (found.reach >= 1).all()
    assert (jacobian.reach(rows, 1e-9).reach == 0).all()


@pytest.fixture
def classifier():
    return nn.functional.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(7)))


@pytest.fixture(params=["text", "supervised"])
def head(request, linear, classifier):
    """A linear model with its classifier, and that one's weights and biases: of a text model, and of a trained head."""
    if request.param == "text":
        return linear, classifier, classifier, torch.zeros(4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5, bias=False), nn.Linear(5, 4))
    bias = torch.tensor([0.03, 0.0, 0.02, -0.02])
    network[1].weight.data, network[2].weight.data, network[2].bias.data = linear.net.matrix.data, classifier, bias
    options = {"image_size": 8, "mean": (0.5,) * 3, "std": (1.0,) * 3, "transform": None}
    net = SupervisedModel(network, library="torchvision", namings=[[(c,) for c in "abcd"]], name="head", **options)
    return net, net.classifier("abcd"), classifier, bias


def test_flip_prediction_of_two_classes_is_exact(head, linear, pixels):
    """The margin of a linear model under Gaussian noise is normal, so the formula is a closed form."""
    net, classifier, weights, bias = head
    rows = jacobian.flip_prediction(net, pixels, classifier[:2], [4 / 255, 16 / 255])
    features, weight = net.encode_image(pixels).double(), (weights[0] - weights[1]).double()
    signed = features @ weight + (bias[0] - bias[1])
    margin, size = signed.abs().numpy(), float((linear.net.matrix.double().T @ weight).norm())
    assert rows.prediction[:5].tolist() == (signed < 0).long().tolist() and len(set(rows.prediction)) == 2
    for sigma, part in rows.groupby("sigma"):
        np.testing.assert_allclose(part.flip, norm.cdf(-margin / (sigma * size)), rtol=1e-3)
        np.testing.assert_allclose(part.margin, margin, rtol=1e-4)
        np.testing.assert_allclose(part.gradient_norm, size, rtol=1e-5)
        np.testing.assert_allclose(part.directed, margin / size, rtol=1e-4)
    np.testing.assert_allclose(rows.flip, rows.flip_at_most)
    assert (rows.prediction + rows.nearest == 1).all()


def test_measured_flips_agree_with_the_prediction(head, pixels):
    net, classifier, _, _ = head
    draws, sigmas = 2000, [8 / 255, 32 / 255]
    pixels = 0.5 + 0.2 * (pixels - 0.5)  # headroom, so that hardly any noisy pixel is clipped
    predicted = jacobian.flip_prediction(net, pixels, classifier[:2], sigmas).set_index(["sample_id", "sigma"])
    rows = jacobian.flip_measured(net, pixels, classifier[:2], sigmas, draws=draws)
    measured = rows.set_index(["sample_id", "sigma"]).loc[predicted.index]
    error = np.sqrt(predicted.flip * (1 - predicted.flip) / draws)
    assert ((measured.flip - predicted.flip).abs() <= 4 * error + 1e-3).all()
    assert (rows.clipped < 1e-3).all() and measured.flip.min() > 0 and measured.flip.max() < 1


def test_measured_flips_lie_between_the_bounds_of_many_classes(head, pixels):
    net, classifier, _, _ = head
    pixels = 0.5 + 0.2 * (pixels - 0.5)
    predicted = jacobian.flip_prediction(net, pixels, classifier, [24 / 255])
    measured = jacobian.flip_measured(net, pixels, classifier, [24 / 255], draws=2000)
    assert (predicted.flip <= predicted.flip_at_most).all()
    assert (measured.flip >= predicted.flip - 0.04).all() and (measured.flip <= predicted.flip_at_most + 0.04).all()
    gram = jacobian.spectra(net, pixels).gram
    closest = jacobian.flip_prediction(net, pixels, classifier, [24 / 255], gram=gram)
    np.testing.assert_allclose(closest.flip, predicted.flip, rtol=1e-4)
    assert (closest.nearest == predicted.nearest).all()


def test_the_directed_move_closes_the_margin(head, linear, pixels):
    net, classifier, weights, bias = head
    rows = jacobian.flip_prediction(net, pixels, classifier, [0.1])
    assert rows.prediction.tolist() == net.logits(pixels, classifier).argmax(1).tolist()
    if bias.any():  # the biases decide
        assert rows.prediction.tolist() != (net.encode_image(pixels) @ weights.T).argmax(1).tolist()
    for row, image in zip(rows.itertuples(), pixels):
        weight, offset = (t[row.prediction] - t[row.nearest] for t in (weights, bias))
        gradient = (linear.net.matrix.T @ weight).view_as(image)
        moved = image[None] - row.directed * gradient / gradient.norm()
        assert abs(float(net.encode_image(moved)[0] @ weight + offset)) < 1e-5 < row.margin


def test_random_moves_are_weaker_by_the_root_of_the_number_of_pixels(head, pixels):
    net, classifier, weights, bias = head
    rows = jacobian.directed_against_random(net, pixels, classifier, size=2, draws=3000)
    two = (net.encode_image(pixels) @ weights.T + bias).topk(2).indices
    assert rows.prediction.tolist() == two[:, 0].tolist() and rows.runner_up.tolist() == two[:, 1].tolist()
    np.testing.assert_allclose(rows.factor, np.sqrt(192), rtol=0.08)
    np.testing.assert_allclose(rows.directed, rows.predicted, rtol=1e-3)
    np.testing.assert_allclose(rows.predicted_factor, np.sqrt(192))


def test_predicted_covariance_is_that_of_noisy_embeddings(linear, pixels):
    predicted = jacobian.predicted_covariance(jacobian.spectra(linear, pixels[:1]).gram, 0.02)[0]
    noise = 0.02 * torch.randn(20000, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    measured = torch.cov(linear.encode_image(pixels[:1] + noise).double().T)
    torch.testing.assert_close(measured, predicted, rtol=0, atol=0.05 * float(predicted.diagonal().max()))


@pytest.mark.parametrize("route", ROUTES)
def test_no_parameter_gets_a_gradient(net, pixels, route):
    with torch.no_grad():  # a notebook's no_grad does not reach inside
        found = jacobian.spectra(net, pixels, route=route)
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert found.values.min() > 0 and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"route": "forward"}, "route is 'forward', allowed are 'auto', 'loop', 'tiled', 'batched', 'jacrev'"),
        ({"rows_at_once": 0}, "rows_at_once is 0, allowed is 1 or more"),
        ({"memory_mb": 0}, "memory_mb is 0, allowed is above 0"),
        ({"pixels": torch.zeros(0, 3, 8, 8)}, r"shape \(0, 3, 8, 8\), allowed is at least one image"),
        ({"pixels": torch.full((1, 3, 8, 8), 1.5)}, r"allowed is \[0, 1\]"),
    ],
)
def test_bad_input_of_spectra_gets_one_clear_sentence(net, pixels, changes, words):
    with pytest.raises(ValueError, match=words):
        jacobian.spectra(net, **{"pixels": pixels, **changes})


@pytest.mark.parametrize("k", [0, 7])
def test_bad_k_gets_one_clear_sentence(net, pixels, k):
    with pytest.raises(ValueError, match=f"k is {k}, allowed is 1 to 6"):
        jacobian.right_singular_images(net, pixels, jacobian.spectra(net, pixels).left, k)
    with pytest.raises(ValueError, match=f"k is {k}, allowed is 1 to 5"):
        jacobian.top_singular(net, pixels[0], k)


def test_a_singular_value_of_zero_has_no_right_image(pixels):
    net = tiny_model()  # three channel means: rank 3 of 4
    left = jacobian.spectra(net, pixels).left
    assert jacobian.right_singular_images(net, pixels, left, 3).isfinite().all()
    with pytest.raises(ValueError, match="k is 4, allowed is up to 3: singular value 4 of image 0 is 0"):
        jacobian.right_singular_images(net, pixels, left, 4)


def test_other_bad_input_gets_one_clear_sentence(linear, pixels, classifier):
    for probe in (jacobian.flip_prediction, jacobian.flip_measured):
        with pytest.raises(ValueError, match="sigma is 0, allowed is above 0"):
            probe(linear, pixels, classifier, [0.1, 0])
        with pytest.raises(ValueError, match=r"classifier has shape \(1, 5\), allowed is \(K, 5\) with K at least 2"):
            probe(linear, pixels, classifier[:1], [0.1])
        with pytest.raises(ValueError, match="at least one image"):
            probe(linear, pixels[:0], classifier, [0.1])
    with pytest.raises(ValueError, match="sigma is -1"):
        jacobian.predicted_covariance(torch.eye(5), -1)
    with pytest.raises(ValueError, match="draws is 0"):
        jacobian.flip_measured(linear, pixels, classifier, [0.1], draws=0)
    with pytest.raises(ValueError, match="size is 0, allowed is above 0"):
        jacobian.linear_error(linear, pixels, pixels, [0])
    with pytest.raises(ValueError, match="direction of image 1 is 0"):
        jacobian.linear_error(linear, pixels, pixels * torch.tensor([1, 0, 1, 1, 1]).view(-1, 1, 1, 1), [1])
    with pytest.raises(ValueError, match=r"directions have shape \(2, 3, 8, 8\), allowed is \(5, 3, 8, 8\)"):
        jacobian.linear_error(linear, pixels, pixels[:2], [1])
    with pytest.raises(ValueError, match="2 sample_ids and 5 images"):
        jacobian.flip_measured(linear, pixels, classifier, [0.1], sample_ids=["a", "b"])
    with pytest.raises(ValueError, match="vectors=False"):
        _ = jacobian.spectra(linear, pixels, vectors=False).gram


def test_a_jacobian_that_is_not_finite_names_the_image(linear, pixels, classifier):
    original = linear.net.encode_image
    linear.net.encode_image = lambda x: original(x) + (x[:, :1, 0, 0] + 0.5).sqrt()  # infinite slope at 0
    pixels[3, 0, 0, 0] = 0
    for memory_mb in (64, 0.001):
        with pytest.raises(FloatingPointError, match="Jacobian of image 3 is not finite"):
            jacobian.spectra(linear, pixels, memory_mb=memory_mb)
    with pytest.raises(FloatingPointError, match="image 3"):
        jacobian.flip_prediction(linear, pixels, classifier, [0.1], batch_size=2)


class Attentive(nn.Module):
    """Frozen multi-head attention, as in open_clip's transformers: in eval mode it has a kernel of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)  # an odd number has no such kernel
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_image(self, x):
        tokens = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


def test_attention_of_frozen_transformers_has_every_derivative(pixels):
    net = tiny_model(mean=(0.0,) * 3, std=(1.0,) * 3)
    net.net = Attentive().eval().requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    inside = 0.25 + pixels / 2  # a small change meets no bound
    direction = torch.randn(inside.shape, generator=torch.Generator().manual_seed(5))
    found = jacobian.linear_error(net, inside, direction, [4, 16])
    smaller, larger = (found[found["size"] == size].relative_error.median() for size in (4, 16))
    # a second-order term is what the linear account leaves out: four times the change, four times the error
    assert larger < 0.2 and 3 < larger / smaller < 5
    rows = [jacobian.spectra(net, inside[:2], route=route).values for route in ROUTES]
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], rtol=1e-4, atol=1e-6)
    assert torch.backends.mha.get_fastpath_enabled() == fast
