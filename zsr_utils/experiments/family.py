"""One model on the measurements of several chapters at once, few images each: what a comparison of models needs.

Every number becomes a value of one image, so that two models are compared image by image.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import numpy as np
import pandas as pd
import torch
from joblib.externals.loky import get_reusable_executor
from scipy.stats import rankdata

from zsr_utils import jacobian
from zsr_utils.conditions import alignment, families
from zsr_utils.datasets import Dataset
from zsr_utils.experiments import drift, noise, zero_shot
from zsr_utils.experiments.pairs import Pairs, aligned_pairs
from zsr_utils.models import Model, load_model, resolve_device
from zsr_utils.records import concat


WORDS = {
    "alignment/rms": "change that aligns (grey levels, RMS)",
    "jacobian/sensitivity": "sensitivity to one grey level",
    "jacobian/effective_rank": "effective rank of the Jacobian",
    "noise/auroc": "AUROC of detection by noise",
    "stability/flips": "share of views that flip",
}
DRIFTS = ("scale_pad", "rotation", "text_semantic")  # families of which the drift is kept


def in_words(measurement: str) -> str:
    """A measurement of `member` as a reader says it.

    Examples:
        >>> [in_words(m) for m in ("accuracy/sketch", "alignment/systematic_4_255", "drift/scale_pad")]
        ['accuracy on sketch', 'systematic accuracy at 4/255', 'drift under scale pad']
    """
    kind, _, what = measurement.partition("/")
    if measurement in WORDS:
        return WORDS[measurement]
    if kind == "alignment":
        return "systematic accuracy at " + what.removeprefix("systematic_").removesuffix("_255") + "/255"
    return {"accuracy": "accuracy on ", "drift": "drift under "}[kind] + what.replace("_", " ")


def members(
    names: Sequence[str],
    images: Dataset,
    shifted: Mapping[str, Dataset],
    templates: Sequence[str],
    *,
    device: str = "auto",
    precision: str = "fp32",
    workers: int | None = None,
    **settings,
) -> pd.DataFrame:
    """Values of several models, image by image.

    Args:
        names: Models, as `load_model` takes them.
        images, shifted, templates: As `member`.
        device, precision: As `load_model`.
        workers: Processes, this one among them, of one thread each if there are several. None is one on a GPU
            and as many as torch may use threads on a CPU: an embedded model is too small to keep two cores busy
            by itself.
        settings: As `member`.

    Returns:
        The columns of `member` and `model`, in the order of `names`.

    Raises:
        ValueError: As `load_model` and `member`.
    """
    if workers is None:
        workers = torch.get_num_threads() if resolve_device(device).type == "cpu" else 1
    settings |= {"images": images, "shifted": shifted, "templates": templates}
    task = partial(_load_and_measure, device=device, precision=precision, **settings)
    return concat(_spread(task, names, max(1, min(workers, len(names)))))


def _load_and_measure(name: str, *, device: str, precision: str, **settings) -> pd.DataFrame:
    return member(load_model(name, device=device, precision=precision), **settings).assign(model=name)


def _spread(task: Callable[[str], pd.DataFrame], names: Sequence[str], workers: int) -> list[pd.DataFrame]:
    """What `task` makes of every name; this process works too, as another one first has to import everything."""
    if workers == 1:
        return [task(name) for name in names]
    others = get_reusable_executor(workers - 1, env={"OMP_NUM_THREADS": "1"})
    free = SimpleQueue()
    for place in [task, *[lambda name: others.submit(task, name).result()] * (workers - 1)]:
        free.put(place)

    def next_free(name):
        place = free.get()
        try:
            return place(name)
        finally:
            free.put(place)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as waiting:
            return list(waiting.map(next_free, names))
    finally:
        torch.set_num_threads(threads)


def member(
    net: Model,
    images: Dataset,
    shifted: Mapping[str, Dataset],
    templates: Sequence[str],
    *,
    pairs: int = 16,
    budgets: Sequence[float] = (4, 8),
    steps: int = 8,
    spectra: int = 3,
    sigma: float = 4,
    views: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Values of one model, image by image.

    The images, pairs and noise depend on the data and the seed alone, so those of two models belong together.

    Args:
        net: The model handle.
        images: The labelled images of the other measurements.
        shifted: Further sets by name, for accuracy alone.
        templates: Prompt templates of the class names.
        pairs: Ordered pairs that are aligned, fully and in balls.
        budgets: Radii of the balls (L-infinity), in grey levels.
        steps: Steps in each ball.
        spectra: Source images whose Jacobian is taken.
        sigma: Standard deviation of the noise by which aligned images are told from clean ones, in grey levels.
        views: Images shown in every perturbation.
        batch_size: Images a pass.
        seed: Of all draws.

    Returns:
        Columns `measurement`, `sample_id` (of the source image) and `value`:

        - `accuracy/<set>`: 1 if the image is named rightly, else 0.
        - `alignment/systematic_<budget>_255`: 1 if the pair's image is named rightly after the search in that
          ball for an image that has the target's name.
        - `alignment/rms`: grey levels (RMS) of full alignment.
        - `jacobian/sensitivity`: share of the embedding's length by which one grey level (RMS) can move it at
          most, by the linear account; unlike s1 it can be compared between models.
        - `jacobian/effective_rank`.
        - `noise/auroc`: share of clean images that drift less under noise than this aligned image; the mean
          over pairs is the AUROC.
        - `stability/flips`: share of an image's views whose answer changed.
        - `drift/<family>`: drift of views with unchanged answer over the model's mean distance between
          unrelated images; an image without such views has no value.

    Raises:
        ValueError: If the pairs leave no image that noise can be shown on unaligned, and as the probes.
    """
    found = []
    for name, data in {"validation": images, **shifted}.items():
        rows = zero_shot.classify(
            net, zero_shot.embed(net, data, batch_size=batch_size), data.class_names, templates, condition=name
        )
        found.append(_values(f"accuracy/{name}", rows.sample_id, rows.prediction == rows.label))
    made = aligned_pairs(net, images, templates, per_class=10, number=pairs, batch_size=batch_size, seed=seed)
    found += _alignment(net, made, budgets, steps)
    found += _jacobian(net, made, spectra)
    found.append(_noise(net, images, made, sigma / 255, seed))
    found += _drift(net, images, made, views, batch_size, seed)
    return concat(found)


