"""Statistics of images under noise: how far embeddings move, whether that tells modified ones, and their normality."""

from dataclasses import asdict
from itertools import product

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float

from zsr_utils.scores._detection import clean_limit, detection
from zsr_utils.scores._intervals import Estimate, bootstrap, not_measured, ratio_of_means, unpaired_difference
from zsr_utils.scores._paired import holm
from zsr_utils.scores._rows import paired_change


CLEAN, HELD_OUT = "clean", "held out"  # kinds of images: the others are told from the first, the second sets thresholds
ACCOUNTS = ("first order", "second order")  # of how noise moves an embedding
STATISTICS = ("drift", "drift_either_way", "answers")


def per_image(rows: pd.DataFrame) -> pd.DataFrame:
    """A row an image, kind and sigma: over the draws the mean `drift` and the share of changed `answers`.

    `drift_either_way` is how far the drift is from the middle of the held-out images', as a share of them: 0 is their
    median, 0.5 beyond all of them. It is large for an image that noise moves too little, too. `found_drift` and so on
    are whether it is above the threshold of `detect`, and `hit` whether the noise-free image is named as the target.
    """
    keys, parts = ["model", "severity", "kind", "sample_id", "source_id"], []
    answers, hit = rows.prediction != rows.clean_prediction, rows.clean_prediction == rows.target_label
    means = rows.assign(answers=answers, hit=hit).groupby(keys, sort=False)[["rms", "hit", "drift", "answers"]].mean()
    for _, part in means.reset_index().groupby(keys[:2], sort=False):
        place = scipy.stats.percentileofscore(part.drift[part.kind == HELD_OUT], part.drift, kind="mean")
        part = part.assign(drift_either_way=abs(place / 100 - 0.5))
        limits = part[part.kind == HELD_OUT][list(STATISTICS)].apply(clean_limit)
        parts.append(part.join(part[list(STATISTICS)].gt(limits).add_prefix("found_")))
    return pd.concat(parts, ignore_index=True)


def detect(images: pd.DataFrame, *, negative: str = CLEAN, **options) -> pd.DataFrame:
    """How well each statistic of `per_image` tells every modified kind from another one, at every sigma and by model.

    Rows have `goal` (what stands before a comma in the kind), `series` (goal and statistic in words), `quantity` and
    the columns of `detection`, whose options are taken: the held-out images alone set the threshold, and the bootstrap
    draws source images. Quantities are `auroc`, `tpr`, `fpr` and `excess`, the share found less that of clean images;
    of a kind such as `named, averaged` also `evasion`, the share found less that of the kind `named`, and `extra`, its
    `rms` less that of `named`, both source by source.
    """
    found = []
    for _, part in images.groupby(["model", "severity"], sort=False):
        kinds = [kind for kind in part.kind.unique() if kind not in (CLEAN, HELD_OUT)]
        for kind, statistic in product(kinds, STATISTICS):
            found += _detected(part, kind, statistic, negative, options, part)
    return pd.DataFrame(found)


