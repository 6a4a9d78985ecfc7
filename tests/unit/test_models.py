"""The model handle and the registry: contracts and bad input."""

import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import huggingface_hub
import open_clip
import pytest
import torch
from PIL import Image
from tiny import tiny_model
from torch.nn import functional as F

from zsr_utils.models import ModelUnavailable, known_models, load_model, register_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_weights_are_frozen_and_gradients_reach_the_pixels():
    net = tiny_model()
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(net.encode_image(pixels).sum(), pixels)
    assert gradient.abs().sum() > 0
    assert not net.training and not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (torch.full((1, 3, 8, 8), 1.01), r"run from 1.01 to 1.01, allowed is \[0, 1\]"),
        (torch.full((1, 3, 8, 8), -0.5), r"allowed is \[0, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), r"allowed is \[0, 1\]"),
        (torch.zeros(1, 3, 9, 8), r"shape \(1, 3, 9, 8\), tiny takes \(N, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"tiny takes \(N, 3, 8, 8\)"),
    ],
)
def test_pixels_outside_the_contract_are_refused(pixels, words):
    with pytest.raises(ValueError, match=words):
        tiny_model().encode_image(pixels)


def test_rounding_beyond_the_range_is_accepted():
    tiny_model().encode_image(torch.full((1, 3, 8, 8), 1 + 3e-7))


def test_normalisation_is_inside_the_model():
    net, pixels = tiny_model(), torch.rand(2, 3, 8, 8)
    expected = net.net.encode_image((pixels - 0.5) / 0.25)
    torch.testing.assert_close(net.encode_image(pixels), expected)


def test_classifier_normalises_averages_and_normalises_again():
    net, names, templates = tiny_model(), ["a", "bb"], ["{}", "a {}", "two  {}"]
    expected = []
    for name in names:
        features = F.normalize(net.encode_text([t.format(name) for t in templates]), dim=-1)
        expected.append(F.normalize(features.mean(0), dim=0))
    torch.testing.assert_close(net.classifier(names, templates), torch.stack(expected))


def test_classifier_is_read_back_from_disk(cache, monkeypatch):
    net = tiny_model()
    first = net.classifier(["a", "bb"], ["{}"])
    monkeypatch.setattr(net, "encode_text", lambda texts: pytest.fail("encoded again"))
    torch.testing.assert_close(net.classifier(["a", "bb"], ["{}"]), first)
    assert len(list((cache / "classifiers").iterdir())) == 1


def test_classifier_cache_tells_names_templates_and_weights_apart():
    net, other = tiny_model(), tiny_model()
    with torch.no_grad():
        other.net.weight += 1
    changed = tiny_model(config={"other": 1})
    assert changed.fingerprint != net.fingerprint
    assert not torch.equal(net.classifier(["a", "bb"], ["{}"]), net.classifier(["a", "bbb"], ["{}"]))


@pytest.mark.parametrize("template", ["no place", "{} and {}"])
def test_a_template_needs_one_place_for_the_name(template):
    with pytest.raises(ValueError, match="must hold exactly one"):
        tiny_model().classifier(["a"], [template])


def test_logits_are_scale_times_cosine():
    net, pixels = tiny_model(), torch.rand(3, 3, 8, 8)
    weights = net.classifier(["a", "bb"], ["{}"])
    cosine = F.cosine_similarity(net.encode_image(pixels)[:, None], weights[None], dim=-1)
    torch.testing.assert_close(net.logits(pixels, weights), torch.tensor(3.0).exp() * cosine)


def test_logit_bias_is_added():
    net = tiny_model()
    net.net.logit_bias = torch.tensor(-7.0)
    pixels, weights = torch.rand(1, 3, 8, 8), F.normalize(torch.ones(2, 4), dim=-1)
    torch.testing.assert_close(net.logits(pixels, weights)[0, 0], net.logits(pixels, weights)[0, 1])
    assert net.logits_of(net.encode_image(pixels), torch.zeros(1, 4)).item() == -7.0


def test_a_model_without_text_says_so():
    with pytest.raises(TypeError, match="tiny has no text tower"):
        tiny_model(tokenizer=None).encode_text(["a"])


def test_a_registered_model_loads_by_name():
    @register_model("test-only")
    def build(name, pretrained, precision):
        return tiny_model(name=name, precision=precision)

    assert load_model("test-only", device="cpu").name == "test-only"


def test_the_books_page_on_own_models_runs_as_it_is_printed(capsys):
    page = (Path(__file__).parents[2] / "book" / "own-model.md").read_text()
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code) != []


def test_an_installed_package_offers_models_by_entry_point(monkeypatch):
    """Listed unread, imported when asked for, by name or by prefix."""
    package = ModuleType("offered_models")
    package.build = lambda name, pretrained, precision: tiny_model(name=name, pretrained=pretrained)
    points = [
        metadata.EntryPoint(name, value, "zsr_utils.models")
        for name, value in (
            ("offered", "offered_models:build"),
            ("offered:", "offered_models:build"),
            ("gone", "gone:x"),
        )
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "zsr_utils.models" else [])
    assert {"offered", "offered:", "gone"} < set(known_models())
    with pytest.raises(ValueError, match=r"adapter 'gone:x' of 'gone' could not be imported: No module named 'gone'"):
        load_model("gone")
    monkeypatch.setitem(sys.modules, "offered_models", package)
    assert load_model("offered", "tag", device="cpu").pretrained == "tag"
    assert load_model("offered:small", device="cpu").name == "offered:small"


def test_imagebind_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagebind", None)
    with pytest.raises(ModelUnavailable, match=r"imagebind is not installed .*pip install .*imagebind_huge.pth"):
        load_model("imagebind")


