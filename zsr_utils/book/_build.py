"""Write what the pages share, generate pages from records, and let Jupyter Book build with warnings fatal."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.offline
import yaml

from zsr_utils.book import card as cards
from zsr_utils.book._chapters import Chapter
from zsr_utils.book._chromium import draw, pictures
from zsr_utils.book._pages import generated, table_of_contents
from zsr_utils.records import write_whole
from zsr_utils.records.chapters import ROOT


STATIC = ROOT / "book" / "_static"
GENERATED = ROOT / "book" / "_generated"
BUILT = ROOT / "_build" / "html"


def write_static() -> None:
    """Put what pages share beside them: scripts from the pinned packages, and pictures of Tabletop."""
    write_changed(STATIC / "plotly.min.js", plotly.offline.get_plotlyjs())
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    if not (target := STATIC / "mathjax" / "tex-svg.js").exists():
        write_whole(target, lambda p: shutil.copyfile(package / "static" / "mathjax" / "tex-svg.js", p))
    if not (GENERATED / "curve.png").exists():
        subprocess.run([sys.executable, "-m", "tabletop.sheets", str(GENERATED)], check=True, cwd=ROOT)


def linked(folder: Path) -> Path:
    """A folder of results that lies outside of the project, as Sphinx can read it: by a link in it."""
    if not any(folder.glob("*/metrics.json")):
        raise ValueError(f"There are no results in {str(folder)!r}: run `make book`, or a notebook, first.")
    link = GENERATED / "outside" / hashlib.sha256(str(folder.parent).encode()).hexdigest()[:8] / folder.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return link


def write_changed(path: Path, text: str) -> None:
    """Write a file only where it says something else, so that Sphinx reads again no more than it must."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def copy_files(books: Sequence[Sequence[Chapter]]) -> None:
    """Put what pages link to beside them: notebooks, rows, numbers, pictures; pages of other builds go."""
    drawn = pictures()
    shown = {BUILT / chapter.folder: chapter for book in books for chapter in book}
    for old in list(BUILT.rglob("metrics.json")):
        if old.parent not in shown:
            shutil.rmtree(old.parent)
    for page in ("_generated/side-by-side", "_generated/front", "preface"):  # what the table of contents has comes anew
        (BUILT / "book" / f"{page}.html").unlink(missing_ok=True)
    for folder, chapter in shown.items():
        folder.mkdir(parents=True, exist_ok=True)
        files = {path.name: path for path in chapter.files}
        files |= {f"{f.anchor}.webp": drawn[f.digest] for f in chapter.figures if f.digest in drawn}
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
    (BUILT / ".nojekyll").touch()  # or project pages leave out folders that begin with an underscore


def build(books: Sequence[Sequence[Chapter]], known: Mapping[str, Mapping]) -> int:
    """Build `_build/html` from the chapters of some folders of results; returns the exit status of Jupyter Book."""
    write_static()
    card = cards.card_of(books[0][0].path.parent, known)
    draw([f for book in books for chapter in book for f in chapter.figures], STATIC / "plotly.min.js")
    for name, text in generated(books, pictures(), known, card).items():
        write_changed(GENERATED / name, text)
    cards.write(card, GENERATED / "card")
    copy_files(books)
    toc = ROOT / "_build" / "_toc.yml"
    write_changed(toc, yaml.safe_dump(table_of_contents(books), sort_keys=False, allow_unicode=True))
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "."]
    command += ["--toc", str(toc), "-n", "-W", "--keep-going", "-q"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}).returncode
