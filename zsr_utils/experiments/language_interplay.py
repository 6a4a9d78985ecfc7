"""Chapter 18: what a language model adds to the image encoder that it sees through, and what it takes over from it.

Both answer about the same pixels. The published protocol lets them choose between the truth and a confuser, the
encoder's best wrong class; so chosen, it is the encoder's own weak spot, and no other model's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from zsr_utils import scores
from zsr_utils._text import read_yaml, unknown
from zsr_utils.conditions import Batch, Condition, Head, Seen, generator
from zsr_utils.datasets import Dataset, asked_scenes, natural_shifts
from zsr_utils.experiments import shape_bias, typographic_attacks
from zsr_utils.experiments.pairs import aligned_pairs, settings_of
from zsr_utils.models import Model, VisionLanguageModel, load_vlm
from zsr_utils.study import Study


QUESTION = "What is the main object in this image?"
LISTED = QUESTION + " Choose from the following list: {}, {}."
CANDIDATES = 10  # classes of which one is the answer where none is listed: the truth and others, drawn by the sample id
PLACES = 8  # rows and columns of token grids that a probe sees
PUBLISHED, BOTH, OPEN = "greedy, unclear left out", "likelihood, both orders", "likelihood, nothing listed"
WITHIN = "aligned"  # images that were made to fool the encoder: no part of what is pooled
# What is asked about a scene, and what there is to answer.
QUESTIONS = {
    "kind": "what is it?", "colour": "what colour is the {kind}?", "pattern": "which pattern has the {kind}?",
    "count": "how many objects are on the table?", "word": "what does the card say?", "class": QUESTION,
}  # fmt: skip
MOST_ASKED = 20  # different answers: beyond, the language model is not asked


@dataclass(frozen=True)
class Asked:
    """What a generative model says of the pixels that its encoder sees, as facts of any condition.

    `confuser`, the encoder's best wrong class; log-likelihoods of both names where the truth is listed `first_` and
    `second_`; what is `said` where it is first, and `graded`; the scores `open_0`, … of the candidates where none is
    listed, and the truth's margin among them, `open`, also the encoder's, `encoder_open`. Of every other encoder, the
    logit of the truth less the confuser's, `beside_<name>`.

    Source: The question and the grading of ImageNet-D (Zhang et al. 2024), as Tu et al. (2024) use them; both orders,
        likelihoods and candidates that no encoder chose are ours.
    """

    vlm: VisionLanguageModel
    others: Mapping[str, tuple[Model, Head]] = field(default_factory=dict)
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seed: int = 0

    def facts(self, batch: Batch, seen: Seen) -> dict:
        names, labels, images = batch.head.class_names, batch.labels, list(seen.pixels.cpu())
        confuser = seen.logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        pairs, found = torch.stack([labels, confuser], 1), {"confuser": confuser.numpy()}
        options = [(names[truth], names[other]) for truth, other in pairs.tolist()]
        for order, step in {"first": 1, "second": -1}.items():
            prompts = [LISTED.format(*pair[::step]) for pair in options]
            given = torch.stack(self.vlm.score(images, prompts, options)[0]).double().numpy()
            found |= {f"{order}_{who}": given[:, k] for k, who in enumerate(("truth", "confuser"))}
            if order == "first":
                said = self.vlm.answer(images, prompts)
                marks = [graded(text, *(self.words(o) for o in pair)) for text, pair in zip(said, options)]
                found |= {"said": said, "graded": marks}
        listed = torch.tensor([self.candidates(i, k, len(names)) for i, k in zip(batch.sample_ids, labels.tolist())])
        given, _ = self.vlm.score(images, [QUESTION] * len(images), [[names[k] for k in own] for own in listed])
        given = torch.stack(given).double()
        found |= {f"open_{k}": column for k, column in enumerate(given.T.numpy())}
        found |= {
            "open": _margin(given, listed, labels),
            "encoder_open": _margin(seen.logits.gather(1, listed), listed, labels),
        }
        for name, (net, head) in self.others.items():
            logits = head.scores(net, net.encode_image(_at_size(seen.pixels, net).to(net.device)))
            found[f"beside_{name}"] = logits.gather(1, pairs).diff(dim=1)[:, 0].neg().numpy()
        return found

    def candidates(self, sample_id: str, label: int, classes: int) -> list[int]:
        """At most ten classes, the truth among them, in their order: no model has a hand in the choice."""
        others = [k for k in range(classes) if k != label]
        drawn = generator(sample_id, (self.seed, "candidates")).permutation(others)[: CANDIDATES - 1]
        return sorted([label, *drawn.tolist()])

    def words(self, name: str) -> list[str]:
        """What counts as a name, in small letters."""
        return [word.lower() for word in (name, *self.synonyms.get(name, ()))]


def as_they_are(batch: Batch) -> Tensor:
    """Images as they are, decoded: of `unchanged` ones nobody is expected to look at the pixels."""
    return batch.pixels


def _margin(given: Tensor, listed: Tensor, labels: Tensor) -> np.ndarray:
    own = listed == labels[:, None]
    return (given[own] - given.masked_fill(own, -torch.inf).amax(1)).numpy()


def _at_size(pixels: Tensor, net: Model) -> Tensor:
    if pixels.shape[-1] == net.image_size:
        return pixels
    return F.interpolate(pixels, size=net.image_size, mode="bicubic", antialias=True).clamp(0, 1)


def graded(said: str, truth: Sequence[str], confuser: Sequence[str]) -> str:
    """Whose words an answer holds: `truth`, `confuser`, or `unclear` where it is both or neither.

    The longest word counts, so that a can opener is no pen.

    Examples:
        >>> graded("A can opener.", ["pen"], ["can opener"]), graded("a mug", ["mug"], ["lamp"])
        ('confuser', 'truth')
    """
    owner = {word: who for who, words in (("confuser", confuser), ("truth", truth)) for word in words}
    longest_first = sorted(owner, key=len, reverse=True)
    found = {owner[word] for word in re.findall("|".join(map(re.escape, longest_first)), said.lower())}
    return found.pop() if len(found) == 1 else "unclear"


def synonyms_in(path: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Other words for class names, from a YAML or JSON file of lists by name; spelling differs in signs alone.

    Raises: ValueError for a file of another kind, or one in which no class is found.
    """
    if not path:
        return {}
    table = read_yaml(Path(path))
    lists = table.values() if isinstance(table, dict) else [None]
    if not all(isinstance(words, list) and all(isinstance(w, str) and w.strip() for w in words) for words in lists):
        raise ValueError(f"synonyms: {path!r} is no table of lists of words, allowed is such as 'tv: [television]'.")
    plain = {_plain(name): words for name, words in table.items()}
    found = {name: plain[_plain(name)] for name in names if _plain(name) in plain}
    if not found:
        raise ValueError(f"synonyms: {path!r} has none of the {len(names)} classes, such as {names[0]!r}.")
    return found


