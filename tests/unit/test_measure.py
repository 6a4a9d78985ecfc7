"""The one loop: what it promises of every experiment's conditions, on a tiny model."""

import pkgutil
import re
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import Speaker, tiny_images, tiny_model, token_model, token_pictures

import zsr_utils.experiments
from zsr_utils import _cache, measure as loop
from zsr_utils.conditions import (
    ORIGINAL,
    Condition,
    Head,
    band_attacks,
    band_noise,
    corruptions,
    filters,
    gaussian_noise,
    made_before,
    sequences,
    unchanged,
    without_cue,
)  # fmt: skip
from zsr_utils.conditions.alignment import Settings
from zsr_utils.datasets import Dataset, Sample
from zsr_utils.experiments import (
    adversarial_attacks,
    answer_stability,
    calibration,
    distribution_shifts,
    language_interplay,
    out_of_distribution,
    pairs,
    prompt_sets,
    representation_drift,
    three_d,
    typographic_attacks,
    visual_factors,
)  # fmt: skip
from zsr_utils.experiments.shape_bias import Surface
from zsr_utils.measure import COLUMNS, Pixels, embed, measure


SHARED = {"pairs"}  # modules that several chapters use
DETAIL = {"representation_drift": "layers"}
# every experiment's conditions for a model and a data set
CONTRACT = {
    "zero_shot": lambda net, images: [ORIGINAL],
    "three_d": lambda net, images: three_d.conditions(images, "", [1, 5], sloping(images)),
    "retrieval": lambda net, images: [ORIGINAL],  # its queries are no views of images
    "representation_drift": lambda net, images: [
        *representation_drift.views(["scale", "scale_pad", "rotation", "text_random"], text_height=0.1)[::5],
        *filters([0.0, 0.3, 1.0]), *band_noise([0, 8]), *band_attacks([8], steps=2),
    ],
    "visual_factors": lambda net, images: [
        *visual_factors.conditions(images)[::5], *visual_factors.conditions(images, ["pose", "color", "darker"]),
    ],
    "jacobian_spectra": lambda net, images: [ORIGINAL, aligned(net, images, noise=0.0)],
    "noise_detection": lambda net, images: [ORIGINAL, *gaussian_noise([2, 30], conversion="round")],
    "embedding_alignment": lambda net, images: [aligned(net, images, noise=0.0)],
    "model_trends": lambda net, images: in_balls(net, images),
    "shape_bias": lambda net, images: [
        ORIGINAL, *without_cue([10], [2], [2, 3]), Condition("patterned_surface", 0.5, Surface(grey(images), 0.5)),
    ],
    "distribution_shifts": lambda net, images: [
        *corruptions(severities=[0, 3]), *sequences()[4::14], *distribution_shifts.seen("v2"),
    ],
    "typographic_attacks": lambda net, images: [
        *typographic_attacks.cards(images)[::3], typographic_attacks.Card("other_name", copies=3).condition("copies"),
    ],
    "adversarial_attacks": lambda net, images: [
        *adversarial_attacks.ladder([2], steps=2, answers=2, substitute=(net, head_of(net, images))),
        *adversarial_attacks.by_queries(2 / 255, steps=1, queries=1),
    ],
    "out_of_distribution": lambda net, images: [
        out_of_distribution.Shown(images, {}, (1.0, 4.0)).conditions(net, name, ["{}"], images, ("x", "yy"))[0]
        for name in ("inside", "noise")
    ],
    "calibration": lambda net, images: [Condition("clean", 0.0, unchanged, calibration.logits)],
    "prompt_sets": lambda net, images: [replace(ORIGINAL, facts=prompt_sets.Asked(
        {p: Head(net.classifier(images.class_names, [p]), images.class_names) for p in ("{}", "a {}")}).facts)],
    "language_interplay": lambda net, images: [Condition("silhouette", 1, language_interplay.as_they_are,
        language_interplay.Asked(Speaker(), {"another": (net, head_of(net, images))}).facts)],
    "answer_stability": lambda net, images: answer_stability.blanks(net, images),
    "data_overlap": lambda net, images: [ORIGINAL, *corruptions(["contrast"], [2])],
    "adaptive_alignment": lambda net, images: [aligned(net, images, noise=8 / 255)],
}  # fmt: skip


