"""Retrieval: how far down the list stands what was looked for, and what that is worth.

Equal similarities have no order, so every number is the expectation over all of them.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from zsr_utils.scores._intervals import Estimate, bootstrap, grouped_proportion, not_measured
from zsr_utils.scores._rows import Statistic


TIE = 1e-9  # of cosines in float64: equal embeddings differ by less
AT_ONCE = 2**21  # similarities held at once


def placed(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "g d"],
    relevant: Mapping[str, Callable[[slice], Bool[np.ndarray, "m g"]]], *, at_once: int = AT_ONCE,
) -> pd.DataFrame:  # fmt: skip
    """Where the nearest relevant item of a gallery stands, a row a query; similarities come and go by rows.

    Args:
        relevant: By a suffix of the columns, which items answer some of the queries.

    Returns: Numbers of items by cosine: irrelevant ones `above` the nearest relevant one, irrelevant ones `tied` with
        it, relevant ones there (`equal`, itself among them), and all of them (`relevant`, `gallery`).

    Examples:
        >>> square, own = np.eye(3), lambda part: np.eye(3, dtype=bool)[part]
        >>> placed(square, square[[1, 0, 2]], {"": own})[["above", "tied", "equal"]].values.tolist()
        [[1, 1, 1], [1, 1, 1], [0, 0, 1]]
    """
    a, b = (np.asarray(v, dtype=float) for v in (queries, gallery))
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True).clip(TIE) for v in (a, b))  # 0 has a cosine of 0 to all
    counts, step = [], max(1, at_once // len(b))
    for part in (slice(i, i + step) for i in range(0, len(a), step)):
        similarity, columns = a[part] @ b.T, []
        for answers in (which(part) for which in relevant.values()):
            best = np.where(answers, similarity, -np.inf).max(1, keepdims=True)
            there = np.abs(similarity - best) <= TIE
            above = (similarity > best + TIE) & ~answers
            columns += [kind.sum(1) for kind in (above, there & ~answers, there & answers, answers)]
        counts.append(np.stack(columns, axis=1))
    names = [name + suffix for suffix in relevant for name in ("above", "tied", "equal", "relevant")]
    return pd.DataFrame(np.concatenate(counts), columns=names).assign(gallery=len(b))


def found(rows: pd.DataFrame, k: int, *, true: bool = False) -> Float[np.ndarray, "q"]:
    """Chance that the first k hold what was looked for, over all orders of ties; with `true`, anything that is true.

    Examples:
        >>> rows = pd.DataFrame({"above": [0, 1], "tied": [0, 2], "equal": [1, 1]})
        >>> found(rows, 1).tolist(), found(rows, 2).round(3).tolist()
        ([1.0, 0.0], [1.0, 0.333])
    """
    above, tied, equal = (rows[f"{name}_true" if true else name].to_numpy() for name in ("above", "tied", "equal"))
    return stats.hypergeom.sf(0, tied + equal, equal, np.clip(k - above, 0, tied + equal)).clip(0, 1)


def recall(k: int, *, true: bool = False) -> Statistic:
    """R@k: share of queries whose own picture or caption is among the first k; the interval counts images."""
    return lambda rows: grouped_proportion(found(rows, k, true=true), rows.sample_id)


def by_luck(rows: pd.DataFrame, k: int, among: str = "gallery") -> float:
    """R@k of a random order of the gallery, or of what is true (`relevant_true`): all that captions tell a reader."""
    return float(stats.hypergeom.sf(0, rows[among], rows.relevant, np.minimum(k, rows[among])).mean())


def true_misses(k: int) -> Statistic:
    """Share of the misses at k among whose first k is something that is true all the same; not measured if unknown."""

    def statistic(rows: pd.DataFrame) -> Estimate:
        if "above_true" not in rows:
            return not_measured()
        own, true = found(rows, k), found(rows, k, true=True)
        part = pd.DataFrame({"both": true - own, "missed": 1 - own}).groupby(rows.sample_id.to_numpy()).sum()
        part = part[part.missed > TIE]
        share = part.both.sum() / max(part.missed.sum(), TIE)
        if not TIE < share < 1 - TIE:  # resamples would not vary
            return grouped_proportion(np.full(len(part), round(share)), part.index)
        return bootstrap(lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), part.both, part.missed)

    return statistic


def by_image(rows: pd.DataFrame, k: int) -> pd.DataFrame:
    """Of captions as queries, the chance that `any` caption of an image finds it among the first k, and that `each`."""
    p = pd.DataFrame({"any": 1 - (hit := found(rows, k)), "each": hit})
    return p.groupby(rows.sample_id.to_numpy(), sort=False).prod().assign(any=lambda t: 1 - t["any"])


def median_rank(rows: pd.DataFrame) -> Estimate:
    """Median over queries of the expected rank of the first right answer."""
    rank = rows.above + (rows.tied + rows.equal + 1) / (rows.equal + 1)
    return bootstrap(np.median, rank, groups=rows.sample_id, resamples=200, unit="rank")
