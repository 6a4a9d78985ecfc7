"""Chapter 09: what a word in the picture does to an answer, what it does beyond its card, and what taught the model.

In Tabletop a card is part of the scene and is rendered; in any other data set it is drawn on the picture.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from jaxtyping import Float
from PIL import Image
from scipy import stats
from torch import Tensor

from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Batch, Condition, Head, Seen
from zsr_utils.datasets import Dataset, card, load_dataset, random_of, rendered, scam, scattered, tabletop_scenes
from zsr_utils.measure import measure
from zsr_utils.models import load_model
from zsr_utils.study import Study


CONTROLS = ("blank", "letters", "scrambled", "no_class", "own_name", "other_name")
BEYOND_BLANK = {control: ("blank", control) for control in CONTROLS[1:]}
WIDTH = 1.28  # of rendered cards, enough for every word, so that width tells none apart
NO_CLASS = ("justice", "thursday", "velocity", "grammar", "harvest", "opinion", "winter", "melody")
PLACES = {"top": (0.5, 0.15), "middle": (0.5, 0.5), "bottom": (0.5, 0.8)}
QUOTE = ("a card that says {}",)
NAMED = {"what is it?": "the object", "what does the card say?": "the word", "": "something else"}
CHANGES = {"more": "higher", "less": "lower", "undecided": "not decided"}
READS = {
    "more": "it is the word that does it", "less": "its letters alone do more",
    "undecided": "whether the word does more than its letters is not decided",
}  # fmt: skip
SHOWN = {
    "named/other_name": "another name is named", "named/scrambled": "its letters are, scrambled",
    "read/alone": "a card alone is read", "accuracy/original": "right without a card",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A card, and what it says of an image, which its id alone decides.

    The class that another name is taken from is the same under every control, so that each of them tells how often that
    class is answered anyway.
    """

    control: str  # one of `CONTROLS`
    seed: int = 0
    foreign: tuple[str, ...] = NO_CLASS  # words of no class
    pictures: Dataset | None = None  # that have the card in them; else it is drawn
    box: Mapping = field(default_factory=dict)  # of a drawn one, as `datasets.card` takes it
    masked: bool = False  # whether the box around all that changed becomes mid-grey
    copies: int = 0  # of the word all over the picture, in place of a card
    listed: Mapping[str, str] = field(default_factory=dict)  # words by sample id, in place of a control

    def word(self, sample_id: str, label: int, names: Sequence[str]) -> tuple[str, int]:
        """What the card says, and the class that it asks for."""
        if self.listed:
            return self.listed[sample_id], names.index(self.listed[sample_id])
        if self.control == "own_name":
            return names[label], label
        rng = random_of(sample_id, self.seed, "card")
        asked = int(rng.choice([k for k in range(len(names)) if k != label]))
        letters = list(names[asked])
        if self.control == "letters":
            letters = rng.choice([sign for name in names for sign in name if not sign.isspace()], len(letters))
        known = {"".join(sorted(name)) for name in names} if self.control == "letters" else set(names)
        orders = ["".join(rng.permutation(letters)) for _ in range(20)]
        foreign = [word for word in self.foreign if word not in names]
        said = {"blank": "", "no_class": str(rng.choice(foreign)), "other_name": names[asked]}
        mixed = next((w for w in orders if w not in known and "".join(sorted(w)) not in known), orders[0])
        return said.get(self.control, mixed), asked

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
            if changed.any():
                (top, bottom), (left, right) = (changed.any(axis).nonzero()[[0, -1], 0].tolist() for axis in (1, 0))
                image[:, top : bottom + 1, left : right + 1] = 0.5
        return pixels

    def facts(self, batch: Batch, seen: Seen) -> dict:
        """`word`, `word_label` (class that is asked for), `named` (whether it is the answer), `copies`.

        And `beside_word`, the logit of the label less that class's: SCAM lets a model choose between the two.
        """
        _, copies, words, asked = zip(*self.made(batch))
        asked = torch.tensor(asked)
        label, other = (seen.logits.gather(1, k.long()[:, None])[:, 0] for k in (batch.labels, asked))
        found = {"word": words, "word_label": asked.numpy(), "named": (seen.predictions == asked).numpy()}
        return found | {"copies": np.array(copies), "beside_word": (label - other).numpy()}

    def condition(self, name: str = "", severity: float = 1) -> Condition:
        return Condition(name or self.control, float(severity), self.change, self.facts, draws=1)


def cards(images: Dataset, *, split: str = "validation", seed: int = 0) -> list[Condition]:
    """The unchanged image, a condition a control, and `masked`: the last one's card under a grey patch."""
    shown = [_in_scene(Card(control, seed), images, split) for control in CONTROLS]
    unchanged = replace(ORIGINAL, facts=Card("other_name", seed).facts)
    return [unchanged, *(c.condition() for c in shown), replace(shown[-1], masked=True).condition("masked")]


