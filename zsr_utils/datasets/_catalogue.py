"""Data sets by name: where they lie, how large they are, and how to get them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from zsr_utils._text import read_yaml


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


SOURCES = {name: Source(**known) for name, known in read_yaml(EMBEDDED / "sources.yaml").items()}
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
