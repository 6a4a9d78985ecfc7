"""`python -m zsr_utils.book results/<model>@<data set> … [--pdf]`"""

import argparse
import sys

from zsr_utils.book._build import DEFAULT, ROOT, build, chapter_names
from zsr_utils.book._chapters import chapters
from zsr_utils.book._chromium import print_book


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.book", description="Render the report.")
    parser.add_argument(
        "folders", nargs="*", default=[DEFAULT], help="results to show, relative to the project; several are compared"
    )
    parser.add_argument("--pdf", action="store_true", help="print the pages to _build/pdf as well")
    options = parser.parse_args(arguments)
    folders = list(dict.fromkeys(f.rstrip("/") for f in options.folders))
    for folder in folders:
        if not chapters(folder, ROOT, chapter_names()):
            print(f"There are no results in {folder!r}: run `make book`, or a notebook, first.", file=sys.stderr)
            return 2
    status = build(folders)
    if options.pdf and status == 0:
        for path in print_book(ROOT / "_build" / "html", ROOT / "_build" / "pdf"):
            print(path.relative_to(ROOT))
    return status


if __name__ == "__main__":
    sys.exit(main())
