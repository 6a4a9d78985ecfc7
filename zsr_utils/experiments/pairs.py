"""The aligned pairs that several chapters look at: sources, targets, and what became of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zsr_utils.conditions import Batch, Condition, Head, Seen, Settings, made_before, sizes
from zsr_utils.conditions.alignment import Aligned, Answer, Match, align, closeness, saved_as_png, smallest_budgets
from zsr_utils.datasets import Dataset
from zsr_utils.measure import Embedded, embed
from zsr_utils.models import Model
from zsr_utils.study import Study


@dataclass(frozen=True)
class Pairs:
    """Source images, each aligned with the embedding of an image of another class."""

    table: pd.DataFrame  # a row a pair: `sample_id`, `label`, `target_id`, `target_label`
    embedded: Embedded  # the whole data set
    sources: Float[Tensor, "n 3 h w"]
    aligned: Aligned

    @property
    def targets(self) -> Float[Tensor, "n d"]:
        """Embeddings of the target images."""
        return self.embedded.of(self.table.target_id)

    @property
    def pixels(self) -> Float[Tensor, "n 3 h w"]:
        """The aligned images as an 8-bit file keeps them."""
        return saved_as_png(self.aligned.pixels)

    def head(self, number: int = 0, of: Sequence[str] | None = None) -> "Pairs":
        """The first pairs (0 is all), of some source images alone where these are given."""
        rows = np.arange(len(self.table)) if of is None else np.flatnonzero(self.table.sample_id.isin(of))
        rows = rows[: number or None]
        aligned = Aligned(*(getattr(self.aligned, field.name)[rows] for field in fields(Aligned)))
        return replace(self, table=self.table.iloc[rows], sources=self.sources[rows], aligned=aligned)

    def condition(self, name: str = "aligned", aligned: Aligned | None = None, severity: float = 1.0) -> Condition:
        """The aligned images as a condition, or what else was made of the same pairs."""
        return moved(name, severity, self.table, aligned or self.aligned, self.targets)


def moved(
    name: str, severity: float, table: pd.DataFrame, aligned: Aligned, targets: Float[Tensor, "n d"], *,
    eight_bit: bool = True,
) -> Condition:  # fmt: skip
    """Images that an optimisation moved, as a condition: several of one source are its draws, in the table's order.

    Rows get the facts `target_id`, `target_label`, `target_probability`, `target_cosine`, `steps`, `reached`, `rms` and
    `linf` (grey levels), `psnr` (dB), `ssim`, and `lpips` where its weights are.
    """
    own = table[table.label == table.target_label]
    if len(own):
        raise ValueError(f"The target of {own.sample_id.iloc[0]!r} is of its own class, allowed is another class.")
    columns = {name: table[name].to_numpy() for name in ("target_id", "target_label")}
    columns |= {"steps": aligned.steps.numpy(), "reached": aligned.reached.numpy(), "target": targets.numpy()}
    shown = saved_as_png(aligned.pixels) if eight_bit else aligned.pixels
    before = made_before(name, severity, table.sample_id, shown, columns)

    def facts(batch: Batch, seen: Seen) -> dict:
        known = before.facts(batch, seen)
        target, label = known.pop("target"), known["target_label"]
        probability = seen.logits.softmax(1).numpy()[np.arange(len(label)), label]
        near = F.cosine_similarity(seen.features, seen.features.new_tensor(target)).numpy()
        known |= {"target_probability": probability, "target_cosine": near}
        return {**known, **sizes(batch, seen), **closeness(batch.pixels.cpu(), seen.pixels.cpu())}

    return Condition(name, severity, before.change, facts, before.draws)


def aligned_pairs(
    net: Model, images: Dataset, settings: Settings, *, per_class: int = 10, number: int | None = None,
    one_a_source: bool = False, of: str | None = None, cosine: float = 0.96, batch_size: int = 64, seed: int = 0,
) -> Pairs:  # fmt: skip
    """Embed a data set, draw ordered pairs and align them; what has been computed before comes from the cache.

    Args:
        number: At most this many of the pairs, in an order drawn by `seed`; None is all. The first ones are those of
            a smaller draw.
        one_a_source, of: Only one pair of every source image; only the pairs of this one.
    """
    if number is not None and number < 1:
        raise ValueError(f"number is {number}, allowed is 1 or more, or None for all pairs.")
    embedded = embed(net, images, batch_size=batch_size)
    table = make_pairs(embedded, per_class=per_class, seed=seed)
    # drawn so that the first ones are those of a smaller draw, and of many sources
    table = table.sample(frac=1, random_state=seed) if of is None else table[table.sample_id == of]
    table = (table.drop_duplicates("sample_id") if one_a_source else table)[:number]
    sources, goal = images.pixels(table.sample_id, net.from_pil), Match(embedded.of(table.target_id), cosine=cosine)
    ends = align(net, sources, goal, settings, names=pair_names(table), batch_size=batch_size, keep=True)
    return Pairs(table, embedded, sources, ends)


def settings_of(study: Study) -> Settings:
    """How a chapter aligns, by its parameters `momentum` and `max_steps`."""
    return Settings(momentum=study.parameters["momentum"], max_steps=study.parameters["max_steps"])


def pairs_of(study: Study, number: int, others: int, *, one_a_source: bool = False) -> dict[str, Pairs]:
    """The same pairs for every model of a chapter, each aligned in its own space: `number`, or `others` (0 is all)."""
    options = {name: study.parameters[name] for name in ("per_class", "cosine", "batch_size", "seed")}
    options |= {"one_a_source": one_a_source, "settings": settings_of(study)}
    numbers = {name: number if net is study.net else others for name, net in study.nets.items()}
    return {n: aligned_pairs(net, study.images, number=numbers[n] or None, **options) for n, net in study.nets.items()}


def in_balls(
    net: Model, head: Head, pairs: Pairs, budgets: Sequence[float], *, max_steps: int = 8, batch_size: int = 64
) -> list[Condition]:
    """Sources moved until they are named as the target, inside balls of growing radius (L-infinity, 8-bit files).

    Projected gradient steps with momentum minimise the margin by which the target's class loses, `max_steps` a ball.
    The radii `budgets`, in grey levels, are the severities of the conditions `named_in_ball`.

    Source: Madry et al. (2018), with momentum Dong et al. (2018).
    """
    settings = Settings("pgd", momentum=0.7, max_steps=max_steps, eight_bit=True)
    goal = Answer(net, head.weights, torch.tensor(pairs.table.target_label.to_numpy()))
    options = {"names": pair_names(pairs.table), "batch_size": batch_size, "keep": True}
    balls = smallest_budgets(net, pairs.sources, goal, [b / 255 for b in budgets], settings, **options)
    return [pairs.condition("named_in_ball", ball, budget) for budget, ball in zip(budgets, balls.values())]


def counted(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose source image every model of these rows names rightly: only such a source can lose its name."""
    right = (rows.clean_prediction == rows.label).groupby(rows.sample_id).transform("all")
    if not right.any():
        raise ValueError(f"None of {rows.sample_id.nunique()} sources is named rightly by all models, allowed is one.")
    return rows[right]


def pair_names(table: pd.DataFrame) -> list[str]:
    """Names of pairs, by which messages and noise know them."""
    return [f"{source} to {target}" for source, target in zip(table.sample_id, table.target_id)]


def make_pairs(images: Embedded, *, per_class: int = 10, seed: int = 0) -> pd.DataFrame:
    """Ordered pairs: random images of every class, at most `per_class`, with a random image of every other class.

    Source: Salman et al. (2024), Fig. 1: one aligned image for each other class; 10 sources a class is ours.
    """
    by_class = {int(label): images.sample_ids[images.labels == label] for label in np.unique(images.labels)}
    if len(by_class) < 2:
        raise ValueError(f"{len(by_class)} class given, pairs need at least two.")
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}, allowed is 1 or more.")
    rng = np.random.default_rng(seed)
    pairs = [
        (source, label, rng.choice(others), target_label)
        for label, own in by_class.items() for source in rng.choice(own, min(per_class, len(own)), replace=False)
        for target_label, others in by_class.items() if target_label != label
    ]  # fmt: skip
    return pd.DataFrame(pairs, columns=["sample_id", "label", "target_id", "target_label"])
