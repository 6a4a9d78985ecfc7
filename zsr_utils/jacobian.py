"""The Jacobian J = df/dx of the raw image embedding, how far its linear account holds, and what curvature adds.

x is an image in [0, 1] (P = 3 H W pixels), f(x) its raw embedding (D numbers, not normalised), J is D x P. J costs D
backward passes; kept is only J J^T, whose eigenvalues are the squared singular values of J and whose multiple
sigma^2 J J^T is, to first order, the covariance of the embedding under pixel noise N(0, sigma^2 I). To second order the
mean moves by sigma^2 tr(H_k) / 2 in coordinate k, whose Hessian is H_k (P x P), and the covariance gains
sigma^4 tr(H_a H_b) / 2; `second_order` estimates both without a Hessian.

Images are named in the rows by `sample_ids`, and numbered without. A derivative that is not finite raises
FloatingPointError, which names the image.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from zsr_utils._progress import progress
from zsr_utils.conditions import unit_noise
from zsr_utils.models import Model


AT_ONCE = 32  # rows of J in one backward pass at most: more are hardly faster, and cost about 2 MB each on small images
STEP = 1e-3  # of a central second difference in float64, in [0, 1] pixels: a quarter grey level


@dataclass(frozen=True)
class Spectra:
    """Singular values of the Jacobian of every image, float64; below about 1e-6 of the largest they are rounding."""

    values: Float[Tensor, "n d"]  # descending, embedding units per unit of [0, 1] pixels
    left: Float[Tensor, "n d d"]  # unit left singular vectors; `left[n, i]` belongs to `values[n, i]`

    @property
    def gram(self) -> Float[Tensor, "n d d"]:
        """J J^T in float64."""
        return self.left.mT @ (self.values.square()[..., None] * self.left)


@dataclass(frozen=True)
class Curvature:
    """Forms v^T H_k v of the Hessian of every coordinate k, float64, for probes v ~ N(0, I): what `second_order` gives.

    Over probes they have mean tr(H_k) and covariance 2 tr(H_a H_b).
    """

    forms: Float[Tensor, "n m d"]  # embedding units per squared unit of [0, 1] pixels

    @property
    def trace(self) -> Float[Tensor, "n d"]:
        """tr(H_k)."""
        return self.forms.mean(1)

    @property
    def gram(self) -> Float[Tensor, "n d d"]:
        """tr(H_a H_b), of rank below the number of probes."""
        around = self.forms - self.trace[:, None]
        return around.mT @ around / (2 * (around.shape[1] - 1))

    def squares(self) -> pd.DataFrame:
        """Unbiased ||tr H||^2 (`trace`) and sum of ||H_k||_F^2 (`hessian`), a row an image."""
        m, lengths, square = self.forms.shape[1], self.forms.square().sum(2).sum(1), self.forms.sum(1).square().sum(-1)
        found = {"trace": (square - lengths) / (m * (m - 1)), "hessian": (lengths - square / m) / (2 * (m - 1))}
        return pd.DataFrame({name: values.cpu().numpy() for name, values in found.items()})


def spectra(net: Model, pixels: Float[Tensor, "n 3 h w"], *, memory_mb: float = 64) -> Spectra:
    """Singular values, and left singular vectors, of the Jacobian of every image.

    J J^T is summed in float64: in float32, values below 3e-4 of the largest would be lost. J and the copies made of it
    take `memory_mb` MiB; one that does not fit waits in a temporary file of D * P * 4 bytes, where `TMPDIR` says.

    Source: Salman et al. (2024), Fig. 3; the computation through J J^T is this project's choice.
    """
    _names(None, pixels)
    _above_zero("memory_mb", [memory_mb], "MiB")
    d, p, memory = _features(net, pixels[:1]).shape[1], pixels[0].numel(), int(memory_mb * 2**20)
    step = max(1, min(AT_ONCE, memory // (24 * p)))  # rows and their gradients: a sixth of the memory
    units = torch.eye(d, device=net.device)
    values, left = [], []
    with progress(len(pixels), "spectra") as bar:
        for n, image in enumerate(pixels):
            gram = _gram(_rows(net, image, units, step), d, p, memory)
            _refuse_not_finite(gram, [n])
            squares, columns = torch.linalg.eigh(gram)
            values.append(squares.clamp_min(0).sqrt().flip(0).cpu())
            left.append(columns.flip(1).T.contiguous().cpu())
            bar.update()
    return Spectra(torch.stack(values), torch.stack(left))


def right_singular_images(
    net: Model, pixels: Float[Tensor, "n 3 h w"], left: Float[Tensor, "n d d"], k: int
) -> Float[Tensor, "n k 3 h w"]:
    """The k pixel patterns to which the embedding answers most: right singular vectors v = J^T u / s, of unit norm.

    Errors of float32 grow as s_1 / s_i, so that far down the spectrum they are no longer orthogonal.
    """
    _names(None, pixels)
    if len(left) != len(pixels):
        raise ValueError(f"{len(pixels)} images and left vectors of {len(left)} given, allowed is one set an image.")
    if not 1 <= k <= left.shape[1]:
        raise ValueError(f"k is {k}, allowed is 1 to {left.shape[1]}.")
    found = []
    for n, image in enumerate(pixels):
        rows = torch.cat(list(_rows(net, image, left[n, :k].to(net.device, torch.float32), 8))).cpu()
        _refuse_not_finite(rows[None], [n])
        sizes = rows.norm(dim=1, keepdim=True)
        if (lost := sizes[:, 0] <= 1e-6 * sizes[0]).any():
            rank = int(lost.nonzero()[0])
            raise ValueError(f"k is {k}, allowed is up to {rank}: singular value {rank + 1} of image {n} is 0.")
        found.append((rows / sizes).view(k, *image.shape))
    return torch.stack(found)


def linear_error(
    net: Model, pixels: Float[Tensor, "n 3 h w"], directions: Float[Tensor, "n 3 h w"], sizes: Sequence[float], *,
    sample_ids: Sequence | None = None, batch_size: int = 64,
) -> pd.DataFrame:  # fmt: skip
    """How far f(x + change) is from f(x) + J change, along one direction an image and at growing size.

    The moved image is clipped to [0, 1], and the prediction is made for the change that is left. `sizes` are its RMS
    before clipping, in grey levels.

    Returns: A row an image and size: `sample_id`, `size`, `rms` (grey levels, after clipping), `predicted`
        (||J change||) and `measured` (||f(x + change) - f(x)||), both in embedding units, `relative_error` (norm of the
        difference of the two vectors, by `measured`), `lipschitz` (`measured` by ||change|| in [0, 1] pixels).

    Source: Salman et al. (2024) for directional Lipschitz constants.
    """
    names, rows = _names(sample_ids, pixels), []
    if directions.shape != pixels.shape:
        shapes = tuple(directions.shape), tuple(pixels.shape)
        raise ValueError(f"directions have shape {shapes[0]}, allowed is {shapes[1]}, one an image.")
    if not (rms := _rms(directions)).gt(0).all():
        raise ValueError(f"The direction of image {int(rms.le(0).nonzero()[0])} is 0, allowed is any other.")
    _above_zero("size", sizes, "grey levels")
    for part in torch.arange(len(pixels)).split(batch_size):
        images, units = pixels[part].to(net.device), (directions[part] / rms[part].view(-1, 1, 1, 1)).to(net.device)
        before = _features(net, images)
        for size in sizes:
            moved = (images + size / 255 * units).clamp(0, 1)
            change = moved - images
            measured = (_features(net, moved) - before).double()
            with _plain_attention():
                predicted = torch.func.jvp(net.encode_image, (images,), (change,))[1].double()
            _refuse_not_finite(predicted, part)
            length = measured.norm(dim=1)
            error = (measured - predicted).norm(dim=1) / length
            lipschitz = length / change.flatten(1).double().norm(dim=1)
            values = torch.stack([255 * _rms(change), predicted.norm(dim=1), length, error, lipschitz], 1).tolist()
            rows += [(names[n], float(size), *row) for n, row in zip(part, values)]
    columns = "sample_id size rms predicted measured relative_error lipschitz"
    return pd.DataFrame(rows, columns=columns.split())


def second_order(
    net: Model, pixels: Float[Tensor, "n 3 h w"], probes: int, *,
    seed: int = 0, sample_ids: Sequence | None = None, at_once: int = 8,
) -> Curvature:  # fmt: skip
    """Curvature of the embedding at every image, from second derivatives along random probes.

    v^T H_k v is the second derivative of f_k along v: two forward derivatives, for all k at once, that cost about 20
    passes; a copy in float64 and central differences where a network has none. A network of rectifiers is linear in
    pieces: its forms are 0, though its kinks move the mean. Of m probes, tr(H) has the standard error
    sqrt(2 / m) ||H||_F; each of those `at_once` takes the memory of about four images.

    Source: Hutchinson (1990) for the trace; the account to second order, and its test, are this project's.
    """
    names, forms = _names(sample_ids, pixels), []
    if probes < 3:
        raise ValueError(f"probes is {probes}, allowed is 3 or more.")
    along = _along(net)
    with progress(len(pixels), "second derivatives") as bar:
        for n, image in enumerate(pixels.to(net.device)):
            drawn = unit_noise(image.shape, [f"{names[n]}\0{probe}" for probe in range(probes)], (seed, "probe"))
            parts = [along(image.repeat(len(v), 1, 1, 1), v.to(net.device)).double() for v in drawn.split(at_once)]
            forms.append(torch.cat(parts).cpu())
            _refuse_not_finite(forms[-1][None], [n], "second derivative")
            bar.update()
    return Curvature(torch.stack(forms))


def flip_prediction(
    net: Model, pixels: Float[Tensor, "n 3 h w"], gram: Float[Tensor, "n d d"], classifier: Float[Tensor, "k columns"],
    sigmas: Sequence[float], *, curvature: Curvature | None = None, sample_ids: Sequence | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Probability that noise changes the answer, by the linear account, which knows no clipping to [0, 1].

    Class a is the answer at x. With w = t_a - t_b its margin over b, m = w f (and b_a - b_b more where classes have
    biases), is normal under noise, with mean m and standard deviation sigma ||J^T w||. The answer changes when any of
    the K - 1 margins is negative: the largest of the probabilities is a lower bound of that, `flip`, and their sum an
    upper one, `flip_at_most`.

    Args:
        gram: `Spectra.gram` of the same images: ||J^T w||^2 = w^T J J^T w.
        curvature: `second_order` of the same images. With H = sum of w_k H_k, the margin's mean is then
            m + sigma^2 tr(H) / 2, its variance sigma^2 ||J^T w||^2 + sigma^4 ||H||_F^2 / 2.
        sigmas: Standard deviations of the noise, in units of [0, 1] pixels.

    Returns: A row an image and sigma: `sample_id`, `sigma`, `flip`, `flip_at_most`, `prediction` (a), `nearest` (the b
        of `flip` to first order), and of that b `margin`, `gradient_norm` and `directed` (margin / gradient_norm).

    Source: Salman et al. (2024) for the linear Gaussian account; the formulas are inferred.
    """
    names, rows = _names(sample_ids, pixels), []
    _above_zero("sigma", sigmas, "in [0, 1] pixels (8 grey levels are 8/255)")
    features = torch.cat([_features(net, part) for part in pixels.split(100)])
    if gram.shape != (shape := (len(pixels), features.shape[1], features.shape[1])):
        raise ValueError(f"gram has shape {tuple(gram.shape)}, allowed is {shape}, one matrix an image.")
    curvature = curvature or Curvature(gram.new_zeros(len(gram), 2, gram.shape[1]))
    if (found := curvature.gram).shape != shape:
        raise ValueError(f"curvature has shape {tuple(found.shape)}, allowed is {shape}, one matrix an image.")
    matrices = (t.to(net.device) for t in (gram, curvature.trace, found))
    for name, feature, own, shift, spread in zip(names, features, *matrices):
        answer, others, apart, margins = _rivals(net, feature, classifier)
        norms = ((apart @ own) * apart).sum(1).clamp_min(0).sqrt()
        directed, best = (margins / norms).min(0)
        at = answer, int(others[best]), float(margins[best]), float(norms[best]), float(directed)
        for sigma in sigmas:
            variance = (sigma * norms) ** 2 + sigma**4 / 2 * ((apart @ spread) * apart).sum(1)
            mean = margins + sigma**2 / 2 * (apart @ shift)
            flips = torch.special.erfc(mean / (2 * variance).sqrt()) / 2  # torch's ndtr is 0 far down the tail
            rows.append((name, sigma, float(flips.max()), min(1.0, float(flips.sum())), *at))
    columns = "sample_id sigma flip flip_at_most prediction nearest margin gradient_norm directed"
    return pd.DataFrame(rows, columns=columns.split())


