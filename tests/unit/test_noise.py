"""Noise as a condition on an encoder whose answers are known, and the kinds of images of chapter 04."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import Markup
from tiny import grey_images, linear_model, texts_apart, tiny_images, tiny_model
from torch.nn import functional as F

from zsr_utils import jacobian, scores
from zsr_utils.conditions import Head, gaussian_noise, random_control, unit_noise
from zsr_utils.conditions.alignment import Settings
from zsr_utils.experiments import noise_detection as noise
from zsr_utils.experiments.pairs import aligned_pairs
from zsr_utils.measure import Pixels, measure


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))


@pytest.fixture
def net():
    return linear_model()


@pytest.fixture
def images():
    return grey_images()


@pytest.fixture
def noisy(net, images):
    """Rows of the six images under conditions."""
    shown, head = Pixels(list("abcdef"), np.arange(6) % 4, images), Head(texts_apart(net, images), tuple("abcd"))
    return lambda conditions, draws=1: measure(net, shown, head, conditions, draws=draws)


@pytest.fixture
def shown(net):
    """What the encoder was shown, one entry a forward pass."""
    seen, original = [], net.net.encode_image
    net.net.encode_image = lambda x: seen.append(x.clone()) or original(x)
    return seen


def test_small_drift_is_its_closed_form(net, images, noisy):
    sigma, draws = 0.25, 150
    drift = noisy(gaussian_noise([sigma]), draws).groupby("sample_id").drift.mean()
    f, a = net.encode_image(images).double(), net.net.matrix.double()
    along = (F.normalize(f) @ a).square().sum(1)
    expected = (sigma / 255) ** 2 * (a.square().sum() - along) / (2 * f.square().sum(1))
    ratio = drift.to_numpy() / expected.numpy()
    error = (2 / (4 * draws)) ** 0.5  # four directions across f
    assert (abs(ratio - 1) < 4 * error).all() and abs(ratio.mean() - 1) < 4 * error / 6**0.5


def test_a_huge_noise_forgets_the_image(net, images, noisy):
    """Every pixel ends black or white by a coin: the drift is that of coin images."""
    drift = noisy(gaussian_noise([1e9]), 60).groupby("sample_id").drift.mean()
    coins = torch.randint(0, 2, (2000, 3, 8, 8), generator=torch.Generator().manual_seed(7)).float()
    cosines = F.normalize(net.encode_image(images)) @ F.normalize(net.encode_image(coins)).T
    assert (abs(drift - (1 - cosines.mean(1).numpy())) < 4 * cosines.std(1).numpy() / 60**0.5).all()


def test_every_condition_meets_the_same_noise(images, noisy, shown):
    noisy([*gaussian_noise([2]), *gaussian_noise([4])])
    noisy(gaussian_noise([2], conversion="round")), noisy(gaussian_noise([2], conversion="truncate"))
    (_, two, four, rounded, truncated), unit = shown, (shown[1] - images) * 255 / 2
    torch.testing.assert_close(unit, unit_noise((3, 8, 8), "abcdef", (0, 0)), atol=1e-3, rtol=0)
    torch.testing.assert_close(four, images + 4 / 255 * unit, atol=1e-6, rtol=0)
    torch.testing.assert_close(rounded * 255, (two * 255).round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(truncated * 255, (two * 255).floor(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [1e-3, 1e-2])
def test_truncation_makes_a_fixed_dither_of_any_tiny_noise(images, noisy, shown, sigma):
    """Trap 1: about half of all pixels fall by exactly one grey level; rounding gives the image back."""
    assert (noisy(gaussian_noise([sigma], conversion="round")).drift == 0).all()
    shown.clear()
    truncated = noisy(gaussian_noise([sigma], conversion="truncate"))
    levels = ((images - shown[0]) * 255).round().int()
    assert set(levels.unique().tolist()) == {0, 1} and 0.44 < levels.float().mean() < 0.53
    assert (truncated.drift > 100 * noisy(gaussian_noise([sigma])).drift).all()


@pytest.mark.parametrize("sigma", [0, -1, float("nan")])
def test_no_noise_is_no_condition(sigma):
    with pytest.raises(ValueError, match=f"sigma is {sigma}, allowed is above 0, in grey levels"):
        gaussian_noise([1, sigma])


@pytest.mark.parametrize("levels", [1, 40])
def test_the_random_control_moves_as_far_in_another_direction(images, levels):
    generator = torch.Generator().manual_seed(4)
    sources = torch.cat([images, images.round()])  # mid-grey, and black and white where clipping costs length
    change = torch.randint(-levels, levels + 1, sources.shape, generator=generator) / 255
    aligned, ids = (sources + change).clamp(0, 1), list("abcdefghijkl")
    control = random_control(ids, sources, aligned)
    wanted, got = ((x - sources).flatten(1) for x in (aligned, control))
    assert (abs(got.norm(dim=1) / wanted.norm(dim=1) - 1) < 0.02).all()
    torch.testing.assert_close(control * 255, (control * 255).round(), atol=1e-4, rtol=0)
    assert control.min() >= 0 and control.max() <= 1
    added = unit_noise((3, 8, 8), ids[:6], (0, 0)).flatten(1)  # what conditions add
    assert abs(F.cosine_similarity(got[:6], wanted[:6])).max() < 4 / 192**0.5
    assert abs(F.cosine_similarity(got[:6], added)).max() < 4 / 192**0.5
    assert torch.equal(control[3:5], random_control(ids[3:5], sources[3:5], aligned[3:5]))
    assert not torch.equal(control, random_control(ids, sources, aligned, seed=1))


def test_the_random_control_refuses_what_it_cannot_match(images):
    assert torch.equal(random_control("abcdef", images, images), images)
    with pytest.raises(ValueError, match=r"aligned has shape \(5, 3, 8, 8\), allowed is \(6, 3, 8, 8\)"):
        random_control("abcdef", images, images[:5])
    with pytest.raises(ValueError, match=r"The aligned image of 'b' differs by 255 grey levels \(RMS\)"):
        black = torch.zeros(2, 3, 8, 8)
        random_control("ab", black, torch.stack([black[0], black[0] + 1]))


@pytest.mark.slow
def test_a_linear_encoder_moves_as_the_linear_account_says(net, images, noisy):
    rows = noisy(noise.clouds([1, 4]), 100).assign(model="linear")
    squares = jacobian.second_order(net, images, 3).squares()
    assert not squares.to_numpy().any()
    squares = squares.assign(jacobian=float(net.net.matrix.square().sum())).set_index(pd.Index(list("abcdef")))
    moves = scores.squared_moves(rows, pd.concat({"linear": squares}))
    first, second = (moves[(moves.account == a) & (moves.part != "mean")].predicted for a in scores.ACCOUNTS)
    assert first.tolist() == second.tolist()
    moves = moves[moves.account == "first order"]
    parts = {key: scores.beside_predicted(part) for key, part in moves.groupby(["part", "severity"])}
    for sigma in (1, 4):  # five directions, 600 copies: a standard deviation of 2.6 %
        assert parts["whole", sigma].value == pytest.approx(1, abs=0.1) == parts["covariance", sigma].value
        assert abs(parts["mean", sigma].value) < 0.02
    assert scores.not_normal(rows, np.eye(5)).rejected.sum() <= 3  # of 12, 5 % each: more has a chance of 0.2 %


class Study(SimpleNamespace):
    """What the kinds need of a study: the tiny model, named differently by its classes' lengths."""

    def __init__(self):
        net, images = tiny_model(), tiny_images()
        head = Head(net.classifier(images.class_names, ["a {}"]), images.class_names)
        super().__init__(name="tiny", net=net, nets={"tiny": net}, heads={"tiny": head}, images=images)
        self.parameters = {"seed": 0, "batch_size": 7}

    def measure(self, conditions, *, images, models, **options):
        return measure(self.net, images, self.heads["tiny"], conditions, **options).assign(model="tiny")


