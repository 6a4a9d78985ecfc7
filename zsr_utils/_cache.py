"""Where what can be computed again is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder of embeddings, classifiers, decoded pictures and finished batches: `ZSR_CACHE`, or the user's cache.

    Raises:
        OSError: If it cannot be made or written to; the message names it and the way out.
    """
    from platformdirs import user_cache_dir

    folder = Path(os.environ.get("ZSR_CACHE") or user_cache_dir("zsr"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise OSError(f"The cache folder {str(folder)!r} cannot be used ({reason}): set ZSR_CACHE to another folder.")
    return folder
