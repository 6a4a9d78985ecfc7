"""What a model is trained for: the losses of the family, each with the network that it needs.

A config names one of `OBJECTIVES` as its `loss`.
"""

import copy
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
    origin = "trained from scratch"
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

    def begin(self, model: nn.Module) -> None:
        """What is to be done before the first step, and again before a training goes on."""

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


class Continued(Contrastive):
    """A CLIP member trained further, all its weights, on other images or captions.

    Args:
        start: Name of the member that it starts from.
        loss: A contrastive one of `OBJECTIVES`.
        plan: Samples, learning rate, images, captions and the like; `tabletop.train` reads them.

    Raises:
        ValueError: If there is no such loss.
    """

    seen = "Image-caption pairs seen in fine-tuning"

    def __init__(self, start: str, loss: str, **plan: object):
        known = {name: o for name, o in OBJECTIVES.items() if isinstance(o, Contrastive)}
        if loss not in known:
            raise ValueError(f"finetune.loss is {loss!r}, allowed are {', '.join(known)}, fare.")
        super().__init__(f"{known[loss].label}; all weights are trained", known[loss].function, **known[loss].model_cfg)
        self.origin = f"fine-tuned from `{start}`, which was trained"


class Robust(Continued):
    """The image tower of a CLIP member, trained so that attacked images keep the embeddings of the clean ones (FARE).

    The loss is the squared L2 distance, averaged over images, between the tower's embedding of the attacked image and
    that which the start gave to the clean one; neither is brought to length one. The attack, as large as `epsilon` in
    every pixel and never outside [0, 1], maximises the same distance. Neither text nor label is used, and the text
    tower stands still, so its embeddings fit the new tower as they did the old one.

    Args:
        start: Name of the member that it starts from.
        loss: `fare`.
        epsilon: Size of the attack, in grey levels (of 255).
        steps: Of the attack, projected gradient ascent on the sign of the gradient from a random start.
        plan: Samples, learning rate and the like; `tabletop.train` reads them.

    Source:
        Schlarmann et al. (2024), Robust CLIP, section 3 and their code. Ours are fewer steps (they have ten of one
        grey level) that together cross the ball, and pictures of the pre-training set in place of ImageNet.

    Raises:
        ValueError: If there is no attack of this size or number of steps.
    """

    seen = "Images seen in fine-tuning"

    def __init__(self, start: str, loss: str, epsilon: float, steps: int, **plan: object):
        if not 0 < epsilon <= 255:
            raise ValueError(f"finetune.epsilon is {epsilon} grey levels, allowed is above 0 and up to 255.")
        if not (isinstance(steps, int) and steps >= 1):
            raise ValueError(f"finetune.steps is {steps}, allowed is a whole number from 1.")
        super().__init__(start, "clip")
        self.epsilon, self.steps = epsilon / 255, steps
        self.label = (
            "squared distance of the embeddings of attacked images to those of the clean ones at the start (FARE), "
            f"attacked in {steps} steps by up to {epsilon:g} of 255 grey levels; the image tower alone is trained"
        )

    def begin(self, model: nn.Module) -> None:
        """Keep the start, whose embeddings are the goal, and free the image tower alone."""
        self.original = copy.deepcopy(model.visual).eval().requires_grad_(False)
        model.requires_grad_(False)
        model.visual.requires_grad_(True)

    def loss(self, model: nn.Module, pixels: Tensor, target: Tensor) -> Tensor:
        model.eval()  # the statistics of batch norms stay: every step of the attack would move them
        with torch.no_grad():
            goal = self.original(normalise(pixels))
        attacked = self.attack(model.visual, pixels, goal)
        return (model.visual(normalise(attacked)) - goal).square().sum(1).mean()

    def attack(self, tower: nn.Module, pixels: Tensor, goal: Tensor) -> Tensor:
        """Images within `epsilon` of `pixels` (batch, 3, height, width) whose embeddings are far from `goal`."""
        low, high = (pixels - self.epsilon).clamp(min=0), (pixels + self.epsilon).clamp(max=1)
        attacked = torch.lerp(low, high, torch.rand_like(pixels))  # at the clean image itself the slope is zero
        for _ in range(self.steps):
            distance = (tower(normalise(attacked.requires_grad_())) - goal).square().sum()
            (slope,) = torch.autograd.grad(distance, attacked)
            attacked = (attacked.detach() + 2 * self.epsilon / self.steps * slope.sign()).clamp(low, high)
        return attacked

    def after_step(self, model: nn.Module) -> None:
        pass


