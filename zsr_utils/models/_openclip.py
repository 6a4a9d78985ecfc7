"""Any open_clip model, by architecture and tag, hub address or local directory."""

import contextlib
import json
import logging
import pickle
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize

from zsr_utils._text import nearest
from zsr_utils.models._handle import Model


ENDINGS = (".safetensors", ".bin", ".pth")  # of the weight files that open_clip looks for in a folder
GELU = {True: "QuickGELU", False: "GELU"}


class ModelUnavailable(RuntimeError):
    """Weights are not here and could not be fetched; the message says what to fetch and where to put it."""


def load(
    name: str, pretrained: str | None, precision: str, *, shown_as: str | None = None, trained_on: str | None = None
) -> Model:
    """Build a handle over `open_clip.create_model_and_transforms(name, pretrained)`.

    Activation and preprocessing are those of the checkpoint's own config: of the tag, the hub project or
    the folder. A bare weight file has none, and the handle's `note` says what was assumed.
    """
    import open_clip

    pretrained = pretrained or None
    _check(name, pretrained)
    random = pretrained is None and ":" not in name
    file = _weight_file(name, pretrained)
    try:
        with _quiet():
            config = open_clip.get_model_config(name)
            # without require_pretrained, a hub project whose weights cannot be fetched gives random ones
            net, _, preprocess = open_clip.create_model_and_transforms(name, pretrained, require_pretrained=not random)
    except Exception as error:
        if file or not isinstance(error, (OSError, RuntimeError)):
            raise ValueError(broken_weights(file or name, name, error)) from error
        raise ModelUnavailable(_unavailable(name, pretrained, error)) from error
    *steps, last = preprocess.transforms
    assert isinstance(last, Normalize), "open_clip's transform ends with the normalisation"
    _adapt(net)
    size = net.visual.image_size
    quick = bool(config.get("quick_gelu"))
    note = "random weights: its accuracies mean nothing" if random else ""
    if file and file == Path(pretrained or "") and not _config_beside(file):
        note = f"the weight file says nothing of activation and preprocessing: {GELU[quick]}, open_clip's are assumed"
    return Model(
        net,
        name=shown_as or name,
        pretrained=pretrained,
        image_size=size[0] if isinstance(size, tuple) else size,
        mean=last.mean,
        std=last.std,
        transform=Compose(steps),
        tokenizer=_tokenizer(name, config),
        activation="quickgelu" if quick else "gelu",
        precision=precision,
        config=config,
        preprocessing=open_clip.get_model_preprocess_cfg(net),
        trained_on=trained_on,
        note=note,
    )


def _check(name: str, pretrained: str | None) -> None:
    """Refuse an unknown tag, a missing folder, and weights trained with another activation."""
    import open_clip

    if ":" in name and pretrained is not None:
        kind = name.split(":", 1)[0]
        raise ValueError(f"pretrained is {pretrained!r}, but {kind}: brings its own weights: allowed is None.")
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"{name}: the folder {str(folder)!r} holds no open_clip_config.json.")
        if _weight_file(name, None) is None:
            raise ValueError(f"{name}: the folder {str(folder)!r} holds no open_clip_model.safetensors.")
        return
    if pretrained is None or name.startswith("hf-hub:"):
        return
    if Path(pretrained).is_file():
        _check_file(name, Path(pretrained))
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
        other = name.removesuffix("-quickgelu") if built else f"{name}-quickgelu"
        raise ValueError(
            f"{name} is built with {GELU[built]} but its weights {pretrained!r} were trained with {GELU[trained]}: "
            f"load {other!r} instead."
        )


def _check_file(name: str, file: Path) -> None:
    """Refuse a weight file whose own config, beside it, asks for another activation or preprocessing."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    own = _config_beside(file)
    if own is None:
        return
    trained, built = (bool(c.get("quick_gelu")) for c in (own.get("model_cfg", {}), open_clip.get_model_config(name)))
    defaults = vars(PreprocessCfg())
    changed = [
        key
        for key, value in own.get("preprocess_cfg", {}).items()
        if key != "size" and key in defaults and json.dumps(value) != json.dumps(defaults[key])
    ]
    if trained != built or changed:
        wrong = (
            f"trained with {GELU[trained]}" if trained != built else f"preprocessing of its own: {', '.join(changed)}"
        )
        raise ValueError(
            f"{name} is not what {str(file)!r} was made for ({wrong}): load 'local-dir:{file.parent}' instead."
        )


def _config_beside(file: Path) -> dict | None:
    path = file.with_name("open_clip_config.json")
    return json.loads(path.read_text()) if path.is_file() else None


def _weight_file(name: str, pretrained: str | None) -> Path | None:
    """The local file, or folder, that the weights are read from; None for those of a hub or a tag."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        return folder if any(p.suffix in ENDINGS for p in folder.iterdir()) else None
    return Path(pretrained) if pretrained and Path(pretrained).is_file() else None


