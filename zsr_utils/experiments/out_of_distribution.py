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
TAKEN_FOR = ("imagenet-o", "imagenet_o")  # whose folders are called as what their pictures are taken for
KEPT = 0.95  # share of clean inside pictures that a threshold keeps


@dataclass(frozen=True)
class Scores:
    """Facts of a picture: what says how well some name in the list fits it, the larger the better.

    Largest probabilities are log odds, which order pictures alike: 1 - 1e-17 would be 1, and the order lost. MCM is the
    softmax of the cosines, which are the logits over the model's scale (1 of a trained head, whose MCM is its MSP).

    Source: Ming et al. (2022), MCM, tau 1; Hendrycks & Gimpel (2017), MSP; Liu et al. (2020), energy, T 1; Jiang et al.
        (2024), NegLabel, here without its groups of words.
    """

    outside: Mapping[str, str] = field(default_factory=dict)  # what outside pictures show, by sample id
    negatives: Float[Tensor, "j d"] | None = None  # text weights of words beside the list
    temperatures: tuple[float, ...] = (1.0,)  # T of `softmax_T`, which divides the logits

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
    """Pictures outside of the class list by set: rendered on Tabletop, and folders, also of the data folder."""
    seed, home = study.parameters["seed"], datasets.data_folder()
    found = datasets.tabletop_outside(number, seed) if study.images.name == "tabletop" else {}
    for name in named:
        if folder := next((f for f in (Path(name), home / name) if f.is_dir()), None):
            labelled = datasets.is_webdataset(folder) or (folder / "labels.csv").is_file()
            images = load_dataset(str(folder)) if labelled else datasets.any_pictures(folder)
            found[folder.name] = images.subset(number, seed)
            if folder.name in TAKEN_FOR:
                names = [f"taken for {name}" for name in images.class_names]
                found[folder.name] = replace(found[folder.name], class_names=names)
        else:
            study.say("{name} is not here, and left out.", name=name)
    for name, images in found.items():
        refuse_inside(name, images.class_names, study.names)
    return found


def foreign(images: Dataset, names: Sequence[str]) -> Dataset:
    """Outside images with the question that inside ones are asked: none of the answers is right."""
    return replace(images, class_names=names, samples=[replace(s, label=0) for s in images.samples])


def refuse_inside(name: str, outside: Iterable[str], answers: Sequence[str]) -> None:
    """Raise one sentence where an outside class is one of the answers."""
    known = {answer.casefold() for answer in answers}
    if both := [c for c in outside if c.casefold() in known]:
        few = f"{', '.join(map(repr, both[:5]))}{' …' if len(both) > 5 else ''}"
        raise ValueError(f"{name} shows {few}, allowed are classes outside of the {len(answers)} answers.")


