"""A grid of models, data sets and chapters as jobs, checked before anything runs.

`python workflow/grid.py my-sweep.yaml` checks a grid and says what it would run; the Snakefile runs it.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from zsr_utils._text import read_yaml, unknown
from zsr_utils.records import read_provenance, result_folder, results_root, set_aside
from zsr_utils.records.chapters import ROOT, chosen, read_chapters, valid
from zsr_utils.run import check, check_addresses, defaults, from_here, gpus, read_parameters


SCHEMA = Path(__file__).with_name("grid.schema.yaml")
RESOURCES = {"threads": 1, "gpu": 1, "mem_mb": 16_000, "runtime": 240}  # no GPU where device is cpu; minutes
WARNING = "] WARNING | "  # of a notebook's process, which is not why it failed
NAMED = ("model", "pretrained", "dataset")  # parameters that the lists of models and data sets set


@dataclass(frozen=True)
class Job:
    """One notebook with one model on one data set.

    Attributes:
        chapter: Stem of the notebook.
        notebook: Its path.
        folder: Where its results go.
        parameters: Model, tag and data set, and those that differ from the notebook's defaults, by name: the order
            of lines in a grid is no reason to run a job again.
        resources: `threads`, `gpu` (number), `mem_mb` and `runtime` (minutes).
        before: Chapters of the same model and data set that this one waits for.
        minutes: From its start to the end of the last chapter that waits for it, as `chapters.yaml` has them.
    """

    chapter: str
    notebook: Path
    folder: Path
    parameters: dict
    resources: dict
    before: tuple[str, ...]
    minutes: float

    @property
    def pair(self) -> str:
        return self.folder.parent.name

    @property
    def done(self) -> bool:
        return all((self.folder / name).is_file() for name in (f"{self.chapter}.ipynb", "metrics.json"))

    @property
    def arguments(self) -> str:
        """The parameters that are not the notebook's own, as `zsr_utils.run` takes them on a command line."""
        given, known = self.parameters, defaults(self.notebook)
        words = {k: v if isinstance(v, str) else _as_yaml(v) for k, v in given.items() if v != known[k]}
        return " ".join(f"-p {k} {shlex.quote(word)}" for k, word in words.items())


def of_profile(profile: str = "", chapters: str = "", model: str = "", dataset: str = "", against: str = "") -> dict:
    """The grid that `make book` runs: chapters, all or those named, of a profile, or of models and a data set named.

    Without a profile the defaults of the notebooks hold, but that a model or data set of one's own is compared with
    others only where the profile says so. The results of a profile have a folder of its name, so that they and those
    of the defaults do not replace each other.

    Args:
        model: Each `name` or `name@tag`, separated by spaces; one with spaces in it stands in quotes.
        dataset: One name or folder.
        against: One more model, which the report card holds the others against.

    Raises:
        ValueError: If `against` is among the models, a profile or chapter is unknown, one of the files is malformed, or
            a profile of questions has no file of them.
    """
    profiles = {folder.name: folder for folder in (ROOT / "profiles").iterdir() if folder.is_dir()}
    if profile and profile not in profiles:
        raise ValueError(unknown("profile", profile, profiles))
    folder = profiles.get(profile)
    given = {path.stem: read_parameters([path], []) for path in folder.glob("*.yaml")} if profile else {}
    known = read_chapters()
    if given and not dataset and all(known.get(name, {}).get("questions") for name in given):
        raise ValueError(f"PROFILE is {profile!r}, which asks a file of questions: DATASET has to name one.")
    own = {name: given.get(name, {}) for name in chosen(chapters, known)}
    common = given.get("common", {})
    usual = defaults(ROOT / "notebooks" / f"{next(iter(own))}.ipynb") | common
    try:
        named = [word.partition("@")[::2] for word in dict.fromkeys(shlex.split(model))]
    except ValueError as error:
        raise ValueError(f"MODEL is {model!r}, and a quotation mark has no partner there.") from error
    if against:
        named = named or [(usual["model"], usual.get("pretrained", ""))]
        if (other := against.partition("@")[::2]) in named:
            raise ValueError(f"AGAINST is {against!r}, the model itself: allowed is another checkpoint.")
        named.append(other)
    whose = (named or [(usual["model"], usual.get("pretrained", ""))], dataset or usual["dataset"])
    of_own = whose != ([(usual["model"], usual.get("pretrained", ""))], usual["dataset"])
    named, dataset = whose
    if not chapters:  # of what nobody asked for by name, what the data set and the first model have an answer to
        if Path(dataset).is_file():  # of questions
            own = {name: its for name, its in own.items() if known[name].get("questions")}
        else:
            own = {name: its for name, its in own.items() if dataset in known[name].get("datasets", [dataset])}
        own = {name: its for name, its in own.items() if named[0][0] in known[name].get("models", [named[0][0]])}
    if of_own and any("models" in defaults(ROOT / "notebooks" / f"{name}.ipynb") for name in own):
        common = {"models": []} | common
    grid = {
        "models": [{"name": model, "pretrained": tag} for model, tag in named],
        "datasets": [dataset],
        "chapters": own,
        "parameters": {name: value for name, value in common.items() if name not in NAMED},
        "exclude": [
            {"model": model, "pretrained": tag, "chapter": name}
            for (model, tag), name in product(named[1:], own)
            if not known[name].get("per_model", True)
        ],
    }
    return grid | ({"results": profile} if profile else {})


