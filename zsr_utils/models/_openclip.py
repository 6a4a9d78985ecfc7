"""Any open_clip model, by architecture and tag, hub address or local directory."""

import contextlib
import io
import logging
from pathlib import Path

from torchvision.transforms import Compose, Normalize

from zsr_utils._text import nearest
from zsr_utils.models._handle import Model


class ModelUnavailable(RuntimeError):
    """Weights are not here and could not be fetched; the message says what to fetch and where to put it."""


def load(
    name: str, pretrained: str | None, precision: str, *, shown_as: str | None = None, trained_on: str | None = None
) -> Model:
    """Build a handle over `open_clip.create_model_and_transforms(name, pretrained)`."""
    import open_clip

    pretrained = pretrained or None
    _check(name, pretrained)
    try:
        with _quiet():
            config = open_clip.get_model_config(name)
            net, _, preprocess = open_clip.create_model_and_transforms(name, pretrained)
            tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError) as error:
        raise ModelUnavailable(_unavailable(name, pretrained, error)) from error
    *steps, last = preprocess.transforms
    assert isinstance(last, Normalize), "open_clip's transform ends with the normalisation"
    size = net.visual.image_size
    random = pretrained is None and ":" not in name
    return Model(
        net,
        name=shown_as or name,
        pretrained=pretrained,
        image_size=size[0] if isinstance(size, tuple) else size,
        mean=last.mean,
        std=last.std,
        transform=Compose(steps),
        tokenizer=tokenizer,
        activation="quickgelu" if config.get("quick_gelu") else "gelu",
        precision=precision,
        config=config,
        trained_on=trained_on,
        note="random weights: its accuracies mean nothing" if random else "",
    )


def _check(name: str, pretrained: str | None) -> None:
    """Refuse an unknown tag, a missing folder, and weights trained with another activation."""
    import open_clip

    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"{name}: the folder {str(folder)!r} holds no open_clip_config.json.")
        return
    if pretrained is None or name.startswith("hf-hub:") or Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        close = nearest(pretrained, tags) or tags
        raise ValueError(
            f"Unknown pretrained tag {pretrained!r} for {name}: nearest known tags are {', '.join(close) or 'none'}."
        )
    trained = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"))
    built = bool(open_clip.get_model_config(name).get("quick_gelu"))
    if trained != built:
        word = {True: "QuickGELU", False: "GELU"}
        other = name.removesuffix("-quickgelu") if built else f"{name}-quickgelu"
        raise ValueError(
            f"{name} is built with {word[built]} but its weights {pretrained!r} were trained with {word[trained]}: "
            f"load {other!r} instead."
        )


def _unavailable(name: str, pretrained: str | None, error: Exception) -> str:
    import open_clip

    if name.startswith("hf-hub:"):
        source, place = f"the Hugging Face project {name.removeprefix('hf-hub:')!r}", "its local-dir: copy"
    elif pretrained is not None:
        entry = open_clip.get_pretrained_cfg(name, pretrained)
        hub = entry.get("hf_hub", "").rstrip("/")
        source = f"the Hugging Face project {hub!r}" if hub else f"the file {entry.get('url')!r}"
        place = "the weight file given as `pretrained`"
    else:
        return f"{name} could not be built: {error}"
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return (
        f"The weights of {name} {pretrained or ''} are not on this machine and could not be fetched from {source} "
        f"({reason}). Fetch them where there is a network, copy the Hugging Face cache (HF_HOME) here, or pass {place}."
    )


@contextlib.contextmanager
def _quiet():
    """open_clip warns about random weights on every build; the handle's `note` says it instead."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
