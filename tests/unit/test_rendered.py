"""Tabletop scenes that are rendered when they are asked for."""

from dataclasses import replace

import numpy as np
import pytest

from zsr_utils.datasets import blank_cards, load_dataset, rendered, tabletop_scenes


def test_an_unchanged_scene_is_the_embedded_picture(module_cache):
    scenes = dict(list(tabletop_scenes().items())[:10])
    images = load_dataset("tabletop")
    again = rendered("again", scenes)
    for sample_id, picture, label in again:
        before = np.asarray(images.image(sample_id), dtype=int)
        assert np.abs(np.asarray(picture, dtype=int) - before).max() <= 1
        assert images.class_names[label] == scenes[sample_id].kind


def test_shifted_scenes_are_those_of_the_set(module_cache):
    scenes = dict(list(tabletop_scenes("card").items())[:2])
    images = load_dataset("tabletop", split="card")
    for sample_id, picture, _ in rendered("cards", scenes):
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(images.image(sample_id), dtype=int)).max() <= 1


def test_a_blank_card_covers_what_the_card_with_a_word_does(module_cache):
    ids = list(tabletop_scenes("card"))[:3]
    images = load_dataset("tabletop", split="card")
    for sample_id, picture, label in blank_cards(ids):
        word, blank = (np.asarray(p, dtype=int) for p in (images.image(sample_id), picture))
        changed = np.abs(word - blank).max(2) > 8
        assert changed.any() and (blank[changed].min(1) > 180).mean() > 0.95  # ink alone, which was on paper
        assert images.class_names[label] == tabletop_scenes("card")[sample_id].kind


def test_another_scene_is_another_data_set(module_cache):
    one = dict(list(tabletop_scenes().items())[:2])
    other = {i: replace(s, style="sketch") for i, s in one.items()}
    assert rendered("x", one).fingerprint != rendered("x", other).fingerprint


def test_a_scene_without_an_answer_is_refused():
    scene = next(iter(tabletop_scenes().values()))
    with pytest.raises(ValueError, match="'a' shows teapot, allowed are mug"):
        rendered("teapots", {"a": replace(scene, kind="teapot")})
    with pytest.raises(ValueError, match="no scene"):
        rendered("none", {})
