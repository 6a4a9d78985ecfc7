"""Noise as an instrument: how far, and to which answer, Gaussian noise moves what the model sees.

`response` measures drift and answers of many images under noise, `samples` the cloud of embeddings
around one image, and `random_control` makes images that differ from their sources as much as aligned
ones do, but in a random direction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from zsr_utils._progress import hidden
from zsr_utils._text import one_of
from zsr_utils.conditions.alignment import saved_as_png
from zsr_utils.models import Model
from zsr_utils.scores import detection


CONVERSIONS = {
    "float": lambda pixels: pixels,
    "round": saved_as_png,
    "truncate": lambda pixels: (pixels * 255).floor() / 255,
}
CONTROL = 2**32 - 1  # draw number of `random_control`: noise that `response` never adds


@torch.no_grad()
def response(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    classifier: Float[Tensor, "k columns"],
    *,
    sigmas: Sequence[float],
    draws: int = 16,
    conversion: str = "float",
    batch_size: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """How far noise moves every image's embedding, and how often it changes the answer.

    A noisy image is `convert(clip(x + sigma n, 0, 1))` with n ~ N(0, I); the noise-free one is
    `convert(x)`. Image i meets the same n in draw k whatever sigma, conversion, batch size and number of
    draws are, so differences between conditions are paired.

    Warning:
        `truncate` lowers about half of all pixels by one grey level at any sigma, however small: use it
        to reproduce that artefact, not to measure noise.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        classifier: Rows of `net.classifier`.
        sigmas: Standard deviations of the noise, in units of [0, 1] pixels: a grey level is 1/255.
        draws: Noisy copies an image and sigma.
        conversion: `float` keeps the pixels, `round` is what a correct 8-bit file gives back, `truncate`
            cuts to the grey level below, as torchvision's `ToPILImage` does to floats.
        batch_size: Images a forward pass.
        seed: Of the noise.

    Returns:
        One row an image and sigma, columns `row` (position of the image), `sigma`, `conversion`, `drift`
        (mean over draws of 1 - cosine to the noise-free embedding), `consistency` (share of draws whose
        answer is the noise-free one), `prediction` (noise-free answer) and `noisy_prediction` (answer of
        the mean of the noisy copies' logits: for a text classifier, whose logits are linear in the
        normalised embedding, that of the mean of those).

    Raises:
        ValueError: If there is no image or sigma, a sigma is not positive, draws or batch_size is below
            1, the conversion is unknown, or pixels or classifier have the wrong shape.

    Source:
        Salman et al. (2024) detect "by noise perturbation"; statistics after the code of its sibling
        arXiv 2401.15568, which truncates and does not clip. Number of draws, cosine and mean are ours.
    """
    one_of("conversion", conversion, CONVERSIONS)
    _check(pixels, sigmas, draws, batch_size)
    convert, n = CONVERSIONS[conversion], len(pixels)
    classifier = classifier.to(net.device)
    features = torch.cat([net.encode_image(convert(part.to(net.device))) for part in pixels.split(batch_size)])
    net.check_classifier(classifier, features.shape[1])
    clean, clean_logits = F.normalize(features.double(), dim=1).cpu(), net.logits_of(features, classifier).cpu()
    prediction = clean_logits.argmax(1)
    totals = np.zeros((len(sigmas), n, 2 + len(classifier)))  # drift, same answer, logits
    with tqdm(total=n * draws * len(sigmas), desc="noise", unit="image", disable=hidden()) as progress:
        for part in torch.arange(n * draws).split(batch_size):
            rows = part // draws
            own, first = np.unique(rows, return_index=True)
            noise = _noise(pixels.shape[1:], zip(rows.tolist(), (part % draws).tolist()), seed).to(net.device)
            images = pixels[rows].to(net.device)
            before = convert(images)
            for s, sigma in enumerate(sigmas):  # inside, so that noise is made once for all sigmas
                noisy = convert(torch.add(images, noise, alpha=sigma).clamp_(0, 1))
                features = net.encode_image(noisy)
                unit, logits = F.normalize(features.double(), dim=1).cpu(), net.logits_of(features, classifier).cpu()
                # Rounding may give the image back: its drift is 0 then, not the 1e-14 by which batches differ,
                # which a rank statistic would take for a signal.
                back = (noisy == before).flatten(1).all(1).cpu()
                unit[back], logits[back] = clean[rows[back]], clean_logits[rows[back]]
                # 1 - cos of unit vectors, without the cancellation that would hide a small drift
                drift = (unit - clean[rows]).square().sum(1) / 2
                same = logits.argmax(1) == prediction[rows]
                # a batch holds an image's draws side by side, so its rows are a run of images
                totals[s, own] += np.add.reduceat(np.column_stack([drift, same, logits]), first)
                progress.update(len(rows))
    means = torch.from_numpy(totals / draws)
    return pd.DataFrame(
        {
            "row": np.tile(np.arange(n), len(sigmas)),
            "sigma": np.repeat(np.asarray(sigmas, dtype=float), n),
            "conversion": conversion,
            "drift": means[:, :, 0].flatten().numpy(),
            "consistency": means[:, :, 1].flatten().numpy(),
            "prediction": prediction.repeat(len(sigmas)).numpy(),
            "noisy_prediction": means[:, :, 2:].argmax(2).flatten().numpy(),
        }
    )


def detect(
    rows: pd.DataFrame,
    kinds: Sequence[str],
    *,
    clean: str = "clean",
    held_out: str = "held out",
    groups: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well the response to noise tells kinds of modified images from clean ones, at every sigma.

    Args:
        rows: From `response`, of one conversion, with a column `kind`.
        kinds: Kinds of modified images.
        clean: The kind they are told from.
        held_out: The kind that alone sets the threshold.
        groups: One label a modified image; images that share one are not independent.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        A row for every kind, sigma, statistic (`drift`, or `answer`: the share of copies that change it)
        and quantity (`auroc`, `tpr`, `fpr`), with the columns of an estimate.

    Raises:
        ValueError: If a kind is missing, and as `zsr_utils.scores.detection`.
    """
    for kind in (clean, held_out, *kinds):
        one_of("kind", kind, rows.kind.unique())
    rows = rows.assign(answer=1 - rows.consistency)
    found = []
    for sigma, part in rows.groupby("sigma", sort=False):
        for statistic in ("drift", "answer"):
            of = {kind: values.to_numpy() for kind, values in part.groupby("kind")[statistic]}
            for kind in kinds:
                scores = detection(of[kind], of[clean], of[held_out], groups=groups, resamples=resamples, seed=seed)
                found += [
                    {"kind": kind, "sigma": sigma, "statistic": statistic, "quantity": name, **asdict(scores[name])}
                    for name in ("auroc", "tpr", "fpr")
                ]
    return pd.DataFrame(found)


