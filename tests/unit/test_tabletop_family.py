"""The family of embedded models: what each member changes, and what it is exported as."""

import csv
import functools
import itertools
import json
import math
from dataclasses import asdict, fields, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from test_tabletop_train import CONFIG

import zsr_utils as zsr
from tabletop import KINDS, Scene, SceneDistribution, data, objectives, render, sheets, towers, train
from tabletop.materials import TYPICAL_PATTERN


MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
PATHS = {p.stem: p for p in sorted(train.CONFIGS.glob("*.yaml"))}
NAMES = sorted(PATHS.keys() - {"default"})
DOSES = {"reader-20": 0.2, "reader-35": 0.35, "reader-50": 0.5, "reader": 0.7}
NUDGED = {field for change in data.NUDGES.values() for field in change}


def config_of(name):
    return train.read_config(PATHS[name])


def differing(one, other):
    """Keys in which two configs differ, name and list of changes aside."""
    one, other = train._flat(one), train._flat(other)
    return {key for key in {**one, **other} if one.get(key) != other.get(key)}


# What shares of a distribution decide; every other value of a scene is drawn alike whatever they are.
SHARES = ("typical_pattern", "plain", "card", "true_card", "no_word", "card_only", "card_width", "second", "occluder")
BY_SHARES = {"kind", "pattern", "card", "card_width", "occlusion"} | {
    f.name for f in fields(Scene) if f.name.startswith("second_")
}
# The fields of a scene that neither they nor a near-duplicate change; `phase` alone has 10,000 values.
identity = attrgetter(*(f.name for f in fields(Scene) if f.name not in NUDGED | BY_SHARES))


@pytest.fixture(scope="module")
def validation():
    return {data.validation_id(i): data.VALIDATION.draw(0, "validation", i) for i in range(data.VALIDATION_IMAGES)}


def exported(config, folder, accuracy=0.5):
    """An untrained model and the folder it was exported to."""
    torch.manual_seed(0)
    model, metric = train.build(config).eval(), objectives.objective_of(config).metric
    curve = [{"samples": 8, "loss": 2.0, metric: accuracy, "cpu_seconds": 1.0}]
    return model, train.export(model, config, {"samples": 8, "cpu_seconds": 1.0, "curve": curve}, folder)


# Configs


@pytest.mark.parametrize("name", NAMES)
def test_member_differs_from_the_default_in_exactly_what_it_names(name):
    config = config_of(name)
    found = {key.split(".")[0] for key in train.differences(config)}
    assert found == set(config["changes"]) and len(config["changes"]) == len(found)
    assert config["name"] == f"tabletop-{name}"
    assert config.keys() == config_of("default").keys(), "a key that the default does not know changes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_config_names_what_it_changes_of_the_one_it_derives_from_and_no_more(name):
    own = yaml.safe_load(PATHS[name].read_text())
    parent = own.pop("inherits").removesuffix(".yaml")
    assert parent == ("reader-control" if name in DOSES else "default")
    named = {key for key in train._flat({"distribution": {}, **own}) if not key.startswith("distribution.")}
    named |= {f"distribution.{key}" for key in own.get("distribution", {})}
    assert differing(config_of(name), config_of(parent)) == named
    assert name not in DOSES or named == {"finetune.about_word"}


def test_all_members_are_there_and_only_one_changes_two_things():
    changes = {name: config_of(name)["changes"] for name in NAMES}
    assert {name for name, keys in changes.items() if len(keys) > 1} == {"conv-supervised"}
    assert {"small", "large", "conv", "siglip", "othersource", "quarter", "overlap", "supervised"} < changes.keys()
    tuned = {"probe", "finetuned", "wise", "fare", "reader-control", *DOSES}
    assert {name for name, keys in changes.items() if "finetune" in keys} == tuned
    assert {config_of(name)["samples"] for name in NAMES} == {384_000}
    assert train.differences(config_of("default")) == {} and config_of("default")["changes"] == []


