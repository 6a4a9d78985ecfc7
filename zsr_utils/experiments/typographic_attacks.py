"""Chapter 09: what a word in the picture does to an answer, what it does beyond its card, and what taught the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from scipy import stats
from torch import Tensor

from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Batch, Condition, Seen
from zsr_utils.datasets import Dataset, card, random_of, rendered, scam, scattered, tabletop_scenes
from zsr_utils.study import Study


CONTROLS = ("blank", "letters", "scrambled", "no_class", "own_name", "other_name")
WIDTH = 1.28  # of rendered cards, enough for every word, so that width tells none apart
NO_CLASS = ("teapot", "cactus", "umbrella", "dumbbell", "tree", "sailboat", "stool", "hourglass")  # held-out kinds
QUOTE = ("a card that says {}",)
NAMED = {"what is it?": "the object", "what does the card say?": "the word", "": "something else"}


@dataclass(frozen=True)
class Card:
    """A card and what it says of an image, by the image's id alone; every control asks for the same other class."""

    control: str  # one of `CONTROLS`
    seed: int = 0
    pictures: Dataset | None = None  # that have the card in them; else it is drawn
    box: Mapping = field(default_factory=dict)  # of a drawn one, as `datasets.card` takes it
    masked: bool = False  # whether the box around all that changed becomes mid-grey
    copies: int = 0  # of the word all over the picture, in place of a card
    listed: Mapping[str, str] = field(default_factory=dict)  # words by sample id, in place of a control

    def word(self, sample_id: str, label: int, names: Sequence[str]) -> tuple[str, int]:
        """What the card says, and the class that it asks for."""
        if self.listed:
            return self.listed[sample_id], names.index(self.listed[sample_id])
        rng = random_of(sample_id, self.seed, "card")
        asked = int(rng.choice([k for k in range(len(names)) if k != label]))
        letters, known = list(names[asked]), set(names)
        if self.control == "letters":
            letters = rng.choice([sign for name in names for sign in name if not sign.isspace()], len(letters))
            known = {"".join(sorted(name)) for name in names}
        mixed = ["".join(rng.permutation(letters)) for _ in range(20)]
        foreign = str(rng.choice([word for word in NO_CLASS if word not in names] or ["word"]))
        said = {"blank": "", "no_class": foreign, "own_name": names[label], "other_name": names[asked]}
        other = next((w for w in mixed if not {w, "".join(sorted(w))} & known), mixed[0])
        return said.get(self.control, other), label if self.control == "own_name" else asked

    def picture(self, picture: Image.Image, sample_id: str, word: str) -> tuple[Image.Image, int]:
        """A picture with its card, or copies, and how many found a place."""
        if self.copies:
            rng, size = random_of(sample_id, self.seed, "copies"), min(picture.size) / 8
            shown, boxes = scattered(picture, word, rng, copies=self.copies, size=size)
            return shown, len(boxes)
        return (self.pictures.image(sample_id) if self.pictures else card(picture, word, **self.box)), 1

    def made(self, batch: Batch) -> list[tuple]:
        said = [self.word(i, k, batch.head.class_names) for i, k in zip(batch.sample_ids, batch.labels.tolist())]
        return [(*self.picture(p, i, s[0]), *s) for p, i, s in zip(batch.pictures, batch.sample_ids, said)]

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        pixels = torch.stack([batch.net.from_pil(made[0]) for made in self.made(batch)]).to(batch.pixels.device)
        for image, changed in zip(pixels, (pixels != batch.pixels).any(1)) if self.masked else ():
            rows, columns = (changed.any(axis).nonzero().flatten().tolist() or [0, -1] for axis in (1, 0))
            image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 0.5
        return pixels

    def facts(self, batch: Batch, seen: Seen) -> dict:
        """`word`, `word_label` (class that is asked for), `named` (whether it is the answer), `copies`.

        And `beside_word`, the logit of the label less that class's: SCAM lets a model choose between the two.
        """
        _, copies, words, asked = zip(*self.made(batch))
        label, other = (seen.logits.gather(1, torch.as_tensor(k)[:, None])[:, 0] for k in (batch.labels, asked))
        found = {"word": words, "word_label": np.array(asked), "named": seen.predictions.numpy() == asked}
        return found | {"copies": np.array(copies), "beside_word": (label - other).numpy()}

    def condition(self, name: str = "") -> Condition:
        return Condition(name or self.control, self.copies or 1.0, self.change, self.facts, draws=1)


def cards(images: Dataset, *, split: str = "validation", seed: int = 0) -> list[Condition]:
    """The unchanged image, cards (in Tabletop part of the scene), and `masked`, the last one under a grey patch."""
    shown = [Card(control, seed) for control in CONTROLS]
    if images.name == "tabletop":
        scenes = tabletop_scenes(split)
        for k, made in enumerate(shown):
            said = {s.sample_id: made.word(s.sample_id, s.label, images.class_names)[0] for s in images.samples}
            written = {i: replace(scenes[i], card=word, card_width=WIDTH) for i, word in said.items()}
            shown[k] = replace(made, pictures=rendered(f"tabletop, {made.control}", written))
    unchanged = replace(ORIGINAL, facts=Card("other_name", seed).facts)
    return [unchanged, *(c.condition() for c in shown), replace(shown[-1], masked=True).condition("masked")]


