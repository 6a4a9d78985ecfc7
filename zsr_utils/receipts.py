"""What our functions make of published logs, beside what was published: `data/published/receipts.yaml`."""

from pathlib import Path

import numpy as np

from zsr_utils._text import read_yaml


PUBLISHED = Path(__file__).resolve().parents[1] / "data" / "published"


def computed() -> dict[str, float]:
    """Our values from data that come with the project, by what they are."""
    from zsr_utils import datasets, scores  # which load torch

    alexnet = np.array(list(read_yaml(PUBLISHED / "alexnet_errors.yaml").values()))[None, :, None]
    testbed = datasets.published("imagenet-testbed").set_index("model")
    clip = datasets.published_accuracy("ViT-B-32-quickgelu", "openai", "imagenet")
    return {
        "mean corruption error of AlexNet": scores.relative_errors(alexnet, alexnet).value,
        "zero-shot accuracy of CLIP ViT-B/32 on ImageNet": clip.accuracy,
        "accuracy of ResNet-50 on ImageNet": float(testbed.imagenet["resnet50"]),
    }


def receipts() -> list[dict]:
    """A row a number, with what the file says of its log; without a date of `verified`, ours is computed now."""
    now, rows = computed(), []
    for log in read_yaml(PUBLISHED / "receipts.yaml"):
        for number, (published, *kept) in log["numbers"].items():
            ours = kept[0] if kept else now[number]
            row = {"number": number, "published": published, "ours": ours, "difference": ours - published}
            rows.append({"verified": None, **log, **row})
    return rows
