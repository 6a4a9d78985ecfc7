"""Fetch data sets: `python -m zsr_utils.fetch NAME [--to FOLDER]`, or `--list`."""

import argparse
import sys
from pathlib import Path

from zsr_utils.datasets import NAMES, DownloadError, data_folder, download, source


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 if a data set cannot be fetched (standard error says why), or 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.fetch", description="Fetch data sets for load_dataset.")
    parser.add_argument("name", nargs="*", help="names as for load_dataset, such as imagenette or wds:org/name")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="data folder, default ZSR_DATA or the user's cache")
    parser.add_argument("--list", action="store_true", help="say what there is, and what is here already")
    options = parser.parse_args(arguments)
    root = options.to or data_folder()
    if options.list:
        print(_listed(root))
    elif not options.name:
        parser.error("a name is missing; --list says which there are.")
    for name in options.name:
        try:
            print(f"{name} is in {str(download(name, root))!r}.")
        except (DownloadError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"\n{name} was interrupted, the same command goes on from there.", file=sys.stderr)
            return 130
    if options.name and options.to:
        print(f"Set ZSR_DATA to {str(root.resolve())!r} to use it.")
    return 0


def _listed(root: Path) -> str:
    """A line a data set: name, size, how to get it, and whether it is here."""
    lines = ["tabletop           part of the project"]
    for name in NAMES[1:]:
        known, folder = source(name), root / source(name).folder
        how = f"in {folder}" if folder.is_dir() else "get it by hand" if known.by_hand else "fetch"
        lines.append(f"{name:17}  {how}" + (f" ({known.size})" if known.size else ""))
    lines.append("wds:org/name       fetch from the Hugging Face hub, such as wds:clip-benchmark/wds_imagenetv2")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
