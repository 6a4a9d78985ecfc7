"""Every embedded model: its card, its learning curve and its config, against the model itself."""

import csv
import re
import runpy

import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import binomtest

import zsr_utils as zsr
from tabletop import train
from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Head
from zsr_utils.experiments import model_trends
from zsr_utils.measure import measure
from zsr_utils.models import _tabletop


pytestmark = pytest.mark.usefixtures("module_cache")  # pictures are decoded once for all models

NAMES = sorted(p.name for p in _tabletop.FOLDER.iterdir() if p.is_dir())
ACCURACY = re.compile(r"\| ([\d.]+) % \(95 % Wilson interval ([\d.]+) to ([\d.]+)\) \|")
SEEN = re.compile(r"\| (?:Image-caption pairs|Images) seen(?: in fine-tuning)? \| ([\d,]+) \|")
MINUTES = re.compile(r"\| Training time \| (\d+) minutes ")


@pytest.fixture(scope="module")
def images():
    return zsr.load_dataset("tabletop")


def card_of(name):
    return (_tabletop.FOLDER / name / "README.md").read_text()


def config_of(name):
    """The config it was trained with; the default fills in keys that were not there yet."""
    own = yaml.safe_load((_tabletop.FOLDER / name / "training.yaml").read_text())
    return {**train.read_config(train.DEFAULT), **own}


def curve_of(name):
    with (_tabletop.FOLDER / name / "curve.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def metric_of(name):
    return train.objective_of(config_of(name)).metric


def test_every_folder_of_models_is_a_known_model():
    assert "tabletop-base" in NAMES
    assert _tabletop.embedded_models() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_on_the_validation_set_lies_in_the_interval_of_the_card(name, images):
    net = zsr.load_model(name, device="cpu")
    head = Head(net.classifier(images.class_names, images.templates), images.class_names)
    found = scores.accuracy(measure(net, images, head, [ORIGINAL], batch_size=200))
    _, low, high = map(float, ACCURACY.search(card_of(name)).groups())
    assert found.n == 1200 and low <= 100 * found.value <= high
    assert abs(found.value - curve_of(name)[-1][metric_of(name)]) < 0.003, "fp16 storage changed the accuracy"


@pytest.mark.parametrize("name", NAMES)
def test_card_prints_the_numbers_of_the_curve(name, images):
    card, last = card_of(name), curve_of(name)[-1]
    accuracy = last[metric_of(name)]
    right = round(accuracy * len(images.samples))
    assert right / len(images.samples) == pytest.approx(accuracy), "another number of images"
    interval = binomtest(right, len(images.samples)).proportion_ci(method="wilson")
    expected = [f"{100 * v:.2f}" for v in (accuracy, interval.low, interval.high)]
    assert list(ACCURACY.search(card).groups()) == expected
    assert int(SEEN.search(card)[1].replace(",", "")) == last["samples"]
    seconds = last.get("cpu_seconds", last.get("seconds", 0))  # the default's curve has the time of day
    assert float(MINUTES.search(card)[1]) == pytest.approx(seconds / 60, abs=0.51)


@pytest.mark.parametrize("name", NAMES)
def test_curve_goes_to_the_end_of_the_training(name):
    config, samples = config_of(name), [row["samples"] for row in curve_of(name)]
    averaged = "alpha" in config["finetune"]
    assert samples[-1] == (0 if averaged else train.plan_of(config)["samples"])
    assert samples == sorted(set(samples))


@pytest.mark.parametrize("name", NAMES)
def test_changes_of_the_config_are_its_differences_to_the_default(name):
    config = config_of(name)
    assert config["name"] == name and card_of(name).startswith(f"# {name}\n")
    assert sorted(config["changes"]) == sorted({key.split(".")[0] for key in train.differences(config)})
    assert config == train.load_config(name), "the committed config has changed since"


def survivors(net, images, epsilon=4 / 255, steps=10):
    """Which of the first 100 images are right at every step of an attack (PGD, L-infinity, cross-entropy)."""
    pixels, labels = (t[:100] for t in train._validation(_tabletop.ROOT / "data" / "tabletop" / "validation.parquet"))
    head, right = net.classifier(images.class_names, images.templates), True
    attacked = pixels + epsilon * (2 * torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)) - 1)
    for _ in range(steps + 1):
        attacked = attacked.clamp(pixels - epsilon, pixels + epsilon).clamp(0, 1).requires_grad_()
        logits = net.logits(attacked, head)
        right &= logits.argmax(1) == labels
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), attacked)
        attacked = attacked.detach() + epsilon / 4 * slope.sign()
    return right


def test_fare_withstands_an_attack_that_base_does_not_and_keeps_its_accuracy(images):
    assert curve_of("tabletop-fare")[-1]["zero_shot"] >= 0.98
    models = (zsr.load_model(f"tabletop-{name}", device="cpu") for name in ("base", "fare"))
    weak, strong = (scores.proportion(int(survivors(net, images).sum()), 100) for net in models)
    assert strong.low > weak.high and strong.value >= 0.8, (weak, strong)


@pytest.mark.slow
def test_the_reader_reads_cards_that_stand_alone_and_names_clean_pictures(images):
    dose = runpy.run_path(str(_tabletop.FOLDER.parent / "tabletop" / "reading_doses.py"))["dose"]
    found = dose(_tabletop.FOLDER / "tabletop-reader", images.subset(200)).set_index("quantity")
    assert found.value["read/alone"] >= 0.95 and found.value["accuracy/original"] >= 0.99
    assert found.value["named/other_name"] > 0.6 > found.value["named/scrambled"]


def test_several_models_measured_in_processes_are_those_measured_one_by_one(monkeypatch, tmp_path):
    names, few = ["tabletop-small", "tabletop-conv"], {"pairs": 2, "steps": 1, "spectra": 1, "views": 1}
    some = zsr.load_dataset("tabletop", limit=20)
    data = some, {"photo": zsr.load_dataset("tabletop", split="photo", limit=10)}, some.templates
    found = model_trends.members(names, *data, device="cpu", workers=2, **few)
    assert found.model.unique().tolist() == names
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "other"))
    alone = model_trends.member(zsr.load_model(names[1], device="cpu"), *data, **few)
    got = found[found.model == names[1]].drop(columns="model").reset_index(drop=True)
    pd.testing.assert_frame_equal(got, alone, check_exact=False, atol=1e-3)


def test_an_unknown_model_among_several_is_named(images):
    with pytest.raises(ValueError, match="tabletop-smal"):
        model_trends.members(["tabletop-smal"], images, {}, images.templates, device="cpu")
