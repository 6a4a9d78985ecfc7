"""Rows, numbers and provenance on disk."""

from zsr_utils._cache import write_whole
from zsr_utils.records._files import (
    EARLIER, concat, read_numbers, read_provenance, result_folder, results_root, safe_name, set_aside,
)  # fmt: skip
from zsr_utils.records._results import read_metrics, read_rows, results
from zsr_utils.records._run import Run, parameters
