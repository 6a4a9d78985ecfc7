"""The drift probe: what a view does to embedding, answer and tokens, and what it is compared with."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import tiny_model, token_model

from zsr_utils import scores
from zsr_utils.conditions import Perturbation, View, families
from zsr_utils.datasets import Dataset, Sample
from zsr_utils.experiments import drift


NAMES = ("red", "green", "blue", "grey")


def picture(i: int) -> Image.Image:
    rng = np.random.default_rng(i)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))


def pictures(n: int = 10) -> Dataset:
    return Dataset("noise", NAMES, [Sample(f"s{i}", i % 4, lambda i=i: picture(i)) for i in range(n)])


def perturbation(change, **fields) -> Perturbation:
    """A perturbation of the whole picture without masks."""
    whole = Image.new("L", (8, 8), 255)
    options = {"family": "own", "instance": "1", "number": 0, "in_place": True, "keeps_size": True}
    return Perturbation(**(options | fields), change=lambda image, *_: View(change(image), whole, whole))


@pytest.fixture
def net():
    return token_model()


@pytest.fixture
def classifier():
    return torch.nn.functional.normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)), dim=1)


def measured(net, classifier, *changes, n=10, **options) -> drift.Drift:
    return drift.measure(net, pictures(n), classifier, changes, **({"batch_size": 4} | options))


def test_no_perturbation_gives_no_drift_at_all(net, classifier):
    found = measured(net, classifier, perturbation(lambda image: image))
    rows = found.rows
    assert (rows.drift == 0).all() and (rows.cosine == 1).all() and (rows.l2 == 0).all()
    assert (rows.prediction == rows.clean_prediction).all() and (rows.margin == rows.clean_margin).all()
    assert (rows.energy == rows.clean_energy).all() and (found.layers.drift == 0).all()
    coherence = rows.filter(like="coherence_").to_numpy()
    np.testing.assert_allclose(coherence[~np.isnan(coherence)], 1, rtol=1e-12)
    assert (~np.isnan(coherence)).sum() >= 4 * len(rows)
    assert rows.filter(like="share_").isna().all(axis=None)  # of a change that is nothing
    assert (rows.filter(like="power_") == 0).all(axis=None)


def test_rows_hold_what_the_model_says_of_each_view_alone(net, classifier):
    dark = perturbation(lambda image: image.point(lambda v: v // 2))
    rows = measured(net, classifier, dark).rows
    for i in (0, 5, 9):
        clean, seen = (net.from_pil(p)[None] for p in (picture(i), picture(i).point(lambda v: v // 2)))
        before, after = net.encode_layers(clean)[0], net.encode_layers(seen)[0]
        row = rows[rows.sample_id == f"s{i}"].iloc[0]
        cosine = torch.cosine_similarity(before.double(), after.double()).item()
        assert row.drift == pytest.approx(1 - cosine, abs=1e-9) and row.l2 == pytest.approx(
            (before - after).norm().item()
        )
        logits = net.logits_of(after, classifier)[0]
        base = int(net.logits_of(before, classifier).argmax())
        others = np.delete(logits.numpy(), base)
        assert row.clean_prediction == base and row.prediction == int(logits.argmax())
        assert row.margin == pytest.approx(float(logits[base] - others.max()), rel=1e-5)


def test_the_size_of_a_batch_changes_nothing(net, classifier):
    chosen = families(["translation", "text_random"], text_height=0.1, units="relative")[:9]
    one, many = (measured(net, classifier, *chosen[:4], batch_size=b).rows for b in (1, 10))
    columns = ["sample_id", "instance"]
    one, many = (r.sort_values(columns).reset_index(drop=True) for r in (one, many))
    pd.testing.assert_frame_equal(one, many, rtol=1e-5, atol=1e-7)


def test_one_pass_for_every_image_and_every_view(net, classifier):
    seen = []
    original = net.net.visual.forward_intermediates
    net.net.visual.forward_intermediates = lambda x, **k: (seen.append(len(x)), original(x, **k))[1]
    measured(net, classifier, *families(["translation"])[:3], n=6)
    assert sum(seen) == 6 * (1 + 3)


def test_energy_of_original_content_leaves_the_fill_out(net, classifier):
    half = Image.new("L", (8, 8), 255)
    half.paste(0, (0, 0, 4, 8))

    def boxed(image, *_):
        image = image.copy()
        image.paste((128, 128, 128), (0, 0, 4, 8))
        return View(image, half, half)

    box = replace(perturbation(lambda image: image), change=boxed)
    rows = measured(net, classifier, box).rows
    np.testing.assert_allclose(rows.energy_content, rows.clean_energy_content, rtol=1e-12)
    assert (rows.energy < rows.clean_energy).all()
    tokens = net.encode_tokens(net.from_pil(picture(0))[None])[:, :, 2:].numpy()
    assert rows.clean_energy_content[0] == pytest.approx(scores.dirichlet_energy(tokens)[0])


def test_spectra_are_for_views_that_keep_the_canvas(net, classifier):
    turned = perturbation(lambda i: i.rotate(90))
    rows = measured(net, classifier, turned, replace(turned, instance="2", keeps_size=False)).rows
    spectra = {i: part.filter(regex="share_|coherence_") for i, part in rows.groupby("instance")}
    np.testing.assert_allclose(spectra["1"].filter(like="share_").sum(axis=1), 1)
    assert spectra["2"].isna().all(axis=None)


def test_cyclic_translation_leaves_the_power_of_the_picture(net, classifier):
    rows = measured(net, classifier, *families(["translation"])).rows
    np.testing.assert_allclose(rows.filter(like="power_"), 0, atol=1e-5)
    assert (rows.energy != rows.clean_energy).any()


def test_every_block_has_its_row(net, classifier):
    found = measured(net, classifier, perturbation(lambda i: i.point(lambda v: v // 2)), n=3)
    assert sorted(found.layers.layer.unique()) == [1, 2] and len(found.layers) == 6
    # the second block doubles the first, which neither a cosine nor a normalised energy sees
    one, two = (found.layers[found.layers.layer == k].reset_index(drop=True) for k in (1, 2))
    pd.testing.assert_frame_equal(one.drop(columns="layer"), two.drop(columns="layer"), rtol=1e-5)


def test_less_detail_gives_the_same_columns_but_fewer(net, classifier):
    darker = perturbation(lambda i: i.point(lambda v: v // 2))
    every, tokens, alone = (measured(net, classifier, darker, detail=d) for d in drift.DETAILS[::-1])
    assert not every.layers.empty and tokens.layers.empty and alone.layers.empty
    pd.testing.assert_frame_equal(tokens.rows, every.rows)
    assert alone.rows.columns[-1] == "l2" and len(alone.rows.columns) < len(every.rows.columns)
    pd.testing.assert_frame_equal(alone.rows, every.rows[alone.rows.columns])
    assert list(alone.clean.units) == list(tokens.clean.units) == ["embedding"]


def test_a_semantic_overlay_names_a_class_that_was_not_answered(net, classifier):
    def wide(n):
        return Dataset("d", NAMES, [Sample(f"s{i}", 0, lambda i=i: picture(i).resize((64, 64))) for i in range(n)])

    chosen = families(["text_semantic", "text_empty"])
    found = [drift.measure(net, wide(12), classifier, chosen, seed=s).rows for s in (0, 0, 1)]
    assert (found[0].word_label != found[0].clean_prediction).all() and found[0].word_label.between(0, 3).all()
    by_image = found[0].groupby(["sample_id", "family"]).word_label.nunique()
    assert (by_image == 3).all()
    pd.testing.assert_frame_equal(found[0], found[1])
    assert not found[0].word_label.equals(found[2].word_label)
    for _, row in found[0].iloc[::7].iterrows():
        again = net.from_pil(drift.view(wide(12), chosen, row))[None]
        logits = net.logits_of(net.encode_layers(again)[0], classifier)[0]
        assert float(logits.max() - logits[row.clean_prediction]) == pytest.approx(max(0, -row.margin), abs=1e-4)


def test_control_is_the_mean_distance_to_other_images(net, classifier):
    clean = measured(net, classifier, perturbation(lambda i: i)).clean
    table = drift.control(clean, draws=100)
    units = clean.units["embedding"]
    distance = 1 - units @ units.T
    for i, label in enumerate(clean.labels):
        others = np.arange(len(units)) != i
        wanted = {
            "any": others, "same class": others & (clean.labels == label), "other class": clean.labels != label,
        }  # fmt: skip
        for kind, chosen in wanted.items():
            mine = table[(table.sample_id == clean.sample_ids[i]) & (table.kind == kind)]
            row = mine[mine.layer == "embedding"]
            assert row.distance.item() == pytest.approx(distance[i, chosen].mean())
    assert set(table.layer) == {"embedding", 1, 2}
    few = drift.control(clean, draws=2, seed=1)
    assert len(few) == len(table) and not np.allclose(few.distance, table.distance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, allowed is 1 or more"),
        ({"perturbations": []}, "0 perturbations given, allowed is 1 or more"),
        ({"images": Dataset("none", NAMES, [])}, "0 images"),
        ({"classifier": torch.eye(4)[:2]}, "classifier has 2 classes, noise has 4"),
        ({"detail": "token"}, "detail is 'token'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(net, classifier, change, message):
    given = {"images": pictures(), "classifier": classifier, "perturbations": families(["scale"])} | change
    with pytest.raises(ValueError, match=message):
        drift.measure(net, **given)


def test_a_model_without_tokens_says_so(classifier):
    with pytest.raises(NotImplementedError, match="tiny: its image tower gives no token grid"):
        drift.measure(tiny_model(), pictures(), classifier, families(["scale"]), detail="tokens")
    rows = drift.measure(tiny_model(), pictures(), classifier, families(["scale"]), detail="embedding").rows
    assert len(rows) and (rows.drift > 0).any()


def test_control_needs_two_images(net, classifier):
    clean = measured(net, classifier, perturbation(lambda i: i), n=1).clean
    with pytest.raises(ValueError, match="1 image given, allowed is 2 or more"):
        drift.control(clean)


# what follows from the rows


def rows_of(flips: dict[str, dict[str, list[int]]], drifts: float = 0.2) -> pd.DataFrame:
    """Rows by family and image from lists of 0 (same answer) and 1 (flipped)."""
    return pd.DataFrame(
        [
            {
                "sample_id": image,
                "family": family,
                "clean_prediction": 0,
                "prediction": flip,
                "drift": drifts * (1 + flip),
            }
            for family, by_image in flips.items()
            for image, views in by_image.items()
            for flip in views
        ]
    )


FLIPS = {"translation": {"a": [1, 0, 0, 0], "b": [0, 0, 0, 0]}, "scale": {"a": [0], "b": [1]}}


def test_flip_rates_in_closed_form():
    table = scores.instability(rows_of(FLIPS)).set_index(["family", "quantity"]).value
    assert table["translation", "ifr"] == 1 / 8 and table["translation", "iv"] == 1 / 2
    assert table["translation", "iv_equal"] == pytest.approx((3 / 6 + 0) / 2)  # 3 of the 6 pairs of views hold the flip
    assert table["scale", "ifr"] == table["scale", "iv"] == 1 / 2 and ("scale", "iv_equal") not in table
    assert table["any", "ifr"] == 2 / 10 and table["any", "iv"] == 1


def test_iv_is_never_below_ifr_and_equal_for_one_view():
    rng = np.random.default_rng(0)
    flips = {f"f{n}": {str(i): rng.integers(0, 2, n).tolist() for i in range(20)} for n in (1, 3, 8)}
    table = scores.instability(rows_of(flips)).pivot(index="family", columns="quantity", values="value")
    assert (table.iv >= table.ifr).all() and table.iv["f1"] == table.ifr["f1"]
    assert (table.iv_equal.dropna() <= table.iv.loc[table.iv_equal.dropna().index] + 1e-12).all()
    one = scores.instability(rows_of(flips), equal=1).pivot(index="family", columns="quantity", values="value")
    np.testing.assert_allclose(one.iv_equal[:3], one.ifr[:3])


def test_any_unites_only_the_families_asked_for():
    table = scores.instability(rows_of(FLIPS), ["scale"]).query("family == 'any' and quantity == 'ifr'")
    assert table.value.item() == 1 / 2 and table.n.item() == 2
    with pytest.raises(ValueError, match="family is 'spin', allowed are 'translation', 'scale'"):
        scores.instability(rows_of(FLIPS), ["spin"])


def test_drift_ratio_and_effect_size_in_closed_form():
    control = pd.DataFrame({"sample_id": ["a", "b"], "kind": "any", "distance": [0.5, 1.5]})
    found = {
        answers: scores.drift_ratios(rows_of(FLIPS), control, answers=answers).set_index(["family", "quantity"]).value
        for answers in ("unchanged", "all")
    }
    assert found["unchanged"]["translation", "ratio"] == pytest.approx(0.2)
    assert found["all"]["translation", "ratio"] == pytest.approx((0.25 + 0.2) / 2)
    drifts, distances = np.array([0.25, 0.2]), np.array([0.5, 1.5])
    pooled = np.sqrt((drifts.var(ddof=1) + distances.var(ddof=1)) / 2)
    assert found["all"]["translation", "cohens_d"] == pytest.approx((drifts.mean() - 1) / pooled)
    # scale keeps its answer for one image alone: no ratio, rather than one without an interval
    assert ("scale", "ratio") not in found["unchanged"] and ("scale", "ratio") in found["all"]


def test_unknown_answers_and_foreign_controls_are_refused():
    control = pd.DataFrame({"sample_id": ["x", "y"], "kind": "any", "distance": [0.5, 1.5]})
    with pytest.raises(ValueError, match="answers is 'some', allowed are 'unchanged', 'all'"):
        scores.drift_ratios(rows_of(FLIPS), control, answers="some")
    with pytest.raises(ValueError, match="No two images have both"):
        scores.drift_ratios(rows_of(FLIPS), control, answers="all")
