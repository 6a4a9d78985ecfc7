"""Prompt sets: lists of templates with one `{}` for the class name."""

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from zsr_utils._text import unknown
from zsr_utils.prompts._search import START, best_of, search


# Our own wordings of the kinds of sentence that prompt ensembles use: medium, view, quality, size.
_ENSEMBLE = (
    "a photo of a {}", "a picture of a {}", "an image of a {}", "this is a {}", "a good photo of a {}",
    "a bad photo of a {}", "a close up photo of a {}", "a bright photo of a {}", "a dark photo of a {}",
    "a photo of a small {}", "a photo of a large {}", "a photo of the {}", "a photo of one {}", "a photo of my {}",
)  # fmt: skip
PROMPT_SETS = {"bare name": ("{}",), "plain prompt": ("a photo of a {}",), "ensemble": _ENSEMBLE}


# Radford et al. (2021): for ImageNet, and the seven of them that do best together
TEMPLATES = {
    "seven templates": tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),
    "eighty templates": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
}


def prompt_set(name: str) -> tuple[str, ...]:
    """The templates of a named prompt set."""
    known = PROMPT_SETS | TEMPLATES
    if name not in known:
        raise ValueError(unknown("prompt set", name, known))
    return known[name]
