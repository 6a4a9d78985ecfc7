"""Chapter 07: what natural and artificial shifts of the images take away, and what of it accuracy alone foretells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor, nn
from torch.nn import functional as F

from zsr_utils import datasets, scores
from zsr_utils._text import read_yaml
from zsr_utils.conditions import NOISES, ORIGINAL, Batch, Condition, Head, published_size, unchanged
from zsr_utils.datasets import Dataset, Shift
from zsr_utils.measure import measure
from zsr_utils.models import Model, SupervisedModel, load_model, training
from zsr_utils.scores import Estimate, trends
from zsr_utils.study import Study


TWIN = "tabletop-supervised"  # normalises mCE and mFR on Tabletop, and says what is hard
STANDARD = (TWIN, "tabletop-conv-supervised")  # members of the family that are trained on labels alone
PIVOT = {"imagenet-a": 0.9186}  # ResNet-50's accuracy on those classes of ImageNet: it chose the images
# Errors of AlexNet, means over the five severities, as published with ImageNet-C: the normaliser of its mCE.
ALEXNET = read_yaml(Path(__file__).resolve().parents[2] / "data" / "published" / "alexnet_errors.yaml")


def known_shifts(study: Study, folders: Sequence[str], *, pool: int) -> dict[str, Shift]:
    """The shifts of the data set by name; says where none is known."""
    p = study.parameters
    found = datasets.natural_shifts(study.images, folders, split=p["split"], limit=p["limit"], seed=p["seed"])
    if study.images.name == "tabletop":
        found["a"] = what_the_twin_gets_wrong(pool, seed=p["seed"])
    if not found:
        said = "No shifted counterpart of {name} is known: only corruptions and sequences follow."
        study.say(said, name=study.images.name)
    return found


def what_the_twin_gets_wrong(number: int, *, seed: int = 0) -> Shift:
    """ImageNet-A's recipe: hard scenes out of a pool that the supervised twin gets wrong, beside plain versions."""
    (pool, plain), twin = datasets.hard_scenes(number, seed), load_model(TWIN)
    rows = measure(twin, pool, head_of(twin, pool), [ORIGINAL], seed=seed)
    wrong = rows.sample_id[rows.prediction != rows.label].tolist()
    if len(wrong) < 2:
        raise ValueError(f"pool is {number}, of which {TWIN} gets {len(wrong)} wrong: take a larger one.")
    return Shift(pool.only(wrong), datasets.rendered("plain", {i: plain[i] for i in wrong}), paired=True)


def head_of(net: Model, images: Dataset) -> Head:
    return Head(net.classifier(images.class_names, images.templates), images.class_names)


def seen(name: str) -> list[Condition]:
    """Images of another set as they are, under its name."""
    return [Condition(name, 1, unchanged, draws=1)]


