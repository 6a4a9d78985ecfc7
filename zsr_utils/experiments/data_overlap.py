"""Chapter 11: near-duplicates between test and training images, what finds them, and what they do to an accuracy."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from scipy import fft, stats
from sklearn.metrics import pairwise_distances_argmin_min
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import functional as TF

from zsr_utils import datasets, scores
from zsr_utils.datasets import TWINS, Dataset
from zsr_utils.experiments.distribution_shifts import seen
from zsr_utils.measure import embed
from zsr_utils.models import Model, load_model, training
from zsr_utils.scores import Estimate
from zsr_utils.study import Study


SAME = 1 - 1e-5  # similarity of equal pictures, to rounding
SHARES = (0.02, 0.1, 0.5)  # of the test set with a twin
CHUNK = 8192  # training images at a time
NOTHING = pd.DataFrame(columns=["instrument", "sample_id", "flagged"])


@dataclass(frozen=True)
class Instrument:
    """What gives pictures vectors of length 1, whose cosine says how alike they are."""

    name: str
    made_by: str  # what tells its vectors from others
    vectors: Callable[[Dataset], Float[np.ndarray, "n d"]]


def unit(vectors) -> Float[np.ndarray, "n d"]:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def hashes(images: Dataset) -> Float[np.ndarray, "n 64"]:
    """Perceptual hash: the signs of the 64 lowest frequencies about their median; a cosine of 1 - 2 d / 64 at d bits.

    Source: Zauner (2010), pHash.
    """
    grey = [p.convert("L").resize((32, 32), Image.Resampling.LANCZOS) for _, ps, _ in images.pictures() for p in ps]
    low = fft.dctn(np.array(grey, np.float32), axes=(1, 2))[:, :8, :8].reshape(len(grey), 64)
    return unit(np.where(low > np.median(low[:, 1:], axis=1, keepdims=True), 1, -1))


def instruments(net: Model, judge: str, sscd: str = "", *, batch_size: int = 64) -> list[Instrument]:
    """The perceptual hash, the model's own embedding, another model's, and SSCD's where its TorchScript file is."""

    def embedding(name: str, model: Model) -> Instrument:
        vectors = lambda images: unit(embed(model, images, batch_size=batch_size).features)  # noqa: E731
        return Instrument(name, model.fingerprint, vectors)

    name, _, tag = judge.partition("@")
    own, other = embedding("own embedding", net), load_model(name, tag or None, str(net.device))
    found = [Instrument("perceptual hash", "pHash 64", hashes), own, embedding(f"embedding of {judge}", other)]
    return found + ([_copy_detector(Path(sscd))] if sscd else [])


