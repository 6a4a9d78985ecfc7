"""From photographs to logits, against CLIP_benchmark: `python benchmarks/bench_encoding.py` prints the tables.

Four parts, each by its name on the command line:

- `first`: a first run over a folder of photographs against CLIP_benchmark's, with the same weights, batch and
  number of decoding processes. Logits are compared before anything is timed.
- `second`: the same folder again: with all kept, as a second chapter meets it, or only the decoded pictures.
- `precision`: encoding alone, in other precisions and memory layouts and compiled, and what they change.
- `memory`: peak memory of a fresh process for 2,000 and for 20,000 photographs, with a small fast model.

Contestants run in turn, round after round, so that a slow minute of the machine falls on all of them. A ratio
is the median over rounds of the ratio within a round, with the smallest and the largest one. Files are in the
page cache for every round that counts, so decoding is timed and the disk is not.
"""

import argparse
import contextlib
import io
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from bench_alignment import rounds
from gpu import VARIANTS, encoder, load
from PIL import Image
from torch.nn import functional as F

import zsr_utils as zsr
from zsr_utils import measure as loop


PARTS = ("first", "second", "precision", "memory")
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "images" / "imagenet-sample"
CLASSES = [f"thing {k:02d}" for k in range(20)]
TEMPLATES = ["a photo of a {}", "a drawing of a {}", "a {} outdoors"]
SMALL = "tabletop-base"  # 64 pixels a side: 20,000 photographs take minutes


def class_folder(folder: Path, source: Path, n: int) -> Path:
    """A folder of class folders with n links to photographs, again and again under new names."""
    files = sorted(source.iterdir()) if source.is_dir() else drawn(folder.with_name("drawn"))
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for k, file in enumerate(islice(cycle(files), n)):
        (folder / CLASSES[k % len(CLASSES)] / f"{k:06d}{file.suffix}").symlink_to(file)
    return folder


def drawn(folder: Path, n: int = 100) -> list[Path]:
    """JPEG files of a photograph's size where there are none: smooth random colours."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for k in range(n):
        small = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{k:03d}.jpg", quality=90)
    return sorted(folder.iterdir())


def empty_cache(work: Path) -> None:
    os.environ["ZSR_CACHE"] = tempfile.mkdtemp(dir=work)


def report(title: str, seconds: dict[str, list[float]], base: str, images: int) -> None:
    """Images a second, and how many times faster than the base."""
    print(f"\n{title}\n{'':52s}{'seconds':>9s}{'images/s':>11s}   times as fast as: {base}")
    for name, values in seconds.items():
        faster = [b / a for a, b in zip(values, seconds[base])]
        spread = f"{statistics.median(faster):,.2f} [{min(faster):,.2f}, {max(faster):,.2f}]"
        median = statistics.median(values)
        print(f"{name:52s}{median:9.3f}{images / median:11.1f}   {spread}")


def peer(net, folder: Path, options):
    """A call of CLIP_benchmark's classification with the network of `net`: logits of all photographs."""
    from clip_benchmark.metrics import zeroshot_classification
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.datasets import ImageFolder

    preprocess = image_transform_v2(PreprocessCfg(**net.preprocessing), is_train=False)
    images = ImageFolder(folder, preprocess)
    classifier = net.classifier(CLASSES, TEMPLATES).T

    def call():
        loader = torch.utils.data.DataLoader(
            images, batch_size=options.batch_size, shuffle=False, num_workers=options.workers
        )
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            return zeroshot_classification.run_classification(net.net, classifier, loader, "cpu", amp=False)[0]

    return call


def first(net, folder: Path, work: Path, options) -> None:
    images = zsr.load_dataset(str(folder))
    classifier = net.classifier(CLASSES, TEMPLATES)

    def ours():
        empty_cache(work)
        embedded = loop.embed(net, images, batch_size=options.batch_size, workers=options.workers)
        return net.logits_of(torch.from_numpy(embedded.features), classifier)

    def unkept():
        os.environ["ZSR_PIXELS"] = "0"
        try:
            return ours()
        finally:
            del os.environ["ZSR_PIXELS"]

    theirs = peer(net, folder, options)
    torch.testing.assert_close((ours() - net.logit_bias) * 100 / net.logit_scale, theirs(), rtol=1e-4, atol=1e-4)
    contestants = {"CLIP_benchmark": theirs, "ours": ours, "ours, no decoded picture kept": unkept}
    title = f"first run: {options.model}, batches of {options.batch_size}, {options.workers} decoding processes"
    report(title, rounds(contestants, options.rounds), "CLIP_benchmark", len(images))


