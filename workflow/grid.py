"""A grid of models, data sets and chapters as jobs, checked before anything runs.

`python workflow/grid.py my-sweep.yaml` checks a grid and says what it would run; `workflow/Sweep` runs it.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from zsr_utils._text import unknown
from zsr_utils.records import result_folder, results_root
from zsr_utils.run import ParameterError, check, defaults, gpus


ROOT = Path(__file__).resolve().parents[1]
NEEDS = yaml.safe_load((ROOT / "workflow" / "needs.yaml").read_text())
KEYS = ("models", "datasets", "chapters", "parameters", "exclude", "resources", "notebooks")
RESOURCES = {"threads": 1, "gpu": None, "mem_mb": 16_000, "runtime": 240}  # a GPU unless device is cpu; minutes
EXCLUDABLE = ("model", "pretrained", "dataset", "chapter")
NAMED = ("model", "pretrained", "dataset")  # parameters that the lists of models and data sets set


class GridError(ValueError):
    """A grid that cannot be run; the message is one sentence."""


@dataclass(frozen=True)
class Job:
    """One notebook with one model on one data set.

    Attributes:
        chapter: Stem of the notebook.
        notebook: Its path.
        parameters: Model, tag and data set, and those that differ from the notebook's defaults, by name: the order
            of lines in a grid is no reason to run a job again.
        resources: `threads`, `gpu` (number), `mem_mb` and `runtime` (minutes).
        before: Chapters of the same model and data set that this one waits for.
    """

    chapter: str
    notebook: Path
    parameters: dict
    resources: dict
    before: tuple[str, ...]

    @property
    def pretrained(self) -> str | None:
        return self.parameters.get("pretrained") or None

    @property
    def folder(self) -> Path:
        return result_folder(self.parameters["model"], self.parameters["dataset"], self.chapter, self.pretrained)

    @property
    def pair(self) -> str:
        return self.folder.parent.name

    @property
    def arguments(self) -> str:
        """The parameters as `zsr_utils.run` takes them on a command line."""
        return " ".join(f"-p {name} {shlex.quote(_as_yaml(value))}" for name, value in self.parameters.items())


def jobs(grid: dict) -> list[Job]:
    """Every job of a grid, in the order of its lists.

    Args:
        grid: What the YAML file holds; `workflow/README.md` describes it. A parameter of the whole grid, of a
            data set or of a model goes to the chapters that have it, one of a chapter must be the chapter's.
            Later ones win: grid, data set, chapter, model.

    Raises:
        GridError: If a key, chapter, parameter or resource is unknown, a value has the wrong type, an
            exclusion matches nothing, or two jobs would write to one folder.

    Examples:
        >>> grid = {"models": ["tabletop-base"], "datasets": ["tabletop"], "chapters": ["01-zero-shot-baseline"]}
        >>> [job.pair for job in jobs(grid | {"parameters": {"limit": 60}})]
        ['tabletop-base@tabletop']
    """
    _known_keys(grid)
    folder = ROOT / (grid.get("notebooks") or "notebooks")
    models, datasets = (_entries(grid, key) for key in ("models", "datasets"))
    chapters = _chapters(grid, folder)
    resources = _resources(grid, chapters)
    everywhere = _mapping(grid.get("parameters"), "parameters")
    parts = [("parameters", everywhere), *(("models", m) for m in models), *(("datasets", d) for d in datasets)]
    for where, given in parts:
        _somewhere(where, given, chapters)
    exclude = _exclusions(grid)
    found: list[Job] = []
    used: set[int] = set()
    for model in models:
        for dataset in datasets:
            for chapter, (notebook, own) in chapters.items():
                facts = {"model": model["name"], "pretrained": model.get("pretrained") or ""}
                facts |= {"dataset": dataset["name"], "chapter": chapter}
                hit = {i for i, rule in enumerate(exclude) if rule.items() <= facts.items()}
                used |= hit
                if hit:
                    continue
                known = _defaults(notebook)
                given = {
                    **_of(everywhere, known), **_of(dataset, known), **own, **_of({"pretrained": ""} | model, known),
                    "model": model["name"], "dataset": dataset["name"],
                }  # fmt: skip
                try:
                    merged = check(notebook, given)
                except ParameterError as error:
                    raise GridError(str(error)) from error
                wanted = resources | _mapping(grid.get("resources"), "resources").get(chapter, {})
                if wanted["gpu"] is None:
                    wanted["gpu"] = int(merged.get("device") != "cpu")
                wanted = {name: wanted[name] for name in RESOURCES}
                kept = {n: given[n] for n in sorted(given) if n in NAMED or given[n] != known[n]}
                found.append(Job(chapter, notebook, kept, wanted, tuple(NEEDS.get(chapter, ()))))
    for i, rule in enumerate(exclude):
        if i not in used:
            raise GridError(f"exclude: {_shown(rule)} matches no job of the grid.")
    _one_folder_each(models, datasets)
    if not found:
        raise GridError("The grid has no job: every one is excluded.")
    there = {(job.pair, job.chapter) for job in found}
    return [
        Job(j.chapter, j.notebook, j.parameters, j.resources, tuple(b for b in j.before if (j.pair, b) in there))
        for j in found
    ]


def check_place(found: Iterable[Job], *, local: bool = True) -> None:
    """Refuse a results folder that cannot be written, and a local run on a GPU that is not there.

    Raises:
        GridError: With what is missing.
    """
    root = results_root()
    probe = root / f".writable.{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise GridError(
            f"The results folder {str(root)!r} cannot be written ({error.strerror}): "
            "set ZSR_RESULTS to one that can, or mend it."
        ) from error
    if local and not gpus():
        for job in found:
            device = job.parameters.get("device") or _defaults(job.notebook).get("device") or ""
            if device.startswith("cuda"):
                raise GridError(
                    f"device is {device!r} for {job.pair}, and this machine has no GPU: "
                    "take device 'auto' or 'cpu', or an executor whose nodes have one."
                )


def check_names(grid: dict) -> None:
    """Refuse models and data sets that nobody knows; loads torch only for names that do not come with the project.

    Raises:
        GridError: With the nearest known names.
    """
    models, datasets = _entries(grid, "models"), _entries(grid, "datasets")
    models += [
        dict(zip(("name", "pretrained"), address.split("@", 1)))
        for part in (grid.get("parameters") or {}, *_chapter_entries(grid).values(), *models, *datasets)
        for address in part.get("models") or ()
    ]
    doubtful = [m for m in models if m.get("pretrained") or not (ROOT / "data" / "models" / m["name"]).is_dir()]
    if doubtful:
        import open_clip

        from zsr_utils.models import known_models

        known = known_models()
        for model in doubtful:
            name, tag = model["name"], model.get("pretrained")
            prefix = name.split(":", 1)[0] + ":"
            if name not in known and not (":" in name and prefix in (*known, "hf-hub:", "local-dir:")):
                raise GridError(unknown("model", name, known))
            tags = open_clip.list_pretrained_tags_by_model(name)
            if tag and tags and tag not in tags and not Path(tag).is_file():
                raise GridError(unknown(f"pretrained tag of {name}", tag, tags))
    foreign = [d for d in datasets if d["name"] != "tabletop"]
    if foreign:
        from zsr_utils.datasets import load_dataset

        for dataset in foreign:
            split = _of((grid.get("parameters") or {}) | dataset, {"split"})
            try:
                load_dataset(dataset["name"], limit=1, **split)
            except (ValueError, OSError) as error:
                raise GridError(str(error)) from error


def report(found: list[Job], logs: Path, since: float) -> list[str]:
    """What became of the jobs: a sentence for each that has no result, and how many have one.

    Args:
        found: From `jobs`.
        logs: Folder with one log a job, `<pair>/<chapter>.log`.
        since: When the sweep began, in seconds since the epoch: an older log is of another sweep.
    """
    lines, done = [], 0
    for job in found:
        log = logs / job.pair / f"{job.chapter}.log"
        if (job.folder / f"{job.chapter}.ipynb").is_file() and (job.folder / "metrics.json").is_file():
            done += 1
        elif log.is_file() and log.stat().st_mtime >= since:
            last = (log.read_text(errors="replace").strip().splitlines() or ["killed before it said anything"])[-1]
            kept = job.folder / "failed" / f"{job.chapter}.ipynb"
            traceback = f" Its traceback is in {kept}." if kept.is_file() and kept.stat().st_mtime >= since else ""
            lines.append(f"{job.pair}: failed: {last}{traceback}")
        else:
            waits = f" It waits for {', '.join(job.before)}." if job.before else ""
            lines.append(f"{job.pair}: {job.chapter} was not run.{waits}")
    return [*lines, f"{done} of {len(found)} results are there."]


def read_grid(path: Path) -> dict:
    """The content of a grid file.

    Raises:
        GridError: If it is missing or no YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise GridError(f"The grid {str(path)!r} cannot be read ({' '.join(str(error).split())}).") from error
    return _mapping(content, str(path))