@pytest.fixture
def study():
    return Study()


@pytest.fixture
def pairs(study):
    return aligned_pairs(study.net, study.images, Settings(max_steps=50), per_class=3, number=8)


def test_kinds_are_what_they_are_called(study, pairs):
    named, aligned = noise.modified(
        study, pairs, {"named": noise.NAMED, "aligned, 1": Settings(noise=1 / 255, draws=2)}
    )
    control, clean = noise.control(study, aligned), noise.unmodified(study, pairs, 5)
    answers = study.net.logits(named.images.pixels, study.heads["tiny"].weights).argmax(1).numpy()
    assert (answers == named.known.target_label).all() and (named.known.rms > 0).all()
    used = {*pairs.table.sample_id, *pairs.table.target_id}
    first, second = (set(kind.images.sample_ids) for kind in clean)
    assert not used & (first | second) and not first & second and [kind.name for kind in clean] == ["clean", "held out"]
    np.testing.assert_allclose(control.known.rms, aligned.known.rms, rtol=0.02)
    assert list(control.images.sample_ids) == list(named.images.sample_ids) and len(named.known) <= 8
    for kind in (named, aligned, control, *clean):
        levels = kind.images.pixels * 255
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


def test_derivatives_are_those_of_every_model_and_image(study):
    images = study.images.subset(2, 0)
    found = noise.derivatives(study, images, 3)
    assert found.index.tolist() == [("tiny", sample.sample_id) for sample in images.samples]
    slope = study.net.net.weight.double().square().sum() / 64 / 0.25**2  # of channel means of 64 pixels
    np.testing.assert_allclose(found.jacobian, float(slope), rtol=1e-4)
    assert not found[["trace", "hessian"]].to_numpy().any()


def test_an_account_holds_only_where_its_whole_interval_is_near_one():
    numbers = {"model": "m", "account": ["first order"] * 2 + ["second order"] * 2, "severity": [1.0, 4.0] * 2}
    table = pd.DataFrame({**numbers, "low": [0.95, 1.5, 0.97, 0.95], "high": [1.05, 1.9, 1.03, 1.2]})
    assert "m to first order at σ = 1; m to second order at σ = 1." in noise.agreement_in_words(table)
    assert "m to first order at none." in noise.agreement_in_words(table[1:2])