def test_fine_tuned_members_go_on_from_the_default_on_its_own_images():
    default, probe, finetuned, wise, fare = map(config_of, ("default", "probe", "finetuned", "wise", "fare"))
    for config in (probe, finetuned, wise, fare):
        assert config["finetune"]["start"] == default["name"]
        assert train._data_key(config) == train._data_key(default)
    assert (probe["finetune"]["trains"], finetuned["finetune"]["trains"]) == ("head", "all")
    assert probe["finetune"]["samples"] == finetuned["finetune"]["samples"] < default["samples"]
    assert wise["finetune"] == {"start": default["name"], "end": finetuned["name"], "alpha": 0.5}


def test_readers_and_their_control_differ_in_the_dose_alone():
    control, default = config_of("reader-control"), config_of("default")
    assert control["finetune"]["start"] == default["name"] and control["finetune"]["about_word"] == 0
    distribution = train.distribution_of(train.plan_of(control))
    assert distribution.card_only > 0 and distribution.no_word > 0 and distribution.true_card < 1
    kept = asdict(distribution) | dict.fromkeys(control["finetune"]["distribution"])
    assert kept == asdict(train.distribution_of(default)) | dict.fromkeys(control["finetune"]["distribution"])
    for name, dose in DOSES.items():
        reader = config_of(name)
        assert reader["finetune"] == control["finetune"] | {"about_word": dose}
        assert train._data_key(reader) == train._data_key(control) != train._data_key(default)


def test_texture_has_the_typical_pattern_on_nearly_all_objects():
    texture, default = (train.distribution_of(config_of(name)) for name in ("texture", "default"))
    assert replace(texture, typical_pattern=0.3, plain=0.35) == default
    scenes = [texture.draw(0, "pretrain", i) for i in range(500)]
    assert np.mean([s.pattern == TYPICAL_PATTERN[s.kind] for s in scenes]) > 0.93


# Seeds


@pytest.mark.parametrize("name", ["default", "supervised", "conv", "quarter", "siglip", "othersource"])
@pytest.mark.parametrize("seed", [1, 2])
def test_other_seed_of_a_member_differs_in_the_seed_alone(name, seed):
    member, config = config_of(name), train.load_config(f"{name}-seed{seed}")
    assert config["name"] == f"{member['name']}-seed{seed}" and config["seed"] == seed
    assert config["changes"] == [*member["changes"], "seed"]
    assert differing(config, member) == {"seed"} and config.keys() == member.keys()
    assert config == train.load_config(config["name"])
    assert train._data_key(config) != train._data_key(member)


def test_other_seed_of_a_fine_tuned_member_is_the_seed_of_its_fine_tuning():
    member, config = config_of("reader"), train.load_config("reader-seed3")
    assert differing(config, member) == {"finetune.seed"} and config["changes"] == ["finetune"]
    assert train.plan_of(config)["seed"] == 3 and train._data_key(config) != train._data_key(member)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wise-seed1", "an average of weights draws nothing"),
        ("big-seed1", "config is 'big'"),
        ("conv-seed0", "allowed"),
    ],
)
def test_impossible_seeds_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        train.load_config(name)


def test_scenes_of_other_seeds_are_others(validation):
    distribution = train.distribution_of(config_of("default"))
    seeds = [{identity(distribution.draw(seed, "pretrain", i)) for i in range(300)} for seed in (0, 1, 2)]
    seeds.append(set(map(identity, validation.values())))
    assert len(set.union(*seeds)) == sum(map(len, seeds))


def test_default_keeps_its_images_and_its_model():
    config = config_of("default")
    assert train._data_key(config) == "5536d1ec5f0e"
    assert train.up_to_date(config, MODELS)


@pytest.mark.parametrize("name", PATHS)
def test_exported_model_was_trained_with_its_config(name):
    config = config_of(name)
    assert train.up_to_date(config, MODELS) or not (MODELS / config["name"]).exists()


def test_configs_are_found_by_file_by_stem_and_by_model(tmp_path):
    assert train.find_config("small") == train.find_config("tabletop-small") == PATHS["small"]
    path = tmp_path / "own.yaml"
    path.write_text("inherits: default.yaml\n")
    assert train.find_config(str(path)) == path
    with pytest.raises(ValueError, match=r"config is 'big', allowed are .*large"):
        train.find_config("big")
    with pytest.raises(ValueError, match="loss is 'hinge', allowed are clip, siglip, supervised"):
        objectives.objective_of({"loss": "hinge"})