@lru_cache
def _defaults(notebook: Path) -> dict:
    try:
        return defaults(notebook)
    except ParameterError as error:
        raise GridError(str(error)) from error


def _known_keys(grid: dict) -> None:
    for key in grid:
        if key not in KEYS:
            raise GridError(unknown("key of a grid", key, KEYS))
    for key in KEYS[:3]:
        if not grid.get(key):
            raise GridError(f"The grid has no {key}: models, datasets and chapters need one entry each at least.")


def _mapping(content, where: str) -> dict:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise GridError(f"{where} is {content!r}, allowed are 'name: value' lines.")
    return content


def _entries(grid: dict, key: str) -> list[dict]:
    """Entries of a list as mappings: a bare name stands for `name: …`."""
    content = grid[key]
    if not isinstance(content, list):
        raise GridError(f"{key} is {content!r}, allowed is a list of names, or of mappings with a name.")
    found = [{"name": entry} if isinstance(entry, str) else entry for entry in content]
    for entry in found:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise GridError(f"{key}: {entry!r} has no name.")
    return found


def _chapter_entries(grid: dict) -> dict[str, dict]:
    content = grid["chapters"]
    if isinstance(content, list):
        content = dict.fromkeys(content)
    return {name: _mapping(own, name) for name, own in _mapping(content, "chapters").items()}


