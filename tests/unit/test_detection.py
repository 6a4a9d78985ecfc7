"""Detection scores and normality on samples whose answers are known."""

import numpy as np
import pytest
from scipy import stats

from zsr_utils import scores


NORMAL = stats.norm


def gaussian(n, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, n)


def width(estimate):
    return estimate.high - estimate.low


def test_known_gaussian_scores():
    """AUROC = Phi(d / sqrt 2); TPR = Phi(d - z) at the threshold z of 5 % false alarms."""
    d, n = 1.5, 4000
    found = scores.detection(gaussian(n, d, 1), gaussian(n, 0, 2), gaussian(n, 0, 3), resamples=400)
    z = NORMAL.ppf(0.95)
    expected = {"auroc": NORMAL.cdf(d / 2**0.5), "threshold": z, "tpr": NORMAL.cdf(d - z), "fpr": 0.05}
    for name, estimate in found.items():
        assert estimate.low < expected[name] < estimate.high and width(estimate) < 0.15, name
    assert found["auroc"].value == scores.auroc(gaussian(n, d, 1), gaussian(n, 0, 2))


def test_identical_scores_are_a_coin():
    same = np.arange(200.0)
    found = scores.detection(same, same, same)
    assert found["auroc"].value == 0.5 and found["tpr"].value == found["fpr"].value == 0.05
    constant = scores.detection(np.zeros(50), np.zeros(50), np.zeros(50))  # ties: nothing is above the threshold
    half = scores.proportion(25, 50)
    assert constant["auroc"].value == 0.5 and (constant["auroc"].low, constant["auroc"].high) == (half.low, half.high)
    for name in ("tpr", "fpr"):
        assert constant[name].value == 0 and constant[name].high == scores.proportion(0, 50).high


def test_the_threshold_comes_from_the_held_out_alone():
    held_out = gaussian(300, 0, 3)
    first = scores.detection(gaussian(300, 1, 1), gaussian(300, 0, 2), held_out)
    other = scores.detection(gaussian(300, 5, 1), gaussian(300, -4, 2), held_out)
    assert first["threshold"].value == other["threshold"].value == np.quantile(held_out, 0.95, method="weibull")
    moved = scores.detection(gaussian(300, 1, 1), gaussian(300, 0, 2), held_out + 1)
    assert moved["threshold"].value == pytest.approx(first["threshold"].value + 1)
    assert moved["auroc"] == first["auroc"] and moved["fpr"].value < first["fpr"].value


def test_intervals_are_right_nineteen_times_in_twenty():
    """Against the truth at the true threshold: an interval that forgot the threshold would miss 17 % for `fpr`."""
    rng, d, z = np.random.default_rng(0), 1.5, NORMAL.ppf(0.95)
    expected = {"auroc": NORMAL.cdf(d / 2**0.5), "threshold": z, "tpr": NORMAL.cdf(d - z), "fpr": 0.05}
    hits = []
    for _ in range(40):
        found = scores.detection(rng.normal(d, 1, 300), rng.normal(size=300), rng.normal(size=300), resamples=100)
        hits.append([found[name].low <= expected[name] <= found[name].high for name in expected])
    assert (np.sum(hits, axis=0) >= 34).all()  # of 40 at 95 %: fewer has a chance of 0.3 %


def test_the_false_alarm_rate_is_kept_on_average():
    """A new image is above the k-th of n scores with probability 1 - k / (n + 1): 3 of 60 above the 57th of 59."""
    held_out = gaussian(59)
    assert scores.detection([0], [0], held_out, resamples=1)["threshold"].value == np.sort(held_out)[56]


def test_as_many_scores_are_drawn_as_there_are():
    """Of ten scores half above a threshold that stays, the count in a resample is binomial; of nine it is another."""
    half = np.repeat([-1.0, 1.0], 5)
    found = scores.detection(half, half, np.zeros(9), resamples=1000)
    for name in ("tpr", "fpr"):
        assert (found[name].low, found[name].high) == tuple(stats.binom.ppf([0.025, 0.975], 10, 0.5) / 10)
    pairs = scores.detection(np.repeat(half, 2), half, np.zeros(9), groups=np.repeat(range(10), 2), resamples=1000)
    assert (pairs["tpr"].low, pairs["tpr"].high) == (found["tpr"].low, found["tpr"].high)
    # the threshold is the second largest of 39: two or more of 39 draws are above k - 1 with a known chance
    found = scores.detection(half, half, np.arange(39.0), resamples=1000)["threshold"]
    chance = stats.binom.cdf(1, 39, 1 - np.arange(1, 40) / 39)  # that it is at most k
    assert (found.low, found.high) == tuple(np.searchsorted(chance, [0.025, 0.975]))


