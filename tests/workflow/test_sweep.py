"""A sweep runs what is missing, keeps what is done, and says what is wrong before anything runs.

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


ROOT = Path(__file__).resolve().parents[2]

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


@pytest.fixture
def fakes(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for chapter in CHAPTERS:
        cells = [nf.v4.new_code_cell(PARAMETERS), nf.v4.new_code_cell(BODY.replace("CHAPTER", chapter))]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nf.write(nf.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{chapter}.ipynb")
    return folder


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
            f"{bin_}/snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(self.folder),
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
    models = ["tabletop-base", "tabletop-conv"]
    content = {"models": models, "datasets": ["tabletop"], "chapters": list(CHAPTERS), "notebooks": str(fakes)}
    sweep = Sweep(tmp_path, content)
    every = {f"{model}@tabletop/{chapter}" for model in models for chapter in CHAPTERS}
    bad = {"tabletop-base@tabletop/01-x", "tabletop-conv@tabletop/03-jacobian-spectra"}
    marks = [tmp_path / f"{job.replace('/', '-')}.fail" for job in bad]
    for mark in marks:
        mark.touch()

    status, output = sweep.run()
    assert status != 0 and "4 of 6 results are there." in output
    assert sweep.done() == every - bad and set(sweep.started()) == every
    failed = {p.relative_to(sweep.results).parent.parent.as_posix(): p for p in sweep.results.rglob("failed/*.ipynb")}
    assert set(failed) == bad
    for job, path in failed.items():
        (error,) = [o for c in nf.read(path, 4).cells for o in c.get("outputs", ()) if o.output_type == "error"]
        assert (error.ename, error.evalue) == ("AssertionError", "told to fail") and error.traceback
        pair, chapter = job.split("/")
        assert f"{pair}: failed: {chapter} failed in cell 3: AssertionError: told to fail Its traceback" in output
    assert len((sweep.results / "metrics.csv").read_text().splitlines()) == 5, "tables hold what there is"

    for mark in marks:
        mark.unlink()
    status, output = sweep.run()
    assert status == 0 and "6 of 6 results are there." in output
    assert sweep.started() == sorted(bad) and sweep.done() == every
    assert not list(sweep.results.rglob("failed/*.ipynb"))
    assert len((sweep.results / "metrics.csv").read_text().splitlines()) == 7

    file = fakes / "01-x.ipynb"  # an edited notebook
    file.write_text(file.read_text().replace("told to fail", "told so"))
    assert sweep.run()[0] == 0 and sweep.started() == []

    content |= {"exclude": [{"model": models[1]}], "chapters": {"01-x": {"eps": 1e-5}, **dict.fromkeys(CHAPTERS[1:])}}
    sweep.file.write_text(yaml.safe_dump(content))
    assert sweep.run()[0] == 0
    assert sweep.started() == ["tabletop-base@tabletop/01-x"], "other parameters are another measurement"
    (number,) = json.loads((sweep.results / "tabletop-base@tabletop/01-x/metrics.json").read_text())
    assert number["value"] == 1e-5


def test_a_killed_job_and_a_killed_sweep_leave_nothing_half_written_and_a_rerun_goes_on(fakes, tmp_path):
    """The last run has one core, and no two jobs at once: Snakemake 9.15 counted a core twice in such a case."""
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
    assert status != 0 and "Another run is writing to" in output and "Traceback" not in output
    process.kill()
    process.communicate()
    assert all(gone(kernel) for kernel in kernels), "jobs of a killed sweep must end"
    assert sweep.done() == first and set(sweep.started()) == second

    wait.unlink()
    status, output = sweep.run("--cores", "1")
    assert status == 0, output
    assert set(sweep.started()) == second | third and sweep.done() == first | second | third
    written = [nf.read(sweep.results / job / f"{Path(job).name}.ipynb", 4).metadata.papermill for job in second | third]
    times = sorted((one.start_time, one.end_time) for one in written)
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
