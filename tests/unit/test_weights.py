"""Weight files: what training scripts put around tensors, files that hold none, and weights of another size."""

import json
import os
import pickle
from argparse import Namespace

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zsr_utils.models import ModelUnavailable, load_model
from zsr_utils.models._weights import fill


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def tiny_clip(monkeypatch, tmp_path):
    """An architecture of open_clip's for 32 px pictures, and one like it for 48 px and 10 tokens."""
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "cache"))
    other = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 48}}
    other["text_cfg"] = {**TINY["text_cfg"], "context_length": 10}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-clip", TINY)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-clip-48", other)


def state_of(name: str = "tiny-clip") -> dict:
    torch.manual_seed(0)
    return open_clip.create_model(name).state_dict()


def before(prefix: str):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def under(*keys: str, beside: dict | None = None):
    def wrap(state):
        for key in reversed(keys):
            state = {"epoch": 3, **(beside or {}), key: state}
        return state

    return wrap


def averaged(state):
    return {"n_averaged": torch.tensor(5), **before("module.")(state)}


def compiled_tower(state):
    return {key.replace("visual.", "visual._orig_mod.", 1): value for key, value in state.items()}


WRAPPED = {
    "plain": dict,
    "orig_mod": before("_orig_mod."),
    "module": before("module."),
    "model": before("model."),
    "another name": before("network."),
    "nested": before("module._orig_mod.model."),
    "compiled tower": compiled_tower,
    "averaged": averaged,
    "under state_dict": under("state_dict", beside={"args": Namespace(lr=1), "optimizer": {"state": {0: {}}}}),
    "under model": under("model"),
    "under model_state_dict": under("model_state_dict"),
    "under model_ema": under("model_ema"),
    "under two": under("model", "state_dict"),
    "both": lambda state: under("module")(before("module._orig_mod.")(state)),
}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"visual": nn.Linear(2, 3), "head": nn.Linear(3, 2)})


@pytest.mark.parametrize("form", WRAPPED)
def test_what_training_scripts_put_around_weights_is_taken_off(form, tmp_path):
    net, notes, state = small(), [], {key: value + 1 for key, value in small().state_dict().items()}
    torch.save(WRAPPED[form](state), tmp_path / "weights.pt")
    fill(net, tmp_path / "weights.pt", "small", notes)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items()) and not notes


@pytest.mark.parametrize("name", ["tiny-clip", "supervised:squeezenet1_1"])
def test_open_clips_models_and_classifiers_read_the_same_forms(name, tmp_path):
    load = lambda *file: load_model(name, *file, device="cpu").net  # noqa: E731
    state = load().state_dict() if name == "tiny-clip" else load().network.state_dict()
    torch.save(under("model_ema")(before("module._orig_mod.")(state)), tmp_path / "weights.pt")
    found = load(str(tmp_path / "weights.pt")).state_dict()
    assert all(torch.equal(found.get(key, found.get(f"network.{key}")), value) for key, value in state.items())


def test_of_two_state_dicts_the_trained_one_is_read_and_a_note_says_so(tmp_path):
    net, notes, state = small(), [], small().state_dict()
    torch.save({"model_ema": {k: v + 1 for k, v in state.items()}, "model": state}, tmp_path / "two.pt")
    fill(net, tmp_path / "two.pt", "small", notes)
    assert torch.equal(net.state_dict()["head.bias"], state["head.bias"])
    assert notes == ["of the weight file's state dicts model_ema, model, model was read"]


def test_safetensors_are_known_by_their_content(tmp_path):
    net = small()
    save_file({key: value + 1 for key, value in net.state_dict().items()}, tmp_path / "weights.pt")
    fill(net, tmp_path / "weights.pt", "small", [])
    assert torch.equal(net["head"].bias, small()["head"].bias + 1)


def test_weights_of_another_resolution_are_noted_with_both_sizes(tmp_path):
    torch.save(state_of("tiny-clip-48"), tmp_path / "weights.pt")
    net = load_model("tiny-clip", str(tmp_path / "weights.pt"), device="cpu")
    for sizes in ("6 × 6 patches (48 px) to the model's 4 × 4 patches (32 px)", "10 tokens to the model's 12 tokens"):
        assert f"position embedding interpolated from the weights' {sizes}" in net.note
    torch.save(net.net.state_dict(), tmp_path / "weights.pt")
    assert "interpolated" not in load_model("tiny-clip", str(tmp_path / "weights.pt"), device="cpu").note