def directed_against_random(
    net: Model, pixels: Float[Tensor, "n 3 h w"], classifier: Float[Tensor, "k columns"], *,
    size: float = 0.05, draws: int = 200, seed: int = 0, sample_ids: Sequence | None = None,
) -> pd.DataFrame:  # fmt: skip
    """How much further the margin over the runner-up moves along its gradient than along random noise.

    All moves have the norm r = size / 255 * sqrt(P), `size` in grey levels (RMS). Against the gradient the margin moves
    by r ||g||; along a random direction by r ||g|| / sqrt(P) (RMS), so that the predicted factor is sqrt(P). Moved
    images are clipped to [0, 1], and measured with float32 embeddings: give images with headroom, and a size at which
    `random` is well above 1e-6 of the embedding's norm. The factor's relative standard error is 1 / sqrt(2 draws).

    Returns: A row an image: `sample_id`, `predicted` (r ||g||), `directed` and `random` (size of the moves measured),
        and `factor` (their quotient).

    Source: Salman et al. (2024): zero-shot against systematic evaluation; the factor is inferred.
    """
    names, rows = _names(sample_ids, pixels), []
    _above_zero("size", [size], "grey levels")
    _above_zero("draws", [draws], "1 or more")
    root = pixels[0].numel() ** 0.5
    for n, image in enumerate(pixels.to(net.device)):
        _, _, apart, margins = _rivals(net, _features(net, image[None])[0], classifier)
        best = int(margins.argmin())
        gradient = next(_rows(net, image, apart[best].float()[None], 1))
        _refuse_not_finite(gradient, [n])
        noise = unit_noise(image.shape, [f"{names[n]}\0{draw}" for draw in range(draws)], (seed,)).to(net.device)
        moves = F.normalize(torch.cat([-gradient, noise.flatten(1)])).view(-1, *image.shape)
        moved = torch.cat([image[None], (image + size / 255 * root * moves).clamp(0, 1)])
        features = torch.cat([_features(net, part) for part in moved.split(100)]).double()
        changes = (features[1:] - features[0]) @ apart[best]
        directed, random = float(changes[0].abs()), float(changes[1:].square().mean().sqrt())
        predicted = size / 255 * root * float(gradient.double().norm())
        rows.append((names[n], predicted, directed, random, directed / random if random else np.inf))
    return pd.DataFrame(rows, columns=["sample_id", "predicted", "directed", "random", "factor"])


