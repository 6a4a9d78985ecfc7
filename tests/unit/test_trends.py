"""Lines through models: what is on them, what is off them, and how sure that is."""

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from zsr_utils import scores
from zsr_utils.scores import trends
from zsr_utils.scores.trends import Line


ACCURACY = np.linspace(0.55, 0.85, 30)


def models(n=40, *, slope=1.1, intercept=-0.6, noise=0.05, seed=0, scale="logit"):
    """Accuracies of models that scatter about a known line."""
    into, back = trends.SCALES[scale]
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.5, 0.85, n)
    return x, back(slope * into(x) + intercept + noise * rng.normal(size=n))


def table(x, y, group="standard"):
    return pd.DataFrame({"model": [f"{group} {i}" for i in range(len(x))], "group": group, "x": x, "y": y})


def huber_by_reweighting(u, v):
    """Huber's regression with the residuals' median as scale, tuning 1.345: what statsmodels' RLM does."""
    design, weights = np.column_stack([u, np.ones_like(u)]), np.ones_like(u)
    for _ in range(200):
        root = np.sqrt(weights)
        slope, intercept = np.linalg.lstsq(design * root[:, None], v * root)[0]
        residuals = v - slope * u - intercept
        sigma = np.median(abs(residuals)) / stats.norm.ppf(0.75)
        weights = np.minimum(1, 1.345 * sigma / np.maximum(abs(residuals), 1e-12))
    return slope, intercept


@pytest.mark.parametrize(("stretch", "scale"), [(trends.logit, "logit"), (trends.probit, "probit")])
def test_the_scales_are_their_closed_forms_and_come_back(stretch, scale):
    accuracy = np.array([1e-4, 0.2, 0.5, 0.9, 1 - 1e-4])
    expected = np.log(accuracy / (1 - accuracy)) if scale == "logit" else stats.norm.ppf(accuracy)
    assert stretch(accuracy) == pytest.approx(expected, abs=1e-12)
    assert trends.SCALES[scale][1](stretch(accuracy)) == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("stretch", [trends.logit, trends.probit])
def test_none_and_all_of_the_images_count_as_half_an_image(stretch):
    found = stretch(np.array([0.0, 0.001, 0.5, 1.0]), images=100)
    assert found == pytest.approx(stretch(np.array([0.005, 0.005, 0.5, 0.995])))
    each = stretch(np.array([0.0, 0.0]), images=np.array([10, 1000]))
    assert each == pytest.approx(stretch(np.array([0.05, 0.0005])))


@pytest.mark.parametrize("method", trends.METHODS)
@pytest.mark.parametrize("scale", trends.SCALES)
def test_models_on_a_line_give_the_line_and_no_effective_robustness(scale, method):
    x, y = models(noise=0, scale=scale)
    line = trends.fit_line(x, y, scale=scale, method=method)
    assert (line.slope, line.intercept) == pytest.approx((1.1, -0.6), abs=1e-9) and line.n == 40
    assert trends.effective_robustness(x, y, line) == pytest.approx(np.zeros(40), abs=1e-9)


def test_effective_robustness_is_what_was_added_to_the_line():
    x, y = models(noise=0)
    line = trends.fit_line(x, y)
    added = np.linspace(-0.2, 0.1, 40)
    assert trends.effective_robustness(x, y + added, line) == pytest.approx(added, abs=1e-9)
    assert trends.relative_robustness(y + added, y) == pytest.approx(added, abs=1e-12)


def test_least_squares_is_that_of_scipy_on_the_logit_scale():
    x, y = models(noise=0.3)
    line, expected = trends.fit_line(x, y), stats.linregress(special.logit(x), special.logit(y))
    assert (line.slope, line.intercept) == pytest.approx((expected.slope, expected.intercept), abs=1e-10)