def aligned(net, images, noise: float) -> Condition:
    settings = Settings(max_steps=5, noise=noise, draws=2)
    return pairs.aligned_pairs(net, images, settings, per_class=1, number=5).condition()


def sloping(images) -> dict[str, np.ndarray]:
    return {s.sample_id: np.linspace(2, 3 + k, 64).reshape(8, 8) for k, s in enumerate(images.samples)}


def grey(images) -> Dataset:
    """A grey picture for every sample."""
    samples = [Sample(s.sample_id, s.label, lambda: Image.new("RGB", (96, 96), "grey")) for s in images.samples]
    return Dataset("grey", images.class_names, samples)


def in_balls(net, images) -> list[Condition]:
    made = pairs.aligned_pairs(net, images, Settings(max_steps=5), per_class=1, number=5)
    return pairs.in_balls(net, head_of(net, images), made, [2, 16], max_steps=3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def net():
    return token_model()


def head_of(net, images) -> Head:
    return Head(net.classifier(images.class_names, ["{}"]), images.class_names)


def rows_of(net, images, conditions, **options) -> pd.DataFrame:
    rows = measure(net, images, head_of(net, images), conditions, **({"batch_size": 4, "draws": 2} | options))
    return rows.sort_values(["condition", "severity", "draw", "sample_id"]).reset_index(drop=True)


def in_other_order(images):
    return replace(images, samples=images.samples[::-1])


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-5)


def test_every_experiment_is_under_contract():
    modules = {m.name for m in pkgutil.iter_modules(zsr_utils.experiments.__path__) if not m.name.startswith("_")}
    assert modules - SHARED <= set(CONTRACT)


@pytest.mark.parametrize("experiment", CONTRACT)
def test_rows_keep_the_contract(experiment, net):
    images = token_pictures(9)
    shown, options = CONTRACT[experiment](net, images), {"detail": DETAIL.get(experiment, "answers")}
    rows = rows_of(net, images, shown, **options)
    assert tuple(rows.columns[: len(COLUMNS)]) == COLUMNS
    types = {"sample_id": "str", "condition": "str", "severity": "float64", "draw": "int64", "label": "int64"}
    for column, kind in (types | dict.fromkeys(["margin", "clean_margin", "confidence", "drift"], "float64")).items():
        assert rows[column].dtype == kind, column
    assert not rows[list(COLUMNS)].isna().any(axis=None)
    assert not rows.duplicated(["sample_id", "condition", "severity", "draw"]).any()
    assert rows.drift.between(0, 2).all() and rows.confidence.between(0, 1).all()
    right = rows.prediction == rows.label
    assert (rows.margin[right] >= 0).all() and (rows.margin[~right] <= 0).all()
    stays = rows.prediction == rows.clean_prediction
    assert (rows.clean_margin[stays] >= 0).all() and (rows.clean_margin[~stays] <= 0).all()


@pytest.mark.parametrize("experiment", CONTRACT)
def test_rows_do_not_depend_on_batch_order_or_company(experiment, net):
    images = token_pictures(9)
    shown, options = CONTRACT[experiment](net, images), {"detail": DETAIL.get(experiment, "answers")}
    rows = rows_of(net, images, shown, **options)
    for size in (1, 20):
        same(rows_of(net, images, shown, batch_size=size, **options), rows)
    same(rows_of(net, in_other_order(images), shown, **options), rows)
    few = images.only(["s1", "s4", "s8"])
    part = rows[rows.sample_id.isin(["s1", "s4", "s8"])].reset_index(drop=True)
    same(rows_of(net, few, shown, **options), part)


