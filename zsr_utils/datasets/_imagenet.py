"""ImageNet, its natural and artificial shifts, and annotations, as folders in the form their authors give them."""

import json
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from zsr_utils._text import one_of, read_yaml
from zsr_utils.datasets._catalogue import EMBEDDED, data_folder, folder_of
from zsr_utils.datasets._dataset import Dataset
from zsr_utils.datasets._folders import class_folders, known_folders, split_folder
from zsr_utils.datasets._names import imagenet_classes


CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    "speckle_noise", "gaussian_blur", "spatter", "saturate",
)  # fmt: skip
FACTORS = (
    "pose", "background", "pattern", "color", "smaller", "shape", "partial_view", "subcategory", "texture", "larger",
    "darker", "object_blocking", "person_blocking", "style", "brighter", "multiple_objects",
)  # fmt: skip
IMAGENETTE_CLASSES = read_yaml(EMBEDDED / "classes.yaml")["imagenette"]
V2_FOLDERS = [f"imagenetv2-{kind}-format-val" for kind in ("matched-frequency", "threshold0.7", "top-images")]
BORDER = 2  # pixels of red around every ObjectNet image


@lru_cache(maxsize=1)
def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts of Radford et al. (2021) for ImageNet, each with one `{}`."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def imagenet(name: str, split: str) -> Dataset:
    """ImageNet, a shifted set or Imagenette, in the folders of their authors; a model chooses among the set's classes.

    Source: Russakovsky et al. (2015); Recht et al. (2019), V2; Hendrycks et al. (2021a) for A, (2021b)
        for R; Wang et al. (2019), Sketch; Hendrycks and Dietterich (2019), C; Geirhos et al. (2019), Stylized.
    """
    ten = name.startswith("imagenette")
    classes = IMAGENETTE_CLASSES if ten else imagenet_classes(name)
    templates = Dataset.templates if ten else imagenet_templates()
    if name == "imagenet-c":
        folder = _corrupted(split)
    elif ten or name in ("imagenet", "stylized-imagenet"):
        one_of("split", split, ["validation", "train"])
        folder = folder_of(name)
        if split == "train" and not any(folder.glob("[tT]rain*/")):
            raise FileNotFoundError(f"{name} in {str(folder)!r} has no training images: put them there, in 'train'.")
        folder = split_folder(folder, split)
    else:
        one_of("split", split, ["validation"])
        folder = folder_of(name, name, "sketch", *V2_FOLDERS)
    if name.startswith("imagenet-v2"):  # folders 0 to 999, of which sorting as text would make 0, 1, 10, 100
        classes = {str(label): class_name for label, class_name in enumerate(classes.values())}
    known_folders(folder, classes, f"the {len(classes):,} classes of {name}")
    label_of = {class_folder: label for label, class_folder in enumerate(classes)}
    return class_folders(folder, label_of, name=name, class_names=classes.values(), templates=templates)


def objectnet(split: str) -> Dataset:
    """ObjectNet, restricted to the 113 classes it shares with ImageNet, its red border cut off.

    Source: Barbu et al. (2019): `mappings/` and the cut of 2 pixels on every side, as in the authors' loader. Choosing
        among 113 names is CLIP_benchmark's protocol; Barbu et al. instead map the answers of 1,000-class models.
    """
    one_of("split", split, ["validation"])
    root = folder_of("objectnet", "objectnet-1.0")
    label_of_folder, in_imagenet = (
        json.loads((root / "mappings" / f"{name}.json").read_text("utf-8"))
        for name in ("folder_to_objectnet_label", "objectnet_to_imagenet_1k")
    )
    known_folders(root / "images", label_of_folder, "ObjectNet's classes")
    shared = sorted(folder for folder, label in label_of_folder.items() if label in in_imagenet)
    attributes = {"name": "objectnet", "class_names": [label_of_folder[folder].lower() for folder in shared]}
    label_of = {folder: label for label, folder in enumerate(shared)}
    return class_folders(root / "images", label_of, border=BORDER, templates=imagenet_templates(), **attributes)


