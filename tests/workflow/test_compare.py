"""Several models in one book: the grid that a profile and a list of models make."""

import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow"))
import compare  # noqa: E402
import report  # noqa: E402
from grid import GridError, jobs  # noqa: E402


def test_every_chapter_runs_for_every_model_with_the_parameters_of_the_profile():
    grid = compare.grid_of(ROOT / "profiles" / "imagenette", ["ViT-B-32@laion2b_s34b_b79k", "tabletop-conv"])
    found = jobs(grid)
    chapters = {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    first, second = ([job for job in found if job.parameters["model"] == m] for m in ("ViT-B-32", "tabletop-conv"))
    assert {job.chapter for job in first} == chapters == {job.chapter for job in second} | {"19-model-trends"}
    assert first[0].parameters["pretrained"] == "laion2b_s34b_b79k" and second[0].pretrained is None
    assert first[0].parameters["dataset"] == "imagenette" and first[0].parameters["batch_size"] == 256
    assert {job.folder.parent.name for job in first} == {"ViT-B-32-laion2b_s34b_b79k@imagenette"}


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(GridError, match=r"Unknown profile 'imagenete': known profiles are imagenet, imagenette, tab"):
        compare.grid_of(ROOT / "profiles" / "imagenete", ["tabletop-base"])


def test_an_unknown_model_is_refused_before_anything_runs():
    command = [sys.executable, "workflow/compare.py", "tabletop", "tabletop-base", "tabeltop-conv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Unknown model 'tabeltop-conv'" in done.stderr and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


def test_results_outside_of_the_project_make_no_book(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    assert compare.main(["tabletop", "tabletop-base"]) == 2
    assert "allowed for a book is a folder in" in capsys.readouterr().err


def finished(folder):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("[]")


def test_a_book_shows_what_has_ended_of_a_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01-zero-shot-baseline.ipynb").touch()
    grid = {"models": ["tabletop-base", "tabletop-conv"], "datasets": ["tabletop"], "parameters": {"models": []}}
    found = jobs(grid | {"chapters": ["01-zero-shot-baseline", "02-embedding-alignment"]})
    assert report.folders(found) == [] and report.book(found) == 1
    finished(found[0].folder)
    assert report.folders(found) == ["results/tabletop-base@tabletop"]
    for job in found[1:]:
        finished(job.folder)
    assert report.folders(found) == ["results/tabletop-base@tabletop", "results/tabletop-conv@tabletop"]


def test_a_sweep_whose_results_lie_elsewhere_says_that_it_has_no_book(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    assert report.main([str(ROOT / "workflow" / "sweep.yaml")]) != 0  # nothing has ended yet
    assert "there is no book: ZSR_RESULTS is" in capsys.readouterr().err
