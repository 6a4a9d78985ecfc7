"""One way to say that a name or a value is not allowed, and to show a name as the data that it is."""

import difflib
import math
import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from markupsafe import Markup


MARKUP = re.compile(r"([!-/:-@\[-`{-~])")
# plotly knows few entities by name, and reads `{` and `$` as templates and TeX where they are not entities
ENTITIES = {ord(c): f"&#{ord(c)};" for c in "\"'{}$`"} | {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


def nearest(name: str, known: Iterable[str], *, n: int = 3) -> list[str]:
    """Up to `n` known names that look most like `name`."""
    known = list(known)
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.4)
    return [by_lower[f] for f in found]


def short(text: str, length: int = 120) -> str:
    """The beginning of a long text.

    Examples:
        >>> short("soup bowl", 5), short("mug", 5)
        ('soup…', 'mug')
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name nobody knows, with the closest right ones."""
    known = list(known)
    close = nearest(name, known) or sorted(known)[:5] or ["none"]
    return f"Unknown {what} {name!r}: nearest known names are {', '.join(close)}."


def one_of(what: str, value, allowed: Iterable) -> None:
    """Raise one clear sentence unless `value` is allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}, allowed are {', '.join(map(repr, allowed))}.")


def check_type(what: str, value, like) -> None:
    """Raise one clear sentence unless `value` has the type of `like`, a list in its elements too, and is finite."""
    wanted, has = type(like), type(value)
    if has is not wanted and not (wanted is float and has is int):
        allowed = f"allowed is a value of type {wanted.__name__} such as {like!r}"
        raise ValueError(f"{what} is {value!r} ({has.__name__}), {allowed}.")
    if has is float and not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}, allowed is a finite number such as {like!r}.")
    for element in value if wanted is list and like else ():
        kinds = (int, float) if isinstance(like[0], int | float) else type(like[0])
        if not isinstance(element, kinds) or isinstance(element, bool):
            allowed = f"allowed are values of type {type(like[0]).__name__} such as {like[0]!r}"
            raise ValueError(f"{what} holds {element!r} ({type(element).__name__}), {allowed}.")


def read_yaml(path: Path):
    """What a YAML file holds; an empty one stands for no lines."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())}).") from error


def markdown(text) -> Markup:
    """Text that Markdown, MyST among it, shows as it is."""
    return Markup(MARKUP.sub(r"\\\1", " ".join(str(text).split())))


def as_html(text) -> str:
    """Text that HTML, and plotly with its own small HTML and templates, shows as it is."""
    return str(text).translate(ENTITIES)
