"""Execute one notebook with parameters, strictly: `python -m zsr_utils.run notebooks/01-….ipynb`.

papermill by itself runs the defaults when a parameter is misspelt; this wrapper refuses. A result appears under
`results/<model>@<data set>/<notebook>/` only when the notebook ran to its end; one that failed is kept with its
traceback in the folder `failed` beside it.
"""

import argparse
import getpass
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from zsr_utils._text import nearest
from zsr_utils.records import result_folder, write_whole


ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {  # of notebooks, where nothing else is set
    "PYTHONWARNINGS": "ignore::FutureWarning",  # of libraries, with paths of this machine
    # glibc's allocator asks the system for fresh pages for every large tensor; up to these sizes it keeps them (bytes)
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**29),
}


class ParameterError(ValueError):
    """A notebook cannot take these parameters."""


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; the message says why in one sentence."""


def defaults(notebook: Path) -> dict:
    """Values in the notebook's one cell tagged `parameters`."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if c["cell_type"] == "code" and "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f"{notebook.name} has {len(tagged)} cells tagged 'parameters', exactly 1 is needed.")
    found: dict = {}
    try:
        exec(compile("".join(tagged[0]["source"]), str(notebook), "exec"), {"__builtins__": {}}, found)
    except Exception as error:
        raise ParameterError(f"{notebook.name}: its parameters cell must hold plain values only ({error}).") from error
    return found


def check(notebook: Path, parameters: dict) -> dict:
    """`parameters` over the notebook's defaults, each of the default's type."""
    known = defaults(notebook)
    for name, value in parameters.items():
        if name not in known:
            close = nearest(name, known) or sorted(known)
            given = f"{notebook.name} has no parameter {name!r} (given value {value!r})"
            raise ParameterError(f"{given}: nearest names are {', '.join(close)}.")
        expected = type(known[name])
        if type(value) is not expected and not (expected is float and type(value) is int):
            given = f"{notebook.name}: parameter {name!r} is {value!r} ({type(value).__name__})"
            raise ParameterError(f"{given}, allowed is a value of type {expected.__name__} such as {known[name]!r}.")
    return known | parameters


def execute(notebook: Path, parameters: dict, *, progress: bool = True) -> Path:
    """Run a notebook and return its executed copy."""
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    merged = check(notebook, parameters)
    folder = result_folder(merged["model"], merged["dataset"], notebook.stem, merged.get("pretrained") or None)
    final, failed = folder / notebook.name, folder / "failed" / notebook.name
    working = folder / f".{notebook.stem}.running.ipynb"  # one that a kill left behind is overwritten
    loops = folder.absolute() / ".progress"  # how far the loop of the running cell is
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.update({**ENVIRONMENT, **os.environ, "ZSR_BOOK": "1", "ZSR_PROGRESS": str(loops), "PYTHONPATH": path})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if progress:
            follow(loops)
        execute_notebook(
            notebook, working, parameters, kernel_name="python3", cwd=str(ROOT), progress_bar=progress,
            start_timeout=600,  # on a busy node Python alone may need more than papermill's 60 s
        )  # fmt: skip
        write_whole(final, lambda p: p.write_bytes(working.read_bytes()))
        failed.unlink(missing_ok=True)
    except (PapermillExecutionError, DeadKernelError) as error:
        if working.is_file():
            write_whole(failed, lambda p: p.write_bytes(working.read_bytes()))
        if isinstance(error, DeadKernelError):
            killed = "its process was killed, as happens when memory runs out"
            again = "finished batches are kept, so run it again"
            raise NotebookFailed(f"{notebook.stem} stopped: {killed}; {again}.") from error
        reason = f"{error.ename}: {' '.join(str(error.evalue).split())}"
        raise NotebookFailed(f"{notebook.stem} failed in cell {error.exec_count}: {reason}") from error
    except OSError as error:
        again = "finished batches are kept and no result is half-written, so run it again once that is mended"
        raise NotebookFailed(f"{notebook.stem} stopped: {error.strerror or error}; {again}.") from error
    finally:
        working.unlink(missing_ok=True)
        loops.unlink(missing_ok=True)
    return final


def follow(file: Path, seconds: float = 1) -> None:
    """Show the last line of a file, as long as this process runs: the bar of a loop inside a long cell."""

    def watch():
        shown = ""
        while True:
            time.sleep(seconds)
            lines = file.read_text().replace("\r", "\n").split("\n") if file.exists() else []
            if (last := next((line for line in reversed(lines) if line.strip()), shown)) != shown:
                print(f"\r{last:<78}", end="", file=sys.stderr, flush=True)
                shown = last

    threading.Thread(target=watch, daemon=True).start()


def read_parameters(files: list[Path], pairs: list[list[str]]) -> dict:
    """Parameters of flat YAML files, later ones first in rank, then of `-p name value`."""
    parameters: dict = {}
    for path in files:
        if not path.is_file():
            raise ParameterError(f"The parameter file {str(path)!r} does not exist.")
        content = yaml.safe_load(path.read_text()) or {}
        if not isinstance(content, dict) or any(isinstance(v, dict) for v in content.values()):
            raise ParameterError(f"{path}: a parameter file is a flat list of 'name: value' lines.")
        parameters |= content
    return parameters | {name: yaml.safe_load(value) for name, value in pairs}


def end_with(process: int, seconds: float = 1) -> None:
    """End this process when `process`, which started it, is gone, as a job of a killed sweep must."""

    def watch():
        while os.getppid() == process:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def gpus() -> list[str]:
    """NVIDIA GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        try:
            command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
            visible = ",".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        except (OSError, subprocess.CalledProcessError):
            return []
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


def own_gpu(seconds: float = 1) -> FileLock | None:
    """Wait for a GPU that no other job of this user has on this machine, and show the notebook that one alone.

    Its lock, which the system frees when this process ends, is given back; None where there is no GPU, or Slurm has
    chosen one for this job.
    """
    visible = gpus()
    if not visible or "SLURM_JOB_ID" in os.environ:
        return None
    folder = Path(tempfile.gettempdir())
    while True:
        for name in visible:
            lock = FileLock(folder / f"zsr-{getpass.getuser()}-gpu-{name.replace('/', '-')}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            return lock
        time.sleep(seconds)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.run", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("-f", "--file", type=Path, action="append", default=[], help="flat YAML file of parameters")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--no-progress", action="store_true")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process, the caller, has ended")
    parser.add_argument("--gpu", action="store_true", help="wait for a GPU that no other run with --gpu has")
    options = parser.parse_args(arguments)
    if not options.notebook.is_file():
        close = nearest(options.notebook.name, [p.name for p in (ROOT / "notebooks").glob("*.ipynb")])
        print(f"There is no notebook {str(options.notebook)!r}; nearest are {', '.join(close)}.", file=sys.stderr)
        return 2
    if options.parent:
        end_with(options.parent)
    try:
        parameters = read_parameters(options.file, options.parameter)
        check(options.notebook, parameters)  # before it waits
        lock = own_gpu() if options.gpu else None  # noqa: F841  kept until the end
        print(execute(options.notebook, parameters, progress=not options.no_progress))
    except (ParameterError, NotebookFailed) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, NotebookFailed) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