@pytest.mark.parametrize("method", trends.METHODS)
def test_the_line_moves_with_its_axes(method):
    """Shift and stretch of y on the scale shift and stretch the line; swapping right for wrong mirrors it."""
    x, y = models(noise=0.3)
    line = trends.fit_line(x, y, method=method)
    moved = trends.fit_line(x, special.expit(2 * special.logit(y) - 0.7), method=method)
    assert (moved.slope, moved.intercept) == pytest.approx((2 * line.slope, 2 * line.intercept - 0.7), abs=1e-4)
    mirrored = trends.fit_line(1 - x, 1 - y, method=method)
    assert (mirrored.slope, mirrored.intercept) == pytest.approx((line.slope, -line.intercept), abs=1e-4)
    order = np.random.default_rng(1).permutation(len(x))
    again = trends.fit_line(x[order], y[order], method=method)
    assert (again.slope, again.intercept) == pytest.approx((line.slope, line.intercept), abs=1e-4)


def test_resamples_have_the_fits_that_each_has_alone():
    x, y = models(30, noise=0.2, scale="probit")
    y[:3] = 0.99
    rows = np.random.default_rng(1).integers(0, len(x), (20, len(x)))
    slopes, intercepts = trends._fits(special.ndtri(x), special.ndtri(y), rows, "huber")
    alone = [trends.fit_line(x[r], y[r], scale="probit", method="huber") for r in rows]
    assert slopes == pytest.approx([line.slope for line in alone], abs=1e-4)
    assert intercepts == pytest.approx([line.intercept for line in alone], abs=1e-4)


def test_huber_resists_the_outlier_that_turns_least_squares():
    x, y = models(slope=1.0, intercept=-0.5, noise=0.02, scale="probit")
    clean = trends.fit_line(x, y, scale="probit").slope
    y[x.argmax()] = 0.001
    robust = trends.fit_line(x, y, scale="probit", method="huber").slope
    assert abs(robust - clean) < 0.05 < 0.5 < abs(trends.fit_line(x, y, scale="probit").slope - clean)


@pytest.mark.parametrize("outliers", [0, 1, 3])
def test_huber_agrees_with_huber_by_reweighting(outliers):
    x, y = models(60, noise=0.1, scale="probit")
    y[:outliers] = 0.9
    line = trends.fit_line(x, y, scale="probit", method="huber")
    slope, intercept = huber_by_reweighting(special.ndtri(x), special.ndtri(y))
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept), abs=1e-2)


def test_the_band_follows_the_line_and_is_narrowest_amid_the_models():
    x, y = models(noise=0.2)
    at = np.array([0.2, special.expit(special.logit(x).mean()), 0.97])
    band = trends.line_band(x, y, at)
    assert band.value.tolist() == pytest.approx(trends.fit_line(x, y)(at))
    assert (band.low < band.value).all() and (band.value < band.high).all()
    into = special.logit(band.high) - special.logit(band.low)
    assert into[1] < into[0] / 2 and into[1] < into[2] / 2
    # amid the models the line is their mean: its standard error is that of the residuals
    residuals = special.logit(y) - special.logit(trends.fit_line(x, y)(x))
    assert into[1] == pytest.approx(2 * 1.96 * residuals.std() / 40**0.5, rel=0.15)
    assert band.interval[0] == "bootstrap 95 % (40 models, 1000)" and (band.n == 40).all()


def test_intervals_of_slopes_are_right_nineteen_times_in_twenty():
    hits = []
    for seed in range(100):
        x, y = models(40, noise=0.2, seed=seed)
        rows = pd.DataFrame({"group": "all", "x": x, "y": y})
        found = trends.trends(rows, scale="logit", method="least squares", resamples=300, seed=seed)
        found = found.set_index("quantity").loc[["slope", "intercept"]]
        hits.append(((found.low < [1.1, -0.6]) & (found.high > [1.1, -0.6])).tolist())
    assert (np.mean(hits, axis=0) > 0.86).all()  # of 100 at 95 %: fewer has a chance below 0.1 %


