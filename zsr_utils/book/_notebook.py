"""Executed notebook -> what Sphinx reads: links and the answer in its head, folded code, figures with their files.

A Sphinx extension: it changes the text that Sphinx read, and no file.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Container
from pathlib import Path

from zsr_utils.book._chapters import Chapter, figures_of, headings
from zsr_utils.book._chromium import pictures
from zsr_utils.book._pages import rendered
from zsr_utils.records.chapters import ROOT, read_chapters


ADDRESS = re.compile(
    r"(?P<host>(?:https://|ssh://git@|git@)github\.com[/:])?(?P<name>[\w.-]+/[\w.-]+?)(?:\.git)?/?(?:@(?P<branch>[\w./-]+))?"
)

SHOWN = {"method", *(f"{how}-{what}" for how in ("hide", "remove") for what in ("input", "output", "cell"))}
ASIDE = {"parameters", "injected-parameters", "keep_output"}
SET_UP = {"Setup", "Set-up", "What you need"}
TABLE = re.compile(r"^(?:study\.)?(?:run|study)\.table\(", re.M)
CLOSE = "study.close()"
NUMBERS = '<details class="zsr-provenance"><summary>All numbers of this chapter</summary>'


def repository() -> str:
    """`owner/name@branch` of this copy on GitHub, or an empty string where that is not known.

    `ZSR_REPOSITORY` says it, as `owner/name`, an address, or either with `@branch`; without it, git's `origin` does.
    """
    given, origin = os.environ.get("ZSR_REPOSITORY", ""), ""
    if not given:
        with contextlib.suppress(OSError):
            command = ["git", "remote", "get-url", "origin"]
            origin = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    match = ADDRESS.fullmatch(given or origin)
    if given and not match:
        raise ValueError(f"ZSR_REPOSITORY is {given!r}, allowed is 'owner/name', if need be with '@branch'.")
    return f"{match['name']}@{match['branch'] or 'main'}" if match and (given or match["host"]) else ""


def prepared(notebook: dict, chapter: Chapter, where: str, pictured: Container[str]) -> dict:
    """The notebook as a page: what was run and its answer below the title, folded code, figures that can be cited."""
    for output, figure in figures_of(notebook, chapter.number):
        stored, has = "".join(output["data"]["text/html"]), figure.digest in pictured
        output["data"]["text/html"] = rendered("figure.html", figure=figure, stored=stored, pictured=has)
    first = notebook["cells"][0]
    title, _, rest = "".join(first["source"]).partition("\n")
    head = rendered("head.html", chapter=chapter, where=where)
    answer = rendered("answer.html", chapter=chapter, pictured=pictured)
    first["source"] = f"{title}\n\n{head}\n{rest}\n\n{answer}"
    return folded(notebook)


def folded(notebook: dict) -> dict:
    """The notebook with tags that fold its code, but for the lines that are the method, which a cell's tag says.

    Folded with what they show are parameters, set-up, numbers that tests compare, and tables of all numbers.
    """
    section = ""
    for cell in notebook["cells"]:
        section = next((text for _, text in reversed(headings(cell))), section)
        tags, source = cell["metadata"].setdefault("tags", []), "".join(cell["source"])
        if cell["cell_type"] == "code" and not SHOWN.intersection(tags):
            aside = ASIDE.intersection(tags) or section in SET_UP or TABLE.search(source)
            tags.append("remove-input" if source == CLOSE else "hide-cell" if aside else "hide-input")
        for output in cell.get("outputs", []) if source == CLOSE else ():
            data = output.get("data", {})
            if "dataframe" in (table := "".join(data.get("text/html", ""))):
                data["text/html"] = f"{NUMBERS}{table}</details>"
    return notebook


def read(app, docname: str, source: list[str]) -> None:
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".ipynb" and (path.parent / "metrics.json").is_file():
        folder = path.parent.relative_to(ROOT).as_posix()
        chapter = Chapter(folder, ROOT, read_chapters()[path.stem])
        source[0] = json.dumps(prepared(json.loads(source[0]), chapter, app.config.zsr_repository, pictures()))


def setup(app) -> dict:
    """Register with Sphinx; a page is read again when what it links to or shows beside its notebook changed."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), *sorted((here / "templates").iterdir()), ROOT / "chapters.yaml"]
    made_from = [*(path.read_text(encoding="utf-8") for path in files), *sorted(pictures())]
    app.add_config_value("zsr_repository", repository(), "env", str)
    app.add_config_value("zsr_made_from", hashlib.sha256("\n".join(made_from).encode()).hexdigest(), "env", str)
    app.connect("source-read", read)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
