"""What a model is trained for: the losses of the family, each with the network that it needs.

A config names one of `OBJECTIVES` as its `loss`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn
from torch.nn import functional as F

from tabletop import tokenizer as words, towers
from tabletop.scene import KINDS


MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std


class Contrastive:
    """Images against captions: an open_clip model, exported in open_clip's local-directory form.

    Args:
        label: The loss in words, for the card.
        function: open_clip's loss; it takes what the model returns.
        model_cfg: Further keys of open_clip's `model_cfg`.
    """

    metric, shown_as = "zero_shot", "Zero-shot accuracy"
    makes, seen = "CLIP model", "Image-caption pairs seen"
    weights = "open_clip_model.safetensors"
    measured = 'zero-shot top-1 over ten kinds with the prompt "a photo of a ..."'

    def __init__(self, label: str, function: nn.Module, **model_cfg: float):
        self.label, self.function, self.model_cfg = label, function, model_cfg

    def build(self, config: dict) -> nn.Module:
        model_cfg = self.open_clip_config(config)["model_cfg"]
        model_cfg.pop("custom_text")
        return open_clip.CustomTextCLIP(**model_cfg)

    def open_clip_config(self, config: dict) -> dict:
        """The contents of `open_clip_config.json`."""
        return {
            "model_cfg": {
                "embed_dim": config["embed_dim"],
                "vision_cfg": {
                    "timm_model_name": config["tower"],
                    "timm_model_pretrained": False,
                    "timm_pool": "avg",
                    "timm_proj": "linear",
                    "image_size": towers.IMAGE_SIZE,
                },
                "text_cfg": {
                    "context_length": words.CONTEXT_LENGTH,
                    "vocab_size": len(words.build()),
                    "hf_tokenizer_name": "tabletop",
                    "tokenizer_kwargs": {"clean": "whitespace"},
                    "pool_type": "eos",
                    "eos_id": words.END,
                    "pad_id": words.PAD,
                    **config["text"],
                },
                "custom_text": True,
                **self.model_cfg,
            },
            "preprocess_cfg": {
                "mean": MEAN,
                "std": STD,
                "interpolation": "bicubic",
                "resize_mode": "shortest",
            },
        }

    def targets(self, kinds: Iterable[str], captions: Sequence[Sequence[str]]) -> Tensor:
        """Token ids of every caption (scenes, captions, length)."""
        tokens = words.encode(words.build(), [text for group in captions for text in group])
        return tokens.view(len(captions), len(captions[0]), -1)

    def loss(self, model: nn.Module, pixels: Tensor, target: Tensor) -> Tensor:
        return self.function(*model(normalise(pixels), target))

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Keep the logit scale between 1 and 100, as CLIP does."""
        model.logit_scale.clamp_(0, math.log(100))

    @torch.no_grad()
    def logits(self, model: nn.Module, device: str):
        """A function from pixels to class scores with the plain prompt `a photo of a {kind}`."""
        texts = words.encode(words.build(), [f"a photo of a {kind}" for kind in KINDS]).to(device)
        weights = model.encode_text(texts, normalize=True)
        return lambda pixels: model.encode_image(normalise(pixels), normalize=True) @ weights.T

    def trunk(self, model: nn.Module) -> nn.Module:
        return model.visual.trunk

    def image_parameters(self, model: nn.Module) -> int:
        return sum(p.numel() for p in model.visual.parameters())

    def write(self, config: dict, folder: Path) -> None:
        """Everything beside the weights that open_clip reads."""
        words.save(folder)
        (folder / "open_clip_config.json").write_text(json.dumps(self.open_clip_config(config), indent=2) + "\n")

    def text_tower(self, config: dict) -> str:
        text, pieces = config["text"], len(words.build())
        return f"{text['layers']} layers of width {text['width']}, own vocabulary of {pieces} pieces"

    def loading(self, name: str) -> str:
        return (
            f'Load it with `zsr_utils.load_model("{name}")`, or with open_clip as `local-dir:data/models/{name}` '
            "after `import tabletop.towers`."
        )


class Supervised:
    """Images against the kind of their object: a timm tower with a linear layer on ten classes."""

    label = "cross-entropy on the kind of the object; captions are not used"
    metric, shown_as = "accuracy", "Accuracy"
    makes, seen = "image classifier", "Images seen"
    weights = "model.safetensors"
    measured = "top-1 over the ten kinds it was trained on"

    def build(self, config: dict) -> nn.Module:
        return towers.build_classifier(config["tower"], len(KINDS))

    def targets(self, kinds: Iterable[str], captions: Sequence[Sequence[str]]) -> Tensor:
        """The label of every scene, once for each caption, so that batches are drawn alike for every loss."""
        labels = torch.tensor([list(KINDS).index(kind) for kind in kinds])
        return labels[:, None].expand(-1, len(captions[0]))

    def loss(self, model: nn.Module, pixels: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(model(normalise(pixels)), target)

    def after_step(self, model: nn.Module) -> None:
        pass

    def logits(self, model: nn.Module, device: str):
        """A function from pixels to class scores."""
        return lambda pixels: model(normalise(pixels))

    def trunk(self, model: nn.Module) -> nn.Module:
        return model

    def image_parameters(self, model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    def write(self, config: dict, folder: Path) -> None:
        """`config.json`: what `towers.build_classifier` and the normalisation need."""
        contents = {
            "tower": config["tower"],
            "class_names": list(KINDS),
            "image_size": towers.IMAGE_SIZE,
            "mean": MEAN,
            "std": STD,
        }
        (folder / "config.json").write_text(json.dumps(contents, indent=2) + "\n")

    def text_tower(self, config: dict) -> str:
        return "none; a linear layer on the ten kinds"

    def loading(self, name: str) -> str:
        return (
            "Build it with `tabletop.towers.build_classifier(tower, len(class_names))` from the values in "
            "`config.json` and load `model.safetensors` into it."
        )


# SigLIP starts from a small scale and a large negative bias, because most pairs in a batch do not match.
SIGLIP_START = {"init_logit_scale": math.log(10), "init_logit_bias": -10}

OBJECTIVES = {
    "clip": Contrastive("symmetric contrastive (CLIP)", ClipLoss()),
    "siglip": Contrastive("pairwise sigmoid (SigLIP)", SigLipLoss(), **SIGLIP_START),
    "supervised": Supervised(),
}


def objective_of(config: dict) -> Contrastive | Supervised:
    """The objective that a config names as its `loss`.

    Examples:
        >>> objective_of({"loss": "siglip"}).label
        'pairwise sigmoid (SigLIP)'

    Raises:
        ValueError: If there is no such loss.
    """
    loss = config["loss"]
    if loss not in OBJECTIVES:
        raise ValueError(f"loss is {loss!r}, allowed are {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[loss]
