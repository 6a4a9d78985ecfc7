"""Chapter 11 beyond the contract: its statistics against scipy, and instruments against planted truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tiny import tiny_model, token_pictures

from zsr_utils import datasets, scores
from zsr_utils.datasets import TWINS, planted
from zsr_utils.experiments import data_overlap as overlap


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "cache"))


def test_the_example_of_clip_in_closed_form():
    # Birdsnap: of the images 12.1 % have a duplicate, and the accuracy is 0.6 points higher with them than without
    n, share, clean = 10_000, 0.121, 0.6
    flagged = np.arange(n) < share * n
    right = np.concatenate([np.arange(1210) < 786, np.arange(8790) < clean * 8790])
    found, p = scores.overlap_effect(right, flagged)
    assert found["contamination"].value == share and found["clean"].value == clean
    assert (
        found["change"].value == pytest.approx(found["all"].value - clean) and f"{found['change'].value:.3f}" == "0.006"
    )
    assert p == pytest.approx(stats.binom.sf(785, 1210, clean))
    low = stats.beta.ppf(0.0025, 786, 1210 - 786 + 1)
    assert found["overlap"].low == pytest.approx(low) and found["change"].low == pytest.approx(share * (low - clean))


@pytest.mark.parametrize(("right", "flagged"), [([1, 0, 1], [0, 0, 0]), ([1, 0, 1], [1, 1, 1]), ([1, 1, 0], [0, 0, 1])])
def test_an_empty_part_or_a_perfect_one_has_no_test(right, flagged):
    found, p = scores.overlap_effect(np.array(right), np.array(flagged))
    assert np.isnan(p) and np.isnan(found["change"].value) == (len(set(flagged)) == 1)


def test_the_least_gain_is_the_one_noticed_in_four_of_five_cases():
    n, clean = 200, 0.7
    truth = clean + scores.detectable_gain(n, clean)
    noticed = [stats.binomtest(k, n, clean, alternative="greater").pvalue <= 0.05 for k in range(n + 1)]
    assert stats.binom.pmf(np.arange(n + 1), n, truth)[noticed].sum() == pytest.approx(0.8)


def test_exact_copies_are_always_found_and_false_alarms_keep_to_the_rate():
    clean = np.random.default_rng(0).random(1000)
    assert (clean > overlap.threshold_of(clean, 0.02)).mean() <= 0.02
    assert overlap.threshold_of(np.ones(9), 0.1) < 1  # an instrument that finds all alike
    images, tool = token_pictures(20), overlap.Instrument("perceptual hash", "", overlap.hashes)
    own = tool.vectors(images)
    for kind in TWINS[:5]:
        alike = (own * tool.vectors(planted(images, kind))).sum(1)
        assert alike.min() >= overlap.SAME if kind == "exact" else alike.mean() > 0.5
    assert planted(images, "caption only") is None
    with pytest.raises(ValueError, match="kind of twin is 'mirrored'"):
        planted(images, "mirrored")


def test_contamination_is_that_planted_where_all_twins_are_found():
    table = pd.DataFrame([(f"s{i}", k, k != "none") for i in range(100) for k in ("none", *TWINS[:5])])
    table.columns = ["sample_id", "kind", "found"]
    found = overlap.contaminations(table.assign(instrument="x"))
    assert found.value.tolist() == found.planted.tolist() == [0, 0.02, 0.1, 0.5]


def test_neighbours_stream_and_an_index_is_taken_only_from_its_maker(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "CHUNK", 7)
    monkeypatch.setattr(overlap, "load_model", lambda *_: tiny_model())
    images, net = token_pictures(20), tiny_model()
    hashed, own, _ = overlap.instruments(net, "other")
    test = hashed.vectors(images.subset(5))
    whole = overlap.nearest(test, [hashed.vectors(images)])
    overlap.write_index(tmp_path / "index", hashed, images)
    parts = overlap.nearest(test, overlap.read_index(tmp_path / "index", hashed, 64))
    assert whole[1].tolist() == parts[1].tolist() and np.allclose(whole[0], parts[0], atol=1e-3)
    assert whole[0] == pytest.approx(np.ones(5), abs=1e-5) and len(list((tmp_path / "index").glob("*.npy"))) == 3
    for tool, width in ((own, 64), (hashed, 32)):
        with pytest.raises(ValueError, match="was made by 'perceptual hash' in vectors of 64 numbers"):
            list(overlap.read_index(tmp_path / "index", tool, width))
    with pytest.raises(ValueError, match=r"allowed is a folder with an index\.json"):
        list(overlap.read_index(tmp_path, own, 4))
    with pytest.raises(ValueError, match="allowed is the TorchScript file"):
        overlap.instruments(net, "other", str(tmp_path / "no.pt"))


def test_twins_of_scenes_are_those_of_the_overlap_model():
    near = datasets.near_duplicates(overlap.training("tabletop-overlap"))
    assert len(near) == 2400 and len(set(near.values())) == 600
    images = datasets.load_dataset("tabletop").subset(3)
    twins = {kind: planted(images, kind) for kind in TWINS}
    levels = {k: np.stack([np.asarray(p, float) for _, p, _ in t]) for k, t in twins.items()}
    change = {k: np.abs(v - levels["exact"]).mean() for k, v in levels.items()}
    assert change["exact"] == 0 < change["light"] < change["caption only"] and change["camera"] < change["caption only"]
