"""Pairs of pictures with points that both show: from colour, depth and poses, or from annotated key points."""

import json
from collections import Counter
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
PRIMESENSE = np.array([[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1]])  # of a frame of 640 x 480
WIDEST = 120.0  # degrees: NAVI's frames are paired up to here


@dataclass(frozen=True, eq=False)
class Pair:
    """Two square pictures and points that both show, `at` and `to`, in sides from the upper left corner."""

    scene: str  # whose pairs are not independent
    names: tuple[str, str]
    pictures: tuple[Image.Image, Image.Image]
    at: Float[np.ndarray, "m 2"]
    to: Float[np.ndarray, "m 2"]
    change: float = 0.0  # of the view, or the upper edge of its bin
    points: Float[np.ndarray, "m 3"] | None = None  # in space; None for key points
    shown: Float[np.ndarray, "s s 3"] | None = None  # by the second picture's pixels; not a number if not known
    scale: float = 1.0  # the box of the second picture's object, in sides


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture with its depth, which is `far` / value, or else in thousandths."""

    name: str
    color: Path
    depth: Path
    pose: Float[np.ndarray, "4 4"]  # camera, looking along +z with y down, to world
    focal: float
    middle: tuple[float, float] | None = None  # pixels from the corner; by default that of the picture
    far: float = 0.0

    def seen(self) -> tuple[Image.Image, Float[np.ndarray, "s s 3"], np.ndarray]:
        """The square in the middle, the points of the world that its pixels show, and the optical axis in it."""
        picture, levels = upright_rgb(Image.open(self.color)), np.asarray(Image.open(self.depth), float)
        (w, h), side = picture.size, min(picture.size)
        if levels.shape != (h, w):
            size = " x ".join(map(str, levels.shape[::-1]))
            raise ValueError(f"{str(self.depth)!r} has {size} pixels, allowed are those of its picture, {w} x {h}.")
        left, top = (w - side) // 2, (h - side) // 2
        levels = levels[top : top + side, left : left + side, None]
        z = np.where(np.isfinite(levels) & (levels > 0), levels, np.nan)
        z = self.far / z if self.far else z / 1000
        axis = np.subtract(self.middle or (w / 2, h / 2), (left, top))
        local = np.concatenate(
            [(np.indices((side, side)).transpose(1, 2, 0)[..., ::-1] + 0.5 - axis) / self.focal * z, z], -1
        )
        picture = picture.crop((left, top, left + side, top + side))
        return picture, local @ self.pose[:3, :3].T + self.pose[:3, 3], axis


def seen_by(one: Frame, other: Frame, scene: str) -> Pair:
    """Pixels of a frame whose points another frame shows too; none in `at` where it shows no such point."""
    (a, points, _), (b, shown, axis) = one.seen(), other.seen()
    local = (points - other.pose[:3, 3]) @ other.pose[:3, :3]
    to = local[..., :2] / local[..., 2:] * other.focal + axis
    inside = (local[..., 2] > 0) & ((to >= 0) & (to < b.width)).all(-1)
    x, y = np.where(inside[..., None], to, 0).astype(int).reshape(-1, 2).T
    apart = np.linalg.norm(shown[y, x].reshape(points.shape) - points, axis=-1)
    both = inside & (apart < SAME * local[..., 2])
    at, upper = (np.argwhere(both)[:, ::-1] + 0.5) / a.width, BINS[np.searchsorted(BINS[:-1], _turn(one, other))]
    return Pair(scene, (one.name, other.name), (a, b), at, to[both] / b.width, upper, points[both], shown)


def pairs_of(folder: str | Path, number: int = 0, seed: int = 0, left: Counter | None = None) -> Iterator[Pair]:
    """Pairs of a folder, `number` of them drawn by `seed` (0 is all), in one of four layouts.

    They are: SPair-71k (`PairAnnotation/test`), cut to the objects' boxes; ScanNet's 1,500 pairs (`test.npz`); NAVI
    (`<object>/<scene>/annotations.json`); and `color/<frame>`, `depth/<frame>.png` in thousandths of a metre, with a
    camera-to-world matrix in `pose/<frame>.txt` or one after the other in `trajectory.log`, and `intrinsic.txt` unless
    the camera is a PrimeSense. Of a picture with depth the square in its middle is taken. `left` counts pairs that show
    no common point, and pixels (of second pictures) that have no depth.

    Raises: ValueError for another layout, a frame without a pose, a depth of another size, or no common points at all.
    """
    root, left, shared = Path(folder), Counter() if left is None else left, 0
    listed = _spair(root) or _scannet(root) or _navi(root) or _combined(_frames(root), root.name)
    for k in np.random.default_rng(seed).permutation(len(listed))[: number or None]:
        pair = _keypoints(root, listed[k]) if isinstance(listed[k], dict) else seen_by(*listed[k])
        left["pixels without a depth"] += 0 if pair.shown is None else int(np.isnan(pair.shown[..., 2]).sum())
        left["pairs without a common point"] += not len(pair.at)
        shared += len(pair.at)
        if len(pair.at):
            yield pair
    if not shared:
        such = f", such as {' and '.join(map(repr, pair.names))}" if len(listed) else ""
        raise ValueError(f"{str(root)!r} has no two pictures that show a common point{such}.")


def _turn(one: Frame, other: Frame) -> float:
    return np.degrees(Rotation.from_matrix(one.pose[:3, :3].T @ other.pose[:3, :3]).magnitude())


def _combined(frames: Sequence[Frame], scene: str, widest: float = 180.0) -> list[tuple[Frame, Frame, str]]:
    return [(a, b, scene) for a, b in combinations(frames, 2) if widest == 180 or _turn(a, b) <= widest]


def _frames(root: Path, camera: np.ndarray | None = None) -> list[Frame]:
    """Frames of `color/` and `depth/` in the order of their numbers."""
    log, own, found = root / "trajectory.log", root / "intrinsic.txt", []
    colors = sorted(root.glob("color/*.[jp][pn]g"), key=lambda path: (len(path.stem), path.stem))
    if not colors:
        raise ValueError(f"{str(root)!r} holds no pairs: allowed are color/ and depth/, NAVI, ScanNet and SPair-71k.")
    lines = [line.split() for line in log.read_text("utf-8").splitlines()] if log.is_file() else []
    poses = np.array([line for line in lines if len(line) == 4], float).reshape(-1, 4, 4)
    camera = camera if camera is not None else np.loadtxt(own) if own.is_file() else PRIMESENSE
    for k, color in enumerate(colors):
        file, depth = root / "pose" / f"{color.stem}.txt", root / "depth" / f"{color.stem}.png"
        if not file.is_file() and k >= len(poses):
            raise ValueError(f"{str(root)!r} has no pose of the frame {color.stem!r}, needed is pose/{file.name}.")
        pose, middle = np.loadtxt(file) if file.is_file() else poses[k], tuple(camera[:2, 2] + 0.5)
        found.append(Frame(f"{root.name}/{color.stem}", color, depth, pose, camera[0, 0], middle))
    return found


def _scannet(root: Path) -> list[tuple[Frame, Frame, str]]:
    if not (root / "test.npz").is_file():
        return []
    cameras, found, known = np.load(root / "intrinsics.npz"), [], {}
    for room, sequence, *pair in np.load(root / "test.npz")["name"]:
        if (scene := f"scene{room:04d}_{sequence:02d}") not in known:
            known[scene] = {frame.color.stem: frame for frame in _frames(root / scene, cameras[scene])}
        found.append((*(known[scene][str(k)] for k in pair), scene))
    return found


def _navi(root: Path) -> list[tuple[Frame, Frame, str]]:
    """Lengths in metres; `q` (w, x, y, z) and `t` bring the object before the camera."""
    found = []
    for file in sorted(root.glob("*/*/annotations.json")):
        frames, scene = [], file.parent.relative_to(root)
        for told in json.loads(file.read_text("utf-8")):
            camera, pose, stem = told["camera"], np.eye(4), Path(told["filename"]).stem
            pose[:3, :3] = Rotation.from_quat(camera["q"], scalar_first=True).as_matrix()
            pose[:3, 3] = np.divide(camera["t"], 1000)
            files = file.parent / "images" / told["filename"], file.parent / "depth" / f"{stem}.png"
            frames.append(Frame(f"{scene}/{stem}", *files, np.linalg.inv(pose), camera["focal_length"], far=655.35))
        found += _combined(frames, str(scene), WIDEST)
    return found


def _spair(root: Path) -> list[dict]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(root.glob("PairAnnotation/test/*.json"))]


def _keypoints(root: Path, told: dict) -> Pair:
    """A pair of SPair-71k; a box is made square to the right and below, as the picture goes on there."""
    names, pictures, points = [], [], []
    for which in ("src", "trg"):
        left, top, right, bottom = told[f"{which}_bndbox"]
        side, name = max(right - left, bottom - top), f"{told['category']}/{told[f'{which}_imname']}"
        pictures.append(upright_rgb(Image.open(root / "JPEGImages" / name)).crop((left, top, left + side, top + side)))
        points.append((np.array(told[f"{which}_kps"], float) - (left, top)) / side)
        names.append(name)
    inside = ((np.stack(points) >= 0) & (np.stack(points) < 1)).all((0, 2))
    return Pair(told["category"], names, pictures, *(p[inside] for p in points), float(told["viewpoint_variation"]))
