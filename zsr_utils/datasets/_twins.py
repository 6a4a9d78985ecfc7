"""Near-duplicates of pictures, planted in a training set to see which of them an instrument finds."""

import io
from dataclasses import replace
from functools import partial

from PIL import Image, ImageEnhance

from zsr_utils._text import one_of
from zsr_utils.datasets._dataset import Dataset, Sample
from zsr_utils.datasets._rendered import rendered
from zsr_utils.datasets._scenes import tabletop_twins


TWINS = ("exact", "re-encoded", "cropped", "light", "camera", "caption only")


def _twin(sample: Sample, kind: str) -> Image.Image:
    picture = sample.image()
    w, h = picture.size
    if kind == "re-encoded":
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=50)
        return Image.open(file)
    if kind == "cropped":
        box = (round(0.05 * w), round(0.05 * h), round(0.95 * w), round(0.95 * h))
        return picture.resize((w, h), Image.Resampling.BICUBIC, box)
    if kind == "light":
        return ImageEnhance.Brightness(picture).enhance(0.85)
    if kind == "camera":
        return picture.rotate(3, Image.Resampling.BICUBIC, fillcolor=picture.resize((1, 1)).getpixel((0, 0)))
    return picture


def planted(images: Dataset, kind: str, *, split: str = "validation", seed: int = 0) -> Dataset | None:
    """A twin of every picture, under the same ids, or None where only a scene could give one.

    On `tabletop` light and camera are those of the scene, by as much as the near-duplicates of `tabletop-overlap`, and
    `caption only` is another picture of which the same can be said; elsewhere pictures are darkened and turned by 3
    degrees.
    """
    one_of("kind of twin", kind, TWINS)
    ids = [s.sample_id for s in images.samples]
    if images.name == "tabletop" and kind in TWINS[3:]:
        return rendered(f"twins, {kind}", tabletop_twins(ids, split, kind, seed))
    if kind == "caption only":
        return None
    samples = [replace(s, open=partial(_twin, s, kind), place=None) for s in images.samples]
    return Dataset(f"twins, {kind}", images.class_names, samples, content=f"{images.fingerprint} {kind}")
