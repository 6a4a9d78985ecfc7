"""Estimates of every group of a frame."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pandas as pd

from zsr_utils.scores._intervals import Estimate, paired_difference


def estimates(
    rows: pd.DataFrame, by: str | Sequence[str], estimate: Callable[[pd.DataFrame], Estimate]
) -> pd.DataFrame:
    """One estimate a group, groups in the order in which they first appear.

    Args:
        rows: Per-sample rows.
        by: Columns that make the groups.
        estimate: From the rows of a group to its estimate.

    Returns:
        The columns of `by` and those of an estimate: value, low, high, interval, n, unit.

    Examples:
        >>> from zsr_utils.scores import proportion
        >>> rows = pd.DataFrame({"sigma": [1, 1, 2], "hit": [1, 0, 1]})
        >>> estimates(rows, "sigma", lambda part: proportion(part.hit.sum(), len(part))).value.tolist()
        [0.5, 1.0]
    """
    by = [by] if isinstance(by, str) else list(by)
    groups = rows.groupby(by, sort=False, observed=True)
    return pd.DataFrame([{**dict(zip(by, keys)), **asdict(estimate(part))} for keys, part in groups])


def paired_changes(base: pd.DataFrame, other: pd.DataFrame, by: str, *, seed: int = 0) -> pd.DataFrame:
    """Mean difference `other - base` in every group, sample by sample.

    Samples that only one of the two has are left out. A sample may have several values, such as the
    pairs of one source image; they are averaged first, so the bootstrap draws samples.

    Args:
        base: Columns `by`, `sample_id`, `value`.
        other: The same.
        by: Column of the groups.
        seed: Of the bootstrap.

    Returns:
        The column `by`, the means `base` and `other` over the common samples, and the columns of an estimate
        of the difference. A group without a common sample has no row.

    Examples:
        >>> base = pd.DataFrame({"m": "a", "sample_id": [1, 2, 3], "value": [0.0, 0.0, 1.0]})
        >>> other = pd.DataFrame({"m": "a", "sample_id": [1, 2, 4], "value": [1.0, 0.0, 1.0]})
        >>> paired_changes(base, other, "m")[["base", "other", "value"]].values.tolist()
        [[0.0, 0.5, 0.5]]
    """
    keys = [by, "sample_id"]
    means = [table.groupby(keys, sort=False).value.mean() for table in (base, other)]
    both = pd.concat(means, axis=1, join="inner", keys=["base", "other"])
    found = []
    for group, part in both.groupby(level=0, sort=False):
        change = paired_difference(part.base.to_numpy(), part.other.to_numpy(), seed=seed)
        found.append({by: group, "base": part.base.mean(), "other": part.other.mean(), **asdict(change)})
    return pd.DataFrame(found)


def against_published(measured: pd.DataFrame, published: Sequence[tuple[float, str] | None]) -> pd.DataFrame:
    """Measured accuracies beside published ones.

    The interval of a measurement is one for other images like these. On the very images that the published
    accuracy is of, only rounding should differ, so that a difference inside the interval may still be a mistake.

    Args:
        measured: Columns of an estimate, one row a model.
        published: Accuracy and source for each row, or None where nothing is published.

    Returns:
        `measured` with `published`, `difference` (measured less published; both missing where nothing is
        published), `covered` (whether the interval holds the published value) and `source`.

    Examples:
        >>> rows = pd.DataFrame({"value": [0.63, 0.5], "low": [0.62, 0.4], "high": [0.64, 0.6]})
        >>> against_published(rows, [(0.6332, "table"), None])[["published", "covered"]].values.tolist()
        [[0.6332, True], [nan, False]]
    """
    values = [p[0] if p else float("nan") for p in published]
    table = measured.assign(published=values, source=[p[1] if p else "" for p in published])
    table["difference"] = table["value"] - table["published"]
    table["covered"] = table["published"].between(table["low"], table["high"])
    return table