def not_for(profile: str = "", chapters: str = "", model: str = "", dataset: str = "", against: str = "") -> list[str]:
    """Chapters that `of_profile` leaves out because they have no answer for the data set or the model."""
    own = of_profile(profile, chapters, model, dataset, against)["chapters"]
    return [name for name in chosen(chapters, read_chapters()) if name not in own]


def jobs(grid: dict) -> list[Job]:
    """Every job of a grid, in the order of its lists.

    Args:
        grid: What the YAML file holds; `workflow/README.md` describes it. A parameter of the whole grid, of a
            data set or of a model goes to the chapters that have it, one of a chapter must be the chapter's.
            Later ones win: grid, data set, chapter, model.

    Raises:
        ValueError: If a key, chapter, parameter or resource is unknown, a value has the wrong type, an
            exclusion matches nothing, or two jobs would write to one folder.

    Examples:
        >>> grid = {"models": ["tabletop-base"], "datasets": ["tabletop"], "chapters": ["01-zero-shot-baseline"]}
        >>> [job.pair for job in jobs(grid | {"parameters": {"limit": 60}})]
        ['tabletop-base@tabletop']
    """
    valid(grid, SCHEMA, "The grid")
    lists = [[{"name": e} if isinstance(e, str) else e for e in grid[key]] for key in ("models", "datasets")]
    chapters = grid["chapters"] if isinstance(grid["chapters"], dict) else dict.fromkeys(grid["chapters"])
    everywhere, amounts, exclude = grid.get("parameters") or {}, grid.get("resources", {}), grid.get("exclude", [])
    notebooks = {path.stem: path for path in sorted((ROOT / grid.get("notebooks", "notebooks")).glob("*.ipynb"))}
    for name in chapters:
        if name not in notebooks:
            raise ValueError(unknown("chapter", name, notebooks))
    takes = {name: defaults(notebooks[name]) for name in chapters}
    _check(takes, {"parameters": [everywhere], "models": lists[0], "datasets": lists[1]}, chapters)
    for name in amounts.keys() - {*RESOURCES, *chapters}:
        raise ValueError(unknown("resource", name, [*RESOURCES, *chapters]))
    root, wanted, used, owners = results_root().absolute() / grid.get("results", ""), {}, [], {}
    for model, dataset, name in product(*lists, chapters):
        facts = {"model": model["name"], "pretrained": model.get("pretrained") or "", "dataset": dataset["name"]}
        named, facts = facts, from_here(facts)
        pair = result_folder(facts["model"], facts["dataset"], "", facts["pretrained"] or None).name
        folder = root / pair / name
        if owners.setdefault(folder.parent, [model, dataset]) != [model, dataset]:
            raise ValueError(
                f"{_as_yaml(owners[folder.parent])} and {_as_yaml([model, dataset])} write to the same folder "
                f"{pair!r}: keep one, or run the other in a grid with another name for its results."
            )
        hit = [rule for rule in exclude if rule.items() <= {**named, "chapter": name}.items()]
        used += hit
        if not hit:
            wanted[folder] = everywhere | dataset | (chapters[name] or {}) | model | facts
    for rule in exclude:
        if rule not in used:
            raise ValueError(f"exclude: {_as_yaml(rule)} matches no job of the grid.")
    if not wanted:
        raise ValueError("The grid has no job: every one is excluded.")
    listed, found = read_chapters(), []
    for folder, given in wanted.items():
        name, known = folder.name, takes[folder.name]
        given = from_here(check(notebooks[name], {key: value for key, value in given.items() if key in known}))
        own = RESOURCES | {"gpu": int(given.get("device") != "cpu")}
        own |= {key: amount for key, amount in amounts.items() if key in own} | amounts.get(name, {})
        kept = {key: given[key] for key in sorted(given) if key in NAMED or given[key] != known[key]}
        needs = listed.get(name, {}).get("needs", ())
        before = tuple(other for other in needs if folder.with_name(other) in wanted)
        found.append(Job(name, notebooks[name], folder, kept, own, before, _minutes(name, listed)))
    return found


