"""Published accuracies of other people's measurements, to compare with and to fit lines through."""

from functools import lru_cache
from typing import NamedTuple

import pandas as pd

from zsr_utils._text import unknown
from zsr_utils.datasets._catalogue import EMBEDDED


FILES = {"openclip": "openclip.csv", "imagenet-testbed": "imagenet_testbed.csv", "wani-2026": "wani_2026.csv"}
# images behind an accuracy; in the testbed every accuracy is a whole number of them
PUBLISHED_IMAGES = {
    "imagenet": 50_000, "imagenet-v2": 10_000, "imagenet-a": 7_500, "imagenet-r": 30_000, "imagenet-sketch": 50_889,
    "objectnet": 18_514, "imagenet-on-imagenet-a": 10_000, "imagenet-on-imagenet-r": 10_000,
    "imagenet-on-objectnet": 6_250,
}  # fmt: skip


@lru_cache
def _table(file: str) -> pd.DataFrame:
    return pd.read_csv(EMBEDDED / "published" / file)


def published(name: str) -> pd.DataFrame:
    """A table of published accuracies, one row a model, accuracies as fractions; NaN where there is none.

    Groups, caveats and licences are on the card, `data/published/README.md`.

    Args:
        name: `openclip`, zero-shot accuracies of open_clip checkpoints, `imagenet-testbed`, models with and without
            robust training (`PUBLISHED_IMAGES` has the images behind each column of these two), or `wani-2026`, flip
            rates and drift ratios by family of perturbation.

    Source: `docs/openclip_results.csv` of open_clip; `robustness_top1s.csv` of Taori et al. (2020); Wani et al. (2026).
    """
    if name not in FILES:
        raise ValueError(f"{unknown('table', name, FILES)} Known are {', '.join(FILES)}.")
    return _table(FILES[name]).copy()


class Published(NamedTuple):
    """An accuracy that was published, as a fraction, and where."""

    accuracy: float
    source: str


def published_accuracy(model: str, pretrained: str | None, dataset: str) -> Published | None:
    """The published zero-shot accuracy of a model on a data set, named as for loading, or None where there is none.

    For checkpoints it is that of open_clip's table, for embedded models on Tabletop that of their card, which was
    measured at the end of training, before the weights were rounded to 16 bits.

    Examples:
        >>> published_accuracy("ViT-B-32", "openai", "imagenet").accuracy
        0.6332
    """
    curve = EMBEDDED / "models" / model / "curve.csv"
    if dataset == "tabletop" and curve.is_file():
        last = pd.read_csv(curve).iloc[-1]
        return Published(float(last["zero_shot" if "zero_shot" in last else "accuracy"]), "model card")
    rows = _table(FILES["openclip"]).set_index(["model", "pretrained"]).loc[:, "imagenet":]
    # open_clip's table names some checkpoints without the activation they were trained with
    for name in (model, model.removesuffix("-quickgelu")):
        if dataset in rows and (name, pretrained) in rows.index:
            return Published(float(rows.at[(name, pretrained), dataset]), "open_clip's results")
    return None


def claims() -> pd.DataFrame:
    """What the literature says a single factor changes, beside the embedded model that tests it.

    Returns:
        Columns `factor`, `model` (the member of the family that differs from the default in it), `measurement` (as in
        `zsr_utils.experiments.model_trends`), `expected` (sign of the change against the default: 1, 0 or -1),
        `reported` and `source`.
    """
    return _table("claims.csv").copy()
