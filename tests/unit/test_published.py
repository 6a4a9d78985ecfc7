"""Published tables: what they hold is what was published, in the range it must have."""

import numpy as np
import pytest

from zsr_utils.datasets import PUBLISHED_IMAGES, published, published_accuracy
from zsr_utils.datasets._catalogue import EMBEDDED


SHIFTS = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet")


@pytest.mark.parametrize(
    ("dataset", "accuracy"),
    [
        ("imagenet", 0.6332), ("imagenet-v2", 0.5592), ("imagenet-a", 0.3155), ("imagenet-r", 0.6933),
        ("imagenet-sketch", 0.4229), ("objectnet", 0.4431),
    ],
)  # fmt: skip
def test_openai_vit_b_32_has_its_published_accuracies(dataset, accuracy):
    assert published_accuracy("ViT-B-32-quickgelu", "openai", dataset) == (accuracy, "open_clip's results")


def test_a_checkpoint_listed_without_its_activation_is_found():
    rows = published("openclip").set_index(["model", "pretrained"])
    assert ("ViT-L-14-quickgelu", "openai") not in rows.index
    found = published_accuracy("ViT-L-14-quickgelu", "openai", "imagenet")
    assert found.accuracy == rows.imagenet["ViT-L-14", "openai"] == 0.7554
    assert published_accuracy("ViT-B-32", "openai", "cifar10").accuracy == 0.8983


def test_what_nobody_published_is_none():
    assert published_accuracy("tabletop-base", None, "imagenet") is None
    assert published_accuracy("ViT-B-32", "openai-2", "imagenet") is None
    assert published_accuracy("ViT-B-32", "openai", "tabletop") is None
    assert published_accuracy("ViT-B-32", "openai", "source") is None


def test_an_embedded_model_is_published_by_its_card():
    found = published_accuracy("tabletop-base", None, "tabletop")
    card = (EMBEDDED / "models" / "tabletop-base" / "README.md").read_text()
    assert found.source == "model card" and f"{100 * found.accuracy:.2f} %" in card


def test_unknown_tables_list_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown table 'testbed': nearest .* Known are openclip, imagenet-testbed"):
        published("testbed")


@pytest.mark.parametrize(("name", "n"), [("openclip", 121), ("imagenet-testbed", 335)])
def test_tables_have_every_model_once_and_only_fractions(name, n):
    rows = published(name)
    keys = ["model", "pretrained"] if name == "openclip" else ["model"]
    assert len(rows) == n and not rows.duplicated(keys).any()
    accuracies = [column for column in rows if column in (*PUBLISHED_IMAGES, "cifar10", "cifar100")]
    assert set(accuracies) >= {"imagenet", *SHIFTS}
    values = rows[accuracies].to_numpy()
    assert ((values >= 0) & (values <= 1) | np.isnan(values)).all() and values[~np.isnan(values)].max() > 0.5


def test_a_checkpoint_counts_once():
    rows = published("openclip")
    counted = rows[rows.counted]
    assert len(counted) == 110
    assert not counted.duplicated(["imagenet", *SHIFTS]).any() and rows.duplicated(["imagenet", *SHIFTS]).sum() == 4
    assert not counted.pretrained.str.startswith("mscoco").any()
    twins = counted.assign(model=counted.model.str.removesuffix("-quickgelu"))
    assert not twins.duplicated(["model", "pretrained"]).any()


def test_sources_follow_from_the_tags():
    rows = published("openclip")
    assert rows.source.value_counts().to_dict() == {
        "LAION": 41, "CommonPool": 21, "DataComp": 13, "OpenAI WIT": 12, "WebLI": 9, "MetaCLIP": 7, "DFN": 4,
        "LAION and COYO": 4, "LAION-COCO NLLB": 4, "YFCC15M": 4, "CC12M": 2,
    }  # fmt: skip
    assert set(rows.source[rows.pretrained == "openai"]) == {"OpenAI WIT"}
    assert set(rows.source[rows.model.str.contains("SigLIP")]) == {"WebLI"}
    assert (rows.parameters_m > 0).all() and (rows.gflops > 0).all()


def test_testbed_accuracies_are_whole_numbers_of_images():
    """So the images behind each column are known, and no setting was taken for another."""
    rows = published("imagenet-testbed")
    for column, n in PUBLISHED_IMAGES.items():
        off = rows[column] * n - (rows[column] * n).round()
        assert abs(off).median() < 0.01 + 5e-6 * n, column  # five decimals are kept
    assert rows.imagenet.eq((rows.imagenet * 50_000).round() / 50_000).all()


def test_the_standard_group_is_conservative():
    rows = published("imagenet-testbed").set_index("model")
    standard = rows[rows.group == "standard"]
    assert len(standard) == 75 and standard.imagenet.min() > 0.55
    # ImageNet-A has no image that the ResNet-50 that filtered it gets right
    assert rows["imagenet-a"]["resnet50"] == 0
    expected = {
        "alexnet": "standard", "resnet50": "standard", "vit_small_patch16_224": "standard",
        "vit_b_32_clip_zeroshot": "zero-shot CLIP", "vit_base_patch16_224": "more data", "resnet50_swsl": "more data",
        "resnet50_linf_eps4_robust": "adversarial", "resnet50_augmix": "robust", "resnet50_swav": "self-supervised",
        "resnet50-vtab-rotation": "self-supervised", "resnet18_50k_9_epochs": "less training",
        "resnet50_aws_baseline": "control",
    }  # fmt: skip
    assert rows.group[list(expected)].to_dict() == expected
    assert set(rows.group) == set(expected.values())


def test_two_measurements_of_one_model_agree_within_a_point():
    """The testbed evaluated OpenAI's ViT-B/32 with its own prompts and images."""
    testbed = published("imagenet-testbed").set_index("model").loc["vit_b_32_clip_zeroshot"]
    for dataset in ("imagenet", *SHIFTS):
        assert abs(testbed[dataset] - published_accuracy("ViT-B-32", "openai", dataset).accuracy) < 0.01
