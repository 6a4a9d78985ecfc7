"""Published accuracies of other people's measurements, to compare with and to fit lines through."""

from typing import NamedTuple

import pandas as pd

from zsr_utils._text import unknown
from zsr_utils.datasets._catalogue import EMBEDDED


TABLES = ("openclip", "imagenet-testbed", "wani-2026", "claims")
# images behind an accuracy; in the testbed every accuracy is a whole number of them
PUBLISHED_IMAGES = {
    "imagenet": 50_000, "imagenet-v2": 10_000, "imagenet-a": 7_500, "imagenet-r": 30_000, "imagenet-sketch": 50_889,
    "objectnet": 18_514, "imagenet-on-imagenet-a": 10_000, "imagenet-on-imagenet-r": 10_000,
    "imagenet-on-objectnet": 6_250,
}  # fmt: skip


def published(name: str) -> pd.DataFrame:
    """A table of published numbers, accuracies as fractions; NaN where there is none.

    Groups, caveats and licences are on the card, `data/published/README.md`.

    Args:
        name: `openclip`, zero-shot accuracies of open_clip checkpoints, `imagenet-testbed`, models with and without
            robust training (`PUBLISHED_IMAGES` has the images behind each column of these two), `wani-2026`, flip
            rates and drift ratios by family of perturbation, or `claims`: what the literature says a `factor` changes,
            with the `model` of the family that differs in it, the `measurement` (as in
            `zsr_utils.experiments.model_trends`) and the `expected` sign of the change, `reported` and `source`.

    Source: `docs/openclip_results.csv` of open_clip; `robustness_top1s.csv` of Taori et al. (2020); Wani et al. (2026).
    """
    if name not in TABLES:
        raise ValueError(f"{unknown('table', name, TABLES)} Known are {', '.join(TABLES)}.")
    return pd.read_csv(EMBEDDED / "published" / f"{name.replace('-', '_')}.csv")


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
    rows = published("openclip").set_index(["model", "pretrained"]).loc[:, "imagenet":]
    # open_clip's table names some checkpoints without the activation they were trained with
    for name in (model, model.removesuffix("-quickgelu")):
        if dataset in rows and (name, pretrained) in rows.index:
            return Published(float(rows.at[(name, pretrained), dataset]), "open_clip's results")
    return None
