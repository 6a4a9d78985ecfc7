"""Chapter 05: what moves inside an image encoder while its answer stays.

Every image is shown in the perturbation families of Wani et al.; embedding, answer and token grids come from one pass.
Drift is compared with the distance between unrelated images, the token grid by its Dirichlet energy and its spectrum.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional as F

from zsr_utils import scores
from zsr_utils.conditions import Batch, Condition, Perturbation, Seen, View, as_conditions, drift_between, families
from zsr_utils.datasets import Dataset, published
from zsr_utils.measure import Embedded, embed
from zsr_utils.models import Model


EMBEDDING = 0  # the layer whose drift is that of the image embedding
BANDS = 8  # radial bands of the token grid
POWER_BANDS = ("low", "middle", "high")  # of the picture, as the paper cuts them
CONTROLS = ("any", "same class", "other class")
WHOLE = 0.999  # of a token's picture that must be original content
SHOWN = ("translation", "scale", "scale_pad", "rotation", "text_semantic", "text_empty")  # families, block by block
READINGS = {"raw": "energy", "per squared length": "energy_normalised", "original content": "energy_content"}
BAND_VERDICTS = {
    "more": "the high band is the more dangerous one",
    "less": "the low band is the more dangerous one",
    "undecided": "which band is the more dangerous one is not decided",
}


def views(names: Sequence[str] | None = None, *, detail: str = "layers", **options) -> list[Condition]:
    """The families as conditions, with the facts of the token grid.

    With `detail="tokens"` rows get `energy` and `clean_energy` (Dirichlet, of the token grid), the same with
    `_normalised` (divided by the mean squared length of the tokens) and `_content` (only between tokens of original
    content), `share_k` and `coherence_k` (of the grid's change in radial band k; missing where the canvas changes its
    size), and `power_low`, `power_middle`, `power_high` (relative change of the picture's own spectrum); with `layers`
    also `drift_layer_k` of the mean token after block k.

    Source: Wani et al. (2026): families, stability, Dirichlet energy, input spectrum. Image encoders with a zero-shot
        head in place of generative models, blocks before the last, restriction to original content and the spectrum of
        the token grid are this project's.
    """
    further = None if detail == "answers" else partial(token_facts, layers=detail == "layers")
    return as_conditions(families(names, **options), further)


def token_facts(batch: Batch, seen: Seen, shown: list[View], perturbation: Perturbation, *, layers: bool) -> dict:
    """Energies and spectra of the token grid of some views; see `views`."""
    before, after = batch.clean.grids[-1].numpy(), seen.grids[-1].numpy()
    size, was = after.shape[1:3], before.shape[1:3]
    facts = {
        "clean_energy": scores.dirichlet_energy(before),
        "energy": scores.dirichlet_energy(after),
        "clean_energy_content": scores.dirichlet_energy(before, _original(batch.net, [v.kept for v in shown], was)),
        "energy_content": scores.dirichlet_energy(after, _original(batch.net, [v.content for v in shown], size)),
    }
    for which, grid in (("clean_energy", before), ("energy", after)):
        facts[f"{which}_normalised"] = facts[which] / scores.mean_square_norm(grid)
    if perturbation.keeps_size:
        shares, coherence = scores.change_spectrum(before, after, BANDS)
    else:
        shares = coherence = np.full((len(after), BANDS), np.nan)
    for k in range(BANDS):
        facts |= {f"share_{k + 1}": shares[:, k], f"coherence_{k + 1}": coherence[:, k]}
    shown = F.interpolate(seen.pixels, batch.pixels.shape[2:], mode="bilinear")  # of a model that takes any size
    _, relative = scores.power_change(batch.pixels.cpu().numpy(), shown.cpu().numpy(), len(POWER_BANDS))
    facts |= {f"power_{name}": relative[:, k] for k, name in enumerate(POWER_BANDS)}
    for layer, grids in enumerate(zip(batch.clean.grids, seen.grids) if layers else (), start=1):
        facts[f"drift_layer_{layer}"] = drift_between(*(grid.mean((1, 2)) for grid in grids)).numpy()
    return facts


def unrelated(embedded: Embedded, *, draws: int = 25, seed: int = 0, layer: int = EMBEDDING) -> pd.DataFrame:
    """How far apart unrelated images are: what a drift is compared with.

    `embedded` are embeddings of the unchanged images, or their mean tokens after one block, `layer`. Every image is
    compared with so many others, drawn without replacement.

    Returns: A row an image and kind of control (`any`, `same class`, `other class`), with `layer` and the mean
        `distance` (1 - cosine). An image without such others has no row.

    Source: Wani et al. (2026), drift against control (25 others in their log); the two controls by class are ours.
    """
    n = len(embedded.labels)
    if draws < 1:
        raise ValueError(f"draws is {draws}, allowed is 1 or more.")
    if n < 2:
        raise ValueError(f"{n} image given, allowed is 2 or more to compare one with others.")
    rng, units = np.random.default_rng(seed), F.normalize(torch.from_numpy(embedded.features).double(), dim=1).numpy()
    rows = []
    for i, sample_id in enumerate(embedded.sample_ids):
        others = rng.permutation(np.delete(np.arange(n), i))
        same = embedded.labels[others] == embedded.labels[i]
        for kind, chosen in zip(CONTROLS, (others[:draws], others[same][:draws], others[~same][:draws])):
            if len(chosen):
                distance = float(1 - (units[chosen] @ units[i]).mean())
                rows.append({"sample_id": sample_id, "kind": kind, "layer": layer, "distance": distance})
    return pd.DataFrame(rows)


@torch.no_grad()
def mean_tokens(net: Model, images: Dataset, *, batch_size: int = 64) -> list[Embedded]:
    """The mean token of every image after each block, first block first."""
    ids, labels, blocks = [], [], []
    for names, pixels, classes in images.batches(net.from_pil, batch_size):
        ids += names
        labels.append(classes.numpy())
        blocks.append([grid.mean((1, 2)).cpu().numpy() for grid in net.encode_layers(pixels.to(net.device))[1]])
    return [Embedded(np.array(ids), np.concatenate(labels), np.concatenate(parts)) for parts in zip(*blocks)]


def by_layer(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    """The columns `<what>_layer_k` of rows as one column `what`, with `layer`."""
    return _long(rows, [c for c in rows if c.startswith(f"{what}_layer_")], "layer", what)


def _long(rows: pd.DataFrame, columns: list[str], number: str, what: str) -> pd.DataFrame:
    """Columns whose names end in a number as one column, and that number."""
    long = rows[["sample_id", "family", *columns]].melt(["sample_id", "family"], columns, number, what)
    return long.assign(**{number: long[number].str.rsplit("_", n=1).str[1].astype(int)})


def view(images: Dataset, names: Sequence[str], row: pd.Series, **options) -> Image.Image:
    """The picture behind a row, made again."""
    for perturbation in families(names, **options):
        if (perturbation.family, perturbation.instance) == (row.family, row.instance):
            words = [images.class_names[row.word_label]] * (perturbation.number + 1)  # only the last one is shown
            return perturbation(images.image(row.sample_id), sample_id=row.sample_id, words=words).image
    raise KeyError(f"{row.family} {row.instance} is not among the perturbations.")


def _original(net: Model, masks: list[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """Which tokens look at original content alone: the masks take the pictures' own way into the model."""
    kept = np.ones((len(masks), *size), dtype=bool)
    for token, mask in zip(kept, masks):
        if mask.getextrema()[0] < 255:
            pixels = net.from_pil(mask.convert("RGB"))[None, :1]
            token[:] = F.adaptive_avg_pool2d(pixels, size)[0, 0].numpy() > WHOLE
    return kept


def examples(images: Dataset, **options) -> tuple[list[Image.Image], list[str]]:
    """The first picture and its last view in every family, with captions."""
    sample_id, picture, label = next(iter(images))
    words = [name for k, name in enumerate(images.class_names) if k != label]
    last = {p.family: p for p in families(**options)}.values()
    shown = [p(picture, sample_id=sample_id, words=words * 3).image for p in last]
    captions = [f"{p.family.replace('_', ' ')}\n{p.instance}" for p in last]
    return [picture, *shown], ["original", *captions]


def unrelated_of(nets: Mapping[str, Model], images: Dataset, *, draws: int, seed: int, batch_size: int) -> pd.DataFrame:
    """`unrelated` of every model's embedding, and of every block of the first model, in a column `model`."""
    frames = []
    for number, (name, net) in enumerate(nets.items()):
        depths = [embed(net, images, batch_size=batch_size)]
        if number == 0:
            depths += mean_tokens(net, images, batch_size=batch_size)
        frames += [unrelated(e, draws=draws, seed=seed, layer=k).assign(model=name) for k, e in enumerate(depths)]
    return pd.concat(frames, ignore_index=True)


def extremes(table: pd.DataFrame, model: str) -> dict:
    """The rows of one model with the least and the largest value: `least`, `most` in words, and their estimates."""
    own = table[table.model == model]
    least, most = (own.loc[i] for i in (own.value.idxmin(), own.value.idxmax()))
    found = {"least": least.label, "least_ratio": scores.estimate_of(least)}
    return found | {"most": most.label, "most_ratio": scores.estimate_of(most)}


def farthest(rows: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    """The row of every family whose drift is largest, with `relative`, the drift over the mean control distance."""
    worst = rows.loc[rows.groupby("family", sort=False).drift.idxmax()]
    return worst.assign(relative=worst.drift / control.distance.mean())


def pictured(images: Dataset, rows: pd.DataFrame, **options) -> tuple[list[tuple], list[str]]:
    """Pictures of rows, each after its original, and captions."""
    names = images.class_names
    pictures = [(images.image(r.sample_id), view(images, None, r, **options)) for r in rows.itertuples()]
    captions = [
        f"{r.family.replace('_', ' ')} {r.instance}: still {names[r.prediction]}\n"
        f"drift {r.relative:.0%} of unrelated images"
        for r in rows.itertuples()
    ]
    return pictures, captions


def energy_changes(rows: pd.DataFrame) -> pd.DataFrame:
    """Relative change of the Dirichlet energy in the three readings, columns `reading` and `change`."""
    changes = {reading: rows[column] / rows[f"clean_{column}"] - 1 for reading, column in READINGS.items()}
    return (
        rows[["sample_id", "family"]]
        .assign(**changes)
        .melt(["sample_id", "family"], list(changes), "reading", "change")
    )


def sign_changes(table: pd.DataFrame) -> str:
    """Families whose energy rises in one reading and falls in another, both decided, in words."""
    signs = table.assign(sign=np.sign(table.low) * (np.sign(table.low) == np.sign(table.high)))
    both = signs.pivot(index="family", columns="reading", values="sign")
    turned = [f.replace("_", " ") for f in both.index if both["raw"][f] * both["original content"][f] < 0]
    if not turned:
        return "In no family do the raw energy and that of original content point in different directions."
    differ = f"Under {', '.join(turned)} the raw energy and that of original content point in different directions"
    return f"{differ}, so the raw number alone says nothing about the model there."


def by_band(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    """The columns `<what>_1` … of rows as one column `what`, with `band`; not of families that change the canvas."""
    return _long(rows[rows.share_1.notna()], [f"{what}_{k + 1}" for k in range(BANDS)], "band", what)


def half_kept(table: pd.DataFrame, condition: str) -> float:
    """The cutoff at which half of the answers still stay: the lowest of `low_pass`, the highest of `high_pass`."""
    kept = table[(table.condition == condition) & (table.value >= 0.5)].severity
    if kept.empty:
        raise ValueError(f"Fewer than half of the answers stay under {condition} at every cutoff.")
    return float(kept.min() if condition == "low_pass" else kept.max())


def changed_beyond_unchanged(rows: pd.DataFrame) -> scores.Estimate:
    """How much farther the views of an image move whose answer changed than the others, in the same images."""
    return scores.paired_change(scores.same_answer(rows), scores.changed_answer(rows), "drift", unit="cosine distance")


def named_as_written(rows: pd.DataFrame) -> scores.Estimate:
    """Share of views with a written class name whose answer is that class."""
    return scores.share_of("named")(rows.assign(named=rows.prediction == rows.word_label))


def flips_beyond(rows: pd.DataFrame, control: pd.DataFrame) -> scores.Estimate:
    """Share of changed answers less that of a control, image by image."""
    one, other = (r.assign(flip=r.prediction != r.clean_prediction) for r in (control, rows))
    return scores.paired_change(one, other, "flip")


def strongest(rows: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Rows of a condition at its largest severity."""
    part = rows[rows.condition == condition]
    return part[part.severity == part.severity.max()]


def beside_the_paper(numbers: pd.DataFrame) -> pd.DataFrame:
    """Flip rate, vulnerability and drift ratio by family, in percent, beside those of Wani et al."""
    value = numbers.set_index("name").value
    wanted = {"ifr": "stability/ifr", "iv": "stability/iv", "drift": "drift/ratio"}
    paper = published("wani-2026").set_index("family")
    own = pd.DataFrame({k: {f: value.get(f"{name}/{f}") for f in paper.index} for k, name in wanted.items()})
    table = own.join(paper.add_prefix("paper: ")).astype(float)
    shown = table.mul(100).map(lambda share: "" if np.isnan(share) else f"{share:.1f}")
    return shown.rename(index=lambda f: f.replace("_", " "))


def depth_in_words(table: pd.DataFrame) -> str:
    """Drift ratio after the first and the last block, by family."""
    ends = table.pivot(index="family", columns="layer", values="value")
    said = [f"{family.replace('_', ' ')} {r.iloc[0]:.1%} and {r.iloc[-1]:.1%}" for family, r in ends.iterrows()]
    return f"After the first and after the last block: {'; '.join(said)}."


def cutoffs_in_words(table: pd.DataFrame) -> str:
    """How much of the spectrum can go before half of the answers do."""
    low, high = (half_kept(table, name) for name in ("low_pass", "high_pass"))
    first = table.severity[table.severity > 0].min()
    text = f"At least half of the answers stay when nothing above {low:.2f} of the largest frequency is kept. "
    if high > 0:
        return text + f"They also stay when everything below {high:.2f} is taken away."
    return text + f"To take away what lies below {first:.2f}, the lowest cutoff, already changes most of them."
