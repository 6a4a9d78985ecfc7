"""The cache folder: where it is, and what is said when it cannot be used."""

import os

import pytest
from tiny import tiny_images, tiny_model

from zsr_utils._cache import cache_folder
from zsr_utils.measure import embed


def test_it_is_made_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "new" / "cache"))
    assert cache_folder() == tmp_path / "new" / "cache" and cache_folder().is_dir()


def test_a_folder_that_cannot_be_made_gets_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=r"The cache folder '.*cache' cannot be used \(Not a directory\): set ZSR_CACHE"):
        embed(tiny_model(), tiny_images())


def test_a_read_only_folder_gets_one_sentence_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    net = tiny_model()
    net.net.encode_image = lambda x: pytest.fail("computed in vain")
    with pytest.raises(OSError, match=r"cannot be used \(it is read-only\): set ZSR_CACHE to another folder\."):
        embed(net, tiny_images())
    assert not list(tmp_path.iterdir())
