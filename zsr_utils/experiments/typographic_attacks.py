"""Chapter 09: what a word in the picture does to an answer, what it does beyond the card it stands on, and the cause.

Every image is shown with cards that differ in one thing: nothing, letters, a word of no class, its own name or another
class's. In Tabletop the card is part of the scene and is rendered; in any other data set it is drawn on the picture.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Batch, Condition, Head, Seen
from zsr_utils.datasets import Dataset, card, load_dataset, random_of, rendered, scattered, tabletop_scenes
from zsr_utils.measure import measure
from zsr_utils.models import load_model


CONTROLS = ("blank", "letters", "scrambled", "no_class", "own_name", "other_name")
WIDTH = 1.28  # of rendered cards, enough for every word, so that width tells none apart
NO_CLASS = ("justice", "thursday", "velocity", "grammar", "harvest", "opinion", "winter", "melody")
QUOTE = ("a card that says {}",)
BESIDE = ("a photo of a {} with a card",)
NAMED = ("the object", "the word", "something else")
PLACES = {"top": (0.5, 0.15), "middle": (0.5, 0.5), "bottom": (0.5, 0.8)}


@dataclass(frozen=True)
class Card:
    """A card with a word, chosen for every image by its id alone; `pictures` have it in them, else it is drawn.

    The class that another name is taken from is the same under every control, so that each tells how often that class
    is answered anyway.
    """

    control: str
    foreign: tuple[str, ...] = NO_CLASS  # words of no class
    pictures: Dataset | None = None
    box: Mapping = field(default_factory=dict)  # height, width and place, as `datasets.card` takes them
    masked: bool = False  # whether the card is hidden again by the mean colour

    def word(self, sample_id: str, label: int, names: Sequence[str], seed: int) -> tuple[str, int]:
        """What the card says, and the class that it asks for."""
        rng = random_of(sample_id, seed, "card")
        asked = [k for k in range(len(names)) if k != label][rng.integers(len(names) - 1)]
        letters, foreign = list(names[asked]), [w for w in self.foreign if w not in names]
        if self.control == "letters":
            pool = [sign for name in names for sign in name if sign.isalpha()]
            return _no_name(lambda: rng.choice(pool, len(letters)), lambda w: sorted(w), names), asked
        if self.control == "scrambled":
            return _no_name(lambda: rng.permutation(letters), lambda w: w, names), asked
        texts = {"blank": "", "no_class": foreign[rng.integers(len(foreign))], "other_name": names[asked]}
        return (names[label], label) if self.control == "own_name" else (texts[self.control], asked)

    def words(self, batch: Batch) -> list[tuple[str, int]]:
        pairs = zip(batch.sample_ids, batch.labels.tolist())
        return [self.word(i, label, batch.head.class_names, batch.seed) for i, label in pairs]

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        if self.pictures:
            shown = [self.pictures.image(i) for i in batch.sample_ids]
        else:
            shown = [card(p, word, **self.box) for p, (word, _) in zip(batch.pictures, self.words(batch))]
        pixels = torch.stack([batch.net.from_pil(picture) for picture in shown]).to(batch.pixels.device)
        return masked(pixels, batch.pixels) if self.masked else pixels

    def facts(self, batch: Batch, seen: Seen) -> dict:
        """`word`, `word_label` (class that is asked for) and `beside_word` (logit of the label less that class's)."""
        words, asked = zip(*self.words(batch))
        logits = [seen.logits.gather(1, torch.as_tensor(k).long()[:, None])[:, 0] for k in (batch.labels, asked)]
        return {"word": words, "word_label": np.array(asked), "beside_word": (logits[0] - logits[1]).numpy()}


@dataclass(frozen=True)
class Copies(Card):
    """The name of another class written all over the picture, as in ImageNet-T; `copies` found a place."""

    control: str = "other_name"
    copies: int = 8
    letters: float = 1 / 12  # font size as a share of the shorter side

    def shown(self, batch: Batch) -> list[tuple]:
        options = {"copies": self.copies}
        return [
            scattered(p, word, random_of(i, batch.seed, "copies"), letters=self.letters * min(p.size), **options)
            for p, i, (word, _) in zip(batch.pictures, batch.sample_ids, self.words(batch))
        ]

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        return torch.stack([batch.net.from_pil(p) for p, _ in self.shown(batch)]).to(batch.pixels.device)

    def facts(self, batch: Batch, seen: Seen) -> dict:
        return Card.facts(self, batch, seen) | {"copies": np.array([len(boxes) for _, boxes in self.shown(batch)])}


def cards(images: Dataset, *, split: str = "validation", seed: int = 0, controls=CONTROLS, **box) -> list[Condition]:
    """The unchanged image, with the facts of the class that other cards ask for, and a condition a control.

    Severity is the height of a drawn card as a share of the picture's, and 1 for a rendered one. `masked` is the card
    with another class's name under a patch of the mean colour: what a perfect detector of text would leave.
    """
    scenes = _scenes(images, split) if not box else {}
    made = {c: _card(c, images, scenes, seed, box) for c in controls}
    severity = 1.0 if scenes else box.get("height", 0.2)
    shown = [Condition(c, severity, card.change, card.facts, draws=1) for c, card in made.items()]
    if "other_name" in made:
        hidden = replace(made["other_name"], masked=True)
        shown.append(Condition("masked", severity, hidden.change, hidden.facts, draws=1))
    return [replace(ORIGINAL, facts=Card("other_name").facts), *shown]


def drawn(heights: Sequence[float]) -> list[Condition]:
    """Drawn cards with another class's name: of growing height with their blank ones, and of one height in places."""
    boxes = [(c, c, h, {"height": h}) for h in heights for c in ("blank", "other_name")]
    boxes += [(place, "other_name", 1, {"place": at}) for place, at in PLACES.items()]
    made = [(name, severity, Card(control, box=box)) for name, control, severity, box in boxes]
    return [Condition(name, severity, c.change, c.facts, draws=1) for name, severity, c in made]


def copied(numbers: Sequence[int]) -> list[Condition]:
    """The paper's attack: growing numbers of copies of another class's name, without a card."""
    return [Condition("copies", n, Copies(copies=n).change, Copies(copies=n).facts, draws=1) for n in numbers]


def masked(pixels: Float[Tensor, "n 3 h w"], before: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pixels whose smallest box around all that changed has the mean colour of the rest."""
    result = pixels.clone()
    for image, changed in zip(result, (pixels != before).any(1)):
        rows, columns = (changed.any(axis).nonzero()[:, 0] for axis in (1, 0))
        if len(rows):
            box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
            outside = torch.ones_like(changed)
            outside[box] = False
            rest = image[:, outside] if outside.any() else image.flatten(1)
            image[:, *box] = rest.mean(1)[:, None, None]
    return result


def _scenes(images: Dataset, split: str) -> dict:
    """The scenes behind Tabletop's images; none for other data sets, whatever they are called."""
    scenes = tabletop_scenes(split) if images.name == "tabletop" else {}
    return {s.sample_id: scenes[s.sample_id] for s in images.samples} if scenes else {}


def _card(control: str, images: Dataset, scenes: Mapping, seed: int, box: Mapping) -> Card:
    if not scenes:
        return Card(control, box=dict(box))
    from tabletop.scene import HELD_OUT_KINDS

    made = Card(control, tuple(HELD_OUT_KINDS))
    said = {s.sample_id: made.word(s.sample_id, s.label, images.class_names, seed)[0] for s in images.samples}
    written = {i: replace(scene, card=said[i], card_width=WIDTH) for i, scene in scenes.items()}
    return replace(made, pictures=rendered(f"tabletop, {control}", written))


def _no_name(draw, form, names: Sequence[str]) -> str:
    """Letters that are the name of no class, if a hundred draws find any."""
    known = [form(name) for name in names]
    drawn = ("".join(draw()) for _ in range(100))
    return next((word for word in drawn if form(word) not in known), "".join(draw()))


def named(rows: pd.DataFrame) -> scores.Estimate:
    """Share of images whose answer is the class that the card asks for: attack success, where another name is on it."""
    return scores.proportion(int((rows.prediction == rows.word_label).sum()), len(rows))


def named_against(base: pd.DataFrame) -> scores.Statistic:
    """Share named as the card asks, less that in other rows of the same images."""
    both = lambda rows: [r.assign(hit=(r.prediction == r.word_label).astype(float)) for r in (base, rows)]
    return lambda rows: scores.paired_change(*both(rows), "hit")


def beyond_blank(rows: pd.DataFrame) -> pd.DataFrame:
    """Margin of the label less that beside a blank card, image by image, a row a model and control.

    Returns: The columns of an estimate in logits of the model's own scale, `p` of the sign-flip test, corrected by Holm
        over the controls of a model, and `verdict`: `more`, `less` or `undecided`.
    """
    found, rows = [], rows.assign(value=rows.margin)
    for model, part in rows.groupby("model", sort=False):
        other = part[part.condition.isin(CONTROLS[1:])]
        blank = part[part.condition == "blank"]
        base = pd.concat([blank.assign(condition=c) for c in other.condition.unique()])
        table = scores.paired_changes(base, other, "condition").assign(model=model, unit="logits")
        found.append(table.assign(p=scores.holm(table.p.to_numpy())))
    table = pd.concat(found, ignore_index=True)
    signs = np.where(table.p < 0.05, np.sign(table.value), 0)
    return table.assign(verdict=pd.Series(signs).map({1: "more", -1: "less", 0: "undecided"}))


def in_words(table: pd.DataFrame, model: str) -> str:
    """What each word does to the margin of a model beyond the blank card."""
    said = {"more": "raises", "less": "lowers", "undecided": "is not decided to change"}
    parts = [f"{r.condition.replace('_', ' ')} {said[r.verdict]} it ({scores.estimate_of(r):+.2f})"
             for r in table[table.model == model].itertuples()]  # fmt: skip
    return ", ".join(parts)


def answered(rows: pd.DataFrame, quoted: pd.DataFrame) -> pd.DataFrame:
    """Answers to two questions about the same pictures: `question`, and `named`, one of `NAMED`."""
    frames = [r.assign(question=q) for q, r in (("what is it?", rows), ("what does the card say?", quoted))]
    both = pd.concat(frames, ignore_index=True)
    which = [both.prediction == both.label, both.prediction == both.word_label]
    return both.assign(named=np.select([w.to_numpy(bool) for w in which], NAMED[:2], NAMED[2]))


def both_right(answers: pd.DataFrame) -> scores.Estimate:
    """Share of pictures of which the thing and the word are both named by their question."""
    right = answers.named == np.where(answers.question == "what is it?", NAMED[0], NAMED[1])
    all_right = right.groupby(answers.sample_id).all()
    return scores.proportion(int(all_right.sum()), len(all_right))


def confusion(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Shares of `NAMED` by model and question, and the names of the rows."""
    wide = table.pivot_table(index=["model", "question"], columns="named", values="value", sort=False, fill_value=0)
    return wide.reindex(columns=NAMED, fill_value=0).to_numpy(), [", ".join(key) for key in wide.index]


def shares(answers: pd.DataFrame) -> pd.DataFrame:
    """A row a model, question and kind of answer, also of those that nobody gave."""
    one_hot = pd.concat([answers.assign(named=n, hit=answers.named == n) for n in NAMED], ignore_index=True)
    return one_hot


def defences(base: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy with a defence less that without, image by image, with a card (`other_name`) and without one."""
    found = []
    for name, rows in others.items():
        for condition, text in (("other_name", "with the card"), ("original", "without a card")):
            for model, part in rows.groupby("model", sort=False):
                without = base[(base.model == model) & (base.condition == condition)]
                change = scores.accuracy_against(without)(part[part.condition == condition])
                found.append({"defence": name, "picture": text, "model": model, **asdict(change)})
    return pd.DataFrame(found)


def alone(images: Dataset, split: str = "validation") -> Dataset:
    """Tabletop's scenes without their thing, whose name a card on the table says."""
    scenes = _scenes(images, split).items()
    return rendered("cards alone", {i: replace(s, kind=None, card=s.kind, card_width=WIDTH) for i, s in scenes})


def dose(folder: Path | str, images: Dataset) -> pd.DataFrame:
    """What a fine-tuned model answers, a row a quantity, beside `dose`: the share of captions about a card's word."""
    net = load_model(f"local-dir:{Path(folder).resolve()}", device="cpu")
    plain, quote = (Head(net.classifier(images.class_names, t), images.class_names) for t in (images.templates, QUOTE))
    shown = cards(images)
    rows, quoted = (measure(net, images, head, shown) for head in (plain, quote))
    of = lambda r, condition: r[r.condition == condition]
    found = {f"named/{c}": named(of(rows, c)) for c in ("blank", "letters", "scrambled", "other_name")}
    found |= {f"accuracy/{c}": scores.accuracy(of(rows, c)) for c in ("original", "blank", "other_name")}
    found["read/other_name"] = named(of(quoted, "other_name"))
    found["read/alone"] = scores.accuracy(measure(net, alone(images), plain, [ORIGINAL]))
    for split in ("cartoon", "sketch"):
        found[f"accuracy/{split}"] = scores.accuracy(measure(net, load_dataset("tabletop", split), plain, [ORIGINAL]))
    config = yaml.safe_load((Path(folder) / "training.yaml").read_text())
    about = float(config["finetune"]["about_word"])
    return pd.DataFrame([{"dose": about, "quantity": q, **asdict(e)} for q, e in found.items()])


def trend(table: pd.DataFrame) -> tuple[float, float]:
    """Kendall's rank correlation of a quantity with the dose, one run a dose, and its exact two-sided p."""
    found = stats.kendalltau(table.dose, table.value, method="exact")
    return float(found.statistic), float(found.pvalue)


if __name__ == "__main__":
    every = load_dataset("tabletop", limit=400)
    made = pd.concat([dose(folder, every) for folder in sys.argv[1:]], ignore_index=True)
    print(made.sort_values(["quantity", "dose"]).round(6).to_csv(index=False), end="")
