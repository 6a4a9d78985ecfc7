"""The tabletop world: still lifes with known factors, and the training of small models on them."""

from tabletop.captions import Question, caption, questions
from tabletop.render import Rendering, render
from tabletop.scene import Scene, SceneDistribution
from tabletop.shapes import ALL_KINDS, HELD_OUT_KINDS, KINDS


__all__ = [
    "ALL_KINDS",
    "HELD_OUT_KINDS",
    "KINDS",
    "Question",
    "Rendering",
    "Scene",
    "SceneDistribution",
    "caption",
    "questions",
    "render",
]
