"""Data sets by name and folder, each as a tiny tree in the form that its authors give it."""

import json
import pickle
import re
from hashlib import md5
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsr_utils.datasets import (
    FACTORS,
    NAMES,
    imagenet_classes,
    imagenet_templates,
    imagenet_x,
    load_dataset,
    source,
)


PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "images" / "imagenet-sample"
TENCH, HEN, STINGRAY, TOILET_PAPER = "n01440764", "n01514859", "n01498041", "n15075141"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty data folder."""
    monkeypatch.setenv("ZSR_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def save(path: Path, seed: int = 0, size=(12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def tree(root: Path, *folders: str, count: int = 1) -> None:
    for seed, folder in enumerate(folders):
        for k in range(count):
            save(root / folder / f"{k:03d}.JPEG", 100 * seed + k)


def rows(dataset) -> list[tuple[str, int]]:
    return [(s.sample_id, s.label) for s in dataset.samples]


@pytest.mark.parametrize(
    ("name", "split", "inner"),
    [
        ("imagenette", "validation", "imagenette2/val"),
        ("imagenette-320", "validation", "imagenette2-320/val"),
        ("imagenette-160", "train", "imagenette2-160/train"),
        ("imagenet", "validation", "imagenet/val"),
        ("imagenet", "train", "imagenet/train"),
        ("imagenet-sketch", "validation", "imagenet-sketch"),
        ("imagenet-sketch", "validation", "imagenet-sketch/sketch"),
        ("imagenet-r", "validation", "imagenet-r/imagenet-r"),
        ("imagenet-c", "gaussian_noise/3", "imagenet-c/gaussian_noise/3"),
        ("stylized-imagenet", "validation", "stylized-imagenet/val"),
    ],
)
def test_a_tree_of_wordnet_folders_is_read_where_its_authors_put_it(home, name, split, inner):
    folders = ["n01440764", "n03888257"] if name.startswith("imagenette") else ["n01443537", "n01514859"]
    tree(home / inner, *folders, count=2)
    dataset = load_dataset(name, split)
    names = {"n01440764": "tench", "n03888257": "parachute", "n01443537": "goldfish", "n01514859": "hen"}
    assert [i for i, _ in rows(dataset)] == [f"{f}/{k:03d}.JPEG" for f in folders for k in (0, 1)]
    assert [dataset.class_names[label] for _, label in rows(dataset)] == [names[f] for f in folders for _ in (0, 1)]
    assert dataset.name == name


def test_imagenet_has_a_thousand_names_in_the_order_of_models_and_eighty_prompts(home):
    tree(home / "imagenet" / "val", TOILET_PAPER, TENCH)
    dataset = load_dataset("imagenet")
    assert rows(dataset) == [(f"{TENCH}/000.JPEG", 0), (f"{TOILET_PAPER}/000.JPEG", 999)]
    assert len(dataset.class_names) == 1000
    assert (dataset.class_names[0], dataset.class_names[999]) == ("tench", "toilet paper")
    assert dataset.templates == imagenet_templates() and len(set(dataset.templates)) == 80
    assert all(template.count("{}") == 1 and "{" not in template.replace("{}", "") for template in dataset.templates)
    assert list(imagenet_classes()) == sorted(imagenet_classes())


@pytest.mark.parametrize("short", ["a", "r"])
def test_restricted_sets_have_the_names_of_their_two_hundred_classes(home, short):
    wnids, names = (list(kind) for kind in (imagenet_classes(), imagenet_classes().values()))
    indices = [
        int(k) for k in files("timm.data").joinpath("_info", f"imagenet_{short}_indices.txt").read_text().split()
    ]
    tree(home / f"imagenet-{short}", wnids[indices[-1]], wnids[indices[7]])
    dataset = load_dataset(f"imagenet-{short}")
    assert len(dataset.class_names) == 200 and dataset.class_names == tuple(names[k] for k in indices)
    assert [label for _, label in rows(dataset)] == [7, 199]


def test_a_class_outside_of_a_restricted_set_is_refused(home):
    tree(home / "imagenet-a", STINGRAY, TENCH)
    with pytest.raises(ValueError, match=rf"folder '{TENCH}' in '.*' is not one of the 200 classes of imagenet-a\.$"):
        load_dataset("imagenet-a")


def test_an_unknown_folder_is_refused_and_missing_classes_are_not(home):
    tree(home / "imagenet" / "val", HEN)
    assert len(load_dataset("imagenet").class_names) == 1000
    tree(home / "imagenet" / "val", "n00000001")
    with pytest.raises(ValueError, match=r"'n00000001' in '.*val' is not one of the 1,000 classes of imagenet\.$"):
        load_dataset("imagenet")


def test_imagenette_without_a_class_keeps_its_labels(home):
    tree(home / "imagenette2" / "val", "n03888257")
    dataset = load_dataset("imagenette")
    assert rows(dataset) == [("n03888257/000.JPEG", 9)] and len(dataset.class_names) == 10


@pytest.mark.parametrize("inner", ["imagenet-v2", "imagenet-v2/imagenetv2-matched-frequency-format-val"])
def test_folders_of_imagenet_v2_are_numbers_and_not_text(home, inner):
    numbers = [0, 1, 2, 10, 11, 100, 999]
    tree(home / inner, *map(str, reversed(numbers)))
    dataset = load_dataset("imagenet-v2")
    assert rows(dataset) == [(f"{k}/000.JPEG", k) for k in numbers]
    assert (dataset.class_names[2], dataset.class_names[10]) == ("great white shark", "brambling")
    tree(home / inner, "1000")
    with pytest.raises(ValueError, match=r"'1000' in .* is not one of the 1,000 classes of imagenet-v2"):
        load_dataset("imagenet-v2")


@pytest.fixture
def objectnet(home):
    mappings = home / "objectnet" / "objectnet-1.0" / "mappings"
    mappings.mkdir(parents=True)
    folders = {"air_freshener": "Air freshener", "chair": "Chair", "tv": "TV", "alarm_clock": "Alarm clock"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(folders))
    overlap = {
        "TV": "television, television system",
        "Chair": "barber chair; folding chair; rocking chair, rocker",
        "Alarm clock": "analog clock; digital clock",
    }
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(overlap))
    for folder in folders:
        path = mappings.parent / "images" / folder / "a.png"
        path.parent.mkdir(parents=True)
        image = Image.new("RGB", (20, 14), (255, 0, 0))
        image.paste((10, 20, 30), (2, 2, 18, 12))
        image.save(path)
    return mappings.parent


def test_objectnet_is_restricted_to_what_it_shares_with_imagenet(objectnet):
    dataset = load_dataset("objectnet")
    assert dataset.class_names == ("alarm clock", "chair", "tv")
    assert rows(dataset) == [("alarm_clock/a.png", 0), ("chair/a.png", 1), ("tv/a.png", 2)]


def test_the_red_border_of_objectnet_is_cut_off(objectnet):
    image = load_dataset("objectnet").image("chair/a.png")
    assert image.size == (16, 10) and image.getcolors() == [(160, (10, 20, 30))]


def test_objectnet_that_does_not_match_its_mappings_is_refused(objectnet):
    tree(objectnet / "images", "spaceship")
    with pytest.raises(ValueError, match=r"'spaceship' in '.*images' is not one of ObjectNet's classes"):
        load_dataset("objectnet")
    (objectnet / "mappings" / "objectnet_to_imagenet_1k.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"objectnet_to_imagenet_1k.json"):
        load_dataset("objectnet")


@pytest.mark.parametrize("split", ["validation", "gaussian_noise", "gaussian_noise/6", "rain/1", "fog/3/.."])
def test_a_split_of_imagenet_c_is_a_corruption_and_a_severity(home, split):
    tree(home / "imagenet-c" / "gaussian_noise" / "3", HEN)
    with pytest.raises(ValueError, match=f"split is '{re.escape(split)}', allowed is .* such as 'gaussian_noise/3'"):
        load_dataset("imagenet-c", split)


def test_a_corruption_that_is_not_here_says_where_to_get_it(home):
    tree(home / "imagenet-c" / "gaussian_noise" / "3", HEN)
    with pytest.raises(FileNotFoundError, match=r"no folder 'fog/1': get the archive .* from https://zenodo.org"):
        load_dataset("imagenet-c", "fog/1")


@pytest.mark.parametrize("name", ["imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet"])
def test_a_set_with_one_split_says_so(home, name):
    (home / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"split is 'train', allowed are 'validation'"):
        load_dataset(name, "train")


def test_a_split_that_is_not_here_names_those_that_are(home):
    tree(home / "imagenet" / "train", HEN)
    with pytest.raises(ValueError, match=r"split is 'validation', allowed are 'train'\.$"):
        load_dataset("imagenet")
    (home / "imagenette2" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no folder of a split, expected are test, train, val, validation"):
        load_dataset("imagenette")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "tabletop"] + ["wds:clip-benchmark/wds_imagenetv2"])
def test_what_is_not_here_says_how_to_get_it_and_where_it_goes(home, name):
    split = "fog/1" if name == "imagenet-c" else "validation"
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, split)
    text = str(error.value)
    assert text.startswith(f"{name} is not in '{home}") and "or set ZSR_DATA to the folder that holds" in text
    assert (f"`python -m zsr_utils.fetch {name}`" in text) != ("https://" in text)
    assert "{" not in text and "\n" not in text and not home.exists()


@pytest.mark.parametrize(
    ("name", "size"),
    [("imagenette", "1.56 GB"), ("imagenet", "6.3 GB"), ("imagenet-v2", "1.26 GB"), ("imagenet-c", "noise 21 GB")],
)
def test_what_is_not_here_says_how_large_it_is(home, name, size):
    with pytest.raises(FileNotFoundError, match=re.escape(f"({size}")):
        load_dataset(name, "fog/1" if name == "imagenet-c" else "validation")


def cifar(home: Path, monkeypatch, name: str) -> np.ndarray:
    """CIFAR files of three pictures a split, with their own checksums put in torchvision's place."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = home / kind.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(5).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    key = "labels" if name == "cifar10" else "fine_labels"

    def write(file: str, content: dict) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, md5((folder / file).read_bytes()).hexdigest()]

    monkeypatch.setattr(kind, "test_list", [write("test", {"data": pixels.reshape(3, -1), key: [1, 0, 1]})])
    monkeypatch.setattr(kind, "train_list", [write("train", {"data": 255 - pixels.reshape(3, -1), key: [0, 0, 1]})])
    file, digest = write("names", {kind.meta["key"]: ["apple", "aquarium_fish"]})
    monkeypatch.setattr(kind, "meta", {"filename": file, "key": kind.meta["key"], "md5": digest})
    return pixels.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_by_torchvision_and_validation_is_its_test_set(home, monkeypatch, name):
    pixels = cifar(home, monkeypatch, name)
    dataset, train = load_dataset(name), load_dataset(name, "train")
    assert dataset.class_names == ("apple", "aquarium fish")
    assert rows(dataset) == [("00000", 1), ("00001", 0), ("00002", 1)]
    for k in range(3):
        assert np.array_equal(np.asarray(dataset.image(f"0000{k}")), pixels[k])
        assert np.array_equal(np.asarray(train.image(f"0000{k}")), 255 - pixels[k])
    assert dataset.fingerprint != train.fingerprint
    (home / source(name).folder / "test").write_bytes(b"cut")
    with pytest.raises(ValueError, match=rf"is not whole: remove it and fetch {name} again\.$"):
        load_dataset(name)


