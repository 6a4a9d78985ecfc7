"""`python -m zsr_utils.book results/<model>@<data set> … [--chapters "01 05"] [--pdf]`"""

import argparse
import sys
from pathlib import Path

from zsr_utils.book._build import BUILT, build, linked
from zsr_utils.book._chapters import chapters
from zsr_utils.book._chromium import print_book
from zsr_utils.records.chapters import ROOT, chosen, read_chapters


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.book", description="Render the report.")
    shown = "results to show, such as results/<model>@<data set>; several are compared"
    parser.add_argument("folders", nargs="*", help=shown)
    parser.add_argument("--chapters", default="", help="those to show, by number or name (default: all)")
    parser.add_argument("--pdf", action="store_true", help="print the pages to _build/pdf, also as they stand")
    options = parser.parse_args(arguments)
    try:
        known, books = read_chapters(), []
        known = {name: known[name] for name in chosen(options.chapters, known)}
        for path in dict.fromkeys(Path(folder).absolute() for folder in options.folders):
            path = path if path.is_relative_to(ROOT) else linked(path)
            books.append(chapters(path.relative_to(ROOT).as_posix(), ROOT, known))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    status = build(books, known) if books else 0
    if options.pdf and status == 0:
        print(print_book(BUILT, ROOT / "_build" / "pdf").relative_to(ROOT))
    return status


if __name__ == "__main__":
    sys.exit(main())
