"""Checkpoints in the shapes people use, by the public call, against open_clip itself: random weights, no download.

Each is saved to a folder, as `local-dir:` wants it, and loaded back. SigLIP's own SentencePiece tokenizer
needs a download; the one of the tabletop world, in the same form, stands in for it. So its text tower,
its bias and its prompts are proved here, and the pieces that its own tokenizer cuts a word into are not.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tabletop import tokenizer as words
from zsr_utils.models import Model, ModelUnavailable, _openclip, load_model


# side and width of the token grid, and of how many blocks or stages
CHECKPOINTS = {
    "ViT-B-32": (7, 768, 12),
    "RN50": (7, 2048, 5),
    "ViT-B-16-SigLIP": (14, 768, 12),
    "coca_ViT-B-32": (7, 768, 12),
    "convnext_base": (7, 1024, 4),
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}
NAMES, TEMPLATES = ["mug", "bottle", "chair"], ["a photo of a {}", "a drawing of a {}"]
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "cache"))


def write(folder, net, config, preprocess=PREPROCESS):
    """A model as people publish it: config, half-precision weights, tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}, folder / WEIGHTS)
    if config["text_cfg"].get("hf_tokenizer_name"):
        words.save(folder)
    return folder


def half_rounded(net):
    """The same network with weights that half precision holds exactly."""
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half())
    return net.eval().requires_grad_(False)


@dataclass
class Case:
    name: str
    own: torch.nn.Module  # open_clip's
    net: Model
    folder: Path
    pixels: torch.Tensor
    expected: torch.Tensor  # features by open_clip's preprocessing and encode_image


@pytest.fixture(scope="module", params=CHECKPOINTS)
def case(request, tmp_path_factory):
    torch.manual_seed(0)
    options = {f"image_{k}" if k != "resize_mode" else "image_resize_mode": v for k, v in PREPROCESS.items()}
    own, _, preprocess = open_clip.create_model_and_transforms(request.param, **options)
    for module in own.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)  # CLIP's ResNets start with branches that are switched off
    folder = tmp_path_factory.mktemp("checkpoint")
    write(folder, half_rounded(own), open_clip.get_model_config(request.param))
    net = load_model(f"local-dir:{folder}", device="cpu")
    small = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    images = [Image.fromarray(values).resize((320, 240), Image.Resampling.BICUBIC) for values in small]
    expected = own.encode_image(torch.stack([preprocess(image) for image in images]))
    yield Case(request.param, own, net, folder, torch.stack([net.from_pil(image) for image in images]), expected)
    shutil.rmtree(folder)


def test_features_and_tokens_are_those_of_open_clips_preprocess_and_encode(case):
    side, width, depth = CHECKPOINTS[case.name]
    features, layers = case.net.encode_layers(case.pixels)
    found = case.net.encode_image(case.pixels)
    assert len(layers) == depth and layers[-1].shape == (2, side, side, width) and layers[-1].std() > 0
    assert all(len(t) == 2 and t.shape[1] == t.shape[2] for t in layers)
    torch.testing.assert_close(case.net.encode_tokens(case.pixels), layers[-1])
    torch.testing.assert_close(features, found, atol=1e-5, rtol=1e-5)
    if isinstance(case.own, open_clip.CoCa):  # the one that normalises unasked; the handle gives raw features of all
        assert (found.norm(dim=1) - 1).abs().min() > 1e-3
        found = F.normalize(found, dim=1)
    assert case.pixels.min() >= 0 and case.pixels.max() <= 1
    assert (case.expected[0] - case.expected[1]).abs().max() > 1e-4  # ten tolerances
    torch.testing.assert_close(found, case.expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_classifier_and_logits_are_open_clips_with_scale_and_bias(case):
    tokenizer = open_clip.get_tokenizer(f"local-dir:{case.folder}" if "SigLIP" in case.name else case.name)
    functions = [lambda c, t=t: t.format(c) for t in TEMPLATES]
    texts = open_clip.build_zero_shot_classifier(case.own, tokenizer, NAMES, functions, device="cpu").T
    found = case.net.classifier(NAMES, TEMPLATES)
    assert (texts[0] - texts[1]).abs().max() > 1e-4
    torch.testing.assert_close(found, texts, atol=1e-5, rtol=1e-5)
    logits = case.own.logit_scale.exp() * F.normalize(case.expected, dim=-1) @ texts.T
    if "SigLIP" in case.name:
        assert case.own.logit_bias.item() == -10
        logits = logits + case.own.logit_bias
    torch.testing.assert_close(case.net.logits_of(case.expected, found), logits, atol=1e-4, rtol=1e-4)


def test_what_was_loaded_is_recorded(case):
    net = case.net
    recorded = {key: net.preprocessing[key] for key in PREPROCESS}
    assert recorded == PREPROCESS and net.activation == "gelu" and net.note == ""
    assert net.name == f"local-dir:{case.folder}" and net.image_size == 224


# What follows needs no large network: a transformer of two blocks a tower.

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def small(folder, seed=0, preprocess=PREPROCESS, **changes):
    torch.manual_seed(seed)
    config = SMALL | changes
    return write(folder, half_rounded(open_clip.CLIP(**config)), config, preprocess)


@pytest.fixture
def folder(tmp_path):
    return small(tmp_path / "small")


@pytest.fixture
def architecture(tmp_path):
    """The same shape as a named architecture, as for any weight file that comes alone."""
    (tmp_path / "configs").mkdir()
    for name, changes in (("small-gelu", {}), ("small-gelu-quickgelu", {"quick_gelu": True})):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(SMALL | changes))
    open_clip.add_model_config(tmp_path / "configs")
    yield "small-gelu"
    for name in ("small-gelu", "small-gelu-quickgelu"):
        open_clip.factory._MODEL_CONFIGS.pop(name, None)
    open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path / "configs")


