"""Results that were computed before, here or elsewhere."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from zsr_utils.records._files import EARLIER, concat, read_numbers, read_provenance


WHOSE = ("model", "pretrained", "fingerprint", "dataset", "notebook", "precision")  # columns from the provenance
FACTS = ("dataset_fingerprint", "git", "dirty")  # further ones of the numbers
Found = list[tuple[Path, dict]]  # result folders, each with its provenance


def read_rows(*folders: Path | str, notebook: str = "", mixed: bool = False) -> pd.DataFrame:
    """Rows of many `results`: of `samples.parquet`, after the columns `WHOSE`; one of their names is `row_<name>`."""
    schema, rows = tables(results(*folders, notebook=notebook, mixed=mixed))
    return pa.concat_tables([schema.empty_table(), *rows]).to_pandas()


def read_metrics(*folders: Path | str, notebook: str = "", mixed: bool = False) -> pd.DataFrame:
    """Numbers of many results: all of `metrics.json`, between the columns `WHOSE` and `FACTS`, and the folder."""
    frames = []
    for path, facts in results(*folders, notebook=notebook, mixed=mixed):
        numbers = pd.DataFrame(read_numbers(path)).astype({"low": float, "high": float}, errors="ignore")
        known = {name: facts.get(name) for name in (*WHOSE, *FACTS)} | {"folder": str(path)}
        frames.append(numbers.assign(**known)[[*WHOSE, *numbers, *FACTS, "folder"]])
    return concat(frames)


def results(*folders: Path | str, notebook: str = "", mixed: bool = False) -> Found:
    """Finished results, that is folders with numbers and provenance, in some folders; an exact copy counts once.

    With `mixed` those of a notebook are taken together although they differ in precision, in prompts, or in the images
    of one data set.
    """
    kept: dict[tuple, tuple[Path, dict]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
        for path in sorted(path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}provenance.json")):
            hidden = any(part.startswith(".") or part == EARLIER for part in path.relative_to(folder).parts)
            if hidden or not path.with_name("metrics.json").is_file():
                continue
            found = path.parent, read_provenance(path.parent)
            if notebook not in ("", found[1].get("notebook")):
                continue
            other = kept.setdefault(tuple(found[1].get(name) for name in (*WHOSE, "dataset_fingerprint")), found)
            if other[1] != found[1] or len({(p / "metrics.json").read_bytes() for p, _ in (other, found)}) > 1:
                differ = f"{str(other[0])!r} and {str(found[0])!r} hold different results of the same"
                raise ValueError(f"{differ} model, data, notebook and precision: take one of them.")
    if not kept:
        where, what = ", ".join(repr(str(folder)) for folder in folders), f" of {notebook!r}" if notebook else ""
        raise FileNotFoundError(f"No finished result{what} in {where}: run the notebook first.")
    if not mixed:
        _same(kept.values())
    return list(kept.values())


def tables(found: Found) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """What `read_rows` has: its columns, and the rows of one result after the other."""
    files = [(path / "samples.parquet", facts) for path, facts in found if (path / "samples.parquet").is_file()]
    schema = pa.schema([(name, pa.string()) for name in WHOSE])
    for file, _ in files:
        read_provenance(file.parent, file.name)
        own = ((f, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in pq.read_schema(file))
        fields = [(f"row_{f.name}" if f.name in WHOSE else f.name, kind) for f, kind in own]
        try:
            schema = pa.unify_schemas([schema, pa.schema(fields)], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise ValueError(f"{str(file)!r} does not go with the results before it: {error}.") from error
    return schema, (_rows(file, facts, schema) for file, facts in files)


def _rows(file: Path, facts: dict, schema: pa.Schema) -> pa.Table:
    rows, columns = pq.read_table(file), []
    for field in schema:
        name = field.name.removeprefix("row_") if field.name.removeprefix("row_") in WHOSE else field.name
        if field.name in WHOSE:
            columns.append(pa.array([facts.get(name)] * len(rows), field.type))
        else:
            columns.append(
                rows[name].cast(field.type) if name in rows.column_names else pa.nulls(len(rows), field.type)
            )
    return pa.table(columns, schema=schema)


def _same(found: Iterable[tuple[Path, dict]]) -> None:
    """Refuse to mix; the prompts a run recorded are compared by their texts, not by their names alone."""
    first: dict[tuple, tuple[Path, object]] = {}
    for path, facts in found:
        for field in ("precision", "prompts", "dataset_fingerprint"):
            key = (field, facts.get("notebook"), facts["dataset"] if field == "dataset_fingerprint" else "")
            other, known = first.setdefault(key, (path, value := facts.get(field)))
            if known != value:
                short = f" ({known[:12]!r} and {value[:12]!r})" if isinstance(value, str) else ""
                differ = f"{str(other)!r} and {str(path)!r} differ in {field}{short}"
                raise ValueError(f"{differ}, and are mixed only with mixed=True.")