def measured(study: Study, shifts: Mapping[str, Shift]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the shifted images and of their clean counterparts; the twin's on what it chose itself are left out."""
    if not shifts:
        return pd.DataFrame(), pd.DataFrame()
    shown = [study.measure(seen(name), images=s.shown).assign(shift=name) for name, s in shifts.items()]
    clean = [study.measure([ORIGINAL], images=s.clean, keep=False).assign(shift=n) for n, s in shifts.items()]
    both = (pd.concat(parts, ignore_index=True) for parts in (shown, clean))
    return tuple(rows[(rows.model != TWIN) | (rows["shift"] != "a")] for rows in both)


def pairs(shown: pd.DataFrame, clean: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Every model and shift with its clean and its shifted rows."""
    if len(shown):
        before = clean.groupby(["model", "shift"])
        for key, rows in shown.groupby(["model", "shift"], sort=False):
            yield *key, before.get_group(key), rows


def drops(shown: pd.DataFrame, clean: pd.DataFrame, shifts: Mapping[str, Shift]) -> pd.DataFrame:
    """What every shift takes of every model's accuracy: an estimate a row, with `p`, corrected for all (Holm)."""
    found = [{"model": m, "shift": s, **scores.drop(*r, paired=shifts[s].paired)} for m, s, *r in pairs(shown, clean)]
    table = pd.DataFrame(found)
    return table.assign(p=scores.holm(table.p.to_numpy()))


def in_words(table: pd.DataFrame, model: str) -> str:
    """Which shifts lower or raise a model's accuracy after the correction, and which are not decided."""
    own, decided = table[table.model == model], table.p < 0.05
    ways = np.select([~decided, table.value > 0], ["undecided", "more"], "less")
    words = {"less": "its accuracy falls under", "more": "it rises under", "undecided": "not decided under"}
    return scores.by_verdict(own.assign(verdict=ways[table.model == model]), "shift", words)


def patches(filters: int, x: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Module:
    """Random filters, pooled, and a ridge head with an output a class: a standard classifier, quickly trained."""
    convolution, head = nn.Conv2d(3, filters, 6, stride=2, bias=False), nn.Linear(filters * 16, classes)
    network = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), head)
    kernels = torch.randn(filters, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    convolution.weight.data = kernels - kernels.mean((1, 2, 3), keepdim=True)
    with torch.no_grad():
        features = network[:-1](x).double()
    middle, spread = features.mean(0), features.std(0) + 1e-6
    units = (features - middle) / spread
    gram = units @ units.T + 0.1 * units.shape[1] * torch.eye(len(units))  # in its dual form
    weights = (units.T @ torch.linalg.solve(gram, F.one_hot(labels, classes).double() - 1 / classes)).T / spread
    head.weight.data, head.bias.data = weights.float(), -(weights @ middle).float()
    return network


def standard_models(images: Dataset, *, filters: Sequence[int], scenes: Sequence[int], seed: int) -> dict[str, Model]:
    """Models trained on labels of Tabletop alone: random filters with a ridge head, and the supervised members."""
    few, nets = datasets.pretraining_part(training(TWIN) | {"seed": seed}, [], max(scenes)), {}
    how = {"image_size": 64, "mean": (0.0,) * 3, "std": (1.0,) * 3, "transform": load_model(TWIN).from_pil}
    how["namings"] = [[(c,) for c in images.class_names]]
    x = few.pixels([s.sample_id for s in few.samples], how["transform"])
    labels = torch.tensor([s.label for s in few.samples])
    for number, size in product(filters, scenes):
        name = f"{number} random filters, {size} scenes"
        network = patches(number, x[:size], labels[:size], len(images.class_names), seed)
        nets[name] = SupervisedModel(network, name=name, **how)
    return nets | {name: load_model(name) for name in STANDARD}


def points(shown: pd.DataFrame, clean: pd.DataFrame, group: str = "") -> pd.DataFrame:
    """Every model on every shift: `name`, `group` (its name by default), `shift`, clipped `x` and `y`, y's interval."""
    found = []
    for name, shift, *both in pairs(shown, clean):
        x, y = map(scores.clipped, both)
        found.append((name, group or name, shift, x.value, y.value, y.low, y.high))
    return pd.DataFrame(found, columns=["name", "group", "shift", "x", "y", "low", "high"])


def standard_points(study: Study, shifts: Mapping[str, Shift], **options) -> pd.DataFrame:
    """Standard models on every shift: measured on Tabletop, from the published testbed on ImageNet, else none."""
    if study.images.name == "tabletop":
        nets = standard_models(study.images, seed=study.parameters["seed"], **options)
        rows = [
            [measure(net, x, head_of(net, x), [ORIGINAL]).assign(model=name, shift=shift) for x in (s.shown, s.clean)]
            for name, net in nets.items()
            for shift, s in shifts.items()
            if (name, shift) != (TWIN, "a")  # it chose the images: 0 by construction
        ]
        return points(*map(pd.concat, zip(*rows)), "standard")
    table = datasets.published("imagenet-testbed").query("group == 'standard'").rename(columns={"model": "name"})
    found = []
    for shift in shifts if study.images.name == "imagenet" else ():
        if shift in table:
            x, y = table.get(f"imagenet-on-{shift}", table.imagenet), table[shift]
            found.append(table[["name", "group"]].assign(shift=shift, x=x, y=y, low=y, high=y).query("0 < y < 1"))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"shift": []})


