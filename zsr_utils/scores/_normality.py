"""Is a cloud of embeddings the normal distribution that a linear account predicts?"""

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float

from zsr_utils.scores._paired import holm


def normality(samples: Float[np.ndarray, "n d"], directions: Float[np.ndarray, "m d"]) -> pd.DataFrame:
    """Shapiro-Wilk test of the samples along every direction, corrected for their number by Holm's method.

    Args:
        samples: Embeddings of 3 to 5,000 noisy copies: beyond that the p values are not valid.
        directions: Where to look; their lengths do not matter.

    Returns: One row a direction, columns `direction` (position), `statistic` (W; 1 is normal), `p`, `p_holm` (below
        0.05: normality is rejected at 5 % over all directions together), `skewness` and `excess_kurtosis` (both 0 if
        normal), which say how large a deviation is.

    Examples:
        >>> cloud = np.random.default_rng(0).exponential(size=(200, 2))
        >>> bool((normality(cloud, np.eye(2)).p_holm < 1e-6).all())
        True

    Source: Shapiro & Wilk (1965) by `scipy.stats.shapiro`; Holm (1979).
    """
    samples, directions = np.asarray(samples, dtype=float), np.asarray(directions, dtype=float)
    if samples.ndim != 2 or directions.ndim != 2 or samples.shape[1] != directions.shape[1] or len(directions) == 0:
        raise ValueError(
            f"samples and directions have shapes {samples.shape} and {directions.shape}, allowed are (N, D) and (M, D)."
        )
    if not 3 <= len(samples) <= 5000:
        raise ValueError(f"{len(samples)} samples given, allowed are 3 to 5000.")
    values = (samples - samples.mean(0)) @ directions.T
    flat = values.std(0) <= 1e-12 * np.linalg.norm(directions, axis=1) * np.abs(samples).max()
    if flat.any():
        raise ValueError(f"All samples are equal along direction {int(flat.argmax())}, there is nothing to test.")
    statistic, p = np.array([scipy.stats.shapiro(v) for v in values.T]).T
    table = pd.DataFrame({"direction": range(len(p)), "statistic": statistic, "p": p, "p_holm": holm(p)})
    return table.assign(skewness=scipy.stats.skew(values), excess_kurtosis=scipy.stats.kurtosis(values))


def qq_points(values: Float[np.ndarray, "n"]) -> pd.DataFrame:
    """Points of a normal Q-Q plot: columns `theoretical` and `ordered`, both in standard deviations.

    Examples:
        >>> qq_points(np.array([5.0, 1.0, 3.0])).ordered.tolist()
        [-1.0, 0.0, 1.0]

    Source: Filliben (1975) by `scipy.stats.probplot`.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 3 or values.std() == 0:
        raise ValueError(f"values have shape {values.shape}, allowed is (n,) with at least 3 values, not all equal.")
    theoretical, ordered = scipy.stats.probplot((values - values.mean()) / values.std(ddof=1), fit=False)
    return pd.DataFrame({"theoretical": theoretical, "ordered": ordered})
