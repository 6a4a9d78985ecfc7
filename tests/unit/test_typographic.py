"""Words on pictures: the builders, the cards and the read-outs, on pictures and rows made for the purpose."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import token_model, token_pictures

from tabletop import HELD_OUT_KINDS
from zsr_utils import datasets, scores
from zsr_utils.conditions import Head
from zsr_utils.datasets import Dataset, Sample, typographic
from zsr_utils.experiments import typographic_attacks as attacks
from zsr_utils.measure import measure


pytestmark = pytest.mark.usefixtures("module_cache")
NAMES = ("mug", "duck", "lamp", "golden retriever")
GREY = Image.new("RGB", (400, 300), "grey")


def grey(n: int = 6, names=NAMES) -> Dataset:
    return Dataset("grey", names, [Sample(f"g{i}", i % 3, GREY.copy) for i in range(n)])


def measured(images, conditions) -> pd.DataFrame:
    net = token_model()
    return measure(net, images, Head(net.classifier(images.class_names, ["{}"]), images.class_names), conditions)


def rows_of(prediction, *, margin=1.0, condition="other_name") -> pd.DataFrame:
    rows = pd.DataFrame({"prediction": prediction, "label": 0, "condition": condition, "model": "m"})
    return rows.assign(sample_id=[f"s{i}" for i in rows.index], margin=margin, named=rows.prediction == 1)


def test_boxes_are_disjoint_and_hold_every_change():
    for seed in range(10):
        shown, boxes = datasets.scattered(GREY, "mushroom", np.random.default_rng(seed), copies=8, size=24)
        for one, other in combinations(boxes, 2):
            assert not any(other[0] < x < other[2] and other[1] < y < other[3] for x in one[::2] for y in one[1::2])
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        for box in boxes:
            shown.paste("grey", box)
        assert len(boxes) == 8 and shown == GREY


def test_a_card_is_as_large_whatever_it_says():
    blank, written = (np.asarray(datasets.card(GREY, word)) for word in ("", "mushroom"))
    changed = [np.argwhere((shown != 128).any(2)) for shown in (blank, written)]
    assert [(*b.min(0), *b.max(0)) for b in changed] == [(210, 80, 269, 319)] * 2 and (blank != written).any()


def test_imagenet_writes_309_words():
    words = datasets.one_words(list(datasets.imagenet_classes().values()))
    assert len(words) == 309 and words[7] == "cock" and 0 not in words
    assert datasets.one_words(NAMES) == {0: "mug", 1: "duck", 2: "lamp"}


@pytest.mark.parametrize(("form", "paper", "copies"), [("imagenet-t", False, 8), ("cifar10-t", True, 4)])
def test_a_built_set_loads_has_no_true_word_and_is_made_again_to_the_byte(form, paper, copies, tmp_path):
    table, few = (typographic(grey(n), tmp_path / str(n), form, paper=paper) for n in (6, 3))
    assert (table.wrong != table.label).all() and (table.copies == copies).all()
    assert table.word.tolist() == [NAMES[k] for k in table.wrong]
    pd.testing.assert_frame_equal(table[:3], few)
    for file in few.file:
        assert (tmp_path / "6" / file).read_bytes() == (tmp_path / "3" / file).read_bytes()
    again = datasets.load_dataset(str(tmp_path / "6"))
    assert again.class_names == NAMES and [k for _, _, k in again] == table.label.tolist()
    assert typographic(grey(), tmp_path / "other", form, paper=paper, seed=1).wrong.tolist() != table.wrong.tolist()


def test_a_word_that_does_not_fit_is_counted_and_sought_in_the_paper_form(tmp_path):
    names = ("a", "b", "w" * 40)
    paper, corrected = (typographic(grey(12, names), tmp_path / str(p), "imagenet-t", paper=p) for p in (True, False))
    others = paper.label != 2
    assert ((paper.wrong == 2) == others).all() and ((paper.file == "") == others).all()
    assert ((corrected.file == "") == (corrected.copies < 8)).all() and 0 < (corrected.copies < 8).sum() < others.sum()


def test_words_that_cannot_be_drawn_are_refused(tmp_path):
    with pytest.raises(ValueError, match="word '犬' has '犬', which Pillow's font lacks"):
        datasets.printed("犬", 12, 200)
    with pytest.raises(ValueError, match="px long in the smallest letters, allowed are 20 px"):
        datasets.printed("w" * 99, 12, 20)
    with pytest.raises(ValueError, match="grey has 1 class names of one word, needed are 2 or more"):
        typographic(grey(names=("mug", "golden retriever", "rubber duck")), tmp_path, "imagenet-t")


def stand_in(folder, variants):
    (images := folder / "images" / "train").mkdir(parents=True)
    lines = []
    for variant in variants:
        for k, (thing, word) in enumerate([("ball", "car"), ("chair", "zebra")]):
            picture = Image.new("RGB", (32, 32), (200, 90 * k, 0))
            picture.paste("white", (4, 4, 20, 20) if variant != "NoSCAM" else (0, 0, 0, 0))
            picture.save(images / f"{variant}{k}.png")
            row = {"file_name": f"{variant}{k}.png", "type": variant, "id": f"{variant}_img_{k:04d}"}
            lines.append(json.dumps(row | {"object_label": thing, "attack_word": word}))
    (images / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_photographs_of_scam_are_paired_by_thing(tmp_path):
    clean, shown = attacks.photographed(stand_in(tmp_path / "scam", ["NoSCAM", "SCAM", "SynthSCAM"]))
    rows = measured(clean, shown)
    assert rows.groupby("condition").sample_id.apply("".join).tolist() == ["img_0000img_0001"] * 3
    assert rows.word.tolist() == ["car", "zebra"] * 3 == [clean.class_names[k] for k in rows.word_label]
    assert ((rows.condition != "noscam") == (rows.drift > 0)).all()
    with pytest.raises(ValueError, match="lists 0 pictures of SynthSCAM for 2 things"):
        datasets.scam(stand_in(tmp_path / "part", ["NoSCAM", "SCAM"]))


@pytest.mark.parametrize("control", attacks.CONTROLS)
def test_cards_say_what_their_control_says(control):
    names = ("mug", "duck", "lamp", "bottle")
    for i in range(30):
        word, asked = attacks.Card(control).word(f"s{i}", i % 4, names)
        other, wanted = attacks.Card("other_name").word(f"s{i}", i % 4, names)
        assert asked == (i % 4 if control == "own_name" else wanted) and wanted != i % 4
        texts = {"blank": "", "own_name": names[i % 4], "other_name": names[wanted]}
        if control in ("letters", "scrambled"):
            assert word not in names and len(word) == len(other)
            assert (sorted(word) == sorted(other)) == (control == "scrambled")
        else:
            assert word in HELD_OUT_KINDS if control == "no_class" else word == texts[control]


def test_a_mask_leaves_nothing_of_what_was_written():
    shown = [attacks.Card(c, masked=m).condition(f"{c}{m}") for c in ("blank", "other_name") for m in (0, 1)]
    rows = measured(token_pictures(4), shown)
    blank, hidden_blank, written, hidden = (part.drift.tolist() for _, part in rows.groupby("condition"))
    assert hidden == hidden_blank and blank != written and all(drift > 0 for drift in hidden)


def test_a_model_that_names_what_is_written_has_an_attack_success_of_one():
    rows = rows_of([1] * 20)
    assert scores.share_of("named")(rows).value == 1 and scores.accuracy(rows).value == 0
    answers = attacks.answered(rows, rows)
    assert not answers.both.any() and attacks.answered(rows_of([0] * 20), rows).both.all()
    table = scores.estimates(answers, ["question", "what", "model"], scores.share_of("hit"))
    assert attacks.confusion(table)["values"].tolist() == [[0, 1, 0]] * 2


def test_nothing_is_lost_to_a_word_where_word_and_blank_card_give_the_same_logits():
    lost = {control: 2.0 * (control == "other_name") for control in attacks.CONTROLS}
    frames = [rows_of([0] * 20, margin=np.linspace(-1, 3, 20) - lost[c], condition=c) for c in lost]
    table = attacks.beyond(pd.concat(frames), {c: ("blank", c) for c in lost}, "margin")
    assert (-table.value).round(9).tolist() == list(lost.values())
    assert table.verdict.tolist() == ["less" if value else "undecided" for value in lost.values()]


def test_a_trend_is_over_training_runs_and_needs_five():
    table = pd.DataFrame({"dose": [0, 0.2, 0.35, 0.5, 0.7], "value": [0, 0.1, 0.3, 0.5, 0.8], "quantity": "q"})
    found, fewer = (attacks.trend(table[:n], "q") for n in (5, 4))
    assert found["p"] == pytest.approx(2 / 120) and found["verdict"].startswith("it grows")
    assert fewer["verdict"] == "not decided"
    again = pd.concat([table, table.assign(value=table.value + 0.1), table.assign(value=table.value + 0.2)])
    last = attacks.trend(again, "q")["last"]
    assert (last.value, last.n) == (pytest.approx(0.9), 3) and last.high == 1  # shares end there
    assert last.low == pytest.approx(0.9 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