def lines_through(standard: pd.DataFrame, *, seed: int = 0) -> dict[str, trends.Line]:
    """The line of every shift that enough standard models were measured on."""
    return {
        shift: trends.fit_line(part.x, part.y, pivot=PIVOT.get(shift, np.inf), seed=(seed, k))
        for k, (shift, part) in enumerate(standard.groupby("shift", sort=False))
        if len(part) >= trends.FEWEST
    }


def above(shown: pd.DataFrame, clean: pd.DataFrame, lines: Mapping[str, trends.Line]) -> pd.DataFrame:
    """Effective robustness of every model under every shift with a line."""
    found = []
    for model, shift, before, part in pairs(shown, clean):
        if shift in lines:
            estimate = scores.effective_robustness(lines[shift], scores.clipped(before), scores.accuracy(part))
            found.append({"model": model, "shift": shift, **asdict(estimate)})
    return pd.DataFrame(found)


def examples(shifts: Mapping[str, Shift], images: Dataset) -> tuple[list, list[str]]:
    """The first picture, and the first one of every shift, with captions."""
    first = [(images, "clean"), *((s.shown, name) for name, s in shifts.items())]
    return [next(iter(shown))[1] for shown, _ in first], [name.replace("_", " ") for _, name in first]


def changed(study: Study, conditions: Sequence[Condition], images: Dataset | None = None) -> tuple[list, list[str]]:
    """The first picture, of other images where given, under some conditions as the model sees it, with captions."""
    images, net, head = images or study.images, study.net, study.heads[study.name]
    sample = images.samples[0]
    clean = head.see(net, images.pixels([sample.sample_id], net.from_pil).to(net.device))
    batch = Batch(net, head, [sample.sample_id], torch.tensor([sample.label]), clean, open=images.image)
    return [c.change(batch)[0].cpu() for c in conditions], [c.name.replace("_", " ") for c in conditions]


