"""Which spatial frequencies an answer hangs on: filters, noise and attacks that live in one band.

`sweep` takes frequencies away, `noise` adds random ones, `attack` looks for the worst ones. Noise and
attacks of all bands have the same energy (RMS), so that their effects can be compared. The margin is
`m = s_base - max of s_o over o != base`: s are the logits and base is the model's own clean answer, not
the label. Differences of logits are differences of log-probabilities.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from zsr_utils._progress import hidden
from zsr_utils.conditions import at_rms, band_mask, energy_outside, high_pass, low_pass, project
from zsr_utils.conditions.alignment import encode, saved_as_png
from zsr_utils.experiments.noise import _check as _check_images, _noise
from zsr_utils.models import Model


FILTERS = {"low_pass": low_pass, "high_pass": high_pass}
TINY = 1e-30


@torch.no_grad()
def sweep(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    classifier: Float[Tensor, "k columns"],
    *,
    cutoffs: Sequence[float] = tuple(i / 9 for i in range(10)),
    batch_size: int = 256,
) -> pd.DataFrame:
    """What the model says when only low, or only high, spatial frequencies are kept.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        classifier: Rows of `net.classifier`, two or more.
        cutoffs: Radii, 0 (the mean) to 1 (the corner of the spectrum); `low_pass` keeps what is up to
            the cutoff, `high_pass` what is above, and the mean.
        batch_size: Images a forward pass.

    Returns:
        One row a filter, cutoff and image, columns `row` (position of the image), `filter`, `cutoff`,
        `prediction`, `clean_prediction`, `margin` (logits).

    Raises:
        ValueError: If there is no image or cutoff, a cutoff is not 0 to 1, batch_size is below 1, or
            pixels or classifier have the wrong shape.

    Source:
        Wani et al. (2026), frequency ablation, with the cutoffs of the authors' code.
    """
    _check_images(pixels, [1], 1, batch_size)
    _check_filled(cutoffs=cutoffs)
    for cutoff in cutoffs:
        band_mask(*pixels.shape[2:], "low", cutoff)
    classifier, features, base = _clean(net, pixels, classifier, batch_size)
    total, found = len(pixels), []
    with tqdm(total=total * len(FILTERS) * len(cutoffs), desc="sweep", unit="image", disable=hidden()) as progress:
        for rows in torch.arange(total).split(batch_size):
            images = pixels[rows].to(net.device)
            conditions = [(name, cutoff) for name in FILTERS for cutoff in cutoffs]
            for c, (name, cutoff) in enumerate(conditions):
                _, logits = _seen(net, FILTERS[name](images, cutoff), images, features[rows], classifier)
                columns = {"row": rows, "filter": name, "cutoff": float(cutoff), **_answers(logits, base[rows])}
                found.append(_frame(columns, c * total + rows))
                progress.update(len(rows))
    return pd.concat(found).sort_index()


@torch.no_grad()
def noise(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    classifier: Float[Tensor, "k columns"],
    *,
    rms: Sequence[float],
    bands: Sequence[str] = ("low", "high", "all"),
    draws: int = 5,
    cutoff: float = 0.25,
    batch_size: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """What the model makes of Gaussian noise of one band, at the same energy in every band.

    A noisy image is clip(x + delta, 0, 1). Image i meets the same Gaussian noise in draw k whatever band,
    level, batch size and number of draws are: it is that of `experiments.noise.response`, of which every band
    keeps its part, scaled to the RMS. So differences between bands and levels are paired.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        classifier: Rows of `net.classifier`, two or more.
        rms: Root mean squares of delta, in units of [0, 1] pixels: a grey level is 1/255.
        bands: Of `low`, `high` and `all`.
        draws: Noisy copies an image, band and level.
        cutoff: Radius between `low` and `high`; 0.25 is 0.177 cycles a pixel.
        batch_size: Images a forward pass.
        seed: Of the noise.

    Returns:
        One row a band, RMS, image and draw, columns `row`, `band`, `rms`, `draw`, `prediction`,
        `clean_prediction`, `margin` (logits), `drift` (1 - cosine to the clean embedding), `outside`
        (share of the energy of the change, after clipping, that lies outside the band; NaN for no
        change).

    Raises:
        ValueError: If there is no image, level or band, an rms is negative, a band is unknown or holds no
            frequency, draws or batch_size is below 1, or pixels or classifier have the wrong shape.

    Source:
        Wani et al. (2026), band noise; five draws as in the authors' code. Energy matched across bands
        is this project's choice: the authors match the maximum before clipping.
    """
    _check_images(pixels, [1], draws, batch_size)
    _check_conditions(pixels, rms, bands, cutoff)
    classifier, features, base = _clean(net, pixels, classifier, batch_size)
    conditions = [(band, level) for band in bands for level in rms]
    total, found = len(pixels) * draws, []
    with tqdm(total=total * len(conditions), desc="band noise", unit="image", disable=hidden()) as progress:
        for part in torch.arange(total).split(batch_size):
            rows, copies = part // draws, part % draws
            images = pixels[rows].to(net.device)
            white = _noise(pixels.shape[1:], zip(rows.tolist(), copies.tolist()), seed).to(net.device)
            unit = {band: at_rms(project(white, band, cutoff), 1) for band in bands}
            for c, (band, level) in enumerate(conditions):
                noisy = torch.add(images, unit[band], alpha=level).clamp_(0, 1)
                embedded, logits = _seen(net, noisy, images, features[rows], classifier)
                columns = {
                    "row": rows,
                    "band": band,
                    "rms": float(level),
                    "draw": copies,
                    **_answers(logits, base[rows]),
                    "drift": _drift(embedded, features[rows]),
                    "outside": energy_outside(noisy - images, band, cutoff).cpu(),
                }
                found.append(_frame(columns, c * total + part))
                progress.update(len(part))
    return pd.concat(found).sort_index()


@torch.no_grad()
def attack(
    net: Model,
    pixels: Float[Tensor, "n 3 h w"],
    classifier: Float[Tensor, "k columns"],
    *,
    rms: Sequence[float],
    bands: Sequence[str] = ("low", "high", "all"),
    steps: int = 10,
    cutoff: float = 0.25,
    batch_size: int = 256,
) -> pd.DataFrame:
    """The worst change of one band that gradient steps find, at the same energy in every band.

    Projected gradient descent against the log-probability of the clean answer, in the band and in the L2
    ball of radius `rms` times the square root of the number of values. A log-probability is what the
    paper's score of an answer is, and a zero-shot model gives it by softmax at its own scale; the logit
    alone may fall together with all others, which changes nothing. Steps follow the log-odds
    `log p / (1 - p)`: the same direction, which does not vanish where the model is certain.

    Images, clean ones included, are taken as an 8-bit file keeps them. The one that is scored is rounded
    to grey levels after the last step, which puts about 0.29 grey levels (RMS) into all frequencies: read
    `outside` and `achieved_rms` at small radii.

    Args:
        net: The model handle.
        pixels: Images in [0, 1].
        classifier: Rows of `net.classifier`, two or more.
        rms: Largest root mean squares of the change, in units of [0, 1] pixels.
        bands: Of `low`, `high` and `all`.
        steps: Gradient steps, each of length 2.5 radius / steps; the start is the image itself.
        cutoff: Radius between `low` and `high`; 0.25 is 0.177 cycles a pixel.
        batch_size: Images a pass.

    Returns:
        One row a band, RMS and image, columns `row`, `band`, `rms`, `prediction`, `clean_prediction`,
        `success` (the answer flips and the log-probability of the clean one is lower), `flip`, `margin`
        (logits), `drift` (1 - cosine to the clean embedding), `outside` (share of the energy of the
        change of the scored image that lies outside the band; NaN for no change), `achieved_rms` (of
        that change, in [0, 1] pixels).

    Raises:
        ValueError: If there is no image, level or band, an rms is negative, a band is unknown or holds no
            frequency, steps or batch_size is below 1, or pixels or classifier have the wrong shape.
        FloatingPointError: If a gradient is not finite; the message names image and step.

    Source:
        Wani et al. (2026), band PGD of 10 steps. The L2 ball, which scaling keeps inside the band where
        the authors' clamping leaves it, and steps of 2.5 radius / steps (Madry et al. 2018) are ours.
    """
    _check_images(pixels, [1], 1, batch_size)
    _check_conditions(pixels, rms, bands, cutoff)
    if steps < 1:
        raise ValueError(f"steps is {steps}, allowed is 1 or more.")
    pixels = saved_as_png(pixels)
    classifier, features, base = _clean(net, pixels, classifier, batch_size)
    clean_scores = _log_probability(net.logits_of(features.to(net.device), classifier).cpu(), base)
    conditions = [(band, level) for band in bands for level in rms]
    total, found = len(pixels), []
    with tqdm(total=total * len(conditions), desc="band attack", unit="image", disable=hidden()) as progress:
        for rows in torch.arange(total).split(batch_size):
            images = pixels[rows].to(net.device)
            for c, (band, level) in enumerate(conditions):
                delta = _pgd(net, images, classifier, base[rows], band, level, steps, cutoff, rows)
                moved = saved_as_png((images + delta).clamp(0, 1))
                embedded, logits = _seen(net, moved, images, features[rows], classifier)
                answers = _answers(logits, base[rows])
                flip = answers["prediction"] != answers["clean_prediction"]
                columns = {
                    "row": rows,
                    "band": band,
                    "rms": float(level),
                    "prediction": answers["prediction"],
                    "clean_prediction": answers["clean_prediction"],
                    "success": flip & (_log_probability(logits, base[rows]) < clean_scores[rows]),
                    "flip": flip,
                    "margin": answers["margin"],
                    "drift": _drift(embedded, features[rows]),
                    "outside": energy_outside(moved - images, band, cutoff).cpu(),
                    "achieved_rms": (moved - images).double().square().mean((1, 2, 3)).sqrt().cpu(),
                }
                found.append(_frame(columns, c * total + rows))
                progress.update(len(rows))
    return pd.concat(found).sort_index()


def _pgd(net, images, classifier, base, band, rms, steps, cutoff, rows) -> Tensor:
    """The change before clipping: in the band and in the ball."""
    radius = rms * images[0].numel() ** 0.5
    base = base.to(net.device)[:, None]
    delta = torch.zeros_like(images)
    for step in range(steps):
        seen = (images + delta).clamp(0, 1).requires_grad_(True)
        with torch.enable_grad():
            logits = net.logits(seen, classifier)
            # log (1 - p) / p, without the difference 1 - p that float32 loses
            odds = logits.scatter(1, base, -torch.inf).logsumexp(1) - logits.gather(1, base)[:, 0]
            (gradient,) = torch.autograd.grad(odds.sum(), seen)
        wrong = ~gradient.flatten(1).isfinite().all(1)
        if wrong.any():
            raise FloatingPointError(f"The gradient of image {int(rows[wrong.cpu()][0])} is not finite at step {step}.")
        # Black cannot get darker, nor white brighter. Not left to the gradient of `clamp`: 0 at its ends in torch 2.15,
        # it would never let them go.
        held = ((seen <= 0) & (gradient < 0)) | ((seen >= 1) & (gradient > 0))
        uphill = project(gradient.masked_fill(held, 0), band, cutoff)
        delta = project(delta + 2.5 * radius / steps * uphill / _length(uphill), band, cutoff)
        delta = (radius / _length(delta)).clamp_max(1) * delta  # a number an image: nothing leaves the band
    return delta


def _length(values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 1 1"]:
    return torch.linalg.vector_norm(values, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)


def _clean(net, pixels, classifier, batch_size) -> tuple[Tensor, Tensor, Tensor]:
    """The classifier on the device; raw embeddings and answers of the images, on the CPU."""
    features = encode(net, pixels, batch_size=batch_size)
    net.check_classifier(classifier, features.shape[1])
    classifier = classifier.to(net.device)
    return classifier, features, net.logits_of(features.to(net.device), classifier).argmax(1).cpu()


def _seen(net, images, before, features, classifier) -> tuple[Tensor, Tensor]:
    """Raw embeddings and logits of changed images, on the CPU.

    An image that did not change keeps its embedding: it must not drift by the rounding in which batches differ.
    """
    same = (images == before).flatten(1).all(1).cpu()[:, None]
    embedded = torch.where(same, features, net.encode_image(images).cpu())
    return embedded, net.logits_of(embedded.to(net.device), classifier).cpu()


def _frame(columns: dict, index: Int[Tensor, "n"]) -> pd.DataFrame:
    arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in columns.items()}
    return pd.DataFrame(arrays, index=index.numpy())


def _answers(logits: Float[Tensor, "n k"], base: Int[Tensor, "n"]) -> dict[str, Tensor]:
    others = logits.scatter(1, base[:, None], -torch.inf).amax(1)
    margin = logits.gather(1, base[:, None])[:, 0] - others
    return {"prediction": logits.argmax(1), "clean_prediction": base, "margin": margin.double()}


def _log_probability(logits: Float[Tensor, "n k"], base: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    return logits.double().log_softmax(1).gather(1, base[:, None])[:, 0]


def _drift(embedded: Float[Tensor, "n d"], features: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """1 - cosine, without the cancellation that would hide a small drift."""
    after, before = (F.normalize(values.double(), dim=1) for values in (embedded, features))
    return (after - before).square().sum(1) / 2


def _check_filled(**lists: Sequence) -> None:
    for name, values in lists.items():
        if len(values) == 0:
            raise ValueError(f"{name} is empty, allowed is one value or more.")


def _check_conditions(pixels: Tensor, rms: Sequence[float], bands: Sequence[str], cutoff: float) -> None:
    _check_filled(rms=rms, bands=bands)
    for level in rms:
        if not 0 <= level < float("inf"):
            raise ValueError(f"rms is {level}, allowed is 0 or more, in [0, 1] pixels (8 grey levels are 8/255).")
    for band in bands:
        band_mask(*pixels.shape[2:], band, cutoff)
