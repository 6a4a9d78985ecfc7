"""One model on all measurements: every value against the probe, or the sum, that it is made of."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import token_model
from torch import nn
from torchvision.transforms import functional as TF

from zsr_utils import scores
from zsr_utils.conditions import alignment, families
from zsr_utils.datasets import Dataset, Sample
from zsr_utils.experiments import drift, family, noise
from zsr_utils.experiments.pairs import aligned_pairs
from zsr_utils.models import Model, SupervisedModel


COLOURS = {"red": (200, 50, 50), "green": (50, 200, 50), "blue": (50, 50, 200), "yellow": (200, 200, 50)}
NAMES = tuple(COLOURS)
TEMPLATES = ["a {}"]
OPTIONS = {"pairs": 16, "budgets": (1, 8, 64), "steps": 4, "spectra": 3, "views": 10, "batch_size": 16}
OF_PAIRS = {
    "alignment/rms", "alignment/systematic_1_255", "alignment/systematic_8_255", "alignment/systematic_64_255",
    "noise/auroc",
}  # fmt: skip
OF_IMAGES = {
    "accuracy/validation": 48, "accuracy/dark": 12, "jacobian/sensitivity": 3, "jacobian/effective_rank": 3,
    "stability/flips": 10,
}  # fmt: skip
DRIFTS = {"drift/scale_pad", "drift/rotation", "drift/text_semantic"}


def picture(i: int, *, shade: float = 1) -> Image.Image:
    """Roughly the colour of its class, with some grain; wide enough for the class names."""
    rng = np.random.default_rng(i)
    values = (COLOURS[NAMES[i % 4]] + rng.uniform(20, 235, 3)) / 2 + rng.normal(0, 15, (64, 64, 3))
    return Image.fromarray((shade * values).clip(0, 255).astype(np.uint8))


def pictures(name: str, n: int, **options) -> Dataset:
    return Dataset(name, NAMES, [Sample(f"s{i:02d}", i % 4, lambda i=i: picture(i, **options)) for i in range(n)])


def colours() -> Model:
    """Names the strongest colour; what is bright is yellow, so that a white border changes answers."""
    net = token_model()
    weight = torch.tensor([[0.9, 1.0, 0.0, 0.0], [0.9, 0.0, 0.0, 1.0], [-0.2, 0.0, 1.0, 0.0]])
    net.net.weight.data = net.net.visual.weight.data = weight
    return net


def trained_head() -> SupervisedModel:
    torch.manual_seed(5)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 2, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 4)
    )
    options = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    shrink = lambda image: TF.to_tensor(image.convert("RGB").resize((8, 8)))  # noqa: E731
    return SupervisedModel(
        network, library="torchvision", namings=[[(c,) for c in NAMES]], name="head", transform=shrink, **options
    )


MODELS = {"colours": colours, "head": trained_head}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSR_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("ZSR_PROGRESS", "0")
        yield


@pytest.fixture(scope="module")
def images():
    return pictures("tiny", 48)


@pytest.fixture(scope="module")
def dark():
    return pictures("dark", 12, shade=0.3)


@pytest.fixture(scope="module")
def members(images, dark):
    return {n: family.member(make(), images, {"dark": dark}, TEMPLATES, **OPTIONS) for n, make in MODELS.items()}


@pytest.fixture(params=MODELS)
def case(request, members):
    """A model and its values, the measurement as the index."""
    return MODELS[request.param](), members[request.param].set_index("measurement")


def pairs_of(net, images):
    return aligned_pairs(net, images, TEMPLATES, number=OPTIONS["pairs"], batch_size=OPTIONS["batch_size"])


def test_every_measurement_has_one_value_an_image_or_a_pair(members, images):
    for rows in members.values():
        assert rows.columns.tolist() == ["measurement", "sample_id", "value"]
        assert rows.value.dtype == float and np.isfinite(rows.value).all()
        counts = rows.measurement.value_counts()
        assert set(counts.index) == OF_PAIRS | set(OF_IMAGES) | DRIFTS
        assert {name: counts[name] for name in OF_IMAGES} == OF_IMAGES
        assert (counts[sorted(OF_PAIRS)] == 16).all() and (counts[sorted(DRIFTS)] <= 10).all()
        once = rows[~rows.measurement.isin(OF_PAIRS)]
        assert not once.duplicated(["measurement", "sample_id"]).any()
        assert set(rows.sample_id) == {s.sample_id for s in images.samples}


def test_values_of_two_models_belong_to_the_same_images(members):
    """All but the drift of views whose answer stayed: which ones did depends on the model."""
    one, two = (rows[~rows.measurement.isin(DRIFTS)] for rows in members.values())
    columns = ["measurement", "sample_id"]
    pd.testing.assert_frame_equal(one[columns], two[columns])
    assert (one.value != two.value).any()
    compared = scores.paired_changes(one, two, "measurement")
    assert set(compared.measurement) == OF_PAIRS | set(OF_IMAGES)


def test_accuracy_is_that_of_the_models_own_logits(case, images, dark):
    net, rows = case
    classifier = net.classifier(NAMES, TEMPLATES)
    for name, data in {"validation": images, "dark": dark}.items():
        pixels = torch.stack([net.from_pil(s.open()) for s in data.samples])
        right = net.logits(pixels, classifier).argmax(1) == torch.tensor([s.label for s in data.samples])
        found = rows.loc[f"accuracy/{name}"]
        assert found.sample_id.tolist() == [s.sample_id for s in data.samples]
        assert found.value.tolist() == right.tolist() and 0 < found.value.mean() < 1


def test_alignment_is_measured_on_the_pairs_in_every_ball(case, images):
    net, rows = case
    made = pairs_of(net, images)
    rms = 255 * (made.aligned - made.sources).square().flatten(1).mean(1).sqrt()
    assert rows.loc["alignment/rms"].sample_id.tolist() == made.table.sample_id.tolist()
    np.testing.assert_allclose(rows.loc["alignment/rms"].value, rms, rtol=1e-6)
    clean = made.rows.set_index("sample_id").loc[made.table.sample_id]
    before = (clean.prediction == clean.label).to_numpy(dtype=float)
    own, other = (torch.tensor(made.table[c].to_numpy()) for c in ("label", "target_label"))
    goal = alignment.Answer(net, made.classifier, other)
    options = {"momentum": 0.7, "max_steps": OPTIONS["steps"], "eight_bit": True}
    balls = alignment.smallest_budgets(net, made.sources, goal, [b / 255 for b in OPTIONS["budgets"]], **options)
    for budget, ball in zip(OPTIONS["budgets"], balls.values()):
        answers = net.logits(ball.pixels, made.classifier).argmax(1)
        values = rows.loc[f"alignment/systematic_{budget}_255"].value
        assert values.tolist() == (answers == own).tolist()
        assert float((ball.pixels - made.sources).abs().max()) <= (budget + 1e-3) / 255
        assert (answers == other).tolist() == ball.reached.tolist()
    assert before.mean() > 0.2 > values.mean()  # in the largest ball hardly an image keeps its name


def test_sensitivity_is_the_largest_relative_move_by_one_grey_level(case, images):
    net, rows = case
    for number, (id_, value) in enumerate(rows.loc["jacobian/sensitivity"][["sample_id", "value"]].to_numpy()):
        pixels = net.from_pil(images.image(id_))
        whole = torch.func.jacrev(lambda x: net.encode_image(x[None])[0])(pixels).flatten(1)
        singular = torch.linalg.svdvals(whole.double())
        move = singular[0] * pixels.numel() ** 0.5 / 255
        assert value == pytest.approx(float(move / net.encode_image(pixels[None]).norm()), rel=1e-4)
        rank = singular.square().sum() ** 2 / singular.pow(4).sum()
        assert rows.loc["jacobian/effective_rank"].value.iloc[number] == pytest.approx(float(rank), rel=1e-4)


def test_the_mean_of_the_auroc_values_is_the_auroc(case, images):
    net, rows = case
    made = pairs_of(net, images)
    used = {*made.table.sample_id, *made.table.target_id}
    rest = made.rows[~made.rows.sample_id.isin(used)]
    rest = rest.sample(min(2 * len(made.table), len(rest)), random_state=0)
    clean = (images.pixels(rest.sample_id, net.from_pil) * 255).round() / 255
    moved, kept = (
        noise.response(net, p, made.classifier, sigmas=[4 / 255], draws=1, conversion="round").drift.to_numpy()
        for p in (made.aligned, clean)
    )
    values = rows.loc["noise/auroc"].value
    assert len(rest) > 1 and values.mean() == pytest.approx(scores.auroc(moved, kept), abs=1e-12)
    below = (kept < moved[:, None]).mean(1) + (kept == moved[:, None]).mean(1) / 2
    assert values.tolist() == pytest.approx(below.tolist(), abs=1e-12) and 0 < values.mean() < 1


def test_flips_and_drifts_are_those_of_the_views(case, images):
    net, rows = case
    sources = list(dict.fromkeys(pairs_of(net, images).table.sample_id))[: OPTIONS["views"]]
    few = Dataset(images.name, NAMES, [s for s in images.samples if s.sample_id in sources])
    classifier = net.classifier(NAMES, TEMPLATES)
    seen = drift.measure(net, few, classifier, families(), detail="embedding", batch_size=4)
    views = seen.rows.assign(flip=seen.rows.prediction != seen.rows.clean_prediction)
    flips = views.groupby("sample_id").flip.mean()
    found = rows.loc["stability/flips"].set_index("sample_id").value
    assert found[flips.index].tolist() == pytest.approx(flips.tolist()) and 0 < found.mean() < 1
    unit = torch.nn.functional.normalize(
        net.encode_image(torch.stack([net.from_pil(s.open()) for s in few.samples])).double()
    )
    apart = 1 - (unit @ unit.T)[~torch.eye(len(unit), dtype=bool)].mean().item()
    for name in DRIFTS:
        stayed = views[(views.family == name.split("/")[1]) & ~views.flip]
        expected = stayed.groupby("sample_id").drift.mean() / apart
        found = rows.loc[name].set_index("sample_id").value
        assert set(found.index) == set(expected.index) and len(found)
        np.testing.assert_allclose(found[expected.index], expected, rtol=1e-5)


def test_another_seed_draws_other_pairs(members, images, dark):
    other = family.member(colours(), images, {}, TEMPLATES, **OPTIONS, seed=1)
    ids = [r[r.measurement == "alignment/rms"].sample_id.tolist() for r in (members["colours"], other)]
    assert ids[0] != ids[1] and "accuracy/dark" not in set(other.measurement)


def test_pairs_that_leave_no_clean_image_are_refused():
    with pytest.raises(ValueError, match="few: 120 pairs use all its 40 images, allowed are fewer"):
        family.member(colours(), pictures("few", 40), {}, TEMPLATES, **(OPTIONS | {"pairs": 120}))
