"""Chapter 04: what Gaussian noise says of an image: how its embedding moves, and whether somebody modified it.

Images of several kinds meet the same noise, and their rows are those of `measure`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from torch import Tensor

from zsr_utils import jacobian, scores
from zsr_utils._text import markdown, one_of
from zsr_utils.conditions import Batch, Condition, Seen, gaussian_noise, random_control, rms
from zsr_utils.conditions.alignment import Answer, Match, Settings, align, saved_as_png
from zsr_utils.datasets import Dataset
from zsr_utils.experiments.pairs import Pairs, pair_names
from zsr_utils.measure import Pixels
from zsr_utils.records import concat
from zsr_utils.scores import CLEAN, HELD_OUT, Estimate, decide, estimate_of, paired_change, within
from zsr_utils.study import Study


CONVERSIONS = ("float", "round", "truncate")
NAMED = Settings(eight_bit=True, max_steps=20)  # few steps change an answer
MOVED = {
    "more": "the embedding moves farther than this account allows",
    "less": "the embedding moves less far than this account says",
    "undecided": "the account is not refuted",
}
MADE = {
    "named": "moved only to be named as another class",
    "aligned": "moved to the embedding of an image of another class",
}
HARDLY = 0.05  # of a share: so much more often than clean images are flagged, at most
EVADES = {
    "more": "who averages over noise is found more often",
    "less": "who averages over noise is found less often",
    "undecided": "whether averaging over noise hides a change is not decided",
    "nothing": "the plain attacker is found hardly more often than clean images are flagged: there is nothing to hide",
    "unclear": "that the plain attacker is found more often than clean images are flagged is not decided",
}


@dataclass(frozen=True)
class Kind:
    """Images of one kind that noise is added to, as an 8-bit file keeps them.

    A pair has one id in all kinds, so that all meet the same noise. `known` are facts by id: `source_id`,
    `target_label` (-1 of a clean image), `rms` (of the change, grey levels).
    """

    name: str
    images: Pixels
    known: pd.DataFrame

    def facts(self, batch: Batch, seen: Seen) -> dict:
        known = self.known.loc[list(batch.sample_ids)]
        return {"kind": self.name, **{column: known[column].to_numpy() for column in known}}


def unmodified(study: Study, pairs: Pairs, number: int, *, name: str = "") -> list[Kind]:
    """Clean and held-out images, at most so many each: they do not overlap, and none is a source or target."""
    free = pd.DataFrame({"sample_id": pairs.embedded.sample_ids, "label": pairs.embedded.labels, "target_label": -1})
    free = free[~free.sample_id.isin({*pairs.table.sample_id, *pairs.table.target_id})]
    free = free.sample(min(2 * number, len(free)), random_state=study.parameters["seed"])
    if len(free) < 2:
        raise ValueError(f"{len(free)} image is neither source nor target of a pair, allowed are 2 or more.")
    pixels = study.images.pixels(free.sample_id, study.nets[name or study.name].from_pil)
    halves = {CLEAN: slice(0, None, 2), HELD_OUT: slice(1, None, 2)}
    return [_kind(kind, free.sample_id[half], free[half], pixels[half], pixels[half]) for kind, half in halves.items()]


def modified(
    study: Study, pairs: Pairs, attackers: Mapping[str, Settings], *, first: int | None = None, name: str = ""
) -> list[Kind]:
    """Sources of the `first` pairs, moved by attackers; those that are named as the target already are left out.

    Attackers are settings by kind, of which what stands before a comma is the goal: `aligned` (the embedding is the
    target's) or `named` (the answer is the target's class).
    """
    net, head = study.nets[name or study.name], study.heads[name or study.name]
    table, sources = pairs.table[:first], pairs.sources[:first]
    labels, names = torch.tensor(table.target_label.to_numpy()), pair_names(table)
    goals = {"aligned": Match(pairs.targets[:first]), "named": Answer(net, head.weights, labels)}
    kept = np.flatnonzero(head.scores(net, pairs.embedded.of(table.sample_id)).argmax(1) != labels)
    if (sources_left := table.sample_id.iloc[kept].nunique()) < 2:
        raise ValueError(f"{sources_left} sources are not named as their target already, allowed are 2 or more.")
    options, kinds = {"names": names, "batch_size": study.parameters["batch_size"], "keep": True}, []
    for kind, settings in attackers.items():
        one_of("goal", goal := kind.split(",")[0], goals)
        moved = align(net, sources, goals[goal], settings, **options).pixels
        kinds.append(_kind(kind, np.array(names)[kept], table.iloc[kept], sources[kept], moved[kept]))
    return kinds


def control(study: Study, kind: Kind) -> Kind:
    """The sources of a kind, each changed as much as there, in a random direction."""
    sources, seed = study.images.pixels(kind.known.source_id, study.net.from_pil), study.parameters["seed"]
    pixels = random_control(kind.images.sample_ids, sources, kind.images.pixels, seed=seed)
    known = kind.known.assign(rms=rms(sources, pixels))
    return Kind("random control", replace(kind.images, pixels=pixels), known)


def noisy(study: Study, kinds: Sequence[Kind], sigmas: Sequence[float], draws: int, *, name: str = "") -> pd.DataFrame:
    """Rows of noisy images of some kinds, each saved as an 8-bit file."""
    frames, added = [], gaussian_noise(sigmas, conversion="round")
    for kind in kinds:
        shown = [replace(condition, facts=kind.facts) for condition in added]
        frames.append(study.measure(shown, images=kind.images, models=[name or study.name], draws=draws))
    return concat(frames)


def by_source(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose `sample_id` is the source image: pairs that share one are not independent."""
    return rows.assign(sample_id=rows.source_id)


