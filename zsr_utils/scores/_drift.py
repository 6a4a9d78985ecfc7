"""Rows of perturbed images -> flip rates and drift ratios."""

from collections.abc import Sequence
from dataclasses import asdict
from math import comb

import numpy as np
import pandas as pd

from zsr_utils._text import one_of
from zsr_utils.scores._intervals import Estimate, bootstrap, grouped_proportion, proportion


ANSWERS = ("unchanged", "all")


def instability(rows: pd.DataFrame, families: Sequence[str] | None = None, *, equal: int = 2) -> pd.DataFrame:
    """How often perturbations of every family, and of all of them together, change the answer.

    `ifr`, the instance flip rate, is the share of views whose answer is not the clean one. `iv`, image
    vulnerability, is the share of images of which at least one view flips: it grows with the number of
    views, so `iv_equal` is what it would be with `equal` views an image, the mean over all choices of
    that many. A family with fewer views has no `iv_equal`.

    Args:
        rows: Columns `sample_id`, `family`, `clean_prediction`, `prediction`, a row a view.
        families: Which ones `any` unites, and the order; all by default.
        equal: Views an image in `iv_equal`.

    Returns:
        One row a family (the last is `any`) and quantity, with the columns of an estimate.

    Raises:
        ValueError: If there is no row, a family is not in the rows, or equal is below 1.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": list("aabb"), "family": "scale", "clean_prediction": 0,
        ...                      "prediction": [0, 1, 0, 0]})
        >>> instability(rows).value.tolist()  # ifr, iv, iv_equal; once more for any
        [0.25, 0.5, 0.5, 0.25, 0.5, 0.5]

    Source:
        Wani et al. (2026), IFR and IV; the equal-instances IV is this project's.
    """
    if equal < 1:
        raise ValueError(f"equal is {equal}, allowed is 1 or more.")
    if rows.empty:
        raise ValueError("There are no rows, so there is no flip rate.")
    known = list(rows.family.unique())
    families = known if families is None else list(families)
    for family in families:
        one_of("family", family, known)
    rows = rows[rows.family.isin(families)].assign(flip=lambda r: r.prediction != r.clean_prediction)
    found = []
    for family in [*families, "any"]:
        part = rows if family == "any" else rows[rows.family == family]
        by_image = part.groupby("sample_id", sort=False).flip
        flips, views = by_image.sum().to_numpy(), by_image.size().to_numpy()
        numbers = {
            "ifr": grouped_proportion(part.flip.to_numpy(), part.sample_id.to_numpy()),
            "iv": proportion(int((flips > 0).sum()), len(flips)),
        }
        if views.min() >= equal:
            missed = [comb(int(n - k), equal) / comb(int(n), equal) for n, k in zip(views, flips)]
            numbers["iv_equal"] = _mean(1 - np.array(missed))
        found += [{"family": family, "quantity": name, **asdict(e)} for name, e in numbers.items()]
    return pd.DataFrame(found)


def drift_ratios(rows: pd.DataFrame, control: pd.DataFrame, *, answers: str, resamples: int = 1000) -> pd.DataFrame:
    """Drift under every family, relative to the distance between unrelated clean images.

    Per image, drift is the mean over the views of a family; both means run over the same images.

    Args:
        rows: Columns `sample_id`, `family`, `drift`, `clean_prediction`, `prediction`, a row a view.
        control: Columns `sample_id`, `kind`, `distance`, a row an image and kind of control.
        answers: `unchanged` keeps only views whose answer is the clean one; `all` keeps every view.
        resamples: Bootstrap resamples, of the images.

    Returns:
        One row a family, kind of control and quantity, with the columns of an estimate: `ratio` (of the
        means; 1 is as far as an unrelated image) and `cohens_d` (mean difference over the pooled standard
        deviation; negative if the drift is smaller). A family whose every view flips has no row.

    Raises:
        ValueError: If answers is unknown, or rows and control have no image in common.

    Source:
        Wani et al. (2026), drift against control, whose averages hold changed answers too; the restriction
        and the intervals are this project's.
    """
    one_of("answers", answers, ANSWERS)
    if answers == "unchanged":
        rows = rows[rows.prediction == rows.clean_prediction]
    found = []
    for family, views in rows.groupby("family", sort=False):
        drift = views.groupby("sample_id", sort=False).drift.mean()
        for kind, part in control.groupby("kind", sort=False):
            both = pd.concat([drift, part.set_index("sample_id").distance], axis=1, join="inner")
            if len(both) < 2:
                continue
            columns = both.drift.to_numpy(), both.distance.to_numpy()
            for name, statistic, unit in (("ratio", _ratio, "fraction"), ("cohens_d", _cohens_d, "sd")):
                estimate = bootstrap(statistic, *columns, resamples=resamples, unit=unit)
                found.append({"family": family, "kind": kind, "quantity": name, **asdict(estimate)})
    if not found:
        raise ValueError(f"No two images have both a drift (answers {answers}) and a control distance.")
    return pd.DataFrame(found)


def image_means(rows: pd.DataFrame, by: str | Sequence[str], column: str, *, unit: str = "fraction") -> pd.DataFrame:
    """Mean of a column in every group: first over the views of an image, then over the images.

    Missing values are left out; a group without any other has no row. The interval resamples images.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": list("aab"), "family": "x", "drift": [1.0, 3.0, 4.0]})
        >>> image_means(rows, "family", "drift").value.tolist()
        [3.0]
    """
    by = [by] if isinstance(by, str) else list(by)
    means = rows.groupby([*by, "sample_id"], sort=False)[column].mean().dropna().reset_index()
    found = []
    for keys, part in means.groupby(by, sort=False):
        found.append({**dict(zip(by, keys)), **asdict(_mean(part[column].to_numpy(), unit))})
    return pd.DataFrame(found)


def correlations(rows: pd.DataFrame, by: str, x: str, y: str, *, resamples: int = 1000) -> pd.DataFrame:
    """Pearson correlation of two columns in every group, with a bootstrap over the images.

    A group in which one of the two does not vary has no row.

    Examples:
        >>> rows = pd.DataFrame({"sample_id": range(9), "family": "x", "a": range(9), "b": range(0, -9, -1)})
        >>> correlations(rows, "family", "a", "b").value.round(6).tolist()
        [-1.0]
    """
    found = []
    for key, part in rows.dropna(subset=[x, y]).groupby(by, sort=False):
        a, b = part[x].to_numpy(dtype=float), part[y].to_numpy(dtype=float)
        if len(part) < 3 or a.std() == 0 or b.std() == 0:
            continue
        groups = part.sample_id.to_numpy()
        estimate = bootstrap(_pearson, a, b, groups=groups, resamples=resamples, unit="correlation")
        found.append({by: key, **asdict(estimate)})
    return pd.DataFrame(found)


def _mean(values: np.ndarray, unit: str = "fraction") -> Estimate:
    return bootstrap(np.mean, values, unit=unit)


def _ratio(drift: np.ndarray, distance: np.ndarray, axis: int = -1) -> np.ndarray:
    return drift.mean(axis) / distance.mean(axis)


def _cohens_d(drift: np.ndarray, distance: np.ndarray, axis: int = -1) -> np.ndarray:
    pooled = np.sqrt((drift.var(axis, ddof=1) + distance.var(axis, ddof=1)) / 2)
    return np.where(pooled > 0, (drift.mean(axis) - distance.mean(axis)) / np.where(pooled > 0, pooled, 1), 0)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0
