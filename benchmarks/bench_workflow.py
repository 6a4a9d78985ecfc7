"""What a user waits for: `python benchmarks/bench_workflow.py sweep`, `family` or `book`.

`sweep` runs one grid of twelve small jobs on one core and on two, in turns, each time from an empty cache.
`family` evaluates all embedded models as chapter 19 does, in one process of one thread and in one a core, from an
empty cache. `book` runs `make book` in a fresh clone from an empty cache, then with nothing changed, then with one
notebook changed, and says which chapters ran again.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import yaml

import zsr_utils as zsr
from zsr_utils import run
from zsr_utils.experiments import model_trends


ROOT = Path(__file__).resolve().parents[1]
JOBS = 12
TOLERANCE = 1e-3  # absolute: threads change the order of sums
REBUILD = "05-representation-drift"  # nothing depends on it


def seconds(command: list[str], folder: Path, **variables: Path | str) -> float:
    """Run a command to its end; returns its wall time."""
    began = time.perf_counter()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # notebooks run what this runs in
    environment = os.environ | {"PATH": path} | {k: str(v) for k, v in variables.items()}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.perf_counter() - began


def grid(chapters: list[str]) -> dict:
    """Twelve jobs: embedded models x chapters, sixty images each."""
    models = zsr.models.embedded_models()[: JOBS // len(chapters)]
    few = {"models": [], "limit": 60, "seed": 0}
    return {"models": models, "datasets": ["tabletop"], "chapters": dict.fromkeys(chapters), "parameters": few}


def sweep(options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--workflow-profile", "workflow/profiles/local"]
    ratios = []
    for turn in range(options.rounds):
        taken, numbers = {}, {}
        for cores in (1, 2) if turn % 2 else (2, 1):
            with tempfile.TemporaryDirectory() as place:
                file = Path(place) / "grid.yaml"
                file.write_text(yaml.safe_dump(grid(options.chapters), sort_keys=False))
                results = Path(place) / "results"
                taken[cores] = seconds(
                    [*command, "--configfile", str(file), "--cores", str(cores)],
                    ROOT, ZSR_RESULTS=results, ZSR_CACHE=Path(place) / "cache", ZSR_PROGRESS="0",
                )  # fmt: skip
                found = sorted(results.glob("*/*/metrics.json"))
                numbers[cores] = [[(m["name"], m["value"]) for m in json.loads(f.read_text())] for f in found]
        assert len(numbers[1]) == JOBS and numbers[1] == numbers[2], "other results on two cores"
        ratios.append(taken[1] / taken[2])
        print(f"round {turn + 1}: one core {taken[1]:.0f} s, two {taken[2]:.0f} s, {ratios[-1]:.2f} times as fast")
    middle = statistics.median(ratios)
    print(f"{JOBS} jobs on two cores: {middle:.2f} [{min(ratios):.2f}, {max(ratios):.2f}] times as fast as on one")


def members(workers: int, threads: int) -> tuple[float, pd.DataFrame]:
    names = zsr.models.embedded_models()
    shown = run.defaults(ROOT / "notebooks" / "19-model-trends.ipynb")
    world = zsr.load_dataset("tabletop", limit=shown["family_images"], seed=0)
    splits = [s for s in zsr.datasets.tabletop_splits() if s != "validation"]
    shifted = {s: zsr.load_dataset("tabletop", split=s, limit=shown["family_scenes"], seed=0) for s in splits}
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as place:
        os.environ["ZSR_CACHE"] = place
        began = time.perf_counter()
        prompts = zsr.prompts.prompt_set("plain prompt")
        found = model_trends.members(names, world, shifted, prompts, device="cpu", workers=workers)
        return time.perf_counter() - began, model_trends.measurements(found)


def whole_family(options: argparse.Namespace) -> None:
    cores = os.cpu_count()
    many = members(cores, 1)
    print(f"{many[0]:.0f} s in {cores} processes", flush=True)
    one = members(1, 1)
    apart = (many[1].value - one[1].value).abs().max()
    assert apart < TOLERANCE, f"values differ by {apart}"
    n = many[1].model.nunique()
    print(f"{n} models: {many[0]:.0f} s in {cores} processes, {one[0]:.0f} s in one ({one[0] / many[0]:.2f} times)")


def book(options: argparse.Namespace) -> None:
    place = Path(tempfile.mkdtemp(prefix="zsr-bench-"))
    clone = place / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    steps = {"first": None, "nothing changed": None, f"{REBUILD} changed": REBUILD}
    command = ["make", "book", f"RUN={Path(sys.executable).parent}", "VENV=.venv", "--assume-old=.venv/.installed"]
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    try:
        for step, changed in steps.items():
            if changed:
                notebook = clone / "notebooks" / f"{changed}.ipynb"
                notebook.write_text(notebook.read_text().replace("## Summary", "## In short"))
            before = {p: p.stat().st_mtime_ns for p in clone.glob("results/*/*/metrics.json")}
            took = seconds(command, clone, ZSR_CACHE=place / "cache", ZSR_PROGRESS="0", PYTHONPATH=clone)
            now = {p: p.stat().st_mtime_ns for p in clone.glob("results/*/*/metrics.json")}
            again = sorted(p.parent.name for p in now if before.get(p) != now[p])
            print(f"{step}: {took:.0f} s, ran {', '.join(again) or 'no chapter'}", flush=True)
    finally:
        shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["sweep", "family", "book"])
    parser.add_argument("--rounds", type=int, default=3, help="of the sweep")
    parser.add_argument("--chapters", nargs="+", default=["01-zero-shot-baseline"], help="of the sweep")
    options = parser.parse_args()
    {"sweep": sweep, "family": whole_family, "book": book}[options.part](options)


if __name__ == "__main__":
    main()
