"""`load_model`: names to handles."""

import random
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import open_clip
import torch

from zsr_utils._text import one_of, unknown
from zsr_utils.models import _openclip, _supervised, _tabletop
from zsr_utils.models._handle import PRECISIONS, RANDOM_WEIGHTS, Model
from zsr_utils.models._weights import fill


Builder = Callable[..., Model]
ENTRY_POINTS = "zsr_utils.models"  # group in which an installed package offers its adapters
_BUILDERS: dict[str, Builder] = {}


def register_model(name: str) -> Callable[[Builder], Builder]:
    """Register `build(name, pretrained, precision) -> Model` for a name, or for a prefix that ends in `:`.

    An installed package needs an entry point of the group `zsr_utils.models` instead; `book/own-model.md` has both.
    """

    def add(builder: Builder) -> Builder:
        _BUILDERS[name] = builder
        return builder

    return add


def known_models() -> list[str]:
    """Every name `load_model` knows; `supervised:` stands for each of timm's and torchvision's classifiers."""
    offered = (point.name for point in metadata.entry_points(group=ENTRY_POINTS))
    every = [*_BUILDERS, *offered, *_tabletop.embedded_models(), _supervised.PREFIX, *open_clip.list_models()]
    return list(dict.fromkeys(every))


def load_model(name: str, pretrained: str | None = None, device: str = "auto", precision: str = "fp32") -> Model:
    """Load a frozen model by name.

    Args:
        name: An embedded model (`tabletop-base`), an open_clip architecture (`ViT-B-32`), an address
            (`hf-hub:org/name`, `local-dir:/folder`), a classifier (`supervised:resnet50`,
            `supervised:torchvision/resnet50`), or the name of an adapter.
        pretrained: The library's tag or a weight file, for architectures only; None gives random weights.
        device: `auto` takes a GPU where there is one; otherwise any torch device name.
        precision: `fp32`, `tf32`, `fp16` or `bf16`. The choice between fp32 and tf32 holds for the process: with fp32,
            also convolutions on a GPU are exact to fp32. Gradients are for fp32: in 16 bits, small ones vanish.

    Raises: ValueError for an unknown name, tag or precision; ModelUnavailable where weights cannot be had or read.
    """
    one_of("precision", precision, PRECISIONS)
    where = resolve_device(device)
    prefix = name.split(":", 1)[0] + ":" if ":" in name else ""
    if builder := _adapter(name) or _adapter(prefix):
        model = builder(name, pretrained, precision)
    elif folder := _tabletop.folder_of(name):
        model = _tabletop.load(name, folder, precision)
    elif name in open_clip.list_models() or prefix in ("hf-hub:", "local-dir:"):
        model = _openclip.load(name, pretrained, precision)
    elif prefix == _supervised.PREFIX:
        model = _supervised.load(name, pretrained, precision)
    else:
        raise ValueError(unknown("model", name, known_models()))
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return model.to(where)


def _adapter(name: str) -> Builder | None:
    """A registered builder, or that of an installed package, which is imported only when asked for."""
    offered = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    if name in _BUILDERS or name not in offered:
        return _BUILDERS.get(name)
    try:
        return offered[name].load()
    except Exception as error:
        raise ValueError(f"The adapter {offered[name].value!r} of {name!r} could not be imported: {error}.") from error


def resolve_device(device: str) -> torch.device:
    """`auto`, or the name of a torch device that must exist here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {device!r}, which this machine does not have; try 'auto' or 'cpu'.") from error
    return torch.device(device)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask for deterministic convolutions."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@register_model("imagebind")
def _imagebind(name: str, pretrained: str | None, precision: str) -> Model:
    """ImageBind's image and text towers: an adapter as a user would write it."""
    try:
        import imagebind
        from imagebind.models.imagebind_model import imagebind_huge
        from imagebind.models.multimodal_preprocessors import SimpleTokenizer
    except ImportError as error:
        how = "pip install git+https://github.com/facebookresearch/ImageBind, and pass its weight file"
        reason = f"imagebind is not installed ({error}): {how} imagebind_huge.pth as `pretrained`."
        raise _openclip.ModelUnavailable(reason) from error
    net, notes = imagebind_huge(pretrained=False), [] if pretrained else [RANDOM_WEIGHTS]
    if pretrained:
        fill(net, Path(pretrained), name, notes)
    words = SimpleTokenizer(bpe_path=str(Path(imagebind.__file__).parent / "bpe" / "bpe_simple_vocab_16e6.txt.gz"))
    scaling = net.modality_postprocessors["text"][1]  # the scale is on the texts there, and clipped
    net.logit_scale = torch.nn.Parameter(scaling.log_logit_scale.detach().clamp(max=np.log(scaling.max_logit_scale)))
    for modality in ("vision", "text"):  # raw features: this package normalises where it compares
        net.modality_postprocessors[modality] = torch.nn.Identity()
    net.encode_image = lambda pixels: net({"vision": pixels})["vision"]
    net.encode_text = lambda tokens: net({"text": tokens})["text"]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    preprocessing = {"image_size": 224, "resize": 224, "interpolation": "bicubic", "mean": mean, "std": std}
    return Model(
        net, name=name, pretrained=pretrained, image_size=224, mean=mean, std=std, precision=precision,
        transform=_supervised.resize_and_crop(preprocessing), preprocessing=preprocessing,
        tokenizer=lambda texts: torch.stack([words(text) for text in texts]),
        note="; ".join(notes),
    )  # fmt: skip
