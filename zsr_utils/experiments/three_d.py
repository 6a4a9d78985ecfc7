"""Chapter 17: what a model makes of the third dimension, on scenes whose depth and geometry are known."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from torch.nn import functional as F

from zsr_utils import scores
from zsr_utils.conditions import Condition, in_depth
from zsr_utils.datasets import Dataset, load_dataset, tabletop_depth, turned_views
from zsr_utils.models import Model
from zsr_utils.study import Study


ANGLES = (0.0, 15.0, 45.0, 75.0, 105.0)
NEAR_PIXELS, NEAR_WORLD = 8.0, 0.2  # a match counts within so many pixels, and within so much of an object's height
FOUND_BY = ("matched", "nearest token", "same place", "any token")


def conditions(images: Dataset, split: str, severities: Sequence[int], depth: dict | None = None) -> list[Condition]:
    """The corruptions that follow depth, and those of the same mean strength that do not.

    Raises: ValueError for pictures whose depth is not known.
    """
    if depth is None:
        if images.name != "tabletop":
            raise ValueError(f"The depth of {images.name!r} is not known, allowed is the data set 'tabletop'.")
        depth = tabletop_depth([s.sample_id for s in images.samples], split)
    return in_depth(depth, severities) + in_depth(depth, severities, flat=True)


def examples(study: Study, shown: Sequence[Condition]) -> tuple[list, list[str]]:
    """The first picture under every corruption in its largest severity, by depth and flat side by side."""
    first, last = study.images.samples[0].sample_id, {c.name: c.change.__self__ for c in shown}
    x = study.images.pixels([first], study.net.from_pil)
    names = [name for name in last if not name.endswith("_flat")]
    pairs = [torch.cat([last[n + kind].shown(x, [first])[0] for kind in ("", "_flat")], 2).numpy() for n in names]
    return [np.asarray(x[0]), *pairs], ["unchanged", *(n.replace("_", " ") + "\nby depth | flat" for n in names)]


def labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `corruption`, `kind` (`depth` or `flat`) and `value`, 1 for a right answer."""
    flat = rows.condition.str.endswith("_flat")
    names = rows.condition.str.removesuffix("_flat")
    return rows.assign(corruption=names, kind=np.where(flat, "flat", "depth"), value=scores.correct(rows))


