"""Training of the embedded models, on a model small enough for seconds."""

import csv
import json
from contextlib import nullcontext

import numpy as np
import open_clip
import pytest
import torch
import yaml

from tabletop import Scene, SceneDistribution, data, render, tokenizer as words, train
from tabletop.objectives import OBJECTIVES, normalise
from tabletop.scene import KINDS


CONFIG = {
    "name": "tiny",
    "changes": [],
    "loss": "clip",
    "overlap": 0,
    "tower": "tabletop_vit_small",
    "seed": 0,
    "scenes": 12,
    "captions": 2,
    "mention_card": 0.6,
    "about_word": 0.0,
    "samples": 24,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup": 8,
    "weight_decay": 0.05,
    "embed_dim": 16,
    "text": {"width": 32, "layers": 1, "heads": 2},
    "distribution": {"styles": [["photo", 0.5], ["sketch", 0.5]], "card": 0.2},
}


class Interrupted(Exception):
    pass


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Arguments of `train.train`: rendering in this process, and a checkpoint after every step."""

    class Pool:
        def imap_unordered(self, function, jobs):
            return map(function, jobs)

    class Context:
        def Pool(self, _):
            return nullcontext(Pool())

    monkeypatch.setattr(data.multiprocessing, "get_context", lambda _: Context())
    monkeypatch.setattr(train, "EVERY", CONFIG["batch_size"])
    validation = tmp_path / "validation.parquet"
    data.write_scenes(validation, [Scene(kind) for kind in KINDS], list(KINDS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {"models": tmp_path / "models", "validation": validation, "device": "cpu"}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An untrained model and the folder it was exported to."""
    torch.manual_seed(0)
    model = train.build(CONFIG).eval()
    curve = [{"samples": 8, "loss": 2.0, "zero_shot": 0.1, "cpu_seconds": 90.0}]
    state = {"samples": 8, "cpu_seconds": 90.0, "curve": curve}
    return model, train.export(model, CONFIG, state, tmp_path_factory.mktemp("models") / "tiny")


# Parts


def test_learning_rate_warms_up_and_falls_to_zero():
    config = {"learning_rate": 0.01, "warmup": 100, "samples": 1000}
    assert train.learning_rate(0, config) == pytest.approx(0.01 / 100)
    assert train.learning_rate(99, config) == pytest.approx(0.01)
    assert train.learning_rate(100, config) == pytest.approx(0.01)
    assert train.learning_rate(550, config) == pytest.approx(0.005)
    assert train.learning_rate(1000, config) == pytest.approx(0, abs=1e-12)
    assert train.learning_rate(2000, config) == pytest.approx(0, abs=1e-12)
    rates = [train.learning_rate(s, config) for s in range(0, 1001, 10)]
    assert np.argmax(rates) == 10 and (np.diff(rates[10:]) < 0).all() and (np.diff(rates[:10]) > 0).all()


