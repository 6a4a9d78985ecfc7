"""A scene: everything in the tabletop world that can vary, as one small record."""

from dataclasses import dataclass, replace

import numpy as np

from tabletop.materials import COLORS, PATTERNS, SETTINGS, TYPICAL_PATTERN
from tabletop.shapes import ALL_KINDS, HELD_OUT_KINDS, KINDS


STYLES = ("photo", "cartoon", "sketch", "silhouette")

# Seed streams: two scenes drawn from different streams never share their random state.
STREAMS = {"pretrain": 1, "validation": 2, "test": 3}


@dataclass(frozen=True)
class Scene:
    """One still life; lengths in object heights, angles in degrees.

    Attributes:
        kind: What stands on the table, a key of `ALL_KINDS`, or None for nothing.
        color: Named colour of its body, a key of `COLORS`.
        pattern: Surface pattern of its body, a key of `PATTERNS`.
        size: Height factor, 1 is the kind's own size.
        x, z: Position on the table; +x is right, +z is towards the camera.
        yaw: Rotation about the vertical axis; 0 faces the camera.
        camera_azimuth, camera_elevation: Where the camera stands.
        camera_distance: Distance of the camera from the middle of the scene.
        light_azimuth, light_elevation: Where the light comes from.
        light_warmth: -1 (bluish) to 1 (yellowish).
        light_strength: 1 is normal.
        setting: Table and backdrop together, a key of `SETTINGS`.
        style: How the scene is drawn, one of `STYLES`.
        card: Word printed on the label card, empty for a blank card, or None for no card.
        card_width: Least width of the card, which is never narrower than its word.
        occlusion: How far a box in the foreground reaches in front of the object, 0 (no box) to 0.5: it covers
            0.275 + 0.9 * occlusion of the image width from one side.
        second_kind, second_color, second_pattern: A further object, or None.
        second_x, second_z: Where the further object stands.
        phase: In [0, 1); shifts all surface textures.
    """

    kind: str | None
    color: str = "red"
    pattern: str = "plain"
    size: float = 1.0
    x: float = 0.0
    z: float = 0.0
    yaw: float = 25.0
    camera_azimuth: float = 0.0
    camera_elevation: float = 18.0
    camera_distance: float = 4.0
    light_azimuth: float = -40.0
    light_elevation: float = 55.0
    light_warmth: float = 0.0
    light_strength: float = 1.0
    setting: str = "studio"
    style: str = "photo"
    card: str | None = None
    card_width: float = 0.0
    occlusion: float = 0.0
    second_kind: str | None = None
    second_color: str = "blue"
    second_pattern: str = "plain"
    second_x: float = 0.75
    second_z: float = -0.5
    phase: float = 0.0

    def __post_init__(self):
        allowed = {
            "color": COLORS,
            "pattern": PATTERNS,
            "setting": SETTINGS,
            "style": STYLES,
            "second_color": COLORS,
            "second_pattern": PATTERNS,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"Scene: {name} is {getattr(self, name)!r}, allowed are {', '.join(values)}.")
        for name in ("kind", "second_kind"):
            value = getattr(self, name)
            if value is not None and value not in ALL_KINDS:
                raise ValueError(f"Scene: {name} is {value!r}, allowed are None, {', '.join(ALL_KINDS)}.")
        if not self.size > 0:
            raise ValueError(f"Scene: size is {self.size}, allowed is above 0.")
        if not self.card_width >= 0:
            raise ValueError(f"Scene: card_width is {self.card_width}, allowed is 0 or more.")
        if not 0 <= self.occlusion <= 0.5:
            raise ValueError(f"Scene: occlusion is {self.occlusion}, allowed is 0 to 0.5.")