def _chapters(grid: dict, folder: Path) -> dict[str, tuple[Path, dict]]:
    known = {p.stem: p for p in sorted(folder.glob("*.ipynb"))}
    if not known:
        raise GridError(f"There are no notebooks in {str(folder)!r}.")
    found = {}
    for name, own in _chapter_entries(grid).items():
        if name not in known:
            raise GridError(unknown("chapter", str(name), known))
        for parameter in own:
            if parameter in NAMED:
                raise GridError(f"{name}: parameter {parameter!r} is set by the lists of models and data sets alone.")
        found[name] = known[name], own
    return found


def _resources(grid: dict, chapters: Iterable[str]) -> dict:
    """The default resources, after all of them were checked."""
    given = _mapping(grid.get("resources"), "resources")
    for name, value in given.items():
        inner = _mapping(value, name).items() if name in chapters else [(name, value)]
        for resource, amount in inner:
            if resource not in RESOURCES:
                raise GridError(unknown("resource", str(resource), [*RESOURCES, *chapters]))
            least = 0 if resource == "gpu" else 1
            if type(amount) is not int or amount < least:
                raise GridError(f"{resource} is {amount!r}, allowed is a whole number from {least}.")
    return RESOURCES | {name: value for name, value in given.items() if name in RESOURCES}


def _somewhere(where: str, given: dict, chapters: dict[str, tuple[Path, dict]]) -> None:
    """Refuse a parameter that no chapter of the grid has."""
    known = {name for notebook, _ in chapters.values() for name in _defaults(notebook)}
    allowed = {"models": {"name", "pretrained"}, "datasets": {"name"}}.get(where, set())
    for name in given:
        if name in allowed:
            continue
        if name in NAMED:
            raise GridError(f"{where}: parameter {name!r} is set by the lists of models and data sets alone.")
        if name not in known:
            raise GridError(f"{where}: {unknown('parameter', str(name), known)}")


def _of(given: dict, known: Iterable[str]) -> dict:
    return {name: value for name, value in given.items() if name in known}


def _exclusions(grid: dict) -> list[dict]:
    content = grid.get("exclude") or []
    if not isinstance(content, list):
        raise GridError(f"exclude is {content!r}, allowed is a list of mappings.")
    for rule in content:
        for key in _mapping(rule, "exclude"):
            if key not in EXCLUDABLE:
                raise GridError(unknown("key of an exclusion", str(key), EXCLUDABLE))
        if not rule:
            raise GridError("exclude has an empty entry, which would exclude everything.")
    return content


def _one_folder_each(models: list[dict], datasets: list[dict]) -> None:
    """Refuse two entries whose results would have one folder."""
    for what, entries in (("models", models), ("datasets", datasets)):
        seen: dict[str, dict] = {}
        for entry in entries:
            if what == "models":
                folder = result_folder(entry["name"], "x", "x", entry.get("pretrained") or None).parent.name[:-2]
            else:
                folder = result_folder("x", entry["name"], "x").parent.name[2:]
            if folder in seen:
                raise GridError(
                    f"{what}: {_shown(seen[folder])} and {_shown(entry)} write to the same folder {folder!r}: "
                    "keep one, or run the other in a grid of its own with another ZSR_RESULTS."
                )
            seen[folder] = entry


def _shown(entry: dict) -> str:
    return _as_yaml(entry)


def _as_yaml(value) -> str:
    """One line of YAML; unlike JSON, 1e-5 comes back as a number."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python workflow/grid.py", description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, help="YAML file; - reads it from the standard input")
    options = parser.parse_args(arguments)
    try:
        grid = json.load(sys.stdin) if str(options.grid) == "-" else read_grid(options.grid)
        found = jobs(grid)
        check_names(grid)
        if str(options.grid) != "-":  # the sweep itself has checked the place, and knows its executor
            check_place(found, local=False)
    except GridError as error:
        print(error, file=sys.stderr)
        return 2
    for job in found:
        print(job.pair, job.chapter, job.arguments)
    print(f"{len(found)} jobs.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
