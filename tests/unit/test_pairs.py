"""The pairs that several chapters share."""

import pandas as pd
import pytest
import torch
from tiny import tiny_images, tiny_model

from zsr_utils.conditions import alignment
from zsr_utils.experiments import pairs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))


def made(**options):
    return pairs.aligned_pairs(tiny_model(), tiny_images(), ["a {}"], **({"per_class": 4, "max_steps": 50} | options))


def test_sources_targets_and_rows_belong_together():
    net, found = tiny_model(), made()
    images = tiny_images()
    assert len(found.table) == 3 * 4 * 2 and len(found.rows) == 25
    label = {s.sample_id: s.label for s in images.samples}
    for i, row in enumerate(found.table.itertuples()):
        assert label[row.sample_id] == row.label != row.target_label == label[row.target_id]
        assert torch.equal(found.sources[i], net.from_pil(images.image(row.sample_id)))
        target = net.encode_image(net.from_pil(images.image(row.target_id))[None])[0]
        torch.testing.assert_close(found.targets[i], target)
    scored = found.score(net)
    assert scored.sample_id.tolist() == found.table.sample_id.tolist() and "ssim" in scored
    assert torch.equal(found.aligned, alignment.saved_as_png(found.found.pixels))


def test_a_part_of_the_pairs_is_drawn_from_all_of_them():
    everything, few = made().table, made(number=5).table
    assert len(few) == 5 and len(everything.merge(few)) == 5
    pd.testing.assert_frame_equal(made(number=9).table.head(5), few)
    single = made(one_a_source=True).table
    assert single.head(3).index.isin(made(number=5).table.index).all()
    assert single.sample_id.is_unique and len(single) == 12
    assert len(made(number=100).table) == len(everything)


def test_a_second_call_takes_a_part_of_the_pairs_from_the_cache(monkeypatch):
    whole = made()
    monkeypatch.setattr(alignment._steps, "look", None)  # any step would fail
    part = made(number=7)
    rows = whole.table.reset_index(drop=True).merge(part.table.reset_index(names="at"), how="inner")
    assert len(rows) == 7 and part.found.reached.tolist() == whole.found.reached[part.table.index.to_numpy()].tolist()


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="number is 0, allowed is 1 or more"):
        made(number=0)
