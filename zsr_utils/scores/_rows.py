"""Statistics of rows: each takes the rows of a group and gives an estimate.

The unit that is resampled is the image: its views, draws and words are not independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import comb

import numpy as np
import pandas as pd

from zsr_utils.scores._intervals import (
    Estimate,
    bootstrap,
    grouped_proportion,
    paired_difference,
    proportion,
    ratio_of_means,
)


Statistic = Callable[[pd.DataFrame], Estimate]


def estimates(rows: pd.DataFrame, by: str | Sequence[str], statistic: Statistic) -> pd.DataFrame:
    """One estimate a group of rows, in the order in which they first appear: columns `by` and those of an estimate."""
    by = [by] if isinstance(by, str) else list(by)
    groups = rows.groupby(by, sort=False, observed=True)
    return pd.DataFrame([{**dict(zip(by, keys)), **asdict(statistic(part))} for keys, part in groups])


def correct(rows: pd.DataFrame) -> np.ndarray:
    """1.0 where the prediction is the label, else 0.0."""
    return (rows.label == rows.prediction).to_numpy(dtype=float)


def accuracy(rows: pd.DataFrame) -> Estimate:
    """Share of rows whose prediction is the label, with its Wilson interval."""
    return proportion(int(correct(rows).sum()), len(rows))


def accuracy_against(base: pd.DataFrame) -> Statistic:
    """Accuracy less that of other rows of the same images, image by image.

    Examples:
        >>> base = pd.DataFrame({"sample_id": list("ab"), "label": [0, 1], "prediction": [0, 0]})
        >>> accuracy_against(base)(base.assign(prediction=[0, 1])).value
        0.5
    """
    return lambda rows: paired_change(*(r.assign(right=correct(r)) for r in (base, rows)), "right")


def same_answer(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose answer is the one to the unchanged image."""
    return rows[rows.prediction == rows.clean_prediction]


def changed_answer(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose answer is another one than that to the unchanged image."""
    return rows[rows.prediction != rows.clean_prediction]


def kept_rate(rows: pd.DataFrame) -> Estimate:
    """Share of views whose answer is the clean one."""
    return grouped_proportion((rows.prediction == rows.clean_prediction).to_numpy(), rows.sample_id.to_numpy())


def flip_rate(rows: pd.DataFrame) -> Estimate:
    """Instance flip rate (IFR): share of views whose answer is not the clean one.

    Source: Wani et al. (2026), IFR and IV; the equal-instances IV is this project's.
    """
    return grouped_proportion((rows.prediction != rows.clean_prediction).to_numpy(), rows.sample_id.to_numpy())


def vulnerability(rows: pd.DataFrame) -> Estimate:
    """Image vulnerability (IV): share of images of which at least one view flips; it grows with the views."""
    flips = rows.sample_id[rows.prediction != rows.clean_prediction].nunique()
    return proportion(flips, rows.sample_id.nunique())


def equal_vulnerability(views: int) -> Statistic:
    """IV as it would be with so many views an image: the mean over all choices of that many."""
    if views < 1:
        raise ValueError(f"views is {views}, allowed is 1 or more.")

    def statistic(rows: pd.DataFrame) -> Estimate:
        by_image = (rows.prediction != rows.clean_prediction).groupby(rows.sample_id, sort=False)
        flips, seen = by_image.sum(), by_image.size()
        if seen.min() < views:
            raise ValueError(f"An image has {seen.min()} views, allowed for an IV of {views} are that many or more.")
        missed = [comb(int(n - k), views) / comb(int(n), views) for n, k in zip(seen, flips)]
        return bootstrap(np.mean, 1 - np.array(missed))

    return statistic


def share_of(column: str) -> Statistic:
    """Share of rows in which a column is true; the interval counts images."""
    return lambda rows: grouped_proportion(rows[column].to_numpy(), rows.sample_id.to_numpy())


def mean_of(column: str, unit: str) -> Statistic:
    """Mean of a column: first over the rows of an image, then over the images; missing values are left out."""

    def statistic(rows: pd.DataFrame) -> Estimate:
        means = rows.groupby("sample_id", sort=False)[column].mean().dropna()
        return bootstrap(np.mean, means.to_numpy(), unit=unit)

    return statistic


def median_of(column: str, unit: str) -> Statistic:
    """Median of a column over all rows that have a number; the interval draws images."""

    def median(rows: pd.DataFrame) -> Estimate:
        rows = rows[rows[column].notna()]
        return bootstrap(np.median, rows[column].to_numpy(float), groups=rows.sample_id, unit=unit)

    return median


def paired_change(one: pd.DataFrame, other: pd.DataFrame, column: str, *, unit: str = "fraction") -> Estimate:
    """Mean of `other - one` over the images that both have, each image's rows averaged first.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": list("abab"), "band": list("llhh"), "flip": [0, 1, 1, 1]})
        >>> paired_change(rows[rows.band == "l"], rows[rows.band == "h"], "flip").value
        0.5
    """
    means = [rows.groupby("sample_id", sort=False)[column].mean() for rows in (one, other)]
    both = pd.concat(means, axis=1, join="inner", keys=["one", "other"])
    return paired_difference(both.one.to_numpy(dtype=float), both.other.to_numpy(dtype=float), unit=unit)


def relative_to(control: pd.DataFrame, *, drift: str = "drift", resamples: int = 1000) -> Statistic:
    """Drift relative to the distance between unrelated images: 1 is as far as a picture of something else.

    Per image, drift is the mean over its rows; both means run over the same images.

    Args:
        control: One row an image: `sample_id`, `distance`, and `model` or `layer` where the rows differ in them.

    Source: Wani et al. (2026), drift against control, whose averages hold changed answers too; the restriction to
        unchanged ones (`same_answer`) and the intervals are this project's.
    """

    def statistic(rows: pd.DataFrame) -> Estimate:
        own = control
        for column in {"model", "layer"} & set(control) & set(rows):
            own = own[own[column].isin(rows[column])]
        means = rows.groupby("sample_id", sort=False)[drift].mean()
        both = pd.concat([means, own.set_index("sample_id").distance], axis=1, join="inner").dropna()
        return bootstrap(ratio_of_means, both[drift].to_numpy(), both.distance.to_numpy(), resamples=resamples)

    return statistic
