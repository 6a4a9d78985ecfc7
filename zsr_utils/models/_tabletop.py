"""The embedded models of `data/models`: open_clip local directories like any other, and supervised classifiers."""

from pathlib import Path

import yaml

from zsr_utils._text import one_of
from zsr_utils.models import _openclip, _supervised
from zsr_utils.models._handle import Model


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "data" / "models"
VLMS = ROOT / "data" / "vlms"
LOCAL = "local-dir:"
CONFIGS = ("open_clip_config.json", "config.json")  # with two towers, and supervised


def embedded_models() -> list[str]:
    """Names of the models that come with the project."""
    return sorted({p.parent.name for config in CONFIGS for p in FOLDER.glob(f"*/{config}")})


def training(name: str) -> dict:
    """The config that an embedded model was trained with; `changes` lists where it differs from the default."""
    one_of("embedded model", name, embedded_models())
    # a setting that an older config does not know has the default's value
    files = (ROOT / "tabletop" / "configs" / "default.yaml", FOLDER / name / "training.yaml")
    return {key: value for file in files for key, value in yaml.safe_load(file.read_text()).items()}


def folder_of(name: str) -> Path | None:
    """Where a model of the family lies: an embedded one, or a `local-dir:` whose config names one of our towers."""
    if name in embedded_models():
        return FOLDER / name
    folder = Path(name.removeprefix(LOCAL))
    configs = [folder / config for config in CONFIGS if name.startswith(LOCAL) and (folder / config).is_file()]
    return folder if any('"tabletop_' in config.read_text(errors="replace") for config in configs) else None


def embedded_vlms() -> list[str]:
    """Names of the generative models that come with the project."""
    return sorted(path.parent.name for path in VLMS.glob("*/config.json"))


def vlm_folder(name: str) -> Path | None:
    """Where an embedded generative model lies, its tower made known to timm; None for another name."""
    if name not in embedded_vlms():
        return None
    from tabletop import towers  # noqa: F401

    return VLMS / name


def load(name: str, folder: Path, precision: str) -> Model:
    from tabletop import towers  # registers the image towers with timm

    if (folder / CONFIGS[0]).is_file():
        model = _openclip.load(f"{LOCAL}{folder}", None, precision)
    else:
        model = _supervised.load_folder(folder, towers.build_classifier, precision)
    model.name, model.trained_on = name, "tabletop"
    return model
