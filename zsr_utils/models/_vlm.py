"""Generative vision-language models: one handle over every class that transformers loads for pictures and text.

The score of an answer is the summed log-likelihood of its text after the chat template's generation prompt, tokens that
close the turn included; the context is passed once for all answers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms import functional as TF

from zsr_utils._text import one_of, read_yaml, unknown
from zsr_utils.models._handle import PRECISIONS, Model, Preprocess, fingerprint_of
from zsr_utils.models._openclip import ModelUnavailable
from zsr_utils.models._registry import load_model, resolve_device
from zsr_utils.models._tabletop import embedded_vlms, vlm_folder


# Towers of models that were built on a CLIP checkpoint of open_clip: what a language model adds is asked of those.
ENCODERS = {
    "llava-hf/llava-1.5-7b-hf": ("ViT-L-14-336-quickgelu", "openai"),
    "llava-hf/llava-1.5-13b-hf": ("ViT-L-14-336-quickgelu", "openai"),
}
BASE_FIRST = ("llava_onevision", "llava_next")  # tiles of a picture follow its whole
TILED = ("smolvlm", "idefics3")  # and here they stand before it
LONGEST = 1024  # side of a picture of its own size, in pixels, as Wani et al. (2026) have it


@dataclass(frozen=True)
class Read:
    """What a generative model makes of n questions with options."""

    scores: list[Float[Tensor, "k"]]  # summed log-likelihoods of the options, nats
    lengths: list[Int[Tensor, "k"]]  # in tokens
    state: Float[Tensor, "n d"]  # last layer at the last token of the context
    answer_state: Float[Tensor, "n d"]  # its mean over the tokens of the likeliest option


class VisionLanguageModel(nn.Module):
    """A frozen generative model, in eval mode. Pictures are float32 (3, H, W) in [0, 1], RGB, each of its own size.

    All calls take one prompt a picture, and are differentiable in the pictures but for `answer`.

    Attributes:
        image_size: Side of its square input, where it has one size for all; else None, and pictures keep their own.
        from_pil: From a picture to pixels in [0, 1]: the model's own resize and crop, or its own size with the longest
            side at most 1024.
        encoder: The handle of its own image tower where that is a CLIP model, else None.
        fingerprint: sha256 over weights, config and chat template, as hexadecimal digits.
    """

    pretrained, activation, note = None, "", ""  # as of `Model`, for the records

    def __init__(
        self, net: nn.Module, processor, *, name: str, precision: str = "fp32", encoder: Model | None = None,
        trained_on: str | None = None,
    ):  # fmt: skip
        super().__init__()
        if not (template := getattr(processor, "chat_template", None) or processor.tokenizer.chat_template):
            raise ValueError(f"{name} has no chat template, so that no question can be put to it.")
        self.net, self.processor = net.eval().requires_grad_(False), processor
        self.name, self.precision, self.encoder, self.kind = name, precision, encoder, net.config.model_type
        self.trained_on, self.image_size = trained_on, _square(processor)
        settings = {"image_size": self.image_size, "longest": LONGEST}
        self.from_pil = Preprocess(partial(_pixels, self.image_size), self.image_size, self.image_size and settings)
        self.preprocessing = settings
        self._rendered, self._suffix = lru_cache(2**16)(self._rendered), lru_cache(2**16)(self._suffix)
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

    def read(self, images: Sequence[Tensor], prompts: Sequence[str], options: Sequence[Sequence[str]]) -> "Read":
        """Every option after its picture and prompt, and what the model holds meanwhile, from the same passes.

        Raises: ValueError for an option that is empty or there twice, for none, and for what does not fit the context.
        """
        for own in options:
            if not own or not all(o.strip() for o in own) or len(set(own)) < len(own):
                raise ValueError(f"options are {list(own)!r}, allowed are one or more different texts, none empty.")
        scores, lengths, states, answers = ([None] * len(images) for _ in range(4))
        for rows in self._alike(images, prompts, [len(own) for own in options]):
            passed = self._context([images[r] for r in rows], [prompts[r] for r in rows], output_hidden_states=True)
            state = passed.hidden_states[-1][:, -1].float().cpu()
            found = self._after(passed, [[self._suffix(prompts[r], o) for o in options[r]] for r in rows])
            for row, context, sums, counts, means in zip(rows, state, *found):
                scores[row], lengths[row], states[row], answers[row] = sums, counts, context, means[sums.argmax()]
        return Read(scores, lengths, torch.stack(states), torch.stack(answers))

    def score(
        self, images: Sequence[Tensor], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> tuple[list[Float[Tensor, "k"]], list[Int[Tensor, "k"]]]:
        """Log-likelihoods in nats of every option after its picture and prompt, and their lengths in tokens."""
        found = self.read(images, prompts, options)
        return found.scores, found.lengths

    def state(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Last layer at the last token of the context, generation prompt included."""
        found = [None] * len(images)
        for rows in self._alike(images, prompts):
            passed = self._context([images[r] for r in rows], [prompts[r] for r in rows], output_hidden_states=True)
            for row, state in zip(rows, passed.hidden_states[-1][:, -1]):
                found[row] = state
        return torch.stack(found).float()

    def answer_state(
        self, images: Sequence[Tensor], prompts: Sequence[str], answers: Sequence[str]
    ) -> Float[Tensor, "n d"]:
        """Mean of the last layer over an answer's tokens, those that close the turn included."""
        found = [None] * len(images)
        for rows in self._alike(images, prompts):
            passed = self._context([images[r] for r in rows], [prompts[r] for r in rows])
            _, _, means = self._after(passed, [[self._suffix(prompts[r], answers[r])] for r in rows])
            for row, mean in zip(rows, means):
                found[row] = mean[0]
        return torch.stack(found)

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], prompts: Sequence[str], *, max_new_tokens: int = 32) -> list[str]:
        """What the model says, decoded greedily."""
        said, words = [""] * len(images), self.processor.tokenizer
        for rows in self._alike(images, prompts):
            inputs = self._inputs([images[r] for r in rows], [prompts[r] for r in rows])
            options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": words.pad_token_id}
            ids = self.net.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
            for row, text in zip(rows, words.batch_decode(ids, skip_special_tokens=True)):
                said[row] = text.strip()
        return said

    def image_tokens(self, images: Sequence[Tensor]) -> list[Float[Tensor, "h w c"]]:
        """What the language model gets of every picture: the grid of the whole picture, without tiles of it."""
        return [self._grid(self._inputs([image], [""])) for image in images]

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

    def _alike(self, images: Sequence[Tensor], prompts: Sequence[str], *further: Sequence) -> list[list[int]]:
        """Rows that pass together: pictures of one size with contexts of one length, so that nothing is padded."""
        found: dict[tuple, list[int]] = {}
        for row, key in enumerate(zip((tuple(i.shape) for i in images), map(self._length, prompts), *further)):
            found.setdefault(key, []).append(row)
        return list(found.values())

    def _length(self, prompt: str) -> int:
        """Tokens of a context, its picture counted as one."""
        return len(self.processor.tokenizer(self._rendered(prompt), add_special_tokens=False).input_ids)

    def _after(self, passed, suffixes: list[list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihoods (n, K), lengths (n, K) and mean states (n, K, D) of K answers after each of n contexts.

        Answers are padded behind, without a mask: what follows an answer cannot reach back in a causal model, and
        models with positions in three dimensions refuse a mask here.
        """
        n, k = len(suffixes), len(suffixes[0])
        every = [suffix for own in suffixes for suffix in own]
        ids = pad_sequence(every, batch_first=True).to(self.device)
        lengths = torch.tensor([len(suffix) for suffix in every], device=self.device)
        cache = passed.past_key_values
        cache.batch_repeat_interleave(k)
        after = self.net(input_ids=ids, past_key_values=cache, output_hidden_states=True)
        first = passed.logits[:, -1:].repeat_interleave(k, 0)
        each = torch.cat([first, after.logits[:, :-1]], 1).float().log_softmax(-1).gather(2, ids[..., None])[..., 0]
        kept = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        means = (after.hidden_states[-1].float() * kept[..., None]).sum(1) / lengths[:, None]
        return (each * kept).sum(1).view(n, k).cpu(), lengths.view(n, k).cpu(), means.view(n, k, -1).cpu()

    def _context(self, images: list[Tensor], prompts: list[str], **options):
        """One pass of pictures with prompts of one length, up to where the answers begin.

        Questions about one picture share the pass of it and of what stands before it.
        """
        options |= {"logits_to_keep": 1, "use_cache": True}
        keys = [image.detach().cpu().numpy().tobytes() for image in images]
        shown = [keys.index(key) for key in dict.fromkeys(keys)]
        inputs = self._inputs([images[r] for r in shown], [prompts[r] for r in shown])
        if (length := inputs["input_ids"].shape[1]) > self.longest:
            raise ValueError(f"{self.name}: a context of {length} tokens, allowed are {self.longest}.")
        if len(shown) == len(images):
            return self.net(**inputs, **options)
        rests = [self._rendered(prompt).rpartition(self.processor.image_token)[2] for prompt in prompts]
        ids = torch.tensor(self.processor.tokenizer(rests, add_special_tokens=False).input_ids, device=self.device)
        before = length - ids.shape[1]
        begun = {k: v[:, :before] if v.shape[:2] == (len(shown), length) else v for k, v in inputs.items()}
        cache = self.net(**begun, **options | {"output_hidden_states": False}).past_key_values
        place = {keys[row]: k for k, row in enumerate(shown)}
        cache.batch_select_indices(torch.tensor([place[key] for key in keys], device=self.device))
        return self.net(input_ids=ids, past_key_values=cache, **options)

    def _inputs(self, images: list[Tensor], prompts: list[str]) -> dict:
        texts, words = [self._rendered(prompt) for prompt in prompts], self.processor.tokenizer
        if not all(self.processor.image_token in text for text in texts):
            raise ValueError(f"{self.name}: its chat template puts no image token into the prompt.")
        begun = bool(words.bos_token) and texts[0].startswith(words.bos_token)  # said by the template or the tokenizer
        nested = [[image] for image in images] if self.kind in TILED else list(images)
        inputs = self.processor(
            images=nested, text=texts, return_tensors="pt", images_kwargs={"do_rescale": False},
            add_special_tokens=not begun,
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
    from transformers.utils import logging

    logging.disable_progress_bar()
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
    trained_on = "tabletop" if folder else None
    made = VisionLanguageModel(net, processor, name=name, precision=precision, encoder=encoder, trained_on=trained_on)
    return made.to(where)


def _square(processor) -> int | None:
    """Side of the square that the processor makes of every picture, if it does."""
    images = processor.image_processor
    crop = getattr(images, "crop_size", None) if getattr(images, "do_center_crop", False) else None
    return crop["height"] if crop else None


def _pixels(size: int | None, image: Image.Image) -> Float[Tensor, "3 h w"]:
    if size:
        return TF.to_tensor(TF.center_crop(TF.resize(image, size, TF.InterpolationMode.BICUBIC), size))
    if max(image.size) > LONGEST:
        image = ImageOps.contain(image, (LONGEST, LONGEST), Image.Resampling.BICUBIC)
    return TF.to_tensor(image)
