"""The distribution shifts of a data set: what is shown, beside what its accuracy without the shift is measured on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._imagenet import as_objectnet
from zsr_utils.datasets._rendered import rendered
from zsr_utils.datasets._scenes import REACH, tabletop_shifts
from zsr_utils.datasets._sources import load_dataset


IMAGENET_SHIFTS = (
    "imagenet-v2", "imagenet-v2-threshold-0.7", "imagenet-v2-top-images", "imagenet-r", "imagenet-sketch", "objectnet",
    "imagenet-a", "stylized-imagenet",
)  # fmt: skip


@dataclass(frozen=True)
class Shift:
    """Shifted images and unshifted ones with the same list of classes; `paired` where they share their sample ids."""

    shown: Dataset
    clean: Dataset
    paired: bool = False


def natural_shifts(
    images: Dataset, folders: Sequence[str] = (), *, split: str = "validation", limit: int = 0, seed: int = 0
) -> dict[str, Shift]:
    """What is known as a shift of a data set: a `Shift` by name, none where nothing is known.

    For `tabletop` they are rendered; for `imagenet` they are the sets that lie in the data folder. `folders` with
    classes in common are added for any data set, under the folder's name. `limit` is that of every set.
    """
    ids = [s.sample_id for s in images.samples]
    made = tabletop_shifts(ids, split, seed) if images.name == "tabletop" else {}
    found = {name: Shift(rendered(name, scenes), images, paired=name != "v2") for name, scenes in made.items()}
    for name in (*(IMAGENET_SHIFTS if images.name == "imagenet" else ()), *folders):
        try:
            shown = load_dataset(name, limit=limit, seed=seed)
        except FileNotFoundError:
            if name in folders:  # asked for by name
                raise
            continue
        if name == "objectnet":
            shift = Shift(shown, as_objectnet(images))
        else:
            common = [c for c in images.class_names if c in shown.class_names]
            if len(common) < 2:
                raise ValueError(f"{name} has {len(common)} of the classes of {images.name}, allowed are 2 or more.")
            shift = Shift(shown.restricted(common), images.restricted(common))
        if len(shift.clean):
            found[Path(name).name] = shift
        else:  # few images were taken
            print(f"{name} is left out: none of the {len(images)} images shows one of its classes.")
    return found


def pm_sets(folder: str | Path, *, reach: int = REACH) -> dict[str, dict[int, Path]]:
    """Anchors in a folder of video frames, named by their numbers, with their neighbours by offset.

    `pmsets.json` names the valid frames around every anchor; without it all those around the middle one must be there.

    Source: Shankar et al. (2021), the frames within 10 of an anchor that people found similar to it.
    """
    root, listed = Path(folder), (Path(folder) / "pmsets.json").is_file()
    names = sorted(p.name for p in root.glob("*.jp*g"))
    middle = {name: names for name in names[len(names) // 2 :][:1]}
    sets = json.loads((root / "pmsets.json").read_text("utf-8")) if listed else middle
    if not sets:
        raise ValueError(f"{str(root)!r} has no pmsets.json and no frames, needed is one of them.")
    found = {}
    for anchor, names in sets.items():
        offsets = {_number(name) - _number(anchor): root / name for name in (anchor, *names)}
        offsets = {k: offsets[k] for k in sorted(offsets) if abs(k) <= reach}
        expected = offsets if listed else range(-reach, reach + 1)
        if missing := [k for k in expected if k not in offsets or not offsets[k].is_file()]:
            few = f"{len(missing)} of the {2 * reach} frames around {anchor!r}"
            raise ValueError(f"{str(root)!r}: {few} are missing, such as number {_number(anchor) + missing[0]}.")
        found[anchor] = offsets
    return found


def video_frames(folder: str | Path) -> Dataset:
    """The frames of `pm_sets` as a data set, `<anchor>#<offset>`; `labels.json` has the class name of every anchor."""
    labels = json.loads((Path(folder) / "labels.json").read_text("utf-8"))
    names, samples = sorted(set(labels.values())), []
    for anchor, frames in pm_sets(folder).items():
        if anchor not in labels:
            raise ValueError(f"{str(folder)!r}: labels.json has no class for the anchor {anchor!r}.")
        label = names.index(labels[anchor])
        samples += [Sample(f"{anchor}#{k}", label, partial(Image.open, path)) for k, path in frames.items()]
    return Dataset(Path(folder).name, names, samples)


def _number(name: str) -> int:
    return int("".join(c for c in Path(name).stem.split("-")[-1] if c.isdigit()) or 0)
