"""Detection scores and normality on samples whose answers are known."""

import numpy as np
import pandas as pd
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
    assert constant["auroc"].value == 0.5 and constant["auroc"].low == scores.proportion(25, 50).low
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


@pytest.mark.slow
def test_intervals_are_right_nineteen_times_in_twenty():
    """Against the truth at the true threshold: an interval that forgot the threshold would miss 17 % for `fpr`.

    Of 40 at 95 %, fewer than 33 has a chance below 0.1 %.
    """
    rng, d, z = np.random.default_rng(0), 1.5, NORMAL.ppf(0.95)
    expected = {"auroc": NORMAL.cdf(d / 2**0.5), "threshold": z, "tpr": NORMAL.cdf(d - z), "fpr": 0.05}
    hits = []
    for _ in range(40):
        found = scores.detection(rng.normal(d, 1, 150), rng.normal(size=150), rng.normal(size=150), resamples=200)
        hits.append([found[name].low <= expected[name] <= found[name].high for name in expected])
    assert (np.sum(hits, axis=0) >= 33).all()


def test_the_false_alarm_rate_is_kept_on_average():
    """A new image is above the k-th of n scores with probability 1 - k / (n + 1): 3 of 60 above the 57th of 59."""
    held_out = gaussian(59, 0, 3)
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
    """Gaussian samples with clearly different axes."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * np.arange(1, d + 1)
    return rng.normal(size=(n, d)) @ mix.T + 3


def test_normal_samples_are_not_rejected_and_others_are_found():
    values = cloud(1000)
    assert (scores.normality(values, np.eye(6)).p_holm > 0.05).all()
    values[:, 2] += 0.3 * values[:, 2] ** 2
    found = scores.normality(values, np.eye(6))
    assert (found.p_holm < 0.05).tolist() == [False, False, True, False, False, False]
    assert found.statistic.idxmin() == 2
    assert found.p[0] == pytest.approx(stats.shapiro(values[:, 0]).pvalue)


def test_holm_multiplies_the_smallest_p_value_most_and_never_swaps_two():
    found = scores.normality(np.random.default_rng(3).uniform(size=(40, 5)), np.eye(5)).sort_values("p")
    raw = found.p.to_numpy()
    expected = [max(min(1, (5 - j) * raw[j]) for j in range(i + 1)) for i in range(5)]
    assert found.p_holm.tolist() == pytest.approx(expected) and found.p_holm.iloc[0] == pytest.approx(5 * raw[0])


def test_false_rejections_over_all_directions_are_five_percent():
    rng = np.random.default_rng(0)
    rejected = [(scores.normality(rng.normal(size=(100, 6)), np.eye(6)).p_holm < 0.05).any() for _ in range(150)]
    assert abs(np.mean(rejected) - 0.05) < 4 * (0.05 * 0.95 / 150) ** 0.5


def test_qq_points_of_normal_values_lie_on_the_diagonal():
    points = scores.qq_points(NORMAL.ppf((np.arange(2000) + 0.5) / 2000) * 7 + 100)
    assert abs(points.theoretical - points.ordered)[20:-20].max() < 0.01
    assert points.ordered.std() == pytest.approx(1) and points.ordered.is_monotonic_increasing


def test_bad_input_of_normality():
    values = cloud(20)
    with pytest.raises(ValueError, match=r"shapes \(20, 6\) and \(3, 5\), allowed are \(N, D\) and \(M, D\)"):
        scores.normality(values, np.ones((3, 5)))
    with pytest.raises(ValueError, match="2 samples given, allowed are 3 to 5000"):
        scores.normality(values[:2], np.eye(6))
    with pytest.raises(ValueError, match="All samples are equal along direction 1"):
        scores.normality(values * [1, 0, 1, 1, 1, 1] + 7, np.eye(6))
    with pytest.raises(ValueError, match=r"values have shape \(2,\)"):
        scores.qq_points(np.array([1.0, 2.0]))


def test_a_shift_of_the_mean_is_told_from_the_covariance():
    """Both in closed form: a cloud of trace 4 v around a mean move of squared length 4 s^2."""
    rng, v, s = np.random.default_rng(0), 2.0, 3.0
    rows = pd.DataFrame({"model": "m", "sample_id": np.repeat(list("abcd"), 500), "severity": 255.0})
    rows["move"] = list(rng.normal(s, v**0.5, (2000, 4)))
    derivatives = pd.DataFrame({"jacobian": 4 * v, "trace": 0.0, "hessian": 0.0}, index=list("abcd"))
    found = scores.squared_moves(rows, pd.concat({"m": derivatives})).query("account == 'first order'")
    measured = {part: scores.beside_predicted(frame) for part, frame in found.groupby("part")}
    assert measured["covariance"].value == pytest.approx(1, abs=0.06) and measured["covariance"].n == 4
    assert measured["mean"].value == pytest.approx(s**2 / v, abs=0.3)
    assert measured["whole"].value == pytest.approx(measured["covariance"].value + measured["mean"].value)
    centred = rows.assign(move=list(rng.normal(0, 1, (2000, 4)))).groupby("sample_id").head(2)
    few = scores.squared_moves(centred, pd.concat({"m": derivatives}))
    assert few[few.part == "mean"].measured.min() < 0  # two copies alone would give a mean move


def test_clouds_are_told_from_normal_ones():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"sample_id": np.repeat(["normal", "skew"], 200), "severity": 1.0})
    rows["move"] = list(np.vstack([rng.normal(size=(200, 3)), rng.exponential(size=(200, 3))]))
    assert scores.not_normal(rows, np.eye(3)).set_index("sample_id").rejected.to_dict() == {
        "normal": False,
        "skew": True,
    }
    points = scores.qq_clouds(rows, np.eye(3)[0])
    assert len(points) == 200 and points.series.unique().tolist() == ["σ = 1"] and (points.sample_id == "normal").all()


def noise_rows(sigmas=(1.0, 2.0), n=200, draws=2, seed=0):
    """Drifts of kinds: `far` 3 standard deviations above clean ones and `near` 3 below, at the largest sigma alone."""
    rng, parts = np.random.default_rng(seed), []
    for kind, shift in (("clean", 0), ("held out", 0), ("far", 3), ("near, 4", -3)):
        for sigma in sigmas:
            drift = 10 + rng.normal(shift * (sigma == max(sigmas)), 1, n)
            flips = rng.integers(2, size=(n, draws)) * (kind == "far")
            ids = [f"{'pair' if shift else kind} {i}" for i in range(n)]
            parts += [
                pd.DataFrame({
                    "sample_id": ids, "source_id": ids, "kind": kind, "severity": sigma, "draw": draw, "drift": drift,
                    "prediction": flips[:, draw], "clean_prediction": 0, "target_label": -1, "rms": shift,
                }) for draw in range(draws)
            ]  # fmt: skip
    return pd.concat(parts, ignore_index=True).assign(model="m")


def test_an_image_is_its_means_over_the_draws():
    rows = noise_rows()
    images = scores.per_image(rows).set_index(["kind", "severity", "sample_id"]).sort_index()
    assert len(images) == len(rows) / 2
    one = rows[(rows.kind == "far") & (rows.severity == 2) & (rows.sample_id == "pair 7")]
    own = images.loc["far", 2.0, "pair 7"]
    assert own.answers == one.prediction.mean() and own.drift == one.drift.mean()
    held_out = images.loc["held out", 2.0]
    assert held_out.drift_either_way.agg(["min", "max"]).tolist() == pytest.approx([0.0025, 0.4975])  # ranks of 200
    assert (images.loc["near, 4", 2.0].drift_either_way > 0.4).mean() > 0.9
    assert (images.loc["far", 2.0].found_answers == (images.loc["far", 2.0].answers > 0)).all()
    found = scores.detect(images.reset_index(), resamples=10).set_index(["kind", "severity", "statistic", "quantity"])
    for statistic in ("drift", "drift_either_way", "answers"):  # the same threshold
        assert found.value["far", 2.0, statistic, "tpr"] == images.loc["far", 2.0][f"found_{statistic}"].mean()


def test_detection_of_every_kind_at_every_sigma():
    found = scores.detect(scores.per_image(noise_rows()), resamples=100)
    assert len(found) == 2 * 2 * 3 * 4 and set(found.series) >= {"near, by drift either way", "far, by answers"}
    value = found.set_index(["kind", "severity", "statistic", "quantity"]).value
    assert value["far", 2, "drift", "auroc"] == pytest.approx(0.983, abs=0.01)  # Phi(3 / sqrt 2)
    assert value["near, 4", 2, "drift", "auroc"] == pytest.approx(0.017, abs=0.01)
    assert value["near, 4", 2, "drift", "tpr"] == 0
    for kind in ("near, 4", "far"):  # either way: Phi(3 - 1.96)
        assert value[kind, 2, "drift_either_way", "tpr"] == pytest.approx(NORMAL.cdf(3 - 1.96), abs=0.08)
        assert value[kind, 1, "drift", "auroc"] == pytest.approx(0.5, abs=0.08)
    flipped = (scores.per_image(noise_rows()).query("kind == 'far' and severity == 1").answers > 0).mean()
    assert value["far", 1, "answers", "auroc"] == pytest.approx((1 + flipped) / 2)  # ties count half
    excess = value["far", 2, "drift", "tpr"] - value["far", 2, "drift", "fpr"]
    assert value["far", 2, "drift", "excess"] == excess


def evading_rows(kind="far, averaged", hidden=20, n=60, draws=8):
    """Rows of `far`, whose answers change, and of an attacker who hides so many of the same images for one more rms."""
    rows = noise_rows(n=n, draws=draws)
    own = rows[rows.kind == "far"].assign(kind=kind, rms=4)
    gone = own.sample_id.isin([f"pair {i}" for i in range(hidden)])
    return pd.concat([rows, own.assign(prediction=own.prediction.where(~gone, 0))], ignore_index=True)


def test_who_averages_is_compared_with_the_plain_attacker_source_by_source():
    found = scores.detect(scores.per_image(evading_rows()), resamples=20)
    found = found[(found.kind == "far, averaged") & (found.severity == 2)].set_index(["statistic", "quantity"])
    evasion = found.loc[("answers", "evasion")]
    assert evasion.value == pytest.approx(-20 / 60, abs=0.04) and evasion.low < evasion.value < evasion.high < -0.1
    assert found.loc[("drift", "evasion")].value == 0 < found.loc[("drift", "evasion")].high
    extra = found.loc[("answers", "extra")]
    assert extra.value == 1 and extra.low < 1 < extra.high and extra.unit == "grey levels"
    best = scores.detect_at_best_sigma(scores.per_image(evading_rows(hidden=60)), resamples=20)
    best = best[(best.kind == "far, averaged") & (best.statistic == "answers")].set_index("quantity")
    assert best.value["tpr"] == 0 and best.value["evasion"] < -0.9 < best.high["evasion"] < -0.5  # chosen, paired anew


def test_models_choose_their_sigma_by_their_own_sources():
    one, other = noise_rows(n=30), noise_rows(n=8, seed=1).assign(model="other")
    other["source_id"] = other["sample_id"] = "other " + other.sample_id
    images = scores.per_image(pd.concat([one, other], ignore_index=True))
    best = scores.detect_at_best_sigma(images, resamples=20)
    alone = scores.detect_at_best_sigma(images[images.model == "m"], resamples=20)
    pd.testing.assert_frame_equal(best[best.model == "m"].reset_index(drop=True), alone)
    assert best[(best.model == "other") & (best.quantity == "tpr")].n.eq(4).all()


def test_the_best_sigma_is_reported_on_other_sources_than_it_was_chosen_on():
    images = scores.per_image(noise_rows(n=60))
    best = scores.detect_at_best_sigma(images, resamples=20)
    assert best.severity[best.statistic == "drift_either_way"].eq(2).all() and len(best) == 2 * 3 * 4
    assert best[best.quantity == "tpr"].n.eq(30).all() and best[best.quantity == "fpr"].n.eq(60).all()
    choose = np.random.default_rng(0).permutation([f"pair {i}" for i in range(60)])[:30]
    spoilt = images.assign(drift=images.drift.where(~images.source_id.isin(choose), 10.0))
    reported = scores.detect(images[~images.source_id.isin(choose)], resamples=20)
    kept = scores.detect_at_best_sigma(spoilt, resamples=20).merge(reported)
    assert len(kept) == len(best)  # other drifts of those that choose change no value that is reported, at any sigma


def test_points_of_a_qq_plot_are_in_standard_deviations_and_fillibens_medians():
    points = scores.qq_points(np.array([5.0, 3.0, 4.0]))
    assert points.ordered.tolist() == pytest.approx([-1, 0, 1])  # three equidistant values: deviation 1, by n - 1
    assert points.theoretical.tolist() == pytest.approx(NORMAL.ppf([1 - 0.5 ** (1 / 3), 0.5, 0.5 ** (1 / 3)]))


def test_answers_are_found_above_the_threshold_that_one_new_clean_image_in_twenty_passes():
    """Of 19 held-out images it is the largest share: the rule of (n + 1), not that of n - 1."""
    held_out = [("held out", f"h{k}", k) for k in range(19)]
    images = [*held_out, ("named", "a", 18), ("named", "b", 19)]
    rows = [
        {"model": "m", "severity": 1.0, "kind": kind, "sample_id": name, "source_id": name, "prediction": draw < share,
         "clean_prediction": False, "target_label": 2, "rms": 0.0, "drift": 0.0}
        for kind, name, share in images for draw in range(20)
    ]  # fmt: skip
    found = scores.per_image(pd.DataFrame(rows)).set_index("sample_id").found_answers
    assert not found["a"] and found["b"]
