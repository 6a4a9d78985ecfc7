"""Any open_clip model, by architecture and tag, hub address or local directory."""

import contextlib
import json
import logging
import socket
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import huggingface_hub
import open_clip
from open_clip import factory
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize

from zsr_utils._text import unknown
from zsr_utils.models._handle import RANDOM_WEIGHTS, Model
from zsr_utils.models._weights import BadWeights, misfit, read_config, read_weights, reason_of


ENDINGS = (".safetensors", ".bin", ".pth")  # of the weight files that open_clip looks for in a folder
GELU = {True: "QuickGELU", False: "GELU"}
SECONDS = 10  # a server may be silent


class ModelUnavailable(RuntimeError):
    """Weights are not here and could not be fetched; the message says what to fetch and where to put it."""


def load(name: str, pretrained: str | None, precision: str) -> Model:
    """Build a handle over `open_clip.create_model_and_transforms(name, pretrained)`, with the checkpoint's own config.

    A bare weight file has none, and the handle's `note` says what activation and preprocessing were assumed.
    """
    pretrained = pretrained or None
    _check(name, pretrained)
    random = pretrained is None and ":" not in name
    file = Path(pretrained) if pretrained and Path(pretrained).is_file() else None
    notes = [RANDOM_WEIGHTS] if random else []
    hub = name.startswith("hf-hub:") or bool(pretrained and not file)
    try:
        with quiet(hub), patch.object(factory, "load_checkpoint", partial(_load_checkpoint, name, notes)):
            config = open_clip.get_model_config(name)
            # without require_pretrained, a hub project whose weights cannot be fetched gives random ones
            net, _, preprocess = open_clip.create_model_and_transforms(name, pretrained, require_pretrained=not random)
    except BadWeights:
        raise
    except Exception as error:
        if name.startswith("local-dir:") or not isinstance(error, (OSError, RuntimeError)):
            raise ValueError(f"{name} cannot be built from its config: {reason_of(error)}.") from error
        raise ModelUnavailable(_unavailable(name, pretrained, error)) from error
    *steps, last = preprocess.transforms
    assert isinstance(last, Normalize), "open_clip's transform ends with the normalisation"
    _adapt(net)
    size, quick = net.visual.image_size, bool(config.get("quick_gelu"))
    if file and not _config_beside(file):
        assumed = f"{GELU[quick]}, open_clip's are assumed"
        notes.append(f"the weight file says nothing of activation and preprocessing: {assumed}")
    return Model(
        net, name=name, pretrained=pretrained, image_size=size[0] if isinstance(size, tuple) else size,
        mean=last.mean, std=last.std, transform=Compose(steps), preprocessing=open_clip.get_model_preprocess_cfg(net),
        tokenizer=_tokenizer(name, config), activation="quickgelu" if quick else "gelu", precision=precision,
        config=config, note="; ".join(notes),
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
        if not any(path.suffix in ENDINGS for path in folder.glob("*")):
            raise ValueError(f"{name}: the folder {str(folder)!r} holds no open_clip_model.safetensors.")
        read_config(folder / "open_clip_config.json")
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
    """Refuse a tag that a library does not have, listing the nearest ones, and a file that is not there."""
    if tag not in tags:
        if Path(tag).is_dir():
            raise ValueError(f"{name}: {tag!r} is a folder, allowed is a weight file.")
        if "/" in tag or Path(tag).suffix:
            raise ValueError(f"{name}: there is no weight file {tag!r}.")
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
    return read_config(path) if path.is_file() else None


def _load_checkpoint(name: str, notes: list[str], net: nn.Module, path: str, **options):
    """open_clip's own function, which renames and interpolates, over `read_weights`."""
    if Path(path).suffix in (".npz", ".npy"):
        return open_clip.load_checkpoint(net, path, **options)
    weights = read_weights(Path(path), name, net, notes)
    if not hasattr(net, "positional_embedding") and "positional_embedding" in weights:
        weights = factory.convert_to_custom_text_state_dict(weights)
    notes.extend(_interpolated(net, weights))
    try:
        with patch.object(factory, "load_state_dict", lambda *_, **__: dict(weights)):
            return open_clip.load_checkpoint(net, path, **options)
    except Exception as error:
        raise BadWeights(misfit(Path(path), name, net, weights, error)) from error


def _interpolated(net: nn.Module, weights: dict[str, Tensor]) -> Iterator[str]:
    """What open_clip will interpolate on load: the position embedding of the picture, and that of the text."""
    own = net.state_dict()
    for key in {"visual.positional_embedding", "positional_embedding", "text.positional_embedding"} & own.keys():
        sizes = [f"{len(table)} tokens" for table in (weights.get(key, own[key]), own[key])]
        if key.startswith("visual.") and hasattr(net.visual, "patch_size"):
            sides = [round((int(size.split()[0]) - 1) ** 0.5) for size in sizes]  # beside the class token
            sizes = [f"{n} × {n} patches ({n * net.visual.patch_size[0]} px)" for n in sides]
        if sizes[0] != sizes[1]:
            yield f"position embedding interpolated from the weights' {sizes[0]} to the model's {sizes[1]}"


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
        with quiet(hub="hf_tokenizer_name" in config["text_cfg"] and not name.startswith("local-dir:")):
            return open_clip.get_tokenizer(name)
    except Exception as error:
        wanted = config["text_cfg"].get("hf_tokenizer_name", "")
        if name.startswith("local-dir:"):
            needed = f"it needs the tokenizer.json and tokenizer_config.json of {wanted!r}"
            unreadable = f"the folder holds no tokenizer that can be read ({reason_of(error)})"
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
        return f"{name} could not be built: {reason_of(error)}"
    return missing(f"{name} {pretrained or ''}".strip(), source, place, error)


def missing(what: str, source: str, place: str, error: Exception) -> str:
    """Where weights or a tokenizer are to be had that could not be fetched."""
    return (
        f"{what} is not on this machine and could not be fetched from {source} ({reason_of(error)}). Fetch it where "
        f"there is a network, copy the Hugging Face cache (HF_HOME) here, or pass {place}."
    )


@contextlib.contextmanager
def quiet(hub: bool = False) -> Iterator[None]:
    """open_clip warns about random weights on every build; the handle's `note` says it instead.

    Where the Hugging Face hub is needed and cannot be reached, its cache alone is asked: the libraries would try long.
    """
    settings, offline = huggingface_hub.constants, ""
    if hub and not settings.HF_HUB_OFFLINE:
        try:
            huggingface_hub.get_session().head(settings.ENDPOINT, timeout=SECONDS)
        except Exception as error:
            offline = f"{settings.ENDPOINT} cannot be reached: {reason_of(error)}"
    before = logging.root.manager.disable, socket.getdefaulttimeout()
    logging.disable(logging.ERROR)  # what the libraries log as an error is raised too
    socket.setdefaulttimeout(SECONDS)
    try:
        asked = patch.object(settings, "HF_HUB_OFFLINE", bool(offline) or settings.HF_HUB_OFFLINE)
        with warnings.catch_warnings(action="ignore"), asked:
            yield
    except (OSError, RuntimeError) as error:
        if offline:
            raise OSError(offline) from error
        raise
    finally:
        logging.disable(before[0])
        socket.setdefaulttimeout(before[1])
