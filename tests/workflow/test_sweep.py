"""The sweep runs what is missing, keeps what is done, and says what is wrong before anything runs.

The notebooks here are fakes that write a number; model and data set names are real, so that the checks are too.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import nbformat as nf
import pytest
import yaml

from zsr_utils import run


ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("grid", ROOT / "workflow" / "grid.py")
grid = importlib.util.module_from_spec(_spec)
sys.modules["grid"] = grid
_spec.loader.exec_module(grid)

PARAMETERS = 'model = "m"\npretrained = ""\ndataset = "d"\nlimit = 0\neps = 0.5\ndevice = "cpu"\nprecision = "fp32"'
# A file "<model>.fail" makes a chapter fail, "<chapter>.wait" keeps it running; "runs" gets one line a start.
BODY = """
import json, os, pathlib, time
root, here = pathlib.Path(os.environ["ZSR_RESULTS"]), pathlib.Path(os.environ["FAKE"])
with (here / "runs").open("a") as file:
    print(f"{model}@{dataset}/CHAPTER", os.getpid(), os.environ["OMP_NUM_THREADS"], file=file)
assert not (here / f"{model}@{dataset}-CHAPTER.fail").exists(), "told to fail"
folder = root / f"{model}@{dataset}" / "CHAPTER"
number = [{"name": "a/b", "value": eps, "low": 0, "high": 1, "interval": "", "n": 1, "unit": ""}]
while (here / "CHAPTER.wait").exists():
    time.sleep(0.1)
(folder / "metrics.json").write_text(json.dumps(number))
(folder / "provenance.json").write_text(json.dumps({"model": model, "dataset": dataset, "notebook": "CHAPTER"}))
"""
CHAPTERS = ("01-x", "02-embedding-alignment", "03-jacobian-spectra")  # the third waits for the second
LATER = "04-noise-detection"  # and so does this one


@pytest.fixture
def fakes(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for chapter in (*CHAPTERS, LATER):
        cells = [nf.v4.new_code_cell(PARAMETERS), nf.v4.new_code_cell(BODY.replace("CHAPTER", chapter))]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nf.write(nf.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{chapter}.ipynb")
    return folder


@pytest.fixture
def small(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    return {
        "models": ["tabletop-base", "tabletop-conv"],
        "datasets": ["tabletop"],
        "chapters": list(CHAPTERS[:2]),
        "notebooks": str(fakes),
    }


class Sweep:
    """`snakemake` as a user starts it, in a folder of its own."""

    def __init__(self, folder: Path, content: dict):
        self.folder, self.results = folder, folder / "results"
        self.file = folder / "my-sweep.yaml"
        self.file.write_text(yaml.safe_dump(content))

    def start(self, *more: str, profile: str = "local") -> subprocess.Popen:
        bin_ = str(Path(sys.executable).parent)
        environment = os.environ | {
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "ZSR_RESULTS": str(self.results),
            "FAKE": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache"),
        }  # fmt: skip
        command = [
            f"{bin_}/snakemake", "--snakefile", str(ROOT / "workflow" / "Sweep"), "--directory", str(self.folder),
            "--workflow-profile", str(ROOT / "workflow" / "profiles" / profile), "--cores", "2",
            "--configfile", str(self.file), *more,
        ]  # fmt: skip
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *more: str, profile: str = "local") -> tuple[int, str]:
        process = self.start(*more, profile=profile)
        output = finish(process)
        return process.returncode, output

    def started(self) -> list[str]:
        """Jobs that were started since the last call."""
        file = self.folder / "runs"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        file.unlink(missing_ok=True)
        return sorted(line.split()[0] for line in lines)

    def done(self) -> set[str]:
        found = {p.parent.relative_to(self.results).as_posix() for p in self.results.glob("*/*/metrics.json")}
        return {name for name in found if (self.results / name / f"{Path(name).name}.ipynb").is_file()}

    def running(self, job: str) -> int:
        """The process of a job's notebook, once it has begun."""
        for _ in range(6000):
            for line in (self.folder / "runs").read_text().splitlines() if (self.folder / "runs").exists() else ():
                if line.startswith(job):
                    return int(line.split()[1])
            time.sleep(0.1)
        raise AssertionError(f"{job} did not begin")


def finish(process: subprocess.Popen) -> str:
    try:
        return process.communicate(timeout=1200)[0]
    finally:
        process.kill()


