"""From a picture to pixels, with an identity by which pixels can be kept."""

import hashlib
import json
import re
from collections.abc import Callable
from importlib.metadata import version

from PIL import Image
from torch import Tensor


class Preprocess:
    """A checkpoint's own resize and crop, from a picture to pixels in [0, 1], and its identity.

    Args:
        transform: From an RGB picture to a float tensor (3, size, size).
        size: Side of the pixels it makes.
        settings: What determines the pixels; with none, they are never kept on disk.

    Attributes:
        key: Equal for equal pixels: settings, steps, and the libraries that resize. None without settings.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], size: int, settings: dict | None = None):
        self._transform, self.size = transform, size
        steps = re.sub(r" at 0x[0-9a-f]+", "", repr(transform))
        libraries = [version("pillow"), version("torchvision")]
        made_of = json.dumps([size, settings, steps, libraries], sort_keys=True, default=str)
        self.key = hashlib.sha256(made_of.encode()).hexdigest() if settings else None

    def __call__(self, image: Image.Image) -> Tensor:
        return self._transform(image)
