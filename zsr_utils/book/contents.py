"""`chapters.yaml`, the one list of chapters: read, checked, and made into a table of contents."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from zsr_utils._text import read_yaml, unknown


ROOT = Path(__file__).resolve().parents[2]
SCHEMA = Path(__file__).with_name("chapters.schema.yaml")
FIRST, OWN, SECOND = "book/preface", "book/_generated/front", "book/how-to-read"
REFERENCE = "own-model tabletop-data tabletop-model"
GENERATED = "_generated/figures _generated/every-number _generated/receipts"
LAST = ("Reference", [f"book/{page}" for page in f"{REFERENCE} {GENERATED} glossary references".split()])


def read_chapters(root: Path = ROOT) -> dict[str, dict]:
    """The chapters in order, each with `numbers` and `figure`, and what else `chapters.yaml` gives it."""
    known = read_yaml(root / "chapters.yaml")
    valid(known, SCHEMA, "chapters.yaml")
    for entry in known.values():  # a few words may stand for an entry that says no more
        entry["numbers"] = {n: {"says": e} if isinstance(e, str) else e for n, e in entry["numbers"].items()}
    notebooks = {path.stem for path in (root / "notebooks").glob("*.ipynb")}
    for name, entry in known.items():
        if name not in notebooks:
            raise ValueError(f"chapters.yaml: {name} has no notebook notebooks/{name}.ipynb.")
        for other in entry.get("needs", ()):
            if other not in known:
                raise ValueError(f"chapters.yaml: needs of {name}: {unknown('chapter', other, known)}")
    if left := sorted(notebooks - known.keys()):
        raise ValueError(f"notebooks/{left[0]}.ipynb has no entry in chapters.yaml.")
    return known


def chosen(words: str, known: Sequence[str]) -> list[str]:
    """The chapters that are named, by number or in full, in the order of the book; without a name all of them."""
    by_number = {name.split("-")[0].lstrip("0"): name for name in known}
    named = {by_number.get(word.lstrip("0"), word) for word in words.split()}
    for name in sorted(named.difference(known)):
        raise ValueError(unknown("chapter", name, known))
    return [name for name in known if name in named or not named]


def own(books: Sequence[Sequence]) -> bool:
    """Whether a book shows a reader's own run, of another world than Tabletop: its first page then speaks of that."""
    known = [chapter.provenance for book in books for chapter in book]
    return any(k["dataset"] != "tabletop" or not k["model"].startswith("tabletop-") for k in known)


def table_of_contents(books: Sequence[Sequence]) -> dict:
    """What Jupyter Book takes for one; several folders of chapters get a part each, after one that compares them."""
    parts = [(book[0].run if len(books) > 1 else "Chapters", [chapter.docname for chapter in book]) for book in books]
    short = ["book/_generated/card", *(["book/_generated/side-by-side"] if len(books) > 1 else [])]
    parts = [("In short", short), *parts, LAST]
    listed = [{"caption": caption, "chapters": [{"file": page} for page in pages]} for caption, pages in parts]
    first = OWN if own(books) else FIRST
    return {"format": "jb-book", "root": first, "parts": [{"chapters": [{"file": SECOND}]}, *listed]}


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
