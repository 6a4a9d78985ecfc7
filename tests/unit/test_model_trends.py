"""Chapter 19: published tables against their own numbers, a member's values against what they are made of."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats
from tiny import token_model
from torch import nn
from torchvision.transforms import functional as TF

from zsr_utils import scores
from zsr_utils.datasets import Dataset, Sample
from zsr_utils.experiments import model_trends as trends
from zsr_utils.models import Model, SupervisedModel


pytestmark = pytest.mark.usefixtures("module_cache")

COLOURS = {"red": (200, 50, 50), "green": (50, 200, 50), "blue": (50, 50, 200), "yellow": (200, 200, 50)}
NAMES = tuple(COLOURS)
OPTIONS = {"pairs": 10, "budgets": (1, 64), "steps": 4, "spectra": 3, "views": 6, "batch_size": 16}


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
    return SupervisedModel(network, namings=[[(c,) for c in NAMES]], name="head", transform=shrink, **options)


MODELS = {"colours": colours, "head": trained_head}


@pytest.fixture(scope="module")
def images():
    return pictures("tiny", 48)


@pytest.fixture(scope="module")
def dark():
    return pictures("dark", 12, shade=0.3)


@pytest.fixture(scope="module")
def rows(images, dark):
    sets = {"dark": dark, "card": dark, "blank_card": pictures("bright", 12)}
    made = [trends.member(make(), images, sets, ["a {}"], **OPTIONS).assign(model=n) for n, make in MODELS.items()]
    return pd.concat(made, ignore_index=True)


@pytest.fixture(scope="module")
def values(rows):
    return trends.measurements(rows)


@pytest.fixture(params=MODELS)
def case(request, rows, values):
    """A model, its rows and its values, the measurement as the index."""
    name = request.param
    return MODELS[name](), rows[rows.model == name], values[values.model == name].set_index("measurement")


def test_rows_are_those_of_the_loop_and_values_of_two_models_belong_to_the_same_images(rows, values):
    assert rows.severity.dtype == float and rows.prediction.dtype == int and not rows.margin.isna().any()
    assert values.columns.tolist() == ["model", "measurement", "sample_id", "value"]
    assert np.isfinite(values.value).all() and not values.duplicated(["model", "measurement", "sample_id"]).any()
    one, two = (part.drop(columns="model").reset_index(drop=True) for _, part in values.groupby("model"))
    counts = one.measurement.value_counts()
    assert counts["accuracy/validation"] == counts["margin/validation"] == 48 and counts["accuracy/dark"] == 12
    assert counts["alignment/rms"] == counts["noise/auroc"] == counts["alignment/systematic_64_255"] == 10
    assert counts["jacobian/sensitivity"] == 3 and counts["stability/word_beyond_box"] == 6
    # all but the drift of views whose answer stayed: which ones did depends on the model
    one, two = (v[~v.measurement.str.startswith("drift")].reset_index(drop=True) for v in (one, two))
    pd.testing.assert_frame_equal(one[["measurement", "sample_id"]], two[["measurement", "sample_id"]])
    assert (one.value != two.value).any()


def test_accuracy_and_margin_are_those_of_the_models_own_logits(case, images, dark):
    net, _, found = case
    for name, data in {"validation": images, "dark": dark}.items():
        pixels = torch.stack([net.from_pil(s.open()) for s in data.samples])
        labels = torch.tensor([s.label for s in data.samples])
        logits = net.logits(pixels, net.classifier(NAMES, ["a {}"])).double()
        own = logits.gather(1, labels[:, None])[:, 0]
        margin = own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        assert found.loc[f"accuracy/{name}"].value.tolist() == (margin > 0).tolist()
    validation = torch.tensor(found.loc["accuracy/validation"].value.to_numpy())
    assert 0 < validation.mean() < 1
    assert ((found.loc["margin/validation"].value > 0).to_numpy() == validation.bool().numpy()).all()


def test_alignment_is_measured_in_every_ball(case):
    _, rows, found = case
    bounded = rows[rows.condition == "named_in_ball"]
    assert set(bounded.severity) == {1.0, 64.0} and (bounded.linf <= bounded.severity + 1e-3).all()
    named = (bounded.prediction == bounded.target_label) == bounded.reached
    assert named.all()
    aligned = rows[rows.condition == "aligned"].set_index("sample_id")
    assert found.loc["alignment/rms"].set_index("sample_id").value.to_dict() == aligned.rms.to_dict()
    assert found.loc["alignment/systematic_64_255"].value.mean() <= found.loc["alignment/systematic_1_255"].value.mean()


def test_sensitivity_is_the_largest_relative_move_by_one_grey_level(case, images):
    net, _, found = case
    ranks = found.loc["jacobian/effective_rank"].set_index("sample_id").value
    for id_, value in found.loc["jacobian/sensitivity"][["sample_id", "value"]].to_numpy():
        pixels = net.from_pil(images.image(id_))
        whole = torch.func.jacrev(lambda x: net.encode_image(x[None])[0])(pixels).flatten(1)
        singular = torch.linalg.svdvals(whole.double())
        move = singular[0] * pixels.numel() ** 0.5 / 255
        assert value == pytest.approx(float(move / net.encode_image(pixels[None]).norm()), rel=1e-4)
        assert ranks[id_] == pytest.approx(float(singular.square().sum() ** 2 / singular.pow(4).sum()), rel=1e-4)


def test_the_mean_of_the_auroc_values_is_the_auroc(case):
    _, rows, found = case
    drifts = rows.groupby(["part", "sample_id"]).drift.mean()
    moved, kept = drifts["noise_aligned"], drifts["noise_clean"]
    assert not set(moved.index) & set(kept.index) and rows[rows.part == "noise_clean"].draw.max() == 1
    assert found.loc["noise/auroc"].value.mean() == pytest.approx(scores.auroc(moved.to_numpy(), kept.to_numpy()))


def test_flips_words_and_drifts_are_those_of_the_views(case):
    _, rows, found = case
    views = rows[rows.part == "views"]
    views = views.assign(flip=views.prediction != views.clean_prediction)
    flips = views.groupby("sample_id").flip.mean()
    assert found.loc["stability/flips"].set_index("sample_id").value[flips.index].tolist() == pytest.approx(
        flips.tolist()
    )
    by_family = views.groupby(["family", "sample_id"]).flip.mean()
    word = (by_family["text_semantic"] - by_family["text_empty"]).sort_index()
    beyond = found.loc["stability/word_beyond_box"].set_index("sample_id").value
    assert beyond.sort_index().tolist() == pytest.approx(word.tolist())
    stayed = views[(views.family == "rotation") & ~views.flip]
    expected = stayed.groupby("sample_id").drift.mean() / views.unrelated.iloc[0]
    assert found.loc["drift/rotation"].set_index("sample_id").value.to_dict() == pytest.approx(expected.to_dict())


def test_what_a_word_does_is_less_than_a_card_without_it_scene_by_scene(case, values):
    _, rows, found = case
    shown = rows[rows.condition == "original"].assign(right=lambda r: (r.prediction == r.label).astype(float))
    word, blank = (shown[shown.part == part].set_index("sample_id") for part in ("card", "blank_card"))
    told = trends.beyond_blank(values, 0.05).set_index(["member", "measurement"])
    for measurement, column in zip(trends.BLANK, ("right", "margin")):
        expected = word[column] - blank[column]
        assert found.loc[measurement].set_index("sample_id").value.to_dict() == pytest.approx(expected.to_dict())
        assert told.value[rows.model.iloc[0], measurement] == pytest.approx(expected.mean())
    assert (word.margin != blank.margin).any()


def test_a_word_is_told_from_its_card_by_the_signs_of_its_scenes():
    values = table(always={trends.BLANK[0]: [-1] * 12, trends.BLANK[1]: [-3.0] * 12}, never={trends.BLANK[0]: [0] * 12})
    values = pd.concat([values, table(never={trends.BLANK[1]: [0.5, -0.5] * 6})])
    found = trends.beyond_blank(values, 0.05)
    assert found.seen.tolist() == ["lower", "lower", "not decided", "not decided"]  # of no width is no interval
    assert found.unit.tolist() == ["fraction", "logits"] * 2
    words = trends.of_cards(found)
    assert (words["name"], words["accuracy"].value, words["logits"].value) == ("always", -1, -3)
    assert (words["a"]["lower"], words["m"]["not_decided"], words["a"]["n"]) == (1, 1, 2)


def test_pairs_that_leave_no_clean_image_are_refused():
    with pytest.raises(ValueError, match="few: 8 pairs use all its 8 images, allowed are fewer"):
        trends.member(colours(), pictures("few", 8), {}, ["a {}"], **(OPTIONS | {"pairs": 8}))


def table(**rows):
    """Values of members by measurement, sample by sample."""
    parts = [
        pd.DataFrame(
            {"model": model, "measurement": m, "sample_id": range(len(v)), "value": np.asarray(v, dtype=float)}
        )
        for model, measured in rows.items()
        for m, v in measured.items()
    ]
    return pd.concat(parts)


def test_changes_are_decided_by_holm_a_margin_and_the_room_there_is():
    half = np.tile([0, 1], 100)
    base = {"accuracy/a": half, "accuracy/b": half, "accuracy/full": np.ones(200), "alignment/rms": np.arange(8.0)}
    other = base | {"accuracy/a": np.ones(200), "alignment/rms": np.arange(8.0) + np.array([1, 1, 1, 1, 1, -1, 1, 1])}
    found = trends.changes(table(base=base, other=other), 0.05).set_index("measurement")
    assert found.seen.to_dict() == {
        "accuracy/a": "higher", "accuracy/b": "no change", "accuracy/full": "at a ceiling",
        "alignment/rms": "not decided",
    }  # fmt: skip
    assert np.isnan(found.p_holm["accuracy/full"])  # three tests, not four
    assert found.p_holm["alignment/rms"] == pytest.approx(2 * found.p["alignment/rms"])
    assert found.unit.to_dict()["alignment/rms"] == "grey levels" and (found.runs == 1).all()
    assert found.between_runs.isna().all()


def test_other_seeds_are_runs_of_a_member():
    measured = {"alignment/rms": np.arange(6.0)}
    more = {"alignment/rms": np.arange(6.0) + 2}
    found = trends.changes(
        table(**{"base": measured, "base-seed1": measured, "conv": measured, "conv-seed1": more}), 0.05
    )
    assert found.member.tolist() == ["conv"] and found.value.tolist() == [1.0]
    assert found.runs.tolist() == [2] and found.between_runs.tolist() == pytest.approx([2**0.5])


def test_two_ways_to_train_are_compared_by_their_runs_and_not_by_their_images():
    """Runs of means 0, 1, 2 and 9, 10, 11: Welch's interval of 9, with 4 degrees of freedom and a variance of 2 / 3."""
    runs = {
        f"{name}-seed{k}": {"alignment/rms": np.full(5, mean + k), "drift/x": np.arange(5.0)}
        for name, mean in (("base", 0.0), ("conv", 9.0)) for k in range(3)
    }  # fmt: skip
    found = trends.changes(table(**runs), 0.05).set_index("measurement").loc["alignment/rms"]
    half = stats.t.ppf(0.975, 4) * (2 / 3) ** 0.5
    assert (found.run_low, found.run_high) == pytest.approx((9 - half, 9 + half))
    one = trends.changes(table(**{k: v for k, v in runs.items() if k in ("base-seed0", "conv-seed0")}), 0.05)
    assert one[["run_low", "run_high", "run_p"]].isna().all(axis=None) and (one.runs == 1).all()


