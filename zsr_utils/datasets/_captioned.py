"""Pictures with captions: Karpathy's JSON, a table, webdatasets of CLIP_benchmark, or the names of classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from zsr_utils._text import one_of
from zsr_utils.datasets._catalogue import HUB, folder_of
from zsr_utils.datasets._dataset import Dataset, LeftOut, Sample
from zsr_utils.datasets._decode import open_file, open_member
from zsr_utils.datasets._folders import SPLIT, made, readable, split_folder
from zsr_utils.datasets._names import read_table
from zsr_utils.datasets._webdataset import members, shards


@dataclass(frozen=True)
class Captioned:
    """Pictures and their captions; some may have more than others."""

    images: Dataset
    texts: tuple[str, ...]
    owners: Int[np.ndarray, "t"]  # the picture of every caption, as a row of `images`
    claim: Int[np.ndarray, "t"] | None = None  # what every caption says, where it is known, as a row of `holds`
    holds: Bool[np.ndarray, "c n"] | None = None  # of which pictures that is true

    @classmethod
    def of(cls, images: Dataset, texts: Mapping[str, Sequence[str]], *truth) -> "Captioned":
        """From captions by sample id.

        Raises: ValueError for a picture without a caption, or an empty one.
        """
        ids = [sample.sample_id for sample in images.samples]
        for i in ids:
            if not texts[i] or not all(text.strip() for text in texts[i]):
                raise ValueError(f"{images.name}: {i!r} has {'an empty' if texts[i] else 'no'} caption, remove it.")
        owners = np.repeat(np.arange(len(ids)), [len(texts[i]) for i in ids])
        return cls(images, tuple(text for i in ids for text in texts[i]), owners, *truth)

    def of_picture(self, row: int) -> list[str]:
        return [self.texts[k] for k in np.flatnonzero(self.owners == row)]

    def readable(self, sample_ids: Sequence[str]) -> "Captioned":
        """Only these pictures, such as those that could be decoded."""
        wanted = np.isin([sample.sample_id for sample in self.images.samples], sample_ids)
        kept, rows = wanted[self.owners], np.cumsum(wanted) - 1
        texts, owners = tuple(t for t, keep in zip(self.texts, kept) if keep), rows[self.owners[kept]]
        truth = () if self.claim is None else (self.claim[kept], self.holds[:, wanted])
        return Captioned(self.images.only(sample_ids), texts, owners, *truth)


def captioned(
    address: str, split: str = "test", *, per_image: int = 5, limit: int = 0, seed: int = 0
) -> Captioned:  # fmt: skip
    """Pictures with captions that lie on disk.

    Args:
        address: `captions.json` as Karpathy's splits of COCO and Flickr30K have it; a `.csv` with columns `image` and
            `caption`; or a folder (or `wds:org/name`) of shards with `<key>.txt`, a caption a line, beside `<key>.jpg`.
        split: As the JSON or the folder of shards calls it; a table has none.
        per_image: Captions of a picture at most, the first ones.

    Raises: ValueError for captions of pictures that are not there, which names the first, and as `Captioned.of`.

    Source: Karpathy & Fei-Fei (2015) for the splits; CLIP_benchmark for the layout of shards.
    """
    path, left = folder_of(address) if HUB.fullmatch(address) else Path(address.removeprefix("wds:")), LeftOut()
    if not path.exists():
        raise FileNotFoundError(f"captions is {address!r}, which is not there.")
    if path.is_dir():
        inner = any(SPLIT.fullmatch(f.name) for f in path.iterdir())
        found = [
            (s, m) for s in shards(split_folder(path, split) if inner else path, left) for m in members(s, ".txt", left)
        ]
        texts = {f"{readable(s.stem)}/{key}": text.splitlines() for s, (key, text, _) in found}
        places = [(str(s), *place) for s, (_, _, place) in found]
        opens = [partial(open_member, *place) for place in places]
    else:
        one_of("the kind of captions", path.suffix, [".json", ".csv"])
        texts = _karpathy(path, split) if path.suffix == ".json" else {}
        for _, (image, text) in read_table(path, "image", "caption") if path.suffix == ".csv" else ():
            texts.setdefault(image, []).append(text)
        roots = [path.parent, *sorted(f for f in path.parent.iterdir() if f.is_dir())]
        root = next((r for r in roots if any((r / i).is_file() for i in list(texts)[:9])), path.parent)
        if missing := [i for i in texts if not (root / i).is_file()]:
            few = f"{len(missing):,} of {len(texts):,}"
            raise ValueError(f"{str(path)!r} has captions of {missing[0]!r}; {few} pictures are not in {str(root)!r}.")
        places = [(str(root / i), 0, -1) for i in texts]
        opens = [partial(open_file, place[0]) for place in places]
    samples = [Sample(i, 0, *of) for i, of in zip(texts, zip(opens, places))]
    images = made(samples, left, name=readable(path.stem), class_names=("pictures",)).subset(limit, seed)
    return Captioned.of(images, {i: of[:per_image] for i, of in texts.items()})


def _karpathy(path: Path, split: str) -> dict[str, list[str]]:
    """Captions by file of one split."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["images"]
        of = {"/".join(filter(None, [i.get("filepath"), i["filename"]])): i for i in listed}
        one_of("captions_split", split, dict.fromkeys(image["split"] for image in listed))
        return {file: [s["raw"] for s in i["sentences"]] for file, i in of.items() if i["split"] == split}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not in Karpathy's format ({error}).") from error


def class_captions(images: Dataset) -> Captioned:
    """The name of its class as the only caption of every picture, true of all pictures of the class."""
    labels = np.array([sample.label for sample in images.samples])
    says = [images.templates[0].format(name) for name in images.class_names]
    texts = {sample.sample_id: [says[sample.label]] for sample in images.samples}
    return Captioned.of(images, texts, labels, np.arange(len(says))[:, None] == labels)
