"""One cue less: blur and coarse pixels take a texture away, shuffled tiles a shape."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from zsr_utils.conditions._condition import Batch, Condition, unit_noise


def _reduced(kind: str, amount: float, batch: Batch) -> Float[Tensor, "n 3 h w"]:
    """Pixels of a batch with one cue reduced; `kind` and `amount` as in `without_cue`."""
    pixels, size = batch.pixels, batch.pixels.shape[-1]
    if kind == "blur":
        sigma = amount / 100 * size
        return gaussian_blur(pixels, 2 * max(1, round(3 * sigma)) + 1, sigma).clamp(0, 1)
    if kind == "resolution":
        coarse = F.adaptive_avg_pool2d(pixels, max(1, round(size / amount)))
        return F.interpolate(coarse, size=(size, size), mode="bicubic", antialias=False).clamp(0, 1)
    n = int(amount)
    order = unit_noise((n * n,), batch.sample_ids, (batch.seed, batch.draw, n)).argsort(1).to(pixels.device)
    inner = size // n * n  # what does not fit into whole tiles stays where it is
    shown = pixels.clone()
    tiles = pixels[..., :inner, :inner].unflatten(3, (n, -1)).unflatten(2, (n, -1))  # N, 3, n, side, n, side
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    tiles = torch.stack([picture[row] for picture, row in zip(tiles, order)]).unflatten(1, (n, n))
    shown[..., :inner, :inner] = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return shown


def without_cue(
    blurs: list[float] = (1, 2, 4, 8), resolutions: list[float] = (2, 4, 8), tiles: list[int] = (2, 4, 8)
) -> list[Condition]:
    """Conditions that leave mostly shape, or mostly texture.

    `blurs` are standard deviations in percent of the picture's side, `resolutions` factors by which the pixels of a
    side are fewer (then enlarged again, bicubic), `tiles` those a side that are put into an order of the image's own.

    Source: Tu et al. (2024) compare input resolutions; shuffled tiles as in Zhang and Zhu (2019), section 3.
    """
    least = {"blur": 0, "resolution": 1, "shuffled_tiles": 1}
    given = {"blur": blurs, "resolution": resolutions, "shuffled_tiles": tiles}
    for kind, amounts in given.items():
        for amount in amounts:
            if not amount > least[kind]:
                raise ValueError(f"{kind} is {amount}, allowed is above {least[kind]}.")
    return [Condition(kind, float(a), partial(_reduced, kind, a)) for kind, amounts in given.items() for a in amounts]
