"""Chapter 17 beyond the contract: laws of depth, exact geometry, and matches that were planted."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tabletop import Scene
from tabletop.views import project, seen_in, views
from zsr_utils.conditions import STRENGTHS, corrupted, in_depth, transmission
from zsr_utils.datasets import load_dataset
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


def grids(shift: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random tokens, the same ones so many tokens further right, and pixels that moved as they did."""
    one = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(0))
    at = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), -1)
    points = np.concatenate([at / 10, np.zeros((64, 64, 1))], -1)
    stay = at[..., 0] < 64 - 8 * shift
    return one, one.roll(shift, 1), at[stay], at[stay] + [8 * shift, 0], points[stay], np.roll(points, 8 * shift, 1)


@pytest.mark.parametrize("shift", [0, 3])
def test_planted_correspondences_are_found_exactly(shift):
    rows = three_d._matched(*grids(shift)).mean()
    assert len(three_d._matched(*grids(shift))) == 8 * (8 - shift)
    assert rows["pixels/matched"] == rows["world/matched"] == rows["pixels/nearest token"] == 1
    assert rows["pixels/same place"] == rows["world/same place"] == (shift == 0)
    assert 1 / 64 <= rows["pixels/any token"] <= 5 / 64  # the token itself and four beside it
    none = grids(shift)
    assert three_d._matched(*none[:2], *(v[:0] for v in none[2:5]), none[5]).empty


def test_random_tokens_match_at_chance():
    one, _, *truth = grids(1)
    other = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(1))
    rows = three_d._matched(one, other, *truth)
    assert abs(rows["pixels/matched"].mean() - rows["pixels/any token"].mean()) < 0.12


def test_a_probe_reads_what_tokens_and_places_tell_together(monkeypatch):
    rng, place = np.random.default_rng(0), np.linspace(0, 3, 16)

    def tokens_and_depth(net, images, split):
        x = rng.normal(size=(len(images), 16, 4))
        return x, x @ [1.0, -2.0, 0.0, 0.5] + place

    monkeypatch.setattr(three_d, "_tokens_and_depth", tokens_and_depth)
    study = SimpleNamespace(images=load_dataset("tabletop", limit=20), nets={"m": None}, parameters={"seed": 0})
    error = three_d.probed(study, "validation", 40).groupby("reader").value.mean()
    assert error["both"] < 0.05 and error["token"] == pytest.approx(place.std(), rel=0.1)
    assert error["place"] == pytest.approx(np.sqrt(5.25), rel=0.15)


@pytest.mark.skipif(not (DATA / "rgbd").exists(), reason="../shared/data is absent")
def test_depth_and_poses_of_real_frames_land_on_each_other():
    """By the convention of the log (camera to world), points of frame 0 lie on the surface that frame 1 sees."""
    lines = np.loadtxt([t for t in (DATA / "rgbd" / "trajectory.log").read_text().splitlines() if len(t.split()) == 4])
    poses = lines.reshape(-1, 4, 4)
    depth = [np.asarray(Image.open(DATA / "rgbd" / "depth" / f"0000{k}.png"), float) / 1000 for k in (0, 1)]
    y, x = np.nonzero(depth[0])
    z = depth[0][y, x]
    points = np.stack([(x - 319.5) / 525 * z, (y - 239.5) / 525 * z, z, np.ones_like(z)])
    u, v, d, _ = np.linalg.inv(poses[1]) @ poses[0] @ points
    u, v = (np.round(525 * a / d + c).astype(int) for a, c in ((u, 319.5), (v, 239.5)))
    inside = (d > 0) & (u >= 0) & (u < 640) & (v >= 0) & (v < 480)
    there = depth[1][v[inside], u[inside]]
    assert (np.abs(there - d[inside])[there > 0] < 0.05).mean() > 0.9
