"""Chapter 18: what a language model adds to the image encoder that it sees through, and what it takes over from it.

Both answer about the same pixels. The published protocol lets them choose between the truth and a confuser, the
encoder's best wrong class: its own weak spot, and no other model's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from zsr_utils import scores
from zsr_utils._text import read_yaml, unknown
from zsr_utils.conditions import Batch, Condition, Head, Seen, generator
from zsr_utils.datasets import Dataset, asked_scenes, natural_shifts
from zsr_utils.experiments import distribution_shifts, shape_bias, typographic_attacks
from zsr_utils.experiments.pairs import aligned_pairs, settings_of
from zsr_utils.measure import embed
from zsr_utils.models import Model, VisionLanguageModel, load_vlm
from zsr_utils.study import Study


QUESTION = "What is the main object in this image?"
LISTED = QUESTION + " Choose from the following list: {}, {}."
CANDIDATES = 10  # classes of which one is the answer where none is listed
PLACES = 8  # rows and columns of token grids that a probe sees
ENCODER, BOTH, ANOTHER = "encoder", "likelihood (both orders)", "another encoder (same two)"
SAME_TWO, OPEN = "nothing listed (same two)", "nothing listed (all candidates)"
THREE = (ENCODER, BOTH, OPEN)
WHO = {BOTH: "language model", ANOTHER: "another encoder"}
STAGED = ("original", "cards", "cue_conflict", "aligned")  # sets that are no distribution shift
QUESTIONS = {
    "kind": "what is it?", "colour": "what colour is the {kind}?", "pattern": "which pattern has the {kind}?",
    "count": "how many objects are on the table?", "word": "what does the card say?", "class": QUESTION,
}  # fmt: skip
MOST_ASKED = 20  # different answers: beyond, the language model is not asked
CHANGED = {  # steps of the protocol, and of a picture on its way to an answer
    "the encoder chooses the wrong option": (OPEN, SAME_TWO), "the two are listed": (SAME_TWO, BOTH),
    "projector": ("tower", "projector"), "answer": ("projector", "answer"),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a generative model says of the pixels that its encoder sees, as facts of any condition.

    `confuser`, the encoder's best wrong class; log-likelihoods of both names where the truth is listed `first_` and
    `second_`; what is `said` where it is first, and `graded`; the scores `open_0`, … of the candidates where none is
    listed, the truth's margin among them, `open`, the encoder's, `encoder_open`, and the truth's score less the
    confuser's, `open_beside`, infinite where that is none of them. Of every other encoder, in logits, `beside_<name>`.

    Source: The question and the grading of ImageNet-D (Zhang et al. 2024), as Tu et al. (2024) use them; both orders,
        likelihoods and candidates that no encoder chose are ours.
    """

    vlm: VisionLanguageModel
    others: Mapping[str, tuple[Model, Head]] = field(default_factory=dict)
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seed: int = 0

    def facts(self, batch: Batch, seen: Seen) -> dict:
        names, labels, images, n = batch.head.class_names, batch.labels, list(seen.pixels.cpu()), len(batch)
        pairs = torch.stack([labels, seen.logits.scatter(1, labels[:, None], -torch.inf).argmax(1)], 1)
        options = [(names[truth], names[other]) for truth, other in pairs.tolist()]
        first, second = ([LISTED.format(*pair[::step]) for pair in options] for step in (1, -1))
        given = torch.stack(self.vlm.score(images * 2, first + second, options * 2)[0]).double().view(2, n, 2)
        found = {"confuser": pairs[:, 1].numpy(), "said": self.vlm.answer(images, first)}
        found["graded"] = [graded(said, *pair, self.synonyms) for said, pair in zip(found["said"], options)]
        for order, of in zip(("first", "second"), given.numpy()):
            found |= {f"{order}_truth": of[:, 0], f"{order}_confuser": of[:, 1]}
        listed = torch.tensor([self.candidates(i, k, len(names)) for i, k in zip(batch.sample_ids, labels.tolist())])
        given, _ = self.vlm.score(images, [QUESTION] * n, [[names[k] for k in own] for own in listed])
        given, own, rest = torch.stack(given).double(), listed == labels[:, None], listed != pairs[:, 1:]
        found |= {f"open_{k}": column for k, column in enumerate(given.T.numpy())}
        margins = {"open": (given, own), "open_beside": (given, rest)}
        margins["encoder_open"] = seen.logits.gather(1, listed), own
        for name, (of, hidden) in margins.items():
            found[name] = (of[own] - of.masked_fill(hidden, -torch.inf).amax(1)).numpy()
        for name, (net, head) in self.others.items():
            shown = F.interpolate(seen.pixels, size=net.image_size, mode="bicubic", antialias=True).clamp(0, 1)
            logits = head.scores(net, net.encode_image(shown.to(net.device)))
            found[f"beside_{name}"] = logits.gather(1, pairs).diff(dim=1)[:, 0].neg().numpy()
        return found

    def candidates(self, sample_id: str, label: int, classes: int) -> list[int]:
        """At most ten classes in their order, the truth among them: no model has a hand in the choice."""
        others = generator(sample_id, (self.seed, "candidates")).permutation([k for k in range(classes) if k != label])
        return sorted([label, *others[: CANDIDATES - 1].tolist()])


