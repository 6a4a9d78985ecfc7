"""The Jacobian J = df/dx of the raw image embedding, and what its linear account predicts.

x is an image in [0, 1] (P = 3 H W pixels), f(x) its raw embedding (D numbers, not normalised), J is D x P.
A row of J is one vector-Jacobian product, so J costs D backward passes and an image of 224 x 224 pixels
0.3 GB; `spectra` keeps only the Gram matrix J J^T, whose eigenvalues are the squared singular values of J
and whose multiple is the covariance of the embedding under pixel noise. Weights are frozen: no pass here
computes a parameter gradient.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from zsr_utils._progress import hidden
from zsr_utils._text import one_of
from zsr_utils.models import Model


MB = 2**20
ROUNDING = 1e-6  # of the largest singular value: what lies below comes from float32 rows
COTANGENTS = 32  # in one backward pass at most: more are hardly faster, and cost about 2 MB each on small images


@dataclass(frozen=True)
class Spectra:
    """Singular values of the Jacobian of every image.

    Attributes:
        values: (N, D) float64, descending, embedding units per unit of [0, 1] pixels. They come from
            float32 rows: below about 1e-6 of the largest they are rounding.
        left: (N, D, D) float64, unit left singular vectors; `left[n, i]` belongs to `values[n, i]`. None
            when not asked for.
    """

    values: Float[Tensor, "n d"]
    left: Float[Tensor, "n d d"] | None = None

    @property
    def gram(self) -> Float[Tensor, "n d d"]:
        """J J^T in float64.

        Raises:
            ValueError: If the left singular vectors were not kept.
        """
        if self.left is None:
            raise ValueError("spectra were made with vectors=False, the Gram matrix needs vectors=True.")
        return self.left.mT @ (self.values.square()[..., None] * self.left)


def spectra(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    *,
    vectors: bool = True,
    route: str = "auto",
    rows_at_once: int | None = None,
    memory_mb: float = 64,
) -> Spectra:
    """Singular values, and left singular vectors, of the Jacobian of every image.

    G = J J^T is summed in float64 from float32 rows, and its eigenvalues are the squared singular values:
    squared in float32 they would be lost below 3e-4 of the largest. J itself is held only while it fits
    into `memory_mb`, several images at a time if possible; where one J is larger, its rows go to a
    temporary file, from which every number is read back once.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        vectors: Keep left singular vectors, D * D numbers an image.
        route: How rows are made: `loop`, one backward pass of all images a row; `tiled`, one ordinary
            pass over copies of the images, one copy a row; `batched`, one graph and
            `is_grads_batched`; `jacrev`, one graph and a vmapped `torch.func.vjp`. `auto` is `jacrev`: on
            two CPU cores as fast as the best of the others, for one image and for many, and with the
            activations of one forward pass only. `loop` is for models that cannot be vmapped.
        rows_at_once: Rows in one backward pass; None takes 32 divided by the images at a time, or fewer
            where their gradients would fill more than a sixth of `memory_mb`. Ignored by `loop`.
        memory_mb: For J and for the copies made of it, in MiB; activations of the model are extra. The
            temporary file lies where `TMPDIR` says and holds D * P * 4 bytes.

    Raises:
        ValueError: If there is no image, the route is unknown, or a number is out of range.
        FloatingPointError: If a Jacobian is not finite; the message names the image.

    Source:
        Salman et al. (2024), Fig. 3; the computation through J J^T is this project's choice.
    """
    _check_images(pixels)
    one_of("route", route, ("auto", *ROUTES))
    _check_range("rows_at_once", rows_at_once, rows_at_once is None or rows_at_once >= 1, "1 or more")
    _check_range("memory_mb", memory_mb, memory_mb > 0, "above 0")
    d, p, budget = _dimension(net, pixels), pixels[0].numel(), int(memory_mb * MB)
    fitting = min(len(pixels), budget // (4 * d * p))
    together = max(1, fitting)
    rows_at_once = rows_at_once or max(1, min(COTANGENTS, budget // (24 * p)) // together)  # gradients: a sixth
    width = max(1, min(p, budget // (64 * d * together)))  # one panel in float64: an eighth of the memory
    units = torch.eye(d, device=net.device)[:, None]
    values, left = [], []
    with tqdm(total=len(pixels), desc="spectra", disable=hidden()) as progress:
        for first, images in _batches(pixels, together):
            images = images.to(net.device)
            blocks = ROUTES[route](net, images, units.expand(-1, len(images), -1), rows_at_once)
            shape = (len(images), d, p)
            gram = _gram(_panels_kept(blocks, shape, width) if fitting else _panels_filed(blocks, shape, width))
            _refuse_not_finite(gram, first)
            squares, columns = torch.linalg.eigh(gram)
            values.append(squares.clamp_min(0).sqrt().flip(-1).cpu())
            if vectors:
                left.append(columns.flip(-1).mT.contiguous().cpu())
            progress.update(len(images))
    return Spectra(torch.cat(values), torch.cat(left) if vectors else None)


def top_singular(
    net: Model, image: Float[Tensor, "3 h w"], k: int, *, tolerance: float = 1e-6
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"], Float[Tensor, "k 3 h w"]]:
    """The k largest singular values and their vectors, without the rest: Lanczos steps on x -> J x, J^T x.

    For large D and small k. A step costs one forward-mode and one reverse-mode product, and some three to
    ten steps go to each value; above about D / 10 values, `spectra` is faster.

    Args:
        net: The model handle.
        image: One image in [0, 1].
        k: How many.
        tolerance: Relative error of the squared values at which the steps stop; products are float32, so
            that less than about 1e-7 is never reached.

    Returns:
        Values, descending; left vectors; right vectors as images; all of them float64, unit vectors.

    Raises:
        ValueError: If k is not 1 to D - 1.
        FloatingPointError: If the Jacobian is not finite.

    Source:
        `scipy.sparse.linalg.svds` (ARPACK, Lehoucq et al. 1998).
    """
    from scipy.sparse.linalg import LinearOperator, svds

    d, shape = _dimension(net, image[None]), image.shape
    if not 1 <= k < d:
        raise ValueError(f"k is {k}, allowed is 1 to {d - 1}; `spectra` gives all {d} values.")
    image = image[None].to(net.device)
    with _plain_attention():
        _, pull = torch.func.vjp(net.encode_image, image)

    def finite(found: Tensor) -> np.ndarray:
        _refuse_not_finite(found[None], 0)
        return found.flatten().cpu().double().numpy()

    def push(direction: np.ndarray) -> np.ndarray:
        return finite(_push(net, image, torch.from_numpy(direction).float().to(net.device).view_as(image)))

    def pull_back(direction: np.ndarray) -> np.ndarray:
        return finite(pull(torch.from_numpy(direction).float().to(net.device).view(1, d))[0])

    operator = LinearOperator((d, image.numel()), matvec=push, rmatvec=pull_back, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(d)  # ARPACK's own is not seeded
    left, values, right = svds(operator, k=k, tol=tolerance, v0=start)
    left, values, right = (torch.from_numpy(a.copy()) for a in (left.T[::-1], values[::-1], right[::-1]))
    return values, left, right.view(k, *shape)


def right_singular_images(
    net: Model, pixels: Float[Tensor, "n 3 h w"], left: Float[Tensor, "n d d"], k: int, *, route: str = "auto"
) -> Float[Tensor, "n k 3 h w"]:
    """The first k right singular vectors of every image, v = J^T u / s, as images of unit norm.

    They are the k pixel patterns to which the embedding answers most. Errors of float32 grow as s_1 / s_i,
    so that far down the spectrum the images are no longer orthogonal.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        left: Left singular vectors as `spectra` gives them.
        k: How many.
        route: As in `spectra`.

    Raises:
        ValueError: If k is not 1 to D, shapes do not match, or one of the k singular values is 0 to
            rounding.
    """
    _check_images(pixels)
    one_of("route", route, ("auto", *ROUTES))
    if len(left) != len(pixels):
        raise ValueError(f"{len(pixels)} images and left vectors of {len(left)} given, allowed is one set an image.")
    if not 1 <= k <= left.shape[1]:
        raise ValueError(f"k is {k}, allowed is 1 to {left.shape[1]}.")
    found = []
    for first, images in _batches(pixels, 16):
        part = left[first : first + 16, :k].transpose(0, 1).to(net.device, torch.float32)
        rows = torch.cat(list(ROUTES[route](net, images.to(net.device), part, 8))).transpose(0, 1).cpu()
        _refuse_not_finite(rows, first)
        sizes = rows.norm(dim=-1, keepdim=True)
        if (lost := sizes[..., 0] <= 1e-6 * sizes[:, :1, 0]).any():
            n, i = lost.nonzero()[0].tolist()
            raise ValueError(f"k is {k}, allowed is up to {i}: singular value {i + 1} of image {first + n} is 0.")
        found.append((rows / sizes).view(len(images), k, *images.shape[1:]))
    return torch.cat(found)


def summary(found: Spectra, sample_ids: Sequence | None = None) -> pd.DataFrame:
    """One row an image: how strongly, and in how many directions, the embedding answers to the pixels.

    Returns:
        Columns `sample_id`, `largest` (s_1), `frobenius` (root of the sum of s^2), `effective_rank`
        ((sum s^2)^2 / sum s^4, from 1 to D), `rank` (values above 1e-6 of the largest; below it is
        rounding) and `condition` (s_1 by the smallest of those). An encoder that ends in a layer
        normalisation has at least one value of 0: its outputs lie in a plane.

    Examples:
        >>> summary(Spectra(torch.tensor([[3.0, 3.0]]).double())).round(3).values.tolist()
        [[0.0, 3.0, 4.243, 2.0, 2.0, 1.0]]

    Source:
        Salman et al. (2024) show spectra; the four numbers are this project's choice.
    """
    squares = found.values.square()
    rank = (found.values > ROUNDING * found.values[:, :1]).sum(1)
    return pd.DataFrame(
        {
            "sample_id": _names(sample_ids, len(squares)),
            "largest": found.values[:, 0],
            "frobenius": squares.sum(1).sqrt(),
            "effective_rank": squares.sum(1).square() / squares.square().sum(1),
            "rank": rank,
            "condition": found.values[:, 0] / found.values.gather(1, rank[:, None] - 1)[:, 0],
        }
    )


def ranked(found: Spectra) -> pd.DataFrame:
    """The spectrum of a set of images, rank by rank.

    Returns:
        Columns `rank` (from 1), `value` (median over the images), `low` and `high` (5th and 95th
        percentile), for ranks whose median is above 1e-6 of the largest.

    Examples:
        >>> ranked(Spectra(torch.tensor([[4.0, 2.0, 0.0]]).double())).value.tolist()
        [4.0, 2.0]
    """
    low, middle, high = np.quantile(found.values.numpy(), [0.05, 0.5, 0.95], axis=0)
    table = pd.DataFrame({"rank": np.arange(1, len(middle) + 1), "value": middle, "low": low, "high": high})
    return table[table["value"] > ROUNDING * middle[0]]


def predicted_covariance(gram: Float[Tensor, "n d d"], sigma: float) -> Float[Tensor, "n d d"]:
    """Covariance of the embedding under pixel noise N(0, sigma^2 I), to first order: sigma^2 J J^T.

    Its trace, sigma^2 ||J||_F^2, is the mean squared move of the embedding.

    Args:
        gram: `Spectra.gram`.
        sigma: Standard deviation of the noise, in units of [0, 1] pixels.

    Raises:
        ValueError: If sigma is not above 0.

    Examples:
        >>> predicted_covariance(torch.eye(2), 0.5).tolist()
        [[0.25, 0.0], [0.0, 0.25]]
    """
    _check_sigmas([sigma])
    return sigma**2 * gram


def linear_error(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    directions: Float[Tensor, "n 3 h w"],
    sizes: Sequence[float],
    *,
    sample_ids: Sequence | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """How far f(x + change) is from f(x) + J change, along one direction an image and at growing size.

    A direction may be Gaussian noise, a right singular image, or an attack (aligned less source image).
    The moved image is clipped to [0, 1], and the prediction is made for the change that is left. At very
    small sizes the measured difference is rounding: float32 embeddings agree to about 1e-6.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        directions: One an image, of any length above 0; only the direction counts.
        sizes: Root mean square of the change before clipping, in grey levels (1/255).
        sample_ids: Names of the images; their numbers by default.
        batch_size: Images at a time; one forward-mode product moves all of them.

    Returns:
        A row an image and size: `sample_id`, `size`, `rms` (grey levels, after clipping), `predicted`
        (||J change||), `measured` (||f(x + change) - f(x)||), `relative_error` (norm of the difference of
        the two vectors, by `measured`), `lipschitz` (`measured` by ||change||).

    Raises:
        ValueError: If there is no image, shapes differ, a direction has no length, or a size is not
            above 0.

    Source:
        Directional Lipschitz constants: Salman et al. (2024); relative error is this project's choice.
    """
    _check_images(pixels)
    if directions.shape != pixels.shape:
        shapes = tuple(directions.shape), tuple(pixels.shape)
        raise ValueError(f"directions have shape {shapes[0]}, allowed is {shapes[1]}, one an image.")
    if not (rms := _rms(directions)).gt(0).all():
        raise ValueError(f"The direction of image {int(rms.le(0).nonzero()[0])} is 0, allowed is any other.")
    for size in sizes:
        _check_range("size", size, size > 0, "above 0 grey levels")
    names, rows = _names(sample_ids, len(pixels)), []
    for first, images in _batches(pixels, batch_size):
        images = images.to(net.device)
        units = directions[first : first + batch_size].to(net.device)
        units = units / _rms(units).view(-1, 1, 1, 1)
        with torch.no_grad():
            before = net.encode_image(images)
        for size in sizes:
            moved = (images + size / 255 * units).clamp(0, 1)
            change = moved - images
            with torch.no_grad():
                measured = (net.encode_image(moved) - before).double()
            predicted = _push(net, images, change).double()
            _refuse_not_finite(predicted, first)
            length = measured.norm(dim=1)
            columns = {
                "size": torch.full_like(length, size),
                "rms": 255 * _rms(change),
                "predicted": predicted.norm(dim=1),
                "measured": length,
                "relative_error": (measured - predicted).norm(dim=1) / length,
                "lipschitz": length / change.flatten(1).double().norm(dim=1),
            }
            part = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
            part.insert(0, "sample_id", names[first : first + batch_size])
            rows.append(part)
    return pd.concat(rows, ignore_index=True)


def reach(rows: pd.DataFrame, tolerance: float = 0.1, *, by: Sequence[str] = ("sample_id",)) -> pd.DataFrame:
    """The largest size up to which the linear account holds: no error above the tolerance until there.

    Args:
        rows: From `linear_error`; rows of several experiments may be joined.
        tolerance: Of the relative error.
        by: Columns that tell one direction from another.

    Returns:
        The columns of `by` and `reach`, one of the sizes in grey levels, 0 if the smallest fails.

    Raises:
        ValueError: If the tolerance is not above 0.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": 0, "size": [1, 2, 4], "relative_error": [0.01, 0.2, 0.05]})
        >>> reach(rows).reach.tolist()
        [1]
    """
    _check_range("tolerance", tolerance, tolerance > 0, "above 0")

    def largest(part: pd.DataFrame):
        part = part.sort_values("size")
        holds = (part["relative_error"] <= tolerance).cummin()
        return part["size"][holds].max() if holds.any() else 0

    groups = rows.groupby(list(by), sort=False)[["size", "relative_error"]]
    return groups.apply(largest).rename("reach").reset_index()


def flip_prediction(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    classifier: Float[Tensor, "k columns"],
    sigmas: Sequence[float],
    *,
    gram: Float[Tensor, "n d d"] | None = None,
    route: str = "auto",
    sample_ids: Sequence | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Probability that noise changes the answer, by the linear account.

    Class a is the answer at x. Its margin over b, m = (t_a - t_b) f, and b_a - b_b more where classes have
    biases, is normal under noise, with mean m and standard deviation sigma ||J^T (t_a - t_b)||, and is
    negative with probability Phi(-m / (sigma ||J^T (t_a - t_b)||)). The answer changes when any of the K - 1
    margins is negative: the largest of the probabilities is a lower bound of that, `flip`, and their sum an
    upper one, `flip_at_most`, both within the linear account; for two classes they are the same.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        classifier: Rows of `net.classifier`; the margin is taken on raw embeddings, whose answer is the same.
        sigmas: Standard deviations of the noise, in units of [0, 1] pixels.
        gram: `Spectra.gram` of the same images, which saves the K - 1 backward passes a batch:
            ||J^T w||^2 = w^T J J^T w.
        route: As in `spectra`.
        sample_ids: Names of the images; their numbers by default.
        batch_size: Images at a time.

    Returns:
        A row an image and sigma: `sample_id`, `sigma`, `prediction` (a), `nearest` (the b of `flip`),
        `flip`, `flip_at_most`, and of that b `margin`, `gradient_norm` and `directed` (norm of the
        smallest change of pixels that closes the margin, margin / gradient_norm).

    Raises:
        ValueError: If there is no image, the classifier does not fit, or a sigma that is not above 0.
        FloatingPointError: If a Jacobian is not finite; the message names the image.

    Source:
        Salman et al. (2024) for the linear Gaussian account; the formulas are inferred.
    """
    _check_images(pixels)
    _check_sigmas(sigmas)
    one_of("route", route, ("auto", *ROUTES))
    names, rows = _names(sample_ids, len(pixels)), []
    for first, images in _batches(pixels, batch_size):
        images = images.to(net.device)
        answers, others, weights, offsets = _against(net, images, classifier)
        with torch.no_grad():
            margins = (weights @ net.encode_image(images)[..., None])[..., 0].double() + offsets
        if gram is None:
            blocks = ROUTES[route](net, images, weights.transpose(0, 1), max(1, COTANGENTS // len(images)))
            norms = torch.cat([block.double().norm(dim=-1) for block in blocks]).T
        else:
            wide = weights.double()
            part = gram[first : first + batch_size].to(net.device)
            norms = ((wide @ part) * wide).sum(-1).clamp_min(0).sqrt()
        _refuse_not_finite(norms, first)
        distances = margins / norms
        directed, best = distances.min(1)
        index = torch.arange(len(images))
        for sigma in sigmas:
            flips = torch.special.erfc(distances / (2**0.5 * sigma)) / 2  # torch's ndtr is 0 far down the tail
            columns = {
                "prediction": answers,
                "nearest": others[index, best],
                "flip": flips.amax(1),
                "flip_at_most": flips.sum(1).clamp_max(1),
                "margin": margins[index, best],
                "gradient_norm": norms[index, best],
                "directed": directed,
            }
            part = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
            part.insert(0, "sigma", sigma)
            part.insert(0, "sample_id", names[first : first + batch_size])
            rows.append(part)
    return pd.concat(rows, ignore_index=True)


def flip_measured(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    classifier: Float[Tensor, "k columns"],
    sigmas: Sequence[float],
    *,
    draws: int = 200,
    seed: int = 0,
    sample_ids: Sequence | None = None,
    batch_size: int = 100,
) -> pd.DataFrame:
    """Share of noisy copies to which the model gives another answer than to the image itself.

    The model takes no pixels outside [0, 1], so noisy copies are clipped; `clipped` says how many of their
    pixels that changed. For the unclipped noise of `flip_prediction`, give images with headroom. All
    sigmas scale the same draws.

    Returns:
        A row an image and sigma: `sample_id`, `sigma`, `prediction`, `flip` (a share of `draws`), `draws`,
        `clipped` (a share of the pixels).

    Raises:
        ValueError: If there is no image, the classifier does not fit, no draw, or a sigma that is not above 0.
    """
    _check_images(pixels)
    _check_sigmas(sigmas)
    _check_range("draws", draws, draws >= 1, "1 or more")
    names, rows = _names(sample_ids, len(pixels)), []
    generator = torch.Generator(net.device).manual_seed(seed)
    answers = _answers(net, pixels, classifier)
    for n, image in enumerate(tqdm(pixels, desc="flip_measured", disable=hidden())):
        image, flips, clipped = image.to(net.device), dict.fromkeys(sigmas, 0), dict.fromkeys(sigmas, 0.0)
        for start in range(0, draws, batch_size):
            shape = (min(batch_size, draws - start), *image.shape)
            noise = torch.randn(shape, generator=generator, device=net.device)
            for sigma in sigmas:
                noisy = image + sigma * noise
                flips[sigma] += int((_answers(net, noisy.clamp(0, 1), classifier) != answers[n]).sum())
                clipped[sigma] += float(((noisy < 0) | (noisy > 1)).sum() / image.numel())
        for sigma in sigmas:
            rows.append((names[n], sigma, int(answers[n]), flips[sigma] / draws, draws, clipped[sigma] / draws))
    return pd.DataFrame(rows, columns=["sample_id", "sigma", "prediction", "flip", "draws", "clipped"])


def directed_against_random(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    classifier: Float[Tensor, "k columns"],
    *,
    size: float = 0.25,
    draws: int = 200,
    seed: int = 0,
    sample_ids: Sequence | None = None,
) -> pd.DataFrame:
    """How much further the margin over the runner-up moves along its gradient than along random noise.

    All moves have the norm r = size / 255 * sqrt(P). Against the gradient the margin moves by r ||g||;
    along a random direction by r ||g|| / sqrt(P) (root mean square), so that the predicted factor is
    sqrt(P), 388 at 224 x 224 pixels. Moved images are clipped to [0, 1], and moves are measured with
    float32 embeddings: give images with headroom, and a size at which `random` is well above 1e-6 of the
    embedding's norm.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        classifier: Rows of `net.classifier`.
        size: Root mean square of a move, in grey levels.
        draws: Random directions an image; the factor's relative standard error is 1 / sqrt(2 draws).
        seed: Of the draws.
        sample_ids: Names of the images; their numbers by default.

    Returns:
        One row an image: `sample_id`, `prediction`, `runner_up`, `predicted` (r ||g||), `directed` and
        `random` (size of the moves measured), `factor` (their quotient), `predicted_factor`.

    Raises:
        ValueError: If there is no image, the classifier does not fit, no draw, or a size that is not above 0.
        FloatingPointError: If a gradient is not finite; the message names the image.

    Source:
        Salman et al. (2024): zero-shot against systematic evaluation; the factor is inferred.
    """
    _check_images(pixels)
    _check_range("size", size, size > 0, "above 0 grey levels")
    _check_range("draws", draws, draws >= 1, "1 or more")
    generator = torch.Generator(net.device).manual_seed(seed)
    root, rows = pixels[0].numel() ** 0.5, []
    names = _names(sample_ids, len(pixels))
    for n, image in enumerate(pixels.to(net.device)[:, None]):
        answers, others, weights, offsets = _against(net, image, classifier)
        with torch.no_grad():
            margins = weights[0] @ net.encode_image(image)[0] + offsets[0]
        best = int(margins.argmin())
        weight = weights[0, best]
        (gradient,) = ROUTES["loop"](net, image, weight[None, None], 1)
        _refuse_not_finite(gradient, n)
        noise = torch.randn((draws, *image.shape[1:]), generator=generator, device=net.device)
        moves = torch.cat([-gradient.view_as(image), noise])
        moves = size / 255 * root * F.normalize(moves.flatten(1)).view_as(moves)
        moved = torch.cat([image, (image + moves).clamp(0, 1)])
        with torch.no_grad():
            features = torch.cat([net.encode_image(part) for part in moved.split(100)]).double()
        changes = (features[1:] - features[0]) @ weight.double()
        directed, random = float(changes[0].abs()), float(changes[1:].square().mean().sqrt())
        predicted = size / 255 * root * float(gradient.double().norm())
        found = (names[n], int(answers[0]), int(others[0, best]), predicted, directed, random)
        rows.append((*found, directed / random if random else np.inf, root))
    columns = "sample_id prediction runner_up predicted directed random factor predicted_factor"
    return pd.DataFrame(rows, columns=columns.split())


# Rows of J. Every route takes cotangents (R, N, D), `step` of them at a time, and yields their products
# with the Jacobians of N images, (step, N, P) in float32.


def _loop(net: Model, pixels: Tensor, cotangents: Tensor, step: int) -> Iterator[Tensor]:
    pixels, features = _forward(net, pixels)
    for cotangent in cotangents:
        (rows,) = torch.autograd.grad(features, pixels, cotangent, retain_graph=True)
        yield rows.flatten(1)[None]


def _tiled(net: Model, pixels: Tensor, cotangents: Tensor, step: int) -> Iterator[Tensor]:
    n = len(pixels)
    pixels, features = _forward(net, pixels.repeat(min(step, len(cotangents)), 1, 1, 1))
    for part in cotangents.split(step):
        used = len(part) * n  # fewer copies than there are, in the last pass
        with torch.enable_grad():
            seen = features[:used]
        (rows,) = torch.autograd.grad(seen, pixels, part.reshape(used, -1), retain_graph=True)
        yield rows[:used].view(len(part), n, -1)


def _batched(net: Model, pixels: Tensor, cotangents: Tensor, step: int) -> Iterator[Tensor]:
    with _plain_attention():
        pixels, features = _forward(net, pixels)
    for part in cotangents.split(step):
        (rows,) = torch.autograd.grad(features, pixels, part, retain_graph=True, is_grads_batched=True)
        yield rows.flatten(2)


def _jacrev(net: Model, pixels: Tensor, cotangents: Tensor, step: int) -> Iterator[Tensor]:
    # The backward pass of fused attention has no vmap rule and would fall back to a loop over samples.
    with _plain_attention():
        _, pull = torch.func.vjp(net.encode_image, pixels)
    pull = torch.vmap(pull)
    for part in cotangents.split(step):
        yield pull(part)[0].flatten(2)


ROUTES: dict[str, Callable[[Model, Tensor, Tensor, int], Iterator[Tensor]]] = {
    "loop": _loop,
    "tiled": _tiled,
    "batched": _batched,
    "jacrev": _jacrev,
    "auto": _jacrev,
}


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention of which every derivative is known: fused kernels have no forward mode and no rule for vmap.

    That of frozen `nn.MultiheadAttention`, which open_clip's transformers use, is a kernel of its own.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _forward(net: Model, pixels: Tensor) -> tuple[Tensor, Tensor]:
    pixels = pixels.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        return pixels, net.encode_image(pixels)


def _push(net: Model, pixels: Tensor, directions: Tensor) -> Tensor:
    """J times a direction, for every image at once."""
    with _plain_attention():
        return torch.func.jvp(net.encode_image, (pixels,), (directions,))[1]


# The Gram matrix. Panels are some columns of J in all D rows, (N, D, width).


def _gram(panels: Iterable[Tensor]) -> Tensor:
    total = 0
    for panel in panels:
        panel = panel.double()
        total = total + panel @ panel.mT
    return total


def _panels_kept(blocks: Iterable[Tensor], shape: tuple[int, int, int], width: int) -> Iterator[Tensor]:
    kept, done = None, 0
    for block in blocks:
        kept = block.new_empty(shape) if kept is None else kept
        kept[:, done : done + len(block)] = block.transpose(0, 1)
        done += len(block)
    yield from kept.split(width, -1)


def _panels_filed(blocks: Iterable[Tensor], shape: tuple[int, int, int], width: int) -> Iterator[Tensor]:
    """Rows come one after the other and are wanted panel by panel: the file is laid out in panels.

    Plain reads and writes, not a memory map: mapped pages count as this process's memory.
    """
    _, d, p = shape
    with tempfile.TemporaryFile() as file:
        done = 0
        for block in blocks:
            device = block.device
            for start in range(0, p, width):
                part = block[:, 0, start : start + width].contiguous().cpu().numpy()
                file.seek(4 * (start * d + done * part.shape[1]))
                file.write(part)
            done += len(block)
        file.seek(0)
        for start in range(0, p, width):
            panel = np.fromfile(file, np.float32, d * min(width, p - start))
            yield torch.from_numpy(panel).view(1, d, -1).to(device)


def _against(net: Model, images: Tensor, classifier: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The answers (N,), the other classes (N, K-1), and of each t_a - t_b (N, K-1, D) and b_a - b_b (N, K-1)."""
    answers = _answers(net, images, classifier)
    weights, bias = net.directions(classifier.to(net.device))
    classes = torch.arange(len(weights), device=net.device).expand(len(images), -1)
    others = classes[classes != answers[:, None]].view(len(images), -1)
    return answers, others, weights[answers][:, None] - weights[others], bias[answers][:, None] - bias[others]


@torch.no_grad()
def _answers(net: Model, pixels: Tensor, classifier: Tensor, *, batch_size: int = 100) -> Tensor:
    features = torch.cat([net.encode_image(part.to(net.device)) for part in pixels.split(batch_size)])
    net.check_classifier(classifier, features.shape[1])
    weights, bias = net.directions(classifier.to(net.device))  # on raw embeddings, as the margins
    return (features @ weights.T + bias).argmax(1)


@torch.no_grad()
def _dimension(net: Model, pixels: Tensor) -> int:
    return net.encode_image(pixels[:1].to(net.device)).shape[1]


def _batches(pixels: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    return ((first, pixels[first : first + size]) for first in range(0, len(pixels), size))


def _rms(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).double().square().mean(1).sqrt().to(pixels.dtype)


def _names(sample_ids: Sequence | None, n: int) -> list:
    names = list(range(n)) if sample_ids is None else list(sample_ids)
    if len(names) != n:
        raise ValueError(f"{len(names)} sample_ids and {n} images given, allowed is one an image.")
    return names


def _check_images(pixels: Tensor) -> None:
    if not len(pixels):
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}, allowed is at least one image.")


def _check_range(name: str, value: float | None, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}, allowed is {allowed}.")


def _check_sigmas(sigmas: Sequence[float]) -> None:
    for sigma in sigmas:
        _check_range("sigma", sigma, sigma > 0, "above 0 (8 grey levels are 8/255)")


def _refuse_not_finite(values: Tensor, first: int) -> None:
    wrong = ~values.flatten(1).isfinite().all(1)
    if wrong.any():
        raise FloatingPointError(f"The Jacobian of image {first + int(wrong.nonzero()[0])} is not finite.")
