"""Folders as people have them: what is read, what is refused, what is said of the rest, and what makes two the same."""

import os
import random
import re
import tempfile
import unicodedata
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from tiny import tiny_model

from zsr_utils.datasets import Dataset, Sample, UnreadableImages, _digests, load_dataset
from zsr_utils.datasets._folders import EXTENSIONS
from zsr_utils.datasets._names import class_names, imagenet_classes, no_words
from zsr_utils.measure import embed


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636000000002000148afa471"
    "0000000049454e44ae426082"
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ZSR_CACHE", str(folder))
    return folder


def plant(root: Path, *paths: str) -> Path:
    """Pictures, other files (with a `!`), empty folders (with a `/` at the end) and links (`from -> to`)."""
    for path in paths:
        place = root / path.split(" -> ")[0].removesuffix("!")
        place.parent.mkdir(parents=True, exist_ok=True)
        if " -> " in path:
            place.symlink_to(path.split(" -> ")[1])
        elif path.endswith("/"):
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(b"text" if path.endswith("!") else PIXEL + path.encode())
    return root


def ids(dataset) -> list[str]:
    return [sample.sample_id for sample in dataset.samples]


def counts(dataset) -> dict[str, int]:
    return {why: count for why, (count, _) in dataset.left_out.items()}


SPELLINGS = [("Train", "Test"), ("training", "validation"), ("TRAIN", "VALID"), ("train_set", "dev"),
             ("train2017", "val2017"), ("training", "testing"), ("train", "eval")]  # fmt: skip


@pytest.mark.parametrize("beside", ["annotations/", "__MACOSX/cat/._1.png", "images/1.png", "readme.txt!"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_splits_are_known_in_every_usual_spelling_and_beside_other_folders(tmp_path, spelling, beside):
    train, held_out = spelling
    plant(tmp_path, beside, *(f"{split}/{name}/{split}.png" for split in spelling for name in ("cat", "dog")))
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("cat", "dog") and ids(dataset) == [f"{n}/{held_out}.png" for n in ("cat", "dog")]
    assert ids(load_dataset(str(tmp_path), "train"))[0] == f"cat/{train}.png"
    assert ids(load_dataset(str(tmp_path), held_out)) == ids(dataset) and sum(counts(dataset).values()) == 2


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["photos/val/cat/1.png", "photos/train/cat/1.png"], "of pictures in its folder 'photos': give '.*/photos'"),
        (["set/val/cat/1.png", "set/train/cat/1.png", "doc/a.txt!"], r"in its folder 'set': give '.*/set'"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], r"'.*/cat' has 'test', the name of a split"),
        (["things/cat/1.png", "things/dog/1.png"], r"in its folder 'things': give"),
        (["images/cat/1.png", "images/dog/1.png", "meta/a.txt!"], r"in 'images', which is no class: give '.*/images'"),
        (["images/1.png", "masks/1.png"], r"in 'images', which is no class: expected one sub-folder"),
        (["val/images/1.png", "val/boxes.txt!", "train/cat/1.png"], r"'images', which is no class: expected one sub-"),
        (["1.png", "2.png"], "holds pictures and no folders of classes: expected one sub-folder"),
        (["train/cat/1.png", "test/1.png"], "holds pictures and no folders of classes"),
        (["train/1.png", "val/1.png"], "'train', the name of a split, without folders of classes in it"),
        (["cat/1.png", "dog/1.png", "test/1.png"], "'test', the name of a split, beside folders such as 'cat'"),
        (["train/cat/1.png", "train/dog/1.png", "bus/1.png"], "'train', the name of a split, beside .* 'bus'"),
        (["val/cat/1.png", "valid/cat/1.png"], r"split is 'validation', which may be 'val' or 'valid' in"),
        (["cat/1.png", "dog/"], r"folder 'dog' in .* has no pictures \(it is empty\): remove it, or name the classes"),
        (["cat/1.png", "dog/a.txt!", "dog/b.txt!"], r"'dog' .* has no pictures \(files of type .txt: 2\)"),
        (["cat/1.png", "dog/1.png -> /none/1.png"], r"'dog' .* has no pictures \(links to nothing: 1\)"),
        (["cat/1.png", "dog -> /none"], r"'dog' .* has no pictures \(links to nothing: 1\)"),
        (["cat/1.png", "cat/again -> ."], r"link '.*/again' leads to a folder that holds it"),
        (["cat/1.png", "cat/up -> .."], r"link '.*/cat/up' leads to a folder that holds it"),
        (["cat/a -> b", "cat/b -> a", "cat/1.txt!"], r"\(files of type .txt: 1, links to nothing: 2\)"),
        (["big_dog/1.png", "Big dog/1.png"], "names the class 'big dog' twice: as 'Big dog' and as 'big_dog'"),
        (["cat/1.png", "_/1.png"], "has the class '_', allowed are names with letters or digits"),
        (["empty/"], "has no pictures"),
        ([".hidden/1.png"], "holds no images: expected one sub-folder"),
    ],
)  # fmt: skip
def test_what_is_no_known_layout_is_refused_in_a_sentence(tmp_path, paths, message):
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(str(plant(tmp_path, *paths)))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_a_railway_train_is_a_class_and_folders_in_classes_are_of_them(tmp_path):
    plant(tmp_path, "bus/1.png", "train/1.png", "truck/1.png", "bus/old/1.png")
    assert load_dataset(str(tmp_path)).class_names == ("bus", "train", "truck")
    assert ids(load_dataset(str(tmp_path))) == ["bus/1.png", "bus/old/1.png", "train/1.png", "truck/1.png"]


