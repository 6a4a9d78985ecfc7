"""Chapter 07: what natural and artificial shifts of the images take away, and what of it accuracy alone foretells."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor, nn
from torch.nn import functional as F

from zsr_utils import scores
from zsr_utils.conditions import NOISES, ORIGINAL, SEVERITIES, Condition, Head, unchanged
from zsr_utils.datasets import Dataset, Shift, hard_scenes, published, rendered
from zsr_utils.measure import measure
from zsr_utils.models import Model, SupervisedModel, load_model, training
from zsr_utils.scores import Estimate, trends
from zsr_utils.study import Study


TWIN = "tabletop-supervised"  # normalises mCE and mFR on Tabletop, and says what is hard
STANDARD = (TWIN, "tabletop-conv-supervised")  # members of the family that are trained on labels alone
# Errors of AlexNet, means over the five severities, as published with ImageNet-C: the normaliser of its mCE.
ALEXNET = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


def what_the_twin_gets_wrong(number: int, *, seed: int = 0) -> Shift:
    """ImageNet-A's recipe: hard scenes out of a pool that the supervised twin gets wrong, beside plain versions."""
    pool, plain = hard_scenes(number, seed)
    twin = load_model(TWIN)
    rows = measure(twin, pool, head_of(twin, pool), [ORIGINAL], seed=seed)
    wrong = rows.sample_id[rows.prediction != rows.label].tolist()
    if len(wrong) < 2:
        raise ValueError(f"pool is {number}, of which {TWIN} gets {len(wrong)} wrong: take a larger one.")
    return Shift(pool.only(wrong), rendered("plain", {i: plain[i] for i in wrong}), paired=True)


def head_of(net: Model, images: Dataset) -> Head:
    return Head(net.classifier(images.class_names, images.templates), images.class_names)


def seen(name: str) -> list[Condition]:
    """Images of another set as they are, under its name."""
    return [Condition(name, 1, unchanged, draws=1)]


