"""Is a cloud of embeddings the normal distribution that a linear account predicts?"""

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float

from zsr_utils.scores._intervals import Estimate, bootstrap


def normality(samples: Float[np.ndarray, "n d"], directions: Float[np.ndarray, "m d"]) -> pd.DataFrame:
    """Shapiro-Wilk test of the samples along every direction, corrected for their number by Holm's method.

    Args:
        samples: Embeddings of 3 to 5,000 noisy copies: beyond that the p values are not valid.
        directions: Where to look; their lengths do not matter.

    Returns:
        One row a direction, columns `direction` (position), `statistic` (W; 1 is normal), `p`, `p_holm` (below 0.05:
        normality is rejected at 5 % over all directions together), `skewness` and `excess_kurtosis` (both 0 if normal),
        which say how large a deviation is.



    Source: Shapiro & Wilk (1965) by `scipy.stats.shapiro`; Holm (1979).
    """
    samples, directions = np.asarray(samples, dtype=float), np.asarray(directions, dtype=float)
    if samples.ndim != 2 or directions.ndim != 2 or samples.shape[1] != directions.shape[1] or len(directions) == 0:
        shapes = f"{samples.shape} and {directions.shape}"
        raise ValueError(f"samples and directions have shapes {shapes}, allowed are (N, D) and (M, D).")
    if not 3 <= len(samples) <= 5000:
        raise ValueError(f"{len(samples)} samples given, allowed are 3 to 5000.")
    values = (samples - samples.mean(0)) @ directions.T
    flat = values.std(0) <= 1e-12 * np.linalg.norm(directions, axis=1) * np.abs(samples).max()
    if flat.any():
        raise ValueError(f"All samples are equal along direction {int(flat.argmax())}, there is nothing to test.")
    statistic, p = np.array([scipy.stats.shapiro(v) for v in values.T]).T
    order, m = np.argsort(p), len(p)
    holm = np.empty(m)
    holm[order] = np.maximum.accumulate((m - np.arange(m)) * p[order]).clip(max=1)
    moments = {"skewness": scipy.stats.skew(values), "excess_kurtosis": scipy.stats.kurtosis(values)}
    return pd.DataFrame({"direction": np.arange(m), "statistic": statistic, "p": p, "p_holm": holm, **moments})


def covariance_agreement(
    samples: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "d d"], *,
    resamples: int = 1000, simulations: int = 200, seed: int = 0,
) -> dict[str, Estimate]:  # fmt: skip
    """Empirical covariance of the samples against a predicted one, such as sigma^2 J J^T.

    Few samples give a wrong covariance even where the prediction is right. What that alone does to a distance or an
    eigenvector is found by simulation: as many samples are drawn from the predicted Gaussian, `simulations` times. A
    distance above that range, or a cosine below it, speaks against the prediction.



    Returns:
        `trace_ratio`: empirical over predicted, with a bootstrap interval.
        `frobenius`: ||empirical - predicted|| / ||predicted||, and `leading_cosine`: absolute cosine
        between the two leading eigenvectors; these carry no interval of their own (low and high are the
        value) but are to be read against
        `frobenius_by_sampling`, `leading_cosine_by_sampling`: median and 95 % range of the simulations.

    Source: Linear Gaussian account of Salman et al. (2024); the three measures are this project's choice.
    """
    samples, predicted = np.asarray(samples, dtype=float), np.asarray(predicted, dtype=float)
    if samples.ndim != 2 or len(samples) < 3 or predicted.shape != (samples.shape[1],) * 2:
        shapes = f"{samples.shape} and {predicted.shape}"
        raise ValueError(
            f"samples and predicted have shapes {shapes}, allowed are (N, D) with N at least 3 and (D, D)."
        )
    for name, value in {"resamples": resamples, "simulations": simulations}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, allowed is 1 or more.")
    if not np.allclose(predicted, predicted.T, rtol=1e-5, atol=1e-8 * np.abs(predicted).max()):
        raise ValueError("predicted is not symmetric, allowed is a covariance matrix.")
    variances, axes = scipy.linalg.eigh(predicted)
    if not variances[-1] > 0 or variances[0] < -1e-6 * variances[-1]:
        raise ValueError(f"predicted has eigenvalues {variances[0]:.3g} to {variances[-1]:.3g}, allowed are 0 or more.")
    variances = variances.clip(0)
    n, d = samples.shape

    def compare(centred: np.ndarray) -> tuple[float, float]:
        """Distance and cosine, in the axes of the prediction, whose last one is the leading one."""
        found = centred.T @ centred / (n - 1)
        leading = scipy.linalg.eigh(found, subset_by_index=[d - 1, d - 1])[1][:, 0]
        found[np.diag_indices(d)] -= variances
        return float(np.linalg.norm(found) / np.linalg.norm(variances)), float(abs(leading[-1]))

    centred = (samples - samples.mean(0)) @ axes
    rng = np.random.default_rng(seed)
    simulated = []
    for _ in range(simulations):
        cloud = rng.standard_normal((n, d)) * np.sqrt(variances)
        simulated.append(compare(cloud - cloud.mean(0)))
    scale = n / (n - 1) / variances.sum()
    trace = bootstrap(lambda r: float(r.mean() * scale), np.square(centred).sum(1), resamples=resamples, seed=seed)
    found = {"trace_ratio": trace}
    names = (("frobenius", "fraction"), ("leading_cosine", "cosine"))
    for (name, unit), value, draws in zip(names, compare(centred), np.array(simulated).T):
        low, middle, high = (float(q) for q in np.quantile(draws, [0.025, 0.5, 0.975]))
        found[name] = Estimate(value, value, value, f"none, see {name}_by_sampling", n, unit)
        label = f"95 % of {simulations} simulations from the prediction"
        found[f"{name}_by_sampling"] = Estimate(middle, low, high, label, n, unit)
    return found
