"""Throughput of encoding, alignment and whole chapters on one device: `python benchmarks/gpu.py`, as Markdown.

Every model is timed in every precision, in alternating rounds of the same images, and compared with what the
device reaches in that precision on one large square matrix product. Pixels lie on the device when encoding is
timed; reading photographs is timed by `bench_encoding.py`, and with all the rest by `--chapters`. Weights are
random where a model is named without a tag, which changes no time.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_alignment import rounds
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zsr_utils as zsr
from zsr_utils.conditions import alignment
from zsr_utils.models import resolve_device


ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ("01-zero-shot-baseline", "02-embedding-alignment", "03-jacobian-spectra", "04-noise-detection",
            "05-representation-drift")  # fmt: skip
VARIANTS = {
    "fp32": {},
    "tf32": {"precision": "tf32"},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "fp32, channels last": {"channels_last": True},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
    "fp32, compiled": {"compile": True},
    "bf16, compiled": {"precision": "bf16", "compile": True},
}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COLUMNS = ["model", "variant", "GFLOP an image", "images/s", "share of ceiling", "peak GiB"]
COLUMNS += ["alignment, images · steps/s", "share of ceiling", "peak GiB"]
STEPS = 10  # of alignment; a bound that no pair reaches keeps all of them in the batch
UNREACHABLE = {"cosine": 0.999999, "distance": 1e-20}
GIB = 2**30


def load(address: str, device: torch.device, variants: list[str]) -> dict:
    """The same weights, also random ones, in every variant; `address` is `name` or `name@tag`."""
    nets = {}
    for variant in variants:
        torch.manual_seed(0)
        options = dict(VARIANTS[variant])
        channels_last, compiled = (options.pop(name, False) for name in ("channels_last", "compile"))
        net = nets[variant] = zsr.load_model(*address.split("@"), device=str(device), **options)
        if channels_last:
            net.net.to(memory_format=torch.channels_last)
        if compiled:
            net.net.encode_image = torch.compile(net.net.encode_image)
    return nets


def set_products(precision: str) -> None:
    """`load_model` chooses fp32 or tf32 for the whole process; here the variants alternate."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encoder(net, pixels, batch_size: int):
    """A call that encodes all pixels, waits for the device and returns the features."""

    @torch.no_grad()
    def call():
        set_products(net.precision)
        found = torch.cat([net.encode_image(part) for part in pixels.split(batch_size)])
        wait(net.device)
        return found

    return call


def aligner(net, pixels, batch_size: int):
    """A call that takes `STEPS` alignment steps towards the embedding of the next image."""
    sources = pixels.cpu()
    targets = encoder(net, pixels, batch_size)().roll(1, 0).cpu()
    goal = alignment.Match(targets, **UNREACHABLE)

    def call():
        set_products(net.precision)
        found = alignment.align(net, sources, goal, alignment.Settings(max_steps=STEPS), batch_size=batch_size)
        wait(net.device)
        assert int(found.steps.sum()) == STEPS * len(sources)

    return call


def ceiling(precision: str, device: torch.device, n: int) -> float:
    """Operations a second of one large square product: the fastest of n, in the faster of two memory layouts."""
    side = 8192 if device.type == "cuda" else 1024
    set_products(precision)
    a = torch.rand(side, side, device=device).to(DTYPES[precision])
    seconds = []
    for b in (a, a.T):  # the second is that of a network's layers
        for _ in range(n + 3):
            wait(device)
            began = time.perf_counter()
            torch.mm(a, b)
            wait(device)
            seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


def operations(net) -> int:
    """Multiplications and additions of one image's forward pass, counted in plain products."""
    pixels = torch.rand(1, 3, net.image_size, net.image_size, device=net.device)
    # with a gradient asked for, and without fused attention, nothing hides in a kernel the counter does not know
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net.encode_image(pixels.requires_grad_(True))
    return counter.get_total_flops()


def peak(net, call) -> float:
    """GiB of GPU memory at the height of a call: the network's own weights and what the call adds."""
    if net.device.type != "cuda":
        return float("nan")
    call()
    torch.cuda.reset_peak_memory_stats(net.device)
    before = torch.cuda.memory_allocated(net.device)
    call()
    grown = torch.cuda.max_memory_allocated(net.device) - before
    return (grown + sum(t.nbytes for t in net.state_dict().values())) / GIB


