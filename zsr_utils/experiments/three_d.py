"""Chapter 17: what a model makes of the third dimension, on scenes whose depth and geometry are known."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupShuffleSplit
from torch.nn import functional as F
from torchvision.transforms.functional import to_tensor

from zsr_utils import scores
from zsr_utils.conditions import WITHOUT_DEPTH, Condition, as_seen, in_depth, unchanged, without_depth
from zsr_utils.datasets import Dataset, Pair, load_dataset, pairs_of, tabletop_surfaces
from zsr_utils.models import Model
from zsr_utils.study import Study


ANGLES = (0.0, 15.0, 45.0, 75.0, 105.0)
# how far a match may be: in sides of the picture (of the box of the object), tokens, object heights (metres)
TURNED, ALIKE = {"side": 1 / 8, "tokens": 1, "world": 0.2}, {"box": 0.2}
MEASURED = {"side 0.1": 0.1, "side 0.02": 0.02, "tokens": 1, "world 0.05": 0.05}
UNITS = {"depth": "object heights", "normals": "degrees"}  # of what a probe reads
MOST = 1000  # matches of a pair that count, those of the largest weight


def conditions(images: Dataset, split: str, severities: Sequence[int], depth: dict | None = None) -> list[Condition]:
    """The corruptions that follow depth, those of the same mean strength that do not, and those of 3DCC without depth.

    Raises: ValueError for pictures whose depth is not known.
    """
    if depth is None:
        if images.name != "tabletop":
            way = "photographs are taken by `frames` and `corrupted`"
            raise ValueError(f"The depth of {images.name!r} is not known, allowed is the data set 'tabletop': {way}.")
        ids = [s.sample_id for s in images.samples]
        depth = dict(zip(ids, tabletop_surfaces(ids, split)["depth"]))
    return [*in_depth(depth, severities), *in_depth(depth, severities, flat=True), *without_depth(severities)]


def labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `corruption`, `kind` (`depth`, its `flat` version, or `plane`) and `value`, 1 for a right answer."""
    flat, plane = rows.condition.str.endswith("_flat"), rows.condition.isin(WITHOUT_DEPTH)
    kind, names = np.select([flat, plane], ["flat", "plane"], "depth"), rows.condition.str.removesuffix("_flat")
    return rows.assign(corruption=names, kind=kind, value=scores.correct(rows))


