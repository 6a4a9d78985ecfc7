"""Chapter 14: does a score tell the pictures that no name in the list fits, and does a mere shift set it off?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zsr_utils import datasets, scores
from zsr_utils.conditions import Batch, Condition, Seen, unchanged
from zsr_utils.datasets import Dataset, Shift, load_dataset
from zsr_utils.models import Model, SupervisedModel
from zsr_utils.prompts import PROMPT_SETS
from zsr_utils.study import Study


SCORES = {
    "mcm": "MCM", "msp": "MSP", "max_logit": "MaxLogit", "energy": "energy", "negative_words": "negative words",
}  # fmt: skip
LENGTHS = {"max_cosine": "largest cosine", "max_dot": "without L2 norm", "norm": "the norm alone"}
NEAR = {"teapot": "mug", "umbrella": "lamp", "tree": "mushroom", "stool": "chair"}  # held-out kinds, and what is alike
KEPT = 0.95  # share of clean inside pictures that a threshold keeps


@dataclass(frozen=True)
class Scores:
    """Facts of a picture: what says how well some name in the list fits it, the larger the better.

    Largest probabilities are given as log odds, which order pictures in the same way: a probability of 1 - 1e-17 would
    be 1, and the order lost. MSP is the softmax of the logits; MCM that of the cosines, of the same logits divided by
    the model's scale (a trained head has the scale 1, so that its MCM is its MSP); `softmax_T` divides them by T.
    `negative_words` are the odds of the list against further words, logits of both at the model's scale.

    Source: Ming et al. (2022), MCM, tau 1; Hendrycks & Gimpel (2017), MSP; Liu et al. (2020), energy, T 1; Jiang et al.
        (2024), NegLabel, here without its groups of words.
    """

    outside: Mapping[str, str] = field(default_factory=dict)  # what outside pictures show, by sample id
    negatives: Float[Tensor, "j d"] | None = None  # text weights of the further words
    temperatures: tuple[float, ...] = (1.0,)

    def __call__(self, batch: Batch, seen: Seen) -> dict:
        net, logits, features = batch.net, seen.logits, seen.features
        weights, bias = (part.double().cpu() for part in net.directions(batch.head.weights))
        found = {"msp": odds(logits), "mcm": odds(logits / float(net.logit_scale)), "max_logit": logits.amax(1)}
        found |= {"energy": logits.logsumexp(1), "negative_words": torch.full((len(logits),), torch.nan)}
        if self.negatives is not None:
            others = net.logits_of(features.float().to(net.device), self.negatives.to(net.device)).double().cpu()
            found["negative_words"] = logits.logsumexp(1) - others.logsumexp(1)
        found |= {f"softmax_{t:g}": odds(logits / t) for t in self.temperatures}
        found["max_cosine"] = (F.normalize(features, dim=1) @ F.normalize(weights, dim=1).T).amax(1)
        found |= {"max_dot": (features @ weights.T + bias).amax(1), "norm": features.norm(dim=1)}
        shown = np.array([self.outside.get(i, "") for i in batch.sample_ids], dtype=object)
        return {"outside": shown, **{name: values.numpy() for name, values in found.items()}}


def odds(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Log odds of the largest probability of a softmax."""
    top = logits.max(1)
    return top.values - logits.scatter(1, top.indices[:, None], -torch.inf).logsumexp(1)


def noisy(batch: Batch) -> Float[Tensor, "n 3 h w"]:
    """Noise in place of the pictures."""
    return (0.5 + 0.25 * batch.noise).clamp(0, 1)


def outside_sets(study: Study, named: Sequence[str], number: int) -> dict[str, Dataset]:
    """Pictures outside of the class list by name of the set: rendered on Tabletop, and folders of anybody.

    A name that is no folder here is looked for in the data folder, and left out where it is not there either.

    Raises: ValueError where a class of a set is one of the answers.
    """
    p, home = study.parameters, datasets.data_folder()
    found = datasets.tabletop_outside(number, p["seed"]) if study.images.name == "tabletop" else {}
    missing = []
    for name in named:
        if folder := next((f for f in (Path(name), home / name) if f.is_dir()), None):
            found[folder.name] = load_dataset(str(folder), limit=number, seed=p["seed"])
        else:
            missing.append(name)
    for name, images in found.items():
        refuse_inside(name, images.class_names, study.names)
    if missing:
        study.say("Not here, and left out: {sets}.", sets=", ".join(missing))
    return found


