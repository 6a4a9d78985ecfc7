"""Jacobian spectra against `torch.func.jacrev` and `svdvals`: `python benchmarks/bench_jacobian.py`.

Both are timed in alternating rounds, so that a busy machine slows both; memory is measured in a fresh
process each, over what the loaded model holds after one pass forward and back.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import torch

import zsr_utils
from zsr_utils import jacobian


CASES = {"tabletop-base": (1, 16), "ViT-B-32": (1,)}  # images; ViT-B-32 has random weights
CHUNKS = {"tabletop-base": None, "ViT-B-32": 32}  # all 512 rows of ViT-B-32 at once do not fit a small machine


def ours(net, pixels):
    return jacobian.spectra(net, pixels).values


def naive(net, pixels):
    def one(image):
        return net.encode_image(image[None])[0]

    rows = (torch.func.jacrev(one, chunk_size=CHUNKS[net.name])(image).flatten(1) for image in pixels)
    return torch.stack([torch.linalg.svdvals(whole).double() for whole in rows])


METHODS = {"ours": ours, "naive": naive}


def images(net, n: int):
    return torch.rand(n, 3, net.image_size, net.image_size, generator=torch.Generator().manual_seed(0))


def compare(name: str, n: int, rounds: int) -> dict:
    net = zsr_utils.load_model(name)
    pixels, seconds, found = images(net, n), {"ours": [], "naive": []}, {}
    for number in range(rounds):
        for method in sorted(METHODS, reverse=bool(number % 2)):
            start = time.perf_counter()
            found[method] = METHODS[method](net, pixels)
            seconds[method].append(time.perf_counter() - start)
    median = {method: statistics.median(values) for method, values in seconds.items()}
    error = ((found["ours"] - found["naive"]).abs().amax(1) / found["naive"][:, 0]).max()
    return {
        "model": name,
        "images": n,
        "rounds": rounds,
        "ours_s": median["ours"],
        "naive_s": median["naive"],
        "speedup": statistics.median(b / a for a, b in zip(seconds["ours"], seconds["naive"])),
        "slowest_round": min(b / a for a, b in zip(seconds["ours"], seconds["naive"])),
        "ours_mb": memory("ours", name, n),
        "naive_mb": memory("naive", name, n),
        "difference": float(error),  # by the largest singular value
    }


def memory(method: str, name: str, n: int) -> float:
    command = [sys.executable, __file__, "--measure", method, name, str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(method: str, name: str, n: int) -> float:
    """Growth of the peak resident set during one call, in MiB (Linux only).

    Loading the model leaves a peak behind that would hide part of the growth; Linux forgets it on request.
    """
    net = zsr_utils.load_model(name)
    pixels = images(net, n)
    one = pixels[:1].clone().requires_grad_(True)
    torch.autograd.grad(net.encode_image(one).sum(), one)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    METHODS[method](net, pixels)
    return peak() - before


def peak() -> float:
    """Peak resident set in MiB; not `ru_maxrss`, which a child inherits from the process that started it."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=3, metavar=("METHOD", "MODEL", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="There is a performance drop")  # of vmap, in the naive method
    if options.measure:
        method, name, n = options.measure
        return print(measure(method, name, int(n)))
    rows = [compare(name, n, options.rounds) for name in options.models for n in CASES[name]]
    print(f"{torch.get_num_threads()} threads, medians of {options.rounds} alternating rounds")
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
