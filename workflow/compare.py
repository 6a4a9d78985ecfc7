"""The chapters of a profile for several models, side by side in one book: `make book MODELS="a b@tag"`."""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml
from grid import ROOT, GridError, check_names, jobs
from report import book, folders

from zsr_utils.records import write_whole


WITHOUT_MODEL = ("19-model-trends",)  # chapters whose numbers do not depend on the model: the first one has them


def grid_of(profile: Path, models: list[str]) -> dict:
    """The grid of a profile's chapters with other models, each `name` or `name@tag`.

    Raises:
        GridError: If the profile does not exist.
    """
    if not profile.is_dir():
        known = ", ".join(sorted(p.name for p in profile.parent.iterdir() if p.is_dir()))
        raise GridError(f"Unknown profile {profile.name!r}: known profiles are {known}.")
    files = {path.stem: yaml.safe_load(path.read_text()) or {} for path in sorted(profile.glob("*.yaml"))}
    common = files.pop("common")
    named = [dict(zip(("name", "pretrained"), model.split("@", 1))) for model in models]
    return {
        "models": named,
        "datasets": [common["dataset"]],
        "chapters": files,
        "parameters": {k: v for k, v in common.items() if k not in ("model", "pretrained", "dataset")},
        "exclude": [
            {"model": m["name"], "chapter": chapter}
            for m in named[1:] for chapter in WITHOUT_MODEL if chapter in files and m["name"] != named[0]["name"]
        ],
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python workflow/compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("profile", help="name of a folder in profiles/")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name, or name@tag")
    options = parser.parse_args(arguments)
    try:
        grid = grid_of(ROOT / "profiles" / options.profile, options.models)
        found = jobs(grid)
        check_names(grid)
        folders(found)  # before hours of measuring
    except GridError as error:
        print(error, file=sys.stderr)
        return 2
    file = ROOT / "_build" / "compared.yaml"
    write_whole(file, lambda p: p.write_text(yaml.safe_dump(grid, sort_keys=False)))
    sweep = ["snakemake", "--snakefile", "workflow/Sweep", "--workflow-profile", "workflow/profiles/local"]
    failed = subprocess.run([*sweep, "--configfile", str(file)], cwd=ROOT).returncode
    return book(found) or failed


if __name__ == "__main__":
    sys.exit(main())