@torch.no_grad()
def samples(
    net: Model,
    image: Float[Tensor, "3 h w"],
    *,
    sigma: float,
    draws: int,
    batch_size: int = 256,
    seed: int = 0,
) -> Float[Tensor, "draws d"]:
    """Raw embeddings of noisy copies of one image, `f(clip(x + sigma n, 0, 1))`, on the CPU.

    Clipping takes away part of the noise of pixels near black or white, so the linear account
    N(f(x), sigma^2 J J^T) holds best for images without them.

    Args:
        net: The model handle.
        image: In [0, 1].
        sigma: Standard deviation of the noise, in units of [0, 1] pixels.
        draws: Noisy copies. The first ones are those of image 0 in `response`.
        batch_size: Copies a forward pass.
        seed: Of the noise.

    Raises:
        ValueError: If sigma is not positive, draws or batch_size is below 1, or image is not one image.

    Source:
        Salman et al. (2024), normal distribution in representation space.
    """
    _check(image[None], [sigma], draws, batch_size)
    found = []
    for part in torch.arange(draws).split(batch_size):
        noise = _noise(image.shape, ((0, draw) for draw in part.tolist()), seed)
        found.append(net.encode_image(torch.add(image, noise, alpha=sigma).clamp_(0, 1).to(net.device)).cpu())
    return torch.cat(found)


