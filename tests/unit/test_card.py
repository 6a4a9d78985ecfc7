"""The report card decides no more than its numbers allow, and refuses what cannot be compared."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from zsr_utils.book import card
from zsr_utils.scores import halves, halves_difference, in_halves, mean_of, median_of, proportion


MADE_OF = {"images": "i", "prompts": "p", "settings": "s"}


def number(name: str, hits, ids=None, **more) -> dict:
    """A share with its interval, and what it is on halves of the images where they have ids."""
    e = proportion(int(np.sum(hits)), len(hits))
    own = {"name": name, "chapter": "01-x", "says": "of images", "better": "more", "made_of": MADE_OF}
    own |= {"value": e.value, "low": e.low, "high": e.high, "interval": e.interval, "n": e.n, "unit": "fraction"}
    if ids is not None:
        inside = in_halves(ids)
        own["halves"] = {"images": len(ids), "values": (inside @ np.asarray(hits, float) / inside.sum(1)).tolist()}
    return own | more


def card_with(numbers, fingerprint="a", **of) -> dict:
    whose = {"model": "m", "pretrained": None, "fingerprint": fingerprint, "dataset": "d", "seed": 0} | of
    return {"card": card.PROTOCOL, "of": whose, "numbers": list(numbers), "missing": {}}


def decided(table) -> bool:
    return bool(table.decision.isin(["better", "worse"]).any())


def answers(rng, images: int, numbers: int) -> np.ndarray:
    """Right or wrong of images that are easy or hard for all numbers alike."""
    difficulty = rng.normal(0, 1, (images, 1)) + rng.normal(0, 1, (1, numbers))
    return rng.random((images, numbers)) < stats.norm.cdf(difficulty)


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_of_two_halves_or_swapped_answers_of_one_checkpoint_hardly_a_card_decides_anything(paired):
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        hits = answers(rng, 200, 12)
        ids = [str(i) for i in range(200)] if paired else None
        if paired:  # two checkpoints that might as well be each other, image by image
            other = np.where(rng.random((200, 1)) < 0.5, hits, answers(rng, 200, 12) & hits)
            swap = rng.random((200, 1)) < 0.5
            halves = np.where(swap, hits, other), np.where(swap, other, hits)
        else:
            halves = np.split(rng.permutation(hits), 2)
        one, two = (
            card_with([number(f"a/n{k}", column, ids) for k, column in enumerate(half.T)], str(name))
            for name, half in enumerate(halves)
        )
        table = card.compare(one, two)
        assert (table.how == (card.PAIRED if paired else card.APART)).all()
        wrong += decided(table)
    assert wrong <= stats.binom.ppf(0.995, 200, 0.05), f"{wrong} of 200 cards decide a difference that is not there"


def test_a_difference_that_is_there_is_decided_and_pairing_sees_it_with_fewer_images():
    rng = np.random.default_rng(1)
    ids, hits = [str(i) for i in range(300)], rng.random(300) < 0.6
    worse = hits & (rng.random(300) < 0.9)
    paired = card.compare(card_with([number("a/b", hits, ids)]), card_with([number("a/b", worse, ids)], "b"))
    apart = card.compare(card_with([number("a/b", hits)]), card_with([number("a/b", worse)], "b"))
    assert paired.decision[0] == "better" and apart.decision[0] == "not decided"
    assert paired.value[0] - paired.against[0] == pytest.approx(paired.difference[0])
    assert apart.needed[0] > 1 and np.isnan(paired.needed[0])
    flipped = card.compare(
        card_with([number("a/b", worse, ids, better="less")]), card_with([number("a/b", hits, ids)], "b")
    )
    assert flipped.decision[0] == "better" and flipped.difference[0] < 0
    neither = card_with([number("a/b", worse, ids, better=None)])
    assert card.compare(neither, card_with([number("a/b", hits, ids)], "b")).decision[0] == "lower"


def test_so_many_more_images_would_decide_as_the_normal_approximation_says():
    hits, fewer = np.arange(400) < 200, np.arange(400) < 180
    (row,) = card.compare(card_with([number("a/b", hits)]), card_with([number("a/b", fewer)], "b")).itertuples()
    by_hand = (1.96 + 0.8416) ** 2 * (0.5 * 0.5 + 0.45 * 0.55) / 0.05**2
    assert row.decision == "not decided" and row.needed * 400 == pytest.approx(by_hand, rel=0.02)


def test_what_only_the_correction_leaves_open_needs_more_images():
    hits, fewer, nothing = (np.arange(400) < k for k in (200, 160, 200))
    one, other = ([number("a/b", first), *(number(f"a/n{k}", nothing) for k in range(30))] for first in (hits, fewer))
    row = card.compare(card_with(one), card_with(other, "b")).iloc[0]
    assert row.low > 0 and row.decision == "not decided"
    level = stats.norm.isf(0.025 / 31)
    by_hand = (level + 0.8416) ** 2 * (0.5 * 0.5 + 0.4 * 0.6) / 0.1**2
    assert row.needed * 400 == pytest.approx(by_hand, rel=0.02) and row.needed > 1


def test_equality_needs_a_margin_and_nothing_is_decided_at_the_best_possible():
    ids, right = [str(i) for i in range(2000)], np.ones(2000)
    many, few = (card_with([number("a/b", right[:n], ids[:n])]) for n in (2000, 30))
    assert card.compare(many, many | {"of": many["of"] | {"fingerprint": "b"}}).decision[0] == "same within 0.02"
    assert card.compare(few, few | {"of": few["of"] | {"fingerprint": "b"}}).decision[0] == "not decided"
    best = card_with([number("a/b", right, ids, best=1)])
    assert (
        card.compare(best, best | {"of": best["of"] | {"fingerprint": "b"}}).decision[0] == "both at the best possible"
    )


def test_halves_know_the_error_of_means_as_the_t_test_does_and_of_medians_as_a_bootstrap_does():
    rng = np.random.default_rng(3)
    rows = pd.DataFrame({"sample_id": [str(i) for i in range(600)], "x": rng.normal(size=600)})
    other = rows.assign(x=rows.x + rng.normal(0.05, 0.5, 600))
    for statistic, error in (
        (mean_of("x", "units"), (other.x - rows.x).std() / 600**0.5),
        (median_of("x", "units"), np.std([np.subtract(*np.median(both, 1)) for both in drawn(rng, other.x, rows.x)])),
    ):
        one, two = (
            {"images": 600, "values": halves(r, lambda half, of=statistic: [of(half).value])[:, 0]}
            for r in (rows, other)
        )
        values = [statistic(r).value for r in (rows, other)]
        found, p = halves_difference(one, two, values, unit="units")
        assert found.value == pytest.approx(values[1] - values[0])
        assert (found.high - found.low) / 2 / stats.t.ppf(0.975, 50) == pytest.approx(error, rel=0.25)
        assert p == pytest.approx(2 * stats.t.sf(abs(found.value) / ((found.high - found.low) / 4.017), 50), rel=0.01)
    assert halves(rows[:3], lambda half: [half.x.mean()]) is None


def drawn(rng, one, other):
    """Bootstrap samples of images, of two columns at once."""
    both = np.stack([one, other])
    return (both[:, rng.integers(0, len(one), len(one))] for _ in range(400))


def test_the_halves_of_a_source_image_hold_all_that_was_made_of_it():
    rows = pd.DataFrame({"sample_id": [f"{i}" for i in range(90)], "source_id": [f"{i // 9}" for i in range(90)]})
    seen = []
    halves(rows, lambda half: seen.append(half.groupby("source_id").size()) or [1.0])
    assert all((sizes == 9).all() for sizes in seen) and len({len(sizes) for sizes in seen}) > 1


@pytest.mark.parametrize(
    ("numbers", "of", "words"),
    [
        ({"made_of": MADE_OF | {"images": "j"}}, {}, "cannot be compared: a/b of 01-x has other images."),
        ({"made_of": {"images": "i", "prompts": "q", "settings": "t"}}, {}, "has other prompts and settings."),
        ({"name": "a/c"}, {}, "have no headline number in common."),
        (
            {},
            {"fingerprint": "a"},
            "are of the same run, of m on d: another checkpoint, seed or precision is needed.",
        ),
    ],
)
def test_cards_that_cannot_be_compared_are_refused_with_what_differs(numbers, of, words):
    one = card_with([number("a/b", [1, 0])])
    with pytest.raises(ValueError) as error:
        card.compare(one, card_with([number("a/b", [1, 0]) | numbers], **({"fingerprint": "b"} | of)))
    assert str(error.value).endswith(words)


def test_a_second_run_of_a_checkpoint_shows_what_noise_is():
    one = card_with([number("a/b", [1, 0] * 50)])
    again = card_with([number("a/b", [0, 1] * 50, made_of=MADE_OF | {"images": "of another seed"})], seed=1)
    assert card.compare(one, again).decision[0] == "not decided"


def test_a_number_without_an_interval_decides_nothing():
    one, other = (card_with([number("a/b", [1, 0], low=None, high=None)], f) for f in "ab")
    (row,) = card.compare(one, other).itertuples()
    assert row.decision == "no interval" and np.isnan(row.p_holm)


def test_a_card_goes_round_as_a_file_and_a_broken_one_is_one_sentence(tmp_path, capsys):
    ids = [str(i) for i in range(50)]
    one, other = (card_with([number("a/b", np.arange(50) < k, ids)], str(k)) for k in (20, 45))
    for name, own in (("one", one), ("other", other)):
        card.write(own, tmp_path / name)
    files = [str(tmp_path / name / "card.json") for name in ("one", "other")]
    assert card.read_card(files[0]) == json.loads(json.dumps(one))
    assert card.main([*files, "--to", str(tmp_path)]) == 0 and "worse" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "card.csv").decision.tolist() == ["worse"]
    assert "model-index:" in (tmp_path / "model-index.md").read_text()
    broken = {"card": card.PROTOCOL + 1}, {"card": card.PROTOCOL}, one | {"numbers": [{"name": "a/b"}]}
    older = f"is a card of protocol {card.PROTOCOL + 1}, allowed is {card.PROTOCOL}: make it again."
    for content, words in zip(broken, (older, "has no ", "has no ")):
        (tmp_path / "x.json").write_text(json.dumps(content))
        assert card.main([str(tmp_path / "x.json")]) == 2 and words in capsys.readouterr().err
    (tmp_path / "x.json").write_text("{")
    assert card.main([str(tmp_path / "x.json")]) == 2 and "is no card" in capsys.readouterr().err


def test_who_looks_after_every_image_waits_longer(tmp_path):
    rng = np.random.default_rng(4)
    for name, share in (("one", 0.9), ("other", 0.5)):
        (folder := tmp_path / name / "01-zero-shot-baseline").mkdir(parents=True)
        right = rng.random(400) < share
        ids = [str(i) for i in range(400)]
        rows = pd.DataFrame({"sample_id": ids, "label": 0, "prediction": np.where(right, 0, 1)})
        rows.assign(condition="original").to_parquet(folder / "samples.parquet")
    found = card.watched(tmp_path / "one", tmp_path / "other")
    assert found["low"] > 0 and 1 < found["first"] < 400 and found["price"] > 1 and found["n"] == 400
    assert card.watched(tmp_path / "one", tmp_path / "one")["first"] == 0
    assert card.watched(tmp_path / "one", tmp_path) is None
