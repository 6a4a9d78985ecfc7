"""Chapter 01: the map, and rows of a trained head."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_images, tiny_model
from torch import nn

from zsr_utils.conditions import ORIGINAL, Head
from zsr_utils.experiments import zero_shot
from zsr_utils.measure import embed, measure
from zsr_utils.models import SupervisedModel


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    return tmp_path


def trained_head():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6), nn.Linear(6, 3))
    options = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3, "transform": tiny_model().from_pil}
    names = [("a",), ("bb",), ("ccc",)]
    return SupervisedModel(network, namings=[names], name="head", **options)


@pytest.fixture
def mapped(monkeypatch):
    """What UMAP was given, call by call; it answers with the first two coordinates."""
    given = []

    class Plane:
        def __init__(self, **_):
            pass

        def fit_transform(self, points):
            given.append(points)
            return points[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Plane))
    return given


@pytest.mark.parametrize("make", [tiny_model, trained_head])
def test_the_map_shows_images_and_the_directions_of_the_classes(make, mapped):
    """Each cloud of unit vectors is centred; a bias is no coordinate of a trained head's classes."""
    torch.manual_seed(0)
    net, images = make(), tiny_images()
    embedded = embed(net, images)
    rows = zero_shot.project(net, embedded, images.class_names, ["{}"])
    assert rows.modality.tolist() == ["image"] * 25 + ["text"] * 3
    assert rows.sample_id[25:].tolist() == ["text/a", "text/bb", "text/ccc"] and rows.label[25:].tolist() == [0, 1, 2]
    d = embedded.features.shape[1]
    weights = net.net.weight if make is trained_head else net.classifier(images.class_names, ["{}"])
    for found, raw in ((mapped[0][:25], embedded.features), (mapped[0][25:], weights.numpy())):
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        assert found.shape[1] == d
        np.testing.assert_allclose(found, unit - unit.mean(0), atol=1e-6)


def test_a_map_of_some_classes_has_their_images_and_their_texts(mapped):
    net, images = tiny_model(), tiny_images()
    embedded = embed(net, images)
    some = embedded.sample(100, classes=[0, 2])
    assert set(some.labels) == {0, 2} and len(some.labels) == np.isin(embedded.labels, [0, 2]).sum()
    assert set(embedded.sample(5, classes=[1]).labels) == {1} and len(embedded.sample(5).labels) == 5
    rows = zero_shot.project(net, some, images.class_names, ["{}"])
    texts = rows[rows.modality == "text"]
    assert texts.sample_id.tolist() == ["text/a", "text/ccc"] and texts.label.tolist() == [0, 2]
    assert mapped[0].shape[0] == len(some.labels) + 2


def test_a_map_is_made_once_a_seed(mapped):
    net, images = tiny_model(), tiny_images()
    embedded = embed(net, images)
    alone = zero_shot.project(net, embedded, images.class_names, ["{}"])
    assert alone.equals(zero_shot.project(net, embedded, images.class_names, ["{}"])) and len(mapped) == 1
    zero_shot.project(net, embedded, images.class_names, ["{}"], seed=1)
    assert len(mapped) == 2, "another seed makes another map"


def test_rows_of_a_trained_head_are_the_softmax_of_its_logits():
    torch.manual_seed(0)
    net, images = trained_head(), tiny_images()
    head = Head(net.classifier(images.class_names), images.class_names)
    rows = measure(net, images, head, [ORIGINAL])
    pixels = torch.stack([net.from_pil(s.open()) for s in images.samples])
    expected = net.logits(pixels, head.weights).softmax(1)
    np.testing.assert_allclose(rows.confidence, expected.amax(1), atol=1e-6)
    assert rows.prediction.tolist() == expected.argmax(1).tolist()
