"""Prompt sets: lists of templates with one `{}` for the class name."""

from zsr_utils._text import unknown


# Our own wordings of the kinds of sentence that prompt ensembles use: medium, view, quality, size.
_ENSEMBLE = (
    "a photo of a {}", "a picture of a {}", "an image of a {}", "this is a {}", "a good photo of a {}",
    "a bad photo of a {}", "a close up photo of a {}", "a bright photo of a {}", "a dark photo of a {}",
    "a photo of a small {}", "a photo of a large {}", "a photo of the {}", "a photo of one {}", "a photo of my {}",
)  # fmt: skip
PROMPT_SETS = {"bare name": ("{}",), "plain prompt": ("a photo of a {}",), "ensemble": _ENSEMBLE}


def prompt_set(name: str) -> tuple[str, ...]:
    """The templates of a named prompt set."""
    if name not in PROMPT_SETS:
        raise ValueError(unknown("prompt set", name, PROMPT_SETS))
    return PROMPT_SETS[name]