def test_a_pair_is_as_reported_otherwise_or_open():
    rows = pd.DataFrame({
        "member": ["tabletop-small", "tabletop-small", "tabletop-conv"],
        "measurement": ["accuracy/sketch", "stability/flips", "accuracy/viewpoint"],
        "base": 0.5, "other": 0.5, "value": [-0.2, 0.0, 0.1], "low": [-0.3, -0.02, -0.1], "high": [-0.1, 0.02, 0.3],
        "unit": "fraction", "p": [1e-6, 1.0, 0.5], "runs": 3,
    })  # fmt: skip
    rows = rows.assign(run_low=rows.low, run_high=rows.high, run_p=rows.p)
    found = trends.beside_claims(rows, 0.05)
    assert found.verdict.tolist() == ["as reported", "as reported", "not decided"]
    turned = rows.assign(value=-rows.value, run_low=-rows.high, run_high=-rows.low)
    assert trends.beside_claims(turned, 0.01).verdict.tolist()[0] == "otherwise"
    wide = trends.beside_claims(rows.assign(run_low=-0.9, run_high=0.9), 0.05)
    assert (wide.verdict == "not decided").all() and wide.seen.tolist()[0] == "lower", "runs decide, images do not"
    assert (trends.beside_claims(rows.assign(runs=1), 0.05).verdict == "one run").all()
    assert trends.counts(found.verdict) | {"n": 3, "as_reported": 2, "not_decided": 1} == trends.counts(found.verdict)
    said = trends.against_claims(found)
    assert "; of the others 2 differ as reported and 0 otherwise, 1 are not decided" in said and said.count("\n- ") == 3