def test_intervals_hold_the_uncertainty_of_the_threshold():
    positive, negative = gaussian(5000, 1.5, 1), gaussian(5000, 0, 2)
    few, many = (scores.detection(positive, negative, gaussian(n, 0, 3)) for n in (60, 20000))
    for name in ("tpr", "fpr", "threshold"):
        assert width(few[name]) > 4 * width(many[name])
    assert few["auroc"] == many["auroc"]


def test_images_of_one_source_are_resampled_together():
    positive, negative, held_out = gaussian(80, 1, 1), gaussian(3000, 0, 2), gaussian(3000, 0, 3)
    single = scores.detection(positive, negative, held_out)
    copies, groups = np.repeat(positive, 9), np.repeat(np.arange(80), 9)
    grouped = scores.detection(copies, negative, held_out, groups=groups)
    naive = scores.detection(copies, negative, held_out)
    for name in ("auroc", "tpr"):
        assert grouped[name].value == pytest.approx(single[name].value)
        assert (grouped[name].low, grouped[name].high) == pytest.approx((single[name].low, single[name].high))
        assert width(naive[name]) < 0.5 * width(grouped[name])
    assert "80 groups" in grouped["tpr"].interval and grouped["tpr"].n == 720


def test_groups_of_different_size_may_have_any_labels():
    found = scores.detection([1.0, 2.0, 3.0], [0.0, 1.5], [0.0, 1.0], groups=np.array(["b", "a", "b"]))
    assert found["auroc"].value == pytest.approx(5 / 6) and found["tpr"].n == 3


def test_perfect_separation_keeps_an_honest_interval():
    clean = np.random.default_rng(0).uniform(size=300)
    found = scores.detection(clean[:90] + 5, clean[:200], clean[200:])
    assert found["auroc"].value == found["tpr"].value == found["auroc"].high == 1
    assert found["auroc"].low == scores.proportion(90, 90).low and "wilson 95 % of 90" in found["auroc"].interval
    grouped = scores.detection(clean[:90] + 5, clean[:200], clean[200:], groups=np.repeat(np.arange(10), 9))
    assert grouped["tpr"].low == scores.proportion(10, 10).low
    below = scores.detection(clean[:90] - 5, clean[:200], clean[200:])
    assert below["auroc"].value == below["tpr"].value == 0 and below["auroc"].high == scores.proportion(0, 90).high


def test_a_missed_false_alarm_is_no_proof_of_none():
    found = scores.detection(gaussian(50), np.zeros(40), gaussian(100) + 9)
    assert found["fpr"].value == 0 and found["fpr"].high == scores.proportion(0, 40).high


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positive": []}, r"positive scores have shape \(0,\), allowed is \(n,\) with n at least 1"),
        ({"held_out": []}, r"held_out scores have shape \(0,\)"),
        ({"negative": [[1.0]]}, r"negative scores have shape \(1, 1\)"),
        ({"negative": [0.0, np.nan]}, "negative score 1 is not finite"),
        ({"false_alarm": 0.0}, "false_alarm is 0.0, allowed is between 0 and 1"),
        ({"resamples": 0}, "resamples is 0, allowed is 1 or more"),
        ({"groups": [1]}, "1 groups and 2 positive scores given"),
    ],
)
def test_bad_scores_get_one_clear_sentence(changes, words):
    arguments = {"positive": [1.0, 2.0], "negative": [0.0], "held_out": [0.0]} | changes
    with pytest.raises(ValueError, match=words):
        scores.detection(**arguments)


