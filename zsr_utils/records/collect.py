"""One table of rows and one of numbers from many result folders: `python -m zsr_utils.records.collect results/`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from zsr_utils._cache import write_whole
from zsr_utils.records._results import read_metrics, results, tables


def collect(folders: Sequence[Path | str], to: Path | str) -> dict[str, int]:
    """Write `results.parquet`, as `read_rows` has it, and `metrics.csv`, as `read_metrics`, whatever is mixed there."""
    found, numbers = results(*folders, mixed=True), read_metrics(*folders, mixed=True)
    schema, rows = tables(found)

    def write(path: Path) -> None:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in rows:  # one of them is in memory at once
                writer.write_table(table, row_group_size=100_000)

    write_whole(Path(to) / "results.parquet", write)
    write_whole(Path(to) / "metrics.csv", lambda path: numbers.to_csv(path, index=False))
    return {"results": len(found), "rows": pq.read_metadata(Path(to) / "results.parquet").num_rows}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.records.collect", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="of results")
    parser.add_argument("--to", default=".", help="folder for results.parquet and metrics.csv (default: this one)")
    options = parser.parse_args(arguments)
    try:
        done = collect(options.folders, options.to)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None)
        print(f"Nothing was written to {options.to!r}: {reason}." if reason else error, file=sys.stderr)
        return 2
    print(f"{done['rows']:,} rows of {done['results']} results in {options.to}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
