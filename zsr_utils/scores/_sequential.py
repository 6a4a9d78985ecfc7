"""Intervals for those who look after every batch: they hold at all times at once."""

import numpy as np
from jaxtyping import Float

from zsr_utils.scores._paired import paired_mean


MOST = 0.5  # of a bet, which must stay below 1: the authors' choice


def confidence_sequence(
    values: Float[np.ndarray, "... n"], *, alpha: float = 0.05
) -> tuple[Float[np.ndarray, "... n"], Float[np.ndarray, "... n"]]:
    """Lower and upper bounds of the mean after every value, which hold at all times at once with chance `1 - alpha`.

    One may look after every image and stop whenever one likes, as soon as a bound passes what is to be decided. A
    paired difference d of right answers enters as `(d + 1) / 2`, and no difference is then 1/2. The order of the images
    must be random, and chosen without their values: bounds that cross say that the mean moved.

    Args:
        values: In [0, 1], one an image, in the order in which they came; streams of their own before the last axis.

    Examples:
        >>> low, high = confidence_sequence(np.tile([0.5, 0.5, 0.5, 1], 250))
        >>> [f"{low[n]:.3f} {high[n]:.3f}" for n in (99, 999)]
        ['0.532 0.714', '0.601 0.649']

    Raises: ValueError for values outside [0, 1] or none, and for an alpha outside (0, 1).

    Source: Waudby-Smith & Ramdas (2024), Theorem 2: the empirical-Bernstein confidence sequence with predictable
        plug-in bets, and its running intersection.
    """
    x = np.asarray(values, dtype=float)
    if not x.ndim or not x.shape[-1]:
        raise ValueError(f"values has shape {x.shape}, allowed is one value or more along the last axis.")
    if not ((x >= 0) & (x <= 1)).all():  # NaN compares as false
        raise ValueError(f"values run from {x.min():.4g} to {x.max():.4g}, allowed is [0, 1].")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, allowed is above 0 and below 1.")
    t, log = np.arange(1, x.shape[-1] + 1), np.log(2 / alpha)
    mean = (0.5 + x.cumsum(-1)) / (t + 1)
    variance = (0.25 + np.square(x - mean).cumsum(-1)) / (t + 1)
    mean, variance = (
        np.concatenate([np.full((*x.shape[:-1], 1), start), seen[..., :-1]], -1)  # a bet knows only what came before
        for start, seen in ((0.5, mean), (0.25, variance))
    )
    bet = np.minimum(np.sqrt(2 * log / (variance * t * np.log(1 + t))), MOST)
    total = bet.cumsum(-1)
    middle = (bet * x).cumsum(-1) / total
    half = (log + (np.square(x - mean) * (-np.log1p(-bet) - bet)).cumsum(-1)) / total
    low, high = np.maximum.accumulate(middle - half, -1), np.minimum.accumulate(middle + half, -1)
    return low.clip(0, 1), high.clip(0, 1)


def price(values: Float[np.ndarray, "n"], *, alpha: float = 0.05) -> float:
    """What looking all the time costs: the width after the last value, over that of one 95 % look at this many.

    Examples:
        >>> round(price(np.tile([0.5, 0.5, 0.5, 1], 250)), 2)
        1.79
    """
    low, high = confidence_sequence(values, alpha=alpha)
    once = paired_mean(2 * np.asarray(values, dtype=float) - 1, bound=1)
    return float(2 * (high[-1] - low[-1]) / (once.high - once.low))
