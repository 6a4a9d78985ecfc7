"""Chapter 01: maps, axes and examples of the embedding space behind a zero-shot accuracy."""

import warnings
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from zsr_utils._cache import code, digest, kept
from zsr_utils.measure import Embedded
from zsr_utils.models import Model


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

    def compute() -> dict:
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
        return {"plane": plane}

    key = digest(version("umap-learn"), neighbors, seed, points, code("experiments/zero_shot"))
    return kept("maps", key, compute)["plane"]


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