def as_objectnet(images: Dataset) -> Dataset:
    """ImageNet images of the classes that ObjectNet has, under its names, several to one, as its `mappings/` say.

    Raises: ValueError for a map that names a class ImageNet has not, or where a class has none among the images'.
    """
    from timm.data import ImageNetInfo

    path = folder_of("objectnet", "objectnet-1.0") / "mappings" / "objectnet_to_imagenet_1k.json"
    described = dict(zip(ImageNetInfo("imagenet-1k").label_descriptions(), imagenet_classes().values()))
    overlap = json.loads(path.read_text("utf-8"))
    names, label_of = sorted(overlap), {}
    for label, name in enumerate(names):
        for description in overlap[name].split("; "):
            if description not in described:
                raise ValueError(f"{str(path)!r} maps {name!r} to {description!r}, which is no class of ImageNet.")
            same = (k for k, shown in enumerate(images.class_names) if shown == described[description])
            label_of |= dict.fromkeys(same, label)
    if missing := set(range(len(names))) - set(label_of.values()):
        few = f"{len(missing)} of its {len(names)} classes, such as {names[min(missing)]!r}"
        raise ValueError(f"{str(path)!r} leaves the ImageNet images without {few}: take all of ImageNet's classes.")
    shown = images.only([s.sample_id for s in images.samples if s.label in label_of])
    samples = [replace(s, label=label_of[s.label]) for s in shown.samples]
    return replace(shown, class_names=[name.lower() for name in names], samples=samples)


def imagenet_x(path: str | Path | None = None) -> pd.DataFrame:
    """ImageNet-X: how each ImageNet validation image differs from typical images of its class.

    Args:
        path: Folder with the authors' files; None is `imagenet-x` in the data folder. Typical images that annotators
            saw for comparison are left out, as the authors do, if `prototypical_paths.csv` is there.

    Returns:
        A frame indexed by `sample_id`, as in the data set `imagenet`: a column of 0 and 1 for each of the 16 `FACTORS`,
        and `top`, the one factor that the annotators found to differ most (missing if none does).

    Source: Idrissi et al. (2023), and their `load_annotations`.
    """
    folder = Path(path) if path else data_folder() / "imagenet-x"
    rows, top = (_annotations(folder / f"imagenet_x_val_{which}_factor.jsonl") for which in ("multi", "top"))
    rows["top"] = top.idxmax(axis=1).where(top.any(axis=1)).reindex(rows.index)
    typical = folder / "prototypical_paths.csv"
    if typical.is_file():
        shown = set(pd.read_csv(typical)["file_name"])
        rows = rows[[sample_id.split("/")[1] not in shown for sample_id in rows.index]]
    return rows


def _corrupted(split: str) -> Path:
    corruption, _, severity = split.partition("/")
    if corruption not in CORRUPTIONS or not re.fullmatch("[1-5]", severity):
        allowed = f"corruptions are {', '.join(CORRUPTIONS)}, severities 1 to 5"
        example = "a corruption and its severity, such as 'gaussian_noise/3'"
        raise ValueError(f"split is {split!r}, allowed is {example}: {allowed}.")
    root = folder_of("imagenet-c")
    if not (root / split).is_dir():
        how = "get the archive that holds it from https://zenodo.org/records/2235448 and unpack it there"
        raise FileNotFoundError(f"imagenet-c in {str(root)!r} has no folder {split!r}: {how}.")
    return root / split


def _annotations(path: Path) -> pd.DataFrame:
    if not path.is_file():
        how = "get it from imagenet_x/annotations of https://github.com/facebookresearch/imagenetx"
        raise FileNotFoundError(f"ImageNet-X needs {str(path)!r}: {how}.")
    rows, wnids = pd.read_json(path, lines=True), list(imagenet_classes())
    if missing := {"file_name", "class", *FACTORS} - set(rows):
        raise ValueError(f"{str(path)!r} has no {min(missing)!r}: it is not the ImageNet-X of 16 factors.")
    ids = [f"{wnids[label]}/{file}" for label, file in zip(rows["class"], rows["file_name"])]
    return rows[list(FACTORS)].astype(int).set_index(pd.Index(ids, name="sample_id"))
