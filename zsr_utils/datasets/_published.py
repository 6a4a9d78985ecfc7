"""Published accuracies of other people's measurements, to compare with and to fit lines through."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from zsr_utils._text import unknown


DATA = Path(__file__).resolve().parents[2] / "data"
SHIFTS = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet")
CIFAR = ("cifar10", "cifar100")
MATCHED = tuple(f"imagenet-on-{name}" for name in ("imagenet-a", "imagenet-r", "objectnet"))
# images behind an accuracy; in the testbed every accuracy is a whole number of them
PUBLISHED_IMAGES = {
    "imagenet": 50_000, "imagenet-v2": 10_000, "imagenet-a": 7_500, "imagenet-r": 30_000, "imagenet-sketch": 50_889,
    "objectnet": 18_514, "imagenet-on-imagenet-a": 10_000, "imagenet-on-imagenet-r": 10_000,
    "imagenet-on-objectnet": 6_250,
}  # fmt: skip
FILES = {
    "openclip": (
        "openclip.csv",
        ("model", "pretrained", "source", "counted", "parameters_m", "gflops", "image_size"),
        ("imagenet", *SHIFTS, *CIFAR),
    ),
    "imagenet-testbed": ("imagenet_testbed.csv", ("model", "group"), ("imagenet", *SHIFTS, *MATCHED)),
    "wani-2026": ("wani_2026.csv", ("family",), ("ifr", "iv", "drift_context", "drift_answer")),
}


def published(name: str) -> pd.DataFrame:
    """A table of published accuracies, one row a model, accuracies as fractions.

    Groups, caveats and licences are on the card, `data/published/README.md`.

    Examples:
        >>> rows = published("imagenet-testbed").set_index("model")
        >>> rows.group["resnet50"], float(rows.imagenet["resnet50"])
        ('standard', 0.7613)

    Args:
        name: `openclip`, zero-shot accuracies of open_clip checkpoints, `imagenet-testbed`, models with and
            without robust training (`PUBLISHED_IMAGES` has the images behind each column of these two), or
            `wani-2026`, flip rates and drift ratios by family of perturbation.

    Raises:
        ValueError: If the name is unknown, or the file lacks a column or has a value that is no fraction.

    Source:
        `docs/openclip_results.csv` of open_clip; `robustness_top1s.csv` of Taori et al. (2020); Wani et al. (2026).
    """
    if name not in FILES:
        raise ValueError(f"{unknown('table', name, FILES)} Known are {', '.join(FILES)}.")
    file, labels, accuracies = FILES[name]
    return _checked(pd.read_csv(DATA / "published" / file), file, labels, accuracies)


class Published(NamedTuple):
    """An accuracy that was published, as a fraction, and where."""

    accuracy: float
    source: str


def published_accuracy(model: str, pretrained: str | None, dataset: str) -> Published | None:
    """The published zero-shot accuracy of a model on a data set, or None where there is none.

    For checkpoints it is that of open_clip's table, for embedded models on Tabletop that of their card, which
    was measured at the end of training, before the weights were rounded to 16 bits.

    Examples:
        >>> published_accuracy("ViT-B-32", "openai", "imagenet").accuracy
        0.6332
        >>> published_accuracy("tabletop-base", None, "imagenet") is None
        True

    Args:
        model, pretrained, dataset: As for `load_model` and `load_dataset`.
    """
    curve = DATA / "models" / model / "curve.csv"
    if dataset == "tabletop" and curve.is_file():
        last = pd.read_csv(curve).iloc[-1]
        return Published(float(last["zero_shot" if "zero_shot" in last else "accuracy"]), "model card")
    table = _openclip()
    if dataset not in table or dataset not in ("imagenet", *SHIFTS, *CIFAR):
        return None
    # open_clip's table names some checkpoints without the activation they were trained with
    for name in (model, model.removesuffix("-quickgelu")):
        if (name, pretrained) in table.index:
            return Published(float(table.at[(name, pretrained), dataset]), "open_clip's results")
    return None


def claims() -> pd.DataFrame:
    """What the literature says a single factor changes, beside the embedded model that tests it.

    Returns:
        Columns `factor`, `model` (the member of the family that differs from the default in it),
        `measurement` (as in `zsr_utils.experiments.model_trends`), `expected` (sign of the change against the default:
        1, 0 or -1), `reported` and `source`.

    Examples:
        >>> claims().expected.isin([-1, 0, 1]).all().item()
        True
    """
    return pd.read_csv(DATA / "published" / "claims.csv")


@lru_cache(maxsize=1)
def _openclip() -> pd.DataFrame:
    return published("openclip").set_index(["model", "pretrained"])


def _checked(rows: pd.DataFrame, file: str, labels: tuple[str, ...], accuracies: tuple[str, ...]) -> pd.DataFrame:
    missing = [column for column in (*labels, *accuracies) if column not in rows]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(map(repr, missing))}.")
    for column in accuracies:
        # a model that was not measured on a set is NaN there
        wrong = rows[~(rows[column].between(0, 1) | rows[column].isna())]
        if len(wrong):
            row = wrong.iloc[0]
            raise ValueError(
                f"{column} of {row[labels[0]]!r} in {file} is {row[column]}, allowed is a fraction from 0 to 1."
            )
    return rows
