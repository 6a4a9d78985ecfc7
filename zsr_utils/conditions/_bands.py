"""Spatial-frequency bands of images: ideal radial filters, noise and attacks that live in one band.

The radius of a frequency is counted from the mean (0) to the corner of the spectrum, its highest frequency (1): a
cutoff of 0.25 is 0.177 cycles a pixel in every direction, and about 10 % of all frequencies lie below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zsr_utils._text import one_of
from zsr_utils.conditions._condition import Batch, Condition, Seen
from zsr_utils.conditions._noise import sizes
from zsr_utils.conditions.alignment import saved_as_png


BANDS = ("low", "high", "all")
CUTOFF = 0.25  # between the low and the high band, as in the authors' code
EDGE = 1e-9  # a radius that is the cutoff but for rounding is within it
TINY = 1e-30


def radial_frequency(h: int, w: int) -> Float[Tensor, "h w"]:
    """Radius of every frequency of the 2-D DFT of an h x w image, in the DFT's order; the corner is 1.

    Source: Code of Wani et al. (2026); here cycles a pixel on both axes, so that a circle means one scale in an image
        that is not square.
    """
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (h, w))
    radius = torch.hypot(rows[:, None], columns)
    return radius / radius.max().clamp_min(TINY)


def band_mask(h: int, w: int, band: str, cutoff: float = CUTOFF) -> Bool[Tensor, "h w"]:
    """Frequencies of a band: `low` has radius up to the cutoff and the mean, `high` the rest, `all` is both."""
    one_of("band", band, BANDS)
    low = _within(h, w, cutoff)
    mask = {"low": low, "high": ~low, "all": torch.ones_like(low)}[band]
    if not mask.any():
        raise ValueError(f"cutoff is {cutoff}, allowed is a lower one: band {band!r} of {h} x {w} pixels is empty.")
    return mask


def low_pass(pixels: Float[Tensor, "n 3 h w"], cutoff: float) -> Float[Tensor, "n 3 h w"]:
    """Keep frequencies of radius up to the cutoff, clipped to [0, 1]: 0 leaves the mean colour, 1 everything."""
    return _filtered(pixels, _within(*pixels.shape[-2:], cutoff)).clamp(0, 1)


def high_pass(pixels: Float[Tensor, "n 3 h w"], cutoff: float) -> Float[Tensor, "n 3 h w"]:
    """Keep frequencies of radius above the cutoff and the mean, clipped to [0, 1]: 0 leaves everything.

    Without the mean half of what is left would be clipped at black.
    """
    mask = ~_within(*pixels.shape[-2:], cutoff)
    mask[0, 0] = True
    return _filtered(pixels, mask).clamp(0, 1)


def project(delta: Float[Tensor, "*n h w"], band: str, cutoff: float = CUTOFF) -> Float[Tensor, "*n h w"]:
    """The part of a change that lies in a band; what is taken away is orthogonal to it."""
    return _filtered(delta, band_mask(*delta.shape[-2:], band, cutoff))


def energy_outside(delta: Float[Tensor, "n 3 h w"], band: str, cutoff: float = CUTOFF) -> Float[Tensor, "n"]:
    """Share of a change's energy that lies outside a band, 0 to 1, in float64; NaN where nothing changed."""
    delta = delta.double()
    rest = delta - project(delta, band, cutoff)
    return rest.square().sum((1, 2, 3)) / delta.square().sum((1, 2, 3))


def at_rms(delta: Float[Tensor, "n 3 h w"], rms: float) -> Float[Tensor, "n 3 h w"]:
    """Every change scaled so that its root mean square over all values is `rms`; one that is 0 stays 0."""
    size = delta.square().mean((1, 2, 3), keepdim=True).sqrt()
    return rms / size.clamp_min(TINY) * delta


FILTERS = {"low_pass": low_pass, "high_pass": high_pass}


def filters(cutoffs: Sequence[float]) -> list[Condition]:
    """Only the low, or only the high, spatial frequencies: the severity is the cutoff, 0 to 1.

    Source: Wani et al. (2026), frequency ablation.
    """
    for cutoff in cutoffs:
        band_mask(8, 8, "low", cutoff)
    kinds = [(name, cutoff) for name in FILTERS for cutoff in cutoffs]
    return [Condition(name, cutoff, partial(_kept, name, cutoff), draws=1) for name, cutoff in kinds]


def _kept(name: str, cutoff: float, batch: Batch) -> Float[Tensor, "n 3 h w"]:
    return FILTERS[name](batch.pixels, cutoff)


