"""Chapter 12: one thing changed at a time, in growing doses, and what annotations would make of it.

A scene of Tabletop is rendered again with one factor changed; of other pictures those factors can be changed that need
no scene. Factors have the names of ImageNet-X where it has them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import numpy as np
import pandas as pd
from jaxtyping import Float
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from zsr_utils import scores
from zsr_utils._cache import code, digest
from zsr_utils._text import markdown
from zsr_utils.conditions import ORIGINAL, Batch, Condition
from zsr_utils.datasets import FACTORS, Dataset, Sample, imagenet_x, load_dataset, rendered, tabletop_scenes
from zsr_utils.study import Study


Changes = tuple[tuple[str, float], ...]  # factors and their doses
EXCLUSIVE = {"smaller": "larger", "darker": "brighter"}  # a picture has one of the two at most
GREY = (124, 116, 104)  # of what lies outside a picture: the mean of photographs


@dataclass(frozen=True)
class Factor:
    """One thing that can differ, and how far.

    `change(thing, dose, u)` takes a scene or a picture, and a number in [0, 1) that a sample has for good: it chooses
    among values and sides. A `mixed` change has no size: its dose is the share of the changed picture in a mix with the
    unchanged one, which for colours and surfaces is what mixed paint would look like.
    """

    name: str
    doses: tuple[float, ...]  # growing
    unit: str
    change: Callable
    mixed: bool = False


def _other(values: Sequence[str], own: str, u: float) -> str:
    values = [value for value in values if value != own]
    return values[int(u * len(values))]


def _second(scene, dose: float, u: float):
    from tabletop import KINDS

    place = {"second_x": 0.65 if scene.x < 0 else -0.65, "second_z": dose - 0.8, "second_color": scene.color}
    return replace(scene, second_kind=_other(list(KINDS), scene.kind, u), **place)


@cache
def scene_factors() -> tuple[Factor, ...]:
    """Factors of a Tabletop scene, by doses of which the last is far outside of what the family was trained on."""
    from tabletop.materials import COLORS

    mix, painted = (0.3, 0.6, 1.0), ("striped", "dotted", "checkered", "zigzag")
    made_of, degrees = ("wooden", "marble", "brick", "speckled", "camouflage"), "degrees"
    return (
        Factor("pose", (60, 120, 180), degrees, lambda s, d, u: replace(s, yaw=s.yaw + (d if u < 0.5 else -d))),
        Factor("viewpoint", (15, 30, 45), degrees, lambda s, d, u: replace(s, camera_elevation=s.camera_elevation + d)),
        Factor("background", mix, "share", lambda s, d, u: replace(s, setting=_other(("beach", "night"), "", u)), True),
        Factor("pattern", mix, "share", lambda s, d, u: replace(s, pattern=_other(painted, s.pattern, u)), True),
        Factor("texture", mix, "share", lambda s, d, u: replace(s, pattern=_other(made_of, s.pattern, u)), True),
        Factor("color", mix, "share", lambda s, d, u: replace(s, color=_other(list(COLORS), s.color, u)), True),
        Factor("smaller", (0.25, 0.5, 0.75), "of the size", lambda s, d, u: replace(s, size=s.size * (1 - d))),
        Factor("larger", (0.4, 0.8, 1.2), "of the size", lambda s, d, u: replace(s, size=s.size * (1 + d))),
        Factor("partial_view", (0.5, 0.75, 1.0), "object heights", lambda s, d, u: replace(s, x=d if u < 0.5 else -d)),
        Factor("object_blocking", (0.2, 0.35, 0.5), "reach", lambda s, d, u: replace(s, occlusion=d)),
        Factor("multiple_objects", (0.4, 0.8, 1.2), "object heights", _second),
        Factor("darker", (0.4, 0.6, 0.8), "of the light", partial(_lit, sign=-1)),
        Factor("brighter", (0.7, 1.3, 2.0), "of the light", partial(_lit, sign=1)),
        Factor("style", (1.0,), "share", lambda s, d, u: replace(s, style=_other(("cartoon", "sketch"), "", u)), True),
    )


def _lit(scene, dose: float, u: float, *, sign: int):
    return replace(scene, light_strength=scene.light_strength * (1 + sign * dose))


@cache
def picture_factors() -> tuple[Factor, ...]:
    """Factors of any picture, changed without a scene."""

    def moved(picture, u=0.0, *, angle=0.0, shift=0.0, scale=1.0):
        x, how = round(shift * picture.width), {"interpolation": TF.InterpolationMode.BILINEAR, "fill": list(GREY)}
        return TF.affine(picture, angle if u < 0.5 else -angle, [x if u < 0.5 else -x, 0], scale, [0.0], **how)

    def hidden(picture, dose, u):
        width = round(dose * picture.width)
        (copy := picture.copy()).paste(GREY, (0, 0, width, picture.height) if u < 0.5 else (picture.width - width, 0))
        return copy

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

    Raises: ValueError for a Tabletop picture of another split than `validation`, whose scenes have neither card nor box
        nor second object, so that no factor is hidden.
    """
    known, label_of = factors_of(images), {s.sample_id: s.label for s in images.samples}
    content = digest(images.fingerprint, dict(wanted), code("experiments/visual_factors"))
    if images.name != "tabletop":
        how = {new: partial(_after, images.image, known, *given) for new, given in wanted.items()}
    else:
        scenes = tabletop_scenes()
        if strange := [i for i, _ in wanted.values() if i not in scenes]:
            raise ValueError(f"{strange[0]!r} cannot be changed, allowed are pictures of the split 'validation'.")
        after = {new: _after(scenes.get, known, *given) for new, given in wanted.items()}
        # one rendering for all mixes that it is part of
        place = {scene: str(k) for k, scene in enumerate(dict.fromkeys(after.values()))}
        made = rendered(images.name, {number: scene for scene, number in place.items()})
        opens, content = dict(zip(place, (s.open for s in made.samples))), digest(made.content, content)
        how = {new: opens[scene] for new, scene in after.items()}
        for new, (i, changes) in wanted.items():
            if len(changes) == 1 and known[changes[0][0]].mixed and changes[0][1] < 1:
                how[new] = partial(_mixed, images, i, how[new], changes[0][1])
    samples = [Sample(new, label_of[i], how[new]) for new, (i, _) in wanted.items()]
    return Dataset(images.name, images.class_names, samples, images.templates, content)


