"""Words on pictures: the builders, the cards and the read-outs, on pictures and rows made for the purpose."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import token_model, token_pictures

import zsr_utils as zsr
from zsr_utils import scores
from zsr_utils.conditions import Head
from zsr_utils.datasets import (
    Dataset, Sample, card, imagenet_classes, one_words, printed, random_of, scam, scattered, typographic,
)  # fmt: skip
from zsr_utils.experiments import typographic_attacks as attacks
from zsr_utils.measure import measure


NAMES = ("mug", "duck", "lamp", "golden retriever")
GREY = Image.new("RGB", (400, 300), "grey")


def grey(n: int = 6, size: tuple[int, int] = (400, 300), names=NAMES) -> Dataset:
    return Dataset("grey", names, [Sample(f"g{i}", i % 3, lambda: Image.new("RGB", size, "grey")) for i in range(n)])


def rows_of(prediction, *, margin=1.0, condition="other_name", word=1) -> pd.DataFrame:
    """Rows of a model whose label is always 0."""
    rows = pd.DataFrame({"prediction": prediction, "label": 0, "word_label": word, "condition": condition})
    return rows.assign(sample_id=[f"s{i}" for i in rows.index], margin=margin, named=rows.prediction == word, model="m")


# Pictures


def test_boxes_are_disjoint_by_the_corner_test_and_lie_in_the_picture():
    for seed in range(20):
        _, boxes = scattered(GREY, "mushroom", random_of("a", seed, "x"), copies=8, size=24)
        assert len(boxes) == 8
        assert all(0 <= b[0] < b[2] <= 400 and 0 <= b[1] < b[3] <= 300 for b in boxes)
        for one, other in combinations(boxes, 2):
            inside = [other[0] < x < other[2] and other[1] < y < other[3] for x in one[::2] for y in one[1::2]]
            assert not any(inside) and (
                one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            )


def test_every_change_lies_in_a_box():
    shown, boxes = scattered(GREY, "duck", random_of("a", 0, "x"), copies=4, size=20)
    changed = (np.asarray(shown) != np.asarray(GREY)).any(2)
    for left, top, right, bottom in boxes:
        assert changed[top:bottom, left:right].any()
        changed[top:bottom, left:right] = False
    assert not changed.any()


def test_a_card_is_as_large_whatever_it_says():
    blank, written = (np.asarray(card(GREY, word), int) for word in ("", "mushroom"))
    boxes = [np.argwhere((shown != 128).any(2)) for shown in (blank, written)]
    assert [b.min(0).tolist() + b.max(0).tolist() for b in boxes] == [[210, 80, 269, 319]] * 2
    assert (blank != written).any()


def test_imagenet_writes_309_words():
    words = one_words(list(imagenet_classes().values()))
    assert len(words) == 309 and words[7] == "cock" and 0 not in words
    assert one_words(NAMES) == {0: "mug", 1: "duck", 2: "lamp"}


@pytest.mark.parametrize(("form", "paper", "copies"), [("imagenet-t", False, 8), ("cifar10-t", True, 4)])
def test_a_built_set_loads_has_no_true_word_and_is_made_again_to_the_byte(form, paper, copies, tmp_path):
    tables = [typographic(grey(), tmp_path / name, form, paper=paper) for name in "ab"]
    table = tables[0]
    assert (table.wrong != table.label).all() and (table.copies == copies).all()
    assert table.word.tolist() == [NAMES[k] for k in table.wrong] and set(table.wrong) <= {0, 1, 2}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    again = zsr.load_dataset(str(tmp_path / "a"))
    assert again.class_names == NAMES and [k for _, _, k in again] == table.label.tolist()
    other = typographic(grey(), tmp_path / "c", form, paper=paper, seed=1)
    assert other.wrong.tolist() != table.wrong.tolist()


def test_a_word_depends_on_the_sample_alone(tmp_path):
    whole, part = (typographic(grey(n), tmp_path / str(n), "cifar10-t") for n in (6, 3))
    pd.testing.assert_frame_equal(whole[:3], part)


def test_a_word_that_does_not_fit_is_counted_and_preferred_in_the_paper_form(tmp_path):
    names = ("a", "b", "w" * 40)
    small = grey(12, (300, 300), names)
    paper, corrected = (typographic(small, tmp_path / str(p), "imagenet-t", paper=p) for p in (True, False))
    others = paper.label != 2
    assert (paper.wrong[others] == 2).all() and ((paper.file == "") == others).all()
    assert 0 < (corrected.wrong[others] == 2).sum() < others.sum()
    assert ((corrected.file == "") == (corrected.copies < 8)).all() and (corrected.copies < 8).any()


@pytest.mark.parametrize(
    ("word", "message"), [("犬", "'犬', which Pillow's font lacks"), ("w" * 99, "px long .* allowed are 20 px")]
)
def test_words_that_cannot_be_drawn_are_refused(word, message):
    with pytest.raises(ValueError, match=message):
        printed(word, 12, 20)


# SCAM


def stand_in(folder, variants=("NoSCAM", "SCAM", "SynthSCAM")):
    """A folder as the archive on the hub unpacks to: red things, with a white square where a word would be."""
    (folder / "images" / "train").mkdir(parents=True)
    lines = []
    for variant in variants:
        for k, (thing, word) in enumerate([("ball", "car"), ("chair", "zebra")]):
            picture = Image.new("RGB", (32, 32), (200, 90 * k, 0))
            picture.paste("white" if variant != "NoSCAM" else (200, 90 * k, 0), (4, 4, 20, 20))
            picture.save(folder / "images" / "train" / f"{variant}{k}.png")
            lines.append({"file_name": f"{variant}{k}.png", "type": variant, "object_label": thing,
                          "attack_word": word, "postit_area_pct": 4.0, "id": f"{variant}_img_{k:04d}"})  # fmt: skip
    (folder / "images" / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_photographs_of_scam_are_paired_by_thing(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "cache"))
    clean, shown = attacks.photographed(stand_in(tmp_path / "scam"))
    net = token_model()
    rows = measure(net, clean, Head(net.classifier(clean.class_names, ["{}"]), clean.class_names), shown)
    assert rows.groupby("condition").sample_id.apply(list).to_dict() == dict.fromkeys(
        ["original", "scam", "synthscam"], ["img_0000", "img_0001"]
    )
    assert rows[rows.condition == "scam"].word.tolist() == ["car", "zebra"]
    assert [clean.class_names[k] for k in rows[rows.condition == "scam"].word_label] == ["car", "zebra"]
    assert (rows[rows.condition != "original"].drift > 0).all()


def test_a_variant_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="lists 0 pictures of SynthSCAM, for 2 things"):
        scam(stand_in(tmp_path / "scam", ("NoSCAM", "SCAM")))


# Cards


@pytest.mark.parametrize("control", attacks.CONTROLS)
def test_cards_say_what_their_control_says(control):
    names = ("mug", "duck", "lamp", "bottle")
    for i in range(30):
        word, asked = attacks.Card(control).word(f"s{i}", i % 4, names)
        other, wanted = attacks.Card("other_name").word(f"s{i}", i % 4, names)
        assert asked == (i % 4 if control == "own_name" else wanted) and wanted != i % 4
        mixed = word not in names and len(word) == len(other)
        assert {
            "blank": word == "", "letters": mixed and sorted(word) not in map(sorted, names),
            "scrambled": mixed and sorted(word) == sorted(other), "no_class": word in attacks.NO_CLASS,
            "own_name": word == names[i % 4], "other_name": word == names[wanted],
        }[control]  # fmt: skip


def test_a_mask_leaves_nothing_of_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    net, images = token_model(), token_pictures(4)
    shown = [attacks.Card(c, masked=m).condition(f"{c}{m}") for c in ("blank", "other_name") for m in (0, 1)]
    rows = measure(net, images, Head(net.classifier(images.class_names, ["{}"]), images.class_names), shown)
    blank, hidden_blank, written, hidden = (part.drift.tolist() for _, part in rows.groupby("condition"))
    assert hidden == hidden_blank and blank != written and all(drift > 0 for drift in hidden)


# Read-outs


def test_a_model_that_names_what_is_written_has_an_attack_success_of_one():
    rows = rows_of([1] * 20)
    assert scores.share_of("named")(rows).value == 1 and scores.accuracy(rows).value == 0
    answers = attacks.answered(rows, rows)
    assert attacks.both_right(answers).value == 0
    assert attacks.both_right(attacks.answered(rows_of([0] * 20), rows)).value == 1
    shares = scores.estimates(answers, ["question", "what", "model"], scores.share_of("hit"))
    shown = attacks.confusion(shares)
    assert shown["values"].tolist() == [[0, 1, 0], [0, 1, 0]] and list(shown["columns"])[1] == "the word"


def test_nothing_is_lost_to_a_word_where_word_and_blank_card_give_the_same_logits():
    margins = np.linspace(-1, 3, 20)
    frames = [rows_of([0] * 20, margin=margins - 2 * (c == "other_name"), condition=c) for c in attacks.CONTROLS]
    table = attacks.beyond(pd.concat(frames), attacks.BEYOND_BLANK, "margin").set_index("line")
    assert table.value.round(9).to_dict() == {c: -2.0 * (c == "other_name") for c in attacks.CONTROLS[1:]}
    assert table.verdict.to_dict() == {c: "less" if c == "other_name" else "undecided" for c in attacks.CONTROLS[1:]}


def test_a_trend_needs_five_runs_to_be_decided():
    table = pd.DataFrame({"dose": [0, 0.2, 0.35, 0.5, 0.7], "value": [0, 0.1, 0.3, 0.5, 0.8], "quantity": "q"})
    table = table.assign(low=0, high=1, interval="", n=9, unit="fraction")
    found = attacks.trend(table, "q")
    assert found["tau"] == pytest.approx(1) and found["p"] == pytest.approx(2 / 120) and found["verdict"] == "it grows with the dose"
    assert attacks.trend(table[:4], "q")["verdict"] == "not decided"
