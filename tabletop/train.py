"""Train an embedded model: `python -m tabletop.train [config]`, with another seed as `conv-seed1`.

Renders the pre-training set, trains with the loss that the config names, resumes from the last
checkpoint after an interruption, and writes the model with its card and learning curve, in
open_clip's local-directory form if it has two towers. Runs on the CPU and, unchanged, on a GPU.
"""

import argparse
import copy
import csv
import fcntl
import hashlib
import io
import json
import math
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import binomtest
from tqdm import tqdm

from tabletop import finetune, towers
from tabletop.data import (
    NUDGES,
    VALIDATION_IMAGES,
    Twin,
    open_images,
    overlap_twins,
    pretraining_captions,
    pretraining_images,
    pretraining_scenes,
    write_twins,
)
from tabletop.objectives import Averaged, objective_of
from tabletop.scene import SceneDistribution


ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path(__file__).parent / "configs"
DEFAULT = CONFIGS / "default.yaml"
EVERY = 25_600  # samples between two points of the curve
SEEDED = re.compile(r"(.+)-seed([1-9]\d*)")


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


def load_config(name: str) -> dict:
    """The training config that `name` means: one that `find_config` finds, or such a one with another seed.

    The seed decides everything that is drawn: the first weights, the pre-training scenes and their captions,
    and what is seen when. That of a fine-tuned member is the seed of its fine-tuning: it starts as it did before.

    Examples:
        >>> config = load_config("conv-seed1")
        >>> config["name"], config["seed"], config["changes"]
        ('tabletop-conv-seed1', 1, ['tower', 'seed'])

    Raises:
        ValueError: If there is no such config, or nothing in it is drawn.
    """
    if not (seeded := SEEDED.fullmatch(name)):
        return read_config(find_config(name))
    config, seed = read_config(find_config(seeded[1])), int(seeded[2])
    if isinstance(objective_of(config), Averaged):
        raise ValueError(f"config is {name!r}, but an average of weights draws nothing: no seed is allowed.")
    if config["finetune"]:
        own = {"finetune": {**config["finetune"], "seed": seed}}
    else:
        own = {"seed": seed, "changes": [*config["changes"], "seed"]}
    return config | own | {"name": f"{config['name']}-seed{seed}"}


def find_config(name: str) -> Path:
    """The config file that `name` means: a path, a file name in `configs/` without ending, or a model's name.

    Examples:
        >>> find_config("default") == find_config("base") == find_config("tabletop-base")
        True

    Raises:
        ValueError: If there is no such config.
    """
    if name.endswith(".yaml") and Path(name).is_file():
        return Path(name)
    known = {path: read_config(path)["name"] for path in sorted(CONFIGS.glob("*.yaml"))}
    for path, model in known.items():
        if name in (path.stem, model, model.removeprefix("tabletop-")):
            return path
    raise ValueError(
        f"config is {name!r}, allowed are a YAML file and {', '.join(p.stem for p in known)}, "
        "each also with another seed, such as conv-seed1."
    )


def differences(config: dict) -> dict[str, tuple]:
    """What a config has different from the default: `{key: (its value, the default's)}`.

    Keys of blocks are written `block.key`; the name and the list of changes do not count.

    Examples:
        >>> differences(read_config(find_config("quarter")))
        {'scenes': (10000, 40000)}
    """
    mine, default = _flat(config), _flat(read_config(DEFAULT))
    return {k: (mine.get(k), default.get(k)) for k in {**default, **mine} if mine.get(k) != default.get(k)}


def _flat(config: dict) -> dict:
    """The config without name and list of changes, one level deep, with every proportion of the distribution."""
    result = {}
    for key, value in {**config, "distribution": asdict(distribution_of(config))}.items():
        if key not in ("name", "changes"):
            result.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    return result


def up_to_date(config: dict, models: Path) -> bool:
    """Whether the exported model is whole and was trained with this config.

    A key that an older export does not know has the default's value: it did not exist when the model was trained.
    """
    folder = models / config["name"]
    files = [folder / name for name in ("training.yaml", "README.md", "curve.csv", objective_of(config).weights)]
    if not all(f.is_file() for f in files):
        return False
    return _same(yaml.safe_load(files[0].read_text()), config)


def _same(one: dict, other: dict) -> bool:
    """Whether two configs are equal once the default has filled in the keys that one of them does not know."""
    default = read_config(DEFAULT)
    return {**default, **one} == {**default, **other}


def plan_of(config: dict) -> dict:
    """The config of the training itself: what the block `finetune` names goes before the same key outside.

    Examples:
        >>> block = {"samples": 25_600, "distribution": {"card": 0.5}}
        >>> plan = plan_of({"samples": 384_000, "distribution": {"card": 0.18, "second": 0.12}, "finetune": block})
        >>> plan["samples"], plan["distribution"]
        (25600, {'card': 0.5, 'second': 0.12})
    """
    block = config.get("finetune", {})
    return config | {k: {**config[k], **v} if isinstance(v, dict) else v for k, v in block.items()}


