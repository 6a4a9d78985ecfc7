"""Supervised classifiers: the network's own logits through the handle, and names of classes."""

import json

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from tiny import tiny_model
from torchvision import models

import tabletop.train
from zsr_utils.models import ModelUnavailable, _tabletop, known_models, load_model
from zsr_utils.models._supervised import SupervisedModel, imagenet_names


# a CNN and a transformer of timm, one with two heads, CNNs of torchvision with and without a linear end
NETWORKS = {
    "resnet10t": lambda: timm.create_model("resnet10t"),
    "vit_tiny_patch16_224": lambda: timm.create_model("vit_tiny_patch16_224"),
    "deit_tiny_distilled_patch16_224": lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
    "torchvision/mobilenet_v3_small": models.mobilenet_v3_small,
    "squeezenet1_0": models.squeezenet1_0,
}
LINEAR = {"resnet10t": 512, "vit_tiny_patch16_224": 192, "torchvision/mobilenet_v3_small": 1024}
GRIDS = {"resnet10t": 6, "squeezenet1_0": 13, "torchvision/mobilenet_v3_small": 7}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request, tmp_path_factory):
    """Name, the library's own network with random weights, and the handle that read them from a file."""
    torch.manual_seed(0)
    own = NETWORKS[request.param]().eval().requires_grad_(False)
    for name, values in own.named_parameters():
        if name.endswith("bias"):  # zero when new, which would hide a head without it
            values.normal_(std=0.1)
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(own.state_dict(), file)
    return request.param, own, load_model(f"supervised:{request.param}", str(file), device="cpu")


@pytest.fixture(scope="module")
def squeezenet():
    return load_model("supervised:squeezenet1_0", device="cpu")


def pixels_of(net, n=2):
    return torch.rand(n, 3, net.image_size, net.image_size, generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_the_network_itself(case):
    name, own, net = case
    pixels, head = pixels_of(net), net.classifier(net.class_names, ["a photo of a {}"])
    expected = own((pixels - net.mean) / net.std)
    features = net.encode_image(pixels)
    assert head.shape == (1000, features.shape[1] + 1) and features.shape[1] == LINEAR.get(name, 1000)
    assert expected.std() > 1e-3
    torch.testing.assert_close(net.logits(pixels, head), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net.logits_of(features, head[3:5]), expected[:, 3:5], atol=1e-5, rtol=1e-4)


def test_directions_and_features_make_the_logits(case):
    net = case[2]
    pixels, head = pixels_of(net), net.classifier(net.class_names)
    features = net.encode_image(pixels)
    weights, bias = net.directions(head)
    assert weights.shape == (1000, features.shape[1]) and bias.shape == (1000,)
    torch.testing.assert_close(features @ weights.T + bias, net.logits(pixels, head), atol=1e-5, rtol=1e-4)
    net.check_classifier(head, features.shape[1])
    d = features.shape[1]
    for wrong in (weights, head[:1], head[0]):
        with pytest.raises(ValueError, match=rf"allowed is \(K, {d + 1}\) with K at least 2"):
            net.check_classifier(wrong, d)


def test_directions_of_a_text_classifier_are_its_rows_and_rank_as_its_logits():
    net, classifier = tiny_model(), torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(4))
    weights, bias = net.directions(classifier)
    assert weights is classifier and bias.tolist() == [0] * 5
    net.net.logit_bias = torch.tensor(-10.0)  # as SigLIP has
    order = (features @ weights.T + bias).argsort(1)
    assert torch.equal(order, net.logits_of(features, classifier).argsort(1))
    net.check_classifier(classifier, 4)
    with pytest.raises(ValueError, match=r"classifier has shape \(5, 4\), allowed is \(K, 3\) with K at least 2"):
        net.check_classifier(classifier, 3)


