"""Pixels kept between chapters: read instead of decoded, whole or not at all, of the right picture."""

import io
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, functional as TF

from zsr_utils.datasets import Dataset, Sample, _pixels
from zsr_utils.models import Preprocess


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    return tmp_path


def to_pixels(image):
    return TF.to_tensor(image.resize((8, 8)))


def preprocess(**settings):
    return Preprocess(to_pixels, 8, settings or {"resize": 8})


class Counted:
    """Noise pictures that count how often they are opened; the first `broken` cannot be."""

    def __init__(self, n=40, broken=0):
        self.opened = []
        pictures = np.random.default_rng(0).integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)

        def sample(i):
            def open_():
                self.opened.append(i)
                return Image.open(io.BytesIO(b"")) if i < broken else Image.fromarray(pictures[i])

            return Sample(f"s{i:02d}", i % 4, open_)

        self.dataset = Dataset("counted", ("a", "b", "c", "d"), [sample(i) for i in range(n)], content="counted")


def all_of(dataset, transform, **options):
    found = list(dataset.batches(transform, 7, **options))
    return [i for ids, _, _ in found for i in ids], torch.cat([p for _, p, _ in found if len(p)])


def test_a_second_pass_decodes_nothing_and_sees_the_same(cache):
    counted = Counted()
    ids, first = all_of(counted.dataset, preprocess())
    assert counted.opened == list(range(40))
    again, second = all_of(counted.dataset, preprocess())
    assert len(counted.opened) == 40
    assert ids == again and torch.equal(first, second)
    assert torch.equal(counted.dataset.pixels(["s30", "s02"], preprocess()), first[[30, 2]])
    assert len(counted.opened) == 40
    assert (cache / "pixels").is_dir()


def test_workers_fill_the_same_store():
    counted = Counted()
    _, first = all_of(counted.dataset, preprocess(), workers=2)
    _, second = all_of(counted.dataset, preprocess())
    assert counted.opened == [] and torch.equal(first, second)  # opened in other processes, and kept here


def test_a_subset_fills_its_own_part_of_the_whole():
    counted = Counted()
    few = counted.dataset.subset(10, seed=1)
    ids, pixels = all_of(few, preprocess())
    assert len(counted.opened) == 10
    fewer = few.only(ids[3:5])
    assert torch.equal(fewer.pixels(ids[4:5], preprocess())[0], pixels[4])
    assert len(counted.opened) == 10
    whole_ids, whole = all_of(counted.dataset, preprocess())
    assert sorted(counted.opened) == list(range(40))
    assert torch.equal(torch.stack([whole[whole_ids.index(i)] for i in ids]), pixels)


def test_other_settings_other_size_and_other_data_share_nothing():
    counted = Counted()
    all_of(counted.dataset, preprocess())
    all_of(counted.dataset, preprocess(resize=9))
    assert len(counted.opened) == 80
    sixteen = Preprocess(lambda image: TF.to_tensor(image.resize((16, 16))), 16, {"resize": 8})
    assert all_of(counted.dataset, sixteen)[1].shape[-1] == 16
    other = Counted()
    all_of(replace(other.dataset, content="other files"), preprocess())
    assert len(other.opened) == 40


def test_unreadable_pictures_are_looked_at_again_and_named_again():
    counted = Counted(n=200, broken=1)
    for _ in range(2):
        counted.dataset.unreadable.clear()
        ids, _ = all_of(counted.dataset, preprocess())
        assert len(ids) == 199 and counted.dataset.unreadable == {"s00": "not an image"}
    assert counted.opened.count(0) == 2 and counted.opened.count(1) == 1


def test_pixels_between_grey_levels_are_not_kept(cache):
    halved = Preprocess(lambda image: to_pixels(image) / 3, 8, {"resize": 8})
    counted = Counted()
    _, first = all_of(counted.dataset, halved)
    _, second = all_of(counted.dataset, halved)
    assert len(counted.opened) == 80 and torch.equal(first, second)


def test_a_transform_without_settings_and_a_switch_keep_nothing(cache, monkeypatch):
    all_of(Counted().dataset, Preprocess(to_pixels, 8, {}))
    all_of(Counted().dataset, to_pixels)
    monkeypatch.setenv("ZSR_PIXELS", "0")
    all_of(Counted().dataset, preprocess())
    assert not (cache / "pixels").exists()


def test_a_store_that_cannot_be_used_gets_one_sentence_with_the_ways_out(cache):
    all_of(Counted().dataset, preprocess())
    file = next(path for path in (cache / "pixels").iterdir() if not path.name.endswith("-journal"))
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(OSError, match=r"cannot be kept in '.*' \(file is not a database\): make room .* ZSR_PIXELS=0"):
        all_of(Counted().dataset, preprocess())


@pytest.mark.slow
def test_a_killed_run_leaves_whole_pictures_only():
    child = os.fork()
    if not child:
        store, mark = _pixels.PixelStore(preprocess()), 0
        while True:
            store.write(mark.to_bytes(16), torch.full((3, 8, 8), mark % 256, dtype=torch.uint8))
            mark += 1
    time.sleep(0.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    store = _pixels.PixelStore(preprocess())
    there = next(mark for mark in range(10**9) if not store.holds(mark.to_bytes(16)))
    assert there > 1 and all((store.read(m.to_bytes(16)) == m % 256).all() for m in range(there))


def test_the_key_does_not_depend_on_where_a_function_lies():
    """A function in a transform prints with its address, which must not count."""

    def transform():
        return Compose([lambda image: image.convert("RGB"), TF.to_tensor])

    first, second = transform(), transform()
    assert repr(first) != repr(second)
    keys = [Preprocess(each, 224, {"size": 224}).key for each in (first, second, to_pixels)]
    assert keys[0] == keys[1] != keys[2]