def cloud(n, seed=0, d=6):
    """Gaussian samples and their covariance, with clearly different axes."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * np.arange(1, d + 1)
    return rng.normal(size=(n, d)) @ mix.T + 3, mix @ mix.T


def test_normal_samples_are_not_rejected_and_others_are_found():
    values, _ = cloud(1000)
    assert (scores.normality(values, np.eye(6)).p_holm > 0.05).all()
    values[:, 2] += 0.3 * values[:, 2] ** 2
    found = scores.normality(values, np.eye(6))
    assert (found.p_holm < 0.05).tolist() == [False, False, True, False, False, False]
    assert found.statistic.idxmin() == 2 and abs(found.skewness[2]) > 5 * abs(found.skewness.drop(2)).max()
    assert found.p[0] == pytest.approx(stats.shapiro(values[:, 0]).pvalue)


def test_holm_multiplies_the_smallest_p_value_most_and_never_swaps_two():
    found = scores.normality(np.random.default_rng(3).uniform(size=(40, 5)), np.eye(5)).sort_values("p")
    raw = found.p.to_numpy()
    expected = [max(min(1, (5 - j) * raw[j]) for j in range(i + 1)) for i in range(5)]
    assert found.p_holm.tolist() == pytest.approx(expected) and found.p_holm.iloc[0] == pytest.approx(5 * raw[0])


def test_the_right_covariance_agrees_within_what_sampling_allows():
    values, predicted = cloud(800)
    found = scores.covariance_agreement(values, predicted)
    assert found["trace_ratio"].low < 1 < found["trace_ratio"].high
    assert found["frobenius"].value < found["frobenius_by_sampling"].high
    assert found["leading_cosine"].value > found["leading_cosine_by_sampling"].low
    empirical = np.cov(values.T)
    assert found["trace_ratio"].value == pytest.approx(np.trace(empirical) / np.trace(predicted))
    norm = np.linalg.norm
    assert found["frobenius"].value == pytest.approx(norm(empirical - predicted) / norm(predicted))
    leading = [np.linalg.eigh(m)[1][:, -1] for m in (empirical, predicted)]
    assert found["leading_cosine"].value == pytest.approx(abs(leading[0] @ leading[1]))


def test_sampling_alone_explains_as_often_as_it_says():
    inside = []
    for seed in range(30):
        values, predicted = cloud(60, seed)
        found = scores.covariance_agreement(values, predicted, resamples=100, simulations=100, seed=seed)
        limits = found["frobenius_by_sampling"]
        inside.append((limits.low < found["frobenius"].value < limits.high, found["trace_ratio"].low < 1
                       < found["trace_ratio"].high))  # fmt: skip
    assert (np.sum(inside, axis=0) >= 25).all()  # of 30 at 95 %: fewer has a chance of 0.3 %


def test_a_wrong_covariance_is_found():
    values, predicted = cloud(800)
    scaled = scores.covariance_agreement(values, 1.3 * predicted)
    assert scaled["trace_ratio"].high < 0.9 and scaled["frobenius"].value > scaled["frobenius_by_sampling"].high
    turned = scores.covariance_agreement(values, predicted[::-1, ::-1])
    assert turned["trace_ratio"].low < 1 < turned["trace_ratio"].high
    assert turned["leading_cosine"].value < turned["leading_cosine_by_sampling"].low


def test_bad_input_of_normality():
    values, predicted = cloud(20)
    with pytest.raises(ValueError, match=r"shapes \(20, 6\) and \(3, 5\), allowed are \(N, D\) and \(M, D\)"):
        scores.normality(values, np.ones((3, 5)))
    with pytest.raises(ValueError, match="2 samples given, allowed are 3 to 5000"):
        scores.normality(values[:2], np.eye(6))
    with pytest.raises(ValueError, match="All samples are equal along direction 1"):
        scores.normality(values * [1, 0, 1, 1, 1, 1] + 7, np.eye(6))
    with pytest.raises(ValueError, match=r"shapes \(20, 6\) and \(5, 5\)"):
        scores.covariance_agreement(values, predicted[:5, :5])
    with pytest.raises(ValueError, match="predicted is not symmetric"):
        scores.covariance_agreement(values, predicted + np.triu(predicted, 1))
    with pytest.raises(ValueError, match="allowed are 0 or more"):
        scores.covariance_agreement(values, predicted - np.eye(6))
    with pytest.raises(ValueError, match="simulations is 0"):
        scores.covariance_agreement(values, predicted, simulations=0)