def test_kinds_meet_the_same_noise_and_rows_say_whose_they_are(study, pairs):
    kinds = noise.modified(study, pairs, {"aligned": Settings(max_steps=50)}, first=4)
    kinds += [noise.Kind("copy", kinds[0].images, kinds[0].known), *noise.unmodified(study, pairs, 3)]
    rows = noise.noisy(study, kinds, [4.0], 16)
    one, other = (rows[rows.kind == kind].reset_index(drop=True) for kind in ("aligned", "copy"))
    pd.testing.assert_frame_equal(one.drop(columns="kind"), other.drop(columns="kind"))
    assert set(one.source_id) <= set(pairs.table.sample_id[:4]) and (rows.target_label >= 0).sum() == 2 * len(one)
    back = noise.named_as(one)
    assert len(back) == 2 * len(one) and set(back.sample_id) == set(one.source_id)
    assert (back[back.whose == "source"].hit.to_numpy() == (one.prediction == one.label).to_numpy()).all()
    assert noise.between(scores.per_image(rows), "aligned", "copy", "drift").value == 0
    evaders = one[one.sample_id == one.sample_id[0]].assign(kind="aligned, 2 times, 4 draws")
    same = noise.on_same_pairs(rows, evaders)
    assert set(same.kind) == {"aligned", "aligned, 2 times, 4 draws", "clean", "held out"}
    assert same[same.kind == "aligned"].sample_id.unique().tolist() == [one.sample_id[0]]


def test_bad_input_gets_one_clear_sentence(study, pairs):
    with pytest.raises(ValueError, match="goal is 'blended', allowed are 'aligned', 'named'"):
        noise.modified(study, pairs, {"blended, 4": noise.NAMED})
    everything = aligned_pairs(study.net, study.images, Settings(), per_class=8)
    with pytest.raises(ValueError, match="image is neither source nor target of a pair, allowed are 2 or more"):
        noise.unmodified(study, everything, 5)


def table_of(*, plain=0.6, excess=0.4, evasion=-0.4, extra=0.1, wide=0.05, kinds=("named, 2 times, 4 draws",)):
    """What `detect` and `sizes` would say of a plain attacker and of ones who average over noise, of one model."""
    rows, statistics = [], ("drift", "drift_either_way", "answers")
    for detector, statistic, kind in itertools.product(("known", "unknown"), statistics, ("named", *kinds)):
        made = {"tpr": plain, "fpr": 0.05, "excess": excess}
        if kind != "named":
            made |= {"tpr": plain + evasion, "evasion": evasion, "extra": extra}
        rows += [(detector, statistic, kind, name, value) for name, value in made.items()]
    rows += [("known", "change", kind, name, 1.0) for kind in ("named", *kinds) for name in ("rms", "hit")]
    table = pd.DataFrame(rows, columns=["detector", "statistic", "kind", "quantity", "value"])
    bounds = {"low": table.value - wide, "high": table.value + wide, "interval": "95 %", "n": 9, "unit": "fraction"}
    return table.assign(model="m", goal="named", **bounds)


def test_a_sentence_on_hiding_follows_what_was_there_to_hide():
    kind = "named, 2 times, 4 draws"
    said = noise.evasion_in_words(table_of(), kind)
    assert said.count(noise.EVADES["less"]) == 3 and "+0.10 [+0.05, +0.15]" in said
    assert "60.0 % [55.0, 65.0] and 20.0 % [15.0, 25.0], a difference of -40.0 points [-45.0, -35.0]" in said
    assert noise.evasion_in_words(table_of(evasion=0), kind).count(noise.EVADES["undecided"]) == 3
    for floor, words in (
        (-0.2, "nothing"),
        (-0.01, "nothing"),
        (0.01, "unclear"),
        (0.04, "unclear"),
    ):  # of 0.05 either way
        assert noise.evasion_in_words(table_of(excess=floor), kind).count(noise.EVADES[words]) == 3
        assert noise.evasion_in_words(table_of(excess=floor, evasion=0.2), kind).count(noise.EVADES["more"]) == 3
    named = noise.evasion_in_words(table_of().assign(model="a*b {c}"), kind)
    assert "a\\*b" in named and isinstance(named, Markup)  # names are data


def test_points_of_a_tradeoff_begin_at_the_plain_attacker_and_follow_the_noise():
    kinds = [f"named, {times} times, {draws} draws" for draws in (4, 16) for times in (10, 0.5)]
    points = noise.tradeoff(table_of(kinds=kinds))
    lines = {key: line for key, line in points.groupby(["panel", "series"])}
    assert len(lines) == 2 * 3 * 2 and set(points.panel.str.split(": ").str[1]) == {"σ known", "σ unknown"}
    for (_, series), line in lines.items():
        assert line.label.tolist() == ["0", "0.5", "10"] and line.x_value.tolist() == [0, 0.1, 0.1]
        assert line.value.iloc[0] == 0.6 and (line.mark.eq("").all() or series.startswith("answers"))
