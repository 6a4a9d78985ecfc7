"""Rows, numbers and provenance on disk."""

from zsr_utils._cache import write_whole
from zsr_utils.records._files import (
    concat,
    read_metrics,
    read_provenance,
    read_rows,
    result_folder,
    results_root,
    safe_name,
)
from zsr_utils.records._results import Results, load_results
from zsr_utils.records._run import Run, glue, parameters


__all__ = [
    "Results",
    "Run",
    "concat",
    "glue",
    "load_results",
    "parameters",
    "read_metrics",
    "read_provenance",
    "read_rows",
    "result_folder",
    "results_root",
    "safe_name",
    "write_whole",
]
