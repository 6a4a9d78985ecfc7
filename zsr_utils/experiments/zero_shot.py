"""Zero-shot classification: embeddings once, then rows for any prompts."""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from zsr_utils._cache import kept_arrays, write_npz
from zsr_utils._progress import hidden
from zsr_utils.datasets import Dataset
from zsr_utils.models import Model


CHUNK = 4096  # images whose logits are held at once: with a thousand classes 32 MB


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

    def of(self, sample_ids: Sequence[str]) -> Float[torch.Tensor, "m d"]:
        """Features of some samples, in the order asked."""
        position = {sample_id: i for i, sample_id in enumerate(self.sample_ids)}
        return torch.from_numpy(self.features[[position[i] for i in sample_ids]])

    def sample(self, most: int, *, seed: int = 0) -> "Embedded":
        """At most so many of the images, drawn at random, in their order."""
        n = len(self.labels)
        kept = np.sort(np.random.default_rng(seed).choice(n, min(most, n), replace=False))
        return Embedded(self.sample_ids[kept], self.labels[kept], self.features[kept])


def embed(net: Model, images: Dataset, *, batch_size: int = 64, workers: int | None = None) -> Embedded:
    """Raw features of every readable image, kept on disk by (model, precision, data).

    A second chapter, or a second run, computes nothing; an interrupted run goes on after its last
    finished batch. Of several processes that want the same features at once, one computes and the others
    wait.

    Args:
        net: The model.
        images: The data set; it streams, so its length costs no memory beyond the features.
        batch_size: Images in a batch.
        workers: Processes that decode, as `Dataset.batches` takes them.

    Raises:
        UnreadableImages: If more than 1 % of the images cannot be decoded.
        FloatingPointError: If a feature is not finite; the message names the image.
    """
    key = json.dumps([net.fingerprint, net.precision, net.image_size, images.fingerprint])
    saved = kept_arrays(
        "embeddings", key.encode(), lambda final: _write_features(net, images, final, batch_size, workers)
    )
    images.unreadable.update(json.loads(str(saved["unreadable"])))
    return Embedded(saved["sample_ids"], saved["labels"], saved["features"])


def _write_features(net: Model, images: Dataset, final: Path, batch_size: int, workers: int | None) -> None:
    parts = final.with_suffix(f".parts-{batch_size}")
    _embed_parts(net, images, parts, batch_size, workers)
    saved = [s for p in sorted(parts.glob("*.npz")) if len((s := np.load(p))["labels"])]
    if not saved:
        raise ValueError(f"{images.name}: no image to embed.")
    whole = {k: np.concatenate([s[k] for s in saved]) for k in ("sample_ids", "labels", "features")}
    whole["unreadable"] = np.array(json.dumps(images.unreadable))
    write_npz(final, whole)
    shutil.rmtree(parts)


def _embed_parts(net: Model, images: Dataset, parts: Path, batch_size: int, workers: int | None) -> None:
    finished = sorted(parts.glob("*.npz"))
    for path in finished:
        images.unreadable.update(json.loads(str(np.load(path)["unreadable"])))
    total = -(-len(images) // batch_size)
    batches = images.batches(net.from_pil, batch_size, workers=workers, start=len(finished))
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
        probability of the prediction at the model's own scale) and `margin` (logit of the label less the
        largest other one; negative when wrong).

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
    found = []
    for first in range(0, len(embedded.labels), CHUNK):
        logits = _logits(net, embedded.features[first : first + CHUNK], weights)
        labels = torch.from_numpy(embedded.labels[first : first + CHUNK]).long()[:, None]
        own = logits.gather(1, labels)[:, 0]
        others = logits.scatter(1, labels, -torch.inf).amax(1)
        found.append((logits.argmax(1), logits.softmax(1).amax(1), own - others))
    prediction, confidence, margin = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    return pd.DataFrame(
        {
            "sample_id": embedded.sample_ids,
            "label": embedded.labels,
            "condition": condition,
            "severity": 0,
            "prediction": prediction,
            "confidence": confidence,
            "margin": margin,
        }
    )


def probabilities(
    net: Model, features: Float[torch.Tensor, "n d"], class_names: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "n k"]:
    """Softmax over the classes for some embeddings, at the model's own logit scale."""
    return _logits(net, features.numpy(), net.classifier(class_names, templates)).softmax(1).numpy()


@torch.no_grad()
def _logits(net: Model, features: Float[np.ndarray, "n d"], weights: torch.Tensor) -> Float[torch.Tensor, "n k"]:
    return net.logits_of(torch.from_numpy(features).to(net.device), weights).cpu().double()