@dataclass(frozen=True)
class Band:
    """A change that lives in one band."""

    band: str  # of `BANDS`
    rms: float  # root mean square of the change, in grey levels; for an attack its bound
    steps: int = 10  # of an attack
    cutoff: float = CUTOFF  # radius between `low` and `high`

    def noisy(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        delta = at_rms(project(batch.noise, self.band, self.cutoff), self.rms / 255)
        return (batch.pixels + delta).clamp(0, 1)

    def attacked(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        return saved_as_png((batch.pixels + self._descent(batch)).clamp(0, 1))

    def facts(self, batch: Batch, seen: Seen) -> dict:
        outside = energy_outside(seen.pixels - batch.pixels, self.band, self.cutoff)
        return {**sizes(batch, seen), "outside": outside.cpu().numpy()}

    def _descent(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        """The change before clipping: in the band and in the ball."""
        images, answers = batch.pixels, batch.clean.predictions.to(batch.pixels.device)[:, None]
        radius = self.rms / 255 * images[0].numel() ** 0.5
        delta = torch.zeros_like(images)
        for step in range(self.steps):
            shown = (images + delta).clamp(0, 1).requires_grad_(True)
            with torch.enable_grad():
                logits = batch.head.logits(batch.net, shown, batch.sample_ids).to(images)
                # log (1 - p) / p, without the difference 1 - p that float32 loses
                odds = logits.scatter(1, answers, -torch.inf).logsumexp(1) - logits.gather(1, answers)[:, 0]
                (gradient,) = torch.autograd.grad(odds.sum(), shown)
            if (wrong := ~gradient.flatten(1).isfinite().all(1)).any():
                first = batch.sample_ids[int(wrong.nonzero()[0])]
                raise FloatingPointError(f"The gradient of {first!r} is not finite at step {step}.")
            # Black cannot get darker, nor white brighter. Not left to the gradient of `clamp`: 0 at its ends in torch
            # 2.15, it would never let them go.
            held = ((shown <= 0) & (gradient < 0)) | ((shown >= 1) & (gradient > 0))
            uphill = project(gradient.masked_fill(held, 0), self.band, self.cutoff)
            delta = project(delta + 2.5 * radius / self.steps * uphill / _length(uphill), self.band, self.cutoff)
            delta = (radius / _length(delta)).clamp_max(1) * delta  # a number an image: nothing leaves the band
        return delta


def band_noise(rms: Sequence[float], bands: Sequence[str] = BANDS) -> list[Condition]:
    """Gaussian noise of one band, with the same energy in every band: `noise_low`, `noise_high`, `noise_all`.

    An image meets the same noise in draw k whatever band and size are: every band keeps its part, scaled to the RMS
    (grey levels, the severity) before clipping.

    Source: Wani et al. (2026), band noise. The authors scale to a maximum, which gives the wide high band more energy
        than the narrow low one; equal energy is this project's choice.
    """
    made = [Band(band, size) for band in bands for size in _checked(rms, bands)]
    return [Condition(f"noise_{b.band}", b.rms, b.noisy, b.facts) for b in made]


def band_attacks(rms: Sequence[float], bands: Sequence[str] = BANDS, *, steps: int = 10) -> list[Condition]:
    """The worst change of one band that gradient steps find: `attack_low`, `attack_high`, `attack_all`.

    Projected gradient descent from the image itself against the log-odds of the clean answer, which do not vanish where
    the model is certain, in the band and in the L2 ball of the given RMS (grey levels, the severity). The image is
    rounded to grey levels after the last step, which puts about 0.29 grey levels (RMS) into all frequencies; the fact
    `outside` is the share of the energy of the change outside the band.

    Source: Wani et al. (2026), band PGD of 10 steps. The L2 ball, which scaling keeps inside the band where the
        authors' clamping leaves it, and steps of 2.5 radius / steps (Madry et al. 2018) are ours.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, allowed is 1 or more.")
    made = [Band(band, size, steps) for band in bands for size in _checked(rms, bands)]
    return [Condition(f"attack_{b.band}", b.rms, b.attacked, b.facts, draws=1) for b in made]


def _checked(rms: Sequence[float], bands: Sequence[str]) -> list[float]:
    for band in bands:
        one_of("band", band, BANDS)
    for size in rms:
        if not 0 <= size < float("inf"):
            raise ValueError(f"rms is {size}, allowed is 0 or more, in grey levels.")
    return [float(size) for size in rms]


def _length(values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 1 1"]:
    return torch.linalg.vector_norm(values, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)


def _within(h: int, w: int, cutoff: float) -> Bool[Tensor, "h w"]:
    if not 0 <= cutoff <= 1:
        raise ValueError(f"cutoff is {cutoff}, allowed is 0 to 1.")
    return radial_frequency(h, w) <= cutoff + EDGE


def _filtered(values: Tensor, mask: Tensor) -> Tensor:
    half = mask[:, : mask.shape[1] // 2 + 1].to(values.device)  # masks are the same for k and -k
    return torch.fft.irfft2(torch.fft.rfft2(values) * half, s=mask.shape)
