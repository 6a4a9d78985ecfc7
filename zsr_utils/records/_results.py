"""Results that were computed elsewhere: found, told apart, and not mixed by accident."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from zsr_utils.records._files import concat, read_provenance


WHOSE = ("model", "pretrained", "fingerprint", "dataset", "notebook", "precision")  # columns from the provenance


class Results(NamedTuple):
    """Rows and numbers of several result folders.

    Attributes:
        rows: Those of every `samples.parquet`, with the columns `WHOSE` in front; a column of the rows that
            has such a name is called `row_<name>`.
        metrics: Numbers of every `metrics.json`, with the same columns.
    """

    rows: pd.DataFrame
    metrics: pd.DataFrame


def finished(folder: Path | str) -> Iterator[tuple[Path, dict]]:
    """Result folders below `folder`, in the order of their paths, with their provenance.

    A folder counts when it holds metrics and provenance, which a notebook writes at its end.

    Raises:
        ValueError: If a newer version of this package wrote one.
    """
    for path in sorted(Path(folder).rglob("provenance.json")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and (path.parent / "metrics.json").is_file():
            yield path.parent, read_provenance(path.parent)


def load_results(folder: Path | str, *, notebook: str, mixed: bool = False) -> Results:
    """Rows and numbers of one notebook, from every result folder below `folder`.

    Args:
        folder: Such as `results`, also copied from another machine.
        notebook: Its name without `.ipynb`.
        mixed: Take results together although they differ in precision, in prompts, or in the images of one
            data set. Data sets of different names may always differ in their images.

    Raises:
        FileNotFoundError: If there is no finished result of the notebook.
        ValueError: If results differ in what may not be mixed (the sentence names two folders and the
            field), or a newer version of this package wrote one.
    """
    found = [(path, facts) for path, facts in finished(folder) if facts["notebook"] == notebook]
    if not found:
        raise FileNotFoundError(f"No finished result of {notebook!r} in {str(folder)!r}: run the notebook first.")
    if not mixed:
        _same(found)
    rows, metrics = [], []
    for path, facts in found:
        columns = whose(facts)
        metrics.append(_put_before(pd.DataFrame(json.loads((path / "metrics.json").read_text())), columns))
        if (path / "samples.parquet").is_file():
            frame = pd.read_parquet(path / "samples.parquet")
            rows.append(_put_before(frame.rename(columns={n: f"row_{n}" for n in WHOSE}), columns))
    return Results(concat(rows) if rows else pd.DataFrame(columns=list(WHOSE)), concat(metrics))


def whose(provenance: dict) -> dict:
    """Values of the columns that tell results apart."""
    return {name: provenance.get(name) for name in WHOSE}


def _put_before(frame: pd.DataFrame, columns: dict) -> pd.DataFrame:
    return frame.assign(**columns)[[*columns, *frame.columns]]


def _same(found: list[tuple[Path, dict]]) -> None:
    """Refuse to mix; the prompts a run recorded are compared by their texts, not by their names alone."""
    first: dict[tuple, tuple[Path, object]] = {}
    for path, facts in found:
        for field in ("precision", "prompts", "dataset_fingerprint"):
            key = (field, facts["dataset"]) if field == "dataset_fingerprint" else (field,)
            other, value = first.setdefault(key, (path, facts.get(field)))
            if value != facts.get(field):
                raise ValueError(
                    f"{str(other)!r} and {str(path)!r} differ in {field}{_difference(value, facts.get(field))}, "
                    "and are mixed only with mixed=True."
                )


def _difference(one, other) -> str:
    if isinstance(one, str) and isinstance(other, str):
        return f" ({one[:12]!r} and {other[:12]!r})"
    return ""
