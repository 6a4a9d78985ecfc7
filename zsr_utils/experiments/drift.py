"""What moves inside an image encoder while its answer stays: embedding and token grid under perturbations.

`measure` shows every image and its perturbed views to the model once each and keeps a row a view; `control`
gives the distances between unrelated images that a drift is compared with. What follows from the rows is
in `zsr_utils.scores`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from zsr_utils._progress import hidden
from zsr_utils._text import one_of
from zsr_utils.conditions import Perturbation, View
from zsr_utils.datasets import Dataset
from zsr_utils.models import Model
from zsr_utils.records import concat
from zsr_utils.scores import change_spectrum, dirichlet_energy, mean_square_norm, power_change


EMBEDDING = "embedding"  # the layer whose drift is that of the image embedding
BANDS = 8  # radial bands of the token grid
POWER_BANDS = ("low", "middle", "high")  # of the picture, as the paper cuts them
CONTROLS = ("any", "same class", "other class")
WHOLE = 0.999  # of a token's picture that must be original content
DETAILS = ("embedding", "tokens", "layers")  # each holds the ones before it


@dataclass(frozen=True)
class Drift:
    """What the views of a data set did to a model.

    Attributes:
        rows: One row a view: `sample_id`, `label`, `family`, `instance`, `clean_prediction`, `prediction`,
            `word_label` (class whose name sets the box of an overlay, and which a semantic one writes; -1
            without), `clean_margin` and `margin` (logit of the clean prediction less the largest other one),
            `cosine`, `l2` and `drift` (1 - cosine) of the embedding, `energy` and `clean_energy` (Dirichlet,
            of the token grid), the same with `_normalised` (divided by the mean squared length of the tokens)
            and `_content` (only between tokens of original content), `share_k` and `coherence_k` (of the
            token grid's change in radial band k; NaN where the canvas changes its size) and `power_low`,
            `power_middle`, `power_high` (relative change of the picture's own spectrum). Without tokens only
            the columns up to `drift`.
        layers: One row a view and block: `sample_id`, `family`, `instance`, `layer` (1, 2, …), `unchanged`,
            `drift` of the mean token, `energy` and `clean_energy`, normalised.
        clean: The images as they are.
    """

    rows: pd.DataFrame
    layers: pd.DataFrame
    clean: "Clean"


@dataclass(frozen=True)
class Clean:
    """The unperturbed images: ids, labels, answers, and unit vectors by layer (embedding, then 1, 2, …)."""

    sample_ids: np.ndarray
    labels: Int[np.ndarray, "n"]
    predictions: Int[np.ndarray, "n"]
    units: dict[str | int, Float[np.ndarray, "n d"]]


@dataclass(frozen=True)
class _Pass:
    """One batch through the encoder: a copy on the CPU of what the rows need."""

    pixels: Tensor
    features: Tensor
    logits: Tensor
    pooled: list[Tensor]  # mean token after every block
    grids: list[np.ndarray]  # tokens after every block; without the layer profile only the last, or none

    @cached_property
    def energies(self) -> list[np.ndarray]:
        """Dirichlet energy of every grid; that of the clean images serves all their views."""
        return [dirichlet_energy(grid) for grid in self.grids]

    @cached_property
    def normalised(self) -> list[np.ndarray]:
        """The same, divided by the mean squared length of the tokens."""
        return [energy / mean_square_norm(grid) for energy, grid in zip(self.energies, self.grids)]

    @property
    def predictions(self) -> np.ndarray:
        return self.logits.argmax(1).numpy()

    def but_where(self, same: Tensor, clean: "_Pass") -> "_Pass":
        """This pass, with what `clean` gave for the images that are the same.

        A network's arithmetic differs in the last digit between batches, and a drift of 0 has to be 0.
        """
        for mine, its in zip(
            [self.features, self.logits, *self.pooled, *map(torch.from_numpy, self.grids)],
            [clean.features, clean.logits, *clean.pooled, *map(torch.from_numpy, clean.grids)],
        ):
            mine[same] = its[same]
        return self


@torch.no_grad()
def measure(
    net: Model,
    images: Dataset,
    classifier: Float[Tensor, "k d"],
    perturbations: Sequence[Perturbation],
    *,
    detail: str = "layers",
    batch_size: int = 64,
    seed: int = 0,
) -> Drift:
    """One pass for every image and one for each of its views; embedding and tokens come from the same pass.

    A semantic overlay names classes that the model did not answer, drawn by sample id and seed. Memory is
    bounded by one batch and the rows.

    Args:
        net: The model handle; for tokens and layers it must have a token grid.
        images: Labelled images; perturbations apply before the model's own resize and crop.
        classifier: Unit text weights of the data set's classes.
        perturbations: From `zsr_utils.conditions.families`.
        detail: `embedding` for answers and drift, `tokens` for energies and spectra too, `layers` for the
            profile over the blocks too.
        batch_size: Images a forward pass.
        seed: Of the named classes.

    Raises:
        ValueError: If there are no images, perturbations or classes enough for the overlays, detail is
            unknown, batch_size is below 1, the classifier does not fit, an image is too small, or the token
            grid is not square.
        NotImplementedError: If tokens are wanted and the model has no token grid.

    Source:
        Wani et al. (2026): families, stability, Dirichlet energy, input spectrum. Image encoders with a
        zero-shot head in place of generative models, blocks before the last, restriction to original content
        and the spectrum of the token grid are this project's.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, allowed is 1 or more.")
    one_of("detail", detail, DETAILS)
    if not len(images) or not perturbations:
        raise ValueError(f"{len(images)} images and {len(perturbations)} perturbations given, allowed is 1 or more.")
    if len(classifier) != len(images.class_names):
        raise ValueError(f"classifier has {len(classifier)} classes, {images.name} has {len(images.class_names)}.")
    rows, profile, cleans = [], [], []
    total = len(images) * (1 + len(perturbations))
    with tqdm(total=total, desc="drift", unit="image", disable=hidden()) as progress:
        for ids, pictures, labels in _chunks(images, batch_size):
            clean = _see(net, torch.stack([net.from_pil(p) for p in pictures]), classifier, detail)
            cleans.append((ids, labels, clean))
            words = [_others(i, answer, images.class_names, seed) for i, answer in zip(ids, clean.predictions)]
            progress.update(len(ids))
            for perturbation in perturbations:
                views = [
                    perturbation(picture, sample_id=i, words=[images.class_names[w] for w in named])
                    for i, picture, named in zip(ids, pictures, words)
                ]
                pixels = torch.stack([net.from_pil(view.image) for view in views])
                seen = _see(net, pixels, classifier, detail)
                seen = seen.but_where((pixels == clean.pixels).flatten(1).all(1), clean)
                kind = {"sample_id": ids, "family": perturbation.family, "instance": perturbation.instance}
                named = [w[perturbation.number] if perturbation.family.startswith("text") else -1 for w in words]
                found = {"label": labels, "word_label": named, **_answers(clean, seen)}
                found |= _tokens(net, clean, seen, views, perturbation) if detail != "embedding" else {}
                rows.append(pd.DataFrame(kind | found))
                profile += _profile(kind, clean, seen) if detail == "layers" else []
                progress.update(len(ids))
    images.check_readable()
    if not rows:
        raise ValueError(f"{images.name}: no image could be read.")
    return Drift(concat(rows), concat(profile) if profile else pd.DataFrame(), _clean(cleans))


def control(clean: Clean, *, draws: int = 25, seed: int = 0) -> pd.DataFrame:
    """How far apart unrelated images are: what a drift is compared with.

    Args:
        clean: From `measure`.
        draws: Other images each one is compared with, drawn without replacement; all of them if there are
            fewer.
        seed: Of the draws.

    Returns:
        One row an image, kind of control (`any`, `same class`, `other class`) and layer (`embedding`, 1, 2,
        …), with the mean `distance` (1 - cosine). An image without such others has no row.

    Raises:
        ValueError: If there are fewer than two images, or draws is below 1.

    Source:
        Wani et al. (2026), drift against control (25 others in their log); the two controls by class are ours.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}, allowed is 1 or more.")
    if len(clean.sample_ids) < 2:
        raise ValueError(f"{len(clean.sample_ids)} image given, allowed is 2 or more to compare one with others.")
    rng = np.random.default_rng(seed)
    found = []
    for i, sample_id in enumerate(clean.sample_ids):
        others = rng.permutation(np.delete(np.arange(len(clean.sample_ids)), i))
        same = clean.labels[others] == clean.labels[i]
        for kind, chosen in zip(CONTROLS, (others[:draws], others[same][:draws], others[~same][:draws])):
            if len(chosen):
                for layer, units in clean.units.items():
                    distance = float(1 - (units[chosen] @ units[i]).mean())
                    found.append({"sample_id": sample_id, "kind": kind, "layer": layer, "distance": distance})
    return pd.DataFrame(found)


def view(images: Dataset, perturbations: Sequence[Perturbation], row: pd.Series) -> Image.Image:
    """The picture behind a row of `measure`, made again.

    Raises:
        KeyError: If the sample or the perturbation is not among those given.
    """
    for perturbation in perturbations:
        if (perturbation.family, perturbation.instance) == (row.family, row.instance):
            words = [images.class_names[row.word_label]] * (perturbation.number + 1)  # only the last one is shown
            return perturbation(images.image(row.sample_id), sample_id=row.sample_id, words=words).image
    raise KeyError(f"{row.family} {row.instance} is not among the perturbations.")


def _chunks(images: Dataset, size: int) -> Iterator[tuple[list[str], list[Image.Image], list[int]]]:
    items = iter(images)
    while chunk := list(islice(items, size)):
        ids, pictures, labels = zip(*chunk)
        yield list(ids), list(pictures), list(labels)


def _see(net: Model, pixels: Tensor, classifier: Tensor, detail: str) -> _Pass:
    shown = pixels.to(net.device)
    features, grids = (net.encode_image(shown), []) if detail == "embedding" else net.encode_layers(shown)
    logits = net.logits_of(features, classifier.to(net.device)).cpu()
    pooled = [grid.mean((1, 2)).double().cpu() for grid in grids] if detail == "layers" else []
    kept = grids if detail == "layers" else grids[-1:]
    return _Pass(pixels, features.double().cpu(), logits.double(), pooled, [grid.cpu().numpy() for grid in kept])


def _others(sample_id: str, answer: int, class_names: Sequence[str], seed: int) -> list[int]:
    """Three classes that are not the answer (fewer if there are no more), by sample id and seed."""
    key = hashlib.sha256(f"{seed}\0{sample_id}".encode()).digest()
    order = np.random.default_rng(list(key[:8])).permutation(len(class_names))
    return order[order != answer][:3].tolist()


def _margin(logits: Tensor, base: np.ndarray) -> np.ndarray:
    base = torch.from_numpy(base)[:, None]
    return (logits.gather(1, base) - logits.scatter(1, base, -torch.inf).amax(1, keepdim=True))[:, 0].numpy()


def _drift(a: Tensor, b: Tensor) -> np.ndarray:
    """1 - cosine, as half the squared distance of the unit vectors: no cancellation hides a small one."""
    return ((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1) / 2).numpy()


def _answers(clean: _Pass, seen: _Pass) -> dict:
    drift = _drift(clean.features, seen.features)
    return {
        "clean_prediction": clean.predictions,
        "prediction": seen.predictions,
        "clean_margin": _margin(clean.logits, clean.predictions),
        "margin": _margin(seen.logits, clean.predictions),
        "drift": drift,
        "cosine": 1 - drift,
        "l2": (clean.features - seen.features).norm(dim=1).numpy(),
    }


def _tokens(net: Model, clean: _Pass, seen: _Pass, views: list[View], perturbation: Perturbation) -> dict:
    before, after = clean.grids[-1], seen.grids[-1]
    grid = after.shape[1:3]
    found = {
        "clean_energy": clean.energies[-1],
        "energy": seen.energies[-1],
        "clean_energy_normalised": clean.normalised[-1],
        "energy_normalised": seen.normalised[-1],
        "clean_energy_content": dirichlet_energy(before, _original(net, [v.kept for v in views], grid)),
        "energy_content": dirichlet_energy(after, _original(net, [v.content for v in views], grid)),
    }
    if perturbation.keeps_size:
        shares, coherence = change_spectrum(before, after, BANDS)
    else:
        shares = coherence = np.full((len(after), BANDS), np.nan)
    for k in range(BANDS):
        found |= {f"share_{k + 1}": shares[:, k], f"coherence_{k + 1}": coherence[:, k]}
    _, relative = power_change(clean.pixels.numpy(), seen.pixels.numpy(), len(POWER_BANDS))
    return found | {f"power_{name}": relative[:, k] for k, name in enumerate(POWER_BANDS)}


def _original(net: Model, masks: list[Image.Image], grid: tuple[int, int]) -> np.ndarray:
    """Which tokens look at original content alone: the masks take the pictures' own way into the model."""
    kept = np.ones((len(masks), *grid), dtype=bool)
    for token, mask in zip(kept, masks):
        if mask.getextrema()[0] < 255:
            pixels = net.from_pil(mask.convert("RGB"))[None, :1]
            token[:] = F.adaptive_avg_pool2d(pixels, grid)[0, 0].numpy() > WHOLE
    return kept


def _profile(kind: dict, clean: _Pass, seen: _Pass) -> list[pd.DataFrame]:
    unchanged = clean.predictions == seen.predictions
    return [
        pd.DataFrame(
            kind
            | {
                "layer": layer,
                "unchanged": unchanged,
                "drift": _drift(clean.pooled[layer - 1], seen.pooled[layer - 1]),
                "clean_energy": before,
                "energy": after,
            }
        )
        for layer, (before, after) in enumerate(zip(clean.normalised, seen.normalised), start=1)
    ]


def _clean(passes: Iterable[tuple[list[str], list[int], _Pass]]) -> Clean:
    ids, labels, seen = zip(*passes)
    vectors = {EMBEDDING: [p.features for p in seen]}
    vectors |= {layer + 1: [p.pooled[layer] for p in seen] for layer in range(len(seen[0].pooled))}
    return Clean(
        np.concatenate(ids),
        np.concatenate(labels),
        np.concatenate([p.predictions for p in seen]),
        {layer: F.normalize(torch.cat(parts), dim=1).numpy() for layer, parts in vectors.items()},
    )
