"""Zero-shot classification against CLIP_benchmark, on the same photographs and weights.

That package multiplies every cosine by 100, whatever the model's own scale is, and adds no bias. So its
classifiers, its predictions and its accuracies are equal to ours for every model, but its logits are only where
the scale is 100 and there is no bias (CLIP, once trained: the scale is capped there). Elsewhere they are off by
the factor `100 / scale`, and with them margins, confidence and everything that measures calibration.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import open_clip
import pytest
import torch
from test_real_checkpoints import half_rounded, write
from torchvision.datasets import ImageFolder

from zsr_utils.conditions import ORIGINAL, Head
from zsr_utils.datasets import Dataset, load_dataset
from zsr_utils.measure import Embedded, embed, measure
from zsr_utils.models import Model, load_model


pytest.importorskip("clip_benchmark", reason="CLIP_benchmark is not installed: benchmarks/requirements.txt")

from clip_benchmark.metrics import zeroshot_classification as peer
from clip_benchmark.models.open_clip import load_open_clip


PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "images" / "imagenet-sample"
CLASSES = 20
TEMPLATES = ["a photo of a {}", "a drawing of a {}", "a {} outdoors"]
CASES = {"ViT-B-32": (200, 0.0), "ViT-B-16-SigLIP": (20, -10.0)}  # photographs; bias at initialisation
SCALE = torch.tensor(1 / 0.07).log().half().float().exp()  # at initialisation, its logarithm kept in half precision

pytestmark = pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="the photographs are not on this machine")


@dataclass
class Compared:
    name: str
    net: Model
    class_names: tuple[str, ...]
    embedded: Embedded
    images: Dataset
    pixels: torch.Tensor  # of the first photographs
    classifier: torch.Tensor  # (D, K), theirs
    logits: torch.Tensor  # (N, K), theirs
    labels: torch.Tensor  # (N,), theirs

    def ours(self):
        weights = self.net.classifier(self.class_names, TEMPLATES)
        return self.net.logits_of(torch.from_numpy(self.embedded.features), weights)


def class_folder(folder, number):
    """Photographs under the names of the first classes, which random weights cannot tell anyway."""
    files = sorted(PHOTOGRAPHS.iterdir())[:number]
    assert len(files) == number
    for k, file in enumerate(files):
        own = folder / files[k % CLASSES].stem.split("_", 1)[1]
        own.mkdir(parents=True, exist_ok=True)
        (own / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    photographs = class_folder(folder / "photographs", CASES[request.param][0])
    torch.manual_seed(0)
    made = open_clip.create_model(request.param)
    write(folder / "checkpoint", half_rounded(made), open_clip.get_model_config(request.param))
    address = f"local-dir:{folder / 'checkpoint'}"

    own, preprocess, tokenizer = load_open_clip(address, pretrained=None)
    own.eval()
    images = ImageFolder(photographs, preprocess)
    names = [name.replace("_", " ") for name in images.classes]
    templates = [template.replace("{}", "{c}") for template in TEMPLATES]
    classifier = peer.zero_shot_classifier(own, tokenizer, names, templates, "cpu", amp=False)
    loader = torch.utils.data.DataLoader(images, batch_size=50, shuffle=False, num_workers=0)
    logits, labels = peer.run_classification(own, classifier, loader, "cpu", amp=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSR_CACHE", str(folder / "cache"))
        net = load_model(address, device="cpu")
        ours = load_dataset(str(photographs))
        assert list(ours.class_names) == names
        embedded = embed(net, ours)
        pixels = ours.pixels(embedded.sample_ids[:8], net.from_pil)
        yield Compared(request.param, net, ours.class_names, embedded, ours, pixels, classifier, logits, labels)
    shutil.rmtree(folder)


@pytest.fixture
def at_scale(case):
    """Sets the model's scale and bias for one test."""
    kept = {k: v.clone() for k, v in case.net.net.state_dict().items() if k in ("logit_scale", "logit_bias")}

    def change(scale, bias=0.0):
        case.net.net.logit_scale.fill_(math.log(scale))
        if "logit_bias" in kept:
            case.net.net.logit_bias.fill_(bias)

    yield change
    case.net.net.load_state_dict(kept, strict=False)


def test_both_classify_the_same_photographs_by_the_same_text_weights(case):
    assert case.embedded.labels.tolist() == case.labels.tolist() and len(case.labels) == CASES[case.name][0]
    found = case.net.classifier(case.class_names, TEMPLATES)
    assert found.shape[0] == CLASSES and (found[0] - found[1]).abs().max() > 1e-4  # ten tolerances
    torch.testing.assert_close(found, case.classifier.T, atol=1e-5, rtol=1e-5)


def test_logits_are_equal_where_the_scale_is_100_and_there_is_no_bias(case, at_scale):
    at_scale(100)
    assert case.logits.std(0).min() > 1e-2  # the photographs differ by more than the tolerance
    torch.testing.assert_close(case.ours(), case.logits, atol=1e-4, rtol=1e-4)
    direct = case.net.logits(case.pixels, case.net.classifier(case.class_names, TEMPLATES))
    torch.testing.assert_close(direct, case.logits[: len(direct)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [None, 1.0, 30.0])
def test_elsewhere_logits_differ_by_the_scale_over_100_and_the_bias(case, at_scale, scale):
    """Their factor of 100 stands where the model has a scale of its own, which training moves from 1 / 0.07."""
    bias = CASES[case.name][1]
    if scale is None:
        torch.testing.assert_close(case.net.logit_scale, SCALE)
        scale = SCALE
    else:
        at_scale(scale, bias)
    found = case.ours()
    assert (found - case.logits).abs().max() > 0.1
    torch.testing.assert_close(found, scale / 100 * case.logits + bias, atol=1e-4, rtol=1e-4)


def test_accuracy_is_equal_but_margins_and_confidence_are_not(case):
    head = Head(case.net.classifier(case.class_names, TEMPLATES), case.class_names)
    rows = measure(case.net, case.images, head, [ORIGINAL])
    assert rows.prediction.tolist() == case.logits.argmax(1).tolist()
    assert (rows.prediction == rows.label).sum() == (case.logits.argmax(1) == case.labels).sum()
    theirs = case.logits.double()
    rest = theirs.scatter(1, case.labels[:, None], -torch.inf)
    margins = (theirs.gather(1, case.labels[:, None])[:, 0] - rest.amax(1)).numpy()
    scale = float(case.net.logit_scale)
    assert scale < 50
    assert rows.margin.to_numpy() == pytest.approx(scale / 100 * margins, rel=1e-4, abs=1e-4)
    assert (theirs.softmax(1).amax(1).numpy() > rows.confidence).all()  # a larger factor is a surer model
