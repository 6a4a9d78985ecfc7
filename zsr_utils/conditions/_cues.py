"""One cue less: blur and coarse pixels take a texture away, shuffled tiles a shape."""

from functools import partial

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from zsr_utils.conditions._condition import Batch, Condition, unit_noise


def _reduced(kind: str, amount: float, batch: Batch) -> Float[Tensor, "n 3 h w"]:
    pixels, size = batch.pixels, batch.pixels.shape[-1]
    if kind == "blur":
        sigma = amount / 100 * size
        return gaussian_blur(pixels, 2 * max(1, round(3 * sigma)) + 1, sigma).clamp(0, 1)
    if kind == "resolution":
        coarse = F.adaptive_avg_pool2d(pixels, max(1, round(size / amount)))
        return F.interpolate(coarse, size=(size, size), mode="bicubic", antialias=False).clamp(0, 1)
    n = int(amount)
    order = unit_noise((n * n,), batch.sample_ids, (batch.seed, batch.draw, n)).argsort(1).to(pixels.device)
    shown, side, inner = pixels.clone(), size // n, size // n * n  # what does not fit into whole tiles stays
    tiles = F.unfold(pixels[..., :inner, :inner], side, stride=side)  # N, values, tiles
    tiles = tiles.gather(2, order[:, None].expand_as(tiles))
    shown[..., :inner, :inner] = F.fold(tiles, inner, side, stride=side)
    return shown


def without_cue(
    blurs: list[float] = (1, 2, 4, 8), resolutions: list[float] = (2, 4, 8), tiles: list[int] = (2, 4, 8)
) -> list[Condition]:
    """Conditions that leave mostly shape, or mostly texture.

    `blurs` are standard deviations in percent of the picture's side, `resolutions` factors by which the pixels of a
    side are fewer (then enlarged again, bicubic), `tiles` those a side that are put into an order of the image's own.

    Source: Tu et al. (2024) compare input resolutions; shuffled tiles as in Zhang and Zhu (2019), section 3.
    """
    given = [("blur", blurs, 0), ("resolution", resolutions, 1), ("shuffled_tiles", tiles, 1)]
    for kind, amounts, least in given:
        if wrong := [amount for amount in amounts if not amount > least]:
            raise ValueError(f"{kind} is {wrong[0]}, allowed is above {least}.")
    return [Condition(kind, float(a), partial(_reduced, kind, a)) for kind, amounts, _ in given for a in amounts]