def build(config: dict) -> torch.nn.Module:
    """An untrained model of this config."""
    return objective_of(config).build(config)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to four pixels and vary brightness a little."""
    size = pixels.shape[-1]
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4), mode="replicate")
    dy, dx = torch.randint(0, 9, (2,), generator=generator).tolist()
    gain = 1 + 0.12 * (torch.rand(len(pixels), 1, 1, 1, generator=generator) - 0.5)
    return (padded[:, :, dy : dy + size, dx : dx + size] * gain.to(pixels.device)).clamp(0, 1)


def _validation(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    table = pq.read_table(path, columns=["image", "label"]).to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table["image"]]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.tensor(table["label"])


@torch.no_grad()
def accuracy_of(objective, model, pixels, labels, device) -> float:
    """Top-1 on labelled pixels."""
    model.eval()
    logits = objective.logits(model, device)
    right = 0
    for batch, target in zip(pixels.split(256), labels.split(256), strict=True):
        right += int((logits(batch.to(device)).argmax(1).cpu() == target).sum())
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
    objective, plan = objective_of(config), plan_of(config)
    if isinstance(objective, Averaged):
        return _average(objective, config, models, validation, device)
    run = runs / config["name"]
    run.mkdir(parents=True, exist_ok=True)
    images, targets = _pretraining_set(plan, objective, runs / "images" / _data_key(config))

    torch.manual_seed(plan["seed"])
    model = finetune.starting_point(config, models) if config.get("finetune") else objective.build(config)
    model.to(device)
    objective.begin(model)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": plan["weight_decay"]}, {"params": rest, "weight_decay": 0.0}],
        lr=plan["learning_rate"],
        betas=(0.9, 0.98),
    )
    state = {"samples": 0, "cpu_seconds": 0.0, "curve": []}
    checkpoint = run / "checkpoint.pt"
    saved = torch.load(checkpoint, weights_only=True, map_location=device) if checkpoint.exists() else {}
    if saved and _same(saved["config"], config):  # a checkpoint of another config is not gone on from
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]

    batch_size, every = plan["batch_size"], EVERY // 4 if config.get("finetune") else EVERY
    val_pixels, val_labels = _validation(validation)
    bar = tqdm(total=plan["samples"], initial=state["samples"], unit="img", mininterval=5)
    losses: list[float] = []
    model.train()
    while state["samples"] < plan["samples"]:
        began = time.process_time()  # not the time of day: a run may be stopped and continued, or share the machine
        # the batch depends on the sample count alone, so a resumed run sees what it would have seen
        rng = np.random.default_rng([plan["seed"], 7, state["samples"]])
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        rows = rng.integers(len(images), size=batch_size)
        pixels = torch.from_numpy(images[np.sort(rows)]).permute(0, 3, 1, 2).float().to(device) / 255
        target = targets[np.sort(rows), rng.integers(plan["captions"], size=batch_size)].to(device)
        torch.manual_seed(int(rng.integers(2**31)))  # what a loss draws depends on the sample count alone as well
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state["samples"], plan)
        loss = objective.loss(model, augment(pixels, generator), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        objective.after_step(model)
        losses.append(loss.item())
        state["samples"] += batch_size
        state["cpu_seconds"] += time.process_time() - began
        bar.update(batch_size)
        if state["samples"] % every < batch_size or state["samples"] >= plan["samples"]:
            accuracy = accuracy_of(objective, model, val_pixels, val_labels, device)
            state["curve"].append(
                {"samples": state["samples"], "loss": float(np.mean(losses)), objective.metric: accuracy,
                 "cpu_seconds": round(state["cpu_seconds"], 1)}
            )  # fmt: skip
            losses.clear()
            bar.set_postfix({"loss": f"{state['curve'][-1]['loss']:.3f}", objective.metric: f"{accuracy:.4f}"})
            temporary = run / "checkpoint.tmp"
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state, "config": config},
                temporary,
            )
            temporary.replace(checkpoint)
    bar.close()
    return export(model, config, state, models / config["name"])


def _average(objective, config, models, validation, device) -> Path:
    model = finetune.starting_point(config, models).to(device)
    accuracy = accuracy_of(objective, model, *_validation(validation), device)
    state = {"samples": 0, "cpu_seconds": 0.0, "curve": [{"samples": 0, objective.metric: accuracy}]}
    return export(model, config, state, models / config["name"])


def twins_of(config: dict) -> list[Twin]:
    """The near-duplicates of validation scenes in a config's pre-training set."""
    if not config["overlap"]:
        return []
    return overlap_twins(seed=config["seed"], scenes=config["scenes"], validation_scenes=config["overlap"])


