"""The probes of chapters 02 to 04 on real photographs, through a network that this project did not make.

SqueezeNet with ImageNet weights becomes an image encoder in CLIP's text space by ConSE: the mean of the
class text features under its probabilities (Norouzi et al. 2014). No transformer, 227 px, no text tower:
what passes here assumes none of these.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

import zsr_utils as zsr
from zsr_utils.models import Model, register_model
from zsr_utils.probes import alignment, jacobian, noise


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WEIGHTS = DATA / "weights" / "squeezenet1_0_imagenet_fp16.pt"
TEXTS = DATA / "weights" / "clip_vit_b32_text_imagenet.npz"
PHOTOGRAPHS = DATA / "images" / "imagenet-sample"
CLASSES = 10

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="real photographs and weights are not on this machine")


class ConSE(nn.Module):
    """Probabilities over ImageNet's classes as weights of CLIP's class text features."""

    def __init__(self, classifier: nn.Module, texts: torch.Tensor):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("texts", texts)
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())

    def encode_image(self, pixels):
        return self.classifier(pixels).softmax(1) @ self.texts


@register_model("squeezenet-conse")
def build(name, pretrained, precision):
    from torchvision.models import squeezenet1_0

    network = squeezenet1_0()
    network.load_state_dict({k: v.float() for k, v in torch.load(WEIGHTS, weights_only=True).items()})
    texts = F.normalize(torch.from_numpy(np.load(TEXTS)["features"]).float(), dim=-1)
    return Model(
        ConSE(network, texts), name=name, image_size=227, precision=precision,
        mean=[c / 255 for c in (123, 117, 104)], std=[1 / 255] * 3,  # the network takes 0 to 255, centred
        transform=lambda image: TF.to_tensor(TF.center_crop(TF.resize(image.convert("RGB"), 256), [227, 227])),
    )  # fmt: skip


@pytest.fixture(scope="module")
def net():
    return zsr.load_model("squeezenet-conse")


@pytest.fixture(scope="module")
def task(net):
    """Ten classes whose photograph is named rightly among the ten, and every ordered pair of them."""
    from PIL import Image

    files = sorted(p for p in PHOTOGRAPHS.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = range(0, 1000, 25)
    pixels = torch.stack([net.from_pil(Image.open(files[i])) for i in chosen])
    texts = net.net.texts[list(chosen)]
    right = net.logits(pixels, texts).argmax(1) == torch.arange(len(texts))
    keep = right.nonzero()[:CLASSES, 0]
    classifier, pixels = texts[keep], alignment.saved_as_png(pixels[keep])
    rows = pd.DataFrame({"sample_id": [files[chosen[i]].name for i in keep], "label": range(CLASSES)})
    pairs = alignment.make_pairs(rows, per_class=1).iloc[::6].reset_index(drop=True)
    index = rows.set_index("sample_id").label
    return pairs, pixels, classifier, index


@pytest.fixture(scope="module")
def aligned(net, task):
    pairs, pixels, _, index = task
    sources = pixels[torch.tensor(index[pairs.sample_id].to_numpy())]
    targets = alignment.encode(net, pixels)[torch.tensor(index[pairs.target_id].to_numpy())]
    labels = torch.tensor(pairs.target_label.to_numpy())
    found = alignment.align(
        net, sources, alignment.Match(targets), until=alignment.Answer(net, task[2], labels), optimizer="pgd",
        eps=8 / 255, momentum=0.7, max_steps=10, eight_bit=True, batch_size=15, names=list(pairs.sample_id),
    )  # fmt: skip
    return sources, targets, found


def test_systematic_accuracy_of_real_photographs(net, task, aligned, capsys):
    pairs, _, classifier, _ = task
    sources, targets, found = aligned
    rows, _ = alignment.score(net, pairs, sources, found, classifier, targets, condition="aligned")
    systematic, hit = (rows.prediction == rows.label).mean(), (rows.prediction == rows.target_label).mean()
    with capsys.disabled():
        print(
            f"\nSqueezeNet + ConSE, {len(rows)} pairs of photographs: systematic accuracy {systematic:.1%}, target hit "
            f"{hit:.1%}, reached {rows.reached.mean():.0%} in {rows.steps.median():.0f} steps (median), RMS "
            f"{rows.rms.median():.2f} grey levels, SSIM {rows.ssim.median():.3f}"
        )
    before = F.cosine_similarity(alignment.encode(net, sources), targets).numpy()
    assert (rows.target_cosine > before).mean() > 0.9 and systematic < 1
    assert rows.linf.max() <= 8.001 and (rows.linf.round(3) % 1 == 0).all()


def test_the_spectrum_of_a_real_network(net, aligned):
    sources = aligned[0]
    values, _, right = jacobian.top_singular(net, sources[0], 4)
    assert (values[:-1] >= values[1:]).all() and values[-1] > 0
    rows = jacobian.linear_error(net, sources[:1], right[:1].float(), [0.002])
    assert rows.lipschitz[0] == pytest.approx(values[0].item(), rel=0.2)


def test_noise_on_real_photographs(net, task, aligned):
    _, _, classifier, _ = task
    sources, _, found = aligned
    control = noise.random_control(sources[:4], found.pixels[:4])
    for pixels in (sources[:4], alignment.saved_as_png(found.pixels[:4]), control):
        rows = noise.response(net, pixels, classifier, sigmas=[1 / 255, 8 / 255], draws=2, conversion="round")
        drift = rows.groupby("sigma").drift.mean()
        assert 0 < drift.iloc[0] < drift.iloc[1] <= 2


def test_a_text_target_needs_a_text_tower(net, task):
    with pytest.raises(TypeError, match="no text tower"):
        alignment.text_targets(net, ["a photo of a dog"], torch.zeros(1, 512))
