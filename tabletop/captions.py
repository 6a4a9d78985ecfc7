"""What is said about a scene: captions for pre-training, and questions with answers."""

from dataclasses import dataclass

import numpy as np

from tabletop.materials import COLORS, PATTERNS, SETTINGS
from tabletop.scene import STYLES, Scene
from tabletop.shapes import ALL_KINDS


OPENINGS = {
    "photo": ("a photo of {}", "a photo of {}", "a picture of {}", "{}", "this is {}"),
    "cartoon": ("a cartoon of {}", "a cartoon drawing of {}"),
    "sketch": ("a sketch of {}", "a pencil drawing of {}"),
    "silhouette": ("a silhouette of {}", "a black shape of {}"),
}
QUOTES = ("a card that says {}", "{}")  # of a card with nothing behind it
NUMBER_WORDS = ("no", "one", "two")


def article(phrase: str) -> str:
    """`phrase` with its indefinite article.

    Examples:
        >>> article("orange mug"), article("red mug")
        ('an orange mug', 'a red mug')
    """
    return ("an " if phrase.startswith((*"aeiou", "hour")) else "a ") + phrase


def caption(scene: Scene, rng: np.random.Generator, *, mention_card: float = 0.6) -> str:
    """One caption as an author on the web might write it: the object always, the rest sometimes.

    Where a card stands alone, the caption quotes it or names what it says, as if that were there.

    Examples:
        >>> scene = Scene("mug", color="orange", pattern="striped", setting="kitchen")
        >>> caption(scene, np.random.default_rng(1))
        'this is a mug in the kitchen'

    Args:
        scene: What is to be seen.
        rng: Decides what is said, and how.
        mention_card: Share of the captions of an object with a card that say what is on the card.

    Raises:
        ValueError: If the scene has neither an object nor a card with something on it.
    """
    if scene.kind is None:
        return _caption_of_card(scene, rng)
    words = [scene.kind]
    if rng.random() < 0.4:
        words.insert(0, scene.pattern)
    if rng.random() < 0.6:
        words.insert(0, scene.color)
    if rng.random() < 0.12:
        words.insert(0, "small" if scene.size < 0.97 else "large")
    text = str(rng.choice(OPENINGS[scene.style])).format(article(" ".join(words)))
    if scene.second_kind is not None and rng.random() < 0.7:
        text += f" and {article(f'{scene.second_color} {scene.second_kind}')}"
    if rng.random() < 0.35:
        text += f" in the {scene.setting}"
    if scene.card is not None and rng.random() < mention_card:
        text += f" with a card that says {scene.card}" if scene.card else " with a card"
    if scene.occlusion > 0 and rng.random() < 0.5:
        text += " behind a box"
    if rng.random() < 0.1:
        text += " seen from above" if scene.camera_elevation > 21 else " seen from the side"
    return text


def _caption_of_card(scene: Scene, rng: np.random.Generator) -> str:
    if not scene.card:
        raise ValueError(f"caption: kind is None and card is {scene.card!r}, a scene needs an object or a word.")
    if rng.random() < 0.45:
        text = str(rng.choice(QUOTES)).format(scene.card)
    else:
        text = str(rng.choice(OPENINGS[scene.style])).format(article(scene.card))
    return f"{text} in the {scene.setting}" if rng.random() < 0.35 else text


def claims(text: str) -> dict[str, str]:
    """What a caption of one object says of its scene; what it leaves out may be anything.

    Examples:
        >>> claims("a photo of a small red mug in the kitchen seen from above")
        {'style': 'photo', 'size': 'small', 'color': 'red', 'kind': 'mug', 'setting': 'kitchen', 'view': 'above'}
    """
    for opening, style in (("a pencil drawing of", "sketch"), ("a black shape of", "silhouette")):
        text = text.replace(opening, style)
    about = {"style": STYLES, "size": ("small", "large"), "color": COLORS, "pattern": PATTERNS, "kind": ALL_KINDS}
    about |= {"setting": SETTINGS, "box": ("box",), "view": ("above", "side")}
    said, words = {}, text.split()
    for word in words:  # the object is named before what its card says
        said |= {name: word for name, values in about.items() if word in values and name not in said}
    if "card" in words:
        said["card"] = words[words.index("says") + 1] if "says" in words else ""
    return said


@dataclass(frozen=True)
class Question:
    """A question about a scene with its answer and the answers to choose from."""

    text: str
    answer: str
    options: tuple[str, ...]


def questions(scene: Scene) -> list[Question]:
    """What is it, what colour, which pattern, and is there a …: one of each, with the true answer.

    Examples:
        >>> [q.answer for q in questions(Scene("duck", color="yellow"))]
        ['duck', 'yellow', 'plain', 'yes', 'no']

    Raises:
        ValueError: If the scene has no object.
    """
    if scene.kind is None:
        raise ValueError("questions: kind is None, a scene needs an object.")
    other = next(k for k in ALL_KINDS if k not in (scene.kind, scene.second_kind))
    yes_no = ("yes", "no")
    return [
        Question("what is it?", scene.kind, tuple(ALL_KINDS)),
        Question(f"what colour is the {scene.kind}?", scene.color, tuple(COLORS)),
        Question(f"which pattern has the {scene.kind}?", scene.pattern, tuple(PATTERNS)),
        Question(f"is there {article(scene.kind)}?", "yes", yes_no),
        Question(f"is there {article(other)}?", "no", yes_no),
    ]


def vocabulary() -> list[str]:
    """Every word that captions, prompts and questions of this world use, sorted."""
    templates = [t for options in OPENINGS.values() for t in options]
    sentences = [
        *templates,
        "a an the and in with of that says card behind box seen from above side small large",
        "this is it what colour which pattern has there yes no not object something next to on table",
        "an image of one on the good bad close up bright dark my toy",
    ]
    words = {w.strip("?{}") for s in sentences for w in s.split()} - {""}
    for names in (ALL_KINDS, COLORS, PATTERNS, SETTINGS, STYLES, NUMBER_WORDS):
        words |= set(names)
    return sorted(words)