def between(rows: pd.DataFrame, one: str, other: str, column: str, unit: str = "fraction") -> Estimate:
    """Mean of a column over the images of another kind less that over one kind, source by source."""
    of = by_source(rows).groupby("kind")
    return paired_change(of.get_group(one), of.get_group(other), column, unit=unit)


def on_same_pairs(rows: pd.DataFrame, heard: pd.DataFrame) -> pd.DataFrame:
    """Rows of attackers who average over noise, and those of their plain ones on the same pairs and of clean images."""
    same = rows.sample_id.isin(heard.sample_id) & rows.kind.isin(heard.kind.str.split(",").str[0])
    return concat([rows[same | rows.kind.isin([CLEAN, HELD_OUT])], heard])


def sizes(images: pd.DataFrame) -> pd.DataFrame:
    """How large every kind's change is, `rms`, and the share `hit` that is named as the target: rows for `detect`'s."""
    images = by_source(images[~images.kind.isin([CLEAN, HELD_OUT])])
    measured = {"rms": scores.mean_of("rms", "grey levels"), "hit": scores.share_of("hit")}
    found = [scores.estimates(images, ["model", "kind"], s).assign(quantity=name) for name, s in measured.items()]
    return concat(found).assign(statistic="change", detector="known")


def attackers(images: pd.DataFrame, who: Mapping[str, str]) -> pd.DataFrame:
    """`detect` and `sizes` of some kinds, each under another name in `who`."""
    images = images[images.kind.isin([*who, CLEAN, HELD_OUT])]
    table = concat([scores.detect(images, resamples=200), sizes(images)])
    return table.assign(who=table["kind"].map(who))


def tradeoff(table: pd.DataFrame) -> pd.DataFrame:
    """Points of a figure from `detect`: the share found over the `extra` change of those who average over noise."""
    keys = ["model", "goal", "kind", "detector", "statistic"]
    extra = table[table.quantity == "extra"].set_index(keys)[["value", "low", "high"]].add_prefix("x_")
    points = table[table.quantity == "tpr"].join(extra, on=keys)
    points[["label", "draws"]] = points.kind.str.extract(r", (.*) times, (.*) draws").to_numpy()
    lines = points[["goal", "draws"]].dropna().drop_duplicates()
    plain = points[points.draws.isna()].drop(columns="draws").assign(label="0", x_value=0.0, x_low=0.0, x_high=0.0)
    points = concat([lines.merge(plain), points.dropna(subset="draws")])  # every line begins at the plain attacker
    points["series"] = points.statistic.str.replace("_", " ") + ", " + points.draws + " draws"
    points["mark"] = points.label.where(points.statistic == "answers", "")
    points["panel"] = points.model + ", made to be " + points.goal + ": σ " + points.detector
    return points.sort_values("label", key=lambda times: times.astype(float), kind="stable")