class Scaling(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.log_logit_scale, self.max_logit_scale = torch.nn.Parameter(torch.tensor(7.0)), 100

    def forward(self, x):
        return self.log_logit_scale.exp().clip(max=self.max_logit_scale) * x


class ImageBind(torch.nn.Module):
    """Calls and parts of ImageBind's model, as its package has them, around matrices."""

    def __init__(self):
        super().__init__()
        self.heads = torch.nn.ModuleDict({"vision": torch.nn.Linear(3, 4), "text": torch.nn.Linear(2, 4)})
        self.modality_postprocessors = torch.nn.ModuleDict(
            {"vision": torch.nn.LayerNorm(4), "text": torch.nn.Sequential(torch.nn.LayerNorm(4), Scaling())}
        )

    def forward(self, inputs):
        pooled = {k: v.mean((2, 3)) if k == "vision" else v.float() for k, v in inputs.items()}
        return {k: self.modality_postprocessors[k](self.heads[k](v)) for k, v in pooled.items()}


def test_imagebind_gives_raw_features_and_its_clipped_scale(monkeypatch, tmp_path):
    package, model, words = (ModuleType(f"imagebind{n}") for n in ("", ".models", ".words"))
    package.__file__ = str(tmp_path / "__init__.py")
    model.imagebind_huge = lambda pretrained: ImageBind()
    words.SimpleTokenizer = lambda bpe_path: lambda text: torch.tensor([len(text), 1])
    for name, module in (("", package), (".models", package), (".models.imagebind_model", model),
                         (".models.multimodal_preprocessors", words)):  # fmt: skip
        monkeypatch.setitem(sys.modules, f"imagebind{name}", module)
    torch.manual_seed(0)
    own = ImageBind()
    torch.save(own.state_dict(), tmp_path / "imagebind_huge.pth")
    net = load_model("imagebind", str(tmp_path / "imagebind_huge.pth"), device="cpu")
    pixels = torch.rand(2, 3, 224, 224)
    expected = own.heads["vision"](((pixels - net.mean) / net.std).mean((2, 3)))
    torch.testing.assert_close(net.encode_image(pixels), expected)
    torch.testing.assert_close(net.encode_text(["abc"]), own.heads["text"](torch.tensor([[3.0, 1.0]])))
    assert net.logit_scale.item() == pytest.approx(100) and net.note == ""
    assert net.classifier(["a", "bb"], ["{}"]).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ViT-B32",), r"Unknown model 'ViT-B32': nearest known names are .*ViT-B-32"),
        (("tabletop-bsae",), "Unknown model 'tabletop-bsae': nearest known names are tabletop-base"),
        (("ViT-B-32", "opnai"), "Unknown tag or weight file of ViT-B-32 'opnai': nearest known names are openai"),
        (("ViT-B-32", "openai"), "trained with QuickGELU: load 'ViT-B-32-quickgelu' instead"),
        (("ViT-B-32-quickgelu", "laion2b_s34b_b79k"), "nearest known names"),
        (("local-dir:nowhere",), "holds no open_clip_config.json"),
        (("supervised",), "Unknown model 'supervised': nearest known names are supervised:"),
        (("ViT-B-32", None, "tpu"), "device is 'tpu', which this machine does not have"),
        (("ViT-B-32", None, "cpu", "fp8"), "precision is 'fp8', allowed are 'fp32', 'tf32', 'fp16', 'bf16'"),
    ],
)
def test_bad_names_get_one_clear_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        load_model(*arguments)


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", offline)
    with pytest.raises(
        ModelUnavailable, match=r"could not be fetched from the Hugging Face project 'laion/CLIP-ViT-B-32"
    ):
        load_model("ViT-B-32", "laion2b_s34b_b79k")


@pytest.fixture(scope="module")
def vit():
    return load_model("ViT-B-32", device="cpu")


@pytest.mark.slow
def test_any_open_clip_model_equals_open_clip_itself(vit):
    image = Image.effect_noise((300, 260), 90).convert("RGB")
    _, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    with torch.no_grad():
        expected = vit.net.encode_image(preprocess(image)[None])
        found = vit.encode_image(vit.from_pil(image)[None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert "random weights" in vit.note and vit.image_size == 224


def test_the_classifier_equals_open_clips_own(vit):
    names, templates = ["cat", "dog"], ["a photo of a {}", "a drawing of a {}"]
    functions = [lambda c, t=t: t.format(c) for t in templates]
    expected = open_clip.build_zero_shot_classifier(
        vit.net, open_clip.get_tokenizer("ViT-B-32"), names, functions, device="cpu"
    )
    torch.testing.assert_close(vit.classifier(names, templates), expected.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_from_pil_takes_every_image_mode(vit, mode):
    pixels = vit.from_pil(Image.new(mode, (1, 1)))
    assert pixels.shape == (3, 224, 224) and pixels.min() >= 0 and pixels.max() <= 1


def test_tokens_are_a_grid(vit):
    assert vit.encode_tokens(torch.rand(2, 3, 224, 224)).shape == (2, 7, 7, 768)


def test_tf32_is_asked_for_and_never_by_default():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        net = load_model("tabletop-small", device="cpu", precision="tf32")
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        assert net.precision == "tf32" and next(net.net.parameters()).dtype == torch.float32
        load_model("tabletop-small", device="cpu")
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
def test_half_precision_stays_near_fp32(precision, bits):
    """Within ten roundings of that many bits, and not closer than a hundredth of one."""
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact, half = (
        load_model("tabletop-small", device="cpu", precision=p).encode_image(pixels) for p in ("fp32", precision)
    )
    change = float((half - exact).norm() / exact.norm())
    assert half.dtype == torch.float32 and 0.01 * 2**-bits < change < 10 * 2**-bits
