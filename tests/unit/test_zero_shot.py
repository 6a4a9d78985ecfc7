"""The zero-shot probe: rows, resumption, bad input."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_images, tiny_model
from torch import nn

from zsr_utils.experiments import zero_shot
from zsr_utils.models import SupervisedModel


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    return tmp_path


def direct(net, images):
    pixels = torch.stack([net.from_pil(s.open()) for s in images.samples])
    return net.encode_image(pixels).numpy()


def test_embeddings_are_those_of_the_model_in_order():
    net, images = tiny_model(), tiny_images()
    found = zero_shot.embed(net, images, batch_size=7)
    np.testing.assert_allclose(found.features, direct(net, images), rtol=1e-6)
    assert found.sample_ids.tolist() == [s.sample_id for s in images.samples]


def test_two_runs_at_once_compute_the_features_once_and_both_get_all():
    nets, seen, second = [tiny_model(), tiny_model()], [], []
    other = threading.Thread(target=lambda: second.append(zero_shot.embed(nets[1], tiny_images(), batch_size=7)))
    for net in nets:
        original = net.net.encode_image

        def slow(x, original=original):
            seen.append(len(x))
            if len(seen) == 2:  # the other run begins in the middle of this one
                other.start()
                other.join(timeout=0.3)
            return original(x)

        net.net.encode_image = slow
    first = zero_shot.embed(nets[0], tiny_images(), batch_size=7)
    other.join()
    assert len(first.labels) == len(second[0].labels) == sum(seen) == 25


def test_an_interrupted_run_goes_on_at_its_last_finished_batch(cache):
    net, images, calls = tiny_model(), tiny_images(), []
    original = net.net.encode_image

    def failing(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(x)

    net.net.encode_image = failing
    with pytest.raises(KeyboardInterrupt):
        zero_shot.embed(net, images, batch_size=7)
    assert not list(cache.glob("embeddings/*.npz"))
    found = zero_shot.embed(net, tiny_images(), batch_size=7)
    assert calls == [7, 7, 7, 7, 4]  # two finished, one interrupted, and only the two missing ones again
    np.testing.assert_allclose(found.features, direct(net, images), rtol=1e-6)
    assert [p.suffix for p in cache.glob("embeddings/*")] == [".npz"]


def test_a_full_disk_leaves_nothing_under_the_final_name(cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        zero_shot.embed(tiny_model(), tiny_images())
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_second_run_computes_nothing():
    net = tiny_model()
    first = zero_shot.embed(net, tiny_images())
    net.net.encode_image = lambda x: pytest.fail("computed again")
    np.testing.assert_array_equal(zero_shot.embed(net, tiny_images()).features, first.features)


def test_a_feature_that_is_not_finite_names_the_image():
    net = tiny_model()
    original = net.net.encode_image

    def poisoned(x):
        features = original(x)
        features[2] = torch.nan
        return features

    net.net.encode_image = poisoned
    with pytest.raises(FloatingPointError, match="'s002' is not finite"):
        zero_shot.embed(net, tiny_images())


def test_rows_say_prediction_confidence_and_margin():
    net, images = tiny_model(), tiny_images()
    embedded = zero_shot.embed(net, images)
    rows = zero_shot.classify(net, embedded, images.class_names, ["{}"], condition="bare")
    weights = net.classifier(images.class_names, ["{}"])
    logits = net.logits_of(torch.from_numpy(embedded.features), weights).double()
    assert rows.prediction.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(rows.confidence, logits.softmax(1).max(1).values, rtol=1e-6)
    right = (rows.label == rows.prediction).to_numpy()
    assert (rows.margin[right] >= 0).all() and (rows.margin[~right] <= 0).all()
    found = zero_shot.probabilities(net, torch.from_numpy(embedded.features), images.class_names, ["{}"])
    np.testing.assert_allclose(found, logits.softmax(1), rtol=1e-6)


def test_one_class_or_a_label_without_name_is_refused():
    net, images = tiny_model(), tiny_images()
    embedded = zero_shot.embed(net, images)
    with pytest.raises(ValueError, match="needs at least two"):
        zero_shot.classify(net, embedded, ["a"], ["{}"], condition="x")
    with pytest.raises(ValueError, match="label 2 has no name among 2"):
        zero_shot.classify(net, embedded, ["a", "b"], ["{}"], condition="x")


def trained_head():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6), nn.Linear(6, 3))
    options = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3, "transform": tiny_model().from_pil}
    names = [("a",), ("bb",), ("ccc",)]
    return SupervisedModel(network, library="torchvision", namings=[names], name="head", **options)


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
    embedded = zero_shot.embed(net, images)
    rows = zero_shot.project(net, embedded, images.class_names, ["{}"])
    assert rows.modality.tolist() == ["image"] * 25 + ["text"] * 3
    assert rows.sample_id[25:].tolist() == ["text/a", "text/bb", "text/ccc"] and rows.label[25:].tolist() == [0, 1, 2]
    d = embedded.features.shape[1]
    weights = net.net.weight if make is trained_head else net.classifier(images.class_names, ["{}"])
    for found, raw in ((mapped[0][:25], embedded.features), (mapped[0][25:], weights.numpy())):
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        assert found.shape[1] == d
        np.testing.assert_allclose(found, unit - unit.mean(0), atol=1e-6)


def test_moved_images_are_laid_on_a_map_that_is_made_once(mapped):
    torch.manual_seed(0)
    net, images = tiny_model(), tiny_images()
    embedded = zero_shot.embed(net, images)
    alone = zero_shot.project(net, embedded, images.class_names, ["{}"])
    moved = zero_shot.Embedded(np.array(["same", "far"]), embedded.labels[:2], embedded.features[[3, 5]] + [[0], [0.1]])
    both = zero_shot.project(net, embedded, images.class_names, ["{}"], moved=moved)
    assert len(mapped) == 1 and both.modality.tolist() == ["image"] * 25 + ["aligned"] * 2 + ["text"] * 3
    assert both[both.modality != "aligned"].reset_index(drop=True).equals(alone)
    places = both.set_index("sample_id")[["x", "y"]]
    np.testing.assert_allclose(places.loc["same"], alone.loc[3, ["x", "y"]].astype(float), atol=1e-5)
    drawn = alone[alone.modality == "image"][["x", "y"]]
    assert (places.loc["far"] >= drawn.min()).all() and (places.loc["far"] <= drawn.max()).all()
    zero_shot.project(net, embedded, images.class_names, ["{}"], seed=1)
    assert len(mapped) == 2, "another seed makes another map"


def test_rows_of_a_trained_head_are_the_softmax_of_its_logits():
    torch.manual_seed(0)
    net, images = trained_head(), tiny_images()
    rows = zero_shot.classify(net, zero_shot.embed(net, images), images.class_names, [], condition="head")
    pixels = torch.stack([net.from_pil(s.open()) for s in images.samples])
    expected = net.logits(pixels, net.classifier(images.class_names)).softmax(1)
    np.testing.assert_allclose(rows.confidence, expected.amax(1), atol=1e-6)
    assert rows.prediction.tolist() == expected.argmax(1).tolist()


def test_rows_do_not_depend_on_how_many_logits_are_held_at_once(monkeypatch):
    net, images = tiny_model(), tiny_images()
    embedded = zero_shot.embed(net, images)
    whole = zero_shot.classify(net, embedded, images.class_names, ["{}"], condition="x")
    monkeypatch.setattr(zero_shot, "CHUNK", 4)
    parts = zero_shot.classify(net, embedded, images.class_names, ["{}"], condition="x")
    pd.testing.assert_frame_equal(whole, parts)