def _copy_detector(path: Path) -> Instrument:
    """SSCD, with its authors' preprocessing. Source: Pizzi et al. (2022)."""
    if not path.is_file():
        raise ValueError(f"sscd is {str(path)!r}, allowed is the TorchScript file of a copy detector, or nothing.")
    net = torch.jit.load(str(path), map_location="cpu").eval()

    def ready(picture: Image.Image) -> torch.Tensor:
        return TF.normalize(TF.to_tensor(picture.resize((288, 288))), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    @torch.no_grad()
    def vectors(images: Dataset) -> np.ndarray:
        return unit(torch.cat([net(torch.stack([*map(ready, ps)])) for _, ps, _ in images.pictures()]))

    return Instrument("SSCD", path.name, vectors)


def nearest(test: Float[np.ndarray, "n d"], training: Iterable[Float[np.ndarray, "m d"]]) -> tuple:
    """The highest cosine of every test image with a training image, and which one; the latter stream in chunks."""
    best, which, seen = np.full(len(test), -1.0), np.full(len(test), -1), 0
    for chunk in training:
        at, distance = pairwise_distances_argmin_min(test, np.asarray(chunk, test.dtype))
        alike = 1 - np.square(distance) / 2
        which = np.where(alike > best, seen + at, which)
        best, seen = np.maximum(best, alike), seen + len(chunk)
    return best, which


def in_chunks(images: Dataset) -> Iterator[Dataset]:
    """Parts of a data set, so that no more vectors are held at a time."""
    ids = ids_of(images)
    return (images.only(ids[k : k + CHUNK]) for k in range(0, len(ids), CHUNK))


def write_index(folder: Path | str, instrument: Instrument, images: Dataset) -> None:
    """Vectors of training images on disk, chunk by chunk, in 16 bits, with what made them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for k, part in enumerate(in_chunks(images)):
        vectors = instrument.vectors(part)
        np.save(folder / f"{k:06d}.npy", vectors.astype(np.float16))
    kept = {"instrument": instrument.name, "made_by": instrument.made_by, "width": vectors.shape[1]}
    (folder / "index.json").write_text(json.dumps(kept))


def read_index(folder: Path | str, instrument: Instrument, width: int) -> Iterator[np.ndarray]:
    """The chunks of an index; refused where another instrument made it."""
    path = Path(folder) / "index.json"
    if not path.is_file():
        raise ValueError(f"index is {str(folder)!r}, allowed is a folder with an index.json, made by `write_index`.")
    known = json.loads(path.read_text())
    if (known["made_by"], known["width"]) != (instrument.made_by, width):
        has = f"{known['instrument']!r} in vectors of {known['width']} numbers"
        raise ValueError(f"index {str(folder)!r} was made by {has}, allowed is this {instrument.name!r}, of {width}.")
    for file in sorted(Path(folder).glob("*.npy")):
        yield np.load(file).astype(np.float32)


def threshold_of(clean: Float[np.ndarray, "n"], rate: float) -> float:
    """A similarity that at most this share of pictures without a twin exceeds; equal pictures are always twins."""
    return float(min(np.quantile(clean, 1 - rate, method="higher"), SAME))


def recipe_of(study: Study) -> tuple[str, dict]:
    """The model whose training set is searched and its recipe, of the chapter's models the first that had duplicates.

    Without one it is the chapter's own; on other data than Tabletop no recipe is known.
    """
    if study.images.name != "tabletop":
        return study.name, {}
    known = {name: training(name) for name, net in study.nets.items() if net.trained_on}
    with_duplicates = [name for name, recipe in known.items() if recipe.get("overlap")]
    name = (with_duplicates or [study.name])[0]
    return name, known.get(name, {})


def ordinary_images(study: Study, test: Dataset, number: int) -> Dataset:
    """Training images without a twin: scenes of the set that is searched, elsewhere other images of the data set."""
    if recipe := recipe_of(study)[1]:
        return datasets.pretraining_part(recipe, [], number)
    rest = set(ids_of(study.images)) - set(ids_of(test))
    if len(rest) < 2:
        raise ValueError(f"test_images is {len(test)}, allowed are fewer than the {len(study.images)} images but one.")
    return study.images.only(sorted(rest)).subset(number, study.parameters["seed"])


def twins_of(test: Dataset, parameters: Mapping) -> dict[str, Dataset]:
    made = {k: datasets.planted(test, k, split=parameters["split"], seed=parameters["seed"]) for k in TWINS}
    return {kind: twins for kind, twins in made.items() if twins}


def ids_of(images: Dataset) -> list[str]:
    return [s.sample_id for s in images.samples]


def examples(test: Dataset, parameters: Mapping) -> tuple[list, list[str]]:
    """A test image and its twins, for a gallery."""
    one, twins = test.samples[0], twins_of(test, parameters)
    return [one.image(), *(t.samples[0].image() for t in twins.values())], ["test image", *twins]


def planted_scores(study: Study, tools: Sequence[Instrument], ordinary: Dataset, test: Dataset) -> pd.DataFrame:
    """Similarity of every test image to ordinary training images (kind `none`) and to its twin, by instrument."""
    twins, ids, found = twins_of(test, study.parameters), ids_of(test), []
    for tool in tools:
        own = tool.vectors(test)
        alike = {"none": nearest(own, [tool.vectors(ordinary)])[0]}
        alike |= {kind: (own * tool.vectors(t)).sum(1) for kind, t in twins.items()}
        for kind, values in alike.items():
            columns = {"instrument": tool.name, "kind": kind, "sample_id": ids, "alike": values}
            found.append(pd.DataFrame(columns).assign(first=np.arange(len(ids)) % 2 == 0))
    return pd.concat(found, ignore_index=True)


def found_twins(table: pd.DataFrame, rate: float) -> pd.DataFrame:
    """Which pictures of the second half are called twins, at thresholds from those of the first that have none."""
    first = table[table["first"] & (table.kind == "none")].groupby("instrument").alike
    at = table.instrument.map({tool: threshold_of(v.to_numpy(), rate) for tool, v in first})
    return table.assign(threshold=at, found=(table.alike > at) | (table.alike >= SAME))[~table["first"]]


def contaminations(found: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Estimated against planted contamination: a share of the test images gets twins of all visible kinds in turn."""
    rows = []
    for tool, part in found.groupby("instrument", sort=False):
        wide = part.pivot(index="sample_id", columns="kind", values="found").astype(bool)
        order, n = np.random.default_rng([seed, 13]).permutation(len(wide)), len(wide)
        twins = wide.drop(columns=["none", "caption only"], errors="ignore").to_numpy()
        for number in [0, *(max(1, round(share * n)) for share in SHARES)]:
            called, got = wide["none"].to_numpy().copy(), order[:number]
            called[got] |= twins[got, np.arange(number) % twins.shape[1]]
            rows.append({"instrument": tool, "planted": number / n, **asdict(scores.exact_proportion(called.sum(), n))})
    return pd.DataFrame(rows)


def found_in_words(table: pd.DataFrame) -> str:
    """False alarms of every instrument, the exact copies that it finds, and the kind of twin it finds least of."""
    said = []
    for tool, part in table.groupby("instrument", sort=False):
        part = part.set_index("kind").value
        seen = part.drop(["none", "caption only"], errors="ignore")
        worst = f"of the visible twins “{seen.idxmin()}” least, {seen.min():.0%}"
        said.append(f"{tool}: false alarms {part['none']:.0%}, exact copies found {part['exact']:.0%}, {worst}")
    return "; ".join(said) + "."


def estimated_in_words(table: pd.DataFrame) -> str:
    """What every instrument reports where nothing is planted, and how often its interval holds what is."""
    none, some = table[table.planted == 0], table[table.planted > 0]
    said = ", ".join(f"{r.value:.1%} by {r.instrument}" for r in none.itertuples())
    held = some.planted.between(some.low, some.high).sum()
    return f"With no twin planted {said}; with twins, {held} of {len(some)} intervals hold the planted share."


def joined(*tables: pd.DataFrame) -> pd.DataFrame:
    """Tables one below the other, but for empty ones."""
    return pd.concat([t for t in tables if len(t)] or [tables[0]], ignore_index=True)


def training_set(study: Study, folder: str, test: Dataset, ordinary: Dataset) -> tuple[list[Dataset], pd.DataFrame]:
    """Training images to search, and whether each image of the study has a near-duplicate there, where that is known.

    Of an embedded model these are ordinary scenes and the near-duplicates of the test images; else a folder's images.
    """
    if folder:
        return [datasets.load_dataset(folder)], NOTHING
    config = recipe_of(study)[1]
    if not config.get("overlap") or study.parameters["split"] != "validation":
        return [], NOTHING
    part, ids = datasets.pretraining_part(config, ids_of(test), 0), ids_of(study.images)
    flagged = np.isin(ids, list(datasets.near_duplicates(config).values()))
    return [ordinary, part], pd.DataFrame({"instrument": "known duplicates", "sample_id": ids, "flagged": flagged})


def searched(tools: Sequence[Instrument], test: Dataset, thresholds: Mapping, images: Sequence[Dataset], index=""):
    """The most similar training image of every test image, and whether it is called a duplicate, by instrument.

    Args:
        index: A folder that `write_index` made with the own embedding, in place of images.
    """
    found = [NOTHING]
    for tool in tools[1:2] if index else tools if images else ():
        own = tool.vectors(test)
        chunks = (tool.vectors(part) for each in images for part in in_chunks(each))
        alike, which = nearest(own, read_index(index, tool, own.shape[1]) if index else chunks)
        flagged = (alike > thresholds[tool.name]) | (alike >= SAME)
        columns = {"sample_id": ids_of(test), "alike": alike, "which": which, "flagged": flagged}
        found.append(pd.DataFrame(columns).assign(instrument=tool.name))
    return joined(*found)


def ranked(test: Dataset, images: Sequence[Dataset], found: pd.DataFrame, at: float, number: int = 6):
    """Pairs of an instrument around its threshold, most similar first, for a look by eye: a gallery's arguments."""
    near = found.iloc[(found.alike - at).abs().argsort()[:number]].sort_values("alike", ascending=False)
    samples = [s for part in images for s in part.samples]
    pairs = [(test.image(r.sample_id), samples[r.which].image()) for r in near.itertuples()]
    said = {True: "called a duplicate", False: "below the threshold"}
    return pairs, [f"{r.alike:.4f}\n{said[r.flagged]}" for r in near.itertuples()]


def contamination_found(found: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The share of the searched test images called duplicates, by instrument, and the true one where it is known."""
    every = pd.concat([found, truth[truth.sample_id.isin(found.sample_id)]]) if len(truth) else found
    return scores.estimates(every, "instrument", lambda p: scores.exact_proportion(int(p.flagged.sum()), len(p)))


def in_styles(study: Study, few: Dataset, styles: Sequence[str]) -> pd.DataFrame:
    """Rows of the same scenes in other styles (Tabletop), of which no training image is a copy; else none."""
    if study.images.name != "tabletop":
        return pd.DataFrame()
    scenes, parts = datasets.tabletop_scenes(study.parameters["split"]), []
    for style in styles:
        images = datasets.rendered(style, {i: replace(scenes[i], style=style) for i in ids_of(few)})
        parts.append(study.measure(seen(style), images=images))
    return joined(*parts)


def effects(rows: pd.DataFrame, overlap: pd.DataFrame) -> pd.DataFrame:
    """Overlap, Clean and All of every model, condition and instrument, with p and Bonferroni's for all of them."""
    found = []
    for tool, flags in overlap.groupby("instrument", sort=False):
        flagged = flags.set_index("sample_id").flagged
        known = rows[rows.sample_id.isin(flagged.index)]
        for (model, condition), part in known.groupby(["model", "condition"], sort=False):
            each, p = scores.overlap_effect(scores.correct(part), flagged.loc[part.sample_id].to_numpy(bool))
            key = {"instrument": tool, "model": model, "condition": condition, "p": p}
            found += [{**key, "quantity": q, **asdict(e)} for q, e in each.items()]
    if not found:
        return pd.DataFrame()
    table = pd.DataFrame(found)
    tests = table[table.quantity == "change"].p.notna().sum()
    return table.assign(p_bonferroni=(table.p * tests).clip(upper=1))


def effects_in_words(table: pd.DataFrame) -> str:
    """How many of the tests find a gain by duplicates after Bonferroni, and how many could not."""
    tests = table[table.quantity == "change"]
    gains, none = tests[tests.p_bonferroni < 0.05], tests.p.isna().sum()
    where = [f"{r.condition.replace('_', ' ')} images by {r.instrument} ({r.model})" for r in gains.itertuples()]
    said = f"{len(gains)} of {len(tests) - none} tests find Overlap easier than Clean after Bonferroni's correction"
    said += f": {', '.join(where)}" if where else ""
    return said + (f"; {none} more cannot, with Clean at 100 % or an empty part" if none else "") + "."


def helped(rows: pd.DataFrame, truth: pd.DataFrame, study: Study) -> pd.DataFrame:
    """What the model with duplicates gains on the first other one on these scenes, less what it gains on the rest.

    Returns: By condition, of accuracy, margin and confidence, with Holm's p and the verdict; nothing where no
        duplicates are known. The intervals are those of two random groups of scenes (Welch).
    """
    if truth.empty or len(study.nets) < 2:
        return pd.DataFrame()
    twin, _ = recipe_of(study)
    base = next(name for name in study.nets if name != twin)
    flagged, found = truth.set_index("sample_id").flagged, []
    for condition, part in rows.assign(right=scores.correct(rows)).groupby("condition", sort=False):
        for quantity, spread in {"right": "fraction", "margin": "logits", "confidence": "fraction"}.items():
            wide = part.pivot_table(index="sample_id", columns="model", values=quantity)
            gain, own = wide[twin] - wide[base], flagged.loc[wide.index].to_numpy(bool)
            test = stats.ttest_ind(gain[own], gain[~own], equal_var=False)
            bounds = map(float, test.confidence_interval())
            value = Estimate(gain[own].mean() - gain[~own].mean(), *bounds, "welch 95 %", len(gain), spread)
            found.append({"condition": condition, "quantity": quantity, **asdict(value), "p": float(test.pvalue)})
    return scores.corrected(pd.DataFrame(found))


def helped_in_words(table: pd.DataFrame) -> str:
    """Where duplicates help, where they harm, and how often that is not decided."""
    names = table.quantity.replace("right", "accuracy") + " (" + table.condition + ")"
    words = {"more": "duplicates raise", "less": "duplicates lower"}
    left = f"{(table.verdict == 'undecided').sum()} of {len(table)} comparisons are not decided"
    said = scores.by_verdict(table.assign(names=names), "names", words)
    return f"In this pair of runs, {'; '.join(filter(None, [said, left]))}."


def power(rows: pd.DataFrame, duplicates: Sequence[int]) -> pd.DataFrame:
    """The least gain on duplicates, in points, that the test would notice in four of five cases, by their number."""
    rates = rows.groupby("condition", sort=False).apply(lambda r: scores.correct(r).mean(), include_groups=False)
    found = [(name, n, 100 * scores.detectable_gain(n, a)) for name, a in rates.items() for n in duplicates]
    table = pd.DataFrame(found, columns=["images", "duplicates", "value"]).dropna()
    return table.assign(low=table.value, high=table.value)


def power_in_words(table: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The least gain noticed with a hundred duplicates, and where none could be."""
    said = [f"{r.value:.0f} points on {r.images} images" for r in table[table.duplicates == 100].itertuples()]
    blind = [c for c in rows.condition.unique() if c not in set(table.images)]
    words = [f"the least gain noticed is {', '.join(said)}"] if said else []
    words += [f"no gain can be noticed on {', '.join(blind)} images"] if blind else []
    return f"With a hundred duplicates {' and '.join(words)}.".replace("_", " ")


def cost(width: int, *, training: int, test: int) -> str:
    """Time and memory of a search among random vectors, measured small and scaled to a million by a thousand."""
    rng = np.random.default_rng(0)
    own, chunk = (unit(rng.standard_normal((n, width), dtype=np.float32)) for n in (test, CHUNK))
    chunks, start = -(-training // CHUNK), perf_counter()
    nearest(own, (chunk for _ in range(chunks)))
    seconds = perf_counter() - start
    minutes = seconds / 60 * 1e6 / (chunks * CHUNK) * 1000 / test
    size, held = f"{chunks * CHUNK:,} by {test:,} vectors of {width} numbers", (chunk.nbytes + own.nbytes) / 1e6
    return (
        f"{size} took {seconds:.1f} s here, so a million by a thousand would take about {minutes:.1f} minutes, with "
        f"{held:.0f} MB of vectors in memory at a time and an index of {2 * width:,} MB on disk; embedding the images "
        f"takes far longer, and is done once."
    )


def in_short(study: Study, recall: pd.DataFrame, effects: pd.DataFrame, gained: pd.DataFrame) -> str:
    """The chapter in a sentence: what is found, what Overlap against Clean says, and whether duplicates help."""
    own = recall[(recall.instrument == "own embedding") & ~recall.kind.isin(["none", "caption only"])]
    said = f"the embedding of {study.name} finds at least {own.value.min():.0%} of the twins of each visible kind. "
    tested = effects_in_words(effects) + " " if len(effects) else ""
    return said + tested + (helped_in_words(gained) if len(gained) else "")


def open_pairs() -> pd.DataFrame:
    """Open models of one architecture, trained on DataComp, which had duplicates of test sets removed, and on LAION.

    Returns: The difference of published accuracies, DataComp less LAION, on ImageNet and its relatives.
    """
    table = datasets.published("openclip")
    sets = [c for c in table.columns if c.startswith("imagenet") or c == "objectnet"]
    best = table.sort_values("imagenet").groupby(["model", "source"]).last()[sets]
    return (best.xs("DataComp", level="source") - best.xs("LAION", level="source")).dropna(how="all").reset_index()
