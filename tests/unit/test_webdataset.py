"""Webdatasets of CLIP_benchmark against the same pictures as other kinds of data set."""

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsr_utils.datasets import load_dataset
from zsr_utils.datasets._imagenet import IMAGENETTE_CLASSES


PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "images" / "imagenet-sample"


def encoded(seed: int, kind: str = "webp") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "webp" else {}))
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def root(tmp_path):
    """Eleven shards of two samples, whose numbers do not sort as text."""
    folder = tmp_path / "wds_things"
    for k in range(11):
        pictures = {f"s{k:04d}{i}": encoded(10 * k + i) for i in (0, 1)}
        members = {}
        for i, (key, picture) in enumerate(pictures.items()):
            members |= {f"{key}.cls": str((k + i) % 3).encode(), f"{key}.webp": picture}
        shard(folder / "test" / f"{k}.tar", members)
    (folder / "test" / "nshards.txt").write_text("11\n")
    (folder / "classnames.txt").write_text("cat\nbig dog\nzebra\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of the {c}.\n")
    return folder


def test_shards_are_read_in_the_order_of_their_numbers(root):
    dataset = load_dataset(f"wds:{root}", "test")
    assert dataset.class_names == ("cat", "big dog", "zebra") and dataset.name == "wds_things"
    assert dataset.templates == ("a photo of a {}.", "art of the {}.")
    assert [s.sample_id for s in dataset.samples] == [f"{k}/s{k:04d}{i}" for k in range(11) for i in (0, 1)]
    assert [s.label for s in dataset.samples] == [(k + i) % 3 for k in range(11) for i in (0, 1)]
    for k in (0, 2, 10):
        expected = Image.open(io.BytesIO(encoded(10 * k + 1))).convert("RGB")
        assert dataset.image(f"{k}/s{k:04d}1").tobytes() == expected.tobytes()


def test_a_folder_with_shards_is_known_as_a_webdataset(root):
    assert load_dataset(str(root)).fingerprint == load_dataset(f"wds:{root}", "test").fingerprint
    with pytest.raises(ValueError, match=r"split is 'train', allowed are 'test'\."):
        load_dataset(str(root), "train")


def test_a_data_set_of_the_hub_lies_in_the_data_folder(root, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    (tmp_path / "wds" / "clip-benchmark").mkdir(parents=True)
    root.rename(tmp_path / "wds" / "clip-benchmark" / "wds_things")
    dataset = load_dataset("wds:clip-benchmark/wds_things")
    assert dataset.name == "wds:clip-benchmark/wds_things" and len(dataset) == 22


def test_a_file_without_templates_leaves_the_plain_prompt(root):
    path = root / "zeroshot_classification_templates.txt"
    path.write_text("a photo\n")
    with pytest.raises(ValueError, match=r"has the template 'a photo', allowed is one \{c\} in each"):
        load_dataset(str(root))
    path.unlink()
    assert load_dataset(str(root)).templates == ("a photo of a {}",)


def test_a_missing_shard_is_named(root):
    (root / "test" / "3.tar").unlink()
    (root / "test" / "7.tar").unlink()
    with pytest.raises(ValueError, match=r"test' has no '3.tar': 2 of 11 shards are missing"):
        load_dataset(str(root))


def test_missing_class_names_are_named(root):
    (root / "classnames.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"wds_things' has no classnames.txt"):
        load_dataset(str(root))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.webp": encoded(0)}, "has no class for 'a'"),
        ({"a.webp": encoded(0), "a.cls": b"1", "b.cls": b"1"}, "has no picture for 'b'"),
        ({"a.webp": encoded(0), "a.b.cls": b"1"}, "has no class for 'a'"),
    ],
)
def test_a_sample_without_picture_or_class_is_named(root, members, message):
    shard(root / "test" / "0.tar", members)
    with pytest.raises(ValueError, match=f"shard '.*0.tar' {message}"):
        load_dataset(str(root))


@pytest.mark.parametrize("label", [3, -1, "²", "cat", "1_0", "", "9" * 99])
def test_a_class_without_a_name_is_refused(root, label):
    shard(root / "test" / "0.tar", {"a.webp": encoded(0), "a.cls": str(label).encode()})
    with pytest.raises(ValueError, match=f"class of 'a' in '.*0.tar' is {label}, allowed is 0 to 2"):
        load_dataset(str(root))


def test_keys_end_at_the_last_dot_and_other_files_of_a_sample_are_counted(root):
    members = {"x/a.b.webp": encoded(1), "x/a.png": encoded(2, "png"), "x/a.cls": b"2", "x/a.json": b"{}"}
    members |= {"x/a.v2.cls": b"1", "x/a.v2.webp": encoded(3), "x/b.v2.jfif": encoded(4, "jpeg"), "x/b.v2.cls": b" 0\n"}
    shard(root / "test" / "0.tar", members)
    dataset = load_dataset(str(root))
    assert [(s.sample_id, s.label) for s in dataset.samples[:3]] == [("0/x/a", 2), ("0/x/a.v2", 1), ("0/x/b.v2", 0)]
    assert dataset.samples[0].image().tobytes() == Image.open(io.BytesIO(encoded(2, "png"))).tobytes()
    assert dataset.left_out == {
        "files of type .json": (1, "0/x/a.json"), "further pictures of a sample": (1, "0/x/a.b"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cls", b"1"), ("a.webp", b""), ("a.cls", b"2")], "has two classes for 'a'"),
        ([("a.cls", b"1"), ("a.webp", b""), ("a.webp", b"")], "has two pictures for 'a'"),
        ([("a.cls", b"1"), ("a.webp", b""), ("a.png", b"")], "has two pictures for 'a'"),
        ([("a.cls", b"1"), ("a.webp", b""), ("a.x.cls", b"1")], "has no picture for 'a.x'"),
        ([("a.x.webp", b""), ("a.cls", b"1")], "has no class for 'a.x'"),
    ],
)
def test_nothing_that_is_there_twice_or_in_halves_vanishes(root, members, message):
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match=f"shard '.*0.tar' {message}\\.$"):
        load_dataset(str(root))


