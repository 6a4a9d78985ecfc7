"""Numbers against closed forms."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from zsr_utils import scores


def test_wilson_interval_equals_its_formula():
    k, n, z = 37, 50, stats.norm.ppf(0.975)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    e = scores.proportion(k, n)
    assert (e.value, e.n, e.interval) == (p, n, "wilson 95 %")
    assert (e.low, e.high) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (5, 4), (-1, 3)])
def test_impossible_proportion_is_refused(k, n):
    with pytest.raises(ValueError, match=f"successes is {k} of n = {n}"):
        scores.proportion(k, n)


def test_wilson_interval_covers_at_its_rate():
    """The chance of every count, summed over those whose interval holds the share."""
    k = np.arange(201)
    found = [scores.proportion(int(i), 200) for i in k]
    held = np.array([e.low <= 0.9 <= e.high for e in found])
    assert 0.94 < stats.binom.pmf(k, 200, 0.9)[held].sum() < 0.96


def changed(gained: int, lost: int, n: int) -> scores.Estimate:
    """The paired difference of n samples of which some become right and some become wrong."""
    before = np.repeat([0.0, 1.0, 1.0], [gained, lost, n - gained - lost])
    after = np.repeat([1.0, 0.0, 1.0], [gained, lost, n - gained - lost])
    return scores.paired_difference(before, after)


def test_a_median_of_fewer_than_six_images_has_no_interval():
    """All of n images lie on one side of the median with a chance of 2 / 2^n: below 5 % from six on."""
    rows = pd.DataFrame({"sample_id": list("aabcdef"), "rms": [1.0, 9.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    five, six = (scores.median_of("rms", "grey levels")(part) for part in (rows.head(6), rows))
    assert five.value == 3.5 and "no interval" in f"{five}" and scores.decide(five) == "undecided"
    assert six.low < six.value == 4 < six.high


def test_paired_interval_is_narrower_than_the_unpaired_one():
    rng = np.random.default_rng(1)
    before = (rng.random(400) < 0.7).astype(float)
    after = before.copy()
    after[:20] = 0
    paired = scores.paired_difference(before, after)
    shuffled = scores.paired_difference(before, rng.permutation(after))
    assert paired.value == pytest.approx(after.mean() - before.mean())
    assert paired.low <= paired.value <= paired.high
    assert (paired.high - paired.low) < 0.6 * (shuffled.high - shuffled.low)


def test_no_change_of_sixteen_is_not_certainty():
    """Without a change, and where every sample changes, the score interval has a closed form."""
    z2 = stats.norm.ppf(0.975) ** 2
    none, all_ = changed(0, 0, 16), changed(16, 0, 16)
    assert (none.value, none.low, none.high) == pytest.approx((0, -z2 / (16 + z2), z2 / (16 + z2)), abs=1e-8)
    assert (all_.low, all_.high) == pytest.approx(((16 - z2) / (16 + z2), 1), abs=1e-8)
    other = changed(0, 16, 16)
    assert (other.value, other.low, other.high) == pytest.approx((-1, -1, -all_.low), abs=1e-8)
    assert none.interval == "tango 95 % (paired)" and none.n == 16


def test_paired_bounds_are_published_ones_and_where_the_score_is_at_its_limit():
    found = changed(1, 7, 21)  # airway response before and after a transplantation, Fagerland et al. (2013)
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    gained, lost, n = 5, 2, 30
    for bound in (changed(gained, lost, n).low, changed(gained, lost, n).high):
        shares = np.linspace(max(0, -bound), (1 - bound) / 2, 200_001)[1:-1]  # of the lost, given the difference
        chance = gained * np.log(shares + bound) + lost * np.log(shares)
        chance += (n - gained - lost) * np.log1p(-2 * shares - bound)
        likeliest = shares[chance.argmax()]
        score = (gained - lost - n * bound) / np.sqrt(n * (2 * likeliest + bound - bound**2))
        assert abs(score) == pytest.approx(stats.norm.ppf(0.975), rel=1e-3)


def test_paired_intervals_cover_at_their_rate():
    """The chance of every outcome of 16 pairs, summed over those whose interval holds the difference."""
    p, q = 0.25, 0.1
    held = 0.0
    for gained in range(17):
        for lost in range(17 - gained):
            found = changed(gained, lost, 16)
            if found.low <= p - q <= found.high:
                held += stats.multinomial.pmf([gained, lost, 16 - gained - lost], 16, [p, q, 1 - p - q])
    assert 0.94 < held < 0.97


def test_a_paired_difference_that_does_not_vary_keeps_a_width():
    z2 = stats.norm.ppf(0.975) ** 2
    half = z2 / (10 + z2)
    shares = np.linspace(0.2, 0.7, 10)
    moved = scores.paired_difference(shares, shares + 0.1)
    assert (moved.low, moved.high) == pytest.approx((0.1 - half, 0.1 + half)) and "no variation" in moved.interval
    far = scores.paired_difference(shares * 0, shares * 0 + 0.9)
    assert far.high == 1  # two shares do not differ by more
    levels = scores.paired_difference(40 * shares, 40 * shares, unit="grey levels")
    assert (levels.low, levels.high) == pytest.approx((-28 * half, 28 * half))  # values reach from 0 to 28
    beyond = scores.paired_difference(40 * shares, 40 * shares + 5)  # a table of many quantities, called fractions
    assert (beyond.low, beyond.high) == pytest.approx((5 - 33 * half, 5 + 33 * half))
    assert scores.paired_difference(shares, shares**2).interval == "bootstrap 95 % (paired, 1000)"


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(2).normal(size=500)
    e = scores.bootstrap(np.mean, values, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(500)
    assert (e.low, e.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.012)
    assert e.interval == "bootstrap 95 % (4000)"


def test_a_bootstrap_draws_as_many_as_there_are():
    """Two values: the mean of n draws is a binomial count, whose quantiles are known; of n - 1 draws it is another."""
    e = scores.bootstrap(np.mean, np.array([0.0, 1.0] * 3), resamples=20_000)
    low, high = stats.binom.ppf([0.025, 0.975], 6, 0.5) / 6
    assert (e.low, e.high) == (low, high)
    spread = []
    scores.bootstrap(lambda v: spread.append(len(v)) or 0.0, np.arange(7.0), resamples=3, unit="number")
    scores.bootstrap(lambda v, axis=-1: spread.append(v.shape[axis]) or v.sum(axis), np.arange(7.0), resamples=3)
    assert set(spread) == {7}


def test_a_grouped_bootstrap_draws_as_many_groups_as_there_are():
    seen = []
    scores.bootstrap(lambda v: seen.append(len(v)) or 0.0, np.arange(8.0), groups=np.repeat(range(4), 2), resamples=3)
    assert set(seen) == {8}


def test_fractions_that_do_not_vary_keep_a_width():
    e = scores.bootstrap(np.mean, np.zeros(40))
    wilson = scores.proportion(0, 40)
    assert (e.low, e.high) == (wilson.low, wilson.high) and e.interval == "wilson 95 % of 40, no variation"
    e = scores.bootstrap(np.mean, np.ones(40, dtype=bool), groups=np.repeat(range(8), 5))
    assert e.low == scores.proportion(8, 8).low and e.high == 1


def test_bootstrap_refuses_columns_of_different_length():
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]"):
        scores.bootstrap(lambda a, b: 0.0, np.zeros(2), np.zeros(3))


def test_auroc_agrees_with_scikit_learn_also_with_ties():
    rng = np.random.default_rng(3)
    positive, negative = rng.integers(0, 12, 300) / 10 + 0.2, rng.integers(0, 12, 200) / 10
    expected = roc_auc_score([1] * 300 + [0] * 200, np.concatenate([positive, negative]))
    assert scores.auroc(positive, negative) == pytest.approx(expected, abs=1e-12)


def test_auroc_without_a_side_is_refused():
    with pytest.raises(ValueError, match="at least one positive"):
        scores.auroc(np.array([]), np.ones(2))


def test_overlap_of_two_normals_is_the_closed_form():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 1, 200_000), rng.normal(2, 1, 200_000)
    assert scores.overlap_coefficient(a, b) == pytest.approx(2 * stats.norm.cdf(-1), abs=0.01)


def _two_clusters(n=60, d=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = rng.normal(size=(3, d))
    return centres[labels] + 0.7 * rng.normal(size=(n, d)), labels


def test_pair_similarities_count_every_pair_once():
    embeddings, labels = _two_clusters()
    within, between = scores.pair_similarities(embeddings, labels)
    assert len(within) == 3 * 20 * 19 // 2 and len(within) + len(between) == 60 * 59 // 2
    i, j = 0, 3
    cosine = embeddings[i] @ embeddings[j] / np.linalg.norm(embeddings[i]) / np.linalg.norm(embeddings[j])
    assert np.isclose(within, cosine).any()


def test_pair_estimates_cover_their_values_and_equal_a_naive_bootstrap():
    embeddings, labels = _two_clusters()
    found = scores.pair_estimates(embeddings, labels, resamples=300)
    within, between = scores.pair_similarities(embeddings, labels)
    assert found["auroc"].value == scores.auroc(within, between)
    assert found["overlap"].value == scores.overlap_coefficient(within, between)
    for e in found.values():
        assert e.low <= e.value <= e.high

    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = unit @ unit.T
    first, second = np.triu_indices(60, k=1)
    rng, naive = np.random.default_rng(0), []
    for _ in range(300):
        rows = rng.integers(60, size=60)
        i, j = rows[first], rows[second]
        keep = i != j
        i, j = i[keep], j[keep]
        same = labels[i] == labels[j]
        naive.append(scores.auroc(cosines[i, j][same], cosines[i, j][~same]))
    bias = np.mean(naive) - found["auroc"].value
    low, high = np.quantile(naive, [0.025, 0.975]) - bias
    assert (found["auroc"].low, found["auroc"].high) == pytest.approx((low, high), abs=2e-4)


def test_the_overlap_interval_covers_even_where_the_bootstrap_is_biased():
    """Embeddings without any class structure: the plain percentile interval misses its own estimate here."""
    rng = np.random.default_rng(5)
    found = scores.pair_estimates(rng.normal(size=(80, 4)), np.arange(80) % 4)
    assert found["overlap"].low < found["overlap"].value < found["overlap"].high <= 1
    assert found["auroc"].low < 0.5 < found["auroc"].high


def test_what_no_sample_tells_is_not_measured():
    """Never a number, and never a zero: without pairs of a class, images in common, rows, or more than one draw."""
    rows = pd.DataFrame({"sample_id": ["a"], "model": "m", "x": [1.0], "drift": [1.0], "distance": [2.0]})
    none = rows[:0]
    missing = [
        *scores.pair_estimates(np.eye(3), np.arange(3)).values(),
        scores.paired_change(rows, rows.assign(sample_id="b"), "x"),
        scores.mean_of("x", "1")(rows.assign(x=np.nan)),
        scores.relative_to(rows)(none),
        scores.share_of("x")(none),
        scores.bootstrap(np.mean, np.array([])),
    ]
    for estimate in missing:
        assert f"{estimate:pct}" == "not measured" and scores.decide(estimate) == "undecided" and estimate.n == 0
    still = scores.bootstrap(np.mean, np.zeros(20), unit="grey levels")  # resamples of one value have no width
    assert f"{still:.1f}" == "0.0 [no interval, n = 20]"
    one = scores.mean_of("x", "grey levels")(rows)
    assert (one.value, f"{one:.1f}", scores.decide(one)) == (1, "1.0 [no interval, n = 1]", "undecided")


def test_few_images_of_which_a_draw_may_hold_no_pair_keep_their_interval():
    found = scores.pair_estimates(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]]), np.array([0, 0, 1, 1]))
    assert all(np.isfinite([e.low, e.high]).all() for e in found.values())


@pytest.mark.slow
def test_scores_load_no_model_library():
    code = "import sys, zsr_utils.scores; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert "pandas" in loaded and not {"torch", "open_clip"} & set(loaded)


def test_ssim_of_flat_images_is_its_closed_form():
    """Without variance it is (2 a b + c) / (a^2 + b^2 + c), with c = 0.01^2 for pixels in [0, 1]."""
    import torch

    from zsr_utils.conditions.alignment import closeness

    found = closeness(torch.full((1, 3, 16, 16), 0.05), torch.full((1, 3, 16, 16), 0.1))
    assert found["ssim"][0] == pytest.approx((2 * 0.05 * 0.1 + 1e-4) / (0.05**2 + 0.1**2 + 1e-4), rel=1e-4)


def test_the_summary_of_a_spectrum_is_its_closed_form():
    """s = (4, 2, 1, 0): s^2 = (16, 4, 1), of sum 21, and squares of those sum to 273."""
    rows = scores.spectrum_summary(np.array([[4.0, 2.0, 1.0, 0.0]]), ["a"])
    assert rows.to_dict("records") == [
        {"sample_id": "a", "largest": 4, "frobenius": 21**0.5, "effective_rank": 21**2 / 273, "rank": 3,
         "condition_number": 4}
    ]  # fmt: skip
    assert set(rows.columns[1:]) <= set(scores.JACOBIAN_UNITS)


def test_the_spectrum_by_rank_is_quantiles_over_the_images():
    table = scores.spectrum_by_rank(np.arange(1.0, 102)[:, None] * [1.0, 0.5, 1e-9])
    assert table["rank"].tolist() == [1, 2]
    assert table[["low", "value", "high"]].to_numpy().ravel().tolist() == pytest.approx([6, 51, 96, 3, 25.5, 48])


def test_a_verdict_needs_an_interval_that_excludes_the_reference():
    def e(low, high):
        return scores.Estimate((low + high) / 2, low, high, "95 %", 100)

    assert [scores.decide(e(*b)) for b in ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3))] == ["more", "less", "undecided"]
    assert scores.decide(e(0.0, 0.3)) == scores.decide(e(-0.3, 0.0)) == "undecided"  # touching is not excluding
    assert [scores.decide(e(0.4, 0.6), r) for r in (0.3, 0.5, 0.7)] == ["more", "undecided", "less"]
    assert scores.decide(e(float("nan"), float("nan")), margin=1) == "undecided"


def test_equality_is_claimed_only_within_a_margin():
    def verdict(low, high, reference=0.0):
        return scores.decide(scores.Estimate(0.0, low, high, "95 %", 100), reference, margin=0.05)

    assert verdict(-0.04, 0.05) == verdict(0.01, 0.02) == verdict(0.96, 1.04, 1) == "same"
    assert verdict(-0.06, 0.04) == "undecided" and verdict(0.01, 0.06) == "more" and verdict(-0.06, -0.01) == "less"
    assert verdict(-0.04, 0.04, 1) == "less"
    with pytest.raises(ValueError, match="margin is 0, allowed is above 0, or None"):
        scores.decide(scores.proportion(1, 2), margin=0)


def test_a_grouped_proportion_is_wilson_for_independent_groups_and_wider_for_alike_ones():
    rng = np.random.default_rng(0)
    values = (rng.random(900) < 0.3).astype(float)
    alone = scores.grouped_proportion(values, np.arange(900))
    plain = scores.proportion(int(values.sum()), 900)
    np.testing.assert_allclose((alone.low, alone.high), (plain.low, plain.high), rtol=2e-3)
    alike = scores.grouped_proportion(np.repeat(values[:100], 9), np.repeat(np.arange(100), 9))
    hundred = scores.proportion(int(values[:100].sum()), 100)
    np.testing.assert_allclose((alike.low, alike.high), (hundred.low, hundred.high), rtol=2e-2)
    none = scores.grouped_proportion(np.zeros(900), np.repeat(np.arange(100), 9))
    assert none.high == pytest.approx(scores.proportion(0, 100).high) and none.n == 900
    one = scores.grouped_proportion(np.arange(900) == 5, np.repeat(np.arange(100), 9))  # says nothing of groups
    assert one.value == 1 / 900 and none.high < one.high < scores.proportion(1, 100).high
    but = scores.grouped_proportion(np.arange(900) != 5, np.repeat(np.arange(100), 9))
    np.testing.assert_allclose((1 - but.low, 1 - but.high), (one.high, one.low), rtol=1e-9)
    with pytest.raises(ValueError, match="2 samples and 1 group"):
        scores.grouped_proportion(np.ones(2), np.ones(1))


@pytest.mark.parametrize("number", [8, 100])
def test_a_grouped_proportion_has_the_effective_number_of_samples(number):
    """Groups of one mind: as wide as one sample a group, by the t quantile of as many degrees of freedom."""
    shares = np.arange(number) % 2
    found = scores.grouped_proportion(np.repeat(shares, 9), np.repeat(np.arange(number), 9))
    effective = (number - 1) * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, number - 1)) ** 2
    half = 1.96 / (1 + 1.96**2 / effective) * np.sqrt(1 / (4 * effective) + 1.96**2 / (4 * effective**2))
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-4)


def test_a_grouped_proportion_covers_with_few_groups():
    """Eight groups of nine, half of the variance between groups: the normal quantile alone would cover 91 %."""
    rng = np.random.default_rng(0)
    counts = rng.binomial(9, rng.beta(1.0, 1.0, size=(400, 8)))
    groups, held = np.repeat(np.arange(8), 9), 0
    for row in counts:
        found = scores.grouped_proportion((np.arange(9) < row[:, None]).ravel(), groups)
        held += found.low <= 0.5 <= found.high
    assert 0.93 < held / 400 < 0.99


@pytest.mark.parametrize("statistic", [np.mean, np.median, lambda a, axis=-1: a.max(axis)])
def test_resamples_drawn_at_once_are_those_drawn_one_by_one(statistic, monkeypatch):
    values = np.random.default_rng(3).random(37)
    expected = scores.bootstrap(lambda v: statistic(v), values, resamples=50)
    assert scores.bootstrap(statistic, values, resamples=50) == expected
    monkeypatch.setattr(scores._intervals, "AT_ONCE", 37 * 7 + 1)  # seven at once, the last time one
    assert scores.bootstrap(statistic, values, resamples=50) == expected


def test_the_grouped_bootstrap_covers_the_spread_of_group_means():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 5)
    values = np.repeat(rng.normal(size=200), 5)
    wide = scores.bootstrap(lambda v: float(v.mean()), values, groups=groups)
    narrow = scores.bootstrap(lambda v: float(v.mean()), values)
    assert wide.interval == "bootstrap 95 % (1000, 200 groups)"
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(5**0.5, rel=0.1)
