"""Chapter 12 beyond the contract: closed forms of its statistics, and which picture is changed how."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_sources import annotated
from tiny import token_pictures

from zsr_utils import plots, scores
from zsr_utils.datasets import imagenet_x, load_dataset, tabletop_scenes
from zsr_utils.experiments import visual_factors as factors


KNOWN = [f.name for f in factors.picture_factors()]


def dose_rows(right: list[list[int]], doses=(0.0, 1.0, 2.0, 3.0)) -> pd.DataFrame:
    wide = pd.DataFrame(right, columns=doses, dtype=float).rename_axis("sample_id").reset_index()
    return wide.melt("sample_id", var_name="severity", value_name="right").astype(float)


def measured(margins: dict[tuple[str, float], np.ndarray], model="m") -> pd.DataFrame:
    """Rows of two classes whose answers follow the margins."""
    rows = [(f"s{i}", *key, v, int(v < 0)) for key, values in margins.items() for i, v in enumerate(values)]
    columns = ["sample_id", "condition", "severity", "margin", "prediction"]
    return pd.DataFrame(rows, columns=columns).assign(model=model, label=0)


def test_half_of_the_answers_go_between_the_doses_around_one_half():
    rows = dose_rows([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    half = scores.half_dose(rows)  # 100, 100, 75, 25 % of the four that were right
    assert half.value == 2.5 and half.n == 4 and half.low <= 2.5
    # beyond the grid there is no number, and one dose is no curve
    assert np.isnan(scores.half_dose(dose_rows([[1, 1, 1, 1]] * 9)).value)
    few = scores.half_dose(dose_rows([[1, 1, 1, 0]] * 6 + [[1, 1, 1, 1]] * 4))
    assert few.value < 3 and few.low < few.value and np.isnan(few.high)  # some resamples do not reach it
    assert np.isnan(scores.half_dose(dose_rows([[1, 0]] * 4, (0.0, 1.0))).value)


def test_a_factor_that_does_nothing_loses_nothing_with_an_interval_of_some_width():
    base = np.array([1.0] * 9 + [-1.0])
    rows = factors.on_grids(measured({("original", 0.0): base, ("pose", 2.0): base, ("darker", 3.0): -base}))
    table = factors.lost(rows).set_index("condition")
    assert table.value.to_dict() == {"darker": 0.8, "pose": 0.0} and table.index[0] == "darker"
    assert table.low["pose"] < 0 < table.high["pose"] and table.p["pose"] == 1
    other = factors.on_grids(measured({("original", 0.0): base, ("pose", 2.0): base, ("darker", 3.0): base}, "n"))
    beside = factors.lost(pd.concat([rows, other]), than="m").set_index("condition")
    assert set(beside.model) == {"n"} and beside.value.to_dict() == {"pose": 0.0, "darker": -0.8}
    table = scores.estimates(pd.concat([rows, other]), ["condition", "share", "model"], scores.accuracy)
    figure = plots.doses(table, ["pose", "darker"], x_title="x", y_title="y")
    assert [n.text for n in figure.layout.annotations] == ["pose", "darker"] and len(figure.data) == 4


@pytest.mark.parametrize(("extra", "word"), [(0, "not decided"), (1, "more than the sum"), (-1, "less than the sum")])
def test_margins_that_add_have_no_interaction(extra, word):
    images, rng = token_pictures(), np.random.default_rng(0)
    base, a, b = (rng.uniform(low, low + 1, 40) for low in (5, 1, 1))
    noise = rng.normal(0, 0.1, 40) * (extra != 0)
    middle = {n: float(f.doses[1]) for n, f in factors.factors_of(images).items()}
    alone = {(n, d): base - (a if n == "darker" else b) for n, d in middle.items()}
    rows = factors.on_grids(measured({("original", 0.0): base, **alone}))
    both = measured({("darker_and_pose", 1.0): base - a - b - extra + noise})
    found = factors.interactions(rows, both, images).iloc[0]
    assert found.value == pytest.approx(extra, abs=0.05) and found.verdict == word
    lost = factors.interactions(rows, both.assign(prediction=[0] * 10 + [1] * 30), images).iloc[0]
    assert lost.verdict == "at chance, nothing concluded" and np.isnan(lost.p)


def test_an_error_ratio_is_that_of_the_two_error_rates():
    wrong, has = np.array([1, 1, 0, 0, 0, 0, 0, 1]), np.array([1, 1, 1, 0, 0, 0, 0, 0])
    assert scores.error_ratio(wrong, has).value == pytest.approx((2 / 3) / (3 / 8))
    never = scores.error_ratio(wrong, 1 - wrong)
    assert (
        never.value == never.low == 0 < never.high
        and scores.error_ratio(wrong, 0 * has).n == scores.error_ratio(0 * wrong, has).n == 0
    )


def test_ranks_are_sure_where_columns_are_far_apart_and_draws_always_vary():
    values = np.stack([np.ones(50), np.zeros(50), np.zeros(50), np.r_[np.ones(25), np.full(25, np.nan)]], axis=1)
    means = scores.column_means(values[:, :3], low=-1)
    assert means[0].tolist() == pytest.approx([1, 0, 0]) and (np.ptp(means[1:], axis=0) > 0).all()
    table = scores.ranks({"x": means, "y": -means}, ["a", "b", "c"]).set_index(["by", "label"])
    assert table.loc[("x", "a"), ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert table.low["x", "b"] < table.high["x", "b"] and scores.column_means(values)[0, 3] == pytest.approx(1)
    up = scores.column_means(np.random.default_rng(0).random((99, 1)) < np.linspace(0.1, 0.9, 6))
    same, turned = scores.rank_agreement(up, up), scores.rank_agreement(up, -up)
    assert same.value == pytest.approx(1) and turned.value == pytest.approx(-1)


def test_annotations_have_one_top_factor_that_is_there_and_taking_it_away_is_seen(monkeypatch):
    """A model that is wrong wherever a picture is darker: only where that is the top label does the error go."""
    images, shown = token_pictures(400), []
    ids = [s.sample_id for s in images.samples]
    monkeypatch.setattr(factors, "load_dataset", lambda *_, **__: images)
    monkeypatch.setattr(factors, "changed", lambda images, wanted: shown.append(wanted) or images)

    def measure(conditions, **_):
        dark = [[i.split("/")[-1] for i, (_, changes) in w.items() if "darker" in dict(changes)] for w in shown]
        rows = [(i, c.name, int(i in set(d)), 0) for c, d in zip(conditions, dark) for i in ids]
        return pd.DataFrame(rows, columns=["sample_id", "condition", "prediction", "label"])

    parameters = {"dataset": "noise", "split": "validation", "classes": 0, "seed": 0}
    study = SimpleNamespace(parameters=parameters, images=images.only(["s0"]), measure=measure, name="m")
    seen = factors.observe(study, number=300, present=0.3)
    there = seen[seen.top.notna()]
    assert len(seen) == 300 and "s0" not in seen.index and set(there.top) == set(KNOWN)
    assert all(row[row.top] == 1 for _, row in there.iterrows()) and (seen[seen.top.isna()][KNOWN] == 0).all(axis=None)
    assert not (seen.smaller & seen.larger).any() and 0.2 < seen.pose.mean() < 0.4
    assert (seen.observed == seen.darker).all()
    assert (seen.top_factor_removed == (seen.darker & (seen.top != "darker"))).all()


def test_a_scene_is_changed_in_one_thing_and_surfaces_by_halves(module_cache):
    images = load_dataset("tabletop", limit=10)
    scene = tabletop_scenes()[i := images.samples[0].sample_id]
    for f in factors.scene_factors():
        after = f.change(scene, f.doses[-1], 0.3)
        differ = {k for k, v in vars(scene).items() if vars(after)[k] != v}
        assert differ and "kind" not in differ and (len(differ) == 1 or f.name == "multiple_objects"), f.name
    made = factors.changed(images, {str(d): (i, (("background", d),)) for d in (0.5, 1.0)} | {"none": (i, ())})
    half, whole, none = (np.asarray(made.image(k), dtype=float) for k in ("0.5", "1.0", "none"))
    assert np.abs(half - (whole + none) / 2).max() <= 1.5 and np.abs(whole - none).max() > 20
    with pytest.raises(ValueError, match="cannot be changed, allowed are pictures of the split 'validation'"):
        factors.conditions(load_dataset("tabletop", split="sketch", limit=10))


def test_without_annotations_there_is_a_sentence_at_the_chapters_end(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    said = []
    study = SimpleNamespace(
        parameters={"dataset": "imagenet", "seed": 0}, say=lambda text, **w: said.append(text.format(**w))
    )
    assert factors.imagenet_x_ratios(study, 0) is None
    assert "No error ratios of photographs: ImageNet-X needs" in said[0]


def test_annotations_of_another_version_are_named(tmp_path):
    annotated(tmp_path, "multi", ("000.JPEG", 0, ("pose",)))
    path = tmp_path / "imagenet_x_val_multi_factor.jsonl"
    path.write_text(path.read_text().replace('"texture"', '"material"'))
    with pytest.raises(ValueError, match="has no 'texture': it is not the ImageNet-X of 16 factors"):
        imagenet_x(tmp_path)
