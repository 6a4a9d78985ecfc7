"""Chapter 12: one thing changed at a time, in growing doses, and what annotations would make of it.

Factors have the names of ImageNet-X where it has them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from itertools import combinations
from zlib import crc32

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as TF

from zsr_utils import scores
from zsr_utils._cache import code, digest
from zsr_utils.conditions import ORIGINAL, Batch, Condition
from zsr_utils.datasets import FACTORS, Dataset, Sample, imagenet_x, load_dataset, rendered, tabletop_scenes
from zsr_utils.study import Study


Changes = tuple[tuple[str, float], ...]  # factors and their doses
EXCLUSIVE = {"smaller": "larger", "darker": "brighter"}  # a picture has one of the two at most
GREY = (124, 116, 104)  # of what lies outside a picture: the mean of photographs


@dataclass(frozen=True)
class Factor:
    """One thing that can differ, and how far: `change(thing, dose, u)` takes a scene or a picture.

    A sample's own `u` in [0, 1) chooses among values and sides. A `mixed` change has no size: its dose is the share of
    the changed picture in a mix with the unchanged one, which for surfaces is what mixed paint would look like.
    """

    name: str
    doses: tuple[float, ...]  # growing
    unit: str  # empty for a mixed one
    change: Callable
    mixed: bool = False


def _other(values: Sequence[str], own: str, u: float) -> str:
    return (others := [value for value in values if value != own])[int(u * len(others))]


def _scaled(field: str, sign: int) -> Callable:
    return lambda scene, dose, u: replace(scene, **{field: getattr(scene, field) * (1 + sign * dose)})


def scene_factors() -> tuple[Factor, ...]:
    """Factors of a Tabletop scene, by doses of which the last is far outside of what the family was trained on."""
    mix, painted = (0.3, 0.6, 1.0), ("striped", "dotted", "checkered", "zigzag")
    made_of, degrees = ("wooden", "marble", "brick", "speckled", "camouflage"), "degrees"
    colors, kinds = ("red", "yellow", "green", "blue", "white", "black"), ("mug", "bottle", "car", "house", "duck")

    def second(scene, dose, u):
        place = {"second_x": 0.65 if scene.x < 0 else -0.65, "second_z": dose - 0.8, "second_color": scene.color}
        return replace(scene, second_kind=_other(kinds, scene.kind, u), **place)

    return (
        Factor("pose", (60, 120, 180), degrees, lambda s, d, u: replace(s, yaw=s.yaw + (d if u < 0.5 else -d))),
        Factor("viewpoint", (18, 36, 54), degrees, lambda s, d, u: replace(s, camera_elevation=s.camera_elevation + d)),
        Factor("background", mix, "", lambda s, d, u: replace(s, setting=_other(("beach", "night"), "", u)), True),
        Factor("pattern", mix, "", lambda s, d, u: replace(s, pattern=_other(painted, s.pattern, u)), True),
        Factor("texture", mix, "", lambda s, d, u: replace(s, pattern=_other(made_of, s.pattern, u)), True),
        Factor("color", mix, "", lambda s, d, u: replace(s, color=_other(colors, s.color, u)), True),
        Factor("smaller", (0.25, 0.5, 0.75), "of the size", _scaled("size", -1)),
        Factor("larger", (0.4, 0.8, 1.2), "of the size", _scaled("size", 1)),
        Factor("partial_view", (0.5, 0.75, 1.0), "object heights", lambda s, d, u: replace(s, x=d if u < 0.5 else -d)),
        Factor("object_blocking", (0.2, 0.35, 0.5), "reach", lambda s, d, u: replace(s, occlusion=d)),
        Factor("multiple_objects", (0.4, 0.8, 1.2), "object heights", second),
        Factor("darker", (0.4, 0.6, 0.8), "of the light", _scaled("light_strength", -1)),
        Factor("brighter", (1.0, 2.0, 3.0), "of the light", _scaled("light_strength", 1)),
        Factor("style", (1.0,), "", lambda s, d, u: replace(s, style=_other(("cartoon", "sketch"), "", u)), True),
    )


def picture_factors() -> tuple[Factor, ...]:
    """Factors of any picture, changed without a scene."""

    def moved(picture, u=0.0, *, angle=0.0, shift=0.0, scale=1.0):
        x, how = round(shift * picture.width), {"interpolation": TF.InterpolationMode.BILINEAR, "fill": list(GREY)}
        return TF.affine(picture, angle if u < 0.5 else -angle, [x if u < 0.5 else -x, 0], scale, [0.0], **how)

    def hidden(p, dose, u):
        x = round(dose * p.width)
        return ImageOps.expand(p.crop((x, 0, *p.size)), (x, 0, 0, 0), GREY)

    return (
        Factor("pose", (30, 60, 90), "degrees in the plane", lambda p, d, u: moved(p, u, angle=d)),
        Factor("color", (0.1, 0.25, 0.5), "turns of hue", lambda p, d, u: TF.adjust_hue(p, d)),
        Factor("smaller", (0.25, 0.5, 0.75), "of the size", lambda p, d, u: moved(p, scale=1 - d)),
        Factor("larger", (0.5, 1.0, 2.0), "of the size", lambda p, d, u: moved(p, scale=1 + d)),
        Factor("partial_view", (0.25, 0.5, 0.75), "of the width", lambda p, d, u: moved(p, u, shift=d)),
        Factor("object_blocking", (0.25, 0.5, 0.75), "of the width", hidden),
        Factor("darker", (0.5, 0.75, 0.9), "of the light", lambda p, d, u: TF.adjust_brightness(p, 1 - d)),
        Factor("brighter", (0.7, 1.5, 3.0), "of the light", lambda p, d, u: TF.adjust_brightness(p, 1 + d)),
    )


def factors_of(images: Dataset) -> dict[str, Factor]:
    """What can be changed in a data set, by name: everything in Tabletop's scenes, less in other pictures."""
    return {f.name: f for f in (scene_factors() if images.name == "tabletop" else picture_factors())}