def against_flat(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over the severities under a corruption that follows depth, less that under its flat one."""
    base, other = rows[rows.kind == "flat"], rows[rows.kind == "depth"]
    return scores.paired_changes(base, other, ["model", "corruption"], bounds=1, within="model")


def against_model(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Accuracy of every other model less that of one under every corruption that follows depth."""
    rows = rows[rows.kind == "depth"]
    own, others = rows[rows.model == name], rows[rows.model != name]
    base = pd.concat([own.assign(model=other) for other in others.model.unique()])
    return scores.paired_changes(base, others, ["model", "corruption"], bounds=1, within="model")


def mean_errors(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """mCE of every other model, relative to one in place of AlexNet: 100 is as many errors."""
    errors = {m: scores.by_cell(part) for m, part in rows[rows.kind == "depth"].groupby("model", sort=False)}
    found = [{"model": m, **vars(scores.relative_errors(e, errors[name]))} for m, e in errors.items() if m != name]
    return pd.DataFrame(found)


def matches(net: Model, number: int, seed: int, *, last: bool = True) -> pd.DataFrame:
    """Tokens of an object matched with those of the same object, turned, by cosine.

    A query is a token of the first picture whose middle shows a point of the object that the turned picture shows too;
    its match is the token of the whole turned picture that is nearest by cosine.

    Returns: A row a query and token layer: `sample_id` (the scene), `angle`, `layer` (1 is the first block), and for
        every reader of `FOUND_BY` the chance of a match within `NEAR_PIXELS` (`pixels`) and `NEAR_WORLD` (`world`).
        `nearest token` is the best that the grid allows, `same place` stays where the query was, `any token` guesses.

    Source: El Banani et al. (2024), whose recall this is; exact truth, and the three readers, are this project's.
    """
    images, truth = turned_views(number, ANGLES, seed)
    frames = []
    for scene, by_angle in truth.items():
        pixels = images.pixels([f"view/{scene}/{a:g}" for a in ANGLES], net.from_pil).to(net.device)
        with torch.no_grad():
            grids = [g.cpu() for g in net.encode_layers(pixels)[1]]
        for layer, grid in enumerate(grids[-1:] if last else grids, len(grids) if last else 1):
            for k, a in enumerate(ANGLES):
                rows = _matched(grid[0], grid[k], *by_angle[a])
                frames.append(rows.assign(sample_id=scene, angle=a, layer=layer))
    return pd.concat(frames, ignore_index=True)


def _matched(one, other, at: np.ndarray, to: np.ndarray, points: np.ndarray, shown: np.ndarray) -> pd.DataFrame:
    """Queries of one pair of token grids (r, c, d); `at`, `to` and `points` are of pixels that both pictures show."""
    (r, c), side = one.shape[:2], len(shown)
    middles = np.stack(np.meshgrid((np.arange(c) + 0.5) * side / c, (np.arange(r) + 0.5) * side / r), -1).reshape(-1, 2)
    apart = np.abs(at[None] - middles[:, None]).max(-1) if len(at) else np.full((len(middles), 1), np.inf)
    queries = np.flatnonzero(apart.min(1) <= 0.5)  # a pixel at the middle of the token
    pixel = apart[queries].argmin(1)
    goal, point = (v[pixel] if len(queries) else v[:0] for v in (to, points))
    x, y = middles.astype(int).clip(0, side - 1).T
    flat = np.linalg.norm(goal[:, None] - middles, axis=-1)  # from every token of the other picture, in pixels
    deep = np.nan_to_num(np.linalg.norm(point[:, None] - shown[y, x], axis=-1), nan=np.inf)
    a, b = (F.normalize(v.reshape(r * c, -1).double(), dim=1) for v in (one, other))
    rows = np.arange(len(queries))
    chosen = {
        "matched": (a[queries] @ b.T).argmax(1).numpy(), "nearest token": flat.argmin(1) if len(rows) else rows,
        "same place": queries,
    }  # fmt: skip
    found = {}
    for unit, distance, near in (("pixels", flat, NEAR_PIXELS), ("world", deep, NEAR_WORLD)):
        hits = distance <= near
        found |= {f"{unit}/{who}": hits[rows, of].astype(float) for who, of in chosen.items()}
        found[f"{unit}/any token"] = hits.mean(1)
        if unit == "world":
            found["world/nearest token"] = hits.any(1).astype(float)
    return pd.DataFrame(found)


def correspondences(study: Study, number: int) -> pd.DataFrame:
    """Matches of every model in long form: `space`, `reader`, `value`; those of the own model for every layer."""
    frames = []
    for name, net in study.nets.items():
        frames.append(matches(net, number, study.parameters["seed"], last=name != study.name).assign(model=name))
    wide = pd.concat(frames, ignore_index=True).rename_axis("query").reset_index()
    long = wide.melt(["query", "sample_id", "angle", "layer", "model"], var_name="which")
    split = long.which.str.split("/", expand=True)
    return study.keep_rows(long.assign(space=split[0], reader=split[1]).drop(columns="which"))


def beyond_the_place(found: pd.DataFrame) -> pd.DataFrame:
    """Recall in pixels of matches less that of staying in place, scene by scene; each model a family of tests."""
    last = last_layer(found)
    last = last[(last.space == "pixels") & (last.angle > 0)]
    base, other = (last[last.reader == reader] for reader in ("same place", "matched"))
    return scores.paired_changes(base, other, ["model", "angle"], bounds=1, within="model")


def last_layer(found: pd.DataFrame) -> pd.DataFrame:
    return found[found.layer == found.groupby("model").layer.transform("max")]


def probed(study: Study, split: str, number: int) -> pd.DataFrame:
    """Depth of every token's patch, read by ridge regressions that were fitted on other pictures of the split.

    Returns: A row a picture of the chapter, model and `reader`, which sees the `place` of the token, the `token`, or
        `both`: `value` is the root mean square error over the picture, in object heights.
    """
    own, found = {s.sample_id for s in study.images.samples}, []
    whole = load_dataset(study.images.name, split=split)
    fit = whole.only({s.sample_id for s in whole.samples} - own).subset(number, study.parameters["seed"])
    for name, net in study.nets.items():
        (x, y), (x_own, y_own) = (_tokens_and_depth(net, images, split) for images in (fit, study.images))
        for reader in ("place", "token", "both"):
            a, b = (_read(v, reader) for v in (x, x_own))
            ridge = RidgeCV(np.logspace(-2, 4, 7)).fit(a.reshape(-1, a.shape[-1]), y.ravel())
            error = ridge.predict(b.reshape(-1, b.shape[-1])).reshape(y_own.shape) - y_own
            ids = [s.sample_id for s in study.images.samples]
            frame = {"sample_id": ids, "value": np.sqrt(np.square(error).mean(1)), "reader": reader, "model": name}
            found.append(pd.DataFrame(frame))
    return pd.concat(found, ignore_index=True)


def _read(tokens: np.ndarray, reader: str) -> np.ndarray:
    """Tokens (n, t, c) as they are, the places that they have in the picture (n, t, t), or both."""
    place = np.broadcast_to(np.eye(tokens.shape[1]), (*tokens.shape[:2], tokens.shape[1]))
    return {"place": place, "token": tokens}[reader] if reader != "both" else np.concatenate([place, tokens], -1)


def _tokens_and_depth(net: Model, images: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the last block (n, t, c), and the mean depth of the patches below them (n, t)."""
    ids = [s.sample_id for s in images.samples]
    parts = [images.pixels(ids[k : k + 64], net.from_pil).to(net.device) for k in range(0, len(ids), 64)]
    with torch.no_grad():
        tokens = torch.cat([net.encode_tokens(part).cpu() for part in parts])
    depth = torch.from_numpy(np.stack(list(tabletop_depth(ids, split).values())))[:, None]
    return tokens.flatten(1, 2).double().numpy(), F.adaptive_avg_pool2d(depth, tokens.shape[1:3]).flatten(1).numpy()


def in_words(table: pd.DataFrame, model: str, column: str, more: str, less: str) -> str:
    """What a table of paired changes decides for a model, and for which values of a column, angles or corruptions."""
    own, parts = table[table.model == model], []
    for verdict, words in (("more", more), ("less", less), ("undecided", "not decided")):
        if len(values := own[own.verdict == verdict][column]):
            names = ", ".join(f"{v:g}" if column == "angle" else v.replace("_", " ") for v in values)
            parts.append(f"{words} {f'at {names} degrees' if column == 'angle' else f'under {names}'}")
    return "; ".join(parts)