def evasion_in_words(table: pd.DataFrame, kind: str) -> Markup:
    """How often `detect` finds, for every model, the plain attacker and one who averages over noise, and `sizes`."""
    goal, how = kind.split(", ", 1)
    said = [f"Images {MADE[goal]}, by a plain attacker and by one who averages over noise ({how}):\n"]
    for model, part in table[table.kind.isin([goal, kind])].groupby("model", sort=False):
        of, found = {(r.detector, r.statistic, r.quantity, r.kind): estimate_of(r) for r in part.itertuples()}, []
        for which in (("known", "answers"), ("known", "drift_either_way"), ("unknown", "answers")):
            plain, own, evasion = of[*which, "tpr", goal], of[*which, "tpr", kind], of[*which, "evasion", kind]
            verdict = evades(evasion, of[*which, "excess", goal])
            found.append(f"{plain:pct} and {own:pct}, a difference of {evasion:points}: {verdict}")
        rms, other, hit = (of["known", "change", *key] for key in (("rms", goal), ("rms", kind), ("hit", kind)))
        said.append(
            f"* **{markdown(model)}**: changed answers find {found[0]}. Drift either way finds {found[1]}. "
            f"The changes are {rms:.2f} and {other:.2f} grey levels (RMS), a difference of "
            f"{of['known', 'answers', 'extra', kind]:+.2f}; {hit:pct} of the latter images are named as the target. "
            f"Where the detector takes the best σ against each, changed answers find {found[2]}."
        )
    return Markup("\n".join(said))


def evades(evasion: Estimate, excess: Estimate) -> str:
    """The words that fit a difference in the share found, where plain images may not be found at all."""
    outcome = decide(evasion)
    if outcome != "more" and decide(excess) != "more":
        outcome = "nothing" if excess.high < HARDLY else "unclear"
    return EVADES[outcome]


def named_as(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of modified images twice: whether a noisy copy is named as the class of its `source` or `target`."""
    rows = by_source(rows[rows.target_label >= 0])
    classes = ("source", rows.label), ("target", rows.target_label)
    return concat(rows.assign(whose=whose, hit=rows.prediction == label) for whose, label in classes)


def clouds(sigmas: Sequence[float]) -> list[Condition]:
    """Float noise whose rows keep in `move` how the raw embedding changed, (D,)."""

    def move(batch: Batch, seen: Seen) -> dict:
        return {"move": list((seen.features - batch.clean.features).float().numpy())}

    return [replace(c, facts=move) for c in gaussian_noise(sigmas)]


def derivatives(study: Study, images: Dataset, probes: int) -> pd.DataFrame:
    """What `scores.squared_moves` takes: ||J||_F^2 and the squares of second derivatives, by model and image."""
    ids, found, seed = [sample.sample_id for sample in images.samples], {}, study.parameters["seed"]
    for name, net in study.nets.items():
        pixels = images.pixels(ids, net.from_pil)
        squares = jacobian.second_order(net, pixels, probes, seed=seed, sample_ids=ids).squares()
        first = jacobian.spectra(net, pixels).values.square().sum(1)
        found[name] = squares.assign(jacobian=first.numpy()).set_index(pd.Index(ids))
    return pd.concat(found)


def as_files(study: Study, images: Dataset, sigmas: Sequence[float], draws: int) -> pd.DataFrame:
    """Rows of noisy images of the chapter's own model, by what becomes of the noise in a file, `conversion`."""
    options = {"images": images, "models": [study.name], "draws": draws, "keep": False}
    rows = ((how, study.measure(gaussian_noise(sigmas, conversion=how), **options)) for how in CONVERSIONS)
    return concat(part.assign(conversion=how) for how, part in rows)


def agreement_in_words(whole: pd.DataFrame) -> Markup:
    """At which sigma each account of the whole squared move holds within 10 %, of every model."""
    said = []
    for (model, account), part in whole.groupby(["model", "account"], sort=False):
        agree = [f"{sigma:g}" for sigma in within(part, 1, 0.1).severity]
        said.append(f"{markdown(model)} to {account} at {'σ = ' + ', '.join(agree) if agree else 'none'}")
    return Markup(f"With its whole interval, the squared move is within 10 % of the prediction: {'; '.join(said)}.")


def models_in_words(table: pd.DataFrame) -> str:
    """The AUROC of aligned images by drift, of every model, and whether it is one half."""
    told = {"more": "above one half", "less": "below one half", "undecided": "one half is not excluded"}
    rows = [row for row in table.itertuples() if row.series == "aligned, by drift"]
    said = [f"{markdown(row.model)} {estimate_of(row):.2f} ({told[decide(estimate_of(row), 0.5)]})" for row in rows]
    return Markup(f"AUROC of aligned images by drift: {'; '.join(said)}.")


def _kind(name: str, ids: Sequence[str], table: pd.DataFrame, sources: Tensor, pixels: Tensor) -> Kind:
    """`table` has a row an image: `sample_id` (of its source), `label`, `target_label`."""
    shown = saved_as_png(pixels)
    known = table[["target_label"]].assign(source_id=table.sample_id, rms=rms(saved_as_png(sources), shown))
    return Kind(name, Pixels(list(ids), np.array(table.label), shown), known.set_index(pd.Index(ids)))