def measured(study: Study, shifts: Mapping[str, Shift]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the shifted images and of their clean counterparts, of every model, with the column `shift`."""
    shown = [study.measure(seen(name), images=s.shown).assign(shift=name) for name, s in shifts.items()]
    clean = [study.measure([ORIGINAL], images=s.clean, keep=False).assign(shift=n) for n, s in shifts.items()]
    return pd.concat(shown, ignore_index=True), pd.concat(clean, ignore_index=True)


def drops(shown: pd.DataFrame, clean: pd.DataFrame, shifts: Mapping[str, Shift]) -> pd.DataFrame:
    """What every shift takes of every model's accuracy: an estimate a row, with `p`, corrected for all (Holm)."""
    groups = clean.groupby(["model", "shift"], sort=False)
    found = [
        {"model": m, "shift": s, **scores.drop(groups.get_group((m, s)), part, paired=shifts[s].paired)}
        for (m, s), part in shown.groupby(["model", "shift"], sort=False)
    ]
    table = pd.DataFrame(found)
    return table.assign(p=scores.holm(table.p.to_numpy()))


def in_words(table: pd.DataFrame, model: str) -> str:
    """Which shifts lower or raise a model's accuracy after the correction, and which are not decided."""
    own = table[table.model == model]
    ways = {"lower": own[(own.p < 0.05) & (own.value < 0)], "raise": own[(own.p < 0.05) & (own.value > 0)]}
    parts = [f"{', '.join(part['shift'])} {way} its accuracy" for way, part in ways.items() if len(part)]
    if len(rest := own[own.p >= 0.05]):
        parts.append(f"for {', '.join(rest['shift'])} it is not decided")
    return "; ".join(parts).replace("_", " ")


class Patches(nn.Module):
    """Random filters, pooled, and a linear head: the standard classifiers that anyone can train in a second."""

    def __init__(self, filters: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("kernels", torch.randn(filters, 3, 6, 6, generator=generator))
        self.kernels -= self.kernels.mean((1, 2, 3), keepdim=True)
        self.head = nn.Linear(filters * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(F.conv2d(x, self.kernels, stride=2).relu(), 4).flatten(1))

    def fit(self, x: Tensor, labels: Tensor, classes: int) -> None:
        """Ridge regression to one output a class."""
        head, self.head = self.head, nn.Identity()
        features, self.head = self(x).double(), head
        middle, spread = features.mean(0), features.std(0) + 1e-6
        units = (features - middle) / spread
        gram = units @ units.T + 0.1 * units.shape[1] * torch.eye(len(units))  # in its dual form
        weights = (units.T @ torch.linalg.solve(gram, F.one_hot(labels, classes).double() - 1 / classes)).T / spread
        self.head.weight, self.head.bias = nn.Parameter(weights.float()), nn.Parameter(-(weights @ middle).float())


def standard_models(images: Dataset, *, filters: Sequence[int], scenes: Sequence[int], seed: int) -> dict[str, Model]:
    """Models trained on labels of Tabletop alone: random filters with a ridge head, and the supervised members."""
    from tabletop import SceneDistribution

    recipe = SceneDistribution(**{k: _tuples(v) for k, v in training(TWIN)["distribution"].items()})
    drawn = {f"train/{k:05d}": recipe.draw(seed, "pretrain", k) for k in range(max(scenes))}
    nets, few, names = {}, rendered("training scenes", drawn), list(images.class_names)
    twin = load_model(TWIN)
    pixels, labels = few.pixels(list(drawn), twin.from_pil), torch.tensor([s.label for s in few.samples])
    for number in filters:
        for size in scenes:
            network = Patches(number, seed)
            with torch.no_grad():
                network.fit(pixels[:size], labels[:size], len(names))
            options = {"image_size": 64, "mean": (0.0,) * 3, "std": (1.0,) * 3, "transform": twin.from_pil}
            name = f"{number} random filters, {size} scenes"
            nets[name] = SupervisedModel(network, namings=[[(c,) for c in names]], name=name, **options)
    return nets | {name: load_model(name) for name in STANDARD}


def points(shown: pd.DataFrame, clean: pd.DataFrame, group: str) -> pd.DataFrame:
    """Every model of the rows on every shift: `name`, `group`, `shift`, `x` and `y`, clipped, and y's interval."""
    found = []
    for (name, shift), part in shown.groupby(["model", "shift"], sort=False):
        before = clean[(clean.model == name) & (clean["shift"] == shift)]
        x, y = (scores.clipped(int(scores.correct(rows).sum()), len(rows)) for rows in (before, part))
        found.append({"name": name, "group": group, "shift": shift, "x": x.value, "y": y.value, **_ends(y)})
    return pd.DataFrame(found)


def standard_points(study: Study, shifts: Mapping[str, Shift], **options) -> pd.DataFrame:
    """Standard models on every shift: measured on Tabletop, from the published testbed on ImageNet, else none."""
    if study.images.name == "tabletop":
        parts = []
        for name, net in standard_models(study.images, seed=study.parameters["seed"], **options).items():
            for shift, s in shifts.items():
                if shift == "a" and name == TWIN:
                    continue  # it chose the images: 0 by construction
                shown, clean = (
                    measure(net, images, head_of(net, images), [ORIGINAL]).assign(model=name, shift=shift)
                    for images in (s.shown, s.clean)
                )
                parts.append(points(shown, clean, "standard"))
        return pd.concat(parts, ignore_index=True)
    table = published("imagenet-testbed").query("group == 'standard'")
    found = []
    for shift in shifts if study.images.name == "imagenet" else ():
        if shift in table:
            x = table.get(f"imagenet-on-{shift}", table.imagenet)
            kept = pd.DataFrame({"name": table.model, "x": x, "y": table[shift], "shift": shift}).query("0 < y < 1")
            found.append(kept.assign(group="standard", low=kept.y, high=kept.y))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def lines_through(standard: pd.DataFrame, *, seed: int = 0) -> dict[str, trends.Line]:
    """The line of every shift that enough standard models were measured on."""
    return {
        shift: trends.fit_line(part.x, part.y, seed=(seed, k))
        for k, (shift, part) in enumerate(standard.groupby("shift", sort=False) if len(standard) else ())
        if len(part) >= trends.FEWEST
    }


def bands(lines: Mapping[str, trends.Line], every: pd.DataFrame) -> pd.DataFrame:
    """The lines with their bands, over the accuracies of all models on a shift."""
    grids = {
        s: special.expit(np.linspace(*special.logit(every[every["shift"] == s].x.agg(["min", "max"])), 40))
        for s in lines
    }
    return pd.concat([line.band(grids[s]).assign(shift=s) for s, line in lines.items()], ignore_index=True)


def above(shown: pd.DataFrame, clean: pd.DataFrame, lines: Mapping[str, trends.Line]) -> pd.DataFrame:
    """Effective robustness of every model under every shift with a line."""
    found = []
    for (model, shift), part in shown[shown["shift"].isin(lines)].groupby(["model", "shift"], sort=False):
        before = clean[(clean.model == model) & (clean["shift"] == shift)]
        x, y = scores.clipped(int(scores.correct(before).sum()), len(before)), scores.accuracy(part)
        found.append({"model": model, "shift": shift, **asdict(scores.effective_robustness(lines[shift], x, y))})
    return pd.DataFrame(found)


def curves_of(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by severity: the mean over corruptions of every model, and the own model's worst and mildest one."""
    right = rows.assign(right=scores.correct(rows))
    every = study.estimate(right, "corruptions/by_severity", scores.share_of("right"), ["severity"])
    own = right[right.model == study.name]
    order = own.groupby("condition").right.mean().sort_values().index
    parts = [every.assign(group=every.model + ", all")]
    for corruption, word in ((order[0], "worst"), (order[-1], "mildest")):
        part = scores.estimates(own[own.condition == corruption], ["severity"], scores.accuracy)
        parts.append(part.assign(group=f"{study.name}, {word}: {corruption.replace('_', ' ')}"))
    return pd.concat(parts, ignore_index=True)


def normalised(study: Study, rows: pd.DataFrame) -> tuple[str, dict[str, Estimate]]:
    """Who normalises mCE here, and the mCE of every other model: the twin on Tabletop, AlexNet's table on ImageNet."""
    errors = {m: scores.by_cell(part) for m, part in rows.groupby("model", sort=False)}
    if study.images.name == "tabletop" and TWIN in errors:
        return TWIN, {m: scores.corruption_error(e, errors[TWIN]) for m, e in errors.items() if m != TWIN}
    names = sorted(rows.condition.unique())
    if study.images.name == "imagenet" and study.net.image_size >= 200:
        table = np.array([[ALEXNET[n]] * len(SEVERITIES) for n in names])
        return "AlexNet", {m: scores.corruption_error(e, np.broadcast_to(table, e.shape)) for m, e in errors.items()}
    return "", {}


def flipped(rows: pd.DataFrame) -> pd.DataFrame:
    """The share of changed answers of every image, sequence and model, in the column `flip`."""
    parts = []
    for (model, name), part in rows.groupby(["model", "condition"], sort=False):
        sequence = name.removesuffix("_sequence")
        share = scores.flips(part, noise=sequence in NOISES)
        ids = sorted(part.sample_id.unique())
        parts.append(pd.DataFrame({"model": model, "sequence": sequence, "sample_id": ids, "flip": share}))
    return pd.concat(parts, ignore_index=True)


def flip_ratio(table: pd.DataFrame, model: str, reference: str) -> Estimate:
    """mFR of one model against another."""
    wide = (
        table[table.model == m].pivot(index="sample_id", columns="sequence", values="flip") for m in (model, reference)
    )
    return scores.flip_rates(*(w.to_numpy() for w in wide))


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _ends(e: Estimate) -> dict:
    return {"low": e.low, "high": e.high}
