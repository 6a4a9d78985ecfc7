"""Chapter 13: does a model name the shape or the surface, where the two say different things?

A stimulus has the shape of one class and the texture of another; its name says both. On Tabletop an object wears the
pattern that is typical of another kind, so that shape, pose, light and place are those of an ordinary scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Batch, Condition, Seen, without_cue
from zsr_utils.datasets import TYPICAL_PATTERN, Dataset, cues, load_dataset, rendered, tabletop_scenes
from zsr_utils.models import SupervisedModel


SHAPES_ALONE = {"tabletop": ("photo", "silhouette", "sketch"), "cue-conflict": ("silhouettes", "edges")}
END = 0.95  # a bias whose whole interval lies beyond is at its end
REDUCED = {
    "blur": "under a blur of {:g} % of the side", "resolution": "with {:g} times fewer pixels a side",
    "shuffled_tiles": "with {0:g} × {0:g} shuffled tiles",
}  # fmt: skip
PULLS = {
    "more": "the pattern pulls towards the kind that it is typical of, beyond what it disturbs",
    "less": "the pattern pushes away from the kind that it is typical of",
    "undecided": "whether the pattern pulls towards the kind that it is typical of is not decided",
}
PREFERS = {
    "more": "it goes by shape more often than by surface",
    "less": "it goes by surface more often than by shape",
    "undecided": "which of the two it goes by more often is not decided",
}


def stimuli(images: Dataset, *, per_pair: int = 4) -> tuple[Dataset, Dataset | None]:
    """Pictures in conflict, and the same ones with a plain surface (Tabletop alone).

    Args:
        images: `tabletop`, or stimuli whose names say shape and texture as in `cat7-elephant2.png`; those in which the
            two agree are left out.
        per_pair: On Tabletop, scenes for every ordered pair of kinds. The duck's own surface is plain and names no
            kind, so nobody wears it.

    Raises: ValueError where a name does not parse, names another shape than its folder or an unknown texture.
    """
    if images.name != "tabletop":
        return images.only([sample_id for sample_id in _textures(images)]), None
    scenes, patterned, plain = tabletop_scenes(), {}, {}
    patterns = {kind: pattern for kind, pattern in TYPICAL_PATTERN.items() if pattern != "plain"}
    for shape in images.class_names:
        own = [scene for scene in scenes.values() if scene.kind == shape]
        pairs = [texture for texture in patterns if texture != shape for _ in range(per_pair)]
        if len(pairs) > len(own):
            raise ValueError(f"per_pair is {per_pair}, allowed is up to {len(own) // (len(patterns))}.")
        for number, (scene, texture) in enumerate(zip(own, pairs), start=1):
            sample_id = f"{shape}{number}-{texture}1"
            patterned[sample_id] = replace(scene, pattern=patterns[texture])
            plain[sample_id] = replace(scene, pattern="plain")
    return rendered("tabletop cue conflict", patterned), rendered("the same, plain", plain)


def _textures(images: Dataset) -> dict[str, str]:
    """The texture of every stimulus in conflict, by sample id."""
    found = {}
    for sample in images.samples:
        shape, texture, _ = cues(sample.sample_id)
        for cue, name in (("texture", texture), ("shape", shape)):
            if name not in images.class_names:
                raise ValueError(f"{sample.sample_id!r} has the {cue} {name!r}, which is no class of {images.name}.")
        if shape != images.class_names[sample.label]:
            named = images.class_names[sample.label]
            raise ValueError(f"{sample.sample_id!r} lies among {named!r}, allowed is its shape {shape!r}.")
        if shape != texture:
            found[sample.sample_id] = texture
    return found


def decided(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `source` (of the shape), `shape_name`, `texture_name` and `decision`: shape, texture or other."""
    named = pd.DataFrame([cues(i) for i in rows.sample_id], columns=["shape_name", "texture_name", "source"])
    words = np.select([rows.prediction == rows.label, rows.prediction == rows.texture], ["shape", "texture"], "other")
    return rows.assign(**{c: named[c].to_numpy() for c in named}, decision=words)


def shape_bias(rows: pd.DataFrame) -> scores.Estimate:
    """Share of shape among the decisions for shape or texture; the interval counts sources of shapes.

    Examples:
        >>> rows = pd.DataFrame({"decision": ["shape"] * 3 + ["texture"] + ["other"] * 5, "source": range(9)})
        >>> shape_bias(rows).value
        0.75

    Source: Geirhos et al. (2019), section 2.
    """
    either = rows[rows.decision != "other"]
    return scores.grouped_proportion((either.decision == "shape").to_numpy(), either.source.to_numpy())


