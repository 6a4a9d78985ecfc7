"""The book as it is built: warnings fatal, records beside every page, every link and anchor there, nothing fetched."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

from zsr_utils.book._chapters import DRAWN, Chapter, chapters as read_back
from zsr_utils.book._notebook import CLOSE
from zsr_utils.records.chapters import read_chapters


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "tabletop-base@tabletop"


def chapters() -> list[Path]:
    return sorted(RESULTS.glob("*/*.ipynb"))


def test_every_figure_is_stored_and_read_back(book):
    """A cell that ends with a figure of the package has stored one."""
    assert chapters()
    for path in chapters():
        read = Chapter(path.parent.relative_to(ROOT).as_posix(), ROOT, {}).figures
        assert read and all(figure.spec["data"] for figure in read)
        assert len({figure.anchor for figure in read}) == len(read)
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and re.search(r"^plots\.(?!gallery)\w+\(", cell.source, re.M):
                stored = [output.get("data", {}).get("text/html", "") for output in cell.outputs]
                assert any(DRAWN in text for text in stored), cell.source


def test_a_second_build_runs_nothing(book, make):
    before = {p: p.stat().st_mtime_ns for p in (*chapters(), book / "index.html")}
    done = make("book")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_results_hold_rows_numbers_and_provenance(book):
    for path in chapters():
        names = {p.name for p in path.parent.iterdir()}
        assert {"samples.parquet", "metrics.json", "provenance.json"} <= names
        assert not [n for n in names if n.endswith(".tmp") or "running" in n]
        for metric in json.loads((path.parent / "metrics.json").read_text()):
            bounds, said = [metric["low"], metric["high"]], metric["interval"]
            assert metric["n"] > 0 and said, metric
            # a bound that is missing says why
            why = said.startswith("none of") or "open:" in said
            assert why if None in bounds else bounds[0] <= bounds[1], metric


def test_no_page_names_an_outside_script_style_or_picture(book):
    for page in book.rglob("*.html"):
        text = re.sub(
            r"<script[^>]*>.*?</script>", lambda m: m.group()[:200].split(">")[0], page.read_text(), flags=re.S
        )
        outside = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]+\"", text)
        outside = [o for o in outside if 'rel="canonical"' not in o]
        assert not outside, f"{page.name}: {outside[:3]}"


class Links(HTMLParser):
    """The places a page leads to, and those it can be led to."""

    def __init__(self, text: str):
        super().__init__()
        self.targets, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[k] for k in ("id", "name") if given.get(k)}
        self.targets |= {given[k] for k in ("href", "src") if given.get(k)}


def test_every_internal_link_and_anchor_is_there(book):
    pages = {p.resolve(): Links(p.read_text()) for p in book.rglob("*.html") if "_static" not in p.parts}
    assert len(pages) > len(chapters())
    for page, links in pages.items():
        for link in links.targets:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            assert not parts.path.startswith("/"), f"{page.name}: {link} leaves a path prefix"
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.exists(), f"{page.name}: {link} leads nowhere"
            if parts.fragment and target in pages:
                # the theme's own placeholder, which its script fills
                assert unquote(parts.fragment) in pages[target].anchors or link == "#", f"{page.name}: no {link}"


def test_every_chapter_begins_with_its_answer_and_what_it_cost(book):
    """The numbers that are to answer it were measured, and the figure is there."""
    found = read_back("results/tabletop-base@tabletop", ROOT, read_chapters())
    assert [chapter.name for chapter in found] == list(read_chapters())
    for chapter in found:
        page = (book / f"{chapter.docname}.html").read_text()
        assert 0 < page.index(chapter.cost) < page.index('class="zsr-answer"') < page.index('id="overview"')


def test_code_is_folded_but_for_the_method(book):
    """No code stands open on a page, but in cells tagged `method`."""
    for path in chapters():
        page = (book / path.relative_to(ROOT)).with_suffix(".html").read_text()
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        tags = [set(c.metadata.get("tags", [])) for c in cells]
        removed = sum(bool(t & {"remove-input", "remove-cell"}) or c.source == CLOSE for t, c in zip(tags, cells))
        method = sum("method" in t for t in tags)
        parts = re.findall(r'<div class="cell [^"]*docutils container">\s*(<details|<div class="cell_input)', page)
        assert parts.count('<div class="cell_input') == method, path.name
        assert parts.count("<details") == len(cells) - removed - method, path.name