def test_what_is_left_out_is_counted_by_reason_and_said(tmp_path):
    dataset = load_dataset(str(plant(
        tmp_path, "cat/1.jfif", "cat/2.PNG", "cat/.DS_Store", "cat/__MACOSX/._1.png", "cat/a.heic", "cat/b.heic",
        "cat/gone.png -> /none", "dog/1.png", "3.png", "notes.txt!", ".git/", "annotations/a.xml!", "kitten -> cat",
    )))  # fmt: skip
    assert ids(dataset) == ["cat/1.jfif", "cat/2.PNG", "dog/1.png", "kitten/1.jfif", "kitten/2.PNG"]
    assert counts(dataset) == {
        "hidden files or folders": 5, "files of type .heic": 4, "links to nothing": 2, "files of type .txt": 1,
        "pictures outside of a class folder": 1, "folders that are no classes": 1,
    }  # fmt: skip
    left, links = dataset.notes
    assert left.startswith("Left out: ") and "files of type .heic: 4, such as 'cat/a.heic'" in left
    assert links == "links to folders, followed: 1" and dataset.subset(2).notes == dataset.notes
    assert {".jfif", ".webp", ".tif", ".mpo"} < EXTENSIONS and not EXTENSIONS & {".txt", ".pdf", ".eps", ".mp4"}


def test_an_empty_class_is_there_if_it_is_asked_for(tmp_path):
    plant(tmp_path, "cat/1.png", "dog/", "eel/1.png")
    dataset = load_dataset(str(tmp_path), classes=["cat", "dog"])
    assert dataset.class_names == ("cat", "dog") and ids(dataset) == ["cat/1.png"]
    (tmp_path / "classes.txt").write_text("dog\ncat\neel")
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("dog", "cat", "eel")
    assert dataset.left_out == {"classes without pictures, which stay possible answers": (1, "dog")}


