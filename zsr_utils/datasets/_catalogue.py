"""Data sets by name: where they lie, how large they are, and how to get them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path


EMBEDDED = Path(__file__).resolve().parents[2] / "data"
HUB = re.compile(r"wds:(\w[\w.-]*/\w[\w.-]*)")


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        folder: Its folder in the data folder.
        size: Of what is downloaded, as its host states it; empty where that is not known.
        url: Address of the archive; empty where it is not fetched as one.
        md5: Of the archive, as far as it is published.
        by_hand: What to do where its terms or its host do not let it be fetched.
    """

    folder: str
    size: str = ""
    url: str = ""
    md5: str | None = None
    by_hand: str = ""


# Addresses are the authors'. Sizes are those their hosts report, checksums those that several loaders of ImageNet-A
# and -R agree on; none is published for ImageNet-V2, whose archive has a checksum inside.
SOURCES = {
    "cifar10": Source("cifar-10-batches-py", "170 MB"),
    "cifar100": Source("cifar-100-python", "169 MB"),
    "imagenet": Source(
        "imagenet",
        "6.3 GB",
        by_hand="get ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from https://image-net.org/download.php "
        "after registering, and unpack them with torchvision.datasets.ImageNet({folder!r}, split='val')",
    ),
    "imagenet-v2": Source(
        "imagenet-v2",
        "1.26 GB",
        "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
    ),
    "imagenet-a": Source(
        "imagenet-a",
        "688 MB",
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        "c3e55429088dc681f30d81f4726b6595",
    ),
    "imagenet-r": Source(
        "imagenet-r",
        "2.19 GB",
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        "a61312130a589d0ca1a8fca1f2bd3337",
    ),
    "imagenet-sketch": Source(
        "imagenet-sketch",
        by_hand="get the archive that https://github.com/HaohanWang/ImageNet-Sketch links to and unpack it to "
        "{folder!r}",
    ),
    "objectnet": Source(
        "objectnet",
        by_hand="accept its licence at https://objectnet.dev/download.html, get objectnet-1.0.zip and unpack it to "
        "{folder!r}",
    ),
    "imagenet-c": Source(
        "imagenet-c",
        "noise 21 GB, blur 7 GB, weather 12 GB, digital 7 GB, extra 15 GB",
        by_hand="get the archives you need from https://zenodo.org/records/2235448 and unpack them to {folder!r}",
    ),
    "stylized-imagenet": Source(
        "stylized-imagenet",
        by_hand="make it from ImageNet with the code at https://github.com/rgeirhos/Stylized-ImageNet and put its "
        "folder val into {folder!r}",
    ),
}
IMAGENETTE = {"imagenette": ("full", "1.5 GB"), "imagenette-320": ("320px", ""), "imagenette-160": ("160px", "")}
NAMES = ("tabletop", *IMAGENETTE, *SOURCES)


def data_folder() -> Path:
    """Where downloaded data sets are looked for: `ZSR_DATA`, or `~/.cache/zsr/data` on Linux."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("ZSR_DATA") or Path(user_cache_dir("zsr")) / "data")


def source(name: str) -> Source:
    """What is known of a data set that is not part of the project.

    Raises:
        KeyError: If it is none of `NAMES` and no `wds:org/name`.
    """
    if hub := HUB.fullmatch(name):
        return Source(f"wds/{hub[1]}")
    if name in IMAGENETTE:
        from torchvision.datasets import Imagenette

        size, gigabytes = IMAGENETTE[name]
        url, md5 = Imagenette._ARCHIVES[size]
        return Source(Path(url).stem, gigabytes, url, md5)
    return SOURCES[name]


def folder_of(name: str, *inner: str) -> Path:
    """The folder of a data set that lies in the data folder, or the first of `inner` folders that it has.

    Archives hold a folder of their own that some people keep when they unpack them.

    Raises:
        FileNotFoundError: If there is none; the message says how to get it, how large it is, and where it goes.
    """
    root = data_folder() / source(name).folder
    if not root.is_dir():
        raise FileNotFoundError(how_to_get(name, data_folder()))
    return next((root / i for i in inner if (root / i).is_dir()), root)


def how_to_get(name: str, folder: Path) -> str:
    """The sentence for a data set that is not in a data folder."""
    found = source(name)
    size = f" ({found.size})" if found.size else ""
    by_hand = found.by_hand.format(folder=str(folder / found.folder))
    how = by_hand or f"fetch it with `python -m zsr_utils.fetch {name}`"
    return (
        f"{name} is not in {str(folder / found.folder)!r}: {how}{size}, "
        f"or set ZSR_DATA to the folder that holds {found.folder}."
    )