def test_tokens_are_a_square_grid_and_layers_end_in_it(case):
    name, _, net = case
    pixels = pixels_of(net)
    tokens, (features, layers) = net.encode_tokens(pixels), net.encode_layers(pixels)
    side = GRIDS.get(name, 14)
    assert tokens.shape[:3] == (2, side, side) and len(layers) > 3
    torch.testing.assert_close(layers[-1], tokens)
    torch.testing.assert_close(features, net.encode_image(pixels), atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_pixels_and_weights_are_frozen(case):
    pixels = pixels_of(case[2], 1).requires_grad_()
    (gradient,) = torch.autograd.grad(case[2].encode_image(pixels).square().sum(), pixels)
    assert gradient.abs().sum() > 0 and not any(p.requires_grad for p in case[2].parameters())


def test_preprocessing_is_the_librarys_own(case):
    name, own, net = case
    image = Image.effect_noise((300, 260), 90)
    if net.net.library == "timm":
        expected = create_transform(**resolve_model_data_config(own))(image.convert("RGB"))
    else:
        expected = models.get_model_weights(name.split("/")[-1]).IMAGENET1K_V1.transforms()(image.convert("RGB"))
    torch.testing.assert_close((net.from_pil(image) - net.mean) / net.std, expected)
    assert net.preprocessing["image_size"] == net.image_size and net.note == ""


def test_the_activation_is_the_networks():
    assert load_model("supervised:vit_tiny_patch16_224", device="cpu").activation == "gelu"
    assert load_model("supervised:torchvision/mobilenet_v3_small", device="cpu").activation == "hardswish"


@pytest.mark.slow
def test_half_precision_is_close_to_full():
    torch.manual_seed(0)
    full = load_model("supervised:resnet10t", device="cpu")
    torch.manual_seed(0)
    half = load_model("supervised:resnet10t", device="cpu", precision="bf16")
    pixels, head = pixels_of(full), full.classifier(["tench", "goldfish"])
    assert half.fingerprint == full.fingerprint and half.classifier(["tench"]).dtype == torch.float32
    torch.testing.assert_close(half.logits(pixels, head), full.logits(pixels, head), atol=0.05, rtol=0.1)


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["tench", "gas_pump", "English springer", "chain saw"], [0, 571, 217, 491]),
        (["n01440764", "great grey owl, great gray owl, Strix nebulosa"], [0, 24]),
        (["n02012849", "construction crane"], [134, 517]),
        (["kite (bird of prey)", "TINCA TINCA"], [21, 0]),
        (["missile", "projectile"], [657, 744]),
    ],
)
def test_names_find_their_rows(squeezenet, names, rows):
    assert squeezenet.classifier(names)[:, :-1].argmax(1).tolist() == rows  # its head is the identity


def test_case_tells_a_dog_from_a_garment(squeezenet):
    assert squeezenet.classifier(["Cardigan", "cardigan"])[:, :-1].argmax(1).tolist() == [264, 474]


def test_a_whole_vocabulary_in_its_order_is_every_row(squeezenet):
    from open_clip import IMAGENET_CLASSNAMES

    assert len(set(IMAGENET_CLASSNAMES)) < 1000
    for names in (IMAGENET_CLASSNAMES, squeezenet.class_names, [i for (i,) in imagenet_names(1000)[1]]):
        assert torch.equal(squeezenet.classifier(names)[:, :-1], torch.eye(1000))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["goldfsh"], r"Unknown class name of supervised:squeezenet1_0 'goldfsh': nearest known names are goldfish"),
        (["crane"], r"'crane' means 2 classes of .*: n02012849 \(crane\), n03126707 \(crane\)\."),
        (["tench", "Tinca tinca"], r"'tench' and 'Tinca tinca' mean the same class of supervised:squeezenet1_0\."),
        ([], "class_names must hold at least one text"),
    ],
)
def test_names_that_mean_no_one_class_are_refused(squeezenet, names, words):
    with pytest.raises(ValueError, match=words):
        squeezenet.classifier(names)


def test_there_is_no_text_tower_and_random_weights_say_so(squeezenet):
    with pytest.raises(TypeError, match="supervised:squeezenet1_0 has no text tower"):
        squeezenet.encode_text(["a photo of a dog"])
    assert "random weights" in squeezenet.note


def test_a_transformer_of_torchvision_has_no_grid_here():
    net = load_model("supervised:swin_t", device="cpu")
    with pytest.raises(NotImplementedError, match="supervised:swin_t: its image tower gives no token grid"):
        net.encode_tokens(pixels_of(net, 1))


def noise_picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8))


@pytest.fixture
def weights(tmp_path):
    """A SqueezeNet for three classes in a file, and the function that writes the JSON beside it."""
    torch.manual_seed(0)
    network = models.squeezenet1_0(num_classes=3).eval().requires_grad_(False)
    network.features[0].weight.mul_(100)  # untrained weights shrink a picture to nearly nothing
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "three.pt")
    tell = lambda **own: (tmp_path / "three.json").write_text(json.dumps(own))  # noqa: E731
    return network, str(tmp_path / "three.pt"), tell