def changed(images: Dataset, wanted: Mapping[str, tuple[str, Changes]]) -> Dataset:
    """Pictures of samples with some factors changed, by new ids: `{"new id": ("old id", (("darker", 0.5),))}`.

    Raises: ValueError for a Tabletop picture of a split other than `validation`, where nothing hides a factor.
    """
    known, label_of = factors_of(images), {s.sample_id: s.label for s in images.samples}
    content = digest(images.fingerprint, dict(wanted), code("experiments/visual_factors"))
    if images.name != "tabletop":
        how = {new: partial(_after, images.image, known, *given) for new, given in wanted.items()}
    else:
        scenes = tabletop_scenes()
        if strange := label_of.keys() - scenes:
            raise ValueError(f"{min(strange)!r} cannot be changed, allowed are pictures of the split 'validation'.")
        after = {new: _after(scenes.get, known, *given) for new, given in wanted.items()}
        different = list(dict.fromkeys(after.values()))  # a mix is rendered once for all its doses
        made = rendered(images.name, {str(k): scene for k, scene in enumerate(different)})
        opens, content = dict(zip(different, (s.open for s in made.samples))), digest(made.content, content)
        how = {new: opens[scene] for new, scene in after.items()}
        for new, (i, changes) in wanted.items():
            if len(changes) == 1 and known[changes[0][0]].mixed:
                how[new] = lambda i=i, end=how[new], d=changes[0][1]: Image.blend(images.image(i), end(), d)
    samples = [Sample(new, label_of[i], how[new]) for new, (i, _) in wanted.items()]
    return Dataset(images.name, images.class_names, samples, images.templates, content)


def _after(of: Callable[[str], object], known: Mapping[str, Factor], sample_id: str, changes: Changes):
    u = crc32(sample_id.encode()) / 2**32
    return reduce(lambda thing, change: known[change[0]].change(thing, change[1], u), changes, of(sample_id))


def _shown(made: Dataset, prefix: str, batch: Batch) -> Tensor:
    return made.pixels([prefix + i for i in batch.sample_ids], batch.net.from_pil).to(batch.pixels.device)


