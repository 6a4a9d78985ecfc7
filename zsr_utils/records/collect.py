"""One table of rows and one of numbers from many result folders: `python -m zsr_utils.records.collect results/`.

Both are read by anything that reads Parquet and CSV; nothing of this package is needed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from zsr_utils._cache import write_whole
from zsr_utils.records._results import WHOSE, finished, whose


FACTS = ("dataset_fingerprint", "git", "dirty")  # further columns of the numbers
IDENTITY = (*WHOSE, "dataset_fingerprint")  # results that agree in these cannot be told apart in the tables


def collect(folders: Sequence[Path | str], to: Path | str, *, batch_rows: int = 65_536) -> dict[str, object]:
    """Write `results.parquet` and `metrics.csv` from every finished result below some folders.

    `results.parquet` has the rows of every `samples.parquet` after the columns `model`, `pretrained`,
    `fingerprint`, `dataset`, `notebook` and `precision`; a column of the rows that has such a name is called
    `row_<name>`. A column is missing (null) where a notebook has none. Where its type differs between notebooks
    it is the type that holds both, and text where none does. Columns of lists, such as probabilities, are left out.
    `metrics.csv` has the same columns, then those of `metrics.json`, the fingerprint of the data, the git
    commit, whether the code differed from it, and the folder.

    Args:
        folders: Searched for result folders; they may come from several machines. An exact copy counts once.
        to: Folder for the two files.
        batch_rows: Rows in memory at once.

    Returns:
        `results` and `rows` (numbers), `left_out` (names of columns), `copies` (folders that were skipped).

    Raises:
        FileNotFoundError: If a folder is missing, or there is no finished result.
        ValueError: If two results of the same model, data, notebook and precision differ, or a newer version of
            this package wrote one.
    """
    found, copies = _distinct(folders)
    with_rows = [(path, facts) for path, facts in found if (path / "samples.parquet").is_file()]
    schema, left_out = _united([pq.read_schema(path / "samples.parquet") for path, _ in with_rows])
    total = 0

    def write(temporary: Path) -> None:
        nonlocal total
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for path, facts in with_rows:
                for table in _tables(path / "samples.parquet", facts, schema, batch_rows):
                    writer.write_table(table)
                    total += len(table)

    to = Path(to)
    write_whole(to / "results.parquet", write)
    write_whole(to / "metrics.csv", lambda p: _metrics(found).to_csv(p, index=False))
    return {"results": len(found), "rows": total, "left_out": left_out, "copies": copies}


def _distinct(folders: Sequence[Path | str]) -> tuple[list[tuple[Path, dict]], list[Path]]:
    """Finished results, an exact copy once."""
    kept: dict[tuple, tuple[Path, dict]] = {}
    copies = []
    for folder in {Path(f).resolve(): Path(f) for f in folders}.values():
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
        for path, facts in finished(folder):
            key = tuple(facts.get(name) for name in IDENTITY)
            other, known = kept.setdefault(key, (path, facts))
            if other == path:
                continue
            if known != facts or (other / "metrics.json").read_bytes() != (path / "metrics.json").read_bytes():
                raise ValueError(
                    f"{str(other)!r} and {str(path)!r} hold different results of the same model, data, notebook and "
                    "precision: collect one of them."
                )
            copies.append(path)
    if not kept:
        raise FileNotFoundError(f"No finished result in {', '.join(repr(str(f)) for f in folders)}.")
    return list(kept.values()), copies


def _united(schemas: Sequence[pa.Schema]) -> tuple[pa.Schema, list[str]]:
    """The schema that holds the rows of all, and the names of the columns left out."""
    types: dict[str, pa.DataType] = {}
    left_out = set()
    for schema in schemas:
        for field in schema:
            name, kind = _renamed(field.name), field.type
            if pa.types.is_nested(kind):
                left_out.add(name)
                continue
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if pa.types.is_large_string(kind):
                kind = pa.string()
            types[name] = _common(types[name], kind) if name in types else kind
    for name in left_out:  # also where another notebook has plain values under this name
        types.pop(name, None)
    # a column without any value has no type of its own
    columns = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}
    return pa.schema([*((name, pa.string()) for name in WHOSE), *columns.items()]), sorted(left_out)


def _renamed(name: str) -> str:
    return f"row_{name}" if name in WHOSE else name


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    try:
        fields = [pa.schema([("x", kind)]) for kind in (one, other)]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()


def _tables(path: Path, facts: dict, schema: pa.Schema, batch_rows: int) -> Iterator[pa.Table]:
    file = pq.ParquetFile(path)
    own = whose(facts)
    wanted = [name for name in file.schema_arrow.names if _renamed(name) in schema.names]
    for batch in file.iter_batches(batch_size=batch_rows, columns=wanted):
        columns = {_renamed(name): batch.column(name) for name in wanted}
        arrays = []
        for field in schema:
            if field.name in own:
                arrays.append(pa.repeat(pa.scalar(own[field.name], pa.string()), len(batch)))
            elif field.name in columns:
                arrays.append(columns[field.name].cast(field.type))
            else:
                arrays.append(pa.nulls(len(batch), field.type))
        yield pa.Table.from_arrays(arrays, schema=schema)


def _metrics(found: Sequence[tuple[Path, dict]]) -> pd.DataFrame:
    frames = []
    for path, facts in found:
        numbers = pd.DataFrame(json.loads((path / "metrics.json").read_text()))
        known = pd.DataFrame({name: [value] * len(numbers) for name, value in whose(facts).items()})
        rest = {name: facts.get(name) for name in FACTS}
        frames.append(pd.concat([known, numbers], axis=1).assign(**rest, folder=str(path)))
    return pd.concat(frames, ignore_index=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.records.collect", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="searched for result folders")
    parser.add_argument("--to", default=".", help="folder for results.parquet and metrics.csv (default: this one)")
    options = parser.parse_args(arguments)
    try:
        done = collect(options.folders, options.to)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Nothing was written to {options.to!r}: {error.strerror}.", file=sys.stderr)
        return 1
    left_out = ", ".join(done["left_out"])
    print(
        f"{done['rows']:,} rows of {done['results']} results in {options.to}"
        + (f"; columns of lists are left out: {left_out}" if left_out else "")
        + (f"; {len(done['copies'])} exact copies were counted once" if done["copies"] else "")
        + "."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
