"""The aligned pairs that several chapters look at: zero-shot rows, sources, targets, and what became of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from zsr_utils.conditions import alignment
from zsr_utils.datasets import Dataset
from zsr_utils.experiments import zero_shot
from zsr_utils.models import Model


@dataclass(frozen=True)
class Pairs:
    """Source images, each aligned with the embedding of an image of another class.

    Attributes:
        table: One row a pair: `sample_id`, `label`, `target_id`, `target_label`.
        rows: Zero-shot rows of the whole data set.
        embedded: Raw features of the whole data set.
        classifier: (K, D) text weights.
        sources: (N, 3, H, W) source images.
        found: What alignment made of them.
    """

    table: pd.DataFrame
    rows: pd.DataFrame
    embedded: zero_shot.Embedded
    classifier: Float[Tensor, "k d"]
    sources: Float[Tensor, "n 3 h w"]
    found: alignment.Aligned

    @property
    def targets(self) -> Float[Tensor, "n d"]:
        """Embeddings of the target images."""
        return self.embedded.of(self.table.target_id)

    @property
    def aligned(self) -> Float[Tensor, "n 3 h w"]:
        """The aligned images as an 8-bit file keeps them."""
        return alignment.saved_as_png(self.found.pixels)

    def score(self, net: Model) -> pd.DataFrame:
        """Rows of the aligned images, as `alignment.score`."""
        rows, _ = alignment.score(
            net, self.table, self.sources, self.found, self.classifier, self.targets, condition="aligned",
            source_features=self.embedded.of(self.table.sample_id),
        )  # fmt: skip
        return rows


def aligned_pairs(
    net: Model,
    images: Dataset,
    templates: Sequence[str],
    *,
    per_class: int = 10,
    number: int | None = None,
    one_a_source: bool = False,
    cosine: float = 0.96,
    momentum: float = 0.3,
    max_steps: int = 200,
    batch_size: int = 64,
    seed: int = 0,
) -> Pairs:
    """Embed a data set, draw ordered pairs and align them; what has been computed before comes from the cache.

    Args:
        net: The model handle.
        images: Labelled images.
        templates: Prompt templates of the class names.
        per_class: Source images a class, as `alignment.make_pairs`.
        number: At most this many of the pairs, drawn by `seed`; None is all. A larger draw holds a smaller one.
        one_a_source: Only one pair of every source image.
        cosine: As `alignment.Match`.
        momentum, max_steps: As `alignment.align`.
        batch_size: Images a pass.
        seed: Of the draws.

    Raises:
        ValueError: If number is below 1, and as the functions named above.
    """
    if number is not None and number < 1:
        raise ValueError(f"number is {number}, allowed is 1 or more, or None for all pairs.")
    embedded = zero_shot.embed(net, images, batch_size=batch_size)
    rows = zero_shot.classify(net, embedded, images.class_names, templates, condition="original")
    table = alignment.make_pairs(rows, per_class=per_class, seed=seed)
    if one_a_source or number is not None:
        table = table.sample(frac=1, random_state=seed)  # the first ones are those of a smaller draw
    if one_a_source:
        table = table.drop_duplicates("sample_id")
    table = table.head(number) if number is not None else table
    sources = images.pixels(table.sample_id, net.from_pil)
    found = alignment.align(
        net, sources, alignment.Match(embedded.of(table.target_id), cosine=cosine), momentum=momentum,
        max_steps=max_steps, batch_size=batch_size, names=list(table.sample_id), keep=True,
    )  # fmt: skip
    return Pairs(table, rows, embedded, net.classifier(images.class_names, templates), sources, found)
