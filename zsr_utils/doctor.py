"""`python -m zsr_utils.doctor MODEL [TAG] DATASET [--published 0.632]`: why a published zero-shot accuracy is missed.

Four differences change an accuracy and raise no error: the variant of an activation, the filter that resizes pictures,
the prompts, and the precision. Each is tried alone, on the same images.
"""

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from itertools import chain

import pandas as pd
from open_clip.transformer import QuickGELU
from torch import nn
from torchvision.transforms import Compose, InterpolationMode, Resize, functional as TF

from zsr_utils import scores
from zsr_utils._cache import digest
from zsr_utils.conditions import ORIGINAL, Head
from zsr_utils.datasets import Dataset, load_dataset, published_accuracy
from zsr_utils.measure import measure
from zsr_utils.models import PRECISIONS, Model, ModelUnavailable, Preprocess, load_model
from zsr_utils.prompts import PROMPT_SETS, TEMPLATES


AS_IT_IS = "as it is"
KINDS = ("prompts", "activation", "resize", "precision")
CHANGE = ("change", "change_low", "change_high", "p_holm", "verdict")
GELU = {"gelu": nn.GELU, "quickgelu": QuickGELU}
FILTERS = (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR)


class Aliased(Resize):
    """A resize that skips pixels where it makes a picture smaller, as `interpolate` of PyTorch does by default."""

    def forward(self, img):
        pixels = TF.pil_to_tensor(img.convert("RGB"))
        return TF.to_pil_image(TF.resize(pixels, self.size, self.interpolation, antialias=False))


def changed(net: Model, name: str) -> Model:
    """A copy of a handle, to be changed, that no cache takes for the handle."""
    other = copy.deepcopy(net)
    other.fingerprint = digest(net.fingerprint, name)
    return other


def variants(net: Model) -> Iterator[tuple[str, Model]]:
    """The handle with one difference each, as far as it has what is to be changed; one copy at a time."""
    activation = "gelu" if net.activation == "quickgelu" else "quickgelu"
    other, old = changed(net, activation), GELU[net.activation].__name__
    found = [(m, k) for m in other.net.modules() for k, child in m.named_children() if type(child).__name__ == old]
    for module, key in found:
        setattr(module, key, GELU[activation]())
    if found:
        yield f"activation: {activation}", other
    steps = getattr(net.from_pil.transform, "transforms", [])
    for own in (s for s in steps if type(s) is Resize and s.interpolation in FILTERS):
        usual, another = own.interpolation, FILTERS[1 - FILTERS.index(own.interpolation)]
        instead = {another.value: Resize(own.size, another)}
        instead[f"{usual.value}, no antialiasing"] = Aliased(own.size, usual)
        for name, step in instead.items():
            other, settings = changed(net, name), net.preprocessing | {"resize": name}
            other.from_pil = Preprocess(Compose([step if s is own else s for s in steps]), net.image_size, settings)
            yield f"resize: {name}", other
    for name in (p for p in ("fp32", "fp16", "bf16") if p != net.precision.replace("tf32", "fp32")):
        other = changed(net, name)
        other.net.to(PRECISIONS[name])
        other.precision = name
        yield f"precision: {name}", other


def examine(
    net: Model, images: Dataset, published: float, *, templates: Sequence[str] | None = None, batch_size: int = 64
) -> pd.DataFrame:
    """The accuracy of a run as it is, and with each difference alone, beside the published one, a fraction.

    Args:
        net: Loaded in fp32, so that other precisions start from its weights.
        templates: Prompts of the run as it is; by default the data set's own.

    Returns: A row a run: `run`, the accuracy and what `against_published` adds, then `change` from the run as it is,
        `change_low`, `change_high`, `p_holm` over the table and `verdict`, as in `paired_changes`; and `explains`:
        whether the interval holds the published accuracy, that of the run as it is does not, and the change is decided.
    """
    if not 0 <= published <= 1:
        raise ValueError(f"published is {published}, allowed is a fraction from 0 to 1.")
    own = tuple(templates or images.templates)
    sets = {"plain prompt": PROMPT_SETS["plain prompt"], "the data set's own": images.templates, **TEMPLATES}
    others = {tuple(prompts): f"prompts: {name}" for name, prompts in sets.items() if tuple(prompts) != own}

    runs = [(AS_IT_IS, net, own), *((name, net, prompts) for prompts, name in others.items())]
    frames = []
    for name, other, prompts in chain(runs, ((name, other, own) for name, other in variants(net))):
        head = Head(other.classifier(images.class_names, prompts), images.class_names)
        rows = measure(other, images, head, [ORIGINAL], batch_size=batch_size)
        frames.append(rows.assign(run=name, value=scores.correct(rows)))
    rows = pd.concat(frames, ignore_index=True)
    table = scores.estimates(rows, ["run"], scores.accuracy)
    table = scores.against_published(table, [(published, "published")] * len(table))
    base = pd.concat([frames[0].assign(run=name) for name in table.run[1:]])
    changes = scores.paired_changes(base, rows[rows.run != AS_IT_IS], "run", bounds=1)
    changes = changes.rename(columns={"value": "change", "low": "change_low", "high": "change_high"})
    table = table.merge(changes[["run", *CHANGE]], on="run", how="left")
    return table.assign(explains=table.covered & ~table.covered[0] & table.verdict.isin(["more", "less"]))


def in_words(table: pd.DataFrame) -> str:
    """What explains the published accuracy, if anything does alone."""
    own, found = table.iloc[0], table[table.explains]
    said = f"{own.value:.4f} [{own.low:.4f}, {own.high:.4f}] was measured, {own.published:.4f} is published"
    if own.covered:
        return f"{said}, which the interval of {own.n} images holds: nothing is left to explain at this number."
    ranked = table.iloc[1:].assign(off=table.difference.abs()).sort_values("off", kind="stable")
    left = [kind for kind in KINDS if not table.run.str.startswith(kind).any()]
    left = f" Not tried, as the model offers none to exchange: {', '.join(left)}." if left else ""
    if found.empty:
        return f"{said}. None of the {len(ranked)} differences that were tried explains it alone.{left}"
    named = [f"{r.run} ({r.value:.4f})" for r in ranked[ranked.explains].itertuples()]
    several = f"{len(named)} differences would explain it, each alone, nearest first"
    return f"{said}. {several if named[1:] else 'One difference explains it alone'}: {', '.join(named)}.{left}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.doctor", description=__doc__.split("\n")[2])
    parser.add_argument("model")
    parser.add_argument("tag", nargs="?", help="of the weights, or a file of them")
    parser.add_argument("dataset")
    parser.add_argument("--published", type=float, help="accuracy as a fraction (default: what is known of the model)")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=0, help="images at most (default: all)")
    given = parser.parse_args(arguments)
    try:
        known = published_accuracy(given.model, given.tag, given.dataset)
        if given.published is None and known is None:
            raise ValueError(f"No accuracy of {given.model} on {given.dataset} is known: --published has to name it.")
        published = known.accuracy if given.published is None else given.published
        images = load_dataset(given.dataset, split=given.split, limit=given.limit)
        table = examine(load_model(given.model, given.tag), images, published)
    except (ValueError, ModelUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    shown = table[["run", "value", "low", "high", *CHANGE, "covered"]].round(4)
    print(shown.to_string(index=False), in_words(table), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
