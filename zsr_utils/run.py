"""Execute one notebook with parameters, strictly: `python -m zsr_utils.run notebooks/01-….ipynb`.

papermill by itself runs the defaults when a parameter is misspelt; this wrapper refuses. A result appears under
`results/<model>@<data set>/<notebook>/` only when the notebook ran to its end; one that failed is kept with its
traceback in the folder `failed` beside it, and the result of other parameters or images in `earlier`.
"""

import argparse
import getpass
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from zsr_utils._text import check_type, nearest, read_yaml, unknown
from zsr_utils.parameters import check_parameters
from zsr_utils.records import EARLIER, result_folder, write_whole


ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {  # of notebooks, where nothing else is set
    "PYTHONWARNINGS": "ignore::FutureWarning",  # of libraries, with paths of this machine
    # glibc's allocator asks the system for fresh pages for every large tensor; up to these sizes it keeps them (bytes)
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**29),
}


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; the message says why in one sentence."""


def listed(notebook: Path) -> str:
    """The notebook's one cell tagged `parameters`: names, defaults and what they are."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if c["cell_type"] == "code" and "parameters" in c["metadata"].get("tags", [])]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(notebook)!r} is no notebook ({error}).") from error
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name} has {len(tagged)} cells tagged 'parameters', exactly 1 is needed.")
    return "".join(tagged[0]["source"])


def defaults(notebook: Path) -> dict:
    """Values of the notebook's parameters."""
    source, found = listed(notebook), {}
    try:
        exec(compile(source, str(notebook), "exec"), {"__builtins__": {}}, found)
    except Exception as error:
        raise ValueError(f"{notebook.name}: its parameters cell must hold plain values only ({error}).") from error
    return found


def check(notebook: Path, parameters: dict) -> dict:
    """`parameters` over the notebook's defaults, each of the default's type and in its range."""
    known = defaults(notebook)
    for name, value in parameters.items():
        if name not in known:
            close = nearest(name, known) or sorted(known)
            given = f"{notebook.name} has no parameter {name!r} (given value {value!r})"
            raise ValueError(f"{given}: nearest names are {', '.join(close)}.")
        check_type(f"{notebook.name}: parameter {name!r}", value, known[name])
    check_parameters(known | parameters)
    return known | parameters


def check_addresses(given: Iterable[dict]) -> None:
    """Refuse models and data sets that nobody knows; loads torch only for names that do not come with the project."""
    given, embedded = list(given), {folder.name for folder in (ROOT / "data" / "models").glob("tabletop-*")}
    models = {(p["model"], p.get("pretrained", "")) for p in given}
    models |= {m.partition("@")[::2] for p in given for m in p.get("models", ())}
    for name, tag in sorted(model for model in models if model[0] not in embedded or model[1]):
        import open_clip

        from zsr_utils.models import known_models

        prefix, known, tags = name.partition(":")[0], known_models(), open_clip.list_pretrained_tags_by_model(name)
        if name not in known and f"{prefix}:" not in (*known, "hf-hub:", "local-dir:"):
            raise ValueError(unknown("model", name, known))
        if prefix == "local-dir" and not os.path.isdir(name.partition(":")[2]):
            raise ValueError(f"model is {name!r}, and there is no such folder.")
        if tag and (name in embedded or prefix in ("hf-hub", "local-dir")):
            raise ValueError(f"pretrained is {tag!r}, but {name} brings its own weights: allowed is ''.")
        if tag and name in open_clip.list_models() and tag not in tags and not os.path.isfile(tag):
            raise ValueError(unknown(f"pretrained tag of {name}", tag, tags))
    for dataset, split in {(p["dataset"], p.get("split", "validation")) for p in given if p["dataset"] != "tabletop"}:
        from zsr_utils.datasets import load_dataset

        load_dataset(dataset, split, limit=1)


def from_here(parameters: dict) -> dict:
    """Parameters with the whole paths of files and folders: they are the caller's, and a notebook runs elsewhere."""

    def whole(text: str, kind=os.path.isfile) -> str:
        prefix = re.match("(wds:|local-dir:)?", text)[0]
        path = text.removeprefix(prefix)
        return prefix + os.path.abspath(path) if (os.path.isdir if prefix else kind)(path) else text

    found = {name: whole(parameters[name]) for name in ("model", "pretrained", "ids") if name in parameters}
    if "models" in parameters:
        found["models"] = ["@".join(whole(part) for part in name.split("@")) for name in parameters["models"]]
    if os.path.isdir(dataset := parameters.get("dataset", "tabletop").removeprefix("wds:")) and dataset != "tabletop":
        from zsr_utils.datasets import NAMES

        found["dataset"] = dataset if dataset in NAMES else whole(parameters["dataset"], os.path.isdir)
    return parameters | found


def _always(do: Callable[[], object], seconds: float) -> None:
    """Do something every so many seconds, as long as this process runs."""

    def watch():
        while True:
            time.sleep(seconds)
            do()

    threading.Thread(target=watch, daemon=True).start()


