"""Receipts: our functions on other people's published logs give what `data/published/receipts.yaml` says."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model

from zsr_utils import scores
from zsr_utils.conditions import Head
from zsr_utils.datasets import FACTORS, cues, imagenet_classes, imagenet_x, pm_sets
from zsr_utils.experiments import distribution_shifts as dist, shape_bias as cue, visual_factors as factors
from zsr_utils.receipts import computed, receipts
from zsr_utils.scores import trends


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LOGS = DATA / "logs"
MODELS = ("AlexNet", "Standard_R50")
WHEEL = importlib.util.find_spec("imagenet_x")  # its annotations; its code is not imported


def lines_of_imagenet_v2() -> dict:
    table, found = pd.read_csv(DATA / "tables" / "imagenetv2_top1.csv"), {}
    x, y = table.imagenet_val, table.matched_frequency
    for scale, sets in {"logit": ("matched_frequency", "threshold_0.7", "top_images"), "probit": [y.name]}.items():
        for name in sets:
            line = trends.fit_line(x, table[name], scale=scale, resamples=1)
            at = f"of the {scale} line to {name.replace('_', ' ')}"
            found |= {f"slope {at}": line.slope[0, 0], f"intercept {at}": line.intercept[0, 0]}
    straight = trends.straightness(x, y, scale="logit", resamples=10)
    return found | {"R² of the logit line": straight["r2"].value, "rank correlation": straight["spearman"].value}


def corruption_errors() -> dict:
    found = {}
    for name, log, number in (("", "unaggregated_results.csv", 15), (" on 3DCC", "unaggregated_results_3d.csv", 12)):
        table = pd.read_csv(LOGS / "robustbench" / log, header=[0, 1], index_col=0)
        names = sorted(table.columns.levels[0])
        alexnet, resnet = (1 - table.loc[m].unstack().loc[names].to_numpy(float)[None] for m in MODELS)
        assert alexnet.shape == (1, number, 5)
        assert number == 12 or np.abs(alexnet.mean((0, 2)) - [dist.ALEXNET[n] for n in names]).max() < 0.02
        found[f"mean corruption error of ResNet-50{name}"] = scores.relative_errors(resnet, alexnet).value
    return found


def anchors() -> dict:
    found = {name: pm_sets(DATA / "video" / name) for name in ("ytbb", "vid")}
    assert [list(sets) for sets in found.values()] == [["frame-732.jpg"], ["000442.jpg"]]
    return {f"frames around the anchor, {name}": len(next(iter(s.values()))) - 1 for name, s in found.items()}


def error_ratios() -> dict:
    folder, log = Path(WHEEL.submodule_search_locations[0]) / "annotations", LOGS / "imagenetx" / "ResNet50.csv.gz"
    labels, answers = imagenet_x(folder), pd.read_csv(log).set_index("file_name").predicted_class
    assert labels.top.isna().sum() == 2 and labels.top.value_counts()[["pose", "larger"]].tolist() == [15_064, 150]
    place, names = {wnid: k for k, wnid in enumerate(imagenet_classes())}, labels.index.str.split("/")
    wrong = pd.Series([float(answers[file] != place[wnid]) for wnid, file in names], labels.index)
    table = factors.error_ratios(wrong, labels, FACTORS).query("labels == 'top'")
    assert len(table) == 16
    ratios = {f"error ratio of ResNet-50, {r.factor.replace('_', ' ')}": r.value for r in table.head(10).itertuples()}
    kept = {
        "annotated images": len(imagenet_x(folder, prototypes=True)),
        "annotated images without prototypes": len(labels),
    }
    return kept | ratios


def decisions_of_people() -> dict:
    people = pd.concat([pd.read_csv(file) for file in sorted((LOGS / "model-vs-human").glob("subject-*.csv"))])
    answered = people.object_response.notna() & (people.object_response != "na")  # the others ran out of time
    people = people[answered].reset_index(drop=True)
    named = pd.DataFrame([cues(i.rpartition("_")[2]) for i in people.imagename], columns=["shape", "texture", "source"])
    answers = people.object_response.to_numpy()
    words = np.select([answers == named["shape"], answers == named["texture"]], ["shape", "texture"], "other")
    rows = named.assign(decision=words, person=people.subj)[named["shape"] != named["texture"]]
    each = rows.groupby("person").apply(lambda part: cue.shape_bias(part).value, include_groups=False)
    assert (len(each), len(rows)) == (10, 11_882)
    counts = {f"decisions by {word}": int((rows.decision == word).sum()) for word in ("shape", "texture")}
    shares = {"shape bias, pooled": cue.shape_bias(rows).value, "share of either cue": cue.share("either")(rows).value}
    return {"shape bias, mean of ten people": each.mean(), **shares, **counts}


def calibration() -> dict:
    found, truth = {}, np.arange(50_000) // 50  # the log goes through the folders of the classes
    for name, bins in {"ResNet-50": (15, 10), "SimCLR": (15,)}.items():
        rows = pd.read_csv(LOGS / "imagenetx" / f"{name.replace('-', '')}.csv.gz")
        right, confidence = (truth == rows.predicted_class).to_numpy(), rows.predicted_probability.to_numpy()
        found[f"accuracy of {name}"] = right.mean()
        for n in bins:
            error = scores.calibration_error(confidence, right, bins=n, resamples=2)
            found[f"calibration error of {name}, {n} bins"] = error.value
    return found


def probabilities() -> dict:
    image, text = (torch.from_numpy(np.load(LOGS / "npclip" / f"{k}_features.npy")).float() for k in ("image", "text"))
    net = tiny_model()
    net.net.logit_scale.data = torch.tensor(100.0).log()
    head = Head(torch.nn.functional.normalize(text, dim=1), ("a", "b", "c"))
    p = head.scores(net, image).softmax(1)[0].tolist()
    return {f"probability of text {k + 1}": p[k] for k in range(3)}


SLOW = pytest.param(error_ratios, marks=[pytest.mark.slow, pytest.mark.skipif(not WHEEL, reason="no wheel imagenet-x")])
QUICK = [
    lines_of_imagenet_v2, corruption_errors, anchors, decisions_of_people, calibration, probabilities,
]  # fmt: skip


@pytest.mark.skipif(not LOGS.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize("function", [*QUICK, SLOW])
def test_a_log_gives_our_value_of_last_time(function):
    kept = {row["number"]: row["ours"] for row in receipts() if row.get("function") == function.__name__}
    assert function() == pytest.approx(kept, rel=1e-5)


def test_our_values_are_those_that_were_published():
    rows = receipts()
    assert [r["number"] for r in rows if not r["verified"]] == list(computed())
    for row in rows:
        assert abs(row["difference"]) <= 2e-3 * abs(row["ours"]), row["number"]
        assert {"chapters", "log", "source", "licence"} <= row.keys() and bool(row["verified"]) == ("commit" in row)