def against_flat(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over the severities under a corruption that follows depth, less that under its flat one."""
    base, other = rows[rows.kind == "flat"], rows[rows.kind == "depth"]
    return scores.paired_changes(base, other, ["model", "corruption"], bounds=1, within="model")


def against_model(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Accuracy of every other model less that of one under every corruption of 3DCC."""
    rows = rows[rows.kind != "flat"]
    own, others = rows[rows.model == name], rows[rows.model != name]
    base = pd.concat([own.assign(model=other) for other in others.model.unique()])
    return scores.paired_changes(base, others, ["model", "corruption"], bounds=1, within="model")


def mean_errors(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """mCE of every other model, relative to one in place of AlexNet: 100 is as many errors."""
    errors = {m: scores.by_cell(part) for m, part in rows[rows.kind != "flat"].groupby("model", sort=False)}
    found = [{"model": m, **vars(scores.relative_errors(e, errors[name]))} for m, e in errors.items() if m != name]
    return pd.DataFrame(found)


def matches(
    nets: Mapping[str, Model], pairs: Iterable[Pair], near: Mapping[str, float], *, every_layer: Sequence[str] = ()
) -> pd.DataFrame:
    """Tokens of a picture matched with those of another one by cosine.

    A query is a token of the first picture at whose middle (of key points: in which) there is a point that the second
    one shows too; its match is the token of the whole second picture that is nearest by cosine.

    Args:
        near: How far a match may be, by a name that begins with its unit: `side` (of the picture), `box` (sides of the
            object's), `tokens` or `world`.
        every_layer: Models of which all token layers are matched, and not only the last.

    Returns: A row a query, model and `layer`: scene, `pair`, `angle`, `weight` (of the ratio test) and, by name of
        `near` and reader, the chance of a match. `nearest token` is the best that the grid allows, `same place` stays
        where the query was, `any token` guesses.

    Source: El Banani et al. (2024), whose recall this is; the three readers are this project's.
    """
    frames, known = [], {}
    for pair, (model, net) in product(pairs, nets.items()):
        before = known.get(model, {})  # a picture is often that of the pair before
        grids = {n: before[n] if n in before else _grids(net, p) for n, p in zip(pair.names, pair.pictures)}
        known[model], (one, other) = grids, (grids[n] for n in pair.names)
        for layer, both in list(enumerate(zip(one, other), 1))[0 if model in every_layer else -1 :]:
            facts = {"sample_id": pair.scene, "pair": " ".join(pair.names), "angle": pair.change}
            frames.append(_matched(*both, pair, near).assign(**facts, layer=layer, model=model))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def _grids(net: Model, picture: Image.Image) -> list[torch.Tensor]:
    """Token grids of a square picture, all of which the model sees whatever its own crop is."""
    size = (net.image_size, net.image_size)
    pixels = to_tensor(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))
    return [grid[0].cpu() for grid in net.encode_layers(pixels[None].to(net.device))[1]]


def _matched(one: torch.Tensor, other: torch.Tensor, pair: Pair, near: Mapping[str, float]) -> pd.DataFrame:
    """Queries of one pair of token grids (r, c, d)."""
    r, c = one.shape[:2]
    middles = np.stack(np.meshgrid((np.arange(c) + 0.5) / c, (np.arange(r) + 0.5) / r), -1).reshape(-1, 2)
    side = 0 if pair.shown is None else len(pair.shown)
    if side:
        place = np.full((side, side), -1)
        place[tuple((pair.at[:, ::-1] * side).astype(int).T)] = np.arange(len(pair.at))
        point = place[tuple((middles[:, ::-1] * side).astype(int).T)]
        queries = np.flatnonzero(point >= 0)
        point = point[queries]
    else:
        queries, point = (pair.at * (c, r)).astype(int) @ (1, c), np.arange(len(pair.at))
    apart = pair.to[point][:, None] - middles  # of every token of the other picture
    flat, steps = (np.linalg.norm(v, axis=-1) for v in (apart, apart * (c, r)))
    distances = {"side": flat, "box": flat / pair.scale, "tokens": steps}
    if side:
        shown = pair.shown[tuple((middles[:, ::-1] * side).astype(int).T)]
        deep = np.linalg.norm(pair.points[point][:, None] - shown, axis=-1)
        distances["world"] = np.nan_to_num(deep, nan=np.inf)
    a, b = (F.normalize(v.reshape(r * c, -1).double(), dim=1) for v in (one, other))
    (best, second), (match, _) = (v.T.numpy() for v in (a[queries] @ b.T).topk(2, dim=1))
    found = {"weight": 1 - (1 - best) / np.maximum(1 - second, 1e-12)}
    for name, limit in near.items():
        apart = distances.get(name.split()[0], np.full_like(flat, np.nan))
        hits = np.where(np.isnan(apart), np.nan, apart <= limit)
        chosen = {"matched": match, "same place": queries, "nearest token": apart.argmin(1)}
        found |= {f"{name}/{who}": hits[np.arange(len(hits)), of] for who, of in chosen.items()}
        found[f"{name}/any token"] = hits.mean(1)
    return pd.DataFrame(found)


def correspondences(study: Study, pairs: Iterable[Pair], near: Mapping[str, float], task: str) -> pd.DataFrame:
    """Matches of every model in long form: `space`, `reader`, `value`; those of the own model for every layer.

    Of every pair the `MOST` matches of the largest weight count; the `surest half` of them is a reader of its own.
    """
    wide = matches(study.nets, pairs, near, every_layer=[study.name]).rename_axis("query").reset_index()
    of_pair = wide.groupby(["model", "layer", "pair"]).weight
    rank = of_pair.rank(ascending=False, method="first")
    for name in near:
        wide[f"{name}/surest half"] = wide[f"{name}/matched"].where(rank <= of_pair.transform("size") / 2)
    wide = wide[rank <= MOST].drop(columns=["weight", "pair"])
    long = wide.melt(["query", "sample_id", "angle", "layer", "model"], var_name="which").dropna(subset="value")
    split = long.which.str.split("/", expand=True)
    return study.keep_rows(long.assign(space=split[0], reader=split[1], task=task).drop(columns="which"))


def photographs(study: Study, folder: str, number: int) -> tuple[pd.DataFrame, str]:
    """Recall on pairs of photographs by space, reader and angle, and what was left out of them."""
    pairs = pairs_of(folder, number, study.parameters["seed"], left := Counter())
    found = last_layer(correspondences(study, pairs, MEASURED, "measured"))
    table = study.estimate(found, "measured/recall", scores.share_of("value"), ["space", "reader", "angle"])
    return table, ", ".join(f"{why} ({count:,})" for why, count in left.items() if count) or "nothing"


def beyond_the_place(found: pd.DataFrame, by: Sequence[str] = ("model", "angle")) -> pd.DataFrame:
    """Recall of matches, in the first space, less that of staying in place, by scene; each model a family of tests."""
    last = last_layer(found)
    last = last[last.space == last.space.iloc[0]]
    base, other = (last[last.reader == reader] for reader in ("same place", "matched"))
    return scores.paired_changes(base, other, by, bounds=1, within="model")


def last_layer(found: pd.DataFrame) -> pd.DataFrame:
    return found[found.layer == found.groupby("model").layer.transform("max")]


def files(study: Study, folder: str, severities: Sequence[int]) -> pd.DataFrame:
    """Rows of pictures that others corrupted, in `<corruption>/<severity>/<class>` as those of 3DCC are."""
    names, p = sorted(path.name for path in Path(folder).glob("*") if path.is_dir()), study.parameters
    frames = []
    for name, k in product(names, severities):
        images = load_dataset(str(Path(folder) / name / str(k)), limit=p["limit"], seed=p["seed"])
        frames.append(study.measure([Condition(name, k, unchanged, draws=1)], images=images))
    if not frames:
        raise ValueError(f"corrupted is {folder!r}, allowed is a folder with <corruption>/<severity>/<class>.")
    return pd.concat(frames, ignore_index=True)


def probed(study: Study, split: str, number: int) -> pd.DataFrame:
    """What every token's patch shows, read by linear regressions that were fitted on other pictures of the split.

    Returns: A row a picture of the chapter, model, `target` and `reader`, which sees the `place` of the token (and says
        the mean there), the `token`, or `both`: `value` is the root mean square error of the `depth` over the picture,
        in object heights, or the mean angle between the read `normals` and the true ones, in degrees.
    """
    own, found = {s.sample_id for s in study.images.samples}, []
    whole = load_dataset(study.images.name, split=split)
    fit = whole.only({s.sample_id for s in whole.samples} - own).subset(number, study.parameters["seed"])
    for name, net in study.nets.items():
        (x, y), (x_own, y_own) = (_tokens_and_truth(net, images, split) for images in (fit, study.images))
        place, tokens = np.broadcast_to(y.mean(0), y_own.shape), _ridge(x, y, x_own)
        both = place + _ridge(x - x.mean(0), y - y.mean(0), x_own - x.mean(0))
        for reader, read in (("place", place), ("token", tokens), ("both", both)):
            depth = np.sqrt(np.square(read - y_own)[..., 0].mean(1))
            normals = [v[..., 1:] / np.linalg.norm(v[..., 1:], axis=-1, keepdims=True) for v in (read, y_own)]
            angle = np.degrees(np.arccos((normals[0] * normals[1]).sum(-1).clip(-1, 1))).mean(1)
            frame = pd.DataFrame({"depth": depth, "normals": angle, "reader": reader, "model": name})
            found.append(frame.assign(sample_id=[s.sample_id for s in study.images.samples]))
    return pd.concat(found).melt(["sample_id", "reader", "model"], var_name="target")


def errors_of(study: Study, rows: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Errors of `probed` by target, and what the token takes off the place's, picture by picture."""
    read, added = {}, []
    for what, unit in UNITS.items():
        part = rows[rows.target == what]
        read[what] = study.estimate(part, f"probe/{what}_error", scores.mean_of("value", unit), ["reader"])
        both = (part[part.reader == reader] for reader in ("place", "both"))
        added.append(scores.paired_changes(*both, ["model", "target"], unit=unit))
    return read, study.keep(pd.concat(added), "probe/token_adds/{target}")


def _ridge(x: np.ndarray, y: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What other tokens (m, t, c) say by a regression of y (n, t, 4), depth and normals, on tokens (n, t, c)."""
    pictures = np.repeat(np.arange(len(x)), x.shape[1])  # the penalty is chosen on pictures that were not seen
    splits = list(GroupShuffleSplit(1, test_size=0.25, random_state=0).split(pictures, groups=pictures))
    flat, found = x.reshape(-1, x.shape[-1]), []
    for target in (y[..., :1], y[..., 1:]):
        ridge = RidgeCV(np.logspace(0, 6, 7), cv=splits).fit(flat, target.reshape(len(flat), -1))
        found.append(ridge.predict(other.reshape(-1, x.shape[-1])).reshape(*other.shape[:2], -1))
    return np.concatenate(found, -1)


def _tokens_and_truth(net: Model, images: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the last block (n, t, c), and the mean depth and normal of the patches below them (n, t, 4)."""
    ids = [s.sample_id for s in images.samples]
    parts = [images.pixels(ids[k : k + 64], net.from_pil).to(net.device) for k in range(0, len(ids), 64)]
    with torch.no_grad():
        tokens = torch.cat([net.encode_tokens(part).cpu() for part in parts])
    seen = tabletop_surfaces(ids, split)
    truth = torch.from_numpy(np.concatenate([seen["depth"][..., None], seen["normal"]], -1)).permute(0, 3, 1, 2)
    patches = F.adaptive_avg_pool2d(as_seen(truth, net), tokens.shape[1:3])
    return tokens.flatten(1, 2).double().numpy(), patches.flatten(2).transpose(1, 2).double().numpy()


def in_words(table: pd.DataFrame, model: str, column: str, more: str, less: str) -> str:
    """What a table of paired changes decides for a model, and for which values of a column, angles or corruptions."""
    own, parts = table[table.model == model], []
    for verdict, words in (("more", more), ("less", less), ("undecided", "not decided")):
        if len(values := own[own.verdict == verdict][column]):
            names = ", ".join(f"{v:g}" if column == "angle" else v.replace("_", " ") for v in values)
            where = {"angle": "at {} degrees", "target": "for {}"}.get(column, "under {}")
            parts.append(f"{words} {where.format(names)}")
    return "; ".join(parts)
