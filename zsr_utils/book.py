"""Render the report from executed notebooks: `python -m zsr_utils.book results/<model>@<data set>`.

Writes the shared static files once (plotly.js, MathJax, the data card's pictures), points the table
of contents at the given results, and lets Jupyter Book build with every warning fatal.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import plotly.offline
import yaml

from zsr_utils.records import write_whole


ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "book" / "_static"
DEFAULT = "results/tabletop-base@tabletop"


def write_static() -> None:
    """Put the scripts that pages share into `book/_static`, from the pinned packages."""
    script = plotly.offline.get_plotlyjs()
    target = STATIC / "plotly.min.js"
    if not target.exists() or target.read_text(encoding="utf-8") != script:
        write_whole(target, lambda p: p.write_text(script, encoding="utf-8"))
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    source = Path(package.origin).parent / "static" / "mathjax" / "tex-svg.js"
    target = STATIC / "mathjax" / "tex-svg.js"
    if not target.exists():
        write_whole(target, lambda p: shutil.copyfile(source, p))


def table_of_contents(folder: str) -> dict:
    """`_toc.yml` with the default results replaced by those of `folder`."""
    text = (ROOT / "_toc.yml").read_text()
    return yaml.safe_load(text.replace(DEFAULT + "/", folder.rstrip("/") + "/"))


def build(folder: str) -> int:
    """Build `_build/html`; returns the exit status of Jupyter Book."""
    write_static()
    subprocess.run([sys.executable, "-m", "tabletop.sheets", str(ROOT / "book" / "_generated")], check=True, cwd=ROOT)
    toc = ROOT / "_build" / "_toc.yml"
    write_whole(toc, lambda p: p.write_text(yaml.safe_dump(table_of_contents(folder), sort_keys=False)))
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.book", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=DEFAULT, help="results to show, relative to the project")
    folder = parser.parse_args().folder
    missing = [str(ROOT / folder)] if not (ROOT / folder).is_dir() else []
    if missing:
        print(f"There are no results in {folder!r}: run `make book`, or a notebook, first.", file=sys.stderr)
        return 2
    return build(folder)


if __name__ == "__main__":
    sys.exit(main())
