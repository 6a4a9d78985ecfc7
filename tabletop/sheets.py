"""Contact sheets and the learning curve for the book: `python -m tabletop.sheets OUTDIR`."""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tabletop.data import SIZE, to_uint8
from tabletop.materials import PATTERNS, SETTINGS, TYPICAL_PATTERN
from tabletop.render import render
from tabletop.scene import STYLES, Scene
from tabletop.shapes import HELD_OUT_KINDS, KINDS


ROOT = Path(__file__).resolve().parents[1]
ZOOM = 2
GAP, LABEL = 10, 26  # pixels between tiles, and below a tile for its label
PAPER, INK, RULE = (255, 255, 255), (40, 40, 44), (215, 215, 220)
LINE_COLORS = {"loss": (196, 78, 32), "zero_shot": (31, 91, 176), "accuracy": (31, 91, 176)}
TITLES = {"zero_shot": "zero-shot accuracy, validation set", "accuracy": "accuracy, validation set"}

Cell = tuple[str, Sequence[Scene]]  # a label, and the scenes stacked above it

LOOKS = {
    "mug": Scene("mug", color="blue", setting="kitchen"),
    "bottle": Scene("bottle", color="green", setting="picnic"),
    "chair": Scene("chair", color="orange", setting="study"),
    "mushroom": Scene("mushroom", color="red", pattern="dotted", setting="garden"),
    "rocket": Scene("rocket", color="white", setting="workshop"),
    "car": Scene("car", color="yellow", setting="studio"),
    "house": Scene("house", color="pink", setting="garden"),
    "lamp": Scene("lamp", color="purple", setting="study"),
    "snowman": Scene("snowman", color="white", setting="workshop"),
    "duck": Scene("duck", color="yellow", setting="picnic"),
}


def kinds() -> list[Cell]:
    """The ten kinds of the classification task, each from two sides."""
    return [(k, [replace(LOOKS[k], yaw=yaw) for yaw in (25.0, -50.0)]) for k in KINDS]


def held_out() -> list[Cell]:
    """The kinds that no pre-training scene shows."""
    colors = ("blue", "green", "red", "black", "green", "orange", "brown", "purple")
    return [(k, [Scene(k, color=c)]) for k, c in zip(HELD_OUT_KINDS, colors, strict=True)]


def patterns() -> list[Cell]:
    """Every surface pattern on the same object."""
    return [(p, [Scene("bottle", color="blue", pattern=p, size=1.1)]) for p in PATTERNS]


def settings() -> list[Cell]:
    """Every setting around the same object."""
    return [(s, [Scene("mug", color="orange", setting=s)]) for s in SETTINGS]


def styles() -> list[Cell]:
    """The same five scenes in every drawing style, one style in each row."""
    shown = ("mug", "mushroom", "car", "house", "duck")
    return [(k, [replace(LOOKS[k], style=s) for s in STYLES]) for k in shown]


def cards() -> list[Cell]:
    """What else can stand in a scene, and an object that wears another kind's pattern."""
    mug = LOOKS["mug"]
    return [
        ("own name", [replace(mug, card="mug")]),
        ("wrong name", [replace(mug, card="duck")]),
        ("occluder", [replace(mug, occlusion=0.25)]),
        ("second object", [replace(mug, second_kind="rocket", second_color="red")]),
        ("brick mug", [replace(mug, color="brown", pattern=TYPICAL_PATTERN["house"])]),
    ]


SHEETS = {
    "kinds": (kinds, 5),
    "held-out": (held_out, 4),
    "patterns": (patterns, 5),
    "settings": (settings, 4),
    "styles": (styles, 5),
    "cards": (cards, 5),
}


def contact_sheet(cells: Sequence[Cell], columns: int) -> Image.Image:
    """Scenes as the model sees them, enlarged without smoothing, each stack above its label.

    Examples:
        >>> contact_sheet([("mug", [Scene("mug")]), ("duck", [Scene("duck")])], columns=2).size
        (286, 174)
    """
    pixels = iter(to_uint8(render([s for _, stack in cells for s in stack], size=SIZE).pixels))
    tile, height = SIZE * ZOOM, len(cells[0][1])
    band = height * (tile + GAP) - GAP + LABEL + GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (tile + GAP) + GAP, rows * band + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=19)
    for index, (label, stack) in enumerate(cells):
        left, top = GAP + index % columns * (tile + GAP), GAP + index // columns * band
        for row in range(len(stack)):
            picture = Image.fromarray(next(pixels)).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top + row * (tile + GAP)))
        middle = (left + tile / 2, top + band - LABEL / 2 - GAP)
        draw.text(middle, label, fill=INK, font=font, anchor="mm")
    return sheet


