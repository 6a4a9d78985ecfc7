"""Write what the pages share, generate pages from records, and let Jupyter Book build with warnings fatal."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import plotly.offline
import yaml

from zsr_utils.book._chapters import Chapter, chapters
from zsr_utils.book._chromium import draw, pictures
from zsr_utils.book._notebook import answers
from zsr_utils.book._pages import comparison, every_number, figure_index, headline
from zsr_utils.records import write_whole


ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "book" / "_static"
GENERATED = ROOT / "book" / "_generated"
SHEETS = [*sorted((ROOT / "tabletop").glob("*.py")), ROOT / "data" / "models" / "tabletop-base" / "curve.csv"]
DEFAULT = "results/tabletop-base@tabletop"


def write_static() -> None:
    """Put the scripts that pages share into `book/_static`, from the pinned packages."""
    write_changed(STATIC / "plotly.min.js", plotly.offline.get_plotlyjs())
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    source = Path(package.origin).parent / "static" / "mathjax" / "tex-svg.js"
    target = STATIC / "mathjax" / "tex-svg.js"
    if not target.exists():
        write_whole(target, lambda p: shutil.copyfile(source, p))


def write_changed(path: Path, text: str) -> None:
    """Write a file only where it says something else, so that Sphinx reads again no more than it must."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def chapter_names() -> list[str]:
    """The chapters of `_toc.yml`, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [Path(f).name for f in files if f.startswith(DEFAULT + "/")]


def table_of_contents(books: Sequence[Sequence[Chapter]]) -> dict:
    """`_toc.yml` with its chapters replaced by those given; several folders of results get a part each."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    parts = []
    for part in toc["parts"]:
        if not part["chapters"][0]["file"].startswith(DEFAULT + "/"):
            parts.append(part)
            continue
        if len(books) > 1:
            parts.append({"caption": "Comparison", "chapters": [{"file": "book/_generated/side-by-side"}]})
        for book in books:
            caption = book[0].run if len(books) > 1 else part["caption"]
            parts.append({"caption": caption, "chapters": [{"file": chapter.docname} for chapter in book]})
    return toc | {"parts": parts}


def draw_sheets() -> None:
    """Draw what the pages on Tabletop show of it, where that is older than its code."""
    last = GENERATED / "curve.png"
    if not last.exists() or last.stat().st_mtime < max(p.stat().st_mtime for p in SHEETS):
        subprocess.run([sys.executable, "-m", "tabletop.sheets", str(GENERATED)], check=True, cwd=ROOT)


def write_pages(books: Sequence[Sequence[Chapter]]) -> None:
    """Write the generated pages to `book/_generated`."""
    write_changed(GENERATED / "headline.md", headline(books, answers()))
    write_changed(GENERATED / "figures.md", figure_index(books, pictures()))
    write_changed(GENERATED / "every-number.md", every_number(books))
    if len(books) > 1:
        write_changed(GENERATED / "side-by-side.md", comparison(books))


def copy_files(books: Sequence[Sequence[Chapter]], target: Path) -> None:
    """Put what pages link to beside them: notebooks, rows, numbers, pictures; results of other builds go."""
    kept = {book[0].folder.parent.name for book in books}
    for old in (target / "results").glob("*"):
        if old.name not in kept:
            shutil.rmtree(old)
    drawn = pictures()
    for chapter in (c for book in books for c in book):
        folder = target / chapter.folder
        folder.mkdir(parents=True, exist_ok=True)
        for file in chapter.files():
            shutil.copyfile(file, folder / file.name)
        for figure in chapter.figures:
            if figure.digest in drawn:
                shutil.copyfile(drawn[figure.digest], folder / f"{figure.anchor}.webp")
    (target / ".nojekyll").touch()  # or project pages leave out folders that begin with an underscore


def build(folders: Sequence[str]) -> int:
    """Build `_build/html` from folders of results; returns the exit status of Jupyter Book."""
    names = chapter_names()
    books = [chapters(folder, ROOT, names) for folder in folders]
    for folder, book in zip(folders, books):
        left = [name for name in names if name not in {chapter.name for chapter in book}]
        if left:
            print(f"{folder} has no results of {', '.join(left)}: left out.", file=sys.stderr)
    write_static()
    draw_sheets()
    draw([f for book in books for chapter in book for f in chapter.figures], STATIC / "plotly.min.js")
    write_pages(books)
    copy_files(books, ROOT / "_build" / "html")
    toc = ROOT / "_build" / "_toc.yml"
    write_changed(toc, yaml.safe_dump(table_of_contents(books), sort_keys=False, allow_unicode=True))
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        ".",
        "--toc",
        str(toc),
        "-n",
        "-W",
        "--keep-going",
        "-q",
    ]
    environment = os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode
