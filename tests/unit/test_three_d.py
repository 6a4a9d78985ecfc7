"""Chapter 17 beyond the contract: laws of depth, exact geometry, and matches that were planted."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tabletop import Scene, render
from tabletop.views import project, seen_in, views
from zsr_utils import load_model
from zsr_utils.conditions import STRENGTHS, WITHOUT_DEPTH, as_seen, corrupted, in_depth, transmission, without_depth
from zsr_utils.conditions._corruptions import CHANGES
from zsr_utils.datasets import Pair, alike_views, load_dataset, pairs_of, turned_views
from zsr_utils.experiments import three_d


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FLAT, SLOPE = torch.full((2, 1, 32, 32), 4.0), torch.linspace(2, 8, 32)[:, None].expand(2, 1, 32, 32)


@pytest.mark.parametrize("name", STRENGTHS)
def test_strength_0_is_the_image_and_a_plane_parallel_to_it_has_no_depth_to_follow(name):
    assert torch.allclose(corrupted(X, SLOPE, name, 0.0), X, atol=1e-6)
    by_depth, flat = (corrupted(X, FLAT, name, STRENGTHS[name][2], flat=f) for f in (False, True))
    assert torch.allclose(by_depth, flat, atol=1e-5)
    apart = [corrupted(X, SLOPE, name, STRENGTHS[name][2], flat=f) for f in (False, True)]
    assert not torch.allclose(*apart, atol=1e-3) and all(v.min() >= 0 and v.max() <= 1 for v in apart)


def test_fog_follows_its_law_and_a_focus_spares_its_own_distance():
    black = torch.zeros_like(X)
    fog = corrupted(black, SLOPE, "fog_3d", 0.2)
    assert torch.allclose(fog, 0.8 * (1 - torch.exp(-0.2 * SLOPE)).expand_as(fog), atol=1e-6)
    assert transmission(torch.tensor(3.0), 0.2) == pytest.approx(np.exp(-0.6))
    moved = [(corrupted(X, SLOPE, name, 1.1) - X).abs().mean((0, 1, 3)) for name in ("near_focus", "far_focus")]
    assert moved[0][0] < 0.01 < moved[0][-1] and moved[1][-1] < 0.01 < moved[1][0]


def test_a_camera_that_moves_blurs_a_point_over_its_parallax():
    point = torch.zeros(1, 3, 64, 64)
    point[:, :, 32, 32] = 1
    near, far = (corrupted(point, torch.full((1, 1, 64, 64), d), "xy_motion_blur", 0.32)[0, 0, 32] for d in (2.0, 8.0))
    assert near.sum() == pytest.approx(1, abs=0.05)  # the light is spread and not lost
    reach = [np.ptp(np.flatnonzero(line > 0.01)) for line in (near, far)]
    way = [32 * 0.32 / d / np.tan(np.radians(12)) for d in (2, 8)]  # in pixels
    assert reach == pytest.approx(way, abs=1.5)


@pytest.mark.parametrize("bad", [np.zeros((8, 8)), np.full((8, 8), np.nan), np.ones((2, 8, 8))])
def test_a_depth_that_is_none_is_named(bad):
    with pytest.raises(ValueError, match="The depth of 'b' is not a picture of numbers above 0"):
        in_depth({"a": np.ones((8, 8)), "b": bad})
    images = replace(load_dataset("tabletop", limit=2), name="photographs")
    with pytest.raises(ValueError, match="The depth of 'photographs' is not known"):
        three_d.conditions(images, "validation", [1])


def test_points_of_an_object_are_found_again_where_they_turn_to():
    scene = Scene("car", yaw=10.0, x=0.1, z=-0.1, camera_azimuth=12.0)
    turned = replace(scene, yaw=55.0)
    one, other = views([scene]), views([turned])
    on = one.on_object[0]
    at, seen = seen_in(one.points[0][on], scene, one.rendering, 0)
    y, x = on.nonzero().T
    assert seen.all() and torch.allclose(at, torch.stack([x, y], 1) + 0.5, atol=1e-3)
    at, seen = seen_in(one.points[0][on], turned, other.rendering, 0)
    x, y = at[seen].long().T
    assert 0.3 < seen.float().mean() < 0.95  # some are hidden
    assert (other.points[0][y, x] - one.points[0][on][seen]).norm(dim=1).median() < 0.05
    top, _ = project(torch.tensor([[0.0, 9.0, 0.0]]), scene)
    assert top[0, 1] < 0  # above the picture


def planted(shift: int) -> tuple[torch.Tensor, torch.Tensor, Pair]:
    """Random tokens, the same ones so many tokens further right, and pixels that moved as they did."""
    one = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(0))
    at = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), -1)
    points = np.concatenate([at / 10, np.zeros((64, 64, 1))], -1)
    stay, moved = at[..., 0] < 64 - 8 * shift, np.roll(points, 8 * shift, 1)
    to = at[stay] + [8 * shift, 0]
    return one, one.roll(shift, 1), Pair("s", ("a", "b"), (), at[stay] / 64, to / 64, 0, points[stay], moved)


@pytest.mark.parametrize("shift", [0, 3])
def test_planted_correspondences_are_found_exactly(shift):
    one, other, pair = planted(shift)
    found = three_d._matched(one, other, pair, three_d.TURNED)
    rows = found.mean()
    assert len(found) == 8 * (8 - shift) and found.weight.min() > 0.999
    for unit in three_d.TURNED:
        assert rows[f"{unit}/matched"] == rows[f"{unit}/nearest token"] == 1
        assert rows[f"{unit}/same place"] == (shift == 0)
    assert 1 / 64 <= rows["side/any token"] <= 5 / 64  # the token itself and four beside it
    none = replace(pair, at=pair.at[:0], to=pair.to[:0], points=pair.points[:0])
    assert three_d._matched(one, other, none, three_d.TURNED).empty
    key = replace(pair, at=pair.at[[0]], to=pair.to[[0]], points=None, shown=None, scale=0.4)
    rows = three_d._matched(one, other, key, {"box": 0.2, "world": 1})
    assert rows["box/matched"].tolist() == [1] and rows["world/matched"].isna().all()
    assert rows["box/any token"].item() == 1 / 64  # 5.1 of 64 pixels


def test_random_tokens_match_at_chance():
    one, _, pair = planted(1)
    other = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(1))
    rows = three_d._matched(one, other, pair, three_d.TURNED)
    assert abs(rows["side/matched"].mean() - rows["side/any token"].mean()) < 0.12


def test_the_same_picture_has_recall_1_and_parts_lie_where_the_other_object_has_them():
    net = load_model("tabletop-base")
    same = three_d.matches({"m": net}, turned_views(3, [0.0], 0), three_d.TURNED, every_layer=["m"])
    assert same.layer.max() > 1 and (same["tokens/matched"] == 1).all() and (same["world/matched"] == 1).all()
    for pair in alike_views(3, 0):
        x, y = (pair.to * 64).astype(int).T
        assert np.linalg.norm(pair.shown[y, x] - pair.points, axis=1).max() < 0.2 and 0.2 < pair.scale < 1


def test_a_probe_reads_what_tokens_and_places_tell_together(monkeypatch):
    rng, place = np.random.default_rng(0), np.linspace(0, 3, 16)

    def tokens_and_truth(net, images, split):
        x = rng.normal(size=(len(images), 16, 4))
        depth = x @ [1.0, -2.0, 0.0, 0.5] + place
        return x, np.stack([depth, 1 + 0 * depth, x[..., 0], place + 0 * depth], -1)

    monkeypatch.setattr(three_d, "_tokens_and_truth", tokens_and_truth)
    study = SimpleNamespace(images=load_dataset("tabletop", limit=20), nets={"m": None}, parameters={"seed": 0})
    found = three_d.probed(study, "validation", 40)
    depth, normals = (found[found.target == t].groupby("reader").value.mean() for t in three_d.UNITS)
    assert depth["both"] < 0.05 and depth["token"] == pytest.approx(place.std(), rel=0.1)
    assert depth["place"] == pytest.approx(np.sqrt(5.25), rel=0.15)
    assert normals["both"] < 0.5 and normals["place"] > 10 and normals["token"] > 10
    study.estimate, study.keep = (lambda rows, *_: rows), (lambda table, _: table)
    assert three_d.errors_of(study, found)[1].verdict.tolist() == ["less", "less"]


def test_the_room_has_the_depth_and_the_normals_of_its_planes():
    seen, plain = (render([Scene(None, camera_elevation=20.0)], size=64, normals=n) for n in (True, False))
    assert plain.normal is None and torch.equal(plain.pixels, seen.pixels) and torch.equal(plain.depth, seen.depth)
    v, (s, c) = (1 - (np.arange(64) + 0.5) / 32) * np.tan(np.radians(12)), (f(np.radians(20)) for f in (np.sin, np.cos))
    down, out = ((s - v * c) / np.hypot(1, v), (c + v * s) / np.hypot(1, v))  # of rays along the middle
    table, wall = (0.36 + 4 * s) / down, (4 * c + 1.9) / out  # the eye's height, and its distance from the wall
    near = (down > 0) & (table < wall)
    assert seen.depth[0, :, 31:33].mean(1).numpy() == pytest.approx(np.where(near, table, wall), rel=1e-3)
    assert torch.equal(seen.normal[0, :, 32], torch.tensor(np.stack([0 * v, near, ~near], 1)).float())


def frames(folder: Path, poses: str = "trajectory.log", move: float = 0.25) -> None:
    """A wall two metres away as two PrimeSense frames see it, the second one from so many metres further right."""
    for name in ("color", "depth", "pose"):
        (folder / name).mkdir(parents=True)
    depth, pose, lines = np.full((480, 640), 2000, np.uint16), np.eye(4), []
    depth[:5] = 0
    for k in (0, 1):
        Image.fromarray(depth).save(folder / "depth" / f"{k}.png")
        Image.new("RGB", (640, 480), "grey").save(folder / "color" / f"{k}.jpg")
        pose[0, 3] = k * move
        lines += [f"{k} {k} {k + 1}", *(" ".join(map(str, row)) for row in pose)]
        if poses == "pose":
            np.savetxt(folder / "pose" / f"{k}.txt", pose)
    if poses == "trajectory.log":
        (folder / poses).write_text("\n".join(lines))


def as_scannet(folder: Path) -> None:
    frames(folder / "scene0707_00", "pose")
    np.savez(folder / "test.npz", name=np.array([[707, 0, 0, 1]]))
    np.savez(folder / "intrinsics.npz", scene0707_00=np.array([[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1.0]]))


def as_navi(folder: Path) -> None:
    frames(scene := folder / "mug" / "multiview_00", "")
    (scene / "color").rename(scene / "images")
    for file in (scene / "depth").iterdir():
        levels = np.asarray(Image.open(file))
        Image.fromarray(np.where(levels, 655350 / levels.clip(1), 0).round().astype(np.uint16)).save(file)
    camera = {"q": [1, 0, 0, 0], "focal_length": 525}
    told = [{"filename": f"{k}.jpg", "camera": {**camera, "t": [-250 * k, 0, 0]}} for k in (0, 1)]
    (scene / "annotations.json").write_text(json.dumps(told))


@pytest.mark.parametrize("make", [frames, as_scannet, as_navi])
def test_pixels_of_a_wall_move_by_the_parallax_in_every_layout(make, tmp_path):
    make(tmp_path / "x")
    (pair,) = pairs_of(tmp_path / "x", left=(left := Counter()))
    assert np.abs((pair.to - pair.at) * 480 - [-525 * 0.25 / 2, 0]).max() < 0.2
    assert len(pair.at) == pytest.approx(475 * (480 - 66), rel=0.01)  # 66 columns leave the picture
    assert np.abs(pair.points[:, 2] - 2).max() < 0.01 and pair.change == 30
    assert +left == {"pixels without a depth": 5 * 480}


def test_key_points_of_spair_are_shares_of_the_boxes(tmp_path):
    for folder in ("PairAnnotation/test", "JPEGImages/cat"):
        (tmp_path / folder).mkdir(parents=True)
    told = {"category": "cat", "viewpoint_variation": 2, "src_imname": "a.jpg", "trg_imname": "b.jpg"}
    told |= {"src_bndbox": [10, 10, 50, 30], "trg_bndbox": [0, 0, 50, 50]}
    told |= {"src_kps": [[20, 20], [60, 20]], "trg_kps": [[25, 40], [1, 1]]}  # the second is beside its box
    (tmp_path / "PairAnnotation" / "test" / "0.json").write_text(json.dumps(told))
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (100, 60)).save(tmp_path / "JPEGImages" / "cat" / name)
    (pair,) = pairs_of(tmp_path)
    assert pair.at.tolist() == [[0.25, 0.25]] and pair.to.tolist() == [[0.5, 0.8]] and pair.change == 2
    assert [p.size for p in pair.pictures] == [(40, 40), (50, 50)]


def test_what_a_folder_of_frames_lacks_is_named(tmp_path):
    frames(far := tmp_path / "far", move=9)
    frames(lost := tmp_path / "lost", "")
    frames(small := tmp_path / "small")
    Image.fromarray(np.ones((240, 320), np.uint16)).save(small / "depth" / "1.png")
    for folder, said in {
        tmp_path: "holds no pairs: allowed are color/ and depth/, NAVI",
        far: "has no two pictures that show a common point, such as 'far/0' and 'far/1'",
        lost: "has no pose of the frame '0', needed is pose/0.txt",
        small: "1.png' has 320 x 240 pixels, allowed are those of its picture, 640 x 480",
    }.items():
        with pytest.raises(ValueError, match=said):
            list(pairs_of(folder))


def test_a_model_that_crops_sees_the_middle_of_the_depth():
    net = SimpleNamespace(image_size=224, preprocessing={"resize": 256})
    seen = as_seen(torch.linspace(0, 1, 256).expand(1, 256, 256), net)
    assert seen.shape == (1, 224, 224) and seen[0, 0, 0] == pytest.approx(16 / 255)


def test_corruptions_without_depth_follow_their_formulas():
    def made(name: str, x: torch.Tensor, c: float) -> torch.Tensor:
        return CHANGES[name](x, c, [np.random.default_rng(k) for k in range(len(x))])

    assert made("color_quant", X, 1).unique().tolist() == pytest.approx([0, 128 / 255])
    assert len(made("color_quant", X, 5).unique()) == 32
    grey = torch.full((1, 3, 64, 64), 0.5)
    assert made("iso_noise", grey, 0.1).std() == pytest.approx(np.sqrt(0.5 / 25 + 0.01), rel=0.05)
    assert made("low_light", X, 0.3).mean() == pytest.approx(0.3 * X.square().mean().item(), abs=0.01)
    assert [c.name for c in without_depth([2])] == list(WITHOUT_DEPTH)


def test_files_of_others_are_shown_by_corruption_and_severity(tmp_path):
    for name, k, kind in product(("fog_3d", "flash"), (1, 3), ("mug", "car")):
        (folder := tmp_path / name / str(k) / kind).mkdir(parents=True)
        Image.new("RGB", (64, 64), "grey").save(folder / "0.png")
    study = SimpleNamespace(parameters={"limit": 0, "seed": 0})
    study.measure = lambda c, images: pd.DataFrame({"shown": [(c[0].name, c[0].severity, images.class_names)]})
    shown = three_d.files(study, str(tmp_path), [1, 3]).shown.tolist()
    assert shown == [(name, k, ("car", "mug")) for name in ("flash", "fog_3d") for k in (1, 3)]
    with pytest.raises(ValueError, match="corrupted is 'nowhere', allowed is a folder with"):
        three_d.files(study, "nowhere", [1])


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "rgbd").exists(), reason="../shared/data is absent")
def test_real_frames_are_reprojected_and_real_maps_find_them_beyond_chance(tmp_path):
    """By the convention of the log (camera to world); the frames overlap so much that staying in place is best."""
    (pair,) = [p for p in pairs_of(DATA / "rgbd") if p.names == ("rgbd/00000", "rgbd/00001")]
    lines = np.loadtxt([t for t in (DATA / "rgbd" / "trajectory.log").read_text().splitlines() if len(t.split()) == 4])
    x, y = (pair.at * 480 + [80, 0]).astype(int).T  # of the square in the middle
    d = np.asarray(Image.open(DATA / "rgbd" / "depth" / "00000.png"), float)[y, x] / 1000
    points = np.stack([(x - 319.5) / 525 * d, (y - 239.5) / 525 * d, d, np.ones_like(d)])
    u, v, w, _ = np.linalg.inv(lines[4:8]) @ lines[:4] @ points
    expected = np.stack([525 * u / w + 240, 525 * v / w + 240], 1)
    assert len(d) > 0.85 * 480**2 and np.abs(pair.to * 480 - expected).max() < 1e-6
    weights = torch.load(DATA / "weights" / "squeezenet1_0_imagenet_fp16.pt", weights_only=True)
    torch.save({k: v.float() for k, v in weights.items()}, file := tmp_path / "weights.pt")
    nets = {"real": load_model("supervised:torchvision/squeezenet1_0", str(file)), "random": load_model("ViT-B-32")}
    found = three_d.matches(nets, [pair], three_d.MEASURED).groupby("model")
    recall, chance = (found[f"side 0.1/{reader}"].mean() for reader in ("matched", "any token"))
    assert recall["real"] > 0.9 and recall["random"] > 0.7 and chance.max() < 0.06