def drawn(heights: Sequence[float], *, seed: int = 0) -> dict[str, tuple[Condition, Condition]]:
    """Drawn cards of some heights and in some places: blank, and with another class's name."""
    boxes = {f"{h:g} high": {"height": h} for h in heights} | {name: {"place": at} for name, at in PLACES.items()}
    both = {name: [Card(c, seed, box=box) for c in ("blank", "other_name")] for name, box in boxes.items()}
    return {name: tuple(c.condition(f"{c.control}, {name}") for c in pair) for name, pair in both.items()}


def photographed(folder: Path | str) -> tuple[Dataset, list[Condition]]:
    """SCAM's pictures without a word, and the conditions that show the same things beside one."""
    (_, clean), *others = (variants := scam(folder))[0].items()
    made = {name: Card("listed", pictures=pictures, listed=variants[1]) for name, pictures in others}
    unchanged = replace(ORIGINAL, facts=next(iter(made.values())).facts)
    return clean, [unchanged, *(shown.condition(name.lower()) for name, shown in made.items())]


def _in_scene(drawn: Card, images: Dataset, split: str) -> Card:
    """The card in Tabletop's scenes; as it is in other data sets."""
    if images.name != "tabletop":
        return drawn
    from tabletop import HELD_OUT_KINDS

    scenes, made = tabletop_scenes(split), replace(drawn, foreign=tuple(HELD_OUT_KINDS))
    said = {s.sample_id: made.word(s.sample_id, s.label, images.class_names)[0] for s in images.samples}
    written = {i: replace(scenes[i], card=word, card_width=WIDTH) for i, word in said.items()}
    return replace(made, pictures=rendered(f"tabletop, {drawn.control}", written))


def examples(images: Dataset, shown: Sequence[Condition]) -> tuple[list[Image.Image], list[str]]:
    """The first picture under every control, with captions."""
    (sample_id, original, label), found = next(iter(images)), {}
    for how in (c.change.__self__ for c in shown if c.name in CONTROLS):
        word, _ = how.word(sample_id, label, images.class_names)
        found[f"{how.control.replace('_', ' ')}\n{word}"] = how.picture(original, sample_id, word)[0]
    return [original, *found.values()], [f"original\n{images.class_names[label]}", *found]


def beyond(rows: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], column: str = "right", **options) -> pd.DataFrame:
    """Mean differences of a column between two conditions, image by image, a row a model and line of `pairs`.

    Args:
        pairs: The conditions by line: what is compared with, and what is compared.
        column: `right` for right answers, or a number in the rows.
        options: `unit`, and a `bound` of the differences, as `scores.paired_mean` takes it.

    Returns: The columns of an estimate, `p` of the sign-flip test, corrected by Holm over the lines of a model, and
        `verdict`: `more`, `less` or `undecided`.
    """
    found, bounds = [], dict.fromkeys(pairs, 1.0 if column == "right" else None)
    for model, own in rows.assign(right=scores.correct(rows)).groupby("model", sort=False):
        own = own.assign(value=own[column])
        sides = ([own[own.condition == pair[k]].assign(line=line) for line, pair in pairs.items()] for k in (0, 1))
        table = scores.paired_changes(*map(pd.concat, sides), "line", bounds=bounds)
        found.append(table.assign(model=model, p=scores.holm(table.p.to_numpy()), **options))
    table = pd.concat(found, ignore_index=True)
    return table.assign(verdict=np.select([table.p >= 0.05, table.value > 0], ["undecided", "more"], "less"))


