"""The distribution shifts of a data set: what is shown, beside what its accuracy without the shift is measured on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from zsr_utils.datasets._catalogue import folder_of
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._imagenet import objectnet_classes
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
    found: dict[str, Shift] = {}
    if images.name == "tabletop":
        for name, scenes in tabletop_shifts([s.sample_id for s in images.samples], split, seed).items():
            found[name] = Shift(rendered(name, scenes), images, paired=name != "v2")
    for name in (*(IMAGENET_SHIFTS if images.name == "imagenet" else ()), *folders):
        try:
            shown = load_dataset(name, limit=limit, seed=seed)
        except FileNotFoundError:
            continue
        if name == "objectnet":
            found[name] = Shift(shown, _as_objectnet(images))
            continue
        common = [c for c in images.class_names if c in shown.class_names]
        if len(common) < 2:
            raise ValueError(f"{name} has {len(common)} of the classes of {images.name}, allowed are 2 or more.")
        found[Path(name).name] = Shift(shown.restricted(common), images.restricted(common))
    return found


def pm_sets(folder: str | Path, *, reach: int = REACH) -> dict[str, dict[int, Path]]:
    """Anchors of a folder of video frames with their neighbours by offset: those of `pmsets.json`, or the middle frame.

    Args:
        folder: Frames whose names end in their numbers. `pmsets.json` names, for every anchor, the valid frames
            around it; without it every frame within reach of the middle one must be there.

    Source: Shankar et al. (2021), the frames within 10 of an anchor that people found similar to it.
    """
    root = Path(folder)
    listed = root / "pmsets.json"
    if listed.is_file():
        sets = {a: [a, *near] for a, near in json.loads(listed.read_text("utf-8")).items()}
    else:
        names = sorted(p.name for p in root.glob("*.jp*g"))
        sets = {names[len(names) // 2]: names} if names else {}
    if not sets:
        raise ValueError(f"{str(root)!r} has no pmsets.json and no frames, needed is one of them.")
    found = {}
    for anchor, names in sets.items():
        offsets = {_number(name) - _number(anchor): root / name for name in names}
        offsets = {k: path for k, path in offsets.items() if abs(k) <= reach}
        expected = offsets if listed.is_file() else range(-reach, reach + 1)
        if missing := [k for k in expected if k not in offsets or not offsets[k].is_file()]:
            raise ValueError(
                f"{str(root)!r}: {len(missing)} of the {2 * reach} frames around {anchor!r} are missing, "
                f"such as number {_number(anchor) + missing[0]}."
            )
        found[anchor] = dict(sorted(offsets.items()))
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


def _as_objectnet(images: Dataset) -> Dataset:
    """ImageNet images of the classes that ObjectNet has, under ObjectNet's names, many to one."""
    names, label_of = objectnet_classes(images.class_names, folder_of("objectnet", "objectnet-1.0"))
    few = images._at([row for row, s in enumerate(images.samples) if s.label in label_of])
    return replace(few, class_names=names, samples=[replace(s, label=label_of[s.label]) for s in few.samples])