def _rows(net: Model, image: Tensor, cotangents: Tensor, step: int) -> Iterator[Tensor]:
    """Products of cotangents (R, D) with the Jacobian of one image, `step` of them at a time, (step, P) float32."""
    pixels = image[None].to(net.device)
    try:
        # The backward pass of fused attention has no vmap rule and would fall back to a loop over samples.
        with _plain_attention():
            _, pull = torch.func.vjp(net.encode_image, pixels)
        pull = torch.vmap(pull)
        for part in cotangents[:, None].split(step):
            yield pull(part)[0].flatten(1)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("vmap", "functorch", "Batching rule")):
            raise
        # a model that torch cannot vmap: one ordinary backward pass a row
        pixels.requires_grad_(True)
        with torch.enable_grad():
            features = net.encode_image(pixels)
        for cotangent in cotangents:
            (row,) = torch.autograd.grad(features, pixels, cotangent[None], retain_graph=True)
            yield row.flatten(1)


def _along(net: Model) -> Callable[[Tensor, Tensor], Tensor]:
    """The second derivative of raw embeddings at pixels (N, ...) along directions (N, ...)."""

    @torch.no_grad()
    def derived(pixels: Tensor, v: Tensor) -> Tensor:
        with _plain_attention():
            return torch.func.jvp(lambda x: torch.func.jvp(net.encode_image, (x,), (v,))[1], (pixels,), (v,))[1]

    @torch.no_grad()
    def differences(pixels: Tensor, v: Tensor) -> Tensor:
        steps = (pixels + STEP * k * v.double() for k in (1, 0, -1))  # they may leave [0, 1]
        after, at, before = (twin.encode_image((x - net.mean) / net.std) for x in steps)
        return (after - 2 * at + before) / STEP**2

    side = net.image_size
    try:
        derived(*torch.full((2, 1, 3, side, side), 0.5, device=net.device))
    except RuntimeError as error:
        if not any(word in str(error) for word in ("forward AD", "functorch", "jvp")):
            raise
        twin = copy.deepcopy(net.net).double()
        return differences
    return derived


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention of which every derivative is known: fused kernels have no forward mode and no rule for vmap."""
    fast = torch.backends.mha.get_fastpath_enabled()  # the fused kernel of frozen `nn.MultiheadAttention`
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _gram(blocks: Iterator[Tensor], d: int, p: int, memory: int) -> Tensor:
    """J J^T in float64, summed over panels: some columns of J in all D rows."""
    # Rows come one after the other and are wanted panel by panel, so they are laid out in panels, in a file where they
    # would fill more than half of the memory: pages of a memory map would count as this process's memory.
    width = max(1, min(p, memory // (64 * d)))  # a panel in float64: an eighth of the memory
    done, total = 0, 0
    with tempfile.SpooledTemporaryFile(memory // 2) as file:
        for block in blocks:
            for start in range(0, p, width):
                part = block[:, start : start + width].contiguous().cpu().numpy()
                file.seek(4 * (start * d + done * part.shape[1]))
                file.write(part)
            done += len(block)
        file.seek(0)
        for start in range(0, p, width):
            file.readinto(numbers := bytearray(4 * d * min(width, p - start)))
            panel = torch.frombuffer(numbers, dtype=torch.float32).view(d, -1).to(block.device).double()
            total = total + panel @ panel.T
    return total


def _rivals(net: Model, feature: Tensor, classifier: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
    """The answer, the other classes (K - 1), and of each t_a - t_b (K - 1, D) and the margin (K - 1), in float64."""
    net.check_classifier(classifier, len(feature))
    weights, bias = (found.double() for found in net.directions(classifier.to(net.device)))
    scores = weights @ feature.double() + bias  # on raw embeddings
    answer = int(scores.argmax())
    others = torch.arange(len(scores), device=scores.device)
    others = others[others != answer]
    return answer, others, weights[answer] - weights[others], scores[answer] - scores[others]


@torch.no_grad()
def _features(net: Model, pixels: Tensor) -> Tensor:
    return net.encode_image(pixels.to(net.device))


def _rms(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).double().square().mean(1).sqrt().to(pixels.dtype)


def _names(sample_ids: Sequence | None, pixels: Tensor) -> list:
    names = list(range(len(pixels)) if sample_ids is None else sample_ids)
    if len(names) != len(pixels) or not names:
        raise ValueError(f"{len(names)} sample_ids and {len(pixels)} images given, allowed is one an image, 1 or more.")
    return names


def _above_zero(name: str, values: Sequence[float], unit: str) -> None:
    for value in values:
        if not value > 0:
            raise ValueError(f"{name} is {value}, allowed is above 0, {unit}.")


def _refuse_not_finite(values: Tensor, images: Sequence[int], what: str = "Jacobian") -> None:
    wrong = ~values.reshape(len(images), -1).isfinite().all(1)
    if wrong.any():
        raise FloatingPointError(f"The {what} of image {int(images[int(wrong.nonzero()[0])])} is not finite.")
