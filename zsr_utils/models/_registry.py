"""`load_model`: names to handles."""

import random
from collections.abc import Callable

import numpy as np
import torch

from zsr_utils._text import one_of, unknown
from zsr_utils.models._handle import PRECISIONS, Model


Builder = Callable[..., Model]
_BUILDERS: dict[str, Builder] = {}


def register_model(name: str) -> Callable[[Builder], Builder]:
    """Register `build(name, pretrained, precision) -> Model` for a name, or for a prefix that ends in `:`.

    Examples:
        >>> @register_model("my-model")
        ... def build(name, pretrained, precision):
        ...     raise NotImplementedError
        >>> "my-model" in known_models()
        True
    """

    def add(builder: Builder) -> Builder:
        _BUILDERS[name] = builder
        return builder

    return add


def known_models() -> list[str]:
    """Every name `load_model` knows: registered ones, embedded ones, and open_clip's architectures."""
    import open_clip

    from zsr_utils.models._tabletop import embedded_models

    return [*_BUILDERS, *embedded_models(), *open_clip.list_models()]


def load_model(name: str, pretrained: str | None = None, device: str = "auto", precision: str = "fp32") -> Model:
    """Load a frozen model by name.

    Args:
        name: An embedded model (`tabletop-base`), an open_clip architecture (`ViT-B-32`), an address
            (`hf-hub:org/name`, `local-dir:/folder`), or a registered name.
        pretrained: open_clip's tag or a weight file, for architectures only; None gives random weights
            and says so in `note`.
        device: `auto` takes a GPU where there is one; otherwise any torch device name.
        precision: `fp32`, `fp16` or `bf16`.

    Raises:
        ValueError: If a name, tag, device or precision is unknown; the message lists the nearest ones.
        ModelUnavailable: If weights are not on this machine and cannot be fetched.
    """
    import open_clip

    from zsr_utils.models import _openclip, _tabletop

    one_of("precision", precision, PRECISIONS)
    where = resolve_device(device)
    prefix = name.split(":", 1)[0] + ":" if ":" in name else None
    if name in _BUILDERS or prefix in _BUILDERS:
        model = _BUILDERS[name if name in _BUILDERS else prefix](name, pretrained, precision)
    elif name in _tabletop.embedded_models():
        model = _tabletop.load(name, precision)
    elif name in open_clip.list_models() or prefix in ("hf-hub:", "local-dir:"):
        model = _openclip.load(name, pretrained, precision)
    else:
        raise ValueError(unknown("model", name, known_models()))
    return model.to(where)


def resolve_device(device: str) -> torch.device:
    """`auto` or a torch device name, checked.

    Raises:
        ValueError: If the device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {device!r}, which this machine does not have; try 'auto' or 'cpu'.") from error
    return chosen


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask for deterministic convolutions."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