def learning_curve(path: Path, *, width: int = 680, panel: int = 240) -> Image.Image:
    """Loss and accuracy (zero-shot, or that of a classifier) against the samples seen, from a model's `curve.csv`.

    Args:
        path: The curve that `tabletop.train` wrote.
        width: Width of the picture.
        panel: Height of each of the two panels.

    Raises:
        FileNotFoundError: If the model has not been trained yet.
        ValueError: If there is nothing to draw: an average of weights has no training of its own.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist yet: `python -m tabletop.train` writes it.")
    with path.open(newline="") as file:
        points = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    if "loss" not in points[0]:
        raise ValueError(f"{path.parent.name} was not trained, so it has no learning curve.")
    scale = 3  # drawn large and reduced, so that lines are smooth
    metric = next(name for name in TITLES if name in points[0])
    titles = {"loss": "contrastive loss" if metric == "zero_shot" else "cross-entropy", metric: TITLES[metric]}
    picture = Image.new("RGB", (width * scale, 2 * panel * scale), PAPER)
    for index, (name, title) in enumerate(titles.items()):
        _panel(ImageDraw.Draw(picture), points, name, title, (width, panel, index * panel), scale)
    return picture.resize((width, 2 * panel), Image.Resampling.LANCZOS)


def _panel(draw, points, name, title, place, scale) -> None:
    width, height, top = place
    left, right, upper, lower = 62, width - 24, top + 38, top + height - 48
    font = ImageFont.load_default(size=16 * scale)
    across = max(p["samples"] for p in points)
    above = 1.0 if name in TITLES else max(p[name] for p in points) * 1.05

    def at(samples, value):
        x = left + (right - left) * samples / across
        return x * scale, (lower - (lower - upper) * value / above) * scale

    for tick in _ticks(above):
        draw.line([at(0, tick), at(across, tick)], fill=RULE, width=scale)
        x, y = at(0, tick)
        draw.text((x - 8 * scale, y), f"{tick:g}", fill=INK, font=font, anchor="rm")
    for tick in _ticks(across):
        x, y = at(tick, 0)
        draw.text((x, y + 8 * scale), f"{tick:,.0f}", fill=INK, font=font, anchor="ma")
    draw.text((left * scale, (top + 8) * scale), title, fill=INK, font=font, anchor="la")
    if name in TITLES:
        x, y = right * scale, (lower + 27) * scale
        draw.text((x, y), "samples seen", fill=INK, font=font, anchor="ra")
    line = [at(p["samples"], p[name]) for p in points]
    draw.line(line, fill=LINE_COLORS[name], width=round(2.5 * scale), joint="curve")
    for x, y in line:
        r = 3.5 * scale
        draw.ellipse([x - r, y - r, x + r, y + r], fill=LINE_COLORS[name])


def _ticks(above: float) -> list[float]:
    """Round values from 0 up to `above`, four to eight of them.

    Examples:
        >>> [float(t) for t in _ticks(1.0)]
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    power = 10.0 ** np.floor(np.log10(above))
    step = next(s * power for s in (0.1, 0.2, 0.5, 1, 2) if above / (s * power) <= 7)
    return [round(i * step, 10) for i in range(int(above / step + 1e-9) + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outdir", type=Path, help="folder for the pictures")
    parser.add_argument("--model", default="tabletop-base", help="whose learning curve is drawn")
    arguments = parser.parse_args()
    arguments.outdir.mkdir(parents=True, exist_ok=True)
    for name, (cells, columns) in SHEETS.items():
        contact_sheet(cells(), columns).save(arguments.outdir / f"{name}.png", optimize=True)
    curve = ROOT / "data" / "models" / arguments.model / "curve.csv"
    try:
        learning_curve(curve).save(arguments.outdir / "curve.png", optimize=True)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"the sheets are written, the curve is not: {error}\n")


if __name__ == "__main__":
    main()