def test_tiny_imagenet_is_read_by_its_annotations(tmp_path):
    plant(tmp_path, "val/images/v_0.JPEG", "val/images/v_1.JPEG", "val/images/v_2.JPEG", "test/images/t.JPEG",
          "train/n01443537/images/a.JPEG", "train/n02084071/images/b.JPEG", "wnids.txt!")  # fmt: skip
    (tmp_path / "val" / "val_annotations.txt").write_text("v_0.JPEG\tn02084071\t0\t0\nv_1.JPEG\tn01443537\t0\t0\n")
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("goldfish", "dog") == load_dataset(str(tmp_path), "train").class_names
    assert [(s.sample_id, s.label) for s in dataset.samples] == [("images/v_0.JPEG", 1), ("images/v_1.JPEG", 0)]
    assert counts(dataset)["pictures that val_annotations.txt does not list"] == 1


def copies(folder: Path, *names: str) -> list[Path]:
    for name in names:
        for k in range(3):
            (folder / name / "thing").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(folder / name / "thing" / f"{k}.bmp")
    return [folder / name for name in names]


def overwrite(path: Path) -> None:
    """Other pixels in a file as long, with the times that it had."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(-60, os.SEEK_END)
        file.write(bytes(range(100, 160)))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("remembered", [False, True])
def test_the_same_pictures_are_one_data_set_wherever_they_lie_and_others_never(tmp_path, monkeypatch, remembered):
    if remembered:  # as if all files were old
        monkeypatch.setattr(_digests, "FRESH", -1)
    here, there = copies(tmp_path, "here", "there")
    first = load_dataset(str(here)).fingerprint
    assert load_dataset(str(there)).fingerprint == first == load_dataset(str(here)).fingerprint
    net = tiny_model()
    seen = embed(net, load_dataset(str(here))).features
    for folder in (there, here):
        overwrite(folder / "thing" / "1.bmp")
        changed = load_dataset(str(folder))
        assert changed.fingerprint != first
        features = embed(net, changed).features
        same = [bool((a == b).all()) for a, b in zip(seen, features)]
        assert same == [True, False, True]


def test_pictures_that_lie_in_no_file_are_known_by_their_pixels():
    def of(*greys):
        return Dataset(
            "own", ("a",), [Sample(f"{k}", 0, partial(Image.new, "L", (4, 4), g)) for k, g in enumerate(greys)]
        )

    assert of(1, 2).fingerprint == of(1, 2).fingerprint != of(1, 3).fingerprint
    assert len({dataset.fingerprint for dataset in (of(1, 2), of(2, 1), of(1, 2).subset(1), of(1))}) == 3


def test_bytes_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_digests, "FRESH", -1)
    (folder,) = copies(tmp_path, "set")
    read = []
    monkeypatch.setattr(_digests, "_read", lambda place, read_it=_digests._read: read.append(place) or read_it(place))
    few = load_dataset(str(folder), limit=2)
    assert few.fingerprint == load_dataset(str(folder), limit=2).fingerprint and len(read) == 2
    assert load_dataset(str(folder)).fingerprint and load_dataset(str(folder)).fingerprint and len(read) == 3


def test_reading_otherwise_is_another_data_set(tmp_path):
    plant(tmp_path, "val/cat/1.png", "val/dog/1.png", "test/cat/1.png", "test/dog/1.png", "test/dog/2.png")
    read = [load_dataset(str(tmp_path), **how) for how in ({}, {"split": "test"}, {"classes": ["dog"]}, {"limit": 1})]
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    read.append(load_dataset(str(tmp_path)))
    assert len({dataset.fingerprint for dataset in read}) == 5


def test_a_picture_that_was_mended_is_read(tmp_path):
    (folder,) = copies(tmp_path, "set")
    whole = (folder / "thing" / "0.bmp").read_bytes()
    (folder / "thing" / "0.bmp").write_bytes(bytes(len(whole)))
    with pytest.raises(UnreadableImages):
        embed(tiny_model(), load_dataset(str(folder)))
    (folder / "thing" / "0.bmp").write_bytes(whole)
    assert len(embed(tiny_model(), load_dataset(str(folder))).labels) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_are_read_in_every_encoding_that_says_what_it_is(tmp_path, encoding):
    plant(tmp_path, "a/é.png", "a/2.png")
    (tmp_path / "labels.csv").write_text("file,label\r\na/é.png,café\r\n a/2.png , mug \r\n\r\n", encoding)
    (tmp_path / "classes.txt").write_text("  mug\ncafé\n\n", encoding)
    (tmp_path / "list").write_text("a/é.png\n", encoding)
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("mug", "café") and [s.label for s in dataset.samples] == [1, 0]
    assert ids(load_dataset(str(tmp_path), ids=tmp_path / "list")) == ["a/é.png"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["labels.csv", "classes.txt", "list"])
def test_a_list_in_another_encoding_is_named_with_its_line(tmp_path, encoding, name):
    plant(tmp_path, "a/1.png")
    text = {"labels.csv": "file,label\na/1.png,café\n", "classes.txt": "a\ncafé\n", "list": "a/1.png\ncafé\n"}[name]
    (tmp_path / name).write_text(text, encoding)
    line = 2 if encoding == "latin-1" else 1
    with pytest.raises(ValueError, match=rf"{name}' is not in UTF-8 \(line {line}, after .*\): save it so\."):
        load_dataset(str(tmp_path), ids=tmp_path / name if name == "list" else None)


def test_a_blank_line_between_class_names_is_named(tmp_path):
    plant(tmp_path, "a/1.png")
    (tmp_path / "classes.txt").write_text("a\n \nb\n")
    with pytest.raises(ValueError, match=r"classes.txt' line 2 is blank, allowed is a class name a line\."):
        load_dataset(str(tmp_path))


def test_a_file_name_that_is_not_utf_8_is_read_and_a_class_of_such_a_name_is_refused(tmp_path):
    plant(tmp_path, "cat/1.png")
    os.rename(os.fsencode(tmp_path / "cat" / "1.png"), os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")
    dataset = load_dataset(str(tmp_path))
    assert ids(dataset) == [r"cat/caf\xe9.png"] and len(list(dataset)) == len(dataset.fingerprint) // 64
    os.rename(tmp_path / "cat", os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"has the class 'caf\\udce9', allowed are names .* in UTF-8\."):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (["  race_car\t", "\ufeffmug", "a\u200bb\n", "cafe\u0301"], ["race car", "mug", "a b", "café"]),
        (["n02958343", "n03001627", "n99999999"], ["car", "chair", "n99999999"]),
        (["n02012849", "n03126707"], ["crane bird", "construction crane"]),
        (["n00433458", "n00483508"], None),
    ],
)
def test_class_names_are_cleaned_and_wordnet_ids_translated(raw, names):
    found = class_names(raw, "list")
    assert found == names if names else len(set(found)) == 2


@pytest.mark.parametrize("raw", [["cat", ""], ["\ufeff"], ["a_b", "a  b"], ["Mug", "mug"], ["é", "e\u0301"]])
def test_names_that_are_none_or_two_that_are_one_are_refused(raw):
    with pytest.raises(ValueError, match=r"^'list' (has the class|names the class) '.*\.$"):
        class_names(raw, "list")


@pytest.mark.parametrize("name", ["1", "007", "n99999999", "c0", "class 7", "class_7", "a3f9bc12", "---3"])
def test_names_that_are_no_words_are_told(name):
    said = no_words(["cat", *class_names([name], "list")])
    assert said.startswith("1 of 2 class names are numbers or ids and no words, such as")


@pytest.mark.parametrize("name", ["cat", "café", "猫", "Boeing 707", "great white shark", "F-16 Falcon", "ox"])
def test_words_are_words(name):
    assert not no_words(class_names([name], "list"))


def test_imagenets_own_two_names_of_two_classes_are_no_caution():
    names = list(imagenet_classes().values())
    assert len(set(names)) == 998 and not no_words(names)
    assert no_words(names[::-1]).startswith("two classes each are called")


NAMES = ["cat", "dog", "race_car", "é", "a b", "n02084071", "1", "#2", "race car", "Train", "train", "val", "test", "_",
         "images", "annotations", "__MACOSX", ".git", "labels", "data"]  # fmt: skip
ENDINGS = [".png", ".PNG", ".jpg", ".jfif", ".txt", ".xml", "", ".tar", ".cls"]


def grow(draw: random.Random, folder: Path, depth: int, names: list[str]) -> None:
    for name in draw.sample(names, draw.randint(1, 4)):
        if os.path.lexists(place := folder / name):
            continue
        kind = draw.random()
        if kind < 0.04:
            place.symlink_to(draw.choice(["..", ".", "/none", *draw.sample(names, 2)]))
            continue
        place.mkdir()
        for k in range(draw.choice([0, 1, 1, 2, 2, 2, 2])):
            file = (
                place
                / f"{draw.choice(['', '.', '_'])}{k}{draw.choice(ENDINGS if draw.random() < 0.3 else ENDINGS[:2])}"
            )
            file.symlink_to("/none") if draw.random() < 0.05 else file.write_bytes(PIXEL)
        if depth and draw.random() < 0.5:
            grow(draw, place, depth - 1, names)
    if draw.random() < 0.04:
        lines = [draw.choice(["file,label", "cat/0.png,cat", "dog/1.png,1", "x,,", "", "é"]) for _ in range(3)]
        text = "\n".join(lines).encode(draw.choice(["utf-8", "latin-1", "utf-16"]))
        (folder / draw.choice(["labels.csv", "classes.txt"])).write_bytes(text)


def pictures(folder: Path) -> set[str]:
    """Every visible picture that can be reached, the other way round: from the files."""
    found = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [i for i in inner if not i.startswith((".", "__"))]
        found |= {f"{place}/{n}" for n in names if n[0] != "." and n.lower().endswith((".png", ".jpg", ".jfif"))}
    return {path for path in found if os.path.isfile(path)}


# the same examples in every run, however slow the machine is
STEADY = settings(
    max_examples=200, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.mark.slow
def test_any_tree_of_folders_gives_the_pictures_that_are_there_or_a_sentence():
    read = []

    @STEADY
    @given(st.randoms(use_true_random=True), st.booleans())
    def one(draw, few):
        with tempfile.TemporaryDirectory() as folder:
            grow(draw, Path(folder), 2, draw.sample(NAMES[: 8 if few else None], draw.randint(4, 8)))
            try:
                dataset = load_dataset(folder)
            except (ValueError, FileNotFoundError) as error:
                assert str(error).endswith(".") and "\n" not in str(error), error
                assert not re.search(r"Errno|codec|invalid|unpack|index out", str(error)), error
                return
            read.append(folder)
            taken = {sample.place[0] for sample in dataset.samples}
            here = Path(dataset.samples[0].place[0].removesuffix(ids(dataset)[0]))
            said = sum(count for why, (count, _) in dataset.left_out.items() if why.startswith("pictures"))
            assert taken <= pictures(here) and len(pictures(here)) == len(taken) + said, dataset.left_out
            assert all(map(str.isprintable, dataset.class_names)) and len(set(ids(dataset))) == len(dataset)
            assert re.fullmatch("[0-9a-f]{64}", dataset.fingerprint)

    one()
    assert len(read) > 40


SIGNS = st.text("ab_ \t\n\ufeff\u200b\x00é\u0301猫<$#n01440764\ud83d", max_size=6)


@STEADY
@given(st.lists(st.one_of(SIGNS, st.text(max_size=6)), min_size=3, max_size=3))
def test_any_names_become_clean_different_ones_or_a_sentence(raw):
    try:
        names = class_names(raw, "list")
    except ValueError as error:
        assert re.fullmatch(r"'list' (has|names) the class .*\.", str(error), re.S), error
        return
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == 3
    assert all(name == " ".join(name.split()) and "_" not in name for name in names)
    assert class_names(names, "list") == names
