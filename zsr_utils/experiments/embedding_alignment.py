"""Chapter 02: systematic accuracy, what such a change costs, and changes that tell its direction from its size."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from torch.nn import functional as F

from zsr_utils._text import markdown
from zsr_utils.conditions import Condition, Head, Settings, random_control
from zsr_utils.conditions.alignment import Aligned, Answer, Match, align, blended, saved_as_png, text_targets
from zsr_utils.datasets import Dataset
from zsr_utils.experiments.pairs import Pairs, counted, moved, pair_names
from zsr_utils.experiments.zero_shot import principal_axes
from zsr_utils.measure import Embedded, Pixels, embed
from zsr_utils.models import Model
from zsr_utils.scores import Estimate, decide, estimate_of, median_of, paired_change, share_of


INVISIBLE = 8.0  # grey levels: the bound on every pixel of a change that attacks usually call invisible
VISIBILITY = {
    "more": "beyond the 8 that are usually called invisible",
    "less": "within the 8 that are usually called invisible",
    "undecided": "whether that is within the 8 that are usually called invisible is not decided",
}
TRANSFER = {"more": "it transfers", "less": "it does less", "undecided": "whether it transfers is not decided"}
MEASURES = {"rms": "grey levels", "linf": "grey levels", "ssim": "SSIM"}


def ways(
    net: Model, head: Head, images: Dataset, pairs: Pairs, *, cosine: float, max_steps: int, batch_size: int, seed: int
) -> dict[str, Aligned]:
    """What is made of the pairs: `aligned`, and three changes to compare with.

    `random_direction`, as far; `blended` with the target's picture, as little as meets the same stop rule; and
    `named_as_target`, moved until the answer alone is (with DeepFool's overshoot, since a step that ends on the
    boundary is lost in the rounding to grey levels).
    """
    names, targets = pair_names(pairs.table), images.pixels(pairs.table.target_id, net.from_pil)
    control = random_control(names, pairs.sources, pairs.aligned.pixels, seed=seed)
    goal = Answer(net, head.weights, torch.tensor(pairs.table.target_label.to_numpy()))
    nearest = Settings(step=1.05, max_steps=max_steps, eight_bit=True)
    return {
        "aligned": pairs.aligned,
        "random_direction": Aligned(control, torch.zeros(len(names)).long(), torch.zeros(len(names)).bool()),
        "blended": blended(net, pairs.sources, targets, Match(pairs.targets, cosine), batch_size=batch_size),
        "named_as_target": align(net, pairs.sources, goal, nearest, names=names, batch_size=batch_size, keep=True),
    }


def seen_by(
    net: Model, nets: Mapping[str, Model], made: Mapping[Model, Mapping[str, Aligned]], pairs: Pairs
) -> list[Condition]:
    """Aligned images and random changes that were made for the other models, shown to this one at its own size."""
    found = []
    for name, way in ((n, w) for n in nets if nets[n] is not net for w in ("aligned", "random_direction")):
        end = made[nets[name]][way]
        shown = saved_as_png(end.pixels)
        if shown.shape[-1] != net.image_size:
            shown = F.interpolate(shown, size=net.image_size, mode="bicubic", antialias=True).clamp(0, 1)
        found.append(pairs.condition(f"{way}_for_{name}", Aligned(shown, end.steps, end.reached)))
    return found


def to_texts(net: Model, pairs: Pairs, texts: Sequence[str], cosine: float, settings: Settings, **options):
    """Conditions: sources aligned with texts, one a pair, in either scale; none for a model without a text tower."""
    before, options = pairs.embedded.of(pairs.table.sample_id), options | {"names": pair_names(pairs.table)}
    scales = {"text_min_max": "min-max", "text_norm": "norm"}
    try:
        targets = {name: text_targets(net, texts, before, scale=scale) for name, scale in scales.items()}
    except TypeError:
        return []
    ends = {name: align(net, pairs.sources, Match(t, cosine), settings, **options) for name, t in targets.items()}
    return [moved(name, 1.0, pairs.table, end, targets[name]) for name, end in ends.items()]


def again(net: Model, pairs: Pairs, cosine: float, settings: Mapping[str, Settings], **options) -> list[Condition]:
    """The same alignment with other settings, a condition each."""
    goal, options = Match(pairs.targets, cosine), options | {"names": pair_names(pairs.table)}
    return [pairs.condition(n, align(net, pairs.sources, goal, s, **options)) for n, s in settings.items()]


def authors_step(net: Model, dimensions: int) -> float:
    """Step of the authors' code, 0.09 on the mean squared error of normalised pixels, for `1/2 ||.||^2` and [0, 1]."""
    return 2 * 0.09 / dimensions * float(net.std.mean()) ** 2


def outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that count, with `as_source` and `as_target` (which class is named)."""
    rows = counted(rows)
    return rows.assign(as_source=rows.prediction == rows.label, as_target=rows.prediction == rows.target_label)


def shares(study, originals: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The share that is named rightly, of all images and of every way to change them; all are kept as numbers."""
    of = {"original": originals.assign(as_source=originals.prediction == originals.label)}
    of |= dict(list(rows.groupby("condition", sort=False)))
    study.estimate(of["aligned"], "alignment/target_hit_rate", share_of("as_target"))
    study.estimate(of["aligned"], "alignment/reached", share_of("reached"))
    own = [of[way][of[way].model == study.name] for way in ("aligned", "random_direction")]
    study.number("alignment/random_beyond_aligned", paired_change(*own, "as_source"))
    lines = {
        "original": ("zero_shot_accuracy", "not changed, all images"),
        "aligned": ("systematic_accuracy", "aligned"),
        "random_direction": ("named_as_source/random", "random direction, as far"),
        "blended": ("named_as_source/blended", "blended, as near the target"),
    }
    named = {way: study.estimate(of[way], f"alignment/{n}", share_of("as_source")) for way, (n, _) in lines.items()}
    return pd.concat(table.assign(label=lines[way][1]) for way, table in named.items())


