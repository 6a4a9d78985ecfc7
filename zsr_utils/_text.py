"""One way to say that a name or a value is not allowed."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, n: int = 3) -> list[str]:
    """Up to `n` known names that look most like `name`."""
    known = list(known)
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.4)
    return [by_lower[f] for f in found]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name nobody knows, with the closest right ones.

    Examples:
        >>> unknown("model", "ViT-B32", ["ViT-B-32", "RN50"])
        "Unknown model 'ViT-B32': nearest known names are ViT-B-32."
    """
    known = list(known)
    close = nearest(name, known) or sorted(known)[:5] or ["none"]
    return f"Unknown {what} {name!r}: nearest known names are {', '.join(close)}."


def one_of(what: str, value, allowed: Iterable) -> None:
    """Raise one clear sentence unless `value` is allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}, allowed are {', '.join(map(repr, allowed))}.")
