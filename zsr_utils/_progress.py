"""How far a long loop is: a bar on the terminal, or in the file that the runner of a notebook follows."""

import os

from tqdm.auto import tqdm


def progress(total: int, what: str, *, unit: str = "image", initial: int = 0, hidden: bool = False) -> tqdm:
    """A progress bar, hidden off a terminal; stored runs write it to the file `ZSR_PROGRESS`, and 0 hides it."""
    place = os.environ.get("ZSR_PROGRESS")
    options = {"total": total, "initial": initial, "desc": what, "unit": unit}
    if place and place != "0" and not hidden:
        from tqdm import tqdm as plain

        return plain(**options, file=open(place, "w"), mininterval=1, ascii=True, ncols=78)
    return tqdm(**options, disable=hidden or place == "0" or None)
