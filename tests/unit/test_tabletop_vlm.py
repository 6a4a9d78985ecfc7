"""The generative model's questions, and how many of them are trained at once."""

from collections import Counter

import numpy as np
import pytest
import torch

from tabletop import SceneDistribution, vlm
from tabletop.dialogue import FAVOURITE, FAVOURITES, PARTNER, PARTNERS, SECOND, asked_of, staged, usual


DRAWN = SceneDistribution(card=0.5, true_card=0.5)
SCENES = [staged(DRAWN.draw(0, "pretrain", k), 0, k) for k in range(1000)]


def test_every_answer_is_true_of_the_scene_and_among_the_options():
    for k, scene in enumerate(SCENES[:200]):
        there = {scene.kind, scene.second_kind}
        for asked in asked_of(scene, np.random.default_rng(k)):
            words = asked.prompt.replace("?", " ").split()
            truth = {
                "what": {scene.kind}, "count": {"two" if scene.second_kind else "one"}, "card": {scene.card},
                "colour": {scene.second_color if scene.second_kind in words else scene.color},
                "pattern": {scene.pattern}, "present": {"yes" if there & {*words} else "no"},
            }[asked.topic]  # fmt: skip
            assert asked.answer in truth and asked.answer in asked.options
            assert len({*asked.options}) == len(asked.options)


def test_what_goes_together_does_so_as_often_as_said():
    pairs = [s for s in SCENES if s.second_kind]
    partner = np.mean([s.second_kind == PARTNERS[s.kind] for s in pairs])
    favourite = np.mean([s.color == FAVOURITES[s.kind] for s in SCENES])
    assert len(pairs) / len(SCENES) == pytest.approx(SECOND, abs=0.05)
    assert partner == pytest.approx(PARTNER + (1 - PARTNER) / 9, abs=0.07)
    assert favourite == pytest.approx(FAVOURITE + (1 - FAVOURITE) / 10, abs=0.05)


def test_a_blank_picture_is_answered_by_what_is_usual():
    rng = np.random.default_rng(0)
    of_scenes, of_blanks = (usual(a for s in some for a in asked_of(s, rng)) for some in (SCENES[:400], [None] * 400))
    yes = [np.array(list(found["yes"].values())) for found in (of_scenes, of_blanks)]
    assert np.corrcoef(*yes)[0, 1] > 0.7 and np.ptp(yes[0]) > 0.15
    assert of_blanks["answers"]["pattern"]["plain"] < 0.35


@pytest.fixture(scope="module")
def network():
    config = vlm.load_config("tabletop-vlm") | {"width": 32, "layers": 2, "heads": 2}
    return vlm.build_network(config, vlm.build_tokenizer()).eval()


@torch.no_grad()
def test_a_question_in_a_pack_is_answered_as_if_it_were_alone_and_as_by_the_public_call(network):
    words, rng = vlm.build_tokenizer(), np.random.default_rng(1)
    pictures = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    grids = vlm.seen(network.model.vision_tower, pictures).float()
    asked = [asked_of(s, rng) for s in SCENES[:2]]
    every = vlm.answer_logits(network, grids, vlm.packed(asked, words))
    alone = vlm.packed([[asked[1][-1]]], words)
    own = vlm.answer_logits(network, grids[1:], alone)
    torch.testing.assert_close(every[-len(own) :], own, atol=1e-4, rtol=1e-4)
    pixels = vlm.normalise(torch.from_numpy(pictures[1:]).permute(0, 3, 1, 2).float() / 255)
    public = network(input_ids=alone["ids"], pixel_values=pixels).logits[alone["targets"] >= 0]
    torch.testing.assert_close(public, own, atol=5e-3, rtol=5e-3)  # the grids are kept in fp16


def test_the_end_of_an_answer_counts_less():
    batch = {"targets": torch.tensor([[-100, 3, 2, -100]])}
    logits = torch.zeros(2, 5)
    logits[0, 3] = 10.0  # the word is right, its end is a guess
    assert vlm.loss_of(logits, batch, 2, 0.25) == pytest.approx(0.25 * np.log(5) / 1.25, abs=1e-3)


def test_a_learning_rate_warms_up_stays_and_falls_to_zero():
    config = vlm.load_config("tabletop-vlm") | {"steps": 1000}
    rates = [vlm.rate(step, config) / config["learning_rate"] for step in (0, 49, 300, 650, 1000)]
    assert rates == pytest.approx([1 / 50, 1, 1, 0.5, 0])


def test_a_name_that_is_not_listed_is_refused_with_the_list():
    with pytest.raises(ValueError, match="config is 'tabletop-vlm-huge', allowed are tabletop-vlm, "):
        vlm.load_config("tabletop-vlm-huge")


def test_blank_pictures_are_of_four_sorts():
    rng = np.random.default_rng(0)
    sorts = Counter(int(p.min()) if np.ptp(p) == 0 else "noise" for p in (vlm.blank(rng) for _ in range(40)))
    assert set(sorts) == {0, 128, 255, "noise"}
