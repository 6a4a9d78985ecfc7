"""Results of many runs: collected into two files, loaded together, and not mixed by accident."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tiny import tiny_images, tiny_model

from zsr_utils import records, run
from zsr_utils.records.collect import collect, main


FACTS = {
    "format": 1, "model": "m", "pretrained": None, "fingerprint": "f", "dataset": "d", "dataset_fingerprint": "p",
    "notebook": "01-x", "precision": "fp32", "prompts": {"plain": ["a {}"]}, "git": "c0ffee", "dirty": False,
}  # fmt: skip


def result(root: Path, rows=None, value=0.5, **changes) -> Path:
    """A finished result folder, as a notebook leaves it."""
    facts = FACTS | changes
    folder = root / f"{facts['model']}@{facts['dataset']}" / facts["notebook"]
    folder.mkdir(parents=True, exist_ok=True)
    number = {"name": "a/b", "value": value, "low": 0.4, "high": 0.6, "interval": "wilson 95 %", "n": 9, "unit": ""}
    (folder / "metrics.json").write_text(json.dumps([number]))
    (folder / "provenance.json").write_text(json.dumps(facts))
    pd.DataFrame(rows or {"sample_id": ["s"], "label": [0]}).to_parquet(folder / "samples.parquet", index=False)
    return folder


def test_rows_of_all_notebooks_are_one_table(tmp_path):
    result(tmp_path, {"sample_id": ["a", "b"], "severity": [1, 2], "right": [True, False], "p": [[0.5], [0.5]]})
    result(tmp_path, {"sample_id": ["c"], "severity": [0.5], "model": ["rn50"]}, notebook="02-y", pretrained="tag")
    kind = pd.Categorical(["small"])
    result(tmp_path, {"sample_id": ["d"], "kind": kind, "right": [None]}, notebook="03-z", model="n")
    (result(tmp_path, notebook="04-w") / "samples.parquet").unlink()
    assert collect([tmp_path], tmp_path / "out") == {"results": 4, "rows": 4}
    rows = pd.read_parquet(tmp_path / "out" / "results.parquet").set_index("sample_id")
    assert rows.severity.dropna().to_dict() == {"a": 1, "b": 2, "c": 0.5}, "whole and decimal numbers are numbers"
    assert rows.loc[["c"]].row_model.tolist() == ["rn50"] and rows.loc["c"].model == "m"
    assert rows.right.dropna().to_dict() == {"a": True, "b": False} and rows.loc["b", "p"].tolist() == [0.5]
    assert rows.notebook.to_dict() == {"a": "01-x", "b": "01-x", "c": "02-y", "d": "03-z"}
    assert rows.pretrained.dropna().to_dict() == {"c": "tag"} and rows.kind.dropna().to_dict() == {"d": "small"}
    assert pq.read_schema(tmp_path / "out" / "results.parquet").names == [
        "model", "pretrained", "fingerprint", "dataset", "notebook", "precision",
        "sample_id", "severity", "right", "p", "row_model", "kind",
    ]  # fmt: skip


def test_a_column_of_two_types_is_refused_in_one_sentence(tmp_path):
    result(tmp_path, {"sample_id": ["a"], "severity": [1]})
    other = result(tmp_path, {"sample_id": ["b"], "severity": ["small"]}, notebook="02-y")
    for read in (lambda: collect([tmp_path], tmp_path), lambda: records.read_rows(tmp_path)):
        with pytest.raises(
            ValueError, match=r"does not go with the results before it: .*severity.*int64.*string"
        ) as error:
            read()
        assert str(other) in str(error.value) and "\n" not in str(error.value)
    assert records.read_rows(tmp_path, notebook="02-y").severity.tolist() == ["small"]


def test_rows_keep_their_order_and_none_is_lost(tmp_path):
    result(tmp_path, {"x": np.arange(300_000)})
    result(tmp_path, {"x": np.arange(300_000, 300_500)}, model="n")
    collect([tmp_path], tmp_path)
    file = pq.ParquetFile(tmp_path / "results.parquet")
    assert file.num_row_groups > 2 and file.read().column("x").to_pylist() == list(range(300_500))


def test_numbers_of_all_notebooks_are_one_table(tmp_path):
    result(tmp_path / "here", value=0.1)
    result(tmp_path / "cluster", value=1 / 3, model="n", precision="bf16")
    collect([tmp_path / "here", tmp_path / "cluster"], tmp_path)
    numbers = pd.read_csv(tmp_path / "metrics.csv").set_index("model")
    assert numbers.loc["n", "value"] == 1 / 3 and numbers.loc["n", "precision"] == "bf16"
    assert numbers.loc["m", ["name", "value", "n", "git", "notebook"]].tolist() == ["a/b", 0.1, 9, "c0ffee", "01-x"]


def test_a_copy_counts_once_and_another_result_of_the_same_is_refused(tmp_path, capsys):
    first, copy = result(tmp_path / "a"), result(tmp_path / "b")
    assert collect([tmp_path / "a", tmp_path / "b", tmp_path / "a"], tmp_path) == {"results": 1, "rows": 1}
    result(tmp_path / "b", value=0.6)
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"'{first}' and '{copy}' hold different results" in error and len(error.splitlines()) == 1


def test_unfinished_and_hidden_folders_are_left_out(tmp_path):
    result(tmp_path)
    (result(tmp_path, notebook="02-y") / "provenance.json").unlink()
    (result(tmp_path, notebook="03-z") / "metrics.json").unlink()
    result(tmp_path / ".old", model="n")
    assert collect([tmp_path], tmp_path)["results"] == 1


def test_results_of_a_profile_are_read_by_the_name_of_their_folder(tmp_path):
    result(tmp_path, value=0.1)
    result(tmp_path / "tabletop-full", value=0.2)
    assert records.read_metrics(tmp_path).value.tolist() == [0.1]
    assert records.read_metrics(tmp_path / "tabletop-full").value.tolist() == [0.2]
    with pytest.raises(ValueError, match="hold different results of the same model, data, notebook and precision"):
        records.read_metrics(tmp_path, tmp_path / "tabletop-full")


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    result(tmp_path, {"x": [1]})
    assert main([str(tmp_path), "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"1 rows of 1 results in {tmp_path / 'out'}.\n"
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path / "out")]) == 2
    (tmp_path / "file").touch()
    assert main([str(tmp_path), "--to", str(tmp_path / "file" / "out")]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "There is no folder" in first and "No finished result in" in second and "Not a directory" in third


def test_a_newer_version_is_refused_in_one_sentence(tmp_path):
    folder = result(tmp_path, format=2)
    words = "has results of format 2, allowed is up to 1: a newer version"
    for read in (
        lambda: records.read_rows(folder),
        lambda: records.read_metrics(tmp_path, notebook="01-x"),
        lambda: collect([tmp_path], tmp_path),
    ):
        with pytest.raises(ValueError, match=words) as error:
            read()
        assert str(folder) in str(error.value)


def test_a_run_writes_its_format(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    folder = records.Run("01-x", tiny_model(), tiny_images()).save()
    assert records.read_provenance(folder)["format"] == 1


def test_results_without_a_format_are_read(tmp_path):
    folder = result(tmp_path)
    old = {name: value for name, value in FACTS.items() if name != "format"}
    (folder / "provenance.json").write_text(json.dumps(old))
    assert len(records.read_rows(folder)) == len(records.read_rows(tmp_path, notebook="01-x")) == 1


def test_results_of_one_notebook_are_loaded_together(tmp_path):
    result(tmp_path, {"sample_id": ["a"], "model": ["rn50"]})
    result(tmp_path, {"sample_id": ["b"]}, model="n", dataset="e", dataset_fingerprint="q")
    result(tmp_path, notebook="02-y")
    rows, metrics = (read(tmp_path, notebook="01-x") for read in (records.read_rows, records.read_metrics))
    assert rows.set_index("sample_id").model.to_dict() == {"a": "m", "b": "n"}
    assert rows.row_model.dropna().tolist() == ["rn50"]
    assert metrics[["model", "dataset", "name"]].values.tolist() == [["m", "d", "a/b"], ["n", "e", "a/b"]]
    with pytest.raises(FileNotFoundError, match="No finished result of '04-w'"):
        records.read_rows(tmp_path, notebook="04-w")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("precision", "bf16", "precision ('fp32' and 'bf16')"),
        ("prompts", {"plain": ["the {}"]}, "prompts"),
        ("dataset_fingerprint", "q", "dataset_fingerprint ('p' and 'q')"),
    ],
)
def test_results_that_differ_in_how_they_came_about_are_mixed_only_on_demand(tmp_path, field, value, words):
    first, other = result(tmp_path), result(tmp_path, model="n", **{field: value})
    with pytest.raises(ValueError) as error:
        records.read_rows(tmp_path, notebook="01-x")
    assert str(error.value) == f"'{first}' and '{other}' differ in {words}, and are mixed only with mixed=True."
    assert len(records.read_rows(tmp_path, notebook="01-x", mixed=True)) == 2


def test_jobs_take_different_gpus_and_wait_for_a_free_one(tmp_path, monkeypatch):
    monkeypatch.setattr(run.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def take():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        lock = run.own_gpu(seconds=0.01)
        return os.environ["CUDA_VISIBLE_DEVICES"], lock

    (one, first), (other, _second) = take(), take()
    assert (one, other) == ("3", "5")
    waiting = threading.Thread(target=lambda: found.append(take()))
    found: list = []
    waiting.start()
    time.sleep(0.2)
    assert not found
    first.release()
    waiting.join(timeout=10)
    assert found[0][0] == "3"


@pytest.mark.parametrize(("visible", "names"), [("", []), ("-1", []), ("0, 2", ["0", "2"])])
def test_gpus_are_those_that_may_be_used(monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert run.gpus() == names


def test_without_a_gpu_or_under_slurm_there_is_nothing_to_take(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run.own_gpu() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert run.own_gpu() is None


def test_a_job_ends_with_the_process_that_started_it():
    job = "import sys, time; from zsr_utils.run import end_with; end_with(int(sys.argv[1]), 0.05); time.sleep(600)"
    start = (
        "import os, subprocess, sys, time; command = [sys.executable, '-c', sys.argv[1], str(os.getpid())]; "
        "print(subprocess.Popen(command).pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", start, job], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()  # most likely while the job still imports
    parent.wait()
    for _ in range(1200):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or ") Z " in stat.read_text():
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the job outlived its parent")
