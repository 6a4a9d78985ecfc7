"""Pairs of pictures with points that both show: from colour, depth and poses, or from annotated key points."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.spatial.transform import Rotation

from zsr_utils.datasets._decode import upright_rgb


SAME = 0.03  # of the distance from the camera: a point so near to what a pixel shows is seen there
BINS = (30.0, 60.0, 90.0, 120.0, 180.0)  # degrees by which a camera turned, named by their upper edge
PRIMESENSE = (525.0, 320.0, 240.0)  # focal length and middle, in pixels of a frame of 640 x 480
WIDEST = 120.0  # degrees: NAVI's frames are paired up to here


@dataclass(frozen=True, eq=False)
class Pair:
    """Two square pictures and points that both show, `at` and `to`, in shares of the side from the upper left corner.

    `shown` are the points that the second picture's pixels show, not a number where none is known.
    """

    scene: str  # whose pairs are not independent
    names: tuple[str, str]
    pictures: tuple[Image.Image, Image.Image]
    at: Float[np.ndarray, "m 2"]
    to: Float[np.ndarray, "m 2"]
    change: float = 0.0  # of the view, or the upper edge of its bin
    points: Float[np.ndarray, "m 3"] | None = None  # in space; None for key points
    shown: Float[np.ndarray, "s s 3"] | None = None
    scale: float = 1.0  # the box of the second picture's object, in sides


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture with its depth; `middle` is None where the picture's own is meant."""

    name: str
    color: Path
    depth: Path
    pose: Float[np.ndarray, "4 4"]  # camera, looking along +z with y down, to world
    focal: float
    middle: tuple[float, float] | None = None
    far: float = 0.0  # depth is far / value (NAVI), or else in thousandths

    def seen(self) -> tuple[Image.Image, Float[np.ndarray, "s s 3"], np.ndarray]:
        """The square in the middle, the points of the world that its pixels show, and the optical axis in it."""
        picture, levels = upright_rgb(Image.open(self.color)), np.asarray(Image.open(self.depth), float)
        (w, h), side = picture.size, min(picture.size)
        if levels.shape != (h, w):
            size = " x ".join(map(str, levels.shape[::-1]))
            raise ValueError(f"{str(self.depth)!r} has {size} pixels, allowed are those of its picture, {w} x {h}.")
        with np.errstate(divide="ignore", invalid="ignore"):
            z = self.far / levels if self.far else levels / 1000
        z = np.where(np.isfinite(z) & (z > 0), z, np.nan)
        left, top = (w - side) // 2, (h - side) // 2
        axis = np.subtract(self.middle or (w / 2, h / 2), (left, top))
        z = z[top : top + side, left : left + side, None]
        y, x = np.indices(z.shape[:2]) + 0.5
        local = np.concatenate([(np.stack([x, y], -1) - axis) / self.focal * z, z], -1)
        picture = picture.crop((left, top, left + side, top + side))
        return picture, local @ self.pose[:3, :3].T + self.pose[:3, 3], axis


def seen_by(one: Frame, other: Frame, scene: str = "") -> Pair:
    """Pixels of a frame whose points another frame shows too; none in `at` where it shows no such point."""
    (a, points, _), (b, shown, axis) = one.seen(), other.seen()
    local = (points - other.pose[:3, 3]) @ other.pose[:3, :3]
    with np.errstate(divide="ignore", invalid="ignore"):
        to = local[..., :2] / local[..., 2:] * other.focal + axis
        inside = (local[..., 2] > 0) & ((to >= 0) & (to < b.width)).all(-1)
    x, y = np.where(inside[..., None], to, 0).astype(int).reshape(-1, 2).T
    apart = np.linalg.norm(shown[y, x].reshape(points.shape) - points, axis=-1)
    both = inside & (np.nan_to_num(apart, nan=np.inf) < SAME * local[..., 2])
    at = (np.argwhere(both)[:, ::-1] + 0.5) / a.width
    turn = np.degrees(Rotation.from_matrix(one.pose[:3, :3].T @ other.pose[:3, :3]).magnitude())
    upper = BINS[min(np.searchsorted(BINS, turn), len(BINS) - 1)]
    return Pair(scene, (one.name, other.name), (a, b), at, to[both] / b.width, upper, points[both], shown)


def pairs_of(folder: str | Path, number: int = 0, seed: int = 0, left: dict | None = None) -> Iterator[Pair]:
    """Pairs of a folder, `number` of them drawn by `seed` (0 is all), in one of four layouts.

    They are: SPair-71k (`PairAnnotation/test`), cut to the objects' boxes; the 1,500 pairs of ScanNet's test scenes
    (`test.npz`); NAVI (`<object>/<scene>/annotations.json`); and `color/<frame>`, `depth/<frame>.png` in thousandths of
    a metre, with a camera-to-world matrix in `pose/<frame>.txt` or one after the other in `trajectory.log`, and
    `intrinsic.txt` unless the camera is a PrimeSense. Of a picture with depth the square in its middle is taken.

    Args:
        left: Gets the number of pairs that show no common point, and of pixels that have no depth.

    Raises: ValueError for another layout, a frame without a pose, a depth of another size, or no common points at all.
    """
    root, left = Path(folder), {} if left is None else left
    listed = _spair(root) or _scannet(root) or _navi(root) or _combined(_frames(root), root.name)
    rng, shared = np.random.default_rng(seed), 0
    for k in rng.permutation(len(listed))[: number or None]:
        pair = _keypoints(root, listed[k]) if isinstance(listed[k], dict) else seen_by(*listed[k])
        if pair.shown is not None:
            none = int(np.isnan(pair.shown[..., 2]).sum())
            left["pixels without a depth"] = left.get("pixels without a depth", 0) + none
        if len(pair.at):
            shared += 1
            yield pair
        else:
            left["pairs without a common point"] = left.get("pairs without a common point", 0) + 1
    if not shared:
        such = f", such as {' and '.join(map(repr, pair.names))}" if len(listed) else ""
        raise ValueError(f"{str(root)!r} has no two pictures that show a common point{such}.")


