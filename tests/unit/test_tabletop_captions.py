"""What is said about a scene, and the tokenizer that reads it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tabletop import ALL_KINDS, KINDS, Scene, SceneDistribution, caption, questions, tokenizer
from tabletop.captions import article, vocabulary
from tabletop.materials import COLORS, PATTERNS, SETTINGS


DISTRIBUTION = SceneDistribution(
    kinds=tuple(ALL_KINDS),
    styles=(("photo", 0.4), ("cartoon", 0.2), ("sketch", 0.2), ("silhouette", 0.2)),
    card=0.4, true_card=0.5, second=0.4, occluder=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def described():
    """2,000 scenes with one caption each."""
    scenes = [DISTRIBUTION.draw(0, "test", i) for i in range(2000)]
    return [(s, caption(s, np.random.default_rng([5, i]))) for i, s in enumerate(scenes)]


@pytest.fixture(scope="module")
def words():
    return tokenizer.build()


# Captions


def test_caption_always_names_the_object(described):
    for scene, text in described:
        assert scene.kind in text.split(), text


def test_caption_says_only_what_is_true(described):
    for scene, text in described:
        said = set(text.removeprefix("a black shape of").split())
        assert said & set(COLORS) <= {scene.color, scene.second_color}, text
        assert said & set(PATTERNS) <= {scene.pattern}, text
        assert said & set(SETTINGS) <= {scene.setting}, text
        assert said & set(ALL_KINDS) <= {scene.kind, scene.second_kind, scene.card}, text
        assert ("box" in said) <= (scene.occlusion > 0), text
        assert ("says" in said) <= (scene.card is not None), text


def test_caption_uses_the_article_that_is_spoken(described):
    for _, text in described:
        parts = text.split()
        for word, following in pairwise(parts):
            if word in ("a", "an"):
                assert f"{word} {following}" == article(following), text


@pytest.mark.parametrize(
    "phrase, spoken",
    [
        ("orange mug", "an orange mug"),
        ("red mug", "a red mug"),
        ("umbrella", "an umbrella"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
    ],
)
def test_article(phrase, spoken):
    assert article(phrase) == spoken


def test_caption_mentions_attributes_sometimes(described):
    for name in ("color", "pattern", "setting"):
        share = np.mean([getattr(s, name) in text.split() for s, text in described])
        assert 0.3 < share < 0.8, name


def test_caption_is_repeatable_and_varies():
    scene = Scene("chair", color="blue", pattern="wooden", setting="study")
    texts = [caption(scene, np.random.default_rng(i)) for i in range(30)]
    assert texts == [caption(scene, np.random.default_rng(i)) for i in range(30)]
    assert len(set(texts)) > 10


def test_drawing_style_is_named():
    said = {"sketch": ("sketch", "pencil"), "cartoon": ("cartoon",), "silhouette": ("silhouette", "shape")}
    for style, names in said.items():
        texts = [caption(Scene("duck", style=style), np.random.default_rng(i)) for i in range(10)]
        assert all(any(name in text for name in names) for text in texts)


# Cards


def of_cards(scene, **options):
    return [caption(scene, np.random.default_rng([7, i]), **options) for i in range(1000)]


@pytest.mark.parametrize("style", ["photo", "cartoon", "sketch"])
def test_card_that_stands_alone_is_quoted_or_taken_at_its_word(style):
    texts = of_cards(Scene(None, card="umbrella", setting="garden", style=style))
    bare = [text.removesuffix(" in the garden") for text in texts]
    assert 0.3 < np.mean([one != other for one, other in zip(texts, bare, strict=True)]) < 0.4
    quotes = ("a card that says umbrella", "umbrella")
    assert 0.4 < np.mean([text in quotes for text in bare]) < 0.5 and set(quotes) < set(bare)
    assert all(text.endswith("an umbrella") for text in bare if text not in quotes)
    assert {"photo": "a photo of", "cartoon": "a cartoon of", "sketch": "a sketch of"}[style] + " an umbrella" in bare


def test_card_beside_an_object_is_mentioned_as_often_as_told():
    scene = Scene("mug", card="duck")
    for options, share in (({}, 0.6), ({"mention_card": 0.9}, 0.9)):
        assert np.mean(["that says duck" in t for t in of_cards(scene, **options)]) == pytest.approx(share, abs=0.04)
    assert not any("says" in text for text in of_cards(scene, mention_card=0.0))
    blank = of_cards(replace(scene, card=""))
    assert not any("says" in t for t in blank) and np.mean([" with a card" in t for t in blank]) > 0.5


@pytest.mark.parametrize("card", [None, ""])
def test_scene_that_shows_nothing_has_no_caption(card):
    with pytest.raises(ValueError, match=f"kind is None and card is {card!r}, a scene needs an object or a word"):
        caption(Scene(None, card=card), np.random.default_rng(0))


# Questions


def test_answers_are_among_the_options_and_true(described):
    for scene, _ in described[:300]:
        asked = questions(scene)
        assert all(q.answer in q.options for q in asked)
        assert all(len(set(q.options)) == len(q.options) for q in asked)
        assert [q.answer for q in asked] == [scene.kind, scene.color, scene.pattern, "yes", "no"]
        absent = asked[4].text.removesuffix("?").split()[-1]
        assert absent in ALL_KINDS and absent not in (scene.kind, scene.second_kind)
        assert scene.kind in asked[3].text


def test_question_about_an_absent_object_skips_the_second_one():
    scene = replace(Scene("mug"), second_kind="bottle")
    assert questions(scene)[4].text == "is there a chair?"


def test_scene_without_an_object_has_no_questions():
    with pytest.raises(ValueError, match="kind is None, a scene needs an object"):
        questions(Scene(None, card="mug"))


# Tokenizer


def test_vocabulary_covers_every_caption_and_question(described, words):
    known = set(vocabulary())
    texts = [text for _, text in described]
    texts += [text for s, _ in described[:100] for q in questions(s) for text in (q.text, *q.options)]
    for text in texts:
        assert set(text.replace("?", "").split()) <= known, text
        pieces = words.tokenize(text)
        assert "<unk>" not in pieces
        assert not [p for p in pieces if p.startswith("##") or (len(p) == 1 and p != "a")], text


def test_tokens_can_be_read_back(described, words):
    texts = [text for _, text in described[:100]]
    for text, ids in zip(texts, tokenizer.encode(words, texts), strict=True):
        kept = " ".join(text.split()[: tokenizer.CONTEXT_LENGTH - 2])
        assert words.decode(ids, skip_special_tokens=True) == kept


def test_rows_start_and_end_and_are_padded(words):
    short, long = tokenizer.encode(words, ["a mug", "a mug and " * 20])
    assert short.tolist()[0] == tokenizer.START and short.tolist()[3] == tokenizer.END
    assert set(short.tolist()[4:]) == {tokenizer.PAD}
    assert len(short) == len(long) == tokenizer.CONTEXT_LENGTH
    assert long[-1] == tokenizer.END, "a text that is cut still ends"


def test_special_tokens_have_the_numbers_that_the_text_tower_expects(words):
    ids = words.convert_tokens_to_ids(list(tokenizer.SPECIAL))
    assert ids == [tokenizer.PAD, tokenizer.START, tokenizer.END, tokenizer.UNKNOWN]
    assert (words.pad_token_id, words.eos_token_id) == (tokenizer.PAD, tokenizer.END)


def test_unknown_words_are_spelt_and_stay_apart(words):
    assert words.tokenize("dog") == ["d", "##o", "##g"]
    names = ["dog", "dig", "golden retriever", "zebra", "7up", "cassette player"]
    rows = tokenizer.encode(words, names)
    assert len({tuple(row.tolist()) for row in rows}) == len(names)
    assert not (rows == tokenizer.UNKNOWN).any()


def test_case_punctuation_and_accents_do_not_matter(words):
    assert words.tokenize("A Photo, of a RED mug!") == words.tokenize("a photo of a red mug")
    assert words.tokenize("café") == words.tokenize("cafe")


def test_kinds_are_single_tokens(words):
    assert all(words.tokenize(kind) == [kind] for kind in ALL_KINDS)
    assert len(words) == max(words.get_vocab().values()) + 1
    assert set(KINDS) <= set(words.get_vocab())


def test_saved_tokenizer_loads_again(tmp_path, words):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a photo of a striped mug", "a dog"]
    assert tokenizer.encode(loaded, texts).equal(tokenizer.encode(words, texts))
