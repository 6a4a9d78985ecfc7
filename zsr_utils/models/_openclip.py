"""Any open_clip model, by architecture and tag, hub address or local directory."""

import contextlib
import json
import logging
import pickle
import warnings
from functools import partial
from pathlib import Path

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize

from zsr_utils._text import unknown
from zsr_utils.models._handle import RANDOM_WEIGHTS, Model


ENDINGS = (".safetensors", ".bin", ".pth")  # of the weight files that open_clip looks for in a folder
GELU = {True: "QuickGELU", False: "GELU"}


class ModelUnavailable(RuntimeError):
    """Weights are not here and could not be fetched; the message says what to fetch and where to put it."""


def load(name: str, pretrained: str | None, precision: str) -> Model:
    """Build a handle over `open_clip.create_model_and_transforms(name, pretrained)`, with the checkpoint's own config.

    A bare weight file has none, and the handle's `note` says what activation and preprocessing were assumed.
    """
    pretrained = pretrained or None
    _check(name, pretrained)
    random = pretrained is None and ":" not in name
    file = _weight_file(name, pretrained)
    try:
        with quiet():
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
    size, quick = net.visual.image_size, bool(config.get("quick_gelu"))
    note = RANDOM_WEIGHTS if random else ""
    if file and pretrained and not _config_beside(file):
        note = f"the weight file says nothing of activation and preprocessing: {GELU[quick]}, open_clip's are assumed"
    return Model(
        net, name=name, pretrained=pretrained, image_size=size[0] if isinstance(size, tuple) else size,
        mean=last.mean, std=last.std, transform=Compose(steps), preprocessing=open_clip.get_model_preprocess_cfg(net),
        tokenizer=_tokenizer(name, config), activation="quickgelu" if quick else "gelu", precision=precision,
        config=config, note=note,
    )  # fmt: skip


def _check(name: str, pretrained: str | None) -> None:
    """Refuse an unknown tag, a missing folder, and weights trained with another activation."""
    if ":" in name and pretrained is not None:
        kind = name.split(":", 1)[0]
        raise ValueError(f"pretrained is {pretrained!r}, but {kind}: brings its own weights: allowed is None.")
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"{name}: the folder {str(folder)!r} holds no open_clip_config.json.")
        if not _weight_file(name, None):
            raise ValueError(f"{name}: the folder {str(folder)!r} holds no open_clip_model.safetensors.")
    if pretrained is None:
        return
    built = bool(open_clip.get_model_config(name).get("quick_gelu"))
    if Path(pretrained).is_file():
        _check_file(name, Path(pretrained), built)
        return
    known_tag(name, pretrained, open_clip.list_pretrained_tags_by_model(name))
    trained = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"))
    if trained != built:
        other = name.removesuffix("-quickgelu") if built else f"{name}-quickgelu"
        differ = f"is built with {GELU[built]} but its weights {pretrained!r} were trained with {GELU[trained]}"
        raise ValueError(f"{name} {differ}: load {other!r} instead.")


def known_tag(name: str, tag: str, tags: list[str]) -> None:
    """Refuse a tag that a library does not have, listing the nearest ones."""
    if tag not in tags:
        raise ValueError(unknown(f"tag or weight file of {name}", tag, tags))


def _check_file(name: str, file: Path, built: bool) -> None:
    """Refuse a weight file whose own config, beside it, asks for another activation or preprocessing."""
    own = _config_beside(file) or {}
    asked, defaults = own.get("preprocess_cfg", {}), vars(PreprocessCfg())
    differs = [k for k in asked.keys() & defaults.keys() - {"size"} if json.dumps(asked[k]) != json.dumps(defaults[k])]
    if own and bool(own.get("model_cfg", {}).get("quick_gelu")) != built:
        differs.append(GELU[not built])
    if differs:
        why = f"{str(file)!r} was made for, whose config beside it has its own {', '.join(sorted(differs))}"
        raise ValueError(f"{name} is not what {why}: load 'local-dir:{file.parent}' instead.")


def _config_beside(file: Path) -> dict | None:
    path = file.with_name("open_clip_config.json")
    return json.loads(path.read_text()) if path.is_file() else None


def _weight_file(name: str, pretrained: str | None) -> Path | None:
    """The local file, or folder, that the weights are read from; None for those of a hub or a tag."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        return folder if any(p.suffix in ENDINGS for p in folder.glob("*")) else None
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
    """A state dict from a file, never running code that a pickle may hold."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(broken_weights(file, name, error)) from error
    for key in ("state_dict", "model"):  # training scripts wrap the weights so
        weights = weights.get(key, weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{str(file)!r} holds no tensors by name: allowed is the state dict of {name}.")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _adapt(net: nn.Module) -> None:
    """Give every open_clip model the same calls: raw features, and tokens read through a norm of their width."""
    if isinstance(net, open_clip.CoCa):  # normalises by default, which no other does
        net.encode_image = partial(net.encode_image, normalize=False)
        net.encode_text = partial(net.encode_text, normalize=False)
    pool = getattr(net.visual, "attn_pool", None)
    if pool is not None:
        # its final norm comes after pooling; what tokens pass before it is the norm of the pooler's keys
        net.visual.forward_intermediates = partial(_pooled_by_attention, net.visual.forward_intermediates, pool.ln_k)


def _pooled_by_attention(forward, norm: nn.Module, x: Tensor, *, normalize_intermediates: bool, **options) -> dict:
    passed = forward(x, normalize_intermediates=False, **options)
    maps = passed["image_intermediates"]
    return passed | {"image_intermediates": [norm(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for t in maps]}


def _tokenizer(name: str, config: dict):
    try:
        with quiet():
            return open_clip.get_tokenizer(name)
    except Exception as error:
        wanted = config["text_cfg"].get("hf_tokenizer_name", "")
        if name.startswith("local-dir:"):
            needed = f"it needs the tokenizer.json and tokenizer_config.json of {wanted!r}"
            unreadable = f"the folder holds no tokenizer that can be read ({_reason(error)})"
            raise ValueError(f"{name}: {unreadable}: {needed}.") from error
        source, place = f"the Hugging Face project {wanted!r}", "a local-dir: folder that holds its tokenizer.json"
        raise ModelUnavailable(missing(f"The tokenizer of {name}", source, place, error)) from error


def _unavailable(name: str, pretrained: str | None, error: Exception) -> str:
    if name.startswith("hf-hub:"):
        source, place = f"the Hugging Face project {name.removeprefix('hf-hub:')!r}", "its local-dir: copy as `name`"
    elif pretrained is not None:
        entry = open_clip.get_pretrained_cfg(name, pretrained)
        hub = entry.get("hf_hub", "").rstrip("/")
        source = f"the Hugging Face project {hub!r}" if hub else f"the file {entry.get('url')!r}"
        place = "the weight file as `pretrained`"
    else:
        return f"{name} could not be built: {_reason(error)}"
    return missing(f"{name} {pretrained or ''}".strip(), source, place, error)


def missing(what: str, source: str, place: str, error: Exception) -> str:
    """Where weights or a tokenizer are to be had that could not be fetched."""
    return (
        f"{what} is not on this machine and could not be fetched from {source} ({_reason(error)}). Fetch it where "
        f"there is a network, copy the Hugging Face cache (HF_HOME) here, or pass {place}."
    )


def _reason(error: Exception) -> str:
    return _short((str(error).strip() or type(error).__name__).splitlines()[0], 160)


def _short(text: str, length: int = 120) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


@contextlib.contextmanager
def quiet():
    """open_clip warns about random weights on every build; the handle's `note` says it instead."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
