"""Chapter 03: what is said of predicted and measured flips."""

import pandas as pd
import pytest

from zsr_utils.experiments import jacobian_spectra as chapter


@pytest.fixture
def flips():
    """Twelve images at three sigmas; measured is as the second order says, and beyond the upper bound of the first."""
    rows = [
        (name, "just named", sigma, account, predicted, predicted + 0.02, measured + 0.02 * (-1) ** k)
        for k, name in enumerate("abcdefghijkl")
        for sigma, measured, *both in ((1.0, 0.02, 0.0, 0.0), (4.0, 0.31, 0.02, 0.3), (8.0, 0.41, 0.2, 0.4))
        for account, predicted in zip(("first order", "second order"), both)
    ]
    columns = "sample_id kind sigma account predicted at_most measured"
    return pd.DataFrame(rows, columns=columns.split())


def test_an_account_is_tested_where_one_of_them_can_fail(flips):
    kept = chapter.testable(flips)
    assert sorted(kept.sigma.unique()) == [4, 8] and kept.groupby("account").size().tolist() == [24, 24]
    rates = chapter.accounts(flips).groupby(["account", "sigma"]).flip.mean()
    assert rates["measured", 8.0] == pytest.approx(0.41) and rates["second order", 8.0] == pytest.approx(0.4)


class Study(dict):
    said = ""

    def number(self, name, estimate):
        self[name] = estimate
        return estimate

    def say(self, text, **given):
        self.said = text


def test_more_flips_are_those_beyond_the_upper_bound(flips):
    study = Study()
    chapter.test_of_flips(study, flips)
    first, second = (f"linear/flips_beyond/{account}_order" for account in ("first", "second"))
    assert study[f"{first}_at_most"].value == pytest.approx(0.36 - 0.13)
    assert study[f"{second}_predicted"].value == pytest.approx(0.01) == -study[f"{second}_at_most"].value
    assert f"{{{first}_at_most:points}} from the upper bound: {chapter.FLIPPED['more']}" in study.said
    assert study.said.endswith(f"{chapter.FLIPPED['undecided']}.")
    chapter.test_of_flips(study, flips[flips.sample_id == "a"])
    assert "fewer than two images" in study.said