def test_a_json_file_beside_the_weights_says_how_they_were_trained(weights):
    network, file, tell = weights
    own = {"image_size": 60, "resize": 80, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]}
    tell(**own, class_names=["dog", "cat", "sea lion"])
    net = load_model("supervised:squeezenet1_0", file, device="cpu")
    assert {k: net.preprocessing[k] for k in own} == own and net.preprocessing["interpolation"] == "bilinear"
    pixels = net.from_pil(noise_picture())[None]
    assert pixels.shape == (1, 3, 60, 60)
    mean, std = (torch.tensor(own[k]).view(3, 1, 1) for k in ("mean", "std"))
    expected = network((pixels - mean) / std)[:, [2, 0]]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(net.logits(pixels, net.classifier(["sea_lion", "dog"])), expected)
    tell(**{**own, "resize": 81}, class_names=["dog", "cat", "sea lion"])
    assert load_model("supervised:squeezenet1_0", file, device="cpu").fingerprint != net.fingerprint


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            {"crop": 3},
            r"three.json' says 'crop', allowed are image_size, resize, interpolation, mean, std, class_names",
        ),
        ({"mean": 0.5}, r"mean is 0.5, allowed are three numbers"),
        ({"interpolation": "cubic"}, r"interpolation is 'cubic', allowed are .*'bicubic'"),
        ({"class_names": ["a", "b", "c"], "resize": 100}, "resize is 100, allowed is the image_size of 224 or more"),
        ({"class_names": ["a", "b"]}, r"another architecture than supervised:squeezenet1_0 \(2 of another shape"),
        ({}, r"another architecture than .* \(2 of another shape: 'classifier.1.weight' \(3, 512, 1, 1\)"),
    ],
)
def test_what_the_json_file_cannot_say(weights, own, words):
    weights[2](**own)
    with pytest.raises(ValueError, match=words):
        load_model("supervised:squeezenet1_0", weights[1], device="cpu")


def test_a_head_of_unknown_classes_says_how_to_name_them():
    network = timm.create_model("resnet10t", num_classes=7)
    size = {"image_size": 64, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    net = SupervisedModel(network, library="timm", namings=imagenet_names(7), name="seven", transform=None, **size)
    with pytest.raises(ValueError, match="seven: nobody recorded what its 7 outputs are; a JSON file beside"):
        net.classifier(["dog"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("supervised:resnet5",), "Unknown timm or torchvision model 'resnet5': nearest known names are .*resnet50"),
        (("supervised:torchvision/resnet10t",), "Unknown timm or torchvision model 'torchvision/resnet10t'"),
        (("supervised:resnet18", "a1_in"), "Unknown tag or weight file of supervised:resnet18 'a1_in': .* a1_in1k"),
        (("supervised:squeezenet1_0", "IMAGENET"), "nearest known names are IMAGENET1K_V1"),
        (("supervised:vit_small_patch14_dinov2",), "has no classification head"),
    ],
)
def test_unknown_names_and_tags_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        load_model(*arguments)


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelUnavailable, match=r"Hugging Face project 'timm/resnet18.a1_in1k' \(no network\)"):
        load_model("supervised:resnet18", "a1_in1k")
    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(ModelUnavailable, match=r"'https://.*squeezenet1_0-\w+.pth' of 5 MB \(no network\)"):
        load_model("supervised:squeezenet1_0", "IMAGENET1K_V1")


@pytest.mark.parametrize("tower", ["tabletop_vit_small", "tabletop_resnet"])
def test_an_exported_classifier_loads_by_its_plain_name(tower, tmp_path, monkeypatch):
    config = tabletop.train.read_config(tabletop.train.DEFAULT)
    config |= {"name": "tabletop-supervised", "tower": tower, "loss": "supervised"}
    torch.manual_seed(0)
    network = tabletop.train.build(config).eval().requires_grad_(False)
    state = {
        "samples": 1,
        "cpu_seconds": 1.0,
        "curve": [{"samples": 1, "loss": 1.0, "accuracy": 0.1, "cpu_seconds": 1}],
    }
    tabletop.train.export(network, config, state, tmp_path / "tabletop-supervised")
    monkeypatch.setattr(_tabletop, "FOLDER", tmp_path)
    assert "tabletop-supervised" in known_models()
    net = load_model("tabletop-supervised", device="cpu")
    pixels = pixels_of(net)
    expected = network((pixels - 0.5) / 0.25)[:, [1, 0]]
    found = net.logits(pixels, net.classifier(net.class_names[1::-1], ["a photo of a {}"]))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-2)  # stored as fp16
    assert net.trained_on == "tabletop" and net.image_size == 64 and net.encode_tokens(pixels).shape[1:3] == (8, 8)
    assert net.from_pil(Image.new("L", (100, 80))).shape == (3, 64, 64)
    with pytest.raises(
        ValueError, match="Unknown class name of tabletop-supervised 'mugg': nearest known names are mug"
    ):
        net.classifier(["mugg"])