def _values(measurement: str, sample_ids, values) -> pd.DataFrame:
    values = np.asarray(values, dtype=float)
    return pd.DataFrame({"measurement": measurement, "sample_id": np.asarray(sample_ids), "value": values})


def _alignment(net: Model, made: Pairs, budgets: Sequence[float], steps: int) -> list[pd.DataFrame]:
    ids, labels = made.table.sample_id, torch.tensor(made.table.label.to_numpy())
    change = (made.aligned - made.sources).square().flatten(1).mean(1).sqrt()
    found = [_values("alignment/rms", ids, 255 * change)]
    goal = alignment.Answer(net, made.classifier, torch.tensor(made.table.target_label.to_numpy()))
    balls = alignment.smallest_budgets(
        net, made.sources, goal, [b / 255 for b in budgets], momentum=0.7, max_steps=steps, eight_bit=True
    )
    for budget, ball in zip(budgets, balls.values()):
        with torch.no_grad():
            answers = net.logits(ball.pixels.to(net.device), made.classifier.to(net.device)).argmax(1).cpu()
        found.append(_values(f"alignment/systematic_{budget:g}_255", ids, answers == labels))
    return found


def _jacobian(net: Model, made: Pairs, number: int) -> list[pd.DataFrame]:
    first = ~made.table.sample_id.duplicated()
    rows = np.flatnonzero(first)[:number]
    ids = list(made.table.sample_id.iloc[rows])
    table = jacobian.summary(jacobian.spectra(net, made.sources[rows]), ids)
    length = made.embedded.of(ids).norm(dim=1).numpy()
    longest = made.sources[0].numel() ** 0.5 / 255  # L2 norm of one grey level everywhere
    return [
        _values("jacobian/sensitivity", ids, table.largest * longest / length),
        _values("jacobian/effective_rank", ids, table.effective_rank),
    ]


def _noise(net: Model, images: Dataset, made: Pairs, sigma: float, seed: int) -> pd.DataFrame:
    used = set(made.table.sample_id) | set(made.table.target_id)
    clean = made.rows[~made.rows.sample_id.isin(used)]
    if clean.empty:
        raise ValueError(
            f"{images.name}: {len(made.table)} pairs use all its {len(made.rows)} images, allowed are fewer."
        )
    clean = clean.sample(min(2 * len(made.table), len(clean)), random_state=seed)
    pixels = alignment.saved_as_png(images.pixels(clean.sample_id, net.from_pil))
    moved, kept = (
        noise.response(net, p, made.classifier, sigmas=[sigma], draws=1, conversion="round", seed=seed).drift.to_numpy()
        for p in (made.aligned, pixels)
    )
    # of each aligned image: clean ones below it, ties counted half
    among_all, among_moved = rankdata(np.concatenate([moved, kept]))[: len(moved)], rankdata(moved)
    return _values("noise/auroc", made.table.sample_id, (among_all - among_moved) / len(kept))


def _drift(net: Model, images: Dataset, made: Pairs, views: int, batch_size: int, seed: int) -> list[pd.DataFrame]:
    # the same images for every model: the first sources, whose order is the draw's
    few = list(dict.fromkeys(made.table.sample_id))[:views]
    chosen = Dataset(
        images.name, images.class_names, [s for s in images.samples if s.sample_id in few], content=images.content
    )
    seen = drift.measure(
        net, chosen, made.classifier, families(), detail="embedding", batch_size=min(batch_size, len(few)), seed=seed
    )
    control = drift.control(seen.clean, seed=seed).query("kind == 'any'").distance.mean()
    rows = seen.rows.assign(flip=seen.rows.prediction != seen.rows.clean_prediction)
    flips = rows.groupby("sample_id", sort=False).flip.mean()
    found = [_values("stability/flips", flips.index, flips)]
    for family in DRIFTS:
        moved = rows[(rows.family == family) & ~rows.flip].groupby("sample_id", sort=False).drift.mean()
        found.append(_values(f"drift/{family}", moved.index, moved / control))
    return found
