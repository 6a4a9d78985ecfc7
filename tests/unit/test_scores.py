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
    rng = np.random.default_rng(0)
    hits = 0
    for k in rng.binomial(200, 0.9, size=2000):
        e = scores.proportion(int(k), 200)
        hits += e.low <= 0.9 <= e.high
    assert 0.93 < hits / 2000 < 0.97


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


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(2).normal(size=500)
    e = scores.bootstrap(np.mean, values, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(500)
    assert (e.low, e.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.012)
    assert e.interval == "bootstrap 95 % (4000)"


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
    assert (found["auroc"].low, found["auroc"].high) == pytest.approx((low, high), abs=2e-3)


def test_the_overlap_interval_covers_even_where_the_bootstrap_is_biased():
    """Embeddings without any class structure: the plain percentile interval misses its own estimate here."""
    rng = np.random.default_rng(5)
    found = scores.pair_estimates(rng.normal(size=(80, 4)), np.arange(80) % 4)
    assert found["overlap"].low < found["overlap"].value < found["overlap"].high <= 1
    assert found["auroc"].low < 0.5 < found["auroc"].high


def test_pair_estimates_need_both_sorts_of_pairs():
    with pytest.raises(ValueError, match="two images of one class"):
        scores.pair_estimates(np.eye(3), np.arange(3))


def test_mistakes_and_near_misses_are_ordered_and_disjoint():
    rows = pd.DataFrame(
        {
            "sample_id": list("abcd"),
            "label": [0, 0, 1, 1],
            "prediction": [1, 0, 0, 1],
            "confidence": [0.6, 0.9, 0.8, 0.5],
            "margin": [-1.0, 2.0, -3.0, 0.1],
        }
    )
    assert scores.confident_mistakes(rows, 5).sample_id.tolist() == ["c", "a"]
    assert scores.nearest_misses(rows, 5).sample_id.tolist() == ["d", "b"]
    assert scores.confusion(rows, 2).tolist() == [[1, 1], [1, 1]]


def test_scores_load_no_model_library():
    code = "import sys, zsr_utils.scores; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_that_check_can_fail():
    code = "import sys, zsr_utils.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1


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
