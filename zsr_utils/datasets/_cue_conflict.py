"""Stimuli whose shape says one class and whose texture says another."""

import re

from zsr_utils._text import one_of
from zsr_utils.datasets._catalogue import folder_of
from zsr_utils.datasets._dataset import Dataset
from zsr_utils.datasets._folders import class_folders, known_folders


# ImageNet's 1,000 classes that each of the sixteen stands for: a mapping of Geirhos et al., as numbers and ranges
SIXTEEN = {
    "airplane": "404", "bear": "294-297", "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914", "bottle": "440 720 737 898 899 901 907", "car": "436 511 817", "cat": "281-286",
    "chair": "423 559 765 857", "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385 386", "keyboard": "508 878", "knife": "499", "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}  # fmt: skip
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
