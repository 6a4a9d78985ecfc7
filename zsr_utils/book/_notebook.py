"""Executed notebook -> what Sphinx reads: links and the answer in its head, figures with a number, picture and rows.

A Sphinx extension: it changes the text that Sphinx read, and no file.
"""

import hashlib
import html
import json
import os
import re
import subprocess
from pathlib import Path

import yaml

from zsr_utils.book._chapters import Chapter, Figure, figures_of, rows, shown
from zsr_utils.book._chromium import pictures
from zsr_utils.book._pages import headlines


ROOT = Path(__file__).resolve().parents[2]
ANSWERS = ROOT / "book" / "headlines.yaml"
ADDRESS = re.compile(
    r"(?P<host>(?:https://|ssh://git@|git@)github\.com[/:])?(?P<name>[\w.-]+/[\w.-]+?)(?:\.git)?/?(?:@(?P<branch>[\w./-]+))?"
)


def repository() -> str:
    """`owner/name@branch` of this copy on GitHub, or an empty string where that is not known.

    `ZSR_REPOSITORY` says it, as `owner/name`, an address, or either with `@branch`; without it, git's `origin` does.

    Raises:
        ValueError: If `ZSR_REPOSITORY` is none of these.
    """
    given = os.environ.get("ZSR_REPOSITORY", "")
    if given:
        match = ADDRESS.fullmatch(given)
        if not match:
            raise ValueError(f"ZSR_REPOSITORY is {given!r}, allowed is 'owner/name', if need be with '@branch'.")
        return f"{match['name']}@{match['branch'] or 'main'}"
    try:
        done = subprocess.run(["git", "remote", "get-url", "origin"], capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
    match = ADDRESS.fullmatch(done.stdout.strip())
    return f"{match['name']}@main" if match and match["host"] else ""


def answers() -> dict[str, dict]:
    """What answers each chapter's question: `numbers`, by name, with a few words each, and a `figure`, by its place."""
    return yaml.safe_load(ANSWERS.read_text(encoding="utf-8"))


def with_links(notebook: dict, chapter: Chapter, where: str) -> dict:
    """The notebook with links below its title, its answer, and figures that can be cited, downloaded and printed."""
    pictured = pictures()
    for output, figure in figures_of(notebook, chapter.number):
        output["data"]["text/html"] = framed("".join(output["data"]["text/html"]), figure, figure.digest in pictured)
    first = notebook["cells"][0]
    title, _, rest = "".join(first["source"]).partition("\n")
    first["source"] = f"{title}\n\n{head(chapter, where)}\n\n{rest}\n\n{answer(chapter, answers(), pictured)}"
    return notebook


def answer(chapter: Chapter, known: dict[str, dict], pictured: dict) -> str:
    """The chapter's headline numbers, and the figure that shows them if it has a picture, as a link to its place."""
    items = []
    for metric, label in headlines(chapter, known):
        value, interval = shown(metric).split(" [")
        items.append(f"<li><strong>{html.escape(value)}</strong> <span>[{interval}</span> {html.escape(label)}</li>")
    place = known.get(chapter.name, {}).get("figure")
    figure = next((f for f in chapter.figures if f.number == place), None)
    link = ""
    if figure and figure.digest in pictured:
        name = html.escape(f"Figure {figure.label}. {figure.caption}", quote=True)
        link = (
            f'<a href="#{figure.anchor}"><img src="{figure.anchor}.webp" alt="{name}" width="760" '
            f'height="{figure.height}"><span>Figure {figure.label}</span></a>'
        )
    return f'<div class="zsr-answer"><div><p>In short</p><ul>{"".join(items)}</ul></div>{link}</div>'


def head(chapter: Chapter, where: str) -> str:
    """What was run, and where to get it: the notebook in Colab and as a file, its rows, its numbers."""
    links = []
    if where:
        name, branch = where.split("@", 1)
        address = f"https://colab.research.google.com/github/{name}/blob/{branch}/notebooks/{chapter.name}.ipynb"
        links.append(f'<a href="{html.escape(address)}">Open in Colab</a>')
    links.append(f'<a href="{html.escape(chapter.name)}.ipynb" download>Download the notebook</a>')
    files = [p.name for p in rows(chapter.root / chapter.folder)]
    links += [f'<a href="{html.escape(f)}" download>{html.escape(f)}</a>' for f in (*files, "metrics.json")]
    run = f"<span>{html.escape(chapter.run)}</span>"
    return f'<p class="zsr-head">{" ".join((run, *links))}</p>'


def framed(text: str, figure: Figure, pictured: bool) -> str:
    """A stored figure with its number, its caption, a picture for print and for readers without JavaScript."""
    name = html.escape(f"Figure {figure.label}. {figure.caption}", quote=True)
    still, links = '<p class="zsr-still">This figure needs JavaScript.</p>', ""
    if pictured:
        file = f"{figure.anchor}.webp"
        still = f'<img class="zsr-still" src="{file}" alt="{name}" width="760" height="{figure.height}" loading="lazy">'
        links = f' · <a href="{file}">picture</a>'
    return (
        f'<figure class="zsr-figure" id="{figure.anchor}">{text}{still}'
        f'<figcaption><a href="#{figure.anchor}">Figure {figure.label}</a>. {html.escape(figure.caption)} '
        f'<span>(<a href="samples.parquet" download>rows</a>{links})</span></figcaption></figure>'
    )


def read(app, docname: str, source: list[str]) -> None:
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".ipynb" and (path.parent / "metrics.json").is_file():
        chapter = Chapter(path.parent.relative_to(ROOT), ROOT)
        source[0] = json.dumps(with_links(json.loads(source[0]), chapter, app.config.zsr_repository))


def setup(app) -> dict:
    """Register with Sphinx; a page is read again when what it links to or shows beside its notebook changed."""
    made_from = [*(p.read_text(encoding="utf-8") for p in (Path(__file__), ANSWERS)), *sorted(pictures())]
    app.add_config_value("zsr_repository", repository(), "env", str)
    app.add_config_value("zsr_made_from", hashlib.sha256("\n".join(made_from).encode()).hexdigest(), "env", str)
    app.connect("source-read", read)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