def _plain(name: str) -> str:
    return re.sub(r"\W|_", "", str(name).lower())


def speakers(study: Study, names: Sequence[str]) -> dict[str, tuple[VisionLanguageModel, str]]:
    """Generative models by name, each with the model of the study that is its encoder.

    That is the tower it is known to see through, which must be there; of another one, the study's own model.
    """
    found = {}
    for name in names:
        vlm = load_vlm(name, study.parameters["device"], study.parameters["precision"])
        towers = [n for n, net in study.nets.items() if vlm.encoder and net.fingerprint == vlm.encoder.fingerprint]
        if vlm.encoder and not towers:
            own = vlm.encoder.name
            raise ValueError(f"language_models has {name!r}, which sees through {own!r}: model or models must name it.")
        found[name] = vlm, (towers or [study.name])[0]
    if not found or next(iter(found.values()))[1] != study.name:
        raise ValueError(f"language_models is {list(names)}, the first must be one that sees through {study.name!r}.")
    return found


def image_sets(
    study: Study, wanted: Sequence[str], folders: Sequence[str], *, number: int, pairs: int, cosine: float
) -> dict[str, tuple[Dataset, Condition]]:
    """Unchanged images and hard ones by name, as many as are known for the data set: what is shown, and how.

    Shifts of chapter 07, `cards` with another class's name, `cue_conflict` (Tabletop), and images `aligned` by chapter
    02's machine with an image of another class, until the encoder takes them for it.
    """
    p, few = study.parameters, study.images.subset(number, study.parameters["seed"])
    known = natural_shifts(few, folders, split=p["split"], limit=number, seed=p["seed"])
    found = {name: (s.shown, Condition(name, 1, as_they_are, draws=1)) for name, s in known.items()}
    found["cards"] = few, replace(typographic_attacks.cards(few, split=p["split"], seed=p["seed"])[-2], name="cards")
    if few.name == "tabletop":
        stimuli, _ = shape_bias.stimuli(few, per_pair=1)
        found["cue_conflict"] = stimuli.subset(number, p["seed"]), Condition("cue_conflict", 1, as_they_are, draws=1)
    for name in (n for n in wanted if n not in {*found, WITHIN} and few.name == "tabletop"):
        raise ValueError(unknown("set of images", name, [*found, WITHIN]))
    found = {n: part for n, part in found.items() if n in wanted or n in {Path(f).name for f in folders}}
    if WITHIN in wanted:
        options = {"number": pairs, "one_a_source": True, "cosine": cosine, "seed": p["seed"]}
        made = aligned_pairs(study.net, few, settings_of(study), batch_size=p["batch_size"], **options)
        found[WITHIN] = few.only(made.table.sample_id.tolist()), made.condition(WITHIN)
    return {"original": (few, Condition("original", 0, as_they_are, draws=1)), **found}


