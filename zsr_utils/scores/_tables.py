"""Estimates of every group of a frame."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from zsr_utils.scores._drift import Statistic


def estimates(rows: pd.DataFrame, by: str | Sequence[str], statistic: Statistic) -> pd.DataFrame:
    """One estimate a group of rows, in the order in which they first appear: columns `by` and those of an estimate.

    Examples:
        >>> from zsr_utils.scores import proportion
        >>> rows = pd.DataFrame({"sigma": [1, 1, 2], "hit": [1, 0, 1]})
        >>> estimates(rows, "sigma", lambda part: proportion(part.hit.sum(), len(part))).value.tolist()
        [0.5, 1.0]
    """
    by = [by] if isinstance(by, str) else list(by)
    groups = rows.groupby(by, sort=False, observed=True)
    return pd.DataFrame([{**dict(zip(by, keys)), **asdict(statistic(part))} for keys, part in groups])


def against_published(measured: pd.DataFrame, published: Sequence[tuple[float, str] | None]) -> pd.DataFrame:
    """Measured accuracies beside published ones.

    The interval of a measurement is one for other images like these. On the very images that the published accuracy is
    of, only rounding should differ, so that a difference inside the interval may still be a mistake.

    Args:
        published: Accuracy and source for each row, or None where nothing is published.

    Returns: `measured` with `published`, `difference` (measured less published; both missing where nothing is
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
