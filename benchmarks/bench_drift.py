"""Drift against a loop over images and views: `python benchmarks/bench_drift.py` prints the table.

The loop is what one writes first: perturb, preprocess, one pass for the embedding, a second one for the
tokens, picture by picture, with the same numbers from the same functions. Their rows are compared before
anything is timed. Rounds alternate which goes first, and a ratio is taken within a round, so that a slow
minute of the machine falls on both.
"""

import argparse
import os
import statistics
import tempfile
import time

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

import zsr_utils as zsr
from zsr_utils import scores
from zsr_utils.conditions import Head, families
from zsr_utils.conditions._families import other_classes
from zsr_utils.experiments import representation_drift as drift
from zsr_utils.measure import measure


MODELS = ("tabletop-base", "ViT-B-32")  # ViT-B-32 has random weights
TOLERANCE = 2e-5  # absolute or relative: batches of one and of many differ in float32 rounding


def ours(net, images, head) -> pd.DataFrame:
    """Rows made anew: a cache of their own that is empty."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZSR_CACHE"] = folder
        return measure(net, images, head, drift.views(detail="tokens"), detail="tokens")


@torch.no_grad()
def naive(net, images, head) -> pd.DataFrame:
    rows = []
    for sample_id, picture, label in images:
        before = look(net, picture, head.weights)
        base = int(before["logits"].argmax())
        words = other_classes(sample_id, base, len(images.class_names), 0)
        for perturbation in families():
            view = perturbation(picture, sample_id=sample_id, words=[images.class_names[w] for w in words])
            after = look(net, view.image, head.weights)
            written = words[perturbation.number] if perturbation.family.startswith("text") else -1
            row = {
                "sample_id": sample_id,
                "family": perturbation.family,
                "instance": perturbation.instance,
                "label": label,
                "word_label": written,
                "clean_prediction": base,
                "prediction": int(after["logits"].argmax()),
                "clean_margin": margin(after["logits"], base),
                "margin": margin(after["logits"], label),
                "confidence": float(after["logits"].softmax(0).max()),
                "drift": 1 - float(F.cosine_similarity(before["features"], after["features"], dim=0)),
            }
            rows.append(row | tokens(net, before, after, view, perturbation))
    return pd.DataFrame(rows)


def look(net, picture, classifier) -> dict:
    pixels = net.from_pil(picture).unsqueeze(0)
    features = net.encode_image(pixels)
    grid = net.encode_tokens(pixels)
    logits = net.logits_of(features, classifier)
    return {"pixels": pixels, "features": features[0].double(), "logits": logits[0].double(), "grid": grid.numpy()}


def margin(logits, base: int) -> float:
    others = torch.cat([logits[:base], logits[base + 1 :]])
    return float(logits[base] - others.max())


def tokens(net, before, after, view, perturbation) -> dict:
    row = {}
    for name, seen, mask in (("clean_energy", before, view.kept), ("energy", after, view.content)):
        grid = seen["grid"]
        pixels = net.from_pil(mask.convert("RGB"))[None, :1]
        keep = F.adaptive_avg_pool2d(pixels, grid.shape[1:3])[:, 0].numpy() > drift.WHOLE
        row[name] = scores.dirichlet_energy(grid)[0]
        row[f"{name}_normalised"] = row[name] / scores.mean_square_norm(grid)[0]
        row[f"{name}_content"] = scores.dirichlet_energy(grid, keep)[0]
    shares = coherence = np.full((1, drift.BANDS), np.nan)
    if perturbation.keeps_size:
        shares, coherence = scores.change_spectrum(before["grid"], after["grid"], drift.BANDS)
    for k in range(drift.BANDS):
        row |= {f"share_{k + 1}": shares[0, k], f"coherence_{k + 1}": coherence[0, k]}
    names = drift.POWER_BANDS
    _, power = scores.power_change(before["pixels"].numpy(), after["pixels"].numpy(), len(names))
    return row | {f"power_{name}": power[0, k] for k, name in enumerate(names)}


METHODS = {"ours": ours, "naive": naive}


def difference(a: pd.DataFrame, b: pd.DataFrame) -> float:
    """The largest difference of two sets of rows; other ids, answers or missing values raise."""
    order = ["sample_id", "family", "instance"]
    a, b = (rows.sort_values(order).reset_index(drop=True) for rows in (a, b))
    exact = [*order, "label", "word_label", "clean_prediction", "prediction"]
    pd.testing.assert_frame_equal(a[exact], b[exact], check_dtype=False)
    pd.testing.assert_frame_equal(a[b.columns], b, check_dtype=False, check_like=True, rtol=TOLERANCE, atol=TOLERANCE)
    rest = b.columns.difference(exact)
    return float(((a[rest] - b[rest]).abs() / (1 + b[rest].abs())).max().max())


def compare(name: str, n: int, rounds: int) -> dict:
    net = zsr.load_model(name)
    images = zsr.load_dataset("tabletop", limit=n)
    given = net, images, Head(net.classifier(images.class_names, images.templates), images.class_names)
    error = difference(ours(*given), naive(*given))
    seconds = {"ours": [], "naive": []}
    for number in range(rounds):
        for method in sorted(METHODS, reverse=bool(number % 2)):
            start = time.perf_counter()
            METHODS[method](*given)
            seconds[method].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["naive"])]
    return {
        "model": name,
        "images": len(images),
        "views": len(images) * len(families()),
        "rounds": rounds,
        "ours_s": statistics.median(seconds["ours"]),
        "naive_s": statistics.median(seconds["naive"]),
        "speedup": statistics.median(ratios),
        "slowest_round": min(ratios),
        "fastest_round": max(ratios),
        "difference": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tabletop-base"], choices=MODELS)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = [compare(name, options.images, options.rounds) for name in options.models]
    print(f"{torch.get_num_threads()} threads, medians of {options.rounds} alternating rounds")
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