def measured(study: Study, speakers: Mapping, sets: Mapping, synonyms: Mapping) -> pd.DataFrame:
    """Rows of every generative model on every set; `model` is its encoder, `language_model` itself.

    Aligned images are made for one encoder, and shown to those alone that see through it.
    """
    frames = []
    for name, (vlm, tower) in speakers.items():
        own = {n: s for n, s in sets.items() if n != WITHIN or tower == study.name}
        for images, condition in own.values():
            beside = {
                n: (net, study.head(net, names=images.class_names)) for n, net in study.nets.items() if n != tower
            }
            asked = Asked(vlm, beside, synonyms, study.parameters["seed"])
            rows = study.measure([replace(condition, facts=asked.facts)], images=images, models=[tower], keep=False)
            frames.append(rows.assign(language_model=name))
    return study.keep_rows(pd.concat(frames, ignore_index=True))


def answers(rows: pd.DataFrame) -> pd.DataFrame:
    """Right answers (1, or 0.5 for one order of two) by every protocol: `value`, beside those of the `encoder`.

    The encoder's choice between truth and confuser is right just where its answer is. What a protocol leaves out has no
    row of it.
    """
    first, second = (rows[f"{o}_truth"] > rows[f"{o}_confuser"] for o in ("first", "second"))
    mark, right = rows.graded, scores.correct(rows)
    by = {
        PUBLISHED: (mark == "truth").where(mark != "unclear"), "greedy, unclear is wrong": mark == "truth",
        "likelihood, truth first": first, "likelihood, truth second": second, BOTH: (first * 1.0 + second) / 2,
        OPEN: rows.open > 0,
    }  # fmt: skip
    encoder = {name: rows.encoder_open > 0 if name == OPEN else right for name in by}
    every = [
        rows.assign(protocol=n, value=v.astype(float), encoder=np.asarray(encoder[n], float)) for n, v in by.items()
    ]
    return pd.concat(every, ignore_index=True).dropna(subset="value")


