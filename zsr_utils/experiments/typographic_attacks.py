"""Chapter 09: what a word in the picture does to an answer, what it does beyond its card, and what taught the model.

Every image is shown with cards that differ in one thing: nothing, letters, a word of no class, its own name or another
class's. In Tabletop the card is part of the scene and is rendered; in any other data set it is drawn on the picture.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
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


CONTROLS = ("blank", "letters", "scrambled", "no_class", "own_name", "other_name")
WIDTH = 1.28  # of rendered cards, enough for every word, so that width tells none apart
NO_CLASS = ("justice", "thursday", "velocity", "grammar", "harvest", "opinion", "winter", "melody")
QUOTE = ("a card that says {}",)
QUESTIONS = {"what is it?": "the object", "what does the card say?": "the word"}
NAMED = (*QUESTIONS.values(), "something else")
PLACES = {"top": (0.5, 0.15), "middle": (0.5, 0.5), "bottom": (0.5, 0.8)}
ENDS = {"blank": ", blank", "other_name": ", another name"}
CHANGES = {"more": "raises", "less": "lowers", "undecided": "is not decided to change"}
READS = {
    "more": "it is the word that does it",
    "less": "the letters alone do more",
    "undecided": "that the word does more than its letters is not decided",
}
SHOWN = {
    "named/other_name": "another name is named",
    "named/scrambled": "scrambled, it is named",
    "read/alone": "a card alone is read",
    "accuracy/original": "right without a card",
}


@dataclass(frozen=True)
class Card:
    """A card with a word, chosen for every image by its id alone; `pictures` have it in them, else it is drawn.

    The class that another name is taken from is the same under every control, so that each tells how often that class
    is answered anyway.
    """

    control: str
    seed: int = 0
    foreign: tuple[str, ...] = NO_CLASS  # words of no class
    pictures: Dataset | None = None
    box: Mapping = field(default_factory=dict)  # height, width and place, as `datasets.card` takes them
    masked: bool = False  # whether the card is hidden again by the mean colour
    copies: int = 0  # of the word all over the picture, in place of a card

    def word(self, sample_id: str, label: int, names: Sequence[str]) -> tuple[str, int]:
        """What the card says, and the class that it asks for."""
        rng = random_of(sample_id, self.seed, "card")
        asked = [k for k in range(len(names)) if k != label][rng.integers(len(names) - 1)]
        letters, foreign = list(names[asked]), [w for w in self.foreign if w not in names]
        pool = [sign for name in names for sign in name if not sign.isspace()]
        if self.control == "own_name":
            return names[label], label
        drawn = {
            "blank": lambda: "",
            "letters": lambda: _no_name(lambda: rng.choice(pool, len(letters)), sorted, names),
            "scrambled": lambda: _no_name(lambda: rng.permutation(letters), list, names),
            "no_class": lambda: str(rng.choice(foreign)),
            "other_name": lambda: names[asked],
        }
        return drawn[self.control](), asked

    def picture(self, picture: Image.Image, sample_id: str, word: str) -> tuple[Image.Image, int]:
        """A picture with its card or copies, and how many found a place."""
        if self.copies:
            rng, size = random_of(sample_id, self.seed, "copies"), min(picture.size) / 12
            shown, boxes = scattered(picture, word, rng, copies=self.copies, letters=size)
            return shown, len(boxes)
        return (self.pictures.image(sample_id) if self.pictures else card(picture, word, **self.box)), 1

    def words(self, batch: Batch) -> list[tuple[str, int]]:
        return [self.word(i, k, batch.head.class_names) for i, k in zip(batch.sample_ids, batch.labels.tolist())]

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        each = zip(batch.pictures, batch.sample_ids, self.words(batch))
        shown = [batch.net.from_pil(self.picture(p, i, word)[0]) for p, i, (word, _) in each]
        pixels = torch.stack(shown).to(batch.pixels.device)
        return masked(pixels, batch.pixels) if self.masked else pixels

    def facts(self, batch: Batch, seen: Seen) -> dict:
        """`word`, `word_label` (class that is asked for), `beside_word` (logit of the label less that class's)."""
        words, asked = zip(*self.words(batch))
        label, other = (seen.logits.gather(1, torch.as_tensor(k).long()[:, None])[:, 0] for k in (batch.labels, asked))
        found = {"word": words, "word_label": np.array(asked), "beside_word": (label - other).numpy()}
        if self.copies:
            each = zip(batch.pictures, batch.sample_ids, words)
            found["copies"] = np.array([self.picture(p, i, word)[1] for p, i, word in each])
        return found


@dataclass(frozen=True)
class Photographed(Card):
    """Pictures that have the word of a list in them, such as those of SCAM."""

    control: str = "photographed"
    listed: Mapping[str, str] = field(default_factory=dict)  # words by sample id

    def word(self, sample_id: str, label: int, names: Sequence[str]) -> tuple[str, int]:
        return self.listed[sample_id], names.index(self.listed[sample_id])


def cards(images: Dataset, *, split: str = "validation", seed: int = 0) -> list[Condition]:
    """The unchanged image, with the facts of the class that cards ask for, and a condition a control.

    Severity is 1 for a rendered card, and the height of a drawn one as a share of the picture's. `masked` is the card
    with another class's name under a patch of the mean colour: what a perfect detector of text would leave.
    """
    scenes = _scenes(images, split)
    made = [_card(control, images, scenes, seed) for control in CONTROLS]
    shown = [_condition(c.control, 1 if scenes else 0.2, c) for c in made]
    unchanged = replace(ORIGINAL, facts=Card("other_name", seed).facts)
    return [unchanged, *shown, _condition("masked", shown[-1].severity, replace(made[-1], masked=True))]


def drawn(heights: Sequence[float], *, seed: int = 0) -> list[Condition]:
    """Drawn cards with another class's name: of growing height with their blank ones, and of one height in places."""
    shown = [_condition(c, h, Card(c, seed, box={"height": h})) for h in heights for c in ("blank", "other_name")]
    return shown + [_condition(p, 1, Card("other_name", seed, box={"place": at})) for p, at in PLACES.items()]


def copied(numbers: Sequence[int], *, seed: int = 0) -> list[Condition]:
    """The attack of Wang et al.: growing numbers of copies of another class's name, without a card."""
    return [_condition("copies", n, Card("other_name", seed, copies=n)) for n in numbers]


def photographed(folder: Path | str) -> tuple[Dataset, list[Condition]]:
    """SCAM's pictures without a word, and the conditions that show the same things beside one."""
    variants, words = scam(folder)
    clean = variants.pop("NoSCAM")
    made = [(name, Photographed(pictures=pictures, listed=words)) for name, pictures in variants.items()]
    return clean, [replace(ORIGINAL, facts=made[0][1].facts), *(_condition(name.lower(), 1, c) for name, c in made)]


def masked(pixels: Float[Tensor, "n 3 h w"], before: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pixels whose smallest box around all that changed has the mean colour of the picture."""
    result = pixels.clone()
    for image, changed in zip(result, (pixels != before).any(1)):
        if changed.any():
            rows, columns = (changed.any(axis).nonzero()[:, 0] for axis in (1, 0))
            image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = image.mean((1, 2))[:, None, None]
    return result


def _condition(name: str, severity: float, how: Card) -> Condition:
    return Condition(name, float(severity), how.change, how.facts, draws=1)


def _scenes(images: Dataset, split: str) -> dict:
    """The scenes behind Tabletop's images; none for other data sets."""
    scenes = tabletop_scenes(split) if images.name == "tabletop" else {}
    return {s.sample_id: scenes[s.sample_id] for s in images.samples} if scenes else {}


def _card(control: str, images: Dataset, scenes: Mapping, seed: int) -> Card:
    if not scenes:
        return Card(control, seed)
    from tabletop import HELD_OUT_KINDS

    made = Card(control, seed, tuple(HELD_OUT_KINDS))
    said = {s.sample_id: made.word(s.sample_id, s.label, images.class_names)[0] for s in images.samples}
    written = {i: replace(scene, card=said[i], card_width=WIDTH) for i, scene in scenes.items()}
    return replace(made, pictures=rendered(f"tabletop, {control}", written))


def _no_name(draw, form, names: Sequence[str]) -> str:
    """Letters that are the name of no class, if a hundred draws find any."""
    known = [form(name) for name in names]
    words = ["".join(draw()) for _ in range(100)]
    return next((word for word in words if form(word) not in known), words[0])


def examples(images: Dataset, shown: Sequence[Condition]) -> tuple[list[Image.Image], list[str]]:
    """The first picture under every control, with captions."""
    sample_id, picture, label = next(iter(images))
    pictures, captions = [picture], [f"original\n{images.class_names[label]}"]
    for condition in shown:
        if condition.name in CONTROLS:
            how = condition.change.__self__
            word = how.word(sample_id, label, images.class_names)[0]
            pictures.append(how.picture(picture, sample_id, word)[0])
            captions.append(f"{condition.name.replace('_', ' ')}\n{word}")
    return pictures, captions


def named(rows: pd.DataFrame) -> scores.Estimate:
    """Share of images whose answer is the class that the card asks for: attack success, where another name is on it."""
    return scores.proportion(int((rows.prediction == rows.word_label).sum()), len(rows))


def named_against(base: pd.DataFrame) -> scores.Statistic:
    """Share named as the card asks, less that in other rows of the same images and model."""

    def statistic(rows: pd.DataFrame) -> scores.Estimate:
        one, other = (r.assign(hit=(r.prediction == r.word_label).astype(float)) for r in (base, rows))
        return scores.paired_change(one[one.model.isin(rows.model)], other, "hit")

    return statistic


def of_two(rows: pd.DataFrame) -> scores.Estimate:
    """Share of images whose label gets a larger logit than the class of the word: SCAM's accuracy."""
    return scores.proportion(int((rows.beside_word > 0).sum()), len(rows))


def beyond_blank(rows: pd.DataFrame) -> pd.DataFrame:
    """Margin of the label less that beside a blank card, in logits of the model's own scale; see `_corrected`."""
    rows, blank = rows.assign(value=rows.margin), rows[rows.condition == "blank"]
    base = pd.concat([blank.assign(value=blank.margin, condition=c) for c in CONTROLS[1:]])
    return _corrected(base, rows[rows.condition.isin(CONTROLS[1:])]).assign(unit="logits")


def defended(base: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Right answers with a defence less those without, with a card of another name and without; see `_corrected`."""
    both = {"other_name": "with a card", "original": "without"}
    frames = []
    for name in others:
        for rows in (base, others[name]):
            rows = rows[rows.condition.isin(both)]
            line = name + ", " + rows.condition.map(both)
            frames.append(rows.assign(condition=line, value=scores.correct(rows)))
    return _corrected(pd.concat(frames[::2]), pd.concat(frames[1::2]), bound=1)


def _corrected(base: pd.DataFrame, rows: pd.DataFrame, bound: float | None = None) -> pd.DataFrame:
    """Mean differences of `value` by `condition`, image by image.

    Returns: A row a model and condition: the columns of an estimate, `p` of the sign-flip test, corrected by Holm over
        the conditions of a model, and `verdict`: `more`, `less` or `undecided`.
    """
    found = []
    for model, part in rows.groupby("model", sort=False):
        bounds = dict.fromkeys(part.condition, bound)
        table = scores.paired_changes(base[base.model == model], part, "condition", bounds=bounds)
        found.append(table.assign(model=model, p=scores.holm(table.p.to_numpy())))
    table = pd.concat(found, ignore_index=True)
    return table.assign(verdict=np.select([table.p >= 0.05, table.value > 0], ["undecided", "more"], "less"))


def in_words(table: pd.DataFrame, model: str, spec: str) -> str:
    """What each condition changes in a model, as the corrected tests decide."""
    rows = table[table.model == model].itertuples()
    said = [(r.condition.replace("_", " "), CHANGES[r.verdict], scores.estimate_of(r)) for r in rows]
    return "; ".join(f"{condition} {verdict} it ({estimate:{spec}})" for condition, verdict, estimate in said)


def by_model(table: pd.DataFrame, spec: str = "pct") -> str:
    """A table of one estimate a model, in words."""
    return "; ".join(f"{row.model} {scores.estimate_of(row):{spec}}" for row in table.itertuples())


def answered(rows: pd.DataFrame, quoted: pd.DataFrame) -> pd.DataFrame:
    """Answers to two questions about the same pictures, three rows each: `question`, `named` of `NAMED` and `hit`."""
    both = pd.concat([r.assign(question=q) for q, r in zip(QUESTIONS, (rows, quoted))], ignore_index=True)
    which = [(both.prediction == both[c]).to_numpy(bool) for c in ("label", "word_label")]
    given = np.select(which, NAMED[:2], NAMED[2])
    return pd.concat([both.assign(named=n, hit=given == n) for n in NAMED], ignore_index=True)


def both_right(answers: pd.DataFrame) -> scores.Estimate:
    """Share of pictures of which the object and the word are both named, each by its question."""
    right = answers[answers.named == answers.question.map(QUESTIONS)].groupby("sample_id").hit.all()
    return scores.proportion(int(right.sum()), len(right))


def confusion(table: pd.DataFrame) -> dict:
    """Shares of `NAMED` by model and question, as `plots.heatmap` takes them."""
    lines = list(dict.fromkeys(zip(table.model, table.question)))
    values = table.set_index(["model", "question", "named"]).value
    shares = np.array([[values[model, question, name] for name in NAMED] for model, question in lines])
    return {"values": shares, "rows": [", ".join(line) for line in lines], "columns": NAMED}


def mentions(names: Sequence[str], *, most: int = 16) -> dict[str, tuple[str, ...]]:
    """Prompts that say that there is a card, and what may be on it: some class names, whose prompts are averaged."""
    some = names[:: -(-len(names) // most)]
    says = tuple(f"a photo of a {{}} with a card that says {name}" for name in some)
    return {"prompt: a card": ("a photo of a {} with a card",), "prompt: a card that says": says}


def alone(images: Dataset, split: str = "validation") -> Dataset:
    """Tabletop's scenes without their object, whose name a card on the table says."""
    scenes = _scenes(images, split).items()
    return rendered("cards alone", {i: replace(s, kind=None, card=s.kind, card_width=WIDTH) for i, s in scenes})


def dose(folder: Path | str, images: Dataset) -> pd.DataFrame:
    """What a fine-tuned model answers, a row a quantity, beside `dose`: the share of captions about a card's word."""
    net = load_model(f"local-dir:{Path(folder).resolve()}", device="cpu")
    plain, quote = (Head(net.classifier(images.class_names, t), images.class_names) for t in (images.templates, QUOTE))
    rows, quoted = (measure(net, images, head, cards(images)) for head in (plain, quote))
    found = {f"named/{c}": named(rows[rows.condition == c]) for c in ("letters", "scrambled", "other_name")}
    found |= {f"accuracy/{c}": scores.accuracy(rows[rows.condition == c]) for c in ("original", "blank", "other_name")}
    found["read/other_name"] = named(quoted[quoted.condition == "other_name"])
    further = {f"accuracy/{split}": load_dataset("tabletop", split) for split in ("cartoon", "sketch")}
    for quantity, pictures in {"read/alone": alone(images), **further}.items():
        found[quantity] = scores.accuracy(measure(net, pictures, plain, [ORIGINAL]))
    share = yaml.safe_load((Path(folder) / "training.yaml").read_text())["finetune"]["about_word"]
    return pd.DataFrame([{"dose": float(share), "quantity": q, **asdict(e)} for q, e in found.items()])


def trend(table: pd.DataFrame) -> tuple[float, float]:
    """Kendall's rank correlation of a quantity with the dose, one run a dose, and its exact two-sided p.

    Examples:
        >>> trend(pd.DataFrame({"dose": [0, 0.2, 0.5, 0.7], "value": [0.1, 0.2, 0.3, 0.4]}))
        (1.0, 0.08333333333333333)
    """
    of = lambda values: stats.kendalltau(table.dose, values).statistic
    tau, every = of(table.value), [of(values) for values in permutations(table.value)]
    return float(tau), float(np.mean([abs(t) >= abs(tau) - 1e-9 for t in every]))


def dose_in_words(table: pd.DataFrame, quantity: str = "named/other_name") -> dict:
    """What the dose series shows of a quantity: its ends, its trend and what that decides."""
    rows = table[table.quantity == quantity].sort_values("dose")
    tau, p = trend(rows) if len(rows) > 1 else (0.0, 1.0)
    verdict = "not decided" if p >= 0.05 else "it grows with the dose" if tau > 0 else "it falls with the dose"
    ends = {"least": rows.dose.iloc[0], "most": rows.dose.iloc[-1], "runs": len(rows)}
    first, last = (scores.estimate_of(rows.iloc[k]) for k in (0, -1))
    return ends | {"first": first, "last": last, "tau": tau, "p": p, "verdict": verdict}


if __name__ == "__main__":
    every = load_dataset("tabletop", limit=400)
    made = pd.concat([dose(folder, every) for folder in sys.argv[1:]], ignore_index=True)
    made.sort_values(["quantity", "dose"]).round(6).to_csv(sys.stdout, index=False)