def test_samples_can_be_sent_to_other_processes(home, objectnet, monkeypatch):
    cifar(home, monkeypatch, "cifar10")
    for dataset in (load_dataset("tabletop", limit=3), load_dataset("objectnet"), load_dataset("cifar10")):
        for sample in dataset.samples:
            sent = pickle.dumps(sample)
            assert len(sent) < 30_000 and pickle.loads(sent).image().tobytes() == sample.image().tobytes()


def test_a_folder_of_splits_has_those_splits_and_not_two_classes(tmp_path):
    for split in ("train", "test"):
        tree(tmp_path / split, "cat", "dog")
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("cat", "dog") and dataset.name == tmp_path.name
    assert rows(dataset) == rows(load_dataset(str(tmp_path), "test")) == rows(load_dataset(str(tmp_path), "train"))
    with pytest.raises(ValueError, match=r"split is 'val', allowed are 'test', 'train'\."):
        load_dataset(str(tmp_path), "val")


def test_a_folder_without_splits_is_no_training_set(tmp_path):
    tree(tmp_path, "cat", "dog")
    with pytest.raises(ValueError, match=r"split is 'train', allowed are 'validation'\."):
        load_dataset(str(tmp_path), "train")


def test_two_folders_of_one_class_name_are_refused(tmp_path):
    tree(tmp_path, "big_dog", "big dog")
    with pytest.raises(ValueError, match=r" names the class 'big dog' twice"):
        load_dataset(str(tmp_path))