def share(decision: str) -> scores.Statistic:
    """Share of stimuli with one decision, `shape`, `texture` or `other`; `either` is the coverage of the bias."""
    wanted = ("shape", "texture") if decision == "either" else (decision,)
    return lambda rows: scores.grouped_proportion(rows.decision.isin(wanted).to_numpy(), rows.source.to_numpy())


def at_an_end(bias: pd.DataFrame) -> str:
    """Which models answer so much one way that their bias tells them no longer apart."""
    ends = bias[(bias.low > END) | (bias.high < 1 - END)]
    if ends.empty:
        return "No model answers nearly always one way."
    return f"Nearly all answers go one way for {', '.join(ends.model)}, so that the bias cannot rank them."


def by_surface(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of stimuli by the share of the surface that carries the pattern, as `severity`: the whole one is 1."""
    kept = rows[rows.condition.isin(["original", "patterned_surface"])]
    return kept.assign(severity=kept.severity.where(kept.condition != "original", 1.0)).sort_values(
        "severity", kind="stable", ignore_index=True
    )


def pull(plain: pd.DataFrame) -> scores.Statistic:
    """How far a pattern moves the logits towards its own class and beyond all other wrong ones.

    The unit is the lead that the shape's class has over the pattern's on a plain surface: at 1 the pattern would take
    all of it. Not bounded, so that it tells models apart that all answer by shape.

    Args:
        plain: Rows of the same pictures with a plain surface; without any the pull is not measured.
    """
    return lambda rows: scores.bootstrap(_ratio, *_pulled(plain, rows)[["gain", "lead"]].to_numpy().T)


def pull_in_words(study) -> str:
    """What the recorded pull of the chapter's model says; nothing where it was not measured."""
    found = study["cue/pull"]
    if np.isnan(found.value):
        return "How far a surface pulls is not measured: these stimuli have no twin with a plain surface."
    verdict = study.decide("cue/pull", **PULLS)
    return f"In {study.name} a pattern takes {found:pct} of the shape's lead for its own kind: {verdict}."


def _pulled(plain: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Of every picture the gain of the pattern's class, and the lead of the shape's before."""
    keys = ["sample_id", *(["model"] if "model" in rows else [])]
    both = rows.set_index(keys)[["texture_lead"]].join(plain.set_index(keys), rsuffix="_plain", how="inner")
    return both.assign(gain=both.texture_lead - both.texture_lead_plain, lead=both.shape_lead).reset_index()


def _ratio(gain: np.ndarray, lead: np.ndarray, axis: int = -1) -> np.ndarray:
    return gain.mean(axis) / lead.mean(axis)


def compared(rows: pd.DataFrame, plain: pd.DataFrame, model: str) -> pd.DataFrame:
    """How much more the surface counts for other models than for one, stimulus by stimulus, with Holm's p.

    What is compared is the pull where there are plain pictures, else the answers: 1 by surface, 0 by neither cue, -1 by
    shape. No table where there is no other model.
    """
    if len(plain):
        pulled = _pulled(plain, rows)
        valued, bound = pulled.assign(value=pulled.gain / pulled.groupby("model").lead.transform("mean")), None
    else:
        valued, bound = rows.assign(value=rows.decision.map({"shape": -1.0, "texture": 1.0, "other": 0.0})), 2.0
    return scores.changes_from(valued, "model", model, "model", bounds=bound)


def compared_in_words(table: pd.DataFrame, model: str) -> str:
    """For which models the surface counts more or less than for one, as far as the whole table decides it."""
    if table.empty:
        return "There is no other model to compare with."
    words = {w: f"the surface counts {w} than for {model} for" for w in ("more", "less")}
    text = scores.by_verdict(table, "model", words | {"undecided": f"a difference from {model} is not decided for"})
    return f"{text[0].upper()}{text[1:]} (Holm over the table). Each is one training run, so that no cause is proved."


@dataclass(frozen=True)
class Surface:
    """Pictures whose object wears its pattern on part of its surface, from the bottom up, and is plain above."""

    plain: Dataset  # the same pictures with a plain surface
    share: float  # of the pixels that differ

    def __call__(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        pairs = zip(batch.pictures, (self.plain.image(i) for i in batch.sample_ids))
        pictures = [mixed(patterned, plain, self.share) for patterned, plain in pairs]
        return torch.stack([batch.net.from_pil(p) for p in pictures]).to(batch.pixels.device)


def mixed(patterned: Image.Image, plain: Image.Image, share: float) -> Image.Image:
    """The lowest `share` of the pixels in which two pictures differ from the one, all others from the other."""
    one, other = np.asarray(patterned), np.asarray(plain)
    rows, columns = np.nonzero((one != other).any(2))
    kept = slice(len(rows) - round(share * len(rows)), None)  # the lowest rows come last
    picture = other.copy()
    picture[rows[kept], columns[kept]] = one[rows[kept], columns[kept]]
    return Image.fromarray(picture)


@dataclass(frozen=True)
class Pull:
    """Facts of a stimulus: its `texture` (a class) and two leads in logits.

    `shape_lead` is that of the shape's class over the texture's, `texture_lead` that of the texture's class over the
    mean of all classes that are neither.
    """

    class_names: tuple[str, ...]

    def __call__(self, batch: Batch, seen: Seen) -> dict:
        textures = torch.tensor([self.class_names.index(cues(i)[1]) for i in batch.sample_ids])
        shape, texture = (seen.logits.gather(1, classes[:, None])[:, 0] for classes in (batch.labels, textures))
        rest = (seen.logits.sum(1) - shape - texture) / max(1, seen.logits.shape[1] - 2)
        leads = {"shape_lead": shape - texture, "texture_lead": texture - rest}
        return {"texture": textures.numpy(), **{name: lead.numpy() for name, lead in leads.items()}}


def conditions(
    shown: Dataset, plain: Dataset | None, *, surface: Sequence[float] = (0, 0.25, 0.5, 0.75), **without: Sequence,
) -> list[Condition]:  # fmt: skip
    """Stimuli as they are, with the pattern on part of their surface (of Tabletop's), and with one cue reduced.

    Args:
        surface: Shares of the surface that carry the pattern: the severity of `patterned_surface`.
        without: As for `conditions.without_cue`.
    """
    parts = [Condition("patterned_surface", float(s), Surface(plain, s)) for s in surface] if plain else []
    return [replace(c, facts=Pull(shown.class_names)) for c in (ORIGINAL, *parts, *without_cue(**without))]


def by_reduced_cue(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the stimuli as they are and with one cue reduced, twice: `given` says whether the answer is `by`."""
    kept = rows[rows.condition.isin(["original", *REDUCED])]
    both = [kept.assign(by=cue, given=kept.decision == cue) for cue in ("shape", "texture")]
    return pd.concat(both, ignore_index=True)


def shown(table: pd.DataFrame) -> list[str]:
    """What every row of a table by condition and severity shows, in words."""
    return [f"{c.replace('_', ' ')} {s:g}" if s else "as it is" for c, s in zip(table.condition, table.severity)]


def reduced_in_words(table: pd.DataFrame) -> str:
    """Which reductions, at the most that was tried, leave less than half of the answers by shape."""
    of = table[table.by == "shape"]
    half = of[of.condition == "original"].value.iloc[0] / 2
    most = of[of.condition.isin(REDUCED)].sort_values("severity").groupby("condition").tail(1)
    how = [REDUCED[kind].format(severity) for kind, severity in zip(most.condition, most.severity)]
    most = most.assign(how=how, verdict=np.where(most.high < half, "less", "undecided"))
    words = {"less": "less than half of the answers by shape are left", "undecided": "this is not so, or not decided,"}
    return f"At the most that was tried, {scores.by_verdict(most, 'how', words, 'pct')}."


def examples(shown: Dataset, number: int = 6) -> tuple[list[Image.Image], list[str]]:
    """Some stimuli spread over the set, and what their names say."""
    chosen = shown.subset(number, seed=3).samples
    said = [cues(sample.sample_id) for sample in chosen]
    return [s.image() for s in chosen], [f"shape: {shape}\nsurface: {texture}" for shape, texture, _ in said]


def with_thousand_names(study, shown: Dataset) -> pd.DataFrame:
    """Rows of zero-shot models that answer with ImageNet's 1,000 names, merged into the data set's; none elsewhere."""
    models = [name for name, net in study.nets.items() if not isinstance(net, SupervisedModel)]
    if not study.images.merged or not models:
        return pd.DataFrame()
    conditions = [replace(ORIGINAL, facts=Pull(shown.class_names))]
    return decided(study.measure(conditions, images=shown, models=models, merged=True, keep=False))


def shapes_alone(study) -> pd.DataFrame:
    """Rows of shapes without a texture, with `set`, as far as the data set has such splits; else none."""
    frames = []
    for split in SHAPES_ALONE.get(study.images.name, ()):
        try:
            images = load_dataset(study.images.name, split=split)
        except FileNotFoundError:  # a set that a user has not got is not measured
            continue
        frames.append(study.measure([ORIGINAL], images=images, keep=False).assign(set=split))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
