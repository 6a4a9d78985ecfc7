"""Chapter 02: systematic accuracy, what such a change costs, and changes that tell its direction from its size."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zsr_utils.conditions import Condition, Head, random_control
from zsr_utils.conditions.alignment import Aligned, Answer, Goal, Match, Settings, align, saved_as_png, text_targets
from zsr_utils.datasets import Dataset
from zsr_utils.experiments.pairs import Pairs, counted, moved, pair_names
from zsr_utils.experiments.zero_shot import principal_axes
from zsr_utils.measure import Embedded, Pixels, embed
from zsr_utils.models import Model
from zsr_utils.scores import Estimate, decide, estimate_of, median_of, paired_change, share_of


INVISIBLE = 8.0  # grey levels: the bound on every pixel of a change that attacks usually call invisible
VISIBILITY = {
    "more": "beyond the 8 grey levels that are usually called invisible",
    "less": "within the 8 grey levels that are usually called invisible",
    "undecided": "about the 8 grey levels that are usually called invisible",
}
TRANSFER = {
    "more": "the change transfers",
    "less": "the random change does more",
    "undecided": "whether the change transfers is not decided",
}
MEASURES = {"rms": "grey levels", "linf": "grey levels", "psnr": "dB", "ssim": "SSIM", "target_cosine": "cosine"}


def ways(
    net: Model, head: Head, images: Dataset, pairs: Pairs, *, cosine: float, max_steps: int, batch_size: int, seed: int
) -> dict[str, Aligned]:
    """What is made of the pairs: `aligned`, and three changes to compare with.

    `random_direction`, as far as the aligned image; `blended` with the target's picture, as little as meets the same
    stop rule; and `named_as_target`, moved until the answer alone is the target's class (with DeepFool's overshoot,
    since a step that ends on the boundary is lost in the rounding to grey levels).
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


@torch.no_grad()
def blended(
    net: Model,
    sources: Float[Tensor, "n 3 h w"],
    targets: Float[Tensor, "n 3 h w"],
    goal: Goal,
    *,
    batch_size: int = 64,
    halvings: int = 8,
) -> Aligned:
    """Sources blended with their targets' pictures until the goal is met in an 8-bit file: a crossing, by bisection."""

    def blend(share: Tensor) -> tuple[Tensor, Tensor]:
        pixels = saved_as_png(torch.lerp(sources, targets, share[:, None, None, None]))
        features = torch.cat([net.encode_image(part.to(net.device)) for part in pixels.split(batch_size)])
        return pixels, goal.reached(features, torch.arange(len(pixels))).cpu()

    low, high = torch.zeros(len(sources)), torch.ones(len(sources))
    for _ in range(halvings):
        middle = (low + high) / 2
        reached = blend(middle)[1]
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    pixels, reached = blend(high)
    return Aligned(pixels, torch.zeros(len(sources), dtype=torch.long), reached)


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
        found.append(pairs.condition(f"{way} for {name}", Aligned(shown, end.steps, end.reached)))
    return found


def to_texts(net: Model, pairs: Pairs, texts: Sequence[str], cosine: float, settings: Settings, **options):
    """Conditions: sources aligned with texts, one a pair, in either scale; none for a model without a text tower."""
    before, options = pairs.embedded.of(pairs.table.sample_id), options | {"names": pair_names(pairs.table)}
    try:
        targets = {f"text_{s}": text_targets(net, texts, before, scale=s) for s in ("min-max", "norm")}
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
    """The share that is named rightly, of all images and of every way to change them, kept as numbers."""
    of = {"original": originals.assign(as_source=originals.prediction == originals.label)}
    of |= dict(list(rows.groupby("condition", sort=False)))
    lines = {
        "original": ("zero_shot_accuracy", "not changed, all images"),
        "aligned": ("systematic_accuracy", "aligned"),
        "random_direction": ("named_as_source/random", "random direction, as far"),
        "blended": ("named_as_source/blended", "blended, as near the target"),
    }
    return pd.concat(
        study.estimate(of[way], f"alignment/{name}", share_of("as_source")).assign(label=label)
        for way, (name, label) in lines.items()
    )


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


def by_class(rows: pd.DataFrame, column: str, classes: int) -> Float[np.ndarray, "k k"]:
    """Median of a column, sources' classes down and targets' across; NaN where no pair was drawn."""
    table = rows.pivot_table(index="label", columns="target_label", values=column, aggfunc="median")
    return table.reindex(index=range(classes), columns=range(classes)).to_numpy()


def bound_in_words(table: pd.DataFrame) -> str:
    """Where the share of sources that keep their name falls below one half."""
    below = table.severity[table.value < 0.5]
    if below.empty:
        return f"stays above one half up to {table.severity.max():g} grey levels"
    return f"falls below one half at {below.min():g} grey levels"


def transferred(study, rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Shares that other models' images keep their name, kept as numbers, and what they say."""
    rows = rows.assign(**rows.condition.str.split(" for ", n=1, expand=True).set_axis(["way", "made_for"], axis=1))
    table = study.estimate(rows, "transfer/named_as_source", share_of("as_source"), ["way", "made_for"])

    def lost(part: pd.DataFrame) -> Estimate:
        return paired_change(part[part.way == "aligned"], part[part.way == "random_direction"], "as_source")

    said = []
    for row in study.estimate(rows, "transfer/random_beyond_aligned", lost, ["made_for"]).itertuples():
        e = estimate_of(row)
        said.append(
            f"{row.model} loses {e:points} more names of images aligned for {row.made_for}: {TRANSFER[decide(e)]}"
        )
    seen = table.way.str.replace("_", " ") + " for " + table.made_for + ", seen by " + table.model
    return table.assign(label=seen), "Beyond a random change of the same size, " + "; ".join(said) + "."


def in_words(study, rows: pd.DataFrame, topic: str) -> str:
    """Hits, stop rule, steps and size of every condition, kept as numbers."""
    asked = [("target_hit_rate", share_of("as_target")), ("reached", share_of("reached"))]
    asked += [("steps", median_of("steps", "steps")), ("rms", median_of("rms", "grey levels"))]
    tables = [study.estimate(rows, f"{topic}/{name}", statistic, ["condition"]) for name, statistic in asked]
    said = [
        f"{hit.label}: {hit.value:.0%} named as the target, {met.value:.0%} at the stop rule, "
        f"median {steps.value:.0f} steps and {rms.value:.1f} grey levels (RMS)"
        for hit, met, steps, rms in zip(*(table.itertuples() for table in tables))
    ]
    return "; ".join(said) + "."
