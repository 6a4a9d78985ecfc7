"""Generative vision-language models: one handle over every class that transformers loads for pictures and text.

The score of an answer is the summed log-likelihood of its text after the chat template's generation prompt, tokens that
close the turn included; the context is passed once for all answers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from zsr_utils._text import one_of, read_yaml, unknown
from zsr_utils.models._handle import PRECISIONS, Model, fingerprint_of
from zsr_utils.models._openclip import ModelUnavailable
from zsr_utils.models._registry import load_model, resolve_device
from zsr_utils.models._tabletop import embedded_vlms, vlm_folder


# Towers of models that were built on a CLIP checkpoint of open_clip: what a language model adds is asked of those.
ENCODERS = {
    "llava-hf/llava-1.5-7b-hf": ("ViT-L-14-336", "openai"),
    "llava-hf/llava-1.5-13b-hf": ("ViT-L-14-336", "openai"),
}
BASE_FIRST = ("llava_onevision", "llava_next")  # tiles of a picture follow its whole
TILED = ("smolvlm", "idefics3")  # and here they stand before it


class VisionLanguageModel(nn.Module):
    """A frozen generative model, in eval mode. Pictures are float32 (3, H, W) in [0, 1], RGB, each of its own size.

    All calls take one prompt a picture, and are differentiable in the pictures but for `answer`.

    Attributes:
        encoder: The handle of its own image tower where that is a CLIP model, else None.
        fingerprint: sha256 over weights, config and chat template, as hexadecimal digits.
    """

    def __init__(self, net: nn.Module, processor, *, name: str, precision: str = "fp32", encoder: Model | None = None):
        super().__init__()
        if not (template := getattr(processor, "chat_template", None) or processor.tokenizer.chat_template):
            raise ValueError(f"{name} has no chat template, so that no question can be put to it.")
        self.net, self.processor, self.name, self.precision = (
            net.eval().requires_grad_(False),
            processor,
            name,
            precision,
        )
        self.encoder, self.kind = encoder, net.config.model_type
        self.chat_template = hashlib.sha256(str(template).encode()).hexdigest()
        self.fingerprint = fingerprint_of(net, {"config": net.config.to_dict(), "chat_template": self.chat_template})
        self.net.to(PRECISIONS[precision])

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def longest(self) -> int:
        """Tokens that fit its context."""
        return self.net.config.get_text_config().max_position_embeddings

    def score(
        self, images: Sequence[Tensor], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> tuple[list[Float[Tensor, "k"]], list[Int[Tensor, "k"]]]:
        """Log-likelihoods in nats of every option after its picture and prompt, and their lengths in tokens.

        Raises: ValueError for an option that is empty or there twice, for none, and for what does not fit the context.
        """
        for own in options:
            if not own or not all(o.strip() for o in own) or len(set(own)) < len(own):
                raise ValueError(f"options are {list(own)!r}, allowed are one or more different texts, none empty.")
        scores, lengths = [None] * len(images), [None] * len(images)
        keys = [(tuple(image.shape), prompt, tuple(own)) for image, prompt, own in zip(images, prompts, options)]
        for (_, prompt, own), rows in _alike(keys):
            found, lengths_ = self._likelihoods([images[r] for r in rows], prompt, own)
            for row, values in zip(rows, found):
                scores[row], lengths[row] = values, lengths_
        return scores, lengths

    def state(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Last layer at the last token of the context, generation prompt included."""
        found = [
            self._context([i], p, output_hidden_states=True).hidden_states[-1][:, -1] for i, p in zip(images, prompts)
        ]
        return torch.cat(found).float()

    def answer_state(
        self, images: Sequence[Tensor], prompts: Sequence[str], answers: Sequence[str]
    ) -> Float[Tensor, "n d"]:
        """Mean of the last layer over an answer's tokens, those that close the turn included."""
        found = []
        for image, prompt, answer in zip(images, prompts, answers):
            passed = self._context([image], prompt, use_cache=True)
            ids = self._suffix(prompt, answer)[None].to(self.device)
            after = self.net(input_ids=ids, past_key_values=passed.past_key_values, output_hidden_states=True)
            found.append(after.hidden_states[-1].mean(1))
        return torch.cat(found).float()

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], prompts: Sequence[str], *, max_new_tokens: int = 32) -> list[str]:
        """What the model says, decoded greedily."""
        said, words = [], self.processor.tokenizer
        for image, prompt in zip(images, prompts):
            inputs = self._inputs([image], prompt)
            ids = self.net.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=words.pad_token_id
            )
            said.append(words.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        return said

    def image_tokens(self, images: Sequence[Tensor]) -> list[Float[Tensor, "h w c"]]:
        """What the language model gets of every picture: the grid of the whole picture, without tiles of it."""
        return [self._grid(self._inputs([image], "")) for image in images]

    def _grid(self, inputs: dict) -> Tensor:
        own = {k: v for k, v in inputs.items() if k.startswith(("pixel", "image_"))}
        found = self.net.get_image_features(**own).pooler_output
        tokens = (found[0] if isinstance(found, (list, tuple)) else found).flatten(0, -2)  # of one picture
        if "image_grid_thw" in own:
            _, rows, columns = (own["image_grid_thw"][0] // self.net.config.vision_config.spatial_merge_size).tolist()
        elif self.kind in BASE_FIRST:
            rows = columns = self.net.config.vision_config.image_size // self.net.config.vision_config.patch_size
        else:
            rows = columns = round(getattr(self.processor, "image_seq_len", len(tokens)) ** 0.5)
        chosen = tokens[-rows * columns :] if self.kind in TILED else tokens[: rows * columns]
        return chosen.reshape(rows, columns, -1).float()

    def _likelihoods(self, images: list[Tensor], prompt: str, options: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(n, K) log-likelihoods, and the K lengths: one pass of the contexts, one of all options.

        Options are padded behind, without a mask: what follows an answer cannot reach back in a causal model, and
        models with positions in three dimensions refuse a mask here.
        """
        passed = self._context(images, prompt, use_cache=True)
        suffixes = [self._suffix(prompt, option) for option in options]
        lengths = torch.tensor([len(s) for s in suffixes])
        ids = pad_sequence(suffixes, batch_first=True).repeat(len(images), 1).to(self.device)
        cache = passed.past_key_values
        cache.batch_repeat_interleave(len(options))
        after = self.net(input_ids=ids, past_key_values=cache).logits[:, :-1]
        first = passed.logits[:, -1:].repeat_interleave(len(options), 0)
        each = torch.cat([first, after], 1).float().log_softmax(-1).gather(2, ids[..., None])[..., 0]
        kept = torch.arange(ids.shape[1]) < lengths.repeat(len(images))[:, None]
        return (each * kept.to(each)).sum(1).view(len(images), -1).cpu(), lengths

    def _context(self, images: list[Tensor], prompt: str, **options):
        """One pass of pictures with one prompt, up to where the answer begins."""
        inputs = self._inputs(images, prompt)
        if (length := inputs["input_ids"].shape[1]) > self.longest:
            raise ValueError(f"{self.name}: a context of {length} tokens, allowed are {self.longest}.")
        return self.net(**inputs, logits_to_keep=1, **options)

    def _inputs(self, images: list[Tensor], prompt: str) -> dict:
        text, words = self._rendered(prompt), self.processor.tokenizer
        if self.processor.image_token not in text:
            raise ValueError(f"{self.name}: its chat template puts no image token into the prompt.")
        begun = bool(words.bos_token) and text.startswith(words.bos_token)  # the template may say it, or the tokenizer
        nested = [[image] for image in images] if self.kind in TILED else images
        inputs = self.processor(
            images=nested, text=[text] * len(images), return_tensors="pt",
            images_kwargs={"do_rescale": False}, add_special_tokens=not begun,
        )  # fmt: skip
        inputs = {k: v.to(self.device) for k, v in inputs.items()}
        return {k: v.to(PRECISIONS[self.precision]) if v.is_floating_point() else v for k, v in inputs.items()}

    def _rendered(self, prompt: str, answer: str | None = None) -> str:
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(turns, add_generation_prompt=answer is None)

    def _suffix(self, prompt: str, answer: str) -> Int[Tensor, "t"]:
        """Ids of an answer and what closes it.

        Only what follows the context is tokenised: the whole conversation could be cut otherwise at the border, and
        some templates do not render an answered question as they render an open one.
        """
        context, whole = self._rendered(prompt), self._rendered(prompt, answer)
        rest = whole[len(context) :] if whole.startswith(context) else whole[whole.rindex(answer) :]
        return torch.tensor(self.processor.tokenizer(rest, add_special_tokens=False).input_ids)


def load_vlm(name: str, device: str = "auto", precision: str = "fp32") -> VisionLanguageModel:
    """Load a frozen generative model by name.

    Args:
        name: An embedded one (`tabletop-vlm`), an address of the Hugging Face hub (`Qwen/Qwen3-VL-2B-Instruct`) or a
            local folder.
        device, precision: As for `load_model`.

    Raises: ValueError for an unknown name or a model without a chat template; ModelUnavailable where it cannot be had,
        or its processor lacks a package.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    one_of("precision", precision, PRECISIONS)
    where, folder = resolve_device(device), vlm_folder(name)
    if not folder and "/" not in name and not Path(name).is_dir():
        raise ValueError(unknown("generative model", name, embedded_vlms()))
    source = str(folder or name)
    try:
        processor = AutoProcessor.from_pretrained(source)
        net = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    except ImportError as error:
        package = getattr(error, "name", None) or str(error).split("`")[1::2][:1] or "a package"
        raise ModelUnavailable(f"{name}: its processor needs {package}: pip install it ({error}).") from error
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    address = (read_yaml(folder / "training.yaml")["tower"], None) if folder else ENCODERS.get(name)
    encoder = load_model(*address, device=device, precision=precision) if address else None
    return VisionLanguageModel(net, processor, name=name, precision=precision, encoder=encoder).to(where)


def _alike(keys: Sequence) -> Iterator[tuple[tuple, list[int]]]:
    """Equal keys with the rows that have them, in order of their first."""
    found: dict[tuple, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    yield from found.items()
