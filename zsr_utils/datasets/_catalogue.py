"""Data sets by name: where they lie, how large they are, and how to get them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path


EMBEDDED = Path(__file__).resolve().parents[2] / "data"
HUB = re.compile(r"wds:(\w[\w.-]*/\w[\w.-]*)")


@dataclass(frozen=True)
class Source:
    """One data set; what is not known or does not apply is empty."""

    folder: str  # in the data folder
    size: str = ""  # of what is downloaded, as its host states it
    url: str = ""  # of the archive
    md5: str = ""
    by_hand: str = ""  # what to do where its terms or its host do not let it be fetched


FAST_AI, TORONTO = "https://s3.amazonaws.com/fast-ai-imageclas", "https://www.cs.toronto.edu/~kriz"
BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
V2 = "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2"
# Addresses are the authors'. Sizes are those their hosts report, checksums those of torchvision for Imagenette and
# CIFAR and those that several loaders of ImageNet-A and -R agree on; none is published for ImageNet-V2, whose archive
# has a checksum inside.
SOURCES = {
    "imagenette": Source("imagenette2", "1.56 GB", f"{FAST_AI}/imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612"),
    "imagenette-320": Source(
        "imagenette2-320", "342 MB", f"{FAST_AI}/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"
    ),
    "imagenette-160": Source(
        "imagenette2-160", "99 MB", f"{FAST_AI}/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"
    ),
    "cifar10": Source(
        "cifar-10-batches-py", "170 MB", f"{TORONTO}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
    ),
    "cifar100": Source(
        "cifar-100-python", "169 MB", f"{TORONTO}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"
    ),
    "imagenet": Source(
        "imagenet",
        "6.3 GB",
        by_hand="get ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from https://image-net.org/download.php "
        "after registering, and unpack them there with torchvision.datasets.ImageNet(folder, split='val')",
    ),
    "imagenet-v2": Source("imagenet-v2", "1.26 GB", f"{V2}-matched-frequency.tar.gz"),
    "imagenet-v2-threshold-0.7": Source("imagenet-v2-threshold-0.7", "", f"{V2}-threshold0.7.tar.gz"),
    "imagenet-v2-top-images": Source("imagenet-v2-top-images", "", f"{V2}-top-images.tar.gz"),
    "imagenet-a": Source("imagenet-a", "688 MB", f"{BERKELEY}/imagenet-a.tar", "c3e55429088dc681f30d81f4726b6595"),
    "imagenet-r": Source("imagenet-r", "2.19 GB", f"{BERKELEY}/imagenet-r.tar", "a61312130a589d0ca1a8fca1f2bd3337"),
    "imagenet-sketch": Source(
        "imagenet-sketch",
        by_hand="get the archive that https://github.com/HaohanWang/ImageNet-Sketch links to and unpack it there",
    ),
    "objectnet": Source(
        "objectnet",
        by_hand="accept its licence at https://objectnet.dev/download.html, get objectnet-1.0.zip and unpack it there",
    ),
    "imagenet-c": Source(
        "imagenet-c",
        "noise 21 GB, blur 7 GB, weather 12 GB, digital 7 GB, extra 15 GB",
        by_hand="get the archives you need from https://zenodo.org/records/2235448 and unpack them there",
    ),
    "stylized-imagenet": Source(
        "stylized-imagenet",
        by_hand="make it from ImageNet with the code at https://github.com/rgeirhos/Stylized-ImageNet and put its "
        "folder val there",
    ),
    "cue-conflict": Source(
        "cue-conflict",
        by_hand="get https://github.com/rgeirhos/texture-vs-shape and put what its folder stimuli holds there",
    ),
}
NAMES = ("tabletop", *SOURCES)


def data_folder() -> Path:
    """Where downloaded data sets are looked for: `ZSR_DATA`, or `~/.cache/zsr/data` on Linux."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("ZSR_DATA") or Path(user_cache_dir("zsr")) / "data")


def source(name: str) -> Source:
    """What is known of a data set that is not part of the project: one of `SOURCES`, or `wds:org/name`."""
    hub = HUB.fullmatch(name)
    return Source(f"wds/{hub[1]}") if hub else SOURCES[name]


def folder_of(name: str, *inner: str) -> Path:
    """The folder of a data set, or the first of `inner` in it: some people keep the folder that an archive holds."""
    root = data_folder() / source(name).folder
    if not root.is_dir():
        raise FileNotFoundError(how_to_get(name, data_folder()))
    return next((root / i for i in inner if (root / i).is_dir()), root)


def how_to_get(name: str, folder: Path) -> str:
    """The sentence for a data set that is not in a data folder."""
    known = source(name)
    how = known.by_hand or f"fetch it with `python -m zsr_utils.fetch {name}`"
    how += f" ({known.size})" if known.size else ""
    place = str(folder / known.folder)
    return f"{name} is not in {place!r}: {how}, or set ZSR_DATA to the folder that holds {known.folder}."
