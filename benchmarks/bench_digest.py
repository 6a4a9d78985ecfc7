"""What it costs to know a data set by its bytes: `python benchmarks/bench_digest.py`.

Small JPEG files in ten folders are listed, digested and decoded as the first chapter does it, from an empty cache; then
listed and digested once more, as every further chapter does. The digest is wanted at 5 % of the rest or less.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from zsr_utils.datasets import load_dataset
from zsr_utils.models import load_model


def files(folder: Path, number: int, side: int) -> None:
    """Pictures that all differ: smooth noise, as photographs are smooth."""
    generator = np.random.default_rng(0)
    for k in range(number):
        place = folder / f"class {chr(97 + k % 10) * 3}"
        place.mkdir(parents=True, exist_ok=True)
        squares = generator.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((side, side), Image.Resampling.BICUBIC).save(place / f"{k:06d}.jpg", quality=90)


def once(folder: Path, net) -> tuple[float, float, float, float]:
    """Seconds to list, digest and decode from an empty cache, and to digest again."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["ZSR_CACHE"] = place
        steps = [time.perf_counter()]
        images = load_dataset(str(folder))
        steps.append(time.perf_counter())
        first = images.fingerprint
        steps.append(time.perf_counter())
        for _ in images.batches(net.from_pil, workers=0):
            pass
        steps.append(time.perf_counter())
        again = load_dataset(str(folder))
        steps.append(time.perf_counter())
        assert again.fingerprint == first
        steps.append(time.perf_counter())
    listed, digested, decoded, _, known = np.diff(steps)
    return listed, digested, decoded, known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=64, help="of a picture, pixels")
    parser.add_argument("--model", default="tabletop-base", help="whose transform decodes for")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    net, shares = load_model(options.model, device="cpu"), []
    with tempfile.TemporaryDirectory() as place:
        files(Path(place), options.files, options.side)
        time.sleep(3)  # younger files are not remembered
        for turn in range(options.rounds):
            listed, digested, decoded, known = once(Path(place), net)
            shares.append(digested / (listed + decoded))
            times = f"listed in {listed:.2f} s, digested in {digested:.2f}, decoded in {decoded:.2f}"
            print(f"round {turn + 1}: {times}: {shares[-1]:.1%}; digested again in {known:.2f} s", flush=True)
    low, middle, high = min(shares), statistics.median(shares), max(shares)
    print(f"{options.files:,} files: the digest adds {middle:.1%} [{low:.1%}, {high:.1%}] (wanted: at most 5 %)")


if __name__ == "__main__":
    main()