def gains(answered: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """How many more answers of the language model are right than of its encoder, image by image."""
    return scores.paired_changes(answered.assign(value=answered.encoder), answered, by, bounds=1.0)


def chosen_for(answered: pd.DataFrame) -> scores.Estimate:
    """The gain between two options less that where none is listed: what the choice of the wrong one is worth."""
    gain = answered.assign(value=answered.value - answered.encoder)
    both, open_ = (gain[gain.protocol == protocol] for protocol in (BOTH, OPEN))
    table = scores.paired_changes(*(g.assign(line="") for g in (open_, both)), "line", bounds=2.0)
    return scores.estimate_of(table.iloc[0])


def others_chosen_for(rows: pd.DataFrame) -> pd.DataFrame:
    """How many more right answers than the encoder other encoders give between the same two options."""
    names = [c.removeprefix("beside_") for c in rows if c.startswith("beside_")]
    shown = pd.concat(
        [rows.assign(other=n, value=(rows[f"beside_{n}"] > 0) * 1.0) for n in names]
        or [rows[:0].assign(other="", value=0.0)]
    )
    return scores.paired_changes(shown.assign(value=scores.correct(shown)), shown, "other", bounds=1.0)


def fooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Wrong choices between truth and confuser: of the language model (`value`) and of `another` encoder, on average.

    `fooled` says whether the encoder itself is wrong.
    """
    both = answers(rows).query("protocol == @BOTH")
    others = [c for c in rows if c.startswith("beside_")]
    another = 1.0 - (both[others] > 0).mean(axis=1) if others else np.nan
    return both.assign(value=1 - both.value, another=another, fooled=both.encoder == 0)


def shares_wrong(table: pd.DataFrame) -> pd.DataFrame:
    """Shares of `fooled` by set: where the encoder is wrong and right, and another encoder's where it is wrong."""
    parts = {
        "language model, encoder wrong": (table[table.fooled], "value"),
        "another encoder, encoder wrong": (table[table.fooled & table.another.notna()], "another"),
        "language model, encoder right": (table[~table.fooled], "value"),
    }
    found = [
        {
            "condition": name,
            "who": who,
            **asdict(scores.grouped_proportion(part[c].to_numpy(), part.sample_id.to_numpy())),
        }
        for who, (rows, c) in parts.items()
        for name, part in rows.groupby("condition", sort=False)
    ]
    order = {name: k for k, name in enumerate(table.condition.unique())}
    return pd.DataFrame(found).sort_values("condition", key=lambda c: c.map(order), kind="stable", ignore_index=True)


def taken_over(table: pd.DataFrame) -> scores.Estimate:
    """Share of wrong choices where the encoder is wrong, less that where it is right; images are drawn."""

    def difference(wrong, at_fault):
        return wrong[at_fault].mean() - wrong[~at_fault].mean() if at_fault.any() and not at_fault.all() else np.nan

    return scores.bootstrap(difference, table.value.to_numpy(), table.fooled.to_numpy(), groups=table.sample_id)


def beyond_another(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Wrong choices of the language model less those of another encoder, on the images that fool its own."""
    both = table[table.fooled & table.another.notna()]
    return scores.paired_changes(both.assign(value=both.another), both, by, bounds=1.0)


def to_probe(study: Study, *, training: int, test: int) -> tuple[list[Dataset], list[pd.DataFrame]]:
    """Pictures to fit probes on and others to test them, and what is true of each, by sample id.

    On Tabletop scenes with a card that names another kind; else the images themselves, every other one of a class.
    """
    if study.images.name == "tabletop":
        images, facts = asked_scenes(training + test, study.parameters["seed"])
        ids = list(facts.index)
        parts = ids[:training], ids[training:]
    else:
        images = study.images.subset(training + test, study.parameters["seed"])
        named = {s.sample_id: images.class_names[s.label] for s in images.samples}
        facts = pd.DataFrame({"class": named})
        odd = facts.groupby("class").cumcount() % 2 == 1
        parts = list(facts.index[~odd]), list(facts.index[odd])
    return [images.only(part) for part in parts if part], [facts.loc[part] for part in parts]


@torch.no_grad()
def on_the_way(vlm: VisionLanguageModel, net: Model, images: Dataset) -> dict[str, np.ndarray]:
    """What a picture has become (n, numbers): tokens of the tower, after the projector, and the state that answers."""
    found: dict[str, list] = {"tower": [], "projector": [], "answer's state": []}
    for _, pixels, _ in images.batches(net.from_pil, 32):
        shown = list(pixels)
        grids = {"tower": net.encode_tokens(pixels.to(net.device)).cpu()}
        grids["projector"] = torch.stack(vlm.image_tokens(shown)).cpu()
        for name, grid in grids.items():
            size = [min(PLACES, side) for side in grid.shape[1:3]]
            found[name].append(F.adaptive_avg_pool2d(grid.movedim(-1, 1), size).flatten(1))
        found["answer's state"].append(vlm.state(shown, [QUESTION] * len(shown)).cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def probed(
    vlm: VisionLanguageModel, net: Model, images: Sequence[Dataset], facts: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """Which facts a linear reader finds, and what the model answers: `value` by `attribute`, `seen` and sample.

    Ridge classifiers, their penalty by leave-one-out on the pictures that they are fitted on; `most common` always says
    what is most common there.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fit, test = facts
    if len(images) < 2 or fit.nunique().min() < 2:
        return pd.DataFrame(columns=["sample_id", "attribute", "seen", "value"])
    (fitted, tested), found = (on_the_way(vlm, net, part) for part in images), []
    for attribute in fit:
        right = {"most common": test[attribute] == fit[attribute].mode()[0]}
        for place, values in fitted.items():
            probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 6, 7)))
            right[place] = probe.fit(values, fit[attribute]).predict(tested[place]) == test[attribute]
        right["answer"] = told(vlm, net, images[1], test, attribute, fit[attribute])
        found += [
            pd.DataFrame(
                {"sample_id": test.index, "attribute": attribute, "seen": seen, "value": np.asarray(hits, float)}
            )
            for seen, hits in right.items()
            if hits is not None
        ]
    return pd.concat(found, ignore_index=True)


@torch.no_grad()
def told(vlm, net: Model, images: Dataset, facts: pd.DataFrame, attribute: str, known: pd.Series) -> np.ndarray | None:
    """Whether the likeliest of all answers is right; None where there are too many to ask."""
    options = sorted({*known, *facts[attribute]})
    if len(options) > MOST_ASKED:
        return None
    pixels = list(images.pixels(facts.index, net.from_pil))
    prompts = [QUESTIONS[attribute].format(**row) for row in facts.to_dict("records")]
    given, _ = vlm.score(pixels, prompts, [options] * len(pixels))
    return np.array([options[int(s.argmax())] for s in given]) == facts[attribute].to_numpy()


def kept_by(table: pd.DataFrame) -> pd.DataFrame:
    """What each step changes of what can be read, test picture by test picture, corrected over the whole table."""
    steps = {"projector": ("tower", "projector"), "answer": ("projector", "answer")}
    sides = (pd.concat([table[table.seen == pair[k]].assign(step=s) for s, pair in steps.items()]) for k in (0, 1))
    return scores.paired_changes(*sides, ["step", "attribute"], bounds=1.0)
