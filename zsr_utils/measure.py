"""Conditions x images -> rows: the one loop of the suite, and the only place where a wrong row could be made.

An image's rows do not depend on what else is in its batch, on the order of the images or on an interruption.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zsr_utils._cache import code, digest, kept_in_parts
from zsr_utils._progress import progress
from zsr_utils._text import one_of
from zsr_utils.conditions import Batch, Condition, Head, Seen, drift_between, margin_of, unchanged
from zsr_utils.datasets import Dataset
from zsr_utils.models import Model


COLUMNS = (
    "sample_id", "label", "condition", "severity", "draw", "prediction", "confidence", "margin",
    "clean_prediction", "clean_margin", "drift",
)  # fmt: skip
DETAILS = ("answers", "tokens", "layers")  # what `facts` get to see; each holds the ones before it
ENCODES = ("models", "datasets", "measure")  # layers that embeddings depend on
ANSWERS = (*ENCODES, "conditions", "prompts", "jacobian", "scores", "experiments")  # and rows
NULLABLE = {"i": "Int64", "b": "boolean"}  # types of facts that another condition may not have
RANGE = 1e-6  # of pixels beyond [0, 1]: a smaller excess is rounding


@dataclass(frozen=True)
class Pixels:
    """Labelled images in memory at a model's size, such as aligned ones, in place of a data set."""

    sample_ids: Sequence[str]  # each once
    labels: Int[np.ndarray, "n"]
    pixels: Float[Tensor, "n 3 h w"]  # float32 in [0, 1]
    name = "images in memory"

    def __len__(self) -> int:
        return len(self.sample_ids)

    @cached_property
    def fingerprint(self) -> str:
        return digest(list(self.sample_ids), np.asarray(self.labels), self.pixels)

    def batches(self, from_pil, batch_size: int, *, start: int = 0, workers=None) -> Iterator[tuple]:
        ids, labels = list(self.sample_ids), torch.tensor(np.asarray(self.labels))
        for first in range(start * batch_size, len(self), batch_size):
            part = slice(first, first + batch_size)
            yield ids[part], self.pixels[part], labels[part]


@dataclass(frozen=True)
class Embedded:
    """Raw image features of a data set."""

    sample_ids: np.ndarray
    labels: Int[np.ndarray, "n"]
    features: Float[np.ndarray, "n d"]  # float32, not normalised

    def of(self, sample_ids: Sequence[str]) -> Float[Tensor, "m d"]:
        """Features of some samples, in the order asked."""
        position = {sample_id: i for i, sample_id in enumerate(self.sample_ids)}
        return torch.from_numpy(self.features[[position[i] for i in sample_ids]])

    def sample(self, most: int, *, classes: Sequence[int] | None = None, seed: int = 0) -> "Embedded":
        """At most so many of the images, of these classes or of all, drawn at random, in their order."""
        rows = np.arange(len(self.labels)) if classes is None else np.flatnonzero(np.isin(self.labels, classes))
        kept = np.sort(np.random.default_rng(seed).choice(rows, min(most, len(rows)), replace=False))
        return Embedded(self.sample_ids[kept], self.labels[kept], self.features[kept])


def embed(net: Model, images: Dataset | Pixels, *, batch_size: int = 64, workers: int | None = None) -> Embedded:
    """Raw features of every readable image, kept on disk by model, precision, data and code.

    Images stream, so their number costs no memory beyond the features; `workers` decode, as in `Dataset.batches`.
    """
    unreadable = getattr(images, "unreadable", {})

    def parts(start: int) -> Iterator[dict]:
        said = set(unreadable)
        with progress(len(images), "embed", initial=min(len(images), start * batch_size)) as bar:
            for ids, pixels, labels in images.batches(net.from_pil, batch_size, workers=workers, start=start):
                with torch.no_grad():
                    features = net.encode_image(pixels.to(net.device)).cpu() if ids else torch.empty(0, 0)
                _refuse_not_finite(features, net, ids)
                bar.update(len(ids))
                broken = [f"{name}\0{why}" for name, why in unreadable.items() if name not in said]
                said |= set(unreadable)
                found = {"sample_ids": np.array(ids), "labels": labels.numpy(), "features": features.numpy()}
                yield found | {"unreadable": np.array(broken)}

    if not len(images):
        raise ValueError(f"{images.name}: no image to embed.")
    key = digest(net.fingerprint, net.precision, net.image_size, images.fingerprint, batch_size, code(*ENCODES))
    arrays = kept_in_parts("embeddings", key, parts)
    unreadable.update(line.split("\0", 1) for line in map(str, arrays.pop("unreadable")) if line)
    if not len(arrays["labels"]):
        raise ValueError(f"{images.name}: no image to embed.")
    return Embedded(**arrays)


