"""The embedded models of `data/models`: open_clip local directories like any other."""

from pathlib import Path

from zsr_utils.models._handle import Model


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "data" / "models"


def embedded_models() -> list[str]:
    """Names of the models that come with the project."""
    return sorted(p.parent.name for p in FOLDER.glob("*/open_clip_config.json"))


def load(name: str, precision: str) -> Model:
    import tabletop.towers  # noqa: F401  registers the image towers with timm
    from zsr_utils.models import _openclip

    return _openclip.load(f"local-dir:{FOLDER / name}", None, precision, shown_as=name, trained_on="tabletop")
