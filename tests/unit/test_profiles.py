"""Profiles: every file fits its notebook, and every checkpoint they name is one that open_clip has and we load."""

from pathlib import Path

import pytest
import yaml

from zsr_utils import run
from zsr_utils.datasets._sources import NAMES
from zsr_utils.models import embedded_models
from zsr_utils.models._openclip import _check


PROFILES = sorted(p for p in (run.ROOT / "profiles").iterdir() if p.is_dir())
NOTEBOOKS = sorted((run.ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_profile_fits_every_notebook(profile, notebook):
    own = profile / f"{notebook.stem}.yaml"
    parameters = run.check(notebook, run.read_parameters([profile / "common.yaml", own], []))
    assert parameters["dataset"] in NAMES
    models = [(parameters["model"], parameters.get("pretrained") or None)]
    models += [tuple(f"{name}@".split("@")[:2]) for name in parameters.get("models", [])]
    for name, tag in models:
        if name not in embedded_models():
            assert tag, f"{name} would have random weights"
            _check(name, tag)  # refuses a tag that is unknown, or was trained with another activation


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)
def test_a_profile_has_no_file_without_a_notebook(profile):
    known = {"common", *(n.stem for n in NOTEBOOKS)}
    assert {p.stem for p in profile.glob("*")} == known
    assert all(isinstance(yaml.safe_load(Path(p).read_text()), dict) for p in profile.glob("*.yaml"))
