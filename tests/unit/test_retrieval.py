"""Retrieval: closed forms of its counts, truth of captions, and captions as files have them."""

import json
import tracemalloc
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from test_webdataset import encoded, shard

from zsr_utils import scores
from zsr_utils.datasets import captioned, captioned_scenes, changed_words, load_dataset, tabletop_scenes


SAID = {"a.png": ["a red mug", "mug", "a mug"], "sub/b.png": ["two dogs"]}


def own(part: slice) -> np.ndarray:
    return np.arange(2000)[part, None] == np.arange(2000)


def test_equal_similarities_count_as_the_mean_over_their_orders():
    """Similarities .9, then five that are equal and of which two are wanted: every order of the five is tried."""
    angle = np.arccos([0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1])
    gallery, wanted = np.stack([np.cos(angle), np.sin(angle)], 1), np.array([[0, 1, 0, 0, 1, 0, 1]], dtype=bool)
    rows = scores.placed(np.array([[2.0, 0]]), gallery, {"": lambda part: wanted[part]})
    orders = np.array([[0, *order, 6] for order in permutations(range(1, 6))])
    hits = wanted[0][orders]
    for k in (1, 2, 4, 5, 7):
        assert scores.found(rows, k)[0] == pytest.approx(hits[:, :k].any(1).mean())
    rank = scores.median_rank(rows.assign(sample_id="a"))
    assert rank.value == pytest.approx((hits.argmax(1) + 1).mean())
    assert scores.by_luck(rows, 2) == pytest.approx(1 - (4 * 3) / (7 * 6))


def test_no_matrix_of_all_similarities_is_kept_and_chunks_do_not_matter():
    a, b = np.random.default_rng(0).normal(size=(2, 2000, 8))
    whole = scores.placed(a, b, {"": own})
    tracemalloc.start()
    pd.testing.assert_frame_equal(scores.placed(a, b, {"": own}, at_once=10_000), whole)
    assert tracemalloc.get_traced_memory()[1] < 2000 * 2000 * 8 / 4
    tracemalloc.stop()
    rows = whole.assign(sample_id=np.arange(2000))
    chance = scores.recall(10)(rows)  # the pairs have nothing to do with each other
    assert chance.low < 0.005 < chance.high and scores.recall(2000)(rows).value == 1
    assert scores.placed(a, a, {"": own}).above.eq(0).all()


def test_a_picture_is_found_by_any_and_by_each_of_its_captions():
    rows = pd.DataFrame({"sample_id": list("aab"), "above": [0, 3, 0], "tied": [0, 0, 1], "equal": 1})
    table = scores.by_image(rows, 1)
    assert table["any"].tolist() == [1, 0.5] and table["each"].tolist() == [0, 0.5]
    true = rows.assign(above_true=[0, 0, 0], tied_true=[0, 0, 0], equal_true=1)
    assert scores.true_misses(1)(true).value == 1 and scores.true_misses(1)(true).low < 1
    assert np.isnan(scores.true_misses(1)(rows).value)
    assert scores.true_misses(1)(true.assign(above_true=rows.above)).value == pytest.approx(0.5 / 1.5)


@pytest.mark.parametrize("split", ["validation", "card", "sketch"])
def test_captions_are_true_of_their_scene_and_of_those_that_agree_with_it(split):
    images = load_dataset("tabletop", split=split, limit=20)
    said = captioned_scenes(images, split, 4, 0)
    truth, scenes = said.holds[said.claim], tabletop_scenes(split)
    assert truth[np.arange(len(said.texts)), said.owners].all() and not truth.all()
    for text, row in zip(said.texts, truth):
        for sample, holds in zip(images.samples, row):
            scene = scenes[sample.sample_id]
            words = text.split(" with a card")[0].removeprefix("a black shape").split()
            if scene.kind not in words or ("in" in words and scene.setting not in words):
                assert not holds


def test_a_changed_caption_differs_by_a_word_or_by_the_order_of_words(module_cache):
    images, captions = changed_words(8, 0)
    assert len(images) == 8 and len(captions) == 8 * 7
    for row in captions.itertuples():
        true, false = row.true.replace("an ", "a ").split(), row.false.replace("an ", "a ").split()
        swapped = row.change.startswith("colors_swapped")
        assert sum(a != b for a, b in zip(true, false, strict=True)) == 1 + swapped
        assert (sorted(true) == sorted(false)) == swapped


@pytest.fixture
def files(tmp_path):
    """The same two pictures with three and one captions as a table, as Karpathy's JSON, and as shards."""
    for k, name in enumerate(SAID):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(encoded(k, "png"))
    lines = [f"{name},{text}" for name, texts in SAID.items() for text in texts]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    of = [{"split": "test", "sentences": [{"raw": text} for text in texts]} for texts in SAID.values()]
    listed = [{"filename": "a.png", "filepath": "", **of[0]}, {"filename": "b.png", "filepath": "sub", **of[1]}]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [*listed, {**listed[0], "split": "val"}][::-1]}))
    parts = [(n.removesuffix(".png"), encoded(k, "png"), "\n".join(s)) for k, (n, s) in enumerate(SAID.items())]
    shard(
        tmp_path / "wds" / "test" / "0.tar",
        {f"{n}{e}": c for n, p, t in parts for e, c in ((".png", p), (".txt", t.encode()))},
    )
    return tmp_path


@pytest.mark.parametrize("name", ["captions.csv", "wds"])
def test_files_of_captions_are_read_alike_and_pictures_may_have_more_or_fewer(files, name):
    said = captioned(str(files / name))
    assert said.texts == tuple(t for texts in SAID.values() for t in texts) and said.owners.tolist() == [0, 0, 0, 1]
    assert np.array_equal(
        np.asarray(said.images.samples[1].image()),
        np.asarray(captioned(str(files / "captions.csv")).images.samples[1].image()),
    )
    few = said.readable([said.images.samples[1].sample_id])
    assert few.texts == ("two dogs",) and few.owners.tolist() == [0]
    assert captioned(str(files / name), per_image=1).owners.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a.png", "c.png", "has captions of 'c.png'; 1 of 3 pictures are not in"),
        ("two dogs", " ", "'sub/b.png' has an empty caption"),
    ],
)
def test_what_cannot_be_used_is_named(files, old, new, message):
    path = files / "captions.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        captioned(str(path))


def test_a_split_that_is_not_there_or_another_format_is_named(files):
    assert set(captioned(str(files / "dataset.json")).texts) == {"two dogs"} | set(SAID["a.png"])
    with pytest.raises(ValueError, match="captions_split is 'dev', allowed are"):
        captioned(str(files / "dataset.json"), "dev")
    (files / "captions.json").write_text("[]")
    with pytest.raises(ValueError, match="is not in Karpathy's format"):
        captioned(str(files / "captions.json"))
