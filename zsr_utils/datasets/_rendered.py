"""Tabletop scenes, changed and rendered when they are asked for: the same still life with one thing different."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

import tabletop
from tabletop import KINDS, Scene
from tabletop.data import to_uint8
from tabletop.render import card_width, render
from zsr_utils._cache import digest, kept
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._embedded import tabletop_factors


def tabletop_scenes(split: str = "validation") -> dict[str, Scene]:
    """The scenes behind a split of `tabletop`, by sample id; `dataclasses.replace` changes one thing in them.

    Examples:
        >>> tabletop_scenes()["val/00000"].kind
        'mug'
    """
    factors = tabletop_factors(split)
    names = [f.name for f in fields(Scene) if f.name in factors]
    rows = factors[names].astype(object).where(factors[names].notna(), None).to_dict("records")
    return {sample_id: Scene(**row) for sample_id, row in zip(factors.index, rows)}


def blank_cards(ids: Sequence[str]) -> Dataset:
    """Pictures of the split `card` once more, by their ids, with nothing on the card: what a word does beyond it."""
    scenes = tabletop_scenes("card")
    return rendered("blank_card", {i: replace(s := scenes[i], card="", card_width=card_width(s.card)) for i in ids})


def rendered(
    name: str, scenes: Mapping[str, Scene], *, size: int = 64, classes: Mapping[str, str] | None = None
) -> Dataset:
    """A data set of rendered scenes, kept on disk: labels are those of `tabletop`, by the kind of object.

    Args:
        scenes: By sample id. A scene whose id is that of the unchanged one is its pair.
        size: Width and height in pixels.
        classes: What scenes show that have none of the ten kinds, by sample id, in place of those labels.

    Raises: ValueError where no scene is given, or one shows none of the ten kinds (an empty table is no answer).
    """
    if not scenes:
        raise ValueError(f"{name}: no scene to render.")
    for sample_id, scene in scenes.items() if classes is None else ():
        if (scene.kind or scene.card) not in KINDS:
            shown = scene.kind or f"nothing but a card with {scene.card!r}"
            raise ValueError(f"{name}: {sample_id!r} shows {shown}, allowed are {', '.join(KINDS)}.")
    shown = classes or {i: scene.kind or scene.card for i, scene in scenes.items()}
    names = tuple(KINDS) if classes is None else tuple(dict.fromkeys(classes.values()))
    labels = [names.index(shown[i]) for i in scenes]
    key = digest(list(scenes.values()), size, renderer())
    levels = kept("renderings", key, partial(_levels, list(scenes.values()), size))["levels"]
    samples = [Sample(i, k, partial(Image.fromarray, picture)) for i, k, picture in zip(scenes, labels, levels)]
    return Dataset(name, names, samples, content=key)


def _levels(scenes: list[Scene], size: int) -> dict[str, np.ndarray]:
    return {"levels": to_uint8(render(scenes, size=size).pixels)}


@cache
def renderer() -> str:
    """Digest of the code that draws."""
    return digest(*(path.read_bytes() for path in sorted(Path(tabletop.__file__).parent.glob("*.py"))))