def _combined(frames: Sequence[Frame], scene: str, widest: float = 180.0) -> list[tuple[Frame, Frame, str]]:
    def turn(a: Frame, b: Frame) -> float:
        return np.degrees(Rotation.from_matrix(a.pose[:3, :3].T @ b.pose[:3, :3]).magnitude())

    return [(a, b, scene) for a, b in combinations(frames, 2) if widest >= 180 or turn(a, b) <= widest]


def _frames(root: Path, camera: np.ndarray | None = None) -> list[Frame]:
    """Frames of `color/` and `depth/` in the order of their numbers."""
    log, own, found = root / "trajectory.log", root / "intrinsic.txt", []
    colors = sorted(
        (p for p in root.glob("color/*") if p.suffix in (".jpg", ".png")), key=lambda p: (len(p.stem), p.stem)
    )
    if not colors:
        raise ValueError(f"{str(root)!r} holds no pairs: allowed are color/ and depth/, NAVI, ScanNet and SPair-71k.")
    lines = [t.split() for t in log.read_text("utf-8").splitlines()] if log.is_file() else []
    poses = np.array([t for t in lines if len(t) == 4], float).reshape(-1, 4, 4)
    camera = np.loadtxt(own) if camera is None and own.is_file() else camera
    for k, color in enumerate(colors):
        file = root / "pose" / f"{color.stem}.txt"
        if not file.is_file() and k >= len(poses):
            raise ValueError(f"{str(root)!r} has no pose of the frame {color.stem!r}, needed is pose/{file.name}.")
        pose = np.loadtxt(file) if file.is_file() else poses[k]
        focal, *middle = PRIMESENSE if camera is None else (camera[0, 0], camera[0, 2] + 0.5, camera[1, 2] + 0.5)
        depth = root / "depth" / f"{color.stem}.png"
        found.append(Frame(f"{root.name}/{color.stem}", color, depth, pose, focal, tuple(middle)))
    return found


def _scannet(root: Path) -> list[tuple[Frame, Frame, str]]:
    if not (root / "test.npz").is_file():
        return []
    cameras, found, known = np.load(root / "intrinsics.npz"), [], {}
    for room, sequence, *pair in np.load(root / "test.npz")["name"]:
        scene = f"scene{room:04d}_{sequence:02d}"
        if scene not in known:
            known[scene] = {f.color.stem: f for f in _frames(root / scene, cameras[scene])}
        found.append((*(known[scene][str(k)] for k in pair), scene))
    return found


def _navi(root: Path) -> list[tuple[Frame, Frame, str]]:
    """Lengths in metres; `q` (w, x, y, z) and `t` bring the object before the camera."""
    found = []
    for file in sorted(root.glob("*/*/annotations.json")):
        frames, scene = [], file.parent
        for shown in json.loads(file.read_text("utf-8")):
            camera, pose = shown["camera"], np.eye(4)
            pose[:3, :3] = Rotation.from_quat(camera["q"], scalar_first=True).as_matrix()
            pose[:3, 3] = np.divide(camera["t"], 1000)
            color, focal = scene / "images" / shown["filename"], camera["focal_length"]
            depth = scene / "depth" / f"{color.stem}.png"
            name = f"{scene.parent.name}/{scene.name}/{color.stem}"
            frames.append(Frame(name, color, depth, np.linalg.inv(pose), focal, far=655.35))
        found += _combined(frames, f"{scene.parent.name}/{scene.name}", WIDEST)
    return found


def _spair(root: Path) -> list[dict]:
    return [json.loads(p.read_text("utf-8")) for p in sorted(root.glob("PairAnnotation/test/*.json"))]


def _keypoints(root: Path, told: dict) -> Pair:
    """A pair of SPair-71k; a box is made square to the right and below, as the picture goes on there."""
    pictures, points = [], []
    for which in ("src", "trg"):
        left, top, right, bottom = told[f"{which}_bndbox"]
        side = max(right - left, bottom - top)
        with Image.open(root / "JPEGImages" / told["category"] / told[f"{which}_imname"]) as file:
            pictures.append(upright_rgb(file).crop((left, top, left + side, top + side)))
        points.append((np.array(told[f"{which}_kps"], float) - (left, top)) / side)
    at, to = points
    inside = ((at >= 0) & (at < 1) & (to >= 0) & (to < 1)).all(1)
    names = tuple(f"{told['category']}/{told[which]}" for which in ("src_imname", "trg_imname"))
    return Pair(told["category"], names, tuple(pictures), at[inside], to[inside], float(told["viewpoint_variation"]))