class Runs:
    """What a malicious checkpoint holds: unpickling it calls a function."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def pickled(held, protocol: int) -> bytes:
    return pickle.dumps(held, protocol)


NO_WEIGHTS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "is a Git LFS pointer",
    b"<!DOCTYPE html>\n<html>Sign in": "is a text in place of the weights: '<!DOCTYPE html> <html>Sign in'",
    b"cannot find\nthat file": "is a text in place of the weights: 'cannot find that file'",
    b"": "is empty",
    b"PK\x03\x04\x00": "cut short, damaged or of another kind",
    b"\x00\x01\x02": "cut short, damaged or of another kind",
    b"\x20\0\0\0\0\0\0\0{": "cut short, damaged or of another kind",
    pickled(Runs(os.system, "exit 1"), 0): r"would run (posix|nt).system while it is read",
    pickled(Runs(os.system, "exit 1"), 2): r"would run (posix|nt).system while it is read",
    pickled({"a": Runs(exec, "raise SystemExit")}, 4): r"would run (builtins\.)?exec while it is read",
    pickled([1, 2], 2): "holds no tensors by name|cut short",
}


@pytest.mark.parametrize("content", NO_WEIGHTS, ids=list(NO_WEIGHTS.values()))
def test_what_is_no_weight_file_is_named_with_the_reason(content, tmp_path):
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights.bin' .*({NO_WEIGHTS[content]})"):
        fill(small(), tmp_path / "weights.bin", "small", [])


@pytest.mark.parametrize("name", ["tiny-clip", "supervised:squeezenet1_1", "local-dir"])
def test_every_way_to_a_weight_file_gives_that_reason(name, tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    arguments = (f"local-dir:{tmp_path}",) if name == "local-dir" else (name, str(file))
    with pytest.raises(ValueError, match=r"pytorch_model.bin' is a Git LFS pointer in place of the weights"):
        load_model(*arguments, device="cpu")


def test_a_checkpoint_with_code_is_refused_by_what_it_would_have_run(tmp_path):
    torch.save({"model": small().state_dict(), "note": Runs(os.system, f"touch {tmp_path}/ran")}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match=r"code.pt' would run (posix|nt)\.system while it is read, and was not loaded"):
        fill(small(), tmp_path / "code.pt", "small", [])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("pretrained", "words"), [("{}/gone.pt", "there is no weight file '.*gone.pt'"), ("{}", "is a folder, allowed is")]
)
@pytest.mark.parametrize("name", ["tiny-clip", "supervised:squeezenet1_1"])
def test_a_file_that_is_not_there_is_no_tag(name, pretrained, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        load_model(name, pretrained.format(tmp_path), device="cpu")


def test_weights_of_another_architecture_say_how_they_differ(tmp_path):
    state = state_of()
    state["visual.conv1.weight"] = torch.zeros(64, 3, 16, 16)
    state["extra.weight"] = state.pop("ln_final.weight")
    torch.save(state, tmp_path / "other.pt")
    said = (
        r"other.pt' holds the weights of another architecture than tiny-clip \(1 missing: 'ln_final.weight'; "
        r"1 unexpected: 'extra.weight'; 1 of another shape: 'visual.conv1.weight' \(64, 3, 16, 16\) in place of "
        r"\(64, 3, 8, 8\)\)"
    )
    with pytest.raises(ValueError, match=said):
        load_model("tiny-clip", str(tmp_path / "other.pt"), device="cpu")
    with pytest.raises(ValueError, match=r"supervised:squeezenet1_1 \(52 missing: 'features.0.weight', .*unexpected"):
        load_model("supervised:squeezenet1_1", str(tmp_path / "other.pt"), device="cpu")


def test_another_width_stops_open_clip_early_and_is_told_the_same_way(tmp_path):
    state = state_of() | {"positional_embedding": torch.zeros(12, 8)}
    torch.save(state, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"'positional_embedding' \(12, 8\) in place of \(12, 16\)"):
        load_model("tiny-clip", str(tmp_path / "wide.pt"), device="cpu")


@pytest.mark.parametrize("content", ["{", "3", ""])
def test_a_damaged_config_beside_weights_is_named(content, tmp_path):
    torch.save(state_of(), tmp_path / "weights.pt")
    (tmp_path / "open_clip_config.json").write_text(content)
    (tmp_path / "weights.json").write_text(content)
    for name, config in (("tiny-clip", "open_clip_config.json"), ("supervised:squeezenet1_1", "weights.json")):
        with pytest.raises(ValueError, match=rf"{config}' is no JSON file of settings by name"):
            load_model(name, str(tmp_path / "weights.pt"), device="cpu")


@pytest.mark.parametrize("model", ["tabletop-small", "tabletop-supervised"])
def test_a_folder_of_the_family_is_a_model_like_any_other(model):
    """Its tower is registered by a package that open_clip does not know of."""
    from zsr_utils.models._tabletop import FOLDER

    own = load_model(f"local-dir:{FOLDER / model}", device="cpu")
    assert own.fingerprint == load_model(model, device="cpu").fingerprint
    assert own.name == f"local-dir:{FOLDER / model}" and own.trained_on == "tabletop"


@pytest.mark.parametrize(
    "arguments", [("ViT-B-32", "laion2b_s34b_b79k"), ("hf-hub:laion/none",), ("supervised:resnet18", "a1_in1k")]
)
def test_a_hub_that_cannot_be_reached_is_told_at_once(arguments, monkeypatch, tmp_path):
    """The library tries five times and waits in between; asked once, it says why."""
    tried = []

    class Session:
        def head(self, url, timeout):
            tried.append(url)
            raise ConnectionError("no route to host")

    def never(*_, **__):
        pytest.fail("asked the network again")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", never)
    with pytest.raises(ModelUnavailable, match=r"Hugging Face project .* cannot be reached: no route to host"):
        load_model(*arguments, device="cpu")
    assert len(tried) == 1
