"""What attacks did: accuracy at a radius, the smallest change of every image, and whether to believe either.

An image is held as long as no other class is named: a model that abstains holds it. Of several draws the worst counts.
"""

from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from zsr_utils.scores._intervals import Estimate, bootstrap, estimate_of, grouped_proportion, not_measured, proportion
from zsr_utils.scores._paired import paired_changes
from zsr_utils.scores._verdicts import decide


WHOLE = 255.0  # grey levels: the ball that holds every image
LEVEL = 1e-3  # grey levels that rounding adds to a change
RUNGS = ("random_noise", "fgsm", "pgd", "apgd_ce")  # each at least as strong as the one before
WHITE = (*RUNGS[1:], "bim", "mim", "apgd_dlr")
BLACK = ("square", "nes", "spsa", "transfer_fgsm", "transfer_bim", "transfer_mim", "transfer_dim")
KEYS = ["condition", "severity", "sample_id"]
# what is no alarm yet, as a share of the images or a difference of robust accuracies
LIMITS = {
    "stronger attack is weaker": 0.0, "black box beats white box": 0.0, "larger radius hurts less": 0.0,
    "random starts differ": 0.25, "answers to the same pixels differ": 0.05, "gradients vanish": 0.05,
    "unbounded attack fails": 0.05,
}  # fmt: skip


