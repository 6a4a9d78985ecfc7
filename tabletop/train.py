"""Train an embedded model: `python -m tabletop.train [config.yaml]`.

Renders the pre-training set, trains with open_clip's own loss, resumes from the last checkpoint
after an interruption, and writes the model in open_clip's local-directory form with its card and
learning curve. Runs on the CPU and, unchanged, on a GPU.
"""

import argparse
import copy
import csv
import hashlib
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
import yaml
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import binomtest
from tqdm import tqdm

from tabletop import tokenizer as words, towers
from tabletop.data import VALIDATION_IMAGES, open_images, pretraining_captions, pretraining_images
from tabletop.scene import KINDS, SceneDistribution


ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path(__file__).parent / "configs"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
EVERY = 25_600  # samples between two points of the curve


def read_config(path: Path) -> dict:
    """A training config; `inherits: other.yaml` fills in what it does not name."""
    own = yaml.safe_load(path.read_text())
    base = read_config(path.parent / own.pop("inherits")) if "inherits" in own else {}
    config = copy.deepcopy(base)
    for key, value in own.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key in config else value
    return config


def distribution_of(config: dict) -> SceneDistribution:
    fields = dict(config["distribution"])
    for key, value in fields.items():
        if isinstance(value, list):
            fields[key] = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    return SceneDistribution(**fields)


def open_clip_config(config: dict) -> dict:
    """The contents of `open_clip_config.json`."""
    vocabulary_size = len(words.build())
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
                "vocab_size": vocabulary_size,
                "hf_tokenizer_name": "tabletop",
                "tokenizer_kwargs": {"clean": "whitespace"},
                "pool_type": "eos",
                "eos_id": words.END,
                "pad_id": words.PAD,
                **config["text"],
            },
            "custom_text": True,
        },
        "preprocess_cfg": {
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def build(config: dict) -> torch.nn.Module:
    """An untrained model of this config."""
    model_cfg = open_clip_config(config)["model_cfg"]
    model_cfg.pop("custom_text")
    return open_clip.CustomTextCLIP(**model_cfg)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to four pixels and vary brightness a little."""
    size = pixels.shape[-1]
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4), mode="replicate")
    dy, dx = torch.randint(0, 9, (2,), generator=generator).tolist()
    gain = 1 + 0.12 * (torch.rand(len(pixels), 1, 1, 1, generator=generator) - 0.5)
    return (padded[:, :, dy : dy + size, dx : dx + size] * gain.to(pixels.device)).clamp(0, 1)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std


def _validation(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    table = pq.read_table(path, columns=["image", "label"]).to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table["image"]]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.tensor(table["label"])


@torch.no_grad()
def zero_shot_accuracy(model, pixels, labels, device) -> float:
    """Top-1 with the plain prompt `a photo of a {kind}`."""
    model.eval()
    texts = words.encode(words.build(), [f"a photo of a {kind}" for kind in KINDS]).to(device)
    text_features = model.encode_text(texts, normalize=True)
    right = 0
    for batch, target in zip(pixels.split(256), labels.split(256), strict=True):
        features = model.encode_image(normalise(batch.to(device)), normalize=True)
        right += int(((features @ text_features.T).argmax(1).cpu() == target).sum())
    model.train()
    return right / len(labels)


def learning_rate(samples: int, config: dict) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if samples < config["warmup"]:
        return config["learning_rate"] * (samples + 1) / config["warmup"]
    part = (samples - config["warmup"]) / (config["samples"] - config["warmup"])
    return config["learning_rate"] * 0.5 * (1 + math.cos(math.pi * min(part, 1)))


def train(config: dict, *, runs: Path, models: Path, validation: Path, device: str) -> Path:
    """Train to the end (or go on from the checkpoint) and return the finished model's folder."""
    run = runs / config["name"]
    run.mkdir(parents=True, exist_ok=True)
    distribution = distribution_of(config)
    images, tokens = _pretraining_set(config, distribution, runs / "images" / _data_key(config))

    torch.manual_seed(config["seed"])
    model = build(config).to(device)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config["weight_decay"]}, {"params": rest, "weight_decay": 0.0}],
        lr=config["learning_rate"],
        betas=(0.9, 0.98),
    )
    state = {"samples": 0, "seconds": 0.0, "curve": []}
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]

    loss_function, batch_size = ClipLoss(), config["batch_size"]
    val_pixels, val_labels = _validation(validation)
    bar = tqdm(total=config["samples"], initial=state["samples"], unit="img", mininterval=5)
    losses: list[float] = []
    model.train()
    while state["samples"] < config["samples"]:
        began = time.perf_counter()
        # the batch depends on the sample count alone, so a resumed run sees what it would have seen
        rng = np.random.default_rng([config["seed"], 7, state["samples"]])
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        rows = rng.integers(len(images), size=batch_size)
        pixels = torch.from_numpy(images[np.sort(rows)]).permute(0, 3, 1, 2).float().to(device) / 255
        text = tokens[np.sort(rows), rng.integers(config["captions"], size=batch_size)].to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state["samples"], config)
        output = model(normalise(augment(pixels, generator)), text)
        loss = loss_function(output[0], output[1], output[2])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
        state["samples"] += batch_size
        state["seconds"] += time.perf_counter() - began
        bar.update(batch_size)
        if state["samples"] % EVERY < batch_size or state["samples"] >= config["samples"]:
            accuracy = zero_shot_accuracy(model, val_pixels, val_labels, device)
            state["curve"].append(
                {"samples": state["samples"], "loss": float(np.mean(losses)), "zero_shot": accuracy,
                 "seconds": round(state["seconds"], 1)}
            )  # fmt: skip
            losses.clear()
            bar.set_postfix(loss=f"{state['curve'][-1]['loss']:.3f}", zero_shot=f"{accuracy:.4f}")
            temporary = run / "checkpoint.tmp"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}, temporary)
            temporary.replace(checkpoint)
    bar.close()
    return export(model, config, state, models / config["name"])