def project(
    net: Model,
    embedded: Embedded,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    seed: int = 0,
    neighbors: int = 15,
    moved: Embedded | None = None,
) -> pd.DataFrame:
    """UMAP of images and classes in one plane, by cosine distance: texts, or the weights of a supervised head.

    Images and texts sit in separate cones of the sphere (the modality gap), so each cloud is centred
    before the two are joined; without that the map would show two islands and nothing else.
    The map is kept on disk, so that every chapter shows the same one.

    Args:
        net: The model, for its classes.
        embedded: Raw image features.
        class_names: Names in label order.
        templates: Prompt templates.
        seed: Of the layout.
        neighbors: Neighbours that UMAP keeps near.
        moved: Further images, such as aligned ones, laid on the finished map at the mean of their nearest
            images, weighted by the inverse of the distance; they do not change it.

    Returns:
        Columns `sample_id`, `label`, `modality` (`image`, `aligned` or `text`), `x`, `y`.

    Source:
        McInnes et al. (2018); centring is this project's choice.
    """
    from sklearn.neighbors import KNeighborsRegressor

    def unit(values: np.ndarray) -> np.ndarray:
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    weights, _ = net.directions(net.classifier(class_names, templates))
    texts = unit(weights.cpu().numpy())
    originals = unit(embedded.features)
    others = originals[:0] if moved is None else unit(moved.features)
    center = originals.mean(0)
    points = np.concatenate([originals - center, texts - texts.mean(0)])
    neighbors = max(2, min(neighbors, len(points) - 1))
    plane = _plane(points, neighbors, seed)
    pictures, names = plane[: len(originals)], plane[len(originals) :]
    if len(others):
        near = KNeighborsRegressor(min(neighbors, len(originals)), weights="distance", metric="cosine")
        laid = near.fit(originals - center, pictures).predict(others - center)
        pictures = np.concatenate([pictures, laid.astype(plane.dtype)])
    plane = np.concatenate([pictures, names])
    extra = moved or Embedded(embedded.sample_ids[:0], embedded.labels[:0], others)
    return pd.DataFrame(
        {
            "sample_id": [*embedded.sample_ids, *extra.sample_ids, *(f"text/{c}" for c in class_names)],
            "label": [*embedded.labels, *extra.labels, *range(len(class_names))],
            "modality": np.repeat(["image", "aligned", "text"], [len(originals), len(others), len(texts)]),
            "x": plane[:, 0],
            "y": plane[:, 1],
        }
    )


def _plane(points: Float[np.ndarray, "n d"], neighbors: int, seed: int) -> Float[np.ndarray, "n 2"]:
    """Where UMAP lays the points, computed once."""

    def write(final: Path) -> None:
        import umap
        from sklearn.neighbors import NearestNeighbors

        distances, rows = NearestNeighbors(n_neighbors=neighbors, metric="cosine").fit(points).kneighbors(points)
        threads = torch.get_num_threads()
        with warnings.catch_warnings():
            # that no points can be added later: none are
            warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)
            plane = umap.UMAP(
                n_neighbors=neighbors,
                min_dist=0.5,  # wide enough that single images can be told apart and hovered
                metric="cosine",
                # exact, as UMAP's own search for few points, which numba compiles anew in every process
                precomputed_knn=(rows.astype(np.int32), distances.astype(np.float32), None),
                random_state=seed,
                n_jobs=1,
                init="random" if len(points) < 12 else "spectral",
            ).fit_transform(points)
        torch.set_num_threads(threads)  # numba gives OpenMP a thread a core, whatever this process was told to take
        write_npz(final, {"plane": plane})

    made_by = f"umap {version('umap-learn')}, {neighbors} neighbours, seed {seed}, {points.shape} {points.dtype}\n"
    return kept_arrays("maps", made_by.encode() + points.tobytes(), write)["plane"]


def principal_axes(embedded: Embedded, *, components: int = 6) -> Float[np.ndarray, "components d"]:
    """Leading principal directions of raw embeddings, of unit length, first the one of largest variance.

    Scores of other embeddings are `(features - embedded.features.mean(0)) @ axes.T`.

    Examples:
        >>> line = Embedded(np.array(["a", "b"]), np.array([0, 1]), np.array([[0.0, 0], [2, 0]]))
        >>> abs(principal_axes(line, components=1)).tolist()
        [[1.0, 0.0]]

    Source:
        Salman et al. (2024), six components of raw features in the authors' code.
    """
    from sklearn.decomposition import PCA

    return PCA(components).fit(embedded.features).components_


def one_per_class(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """A random row of every class, in class order.

    Examples:
        >>> rows = pd.DataFrame({"label": [1, 0, 1], "sample_id": ["a", "b", "c"]})
        >>> one_per_class(rows).label.tolist()
        [0, 1]
    """
    return rows.groupby("label", sort=True).sample(1, random_state=seed).reset_index(drop=True)
