"""CLIP-Auto: a gradient-guided search for the words before the class name."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


START = "a photo of a"


class Slots:
    """Token ids of `<words> <name>` for every class, and which of them the words are."""

    def __init__(self, net, names: Sequence[str], start: str = START):
        self.net, self.names = net, names
        texts = [f"{start} {name}" for name in names]
        net.check_read(texts)
        self.ids = net.tokens_of(texts)
        first, other = net.tokens_of([start.split()[0], start.split()[1]])
        lead = int((first != other).int().argmax())  # before the first word, such as a mark of the start
        same = (self.ids == net.tokens_of([start])).all(0).tolist()
        self.at = range(lead, same.index(False))  # the words end where the name begins
        if len(self.at) < 1:
            raise ValueError(f"start is {start!r}, allowed are words that {net.name} reads apart from the class name.")

    def filled(self, words: Int[Tensor, "c slots"]) -> Int[Tensor, "c k length"]:
        """The ids of all classes behind each of some choices of words."""
        ids = self.ids.repeat(len(words), 1, 1)
        ids[:, :, self.at.start : self.at.stop] = words[:, None]
        return ids

    def template(self, words: Int[Tensor, "slots"], said: Mapping[int, str]) -> str:
        """The words as a template, or nothing where its text would be read as other tokens."""
        text = " ".join(said.get(int(word), "") for word in words)
        read = self.net.tokens_of([f"{text} {name}" for name in self.names])
        return f"{text} {{}}" if torch.equal(read, self.filled(words[None])[0]) else ""

    @torch.no_grad()
    def losses(self, words: Int[Tensor, "c slots"], features, labels) -> Float[Tensor, "c"]:
        """Cross-entropy of some images, a number a choice of words."""
        ids = self.filled(words)
        texts = torch.cat([self.net.encode_ids(part)[0] for part in ids.flatten(0, 1).split(256)])
        each = F.normalize(texts, dim=1).unflatten(0, ids.shape[:2])
        return torch.stack([F.cross_entropy(self.net.logits_of(features, weights), labels) for weights in each])

    def gradient(self, words: Int[Tensor, "slots"], slot: int, features, labels) -> Float[Tensor, "w"]:
        """Of the loss, with respect to the embedding of one word."""
        with torch.enable_grad():
            texts, embedded = self.net.encode_ids(self.filled(words[None])[0])
            loss = F.cross_entropy(self.net.logits_of(features, F.normalize(texts, dim=1)), labels)
            (gradient,) = torch.autograd.grad(loss, embedded)
        return gradient[:, self.at[slot]].sum(0).float()


def search(
    net, names: Sequence[str], features: Float[Tensor, "n d"], labels: Int[Tensor, "n"], *, seed: int = 0,
    steps: int = 1000, candidates: int = 40, batch: int = 64, start: str = START,
) -> pd.DataFrame:  # fmt: skip
    """Words before the class name that lower the loss on training images, one exchanged at a time.

    A step draws a slot and two batches. On the first, the gradient at the slot's embedding says which words promise
    most (`candidates`); on the second they are tried, and the best is kept if it is better than the one that is there.

    Args:
        features: Raw embeddings of training images; test images have no place here.

    Returns: The start and every prompt kept: `step`, `prompt` (a template) and `gain`, by how much it was better on the
        batch that it was tried on.

    Source: Wang et al. (2024), CLIP-Auto, as far as its logs tell; the search is that of Shin et al. (2020). Only words
        that are read again as the same token take part, so that anyone can type what is found; the authors' are ids.
    """
    n = len(labels)
    if not 1 <= batch <= n // 2:
        raise ValueError(f"batch is {batch}, allowed are 1 to half of the {n} training images.")
    said, slots, rng = net.words(), Slots(net, names, start), np.random.default_rng([seed, 10])
    features, labels = features.to(net.device).float(), labels.to(net.device)
    known, table = torch.tensor(list(said), device=net.device), net.token_table.weight.detach().float()
    words = slots.ids[0, slots.at.start : slots.at.stop]
    kept = [(0, f"{start} {{}}", 0.0)]
    for step in range(1, steps + 1):
        slot = int(rng.integers(len(slots.at)))
        one, other = torch.from_numpy(rng.permutation(n)[: 2 * batch]).to(net.device).split(batch)
        gradient = slots.gradient(words, slot, features[one], labels[one])
        promised = (table[words[slot]] - table[known]) @ gradient
        tried = words.repeat(1 + min(candidates, len(known)), 1)  # the first is the present one
        tried[1:, slot] = known[promised.topk(len(tried) - 1).indices]
        losses = slots.losses(tried, features[other], labels[other])
        best = int(losses.argmin())
        if losses[best] < losses[0] and (prompt := slots.template(tried[best], said)):
            words = tried[best]
            kept.append((step, prompt, float(losses[0] - losses[best])))
    return pd.DataFrame(kept, columns=["step", "prompt", "gain"])


def best_of(net, names: Sequence[str], prompts: Sequence[str], features, labels) -> tuple[str, Float[np.ndarray, "p"]]:
    """Of some prompts the one with the lowest loss on held-out training images, and the losses of all."""
    weights = [net.classifier(names, [prompt]) for prompt in prompts]
    logits = [net.logits_of(features.to(net.device).float(), each) for each in weights]
    losses = np.array([float(F.cross_entropy(each, labels.to(net.device))) for each in logits])
    return prompts[int(losses.argmin())], losses