@pytest.fixture(scope="module")
def published():
    return trends.Published(least=0.55, resamples=50)


def test_published_models_are_counted_and_lie_at_their_distance_from_the_line(published):
    assert published.counted == 110 and published.left_out == 22
    rows = published.rows
    assert rows[rows.group.isin(published.sources)].checkpoint.nunique() == 88
    standard = rows[(rows.group == "standard") & (rows.set == "imagenet-v2")]
    assert len(standard) == 75 and abs(standard.value.mean()) < 0.001
    one = rows[(rows.checkpoint == "ViT-B-32-quickgelu, openai") & (rows.set == "imagenet-r")].iloc[0]
    assert one.value == pytest.approx(one.y - published.lines["imagenet-r"]([one.x])[0, 0])
    assert (published.above().value == 1).all()
    assert f"{100 * one.value:+.1f} on ImageNet-R" in published.place("ViT-B-32-quickgelu", "openai")
    assert "is not among them" in published.place("tabletop-base", "")


def test_lines_of_sources_are_compared_with_the_standard_one(published):
    equal, slopes = published.at_equal(0.763), published.slopes()
    e = equal[(equal.set == "objectnet") & (equal.group == "LAION")].iloc[0]
    line, fit = published.lines["objectnet"], published.fits["objectnet", "LAION"]
    assert e.value == pytest.approx((fit([0.763]) - line([0.763]))[0, 0]) and e.low < e.value < e.high
    assert set(slopes.set) == set(trends.SHIFTS) - {trends.BROKEN} and "all sources" in set(slopes.group)
    laion = equal[equal.group == "LAION"].set_index("set").value
    lost = published.lost(0.763)
    expected = 1 - equal[equal.group == "DataComp"].set_index("set").value / laion
    assert lost[lost.group == "DataComp"].set_index("set").value.to_dict() == pytest.approx(expected.to_dict())
    with pytest.raises(ValueError, match=r"least is 0\.55 and fewest 12, which leaves no line for DataComp"):
        trends.Published(least=0.55, fewest=12, resamples=1)


def test_the_same_classes_are_fairer(published):
    same = published.same_classes().pivot(index=["set", "group"], columns="classes", values="value")
    assert len(same) == 6 and (same["all"] > same["same"]).all()


def test_what_is_said_of_a_slope_follows_its_interval():
    slope = lambda low, high: scores.Estimate((low + high) / 2, low, high, "", 9)  # noqa: E731
    said = [trends.way(slope(*ends)) for ends in ((0.01, 0.05), (0.02, 0.2), (-0.2, -0.02), (-0.2, 0.2))]
    assert said == ["along it", "off it, upwards", "off it, downwards", "in no decided direction"]


def test_an_aligned_image_that_drifts_as_far_as_a_clean_one_is_half_above_it():
    rows = pd.DataFrame({"model": "m", "sample_id": list("abcdxx"), "drift": [0.1, 0.2, 0.2, 0.3, 0.1, 0.3]})
    rows["part"] = ["noise_clean"] * 4 + ["noise_aligned"] * 2  # two draws of one image, which drifts 0.2 on average
    assert trends._below(rows).dropna().tolist() == [0.5, 0.5]