def negative_words(study: Study, file: str, sets: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Words beside the list: a file's lines, Tabletop's other words, or ImageNet's names.

    None is an answer, and none names an outside class, which would give the question away.
    """
    found = datasets.words_of_no_kind() if study.images.name == "tabletop" else datasets.imagenet_classes().values()
    found = Path(file).read_text(encoding="utf-8-sig").splitlines() if file else found
    taken = {name.casefold() for names in (study.names, *(s.class_names for s in sets.values())) for name in names}
    return tuple(dict.fromkeys(w.strip() for w in found if w.strip() and w.strip().casefold() not in taken))


def far_words(
    net: Model, names: Sequence[str], words: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "j d"] | None:
    """Text weights of the half of the words farthest from the names: from the nearest, but for 5 % of them (NegMining).

    None where there are no words or no text tower.
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
    temperatures: tuple[float, ...] = (1.0,)
    noise: int = 100  # pictures of noise

    def conditions(
        self, net: Model, name: str, templates: Sequence[str], images: Dataset, words: Sequence[str] = ()
    ) -> list[Condition]:
        """Pictures of a set as they are, with their scores."""
        shows = {s.sample_id: images.class_names[s.label] for s in images.samples} if name in self.sets else {}
        facts = Scores(shows, far_words(net, self.images.class_names, words, templates), self.temperatures)
        return [Condition(name, float(name != "inside"), noisy if name == "noise" else unchanged, facts, draws=1)]

    def rows(
        self, study: Study, *, prompts: str = "", words: Sequence[str] = (),
        shifted: Mapping[str, Dataset] | None = None, **options,
    ) -> pd.DataFrame:  # fmt: skip
        """Rows of every set, in the column `set`; those of outside pictures have the label -1 and no margin."""
        noise = {"noise": self.images.subset(self.noise, study.parameters["seed"])}
        shown = {"inside": self.images, **({**self.sets, **noise} if shifted is None else shifted)}
        templates, frames = PROMPT_SETS[prompts] if prompts else study.templates, []
        for name, images in shown.items():
            asked = foreign(images, self.images.class_names) if name in self.sets else images
            make = partial(self.conditions, name=name, templates=templates, images=images, words=words)
            rows = study.measure(make, images=asked, keep=False, prompts=prompts or None, **options)
            if shifted is None and name != "inside":
                rows = rows.assign(label=-1, margin=np.nan, outside=rows.outside.where(rows.outside != "", name))
            frames.append(rows.assign(set=name))
        return pd.concat(frames, ignore_index=True)


def by_score(rows: pd.DataFrame, names: Mapping = SCORES) -> pd.DataFrame:
    """A row a picture and score, with `score` in words and its `value`."""
    kept = [c for c in rows if c in ("model", "set", "sample_id", "outside", "prompts", "classes", "right")]
    return rows.melt(kept, list(names), "score", "value").assign(score=lambda t: t.score.map(names))


def separations(
    rows: pd.DataFrame, by: Sequence[str], metrics: Sequence[str] = ("auroc",), *, draw: str = "images"
) -> pd.DataFrame:
    """`scores.separation` of the groups `by` (and model) of outside pictures from inside ones: a row a `metric`."""
    shared, found = [c for c in ("model", *by) if c not in ("set", "outside")], []
    bases = dict(list(rows[rows.set == "inside"].groupby(shared, sort=False)))
    for key, part in rows[rows.set != "inside"].groupby(["model", *by], sort=False):
        group = dict(zip(["model", *by], key))
        base = bases[tuple(group[c] for c in shared)]
        each = scores.separation(base.value.to_numpy(), part.value.to_numpy(), part.outside.to_numpy(), draw=draw)
        found += [{**group, "metric": metric, "draw": draw, **asdict(each[metric])} for metric in metrics]
    return pd.DataFrame(found).dropna(subset="value")


def separated(rows: pd.DataFrame, metric: str) -> scores.Estimate:
    """One of the `separations` of one outside set by one score."""
    return scores.estimate_of(separations(rows, ["set"], [metric]).iloc[0])


def told(study: Study, rows: pd.DataFrame, by: Sequence[str], name: str = "ood/{metric}", **options) -> pd.DataFrame:
    """`separations`, kept as numbers."""
    form = "/".join([name, *(f"{{{column}}}" for column in by)])
    return study.keep(partial(separations, by=by, **options), form, by, rows=rows)


def compared(rows: pd.DataFrame, column: str, base: str) -> pd.DataFrame:
    """AUROC of other values of a column less that of `base`, by `set`, on the same pictures (`paired_changes`).

    The table is one family of tests; scores that were not measured have no line.
    """
    frames, inside = [], rows[rows.set == "inside"]
    for (name, value), part in rows[rows.set != "inside"].groupby(["set", column], sort=False):
        sides = [p.set_index("sample_id").value for p in (inside[inside[column] == value], part)]
        if not any(side.isna().any() for side in sides):
            sides[1].index = name + "/" + sides[1].index  # noise has the ids of the pictures in whose place it is
            frames.append(scores.auroc_parts(*sides).assign(set=name, **{column: value}))
    return scores.changes_from(pd.concat(frames), column, base, ["set", column], bounds=2.0)


def compared_in_words(table: pd.DataFrame, column: str, base: str, note: str = "") -> str:
    """Where another value of a column has a higher or lower AUROC than `base`, after the correction, and a `note`."""
    words, each = (
        {"more": "higher on", "less": "lower on", "undecided": "not decided on"},
        table.groupby(column, sort=False),
    )
    said = "; ".join(f"{v}: {scores.by_verdict(part, 'set', words, mark=', ')}" for v, part in each)
    text = f"AUROC against that of {base}, all lines tested at once (Holm): {said}{note}"
    return text if said else f"There is nothing to compare {base} with"


def kept_under_shift(study: Study, shown: Shown, shifts: Mapping[str, Shift]) -> pd.DataFrame:
    """The share of shifted pictures that pass MCM's threshold of their clean counterparts; of all, and of right ones.

    They show one of the classes, so that each that does not pass is a false alarm. Of the chapter's own model.
    """
    found = [pd.DataFrame({"set": [], "what": []})]
    for name, shift in shifts.items():
        known = replace(shown, images=shift.clean, sets={})
        rows = known.rows(study, shifted={name: shift.shown}, models=[study.name])
        every = by_score(rows.assign(right=rows.label == rows.prediction), {"mcm": "MCM"})
        for what, part in {"all": every, "named rightly": every[every.right | (every.set == "inside")]}.items():
            if (part.set != "inside").any():
                found.append(separations(part, ["set"], ["fpr95"]).assign(what=what))
    return pd.concat(found, ignore_index=True)


def alarms_in_words(table: pd.DataFrame) -> str:
    """Under which shifts a threshold keeps fewer pictures than the 95 % it keeps without one."""
    if table.empty:
        return "no shift of these pictures is known"
    own = scores.tested(table[table.what == "all"], KEPT)
    words = {"less": "fewer pass under", "more": "more pass under", "undecided": "not decided for"}
    at_once = "where 95 % of clean pictures pass, and with all shifts tested at once (Holm)"
    return f"{at_once}, {scores.by_verdict(own, 'set', words, 'pct')}"


def by_number(study: Study, shown: Shown, numbers: Sequence[int]) -> pd.DataFrame:
    """MCM of the chapter's model with so many of the `classes`, drawn by the seed, as inside and as answers."""
    frames, every = [], len(study.names)
    whole = study.images.merged and isinstance(study.net, SupervisedModel)  # it answers with all of ImageNet's classes
    for number in sorted({*(k for k in numbers if k < every and not whole), every}):
        few = replace(shown, images=study.images.restricted(number, study.parameters["seed"]))
        frames.append(few.rows(study, models=[study.name]).assign(classes=number))
    return by_score(pd.concat(frames), {"mcm": "MCM"})
