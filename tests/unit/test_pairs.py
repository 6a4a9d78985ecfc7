"""The pairs that several chapters share, and what is particular to the chapter that aligns them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_images, tiny_model

from zsr_utils.conditions import Head, Settings, _steps
from zsr_utils.conditions.alignment import Aligned, saved_as_png
from zsr_utils.experiments import embedding_alignment, jacobian_spectra, pairs
from zsr_utils.measure import Embedded, measure


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))


def made(**options):
    settings = Settings(momentum=0.3, max_steps=50)
    return pairs.aligned_pairs(tiny_model(), tiny_images(), settings, **({"per_class": 4} | options))


def head(net):
    names = ("a", "bb", "ccc")
    return Head(net.classifier(names, ["a {}"]), names)


def test_pairs_are_ordered_and_never_within_a_class():
    embedded = Embedded(np.array([f"s{i}" for i in range(30)]), np.repeat([0, 1, 2], 10), np.zeros((30, 2)))
    table = pairs.make_pairs(embedded, per_class=4, seed=1)
    assert len(table) == 3 * 4 * 2 and (table.label != table.target_label).all()
    label = pd.Series(embedded.labels, embedded.sample_ids)
    assert (label[table.sample_id].to_numpy() == table.label).all()
    assert (label[table.target_id].to_numpy() == table.target_label).all()
    assert table.groupby("label").sample_id.nunique().tolist() == [4, 4, 4]
    assert table.equals(pairs.make_pairs(embedded, per_class=4, seed=1))
    assert pairs.make_pairs(embedded, per_class=99).sample_id.nunique() == len(embedded.sample_ids)
    with pytest.raises(ValueError, match="per_class is 0, allowed is 1 or more"):
        pairs.make_pairs(embedded, per_class=0)
    with pytest.raises(ValueError, match="1 class given"):
        pairs.make_pairs(Embedded(embedded.sample_ids[:9], embedded.labels[:9], embedded.features[:9]))


def test_sources_targets_and_rows_belong_together():
    net, found, images = tiny_model(), made(), tiny_images()
    label = {s.sample_id: s.label for s in images.samples}
    for i, row in enumerate(found.table.itertuples()):
        assert label[row.sample_id] == row.label != row.target_label == label[row.target_id]
        assert torch.equal(found.sources[i], net.from_pil(images.image(row.sample_id)))
        target = net.encode_image(net.from_pil(images.image(row.target_id))[None])[0]
        torch.testing.assert_close(found.targets[i], target)
    rows = measure(net, images, head(net), [found.condition()])
    both = rows.merge(found.table.assign(k=range(len(found.table))), on=["sample_id", "target_id", "target_label"])
    assert len(both) == len(rows) == 3 * 4 * 2
    assert both.steps.tolist() == found.aligned.steps[both.k.tolist()].tolist()
    change = 255 * (found.pixels - found.sources)[both.k.tolist()].flatten(1).double()
    assert np.allclose(both.rms, change.square().mean(1).sqrt()) and np.allclose(both.linf, change.abs().amax(1))


def test_rows_are_of_the_saved_image_and_closeness_is_in_grey_levels():
    net, images = tiny_model(), tiny_images()
    table = pd.DataFrame({"sample_id": ["s001"], "label": [1], "target_id": ["s002"], "target_label": [2]})
    source = images.pixels(["s001"], net.from_pil)
    aligned = Aligned(source + 0.4 / 255, torch.tensor([3]), torch.tensor([True]))
    saved, kept = (
        measure(net, images, head(net), [pairs.moved("c", 2, table, aligned, torch.ones(1, 4), eight_bit=eight_bit)])
        for eight_bit in (True, False)
    )
    assert saved.rms[0] == saved.linf[0] == saved.drift[0] == 0 and saved.steps[0] == 3 and saved.reached[0]
    assert kept.rms[0] == pytest.approx(0.4, rel=1e-3)
    assert kept.psnr[0] == pytest.approx(20 * np.log10(255 / 0.4), rel=1e-3)
    probability = head(net).see(net, aligned.pixels).logits.softmax(1)[0, 2].item()
    assert kept.target_probability[0] == pytest.approx(probability)
    with pytest.raises(ValueError, match="'s001' is of its own class"):
        pairs.moved("c", 1, table.assign(target_label=1), aligned, torch.ones(1, 4))


def test_a_part_of_the_pairs_is_drawn_from_all_of_them():
    everything, few = made(), made(number=5).table
    assert len(few) == 5 and len(everything.table.merge(few)) == 5
    for larger in (everything.table, made(number=9).table):
        pd.testing.assert_frame_equal(larger.head(5), few)
    assert few.sample_id.nunique() > 3  # of many sources: in the order in which pairs are made, five are of three
    single = made(one_a_source=True).table
    assert single.head(3).index.isin(made(number=5).table.index).all()
    assert single.sample_id.is_unique and len(single) == 12
    assert len(made(number=100).table) == len(everything.table)
    source = few.sample_id.iloc[0]
    assert made(of=source).table.target_label.nunique() == 2 and set(made(of=source).table.sample_id) == {source}
    part = everything.head(1, of=[source])
    assert part.table.sample_id.tolist() == [source] and len(part.sources) == len(part.aligned.steps) == 1
    assert torch.equal(part.sources[0], everything.sources[(everything.table.sample_id == source).argmax()])


def test_a_second_call_takes_a_part_of_the_pairs_from_the_cache(monkeypatch):
    whole = made()
    monkeypatch.setattr(_steps, "gradient_step", None)  # any step would fail
    part = made(number=7)
    assert part.aligned.reached.tolist() == whole.aligned.reached[part.table.index.tolist()].tolist()


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="number is 0, allowed is 1 or more"):
        made(number=0)
    rows = pd.DataFrame({"sample_id": ["a"], "label": [0], "clean_prediction": [1]})
    with pytest.raises(ValueError, match="None of 1 sources is named rightly"):
        pairs.counted(rows)


def test_balls_of_growing_radius_keep_what_succeeded():
    net, found = tiny_model(), made()
    rows = measure(net, tiny_images(), head(net), pairs.in_balls(net, head(net), found, [0, 8, 64], max_steps=4))
    assert rows.groupby("severity").linf.max().round(2).le([0, 8, 64]).all()
    assert (rows.severity.unique() == [0, 8, 64]).all() and (rows[rows.severity == 0].drift == 0).all()
    shares = rows.groupby("severity").reached.mean().tolist()
    assert shares == sorted(shares)
    assert (rows.prediction == rows.target_label)[rows.reached].all()


def test_what_the_pairs_are_compared_with():
    net, images, found = tiny_model(), tiny_images(), made()
    made_of = embedding_alignment.ways(net, head(net), images, found, cosine=0.96, max_steps=20, batch_size=64, seed=0)
    assert set(made_of) == {"aligned", "random_direction", "blended", "named_as_target"}
    rows = measure(net, images, head(net), [found.condition(way, end) for way, end in made_of.items()])
    of = dict(list(rows.groupby("condition")))
    assert np.allclose(of["random_direction"].rms, of["aligned"].rms, rtol=0.02)
    assert (of["blended"].reached & (of["blended"].target_cosine > 0.96)).all()
    named = of["named_as_target"]
    assert (named.prediction == named.target_label)[named.reached].all() and named.reached.any()
    pair = embedding_alignment.one_pair(images, net, found, made_of, rows)
    assert torch.equal(pair[0][1], saved_as_png(made_of["aligned"].pixels[0])) and len(pair[0]) == len(pair[1]) == 6


def test_a_change_that_did_not_reach_its_goal_has_no_cost():
    ids, reached = [f"s{i}" for i in range(8)], np.array([True] * 7 + [False])
    rows = pd.DataFrame({"sample_id": ids, "model": "m", "condition": "aligned", "rms": [3.0] * 7 + [0.0]})
    rows = rows.assign(**dict.fromkeys(embedding_alignment.MEASURES, rows.rms), reached=reached)
    still = rows.assign(condition="blended", reached=False)
    found = {}

    def estimate(rows, name, statistic, by):
        return found.setdefault(name, {k: statistic(part) for k, part in rows.groupby("condition")})

    study = SimpleNamespace(name="m", estimate=estimate, number=found.__setitem__)
    sizes = embedding_alignment.costs(study, pd.concat([rows, still], ignore_index=True))
    assert (sizes["aligned"].value, sizes["aligned"].n) == (3, 7) and f"{sizes['blended']}" == "not measured"
    assert found["closeness/blended_beyond_aligned"].n == 0


@pytest.mark.parametrize(
    ("values", "half", "where"),
    [
        ([1, 0.4, 0.1], 0.05, "falls below one half at 4"),
        ([1, 0.4, 0.1], 0.2, "falls below one half at 8"),  # at 4 it is not decided
        ([1, 0.9, 0.6], 0.05, "stays above"),
        ([1, 0.9, 0.4], 0.2, "is not decided"),
    ],
)
def test_where_half_of_the_names_are_lost_is_decided_by_intervals(values, half, where):
    table = pd.DataFrame({"severity": [2.0, 4.0, 8.0], "value": values, "n": 9, "unit": "fraction", "interval": ""})
    table = table.assign(low=table.value - half, high=table.value + half)
    words = embedding_alignment.in_bounds(table, table)
    assert words["where"].startswith(where) and words["last"].value == values[-1] and words["budget"] == 8


def test_images_that_no_search_could_name_as_the_target_are_not_just_named():
    net, found, counts = tiny_model(), made(), []
    target = dict(zip(pairs.pair_names(found.table), found.table.target_label))
    for steps in (1, 20):
        given = {"batch_size": 8, "momentum": 0.3, "max_steps": steps}
        study = SimpleNamespace(net=net, name="tiny", heads={"tiny": head(net)}, parameters=given)
        shown = jacobian_spectra.tested(study, found)
        assert torch.equal(shown["original"].pixels, found.sources)
        moved = shown["just named"]
        named = head(net).scores(net, net.encode_image(moved.pixels)).argmax(1)
        assert named.tolist() == [target[name] for name in moved.sample_ids]
        counts.append(len(moved))
    assert counts[0] < counts[1] <= len(found.table)
