"""Chapter 10 beyond the contract: the search finds what was planted, and statistics have closed forms."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_images, tiny_model
from torch import nn

from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Condition, Head
from zsr_utils.experiments import prompt_sets as asking
from zsr_utils.experiments.out_of_distribution import noisy
from zsr_utils.measure import measure
from zsr_utils.prompts import PROMPT_SETS, START, best_of, prompt_set, search


WORDS = ("", "a", "photo", "of", "the", "good", "bad", "blurry", "dog", "cat", "bird")
NAMES = WORDS[8:]


class Words(nn.Module):
    """A text tower that adds up words: class words point one way each, all others but one blur the sum."""

    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(len(WORDS), 9)
        blur = torch.zeros(len(WORDS), 9)
        blur[8:, :3] = torch.eye(3)
        for k, word in enumerate(WORDS[1:8], start=1):
            blur[k, 3:] = 1.5 * torch.rand(6, generator=torch.Generator().manual_seed(k)) * (word != "good")
        self.token_embedding.weight.data = blur
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_text(self, ids):
        return self.token_embedding(ids).sum(1)


class Tokenizer:
    def __call__(self, texts):
        ids = [[WORDS.index(w) for w in text.split() if w in WORDS] for text in texts]
        return torch.tensor([(row + [0] * 6)[:6] for row in ids])

    def decode(self, ids):
        return " ".join(WORDS[k] for k in ids)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))


@pytest.fixture
def toy():
    net = tiny_model(tokenizer=Tokenizer())
    net.net = Words().eval().requires_grad_(False)
    labels = torch.arange(240) % 3
    noise = torch.randn(240, 9, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.one_hot(labels, 9) + noise * torch.tensor([0.2] * 3 + [0.1] * 6)
    return net, features, labels


def test_the_search_finds_the_planted_words(toy):
    net, features, labels = toy
    log = search(net, NAMES, features[:160], labels[:160], steps=40, candidates=7, batch=60)
    assert log.prompt.iloc[0] == f"{START} {{}}" and log.prompt.iloc[-1] == "good good good good {}"
    assert (log.gain[1:] > 0).all()
    best, losses = best_of(net, NAMES, list(log.prompt), features[160:], labels[160:])
    assert best == log.prompt.iloc[-1] and losses[-1] == losses.min() < losses[0]


def test_with_mixed_up_labels_the_search_gains_nothing_on_held_out_pictures(toy):
    net, features, labels = toy
    gains = []
    for seed in range(5):
        mixed = labels[:160][torch.from_numpy(np.random.default_rng(seed).permutation(160))]
        log = search(net, NAMES, features[:160], mixed, seed=seed, steps=20, candidates=7, batch=60)
        _, losses = best_of(net, NAMES, [log.prompt.iloc[0], log.prompt.iloc[-1]], features[160:], labels[160:])
        gains.append(losses[0] - losses[1])
    assert max(gains) <= 1e-6


def test_bad_prompts_and_models_are_told_in_a_sentence(toy):
    net, features, labels = toy
    with pytest.raises(ValueError, match=r"must hold exactly one '\{\}'"):
        asking.weights_of(net, NAMES, ["a photo"])
    with pytest.raises(ValueError, match="of 6 tokens, does not read the end of 'a a a a a a dog'"):
        asking.weights_of(net, NAMES, ["a a a a a a {}"])
    with pytest.raises(ValueError, match="batch is 200, allowed are 1 to half of the 240 training images"):
        search(net, NAMES, features, labels, batch=200)
    with pytest.raises(TypeError, match="tiny offers no token embeddings"):
        search(tiny_model(), NAMES, features, labels, batch=60)
    with pytest.raises(
        ValueError, match="Unknown prompt set 'eighty template': nearest known names are eighty templates"
    ):
        prompt_set("eighty template")
    study = SimpleNamespace(parameters={"dataset": "x", "split": "train", "seed": 0}, names=NAMES)
    with pytest.raises(ValueError, match="training is 'x', which is the test set"):
        asking.training_pictures(study, 4, "x")


def test_without_the_training_images_nothing_is_searched_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    (tmp_path / "imagenet" / "val" / "n01440764").mkdir(parents=True)  # what the instructions to get it leave
    study = SimpleNamespace(parameters={"dataset": "imagenet", "split": "validation", "seed": 0}, names=NAMES)
    assert asking.training_pictures(study, 4, "imagenet") is None
    assert "No search for words: imagenet in" in capsys.readouterr().out


def test_wordings_say_the_same_otherwise():
    words = {"dog": {"synonym": "hound"}, "box": {"synonym": "case"}}
    said = asking.wordings(["dog", "box"], words)
    assert said["plural"] == {"dog": "a photo of dogs", "box": "a photo of boxes"}
    assert said["upper case"]["dog"] == "A PHOTO OF A DOG" and said["synonym"]["box"] == "a photo of a case"
    assert "german" not in said and sorted(said["misspelling"]["dog"]) == sorted("a photo of a dog")
    assert asking.misspelt("mushroom")[0] == "m" and asking.misspelt("mushroom") != "mushroom"
    assert len(prompt_set("seven templates")) == 7 and len(prompt_set("eighty templates")) == 80


def answers(right: dict[tuple, list[int]], **columns) -> pd.DataFrame:
    """Rows of one model and label 0 by prompt set and measurement."""
    parts = []
    for (prompts, measurement), values in right.items():
        n = len(values)
        part = {
            "prompts": prompts,
            "measurement": measurement,
            "sample_id": [f"s{i}" for i in range(n)],
            "right": values,
        }
        parts.append(pd.DataFrame(part).assign(label=0, brier=1 - np.array(values, float), auroc=np.nan, **columns))
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(model="m", alone=rows.right.astype(bool), prediction=1 - rows.right)


def test_sets_are_compared_picture_by_picture_and_corrected_together():
    rows = answers(
        {("plain prompt", "clean"): [1] * 30 + [0] * 10, ("x", "clean"): [1] * 40, ("y", "clean"): [1] * 30 + [0] * 10}
    )
    table = asking.compared(rows).set_index(["prompts", "quantity"])
    assert table.value["x", "accuracy"] == 0.25 and table.value["x", "Brier score"] == -0.25
    assert table.p["x", "accuracy"] == 2**-9 and table.p_holm["x", "accuracy"] == pytest.approx(4 * 2**-9)
    assert table.low["y", "accuracy"] < 0 < table.high["y", "accuracy"]
    assert sorted(table.verdict) == ["better", "better", "undecided", "undecided"]
    said = asking.in_words(table.reset_index(), "m")
    assert "“x” is better in accuracy (clean), Brier score (clean)" in said and "not told from it: y" in said


def test_an_attack_carries_over_where_another_set_errs_on_what_it_broke():
    seen = {("plain prompt", "clean"): [1, 1, 1, 0], ("x", "clean"): [1, 1, 0, 1]}
    seen |= {("plain prompt", asking.CARRIED): [0, 0, 0, 0], ("x", asking.CARRIED): [0, 1, 0, 0]}
    table = asking.carried_over(answers(seen))  # the third was wrong for x, the fourth for the plain prompt before
    assert table.sample_id.tolist() == ["s0", "s1"] and table.broken.tolist() == [True, False]
    shares = scores.estimates(table, ["model", "prompts"], scores.share_of("broken"))
    said = asking.carried_in_words(shares, "m")
    assert "whether more than half are broken is not decided for x (Holm-corrected); least are for “x”, 50.0 %" in said
    assert "broke no picture" in asking.carried_in_words(table[:0], "m")


def test_every_set_is_attacked_along_its_own_gradient_and_told_from_foreign_pictures():
    net, images = tiny_model(), tiny_images(12)
    kept = {"parameters": {}, "images": images, "names": images.class_names, "keep_rows": lambda rows: rows}

    def measured(conditions, *, images, keep):
        head = Head(asking.weights_of(net, images.class_names, ["{}"]), images.class_names)
        return measure(net, images, head, conditions(net)).assign(model="m")

    study = SimpleNamespace(**kept, measure=measured)
    sets = {"plain prompt": ("{}",), "x": ("a {}",)}
    made = {"seed": 0, "attacked_images": 12, "corruption_images": 6, "radius": 64, "attack_steps": 5, "shifts": []}
    study.parameters |= made | {"split": "validation", "limit": 0, "outside": [], "outside_images": 5}
    shown = asking.pictures(study, [ORIGINAL], sets)
    shown["outside:noise"] = images.subset(5, 1), [Condition("noise", 1, noisy, draws=1)]
    rows = asking.asked(study, sets, shown)
    hit = rows.groupby(["prompts", "measurement"]).right.mean().unstack()
    assert (hit[asking.OWN] < hit["clean"]).all()
    assert hit[asking.OWN]["plain prompt"] == hit[asking.CARRIED]["plain prompt"]
    assert hit[asking.OWN]["x"] <= hit[asking.CARRIED]["x"]
    told = rows[rows.measurement == "noise"]
    assert told.groupby("prompts").auroc.mean().between(0, 1).all() and told.right.isna().all()
    table = asking.compared(rows).set_index(["measurement", "quantity"])
    assert {("noise", "AUROC"), (asking.OWN, "accuracy"), (asking.CARRIED, "Brier score")} <= set(table.index)


def test_the_worst_harmless_change_is_measured_on_other_scenes_than_it_was_chosen_on():
    rng = np.random.default_rng(0)
    noisy = {(name, "clean"): rng.integers(0, 2, 400).tolist() for name in ("plain prompt", "plural", "full stop")}
    table = asking.worst_harmless(answers(noisy), ["dog"])
    assert (
        table.verdict.tolist() == ["undecided"] and 150 < table.n[0] < 250
    )  # the worst of noise costs nothing elsewhere
    harmful = noisy | {("plural", "clean"): [0] * 400}
    table = asking.worst_harmless(answers(harmful), ["dog"])
    assert table.verdict.tolist() == ["less"] and table["class"].tolist() == ["dog"] and table.change[0] == "plural"


def test_one_pass_answers_for_every_head():
    net, images = tiny_model(), tiny_images(6)
    heads = {p: Head(net.classifier(images.class_names, PROMPT_SETS[p]), images.class_names) for p in PROMPT_SETS}
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    batch = SimpleNamespace(labels=torch.arange(6) % 3, net=net)
    facts = asking.Asked(heads).facts(batch, SimpleNamespace(features=features))
    for name, head in heads.items():
        logits = head.scores(net, features)
        assert (facts[f"{name}|prediction"] == logits.argmax(1).numpy()).all()
    first = next(iter(heads))
    assert (facts[f"{first}|alone"] == (facts[f"{first}|prediction"] == np.arange(6) % 3)).all()
