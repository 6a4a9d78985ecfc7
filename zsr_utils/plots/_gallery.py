"""Pictures with captions, as HTML that needs nothing else."""

import base64
import io
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageOps

from zsr_utils._text import as_html


def picture(pixels) -> Image.Image:
    """Pixels (3, H, W) in [0, 1] as a picture."""
    values = np.asarray(pixels).transpose(1, 2, 0)
    return Image.fromarray((255 * values).round().clip(0, 255).astype(np.uint8))


def signed_picture(values, *, reach: float | None = None) -> Image.Image:
    """Signed values (3, H, W) around middle grey; `reach` is the size shown black or white."""
    values = np.asarray(values, dtype=float)
    reach = reach or float(np.quantile(np.abs(values), 0.995)) or 1.0
    return picture(0.5 + 0.5 * (values / reach).clip(-1, 1))


def side_by_side(*images: Image.Image) -> Image.Image:
    """Pictures next to each other, brought to the height of the first."""
    height, gap = images[0].height, max(1, images[0].width // 32)
    shapes = [(round(i.width * height / i.height), height) for i in images]
    canvas, left = Image.new("RGB", (sum(w for w, _ in shapes) + gap * (len(images) - 1), height), "white"), 0
    for image, shape in zip(images, shapes):
        canvas.paste(image.convert("RGB").resize(shape, Image.Resampling.BICUBIC), (left, 0))
        left += shape[0] + gap
    return canvas


def gallery(images: Sequence[Image.Image], captions: Sequence[str], *, width: int = 128):
    """A row of pictures that wraps, `width` CSS pixels each; captions, of several lines, serve as alternative text.

    A tuple of pictures stands side by side. Arrays (3, H, W) are pixels in [0, 1], or a change around middle grey where
    some are negative.
    """
    from IPython.display import HTML

    if len(images) != len(captions):
        raise ValueError(f"gallery: {len(images)} images and {len(captions)} captions, one caption each is needed.")
    images = [_shown(image).convert("RGB") for image in images]
    for image in (image for image in images if image.width > 2 * width):
        image.thumbnail((2 * width, 2 * width))
    figures = "".join(
        f'<figure style="--width:{width}px"><img src="{_address(image, **_stored(image))}" width="{width}" '
        f'alt="{as_html(caption.replace(chr(10), ", "))}">'
        f"<figcaption>{as_html(caption).replace(chr(10), '<br>')}</figcaption></figure>"
        for image, caption in zip(images, captions, strict=True)
    )
    return HTML(f'<div class="zsr-gallery tex2jax_ignore">{figures}</div>')


def _stored(image: Image.Image) -> dict:
    """How a picture is stored: exactly, or, where a photograph would weigh 60 kB, nearly so."""
    small = image.width * image.height <= 128**2
    return {"kind": "PNG", "optimize": True} if small else {"kind": "WEBP", "quality": 90}


def _shown(image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, tuple):
        return side_by_side(*map(_shown, image))
    return signed_picture(image) if image.min() < 0 else picture(image)


def with_thumbnails(
    figure: go.Figure, *samples: Iterable[tuple[str, Image.Image, int]], size: int = 40, limit: int = 2000
) -> go.Figure:
    """Give the points whose `text` is a sample's id a small picture of it; the book shows it beside the pointer.

    Samples are `(sample_id, image, label)`, such as a data set. Of more than `limit` none is shown, or the page would
    grow by megabytes.
    """
    named = {text for trace in figure.data if trace.text is not None for text in np.atleast_1d(trace.text)}
    if len(named) > limit:
        return figure
    known = ((as_html(i), image) for i, image, _ in itertools.chain(*samples))
    found = {i: ImageOps.fit(image, (size, size)) for i, image in known if i in named}
    if not found:
        return figure
    columns = math.ceil(math.sqrt(len(found)))
    sprite = Image.new("RGB", (size * columns, size * math.ceil(len(found) / columns)))
    for k, image in enumerate(found.values()):
        sprite.paste(image, (k % columns * size, k // columns * size))
    sprite = _address(sprite, "WEBP", quality=70)
    return figure.update_layout(meta={"thumbnails": {"ids": list(found), "columns": columns, "sprite": sprite}})


def _address(image: Image.Image, kind: str, **options) -> str:
    """The picture as an address that holds it."""
    image.save(buffer := io.BytesIO(), kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