def random_control(
    sources: Float[Tensor, "n 3 h w"], aligned: Float[Tensor, "n 3 h w"], *, seed: int = 0
) -> Float[Tensor, "n 3 h w"]:
    """Every source moved as far as its aligned image, but in a random Gaussian direction.

    All images are taken as an 8-bit file keeps them. The length of the direction is found by bisection,
    so that the L2 norm (and the RMS) of the change is the aligned image's *after* clipping and rounding.

    Args:
        sources: Source images in [0, 1].
        aligned: What alignment made of them.
        seed: Of the directions. They differ from the noise of `response` for any seed.

    Returns:
        (N, 3, H, W) pixels on whole grey levels, RMS within 2 % of the aligned image's change.

    Raises:
        ValueError: If the shapes differ, or no length of a random direction gives the RMS within 2 %.

    Source:
        The random direction against the directed one is the comparison of Salman et al. (2024).
    """
    if sources.shape != aligned.shape:
        raise ValueError(f"aligned has shape {tuple(aligned.shape)}, allowed is {tuple(sources.shape)}, the sources'.")
    _check(sources, [1], 1, 1)
    found = []
    for row, (source, goal) in enumerate(zip(saved_as_png(sources), saved_as_png(aligned))):
        wanted = float((goal - source).norm())
        image, length = _moved(source, _noise(source.shape, [(row, CONTROL)], seed)[0], wanted)
        if abs(length - wanted) > 0.02 * wanted:
            rms = 255 * wanted / source.numel() ** 0.5
            raise ValueError(
                f"aligned image {row} differs by {rms:.3g} grey levels (RMS), no random direction comes within 2 %."
            )
        found.append(image)
    return torch.stack(found)


def _moved(source: Tensor, direction: Tensor, wanted: float) -> tuple[Tensor, float]:
    """The image along a direction whose change, clipped and rounded, is nearest to a length; and that length."""

    def at(scale: float) -> tuple[Tensor, float]:
        image = saved_as_png((source + scale * direction).clamp_(0, 1))
        return image, float((image - source).norm())

    low, high = 0.0, 1 / 255
    while at(high)[1] < wanted and high < 1000:  # at 1000 every pixel is black or white
        low, high = high, 2 * high
    for _ in range(24):  # the length grows in jumps, a pixel by a grey level, so it may pass by `wanted`
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] < wanted else (low, middle)
    return min(at(low), at(high), key=lambda found: abs(found[1] - wanted))


def _noise(shape: Sequence[int], keys: Iterable[tuple[int, int]], seed: int) -> Float[Tensor, "pairs 3 h w"]:
    """Unit noise of (row, draw) pairs: a generator each, so that no batch or order can change it."""
    # SeedSequence mixes the three numbers; torch's CPU generator keeps 32 bits of what it gives
    states = [np.random.SeedSequence((seed, *key)).generate_state(1)[0] for key in keys]
    noise = torch.empty(len(states), *shape)
    for one, state in zip(noise, states):
        one.normal_(generator=torch.Generator().manual_seed(int(state)))
    return noise


def _check(pixels: Tensor, sigmas: Sequence[float], draws: int, batch_size: int) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) == 0:
        raise ValueError(f"images have shape {tuple(pixels.shape)}, allowed is (N, 3, H, W) with N at least 1.")
    if len(sigmas) == 0:
        raise ValueError("sigmas is empty, allowed is one number above 0 or more.")
    for sigma in sigmas:
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma is {sigma}, allowed is above 0, in [0, 1] pixels (8 grey levels are 8/255).")
    for name, value in {"draws": draws, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, allowed is 1 or more.")