def _data_key(config: dict) -> str:
    plan = plan_of(config)
    recipe = [plan["distribution"], plan["seed"], plan["scenes"]]
    if plan["overlap"]:
        recipe.append(plan["overlap"])
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def _alone(folder: Path):
    """Wait until no other training renders into this folder: members of the family share images."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pretraining_set(plan, objective, folder):
    recipe = {"seed": plan["seed"], "scenes": plan["scenes"], "twins": twins_of(plan)}
    distribution, scenes = distribution_of(plan), plan["scenes"]
    with _alone(folder), tqdm(total=scenes, unit="scene", desc="rendering", mininterval=5) as progress:
        for finished in pretraining_images(folder, distribution, **recipe):
            progress.update(finished - progress.n)
    said = {key: plan[key] for key in ("about_word", "mention_card")}
    captions = pretraining_captions(distribution, **recipe, per_scene=plan["captions"], **said)
    kinds = (scene.kind for scene in pretraining_scenes(distribution, **recipe))
    return open_images(folder, scenes), objective.targets(kinds, captions)


def export(model, config: dict, state: dict, folder: Path) -> Path:
    """Write weights (fp16 safetensors), config, tokenizer, curve and card; the folder appears whole."""
    objective, new = objective_of(config), folder.with_name(folder.name + ".tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    objective.write(config, new)
    (new / "training.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with (new / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(state["curve"][0]))
        writer.writeheader()
        writer.writerows(state["curve"])
    if twins := twins_of(config):
        write_twins(new / "overlap.csv", twins)
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.cpu().contiguous() for k, v in half.items()}, new / objective.weights)
    (new / objective.weights).chmod(0o644)
    (new / "README.md").write_text(card(model, config, state))
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)
    return folder


def card(model, config: dict, state: dict) -> str:
    """The model card: how it was trained, on how much, for how long, and what came out."""
    objective, last, images = objective_of(config), state["curve"][-1], VALIDATION_IMAGES
    accuracy = last[objective.metric]
    interval = binomtest(round(accuracy * images), images).proportion_ci(method="wilson")
    million = sum(p.numel() for p in model.parameters()) / 1e6
    tower = objective.image_parameters(model) / 1e6
    plan = plan_of(config)
    batches = "" if isinstance(objective, Averaged) else f", batches of {plan['batch_size']}"
    sets = {"Pre-training set": config}
    if _data_key(config) != _data_key(config | {"finetune": {}}):
        sets["Fine-tuning set"] = plan
    drawn = "\n".join(
        f"| {name} | {c['scenes']:,} scenes with {c['captions']} captions each, seed {c['seed']} |"
        for name, c in sets.items()
    )
    return f"""# {config["name"]}

A small {objective.makes} {objective.origin} on still lifes of the tabletop world.
It is a model organism: it shows phenomena and methods, not facts about CLIP.

{_changes(config)}

| | |
| --- | --- |
| Image tower | `{config["tower"]}`, {tower:.2f} million parameters, {towers.IMAGE_SIZE} px, {towers.describe(objective.trunk(model))} |
| Text tower | {objective.text_tower(config)} |
| Parameters in all | {million:.2f} million, stored as fp16 |
| Loss | {objective.label}{batches} |
{drawn}
| {objective.seen} | {state["samples"]:,} |
| Training time | {state["cpu_seconds"] / 60:.0f} minutes of CPU time, summed over cores |
| {objective.shown_as} | {100 * accuracy:.2f} % (95 % Wilson interval {100 * interval.low:.2f} to {100 * interval.high:.2f}) |

The accuracy is {objective.measured}, on the {images:,} validation images.
It was measured with the weights before their rounding to fp16.
The learning curve is in `curve.csv`, the whole configuration in `training.yaml`.
{_overlap(config)}

{objective.loading(config["name"])}
Train it again with `python -m tabletop.train {config["name"]}`.
Licence: MIT, as the project.
"""


def _changes(config: dict) -> str:
    """What sets this model apart from the default one, in words and values."""
    default = read_config(DEFAULT)["name"]
    found = differences(config)
    if not found:
        return "It is the default model: the other members of the family differ from it."
    lines = [f"- `{key}`: `{json.dumps(mine)}` in place of `{json.dumps(base)}`" for key, (mine, base) in found.items()]
    head = " and ".join(f"`{key}`" for key in config["changes"])
    return "\n".join([f"It differs from `{default}` in {head} and in nothing else:", "", *lines])


def _overlap(config: dict) -> str:
    if twins := twins_of(config):
        return (
            f"{len(twins):,} of the pre-training scenes are near-duplicates of {config['overlap']:,} validation scenes, "
            f"each rendered again with a small change of {', '.join(NUDGES)}: one change at a time.\n"
            "`overlap.csv` lists them; no validation scene is in the pre-training set unchanged, and a test compares the two."
        )
    return (
        "No validation scene is in the pre-training set: the two are drawn from different seed streams, "
        "and a test compares them."
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options that say where things are, shared with `tabletop.queue`."""
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="checkpoints and rendered images")
    parser.add_argument("--models", type=Path, default=ROOT / "data" / "models", help="finished models")
    validation = ROOT / "data" / "tabletop" / "validation.parquet"
    parser.add_argument("--validation", type=Path, default=validation, help="images on which accuracy is followed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="as torch names it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "config", nargs="?", default="default", help="a file, or a name such as small or tabletop-small"
    )
    add_places(parser)
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
        objective_of(config)
    except ValueError as error:
        parser.error(str(error))
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
