"""Weight files, of any of the usual kinds, into networks; and the reason where one is refused."""

import contextlib
import json
import pickletools
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zsr_utils._text import short


FIRST = ("state_dict", "model_state_dict", "model")  # of several state dicts in a file, these in this order
INSIDE = re.compile(r"_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")  # torch's wrappers, at any depth
TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")


class BadWeights(ValueError):
    """A weight file that was refused; the message names it and says why."""


def read_weights(file: Path, name: str, net: nn.Module, notes: list[str]) -> dict[str, Tensor]:
    """The state dict of `net` from a file, never running code that a pickle may hold.

    What training scripts put around it is taken off: the dict that holds it beside other things, and prefixes of names.
    What a reader must know of that goes to `notes`.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
        if head[8:9] == b"{":  # after the length of its header, whatever the file is called
            held = load_file(file)
        else:
            # a training script's options run nothing; what pickle protocol a file has is nobody's concern
            with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings(action="ignore"):
                held = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadWeights(f"{str(file)!r} cannot be read: {error.strerror}.") from error
    except Exception as error:
        raise BadWeights(f"{str(file)!r} {_refusal(file, head, error, name)}.") from error
    found = dict(_state_dicts(held))
    if not found:
        raise BadWeights(f"{str(file)!r} holds no tensors by name: allowed is the state dict of {name}.")
    kept = min(found, key=lambda path: FIRST.index(key) if (key := path.split("/")[0]) in FIRST else len(FIRST))
    if len(found) > 1:
        notes.append(f"of the weight file's state dicts {', '.join(found)}, {kept} was read")
    # DistributedDataParallel, Lightning and averaging put a name before all others
    weights = {INSIDE.sub("", key): value for key, value in found[kept].items() if key != "n_averaged"}
    own = {key.partition(".")[0] for key in net.state_dict()}
    while len(first := {key.partition(".")[0] for key in weights}) == 1 and not first & own and "." in min(weights):
        weights = {key.partition(".")[2]: value for key, value in weights.items()}
    return weights


def _state_dicts(held, path: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict of tensors by name in what a file holds, and where: `model/state_dict`."""
    if isinstance(held, dict) and held and all(isinstance(key, str) for key in held):
        if all(isinstance(value, Tensor) for value in held.values()):
            yield path, held
        else:
            for key, value in held.items():
                yield from _state_dicts(value, f"{path}/{key}".lstrip("/"))


def _refusal(file: Path, head: bytes, error: Exception, name: str) -> str:
    """Why a file cannot be read as weights."""
    reason = " ".join(str(error).split())
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer in place of the weights: fetch them by `git lfs pull`"
    if "TorchScript" in reason:
        return "is a TorchScript program, which is never run: save its state dict"
    if runs := _would_run(file, head, reason):
        return f"would run {runs} while it is read, and was not loaded: save the state dict alone, as safetensors"
    if TEXT.fullmatch(head):
        return f"is a text in place of the weights: {short(' '.join(head.decode(errors='replace').split()), 60)!r}"
    reason = reason.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
    said = short(reason) or type(error).__name__
    return f"cannot be loaded as {name}: cut short, damaged or of another kind ({said})"


def _would_run(file: Path, head: bytes, reason: str) -> str:
    """The first thing that a pickle calls and may not: as torch says it, or in a pickle that torch cannot read."""
    if named := re.search(r"GLOBAL (\S+) (was not|whose module)", reason):
        return named[1]
    texts: list[str] = []
    with contextlib.suppress(ValueError), file.open("rb") as opened:
        for code, value, _ in pickletools.genops(opened if head[:1] == b"\x80" or TEXT.fullmatch(head) else b""):
            if code.name == "STACK_GLOBAL" or (code.name == "GLOBAL" and value.count(" ") == 1):
                return value.replace(" ", ".") if value else ".".join(texts[-2:])
            texts += [value] if isinstance(value, str) else []
    return ""


def fill(net: nn.Module, file: Path, name: str, notes: list[str]) -> None:
    """Load a weight file into a network, every tensor of it."""
    weights = read_weights(file, name, net, notes)
    try:
        net.load_state_dict(weights)
    except Exception as error:
        raise BadWeights(misfit(file, name, net, weights, error)) from error


def misfit(file: Path, name: str, net: nn.Module, weights: dict[str, Tensor], error: Exception) -> str:
    """How the tensors of a file differ from those of a network."""
    own, read = ({key: tuple(value.shape) for key, value in of.items()} for of in (net.state_dict(), weights))
    differ = {
        "missing": [repr(key) for key in own if key not in read],
        "unexpected": [repr(key) for key in read if key not in own],
        "of another shape": [f"{k!r} {read[k]} in place of {own[k]}" for k in own if read.get(k, own[k]) != own[k]],
    }
    said = [f"{len(k)} {how}: {', '.join(k[:2])}{', …' * (len(k) > 2)}" for how, k in differ.items() if k]
    differences = "; ".join(said) or reason_of(error)
    return f"{str(file)!r} holds the weights of another architecture than {name} ({differences})."


def read_config(path: Path) -> dict:
    """A JSON file that holds settings by name."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8-sig")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no JSON file of settings by name: {error}.") from error


def reason_of(error: Exception | str) -> str:
    return short((str(error).strip() or type(error).__name__).splitlines()[0], 160)
