"""Gaussian noise as an instrument, and the control of a directed change: as far, in a random direction."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zsr_utils._text import one_of
from zsr_utils.conditions._condition import Batch, Condition, Seen, unit_noise
from zsr_utils.conditions.alignment import saved_as_png


CONVERSIONS = {"float": lambda pixels: pixels, "round": saved_as_png, "truncate": lambda p: (p * 255).floor() / 255}
CONTROL = "control"  # the draw of `random_control`: noise that no condition adds


def gaussian_noise(sigmas: Sequence[float], *, conversion: str = "float") -> list[Condition]:
    """Gaussian noise of growing standard deviation.

    An image meets the same noise in draw k whatever sigma and conversion are, so differences between conditions are
    paired. Clipping takes away part of the noise of pixels near black or white.

    Args:
        sigmas: Standard deviations, in grey levels; they are the severities.
        conversion: `float` keeps the pixels, `round` is what a correct 8-bit file gives back, `truncate` cuts to the
            grey level below, as torchvision's `ToPILImage` does to floats.

    Source: Salman et al. (2024); code of its sibling arXiv 2401.15568, which truncates and does not clip.
    """
    one_of("conversion", conversion, CONVERSIONS)
    for sigma in sigmas:
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma is {sigma}, allowed is above 0, in grey levels.")
    return [Condition("gaussian_noise", sigma, partial(_noisy, float(sigma), conversion)) for sigma in sigmas]


def _noisy(sigma: float, conversion: str, batch: Batch) -> Float[Tensor, "n 3 h w"]:
    return CONVERSIONS[conversion](torch.add(batch.pixels, batch.noise, alpha=sigma / 255).clamp_(0, 1))


def rms(before: Float[Tensor, "n 3 h w"], after: Float[Tensor, "n 3 h w"]) -> Float[np.ndarray, "n"]:
    """RMS of the change of every image, in grey levels."""
    return (255 * (after - before).flatten(1).double()).square().mean(1).sqrt().cpu().numpy()


def sizes(batch: Batch, seen: Seen) -> dict:
    """Facts of a change of pixels: `rms` and `linf`, in grey levels."""
    largest = 255 * (seen.pixels - batch.pixels).flatten(1).double().abs().amax(1)
    return {"rms": rms(batch.pixels, seen.pixels), "linf": largest.cpu().numpy()}


def random_control(
    sample_ids: Sequence[str], sources: Float[Tensor, "n 3 h w"], aligned: Float[Tensor, "n 3 h w"], *, seed: int = 0
) -> Float[Tensor, "n 3 h w"]:
    """Every source moved as far as its aligned image, but in a random Gaussian direction.

    All images are taken as an 8-bit file keeps them, and the RMS of the change is within 2 % of the aligned image's
    *after* clipping and rounding.

    Source: Salman et al. (2024), the random direction against the directed one.
    """
    if sources.shape != aligned.shape:
        raise ValueError(f"aligned has shape {tuple(aligned.shape)}, allowed is {tuple(sources.shape)}, the sources'.")
    found = []
    for name, source, goal in zip(sample_ids, saved_as_png(sources), saved_as_png(aligned)):
        wanted = float((goal - source).norm())
        image, length = _moved(source, unit_noise(source.shape, [name], (seed, CONTROL))[0], wanted)
        if abs(length - wanted) > 0.02 * wanted:
            rms = 255 * wanted / source.numel() ** 0.5
            differs = f"The aligned image of {name!r} differs by {rms:.3g} grey levels (RMS)"
            raise ValueError(f"{differs}, no random direction comes within 2 %.")
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
    return min(at(low), at(high), key=lambda tried: abs(tried[1] - wanted))
