"""One cue less: blur and coarse pixels take a texture away, shuffled tiles a shape."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from zsr_utils.conditions._condition import Batch, Condition, unit_noise


@dataclass(frozen=True)
class Cue:
    """Pixels of a batch with one cue reduced; `kind` and `amount` as in `without_cue`."""

    kind: str
    amount: float

    def __call__(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        pixels, size = batch.pixels, batch.pixels.shape[-1]
        if self.kind == "blur":
            sigma = self.amount / 100 * size
            return gaussian_blur(pixels, 2 * max(1, round(3 * sigma)) + 1, sigma).clamp(0, 1)
        if self.kind == "resolution":
            coarse = F.adaptive_avg_pool2d(pixels, max(1, round(size / self.amount)))
            return F.interpolate(coarse, size=(size, size), mode="bicubic", antialias=False).clamp(0, 1)
        n = int(self.amount)
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

    Args:
        blurs: Standard deviations of a Gaussian blur, in percent of the picture's side.
        resolutions: Factors by which the pixels of a side are fewer; then enlarged again, bicubic.
        tiles: Tiles a side that are put into another order, drawn for every image.

    Raises: ValueError for a size that changes nothing or is not positive.

    Source: Tu et al. (2024) compare input resolutions; shuffled tiles as in Zhang and Zhu (2019), section 3.
    """
    least = {"blur": 0, "resolution": 1, "shuffled_tiles": 1}
    given = {"blur": blurs, "resolution": resolutions, "shuffled_tiles": tiles}
    for kind, amounts in given.items():
        for amount in amounts:
            if not amount > least[kind]:
                raise ValueError(f"{kind} is {amount}, allowed is above {least[kind]}.")
    return [Condition(kind, float(a), Cue(kind, a)) for kind, amounts in given.items() for a in amounts]
