"""Zero-shot classification: embeddings once, then rows for any prompts."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from zsr_utils.datasets import Dataset
from zsr_utils.models import Model
from zsr_utils.models._handle import cache_folder
from zsr_utils.probes._progress import hidden
from zsr_utils.records import write_npz


@dataclass(frozen=True)
class Embedded:
    """Raw image features of a data set.

    Attributes:
        sample_ids: (N,) ids.
        labels: (N,) class indices.
        features: (N, D) float32, not normalised.
    """

    sample_ids: np.ndarray
    labels: Int[np.ndarray, "n"]
    features: Float[np.ndarray, "n d"]


def embed(net: Model, images: Dataset, *, batch_size: int = 64) -> Embedded:
    """Raw features of every readable image, kept on disk by (model, precision, data).

    A second chapter, or a second run, computes nothing; an interrupted run goes on after its last
    finished batch.

    Raises:
        UnreadableImages: If more than 1 % of the images cannot be decoded.
        FloatingPointError: If a feature is not finite; the message names the image.
    """
    key = json.dumps([net.fingerprint, net.precision, net.image_size, images.fingerprint])
    final = cache_folder() / "embeddings" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if not final.exists():
        parts = final.with_suffix(f".parts-{batch_size}")
        _embed_parts(net, images, parts, batch_size)
        saved = [s for p in sorted(parts.glob("*.npz")) if len((s := np.load(p))["labels"])]
        if not saved:
            raise ValueError(f"{images.name}: no image to embed.")
        whole = {k: np.concatenate([s[k] for s in saved]) for k in ("sample_ids", "labels", "features")}
        whole["unreadable"] = np.array(json.dumps(images.unreadable))
        write_npz(final, whole)
        shutil.rmtree(parts)
    saved = np.load(final)
    images.unreadable.update(json.loads(str(saved["unreadable"])))
    return Embedded(saved["sample_ids"], saved["labels"], saved["features"])


def _embed_parts(net: Model, images: Dataset, parts: Path, batch_size: int) -> None:
    finished = sorted(parts.glob("*.npz"))
    for path in finished:
        images.unreadable.update(json.loads(str(np.load(path)["unreadable"])))
    total = -(-len(images) // batch_size)
    batches = images.batches(net.from_pil, batch_size, start=len(finished))
    progress = tqdm(batches, initial=len(finished), total=total, desc="embed", disable=hidden())
    for number, (ids, pixels, labels) in enumerate(progress, start=len(finished)):
        with torch.no_grad():
            features = net.encode_image(pixels.to(net.device)).cpu().numpy() if ids else np.empty((0, 0))
        wrong = ~np.isfinite(features).all(1)
        if wrong.any():
            raise FloatingPointError(f"{net.name}: the embedding of {ids[int(wrong.argmax())]!r} is not finite.")
        write_npz(
            parts / f"{number:07d}.npz",
            {
                "sample_ids": np.array(ids),
                "labels": labels.numpy(),
                "features": features,
                "unreadable": np.array(json.dumps(images.unreadable)),
            },
        )


def classify(
    net: Model, embedded: Embedded, class_names: Sequence[str], templates: Sequence[str], *, condition: str
) -> pd.DataFrame:
    """One row an image: which class its embedding is nearest to, and how surely.

    Args:
        net: The model, for its text tower and logit scale.
        embedded: Raw image features.
        class_names: Names in label order.
        templates: Prompt templates; several make an ensemble.
        condition: Name of this prompt set in the rows.

    Returns:
        Columns `sample_id`, `label`, `condition`, `severity` (0), `prediction`, `confidence` (softmax
        probability of the prediction at the model's own scale), `margin` (logit of the label less the
        largest other one; negative when wrong) and `probabilities` (list over the classes).

    Raises:
        ValueError: If fewer than two classes are given, or a label has no name.

    Source:
        Salman et al. (2024), vision x text matrix; scale convention of CLIP (Radford et al. 2021).
    """
    if len(class_names) < 2:
        raise ValueError(f"{len(class_names)} class given, zero-shot classification needs at least two.")
    if embedded.labels.max(initial=0) >= len(class_names):
        raise ValueError(f"label {embedded.labels.max()} has no name among {len(class_names)} class names.")
    weights = net.classifier(class_names, templates)
    with torch.no_grad():
        features = torch.from_numpy(embedded.features).to(net.device)
        logits = net.logits_of(features, weights).cpu().double()
    probabilities = logits.softmax(1).numpy()
    logits = logits.numpy()
    rows = np.arange(len(logits))
    own = logits[rows, embedded.labels]
    others = logits.copy()
    others[rows, embedded.labels] = -np.inf
    return pd.DataFrame(
        {
            "sample_id": embedded.sample_ids,
            "label": embedded.labels,
            "condition": condition,
            "severity": 0,
            "prediction": logits.argmax(1),
            "confidence": probabilities.max(1),
            "margin": own - others.max(1),
            "probabilities": list(probabilities.astype(np.float32)),
        }
    )


def project(
    net: Model,
    embedded: Embedded,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    seed: int = 0,
    neighbors: int = 15,
) -> pd.DataFrame:
    """UMAP of images and class texts in one plane, by cosine distance.

    Images and texts sit in separate cones of the sphere (the modality gap), so each cloud is centred
    before the two are joined; without that the map would show two islands and nothing else.

    Returns:
        Columns `sample_id`, `label`, `modality` (`image` or `text`), `x`, `y`.

    Source:
        McInnes et al. (2018); centring is this project's choice.
    """
    import umap

    def centred(values: np.ndarray) -> np.ndarray:
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        return unit - unit.mean(0)

    texts = net.classifier(class_names, templates).cpu().numpy()
    points = np.concatenate([centred(embedded.features), centred(texts)])
    neighbors = max(2, min(neighbors, len(points) - 1))
    plane = umap.UMAP(
        n_neighbors=neighbors,
        min_dist=0.5,  # wide enough that single images can be told apart and hovered
        metric="cosine",
        random_state=seed,
        n_jobs=1,
        init="random" if len(points) < 12 else "spectral",
    ).fit_transform(points)
    images = len(embedded.labels)
    return pd.DataFrame(
        {
            "sample_id": [*embedded.sample_ids, *(f"text/{c}" for c in class_names)],
            "label": [*embedded.labels, *range(len(class_names))],
            "modality": ["image"] * images + ["text"] * len(class_names),
            "x": plane[:, 0],
            "y": plane[:, 1],
        }
    )


def one_per_class(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """A random row of every class, in class order.

    Examples:
        >>> rows = pd.DataFrame({"label": [1, 0, 1], "sample_id": ["a", "b", "c"]})
        >>> one_per_class(rows).label.tolist()
        [0, 1]
    """
    return rows.groupby("label", sort=True).sample(1, random_state=seed).reset_index(drop=True)
