"""Lines through models: what is on them, what is off them, and how sure that is."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.linear_model import HuberRegressor

from zsr_utils.scores import trends


ACCURACY = np.linspace(0.55, 0.85, 30)


def models(n=40, *, slope=1.1, intercept=-0.6, noise=0.05, seed=0, scale="logit"):
    """Accuracies of models that scatter about a known line."""
    into, back = trends.SCALES[scale]
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.5, 0.85, n)
    return x, back(slope * into(x) + intercept + noise * rng.normal(size=n))


def first(line):
    return line.slope[0, 0], line.intercept[0, 0]


@pytest.mark.parametrize("scale", trends.SCALES)
def test_the_scales_are_their_closed_forms_and_come_back(scale):
    accuracy = np.array([1e-4, 0.2, 0.5, 0.9, 1 - 1e-4])
    expected = np.log(accuracy / (1 - accuracy)) if scale == "logit" else stats.norm.ppf(accuracy)
    assert trends.stretched(accuracy, scale) == pytest.approx(expected, abs=1e-12)
    assert trends.SCALES[scale][1](expected) == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("method", trends.METHODS)
@pytest.mark.parametrize("scale", trends.SCALES)
def test_models_on_a_line_give_the_line(scale, method):
    x, y = models(noise=0, scale=scale)
    line = trends.fit_line(x, y, scale=scale, method=method, resamples=20)
    assert first(line) == pytest.approx((1.1, -0.6), abs=1e-9) and line.n == 40
    assert line(x).shape == (21, 40) and abs(y - line(x)).max() < 1e-9


def test_least_squares_and_its_resamples_are_those_of_scipy():
    x, y = models(noise=0.3)
    line, rows = trends.fit_line(x, y, resamples=5, seed=3), trends.redrawn(40, 5, 3, 0)
    for drawn, slope, intercept in zip(rows, line.slope[:, 0], line.intercept[:, 0]):
        expected = stats.linregress(special.logit(x[drawn]), special.logit(y[drawn]))
        assert (slope, intercept) == pytest.approx((expected.slope, expected.intercept), abs=1e-10)


@pytest.mark.parametrize("outliers", [0, 1, 3])
def test_huber_is_that_of_scikit_learn_and_resists_outliers(outliers):
    x, y = models(60, noise=0.1, scale="probit")
    y[:outliers] = 0.9
    line = trends.fit_line(x, y, scale="probit", method="huber", resamples=1)
    u, v = special.ndtri(x), special.ndtri(y)
    expected = HuberRegressor(epsilon=1.35, alpha=0, max_iter=1000).fit(u[:, None], v)
    assert first(line) == pytest.approx((expected.coef_[0], expected.intercept_), abs=1e-3)
    y[x.argmax()] = 0.001
    slopes = [trends.fit_line(x, y, scale="probit", method=m, resamples=1).slope[0, 0] for m in trends.METHODS]
    assert abs(slopes[1] - 1.1) < 0.15 < 0.3 < abs(slopes[0] - 1.1)


@pytest.mark.parametrize("method", trends.METHODS)
def test_the_line_moves_with_its_axes(method):
    """Shift and stretch of y on the scale shift and stretch the line; swapping right for wrong mirrors it."""
    x, y = models(noise=0.3)
    how = {"method": method, "resamples": 1}
    slope, intercept = first(trends.fit_line(x, y, **how))
    moved = trends.fit_line(x, special.expit(2 * special.logit(y) - 0.7), **how)
    assert first(moved) == pytest.approx((2 * slope, 2 * intercept - 0.7), abs=1e-4)
    assert first(trends.fit_line(1 - x, 1 - y, **how)) == pytest.approx((slope, -intercept), abs=1e-4)
    order = np.random.default_rng(1).permutation(len(x))
    assert first(trends.fit_line(x[order], y[order], **how)) == pytest.approx((slope, intercept), abs=1e-4)


def test_the_interval_of_a_slope_has_the_width_of_its_standard_error():
    """That of the sandwich, since pairs are drawn; and the band is narrowest amid the models."""
    x, y = models(200, noise=0.2)
    line = trends.fit_line(x, y, resamples=4000)
    u, v = special.logit(x), special.logit(y)
    off, residuals = u - u.mean(), v - line.slope[0, 0] * u - line.intercept[0, 0]
    e, error = trends.summary(line.slope[:, 0], 200), np.sqrt(np.square(off * residuals).sum()) / (off @ off)
    assert e.high - e.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    band = line.band(np.array([0.2, special.expit(special.logit(x).mean()), 0.97]))
    width = special.logit(band.high) - special.logit(band.low)
    assert width[1] < width[0] / 2 and width[1] < width[2] / 2
    assert band.value.tolist() == line(band.x)[0].tolist() and band.interval[0] == "bootstrap 95 % (models, 4000)"


def test_a_line_breaks_at_its_pivot_and_each_piece_has_its_own_models():
    x = np.linspace(0.5, 0.9, 41)
    pieces = [0.5 * special.logit(x) - 3, 4 * special.logit(x) - 7]
    line = trends.fit_line(x, special.expit(np.where(x > 0.7, pieces[1], pieces[0])), pivot=0.7, resamples=5)
    assert line.slope[0].tolist() == pytest.approx([0.5, 4]) and line.intercept[0].tolist() == pytest.approx([-3, -7])
    assert special.logit(line([0.6, 0.8])[0]).tolist() == pytest.approx(
        [0.5 * special.logit(0.6) - 3, 4 * special.logit(0.8) - 7]
    )
    assert line.band([0.6, 0.8]).piece.tolist() == [0, 1]


def test_the_common_slope_is_that_of_groups_at_heights_of_their_own():
    groups = [models(12, intercept=i, noise=0.2, seed=k) for k, i in enumerate((-1, 0, 2))]
    lines = [trends.fit_line(x, y, resamples=3, seed=k) for k, (x, y) in enumerate(groups)]
    u, v = (np.concatenate([special.logit(g[axis]) - special.logit(g[axis]).mean() for g in groups]) for axis in (0, 1))
    assert trends.common_slope(lines)[0] == pytest.approx((u @ v) / (u @ u))


def test_a_mean_over_models_holds_their_spread_and_that_of_the_line():
    rng = np.random.default_rng(0)
    offset, each = rng.normal(size=(2001, 1)), 0.5 * rng.normal(size=25)
    offset[0] = 0
    e = trends.summary(trends.mean_over(offset + each, seed=5), 25)
    assert e.value == pytest.approx(each.mean())
    assert ((e.high - e.low) / 3.92) ** 2 == pytest.approx(1 + each.var() / 25, rel=0.1)


def test_straightness_has_both_r2_and_spearman():
    x, y = models(40, noise=0.3, scale="probit")
    y[3] = 0.05
    found = trends.straightness(x, y, method="huber", resamples=40)
    u, v = special.ndtri(x), special.ndtri(y)
    slope, intercept = first(trends.fit_line(x, y, scale="probit", method="huber", resamples=1))
    expected = {
        "slope": slope, "r2": 1 - np.square(v - slope * u - intercept).sum() / np.square(v - v.mean()).sum(),
        "r2_least_squares": stats.pearsonr(u, v).statistic ** 2, "spearman": stats.spearmanr(x, y).statistic,
    }  # fmt: skip
    assert {k: e.value for k, e in found.items()} == pytest.approx(expected)
    assert all(e.low < e.value < e.high for e in found.values())
    perfect = trends.straightness(ACCURACY[:9], ACCURACY[:9] ** 2, resamples=5)["spearman"]
    assert perfect.value == perfect.high == 1 and 0.8 < perfect.low < 0.95  # not of width zero


def test_equal_seeds_draw_alike_and_others_do_not():
    x, y = models(noise=0.2)
    one, again, other = (trends.fit_line(x, y, resamples=9, seed=s).slope for s in (1, 1, (1, 2)))
    assert (one == again).all() and one[0] == other[0] and (one[1:] != other[1:]).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: trends.stretched([63.3]), r"accuracy is 63.3, allowed is a fraction .*: divide percentages by 100\."),
        (lambda: trends.stretched([0.5, -0.1], "probit"), r"accuracy is -0.1, allowed is a fraction"),
        (lambda: trends.stretched(np.nan), "accuracy is nan, allowed"),
        (lambda: trends.stretched(0.0), "accuracy is 0.0, .* clip 0 and 1 by half an image"),
        (lambda: trends.fit_line([0.5, 0.6], [0.4, 0.5]), "2 models with 2 different x given, allowed is 3 models"),
        (lambda: trends.fit_line([0.5] * 3, [0.4, 0.5, 0.6]), "3 models with 1 different x given"),
        (lambda: trends.fit_line([0.5] * 3, [0.4] * 4), r"shapes \(3,\) and \(4,\), allowed is one value a model"),
        (lambda: trends.fit_line(ACCURACY, ACCURACY, scale="log"), "scale is 'log', allowed are 'logit', 'probit'"),
        (lambda: trends.fit_line(ACCURACY, ACCURACY, method="ols"), "method is 'ols', allowed are 'least squares'"),
        (lambda: trends.fit_line(ACCURACY, ACCURACY, pivot=0.84), "1 models on one side of the pivot 0.84 with"),
        (lambda: trends.fit_line(ACCURACY, ACCURACY, resamples=0), "resamples is 0, allowed is 1 or more"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_models_are_drawn_anew_evenly_and_as_many_as_there_are():
    index = trends.redrawn(5, 2000, 0)
    assert index.shape == (2001, 5) and index[0].tolist() == [0, 1, 2, 3, 4]
    times = np.bincount(index[1:].ravel(), minlength=5)
    assert len(times) == 5 and (abs(times - 2000) < 5 * np.sqrt(10000 * 0.2 * 0.8)).all()


def test_the_interval_of_spearman_is_that_of_bonett_and_wright():
    """Ranks 1 to 12 with two neighbours swapped three times: rho = 1 - 6 * 6 / (12 * 143)."""
    ranks = np.arange(1, 13)
    y = np.array([2, 1, 4, 3, 6, 5, 7, 8, 9, 10, 11, 12])
    found = trends.straightness(ranks / 14, y / 14, resamples=1)["spearman"]
    rho = 1 - 36 / (12 * 143)
    half = 1.959964 * np.sqrt((1 + rho**2 / 2) / (12 - 3))
    ends = np.tanh(np.arctanh(rho) + np.array([-half, half]))
    assert [found.value, found.low, found.high] == pytest.approx([rho, *ends], rel=1e-6)


def test_of_ranks_that_agree_one_swap_of_neighbours_is_inside_the_interval():
    """rho is 1, whose own interval would have no width: the bounds are those of 1 - 12 / (n^3 - n)."""
    x = np.arange(1, 9) / 10
    found = trends.straightness(x, x, resamples=1)["spearman"]
    swapped = 1 - 12 / (8**3 - 8)
    assert swapped == pytest.approx(stats.spearmanr(x, [*x[[1, 0]], *x[2:]]).statistic)
    half = 1.959964 * np.sqrt((1 + swapped**2 / 2) / 5)
    assert (found.value, found.high) == pytest.approx((1, 1))
    assert found.low == pytest.approx(np.tanh(np.arctanh(swapped) - half))


def test_a_summary_has_the_first_draw_as_its_value_and_not_in_its_interval():
    found = trends.summary(np.array([1000.0, 0, 1]), 7)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((1000, 0.025, 0.975, 7))