def refuse_inside(name: str, outside: Iterable[str], answers: Sequence[str]) -> None:
    """Raise one sentence where an outside class is one of the answers."""
    known = {answer.casefold() for answer in answers}
    if both := [c for c in outside if c.casefold() in known]:
        few = f"{', '.join(map(repr, both[:5]))}{' …' if len(both) > 5 else ''}"
        raise ValueError(f"{name} shows {few}, allowed are classes outside of the {len(answers)} answers.")


def negative_words(study: Study, file: str, sets: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Words that may stand beside the list: a file's lines, Tabletop's other words, or ImageNet's names.

    None is an answer, and none names an outside class, which would give the question away.
    """
    if file:
        found = Path(file).read_text(encoding="utf-8-sig").split("\n")
    elif study.images.name == "tabletop":
        found = datasets.tabletop_words()
    else:
        found = datasets.imagenet_classes().values()
    taken = {name.casefold() for names in (study.names, *(s.class_names for s in sets.values())) for name in names}
    return tuple(dict.fromkeys(w.strip() for w in found if w.strip() and w.strip().casefold() not in taken))


def far_words(
    net: Model, names: Sequence[str], words: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "j d"] | None:
    """Text weights of the half of some words that lie farthest from the names; none without words or a text tower.

    Source: Jiang et al. (2024), NegMining: the distance from the names is that to the nearest but for 5 % of them.
    """
    if not words or isinstance(net, SupervisedModel):
        return None
    weights = net.classifier(words, templates)
    near = (weights @ net.classifier(names, templates).T).double().cpu().quantile(0.95, dim=1)
    return weights.cpu()[near.argsort(stable=True)[: -(-len(words) // 2)]]


@dataclass(frozen=True)
class Shown:
    """Inside images, outside ones by set, noise, and what else the scores need."""

    images: Dataset
    sets: Mapping[str, Dataset]
    words: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = (1.0,)
    noise: int = 100  # pictures of noise

    def conditions(self, net: Model, name: str, templates: Sequence[str], images: Dataset) -> list[Condition]:
        """Pictures of a set as they are, with their scores."""
        shows = {s.sample_id: images.class_names[s.label] for s in images.samples} if name in self.sets else {}
        facts = Scores(shows, far_words(net, self.images.class_names, self.words, templates), self.temperatures)
        return [Condition(name, float(name != "inside"), noisy if name == "noise" else unchanged, facts, draws=1)]

    def rows(self, study: Study, *, prompts: str = "", shifted: Mapping[str, Dataset] | None = None, **options):
        """Rows of every set, in the column `set`; those of outside pictures have the label -1 and no margin."""
        few = self.images.subset(self.noise, study.parameters["seed"])
        shown = {"inside": self.images, **({**self.sets, "noise": few} if shifted is None else shifted)}
        templates, frames = PROMPT_SETS[prompts] if prompts else study.templates, []
        for name, images in shown.items():
            asked = images
            if name in self.sets:  # the question is the same, and none of the answers is right
                samples = [replace(s, label=0) for s in images.samples]
                asked = replace(images, class_names=self.images.class_names, samples=samples)
            make = partial(self.conditions, name=name, templates=templates, images=images)
            given = {"prompts": prompts} if prompts else {}
            rows = study.measure(make, images=asked, keep=False, **given, **options)
            if name in (*self.sets, "noise"):
                rows = rows.assign(label=-1, margin=np.nan, outside=rows.outside.where(rows.outside != "", name))
            frames.append(rows.assign(set=name))
        return pd.concat(frames, ignore_index=True)


def by_score(rows: pd.DataFrame, names: Mapping[str, str] = SCORES) -> pd.DataFrame:
    """A row a picture and score, with `score` in words and its `value`."""
    kept = [c for c in rows if c in ("model", "set", "sample_id", "outside", "prompts", "classes", "right")]
    return rows.melt(kept, list(names), "score", "value").assign(score=lambda t: t.score.map(names))


def separations(
    rows: pd.DataFrame, by: Sequence[str], metrics: Sequence[str] = ("auroc",), *, draw: str = "images"
) -> pd.DataFrame:
    """`scores.separation` of every group of outside pictures from the inside ones: a row a `metric`.

    Args:
        rows: As `by_score` gives them.
        by: What tells groups apart beside the model; inside pictures of a group share all of it but what they lack.
    """
    inside, found = rows[rows.set == "inside"], []
    shared = [c for c in ("model", *by) if c not in ("set", "outside")]
    bases = dict(list(inside.groupby(shared, sort=False)))
    for key, part in rows[rows.set != "inside"].groupby(["model", *by], sort=False):
        group = dict(zip(["model", *by], key))
        base = bases[tuple(group[c] for c in shared)]
        each = scores.separation(base.value.to_numpy(), part.value.to_numpy(), part.outside.to_numpy(), draw=draw)
        found += [{**group, "metric": metric, "draw": draw, **asdict(each[metric])} for metric in metrics]
    return pd.DataFrame(found).dropna(subset="value")


def told(study: Study, rows: pd.DataFrame, by: Sequence[str], name: str = "ood/{metric}", **options) -> pd.DataFrame:
    """`separations`, kept as numbers."""
    return study.keep(separations(rows, by, **options), "/".join([name, *(f"{{{column}}}" for column in by)]))


def compared(rows: pd.DataFrame, column: str, base: str) -> pd.DataFrame:
    """AUROC of every other value of a column less that of `base`, set by set, on the same pictures (`paired_changes`).

    Lines are `set` and `column`, all of them one family of tests; scores that were not measured have none.
    """
    frames, inside = [], rows[rows.set == "inside"]
    for (name, value), part in rows[rows.set != "inside"].groupby(["set", column], sort=False):
        sides = [p.set_index("sample_id").value for p in (inside[inside[column] == value], part)]
        if not any(side.isna().any() for side in sides):
            sides[1].index = name + "/" + sides[1].index  # noise has the ids of the pictures in whose place it is
            parts = scores.auroc_parts(*sides).rename_axis("sample_id").rename("value").reset_index()
            frames.append(parts.assign(set=name, **{column: value}))
    parts = pd.concat(frames)
    own, others = parts[parts[column] == base], parts[parts[column] != base]
    every = [own.assign(**{column: value}) for value in others[column].unique()]
    return scores.paired_changes(pd.concat(every or [own[:0]]), others, ["set", column], bounds=2.0)


def compared_in_words(table: pd.DataFrame, column: str, base: str) -> str:
    """Where another value of a column has a higher or lower AUROC than `base`, after the correction."""
    said = []
    for value, part in table.groupby(column, sort=False):
        ways = {"more": "higher on", "less": "lower on", "undecided": "not decided on"}
        of = {words: ", ".join(part[part.verdict == way].set) for way, words in ways.items()}
        said.append(f"{value}: {', '.join(f'{words} {sets}' for words, sets in of.items() if sets)}")
    if not said:
        return f"There is nothing to compare {base} with"
    return f"AUROC against that of {base}, all lines tested at once (Holm): {'; '.join(said)}"


def kept_under_shift(study: Study, shown: Shown, shifts: Mapping[str, Shift]) -> pd.DataFrame:
    """The share of shifted pictures that MCM keeps, at the threshold of their clean counterparts; all, and right ones.

    A shifted picture still shows one of the classes: what is not kept is a false alarm. Of the chapter's own model.
    """
    found = [pd.DataFrame({"set": [], "what": []})]
    for name, shift in shifts.items():
        known = replace(shown, images=shift.clean, sets={})
        rows = known.rows(study, shifted={name: shift.shown}, models=[study.name])
        every = by_score(rows.assign(right=rows.label == rows.prediction), {"mcm": "MCM"})
        both = {"all": every, "named rightly": every[every.right | (every.set == "inside")]}
        for what, part in both.items():
            if (part.set != "inside").any():
                found.append(separations(part, ["set"], ["fpr95"]).assign(what=what))
    return pd.concat(found, ignore_index=True)


def alarms_in_words(table: pd.DataFrame) -> str:
    """Under which shifts a threshold keeps fewer pictures than the 95 % it keeps without one."""
    of = {way: [] for way in ("less", "more", "undecided")}
    for row in table[table.what == "all"].itertuples():
        of[scores.decide(scores.estimate_of(row), KEPT)].append(f"{row.set} ({scores.estimate_of(row):pct})")
    words = {"less": "fewer pass under", "more": "more pass under", "undecided": "not decided for"}
    said = "; ".join(f"{words[way]} {', '.join(sets)}" for way, sets in of.items() if sets)
    return f"where 95 % of clean pictures pass, {said}" if said else "no shift of these pictures is known"


def by_prompt(study: Study, shown: Shown, names: Sequence[str]) -> pd.DataFrame:
    """MCM of the chapter's model under several prompt sets, in the column `prompts`; none for a trained head."""
    if isinstance(study.net, SupervisedModel):
        return pd.DataFrame()
    frames = [shown.rows(study, prompts=n, models=[study.name]).assign(prompts=n) for n in names]
    return by_score(pd.concat(frames), {"mcm": "MCM"})


def by_number(study: Study, shown: Shown, numbers: Sequence[int]) -> pd.DataFrame:
    """MCM of the chapter's model with so many of the classes, drawn by the seed, as inside and as answers."""
    frames = []
    for number in sorted({*(k for k in numbers if k < len(study.names)), len(study.names)}):
        images = study.images.restricted(number, study.parameters["seed"])
        if images.merged and isinstance(study.net, SupervisedModel) and number < len(study.names):
            continue  # its head answers with all of ImageNet's classes
        frames.append(replace(shown, images=images).rows(study, models=[study.name]).assign(classes=number))
    return by_score(pd.concat(frames), {"mcm": "MCM"})


def kinds_apart(table: pd.DataFrame) -> pd.DataFrame:
    """Lines of single outside classes with `alike`: what each resembles, where that is known (held-out kinds)."""
    near = table.outside.map(NEAR)
    return table.assign(label=np.where(near.notna(), table.outside + ", near a " + near.fillna(""), table.outside))


def examples(sets: Mapping[str, Dataset], number: int = 3) -> tuple[list, list[str]]:
    """Some pictures of every set, with captions."""
    few = [(name, images, s) for name, images in sets.items() for s in images.subset(number, 1).samples]
    return [s.image() for _, _, s in few], [f"{name}\n{images.class_names[s.label]}" for name, images, s in few]


def softmaxes(temperatures: Sequence[float]) -> dict[str, float]:
    """Columns of the largest probability by temperature, as `by_score` takes them."""
    return {f"softmax_{t:g}": t for t in temperatures}


def said(table: pd.DataFrame, column: str) -> str:
    """Estimates of a table, each after what a column says of it."""
    names = (f"{name:g}" if isinstance(name, float) else name for name in table[column])
    return "; ".join(f"{name}: {scores.estimate_of(row):pct}" for name, row in zip(names, table.itertuples()))


def two_intervals(table: pd.DataFrame, name: str) -> dict[str, scores.Estimate]:
    """Of one set by MCM: `pooled` and `mean` over classes (AUROC, by images), `classes` (by classes), `passed`."""
    own = table[table.set == name].set_index(["draw", "metric"])
    asked = {"pooled": ("images", "auroc"), "mean": ("images", "auroc_mean"), "classes": ("classes", "auroc_mean")}
    return {key: scores.estimate_of(own.loc[at]) for key, at in (asked | {"passed": ("images", "fpr95")}).items()}
