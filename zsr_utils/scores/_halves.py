"""A number on halves of the images, so that two checkpoints are compared image by image without their images."""

import warnings
from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import linalg, stats

from zsr_utils.scores._intervals import Estimate, without_intervals


STRATA = 50  # of two groups each, into which images fall by a digest of their ids: the same for every checkpoint
IN_HALF = linalg.hadamard(64)[:, 1 : STRATA + 1] > 0  # (64, 50): whether a half has the first group of a stratum


def in_halves(ids: Sequence[str]) -> Bool[np.ndarray, "64 n"]:
    """Whether an image is in each of the halves."""
    number = {i: crc32(str(i).encode()) % (2 * STRATA) for i in set(ids)}
    group = np.array([number[i] for i in ids])
    return IN_HALF[:, group // 2] == (group % 2 == 0)


def source_ids(rows: pd.DataFrame) -> pd.Series:
    """What the rows tell images apart by: `source_id` where they have one, else `sample_id`."""
    return rows["source_id" if "source_id" in rows else "sample_id"]


def halves(
    rows: pd.DataFrame, statistic: Callable[[pd.DataFrame], Sequence[float]]
) -> Float[np.ndarray, "64 k"] | None:
    """Numbers that a function makes of rows, on 64 halves of their images, balanced as well as it goes.

    Unlike in a bootstrap no image is there twice, so that any function of rows will do: medians, ranks, ratios. Images
    are told apart by `source_ids`. None where a half is too small.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": [f"{i}" for i in range(400)], "x": [0, 1] * 200})
        >>> found = halves(rows, lambda half: [half.x.mean(), len(half)])
        >>> found.shape, found.mean(0).round(1)
        ((64, 2), array([  0.5, 200. ]))

    Source: McCarthy (1969), balanced half-samples.
    """
    try:
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"), without_intervals():
            values = np.array([statistic(rows[half]) for half in in_halves(source_ids(rows))], dtype=float)
    except (ValueError, IndexError, KeyError):  # too few images for this statistic
        return None
    return values if np.isfinite(values).all() else None


def halves_difference(
    one: dict, other: dict, values: Sequence[float], unit: str = "fraction"
) -> tuple[Estimate, float]:
    """`other - one` of two numbers by what they are on the same halves of the images, and the p of no difference.

    Args:
        one, other: `images`, how many there are, and `values`, of one number of `halves`.
        values: Both numbers on all images.
        unit: Of fractions the interval is never of width zero: one image that differs as far as one can, each way, is
            added to the others, as in `paired_mean`.

    Source: McCarthy (1969); Agresti & Min (2005) for the added images.
    """
    images, added = one["images"], 2 * (unit == "fraction")
    d = values[1] - values[0]
    variance = np.square(np.subtract(other["values"], one["values"]) - d).mean()
    shrunk = images / (images + added)
    middle, spread = d * shrunk, np.sqrt(variance * shrunk**2 + (added / 2 / (images + added)) ** 2)
    if not spread:
        return Estimate(d, np.nan, np.nan, "no interval", images, unit), np.nan
    low, high = middle + np.array([-1, 1]) * stats.t.ppf(0.975, STRATA) * spread
    if unit == "fraction":
        low, high = np.clip([low, high], -1, 1)
    found = Estimate(float(d), float(low), float(high), "paired 95 %", images, unit)
    return found, float(2 * stats.t.sf(abs(middle) / spread, STRATA))
