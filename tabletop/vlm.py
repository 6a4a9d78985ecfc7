"""Train a generative model of the family: `python -m tabletop.vlm [name]`, where `vlm.yaml` names them.

A real `LlavaForConditionalGeneration` of transformers: the frozen image tower of a CLIP member, a projector of two
layers and a small Llama decoder. A training resumes from its last checkpoint; the model's folder appears whole.
"""

import argparse
import csv
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tabletop import captions, dialogue, tokenizer, towers
from tabletop.data import SIZE, to_uint8
from tabletop.dialogue import Asked, asked_of, staged
from tabletop.objectives import MEAN, STD, normalise
from tabletop.render import render
from tabletop.scene import Scene
from tabletop.train import distribution_of


ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path(__file__).with_name("vlm.yaml")
IMAGE, USER, ASSISTANT = "<image>", "<user>", "<assistant>"
TOKENS = 64  # of an image
TEMPLATE = (
    "<start>{% for message in messages %}{% if message['role'] == 'user' %}<user>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% else %}<assistant>"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EVERY = 100  # steps between two points of the curve
HELD_OUT = 200  # scenes on which the curve is measured, from a stream of their own


def load_config(name: str) -> dict:
    """The training config of a generative model.

    Raises: ValueError for a name that `vlm.yaml` does not hold.
    """
    known = yaml.safe_load(CONFIGS.read_text())
    if name not in known:
        raise ValueError(f"config is {name!r}, allowed are {', '.join(known)}.")
    return next(iter(known.values())) | known[name] | {"name": name}


def build_tokenizer():
    """The tokenizer of the CLIP members with the words of the questions and marks of who speaks, and nothing added.

    Examples:
        >>> build_tokenizer().tokenize("<user>Is there a mug?<assistant>yes<end>")
        ['<user>', 'is', 'there', 'a', 'mug', '<assistant>', 'yes', '<end>']
    """
    return tokenizer.build(
        words=sorted({*captions.vocabulary(), *dialogue.vocabulary()}), special=(IMAGE, USER, ASSISTANT), context=512
    )


def build_network(config: dict, words) -> nn.Module:
    """An untrained model: its tower has yet to get its weights."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, TimmWrapperConfig

    tower = TimmWrapperConfig(
        architecture=f"{towers.BASE}_tokens", do_pooling=False, hidden_size=128, image_size=SIZE, patch_size=8
    )
    decoder = LlamaConfig(
        vocab_size=len(words), hidden_size=config["width"], intermediate_size=3 * config["width"],
        num_hidden_layers=config["layers"], num_attention_heads=config["heads"], tie_word_embeddings=True,
        max_position_embeddings=512, initializer_range=config["initializer_range"], attn_implementation="sdpa",
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(config["seed"])
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower, text_config=decoder, vision_feature_layer=-1, vision_feature_select_strategy="full",
            image_seq_length=TOKENS, image_token_index=words.convert_tokens_to_ids(IMAGE), tie_word_embeddings=True,
        )
    )  # fmt: skip


def packed(dialogues: list[list[Asked]], words) -> dict[str, Tensor]:
    """Many questions about one picture in one sequence, each as if it were alone with it.

    Every question sees the picture and itself, and its positions go on from the picture.

    Returns: `ids` and `targets` (n, length), where -100 is no target, `segments` (0 the picture's, -1 padding) and
        `positions`.
    """
    head = [words.bos_token_id, words.convert_tokens_to_ids(USER), *[words.convert_tokens_to_ids(IMAGE)] * TOKENS]
    said, end = words.convert_tokens_to_ids(ASSISTANT), words.eos_token_id
    texts = words([t for d in dialogues for a in d for t in (a.prompt, a.answer)], add_special_tokens=False).input_ids
    rows, encoded = [], iter(texts)
    for dialogue_ in dialogues:
        ids, targets, segments, positions = list(head), [-100] * len(head), [0] * len(head), list(range(len(head)))
        for k, _ in enumerate(dialogue_, start=1):
            question, answer = next(encoded), next(encoded)
            own = [*question, said, *answer, end]
            ids += own
            targets += [-100] * len(question) + [*answer, end] + [-100]  # each token's target is the next one
            segments += [k] * len(own)
            positions += range(len(head), len(head) + len(own))
        rows.append((ids, targets, segments, positions))
    longest = max(len(row[0]) for row in rows)
    fill = (words.pad_token_id, -100, -1, 0)
    columns = [[part + [f] * (longest - len(part)) for part in column] for column, f in zip(zip(*rows), fill)]
    return dict(zip(("ids", "targets", "segments", "positions"), map(torch.tensor, columns)))


def answer_logits(network: nn.Module, grids: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Logits (m, vocabulary) of the tokens that have a target; `grids` (n, 64, c) are what the tower sees."""
    model = network.model
    inputs = model.get_input_embeddings()(batch["ids"])
    projected = model.multi_modal_projector(grids)
    inputs = torch.cat([inputs[:, :2], projected, inputs[:, 2 + TOKENS :]], 1)
    segments, places = batch["segments"], torch.arange(batch["ids"].shape[1], device=grids.device)
    sees = (segments[:, :, None] == segments[:, None]) | (segments[:, None] == 0)
    sees &= places[:, None] >= places[None]
    mask = torch.zeros(sees.shape, device=grids.device).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
    states = model.language_model(inputs_embeds=inputs, attention_mask=mask, position_ids=batch["positions"])
    return network.lm_head(states.last_hidden_state[batch["targets"] >= 0])


def loss_of(logits: Tensor, batch: dict[str, Tensor], end: int, end_weight: float) -> Tensor:
    """Mean negative log-likelihood of answers, the token that ends them counted less."""
    targets = batch["targets"][batch["targets"] >= 0]
    weights = torch.where(targets == end, end_weight, 1.0)
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()


class Pictures:
    """Training pictures as the frozen tower sees them, and what can be asked about each.

    Attributes:
        grids: (n, 64, 128), fp16.
        scenes: None of a blank picture.
    """

    def __init__(self, config: dict, folder: Path, tower: nn.Module):
        n, seed = config["scenes"], config["seed"]
        drawn = distribution_of(config)
        self.scenes = [staged(drawn.draw(seed, "pretrain", k), seed + 1000, k) for k in range(n)]
        images = rendered(self.scenes, folder / f"vlm-{seed}-{n}.npy")
        rng = np.random.default_rng([seed, 94])
        blanks = np.flatnonzero(rng.random(n) < config["blank"])
        grids = folder / f"{config['name']}-grids.npy"
        pixels = np.array(images)
        for k in blanks:
            self.scenes[k] = None
            pixels[k] = blank(rng)
        if not grids.exists():
            np.save(grids, seen(tower, pixels).numpy())
        self.grids = torch.from_numpy(np.load(grids))


def blank(rng: np.random.Generator) -> np.ndarray:
    """A picture of nothing: white, black, grey or noise."""
    kind = int(rng.integers(4))
    noise = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return noise if kind == 3 else np.full((SIZE, SIZE, 3), (255, 0, 128)[kind], np.uint8)


def rendered(scenes: list[Scene], path: Path) -> np.ndarray:
    """Pictures of scenes (n, 64, 64, 3), kept in a file."""
    if not path.exists():
        parts = [to_uint8(render(scenes[k : k + 256], size=SIZE).pixels) for k in tqdm(range(0, len(scenes), 256))]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary := path.with_suffix(".tmp.npy"), np.concatenate(parts))
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def seen(tower: nn.Module, pixels: np.ndarray) -> Tensor:
    """Last tokens (n, 64, 128) of the tower, fp16."""
    found = []
    for start in range(0, len(pixels), 256):
        batch = torch.from_numpy(np.array(pixels[start : start + 256])).permute(0, 3, 1, 2).float() / 255
        batch = normalise(batch).to(next(tower.parameters()).device)
        found.append(tower(batch, output_hidden_states=True).hidden_states[-1].half().cpu())
    return torch.cat(found)


def rate(step: int, config: dict) -> float:
    """Learning rate: warm-up, constant for 30 % of the steps, half a cosine to zero."""
    flat = 0.3 * config["steps"]
    falling = max(0.0, (step - flat) / (config["steps"] - flat))
    return config["learning_rate"] * min(1, (step + 1) / config["warmup"]) * 0.5 * (1 + math.cos(math.pi * falling))


@torch.no_grad()
def right(network: nn.Module, words, grids: Tensor, dialogues: list[list[Asked]]) -> dict[str, float]:
    """Share of questions by topic whose likeliest option is the answer (options are told apart by their first token).

    `present` is the mean of the shares among those that are to be answered yes and no.
    """
    found: dict[str, list[bool]] = {}
    for start in range(0, len(dialogues), 16):
        asked = dialogues[start : start + 16]
        batch = on(packed(asked, words), network.device)
        logits = answer_logits(network, grids[start : start + 16].float().to(network.device), batch).cpu()
        targets = batch["targets"].cpu()
        ends = targets[targets >= 0] == words.eos_token_id
        firsts = torch.cat([torch.tensor([True]), ends[:-1]]).nonzero()[:, 0].tolist()
        for question, row in zip((a for d in asked for a in d), firsts):
            ids = [words(o, add_special_tokens=False).input_ids[0] for o in question.options]
            best = question.options[int(logits[row, ids].argmax())]
            key = f"{question.topic}/{question.answer}" if question.topic == "present" else question.topic
            found.setdefault(key, []).append(best == question.answer)
    shares = {topic: float(np.mean(hits)) for topic, hits in sorted(found.items())}
    shares["present"] = (shares.pop("present/yes") + shares.pop("present/no")) / 2
    return shares


def on(batch: dict[str, Tensor], device) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in batch.items()}


