"""`chapters.yaml`, the one list of chapters."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from zsr_utils._text import read_yaml, unknown


ROOT = Path(__file__).resolve().parents[2]
SCHEMA = Path(__file__).with_name("chapters.schema.yaml")


def read_chapters(root: Path = ROOT, *, whole: bool = True) -> dict[str, dict]:
    """The chapters in order, each with `numbers` and `figure`, and what else `chapters.yaml` gives it.

    As a `whole` the list has every notebook, and no other.
    """
    known = read_yaml(root / "chapters.yaml")
    valid(known, SCHEMA, "chapters.yaml")
    for name, entry in known.items():  # a few words may stand for an entry that says no more
        entry["numbers"] = {n: {"says": e} if isinstance(e, str) else e for n, e in entry["numbers"].items()}
        for other in sorted(set(entry.get("needs", ())) - known.keys()):
            raise ValueError(f"chapters.yaml: needs of {name}: {unknown('chapter', other, known)}")
    notebooks = {path.stem for path in (root / "notebooks").glob("*.ipynb")} if whole else known.keys()
    for name in sorted(known.keys() - notebooks):
        raise ValueError(f"chapters.yaml: {name} has no notebook notebooks/{name}.ipynb.")
    for name in sorted(notebooks - known.keys()):
        raise ValueError(f"notebooks/{name}.ipynb has no entry in chapters.yaml.")
    return known


def chosen(words: str, known: Sequence[str]) -> list[str]:
    """The chapters that are named, by number or in full, in the order of the book; without a name all of them."""
    by_number = {name.split("-")[0].lstrip("0"): name for name in known}
    named = {by_number.get(word.lstrip("0"), word) for word in words.split()}
    for name in sorted(named.difference(known)):
        raise ValueError(unknown("chapter", name, known))
    return [name for name in known if name in named or not named]


def valid(content: dict, schema: Path, what: str) -> None:
    """Hold a file's content against a JSON schema, whose descriptions say what is allowed."""
    checked = Draft202012Validator(yaml.safe_load(schema.read_text(encoding="utf-8")))
    error = best_match(checked.iter_errors(json.loads(json.dumps(content, default=str))))
    if error is None:
        return
    where = ": ".join([what, *(f"entry {p + 1}" if isinstance(p, int) else p for p in error.absolute_path)])
    if error.validator == "additionalProperties":
        names = error.schema["properties"]
        raise ValueError(f"{where}: {unknown('key', min(error.instance.keys() - names.keys()), names)}")
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        raise ValueError(f"{where} has no {missing}.")
    raise ValueError(f"{where} is {error.instance!r}, allowed is {error.schema['description']}.")
