"""Alignment against its peers, paired: `python benchmarks/bench_alignment.py` prints the table.

Each comparison runs its contestants in turn, round after round, so that a slow minute of the machine
falls on all of them. A ratio is the median over rounds of the ratio within a round.
"""

import argparse
import statistics
import time

import torch

import zsr_utils as zsr
from zsr_utils.conditions import Settings, alignment
from zsr_utils.experiments.pairs import make_pairs
from zsr_utils.measure import embed


EPS = 8 / 255


def rounds(contestants: dict, n: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after one that does not count."""
    seconds = {name: [] for name in contestants}
    for turn in range(n + 1):
        for name, call in contestants.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def report(title: str, seconds: dict[str, list[float]], base: str) -> None:
    print(f"\n{title}\n{'':44s}{'seconds':>9s}{'ratio to ' + base:>32s}")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[base])]
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"{name:44s}{statistics.median(values):9.2f}{spread:>32s}")


class Logits(torch.nn.Module):
    """What attack libraries ask for: pixels in, logits out."""

    def __init__(self, net, classifier):
        super().__init__()
        self.net, self.classifier = net, classifier

    def forward(self, pixels):
        return self.net.logits(pixels.clamp(0, 1), self.classifier)


def prepare(per_class: int):
    zsr.seed_everything(0)
    net = zsr.load_model("tabletop-base")
    images = zsr.load_dataset("tabletop")
    embedded = embed(net, images)
    classifier = net.classifier(images.class_names, zsr.prompts.prompt_set("plain prompt"))
    pairs = make_pairs(embedded, per_class=per_class)
    sources = images.pixels(pairs.sample_id, net.from_pil)
    return net, classifier, pairs, sources, embedded.of(pairs.target_id)


def step(net, classifier, sources, targets, n: int) -> None:
    """Ten steps on 64 images with frozen weights, against the bare passes and the attack libraries."""
    import foolbox
    import torchattacks

    sources, targets, labels = sources[:64], targets[:64], torch.arange(min(64, len(sources))) % len(classifier)
    far = alignment.Match(targets, cosine=0.999999, distance=1e-20)
    answer = alignment.Answer(net, classifier, labels)
    logits = Logits(net, classifier).eval()
    model = foolbox.PyTorchModel(logits, bounds=(0, 1), device=net.device)

    def bare(loss):
        for _ in range(10):
            pixels = sources.clone().requires_grad_(True)
            torch.autograd.grad(loss(net.encode_image(pixels)), pixels)

    def library():
        attack = torchattacks.PGD(logits, eps=EPS, alpha=2 / 255, steps=10, random_start=False)
        attack.set_mode_targeted_by_label(quiet=True)
        attack(sources, labels)

    def fool():
        attack = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=10, random_start=False)
        attack(model, sources, foolbox.criteria.TargetedMisclassification(labels), epsilons=EPS)

    every = torch.arange(len(sources))
    report(
        "ten steps on 64 images of 64 px (the last forward pass of ours, which reads the result, counted in)",
        rounds(
            {
                "bare passes, alignment loss": lambda: bare(lambda f: 0.5 * (f - targets).square().sum()),
                "ours, Polyak": lambda: alignment.align(net, sources, far, Settings(max_steps=10)),
                "ours, descent": lambda: alignment.align(
                    net, sources, far, Settings("gradient_descent", 1e-9, max_steps=10)
                ),
                "bare passes, answer loss": lambda: bare(lambda f: answer.loss(f, every).sum()),
                "ours, PGD to the answer, none may leave": lambda: alignment.align(
                    net, sources, answer, Settings("pgd", eps=EPS, max_steps=10), until=far
                ),
                "torchattacks PGD": library,
                "foolbox LinfPGD": fool,
            },
            n,
        ),
        "bare passes, alignment loss",
    )


def budget(net, classifier, pairs, sources, n: int) -> None:
    """Targeted attack of all pairs at 8/255: time to the same systematic accuracy."""
    import torchattacks

    labels = torch.tensor(pairs.target_label.to_numpy())
    own = torch.tensor(pairs.label.to_numpy())
    answer = alignment.Answer(net, classifier, labels)
    logits = Logits(net, classifier).eval()
    results = {}

    def judged(name, pixels):
        with torch.no_grad():
            saved = alignment.saved_as_png(pixels)
            prediction = torch.cat([net.logits(part, classifier).argmax(1) for part in saved.split(64)])
        results[name] = (
            f"systematic {(prediction == own).float().mean():.3f}, hit {(prediction == labels).float().mean():.3f}"
        )

    def ours():
        settings = Settings("pgd", eps=EPS, momentum=0.7, max_steps=20, eight_bit=True)
        found = alignment.align(net, sources, answer, settings)
        judged("ours, at most 20 steps", found.pixels)

    def library(steps):
        attack = torchattacks.PGD(logits, eps=EPS, alpha=2 / 255, steps=steps)
        attack.set_mode_targeted_by_label(quiet=True)
        parts = [attack(s, t) for s, t in zip(sources.split(64), labels.split(64))]
        judged(f"torchattacks targeted PGD, {steps} steps", torch.cat(parts))

    contestants = {"ours, at most 20 steps": ours}
    contestants |= {f"torchattacks targeted PGD, {k} steps": lambda k=k: library(k) for k in (10, 20, 40)}
    seconds = rounds(contestants, n)
    report(f"{len(pairs)} pairs at 8/255, scored as 8-bit files", seconds, "ours, at most 20 steps")
    for name, result in results.items():
        print(f"{name:44s}{result}")


def whole(net, pairs, sources, targets, n: int, tuned: float, authors_cap: int) -> None:
    """The same stop rule on the same pairs: batched Polyak steps against the authors' loop, one pair at a time."""
    reached = {}

    def ours(momentum=0.0, rows=slice(None)):
        return alignment.align(net, sources[rows], alignment.Match(targets[rows]), Settings(momentum=momentum))

    def record(name, found):
        reached[name] = (
            f"reached {found.reached.float().mean():.2f}, steps median {found.steps.float().median():.0f}, "
            f"RMS {255 * (found.pixels - sources[: len(found.pixels)]).flatten(1).square().mean(1).sqrt().median():.1f}"
        )

    def loop(length, cap=2000):
        parts = [
            alignment.align(
                net, sources[i : i + 1], alignment.Match(targets[i : i + 1]),
                Settings("gradient_descent", length, max_steps=cap),
            )
            for i in range(len(sources))
        ]  # fmt: skip
        return alignment.Aligned(*(torch.cat([getattr(p, k) for p in parts]) for k in ("pixels", "steps", "reached")))

    contestants = {
        "ours, Polyak": lambda: record("ours, Polyak", ours()),
        "ours, Polyak with momentum 0.3": lambda: record("ours, Polyak with momentum 0.3", ours(0.3)),
        "authors' loop, tuned step": lambda: record("authors' loop, tuned step", loop(tuned)),
    }
    report(f"{len(sources)} pairs to the same stop rule", rounds(contestants, n), "ours, Polyak")
    # eta of their code is on the mean squared error of normalised pixels
    step = 2 * 0.09 / targets.shape[1] * float(net.std.mean()) ** 2
    for name, length in (("authors' eta 0.09", step), ("authors' eta 5", step * 5 / 0.09)):
        settings = Settings("gradient_descent", length, max_steps=authors_cap)
        few = alignment.align(net, sources[:9], alignment.Match(targets[:9]), settings)
        record(f"{name}, nine pairs, cap {authors_cap}", few)
    for name, result in reached.items():
        print(f"{name:44s}{result}")


def grid(net, sources, targets) -> None:
    """Fixed steps of gradient descent: which reaches the stop rule soonest."""
    print("\nsteps to the stop rule by fixed step length, cap 300")
    for length in (0.02, 0.04, 0.08, 0.16, 0.32, 0.64):
        settings = Settings("gradient_descent", length, max_steps=300)
        found = alignment.align(net, sources, alignment.Match(targets), settings)
        rms = 255 * (found.pixels - sources).flatten(1).square().mean(1).sqrt().median()
        steps = found.steps.float()
        print(
            f"{length:6.2f}: reached {found.reached.float().mean():.2f}, median {steps.median():.0f}, "
            f"mean {steps.mean():.1f}, RMS {rms:.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["step", "budget", "whole", "grid", "all"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=10, help="source images a class")
    options = parser.parse_args()
    torch.set_num_threads(2)
    net, classifier, pairs, sources, targets = prepare(options.per_class)
    few = pairs.groupby(["label", "target_label"]).sample(1, random_state=0).index
    if "step" in options.parts:
        step(net, classifier, sources, targets, options.rounds)
    if "grid" in options.parts:
        grid(net, sources[few], targets[few])
    if "whole" in options.parts:
        whole(net, pairs, sources[few][:18], targets[few][:18], min(3, options.rounds), tuned=0.16, authors_cap=1000)
    if "budget" in options.parts:
        budget(net, classifier, pairs.loc[few].reset_index(drop=True), sources[few], min(3, options.rounds))
    if "all" in options.parts:
        began = time.perf_counter()
        found = alignment.align(net, sources, alignment.Match(targets), Settings(momentum=0.3))
        print(
            f"\nall {len(pairs)} pairs, Polyak with momentum 0.3: {time.perf_counter() - began:.1f} s, "
            f"reached {found.reached.float().mean():.3f}, {int(found.steps.sum())} steps"
        )


if __name__ == "__main__":
    main()