def second(net, folder: Path, work: Path, options) -> None:
    images = zsr.load_dataset(str(folder))
    given = {"batch_size": options.batch_size, "workers": options.workers}
    kept = Path(tempfile.mkdtemp(dir=work))

    def embed():
        return loop.embed(net, images, **given)

    def from_files():
        empty_cache(work)
        return embed()

    def from_cache():
        os.environ["ZSR_CACHE"] = str(kept)
        return embed()

    def pixels():
        return sum(len(ids) for ids, _, _ in images.batches(net.from_pil, **given))

    def decode():
        empty_cache(work)
        return pixels()

    def read():
        os.environ["ZSR_CACHE"] = str(kept)
        return pixels()

    def from_pixels():
        os.environ["ZSR_CACHE"] = str(kept)
        for file in (kept / "embeddings").iterdir():
            file.unlink()
        return embed()

    before = from_cache().features
    decoded = sum(file.stat().st_size for file in (kept / "pixels").rglob("*") if file.is_file())
    assert decoded >= len(images) * 3 * net.image_size**2, "no decoded picture was kept"
    assert (from_pixels().features == before).all() and (from_cache().features == before).all()
    chapters = {
        "first chapter: decode and embed": from_files,
        "embeddings removed, pictures kept: embed again": from_pixels,
        "second chapter, all kept (10 times or more wanted)": from_cache,
    }
    report(f"second run: {options.model}", rounds(chapters, options.rounds), next(iter(chapters)), len(images))
    assert decode() == read() == len(images)
    reading = {"decode and keep": decode, "decoded before: read": read}
    report("pixels alone", rounds(reading, options.rounds), next(iter(reading)), len(images))


def precision(folder: Path, options) -> None:
    """Encoding alone, in every variant asked for."""
    nets = load(options.model, torch.device("cpu"), ["fp32", *(v for v in options.variants if v != "fp32")])
    images = zsr.load_dataset(str(folder), limit=options.batch_size)
    pixels = images.pixels([s.sample_id for s in images.samples], nets["fp32"].from_pil)
    calls = {variant: encoder(net, pixels, options.batch_size) for variant, net in nets.items()}
    exact = calls["fp32"]()
    seconds = rounds(calls, options.rounds)
    report(f"encoding alone: {options.model}, {len(pixels)} images at a time", seconds, "fp32", len(pixels))
    print(f"{'':52s}{'least cosine with fp32':>24s}")
    for variant, call in calls.items():
        print(f"{variant:52s}{F.cosine_similarity(call().double(), exact.double()).min():24.6f}")


def memory(source: Path, work: Path, options) -> None:
    """Peak memory of a fresh process for few and for many photographs, and of its largest decoding process."""
    found = {}
    for n in options.sizes:
        folder = class_folder(work / f"photographs-{n}", source, n)
        command = [sys.executable, __file__, "--measure", str(folder), "--workers", str(options.workers)]
        environment = os.environ | {"ZSR_CACHE": tempfile.mkdtemp(dir=work)}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found[n] = json.loads(done.stdout.splitlines()[-1])
    print(f"\npeak memory in MiB: {SMALL}, {options.workers} decoding processes")
    print(f"{'photographs':>12s}{'process':>12s}{'largest of its own':>20s}")
    for n, (own, children) in found.items():
        print(f"{n:12,d}{own:12.0f}{children:20.0f}")
    (least, _), (most, _) = found[min(found)], found[max(found)]
    print(
        f"{max(found):,} photographs take {most / least:.3f} times the memory of {min(found):,} (at most 1.10 wanted)"
    )


def measure(folder: str, workers: int) -> list[float]:
    """Peak resident sets in MiB, of this process and of the largest one it started.

    The first is not `ru_maxrss`, which a process inherits from the one that started it (Linux only). The
    second is, and so it holds what forked processes share with this one.
    """
    loop.embed(zsr.load_model(SMALL, device="cpu"), zsr.load_dataset(folder), workers=workers)
    own = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    return [own / 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--model", default="ViT-B-32", help="`name`, with random weights, or `name@tag`")
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS, help="a folder of files; drawn if absent")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 20000], help="photographs of the part memory")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    variants = [v for v in VARIANTS if v != "tf32"]  # which is a matter of GPUs
    parser.add_argument("--variants", nargs="+", default=variants, choices=variants, help="of the part precision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["ZSR_PROGRESS"] = "0"
    if options.measure:
        return print(json.dumps(measure(options.measure, options.workers)))
    if wrong := set(options.parts) - set(PARTS):
        parser.error(f"part is {min(wrong)!r}, allowed are {', '.join(PARTS)}.")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        empty_cache(work)
        folder = class_folder(work / "photographs", options.photographs, options.images)
        torch.manual_seed(0)
        if {"first", "second"} & set(options.parts):
            net = zsr.load_model(*options.model.split("@"), device="cpu")
        print(f"{torch.get_num_threads()} threads, medians of {options.rounds} rounds in turn")
        if "first" in options.parts:
            first(net, folder, work, options)
        if "second" in options.parts:
            second(net, folder, work, options)
        if "precision" in options.parts:
            precision(folder, options)
        if "memory" in options.parts:
            memory(options.photographs, work, options)


if __name__ == "__main__":
    main()
