"""Attacks against their peers, paired: same images, radius and steps; `python benchmarks/bench_attacks.py` prints it.

`success` compares who breaks how many images, `step` the time of ten steps with bare forward and input-gradient passes,
`auto` the time to the success of torchattacks' AutoAttack. SqueezeNet takes part where its weight file and a folder of
ImageNet photographs, one a class in the order of the classes, are given.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from bench_alignment import Logits, report, rounds
from torch.nn import functional as F

import zsr_utils as zsr
from zsr_utils.conditions import Batch, Fooled, Head, alignment, attack
from zsr_utils.conditions._attacks import ATTACKS
from zsr_utils.models._supervised import imagenet_names


STEPS = 10


def tabletop(name: str, n: int) -> Batch:
    net, images = zsr.load_model(name), zsr.load_dataset("tabletop", limit=n)
    head = Head(net.classifier(images.class_names, zsr.prompts.prompt_set("plain prompt")), images.class_names)
    ids, labels = [s.sample_id for s in images.samples], torch.tensor([s.label for s in images.samples])
    return seen(net, head, ids, images.pixels(ids, net.from_pil), labels)


def squeezenet(weights: str, photographs: str, n: int) -> Batch:
    from PIL import Image

    file = Path(shutil.copy(weights, tempfile.mkdtemp()))
    trained = {"image_size": 227, "resize": 256, "mean": [c / 255 for c in (123, 117, 104)], "std": [1 / 255] * 3}
    file.with_suffix(".json").write_text(json.dumps(trained))
    net = zsr.load_model("supervised:squeezenet1_0", str(file))
    names = tuple(name for (name,) in imagenet_names(1000)[1])
    files = sorted(Path(photographs).iterdir())
    rows = torch.arange(0, len(files), max(1, len(files) // n))[:n]
    pixels = torch.stack([net.from_pil(Image.open(files[row]).convert("RGB")) for row in rows])
    return seen(net, Head(net.classifier(names), names), [files[row].name for row in rows], pixels, rows)


def seen(net, head, ids, pixels, labels) -> Batch:
    """The images that the model names rightly: only they can be broken."""
    right = (head.see(net, pixels).predictions == labels).nonzero()[:, 0]
    pixels, labels = pixels[right], labels[right]
    return Batch(net, head, [ids[row] for row in right.tolist()], labels, head.see(net, pixels))


def success(title: str, batch: Batch, eps: float) -> None:
    """Share of images that each attack breaks inside the ball, and its seconds; the median change where it is one."""
    import foolbox
    import torchattacks

    logits = Logits(batch.net, batch.head.weights).eval()
    model = foolbox.PyTorchModel(logits, bounds=(0, 1), device=batch.net.device)

    def library(made):
        return torch.cat([made(x, y) for x, y in zip(batch.pixels.split(64), batch.labels.split(64))])

    def fool(made):
        return library(lambda x, y: made(model, x, y, epsilons=None if "DeepFool" in repr(made) else eps)[1])

    step = {"rel_stepsize": 0.25, "steps": STEPS}
    contestants = {
        "ours, PGD": lambda: attack("pgd", eps, steps=STEPS).change(batch),
        "torchattacks PGD": lambda: library(torchattacks.PGD(logits, eps=eps, alpha=eps / 4, steps=STEPS)),
        "foolbox LinfPGD": lambda: fool(foolbox.attacks.LinfPGD(**step)),
        "ours, APGD": lambda: attack("apgd_ce", eps, steps=2 * STEPS).change(batch),
        "torchattacks APGD": lambda: library(torchattacks.APGD(logits, eps=eps, steps=2 * STEPS)),
        "ours, DeepFool": lambda: attack("deepfool", 1.0).change(batch),
        "foolbox LinfDeepFool": lambda: fool(foolbox.attacks.LinfDeepFoolAttack(steps=50, candidates=10)),
    }
    print(f"\n{title}: {len(batch)} images, radius {255 * eps:g} grey levels, PGD {STEPS} steps, APGD {2 * STEPS}")
    for name, call in contestants.items():
        began = time.perf_counter()
        pixels = call().detach()
        seconds = time.perf_counter() - began
        wrong = batch.head.see(batch.net, pixels).predictions != batch.labels
        change = 255 * (pixels - batch.pixels).flatten(1).abs().amax(1)
        held = wrong & (change <= 255 * eps + 1e-3)
        print(
            f"{name:22s} breaks {int(held.sum())}, {held.float().mean():6.1%} in the ball, {int(wrong.sum())} in all,"
            f" median change {change.median():6.2f}, {seconds:7.1f} s"
        )


def step(batch: Batch, n: int) -> None:
    """Ten steps on at most 64 images that none may leave, the last look counted in."""
    pixels, labels, net = batch.pixels[:64], batch.labels[:64], batch.net
    ids = batch.sample_ids[:64]

    def bare():
        for _ in range(STEPS):
            shown = pixels.clone().requires_grad_(True)
            loss = F.cross_entropy(net.logits(shown, batch.head.weights), labels, reduction="sum")
            torch.autograd.grad(loss, shown)
        with torch.no_grad():
            net.logits(pixels, batch.head.weights)

    def ours(name):
        made = attack(name, 4 / 255, steps=STEPS).change.__self__
        goal = Fooled(net, batch.head, labels, made.kind, leave=False)
        return alignment.align(net, pixels, goal, made.attack, names=ids)

    names = [name for name in ATTACKS if name not in ("fgsm", "deepfool", "square", "nes", "spsa")]
    contestants = {"bare passes": bare} | {f"ours, {name}": lambda name=name: ours(name) for name in names}
    report(f"{STEPS} steps on {len(ids)} images and a look at the result", rounds(contestants, n), "bare passes")


def auto(batch: Batch, eps: float, n: int) -> None:
    """AutoAttack of torchattacks, and our attacks one after the other on what is left, until they break as many."""
    import torchattacks

    logits, pixels, labels = Logits(batch.net, batch.head.weights).eval(), batch.pixels[:n], batch.labels[:n]
    began = time.perf_counter()
    found = torchattacks.AutoAttack(logits, eps=eps, n_classes=len(batch.head.class_names))(pixels, labels)
    seconds = time.perf_counter() - began
    broken = batch.head.see(batch.net, found).predictions != labels
    print(f"\ntorchattacks AutoAttack: {int(broken.sum())} of {len(labels)} in {seconds:.1f} s")
    left, began = torch.arange(len(labels)), time.perf_counter()
    for name, steps in (("pgd", 10), ("apgd_ce", 50), ("apgd_dlr", 50), ("apgd_ce", 100), ("apgd_dlr", 100)):
        part = Batch(batch.net, batch.head, [batch.sample_ids[row] for row in left.tolist()], labels[left],
                     batch.clean.rows(left))  # fmt: skip
        shown = attack(name, eps, steps=steps).change(part)
        left = left[batch.head.see(batch.net, shown).predictions == part.labels]
        print(f"ours, up to {name} {steps}: {len(labels) - len(left)} in {time.perf_counter() - began:.1f} s")
        if len(labels) - len(left) >= int(broken.sum()):
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["success", "step", "auto"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--auto-images", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--squeezenet", help="its weight file")
    parser.add_argument("--photographs", help="folder of ImageNet photographs, one a class")
    options = parser.parse_args()
    zsr.seed_everything(0)
    base = tabletop("tabletop-base", options.images)
    if "success" in options.parts:
        success("tabletop-base", base, 4 / 255)
        success("tabletop-conv", tabletop("tabletop-conv", options.images), 4 / 255)
        if options.squeezenet and options.photographs:
            few = squeezenet(options.squeezenet, options.photographs, options.images)
            success("SqueezeNet", few, 0.2 / 255)
    if "step" in options.parts:
        step(base, options.rounds)
    if "auto" in options.parts:
        auto(base, 4 / 255, options.auto_images)


if __name__ == "__main__":
    main()
