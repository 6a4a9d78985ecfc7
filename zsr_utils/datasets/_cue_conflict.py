"""Stimuli whose shape says one class and whose texture says another."""

import re

from zsr_utils._text import one_of, read_yaml
from zsr_utils.datasets._catalogue import EMBEDDED, folder_of
from zsr_utils.datasets._dataset import Dataset
from zsr_utils.datasets._folders import class_folders, known_folders


SIXTEEN = read_yaml(EMBEDDED / "classes.yaml")["sixteen"]
SETS = {"validation": "style-transfer-preprocessed-512", "edges": "edges", "silhouettes": "filled-silhouettes"}
STIMULUS = re.compile(r"(\D+)(\d+)-(\D+)(\d+)(?:\.\w+)?")


def cue_conflict(split: str) -> Dataset:
    """The stimuli of Geirhos et al. in the folders of their `texture-vs-shape/stimuli`.

    `validation` are those in conflict (a few agree: their names say so), the others shapes without a texture.

    Source: Geirhos et al. (2019), section 2; the sixteen classes are those of Geirhos et al. (2018).
    """
    one_of("split", split, SETS)
    folder = folder_of("cue-conflict") / SETS[split]
    if not folder.is_dir():
        raise FileNotFoundError(f"cue-conflict has no folder {SETS[split]!r} in {str(folder.parent)!r}.")
    known_folders(folder, SIXTEEN, "the sixteen classes of cue-conflict")
    label_of = {name: label for label, name in enumerate(SIXTEEN)}
    return class_folders(folder, label_of, name="cue-conflict", class_names=tuple(SIXTEEN), merged=sixteen())


def sixteen() -> tuple[tuple[int, ...], ...]:
    """ImageNet's classes of each of the sixteen."""
    bounds = [[part.split("-") for part in text.split()] for text in SIXTEEN.values()]
    return tuple(tuple(k for part in parts for k in range(int(part[0]), int(part[-1]) + 1)) for parts in bounds)


def cues(sample_id: str) -> tuple[str, str, str]:
    """Shape, texture and source of the shape, as the name of a stimulus says them.

    Examples:
        >>> cues("cat/cat7-elephant2.png")
        ('cat', 'elephant', 'cat7')

    Raises: ValueError for another name.
    """
    found = STIMULUS.fullmatch(sample_id.rpartition("/")[2])
    if not found:
        allowed = "names such as 'cat7-elephant2.png', shape before texture: take the data set tabletop or cue-conflict"
        raise ValueError(f"{sample_id!r} is no name of a stimulus, allowed are {allowed}.")
    return found[1], found[3], found[1] + found[2]