def test_classes_txt_sets_the_order_of_class_folders(tmp_path):
    tree(tmp_path, "big_dog", "cat")
    (tmp_path / "classes.txt").write_text("zebra\ncat\nbig dog\n")
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("zebra", "cat", "big dog")
    assert rows(dataset) == [("big_dog/000.JPEG", 2), ("cat/000.JPEG", 1)]
    tree(tmp_path, "eagle")
    with pytest.raises(ValueError, match=r"folder 'eagle' in '.*' is not a class of its classes.txt"):
        load_dataset(str(tmp_path))
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(ValueError, match=r"classes.txt' names the class 'cat' twice"):
        load_dataset(str(tmp_path))


def labelled(folder: Path, text: str, classes: str = "") -> Path:
    for k, file in enumerate(["b.png", "a.png", "inner/c.png"]):
        save(folder / file, k)
    (folder / "labels.csv").write_text(text)
    if classes:
        (folder / "classes.txt").write_text(classes)
    return folder


@pytest.mark.parametrize(
    ("text", "classes", "names", "labels"),
    [
        ("file,label\nb.png,dog\na.png,cat\ninner/c.png,dog\n", "", ("cat", "dog"), [1, 0, 1]),
        ("\ufefflabel,file\ndog,b.png\ncat,a.png\ndog,inner/c.png\n", "dog\ncat\n", ("dog", "cat"), [0, 1, 0]),
        ("file,label\nb.png,2\na.png,0\ninner/c.png,2\n", "a\nb\nc\n", ("a", "b", "c"), [2, 0, 2]),
        ("file,label\nb.png,2.0\na.png,0.0\ninner/c.png,2.0\n", "a\nb\nc\n\n", ("a", "b", "c"), [2, 0, 2]),
    ],
)
def test_a_list_of_labels_names_classes_or_counts_them(tmp_path, text, classes, names, labels):
    dataset = load_dataset(str(labelled(tmp_path, text, classes)))
    assert dataset.class_names == names
    assert rows(dataset) == list(zip(["b.png", "a.png", "inner/c.png"], labels))
    assert np.array_equal(np.asarray(dataset.image("b.png")), np.asarray(Image.open(tmp_path / "b.png")))


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("file,label\nb.png,bird\n", "cat\ndog\n", "gives 'b.png' the class 'bird', which classes.txt does not have"),
        ("file,label\nb.png,2\n", "cat\ndog\n", "gives 'b.png' the class '2', which classes.txt does not have"),
        ("file,label\nb.png,1\n", "", "gives classes by index, and classes.txt beside it does not name them"),
        ("file,label\nz.png,cat\n", "", "lists 'z.png' .line 2., which is not in the folder"),
        ("file,label\nb.png,cat\nb.png,dog\n", "", "lists 'b.png' twice"),
        ("file,class\nb.png,cat\n", "", "has no column 'label', needed are 'file' and 'label'"),
        ("file,label\n", "", "has no rows"),
        ("", "", "has no column 'file'"),
        ("file,label\na.png,\nb.png,dog\n", "", "line 2 has no class"),
        ("file,label\n\na.png,cat,domestic\n", "", "line 3 has 3 fields, its header 2: .'a.png', "),
        ('file,label\na.png,"cat\nb.png,dog"\n', "", r"line 2 is no row with commas \(unexpected end of data\): "),
    ],
)
def test_a_list_of_labels_that_does_not_match_is_refused_in_a_sentence(tmp_path, text, classes, message):
    with pytest.raises(ValueError, match=f"labels.csv' {message}.*\\.$"):
        load_dataset(str(labelled(tmp_path, text, classes)))


