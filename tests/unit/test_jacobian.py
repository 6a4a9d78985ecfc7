"""Jacobian spectra against torch's own, and the linear account on an encoder where it is exact."""

import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from tiny import tiny_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import zsr_utils
from zsr_utils import jacobian, scores
from zsr_utils.models import SupervisedModel


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


@pytest.mark.parametrize("at_once", [32, 4])
def test_spectra_agree_with_torchs_jacobian(net, pixels, at_once, monkeypatch):
    monkeypatch.setattr(jacobian, "AT_ONCE", at_once)
    whole = reference(net, pixels)
    found = jacobian.spectra(net, pixels)
    assert found.values.dtype == torch.float64
    same_values(found.values, torch.linalg.svdvals(whole))
    torch.testing.assert_close(found.gram, whole @ whole.mT, rtol=1e-4, atol=1e-5)


class NoVmap(torch.autograd.Function):
    """x^2, by a function that torch cannot vmap: "autograd.Function with functorch transforms …"."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


def test_a_model_that_torch_cannot_vmap_is_differentiated_row_by_row(net, pixels):
    vmapped = net.net.encode_image
    net.net.encode_image = lambda x: vmapped(x).square()
    expected = jacobian.spectra(net, pixels)
    net.net.encode_image = lambda x: NoVmap.apply(vmapped(x))
    found = jacobian.spectra(net, pixels)
    same_values(found.values, expected.values)
    torch.testing.assert_close(found.gram, expected.gram, rtol=1e-4, atol=1e-6)


def test_any_other_error_of_a_model_is_its_own(net, pixels):
    def broken(x):
        if torch.is_grad_enabled():
            raise RuntimeError("out of order")
        return x.flatten(1)[:, :6]

    net.net.encode_image = broken
    with pytest.raises(RuntimeError, match="out of order"):
        jacobian.spectra(net, pixels)


@pytest.mark.slow
def test_the_spectrum_of_the_embedded_model_agrees_with_torchs():
    net = zsr_utils.load_model("tabletop-base")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule for vmap, and would take seconds
        whole = reference(net, image)
    same_values(jacobian.spectra(net, image).values, torch.linalg.svdvals(whole))


def test_memory_changes_only_where_rows_wait(net, pixels, monkeypatch):
    """A Jacobian takes 6 * 192 * 4 bytes, and waits in a file where that is more than half of the memory."""
    files = []

    class Spooled(tempfile.SpooledTemporaryFile):
        def rollover(self):
            files.append(self)
            super().rollover()

    expected = jacobian.spectra(net, pixels)
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Spooled)
    for memory, filed in ((10_000, 0), (8_000, 5), (400, 5)):
        files.clear()
        found = jacobian.spectra(net, pixels, memory_mb=memory / 2**20)  # in panels of 26, 20 and 1 columns
        assert len(files) == filed
        torch.testing.assert_close(found.gram, expected.gram, rtol=1e-5, atol=1e-7)


def test_spectra_of_a_linear_model_are_its_matrix(linear, pixels):
    found = jacobian.spectra(linear, pixels)
    u, s, _ = torch.linalg.svd(linear.net.matrix.double(), full_matrices=False)
    torch.testing.assert_close(found.values, s.expand(5, -1), rtol=1e-5, atol=0)
    torch.testing.assert_close((found.left @ u).abs(), torch.eye(5).double().expand(5, -1, -1), rtol=0, atol=1e-5)
    rows = scores.spectrum_summary(found.values, list("abcde"))
    matrix = linear.net.matrix.double()
    assert rows.sample_id.tolist() == list("abcde")
    np.testing.assert_allclose(rows.largest, float(torch.linalg.matrix_norm(matrix, 2)), rtol=1e-5)
    np.testing.assert_allclose(rows.frobenius, float(matrix.norm()), rtol=1e-5)
    np.testing.assert_allclose(rows.condition_number, float(torch.linalg.cond(matrix)), rtol=1e-5)
    np.testing.assert_allclose(rows.effective_rank, float(s.square().sum() ** 2 / s.pow(4).sum()), rtol=1e-5)


def test_right_singular_images_are_orthonormal_and_map_to_left_vectors(net, pixels):
    found = jacobian.spectra(net, pixels)
    images = jacobian.right_singular_images(net, pixels, found.left, 4)
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
    assert (scores.linear_reach(rows, 1e-3).reach == 16).all()


def test_the_prediction_is_for_the_change_that_clipping_leaves(linear, pixels):
    rows = jacobian.linear_error(linear, pixels.round(), torch.randn(pixels.shape), [64])
    assert rows.relative_error.max() < 1e-4 and (rows.rms < 60).all()


def test_error_of_a_curved_model_grows_in_proportion_to_the_size(net, pixels):
    rows = jacobian.linear_error(net, pixels, torch.ones_like(pixels), [0.25, 0.5, 1, 32])
    error = rows.pivot(index="sample_id", columns="size", values="relative_error")
    np.testing.assert_allclose(error[1] / error[0.5], 2, rtol=0.1)
    found = scores.linear_reach(rows, float(error[1].max()))
    assert found.columns.tolist() == ["sample_id", "reach"] and (found.reach >= 1).all()
    assert (scores.linear_reach(rows, 1e-9).reach < 1e-6).all()


def test_errors_of_a_square_are_known(linear):
    """f(x) = mean(x)^2 at c, moved by h: 2 c h + h^2 measured, 2 c h predicted, h / (2 c + h) the relative error."""
    linear.net.encode_image = lambda x: (x + 0.5).mean((1, 2, 3))[:, None].square()  # the handle subtracts 0.5
    c, h = 0.4, 0.1
    rows = jacobian.linear_error(linear, torch.full((1, 3, 8, 8), c), torch.ones(1, 3, 8, 8), [255 * h])
    found = rows[["predicted", "measured", "relative_error", "lipschitz"]].iloc[0].to_numpy(float)
    measured = 2 * c * h + h**2
    np.testing.assert_allclose(found, [2 * c * h, measured, h / (2 * c + h), measured / h / 192**0.5], rtol=1e-5)


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
    net = SupervisedModel(network, namings=[[(c,) for c in "abcd"]], name="head", **options)
    return net, net.classifier("abcd"), classifier, bias


def predicted_flips(net, pixels, classifier, sigmas, **options):
    return jacobian.flip_prediction(net, pixels, jacobian.spectra(net, pixels).gram, classifier, sigmas, **options)


def measured_flips(net, image, classifier, sigma, draws=2000):
    """Share of noisy copies of an image, none of them clipped, that get another answer."""
    noise = torch.randn((draws, *image.shape), generator=torch.Generator().manual_seed(6))
    noisy = (image + sigma * noise).clamp(0, 1)
    answers = net.logits(torch.cat([image[None], noisy]), classifier).argmax(1)
    return float((answers[1:] != answers[0]).double().mean())


def test_flip_prediction_of_two_classes_is_exact(head, linear, pixels):
    """The margin of a linear model under Gaussian noise is normal, so the formula is a closed form."""
    net, classifier, weights, bias = head
    rows = predicted_flips(net, pixels, classifier[:2], [4 / 255, 16 / 255], sample_ids=list("abcde"))
    features, weight = net.encode_image(pixels).double(), (weights[0] - weights[1]).double()
    signed = features @ weight + (bias[0] - bias[1])
    margin, size = signed.abs().numpy(), float((linear.net.matrix.double().T @ weight).norm())
    assert len(set(rows.prediction)) == 2
    for sigma, part in rows.groupby("sigma"):
        assert part.sample_id.tolist() == list("abcde")
        assert part.prediction.tolist() == (signed < 0).long().tolist()
        np.testing.assert_allclose(part.flip, norm.cdf(-margin / (sigma * size)), rtol=1e-3)
        np.testing.assert_allclose(part.margin, margin, rtol=1e-4)
        np.testing.assert_allclose(part.gradient_norm, size, rtol=1e-5)
        np.testing.assert_allclose(part.directed, margin / size, rtol=1e-4)
    np.testing.assert_allclose(rows.flip, rows.flip_at_most)
    assert (rows.prediction + rows.nearest == 1).all()


def test_measured_flips_lie_between_the_bounds_of_many_classes(head, pixels):
    net, classifier, _, _ = head
    pixels = 0.5 + 0.2 * (pixels - 0.5)  # headroom, so that hardly any noisy pixel is clipped
    rows = predicted_flips(net, pixels, classifier, [24 / 255])
    measured = np.array([measured_flips(net, image, classifier, 24 / 255) for image in pixels])
    assert (measured >= rows.flip - 0.04).all() and (measured <= rows.flip_at_most + 0.04).all()
    assert measured.min() > 0 and (rows.flip < rows.flip_at_most).all()


def test_the_directed_move_closes_the_margin(head, linear, pixels):
    net, classifier, weights, bias = head
    rows = predicted_flips(net, pixels, classifier, [0.1])
    assert rows.prediction.tolist() == net.logits(pixels, classifier).argmax(1).tolist()
    if bias.any():  # the biases decide
        assert rows.prediction.tolist() != (net.encode_image(pixels) @ weights.T).argmax(1).tolist()
    for row, image in zip(rows.itertuples(), pixels):
        weight, offset = (t[row.prediction] - t[row.nearest] for t in (weights, bias))
        gradient = (linear.net.matrix.T @ weight).view_as(image)
        moved = image[None] - row.directed * gradient / gradient.norm()
        assert abs(float(net.encode_image(moved)[0] @ weight + offset)) < 1e-5 < row.margin


def test_random_moves_are_weaker_by_the_root_of_the_number_of_pixels(head, pixels):
    net, classifier, _, _ = head
    rows = jacobian.directed_against_random(net, pixels, classifier, size=2, draws=3000)
    np.testing.assert_allclose(rows.factor, np.sqrt(192), rtol=0.08)
    np.testing.assert_allclose(rows.directed, rows.predicted, rtol=1e-3)


def test_the_gram_matrix_is_the_covariance_of_noisy_embeddings(linear, pixels):
    predicted = 0.02**2 * jacobian.spectra(linear, pixels[:1]).gram[0]
    noise = 0.02 * torch.randn(20000, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    measured = torch.cov(linear.encode_image(pixels[:1] + noise).double().T)
    torch.testing.assert_close(measured, predicted, rtol=0, atol=0.05 * float(predicted.diagonal().max()))


def test_no_parameter_gets_a_gradient(net, pixels):
    with torch.no_grad():  # a notebook's no_grad does not reach inside
        found = jacobian.spectra(net, pixels)
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert found.values.min() > 0 and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_mb": 0}, "memory_mb is 0, allowed is above 0"),
        ({"pixels": torch.zeros(0, 3, 8, 8)}, "0 images given, allowed is one an image, 1 or more"),
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


def test_a_singular_value_of_zero_has_no_right_image(pixels):
    net = tiny_model()  # three channel means: rank 3 of 4
    left = jacobian.spectra(net, pixels).left
    assert jacobian.right_singular_images(net, pixels, left, 3).isfinite().all()
    with pytest.raises(ValueError, match="k is 4, allowed is up to 3: singular value 4 of image 0 is 0"):
        jacobian.right_singular_images(net, pixels, left, 4)


def test_other_bad_input_gets_one_clear_sentence(linear, pixels, classifier):
    with pytest.raises(ValueError, match="sigma is 0, allowed is above 0"):
        predicted_flips(linear, pixels, classifier, [0.1, 0])
    with pytest.raises(ValueError, match=r"classifier has shape \(1, 5\), allowed is \(K, 5\) with K at least 2"):
        predicted_flips(linear, pixels, classifier[:1], [0.1])
    with pytest.raises(ValueError, match=r"gram has shape \(4, 5, 5\), allowed is \(5, 5, 5\), one matrix an image"):
        jacobian.flip_prediction(linear, pixels, torch.ones(4, 5, 5), classifier, [0.1])
    with pytest.raises(ValueError, match="draws is 0"):
        jacobian.directed_against_random(linear, pixels, classifier, draws=0)
    with pytest.raises(ValueError, match="size is 0, allowed is above 0"):
        jacobian.linear_error(linear, pixels, pixels, [0])
    with pytest.raises(ValueError, match="direction of image 1 is 0"):
        jacobian.linear_error(linear, pixels, pixels * torch.tensor([1, 0, 1, 1, 1]).view(-1, 1, 1, 1), [1])
    with pytest.raises(ValueError, match=r"directions have shape \(2, 3, 8, 8\), allowed is \(5, 3, 8, 8\)"):
        jacobian.linear_error(linear, pixels, pixels[:2], [1])
    with pytest.raises(ValueError, match="2 sample_ids and 5 images"):
        jacobian.linear_error(linear, pixels, pixels, [1], sample_ids=["a", "b"])


def test_a_jacobian_that_is_not_finite_names_the_image(linear, pixels, classifier):
    original = linear.net.encode_image
    linear.net.encode_image = lambda x: original(x) + (x[:, :1, 0, 0] + 0.5).sqrt()  # infinite slope at 0
    pixels[3, 0, 0, 0] = 0
    for memory_mb in (64, 0.001):
        with pytest.raises(FloatingPointError, match="Jacobian of image 3 is not finite"):
            jacobian.spectra(linear, pixels, memory_mb=memory_mb)
    with pytest.raises(FloatingPointError, match="image 3"):
        jacobian.linear_error(linear, pixels, torch.ones_like(pixels), [1], batch_size=2)
    with pytest.raises(FloatingPointError, match="image 3"):
        jacobian.directed_against_random(linear, pixels, classifier)


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
    same_values(jacobian.spectra(net, inside[:2]).values, torch.linalg.svdvals(reference(net, inside[:2])))
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_the_spectrum_of_many_images_is_median_and_middle_nine_tenths():
    values = np.arange(101.0)[:, None] * [2, 1, 0] + [1000, 1, 0]
    table = scores.spectrum_by_rank(values)
    assert table.values.tolist() == [[1, 1100, 1010, 1190], [2, 51, 6, 96]]  # the third is 0


def test_the_linear_account_ends_where_it_first_fails():
    rows = pd.DataFrame({"sample_id": list("aaabbb"), "size": [4, 1, 2] * 2})
    rows["relative_error"] = [0.05, 0.1, 0.2, 0.01, 0.3, 0.01]
    assert scores.linear_reach(rows, 0.1).set_index("sample_id").reach.to_dict() == pytest.approx({"a": 1, "b": 1 / 3})


class Quadratic(nn.Module):
    """f_k(x) = a_k x + x B_k x / 2, whose Hessian is B_k everywhere."""

    def __init__(self, d=3):
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        random = torch.randn(d, 192, 192, generator=generator) / 8
        self.linear = nn.Parameter(torch.randn(d, 192, generator=generator) / 14)
        self.hessian = nn.Parameter(
            (random + random.mT) / 2 + torch.tensor([0.3, 0.1, -0.2]).view(3, 1, 1) * torch.eye(192)
        )
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_image(self, x):
        x = x.flatten(1)
        return x @ self.linear.to(x).T + torch.einsum("np,kpq,nq->nk", x, self.hessian.to(x), x) / 2


@pytest.fixture
def quadratic():
    return model_of(Quadratic(), mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture
def quadratic_squares(quadratic):
    hessian = quadratic.net.hessian.double()
    return hessian.diagonal(dim1=1, dim2=2).sum(1), torch.einsum("apq,bpq->ab", hessian, hessian)


def test_the_curvature_of_a_quadratic_map_is_its_matrices(quadratic, quadratic_squares, pixels):
    trace, gram = quadratic_squares
    found = jacobian.second_order(quadratic, pixels[:1], 4000, at_once=500)
    assert found.forms.shape == (1, 4000, 3) and found.forms.dtype == torch.float64
    assert ((found.trace[0] - trace).abs() < 4 * (2 * gram.diagonal() / 4000).sqrt()).all()
    torch.testing.assert_close(found.gram[0], gram, rtol=0, atol=0.1 * float(gram.max()))
    rows = found.squares()
    for column, exact in (("trace", trace.square().sum()), ("hessian", gram.trace())):
        assert abs(rows[column][0] - exact) < 0.3 * exact


def test_few_probes_are_unbiased(quadratic, quadratic_squares, pixels):
    trace, gram = quadratic_squares
    forms = jacobian.second_order(quadratic, pixels[:1], 4000, at_once=500).forms.view(500, 8, 3)
    rows = jacobian.Curvature(forms).squares()  # eight probes of 500 images
    for column, exact in (("trace", trace.square().sum()), ("hessian", gram.trace())):
        assert abs(rows[column].mean() - exact) < 4 * rows[column].std() / 500**0.5
    naive = jacobian.Curvature(forms).trace.square().sum(1)
    assert naive.mean() > trace.square().sum() + gram.trace() / 8  # a square of means alone is too large by a quarter


def test_noise_moves_a_quadratic_map_as_the_second_order_says(quadratic, quadratic_squares, pixels):
    """In closed form: mean sigma^2 tr(H) / 2, covariance sigma^2 J J^T + sigma^4 tr(H_a H_b) / 2."""
    sigma, (trace, gram) = 0.3, quadratic_squares
    noise = sigma * torch.randn(40000, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    moves = (quadratic.net.encode_image(pixels[:1] + noise) - quadratic.net.encode_image(pixels[:1])).double()
    first = sigma**2 * jacobian.spectra(quadratic, pixels[:1]).gram[0]
    mean, covariance = sigma**2 / 2 * trace, first + sigma**4 / 2 * gram
    assert ((moves.mean(0) - mean).abs() < 4 * (covariance.diagonal() / 40000).sqrt()).all()
    measured = torch.cov(moves.T)
    torch.testing.assert_close(measured, covariance, rtol=0, atol=0.03 * float(covariance.max()))
    assert (measured.diagonal() > 1.1 * first.diagonal()).all(), "the linear account could not be told from it"


def test_flips_to_second_order_are_those_of_a_quadratic_map(quadratic, pixels):
    """The linear account misses the mean move of the margin, and with it the side on which the answer ends."""
    sigma, image, classifier = 0.3, pixels[:1], torch.eye(3)[:2]
    gram = jacobian.spectra(quadratic, image).gram
    curvature = jacobian.second_order(quadratic, image, 1000, at_once=500)
    noise = sigma * torch.randn(20000, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    answers = (quadratic.net.encode_image(image + noise) @ classifier.T).argmax(1)
    first = jacobian.flip_prediction(quadratic, image, gram, classifier, [sigma])
    second = jacobian.flip_prediction(quadratic, image, gram, classifier, [sigma], curvature=curvature)
    measured = float((answers != first.prediction[0]).double().mean())
    assert second.flip[0] == pytest.approx(measured, abs=0.015) and abs(first.flip[0] - measured) > 0.03
    assert second.nearest[0] == first.nearest[0] and second.directed[0] == first.directed[0]
    flat = jacobian.Curvature(torch.zeros(1, 3, 3).double())
    alone = jacobian.flip_prediction(quadratic, image, gram, classifier, [sigma], curvature=flat)
    assert alone.equals(first)
    with pytest.raises(ValueError, match=r"curvature has shape \(1, 5, 5\), allowed is \(1, 3, 3\)"):
        other = jacobian.Curvature(torch.zeros(1, 3, 5).double())
        jacobian.flip_prediction(quadratic, image, gram, classifier, [sigma], curvature=other)


def test_curvature_of_attention_agrees_with_central_differences(pixels, monkeypatch):
    """Both for an image alone and in company: its probes are keyed by its name."""
    net = tiny_model(mean=(0.4,) * 3, std=(0.25,) * 3)
    net.net = Attentive().eval().requires_grad_(False)
    found = jacobian.second_order(net, pixels, 5, sample_ids=list("abcde"), at_once=2)
    alone = jacobian.second_order(net, pixels[3:4], 5, sample_ids=["d"])
    torch.testing.assert_close(alone.forms[0], found.forms[3], rtol=1e-4, atol=1e-5)

    def unknown(*_):
        raise NotImplementedError("Trying to use forward AD with it that does not support it")

    monkeypatch.setattr(torch.func, "jvp", unknown)
    differences = jacobian.second_order(net, pixels.round(), 5)  # beside black and white, which a step leaves
    monkeypatch.undo()
    expected = jacobian.second_order(net, pixels.round(), 5)
    torch.testing.assert_close(
        differences.forms, expected.forms, rtol=1e-3, atol=1e-4 * float(expected.forms.abs().max())
    )


def test_a_network_of_rectifiers_has_no_second_derivative(net, pixels):
    net.net.encode_image = lambda x: net.net.out(net.net.conv(x).relu().flatten(1)).relu()
    assert not jacobian.second_order(net, pixels, 3).forms.any()


def test_bad_input_of_the_second_order_gets_one_clear_sentence(linear, pixels):
    with pytest.raises(ValueError, match="probes is 2, allowed is 3 or more"):
        jacobian.second_order(linear, pixels, 2)
    original = linear.net.encode_image
    linear.net.encode_image = lambda x: original(x) + (x[:, :1, 0, 0] + 0.5).sqrt()
    pixels[3, 0, 0, 0] = 0
    with pytest.raises(FloatingPointError, match="second derivative of image 3 is not finite"):
        jacobian.second_order(linear, pixels, 3)
