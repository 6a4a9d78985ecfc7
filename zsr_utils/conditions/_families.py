"""Perturbations by the name of their family, and as conditions."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zsr_utils._text import one_of
from zsr_utils.conditions._condition import Batch, Condition, Seen
from zsr_utils.conditions._geometry import STEP, Perturbation, View, geometric
from zsr_utils.conditions._overlay import OVERLAYS, overlay


PAPER = ("translation", "pad_crop", "scale", "scale_pad", "rotation", "text_semantic", "text_random", "text_empty")
VARIANTS = ("scale_restored", "pad_crop_mean", "scale_pad_mean", "rotation_mean", "rotation_content")

WORDS = 3  # that one overlay writes or hides
KEEP_SIZE = (*OVERLAYS, "scale_restored", "translation", "scale_pad", "scale_pad_mean")


def families(
    names: Sequence[str] | None = None, *, units: str = "relative", phrase: str = "{}", text_height: float = 1 / 8,
    words: int = WORDS,
) -> list[Perturbation]:  # fmt: skip
    """All instances of the named families, in order.

    The paper's families are `PAPER`, 30 instances:

    - `translation` (8): the image wraps around sideways, positive to the right;
    - `pad_crop` (8): a black border on every side, or (negative) a cut from every side;
    - `scale` (1): 0.9 times as large, bicubic; `scale_pad` (2): on a black or white canvas of the original size;
    - `rotation` (2): by 30 degrees, positive to the left, bicubic, on a larger white canvas;
    - `text_semantic`, `text_random`, `text_empty` (3 each): on a white box in the middle of the image a class name in
      red, 6 to 12 random characters cut to its width, or nothing.

    `VARIANTS` are this project's, and tell what the fill and the size do: `scale_restored` (back at the original size),
    `pad_crop_mean`, `scale_pad_mean` and `rotation_mean` (filled with the mean colour of the image), and
    `rotation_content` (the largest centred rectangle of the original's aspect ratio that a rotated image fills).

    Args:
        units: `relative` shifts, pads and crops by 1/64 to 4/64 of the shorter side, at least 1 pixel, which is the
            paper's number of pixels at 256; `pixels` takes its 4, 8, 12 and 16 px, font size and padding.
        phrase: What an overlay writes, with one `{}` for the class name.
        text_height: Font size as a share of the image's height, less where the text would be wider than the image, at
            least 6 px; the padding around the text is a quarter of it. Only for `relative`.
        words: Class names that each kind of overlay writes or hides, one an instance: at most three.

    Source: Wani et al. (2026), as in the authors' code; they write "Answer is" and an answer that the model did not
        give, in DejaVuSans of max(14, H // 32) px. Relative units and the font, Pillow's own, are this project's.
    """
    one_of("units", units, STEP)
    if phrase.count("{}") != 1:
        raise ValueError(f"phrase is {phrase!r}, allowed is a text with one '{{}}'.")
    if not 0 < text_height <= 1:
        raise ValueError(f"text_height is {text_height}, allowed is above 0 and at most 1.")
    height = text_height if units == "relative" else None
    known = geometric(units)
    for kind in OVERLAYS:
        write = partial(overlay, kind=kind, phrase=phrase, text_height=height)
        known[kind] = [(f"word {k + 1}", height or 14, partial(write, number=k)) for k in range(min(words, WORDS))]
    found = []
    for family in PAPER if names is None else names:
        one_of("perturbation family", family, (*PAPER, *VARIANTS))
        for number, (instance, severity, change) in enumerate(known[family]):
            found.append(Perturbation(family, instance, severity, number, family in KEEP_SIZE, change))
    return found


@dataclass(frozen=True)
class Views:
    """The change of a condition that works on pictures, before the model's own resize."""

    perturbations: tuple[Perturbation, ...]  # one a draw: the words of a text overlay are its draws
    further: Callable[[Batch, Seen, list[View], Perturbation], dict] | None = None  # facts beside the usual ones

    def views(self, batch: Batch) -> list[View]:
        perturbation, names = self.perturbations[batch.draw], batch.head.names_of
        named = [[names(i)[k] for k in labels] for i, labels in zip(batch.sample_ids, self._words(batch))]
        return [perturbation(p, sample_id=i, words=w) for p, i, w in zip(batch.pictures, batch.sample_ids, named)]

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        return torch.stack([batch.net.from_pil(view.image) for view in self.views(batch)]).to(batch.pixels.device)

    def facts(self, batch: Batch, seen: Seen) -> dict:
        perturbation = self.perturbations[batch.draw]
        words = [w[perturbation.number] if w else -1 for w in self._words(batch)]
        found = {"family": perturbation.family, "instance": perturbation.instance, "word_label": words}
        return found | (self.further(batch, seen, self.views(batch), perturbation) if self.further else {})

    def _words(self, batch: Batch) -> list[list[int]]:
        if self.perturbations[0].family not in OVERLAYS:
            return [[] for _ in batch.sample_ids]
        asked = [(i, len(batch.head.names_of(i))) for i in batch.sample_ids]
        return [other_classes(i, k, n, batch.seed) for (i, n), k in zip(asked, batch.clean.predictions.tolist())]


def as_conditions(perturbations: Sequence[Perturbation], further: Callable | None = None) -> list[Condition]:
    """A condition a perturbation; the words of one text overlay are draws of one condition, fills have their name.

    Examples:
        >>> [(c.name, c.severity, c.draws) for c in as_conditions(families(["scale_pad", "text_empty"]))]
        [('scale_pad_black', 0.1, 1), ('scale_pad_white', 0.1, 1), ('text_empty', 0.125, 3)]
    """
    groups: dict[tuple[str, float], list[Perturbation]] = {}
    for p in perturbations:
        name = f"{p.family}_{p.instance}" if p.instance in ("black", "white") else p.family
        groups.setdefault((name, float(p.severity)), []).append(p)
    shown = {key: Views(tuple(group), further) for key, group in groups.items()}
    return [Condition(*key, views.change, views.facts, len(views.perturbations)) for key, views in shown.items()]


def other_classes(sample_id: str, answer: int, n: int, seed: int, *, most: int = WORDS) -> list[int]:
    """Classes that are not the answer, at most so many, by sample id and seed."""
    key = hashlib.sha256(f"{seed}\0{sample_id}".encode()).digest()
    order = np.random.default_rng(list(key[:8])).permutation(n)
    return order[order != answer][:most].tolist()
