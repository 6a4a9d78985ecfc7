"""Chapter 13: stimuli in conflict, the bias, the pull of a surface, and heads of merged classes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import tiny_model

from zsr_utils import scores
from zsr_utils.conditions import Batch, Head, Seen, without_cue
from zsr_utils.datasets import Dataset, Sample, cues, load_dataset, tabletop_scenes
from zsr_utils.experiments import shape_bias as cue


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NAMES = ("cat", "dog", "owl")


def folder(*ids: str) -> Dataset:
    samples = [Sample(i, NAMES.index(i.split("/")[0]), lambda: Image.new("RGB", (8, 8))) for i in ids]
    return Dataset("mine", NAMES, samples)


def rows_of(shapes: int, textures: int, others: int) -> pd.DataFrame:
    """Answers to pictures of cat 1, cat 2, … with a dog's fur."""
    n = shapes + textures + others
    rows = pd.DataFrame({"sample_id": [f"cat/cat{k}-dog1.png" for k in range(1, n + 1)], "label": 0, "texture": 1})
    return cue.decided(rows.assign(prediction=[0] * shapes + [1] * textures + [2] * others))


def test_the_bias_is_one_by_shape_zero_by_surface_and_a_half_by_chance():
    assert cue.shape_bias(rows_of(8, 0, 3)).value == 1
    assert cue.shape_bias(rows_of(0, 8, 3)).value == 0
    half = cue.shape_bias(rows_of(50, 50, 20))
    assert (half.low, half.high) == pytest.approx(scores.wilson(0.5, 100), abs=0.01)
    assert cue.share("either")(rows_of(3, 1, 5)).value == pytest.approx(4 / 9)
    assert np.isnan(cue.shape_bias(rows_of(0, 0, 5)).value)


def test_stimuli_that_agree_are_left_out_and_wrong_names_are_refused():
    shown, plain = cue.stimuli(folder("cat/cat1-dog2.png", "cat/cat1-cat2.png", "owl/owl3-cat1.png"))
    assert [s.sample_id for s in shown.samples] == ["cat/cat1-dog2.png", "owl/owl3-cat1.png"] and plain is None
    for wrong, why in {
        "cat/photo.png": "'cat/photo.png' is no name of a stimulus",
        "cat/cat1-cow2.png": "has the texture 'cow', which is no class of mine",
        "cat/dog1-owl2.png": "lies among 'cat', allowed is its shape 'dog'",
    }.items():
        with pytest.raises(ValueError, match=why):
            cue.stimuli(folder(wrong))


def test_every_ordered_pair_has_as_many_scenes(module_cache):
    shown, plain = cue.stimuli(load_dataset("tabletop"), per_pair=1)
    pairs = pd.Series([cues(s.sample_id)[:2] for s in shown.samples]).value_counts()
    assert len(pairs) == 10 * 9 - 9 and set(pairs) == {1}  # the duck's surface is nobody's
    assert [s.sample_id for s in plain.samples] == [s.sample_id for s in shown.samples]
    number = sum(scene.kind == "mug" for scene in tabletop_scenes().values())
    with pytest.raises(ValueError, match=f"per_pair is {number}, allowed is up to {number // 9}"):
        cue.stimuli(load_dataset("tabletop"), per_pair=number)


def test_a_pattern_grows_from_the_foot():
    one, other = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    red = [int((np.asarray(cue.mixed(one, other, share))[..., 0] == 255).sum()) for share in (0, 0.25, 0.5, 1)]
    assert red == [0, 4, 8, 16]
    assert (np.asarray(cue.mixed(one, other, 0.25))[-1, :, 0] == 255).all()


def surfaced(gain: float, shift: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    plain = pd.DataFrame({"sample_id": list("abcd"), "model": "m", "texture_lead": [0.0, 1, 2, 3], "shape_lead": 10.0})
    return plain, plain.assign(texture_lead=plain.texture_lead + gain, shape_lead=10 - gain - shift)


def test_the_pull_is_a_share_of_the_lead_and_what_disturbs_all_classes_is_none():
    plain, rows = surfaced(gain=2.5, shift=3)
    assert cue.pull(plain)(rows).value == pytest.approx(0.25)
    plain, rows = surfaced(gain=0, shift=3)
    assert cue.pull(plain)(rows).value == 0
    assert np.isnan(cue.pull(plain[:0])(rows).value)


def test_models_are_compared_stimulus_by_stimulus_and_no_model_is_no_comparison():
    plain, rows = surfaced(gain=1, shift=0)
    many = pd.concat([rows.assign(sample_id=rows.sample_id + str(k)) for k in range(10)], ignore_index=True)
    many["texture_lead"] += np.tile([0.3, -0.3], 20)
    bare = pd.concat([plain.assign(sample_id=plain.sample_id + str(k)) for k in range(10)], ignore_index=True)
    other = many.assign(model="n", texture_lead=many.texture_lead + 5)
    both, plains = pd.concat([many, other]), pd.concat([bare, bare.assign(model="n")])
    table = cue.compared(both, plains, "m")
    assert table.value.tolist() == pytest.approx([0.5]) and table.p_holm.max() < 0.01
    assert "counts more than for m for n" in cue.compared_in_words(table, "m")
    assert cue.compared_in_words(cue.compared(many, bare, "m"), "m") == "There is no other model to compare with."
    answers = pd.concat([rows_of(9, 0, 0).assign(model="m"), rows_of(0, 9, 0).assign(model="n")])
    assert cue.compared(answers, plain[:0], "m").value.tolist() == [2.0]


def test_merged_classes_answer_by_their_mean_probability():
    net = tiny_model()
    weights = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    features = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    whole = Head(weights, tuple("abcde")).scores(net, features).softmax(1)
    merged = Head(weights, ("x", "y"), ((0, 3, 4), (1,))).scores(net, features).exp()
    torch.testing.assert_close(merged, torch.stack([whole[:, [0, 3, 4]].mean(1), whole[:, 1]], 1))
    with pytest.raises(ValueError, match="classifier has 2 rows, there are 3 class names"):
        Head(weights, tuple("xyz"), ((0,), (1,)))


def batch_of(pixels: torch.Tensor) -> Batch:
    seen = Seen(pixels, torch.zeros(len(pixels), 1), torch.zeros(len(pixels), 2))
    return Batch(None, None, [str(k) for k in range(len(pixels))], torch.zeros(len(pixels), dtype=int), seen)


def test_a_reduced_cue_keeps_what_it_is_not_about():
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blur, coarse, tiles = (c.change(batch_of(pixels)) for c in without_cue([5], [4], [4]))
    assert blur.var() < pixels.var() / 2 and coarse.var() < pixels.var() / 2
    torch.testing.assert_close(tiles.sort(-1).values.sum(), pixels.sum())

    def cut(x):
        return {t.numpy().tobytes() for t in x.unfold(2, 4, 4).unfold(3, 4, 4)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)}

    assert cut(tiles) == cut(pixels) and not torch.equal(tiles, pixels)
    flat = torch.full((1, 3, 16, 16), 0.5)
    for condition in without_cue():
        torch.testing.assert_close(condition.change(batch_of(flat)), flat)
    with pytest.raises(ValueError, match="resolution is 1, allowed is above 1"):
        without_cue([1], [1], [2])