def conditions(images: Dataset, pairs: Sequence[str] = ()) -> list[Condition]:
    """Every factor alone in every dose, which is the severity; or every two of some, in the middle doses.

    Source: Tu et al. (2024) for robustness by factors, which they annotate; interventions are this project's.
    """
    known = factors_of(images)
    wanted = {(n, float(d)): ((n, d),) for n, f in known.items() for d in f.doses}
    if len(pairs):
        two = [pair for pair in combinations(pairs, 2) if set(pair) not in map(set, EXCLUSIVE.items())]
        middle = {n: ((n, f.doses[len(f.doses) // 2]),) for n, f in known.items()}
        wanted = {(f"{a}_and_{b}", 1.0): middle[a] + middle[b] for a, b in two}
    ids = [s.sample_id for s in images.samples]
    made = changed(images, {f"{n}/{d:g}/{i}": (i, changes) for (n, d), changes in wanted.items() for i in ids})
    return [Condition(n, d, partial(_shown, made, f"{n}/{d:g}/"), draws=1) for n, d in wanted]


def examples(images: Dataset, shown: Sequence[Condition]) -> tuple[list[Image.Image], list[str]]:
    """The first picture, and it under every factor in its largest dose, with captions."""
    last, first, known = {c.name: c for c in shown}, images.samples[0].sample_id, factors_of(images)
    pictures = [made.image(prefix + first) for made, prefix in (c.change.args for c in last.values())]
    doses = {n: f"\n{c.severity:g} {known[n].unit}" * (known[n].unit != "") for n, c in last.items()}
    captions = [name.replace("_", " ") + dose for name, dose in doses.items()]
    return [images.image(first), *pictures], ["unchanged", *captions]


def on_grids(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with what an image `lost`, 1.0 where a right answer went, and `margin_lost`; `share` is dose over largest.

    Each factor has the unchanged images too, at dose 0; `right` is 1.0 or 0.0.
    """
    rows = rows.assign(right=scores.correct(rows))
    unchanged, dosed = rows[rows.severity == 0], rows[rows.severity > 0]
    every = pd.concat([*(unchanged.assign(condition=n) for n in dosed.condition.unique()), dosed], ignore_index=True)
    before = every.join(
        unchanged.set_index(["model", "sample_id"])[["right", "margin"]], ["model", "sample_id"], rsuffix="_0"
    )
    change = {"lost": before.right_0 - every.right, "margin_lost": before.margin_0 - every.margin}
    return every.assign(share=every.severity / every.groupby("condition").severity.transform("max"), **change)


def losses(rows: pd.DataFrame, model: str, *, share: float | None = None) -> pd.DataFrame:
    """What every image lost by every factor, a column each: at a share of the grid, or on its average."""
    part = rows[(rows.model == model) & (rows.share > 0 if share is None else rows.share == share)]
    return part.pivot_table("lost", "sample_id", "condition", "mean", sort=False)


def lost(rows: pd.DataFrame, *, than: str = "") -> pd.DataFrame:
    """Accuracy lost at the largest dose, a row a model and factor, image by image; strongest first.

    With `than`, it is the loss of the other models less that of this one. A table of `scores.paired_changes`, each
    model a family of tests.
    """
    largest = rows[rows.share == 1].assign(value=lambda t: t.lost)
    if than:
        table = scores.changes_from(largest, "model", than, ["model", "condition"], bounds=2, within="model")
    else:
        nothing = largest.assign(value=0.0)
        table = scores.paired_changes(nothing, largest, ["model", "condition"], bounds=1, within="model")
    places = table.model.map({name: k for k, name in enumerate(table.model.unique())})
    return table.iloc[np.lexsort([-table.value, places])].reset_index(drop=True)


def interactions(rows: pd.DataFrame, both: pd.DataFrame, images: Dataset) -> pd.DataFrame:
    """Margin that two factors cost beyond the sum of what each costs, in their middle doses, a row a pair.

    `verdict` is Holm-corrected; where accuracy under both is not above chance, nothing is concluded.
    """
    margins, found = rows.set_index(["condition", "severity", "sample_id"]).margin.sort_index(), []
    middle = {n: margins[n, float(f.doses[len(f.doses) // 2])] for n, f in factors_of(images).items()}
    for name, part in both.groupby("condition", sort=False):
        a, b = name.split("_and_")
        beyond = middle[a] + middle[b] - margins[a, 0.0] - part.set_index("sample_id").margin
        p = scores.sign_flip(beyond) if scores.accuracy(part).low > 1 / len(images.class_names) else np.nan
        found.append({"condition": name, **asdict(scores.paired_mean(beyond, unit="logits")), "p": p})
    table = pd.DataFrame(found).assign(p=lambda t: scores.holm(t.p))
    sign = np.where(table.p > 0.05, "not decided", np.where(table.value > 0, "more than the sum", "less than the sum"))
    return table.assign(verdict=np.where(table.p.isna(), "at chance, nothing concluded", sign))


def observe(study: Study, *, number: int, present: float) -> pd.DataFrame:
    """Pictures of a wide world, a row each: whether the answer is wrong, and what perfect annotators would note.

    Factors are there with one probability, independent of each other, as far along their grids as may be; a mixed one
    is there or not, and how unusual it looks is drawn. Pictures are other ones than the chapter's, if there are others.

    Returns: By sample id 1 for every factor that is there, `top`, the one farthest along its grid, and 1 where an
        answer is wrong, `observed` and `top_factor_removed`.
    """
    p, known, shares = study.parameters, factors_of(study.images), {}
    whole = load_dataset(p["dataset"], split=p["split"], classes=p["classes"], seed=p["seed"])
    others = {s.sample_id for s in whole.samples} - {s.sample_id for s in study.images.samples}
    images = (whole.only(others) if others else whole).subset(number, p["seed"])
    for i in (s.sample_id for s in images.samples):
        rng = np.random.default_rng([p["seed"], crc32(i.encode())])
        shares[i] = dict(zip(known, (1 - rng.random(len(known))) * (rng.random(len(known)) < present)))
        shares[i] |= {b: 0.0 for a, b in EXCLUSIVE.items() if shares[i][a]}
    table = pd.DataFrame(shares).T.rename_axis("sample_id")
    top = table.idxmax(axis=1).where(table.gt(0).any(axis=1))

    def changes(i: str, without: str = "") -> Changes:
        here = [n for n in known if shares[i][n] and n != without]
        return tuple((n, float(known[n].doses[-1] * (1 if known[n].mixed else shares[i][n]))) for n in here)

    seen = changed(images, {i: (i, changes(i)) for i in shares})
    removed = changed(images, {f"removed/{i}": (i, changes(i, top[i])) for i in shares})
    again = Condition("top_factor_removed", 1.0, partial(_shown, removed, "removed/"), draws=1)
    rows = study.measure([replace(ORIGINAL, name="observed"), again], images=seen, models=[study.name])
    wrong = rows.assign(wrong=1 - scores.correct(rows)).pivot(index="sample_id", columns="condition", values="wrong")
    return table.gt(0).astype(int).assign(top=top).join(wrong)


def error_ratios(wrong: pd.Series, labels: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Error ratio of every factor by top labels alone and by all labels (column `labels`); see `error_ratio`."""
    labels = labels.loc[wrong.index]
    has = {(n, which): labels.top == n if which == "top" else labels[n] for n in names for which in ("top", "all")}
    found = [asdict(scores.error_ratio(wrong, h)) for h in has.values()]
    return pd.DataFrame(found, index=pd.MultiIndex.from_tuples(has, names=["factor", "labels"])).reset_index()


def rankings(rows: pd.DataFrame, seen: pd.DataFrame, images: Dataset) -> dict[str, np.ndarray]:
    """Harm of every factor and draws of it: by intervention, by labels, and by taking the labelled factor away."""
    alone, whole = losses(rows, rows.model.iloc[0]), [n for n, f in factors_of(images).items() if f.mixed]
    alone[whole] = losses(rows, rows.model.iloc[0], share=1.0)[whole]  # as they are in observed pictures
    top = np.where(seen.top.to_numpy()[:, None] == alone.columns.to_numpy(), 1.0, np.nan)
    wrong, gone = seen.observed.to_numpy()[:, None], (seen.observed - seen.top_factor_removed).to_numpy()[:, None]
    every = np.where(seen[list(alone)] == 1, 1.0, np.nan)
    found = {"changed alone": (alone.to_numpy(), -1), "top label": (wrong * top, 0), "all labels": (wrong * every, 0)}
    found["taken away"] = (gone * top, -1)
    return {name: scores.column_means(v, low=low, seed=k) for k, (name, (v, low)) in enumerate(found.items())}


def imagenet_x_ratios(study: Study, number: int) -> pd.DataFrame | None:
    """Error ratios by the labels of ImageNet-X where the data set is ImageNet; else says why there are none."""
    if study.parameters["dataset"] != "imagenet":
        return study.say("ImageNet-X labels images of ImageNet, and this run saw {name}.", name=study.images.name)
    try:
        labels, images = imagenet_x(), load_dataset("imagenet")
    except FileNotFoundError as error:
        return study.say("No error ratios of photographs: {error}", error=str(error))
    there = labels.index.intersection([s.sample_id for s in images.samples])
    images = images.only(there).subset(number, study.parameters["seed"])
    rows = study.measure([replace(ORIGINAL, name="annotated")], images=images, models=[study.name])
    ratios = error_ratios(pd.Series(1 - scores.correct(rows), rows.sample_id), labels, FACTORS)
    return study.keep(ratios, "imagenet_x/error_ratio/{factor}_{labels}")