def throughput(address: str, device: torch.device, options, ceilings: dict[str, float]) -> list[list[str]]:
    """One row a variant: images a second, alignment steps a second, shares of the ceiling, peak memory."""
    nets = load(address, device, options.variants)
    size = next(iter(nets.values())).image_size
    pixels = torch.rand(options.images, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    torch.manual_seed(0)
    work = operations(zsr.load_model(*address.split("@"), device=str(device)))
    calls = {variant: encoder(net, pixels, options.batch_size) for variant, net in nets.items()}
    encoding = rounds(calls, options.rounds)
    steps, refused = {}, {}
    for variant, net in nets.items():
        try:
            call = aligner(net, pixels, options.batch_size)
            call()
            steps[variant] = call
        except FloatingPointError:
            refused[variant] = "gradient not finite"
    stepping = rounds(steps, options.rounds)
    rows = []
    for variant, net in nets.items():
        rates = [len(pixels) / s for s in encoding[variant]]
        row = [address, variant, f"{work / 1e9:.1f}", spread(rates)]
        row += [share(work * statistics.median(rates), ceilings[net.precision]), memory(peak(net, calls[variant]))]
        if variant in refused:
            rows.append([*row, refused[variant], "–", "–"])
            continue
        rates = [STEPS * len(pixels) / s for s in stepping[variant]]
        row += [spread(rates), share(2 * work * statistics.median(rates), ceilings[net.precision])]
        rows.append([*row, memory(peak(net, steps[variant]))])
    return rows


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}, {max(values):,.0f}]"


def share(rate: float, most: float) -> str:
    return f"{rate / most:.0%}"


def memory(gib: float) -> str:
    return "–" if gib != gib else f"{gib:.1f}"


def chapters(folder: Path, address: str, others: list[str], device: torch.device, limit: int) -> list[list[str]]:
    """Wall time of each chapter on a folder of photographs, in order, from an empty cache."""
    name, _, tag = address.partition("@")
    settings = {"dataset": str(folder), "model": name, "pretrained": tag, "device": str(device), "limit": limit}
    given = [word for key, value in settings.items() for word in ("-p", key, f"{value!r}")]
    given += ["-p", "models", repr(others)]
    rows = []
    with tempfile.TemporaryDirectory() as work:
        environment = os.environ | {"ZSR_CACHE": f"{work}/cache", "ZSR_RESULTS": f"{work}/results"}
        for chapter in CHAPTERS:
            profile = [word for stem in ("common", chapter) for word in ("-f", f"profiles/imagenette/{stem}.yaml")]
            command = [sys.executable, "-m", "zsr_utils.run", f"notebooks/{chapter}.ipynb", "--no-progress", *profile]
            began = time.perf_counter()
            done = subprocess.run([*command, *given], cwd=ROOT, env=environment, capture_output=True, text=True)
            seconds = time.perf_counter() - began
            failure = done.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
            rows.append([chapter, f"{seconds:,.0f} s" if not done.returncode else f"failed: {failure[0]}"])
    return rows


def machine(device: torch.device) -> list[list[str]]:
    """What the numbers depend on beside the code."""
    rows = [["processor", f"{processor()}, {os.cpu_count()} cores"]]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", str(device.index or 0)]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip() or "unknown"
        rows += [
            ["device", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"],
            ["driver", driver],
            ["CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}"],
        ]
    versions = {p: importlib.metadata.version(p) for p in ("torch", "open_clip_torch", "timm", "numpy")}
    return [*rows, ["Python", platform.python_version()], *([k, v] for k, v in versions.items())]


def processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-L-14"], help="each `name` or `name@tag`")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chapters", type=Path, metavar="FOLDER", help="photographs, a sub-folder a class")
    parser.add_argument("--limit", type=int, default=1000, help="photographs for the chapters; 0 is all")
    parser.add_argument("--out", type=Path, help="a file for the Markdown, which is printed in any case")
    options = parser.parse_args()
    try:
        device = resolve_device(options.device)
    except ValueError as error:
        sys.exit(str(error))
    os.environ["ZSR_PROGRESS"] = "0"
    zsr.seed_everything(0)
    precisions = dict.fromkeys(VARIANTS[v].get("precision", "fp32") for v in options.variants)
    ceilings = {p: ceiling(p, device, options.rounds) for p in precisions}
    parts = [
        table(["what", "which"], machine(device)),
        table(["precision", "ceiling, TFLOP/s"], [[p, f"{v / 1e12:.3g}"] for p, v in ceilings.items()]),
        f"{options.images} images in batches of {options.batch_size}, {STEPS} alignment steps, medians of "
        f"{options.rounds} rounds and their range.",
        table(COLUMNS, [row for address in options.models for row in throughput(address, device, options, ceilings)]),
    ]
    if options.chapters:
        first, *others = options.models
        parts += [
            f"Chapters with {first} on {options.limit or 'all'} photographs, from an empty cache.",
            table(["chapter", "wall time"], chapters(options.chapters.resolve(), first, others, device, options.limit)),
        ]
    page = "\n\n".join(parts) + "\n"
    print(page)
    if options.out:
        options.out.write_text(page)


if __name__ == "__main__":
    main()