def test_trends_are_told_by_group_with_both_r2_and_spearman():
    x, y = models(40, noise=0.3, scale="probit")
    y[3] = 0.05
    rows = pd.concat([table(x, y, "LAION"), table(ACCURACY, ACCURACY**2, "WIT")])
    found = trends.trends(rows, resamples=40).set_index(["group", "quantity"])
    u, v = special.ndtri(x), special.ndtri(y)
    line = trends.fit_line(x, y, scale="probit", method="huber")
    expected = {
        "slope": line.slope, "intercept": line.intercept,
        "r2": 1 - np.square(v - line.slope * u - line.intercept).sum() / np.square(v - v.mean()).sum(),
        "r2_least_squares": stats.pearsonr(u, v).statistic ** 2, "spearman": stats.spearmanr(x, y).statistic,
    }  # fmt: skip
    for quantity, value in expected.items():
        assert found.value["LAION", quantity] == pytest.approx(value, abs=1e-9)
        assert found.low["LAION", quantity] <= value <= found.high["LAION", quantity]
    assert found.value["LAION", "r2"] < found.value["LAION", "r2_least_squares"]
    assert found.value["WIT", "spearman"] == found.low["WIT", "spearman"] == 1
    assert found.n["WIT", "slope"] == 30


def test_every_model_gets_its_distance_from_the_line_of_the_baseline():
    x, y = models(noise=0.1)
    rows = pd.concat([table(x, y), table([0.6, 0.7], [0.7, 0.75], "clip")])
    found, line = trends.robustness(rows), trends.fit_line(x, y)
    assert found.columns.tolist() == [
        "model", "group", "x", "y", "expected", "value", "low", "high", "interval", "n", "unit",
    ]  # fmt: skip
    assert found.value.tolist() == pytest.approx(trends.effective_robustness(rows.x, rows.y, line).tolist())
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
    assert found.model.tolist() == rows.model.tolist() and (found.n == 40).all()
    # other groups have no pull on the line
    alone = trends.robustness(table(x, y))
    assert alone.value.tolist() == pytest.approx(found.value[:40].tolist())


def test_few_images_widen_the_intervals_of_models_by_their_binomial_error():
    x, y = models(400, noise=0.02)
    rows = pd.concat([table(x, y), table([0.7], [0.8], "clip")])
    exact, many, few = (trends.robustness(rows, images=(n, n)).iloc[-1] for n in (None, 10**9, 1000))
    assert many.high - many.low == pytest.approx(exact.high - exact.low, rel=0.15)
    slope = (trends.fit_line(x, y)(0.701) - trends.fit_line(x, y)(0.699)) / 0.002
    error = ((0.8 * 0.2 + slope**2 * 0.7 * 0.3) / 1000) ** 0.5
    assert few.high - few.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert few.interval == "bootstrap 95 % (400 standard models, images, 1000)"


def test_a_model_that_gets_none_right_has_an_interval():
    x, y = models(noise=0.1)
    rows = pd.concat([table(x, y), table([0.7, 1.0], [0.0, 1.0], "odd")])
    found = trends.robustness(rows, images=(1000, 1000)).iloc[-2:]
    assert np.isfinite(found[["value", "low", "high"]]).all(axis=None)
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


def test_group_means_hold_the_spread_of_their_models_and_of_the_line():
    x, y = models(60, noise=0.1)
    line = trends.fit_line(x, y)
    at, rng = np.linspace(0.55, 0.8, 25), np.random.default_rng(3)
    gain = 0.1 + 0.03 * rng.normal(size=25)
    rows = pd.concat([table(x, y), table(at, line(at) + gain, "clip"), table(at, line(at), "on the line")])
    found = trends.robustness(rows, by="group").set_index("group")
    assert found.index.tolist() == ["clip", "on the line"] and found.models.tolist() == [25, 25]
    assert found.value.tolist() == pytest.approx([gain.mean(), 0])
    assert found.low["on the line"] < 0 < found.high["on the line"]
    clip, on = (found.high - found.low)[["clip", "on the line"]]
    assert clip**2 == pytest.approx(on**2 + (2 * 1.96 * gain.std() / 5) ** 2, rel=0.25)