def broken_weights(file: Path | str, name: str, error: Exception) -> str:
    """One sentence for a weight file that was refused."""
    reason = " ".join(str(error).split())
    if "TorchScript" in reason or (isinstance(error, pickle.UnpicklingError) and "Unsupported" in reason):
        what = "holds code or objects beside tensors, which are never run: save its tensors as safetensors"
    elif "loading state_dict" in reason:
        what = f"holds the weights of another architecture than {name} ({_short(reason.split(': ', 1)[-1])})"
    else:
        what = f"cannot be loaded as {name}: truncated or malformed ({_short(reason) or type(error).__name__})"
    return f"{str(file)!r} {what}."


def read_weights(file: Path, name: str) -> dict[str, Tensor]:
    """A state dict from a file, never running code that a pickle may hold.

    Raises:
        ValueError: If the file cannot be read as tensors by name.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(broken_weights(file, name, error)) from error
    for key in ("state_dict", "model"):  # training scripts wrap the weights so
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{str(file)!r} holds no tensors by name: allowed is the state dict of {name}.")
    return {key.removeprefix("module."): value for key, value in found.items()}


def _adapt(net: nn.Module) -> None:
    """Give every open_clip model the same calls: raw features, and tokens read through a norm of their width."""
    from open_clip import CoCa

    if isinstance(net, CoCa):  # normalises by default, which no other does
        net.encode_image = partial(net.encode_image, normalize=False)
        net.encode_text = partial(net.encode_text, normalize=False)
    pool = getattr(net.visual, "attn_pool", None)
    if pool is not None:
        # its final norm comes after pooling; what tokens pass before it is the norm of the pooler's keys
        net.visual.forward_intermediates = partial(_pooled_by_attention, net.visual.forward_intermediates, pool.ln_k)


def _pooled_by_attention(forward, norm: nn.Module, x: Tensor, *, normalize_intermediates: bool = False, **options):
    found = forward(x, normalize_intermediates=False, **options)
    if normalize_intermediates:
        found["image_intermediates"] = [
            norm(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for t in found["image_intermediates"]
        ]
    return found


def _tokenizer(name: str, config: dict):
    import open_clip

    try:
        with _quiet():
            return open_clip.get_tokenizer(name)
    except Exception as error:
        local = name.startswith("local-dir:")
        wanted = config["text_cfg"].get("hf_tokenizer_name", "")
        if local:
            raise ValueError(
                f"{name}: the folder holds no tokenizer that can be read ({_reason(error)}): it needs the "
                f"tokenizer.json and tokenizer_config.json of {wanted!r}."
            ) from error
        raise ModelUnavailable(
            f"The tokenizer of {name} is not on this machine and could not be fetched from the Hugging Face project "
            f"{wanted!r} ({_reason(error)}). Fetch it where there is a network, copy the Hugging Face cache (HF_HOME) "
            f"here, or use a local-dir: folder that holds its tokenizer.json."
        ) from error


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
        return f"{name} could not be built: {_reason(error)}"
    return missing_weights(f"{name} {pretrained or ''}".strip(), source, place, error)


def missing_weights(what: str, source: str, place: str, error: Exception) -> str:
    """Where weights are to be had that could not be fetched."""
    return (
        f"The weights of {what} are not on this machine and could not be fetched from {source} "
        f"({_reason(error)}). Fetch them where there is a network, copy the Hugging Face cache (HF_HOME) here, "
        f"or pass {place}."
    )


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return _short(text.splitlines()[0], 160) if text else type(error).__name__


def _short(text: str, length: int = 120) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


@contextlib.contextmanager
def _quiet():
    """open_clip warns about random weights on every build; the handle's `note` says it instead."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
