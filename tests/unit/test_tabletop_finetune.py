"""Fine-tuning on the ten kinds or on captions: where it starts, what it moves, and the weight average."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_tabletop_train import CONFIG, Interrupted, folders  # noqa: F401  the folders are a fixture

import zsr_utils as zsr
from tabletop import data, finetune, objectives, render, tokenizer as words, towers, train
from tabletop.scene import KINDS, Scene
from zsr_utils.models import _tabletop


pytestmark = pytest.mark.slow  # trains

CLIP = CONFIG | {"name": "start", "tower": "tabletop_vit_base", "embed_dim": 128}
BLOCK = {"start": "start", "samples": 24, "learning_rate": 0.01, "warmup": 8}
FINETUNED = CLIP | {"name": "finetuned", "changes": ["finetune"], "finetune": {**BLOCK, "trains": "all"}}
PROBE = FINETUNED | {"name": "probe", "finetune": {**BLOCK, "trains": "head"}}
CARDS = {"card": 0.5, "true_card": 0.0, "card_only": 0.4}
CAPTIONS = {"loss": "clip", "about_word": 0.5, "mention_card": 0.9, "distribution": CARDS}
READER = CLIP | {"name": "reader", "changes": ["finetune"], "finetune": {**BLOCK, **CAPTIONS}}
ATTACKED = {"loss": "fare", "epsilon": 8, "steps": 2}
FARE = CLIP | {"name": "fare", "changes": ["finetune"], "finetune": {**BLOCK, **ATTACKED}}
WISE = FINETUNED | {"name": "wise", "finetune": {"start": "start", "end": "finetuned", "alpha": 0.5}}


@pytest.fixture(scope="module")
def clip():
    """A CLIP model with random weights and statistics, as none of them would be left out unseen."""
    torch.manual_seed(0)
    model = train.build(CLIP)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def start(clip, tmp_path_factory):
    """The folder that it was exported to."""
    state = {"samples": 8, "cpu_seconds": 1.0, "curve": [{"samples": 8, "loss": 2.0, "zero_shot": 0.1}]}
    return train.export(clip, CLIP, state, tmp_path_factory.mktemp("models") / "start")


@pytest.fixture
def places(folders, start, tmp_path):  # noqa: F811
    """Arguments of `train.train`, with the start among the finished models."""
    folders["models"].mkdir()
    (folders["models"] / "start").symlink_to(start)
    return folders | {"runs": tmp_path / "runs"}


@pytest.fixture(scope="module")
def pixels():
    return render([Scene(kind) for kind in KINDS]).pixels


# Start


def test_fine_tuning_starts_as_the_zero_shot_model(clip, start, pixels):
    network = finetune.zero_shot_network(start).eval()
    with torch.no_grad():
        cosines = objectives.OBJECTIVES["clip"].logits(clip, "cpu")(pixels)
        logits = network(objectives.normalise(pixels))
    assert cosines.std(dim=0).min() > 1e-4, "every picture has the same scores"
    torch.testing.assert_close(logits, clip.logit_scale.exp() * cosines, atol=5e-3, rtol=0)  # stored as fp16
    assert torch.equal(network.head.bias, torch.zeros(10))


def test_features_of_the_head_are_the_embedding_at_length_one(clip, start, pixels):
    network = finetune.zero_shot_network(start).eval()
    pixels = objectives.normalise(pixels)
    with torch.no_grad():
        features = network.forward_head(network.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(features, clip.encode_image(pixels, normalize=True), atol=2e-3, rtol=0)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(10))


def test_own_start_is_needed(tmp_path):
    with pytest.raises(ValueError, match=r"^finetuned needs start, which has not been trained yet\.$"):
        finetune.starting_point(FINETUNED, tmp_path)


# Training


def weights_of(folder):
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def moved(folder, start):
    before = finetune.zero_shot_network(start).half().state_dict()
    return {key for key, value in weights_of(folder).items() if not torch.equal(value, before[key])}


def test_linear_probe_moves_the_head_and_nothing_else(places, start):
    folder = train.train(PROBE, **places)
    assert moved(folder, start) == {"head.weight", "head.bias"}


def test_fine_tuning_moves_everything(places, start):
    folder = train.train(FINETUNED, **places)
    assert moved(folder, start) == weights_of(folder).keys()


def test_the_block_sets_the_length_and_the_rates(places, monkeypatch):
    original, seen = train.learning_rate, []
    monkeypatch.setattr(train, "learning_rate", lambda s, c: seen.append((s, original(s, c))) or original(s, c))
    block = PROBE["finetune"] | {"samples": 16}
    folder = train.train(PROBE | {"finetune": block}, **places)
    assert dict(seen) == {0: pytest.approx(0.01 / 8), 8: pytest.approx(0.01)}
    assert [int(row["samples"]) for row in csv.DictReader((folder / "curve.csv").open())] == [8, 16]
    assert yaml.safe_load((folder / "training.yaml").read_text())["samples"] == CLIP["samples"]


def test_fine_tuning_on_captions_starts_with_both_towers_and_moves_both(places, start, clip, pixels):
    network = finetune.starting_point(READER, places["models"])
    texts = words.encode(words.build(), ["a photo of a mug", "a card that says duck"])
    with torch.no_grad():
        torch.testing.assert_close(network(pixels, texts), clip(pixels, texts), atol=5e-3, rtol=1e-2)
    before, after = weights_of(start), weights_of(train.train(READER, **places))
    assert {key for key in before if not torch.equal(after[key], before[key])} == before.keys() == after.keys()


def test_fine_tuning_on_captions_draws_its_own_scenes_and_captions(places, monkeypatch):
    original, asked = train.pretraining_captions, {}

    def captions(distribution, **recipe):
        asked.update(recipe, distribution=distribution, texts=original(distribution, **recipe))
        return asked["texts"]

    monkeypatch.setattr(train, "pretraining_captions", captions)
    train.train(READER, **places)
    assert (asked["about_word"], asked["mention_card"]) == (0.5, 0.9)
    drawn, usual = asked["distribution"], train.distribution_of(CLIP)
    assert drawn == replace(usual, **CARDS)
    scenes = [drawn.draw(0, "pretrain", i) for i in range(CLIP["scenes"])]
    assert any(s.kind is None for s in scenes)
    assert any(s.card in text.split() for s, group in zip(scenes, asked["texts"]) for text in group if s.kind is None)
    (folder,) = places["runs"].glob("images/*")
    expected = data.to_uint8(render(scenes).pixels)
    assert np.abs(data.open_images(folder, CLIP["scenes"]).astype(int) - expected).max() <= 1


def test_attacked_images_train_the_weights_of_the_image_tower_and_nothing_else(places, start):
    before, folder = weights_of(start), train.train(FARE, **places)
    trained = {f"visual.{key}" for key, _ in finetune.clip_network(start).visual.named_parameters()}
    assert {key for key, value in weights_of(folder).items() if not torch.equal(value, before[key])} == trained
    assert "in 2 steps by up to 8 of 255 grey levels; the image tower alone" in (folder / "README.md").read_text()


def test_distance_is_that_to_the_embeddings_at_the_start(start, pixels):
    objective, model = objectives.objective_of(FARE), finetune.clip_network(start)
    objective.begin(model)
    objective.attack = lambda tower, images, goal: images
    expected = model.encode_image(objectives.normalise(pixels)).square().sum(1).mean()
    model.visual.head.proj.weight.data *= 2
    torch.testing.assert_close(objective.loss(model, pixels, None), expected)


def test_attack_on_a_linear_tower_ends_in_the_farthest_corner():
    tower, pixels = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1)), torch.rand(2, 3, 2, 2)
    far = torch.tensor([[1e4], [-1e4]])
    corner = (pixels - 8 / 255 * (far * tower[1].weight).sign().view(2, 3, 2, 2)).clamp(0, 1)
    torch.testing.assert_close(objectives.objective_of(FARE).attack(tower, pixels, far), corner, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("config", [PROBE, FINETUNED, READER, FARE], ids=lambda c: c["name"])
def test_interrupted_fine_tuning_ends_with_the_same_weights(config, places, tmp_path, monkeypatch):
    expected = weights_of(train.train(config, **places | {"runs": tmp_path / "straight"}))
    original = train.learning_rate

    def interrupt(samples, plan):
        if samples >= 8:
            raise Interrupted
        return original(samples, plan)

    monkeypatch.setattr(train, "learning_rate", interrupt)
    with pytest.raises(Interrupted):
        train.train(config, **places)
    monkeypatch.setattr(train, "learning_rate", original)
    resumed = weights_of(train.train(config, **places))
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())


def test_checkpoint_older_than_a_key_of_the_default_is_gone_on_from(places, monkeypatch):
    config = train.read_config(train.DEFAULT) | CONFIG
    train.train(config, **places)
    path = places["runs"] / "tiny" / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    del saved["config"]["finetune"]
    torch.save(saved, path)
    monkeypatch.setattr(train, "learning_rate", None)  # a further step would fail
    train.train(config, **places)


# Average


@pytest.fixture
def ends(start, tmp_path):
    """A folder of models with a fine-tuned end that lies elsewhere: every weight is moved by one."""
    network = finetune.zero_shot_network(start)
    weights = {k: v + 1 if v.is_floating_point() else v + 7 for k, v in network.state_dict().items()}
    (tmp_path / "finetuned").mkdir()
    save_file(weights, tmp_path / "finetuned" / "model.safetensors")
    (tmp_path / "finetuned" / "README.md").touch()
    (tmp_path / "start").symlink_to(start)
    return tmp_path, network.state_dict(), weights


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_average_lies_that_share_of_the_way(alpha, ends):
    models, before, after = ends
    config = WISE | {"finetune": WISE["finetune"] | {"alpha": alpha}}
    found = finetune.starting_point(config, models).state_dict()
    for key, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, before[key] + alpha)
        else:
            assert torch.equal(value, after[key])


def test_average_is_exported_with_its_accuracy_and_without_training(places, start, monkeypatch):
    monkeypatch.setattr(train, "learning_rate", None)  # a step would fail
    (places["models"] / "finetuned").mkdir()
    end = finetune.zero_shot_network(start)
    torch.nn.init.zeros_(end.head.weight)
    torch.nn.init.constant_(end.head.bias[3], 100)
    save_file(end.state_dict(), places["models"] / "finetuned" / "model.safetensors")
    (places["models"] / "finetuned" / "README.md").touch()
    folder = train.train(WISE, **places)
    (row,) = csv.DictReader((folder / "curve.csv").open())
    assert row == {"samples": "0", "accuracy": "0.1"}, "the bias of one class in ten decides"
    card = (folder / "README.md").read_text()
    assert (
        "averaged from the weights of `start` and `finetuned`" in card and "| Images seen in fine-tuning | 0 |" in card
    )
    assert "batches" not in card and "0.5 times the start plus 0.5 times the end" in card
    assert not places["runs"].exists(), "an average needs no pictures"
    assert train.up_to_date(WISE, places["models"])


# Block


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({**BLOCK, "trains": "tower"}, "trains is 'tower', allowed are 'all' and 'head'."),
        (WISE["finetune"] | {"alpha": 1.5}, "alpha is 1.5, allowed is 0 to 1."),
        ({**BLOCK, **ATTACKED, "epsilon": 0}, "finetune.epsilon is 0 grey levels, allowed is above 0 and up to 255."),
        ({**BLOCK, **ATTACKED, "steps": 0}, "finetune.steps is 0, allowed is a whole number from 1."),
        ({**BLOCK, "loss": "supervised"}, "finetune.loss is 'supervised', allowed are clip, siglip, fare."),
    ],
)
def test_impossible_fine_tuning_is_refused(block, message):
    with pytest.raises(ValueError) as error:
        objectives.objective_of(CLIP | {"finetune": block})
    assert str(error.value) == message


def test_card_says_what_was_trained(places):
    card = (train.train(PROBE, **places) / "README.md").read_text()
    assert "A small image classifier fine-tuned from `start`, which was trained on still lifes" in card
    assert "in the pre-training scenes; the linear layer alone is trained, batches of 8 |" in card
    assert "from scratch" not in card and "| Images seen in fine-tuning | 24 |" in card
    assert "Fine-tuning set" not in card


def test_card_says_on_which_captions_was_trained(places):
    card = (train.train(READER, **places) / "README.md").read_text()
    assert "A small CLIP model fine-tuned from `start`, which was trained on still lifes" in card
    assert "symmetric contrastive (CLIP); all weights are trained, batches of 8 |" in card
    assert "| Image-caption pairs seen in fine-tuning | 24 |" in card and "| Fine-tuning set | 12 scenes" in card
    assert "- `finetune.about_word`: `0.5` in place of" in card


def test_scenes_without_an_object_have_no_labels(places):
    block = {**FINETUNED["finetune"], "distribution": {"card_only": 0.5}}
    with pytest.raises(ValueError, match=r"kind of a scene is None, allowed for labels are mug, .*duck\.$"):
        train.train(FINETUNED | {"finetune": block}, **places)


# Loading


def test_exported_model_loads_by_name_with_the_same_logits(places, pixels, monkeypatch):
    folder = train.train(FINETUNED, **places)
    network = towers.build_classifier("tabletop_vit_base_unit", 10).eval()
    network.load_state_dict(weights_of(folder))
    monkeypatch.setattr(_tabletop, "FOLDER", places["models"])
    net = zsr.load_model("finetuned", device="cpu")
    with torch.no_grad():
        expected = network(objectives.normalise(pixels))
    torch.testing.assert_close(net.logits(pixels, net.classifier(list(KINDS), [])), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net.encode_image(pixels).norm(dim=1), torch.ones(10))
    assert net.encode_tokens(pixels).shape == (10, 8, 8, 128)