@dataclass(frozen=True)
class SceneDistribution:
    """Proportions from which scenes are drawn; `docs` of the data card quote these names.

    Attributes:
        kinds: Object kinds, drawn uniformly.
        settings: Settings, drawn uniformly.
        styles: Probability of each drawing style.
        typical_pattern: Share of scenes whose object wears its kind's typical pattern.
        plain: Share of scenes with a plain object; the rest draws any pattern.
        card: Share of scenes with a label card (before `true_card`).
        true_card: Share of cards with a word that name the object; the others carry another kind's name.
        no_word: Share of cards that carry no word at all: one half is blank, the other shows letters in no order.
        card_only: Share of scenes that show nothing but a card with the name of a kind.
        card_width: Bounds of the least width of cards; 0 to 0 makes them as wide as their words.
        second: Share of scenes with a further object of another kind.
        occluder: Share of scenes with a box in the foreground.
        yaw_range, elevation_range, light_range: Half width or bounds of the angles, in degrees.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    settings: tuple[str, ...] = ("studio", "study", "kitchen", "workshop", "picnic", "garden")
    styles: tuple[tuple[str, float], ...] = (("photo", 1.0),)
    typical_pattern: float = 0.3
    plain: float = 0.35
    card: float = 0.0
    true_card: float = 1.0
    no_word: float = 0.0
    card_only: float = 0.0
    card_width: tuple[float, float] = (0.0, 0.0)
    second: float = 0.0
    occluder: float = 0.0
    yaw_range: float = 65.0
    elevation_range: tuple[float, float] = (10.0, 32.0)
    light_range: float = 70.0

    def __post_init__(self):
        for name in ("typical_pattern", "plain", "card", "true_card", "no_word", "card_only", "second", "occluder"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"SceneDistribution: {name} is {value}, allowed is 0 to 1.")
        for name, known in (("kinds", ALL_KINDS), ("settings", SETTINGS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"SceneDistribution: {name} holds {value!r}, allowed are {', '.join(known)}.")
        total = sum(p for _, p in self.styles)
        if abs(total - 1) > 1e-9 or any(style not in STYLES for style, _ in self.styles):
            raise ValueError(
                f"SceneDistribution: styles are {dict(self.styles)}, allowed are probabilities of "
                f"{', '.join(STYLES)} that sum to 1."
            )
        if self.typical_pattern + self.plain > 1:
            raise ValueError("SceneDistribution: typical_pattern + plain is above 1.")

    def draw(self, seed: int, stream: str, index: int) -> Scene:
        """Scene number `index` of a stream: the same for the same arguments, whatever was drawn before.

        Examples:
            >>> d = SceneDistribution()
            >>> d.draw(0, "validation", 7) == d.draw(0, "validation", 7)
            True
        """
        if stream not in STREAMS:
            raise ValueError(f"stream is {stream!r}, allowed are {', '.join(STREAMS)}.")
        rng = np.random.default_rng([seed, STREAMS[stream], index])
        kind = self.kinds[index % len(self.kinds)]
        scene = Scene(
            kind=kind,
            color=_pick(rng, COLORS),
            pattern=self._pattern(rng, kind),
            size=_uniform(rng, 0.82, 1.12),
            x=_uniform(rng, -0.22, 0.22),
            z=_uniform(rng, -0.2, 0.2),
            yaw=_uniform(rng, -self.yaw_range, self.yaw_range),
            camera_azimuth=_uniform(rng, -15, 15),
            camera_elevation=_uniform(rng, *self.elevation_range),
            camera_distance=_uniform(rng, 3.7, 4.4),
            light_azimuth=_uniform(rng, -self.light_range, self.light_range),
            light_elevation=_uniform(rng, 35, 75),
            light_warmth=_uniform(rng, -0.6, 0.6),
            light_strength=_uniform(rng, 0.8, 1.15),
            setting=_pick(rng, self.settings),
            style=_pick(rng, dict(self.styles), p=[p for _, p in self.styles]),
            phase=round(float(rng.random()), 4),
        )
        has_card, names_it, wrong = rng.random(), rng.random(), rng.random()
        if has_card < self.card:
            others = [k for k in self.kinds if k != kind]
            word = kind if names_it < self.true_card else others[int(wrong * len(others))]
            scene = replace(scene, card=word)
        has_second, has_occluder = rng.random(), rng.random()
        if has_second < self.second:
            scene = replace(
                scene,
                second_kind=_pick(rng, [k for k in self.kinds if k != kind]),
                second_color=_pick(rng, COLORS),
                second_x=float(rng.choice([-1, 1])) * _uniform(rng, 0.72, 0.9),
                second_z=_uniform(rng, -0.9, -0.6),
            )
        if has_occluder < self.occluder:
            scene = replace(scene, occlusion=_uniform(rng, 0.1, 0.3))
        # drawn after all the others, which therefore are what they are without these
        has_no_word, is_blank, is_card_only = rng.random(3)
        if scene.card is not None and has_no_word < self.no_word:
            scene = replace(scene, card="" if is_blank < 0.5 else self._letters(rng))
        if is_card_only < self.card_only:
            scene = replace(scene, kind=None, card=kind, second_kind=None, occlusion=0.0)
        if scene.card is not None and self.card_width != (0, 0):
            scene = replace(scene, card_width=_uniform(rng, *self.card_width))
        return scene

    def _letters(self, rng: np.random.Generator) -> str:
        """As many letters as the name of a kind has, from those names, but the letters of none of them."""
        pool, size = list("".join(self.kinds)), len(_pick(rng, self.kinds))
        names = {"".join(sorted(kind)) for kind in ALL_KINDS}
        while "".join(sorted(letters := "".join(rng.choice(pool, size)))) in names:
            pass
        return letters

    def _pattern(self, rng: np.random.Generator, kind: str) -> str:
        u = rng.random()
        anything = _pick(rng, PATTERNS)
        if u < self.typical_pattern:
            return TYPICAL_PATTERN.get(kind, anything)
        return "plain" if u < self.typical_pattern + self.plain else anything


def _pick(rng, values, p=None):
    return list(values)[int(rng.choice(len(values), p=p))]


def _uniform(rng, low, high):
    return round(float(rng.uniform(low, high)), 4)


__all__ = [
    "ALL_KINDS", "HELD_OUT_KINDS", "KINDS", "STREAMS", "STYLES", "Scene", "SceneDistribution",
]  # fmt: skip
