"""Paired differences: exact tests against all signs, intervals that are never of width zero."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from zsr_utils import scores


@pytest.mark.parametrize("seed", range(4))
def test_the_sign_test_counts_all_signs(seed):
    d = np.random.default_rng(seed).normal(0.4, 1, 11).round(1)  # with ties and zeros
    sums = [abs(d @ signs) for signs in product((-1, 1), repeat=len(d))]
    assert scores.sign_flip(d) == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9))


def test_the_sign_test_of_answers_is_mcnemars_and_many_differences_take_students():
    d = np.repeat([1.0, -1.0, 0.0], [12, 4, 300])
    assert scores.sign_flip(d) == pytest.approx(stats.binomtest(4, 16).pvalue)
    assert scores.sign_flip(np.zeros(5)) == 1
    many = np.random.default_rng(0).normal(0.2, 1, 40)
    assert scores.sign_flip(many) == stats.ttest_1samp(many, 0).pvalue
    assert scores.sign_flip(np.ones(29)) == 2**-28  # at once


def test_holm_is_step_by_step_and_leaves_out_what_was_not_tested():
    p = np.array([0.04, 0.001, np.nan, 0.03, 0.011])
    assert scores.holm(p).tolist() == pytest.approx([0.06, 0.004, np.nan, 0.06, 0.033], nan_ok=True)


def test_intervals_cover_shares_of_any_size_and_have_a_width():
    rng, hits = np.random.default_rng(0), []
    for _ in range(400):  # of 40 images 5 % change one way and 2 % the other
        d = rng.choice([1.0, -1.0, 0.0], 40, p=[0.05, 0.02, 0.93])
        e = scores.paired_mean(d, bound=1)
        hits.append(e.low <= 0.03 <= e.high)
    assert np.mean(hits) > 0.92
    assert scores.paired_mean(np.zeros(40), bound=2).high == pytest.approx(2 * 1.96 / 42, rel=1e-3)
    d = rng.normal(1, 2, 12)
    e, expected = scores.paired_mean(d), stats.ttest_1samp(d, 0).confidence_interval()
    assert (e.low, e.high) == pytest.approx((expected.low, expected.high)) and e.interval == "paired t 95 %"


def test_changes_are_of_the_samples_that_both_have():
    base = pd.DataFrame({"m": list("aaab"), "sample_id": [1, 1, 2, 1], "value": [0.0, 1.0, 0.0, 5.0]})
    other = pd.DataFrame({"m": list("aac"), "sample_id": [1, 3, 1], "value": [1.0, 1.0, 0.0]})
    found = scores.paired_changes(base, other, "m", bounds={"a": 1})
    assert found.m.tolist() == ["a"] and found.n.tolist() == [1]
    assert found[["base", "other", "value", "p"]].values.tolist() == [[0.5, 1.0, 0.5, 1.0]]
