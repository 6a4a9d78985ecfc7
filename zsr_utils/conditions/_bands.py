"""Spatial-frequency bands of images: ideal radial filters, and noise that lives in one band.

The radius of a frequency is counted from the mean (0) to the corner of the spectrum, its highest
frequency (1). On an even number of pixels a cutoff of 0.25 is 0.177 cycles a pixel in every direction,
and the low band below it holds about 10 % of all frequencies.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zsr_utils._text import one_of


BANDS = ("low", "high", "all")
CUTOFF = 0.25  # between the low and the high band, as in the authors' code
EDGE = 1e-9  # a radius that is the cutoff but for rounding is within it
TINY = 1e-30


def radial_frequency(h: int, w: int) -> Float[Tensor, "h w"]:
    """Radius of every frequency of the 2-D DFT of an h x w image, in the DFT's order; the corner is 1.

    Distances are in cycles a pixel, so that a circle means one scale in an image that is not square.

    Examples:
        >>> radial_frequency(4, 4)[0].round(decimals=4).tolist()
        [0.0, 0.3536, 0.7071, 0.3536]

    Source:
        Normalised by the largest radius as in the authors' code of Wani et al. (2026); cycles a pixel on
        both axes is this project's choice.
    """
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (h, w))
    radius = torch.hypot(rows[:, None], columns)
    return radius / radius.max().clamp_min(TINY)


def band_mask(h: int, w: int, band: str, cutoff: float = CUTOFF) -> Bool[Tensor, "h w"]:
    """Frequencies of a band: `low` has radius up to the cutoff and the mean, `high` the rest, `all` is both.

    Examples:
        >>> int(band_mask(8, 8, "low").sum()), int(band_mask(8, 8, "high").sum())
        (9, 55)

    Raises:
        ValueError: If the band is unknown, the cutoff is not 0 to 1, or the band holds no frequency.

    Source:
        Wani et al. (2026), band tests; the names and the cutoff of 0.25 as in the authors' code.
    """
    one_of("band", band, BANDS)
    low = _within(h, w, cutoff)
    mask = {"low": low, "high": ~low, "all": torch.ones_like(low)}[band]
    if not mask.any():
        raise ValueError(f"cutoff is {cutoff}, allowed is a lower one: band {band!r} of {h} x {w} pixels is empty.")
    return mask


def low_pass(pixels: Float[Tensor, "n 3 h w"], cutoff: float) -> Float[Tensor, "n 3 h w"]:
    """Keep frequencies of radius up to the cutoff, clipped to [0, 1]: 0 leaves the mean colour, 1 everything.

    Raises:
        ValueError: If the cutoff is not 0 to 1.

    Source:
        Wani et al. (2026), frequency ablation.
    """
    return _filtered(pixels, _within(*pixels.shape[-2:], cutoff)).clamp(0, 1)


def high_pass(pixels: Float[Tensor, "n 3 h w"], cutoff: float) -> Float[Tensor, "n 3 h w"]:
    """Keep frequencies of radius above the cutoff and the mean, clipped to [0, 1]: 0 leaves everything.

    Raises:
        ValueError: If the cutoff is not 0 to 1.

    Source:
        Wani et al. (2026), frequency ablation. The mean stays by this project's choice: without it half
        of what is left would be clipped at black.
    """
    mask = ~_within(*pixels.shape[-2:], cutoff)
    mask[0, 0] = True
    return _filtered(pixels, mask).clamp(0, 1)


def project(delta: Float[Tensor, "*n h w"], band: str, cutoff: float = CUTOFF) -> Float[Tensor, "*n h w"]:
    """The part of a change that lies in a band; what is taken away is orthogonal to it.

    Raises:
        ValueError: As `band_mask`.

    Source:
        Wani et al. (2026), band-limited noise and PGD.
    """
    return _filtered(delta, band_mask(*delta.shape[-2:], band, cutoff))


def energy_outside(delta: Float[Tensor, "n 3 h w"], band: str, cutoff: float = CUTOFF) -> Float[Tensor, "n"]:
    """Share of a change's energy that lies outside a band, 0 to 1, in float64; NaN where nothing changed.

    Raises:
        ValueError: As `band_mask`.
    """
    delta = delta.double()
    rest = delta - project(delta, band, cutoff)
    return rest.square().sum((1, 2, 3)) / delta.square().sum((1, 2, 3))


def at_rms(delta: Float[Tensor, "n 3 h w"], rms: float) -> Float[Tensor, "n 3 h w"]:
    """Every change scaled so that its root mean square over all values is `rms`; one that is 0 stays 0."""
    size = delta.square().mean((1, 2, 3), keepdim=True).sqrt()
    return rms / size.clamp_min(TINY) * delta


def band_noise(
    shape: tuple[int, int, int], band: str, rms: float, seeds: Sequence[int], *, cutoff: float = CUTOFF
) -> Float[Tensor, "n 3 h w"]:
    """Gaussian noise of one band, with the same energy whatever the band.

    Every row has a generator of its own, so that no batch or order can change it, and one seed is the
    same noise in every band: `low` and `high` are the two parts of `all`, each scaled to `rms`.

    Examples:
        >>> noise = band_noise((3, 8, 8), "low", 0.1, seeds=[5, 6])
        >>> tuple(noise.shape), [round(float(n.square().mean().sqrt()), 6) for n in noise]
        ((2, 3, 8, 8), [0.1, 0.1])

    Args:
        shape: Of one image, (3, H, W).
        band: `low`, `high` or `all`.
        rms: Root mean square over all values of a row, in units of [0, 1] pixels.
        seeds: One a row.
        cutoff: Radius between `low` and `high`.

    Raises:
        ValueError: If rms is negative or not finite, and as `band_mask`.

    Source:
        Wani et al. (2026), band noise. The authors scale to a maximum, which gives the high band more
        energy; equal energy is this project's choice.
    """
    if not 0 <= rms < float("inf"):
        raise ValueError(f"rms is {rms}, allowed is 0 or more, in [0, 1] pixels (8 grey levels are 8/255).")
    noise = torch.empty(len(seeds), *shape)
    for one, seed in zip(noise, seeds):
        one.normal_(generator=torch.Generator().manual_seed(seed))
    return at_rms(project(noise, band, cutoff), rms)


def _within(h: int, w: int, cutoff: float) -> Bool[Tensor, "h w"]:
    if not 0 <= cutoff <= 1:
        raise ValueError(f"cutoff is {cutoff}, allowed is 0 to 1.")
    return radial_frequency(h, w) <= cutoff + EDGE


def _filtered(values: Tensor, mask: Tensor) -> Tensor:
    half = mask[:, : mask.shape[1] // 2 + 1].to(values.device)  # masks are the same for k and -k
    return torch.fft.irfft2(torch.fft.rfft2(values) * half, s=mask.shape)