def _number(sample_id: str) -> float:
    """A number in [0, 1) that a sample has for good."""
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:6], "big") / 2**48


def _after(of: Callable[[str], object], known: Mapping[str, Factor], sample_id: str, changes: Changes):
    thing = of(sample_id)
    for name, dose in changes:
        thing = known[name].change(thing, dose, _number(sample_id))
    return thing


def _mixed(images: Dataset, sample_id: str, after: Callable[[], Image.Image], dose: float) -> Image.Image:
    return Image.blend(images.image(sample_id), after(), dose)


@dataclass(frozen=True)
class Shown:
    """The change of a condition whose pictures were made by `changed`."""

    made: Dataset
    prefix: str

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        pixels = self.made.pixels([self.prefix + i for i in batch.sample_ids], batch.net.from_pil)
        return pixels.to(batch.pixels.device)


def conditions(images: Dataset, pairs: Sequence[str] = ()) -> list[Condition]:
    """Every factor alone in every dose, which is the severity; or every two of some, in the middle doses.

    Source: Tu et al. (2024) for robustness by factors, which they annotate; interventions are this project's.
    """
    known = factors_of(images)
    wanted = {(n, float(d)): ((n, d),) for n, f in known.items() for d in f.doses}
    if len(pairs):
        middle = {n: f.doses[len(f.doses) // 2] for n, f in known.items()}
        two = [(a, b) for k, a in enumerate(pairs) for b in pairs[k + 1 :] if b not in (EXCLUSIVE.get(a), a)]
        two = [(a, b) for a, b in two if EXCLUSIVE.get(b) != a]
        wanted = {(f"{a}_and_{b}", 1.0): ((a, middle[a]), (b, middle[b])) for a, b in two}
    ids = [s.sample_id for s in images.samples]
    made = changed(images, {f"{n}/{d:g}/{i}": (i, changes) for (n, d), changes in wanted.items() for i in ids})
    return [Condition(n, d, Shown(made, f"{n}/{d:g}/").change, draws=1) for n, d in wanted]


def on_grids(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `right` (1.0 or 0.0) and `share`, the dose over the largest; each factor has the unchanged images too."""
    rows = rows.assign(right=scores.correct(rows))
    unchanged, dosed = rows[rows.severity == 0], rows[rows.severity > 0]
    every = pd.concat([*(unchanged.assign(condition=n) for n in dosed.condition.unique()), dosed], ignore_index=True)
    return every.assign(share=every.severity / every.groupby("condition").severity.transform("max"))


def losses(rows: pd.DataFrame, model: str, column: str = "right", *, share: float | None = None) -> pd.DataFrame:
    """What every image loses of a column by every factor, a column each: at a share of the grid, or on its average."""
    own = rows[rows.model == model]
    dosed = own[own.share > 0] if share is None else own[own.share == share]
    wide = dosed.pivot_table(column, "sample_id", "condition", "mean", sort=False)
    return wide.rsub(own[own.share == 0].drop_duplicates("sample_id").set_index("sample_id")[column], axis=0)


def lost(rows: pd.DataFrame, column: str = "right", *, than: str = "") -> pd.DataFrame:
    """Loss at the largest dose, a row a model and factor, image by image; strongest first.

    With `than`, it is the loss of the other models less that of this one. `p` is Holm's over all rows of a model.
    """
    found, base = [], losses(rows, than, column, share=1.0) if than else 0
    kind = {"bound": 2.0 if than else 1.0} if column == "right" else {"unit": "logits"}
    for model in rows.model.unique():
        if model != than:
            wide = losses(rows, model, column, share=1.0) - base
            each = [{**asdict(scores.paired_mean(v, **kind)), "p": scores.sign_flip(v)} for _, v in wide.items()]
            part = pd.DataFrame(each).assign(condition=wide.columns, model=model)
            found.append(part.assign(p=scores.holm(part.p)).sort_values("value", ascending=False, kind="stable"))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def half_doses(rows: pd.DataFrame, images: Dataset) -> pd.DataFrame:
    """The dose of every factor that takes half of the right answers, a row a model and factor."""
    found = []
    for model, own in rows.groupby("model", sort=False):
        right = own[(own.share == 0) & (own.right == 1)].sample_id.unique()
        for name, f in factors_of(images).items():
            if len(f.doses) > 1:
                part = own[(own.condition == name) & (own.share > 0) & own.sample_id.isin(right)]
                kept = part.pivot(index="sample_id", columns="severity", values="right").to_numpy()
                half = scores.half_dose(f.doses, kept, unit=f.unit)
                found.append({"condition": name, "model": model, **asdict(half), "largest": f.doses[-1]})
    return pd.DataFrame(found)


def interactions(rows: pd.DataFrame, both: pd.DataFrame, images: Dataset) -> pd.DataFrame:
    """Margin that two factors cost together beyond the sum of what each costs, in their middle doses, a row a pair.

    `verdict` is Holm-corrected; where accuracy under both is not above chance, nothing is concluded.
    """
    middle = {(n, float(f.doses[len(f.doses) // 2])) for n, f in factors_of(images).items()}
    alone = {n: part.set_index("sample_id").margin for (n, d), part in rows.groupby(["condition", "severity"]) if (n, d) in middle}
    unchanged, found = rows[rows.share == 0].drop_duplicates("sample_id").set_index("sample_id").margin, []
    for name, part in both.groupby("condition", sort=False):
        one, other = (alone[n] for n in name.split("_and_"))
        beyond = one + other - part.set_index("sample_id").margin - unchanged
        chance = scores.accuracy(part).low <= 1 / len(images.class_names)
        p = np.nan if chance else scores.sign_flip(beyond)
        found.append({"condition": name, **asdict(scores.paired_mean(beyond, unit="logits")), "p": p})
    table = pd.DataFrame(found).assign(p=lambda t: scores.holm(t.p))
    sign = np.where(table.value > 0, "more than the sum", "less than the sum")
    verdict = np.where(table.p.isna(), "at chance, nothing concluded", np.where(table.p < 0.05, sign, "not decided"))
    return table.assign(verdict=verdict)


def observe(study: Study, *, number: int, present: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pictures of a wide world, seen as they are (condition `observed`) and without their most unusual factor.

    Every factor is there with one probability, as far along its grid as may be, whatever else is there: the best case
    for annotators. Pictures are other ones than the chapter's, if there are others.

    Returns: Rows, and annotations as `imagenet_x` has them: 1 for every factor that is there, and `top`, the one that
        is farthest along its grid; a mixed one is there or not, and how unusual it looks is drawn.
    """
    p, known = study.parameters, factors_of(study.images)
    whole = load_dataset(p["dataset"], split=p["split"], classes=p["classes"], seed=p["seed"])
    others = {s.sample_id for s in whole.samples} - {s.sample_id for s in study.images.samples}
    images = (whole.only(others) if others else whole).subset(number, p["seed"])
    shares = {}
    for i in (s.sample_id for s in images.samples):
        rng = np.random.default_rng([p["seed"], int(2**48 * _number(i))])
        shares[i] = dict(zip(known, (1 - rng.random(len(known))) * (rng.random(len(known)) < present)))
        shares[i] |= {b: 0.0 for a, b in EXCLUSIVE.items() if shares[i][a]}
    table = pd.DataFrame(shares).T.rename_axis("sample_id")
    top = table.idxmax(axis=1).where(table.gt(0).any(axis=1))

    def changes(i: str, without: str = "") -> Changes:
        here = {n: f.doses[-1] * (1 if f.mixed else shares[i][n]) for n, f in known.items() if shares[i][n]}
        return tuple((n, float(dose)) for n, dose in here.items() if n != without)

    removed = Shown(changed(images, {f"removed/{i}": (i, changes(i, top[i])) for i in shares}), "removed/")
    shown = [replace(ORIGINAL, name="observed"), Condition("top_factor_removed", 1.0, removed.change, draws=1)]
    rows = study.measure(shown, images=changed(images, {i: (i, changes(i)) for i in shares}))
    return rows, table.gt(0).astype(int).assign(top=top)


def error_ratios(rows: pd.DataFrame, annotations: pd.DataFrame, names: Sequence[str], *, top: bool = True) -> pd.DataFrame:
    """Error ratio of every factor by its top label, or by all labels, a row a model and factor; see `error_ratio`."""
    found = []
    for model, part in rows[rows.sample_id.isin(annotations.index)].groupby("model", sort=False):
        of = annotations.loc[part.sample_id]
        has = {n: (of.top == n if top else of[n]).to_numpy() for n in names}
        found += [{"factor": n, "model": model, **asdict(scores.error_ratio(1 - scores.correct(part), has[n]))} for n in names]
    return pd.DataFrame(found)


def rankings(rows: pd.DataFrame, seen: pd.DataFrame, annotations: pd.DataFrame, model: str) -> dict[str, np.ndarray]:
    """Harm of every factor and its resamples, three ways: by intervention, by top label, and by taking that factor away."""
    grid = losses(rows, model)
    wrong = seen[seen.model == model].assign(wrong=lambda t: 1 - scores.correct(t)).pivot(index="sample_id", columns="condition", values="wrong")
    top = annotations.top.loc[wrong.index].to_numpy()[:, None] == grid.columns.to_numpy()
    kept = np.where(top, 1.0, np.nan)
    gone = (wrong.observed - wrong.top_factor_removed).to_numpy()[:, None]
    found = {"changed alone": grid.to_numpy(), "labelled": wrong.observed.to_numpy()[:, None] * kept, "taken away": gone * kept}
    return {name: scores.column_means(values, seed=k) for k, (name, values) in enumerate(found.items())}