def costs(study, rows: pd.DataFrame) -> pd.DataFrame:
    """Median size of every change that met its goal, but the random one, as large as the aligned; kept as numbers."""
    rows, by = rows[rows.condition != "random_direction"].copy(), ["condition"]
    rows.loc[~rows.reached, list(MEASURES)] = np.nan
    met = rows[(rows.model == study.name) & rows.reached]
    own = [met[met.condition == way] for way in ("aligned", "blended")]
    study.number("closeness/blended_beyond_aligned", paired_change(*own, "rms", unit="grey levels"))
    tables = {m: study.estimate(rows, f"closeness/{m}", median_of(m, unit), by) for m, unit in MEASURES.items()}
    return tables["rms"]


def one_pair(images: Dataset, net: Model, pairs: Pairs, made: Mapping[str, Aligned], rows: pd.DataFrame):
    """Pixels and captions of the first pair that counts, in every way."""
    k = int(pairs.table.sample_id.isin(rows.sample_id).to_numpy().argmax())
    pair, names = pairs.table.iloc[k], images.class_names
    mine = rows[(rows.sample_id == pair.sample_id) & (rows.target_id == pair.target_id)].set_index("condition")
    shown = [pairs.sources[k], *(saved_as_png(end.pixels[k]) for end in made.values())]
    captions = [f"source\n{names[pair.label]}"]
    for way, row in mine.loc[list(made)].iterrows():
        captions.append(f"{way.replace('_', ' ')}\nnamed {names[row.prediction]}\nRMS {row.rms:.1f}")
    shown.append(images.pixels([pair.target_id], net.from_pil)[0])
    return shown, [*captions, f"target\n{names[pair.target_label]}"]


def looked_at(net: Model, pairs: Pairs) -> Embedded:
    """Features of the first source and of all its aligned images."""
    labels = np.concatenate([pairs.table.label.iloc[:1], pairs.table.target_label])
    pixels = torch.cat([pairs.sources[:1], pairs.pixels])
    return embed(net, Pixels(["original", *pairs.table.target_id], labels, pixels))


def components(pairs: Pairs, seen: Embedded) -> pd.DataFrame:
    """Scores of the first pair's original, target and aligned image on the principal components of the data set."""
    three = np.stack([seen.features[0], pairs.targets[0].numpy(), seen.features[1]])
    values = (three - pairs.embedded.features.mean(0)) @ principal_axes(pairs.embedded).T
    table = pd.DataFrame(values.T, columns=["original", "target", "aligned"])
    return table.assign(component=[f"PC {i + 1}" for i in table.index]).melt("component", var_name="image")


def in_bounds(kept: pd.DataFrame, hit: pd.DataFrame) -> dict:
    """Words for shares of pairs by bound: where fewer than half keep their name, and what the largest bound does."""
    sides = [decide(estimate_of(row), 0.5) for row in kept.sort_values("severity").itertuples()]
    below = kept.severity.sort_values()[[side == "less" for side in sides]]
    where = "stays above one half" if set(sides) == {"more"} else "is not decided to fall below one half"
    where = f"falls below one half at {below.min():g} grey levels" if len(below) else where
    last, named = (estimate_of(table.loc[table.severity.idxmax()]) for table in (kept, hit))
    return {"where": where, "budget": kept.severity.max(), "last": last, "named": named}


def transferred(study, rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Shares that other models' images keep their name, kept as numbers, and what they say."""
    rows = rows.assign(**rows.condition.str.split("_for_", n=1, expand=True).set_axis(["way", "made_for"], axis=1))
    table = study.estimate(rows, "transfer/named_as_source", share_of("as_source"), ["way", "made_for"])

    def lost(part: pd.DataFrame) -> Estimate:
        return paired_change(part[part.way == "aligned"], part[part.way == "random_direction"], "as_source")

    lost = study.estimate(rows, "transfer/random_beyond_aligned", lost, ["made_for"])
    said = "; ".join(
        f"what was made for {markdown(row.made_for)} costs {markdown(row.model)} {estimate_of(row):points} more than "
        f"a random change of its size: {TRANSFER[decide(estimate_of(row))]}"
        for row in lost.itertuples()
    )
    seen = "for " + table.made_for + ", seen by " + table.model
    return table.assign(label=seen, way=table.way.str.replace("_", " ")), Markup(f"In names lost, {said}.")


def in_words(study, rows: pd.DataFrame, topic: str) -> str:
    """Hits, stop rule, size (kept as numbers) and steps of every condition."""
    asked = {"target_hit_rate": share_of("as_target"), "reached": share_of("reached")}
    asked |= {"rms": median_of("rms", "grey levels")}
    tables = [study.estimate(rows, f"{topic}/{name}", statistic, ["condition"]) for name, statistic in asked.items()]
    steps = rows.groupby("condition").steps.median()
    said = [
        f"{hit.label}: {estimate_of(hit):pct} named as the target, {estimate_of(met):pct} at the stop rule after "
        f"{steps[hit.condition]:.0f} steps (median), {estimate_of(rms):.1f} grey levels (RMS) away"
        for hit, met, rms in zip(*(table.itertuples() for table in tables))
    ]
    return f"Over {len(rows) // len(said)} pairs: {'; '.join(said)}."