def test_a_list_of_ids_is_the_same_subset_wherever_it_is_drawn(home, tmp_path):
    tree(home / "imagenette2" / "val", "n01440764", "n02102040", "n03888257", count=4)
    whole = load_dataset("imagenette")
    chosen = [whole.samples[k].sample_id for k in (9, 2, 5, 3)]
    (tmp_path / "list.txt").write_text("\n".join(chosen) + "\n\n")
    dataset = load_dataset("imagenette", ids=tmp_path / "list.txt")
    assert rows(dataset) == [rows(whole)[k] for k in (2, 3, 5, 9)] and dataset.class_names == whole.class_names
    some = load_dataset("imagenette", ids=str(tmp_path / "list.txt"), limit=3, seed=1)
    assert len(some) == 3 and len({s.label for s in some.samples}) == 3 and set(rows(some)) < set(rows(dataset))


def test_ids_that_are_not_there_are_counted(home, tmp_path):
    tree(home / "imagenette2" / "val", "n01440764", count=2)
    (tmp_path / "list.txt").write_text("n01440764/000.JPEG\nx/2.JPEG\nx/1.JPEG\n")
    with pytest.raises(ValueError, match=r"imagenette has no sample 'x/1.JPEG'; 2 of 3 are not in it"):
        load_dataset("imagenette", ids=tmp_path / "list.txt")