def gone(process: int) -> bool:
    for _ in range(300):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{process}/stat").exists() and " Z " in Path(f"/proc/{process}/stat").read_text():
            return True
        time.sleep(0.1)
    return False


def test_a_grid_keeps_what_is_done_and_a_rerun_does_what_is_missing(fakes, tmp_path):
    models = ["tabletop-base", "tabletop-conv", "tabletop-small", "tabletop-wise"]
    content = {"models": models, "datasets": ["tabletop"], "chapters": list(CHAPTERS), "notebooks": str(fakes)}
    sweep = Sweep(tmp_path, content)
    every = {f"{model}@tabletop/{chapter}" for model in models for chapter in CHAPTERS}
    bad = {"tabletop-conv@tabletop/01-x", "tabletop-small@tabletop/03-jacobian-spectra"}
    marks = [tmp_path / f"{job.replace('/', '-')}.fail" for job in bad]
    for mark in marks:
        mark.touch()

    status, output = sweep.run()
    assert status != 0 and "10 of 12 results are there." in output
    assert sweep.done() == every - bad and set(sweep.started()) == every
    failed = {p.relative_to(sweep.results).parent.parent.as_posix(): p for p in sweep.results.rglob("failed/*.ipynb")}
    assert set(failed) == bad
    for job, path in failed.items():
        (error,) = [o for c in nf.read(path, 4).cells for o in c.get("outputs", ()) if o.output_type == "error"]
        assert (error.ename, error.evalue) == ("AssertionError", "told to fail") and error.traceback
        pair, chapter = job.split("/")
        assert f"{pair}: failed: {chapter} failed in cell 3: AssertionError: told to fail Its traceback" in output

    for mark in marks:
        mark.unlink()
    status, output = sweep.run()
    assert status == 0 and "12 of 12 results are there." in output
    assert sweep.started() == sorted(bad) and sweep.done() == every
    assert not list(sweep.results.rglob("failed/*.ipynb"))

    os.utime(fakes / "01-x.ipynb")  # a new clone
    assert sweep.run()[0] == 0 and sweep.started() == []

    content["exclude"] = [{"model": model} for model in models[1:]]
    content["chapters"] = {"01-x": {"eps": 1e-5}, **dict.fromkeys(CHAPTERS[1:])}
    sweep.file.write_text(yaml.safe_dump(content))
    assert sweep.run()[0] == 0
    assert sweep.started() == ["tabletop-base@tabletop/01-x"], "other parameters are another measurement"
    (number,) = json.loads((sweep.results / "tabletop-base@tabletop/01-x/metrics.json").read_text())
    assert number["value"] == 1e-5


