"""Chapter 01: what lies behind a zero-shot accuracy: other prompts, published numbers, a map of the space."""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from markupsafe import Markup
from PIL import Image

from zsr_utils._cache import code, digest, kept
from zsr_utils._text import markdown
from zsr_utils.conditions import ORIGINAL
from zsr_utils.datasets import Dataset, published_accuracy
from zsr_utils.measure import Embedded
from zsr_utils.models import Model
from zsr_utils.prompts import PROMPT_SETS
from zsr_utils.scores import (
    accuracy,
    against_published,
    estimate_of,
    overlap_coefficient,
    pair_estimates,
    pair_similarities,
)
from zsr_utils.study import OWN_PROMPTS, Study


def similarity(study: Study, some: Embedded, seed: int) -> None:
    """Keep the numbers of `pair_estimates`."""
    for name, estimate in pair_estimates(some.features, some.labels, seed=seed).items():
        study.number(f"similarity/{name}", estimate)
    rows = pd.DataFrame({"sample_id": some.sample_ids, "at": np.arange(len(some.labels))})
    study.run.made_of(
        ["similarity/overlap"],
        rows,
        lambda half: [overlap_coefficient(*pair_similarities(some.features[half["at"]], some.labels[half["at"]]))],
    )


def project(
    net: Model, embedded: Embedded, class_names: Sequence[str], templates: Sequence[str], *, seed: int = 0
) -> pd.DataFrame:
    """UMAP of images and their classes in one plane, by cosine distance: texts, or the weights of a supervised head.

    Images and texts sit in separate cones of the sphere (the modality gap), so each cloud is centred before the two are
    joined; without that the map would show two islands and nothing else.

    Source: McInnes et al. (2018); centring is this project's choice.
    """
    weights, _ = net.directions(net.classifier(class_names, templates))
    classes = np.unique(embedded.labels)
    clouds = embedded.features, weights.cpu().numpy()[classes]
    pictures, texts = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in clouds)
    points = np.concatenate([pictures - pictures.mean(0), texts - texts.mean(0)])
    plane = _plane(points, max(2, min(15, len(points) - 1)), seed)
    ids = [*embedded.sample_ids, *(f"text/{class_names[k]}" for k in classes)]
    labels = [*embedded.labels, *classes]
    modality = np.repeat(["image", "text"], [len(pictures), len(texts)])
    return pd.DataFrame({"sample_id": ids, "label": labels, "modality": modality, "x": plane[:, 0], "y": plane[:, 1]})


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


def principal_axes(embedded: Embedded) -> Float[np.ndarray, "6 d"]:
    """Six leading principal directions of raw embeddings, of unit length, as in the code of Salman et al. (2024)."""
    from sklearn.decomposition import PCA

    return PCA(6).fit(embedded.features).components_


def most_confused(rows: pd.DataFrame, most: int) -> list[int]:
    """At most so many classes, in order: those of the most frequent mistakes, then the first ones.

    Examples:
        >>> most_confused(pd.DataFrame({"label": [0, 1, 3, 3, 2], "prediction": [0, 4, 2, 2, 2]}), 2)
        [2, 3]
    """
    wrong = rows[rows.prediction != rows.label]
    pairs = wrong.value_counts(["label", "prediction"]).index
    return sorted(list(dict.fromkeys([*itertools.chain(*pairs), *np.unique(rows.label).tolist()]))[:most])


def one_per_class(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """A random row of every class, in class order."""
    return rows.groupby("label", sort=True).sample(1, random_state=seed).reset_index(drop=True)


def comment(study: Study) -> str:
    """What must be said beside the accuracy: why it means nothing, or where its interval lies."""
    if study.run.caution:
        return Markup(f"**{markdown(study.run.caution)}.**")
    reaches = "lies at or above 99 %" if study["zero_shot/accuracy"].low >= 0.99 else "reaches below 99 %"
    return f"The interval {reaches}."


def captioned(images: Dataset, rows: pd.DataFrame) -> tuple[list[Image.Image], list[str]]:
    """Pictures of rows with what they are, what they were called, how surely and by how much."""
    names, captions = images.class_names, []
    for row in rows.itertuples():
        called = "" if row.prediction == row.label else f", called {names[row.prediction]}"
        sure = f"confidence {row.confidence:.2f}, margin {row.margin:.1f}"
        captions.append(f"{names[row.label]}{called}\n{sure}\n{row.sample_id}")
    return [images.image(sample_id) for sample_id in rows.sample_id], captions


def by_prompt(study: Study) -> pd.DataFrame:
    """Rows of the chapter's own model with every prompt set but the chapter's; the set is the condition."""
    frames = []
    for name in PROMPT_SETS:
        if name != study.parameters["prompts"]:
            shown = replace(ORIGINAL, name=name.replace(" ", "_"))
            frames.append(study.measure([shown], prompts=name, models=[study.name]))
    return pd.concat(frames, ignore_index=True)


def changes_in_words(table: pd.DataFrame, base: str) -> str:
    """Paired changes of accuracy as a sentence."""
    if table.empty:
        return "Nothing was given to compare with."
    said = [f"{markdown(row.label)} changes it by {estimate_of(row):points}" for row in table.itertuples()]
    return Markup(f"Against {markdown(base)}, image by image and in percentage points: {'; '.join(said)}.")


def beside_published(study: Study) -> pd.DataFrame:
    """Accuracy of every model with the data set's own prompts, beside the published one where there is one."""
    shown = replace(ORIGINAL, name="own_prompts")
    rows = study.measure([shown], prompts=OWN_PROMPTS)
    table = study.estimate(rows, "zero_shot/accuracy_with_own_prompts", accuracy)
    data = study.parameters["dataset"]
    published = [published_accuracy(net.name, net.pretrained, data) for net in study.nets.values()]
    columns = ["model", "value", "low", "high", "n", "published", "difference", "covered", "source"]
    return against_published(table, published)[columns]


def coverage_in_words(study: Study, table: pd.DataFrame) -> str:
    """Whether the intervals cover what was published."""
    said = [
        f"{markdown(row.model)}: {row.value:.4f} measured, {row.published:.4f} published ({markdown(row.source)}), "
        f"{'inside' if row.covered else '**outside**'} the interval"
        for row in table.dropna(subset="published").itertuples()
    ]
    p = study.parameters
    whole = p["split"] == "validation" and not (p["classes"] or p["ids"] or p["limit"])
    part = "" if whole else " This run saw a part of the images or classes only."
    return Markup(f"{'; '.join(said) or 'Nothing is published for these models on these images'}.{part}")
