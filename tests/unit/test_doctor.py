"""The doctor names a difference that was planted, and nothing where none was."""

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from tiny import TinyNet, tiny_model
from torch import nn
from torchvision.transforms import Compose, InterpolationMode, Resize, ToTensor

from zsr_utils import doctor
from zsr_utils.conditions import ORIGINAL, Head
from zsr_utils.datasets import Dataset, Sample
from zsr_utils.measure import measure
from zsr_utils.prompts import TEMPLATES


NAMES, N, RIGHT = ("a", "bb", "ccc", "dddd"), 120, 0.9
DIFFERENCES = [
    "prompts: seven templates", "prompts: eighty templates", "activation: quickgelu", "resize: bilinear",
    "resize: bicubic, no antialiasing", "precision: fp16", "precision: bf16",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("module_cache")


class Sensitive(TinyNet):
    """Its answers hang on fine edges, on which GELU it has, and on digits that 16 bits round away."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.see, self.bend = (nn.Parameter(torch.randn(192, 4, generator=draw) / 14) for _ in range(2))
        self.act = nn.GELU()

    def encode_image(self, x):
        edges = (x - nn.functional.avg_pool2d(x, 3, 1, 1)).flatten(1)
        sharp = 20 * (edges.square().mean(1, keepdim=True) - 0.1) * torch.tensor([1, 1, -1, -1])
        bent = edges @ self.bend
        return (edges @ self.see + 512 - 512) + sharp + 200 * (self.act(bent) - nn.functional.gelu(bent))


def sensitive(*_):
    transform = Compose([Resize(8, InterpolationMode.BICUBIC), ToTensor()])
    model = tiny_model(preprocessing={"size": 8}, transform=transform, name="sensitive")
    model.net = Sensitive().eval().requires_grad_(False)
    return model


def pictures(labels) -> Dataset:
    def picture(i):
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8))

    samples = [Sample(f"s{i:03d}", int(labels[i]), lambda i=i: picture(i)) for i in range(N)]
    return Dataset("noise", NAMES, samples, content="random squares")


@pytest.fixture(scope="module")
def answers() -> dict[str, np.ndarray]:
    """What the network answers with each difference."""
    net, found = sensitive(), {}
    sets = {f"prompts: {name}": (net, prompts) for name, prompts in TEMPLATES.items()}
    own = {name: (other, ["a photo of a {}"]) for name, other in [(doctor.AS_IT_IS, net), *doctor.variants(net)]}
    for name, (other, prompts) in (own | sets).items():
        head = Head(other.classifier(NAMES, prompts), NAMES)
        found[name] = measure(other, pictures([0] * N), head, [ORIGINAL]).prediction.to_numpy()
    return found


def planted(answers: np.ndarray) -> Dataset:
    """Pictures labelled so that such answers are right for nine in ten."""
    return pictures(np.where(np.arange(N) < RIGHT * N, answers, (answers + 1) % 4))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_exactly_the_planted_difference_is_named(answers, name):
    assert set(answers) == {doctor.AS_IT_IS, *DIFFERENCES}
    table = doctor.examine(sensitive(), planted(answers[name]), RIGHT)
    assert table.run[table.explains].tolist() == [name] and table.value[table.explains].item() == RIGHT
    assert doctor.in_words(table).endswith(f"One difference explains it alone: {name} (0.9000).")


def test_nothing_is_named_where_nothing_was_planted_or_nothing_explains(answers):
    images = planted(answers[doctor.AS_IT_IS])
    same, none = (doctor.examine(sensitive(), images, published) for published in (RIGHT, 0.99))
    assert not same.explains.any() and "nothing is left to explain" in doctor.in_words(same)
    assert not none.explains.any() and doctor.in_words(none).endswith(" tried explains it alone.")
    both = doctor.in_words(none.assign(explains=none.run.isin(DIFFERENCES[:2])))
    assert "2 differences would explain it, each alone, nearest first: prompts: " in both
    few = doctor.in_words(none[~none.run.str.startswith("resize")])
    assert few.endswith(" Not tried, as the model offers none to exchange: resize.")


def test_an_exchanged_activation_is_what_open_clip_builds():
    vision = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 4, "image_size": 8}
    text = {"context_length": 8, "vocab_size": 20, "width": 32, "heads": 2, "layers": 2}
    quick, plain = (CLIP(16, vision, text, quick_gelu=q).eval() for q in (True, False))
    plain.load_state_dict(quick.state_dict())
    for own, other in ((quick, plain), (plain, quick)):
        model = tiny_model(activation="quickgelu" if own is quick else "gelu")
        model.net = own
        changed = dict(doctor.variants(model))[f"activation: {'gelu' if own is quick else 'quickgelu'}"].net
        for encode, given in (("encode_image", torch.rand(2, 3, 8, 8)), ("encode_text", torch.arange(16).view(2, 8))):
            was, wanted, found = (getattr(net, encode)(given) for net in (own, other, changed))
            assert torch.equal(found, wanted) and not torch.equal(found, was)


def test_the_command_names_what_it_needs(capsys, monkeypatch, answers):
    monkeypatch.setattr(doctor, "load_model", sensitive)
    monkeypatch.setattr(doctor, "load_dataset", lambda *_, **__: planted(answers["resize: bilinear"]))
    assert doctor.main(["sensitive", "noise", "--published", str(RIGHT)]) == 0
    assert capsys.readouterr().out.endswith("One difference explains it alone: resize: bilinear (0.9000).\n")
    for given, sentence in (([], "No accuracy of sensitive on noise is known"), (["--published", "90"], "is 90.0")):
        assert doctor.main(["sensitive", "noise", *given]) == 2 and sentence in capsys.readouterr().err