def test_a_killed_job_and_a_killed_sweep_leave_nothing_half_written_and_a_rerun_goes_on(fakes, tmp_path):
    models = ["tabletop-base", "tabletop-conv"]
    content = {"models": models, "datasets": ["tabletop"], "chapters": list(CHAPTERS), "notebooks": str(fakes)}
    content["exclude"] = [{"chapter": "01-x", "model": "tabletop-conv"}]
    sweep = Sweep(tmp_path, content)
    first = {"tabletop-base@tabletop/01-x"}
    second, third = ({f"{model}@tabletop/{chapter}" for model in models} for chapter in CHAPTERS[1:])
    one, other = sorted(second)
    wait = tmp_path / "02-embedding-alignment.wait"
    wait.touch()

    process = sweep.start()
    os.kill(sweep.running(one), signal.SIGKILL)
    kernel = sweep.running(other)
    runner = int(Path(f"/proc/{kernel}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(runner, signal.SIGKILL)
    output = finish(process)
    assert process.returncode != 0 and gone(kernel)
    assert sweep.done() == first and set(sweep.started()) == first | second
    assert "02-embedding-alignment stopped: its process was killed" in output
    assert "03-jacobian-spectra was not run. It waits for 02-embedding-alignment." in output
    assert (sweep.results / one / "failed" / "02-embedding-alignment.ipynb").is_file()

    process = sweep.start()
    kernels = [sweep.running(job) for job in (one, other)]
    status, output = sweep.run()
    assert status != 0 and "Another sweep is writing to" in output and "Traceback" not in output
    process.kill()
    process.communicate()
    assert all(gone(kernel) for kernel in kernels), "jobs of a killed sweep must end"
    assert sweep.done() == first and set(sweep.started()) == second

    wait.unlink()
    status, output = sweep.run()
    assert status == 0, output
    assert set(sweep.started()) == second | third and sweep.done() == first | second | third
    assert sweep.run()[0] == 0 and sweep.started() == []


def test_no_more_jobs_run_at_once_than_there_are_cores(fakes, tmp_path):
    """Snakemake 9.15 counted a core twice after a job that had been the only one ready."""
    content = {"models": ["tabletop-base"], "datasets": ["tabletop"], "chapters": [*CHAPTERS[1:], LATER]}
    sweep = Sweep(tmp_path, content | {"notebooks": str(fakes)})
    status, output = sweep.run("--cores", "1")
    assert status == 0, output
    written = [nf.read(path, 4).metadata.papermill for path in sweep.results.glob("*/*/*.ipynb")]
    times = sorted((one.start_time, one.end_time) for one in written)
    assert len(times) == 3
    assert all(end <= begin for (_, end), (begin, _) in pairwise(times)), times


def test_a_grid_that_is_wrong_is_told_in_one_sentence_before_anything_runs(fakes, tmp_path):
    content = {"models": ["tabletop-bas"], "datasets": ["tabletop"], "chapters": ["01-x"], "notebooks": str(fakes)}
    sweep = Sweep(tmp_path, content)
    status, output = sweep.run()
    assert status != 0 and "Unknown model 'tabletop-bas': nearest known names are tabletop-base" in output
    assert "Traceback" not in output and sweep.started() == []
    sweep.file.write_text(yaml.safe_dump(content | {"chapters": ["01-y"]}))
    status, output = sweep.run()
    assert status != 0 and "Traceback" not in output
    assert "Unknown chapter '01-y': nearest known names are 01-x." in output.splitlines()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ["x"]}, "Unknown key of a grid 'model': nearest known names are models"),
        ({"models": []}, "The grid has no models: models, datasets and chapters need"),
        ({"models": "tabletop-base"}, "models is 'tabletop-base', allowed is a list"),
        ({"models": [{"nam": "x"}]}, "has no name"),
        ({"chapters": ["01-y"]}, "Unknown chapter '01-y': nearest known names are 01-x"),
        ({"chapters": {"01-x": {"epps": 1}}}, "01-x.ipynb has no parameter 'epps' .*nearest names are eps"),
        ({"chapters": {"01-x": {"limit": "8"}}}, r"'limit' is '8' \(str\), allowed is a value of type int"),
        ({"chapters": {"01-x": {"dataset": "d"}}}, "'dataset' is set by the lists of models and data sets alone"),
        ({"parameters": {"limt": 1}}, "parameters: Unknown parameter 'limt': nearest known names are limit"),
        ({"models": [{"name": "a", "precison": "fp16"}]}, "models: Unknown parameter 'precison'"),
        ({"exclude": [{"model": "b"}]}, "exclude: {model: b} matches no job"),
        ({"exclude": [{"notebook": "b"}]}, "Unknown key of an exclusion 'notebook'"),
        ({"exclude": [{"chapter": "01-x"}, {"chapter": "02-embedding-alignment"}]}, "The grid has no job"),
        ({"resources": {"gpus": 1}}, "Unknown resource 'gpus': nearest known names are gpu"),
        ({"resources": {"01-x": {"threads": 0}}}, "threads is 0, allowed is a whole number from 1"),
    ],
)
def test_a_grid_is_checked(small, changes, words):
    with pytest.raises(grid.GridError, match=words):
        grid.jobs(small | changes)


@pytest.mark.parametrize(
    ("key", "entries"),
    [
        ("models", [{"name": "a"}, {"name": "a", "precision": "fp16"}]),
        ("models", [{"name": "a", "pretrained": "b"}, {"name": "a-b"}]),
        ("datasets", ["/photos/pacs", "photos/pacs"]),
    ],
)
def test_two_entries_for_one_results_folder_are_refused_naming_both(small, key, entries):
    with pytest.raises(grid.GridError, match="write to the same folder") as error:
        grid.jobs(small | {key: entries})
    for entry in entries:
        assert (entry if isinstance(entry, str) else str(entry).replace("'", "")) in str(error.value)


def test_parameters_come_from_grid_data_set_chapter_and_model_in_this_order(small):
    content = small | {
        "models": ["a", {"name": "b", "limit": 4}], "datasets": [{"name": "d", "limit": 2}],
        "chapters": {"01-x": {"limit": 3}, "02-embedding-alignment": None}, "parameters": {"limit": 1, "eps": 0.25},
        "exclude": [{"model": "a", "chapter": "02-embedding-alignment"}],
    }  # fmt: skip
    found = {(job.pair, job.chapter): job.parameters["limit"] for job in grid.jobs(content)}
    assert found == {("a@d", "01-x"): 3, ("b@d", "01-x"): 4, ("b@d", "02-embedding-alignment"): 4}
    assert all(job.parameters["eps"] == 0.25 for job in grid.jobs(content))


