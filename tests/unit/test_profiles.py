"""Profiles: every file fits its notebook, and every checkpoint they name is one that open_clip has and we load."""

import sys

import pytest
from torchvision.models import get_model_weights

from zsr_utils import run
from zsr_utils.datasets._sources import NAMES
from zsr_utils.models import embedded_models
from zsr_utils.models._openclip import _check
from zsr_utils.models._supervised import _find


sys.path.insert(0, str(run.ROOT / "workflow"))
import grid


PROFILES = sorted(p.name for p in (run.ROOT / "profiles").iterdir() if p.is_dir())


@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_a_profile_fits_every_notebook(profile, tmp_path):
    (asked := tmp_path / "SEEDBench_IMG.tsv").touch()  # the profile of questions has none of its own
    own = {"dataset": str(asked)} if profile == "questions" else {}
    for job in grid.jobs(grid.of_profile(profile, **own)):
        parameters = run.check(job.notebook, job.parameters)
        assert parameters["dataset"] in (own.values() or NAMES)
        models = [(parameters["model"], parameters.get("pretrained") or None)]
        named = [
            *parameters.get("models", []),
            *(parameters[key] for key in ("judge", "substitute") if key in parameters),
        ]
        models += [tuple(f"{name}@".split("@")[:2]) for name in named]
        for name, tag in models:
            if name not in embedded_models():
                assert tag, f"{name} would have random weights"
                if name.startswith("supervised:"):
                    library, architecture = _find(name)
                    assert library == "torchvision" and tag in get_model_weights(architecture).__members__
                    continue
                _check(name, tag)  # refuses a tag that is unknown, or was trained with another activation


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_files_for_what_differs_alone(profile):
    files = {path.stem: path for path in (run.ROOT / "profiles" / profile).iterdir()}
    assert files.keys() <= {"common", *grid.read_chapters()}
    for name, path in files.items():
        own = run.read_parameters([path], [])
        assert own, f"{path} says nothing"
        if name != "common":
            usual = run.defaults(run.ROOT / "notebooks" / f"{name}.ipynb")
            assert not [key for key, value in own.items() if usual[key] == value], f"{path} repeats a default"


def test_the_full_run_of_tabletop_goes_to_a_folder_of_its_own():
    found = {job.chapter: job for job in grid.jobs(grid.of_profile("tabletop-full"))}
    assert {job.folder.parent for job in found.values()} == {run.ROOT / "results/tabletop-full/tabletop-base@tabletop"}
    job = found["02-embedding-alignment"]
    pairs = run.check(job.notebook, job.parameters)
    assert pairs["number"] == 0 and pairs["per_class"] * 10 * 9 >= 900
