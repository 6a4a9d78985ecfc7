"""The model handle: one interface over every image encoder with a zero-shot head."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from zsr_utils._cache import kept


# tf32 keeps weights and results in fp32; its products are rounded on a GPU that can
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RANGE_TOLERANCE = 1e-6  # of pixels beyond [0, 1]: a smaller excess is rounding
RANDOM_WEIGHTS = "random weights: its accuracies mean nothing"  # a handle's `note`


class Preprocess:
    """A checkpoint's own resize and crop, from an RGB picture to pixels (3, size, size) in [0, 1].

    Its `key` is equal for equal pixels; without settings it is None, and pixels are never kept on disk.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], size: int, settings: dict | None = None):
        self.transform, self.size = transform, size
        steps = re.sub(r" at 0x[0-9a-f]+", "", repr(transform))
        libraries = [version("pillow"), version("torchvision")]
        made_of = json.dumps([size, settings, steps, libraries], sort_keys=True, default=str)
        self.key = hashlib.sha256(made_of.encode()).hexdigest() if settings else None

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image)


class Model(nn.Module):
    """A frozen image encoder with a zero-shot head, in eval mode.

    Pixels are float32 in [0, 1], NCHW, RGB, at `image_size`, the side of the square input; normalisation happens
    inside. `from_pil` is the checkpoint's own resize and crop, `activation` and `preprocessing` are as its config has
    them, `trained_on` is the one data set an embedded model was made for, `note` what a reader must know before
    believing a number, and `fingerprint` the sha256 over weights and config.
    """

    bias_columns = 0  # of a classifier, after its weights
    trusts = False  # that pixels lie in [0, 1]: to look at them makes a device wait; see `trusted`

    def __init__(
        self, net: nn.Module, *, name: str, image_size: int, mean: Sequence[float], std: Sequence[float], transform,
        tokenizer=None, pretrained: str | None = None, activation: str = "gelu", precision: str = "fp32",
        config: dict | None = None, preprocessing: dict | None = None, trained_on: str | None = None, note: str = "",
    ):  # fmt: skip
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.name, self.pretrained, self.image_size = name, pretrained, image_size
        self.activation, self.precision = activation, precision
        self.preprocessing = preprocessing or {}
        self.trained_on, self.note = trained_on, note
        self.from_pil = Preprocess(transform, image_size, preprocessing)
        self._tokenizer = tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        made_of = {"config": config, "preprocessing": self.preprocessing, "mean": list(mean), "std": list(std)}
        self.fingerprint = fingerprint_of(net, made_of)
        self.net.to(PRECISIONS[precision])
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def logit_scale(self) -> Tensor:
        """The factor on the cosine, already exponentiated (about 100 for CLIP)."""
        return self.net.logit_scale.exp().float()

    @property
    def logit_bias(self) -> Tensor | float:
        bias = getattr(self.net, "logit_bias", None)
        return 0.0 if bias is None else bias.float()

    def encode_image(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Raw image features, differentiable in `pixels`; not normalised."""
        return self.net.encode_image(self._normalised(pixels)).float()

    def encode_tokens(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n rows columns c"]:
        """Patch tokens of the last block after its norm, or the last feature map of a CNN."""
        return self._tokens(pixels, indices=1, intermediates_only=True)["image_intermediates"][-1]

    def encode_layers(self, pixels: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n d"], list[Tensor]]:
        """Image features and, from the same pass, the token grid (N, rows, columns, C) after every block or stage.

        A transformer's tokens are read through its final norm at every depth, so that lengths can be compared.
        """
        passed = self._tokens(pixels, indices=None, intermediates_only=False)
        return passed["image_features"].float(), passed["image_intermediates"]

    def _tokens(self, pixels: Tensor, **options) -> dict:
        visual = getattr(self.net, "visual", None)
        if not hasattr(visual, "forward_intermediates"):
            raise NotImplementedError(f"{self.name}: its image tower gives no token grid.")
        options |= {"normalize_intermediates": True, "output_fmt": "NCHW"}
        passed = visual.forward_intermediates(self._normalised(pixels), **options)
        return passed | {"image_intermediates": [t.permute(0, 2, 3, 1).float() for t in passed["image_intermediates"]]}

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "t d"]:
        """Raw text features; not normalised."""
        return torch.cat([self.net.encode_text(t) for t in self.tokens_of(texts).split(256)]).float()

    def tokens_of(self, texts: Sequence[str]) -> Int[Tensor, "t length"]:
        """Token ids of texts, padded and cut as the model's tokenizer does."""
        if self._tokenizer is None:
            raise TypeError(f"{self.name} has no text tower, so it cannot encode text.")
        return self._tokenizer(list(texts)).to(self.device)

    def check_read(self, texts: Sequence[str]) -> None:
        """Refuse texts whose last word the tokenizer cuts off, or cannot read."""
        shorter = [re.sub(r"\W*\w+\W*$", "", text) for text in texts]
        unread = (self.tokens_of(texts) == self.tokens_of(shorter)).all(1).tolist()
        for text in (text for text, lost in zip(texts, unread) if lost and text.strip()):
            length = self.tokens_of([text]).shape[1]
            raise ValueError(f"The tokenizer of {self.name}, of {length} tokens, does not read the end of {text!r}.")

    def encode_ids(self, ids: Int[Tensor, "t length"]) -> tuple[Float[Tensor, "t d"], Float[Tensor, "t length w"]]:
        """Raw text features of token ids, and the token embeddings that their gradients reach."""
        embedded = []

        def follow(table, given, out):
            embedded.append(out.detach().requires_grad_(torch.is_grad_enabled()))
            return embedded[0]

        hook = self.token_table.register_forward_hook(follow)
        try:
            features = self.net.encode_text(ids).float()
        finally:
            hook.remove()
        return features, embedded[0]

    @property
    def token_table(self) -> nn.Embedding:
        """The embeddings of the text tower's tokens: open_clip's own towers, and those it takes from Hugging Face."""
        text = getattr(self.net, "text", None)
        inner = getattr(text, "transformer", None)
        found = getattr(inner, "get_input_embeddings", lambda: None)()
        table = next((t.token_embedding for t in (self.net, text) if hasattr(t, "token_embedding")), found)
        if table is None:
            raise TypeError(f"{self.name} offers no token embeddings of its text tower, so it has no words to search.")
        return table

    def words(self) -> dict[int, str]:
        """Tokens that are words by themselves: what they say is read as that one token again."""
        decoders = (getattr(t, "decode", None) for t in (self._tokenizer, getattr(self._tokenizer, "tokenizer", None)))
        numbers = range(self.token_table.num_embeddings)
        if not (decode := next(filter(None, decoders), None)):
            raise TypeError(f"The tokenizer of {self.name} cannot say which words its tokens are.")
        said = {k: decode([k]).strip() for k in numbers}
        said = {k: word for k, word in said.items() if word and word.isprintable() and not word.startswith("<")}
        ids, (one, other, none) = (self.tokens_of(t).cpu() for t in (said.values(), ["a", "the", ""]))
        expected, first = one.repeat(len(ids), 1), int((one != other).int().argmax())
        expected[:, first] = torch.tensor(list(said))
        kept = (ids == expected).all(1) & ~torch.isin(expected[:, first], none)
        return {k: word for (k, word), keep in zip(said.items(), kept.tolist()) if keep}

    def classifier(self, class_names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "k d"]:
        """Unit text weights, kept on disk: features normalised, averaged over templates, normalised again."""
        if not class_names or not templates:
            raise ValueError("class_names and templates must each hold at least one text.")
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold exactly one '{{}}' for the class name.")
        key = json.dumps([self.fingerprint, self.precision, list(class_names), list(templates)])

        def compute() -> dict:
            texts = [template.format(name) for name in class_names for template in templates]
            features = F.normalize(self.encode_text(texts), dim=-1).view(len(class_names), len(templates), -1)
            return {"weights": F.normalize(features.mean(1), dim=-1).cpu().numpy()}

        return torch.from_numpy(kept("classifiers", key, compute)["weights"]).to(self.device)

    def logits(self, pixels: Float[Tensor, "n 3 h w"], classifier: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
        """`exp(logit_scale) * cosine (+ logit_bias)`, with the model's own scale."""
        return self.logits_of(self.encode_image(pixels), classifier)

    def logits_of(self, features: Float[Tensor, "n d"], classifier: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
        """Logits of features already computed."""
        return self.logit_scale * F.normalize(features, dim=-1) @ classifier.T + self.logit_bias

    def directions(self, classifier: Float[Tensor, "k columns"]) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k"]]:
        """Weights and biases that tell classes apart: `features @ weights.T + bias` ranks them as the logits do.

        Features are raw: their length, a logit scale above 0 and a bias that all classes share rank nothing.
        """
        return classifier, classifier.new_zeros(len(classifier))

    def check_classifier(self, classifier: Float[Tensor, "k columns"], d: int) -> None:
        """Refuse a classifier that does not fit embeddings of d numbers, or has less than two rows."""
        width = d + self.bias_columns
        if classifier.ndim != 2 or len(classifier) < 2 or classifier.shape[1] != width:
            shape = tuple(classifier.shape)
            raise ValueError(f"classifier has shape {shape}, allowed is (K, {width}) with K at least 2.")

    def _normalised(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1:] != (3, self.image_size, self.image_size):
            size = self.image_size
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}, {self.name} takes (N, 3, {size}, {size}).")
        low, high = pixels.detach().aminmax() if pixels.numel() and not self.trusts else (0, 0)
        if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
            raise ValueError(f"pixels run from {float(low):.4g} to {float(high):.4g}, allowed is [0, 1].")
        return ((pixels - self.mean) / self.std).to(PRECISIONS[self.precision]).contiguous()


@contextmanager
def trusted(net: Model) -> Iterator[None]:
    """Within it, a model takes pixels without looking whether they lie in [0, 1]: for a loop that keeps them there."""
    before, net.trusts = getattr(net, "trusts", False), True
    try:
        yield
    finally:
        net.trusts = before


def fingerprint_of(net: nn.Module, extra: dict) -> str:
    digest = hashlib.sha256(json.dumps(extra, sort_keys=True, default=str).encode())
    for key, value in sorted(net.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
