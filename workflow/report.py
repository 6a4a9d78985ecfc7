"""What a sweep leaves: its rows and numbers in two files, its chapters as a book: `python workflow/report.py GRID`."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from grid import ROOT, GridError, Job, jobs, read_grid

from zsr_utils.records import collect, results_root


def folders(found: Sequence[Job]) -> list[str]:
    """Folders of results that a book can show, relative to the project: one a model and data set.

    Raises:
        GridError: If results lie outside of the project, whose pages a book is made of.
    """
    root = results_root().absolute()
    if not root.is_relative_to(ROOT):
        raise GridError(f"ZSR_RESULTS is {str(root)!r}, allowed for a book is a folder in {str(ROOT)!r}.")
    chapters = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    ended = [job.folder.parent.absolute() for job in found if job.chapter in chapters and _has_ended(job)]
    return [str(folder.relative_to(ROOT)) for folder in dict.fromkeys(ended)]


def _has_ended(job: Job) -> bool:
    return (job.folder / "metrics.json").is_file()


def book(found: Sequence[Job]) -> int:
    """Render the finished chapters of a grid; several models or data sets stand side by side.

    Raises:
        GridError: As `folders`.
    """
    shown = folders(found)
    if not shown:
        print("No chapter of the book has ended: there is nothing to render.", file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, "-m", "zsr_utils.book", *shown], cwd=ROOT).returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python workflow/report.py", description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, help="YAML file of the sweep")
    options = parser.parse_args(arguments)
    try:
        found = jobs(read_grid(options.grid))
    except GridError as error:
        print(error, file=sys.stderr)
        return 2
    written = collect.main([str(results_root()), "--to", str(results_root())])
    try:
        return book(found) or written
    except GridError as error:
        print(f"The tables are written, and there is no book: {error}", file=sys.stderr)
        return written


if __name__ == "__main__":
    sys.exit(main())