@pytest.mark.parametrize("text", ["999999999", "0", "-1", "²", "eleven", "11 shards", "9" * 5000, "", "1e3", "12"])
def test_a_number_of_shards_that_is_none_is_a_sentence(root, text):
    (root / "test" / "nshards.txt").write_text(text)
    with pytest.raises(ValueError, match=r"(nshards.txt' is '.*', allowed is the|shards are missing)[^\n]*\.$"):
        load_dataset(str(root))


def test_shards_beyond_the_number_are_counted(root):
    (root / "test" / "nshards.txt").write_text("9")
    dataset = load_dataset(str(root))
    assert len(dataset) == 18 and dataset.left_out == {"shards beyond the number in nshards.txt": (2, "10.tar")}


def test_class_names_of_shards_are_cleaned_and_a_blank_line_is_named(root):
    (root / "classnames.txt").write_text("\ufeffcat\n big_dog \nn02391049\n\n")
    assert load_dataset(str(root)).class_names == ("cat", "big dog", "zebra")
    (root / "classnames.txt").write_text("cat\n\nbig dog\n")
    with pytest.raises(ValueError, match=r"classnames.txt' line 2 is blank"):
        load_dataset(str(root))


def test_bytes_in_a_shard_are_what_a_data_set_is(root):
    before = load_dataset(str(root)).fingerprint
    path = root / "test" / "3.tar"
    content = bytearray(path.read_bytes())
    place = load_dataset(str(root)).samples[7].place
    content[place[1] + 30] ^= 1
    path.write_bytes(content)
    assert load_dataset(str(root)).fingerprint != before
    assert load_dataset(str(root), limit=3).fingerprint == load_dataset(str(root), limit=3).fingerprint


def test_a_shard_that_was_cut_or_compressed_is_refused(root):
    whole = (root / "test" / "0.tar").read_bytes()
    (root / "test" / "0.tar").write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"shard '.*0.tar' cannot be read: "):
        load_dataset(str(root))
    shard(root / "test" / "0.tar", {"a.webp": encoded(0), "a.cls": b"1"}, "w:gz")
    with pytest.raises(ValueError, match=r"shard '.*0.tar' cannot be read: "):
        load_dataset(str(root))


def in_all_forms(home: Path, pictures: dict[str, list[bytes]]) -> list:
    """The same encoded pictures, by WordNet id, as Imagenette, class folders, a list of labels and a webdataset."""
    members, listed, count = {}, [], 0
    for label, (wnid, several) in enumerate(pictures.items()):
        for k, picture in enumerate(several):
            for folder in (home / "imagenette2" / "val" / wnid, home / "plain" / wnid, home / "listed" / wnid):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{k}.JPEG").write_bytes(picture)
            listed.append((f"{wnid}/{k}.JPEG", label))
            members |= {f"s{count:07d}.cls": str(label).encode(), f"s{count:07d}.jpg": picture}
            count += 1
    with (home / "listed" / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *listed])
    (home / "listed" / "classes.txt").write_text("\n".join(IMAGENETTE_CLASSES.values()))
    shard(home / "shards" / "validation" / "0.tar", members)
    (home / "shards" / "classnames.txt").write_text("\n".join(IMAGENETTE_CLASSES.values()))
    return [load_dataset("imagenette"), *(load_dataset(str(home / f)) for f in ("plain", "listed", "shards"))]


def check_same(datasets: list, count: int) -> None:
    first, *others = datasets
    decoded = [(label, image.tobytes()) for _, image, label in first]
    assert len(decoded) == count
    for other in others:
        assert [(label, image.tobytes()) for _, image, label in other] == decoded
    plain, listed, shards = others
    assert [s.sample_id for s in plain.samples] == [s.sample_id for s in listed.samples]
    assert [s.sample_id for s in plain.samples] == [s.sample_id for s in first.samples]
    assert listed.class_names == shards.class_names == first.class_names
    assert len({d.fingerprint for d in (first, plain, shards)}) == 3


def test_the_same_pictures_are_the_same_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    pictures = {w: [encoded(3 * k + i, "jpeg") for i in range(3)] for k, w in enumerate(IMAGENETTE_CLASSES)}
    check_same(in_all_forms(tmp_path, pictures), 30)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="../shared/data is absent")
def test_the_same_photographs_are_the_same_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    check_same(
        in_all_forms(tmp_path, {w: [next(PHOTOGRAPHS.glob(f"{w}*")).read_bytes()] for w in IMAGENETTE_CLASSES}), 10
    )