@torch.no_grad()
def measure(
    net: Model, images: Dataset | Pixels, head: Head, conditions: Sequence[Condition], *,
    draws: int = 1, seed: int = 0, detail: str = "answers", batch_size: int = 64,
) -> pd.DataFrame:  # fmt: skip
    """Show every image under every condition, and keep a row for each.

    Rows are kept on disk by model, images, head, conditions, settings and code; an interrupted run goes on after its
    last finished batch.

    Args:
        conditions: What is shown; a name and severity stand for one condition.
        draws: Repetitions of conditions that name no number of their own.
        detail: What `facts` get to see: `answers`, the last token grid too (`tokens`), or every grid (`layers`).

    Returns:
        A row an image, condition and draw: `sample_id`, `label`, `condition`, `severity`, `draw`, `prediction`,
        `confidence` (softmax at the model's own scale), `margin` (logit of the label less the largest other one),
        `clean_prediction` (answer to the unchanged image), `clean_margin` (of that answer, in the image that is shown),
        `drift` (1 - cosine between the embeddings of the shown and the unchanged image; exactly 0 where they are the
        same), then the facts; missing where a condition has none of that name.

    Raises: ValueError for conditions or images that cannot be measured; FloatingPointError where an embedding is not
        finite.
    """
    one_of("detail", detail, DETAILS)
    _check(images, head, conditions, draws, batch_size)
    embedded = embed(net, images, batch_size=batch_size) if head.embeds else _listed(images)
    if embedded.labels.max() >= len(head.class_names):
        raise ValueError(f"label {embedded.labels.max()} has no name among {len(head.class_names)} class names.")

    def parts(start: int) -> Iterator[pd.DataFrame]:
        rows = [sum(c.repeats(i, draws) for c in conditions) for i in embedded.sample_ids]
        with progress(sum(rows), "measure", initial=sum(rows[: start * batch_size])) as bar:
            for batch in _batches(net, images, head, embedded, conditions, detail, seed, batch_size, start):
                frames = []
                for condition, part in _shown(batch, conditions, draws):
                    frames.append(_rows(condition, part, detail))
                    bar.update(len(part))
                yield pd.concat([f for f in frames if len(f)], ignore_index=True) if frames else pd.DataFrame()

    made_by = [net.fingerprint, net.precision, images.fingerprint, head, list(conditions), draws, seed, detail]
    return kept_in_parts("rows", digest(*made_by, batch_size, code(*ANSWERS)), parts, ".parquet")