def held(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether each image holds, as 1.0 or 0.0 in `value`, by `condition`, `severity` and `sample_id`."""
    holds = (rows.margin >= 0).groupby([rows[k] for k in KEYS], sort=False).all()
    return holds.astype(float).rename("value").reset_index()


def robust_accuracy(rows: pd.DataFrame) -> Estimate:
    """Share of images that hold against all of these rows (V1 where they are those of one attack and radius).

    Examples:
        >>> robust_accuracy(pd.DataFrame({"sample_id": list("aab"), "margin": [1.0, -1.0, 2.0]})).value
        0.5
    """
    holds = (rows.margin >= 0).groupby(rows.sample_id).all()
    return proportion(int(holds.sum()), len(holds))


def smallest_change(rows: pd.DataFrame) -> pd.Series:
    """The smallest change, in grey levels (L-infinity), by which any of these attacks broke an image, by sample id.

    What is wrong unchanged is broken by 0; where nothing broke an image, it is the whole range, 255.
    """
    size = rows.linf.where(rows.severity > 0, 0.0).where(rows.margin < 0, WHOLE)
    return size.groupby(rows.sample_id, sort=False).min()


def robustness_curve(rows: pd.DataFrame, radii: Float[np.ndarray, "m"]) -> pd.DataFrame:
    """Share of images that no attack broke within each radius, in grey levels: estimates by `eps`."""
    smallest = smallest_change(rows)
    whole = {float(r): proportion(int((smallest > r + LEVEL).sum()), len(smallest)) for r in radii}
    return pd.DataFrame([{"eps": r, **asdict(e)} for r, e in whole.items()])


def by_radius(rows: pd.DataFrame) -> tuple[Bool[np.ndarray, "n m"], Float[np.ndarray, "m"]]:
    """Whether each image holds in growing balls, those of one attack and the unchanged images, and their radii."""
    table = held(rows).pivot_table(index="sample_id", columns="severity", values="value", aggfunc="min")
    return table.to_numpy() > 0, table.columns.to_numpy()


def bisected(holds: Bool[np.ndarray, "n m"], radii: Float[np.ndarray, "m"]) -> Float[np.ndarray, "n"]:
    """The smallest radius that breaks an image as bisection finds it: 0 if wrong unchanged, 255 if it always holds.

    Examples:
        >>> bisected(np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]]) > 0, np.array([0, 1, 2, 4.0]))
        array([  2.,   4.,   0., 255.])

    Source: Wang et al. (2024), V2; an image that holds in a larger ball than one that broke it is misjudged by it.
    """
    low, high = np.zeros(len(holds), int), np.full(len(holds), len(radii))
    while (high - low > 1).any():
        middle = (low + high) // 2
        holding, open_ = holds[np.arange(len(holds)), middle], high - low > 1
        low, high = np.where(open_ & holding, middle, low), np.where(open_ & ~holding, middle, high)
    return np.where(holds[:, 0], np.append(radii, WHOLE)[high], 0.0)


def median_radius(rows: pd.DataFrame) -> Estimate:
    """V2: the median over images of the smallest radius found by bisection, in grey levels.

    A radius of the grid stands for all above the one below it, so the interval begins there.
    """
    holds, radii = by_radius(rows)
    found = bootstrap(np.median, bisected(holds, radii), unit="grey levels")
    return replace(found, low=float(radii[radii < found.low].max(initial=0.0)))


def not_monotone(rows: pd.DataFrame) -> Estimate:
    """Share of images that hold in a larger ball than one in which they were broken."""
    holds, _ = by_radius(rows)
    back = (holds[:, 1:] & ~np.logical_and.accumulate(holds[:, :-1], axis=1)).any(1)
    return proportion(int(back.sum()), len(back))


def alarms(rows: pd.DataFrame) -> pd.DataFrame:
    """Signs that attacks failed and nothing is robust: a row an alarm and `model`.

    Args:
        rows: Of the conditions `RUNGS`, and of others where they were measured; `original` with `zero_gradient` and
            `saturated`, and an attack in the ball that holds everything.

    Returns: Columns `alarm`, those of an estimate, `limit`, and `raised`: the value is above its limit, by a test that
        is corrected for all comparisons of an alarm, or by its interval; `model` where the rows have it.

    Source: The signs are those of Athalye et al. (2018) and Carlini et al. (2019); the tests and limits are ours.
    """
    if "model" in rows:
        models = rows.groupby("model", sort=False)
        return pd.concat([alarms(part.drop(columns="model")).assign(model=m) for m, part in models], ignore_index=True)
    bounded = rows[rows.severity < WHOLE]
    holds, clean = held(bounded), rows[rows.condition == "original"]
    by = {name: part for name, part in holds.groupby("condition")}
    white = holds[holds.condition.isin(WHITE)]
    worst = white.groupby(["severity", "sample_id"], sort=False).value.min().reset_index()
    looked = rows[rows.fooled.notna()]
    growing = {}
    for name in filter(by.__contains__, WHITE):
        at = {radius: part.assign(severity=0.0) for radius, part in by[name].groupby("severity")}
        growing |= {f"{name} {low:g} {high:g}": (at[low], at[high]) for low, high in pairwise(at)}
    gains = {
        "stronger attack is weaker": {two: (by[one], by[two]) for one, two in pairwise(r for r in RUNGS if r in by)},
        "black box beats white box": {name: (by[name], worst) for name in BLACK if name in by},
        "larger radius hurts less": growing,
    }
    shares = {
        "random starts differ": _starts(bounded),
        "answers to the same pixels differ": looked.assign(value=looked.fooled.astype(bool) & (looked.margin >= 0)),
        "gradients vanish": clean.assign(value=(clean.zero_gradient > 0.5) | clean.saturated.astype(bool)),
        "unbounded attack fails": held(rows[rows.severity == WHOLE]).groupby("sample_id").min().reset_index(),
    }
    found = {name: _largest_gain(pairs) for name, pairs in gains.items()}
    for name, part in shares.items():
        share = grouped_proportion(part.value.to_numpy(float), part.sample_id.to_numpy())
        found[name] = share, decide(share, LIMITS[name]) == "more"
    return pd.DataFrame([{"alarm": n, **asdict(e), "limit": LIMITS[n], "raised": r} for n, (e, r) in found.items()])


def _largest_gain(pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> tuple[Estimate, bool]:
    """That from the first to the second, and whether any is one after correction for all of them."""
    if not pairs:
        return not_measured(), False
    sides = (pd.concat([pair[k].assign(pair=name) for name, pair in pairs.items()]) for k in (0, 1))
    table = paired_changes(*sides, ["pair", "severity"], bounds=1.0)
    if table.empty:
        return not_measured(), False
    gains = table.verdict == "more"
    return estimate_of(table.loc[(table.value + 2 * gains).idxmax()]), bool(gains.any())


def _starts(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the attacks with several random starts, whether their outcomes differ, by image and radius."""
    groups = (rows.margin >= 0).groupby([rows[k] for k in KEYS], sort=False)
    several = groups.size() > 1
    differ = (groups.nunique() > 1)[several & (several.index.get_level_values("condition") != RUNGS[0])]
    return differ.rename("value").reset_index()