def test_the_order_of_lines_and_a_given_default_are_no_new_parameters(small):
    one = grid.jobs(small | {"parameters": {"limit": 1, "eps": 0.25}})
    other = grid.jobs(small | {"parameters": {"precision": "fp32", "eps": 0.25, "limit": 1}})
    assert [job.arguments for job in one] == [job.arguments for job in other]


def test_a_chapter_waits_only_for_chapters_of_the_grid(small):
    alone = grid.jobs(small | {"chapters": ["03-jacobian-spectra"]})
    assert {job.before for job in alone} == {()}
    both = grid.jobs(small | {"chapters": ["02-embedding-alignment", "03-jacobian-spectra"]})
    assert [job.before for job in both[:2]] == [(), ("02-embedding-alignment",)]


def test_jobs_ask_for_a_gpu_unless_they_run_on_the_cpu(small):
    content = small | {"resources": {"threads": 2, "01-x": {"runtime": 9}}, "models": [{"name": "a", "device": "auto"}]}
    first, second = grid.jobs(content)
    assert first.resources == {"threads": 2, "gpu": 1, "mem_mb": 16_000, "runtime": 9}
    assert second.resources["runtime"] == 240
    assert grid.jobs(small)[0].resources["gpu"] == 0


def test_arguments_of_a_job_come_back_as_they_were(small, monkeypatch):
    value = {"limit": 3, "eps": 1e-5, "precision": "it's", "device": ""}
    job = grid.jobs(small | {"parameters": value})[0]
    shown = "import sys; print('\\0'.join(sys.argv[1:]))"
    words = subprocess.run(
        f"{sys.executable} -c {grid.shlex.quote(shown)} {job.arguments}", shell=True, capture_output=True, text=True
    ).stdout.rstrip("\n").split("\0")  # fmt: skip
    pairs = [words[i + 1 : i + 3] for i in range(0, len(words), 3)]
    assert run.read_parameters([], pairs) == job.parameters


def test_a_gpu_that_is_not_there_is_told_before_anything_runs(small, monkeypatch):
    found = grid.jobs(small | {"parameters": {"device": "cuda"}})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(grid.GridError, match="device is 'cuda' for tabletop-base@tabletop, and this machine has no"):
        grid.check_place(found)
    grid.check_place(found, local=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    grid.check_place(found)


def test_a_results_folder_that_cannot_be_written_is_told_before_anything_runs(small, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "file" / "results"))
    with pytest.raises(grid.GridError, match=r"file/results' cannot be written \(Not a directory\)"):
        grid.check_place(grid.jobs(small))

    def read_only(self, *_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(grid.GridError, match=r"results' cannot be written \(Read-only file system\)"):
        grid.check_place(grid.jobs(small))


def test_the_grid_that_comes_with_the_project_is_right():
    content = grid.read_grid(ROOT / "workflow" / "sweep.yaml")
    grid.check_names(content)
    assert len(grid.jobs(content)) == 2


@pytest.mark.skipif(
    shutil.which("sbatch") is None or importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="needs a Slurm cluster and snakemake-executor-plugin-slurm",
)
def test_slurm_runs_the_grid(fakes, tmp_path):
    content = {"models": ["tabletop-base"], "datasets": ["tabletop"], "chapters": list(CHAPTERS)}
    sweep = Sweep(tmp_path, content | {"notebooks": str(fakes), "resources": {"mem_mb": 500, "runtime": 10}})
    (tmp_path / "tabletop-base@tabletop-01-x.fail").touch()
    ask = ("--slurm-status-command", "squeue")  # sacct knows no job where accounting is off
    status, output = sweep.run(*ask, profile="slurm")
    assert status != 0 and "2 of 3 results are there." in output, output
    assert sweep.done() == {f"tabletop-base@tabletop/{chapter}" for chapter in CHAPTERS[1:]}
    (tmp_path / "tabletop-base@tabletop-01-x.fail").unlink()
    sweep.started()
    assert sweep.run(*ask, profile="slurm")[0] == 0 and sweep.started() == ["tabletop-base@tabletop/01-x"]
