"""What one executed notebook left behind: its numbers, its figures, its files."""

import hashlib
import html
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


DRAWN = "plotly-graph-div"
CALL = re.compile(r'Plotly\.newPlot\(\s*"[^"]+",\s*')
TAG = re.compile(r"<(?:br|/?su[bp]|/?[bi])\s*/?>")


@dataclass(frozen=True)
class Figure:
    """An interactive figure of a chapter.

    Attributes:
        number: Place in the chapter, from 1.
        label: `<chapter>.<number>`.
        caption: The section it stands in and what its axes show, as plain text.
        spec: `data` and `layout` as plotly.js takes them.
    """

    number: int
    label: str
    caption: str
    spec: dict

    @property
    def anchor(self) -> str:
        return f"figure-{self.number}"

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def height(self) -> int:
        return int(self.spec["layout"].get("height") or self.spec["layout"]["template"]["layout"].get("height") or 400)


@dataclass(frozen=True)
class Chapter:
    """A folder of results, `results/<model>@<data set>/<notebook>`.

    Attributes:
        folder: The folder, relative to the project.
        root: The project.
    """

    folder: Path
    root: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def number(self) -> str:
        """`1` of `01-zero-shot-baseline`."""
        return self.name.split("-")[0].lstrip("0")

    @property
    def docname(self) -> str:
        """The page, as Sphinx names it: the path without its ending."""
        return (self.folder / self.name).as_posix()

    @cached_property
    def notebook(self) -> dict:
        return json.loads((self.root / self.folder / f"{self.name}.ipynb").read_text(encoding="utf-8"))

    @cached_property
    def title(self) -> str:
        return next(text for level, text in headings(self.notebook["cells"][0]) if level == 1)

    @cached_property
    def metrics(self) -> list[dict]:
        return json.loads((self.root / self.folder / "metrics.json").read_text(encoding="utf-8"))

    @cached_property
    def run(self) -> str:
        """The model and the data set, as a reader says them."""
        known = json.loads((self.root / self.folder / "provenance.json").read_text(encoding="utf-8"))
        model = " ".join(filter(None, (known["model"], known["pretrained"])))
        return f"{model} on {known['dataset']}"

    @cached_property
    def figures(self) -> list[Figure]:
        return [figure for _, figure in figures_of(self.notebook, self.number)]

    def files(self) -> list[Path]:
        """What a reader can download: the notebook, all rows, the numbers, the provenance."""
        folder = self.root / self.folder
        return [folder / f"{self.name}.ipynb", *rows(folder), folder / "metrics.json", folder / "provenance.json"]


def rows(folder: Path) -> list[Path]:
    """The row files of a folder, the samples first."""
    return sorted(folder.glob("*.parquet"), key=lambda p: (p.stem != "samples", p.stem))


def headings(cell: dict) -> list[tuple[int, str]]:
    """Level and plain text of the headings of a Markdown cell.

    Examples:
        >>> headings({"cell_type": "markdown", "source": ["# A *map* of `x`\\n", "text\\n", "## B"]})
        [(1, 'A map of x'), (2, 'B')]
    """
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
    """`data` and `layout` out of the HTML that plotly stores.

    Raises:
        ValueError: If the HTML has no call that draws a figure.
    """
    call = CALL.search(text)
    if not call:
        raise ValueError(f"a stored figure begins with {text[:40]!r}, a call of Plotly.newPlot is needed.")
    decoder = json.JSONDecoder()
    data, end = decoder.raw_decode(text, call.end())
    layout, _ = decoder.raw_decode(text, re.compile(r",\s*").match(text, end).end())
    return {"data": data, "layout": layout}


def caption(section: str, spec: dict) -> str:
    """The section and the titles of the axes, as plain text.

    Examples:
        >>> caption("Drift", {"layout": {"xaxis": {"title": {"text": "eps<br><sub>n = 3</sub>"}}}})
        'Drift: eps'
    """
    titles = [spec["layout"].get(axis, {}).get("title", {}).get("text", "") for axis in ("yaxis", "xaxis")]
    titles = [html.unescape(TAG.sub(" ", t.split("<br>")[0])).strip() for t in titles]
    return ": ".join(filter(None, (section, " against ".join(filter(None, titles)))))


def chapters(folder: str, root: Path, names: list[str]) -> list[Chapter]:
    """The chapters of one folder of results in the given order, those that have not been run left out."""
    found = [Chapter(Path(folder) / name, root) for name in names]
    return [c for c in found if all((root / c.folder / f).is_file() for f in (f"{c.name}.ipynb", "metrics.json"))]


def shown(metric: dict, *, interval: bool = True) -> str:
    """A number as a reader sees it, fractions in percent.

    Examples:
        >>> shown({"value": 0.998, "low": 0.994, "high": 1, "unit": "fraction"})
        '99.8 % [99.4, 100.0]'
        >>> shown({"value": 6.42, "low": 5.7, "high": 7.1, "unit": "rank"}, interval=False)
        '6.42'
    """
    percent = metric["unit"] == "fraction"
    ends = (metric[key] for key in ("value", "low", "high"))
    value, low, high = (f"{100 * v:.1f}" if percent else f"{v:.3g}" for v in ends)
    value += " %" if percent else ""
    return f"{value} [{low}, {high}]" if interval else value
