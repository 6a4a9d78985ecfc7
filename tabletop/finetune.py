"""Fine-tuning: the CLIP model or the classifier that it starts from, and the average of its start and its end."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tabletop import tokenizer as words, towers
from tabletop.scene import KINDS


def starting_point(config: dict, models: Path) -> nn.Module:
    """The network of a `finetune` config before its first step.

    Args:
        config: A training config; its block `finetune` names the member it starts from.
        models: The folder of the finished models.

    Raises:
        ValueError: If a member that it needs has not been trained.
    """
    how = config["finetune"]
    if "loss" in how:
        return clip_network(_finished(config, how["start"], models))
    network = zero_shot_network(_finished(config, how["start"], models))
    if "alpha" in how:
        end = load_file(_finished(config, how["end"], models) / "model.safetensors")
        network.load_state_dict(average(network.state_dict(), end, how["alpha"]))
    return network


def clip_network(folder: Path) -> nn.Module:
    """A CLIP member with both of its towers."""
    return open_clip.create_model(f"local-dir:{folder}").eval()


def zero_shot_network(folder: Path) -> nn.Module:
    """A CLIP member as a classification network: its logits are those of the prompt `a photo of a {kind}`.

    The tower ends with the projection to the embedding and its normalisation; the rows of the head are
    the embedded texts times the logit scale, and its bias is zero.

    Source:
        Wortsman et al. (2022), Robust fine-tuning of zero-shot models, section 3 and their code: the head
        that linear probe and fine-tuning start from. One prompt in place of an ensemble is ours.
    """
    clip = clip_network(folder)
    model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    network = towers.build_classifier(f"{model_cfg['vision_cfg']['timm_model_name']}_unit", len(KINDS))
    texts = words.encode(words.build(), [f"a photo of a {kind}" for kind in KINDS])
    with torch.no_grad():
        head = clip.logit_scale.exp() * clip.encode_text(texts, normalize=True)
    weights = clip.visual.trunk.state_dict()
    weights["fc_norm.0.weight"] = clip.visual.head.proj.weight
    weights |= {"head.weight": head, "head.bias": torch.zeros(len(head))}
    network.load_state_dict(weights)
    return network


def average(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The weights `(1 - alpha) start + alpha end`; running statistics are averaged too, counters are the end's.

    Examples:
        >>> average({"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 8.0])}, 0.25)
        {'w': tensor([0.2500, 5.0000])}

    Source:
        Wortsman et al. (2022), section 3 (WiSE-FT).
    """
    mixed = {key: torch.lerp(start[key].float(), value.float(), alpha) for key, value in end.items()}
    return {key: mixed[key] if value.is_floating_point() else value for key, value in end.items()}


def _finished(config: dict, name: str, models: Path) -> Path:
    if not (models / name / "README.md").is_file():
        raise ValueError(f"{config['name']} needs {name}, which has not been trained yet.")
    return models / name