def check_place(found: Sequence[Job], *, local: bool = True) -> None:
    """Refuse a results folder that cannot be written, and a local run on a GPU that is not there.

    Raises:
        ValueError: With what is missing.
    """
    root = found[0].folder.parents[1]
    try:
        root.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(root, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise ValueError(f"The results folder {str(root)!r} cannot be written ({reason}): set ZSR_RESULTS to another.")
    for job in found if local and not gpus() else ():
        device = (defaults(job.notebook) | job.parameters).get("device", "")
        if device.startswith("cuda"):
            raise ValueError(
                f"device is {device!r} for {job.pair}, and this machine has no GPU: "
                "take device 'auto' or 'cpu', or an executor whose nodes have one."
            )


def differs(job: Job) -> bool:
    """Whether the result that is there is damaged, or of other parameters."""
    if not (job.folder / "provenance.json").is_file():
        return False
    try:
        return read_provenance(job.folder).get("parameters") not in (None, defaults(job.notebook) | job.parameters)
    except ValueError:
        return True


def make_room(found: Iterable[Job]) -> list[str]:
    """Set results aside that would be replaced by those of other parameters, and say so."""
    other = [job for job in found if differs(job)]
    return [f"{job.pair}: an earlier {job.chapter} is kept in {str(set_aside(job.folder))!r}." for job in other]


def report(found: Sequence[Job], logs: Path, since: float) -> list[str]:
    """What became of the jobs: a sentence for each that has no result, and how many have one.

    Args:
        found: From `jobs`.
        logs: Folder with one log a job, `<pair>/<chapter>.log`.
        since: When the run began, in seconds since the epoch: an older log is of another run.
    """
    lines = []
    for job in found:
        log = logs / job.pair / f"{job.chapter}.log"
        if job.done:
            continue
        if log.is_file() and log.stat().st_mtime >= since:
            written = log.read_text(errors="replace").splitlines()
            said = [line for line in written if line.strip() and WARNING not in line]
            last = (said or [f"{job.chapter} was killed before it said anything"])[-1]
            kept = job.folder / "failed" / f"{job.chapter}.ipynb"
            traceback = f" Its traceback is in {kept}." if kept.is_file() and kept.stat().st_mtime >= since else ""
            lines.append(f"{job.pair}: failed: {last}{traceback}")
        else:
            waits = f" It waits for {', '.join(job.before)}." if job.before else ""
            lines.append(f"{job.pair}: {job.chapter} was not run.{waits}")
    return [*lines, f"{sum(job.done for job in found)} of {len(found)} results are there."]


def _check(takes: dict[str, dict], lists: dict[str, list[dict]], chapters: dict[str, dict | None]) -> None:
    """Refuse parameters that no chapter of the grid has, or not the one they are given to, or that lists set."""
    every = {name for known in takes.values() for name in known} - set(NAMED)
    allowed = {"models": every | {"name", "pretrained"}, "datasets": every | {"name"}}
    for where, entries in {**lists, **{name: [own or {}] for name, own in chapters.items()}}.items():
        known = allowed.get(where, every.intersection(takes.get(where, every)))
        for name in (name for entry in entries for name in entry if name not in known):
            if name in NAMED:
                raise ValueError(f"{where}: parameter {name!r} is set by the lists of models and data sets alone.")
            raise ValueError(f"{where}: {unknown('parameter', name, known)}")


def _minutes(name: str, listed: dict[str, dict]) -> float:
    waiting = (_minutes(other, listed) for other, entry in listed.items() if name in entry.get("needs", ()))
    return listed.get(name, {}).get("minutes", 1) + max(waiting, default=0)


def _as_yaml(value) -> str:
    """One line of YAML; unlike JSON, 1e-5 comes back as a number."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python workflow/grid.py", description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, help="YAML file; - reads it from the standard input")
    options = parser.parse_args(arguments)
    try:
        grid = json.load(sys.stdin) if str(options.grid) == "-" else read_yaml(options.grid)
        found = jobs(grid)
        check_addresses(job.parameters for job in found)
        if str(options.grid) != "-":  # the Snakefile has checked the place, and knows its executor
            check_place(found, local=False)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for job in found:
        print(job.pair, job.chapter, job.arguments)
    print(f"{len(found)} jobs.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