def hardest_first(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by the mean of their condition over models, the lowest first; models stay in their order."""
    order = table.groupby("condition").value.mean().sort_values().index
    return table.set_index("condition").loc[order].reset_index()


def curves_of(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by severity: the mean over corruptions of every model, and the own model's worst and mildest one."""
    every = study.estimate(rows, "corruptions/by_severity", right, ["severity"])
    own = rows[rows.model == study.name]
    order, parts = scores.estimates(own, ["condition"], right).sort_values("value").condition, []
    for word, corruption in zip(("worst", "mildest"), order.iloc[[0, -1]]):
        part = scores.estimates(own[own.condition == corruption], ["severity"], scores.accuracy)
        parts.append(part.assign(group=f"{study.name}, {word}: {corruption.replace('_', ' ')}"))
    return pd.concat([every.assign(group=every.model + ", all"), *parts], ignore_index=True)


def right(rows: pd.DataFrame) -> Estimate:
    """Share of right answers over several views of the images; the interval counts images."""
    return scores.share_of("right")(rows.assign(right=scores.correct(rows)))


def videos_of(study: Study, folders: Sequence[str], anchors: int) -> pd.DataFrame:
    """pm-0, pm-10 and their mean of every model on videos: rendered ones on Tabletop, and those of folders."""
    few = [s.sample_id for s in study.images.subset(anchors, study.parameters["seed"]).samples]
    sets = {Path(folder).name: datasets.video_frames(folder) for folder in folders}
    if study.images.name == "tabletop":
        sets |= {name: datasets.tabletop_frames(few, study.parameters["split"], name) for name in ("youtube-bb", "vid")}
    found = [
        {"model": model, "video": name, "counted": counted, **asdict(estimate)}
        for name, frames in sets.items()
        for model, rows in study.measure(seen(name), images=frames).groupby("model", sort=False)
        for counted, estimate in scores.around_anchors(rows).items()
    ]
    return study.keep(pd.DataFrame(found), "videos/{video}/{counted}") if found else pd.DataFrame()


def corruption_errors(study: Study, rows: pd.DataFrame) -> str:
    """Keeps the mCE of every model, and says the own one: relative to the twin on Tabletop, to AlexNet on ImageNet."""
    errors, known = {m: scores.by_cell(part) for m, part in rows.groupby("model", sort=False)}, ()
    if study.images.name == "imagenet" and published_size(study.net.image_size) == 224:
        table = np.array([ALEXNET[name] for name in sorted(rows.condition.unique())])[:, None]
        known = np.broadcast_to(table, errors[study.name].shape), "AlexNet's published errors"
    return _relative(study, "mCE", errors, *known) or "no normaliser is known for these images, so there is no mCE"


def flipped(rows: pd.DataFrame) -> pd.DataFrame:
    """The share of changed answers of every image, sequence and model, in the column `flip`."""
    parts = []
    for (model, name), part in rows.groupby(["model", "condition"], sort=False):
        sequence, ids = name.removesuffix("_sequence"), sorted(part.sample_id.unique())
        share = scores.flips(part, noise=sequence in NOISES)
        parts.append(pd.DataFrame({"model": model, "sequence": sequence, "sample_id": ids, "flip": share}))
    return pd.concat(parts, ignore_index=True)


def flip_rates(study: Study, table: pd.DataFrame) -> str:
    """Keeps the mFR of every model where the twin was measured, and says the own one."""
    wide = table.pivot(index=["model", "sample_id"], columns="sequence", values="flip")
    flips = {model: wide.loc[model].to_numpy()[..., None] for model in table.model.unique()}
    why = "no normaliser is known, since AlexNet's flip rates are not published, so there is no mFR"
    return _relative(study, "mFR", flips, least=1 / 60) or why


def _relative(study: Study, short: str, measured: Mapping, reference=None, whose: str = TWIN, **least: float) -> str:
    if reference is None and (study.images.name != "tabletop" or (reference := measured.get(whose)) is None):
        return ""
    others = {m: scores.relative_errors(own, reference, **least) for m, own in measured.items() if m != whose}
    name = f"{'corruptions' if short == 'mCE' else 'sequences'}/{short}".lower()
    if others:
        study.keep(pd.DataFrame([{"model": m, **asdict(found)} for m, found in others.items()]), name)
    own = f"its {short}, relative to {whose}, is {study[name]:.0f}" if study.name != whose else ""
    return own or f"it is the one that {short} is relative to"


def drawn(standard: pd.DataFrame, shown: pd.DataFrame, clean: pd.DataFrame, lines: Mapping) -> tuple:
    """Standard models and those of the study as points, and the lines with their bands, for `plots.trend`."""
    own = points(shown, clean)
    every, bands = pd.concat([standard, own[~own.group.isin(STANDARD)]]), []
    every = every[every["shift"].isin(lines)]
    for shift, line in lines.items():
        ends = special.logit(every[every["shift"] == shift].x.agg(["min", "max"]))
        bands.append(line.band(special.expit(np.linspace(*ends, 40))).assign(shift=shift))
    return every, pd.concat(bands, ignore_index=True)


def above_in_words(study: Study, table: pd.DataFrame) -> str:
    """Where the model is above or below the line, all shifts tested at once."""
    if table.empty:
        return f"Fewer than {trends.FEWEST} standard models are known for these shifts, so there is no line."
    own = scores.tested(table[table.model == study.name])
    words = {"more": "above the line under", "less": "below the line under"}
    said = scores.by_verdict(own, "shift", words, mark=" and ") or "not told from the line under any shift"
    return f"With all shifts tested at once (Holm), {study.name} is {said}."