def test_a_line_that_breaks_at_a_pivot_is_fitted_on_each_side():
    x = np.linspace(0.5, 0.9, 41)
    below, above = Line(0.5, -3.0, "logit", 0), Line(4.0, -7.0, "logit", 0)
    rows = pd.concat([table(x, np.where(x > 0.7, above(x), below(x))), table([0.6, 0.8], [0.3, 0.3], "clip")])
    found = trends.robustness(rows, pivot=0.7)
    assert found.value[:41].to_numpy() == pytest.approx(np.zeros(41), abs=1e-9)
    assert found.value[41:].tolist() == pytest.approx([0.3 - below(0.6), 0.3 - above(0.8)])
    assert abs(trends.robustness(rows).value[:41]).max() > 0.02


def test_equal_seeds_give_equal_intervals():
    x, y = models(noise=0.2)
    first, again, other = (trends.robustness(table(x, y), images=(500, 500), seed=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first.low != other.low).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: trends.logit(63.3),
            r"accuracy is 63.3, allowed is a fraction from 0 to 1: divide percentages by 100\.",
        ),
        (lambda: trends.probit([0.5, -0.1]), r"accuracy is -0.1, allowed is a fraction from 0 to 1\."),
        (lambda: trends.logit(np.nan), "accuracy is nan, allowed"),
        (lambda: trends.logit(0.0), "accuracy is 0.0, whose logit is infinite: give images"),
        (lambda: trends.probit(1.0), "accuracy is 1.0, whose probit is infinite"),
        (lambda: trends.logit(0.5, images=0), "images is 0, allowed is 1 or more"),
        (lambda: trends.fit_line([0.5, 0.6], [0.4, 0.5]), "2 models given, allowed is 3 or more to fit a line"),
        (lambda: trends.fit_line([0.5] * 3, [0.4, 0.5, 0.6]), "All 3 models have the same x"),
        (lambda: trends.fit_line([0.5] * 3, [0.4] * 4), r"shapes \(3,\) and \(4,\), allowed is one value a model"),
        (lambda: trends.fit_line(ACCURACY, ACCURACY, scale="log"), "scale is 'log', allowed are 'logit', 'probit'"),
        (lambda: trends.fit_line(ACCURACY, ACCURACY, method="ols"), "method is 'ols', allowed are 'least squares'"),
        (lambda: trends.line_band(ACCURACY, ACCURACY, [0.5], resamples=0), "resamples is 0, allowed is 1 or more"),
        (lambda: trends.line_band(ACCURACY, ACCURACY, [0.5], confidence=95), "confidence is 95, allowed is between"),
        (lambda: trends.relative_robustness([0.5], [0.5, 0.4]), "allowed is one base model a changed model"),
        (lambda: trends.relative_robustness([50.0], [0.5]), "accuracy under shift is 50.0, .* divide percentages"),
        (
            lambda: trends.robustness(pd.DataFrame({"model": ["a"], "x": [0.5]}), by="source"),
            r"rows have no column 'group', 'y', 'source', they have model, x\.",
        ),
        (lambda: trends.robustness(table([0.5, 0.6], [0.5, 70.0])), "y is 70.0, allowed is a fraction"),
        (
            lambda: trends.robustness(table(ACCURACY, ACCURACY, "clip")),
            "Group 'standard' has 0 models, allowed is 3 or more to fit a line",
        ),
        (
            lambda: trends.robustness(table(ACCURACY, ACCURACY), pivot=0.84),
            "Group 'standard' has 1 models above the pivot 0.84, allowed",
        ),
        (lambda: trends.trends(table([0.5, 0.6], [0.5, 0.6], "CC12M")), "CC12M has 2 models, allowed is 3 or more"),
        (lambda: trends.trends(table(ACCURACY, ACCURACY), x="clean"), "rows have no column 'clean'"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_bootstrap_of_a_line_agrees_with_that_of_any_statistic():
    x, y = models(noise=0.3)
    rows = pd.DataFrame({"group": "all", "x": x, "y": y})
    found = trends.trends(rows, scale="logit", method="least squares").set_index("quantity").loc["slope"]
    expected = scores.bootstrap(lambda a, b: stats.linregress(a, b).slope, special.logit(x), special.logit(y), seed=5)
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