def execute(notebook: Path, parameters: dict, *, progress: bool = True) -> Path:
    """Run a notebook and return its executed copy."""
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    merged = check(notebook, parameters) | (parameters := from_here(parameters))
    folder = result_folder(merged["model"], merged["dataset"], notebook.stem, merged.get("pretrained") or None)
    final, failed = folder / notebook.name, folder / "failed" / notebook.name
    working = folder / f".{notebook.stem}.running.ipynb"  # one that a kill left behind is overwritten
    loops = folder.absolute() / ".progress"  # how far the loop of the running cell is
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for name in ("ZSR_RESULTS", "ZSR_CACHE", "ZSR_DATA"):  # places of the caller, too
        os.environ[name] = (os.environ.get(name) and os.path.abspath(os.environ[name])) or ""
    lock, before = FileLock(folder / f".{notebook.stem}.lock"), _earlier(folder)
    os.environ.update({**ENVIRONMENT, **os.environ, "ZSR_BOOK": "1", "ZSR_PROGRESS": str(loops), "PYTHONPATH": path})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except OSError as error:  # Timeout, too
        reason = "another run is writing there: wait until it ends" if isinstance(error, Timeout) else error.strerror
        raise NotebookFailed(f"{str(folder)!r} cannot be written: {reason}.") from error
    try:
        if progress:
            follow(loops)
        execute_notebook(
            notebook, working, parameters, kernel_name="python3", cwd=str(ROOT), progress_bar=progress,
            start_timeout=600,  # on a busy node Python alone may need more than papermill's 60 s
        )  # fmt: skip
        write_whole(final, lambda p: p.write_bytes(working.read_bytes()))
        failed.unlink(missing_ok=True)
        for aside in sorted(_earlier(folder) - before):
            print(f"The result that was there is kept in {str(aside)!r}.", file=sys.stderr)
    except (PapermillExecutionError, DeadKernelError) as error:
        if working.is_file():
            write_whole(failed, lambda p: p.write_bytes(working.read_bytes()))
        if isinstance(error, DeadKernelError):
            killed = f"{notebook.stem} stopped: its process was killed, as happens when memory runs out"
            raise NotebookFailed(f"{killed}; finished batches are kept, so run it again.") from error
        reason = f"{error.ename}: {' '.join(str(error.evalue).split())}"
        raise NotebookFailed(f"{notebook.stem} failed in cell {error.exec_count}: {reason}") from error
    except OSError as error:
        again = "finished batches are kept and no result is half-written, so run it again once that is mended"
        raise NotebookFailed(f"{notebook.stem} stopped: {error.strerror or error}; {again}.") from error
    finally:
        working.unlink(missing_ok=True)
        loops.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
    return final


def _earlier(folder: Path) -> set[Path]:
    """Folders with results that were once in this one, or of another checkpoint of the name."""
    return {*folder.glob(f"{EARLIER}/*"), *folder.parents[1].glob(f"*/{folder.name}")} - {folder}


def follow(file: Path, seconds: float = 1) -> None:
    """Show the last line of a file, as long as this process runs: the bar of a loop inside a long cell."""
    shown = [""]

    def show():
        lines = file.read_text().replace("\r", "\n").split("\n") if file.exists() else []
        if (last := next((line for line in reversed(lines) if line.strip()), shown[0])) != shown[0]:
            print(f"\r{last:<78}", end="", file=sys.stderr, flush=True)
            shown[0] = last

    _always(show, seconds)


def read_parameters(files: list[Path], pairs: list[list[str]], known: dict | None = None) -> dict:
    """Parameters of flat YAML files, later ones first, then of `-p name value`: text where `known` is, else YAML."""
    parameters: dict = {}
    for path in files:
        if not path.is_file():
            raise ValueError(f"The parameter file {str(path)!r} does not exist.")
        content = read_yaml(path)
        if not isinstance(content, dict) or any(isinstance(v, dict) for v in content.values()):
            raise ValueError(f"{path}: a parameter file is a flat list of 'name: value' lines.")
        parameters |= content
    for name, value in pairs:
        try:
            parameters[name] = value if isinstance((known or {}).get(name), str) else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"Parameter {name!r} is {value!r}, which is no YAML value: quote text.") from error
    return parameters


def end_with(process: int, seconds: float = 1) -> None:
    """End this process when `process`, which started it, is gone, as a job of a killed sweep must."""
    _always(lambda: os.getppid() == process or os._exit(1), seconds)


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
    """Wait for a GPU that no other job of this user has, show the notebook that one alone, and give its lock back.

    None where there is no GPU, or Slurm has chosen one for this job.
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
    parser.add_argument("notebook", type=Path, help="its path, such as notebooks/01-zero-shot-baseline.ipynb")
    parser.add_argument("--parameters", action="store_true", help="list the notebook's parameters and run nothing")
    parser.add_argument("-f", "--file", type=Path, action="append", default=[], help="flat YAML file of parameters")
    parser.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter of the notebook, such as -p dataset /photos or -p models '[]'; text is taken as it is",
    )  # fmt: skip
    parser.add_argument("--no-progress", action="store_true", help="show no bar")
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
        if options.parameters:
            print(listed(options.notebook))
            return 0
        parameters = read_parameters(options.file, options.parameter, defaults(options.notebook))
        merged = check(options.notebook, from_here(check(options.notebook, parameters)))
        if not options.parent:  # which has done so
            check_addresses([merged])
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    _lock = own_gpu() if options.gpu else None  # kept until the end
    try:
        print(execute(options.notebook, parameters, progress=not options.no_progress))
    except NotebookFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
