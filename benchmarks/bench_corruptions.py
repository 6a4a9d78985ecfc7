"""Images a second that each corruption of ImageNet-C makes on one core: `python benchmarks/bench_corruptions.py`."""

import argparse
import statistics
import time

import torch

from zsr_utils.conditions import Batch, Seen, corruptions


def speeds(size: int, images: int, rounds: int) -> dict[str, float]:
    """Images a second at severity 3, the median over rounds in which all corruptions take turns."""
    pixels = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    seen = Seen(pixels, torch.zeros(images, 1), torch.zeros(images, 2))
    batch = Batch(None, None, [str(k) for k in range(images)], torch.zeros(images, dtype=torch.long), seen)
    found = {condition.name: [] for condition in corruptions(severities=[3])}
    for _ in range(rounds):
        for condition in corruptions(severities=[3]):
            began = time.perf_counter()
            condition.change(batch)
            found[condition.name].append(images / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = speeds(options.size, options.images, options.rounds)
    for name, speed in sorted(found.items(), key=lambda pair: pair[1]):
        print(f"{name:20s}{speed:9.0f}")
    # of one pass over all fifteen, which is what a data set costs
    print(f"{'all, per condition':20s}{len(found) / sum(1 / s for s in found.values()):9.0f}")
