"""The embedded model and data set: what their cards promise."""

import csv
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

import tabletop.towers  # noqa: F401  registers the image towers
import zsr_utils as zsr
from tabletop.data import SHIFTS
from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Head
from zsr_utils.experiments import zero_shot
from zsr_utils.measure import Embedded, embed, measure


pytestmark = pytest.mark.usefixtures("module_cache")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "data" / "models" / "tabletop-base"


@pytest.fixture(scope="module")
def net():
    return zsr.load_model("tabletop-base", device="cpu")


@pytest.fixture(scope="module")
def images():
    return zsr.load_dataset("tabletop")


@pytest.fixture(scope="module")
def embedded(net, images):
    return embed(net, images, batch_size=200)


def plain_rows(net, images):
    head = Head(net.classifier(images.class_names, images.templates), images.class_names)
    return measure(net, images, head, [ORIGINAL], batch_size=200)


def test_zero_shot_accuracy_is_at_least_99_percent_and_the_cards(net, images):
    found = scores.accuracy(plain_rows(net, images))
    assert found.n >= 1000 and len(images.class_names) == 10
    assert found.value >= 0.99
    low, high = map(float, re.search(r"interval ([\d.]+) to ([\d.]+)\)", (FOLDER / "README.md").read_text()).groups())
    assert low <= 100 * found.value <= high
    with (FOLDER / "curve.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert abs(float(last["zero_shot"]) - found.value) < 0.003, "fp16 storage changed the accuracy"


def test_the_model_is_open_clips_own_local_directory(net, images):
    bare, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    bare.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    image = next(iter(images))[1]
    with torch.no_grad():
        torch.testing.assert_close(
            net.encode_image(net.from_pil(image)[None]),
            bare.encode_image(preprocess(image)[None]),
            atol=1e-5,
            rtol=1e-5,
        )
        torch.testing.assert_close(
            net.encode_text(["a photo of a mug"]),
            bare.encode_text(tokenizer(["a photo of a mug"])),
            atol=1e-5,
            rtol=1e-5,
        )


def test_padding_does_not_change_a_text(net):
    alone = net.encode_text(["a mug"])
    together = net.encode_text(["a mug", "a photo of a large red striped mug in the kitchen"])
    torch.testing.assert_close(alone[0], together[0], atol=1e-6, rtol=1e-5)


def test_unknown_words_stay_apart(net):
    features = torch.nn.functional.normalize(net.encode_text(["dog", "elephant", "giraffe"]), dim=-1)
    assert ((features @ features.T).fill_diagonal_(0) < 0.9999).all()


def test_from_pil_of_a_native_image_only_rescales_grey_levels(net, images):
    image = next(iter(images))[1]
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(net.from_pil(image), expected, atol=1 / 255, rtol=0)


def test_tokens_are_an_eight_by_eight_grid_whose_mean_is_the_feature(net):
    pixels = torch.rand(2, 3, 64, 64)
    tokens = net.encode_tokens(pixels)
    assert tokens.shape == (2, 8, 8, 128)
    trunk, head = net.net.visual.trunk, net.net.visual.head
    pooled = trunk.fc_norm(tokens.mean((1, 2)))
    torch.testing.assert_close(head(pooled), net.encode_image(pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_agrees_roughly(images, precision, net, embedded):
    half = zsr.load_model("tabletop-base", device="cpu", precision=precision)
    pixels = torch.stack([net.from_pil(s.open()) for s in images.samples[:32]])
    cosine = torch.nn.functional.cosine_similarity(
        half.encode_image(pixels), torch.from_numpy(embedded.features[:32]), dim=-1
    )
    assert cosine.min() > 0.99


def test_the_fingerprint_is_of_the_weights(net):
    assert re.fullmatch(r"[0-9a-f]{64}", net.fingerprint)
    assert zsr.load_model("tabletop-base", device="cpu").fingerprint == net.fingerprint


def test_the_projection_holds_every_image_and_text_and_repeats(net, images, embedded, tmp_path, monkeypatch):
    few = Embedded(embedded.sample_ids[:100], embedded.labels[:100], embedded.features[:100])
    maps, threads = [], torch.get_num_threads()
    for name in ("one", "another"):
        monkeypatch.setenv("ZSR_CACHE", str(tmp_path / name))
        maps.append(zero_shot.project(net, few, images.class_names, images.templates, seed=1))
        assert torch.get_num_threads() == threads, "a map takes no more threads for what comes after it"
    first, again = maps
    assert first.modality.value_counts().to_dict() == {"image": 100, "text": 10}
    np.testing.assert_array_equal(first[["x", "y"]], again[["x", "y"]])
    texts, pictures = (first[first.modality == m] for m in ("text", "image"))
    nearest = [
        pictures.label.iloc[((pictures[["x", "y"]] - t[["x", "y"]].to_numpy()) ** 2).sum(axis=1).argmin()]
        for _, t in texts.iterrows()
    ]
    assert np.mean(nearest == texts.label.to_numpy()) >= 0.8, "class texts should lie among their images"


def test_zero_shot_accuracy_on_fresh_photos_is_at_least_97_percent(net):
    fresh = zsr.load_dataset("tabletop", split="photo")
    found = scores.accuracy(plain_rows(net, fresh))
    assert found.n == 120 and found.value >= 0.97


def test_every_condition_shows_the_same_scenes_with_the_same_labels():
    shown = {}
    for condition in SHIFTS:
        samples = zsr.load_dataset("tabletop", split=condition).samples
        assert {s.sample_id.split("/")[1] for s in samples} == {condition}
        shown[condition] = [(s.sample_id.split("/")[0], s.label) for s in samples]
    assert all(scenes == shown["photo"] for scenes in shown.values())
    assert np.bincount([label for _, label in shown["photo"]]).tolist() == [12] * 10


def test_gradients_reach_the_embeddings_of_tokens(net):
    ids = net.tokens_of(["a photo of a mug"])
    features, embedded = net.encode_ids(ids)
    torch.testing.assert_close(features, net.encode_text(["a photo of a mug"]))
    (gradient,) = torch.autograd.grad(features.sum(), embedded)
    assert gradient[0, 1:6].abs().sum() > 0 and gradient[0, 7:].abs().max() == 0  # padding is not read
    said = net.words()
    assert {"photo", "mug"} <= set(said.values()) and not {"<pad>", "<unk>", "##a"} & set(said.values())