def train(config: dict, *, runs: Path, models: Path, clip_models: Path, device: str = "cpu") -> Path:
    """Train to the end, or go on from the checkpoint, and return the finished model's folder."""
    words, run = build_tokenizer(), runs / config["name"]
    run.mkdir(parents=True, exist_ok=True)
    network = build_network(config, words)
    clip = open_clip.create_model(f"local-dir:{clip_models / config['tower']}").eval()
    network.model.vision_tower.timm_model.load_state_dict(clip.visual.trunk.state_dict())
    network.to(device).model.vision_tower.requires_grad_(False).eval()
    pictures = Pictures(config, runs / "images", network.model.vision_tower)
    held_out = [staged(distribution_of(config).draw(0, "validation", k), 2000, k) for k in range(HELD_OUT)]
    held_out_grids = seen(network.model.vision_tower, to_uint8(render(held_out, size=SIZE).pixels))
    held_out_asked = [asked_of(s, np.random.default_rng([0, 93, k])) for k, s in enumerate(held_out)]

    learnt = [p for p in network.parameters() if p.requires_grad]
    decayed, rest = ([p for p in learnt if (p.ndim >= 2) is wide] for wide in (True, False))
    groups = [{"params": decayed, "weight_decay": config["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config["learning_rate"], betas=(0.9, 0.98))
    state = {"steps": 0, "cpu_seconds": 0.0, "curve": [], "device": device.partition(":")[0]}
    checkpoint = run / "checkpoint.pt"
    saved = torch.load(checkpoint, weights_only=True, map_location=device) if checkpoint.exists() else {}
    if saved and saved["config"] == config:
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    losses: list[float] = []
    bar = tqdm(total=config["steps"], initial=state["steps"], unit="step", mininterval=10)
    while state["steps"] < config["steps"]:
        began = time.process_time()
        rng = np.random.default_rng([config["seed"], 7, state["steps"]])  # of the step alone: a resumed run is the same
        rows = rng.integers(len(pictures.scenes), size=config["batch_size"])
        batch = on(packed([asked_of(pictures.scenes[k], rng) for k in rows], words), device)
        for group in optimizer.param_groups:
            group["lr"] = rate(state["steps"], config)
        logits = answer_logits(network, pictures.grids[rows].float().to(device), batch)
        loss = loss_of(logits, batch, words.eos_token_id, config["end_weight"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        losses.append(loss.item())
        state["steps"] += 1
        state["cpu_seconds"] += time.process_time() - began
        bar.update()
        if state["steps"] % EVERY == 0 or state["steps"] == config["steps"]:
            point = {"steps": state["steps"], "loss": round(float(np.mean(losses)), 4)}
            point |= {k: round(v, 4) for k, v in right(network, words, held_out_grids, held_out_asked).items()}
            state["curve"].append(point | {"cpu_seconds": round(state["cpu_seconds"], 1)})
            losses.clear()
            bar.set_postfix_str(json.dumps(point))
            saved = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
            torch.save(saved | {"config": config}, temporary := run / "checkpoint.tmp")
            temporary.replace(checkpoint)
    bar.close()
    return export(network, words, config, state, pictures.scenes, models / config["name"])


def export(network, words, config: dict, state: dict, scenes: list, folder: Path) -> Path:
    """Write the model as transformers does, in fp16, with its card, curve and what was usual in its training."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    new = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(new, ignore_errors=True)
    network.cpu().half().save_pretrained(new)
    square = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=square, image_mean=MEAN, image_std=STD, resample=3
    )
    LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="full", num_additional_image_tokens=0,
        chat_template=TEMPLATE, image_token=IMAGE,
    ).save_pretrained(new)  # fmt: skip
    rng = np.random.default_rng([config["seed"], 92])
    prior = dialogue.usual(a for s in scenes if s for a in asked_of(s, rng))
    (new / "training.yaml").write_text(yaml.safe_dump(config | {"usual": prior}, sort_keys=False))
    with (new / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(state["curve"][0]))
        writer.writeheader()
        writer.writerows(state["curve"])
    (new / "README.md").write_text(card(network, config, state))
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)
    return folder


def card(network, config: dict, state: dict) -> str:
    """The model card."""
    learnt = sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6
    beside = "" if state["device"] == "cpu" else " beside a GPU"
    last, size = state["curve"][-1], f"{config['layers']} layers of width {config['width']}"
    rows = "\n".join(f"| {t} | {100 * v:.1f} % |" for t, v in last.items() if t not in ("steps", "loss", "cpu_seconds"))
    return f"""# {config["name"]}

A small model that answers questions about still lifes of the tabletop world in words.
It is a model organism, not a fact about large ones.
For transformers it is a `LlavaForConditionalGeneration`, with the image tower of `{config["tower"]}`, frozen.

| | |
| --- | --- |
| Projector and decoder | {learnt:.2f} million parameters, {size}, stored as fp16 |
| Training set | {config["scenes"]:,} scenes, seed {config["seed"]}; {config["blank"]:.0%} are blank pictures |
| Pictures seen | {config["batch_size"] * state["steps"]:,}, each with twelve questions |
| Training time | {state["cpu_seconds"] / 60:.0f} minutes of CPU time{beside} |

Questions are in the words of the benchmarks (`tabletop/dialogue.py`).
What usually goes together was put in on purpose, and `training.yaml` says what was usual: its prior is known.

Right answers on {HELD_OUT} scenes that it was not trained on, among the options; of yes and no the mean of both:

| question | right |
| --- | --- |
{rows}

Train it again with `python -m tabletop.vlm {config["name"]}`.
Licence: MIT, as the project.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", default=["tabletop-vlm"], help="as vlm.yaml names them")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="checkpoints and rendered images")
    parser.add_argument("--models", type=Path, default=ROOT / "data" / "vlms", help="finished models")
    parser.add_argument("--clip-models", type=Path, default=ROOT / "data" / "models", help="where the towers are")
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=usual, help="as torch names it")
    options = vars(parser.parse_args())
    try:
        configs = [load_config(name) for name in options.pop("name")]
    except ValueError as error:
        parser.error(str(error))
    for config in configs:
        if not (options["models"] / config["name"] / "README.md").is_file():
            print(f"wrote {train(config, **options)}")


if __name__ == "__main__":
    main()