@pytest.mark.parametrize("quick", [False, True])
def test_the_activation_is_the_folders_own(tmp_path, quick):
    net = load_model(f"local-dir:{small(tmp_path / 'own', quick_gelu=quick)}", device="cpu")
    kinds = {type(m).__name__ for m in net.modules() if "gelu" in type(m).__name__.lower()}
    assert kinds == ({"QuickGELU"} if quick else {"GELU"}) and net.activation == ("quickgelu" if quick else "gelu")


def test_a_weight_file_alone_records_the_activation_and_says_what_was_assumed(folder, architecture, tmp_path):
    file = shutil.copy(folder / WEIGHTS, tmp_path / "alone.safetensors")
    plain, quick = (load_model(name, str(file), device="cpu") for name in (architecture, f"{architecture}-quickgelu"))
    assert (plain.activation, quick.activation) == ("gelu", "quickgelu") and plain.fingerprint != quick.fingerprint
    assert "says nothing of activation and preprocessing: QuickGELU" in quick.note


def test_a_weight_file_beside_its_config_must_agree_with_it(folder, architecture, tmp_path):
    defaults = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    agreeing = small(tmp_path / "agreeing", preprocess=defaults)
    assert load_model(architecture, str(agreeing / WEIGHTS), device="cpu").note == ""
    with pytest.raises(ValueError, match=r"has its own GELU: load 'local-dir:.*agreeing' instead"):
        load_model(f"{architecture}-quickgelu", str(agreeing / WEIGHTS))
    with pytest.raises(ValueError, match=r"has its own interpolation, mean, resize_mode, std: load"):
        load_model(architecture, str(folder / WEIGHTS))


def test_a_folder_takes_no_other_weights(folder):
    with pytest.raises(ValueError, match="pretrained is 'openai', but local-dir: brings its own weights"):
        load_model(f"local-dir:{folder}", "openai")


class Code:
    """What a malicious checkpoint holds: unpickling it calls a function."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint was run')",))


def pickle_with_code(folder):
    (folder / WEIGHTS).unlink()
    torch.save({"visual.proj": Code()}, folder / "open_clip_pytorch_model.bin")


def cut_short(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def of_another_architecture(folder):
    small(folder.with_name("wide"), embed_dim=24)
    shutil.copy(folder.with_name("wide") / WEIGHTS, folder / WEIGHTS)


def of_another_depth(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if "resblocks.1" not in k}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (pickle_with_code, "would run exec while it is read, and was not loaded"),
        (cut_short, "cut short, damaged or of another kind"),
        (of_another_architecture, "holds the weights of another architecture than"),
        (of_another_depth, "holds the weights of another architecture than .*24 missing: "),
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no open_clip_model.safetensors"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "is empty"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{"), "is no JSON file of settings"),
    ],
)
def test_a_bad_checkpoint_gets_one_clear_sentence(folder, architecture, spoil, words):
    spoil(folder)
    with pytest.raises(ValueError, match=words) as raised:
        load_model(f"local-dir:{folder}")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    file = next((p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")), None)
    if file and (folder / "open_clip_config.json").read_text() != "{":
        (folder / "open_clip_config.json").unlink()
        with pytest.raises(ValueError, match=words):
            load_model(architecture, str(file))


def test_two_checkpoints_of_one_name_have_nothing_in_common(folder):
    before = load_model(f"local-dir:{folder}", device="cpu")
    texts = before.classifier(NAMES, TEMPLATES)
    small(folder, seed=1)
    after = load_model(f"local-dir:{folder}", device="cpu")
    assert after.name == before.name and after.fingerprint != before.fingerprint
    assert not torch.allclose(after.classifier(NAMES, TEMPLATES), texts, atol=1e-2)
    small(folder, seed=0)
    assert load_model(f"local-dir:{folder}", device="cpu").fingerprint == before.fingerprint
    small(folder, seed=0, preprocess=PREPROCESS | {"interpolation": "bicubic"})
    assert load_model(f"local-dir:{folder}", device="cpu").fingerprint != before.fingerprint


def test_a_missing_tokenizer_says_what_to_fetch(tmp_path, monkeypatch):
    text = SMALL["text_cfg"] | {"hf_tokenizer_name": "org/pieces"}
    folder = small(tmp_path / "pieces", text_cfg=text)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer that can be read .* tokenizer_config.json of 'org/pieces'"):
        load_model(f"local-dir:{folder}")

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(ModelUnavailable, match=r"Hugging Face project 'timm/ViT-B-16-SigLIP' \(no network\)"):
        _openclip._tokenizer("ViT-B-16-SigLIP", open_clip.get_model_config("ViT-B-16-SigLIP"))


def test_a_hub_project_without_its_weights_is_not_loaded_with_random_ones(folder, monkeypatch):
    """open_clip itself goes on with random weights when only the config could be fetched."""

    def fetch(model_id, filename=None, **_):
        if filename == "open_clip_config.json":
            return str(folder / filename)
        raise FileNotFoundError("no weights")

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", fetch)
    with pytest.raises(ModelUnavailable, match="could not be fetched from the Hugging Face project 'org/name'"):
        load_model("hf-hub:org/name")
