"""Confidence sequences: they hold at all times, adapt to the variance, and cost what they say."""

import numpy as np
import pytest
from scipy import stats

from zsr_utils.scores import confidence_sequence, price


STREAMS = 500


def differences(share: float, n: int = 1000, gain: float = 0.0, streams: int = STREAMS) -> np.ndarray:
    """Differences of right answers, of which a share is not 0, on the scale of 0 to 1."""
    rng = np.random.default_rng(0)
    d = (rng.random((streams, n)) < share) * np.where(rng.random((streams, n)) < 0.5 + gain, 1, -1)
    return (d + 1) / 2


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_all_bounds_of_a_stream_hold_at_once_where_there_is_no_difference(share):
    low, high = confidence_sequence(differences(share))
    missed = ((low > 0.5) | (high < 0.5)).any(1).sum()
    assert missed <= stats.binom.ppf(0.999, STREAMS, 0.05)


def test_a_difference_is_found_and_bounds_never_widen():
    low, high = confidence_sequence(differences(0.2, gain=0.3, streams=20))
    assert (low[:, -1] > 0.5).all() and (high[:, -1] < 0.7).all()
    assert (np.diff(low) >= 0).all() and (np.diff(high) <= 0).all()


def test_small_variance_gives_narrower_bounds_than_hoeffding_at_the_same_number():
    low, high = confidence_sequence(differences(0.02, streams=1)[0])
    assert high[-1] - low[-1] < 2 * np.sqrt(np.log(2 / 0.05) / 2000)


def test_a_bound_uses_no_value_that_came_later():
    x = differences(0.3, streams=1)[0]
    assert np.array_equal(*(np.stack(confidence_sequence(v))[:, :300] for v in (x, np.r_[x[:300], 1 - x[300:]])))


@pytest.mark.parametrize("n", [20, 1000])
def test_to_look_all_the_time_has_a_price(n):
    x = differences(0.2, n, streams=1)[0]
    assert 1 < price(x) < 4 and price(np.full(n, 0.5)) > 1


@pytest.mark.parametrize(
    ("values", "alpha", "sentence"),
    [
        ([0.5, -1], 0.05, r"values run from -1 to 0.5, allowed is \[0, 1\]\."),
        ([np.nan], 0.05, r"values run from nan to nan, allowed is \[0, 1\]\."),
        ([], 0.05, r"values has shape \(0,\), allowed is one value or more along the last axis\."),
        ([0.5], 5, r"alpha is 5, allowed is above 0 and below 1\."),
    ],
)
def test_bad_values_get_one_sentence(values, alpha, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        confidence_sequence(values, alpha=alpha)