def test_a_list_of_ids_can_be_named(home, tmp_path, monkeypatch):
    tree(home / "imagenette2" / "val", "n01440764", count=3)
    monkeypatch.setattr("zsr_utils.datasets._sources.SUBSETS", tmp_path / "subsets")
    with pytest.raises(
        ValueError, match=r"ids is 'few', allowed is a file .*, or the name of one in data/subsets: none so far"
    ):
        load_dataset("imagenette", ids="few")
    (tmp_path / "subsets").mkdir()
    (tmp_path / "subsets" / "few.txt").write_text("n01440764/001.JPEG\n")
    assert rows(load_dataset("imagenette", ids="few")) == [("n01440764/001.JPEG", 0)]
    with pytest.raises(ValueError, match=r"ids is 'fww', .*: few"):
        load_dataset("imagenette", ids="fww")
    (tmp_path / "subsets" / "few.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"ids is 'few', allowed is a file with an id a line"):
        load_dataset("imagenette", ids="few")


def annotated(folder: Path, which: str, *found: tuple[str, int, tuple[str, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"file_name": file, "class": k, "justification": ""} | {f: int(f in factors) for f in FACTORS})
        for file, k, factors in found
    ]
    (folder / f"imagenet_x_val_{which}_factor.jsonl").write_text("\n".join(lines) + "\n")


def test_imagenet_x_has_the_factors_of_every_image_and_the_top_one(home):
    tree(home / "imagenet" / "val", TENCH)
    folder = home / "imagenet-x"
    annotated(folder, "multi", ("000.JPEG", 0, ("pose", "style")), ("b.JPEG", 8, ()), ("p.JPEG", 999, ("color",)))
    annotated(folder, "top", ("p.JPEG", 999, ("color",)), ("b.JPEG", 8, ()), ("000.JPEG", 0, ("style",)))
    frame = imagenet_x()
    assert frame.index.name == "sample_id" and list(frame.columns) == [*FACTORS, "top"] and len(FACTORS) == 16
    assert list(frame.index) == [f"{TENCH}/000.JPEG", "n01514859/b.JPEG", f"{TOILET_PAPER}/p.JPEG"]
    first = frame.loc[load_dataset("imagenet").samples[0].sample_id]
    assert first.top == "style" and [f for f in FACTORS if first[f]] == ["pose", "style"]
    assert frame.top.isna().tolist() == [False, True, False]
    (folder / "prototypical_paths.csv").write_text("file_name\np.JPEG\n")
    assert len(imagenet_x(folder)) == 2


def test_imagenet_x_that_is_not_here_says_where_to_get_it(home):
    with pytest.raises(
        FileNotFoundError, match=r"needs '.*imagenet_x_val_multi_factor.jsonl': get it from .*imagenetx"
    ):
        imagenet_x()


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="../shared/data is absent")
def test_photographs_of_a_thousand_classes_have_the_names_that_their_files_have(home):
    wnids, names = list(imagenet_classes()), list(imagenet_classes().values())
    for path in sorted(PHOTOGRAPHS.iterdir())[::25]:
        folder = home / "imagenet" / "val" / path.name.split("_")[0]
        folder.mkdir(parents=True)
        (folder / path.name).symlink_to(path)
    dataset = load_dataset("imagenet")
    assert [s.label for s in dataset.samples] == list(range(0, 1000, 25))
    for sample in dataset.samples[:3]:
        wnid, file = sample.sample_id.split("/")
        assert wnids[sample.label] == wnid and sample.image().mode == "RGB"
        assert names[sample.label].split()[0].lower() in file.lower()