class Supervised:
    """Images against the kind of their object: a timm tower with a linear layer on ten classes."""

    label = "cross-entropy on the kind of the object; captions are not used"
    metric, shown_as = "accuracy", "Accuracy"
    makes, seen = "image classifier", "Images seen"
    weights = "model.safetensors"
    origin = "trained from scratch"
    measured = "top-1 over the ten kinds it was trained on"

    def build(self, config: dict) -> nn.Module:
        return towers.build_classifier(self.tower(config), len(KINDS))

    def tower(self, config: dict) -> str:
        """The name in timm."""
        return config["tower"]

    def targets(self, kinds: Iterable[str], captions: Sequence[Sequence[str]]) -> Tensor:
        """The label of every scene, once for each caption, so that batches are drawn alike for every loss."""
        known = list(KINDS)
        if None in (kinds := list(kinds)):
            raise ValueError(f"the kind of a scene is None, allowed for labels are {', '.join(known)}.")
        labels = torch.tensor([known.index(kind) for kind in kinds])
        return labels[:, None].expand(-1, len(captions[0]))

    def begin(self, model: nn.Module) -> None:
        pass

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
            "tower": self.tower(config),
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
            f'Load it with `zsr_utils.load_model("{name}")`, or build it with '
            "`tabletop.towers.build_classifier(tower, len(class_names))` from the values in `config.json` "
            "and load `model.safetensors` into it."
        )


class FineTuned(Supervised):
    """The zero-shot classifier of a CLIP member, trained on: all its weights, or its head alone (linear probe).

    Args:
        start: Name of the member that it starts from.
        trains: `all` or `head`.
        plan: Samples, learning rate and the like; `tabletop.train` reads them.

    Raises:
        ValueError: If `trains` is something else.
    """

    seen = "Images seen in fine-tuning"

    def __init__(self, start: str, trains: str, **plan: float):
        if trains not in ("all", "head"):
            raise ValueError(f"trains is {trains!r}, allowed are 'all' and 'head'.")
        what = "all weights are" if trains == "all" else "the linear layer alone is"
        self.trains, self.origin = trains, f"fine-tuned from `{start}`, which was trained"
        self.label = f"cross-entropy on the kind of the object in the pre-training scenes; {what} trained"

    def tower(self, config: dict) -> str:
        return f"{config['tower']}_unit"

    def loss(self, model: nn.Module, pixels: Tensor, target: Tensor) -> Tensor:
        if self.trains == "all":
            return super().loss(model, pixels, target)
        model.eval()  # weights without a gradient stand still, but the statistics of batch norms would move
        with torch.no_grad():
            features = model.forward_head(model.forward_features(normalise(pixels)), pre_logits=True)
        return F.cross_entropy(model.head(features), target)

    def text_tower(self, config: dict) -> str:
        return "none; a linear layer on the ten kinds, at the start the embedded prompts times the logit scale"


class Averaged(FineTuned):
    """The weight average of a zero-shot classifier and its fine-tuned end (WiSE-FT); nothing is trained.

    Args:
        start: Name of the member that it starts from.
        end: Name of the member that was fine-tuned from it.
        alpha: Share of the end, from 0 to 1.

    Raises:
        ValueError: If `alpha` is not a share.
    """

    def __init__(self, start: str, end: str, alpha: float):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}, allowed is 0 to 1.")
        self.origin = f"averaged from the weights of `{start}` and `{end}`, which were trained"
        self.label = f"none of its own: {1 - alpha:g} times the start plus {alpha:g} times the end (WiSE-FT)"


# SigLIP starts from a small scale and a large negative bias, because most pairs in a batch do not match.
SIGLIP_START = {"init_logit_scale": math.log(10), "init_logit_bias": -10}

OBJECTIVES = {
    "clip": Contrastive("symmetric contrastive (CLIP)", ClipLoss()),
    "siglip": Contrastive("pairwise sigmoid (SigLIP)", SigLipLoss(), **SIGLIP_START),
    "supervised": Supervised(),
}


def objective_of(config: dict) -> Contrastive | Supervised:
    """The objective that a config names as its `loss`, or what its block `finetune` adds to that training.

    Examples:
        >>> objective_of({"loss": "siglip"}).label
        'pairwise sigmoid (SigLIP)'

    Raises:
        ValueError: If there is no such loss, or fine-tuning is not possible so.
    """
    if how := config.get("finetune"):
        if how.get("loss") == "fare":
            return Robust(**how)
        return (Averaged if "alpha" in how else Continued if "loss" in how else FineTuned)(**how)
    loss = config["loss"]
    if loss not in OBJECTIVES:
        raise ValueError(f"loss is {loss!r}, allowed are {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[loss]