def defended(study: Study, rows: pd.DataFrame, shown: Sequence[Condition], *, most: int = 16) -> pd.DataFrame:
    """What defences do to right answers, with a card of another name and without one; see `beyond`.

    One prompt says that there is a card, one also what may be on it: class names, over which prompts are averaged.
    """
    says = [f"a photo of a {{}} with a card that says {name}" for name in study.names[:: -(-len(study.names) // most)]]
    prompts = {"mention a card": ["a photo of a {} with a card"], "mention its word": says}
    frames, hidden = [rows], rows.condition.replace({"masked": "other_name", "other_name": ""})
    for name in (*prompts, "hide the card"):
        tried = (
            study.measure(shown, prompts=prompts[name], keep=False)
            if name in prompts
            else rows.assign(condition=hidden)
        )
        frames.append(tried.assign(condition=name + tried.condition))
    where = {"with a card": "other_name", "without": "original"}
    return beyond(
        pd.concat(frames), {f"{d}, {w}": (c, d + c) for d in (*prompts, "hide the card") for w, c in where.items()}
    )


def in_words(table: pd.DataFrame, model: str, spec: str = "points") -> str:
    """What each line of `beyond` shows of a model."""
    rows = table[table.model == model].itertuples()
    return "; ".join(f"{r.line.replace('_', ' ')}: {CHANGES[r.verdict]} ({scores.estimate_of(r):{spec}})" for r in rows)


def by_model(table: pd.DataFrame, spec: str = "pct") -> str:
    """A table of one estimate a model, in words."""
    return "; ".join(f"{row.model} {scores.estimate_of(row):{spec}}" for row in table.itertuples())


def answered(rows: pd.DataFrame, quoted: pd.DataFrame) -> pd.DataFrame:
    """Answers to two questions about the same pictures: three rows each, of which that of what was named has `hit`."""
    both = pd.concat([r.assign(question=q) for q, r in zip(NAMED, (rows, quoted))], ignore_index=True)
    given = np.select([both.prediction == both.label, both.named.astype(bool)], [*NAMED.values()][:2], NAMED[""])
    return pd.concat([both.assign(what=what, hit=given == what) for what in NAMED.values()], ignore_index=True)


def both_right(answers: pd.DataFrame) -> scores.Estimate:
    """Share of pictures of which the object and the word are both named, each by its question."""
    right = answers[answers.what == answers.question.map(NAMED)].groupby("sample_id").hit.all()
    return scores.proportion(int(right.sum()), len(right))


def confusion(table: pd.DataFrame) -> dict:
    """Shares of what is named by model and question, as `plots.heatmap` takes them."""
    lines, what = list(product(table.model.unique(), table.question.unique())), table.what.unique()
    wide = table.set_index(["model", "question", "what"]).value.unstack()
    return {"values": wide.loc[lines, what].to_numpy(), "rows": [", ".join(line) for line in lines], "columns": what}


def dose(folder: Path | str, images: Dataset) -> pd.DataFrame:
    """What a fine-tuned model answers, a row a quantity, beside `dose`: the share of captions about a card's word."""
    net = load_model(f"local-dir:{Path(folder).resolve()}", device="cpu")
    plain, quote = (Head(net.classifier(images.class_names, t), images.class_names) for t in (images.templates, QUOTE))
    rows, quoted = (measure(net, images, head, cards(images)).groupby("condition") for head in (plain, quote))
    found = {f"named/{c}": scores.share_of("named")(rows.get_group(c)) for c in ("letters", "scrambled", "other_name")}
    found |= {f"accuracy/{c}": scores.accuracy(rows.get_group(c)) for c in ("original", "blank", "other_name")}
    found["read/other_name"] = scores.share_of("named")(quoted.get_group("other_name"))
    scenes = {s.sample_id: tabletop_scenes()[s.sample_id] for s in images.samples}
    cards_alone = {i: replace(s, kind=None, card=s.kind, card_width=WIDTH) for i, s in scenes.items()}
    further = {f"accuracy/{split}": load_dataset("tabletop", split) for split in ("cartoon", "sketch")}
    for quantity, pictures in {"read/alone": rendered("cards alone", cards_alone), **further}.items():
        found[quantity] = scores.accuracy(measure(net, pictures, plain, [ORIGINAL]))
    share = yaml.safe_load((Path(folder) / "training.yaml").read_text())["finetune"]["about_word"]
    return pd.DataFrame([{"dose": float(share), "quantity": q, **asdict(e)} for q, e in found.items()])


def trend(table: pd.DataFrame, quantity: str = "named/other_name") -> dict:
    """A quantity over the doses, one run each: its ends, Kendall's rank correlation with its exact p, and a verdict."""
    rows = table[table.quantity == quantity].sort_values("dose")
    every = [stats.kendalltau(rows.dose, values).statistic for values in permutations(rows.value)]
    p = float(np.mean(np.abs(np.nan_to_num(every)) >= abs(np.nan_to_num(every[0])) - 1e-9))
    verdict = "not decided" if p >= 0.05 else "it grows with the dose" if every[0] > 0 else "it falls with the dose"
    first, last = (scores.estimate_of(rows.iloc[k]) for k in (0, -1))
    ends = {"least": rows.dose.min(), "most": rows.dose.max(), "first": first, "last": last, "runs": len(rows)}
    return ends | {"tau": float(every[0]), "p": p, "verdict": verdict}


if __name__ == "__main__":  # FOLDER... > data/tabletop/reading_doses.csv
    tables = [dose(folder, load_dataset("tabletop", limit=400)) for folder in sys.argv[1:]]
    pd.concat(tables).sort_values(["quantity", "dose"]).round(6).to_csv(sys.stdout, index=False)