def as_they_are(batch: Batch) -> Tensor:
    """Images as they are, decoded: of `unchanged` ones nobody is expected to look at the pixels."""
    return batch.pixels


def graded(said: str, truth: str, confuser: str, synonyms: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """Whose words an answer holds: `truth`, `confuser`, or `unclear` where it is both or neither.

    The longest word counts, so that a can opener is no pen.

    Examples:
        >>> graded("A can opener.", "pen", "can opener"), graded("a mug", "mug", "lamp")
        ('confuser', 'truth')
    """
    names = {"confuser": confuser, "truth": truth}
    owner = {word.lower(): who for who, name in names.items() for word in (name, *synonyms.get(name, ()))}
    longest_first = sorted(owner, key=len, reverse=True)
    found = {owner[word] for word in re.findall("|".join(map(re.escape, longest_first)), said.lower())}
    return found.pop() if len(found) == 1 else "unclear"


def synonyms_in(path: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Other words for class names, from a YAML or JSON file of lists by name, whose signs and spaces do not count.

    Raises: ValueError for a file of another kind, or one in which no class is found.
    """
    if not path:
        return {}
    table = read_yaml(Path(path))
    if not isinstance(table, dict) or not all(isinstance(words, list) for words in table.values()):
        raise ValueError(f"synonyms: {path!r} is no table of lists of words, allowed is such as 'tv: [television]'.")
    plain = {_plain(name): [str(word) for word in words] for name, words in table.items()}
    found = {name: plain[_plain(name)] for name in names if _plain(name) in plain}
    if not found:
        raise ValueError(f"synonyms: {path!r} has none of the {len(names)} classes, such as {names[0]!r}.")
    return found


def _plain(name: str) -> str:
    return re.sub(r"\W|_", "", str(name).lower())


def speakers(study: Study, names: Sequence[str]) -> dict[str, tuple[VisionLanguageModel, str]]:
    """Generative models by name, each with the model of the study that it sees through.

    Where its tower is known, that must be there; any other is taken to see through the study's own model.
    """
    found = {}
    for name in names:
        vlm = load_vlm(name, study.parameters["device"], study.parameters["precision"])
        tower = vlm.encoder.fingerprint if vlm.encoder else study.net.fingerprint
        towers = [known for known, net in study.nets.items() if net.fingerprint == tower]
        if not towers or (not found and towers[0] != study.name):
            where = "model or models" if found else "model"
            raise ValueError(f"{name!r} sees through {vlm.encoder.name!r}, which {where} must name.")
        found[name] = vlm, towers[0]
    return found


def image_sets(
    study: Study, wanted: Sequence[str], folders: Sequence[str], *, number: int, pairs: int, cosine: float
) -> dict[str, tuple[Dataset, Condition]]:
    """Unchanged images and those of the wanted sets that are known for them, each with how they are shown.

    Shifts of chapter 07, also from folders; `cards` that name another class; `cue_conflict` (Tabletop); and images
    `aligned` by chapter 02's machine with one of another class, until the encoder takes them for it.
    """
    p, few = study.parameters, study.images.subset(number, study.parameters["seed"])
    known = natural_shifts(few, folders, split=p["split"], limit=number, seed=p["seed"])
    found = {"original": few} | {name: shift.shown for name, shift in known.items()}
    if few.name == "tabletop":
        if odd := [name for name in wanted if name not in (*found, *STAGED)]:
            raise ValueError(unknown("set of images", odd[0], [*found, *STAGED]))
        found["cue_conflict"] = shape_bias.stimuli(few, per_pair=1)[0].subset(number, p["seed"])
    if unknown_here := [name for name in wanted if name not in (*found, "cards", "aligned")]:
        study.say("Not known for these images, and left out: {names}.", names=", ".join(unknown_here))
    asked = ("original", *wanted, *(Path(f).name for f in folders))
    sets = {n: (i, Condition(n, float(n != "original"), as_they_are, draws=1)) for n, i in found.items() if n in asked}
    if "cards" in wanted:
        every = typographic_attacks.cards(few, split=p["split"], seed=p["seed"])
        sets["cards"] = few, replace(next(c for c in every if c.name == "other_name"), name="cards")
    if "aligned" in wanted:
        options = {"number": pairs, "per_class": number, "one_a_source": True, "cosine": cosine, "seed": p["seed"]}
        made = aligned_pairs(study.net, few, settings_of(study), batch_size=p["batch_size"], **options)
        sets["aligned"] = few.only(made.table.sample_id.tolist()), made.condition("aligned")
    return sets


def examples(study: Study, sets: Mapping, rows: pd.DataFrame) -> tuple[list, list[str]]:
    """The first picture of every set as the encoder sees it, with its class and what the language model says of it."""
    pictures, captions = [], []
    for name, (images, condition) in sets.items():
        row = rows[rows.condition == name].iloc[0]
        pictures += distribution_shifts.changed(study, [condition], images.only([row.sample_id]))[0]
        captions.append(f"{name.replace('_', ' ')}\n{images.class_names[row.label]}: “{row.said}”")
    return pictures, captions


def measured(study: Study, speakers: Mapping, sets: Mapping, synonyms: Mapping) -> pd.DataFrame:
    """Rows of every generative model on every set; `model` is its encoder, `language_model` itself.

    Aligned images are made for one encoder, and shown to those alone that see through it.
    """
    frames = []
    for name, (vlm, tower) in speakers.items():
        for images, condition in (s for n, s in sets.items() if n != "aligned" or tower == study.name):
            rest = {n: net for n, net in study.nets.items() if n != tower}
            others = {n: (net, study.head(net, names=images.class_names)) for n, net in rest.items()}
            asked = replace(condition, facts=Asked(vlm, others, synonyms, study.parameters["seed"]).facts)
            frames.append(study.measure([asked], images=images, models=[tower], keep=False).assign(language_model=name))
    return study.keep_rows(pd.concat(frames, ignore_index=True))


def answers(rows: pd.DataFrame) -> pd.DataFrame:
    """Right answers by every `protocol`: `value`, 0.5 for one order of two, beside the `encoder`'s.

    The encoder chooses rightly between truth and confuser just where its answer is right. What a protocol leaves out
    has no row of it.
    """
    first, second = (rows[f"{o}_truth"] > rows[f"{o}_confuser"] for o in ("first", "second"))
    mark, right, others = rows.graded, scores.correct(rows), rows.filter(regex="^beside_")
    by = {
        ENCODER: right, "greedy (unclear left out)": (mark == "truth").where(mark != "unclear"),
        "greedy (unclear is wrong)": mark == "truth", "likelihood (truth first)": first,
        "likelihood (truth second)": second, BOTH: (first * 1.0 + second) / 2,
        ANOTHER: (others > 0).where(others.notna()).mean(axis=1),
        SAME_TWO: (rows.open_beside > 0).where(np.isfinite(rows.open_beside)), OPEN: rows.open > 0,
    }  # fmt: skip
    every = [rows.assign(protocol=n, value=np.asarray(v, float), encoder=right) for n, v in by.items()]
    every[-1]["encoder"] = (rows.encoder_open > 0).astype(float)
    return pd.concat(every, ignore_index=True).dropna(subset="value")


def shifted(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of distribution shifts, or of the images themselves where there is none."""
    kept = ~table.condition.isin(STAGED)
    return table[kept if kept.any() else table.condition == "original"]


def gains(answered: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """How many more answers are right than the encoder's, image by image."""
    answered = answered[answered.protocol != ENCODER]
    return scores.paired_changes(answered.assign(value=answered.encoder), answered, by, bounds=1.0)


def by_step(table: pd.DataFrame, column: str, by: Sequence[str] = (), *, bound: float = 1.0) -> pd.DataFrame:
    """What every step of `CHANGED` that a column of the table knows does to `value`, sample by sample."""
    steps = {step: pair for step, pair in CHANGED.items() if {*pair} <= {*table[column]}}
    sides = [[table[table[column] == pair[k]].assign(step=s) for s, pair in steps.items()] for k in (0, 1)]
    return scores.paired_changes(
        *(pd.concat(side or [table[:0].assign(step="")]) for side in sides), ["step", *by], bounds=bound
    )


def fooled(answered: pd.DataFrame) -> pd.DataFrame:
    """Wrong choices between truth and confuser, `value`, by `who` made them, and whether the encoder is `at_fault`."""
    table = answered[answered.protocol.isin([*WHO])]
    at_fault, who = np.where(table.encoder == 0, "wrong", "right"), table.protocol.map(WHO)
    return table.assign(value=1 - table.value, who=who, at_fault=at_fault, choice=who + ", encoder " + at_fault)


def taken_over(table: pd.DataFrame) -> scores.Estimate:
    """The language model's share of wrong choices where the encoder errs, less that where it does not."""
    own = table[table.who == "language model"]
    parts = (own[own.at_fault == fault] for fault in ("right", "wrong"))
    return scores.unpaired_difference(*(scores.share_of("value")(part) for part in parts))


def beyond_another(table: pd.DataFrame) -> pd.DataFrame:
    """By set, wrong choices of the language model less those of another encoder, on images that fool its own."""
    at_fault = table[table.at_fault == "wrong"]
    sides = (at_fault[at_fault.who == who] for who in ("another encoder", "language model"))
    return scores.paired_changes(*sides, "condition", bounds=1.0)


def to_probe(study: Study, *, training: int, test: int) -> tuple[list[Dataset], list[pd.DataFrame]]:
    """Pictures to fit probes on and others to test them, and what is true of each, by sample id.

    On Tabletop scenes with a card that names an absent kind; else the images themselves, every other one of a class.
    """
    number, seed = training + test, study.parameters["seed"]
    if study.images.name == "tabletop":
        images, facts = asked_scenes(number, seed)
        parts = facts.iloc[:training], facts.iloc[training:]
    else:
        images = study.images.subset(number, seed)
        read = embed(study.net, images, batch_size=study.parameters["batch_size"])  # without what is not readable
        facts = pd.DataFrame({"class": {i: images.class_names[k] for i, k in zip(read.sample_ids, read.labels)}})
        odd = facts.groupby("class").cumcount() % 2 == 1
        parts = facts[~odd], facts[odd]
    return [images.only(part.index) for part in parts], list(parts)


@torch.no_grad()
def on_the_way(vlm: VisionLanguageModel, net: Model, images: Dataset, batch_size: int) -> dict[str, np.ndarray]:
    """What a picture has become (n, numbers): tokens of the tower, after the projector, and the state that answers."""
    found: dict[str, list] = {"tower": [], "projector": [], "state": []}
    for _, pixels, _ in images.batches(net.from_pil, batch_size):
        grids = net.encode_tokens(pixels.to(net.device)).cpu(), torch.stack(vlm.image_tokens(list(pixels))).cpu()
        for name, grid in zip(found, grids):
            size = [min(PLACES, side) for side in grid.shape[1:3]]
            found[name].append(F.adaptive_avg_pool2d(grid.movedim(-1, 1), size).flatten(1))
        found["state"].append(vlm.state(list(pixels), [QUESTION] * len(pixels)).cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def probed(
    vlm: VisionLanguageModel, net: Model, images: Sequence[Dataset], facts: Sequence[pd.DataFrame], *,
    batch_size: int = 64,
) -> pd.DataFrame:  # fmt: skip
    """Which facts a linear reader finds, and what the model answers: `value` by `attribute`, `seen` and sample.

    Ridge classifiers, their penalty by leave-one-out on the pictures that they are fitted on. `most common` always says
    what is most common there. A fact of one value, or of no test picture, has no row.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (fit, test), found = facts, [pd.DataFrame(columns=["sample_id", "attribute", "seen", "value"])]
    asked = [attribute for attribute in fit if len(test) and fit[attribute].nunique() > 1]
    fitted, tested = (on_the_way(vlm, net, part, batch_size) if asked else {} for part in images)
    for attribute in asked:
        right = {"most common": test[attribute] == fit[attribute].mode()[0]}
        for place, values in fitted.items():
            probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 6, 7)))
            right[place] = probe.fit(values, fit[attribute]).predict(tested[place]) == test[attribute]
        right["answer"] = told(vlm, net, images[1], test, attribute, set(fit[attribute]), batch_size)
        same = {"sample_id": test.index, "attribute": attribute}
        found += [pd.DataFrame({**same, "seen": s, "value": np.asarray(v, float)}) for s, v in right.items() if len(v)]
    return pd.concat(found[1:] or found, ignore_index=True)


@torch.no_grad()
def told(vlm, net: Model, images: Dataset, facts: pd.DataFrame, attribute: str, known: set, batch_size: int):
    """Whether the likeliest of all answers is right (n,); empty where there are too many to ask."""
    options, found = sorted(known | set(facts[attribute])), []
    for ids, pixels, _ in images.batches(net.from_pil, batch_size) if len(options) <= MOST_ASKED else ():
        prompts = [QUESTIONS[attribute].format(**row) for row in facts.loc[ids].to_dict("records")]
        given, _ = vlm.score(list(pixels), prompts, [options] * len(ids))
        found += [options[int(s.argmax())] == right for s, right in zip(given, facts.loc[ids, attribute])]
    return np.array(found, float)


def compared(
    study: Study, answered: pd.DataFrame, speakers: Mapping, images: Sequence, facts: Sequence
) -> pd.DataFrame:
    """Right answers of other language models less those of the first, where nothing is listed, and of a card's word."""
    table = answered[answered.protocol == OPEN]
    for name, (vlm, tower) in speakers.items() if "word" in facts[1] and len(speakers) > 1 else ():
        read = told(
            vlm, study.nets[tower], images[1], facts[1], "word", set(facts[0].word), study.parameters["batch_size"]
        )
        own = {"sample_id": facts[1].index, "condition": "the card's word", "language_model": name, "value": read}
        table = pd.concat([table, pd.DataFrame(own)])
    mine = table.language_model == next(iter(speakers))
    base = [table[mine].assign(language_model=name) for name in list(speakers)[1:]]
    found = scores.paired_changes(
        pd.concat(base or [table[:0]]), table[~mine], ["language_model", "condition"], bounds=1.0
    )
    return found.assign(line=found.language_model + ", " + found.condition)
