"""The head of a generative model: it answers questions by the likelihood of the texts of their options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zsr_utils.conditions._condition import Batch, Seen, drift_between
from zsr_utils.models import VisionLanguageModel


@dataclass(frozen=True)
class OptionHead:
    """In place of a `Head`, where a sample is a question about a picture: its label is the index of the right option.

    Logits are the summed log-likelihoods of the options, -inf beyond the last one; features are the last layer's state
    at the last token of the context. Rows get `score_k` and `length_k` (tokens) of every option k, missing where there
    is none, and `drift_option`, 1 - cosine between the mean states over the tokens of the answer that is given and of
    the clean one.

    Source: Wani et al. (2026), scores and the channels `ctx` and `ans_mcq`.
    """

    asked: Mapping  # by sample id, with `prompt`, `options` and `written`: what an overlay writes of each option

    embeds = False  # an image has no embedding before it is asked about

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """A letter for each option of the question that has most."""
        return tuple(ascii_uppercase[: max(len(question.options) for question in self.asked.values())])

    def names_of(self, sample_id: str) -> Sequence[str]:
        """What an overlay writes of each option."""
        return self.asked[sample_id].written

    @torch.no_grad()
    def see(
        self, net: VisionLanguageModel, pixels: Float[Tensor, "n 3 h w"], ids: Sequence[str], *, detail: str = "answers"
    ) -> Seen:
        """One pass of some questions; with `tokens` or `layers` the image tokens that the language model gets, too."""
        asked = [self.asked[i] for i in ids]
        if not asked:
            return Seen(pixels, torch.empty(0, 1), torch.empty(0, len(self.class_names)))
        found = net.read(list(pixels), [q.prompt for q in asked], [q.options for q in asked])
        grids = () if detail == "answers" else (torch.stack(net.image_tokens(list(pixels))).cpu(),)
        further = {"answer_state": found.answer_state.double(), "lengths": self._padded(found.lengths, torch.nan)}
        return Seen(pixels, found.state.double(), self._padded(found.scores, -torch.inf), grids, further)

    def logits(
        self, net: VisionLanguageModel, pixels: Float[Tensor, "n 3 h w"], ids: Sequence[str]
    ) -> Float[Tensor, "n k"]:
        """The scores alone, differentiable in the pixels."""
        asked = [self.asked[i] for i in ids]
        return self._padded(net.score(list(pixels), [q.prompt for q in asked], [q.options for q in asked])[0], -1e4)

    def facts(self, batch: Batch, seen: Seen) -> dict:
        scores = seen.logits.masked_fill(seen.logits.isinf(), torch.nan).numpy()
        facts = {f"score_{k}": scores[:, k] for k in range(scores.shape[1])}
        facts |= {f"length_{k}": seen.further["lengths"][:, k].numpy() for k in range(scores.shape[1])}
        moved = drift_between(batch.clean.further["answer_state"], seen.further["answer_state"])
        return facts | {"drift_option": moved.numpy()}

    def _padded(self, values: Sequence[Tensor], fill: float) -> Float[Tensor, "n k"]:
        width = len(self.class_names)
        rows = [torch.nn.functional.pad(v.double(), (0, width - len(v)), value=fill) for v in values]
        return torch.stack(rows)


@dataclass(frozen=True)
class Spoken:
    """Facts of what the model says greedily: `said`, and `drift_said` of the mean state over its tokens.

    Source: Wani et al. (2026), channels `ans_open` and `ans_mcq_free`: a changed picture's own answer is fed again.
    """

    max_new_tokens: int = 32

    @torch.no_grad()
    def facts(self, batch: Batch, seen: Seen, *_) -> dict:
        if "spoken" not in batch.memo:
            batch.memo["spoken"] = self._heard(batch, batch.pixels)
        clean, state = batch.memo["spoken"]
        said, moved = (clean, state) if seen.pixels is batch.pixels else self._heard(batch, seen.pixels)
        drift = drift_between(state, moved).numpy()
        return {"said": said, "same_said": np.equal(said, clean), "drift_said": drift}

    def _heard(self, batch: Batch, pixels: Tensor) -> tuple[np.ndarray, Tensor]:
        prompts = [batch.head.asked[i].prompt for i in batch.sample_ids]
        said = batch.net.answer(list(pixels), prompts, max_new_tokens=self.max_new_tokens)
        return np.array(said, dtype=object), batch.net.answer_state(list(pixels), prompts, said).cpu()