def _data_key(config: dict) -> str:
    text = json.dumps([config["distribution"], config["seed"], config["scenes"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _pretraining_set(config, distribution, folder):
    seed, scenes = config["seed"], config["scenes"]
    progress = tqdm(total=scenes, unit="scene", desc="rendering", mininterval=5)
    for finished in pretraining_images(folder, distribution, seed=seed, scenes=scenes):
        progress.update(finished - progress.n)
    progress.close()
    texts = pretraining_captions(distribution, seed=seed, scenes=scenes, per_scene=config["captions"])
    tokens = words.encode(words.build(), [t for group in texts for t in group])
    return open_images(folder, scenes), tokens.view(scenes, config["captions"], -1)


def export(model, config: dict, state: dict, folder: Path) -> Path:
    """Write weights (fp16 safetensors), config, tokenizer, curve and card."""
    folder.mkdir(parents=True, exist_ok=True)
    words.save(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(config), indent=2) + "\n")
    (folder / "training.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with (folder / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(state["curve"][0]))
        writer.writeheader()
        writer.writerows(state["curve"])
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    temporary = folder / "weights.tmp"
    save_file({k: v.cpu().contiguous() for k, v in half.items()}, temporary)
    temporary.chmod(0o644)
    temporary.replace(folder / "open_clip_model.safetensors")
    (folder / "README.md").write_text(card(model, config, state))
    return folder


def card(model, config: dict, state: dict) -> str:
    """The model card: how it was trained, on how much, for how long, and what came out."""
    last, images = state["curve"][-1], VALIDATION_IMAGES
    interval = binomtest(round(last["zero_shot"] * images), images).proportion_ci(method="wilson")
    million = sum(p.numel() for p in model.parameters()) / 1e6
    tower = sum(p.numel() for p in model.visual.parameters()) / 1e6
    return f"""# {config["name"]}

A small CLIP model trained from scratch on still lifes of the tabletop world.
It is a model organism: it shows phenomena and methods, not facts about CLIP.

| | |
| --- | --- |
| Image tower | `{config["tower"]}`, {tower:.2f} million parameters, {towers.IMAGE_SIZE} px, convolutional stem, 8 x 8 tokens |
| Text tower | {config["text"]["layers"]} layers of width {config["text"]["width"]}, own vocabulary of {len(words.build())} pieces |
| Parameters in all | {million:.2f} million, stored as fp16 |
| Loss | symmetric contrastive (CLIP), batches of {config["batch_size"]} |
| Pre-training set | {config["scenes"]:,} scenes with {config["captions"]} captions each, seed {config["seed"]} |
| Image-caption pairs seen | {state["samples"]:,} |
| Training time | {state["seconds"] / 60:.0f} minutes on {state.get("device", "a CPU with two cores, shared with other work")} |
| Zero-shot accuracy | {100 * last["zero_shot"]:.2f} % (95 % Wilson interval {100 * interval.low:.2f} to {100 * interval.high:.2f}) |

The accuracy is top-1 over ten kinds on the {images:,} validation images with the prompt "a photo of a ...".
It was measured with the weights before their rounding to fp16.
The learning curve is in `curve.csv`, the whole configuration in `training.yaml`.
No validation scene is in the pre-training set: the two are drawn from different seed streams, and a test compares them.

Load it with `zsr_utils.load_model("{config["name"]}")`, or with open_clip as `local-dir:data/models/{config["name"]}` after `import tabletop.towers`.
Train it again with `python -m tabletop.train`.
Licence: MIT, as the project.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=CONFIGS / "default.yaml")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--models", type=Path, default=ROOT / "data" / "models")
    parser.add_argument("--validation", type=Path, default=ROOT / "data" / "tabletop" / "validation.parquet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    folder = train(
        config,
        runs=arguments.runs,
        models=arguments.models,
        validation=arguments.validation,
        device=arguments.device,
    )
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