def test_config_inherits_what_it_does_not_name(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"name": "base", "seed": 0, "text": {"width": 8, "layers": 2}}))
    (tmp_path / "wide.yaml").write_text("inherits: base.yaml\nname: wide\ntext: {width: 16}\n")
    (tmp_path / "seed.yaml").write_text("inherits: wide.yaml\nname: seed\nseed: 1\ntower: x\n")
    assert train.read_config(tmp_path / "base.yaml")["text"] == {"width": 8, "layers": 2}
    assert train.read_config(tmp_path / "seed.yaml") == {
        "name": "seed", "seed": 1, "tower": "x", "text": {"width": 16, "layers": 2},
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(train.CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_configs_are_complete(path):
    config = train.read_config(path)
    assert set(CONFIG) <= set(config)
    distribution = train.distribution_of(config)
    assert isinstance(distribution, SceneDistribution)
    assert sum(p for _, p in distribution.styles) == pytest.approx(1)
    assert config["warmup"] < config["samples"] and "inherits" not in config


def test_distribution_of_a_config_equals_the_one_written_in_python():
    assert train.distribution_of(CONFIG) == SceneDistribution(styles=(("photo", 0.5), ("sketch", 0.5)), card=0.2)


def test_models_share_images_exactly_if_their_data_are_the_same():
    key = train._data_key(CONFIG)
    assert key == train._data_key(CONFIG | {"name": "other", "embed_dim": 8, "samples": 8})
    assert key == train._data_key(CONFIG | {"tower": "tabletop_resnet", "loss": "siglip", "changes": ["loss"]})
    for change in ({"seed": 1}, {"scenes": 13}, {"distribution": {"card": 0.3}}, {"overlap": 10}):
        assert key != train._data_key(CONFIG | change)


def test_augmentation_moves_and_dims_but_stays_in_range():
    pixels = render([Scene("mug"), Scene("duck")]).pixels
    once, again = (train.augment(pixels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(once, again) and once.shape == pixels.shape
    assert once.min() >= 0 and once.max() <= 1
    assert not torch.equal(once, train.augment(pixels, torch.Generator().manual_seed(2)))
    assert (once.mean((1, 2, 3)) / pixels.mean((1, 2, 3)) - 1).abs().max() < 0.1


def test_image_tower_has_a_token_grid():
    model = train.build(CONFIG)
    tokens = model.visual.trunk.forward_features(torch.zeros(2, 3, 64, 64))
    assert tokens.shape[:1] + tokens.shape[2:] == (2, 64)
    assert tokens.shape[1] in (64, 65)  # 8 x 8, with or without a class token


def test_text_tower_ignores_what_follows_the_end(exported):
    model, _ = exported
    ids = words.encode(words.build(), ["a red mug"])
    other = ids.clone()
    other[0, 6:] = 20
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(ids), model.encode_text(other))


# Training


@pytest.mark.slow
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_interrupted_training_ends_with_the_same_weights(tmp_path, folders, monkeypatch, loss):
    config, objective = CONFIG | {"loss": loss}, OBJECTIVES[loss]
    straight = train.train(config, runs=tmp_path / "straight", **folders)
    expected = (straight / objective.weights).read_bytes()
    curve = list(csv.DictReader((straight / "curve.csv").open()))
    assert [int(row["samples"]) for row in curve] == [8, 16, 24]
    assert all(0 <= float(row[objective.metric]) <= 1 and float(row["loss"]) > 0 for row in curve)
    spent = [float(row["cpu_seconds"]) for row in curve]
    assert spent == sorted(spent)

    original = train.learning_rate

    def interrupt(samples, config):
        if samples >= 8:
            raise Interrupted
        return original(samples, config)

    folders = folders | {"models": tmp_path / "again"}
    monkeypatch.setattr(train, "learning_rate", interrupt)
    with pytest.raises(Interrupted):
        train.train(config, runs=tmp_path / "resumed", **folders)
    assert not (tmp_path / "again").exists(), "an unfinished model was exported"

    steps = []
    monkeypatch.setattr(train, "learning_rate", lambda s, c: steps.append(s) or original(s, c))
    resumed = train.train(config, runs=tmp_path / "resumed", **folders)
    assert set(steps) == {8, 16}
    assert (resumed / objective.weights).read_bytes() == expected


@pytest.mark.slow
def test_checkpoint_of_another_config_is_not_gone_on_from(tmp_path, folders, monkeypatch):
    train.train(CONFIG, runs=tmp_path, **folders)
    original, steps = train.learning_rate, []
    monkeypatch.setattr(train, "learning_rate", lambda s, c: steps.append(s) or original(s, c))
    folder = train.train(CONFIG, runs=tmp_path, **folders)
    assert steps == [], "a finished training was repeated"
    train.train(CONFIG | {"weight_decay": 0.1}, runs=tmp_path, **folders)
    assert set(steps) == {0, 8, 16}
    assert yaml.safe_load((folder / "training.yaml").read_text())["weight_decay"] == 0.1


# Export


def test_export_writes_open_clips_own_form(exported):
    _, folder = exported
    names = {p.name for p in folder.iterdir()}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "curve.csv"} <= names
    assert not [n for n in names if n.endswith(".tmp")]
    assert yaml.safe_load((folder / "training.yaml").read_text()) == CONFIG
    assert json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 16
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"], "a temporary folder was left"


def test_model_card_names_the_numbers_with_their_interval(exported):
    model, folder = exported
    card = (folder / "README.md").read_text()
    assert card.startswith("# tiny")
    assert "| Image-caption pairs seen | 8 |" in card
    assert "| 2 minutes of CPU time" in card
    assert "10.00 % (95 % Wilson interval 8.4" in card  # 120 of 1,200
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million" in card


def test_exported_folder_loads_with_open_clip_alone(exported):
    model, folder = exported
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    loaded.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo of a mug", "a dog"])
    assert torch.equal(tokens, words.encode(words.build(), ["a photo of a mug", "a dog"]))

    from PIL import Image

    grey = data.to_uint8(render([Scene("mug")]).pixels)[0]
    image = preprocess(Image.fromarray(grey))[None]
    pixels = torch.from_numpy(grey).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(image, normalise(pixels))  # a picture of 64 px is not resampled
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_image(image), model.encode_image(image), atol=2e-3, rtol=2e-2)
        torch.testing.assert_close(loaded.encode_text(tokens), model.encode_text(tokens), atol=2e-3, rtol=2e-2)
    assert loaded.logit_scale.item() == pytest.approx(model.logit_scale.item(), rel=1e-3)