def drawn(heights: Sequence[float], *, seed: int = 0) -> dict[str, tuple[Condition, Condition]]:
    """Drawn cards of some heights and in some places: blank, and with another class's name."""
    places = {"top": (0.5, 0.15), "middle": (0.5, 0.5), "bottom": (0.5, 0.8)}
    boxes = {f"{h:g} high": {"height": h} for h in heights} | {name: {"place": at} for name, at in places.items()}
    both = {name: [Card(c, seed, box=box) for c in ("blank", "other_name")] for name, box in boxes.items()}
    return {name: tuple(c.condition(f"{c.control}, {name}") for c in pair) for name, pair in both.items()}


def photographed(folder: Path | str) -> tuple[Dataset, list[Condition]]:
    """SCAM's pictures without a word, and the conditions that show the same things beside one."""
    variants, words = scam(folder)
    made = {name.lower(): Card("listed", pictures=pictures, listed=words) for name, pictures in variants.items()}
    return variants["NoSCAM"], [how.condition(name) for name, how in made.items()]


def examples(images: Dataset, shown: Sequence[Condition]) -> tuple[list[Image.Image], list[str]]:
    """The first picture under every control, with captions."""
    (sample_id, original, label), found = next(iter(images)), {}
    for how in (c.change.__self__ for c in shown if c.name in CONTROLS):
        word, _ = how.word(sample_id, label, images.class_names)
        found[f"{how.control.replace('_', ' ')}\n{word}"] = how.picture(original, sample_id, word)[0]
    return [original, *found.values()], [f"original\n{images.class_names[label]}", *found]


def beyond(rows: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], column: str = "right", **further) -> pd.DataFrame:
    """Mean differences of right answers, or another column, between the two conditions of every line, image by image.

    A table of `scores.paired_changes` by `model` and `line`, each model a family of tests, and `further` columns.
    """
    of = {
        c: part.assign(value=part[column]) for c, part in rows.assign(right=scores.correct(rows)).groupby("condition")
    }
    sides = (pd.concat([of[pair[k]].assign(line=line) for line, pair in pairs.items()]) for k in (0, 1))
    bounds = 1.0 if column == "right" else None
    return scores.paired_changes(*sides, ["model", "line"], bounds=bounds, within="model").assign(**further)


def defended(study: Study, rows: pd.DataFrame, shown: Sequence[Condition]) -> pd.DataFrame:
    """What defences do to right answers, beside a card with another name and on clean pictures; see `beyond`."""
    says = [f"a photo of a {{}} with a card that says {name}" for name in study.names[:: -(-len(study.names) // 16)]]
    prompts = {"mention a card": ["a photo of a {} with a card"], "mention its word": says}  # up to 16 names, averaged
    tried = {name: study.measure(shown, prompts=prompt, keep=False) for name, prompt in prompts.items()}
    hidden = {"masked": "other_name", "other_name": ""}
    tried["hide the card"] = rows.assign(condition=rows.condition.replace(hidden))
    frames = [part.assign(condition=name + part.condition) for name, part in tried.items()]
    where = {"written on": "other_name", "clean": "original"}
    pairs = {f"{name}, {text}": (c, name + c) for name in tried for text, c in where.items()}
    return beyond(pd.concat([rows, *frames]), pairs)


def answered(rows: pd.DataFrame, quoted: pd.DataFrame) -> pd.DataFrame:
    """Answers to two questions, three rows each: a `hit` is `what` was named, and `both` are two right answers."""
    both = pd.concat([r.assign(question=q) for q, r in zip(NAMED, (rows, quoted))], ignore_index=True)
    given = np.select([both.prediction == both.label, both.named.astype(bool)], [*NAMED.values()][:2], NAMED[""])
    right = (both.question.map(NAMED) == given).groupby([both.model, both.sample_id]).transform("all")
    return pd.concat([both.assign(what=what, hit=given == what, both=right) for what in NAMED.values()])


def confusion(table: pd.DataFrame) -> dict:
    """Shares of what is named by model and question, as `plots.heatmap` takes them."""
    lines, what = list(product(table.model.unique(), table.question.unique())), table.what.unique()
    values = table.set_index(["model", "question", "what"]).value.unstack().loc[lines, what].to_numpy()
    return {"values": values, "rows": [", ".join(line) for line in lines], "columns": what}


def over_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Means over training runs of what they answer, a row a dose and quantity: Student's t, bounded as shares are."""
    found = table.groupby(["quantity", "dose"], as_index=False).value.agg(["mean", "std", "count"])
    half = stats.t.ppf(0.975, found["count"] - 1) * found["std"] / np.sqrt(found["count"])
    bounds = ((found["mean"] + sign * half.where(found["std"] > 0)).clip(0, 1) for sign in (-1, 1))
    found = found.assign(low=next(bounds), high=next(bounds), interval="t 95 % over training runs", unit="fraction")
    return found.rename(columns={"mean": "value", "count": "n"}).drop(columns="std")


def trend(table: pd.DataFrame, quantity: str = "named/other_name") -> dict:
    """A quantity over the doses: its mean at the ends, Kendall's rank correlation over training runs, and a verdict."""
    rows, means = (t[t.quantity == quantity].sort_values("dose") for t in (table, over_runs(table)))
    tau, p = stats.kendalltau(rows.dose, rows.value)
    way = "it grows with the dose" if tau > 0 else "it falls with the dose"
    ends = {end: scores.estimate_of(means.iloc[k]) for end, k in (("first", 0), ("last", -1))}
    doses = {"least": rows.dose.min(), "most": rows.dose.max(), "runs": len(rows)}
    return ends | doses | {"tau": tau, "p": p, "verdict": way if p < 0.05 else "not decided"}
