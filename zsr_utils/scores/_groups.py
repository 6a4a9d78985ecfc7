"""A number's sums over groups of images, so that two checkpoints are compared image by image without their images."""

import warnings
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pandas as pd
from scipy import stats

from zsr_utils.scores._intervals import Estimate, without_intervals
from zsr_utils.scores._rows import Statistic, accuracy  # noqa: F401 (the latter in the example)


GROUPS = 100  # images fall into them by a digest of their ids: the same ones for every checkpoint


def group_sums(rows: pd.DataFrame, statistic: Statistic) -> list[tuple[float, int]] | None:
    """Sum of a number and how many images it is of, in every one of 100 groups of images.

    Returns: The number is the quotient of the totals; (0, 0) where no image fell into a group. None where the number is
        no mean over images, such as a median or a rank statistic.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": ["a", "b", "c"], "label": 0, "prediction": [0, 0, 1]})
        >>> [pair for pair in group_sums(rows, accuracy) if pair[1]]
        [(1.0, 1), (0.0, 1), (1.0, 1)]
    """
    group = rows.sample_id.map({i: crc32(str(i).encode()) % GROUPS for i in rows.sample_id.unique()})
    sums, images = np.zeros(GROUPS), np.zeros(GROUPS, int)
    try:
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"), without_intervals():
            whole = statistic(rows).value
            for number, part in rows.groupby(group, sort=False):
                value, n = statistic(part).value, part.sample_id.nunique()
                if np.isfinite(value):
                    sums[number], images[number] = value * n, n
    except (ValueError, IndexError, KeyError):  # too few images for this statistic
        return None
    if not images.any() or not abs(sums.sum() / images.sum() - whole) < 1e-9 * max(1, abs(whole)):
        return None
    return [(float(s), int(n)) for s, n in zip(sums, images)]


def grouped_difference(one: Sequence[tuple], other: Sequence[tuple], unit: str = "fraction") -> tuple[Estimate, float]:
    """`other - one` of two numbers by the sums of the same images, and the p of no difference.

    The groups are what varies. Of fractions the interval is never of width zero: an image that differs as far as one
    can, each way, is added to the others, as in `paired_mean`.

    Raises: ValueError where the groups hold other images.

    Examples:
        >>> difference, p = grouped_difference([(1.0, 1)] * 50, [(1.0, 1)] * 50)
        >>> f"{difference:.2f}", p
        ('0.00 [-0.04, 0.04]', 1.0)

    Source: Agresti & Min (2005), over clusters.
    """
    (a, n), (b, m) = (np.asarray(list(zip(*sums)), dtype=float) for sums in (one, other))
    if not np.array_equal(n, m):
        raise ValueError(f"the sums are of {int(n.sum())} and {int(m.sum())} images, allowed are the same images.")
    d, images, groups, bound = b - a, n.sum(), int((n > 0).sum()), 1.0 if unit == "fraction" else 0.0
    added = 2 * (bound > 0)
    middle, off = d.sum() / (images + added), d - n * d.sum() / images
    spread = np.sqrt(groups / max(groups - 1, 1) * np.square(off).sum() + bound**2) / (images + added)
    if groups < 2 or not spread:
        return Estimate(d.sum() / images, np.nan, np.nan, "no interval", int(images), unit), np.nan
    half = stats.t.ppf(0.975, groups - 1) * spread
    low, high = np.clip([middle - half, middle + half], -(bound or np.inf), bound or np.inf)
    estimate = Estimate(float(d.sum() / images), float(low), float(high), "paired 95 %", int(images), unit)
    return estimate, float(2 * stats.t.sf(abs(middle) / spread, groups - 1))