def test_an_alignment_does_not_depend_on_its_company(net, monkeypatch, tmp_path):
    """The final pixels too, noise and all: alone, in another batch, and beside other pairs."""
    images, ends = token_pictures(9), []
    for number, (size, count) in enumerate([(1, 8), (8, 8), (3, 4)]):
        monkeypatch.setenv("ZSR_CACHE", str(tmp_path / str(number)))
        settings = Settings(max_steps=6, noise=8 / 255, draws=2)
        made = pairs.aligned_pairs(net, images, settings, per_class=2, number=count, batch_size=size)
        ends.append(made.aligned.pixels[:4])
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("experiment", CONTRACT)
def test_an_interrupted_run_goes_on_and_a_second_one_computes_nothing(experiment, net, monkeypatch, tmp_path):
    images = token_pictures(9)
    options = {"detail": DETAIL.get(experiment, "answers")}
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "whole"))
    whole = rows_of(net, images, CONTRACT[experiment](net, images), **options)
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "broken"))
    shown, original, calls = CONTRACT[experiment](net, images), loop._rows, []

    def failing(condition, batch, detail):
        calls.append(batch.sample_ids)
        if batch.sample_ids[0] not in ("s0", "s1", "s2", "s3") and len(calls) < 10_000:
            raise KeyboardInterrupt
        return original(condition, batch, detail)

    monkeypatch.setattr(loop, "_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        rows_of(net, images, shown, **options)
    monkeypatch.setattr(loop, "_rows", lambda c, batch, d: calls.append(batch.sample_ids) or original(c, batch, d))
    calls.clear()
    same(rows_of(net, images, shown, **options), whole)
    assert not {i for ids in calls for i in ids} & {"s0", "s1", "s2", "s3"}, "finished batches were measured again"
    calls.clear()
    same(rows_of(net, images, shown, **options), whole)
    assert not calls and not list((tmp_path / "broken").rglob("*.parts"))


def test_an_unchanged_image_does_not_drift_at_all(net):
    images = token_pictures(9)
    copy = Condition("copy", 1, lambda batch: batch.pixels.clone())
    for detail in ("answers", "layers"):
        rows = rows_of(net, images, [ORIGINAL, copy], detail=detail)
        assert (rows.drift == 0).all() and (rows.prediction == rows.clean_prediction).all()
        assert rows[rows.condition == "copy"].margin.nunique() > 1


def test_rows_say_what_the_model_says_of_every_image_alone(net):
    images = token_pictures(9)
    head = head_of(net, images)
    dark = Condition("dark", 0.5, lambda batch: batch.pixels.square())  # to halve them would turn no embedding
    rows = rows_of(net, images, [ORIGINAL, dark], draws=1).set_index(["condition", "sample_id"])
    for sample_id, picture, label in images:
        pixels = net.from_pil(picture)[None]
        before, after = (net.encode_image(x) for x in (pixels, pixels.square()))
        logits = net.logits_of(after, head.weights)[0].double()
        base = int(net.logits_of(before, head.weights).argmax())
        row = rows.loc["dark", sample_id]
        assert row.prediction == int(logits.argmax()) and row.clean_prediction == base and row.label == label
        assert row.confidence == pytest.approx(float(logits.softmax(0).max()), abs=1e-6)
        for name, own in (("margin", label), ("clean_margin", base)):
            assert row[name] == pytest.approx(float(logits[own] - np.delete(logits, own).max()), abs=1e-5)
        cosine = torch.cosine_similarity(before.double(), after.double()).item()
        assert row.drift == pytest.approx(1 - cosine, abs=1e-9)


def test_a_fact_has_one_type_whatever_stands_beside_it(net):
    images = token_pictures(5)
    facts = {"number": np.arange(2), "yes": np.array([True, False]), "text": np.array(["a", "b"])}
    made = made_before("made", 1, ["s1", "s4"], torch.rand(2, 3, 8, 8), facts)
    alone, beside = rows_of(net, images, [made]), rows_of(net, images, [ORIGINAL, made])
    for rows in (alone, beside):
        assert [str(rows[c].dtype) for c in facts] == ["Int64", "boolean", "str"]
    assert beside[beside.condition == "original"][list(facts)].isna().all(axis=None)
    assert beside.yes.sum() == 1 and beside.number.max() == 1


def test_draws_are_those_that_a_condition_names(net):
    images = token_pictures(5)
    pixels = torch.rand(3, 3, 8, 8)
    rows = rows_of(net, images, [ORIGINAL, *gaussian_noise([3]), made_before("made", 1, ["s1", "s1", "s4"], pixels)])
    assert rows.groupby("condition").size().to_dict() == {"gaussian_noise": 10, "made": 3, "original": 5}
    made = rows[rows.condition == "made"]
    assert list(zip(made.sample_id, made.draw)) == [("s1", 0), ("s4", 0), ("s1", 1)]
    logits = net.logits(pixels, head_of(net, images).weights)
    assert made.set_index(["sample_id", "draw"]).prediction["s1", 1] == int(logits[1].argmax())


def test_other_code_or_other_settings_never_meet_kept_rows(net, monkeypatch):
    images, seen = token_pictures(5), []
    original = net.net.visual.forward_intermediates
    net.net.visual.forward_intermediates = lambda x, **k: (seen.append(len(x)), original(x, **k))[1]
    noise = gaussian_noise([3])

    def passes(conditions=noise, **options) -> int:
        seen.clear()
        rows_of(net, images, conditions, detail="tokens", **options)
        return sum(seen)

    first = passes()
    assert first and not passes()
    assert all(map(passes, (gaussian_noise([4]), gaussian_noise([3], conversion="round"))))
    assert passes(seed=1) and passes(draws=3) and not passes()
    monkeypatch.setattr(loop, "code", lambda *layers: "another")
    assert passes() == first


def test_a_digest_holds_what_a_function_does_and_closes_over():
    def shift(by):
        return lambda batch: batch.pixels + by

    assert _cache.digest(shift(1)) == _cache.digest(shift(1)) != _cache.digest(shift(2))
    assert _cache.digest(lambda b: b.pixels) != _cache.digest(lambda b: b.labels)
    array = np.arange(3.0)
    assert _cache.digest(array) != _cache.digest(array.astype("float32")) != _cache.digest(torch.arange(3.0))
    with pytest.raises(TypeError, match="has no content to compare"):
        _cache.digest(object())


def test_a_damaged_file_is_named_set_aside_and_computed_again(net, cache):
    images = token_pictures(5)
    rows = rows_of(net, images, [ORIGINAL])
    for path in [*cache.glob("rows/*.parquet"), *cache.glob("embeddings/*.npz")]:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.warns(UserWarning, match=r"was damaged .*: set aside as '.*\.damaged', computed again\."):
        same(rows_of(net, images, [ORIGINAL]), rows)
    assert len(list(cache.rglob("*.damaged"))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": []}, "9 images and 0 conditions given, allowed is 1 or more"),
        ({"conditions": [ORIGINAL, ORIGINAL]}, "Two conditions are called 'original' with severity 0, allowed is one"),
        ({"batch_size": 0}, "batch_size is 0, allowed is 1 or more"),
        ({"draws": 0}, "draws is 0, allowed is 1 or more"),
        ({"detail": "all"}, "detail is 'all', allowed are 'answers', 'tokens', 'layers'"),
        ({"conditions": [Condition("half", 1, lambda b: b.pixels[..., :4])]},
         r"Condition 'half' gives pixels of shape \(4, 3, 8, 4\), allowed is \(4, 3, 8, 8\)"),
        ({"conditions": [Condition("double", 2, lambda b: 2 * b.pixels + 1)]},
         r"Condition 'double' with severity 2 gives 's0' pixels from [\d.]+ to [\d.]+, allowed is \[0, 1\]"),
        ({"conditions": [Condition("gone", 1, lambda b: b.pixels * torch.nan)]}, "'gone' .* pixels from nan to nan"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_sentence(net, change, message):
    images = token_pictures(9)
    given = {"conditions": [ORIGINAL], "batch_size": 4} | change
    with pytest.raises(ValueError, match=message):
        measure(net, images, head_of(net, images), **given)


@pytest.mark.parametrize("severity", ["+4/64", None, float("nan"), True])
def test_a_severity_is_a_number(severity):
    with pytest.raises(ValueError, match=re.escape(f"Condition 'x': severity is {severity!r}, allowed is a number")):
        Condition("x", severity, lambda batch: batch.pixels)


def test_a_head_must_fit_classes_and_labels(net):
    images = token_pictures(9)
    with pytest.raises(ValueError, match="needs at least two"):
        Head(torch.ones(1, 4), ("a",))
    with pytest.raises(ValueError, match="classifier has 2 rows, there are 4 class names"):
        Head(torch.ones(2, 4), images.class_names)
    with pytest.raises(ValueError, match="label 3 has no name among 2"):
        measure(net, images, Head(torch.eye(4)[:2], ("a", "b")), [ORIGINAL])
    with pytest.raises(ValueError, match=r"classifier has shape \(4, 3\), allowed is \(K, 4\) with K at least 2"):
        measure(net, images, Head(torch.ones(4, 3), images.class_names), [ORIGINAL])


def test_images_in_memory_give_the_rows_of_their_data_set(net):
    images = token_pictures(9)
    ids, labels = [s.sample_id for s in images.samples], np.array([s.label for s in images.samples])
    memory = Pixels(ids, labels, images.pixels(ids, net.from_pil))
    one, other = (measure(net, i, head_of(net, images), gaussian_noise([4]), draws=2) for i in (images, memory))
    same(one, other)
    with pytest.raises(ValueError, match="a change of pictures needs a data set"):
        measure(net, memory, head_of(net, images), representation_drift.views(["scale"], detail="answers"))


def test_a_model_without_tokens_says_so():
    images = token_pictures(3)
    net = tiny_model()
    with pytest.raises(NotImplementedError, match="tiny: its image tower gives no token grid"):
        measure(net, images, head_of(net, images), [ORIGINAL], detail="tokens")


# embeddings


def direct(net, images):
    pixels = torch.stack([net.from_pil(s.open()) for s in images.samples])
    return net.encode_image(pixels).numpy()


def test_embeddings_are_those_of_the_model_in_order():
    net, images = tiny_model(), tiny_images()
    found = embed(net, images, batch_size=7)
    np.testing.assert_allclose(found.features, direct(net, images), rtol=1e-6)
    assert found.sample_ids.tolist() == [s.sample_id for s in images.samples]


def test_two_runs_at_once_compute_the_features_once_and_both_get_all():
    nets, seen, second = [tiny_model(), tiny_model()], [], []
    other = threading.Thread(target=lambda: second.append(embed(nets[1], tiny_images(), batch_size=7)))
    for net in nets:
        original = net.net.encode_image

        def slow(x, original=original):
            seen.append(len(x))
            if len(seen) == 2:  # the other run begins in the middle of this one
                other.start()
                other.join(timeout=0.3)
            return original(x)

        net.net.encode_image = slow
    first = embed(nets[0], tiny_images(), batch_size=7)
    other.join()
    assert len(first.labels) == len(second[0].labels) == sum(seen) == 25


def test_an_interrupted_embedding_goes_on_at_its_last_finished_batch(cache):
    net, images, calls = tiny_model(), tiny_images(), []
    original = net.net.encode_image

    def failing(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(x)

    net.net.encode_image = failing
    with pytest.raises(KeyboardInterrupt):
        embed(net, images, batch_size=7)
    assert not list(cache.glob("embeddings/*.npz"))
    found = embed(net, tiny_images(), batch_size=7)
    assert calls == [7, 7, 7, 7, 4]  # two finished, one interrupted, and only the two missing ones again
    np.testing.assert_allclose(found.features, direct(net, images), rtol=1e-6)
    assert [p.suffix for p in cache.glob("embeddings/*")] == [".npz"]


def test_a_full_disk_leaves_nothing_under_the_final_name(cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        embed(tiny_model(), tiny_images())
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_feature_that_is_not_finite_names_the_image():
    net = tiny_model()
    original = net.net.encode_image
    net.net.encode_image = lambda x: original(x).index_fill(0, torch.tensor([2]), torch.nan)
    with pytest.raises(FloatingPointError, match="'s002' is not finite"):
        embed(net, tiny_images())


def test_a_shown_image_whose_embedding_is_not_finite_is_named(net):
    images = token_pictures(9)
    head, original = head_of(net, images), net.net.encode_image
    embed(net, images, batch_size=4)
    net.net.encode_image = lambda x: original(x) * torch.nan
    with pytest.raises(FloatingPointError, match="tiny: the embedding of 's0' is not finite"):
        measure(net, images, head, gaussian_noise([4]), batch_size=4)