def _check(images, head: Head, conditions: Sequence[Condition], draws: int, batch_size: int) -> None:
    if not len(images) or not conditions:
        raise ValueError(f"{len(images)} images and {len(conditions)} conditions given, allowed is 1 or more.")
    for name, value in {"draws": draws, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, allowed is 1 or more.")
    known = [(c.name, float(c.severity)) for c in conditions]
    for name, severity in known:
        if known.count((name, severity)) > 1:
            raise ValueError(f"Two conditions are called {name!r} with severity {severity:g}, allowed is one.")


def _batches(net, images, head, embedded, conditions, detail, seed, batch_size, start) -> Iterator[Batch]:
    """The unchanged images, from a batch on; where no pixel is looked at, none is decoded."""
    position = {sample_id: i for i, sample_id in enumerate(embedded.sample_ids)}
    of = getattr(images, "image", None)
    looked_at = not head.embeds or any(c.change is not unchanged for c in conditions)
    stored = Pixels(list(embedded.sample_ids), embedded.labels, torch.empty(len(position), 0))
    for ids, pixels, labels in (images if looked_at else stored).batches(net.from_pil, batch_size, start=start):
        pixels = pixels.to(net.device)
        clean = head.see(net, pixels, ids, detail=detail) if not head.embeds or (detail != "answers" and ids) else None
        if head.embeds:
            features = torch.from_numpy(embedded.features[[position[i] for i in ids]])
            clean = Seen(pixels, features.double(), head.scores(net, features), clean.grids if clean else ())
        yield Batch(net, head, ids, labels, clean, seed=seed, open=of)


def _shown(batch: Batch, conditions: Sequence[Condition], draws: int) -> Iterator[tuple[Condition, Batch]]:
    """Every condition with the images that it has a draw of; noise is made once a draw for all conditions."""
    repeats = [[c.repeats(i, draws) for i in batch.sample_ids] for c in conditions]
    for draw in range(max(map(max, repeats), default=0) if len(batch) else 0):
        known: dict[tuple, Batch] = {}
        for condition, numbers in zip(conditions, repeats):
            if chosen := tuple(row for row, number in enumerate(numbers) if draw < number):
                if chosen not in known:
                    known[chosen] = _part(batch, chosen, draw)
                yield condition, known[chosen]


def _part(batch: Batch, chosen: Sequence[int], draw: int) -> Batch:
    if len(chosen) == len(batch):
        return replace(batch, draw=draw)
    rows = torch.tensor(chosen)
    ids = [batch.sample_ids[row] for row in chosen]
    return replace(batch, sample_ids=ids, labels=batch.labels[rows], clean=batch.clean.rows(rows), draw=draw)


def _rows(condition: Condition, batch: Batch, detail: str) -> pd.DataFrame:
    pixels = condition.change(batch)
    _check_pixels(pixels, condition, batch)
    seen = batch.clean if pixels is batch.pixels else _see(batch, pixels, detail)
    clean = batch.clean.predictions
    answers = seen.predictions, seen.logits.softmax(1).amax(1), margin_of(seen.logits, batch.labels)
    moved = clean, margin_of(seen.logits, clean), drift_between(batch.clean.features, seen.features)
    shown = batch.labels.numpy(), condition.name, float(condition.severity), batch.draw
    values = np.array(batch.sample_ids, dtype=object), *shown, *(v.numpy() for v in (*answers, *moved))
    facts = pd.DataFrame(batch.head.facts(batch, seen) | condition.facts(batch, seen), index=range(len(batch)))
    nullable = {name: NULLABLE[kind.kind] for name, kind in facts.dtypes.items() if kind.kind in NULLABLE}
    return pd.DataFrame(dict(zip(COLUMNS, values))).join(facts.astype(nullable))


def _see(batch: Batch, pixels: Tensor, detail: str) -> Seen:
    """A pass of changed images; one that did not change is taken as it was."""
    seen = batch.head.see(batch.net, pixels, batch.sample_ids, detail=detail)
    _refuse_not_finite(seen.features, batch.net, batch.sample_ids)
    # A network's arithmetic differs in the last digit between batches, and a drift of 0 has to be 0, not the 1e-14 that
    # a rank statistic would take for a signal.
    if pixels.shape != batch.pixels.shape:
        return seen
    same = (pixels == batch.pixels).flatten(1).all(1).cpu()
    mine, its = ([s.features, s.logits, *s.grids, *s.further.values()] for s in (seen, batch.clean))
    for values, unchanged_values in zip(mine, its):
        values[same] = unchanged_values[same]
    return seen


def _refuse_not_finite(features: Tensor, net: Model, ids: Sequence[str]) -> None:
    if (wrong := ~features.isfinite().all(1)).any():
        raise FloatingPointError(f"{net.name}: the embedding of {ids[int(wrong.nonzero()[0])]!r} is not finite.")


def _check_pixels(pixels: Tensor, condition: Condition, batch: Batch) -> None:
    fixed = 2 if batch.net.image_size is None else 4  # a model without a size takes views of other sizes as they are
    if pixels.shape[:fixed] != batch.pixels.shape[:fixed]:
        shapes = tuple(pixels.shape), tuple(batch.pixels.shape)
        raise ValueError(f"Condition {condition.name!r} gives pixels of shape {shapes[0]}, allowed is {shapes[1]}.")
    wrong = ~((pixels >= -RANGE) & (pixels <= 1 + RANGE)).flatten(1).all(1)  # NaN compares as false
    if wrong.any():
        first = int(wrong.nonzero()[0])
        low, high = (float(v) for v in pixels[first].aminmax())
        what = f"Condition {condition.name!r} with severity {condition.severity:g} gives {batch.sample_ids[first]!r}"
        raise ValueError(f"{what} pixels from {low:.4g} to {high:.4g}, allowed is [0, 1].")


def _listed(images: Dataset | Pixels) -> Embedded:
    """The samples without embeddings, for a head that needs none."""
    if isinstance(images, Pixels):
        return Embedded(np.array(images.sample_ids), np.asarray(images.labels), np.empty((len(images), 0)))
    ids, labels = zip(*((sample.sample_id, sample.label) for sample in images.samples))
    return Embedded(np.array(ids), np.array(labels), np.empty((len(ids), 0)))
