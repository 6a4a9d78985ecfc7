"""Labelled images by name, folder or webdataset."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from zsr_utils._text import one_of, unknown
from zsr_utils.datasets._catalogue import EMBEDDED, HUB, NAMES, SOURCES, folder_of
from zsr_utils.datasets._cue_conflict import cue_conflict
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._embedded import tabletop
from zsr_utils.datasets._folders import folder_dataset, readable
from zsr_utils.datasets._imagenet import imagenet, objectnet
from zsr_utils.datasets._names import read_lines
from zsr_utils.datasets._questions import FILES, question_file
from zsr_utils.datasets._webdataset import is_webdataset, webdataset


SUBSETS = EMBEDDED / "subsets"
ALONE = {"tabletop": tabletop, "objectnet": objectnet, "cue-conflict": cue_conflict}


def load_dataset(
    name_or_folder: str, split: str = "validation", limit: int | None = None, seed: int = 0, *,
    classes: int | Sequence[str] = 0, ids: str | Path | None = None,
) -> Dataset:  # fmt: skip
    """Labelled images by name or folder; nothing is downloaded (`python -m zsr_utils.fetch` does that).

    Args:
        name_or_folder: One of

            - one of `NAMES`, of which `tabletop` is part of the project;
            - `wds:` and a folder, or a data set of the Hugging Face hub such as `clip-benchmark/wds_imagenetv2`,
              in the layout of CLIP_benchmark;
            - a folder with one sub-folder of images a class (a WordNet id is translated), such folders in a folder
              a split, or `labels.csv` (columns `file` and `label`, a name or an index) beside the images, or a
              webdataset. `classes.txt`, a name a line, sets the order of the classes, also of ones without images;
            - a file of questions about pictures (`question_file`), of which `limit` takes the first ones.
        split: `validation`, whatever the authors call the images to evaluate on, or `train` where a data set has
            it; folders and webdatasets with splits also take the name on disk, such as `test`. For `imagenet-c` a
            corruption and a severity, such as `gaussian_noise/3`; for `tabletop` also `tabletop_splits()`.
        limit: At most this many images, drawn by `seed` and spread over the classes; None or 0 is all.
        classes: Only these, or this many drawn by `seed`: the names of the others are no answers then; 0 is all.
        ids: Only these samples: a file with an id a line, or the name of a list in `data/subsets`.

    Raises: ValueError for an unknown name, split, class, id or layout; FileNotFoundError where files are not there.
    """
    if (path := Path(name_or_folder)).suffix in FILES and path.is_file():
        return question_file(path, limit or 0)
    dataset = _whole(str(name_or_folder), split, () if isinstance(classes, int) else classes)
    if ids:
        dataset = dataset.only(_listed(ids))
    return dataset.restricted(classes, seed).subset(limit, seed)


def _whole(name: str, split: str, asked: Sequence[str]) -> Dataset:
    if name in ALONE:
        return ALONE[name](split)
    if name in SOURCES:
        return _cifar(name, split) if name.startswith("cifar") else imagenet(name, split)
    folder = Path(name.removeprefix("wds:"))
    if folder.is_dir():
        if name.startswith("wds:") or is_webdataset(folder):
            return webdataset(folder, split, name=readable(folder.resolve().name))
        return folder_dataset(folder, split, asked)
    if HUB.fullmatch(name):
        return webdataset(folder_of(name), split, name=name)
    raise ValueError(f"{unknown('data set', name, NAMES)} It is not a folder here either.")


def _cifar(name: str, split: str) -> Dataset:
    """CIFAR: 10,000 test images are the validation split; torchvision checks the files' checksums and reads them."""
    from torchvision.datasets import CIFAR10, CIFAR100

    one_of("split", split, ["validation", "train"])
    kind, folder = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name], folder_of(name)
    try:
        cifar = kind(folder.parent, train=split == "train")
    except RuntimeError as error:
        raise ValueError(f"{str(folder)!r} is not whole: remove it and fetch {name} again.") from error
    opened = [(label, partial(Image.fromarray, cifar.data[k])) for k, label in enumerate(cifar.targets)]
    samples = [Sample(f"{k:05d}", *one) for k, one in enumerate(opened)]
    return Dataset(name, [c.replace("_", " ") for c in cifar.classes], samples, content=f"{kind.tgz_md5} {split}")


def _listed(ids: str | Path) -> list[str]:
    path = next((p for p in (Path(ids), SUBSETS / f"{ids}.txt") if p.is_file()), None)
    listed = [line for _, line in read_lines(path)] if path else []
    if not listed:
        known = ", ".join(sorted(p.stem for p in SUBSETS.glob("*.txt"))) or "none so far"
        allowed = f"a file with an id a line, or the name of one in data/subsets: {known}"
        raise ValueError(f"ids is {str(ids)!r}, allowed is {allowed}.")
    return listed