def detect_at_best_sigma(images: pd.DataFrame, *, seed: int = 0, **options) -> pd.DataFrame:
    """`detect` at the sigma that surely finds most, by model, kind and statistic, of other pairs than it reports on.

    Half of the sources choose: the sigma whose interval of the share found begins highest (of equal ones, the one with
    the largest AUROC against the held-out images). The other half is told from the clean images.
    """
    clean, choose = images.kind.isin([CLEAN, HELD_OUT]), pd.Series(False, index=images.index)
    for model, changed in images[~clean].groupby("model"):
        sources = np.random.default_rng(seed).permutation(changed.source_id.unique())
        choose |= (images.model == model) & images.source_id.isin(sources[: len(sources) // 2])
    tried = detect(images[choose | (images.kind == HELD_OUT)], negative=HELD_OUT, **{"resamples": 200, **options})
    keys = ["model", "statistic", "kind", "severity"]
    tried = tried.pivot_table(index=keys, columns="quantity", values=["value", "low"], sort=False)
    best = tried.sort_values([("low", "tpr"), ("value", "auroc")]).index.to_frame(index=False)
    best, found = best.drop_duplicates(keys[:3], keep="last").set_index(keys[:3]).severity.sort_index(), []
    for (model, statistic, kind), sigma in best.items():
        own = images[~choose & (images.model == model)]
        plain = own[own.severity == best.get((model, statistic, kind.split(",")[0]), sigma)]
        found += _detected(own[own.severity == sigma], kind, statistic, CLEAN, options, plain)
    return pd.DataFrame(found)


def not_normal(rows: pd.DataFrame, directions: Float[np.ndarray, "m d"]) -> pd.DataFrame:
    """Whether normality is `rejected` of the cloud of every image and sigma, at 5 % over all directions together."""
    clouds = rows.groupby(["sample_id", "severity"], sort=False).move
    found = clouds.agg(lambda moves: (normality(np.stack(list(moves)), directions).p_holm < 0.05).any())
    return found.reset_index(name="rejected")


def normality(samples: Float[np.ndarray, "n d"], directions: Float[np.ndarray, "m d"]) -> pd.DataFrame:
    """Shapiro-Wilk test of 3 to 5,000 samples along every direction, corrected for their number by Holm's method.

    Returns: A row a direction: `direction` (position), `statistic` (W; 1 is normal), `p`, `p_holm`.

    Source: Shapiro & Wilk (1965) by `scipy.stats.shapiro`, whose p values hold for no more samples; Holm (1979).
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
    return pd.DataFrame({"direction": range(len(p)), "statistic": statistic, "p": p, "p_holm": holm(p)})


def squared_moves(rows: pd.DataFrame, derivatives: pd.DataFrame) -> pd.DataFrame:
    """Squared moves of every image's embedding under noise, beside what is predicted to first and to second order.

    The first is sigma^2 ||J||_F^2, all of it around a mean move of 0. The second adds sigma^4 / 4 ||tr H||^2, the
    square of the mean move, and sigma^4 / 2 times the sum of ||H_k||_F^2 around it; a third derivative is in neither.

    Args:
        rows: With `model`, `sample_id`, `severity` (sigma in grey levels) and `move`, how the embedding changed.
        derivatives: `jacobian` (||J||_F^2), and `trace` and `hessian` of `jacobian.Curvature.squares`, by model and id.

    Returns: Three rows a cloud and account: `part` (`whole`: mean squared move; `covariance`: its part around the mean
        move; `mean`: the square of that, less what so few draws alone would give), `account` (of `ACCOUNTS`),
        `measured`, `predicted` (of `mean` to first order the whole move, for it predicts none).

    Source: Linear Gaussian account of Salman et al. (2024), which has a mean move of 0; the second order and the test
        of both are this project's.
    """
    found = []
    for key, part in rows.groupby(["model", "sample_id", "severity"], sort=False):
        moved, own, square = np.stack(list(part.move)).astype(float), derivatives.loc[key[:2]], (key[2] / 255) ** 2
        whole, around = np.square(moved).sum(1).mean(), moved.var(0, ddof=1).sum()
        first, mean = square * own.jacobian, square**2 * own.trace / 4
        second = first + square**2 * own.hessian / 2
        parts = {"whole": (whole, second + mean), "covariance": (around, second), "mean": (whole - around, mean)}
        for name, (measured, predicted) in parts.items():
            found += [(*key, name, measured, *account) for account in zip(ACCOUNTS, (first, predicted))]
    columns = "model sample_id severity part measured account predicted"
    return pd.DataFrame(found, columns=columns.split())


def beside_predicted(rows: pd.DataFrame) -> Estimate:
    """Mean of `measured` over mean of `predicted`; the bootstrap draws images. What is predicted as 0 has none."""
    if not rows.predicted.mean() > 0:
        return not_measured("ratio")
    return bootstrap(ratio_of_means, rows.measured.to_numpy(), rows.predicted.to_numpy())


def qq_points(values: Float[np.ndarray, "n"]) -> pd.DataFrame:
    """Points of a normal Q-Q plot, after Filliben (1975): `theoretical` and `ordered`, both in standard deviations."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 3 or values.std() == 0:
        raise ValueError(f"values have shape {values.shape}, allowed is (n,) with at least 3 values, not all equal.")
    theoretical, ordered = scipy.stats.probplot(scipy.stats.zscore(values, ddof=1), fit=False)
    return pd.DataFrame({"theoretical": theoretical, "ordered": ordered})


def qq_clouds(rows: pd.DataFrame, direction: np.ndarray) -> pd.DataFrame:
    """Points of a normal Q-Q plot of the first image's cloud along a direction, a `series` for every sigma."""
    first, frames = rows[rows.sample_id == rows.sample_id.iloc[0]], []
    for sigma, part in first.groupby("severity", sort=False):
        points = qq_points(np.stack(part.move.to_list()) @ direction)
        frames.append(points.assign(series=f"σ = {sigma:g}", sample_id=part.sample_id.iloc[0]))
    return pd.concat(frames, ignore_index=True)


def _detected(part: pd.DataFrame, kind: str, statistic: str, negative: str, options: dict, plain: pd.DataFrame) -> list:
    """Rows of `detect` for one statistic of one kind, from images of one model and sigma; `plain` may have another."""
    own, *others = (part[part.kind == k] for k in (kind, negative, HELD_OUT))
    found = detection(*(i[statistic].to_numpy() for i in (own, *others)), groups=own.source_id.to_numpy(), **options)
    del found["threshold"]
    goal = kind.split(",")[0]
    found["excess"] = unpaired_difference(found["fpr"], found["tpr"])
    if len(plain := plain[plain.kind == goal]) and kind != goal:
        both = [images.assign(sample_id=images.source_id) for images in (plain, own)]
        found["evasion"] = paired_change(*both, f"found_{statistic}")
        found["extra"] = paired_change(*both, "rms", unit="grey levels")
    key = {"kind": kind, "statistic": statistic, "goal": goal, "series": f"{goal}, by {statistic.replace('_', ' ')}"}
    key = {"model": own.model.iloc[0], "severity": own.severity.iloc[0], **key}
    return [{**key, "quantity": name, **asdict(e)} for name, e in found.items()]
