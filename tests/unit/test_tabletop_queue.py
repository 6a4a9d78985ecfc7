"""The training queue, with a stand-in for the training itself."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_tabletop_train import CONFIG

from tabletop import queue, train


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """Names of three configs, folders, and a training that fails for `b` and writes nothing else."""
    paths = []
    for name in "abc":
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump({**train.read_config(train.DEFAULT), **CONFIG, "name": name}))
    places = {"runs": tmp_path / "runs", "models": tmp_path / "models", "validation": tmp_path / "v", "device": "cpu"}
    started = []

    def run(command, *, stdout, stderr, env, check):
        config = train.load_config(command[3])
        started.append((config["name"], command[4:], env))
        if config["name"] == "b":
            stdout.write("progress\nValueError: no such tower\n\n")
            return SimpleNamespace(returncode=1)
        finish(config, places["models"])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(queue.subprocess, "run", run)
    return [str(path) for path in paths], places, started


def finish(config, models):
    folder = models / config["name"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("README.md", "curve.csv", "open_clip_model.safetensors"):
        (folder / name).touch()
    (folder / "training.yaml").write_text(yaml.safe_dump(config))


def test_queue_goes_on_after_a_failure_and_says_why(setting, capsys):
    names, places, started = setting
    assert queue.train_all(names, **places) == {"b": "ValueError: no such tower"}
    assert [name for name, _, _ in started] == ["a", "b", "c"]
    assert started[0][1] == [f"--{key}={value}" for key, value in places.items()]
    assert "b: failed: ValueError: no such tower" in capsys.readouterr().out


def test_queue_skips_what_is_up_to_date(setting):
    names, places, started = setting
    queue.train_all(names, **places)
    started.clear()
    changed = yaml.safe_load(Path(names[0]).read_text()) | {"weight_decay": 0.1}
    Path(names[0]).write_text(yaml.safe_dump(changed))
    (places["models"] / "c" / "open_clip_model.safetensors").unlink()
    queue.train_all(names, **places)
    assert [name for name, _, _ in started] == ["a", "b", "c"], "changed, failed, incomplete"
    started.clear()
    queue.train_all(names, **places)
    assert [name for name, _, _ in started] == ["b"]


def test_queue_trains_other_seeds(setting):
    names, places, started = setting
    assert queue.train_all([f"{names[0]}-seed2", names[2]], **places) == {}
    assert [name for name, _, _ in started] == ["a-seed2", "c"]
    assert yaml.safe_load((places["models"] / "a-seed2" / "training.yaml").read_text())["seed"] == 2


def test_jobs_share_the_cores_unless_told_otherwise(setting, monkeypatch):
    names, places, started = setting
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    queue.train_all(names, jobs=2, **places)
    assert {env["OMP_NUM_THREADS"] for _, _, env in started} == {"2"} and len(started) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    queue.train_all(names[1:2], jobs=2, **places)
    assert started[-1][2]["OMP_NUM_THREADS"] == "3"


def test_end_by_a_signal_is_named(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    assert queue._reason(-9, log) == "ended by signal 9"
    assert queue._reason(2, log) == "exit status 2"


def test_an_error_of_the_queue_itself_does_not_stop_it(setting, monkeypatch):
    names, places, started = setting

    def broken(*_, **__):
        raise OSError("disk is full")

    monkeypatch.setattr(queue.subprocess, "run", broken)
    assert queue.train_all(names, **places) == dict.fromkeys("abc", "OSError: disk is full")
    assert subprocess.run is broken and started == []


def test_main_exits_with_the_list_of_failures(setting, monkeypatch):
    names, places, _ = setting
    options = [f"--{key}={value}" for key, value in places.items()]
    monkeypatch.setattr("sys.argv", ["queue", *names, *options])
    with pytest.raises(SystemExit) as error:
        queue.main()
    assert str(error.value) == "Not trained:\n  b: ValueError: no such tower"
    monkeypatch.setattr("sys.argv", ["queue", names[0], *options])
    queue.main()


@pytest.mark.parametrize("words", [["huge"], ["small", "--jobs", "0"]])
def test_bad_arguments_are_refused(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["queue", *words])
    with pytest.raises(SystemExit):
        queue.main()
    assert "allowed" in capsys.readouterr().err
