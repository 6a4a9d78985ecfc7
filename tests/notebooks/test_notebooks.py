"""Every notebook: its form, and its checked numbers against the committed ones (nbval)."""

import ast
import itertools
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from zsr_utils import run


ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MARK = "# NBVAL_CHECK_OUTPUT"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@each
def test_the_form_of_a_chapter(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    titles = [line for line in prose.splitlines() if line.startswith("# ")]
    assert len(titles) == 1
    for section in ("## Overview", "## What you need", "## Summary", "## References"):
        assert section in prose, f"{path.name} has no {section}"
    assert len(run.defaults(path)) >= 3
    lengths = sorted(len(c.source.splitlines()) for c in code_cells(path))
    assert len(lengths) <= 20 and lengths[len(lengths) // 2] <= 8 and lengths[-1] <= 25
    kinds = [c.cell_type for c in cells]
    assert sum(a == b == "code" for a, b in itertools.pairwise(kinds)) <= len(lengths) / 5, "prose stands before code"
    for cell in code_cells(path):
        code = ast.parse(cell.source)
        last = getattr(code.body[-1], "value", None) if isinstance(code.body[-1], ast.Expr) else None
        kept = isinstance(last, ast.Call) and getattr(last.func, "attr", "") in ("estimate", "keep", "number")
        assert not kept, f"the page would print a record as it is: {ast.unparse(last)}"
        for node in ast.walk(code):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 6, f"{node.name} belongs in the package"


@each
def test_checked_cells_have_a_count_and_an_output_and_others_none(path):
    checked = [c for c in code_cells(path) if MARK in c.source]
    assert checked, f"{path.name} checks nothing"
    for cell in checked:
        assert cell.execution_count is not None and cell.outputs, "a checked cell without output compares nothing"
        assert "keep_output" in cell.metadata.get("tags", [])
    for cell in code_cells(path):
        assert MARK in cell.source or not cell.outputs, "strip outputs: nbstripout --keep-count"


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """The cache that the book was made with, as `make test` sets it, or one for all notebooks."""
    return Path(os.environ.get("ZSR_CACHE") or tmp_path_factory.mktemp("cache"))


def nbval(path, tmp_path, cache) -> subprocess.CompletedProcess:
    environment = run.ENVIRONMENT | os.environ | {
        "ZSR_PROGRESS": "0", "ZSR_RESULTS": str(tmp_path / "results"), "ZSR_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env",
        "--nbval-cell-timeout=600", "--rootdir", str(tmp_path), str(path),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)


@each
def test_checked_numbers_are_the_committed_ones(path, tmp_path, cache):
    done = nbval(path, tmp_path, cache)
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_changed_number_is_noticed(tmp_path, cache):
    """The check above can fail: the committed output of a checked cell has another digit."""
    cell = nbformat.v4.new_code_cell(f"{MARK}\nprint(0.25)", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="0.26\n")]
    changed = tmp_path / "changed.ipynb"
    metadata = nbformat.read(NOTEBOOKS[0], as_version=4).metadata
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), changed)
    done = nbval(changed, tmp_path, cache)
    assert done.returncode == 1 and "mismatch" in done.stdout.lower()
