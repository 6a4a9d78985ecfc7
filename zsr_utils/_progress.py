"""Whether loops show their progress."""

import os


def hidden() -> bool | None:
    """For tqdm's `disable`: True in stored runs (`ZSR_PROGRESS=0`), else None, which hides bars off a terminal."""
    return os.environ.get("ZSR_PROGRESS") == "0" or None
