"""A tiny random model and data set: real code paths without trained weights."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as TF

from zsr_utils.datasets import Dataset, Sample
from zsr_utils.models import Model, SupervisedModel


class TinyNet(nn.Module):
    """Channel means through a fixed matrix; texts by the length of their words."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_image(self, x):
        return x.mean((2, 3)) @ self.weight

    def encode_text(self, tokens):
        return torch.nn.functional.one_hot(tokens[:, 0] % 4, 4).float() + 0.1


def tokenizer(texts):
    return torch.tensor([[len(t)] for t in texts])


def tiny_model(**changes) -> Model:
    options = {
        "name": "tiny", "image_size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3,
        "transform": lambda image: TF.to_tensor(image.convert("RGB").resize((8, 8))), "tokenizer": tokenizer,
    }  # fmt: skip
    return Model(TinyNet(), **(options | changes))


class Linear(nn.Module):
    """f(x) = A vec(x): the gradient is A^T (A x - t)."""

    def __init__(self, d=5):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.matrix = nn.Parameter(torch.randn(d, 3 * 8 * 8, generator=generator) / 14)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_image(self, x):
        return x.flatten(1) @ self.matrix.T


def linear_model() -> Model:
    """A handle whose Jacobian is one matrix, `net.net.matrix`, everywhere."""
    model = tiny_model(mean=(0.0,) * 3, std=(1.0,) * 3)
    model.net = Linear().eval().requires_grad_(False)
    return model


def tiny_images(n: int = 25) -> Dataset:
    def sample(i):
        return Sample(f"s{i:03d}", i % 3, lambda: Image.new("RGB", (8, 8), (10 * i % 255, 200 - 5 * i, 40)))

    return Dataset("tiny", ("a", "bb", "ccc"), [sample(i) for i in range(n)])


class Patches(nn.Module):
    """A tower whose tokens after block k are the mean colours of 2 x 2 pixels, times k."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward_intermediates(self, x, indices=None, intermediates_only=False, **_):
        tokens = nn.functional.avg_pool2d(x, 2)
        found = {"image_intermediates": [tokens, 2 * tokens][-(indices or 2) :]}
        return found if intermediates_only else {**found, "image_features": tokens.mean((2, 3)) @ self.weight}


NAMES = ("red", "green", "blue", "grey")


def noise_picture(i: int, side: int = 96) -> Image.Image:
    """A picture of 8 x 8 random squares."""
    squares = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((side, side), Image.Resampling.NEAREST)


def token_pictures(n: int = 10, side: int = 96) -> Dataset:
    """Pictures of random squares in four classes, large enough for overlays, that `token_model` sees at 8 px."""
    return Dataset("noise", NAMES, [Sample(f"s{i}", i % 4, lambda i=i: noise_picture(i, side)) for i in range(n)])


def token_model() -> Model:
    """A handle with a 4 x 4 token grid after each of two blocks, and the embedding of `tiny_model`."""
    model = tiny_model(mean=(0.0,) * 3, std=(1.0,) * 3)
    model.net.visual = Patches().requires_grad_(False)
    return model


def grey_images() -> torch.Tensor:
    """Six mid-grey images on whole grey levels: changes of RMS 0.05 do not reach black or white."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(102, 154, (6, 3, 8, 8), generator=generator) / 255


def texts_apart(net: Model, images: torch.Tensor) -> torch.Tensor:
    """What sets four of the images apart, so that not all get one answer."""
    features = net.encode_image(images)
    return nn.functional.normalize((features - features.mean(0))[:4])


def linear_head(net: Model, images: torch.Tensor, texts: torch.Tensor, *, scale: float = 1) -> SupervisedModel:
    """A trained head on `scale` times the linear model's embeddings: lengths and biases change answers."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5, bias=False), nn.Linear(5, 4))
    network[1].weight.data, network[2].weight.data = scale * net.net.matrix.data, texts
    network[2].bias.data = scale * (0.02 * torch.arange(4.0) - texts @ net.encode_image(images).mean(0))
    options = {"image_size": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3, "transform": None}
    return SupervisedModel(network, namings=[[(c,) for c in "abcd"]], name="head", **options)


class Speaker:
    """A language model for tests: scores by the picture's mean colour and the option's length, unless told otherwise.

    Args:
        prefers: A score for a picture, prompt and option.
        tokens: What it gets of a picture.
    """

    fingerprint, encoder = "speaker", None

    def __init__(self, prefers=None, tokens=lambda image: image.permute(1, 2, 0)):
        self.prefers = prefers or (lambda image, prompt, option: -abs(len(option) - 10 * float(image.mean())))
        self.tokens = tokens

    def score(self, images, prompts, options):
        given = [[self.prefers(i, p, o) for o in own] for i, p, own in zip(images, prompts, options)]
        return [torch.tensor(own, dtype=torch.float32) for own in given], [torch.ones(len(own)) for own in options]

    def answer(self, images, prompts):
        return [prompt.split(": ")[1].split(", ")[0] if ": " in prompt else "it" for prompt in prompts]

    def image_tokens(self, images):
        return [self.tokens(image) for image in images]

    def state(self, images, prompts):
        return torch.stack([image.mean((1, 2)) for image in images])