def test_other_source_has_nothing_to_read_and_other_surroundings():
    distribution, default = (train.distribution_of(config_of(n)) for n in ("othersource", "default"))
    scenes = [distribution.draw(0, "pretrain", i) for i in range(500)]
    assert {s.card for s in scenes} == {None}
    assert not {s.setting for s in scenes} & set(default.settings)
    assert np.mean([s.style == "photo" for s in scenes]) < 0.2
    assert distribution.kinds == default.kinds


# Near-duplicates of validation scenes


@pytest.fixture(scope="module")
def twins():
    return train.twins_of(config_of("overlap"))


def test_twins_differ_from_their_validation_scene_in_what_they_name(twins, validation):
    for twin in twins:
        original, bounds = validation[twin.sample_id], data.NUDGES[twin.change]
        changed = {f.name for f in fields(Scene) if getattr(twin.scene, f.name) != getattr(original, f.name)}
        assert changed == set(bounds)
        for field, (low, high) in bounds.items():
            step = abs(getattr(twin.scene, field) - getattr(original, field))
            assert low - 1e-4 <= step <= high + 1e-4


def test_half_of_the_validation_set_has_one_twin_of_each_change(twins, validation):
    pairs = {(t.sample_id, t.change) for t in twins}
    listed = {t.sample_id for t in twins}
    assert len(pairs) == len(twins) == len(listed) * len(data.NUDGES) and len(listed) == len(validation) / 2
    kinds = [validation[i].kind for i in sorted(listed)]
    assert {kinds.count(k) for k in KINDS} == {len(listed) // len(KINDS)}


def sources():
    """Names of the configs whose pre-training scenes differ in shares alone, if at all."""
    groups = {}
    for name in PATHS:
        plan = train.plan_of(config_of(name))
        drawn = asdict(train.distribution_of(plan)) | dict.fromkeys(SHARES)
        groups.setdefault(str([drawn, plan["seed"], plan["scenes"], plan["overlap"]]), []).append(name)
    return [pytest.param(names, id=",".join(names)) for names in groups.values()]


@pytest.fixture(scope="module")
def drawn_once():
    """Scenes that several pre-training sets share are drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneDistribution, "draw", functools.cache(SceneDistribution.draw))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("names", sources())
def test_pretraining_set_holds_the_listed_near_duplicates_and_no_other(names, validation, drawn_once):
    """Every scene of every pre-training set is compared with every validation scene (about 15 s in all)."""
    config, *others = (train.plan_of(config_of(name)) for name in names)
    listed = train.twins_of(config)
    assert bool(listed) == ("overlap" in names)
    originals = {identity(scene): sample_id for sample_id, scene in validation.items()}
    assert len(originals) == len(validation)
    recipe = {"seed": config["seed"], "scenes": config["scenes"], "twins": listed}
    scenes = list(data.pretraining_scenes(train.distribution_of(config), **recipe))
    assert len(scenes) == config["scenes"]
    found = {i: originals[key] for i, key in enumerate(map(identity, scenes)) if key in originals}
    assert found == {t.index: t.sample_id for t in listed}
    assert all(scenes[t.index] == t.scene != validation[t.sample_id] for t in listed)
    for other in others:
        drawn = (train.distribution_of(other).draw(other["seed"], "pretrain", i) for i in range(300))
        assert [identity(s) for s in drawn] == [identity(s) for s in scenes[:300]]


def test_twins_are_rendered_and_captioned_in_their_place(tmp_path, monkeypatch):
    twins = [data.Twin("val/00003", "light", 1, Scene("duck")), data.Twin("val/00004", "light", 4, Scene("car"))]
    recipe = {"seed": 3, "scenes": 5, "twins": twins}
    monkeypatch.setattr(data, "BLOCK", 2)
    monkeypatch.setattr(data.multiprocessing, "get_context", lambda _: InProcess())
    list(data.pretraining_images(tmp_path, SceneDistribution(), **recipe))
    scenes = list(data.pretraining_scenes(SceneDistribution(), **recipe))
    assert [scenes[1], scenes[4]] == [t.scene for t in twins]
    assert [scenes[i] for i in (0, 2, 3)] == [SceneDistribution().draw(3, "pretrain", i) for i in (0, 2, 3)]
    images = data.open_images(tmp_path, 5)
    assert np.abs(images.astype(int) - data.to_uint8(render(scenes).pixels)).max() <= 1
    texts = data.pretraining_captions(SceneDistribution(), **recipe, per_scene=3)
    assert all("duck" in t for t in texts[1]) and all("car" in t for t in texts[4])
    assert data.pretraining_captions(SceneDistribution(), seed=3, scenes=5, per_scene=3)[0] == texts[0]


class InProcess:
    """Stands in for a multiprocessing context."""

    def Pool(self, _):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def imap_unordered(self, function, jobs):
        return map(function, jobs)


def test_overlap_is_exported_as_a_list(tmp_path, validation):
    config = CONFIG | {"scenes": 60, "overlap": 10}
    _, folder = exported(config, tmp_path / "tiny")
    rows = list(csv.DictReader((folder / "overlap.csv").open()))
    assert list(rows[0]) == ["sample_id", "pretraining_scene", "change", "detail"]
    twins = train.twins_of(config)
    assert [(r["sample_id"], int(r["pretraining_scene"]), r["change"]) for r in rows] == [
        (t.sample_id, t.index, t.change) for t in twins
    ]
    for row, twin in zip(rows, twins, strict=True):
        steps = dict(part.split(" ") for part in row["detail"].split("; "))
        for field, step in steps.items():
            assert getattr(validation[twin.sample_id], field) + float(step) == pytest.approx(getattr(twin.scene, field))
    card = (folder / "README.md").read_text()
    assert "40 of the pre-training scenes are near-duplicates of 10 validation scenes" in card
    assert "No validation scene is in the pre-training set:" not in card


def test_exported_list_is_the_one_of_the_config(tmp_path, twins):
    data.write_twins(tmp_path / "overlap.csv", twins)
    for path in MODELS.glob("*/overlap.csv"):
        assert path.parent.name == "tabletop-overlap"
        assert path.read_text() == (tmp_path / "overlap.csv").read_text()


@pytest.mark.parametrize(("chosen", "scenes"), [(15, 4000), (1210, 40_000), (10, 39), (-10, 4000)])
def test_impossible_overlap_is_refused(chosen, scenes):
    with pytest.raises(ValueError, match=f"overlap is {chosen} validation scenes, allowed are multiples of 10 up to"):
        data.overlap_twins(seed=0, scenes=scenes, validation_scenes=chosen)


# Towers


def test_towers_have_the_sizes_that_the_configs_promise():
    def size(tower):
        return sum(p.numel() for p in timm.create_model(tower, num_classes=0).parameters())

    base = size("tabletop_vit_base")
    for name, ratio in (("small", 0.25), ("conv", 1.0), ("large", 3.0)):
        assert size(config_of(name)["tower"]) / base == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("name", ["small", "conv", "large", "siglip"])
def test_exported_member_gives_a_token_grid_and_logits(name, tmp_path):
    config = config_of(name)
    model, folder = exported(config, tmp_path / config["name"])
    net = zsr.load_model(f"local-dir:{folder}", device="cpu")
    pixels = render([Scene("mug"), Scene("duck")]).pixels
    width = 64 if name == "small" else 192 if name == "large" else 128
    assert net.encode_tokens(pixels).shape == (2, 8, 8, width)
    with torch.no_grad():
        features = model.encode_image(objectives.normalise(pixels))
        torch.testing.assert_close(net.encode_image(pixels), features, atol=2e-3, rtol=2e-2)
    siglip = name == "siglip"
    assert net.logit_scale.item() == pytest.approx(10 if siglip else 1 / 0.07, rel=1e-3)
    assert float(net.logit_bias) == (-10 if siglip else 0)
    model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    assert model_cfg.get("init_logit_bias") == (-10 if siglip else None)
    assert not siglip or model_cfg["init_logit_scale"] == math.log(10)


def test_mean_of_the_convolutional_tokens_is_what_the_embedding_sees():
    model = train.build(config_of("conv")).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = model.visual.forward_intermediates(pixels, indices=1, intermediates_only=True, output_fmt="NCHW")
        tokens = found["image_intermediates"][-1]
        assert tokens.shape == (2, 128, 8, 8)
        torch.testing.assert_close(model.visual.head(tokens.mean((2, 3))), model.encode_image(pixels))


# Supervised members


@pytest.mark.parametrize("name", ["supervised", "conv-supervised"])
def test_supervised_member_is_rebuilt_from_its_folder(name, tmp_path):
    model, folder = exported(config_of(name), tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    assert config["class_names"] == list(KINDS)
    net = towers.build_classifier(config["tower"], len(config["class_names"])).eval()
    net.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    pixels = torch.rand(2, 3, config["image_size"], config["image_size"])
    pixels = (pixels - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(net(pixels), model(pixels), atol=2e-3, rtol=2e-2)
        assert net.forward_intermediates(pixels, indices=1, intermediates_only=True)[-1].shape == (2, 128, 8, 8)
    assert not list(folder.glob("open_clip*")), "it would be taken for a CLIP model"
    card = (folder / "README.md").read_text()
    assert "A small image classifier" in card and "captions are not used" in card


def test_supervised_tower_is_the_tower_of_the_clip_model():
    torch.manual_seed(0)
    for tower in ("tabletop_vit_base", "tabletop_resnet"):
        trunk = train.build(CONFIG | {"tower": tower}).visual.trunk.eval()
        net = towers.build_classifier(tower, 10).eval()
        missing, unexpected = net.load_state_dict(trunk.state_dict(), strict=False)
        assert all(key.startswith("head.") for key in missing) and not unexpected
        pixels = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            pooled = net.forward_head(net.forward_features(pixels), pre_logits=True)
            torch.testing.assert_close(pooled, trunk(pixels))


def test_supervised_targets_are_the_kinds_of_the_scenes():
    captions = [["a", "b", "c"]] * 3
    targets = objectives.OBJECTIVES["supervised"].targets(["mug", "duck", "mug"], captions)
    assert targets.shape == (3, 3)
    assert [list(KINDS)[int(t)] for t in targets[:, 1]] == ["mug", "duck", "mug"]


# Card


@pytest.mark.parametrize("name", PATHS)
def test_card_names_what_the_member_changes(name, tmp_path):
    config = config_of(name)
    _, folder = exported(config, tmp_path / "model")
    card = (folder / "README.md").read_text()
    values = train.differences(config)
    for key, (mine, default) in values.items():
        assert f"- `{key}`: `{json.dumps(mine)}` in place of `{json.dumps(default)}`" in card
    assert ("and in nothing else" in card) == bool(values) == (name != "default")
    assert card.count(" in place of ") == len(values)
    assert f"python -m tabletop.train {config['name']}" in card


def test_every_objective_describes_itself():
    names = ("label", "metric", "shown_as", "makes", "seen", "measured", "weights", "origin")
    for config, name in itertools.product(PATHS, names):
        assert getattr(objectives.objective_of(config_of(config)), name)


# Learning curve


@pytest.mark.parametrize("metric", ["zero_shot", "accuracy"])
def test_learning_curve_shows_the_loss_above_the_accuracy(metric, tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text(f"samples,loss,{metric},cpu_seconds\n100,2.0,0.25,1\n200,1.0,0.75,2\n")
    picture = np.asarray(sheets.learning_curve(path, width=340, panel=120)).astype(int)
    assert picture.shape == (240, 340, 3)
    for panel, name in ((picture[:120], "loss"), (picture[120:], metric)):
        marked = np.abs(panel - sheets.LINE_COLORS[name]).max(axis=2) < 8
        rows, columns = np.nonzero(marked)
        left, right = (rows[columns == edge].mean() for edge in (columns.min(), columns.max()))
        assert np.sign(right - left) == (1 if name == "loss" else -1), "a falling loss, a rising accuracy"


def test_average_of_weights_has_no_learning_curve(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("samples,accuracy\n0,0.5\n")
    with pytest.raises(ValueError, match=f"^{tmp_path.name} was not trained, so it has no learning curve"):
        sheets.learning_curve(path)
