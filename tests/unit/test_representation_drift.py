"""Chapter 05: token grids of views, the control, flip rates and drift ratios."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import noise_picture, token_model, token_pictures

from zsr_utils import scores
from zsr_utils.conditions import Head, Perturbation, Seen, View, as_conditions, families
from zsr_utils.experiments import representation_drift as drift
from zsr_utils.measure import Embedded, embed, measure


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))


@pytest.fixture
def net():
    return token_model()


def perturbation(change, **fields) -> Perturbation:
    """A perturbation of the whole picture without masks."""
    whole = Image.new("L", (8, 8), 255)
    options = {"family": "own", "instance": "1", "severity": 1, "number": 0, "keeps_size": True}
    return Perturbation(**(options | fields), change=lambda image, *_: View(change(image), whole, whole))


def rows_of(net, *perturbations, n=10, side=8, detail="layers", seed=0) -> pd.DataFrame:
    images = token_pictures(n, side)
    head = Head(
        torch.nn.functional.normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(2))), images.class_names
    )
    further = partial(drift.token_facts, layers=True) if detail == "layers" else None
    return measure(net, images, head, as_conditions(perturbations, further), detail=detail, batch_size=4, seed=seed)


def test_no_perturbation_changes_no_token(net):
    rows = rows_of(net, perturbation(lambda image: image))
    assert (rows.energy == rows.clean_energy).all() and (rows.drift_layer_1 == 0).all()
    coherence = rows.filter(like="coherence_").to_numpy()
    np.testing.assert_allclose(coherence[~np.isnan(coherence)], 1, rtol=1e-12)
    assert (~np.isnan(coherence)).sum() >= 4 * len(rows)
    assert rows.filter(like="share_").isna().all(axis=None)  # of a change that is nothing
    assert (rows.filter(like="power_") == 0).all(axis=None)


def test_one_pass_for_every_image_and_every_view(net):
    shown = []
    original = net.net.visual.forward_intermediates
    net.net.visual.forward_intermediates = lambda x, **k: (shown.append(len(x)), original(x, **k))[1]
    rows_of(net, *families(["translation"])[:3], n=6)
    assert sum(shown) == 6 * (1 + 3)


def test_energy_of_original_content_leaves_the_fill_out(net):
    half = Image.new("L", (8, 8), 255)
    half.paste(0, (0, 0, 4, 8))

    def boxed(image, *_):
        image = image.copy()
        image.paste((128, 128, 128), (0, 0, 4, 8))
        return View(image, half, half)

    rows = rows_of(net, replace(perturbation(lambda image: image), change=boxed))
    np.testing.assert_allclose(rows.energy_content, rows.clean_energy_content, rtol=1e-12)
    assert (rows.energy < rows.clean_energy).all()
    tokens = net.encode_tokens(net.from_pil(noise_picture(0, 8))[None])[:, :, 2:].numpy()
    assert rows.clean_energy_content[0] == pytest.approx(scores.dirichlet_energy(tokens)[0])


def test_spectra_are_for_views_that_keep_the_canvas(net):
    turned = perturbation(lambda i: i.rotate(90))
    rows = rows_of(net, turned, replace(turned, instance="2", severity=2, keeps_size=False))
    spectra = {i: part.filter(regex="share_|coherence_") for i, part in rows.groupby("instance")}
    np.testing.assert_allclose(spectra["1"].filter(like="share_").sum(axis=1), 1)
    assert spectra["2"].isna().all(axis=None)


def test_cyclic_translation_leaves_the_power_of_the_picture(net):
    rows = rows_of(net, *families(["translation"]))
    np.testing.assert_allclose(rows.filter(like="power_"), 0, atol=1e-5)
    assert (rows.energy != rows.clean_energy).any()


def test_every_block_has_its_columns(net):
    rows = rows_of(net, perturbation(lambda i: i.point(lambda v: v // 2)), n=3)
    # the second block doubles the first, which a cosine does not see
    np.testing.assert_allclose(rows.drift_layer_1, rows.drift_layer_2, rtol=1e-5)
    long = drift.by_layer(rows, "drift")
    assert sorted(long.layer.unique()) == [1, 2] and len(long) == 6 and (long.drift > 0).all()


def test_less_detail_gives_the_same_answers(net):
    darker = perturbation(lambda i: i.point(lambda v: v // 2))
    every, alone = (rows_of(net, darker, detail=d) for d in ("layers", "answers"))
    pd.testing.assert_frame_equal(alone, every[alone.columns], rtol=1e-6)


def test_a_semantic_overlay_names_a_class_that_was_not_answered(net):
    chosen = families(["text_semantic", "text_empty"])
    one, again, other = (rows_of(net, *chosen, n=12, side=64, detail="answers", seed=s) for s in (0, 0, 1))
    assert (one.word_label != one.clean_prediction).all() and one.word_label.between(0, 3).all()
    assert (one.groupby(["sample_id", "family"]).word_label.nunique() == 3).all()
    pd.testing.assert_frame_equal(one, again)
    assert not one.word_label.equals(other.word_label)
    images = token_pictures(12, 64)
    for row in one.iloc[::7].itertuples():
        shown = net.encode_image(net.from_pil(drift.view(images, None, row))[None])
        clean = net.encode_image(net.from_pil(images.image(row.sample_id))[None])
        cosine = torch.cosine_similarity(shown.double(), clean.double()).item()
        assert row.drift == pytest.approx(1 - cosine, abs=1e-7)


def test_the_control_is_the_mean_distance_to_other_images(net):
    images = token_pictures(10, 8)
    embedded = embed(net, images)
    table = drift.unrelated(embedded, draws=100)
    units = embedded.features.astype(float)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    distance = 1 - units @ units.T
    for i, label in enumerate(embedded.labels):
        others = np.arange(len(units)) != i
        wanted = {
            "any": others, "same class": others & (embedded.labels == label), "other class": embedded.labels != label,
        }  # fmt: skip
        for kind, chosen in wanted.items():
            mine = table[(table.sample_id == embedded.sample_ids[i]) & (table.kind == kind)]
            assert mine.distance.item() == pytest.approx(distance[i, chosen].mean(), rel=1e-5)
    few = drift.unrelated(embedded, draws=2, seed=1)
    assert len(few) == len(table) and not np.allclose(few.distance, table.distance)
    layers = drift.unrelated_of({"a": net, "b": net}, images, draws=2, seed=0, batch_size=4)
    assert layers.groupby("model").layer.unique().map(list).to_dict() == {"a": [0, 1, 2], "b": [0]}
    with pytest.raises(ValueError, match="1 image given, allowed is 2 or more"):
        drift.unrelated(Embedded(np.array(["a"]), np.array([0]), np.ones((1, 2))))
    with pytest.raises(ValueError, match="draws is 0, allowed is 1 or more"):
        drift.unrelated(embedded, draws=0)


# what follows from the rows


def views(flips: dict[str, list[int]], drifts: float = 0.2) -> pd.DataFrame:
    """Rows by image from lists of 0 (same answer) and 1 (flipped)."""
    return pd.DataFrame(
        [
            {"sample_id": image, "clean_prediction": 0, "prediction": flip, "drift": drifts * (1 + flip)}
            for image, seen in flips.items()
            for flip in seen
        ]
    )


FOUR = views({"a": [1, 0, 0, 0], "b": [0, 0, 0, 0]})


def test_flip_rates_in_closed_form():
    assert scores.flip_rate(FOUR).value == 1 / 8 and scores.vulnerability(FOUR).value == 1 / 2
    assert scores.kept_rate(FOUR).value == 7 / 8
    # 3 of the 6 pairs of views hold the flip
    assert scores.equal_vulnerability(2)(FOUR).value == pytest.approx((3 / 6 + 0) / 2)
    assert scores.equal_vulnerability(1)(FOUR).value == pytest.approx(scores.flip_rate(FOUR).value)
    with pytest.raises(ValueError, match="An image has 4 views, allowed for an IV of 5 are that many or more"):
        scores.equal_vulnerability(5)(FOUR)


def test_iv_is_never_below_ifr_and_equal_for_one_view():
    rng = np.random.default_rng(0)
    for n in (1, 3, 8):
        rows = views({str(i): rng.integers(0, 2, n).tolist() for i in range(20)})
        ifr, iv = scores.flip_rate(rows).value, scores.vulnerability(rows).value
        assert iv >= ifr and (n > 1 or iv == ifr)


def test_drift_ratio_in_closed_form():
    control = pd.DataFrame({"sample_id": ["a", "b"], "distance": [0.5, 1.5]})
    assert scores.relative_to(control)(scores.same_answer(FOUR)).value == pytest.approx(0.2)
    assert scores.relative_to(control)(FOUR).value == pytest.approx((0.25 + 0.2) / 2)
    by_model = pd.concat([control.assign(model="m"), control.assign(model="other", distance=9.0)])
    assert scores.relative_to(by_model)(FOUR.assign(model="m")).value == scores.relative_to(control)(FOUR).value
    assert scores.relative_to(control.assign(sample_id=["x", "y"]))(FOUR).n == 0
    none = FOUR.assign(model="m").head(0)  # as of changed answers where all stayed
    assert scores.relative_to(by_model)(none).n == 0


def test_views_that_change_the_answer_are_compared_within_images():
    rows = views({"a": [1, 0], "b": [0, 0], "c": [1, 1]})
    change = drift.changed_beyond_unchanged(rows)
    assert change.value == pytest.approx(0.2) and change.n == 1 and change.unit == "cosine distance"
    box = views({"a": [0, 0], "b": [0, 1], "c": [1, 0]})
    assert drift.flips_beyond(rows, box).value == pytest.approx((0.5 - 0.5 + 0.5) / 3)


def test_half_of_the_answers():
    table = pd.DataFrame(
        {"condition": ["low_pass"] * 3 + ["high_pass"] * 3, "severity": [0.0, 0.5, 1.0] * 2,
         "value": [0.1, 0.6, 1.0, 1.0, 0.4, 0.1]}
    )  # fmt: skip
    assert drift.half_kept(table, "low_pass") == 0.5 and drift.half_kept(table, "high_pass") == 0
    said = drift.cutoffs_in_words(table)
    assert "nothing above 0.50" in said and "below 0.50, the lowest" in said
    with pytest.raises(ValueError, match="Fewer than half of the answers stay under low_pass at every cutoff"):
        drift.half_kept(table.assign(value=0.2), "low_pass")


def test_energies_of_a_chessboard_on_a_flat_grid_are_known(net):
    """Tokens 1 ± e: energy 4 e^2, mean square 1 + e^2."""
    board = torch.from_numpy(np.where(np.indices((4, 4)).sum(0) % 2, 1.0, -1.0)).float()
    pixels, whole = torch.rand(1, 3, 8, 8), Image.new("L", (8, 8), 255)
    clean, seen = (Seen(pixels, None, None, (1 + e * board[None, :, :, None],)) for e in (0.5, 1))
    batch, view = SimpleNamespace(net=net, clean=clean, pixels=pixels), View(whole, whole, whole)
    facts = drift.token_facts(batch, seen, [view], perturbation(lambda image: image), layers=True)
    names = ["clean_energy", "energy", "clean_energy_normalised", "energy_normalised"]
    assert [facts[name].item() for name in names] == pytest.approx([1, 4, 1 / 1.25, 4 / 2])
