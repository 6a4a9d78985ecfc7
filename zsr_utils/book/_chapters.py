"""What one executed notebook left behind: its numbers, its figures, its files."""

import hashlib
import html
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from zsr_utils._text import nearest
from zsr_utils.records import read_numbers, read_provenance


DRAWN = "plotly-graph-div"
CALL = re.compile(r'Plotly\.newPlot\(\s*"[^"]+",\s*')
TAG = re.compile(r"<(?:br|/?su[bp]|/?[bi])\s*/?>")


@dataclass(frozen=True)
class Figure:
    """An interactive figure of a chapter."""

    number: int  # place in the chapter, from 1
    label: str  # `<chapter>.<number>`
    caption: str  # the section it stands in and what its axes show, as plain text
    spec: dict  # `data` and `layout` as plotly.js takes them

    @property
    def anchor(self) -> str:
        return f"figure-{self.number}"

    @property
    def name(self) -> str:
        return f"Figure {self.label}. {self.caption}"

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def height(self) -> int:
        return int(self.spec["layout"].get("height") or self.spec["layout"]["template"]["layout"].get("height") or 400)


class Chapter:
    """A folder of results, `<results>/<model>@<data set>/<notebook>`, relative to the project, and its entry.

    `docname` is the page, as Sphinx names it; `files` are what a reader can download: the notebook, all rows with the
    samples first, the numbers, the provenance.
    """

    def __init__(self, folder: str, root: Path, entry: Mapping):
        self.folder, self.path, self.entry = folder, root / folder, entry
        self.name = self.path.name
        self.number = self.name.split("-")[0].lstrip("0")
        self.docname = f"{folder}/{self.name}"
        rows = sorted(self.path.glob("*.parquet"), key=lambda p: (p.stem != "samples", p.stem))
        names = (f"{self.name}.ipynb", "metrics.json", "provenance.json")
        first, *last = (self.path / name for name in names)
        self.files = [first, *rows, *last]

    @cached_property
    def notebook(self) -> dict:
        text, digest = self.files[0].read_text(encoding="utf-8"), self.provenance.get("files", {}).get("metrics.json")
        try:
            if digest and digest not in text:  # which it shows with its provenance
                raise ValueError("it is of another run than the numbers beside it")
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"{str(self.files[0])!r} cannot be shown ({error}): run it again.") from error

    @cached_property
    def title(self) -> str:
        return next(text for level, text in headings(self.notebook["cells"][0]) if level == 1)

    @cached_property
    def metrics(self) -> list[dict]:
        return read_numbers(self.path)

    @cached_property
    def figures(self) -> list[Figure]:
        return [figure for _, figure in figures_of(self.notebook, self.number)]

    @cached_property
    def provenance(self) -> dict:
        return read_provenance(self.path)

    @property
    def run(self) -> str:
        """The model and the data set, and the profile where it is not the default, as a reader says them."""
        known, profile = self.provenance, self.folder.split("/")[1:-2] if self.folder.startswith("results/") else ()
        model = " ".join(filter(None, (known["model"], known["pretrained"])))
        return f"{model} on {known['dataset']}" + "".join(f" ({n})" for n in profile if n != known["dataset"])

    @property
    def cost(self) -> str:
        """What it took, as a reader says it."""
        known, seconds = self.provenance, self.provenance["seconds"]
        took = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
        return f"{known['images']:,} images, {took} on {known['device']}"

    @property
    def headlines(self) -> list[tuple[dict, str]]:
        """The numbers that answer the chapter's question, in a few words; only on Tabletop each must be there."""
        none = dict.fromkeys(("value", "low", "high")) | {"n": 0, "unit": "fraction"}
        recorded = {name: {"name": name, **none} for name in self.provenance.get("not_measured", ())}
        recorded |= {metric["name"]: metric for metric in self.metrics}
        elsewhere = self.provenance.get("dataset", "tabletop") != "tabletop"
        for name, about in self.entry["numbers"].items():
            if name not in recorded and (elsewhere or not about.get("model", True)):
                recorded[name] = {"name": name, **none}
            if name not in recorded:
                close = ", ".join(nearest(name, recorded) or sorted(recorded)[:5])
                raise ValueError(f"chapters.yaml: {self.folder} recorded no number {name!r}: nearest are {close}.")
        return [(recorded[name], about["says"]) for name, about in self.entry["numbers"].items()]

    @property
    def answer(self) -> Figure:
        """The figure that answers the chapter's question."""
        place, drew = self.entry["figure"], len(self.figures)
        if place > drew:
            raise ValueError(f"chapters.yaml: {self.folder} has no figure {place}: its run drew {drew}.")
        return self.figures[place - 1]


def chapters(folder: str, root: Path, known: Mapping[str, Mapping]) -> list[Chapter]:
    """The chapters of one folder of results, in the order of their entries; those that have not been run are said."""
    found = [Chapter(f"{folder}/{name}", root, entry) for name, entry in known.items()]
    ran = [c for c in found if all(path.is_file() for path in (c.files[0], *c.files[-2:]))]
    there = [chapter for chapter in ran if chapter.headlines and chapter.answer]
    if not there:
        raise ValueError(f"There are no results in {folder!r}: run `make book`, or a notebook, first.")
    if left := [chapter.name for chapter in found if chapter not in there]:
        print(f"{folder} has no results of {', '.join(left)}: left out.", file=sys.stderr)
    return there


def headings(cell: dict) -> list[tuple[int, str]]:
    """Level and plain text of the headings of a Markdown cell."""
    if cell["cell_type"] != "markdown":
        return []
    found = re.findall(r"^(#+) +(.+?)\s*$", "".join(cell["source"]), re.M)
    return [(len(marks), re.sub(r"[*`]", "", text)) for marks, text in found]


def figures_of(notebook: dict, chapter: str) -> list[tuple[dict, Figure]]:
    """The outputs of a notebook that hold a plotly figure, and what they hold, in order."""
    found: list[tuple[dict, Figure]] = []
    section = ""
    for cell in notebook["cells"]:
        section = next((text for _, text in reversed(headings(cell))), section)
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/html", ""))
            if DRAWN in text:
                spec, number = specification(text), len(found) + 1
                figure = Figure(number, f"{chapter}.{number}", caption(section, spec), spec)
                found.append((output, figure))
    return found


def specification(text: str) -> dict:
    """`data` and `layout` out of the HTML that plotly stores."""
    call = CALL.search(text)
    if not call:
        raise ValueError(f"a stored figure begins with {text[:40]!r}, a call of Plotly.newPlot is needed.")
    decoder = json.JSONDecoder()
    data, end = decoder.raw_decode(text, call.end())
    layout, _ = decoder.raw_decode(text, re.compile(r",\s*").match(text, end).end())
    return {"data": data, "layout": layout}


def caption(section: str, spec: dict) -> str:
    """The section and the titles of the axes, as plain text."""
    titles = [spec["layout"].get(axis, {}).get("title", {}).get("text", "") for axis in ("yaxis", "xaxis")]
    titles = [html.unescape(TAG.sub(" ", t.split("<br>")[0])).strip() for t in titles]
    return ": ".join(filter(None, (section, " against ".join(filter(None, titles)))))
