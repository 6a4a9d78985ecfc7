"""Rows, numbers and provenance on disk."""

from zsr_utils.records._files import concat, read_metrics, read_rows, result_folder, safe_name, write_npz, write_whole
from zsr_utils.records._run import Run, glue, parameters


__all__ = [
    "Run",
    "concat",
    "glue",
    "parameters",
    "read_metrics",
    "read_rows",
    "result_folder",
    "safe_name",
    "write_npz",
    "write_whole",
]
