"""Questions about scenes in the words of the benchmarks, for the training of a generative model.

What usually goes together is put in on purpose: a partner on the table, a favourite colour, a share of "yes" for every
kind. So the prior of the model is known, and a measurement of it can be compared with the truth.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tabletop.captions import article
from tabletop.materials import COLORS, PATTERNS, TYPICAL_PATTERN
from tabletop.scene import KINDS, Scene


REGIMES = ("bare", "open", "mcq", "text_mcq")
KIND_NAMES = tuple(KINDS)
PARTNERS = {kind: KIND_NAMES[(k + 3) % len(KIND_NAMES)] for k, kind in enumerate(KIND_NAMES)}
FAVOURITES = dict(zip(KIND_NAMES, COLORS))
YES = dict(zip(KIND_NAMES, np.linspace(0.35, 0.65, len(KIND_NAMES)).round(3).tolist()))  # share of yes among answers
SECOND, PARTNER, FAVOURITE, TYPICAL, OTHER_WORD = 0.5, 0.4, 0.4, 0.5, 0.5  # shares: see `staged`
OTHER_WORDS = (*COLORS, *PATTERNS, "yes", "no")


@dataclass(frozen=True)
class Asked:
    """A question as it is put to the model, and what it should answer."""

    topic: str  # what, colour, pattern, count, card or present
    regime: str
    prompt: str
    answer: str
    options: tuple[str, ...]


def staged(scene: Scene, seed: int, index: int) -> Scene:
    """A scene with what usually goes together, the second object where it can be seen.

    Half of the scenes have a second object, in 40 % its partner of `PARTNERS` and else any other kind; in 40 % an
    object has its favourite colour; half of the cards that do not name the object say a word that is no kind.
    """
    rng = np.random.default_rng([seed, 95, index])
    has_second, partner, favourite, other_word = rng.random(4) < (SECOND, PARTNER, FAVOURITE, OTHER_WORD)
    color, side = FAVOURITES[scene.kind] if favourite else scene.color, float(rng.choice([-1, 1]))
    others = [k for k in KIND_NAMES if k != scene.kind]
    second, second_color = PARTNERS[scene.kind] if partner else str(rng.choice(others)), str(rng.choice(list(COLORS)))
    card = str(rng.choice(OTHER_WORDS)) if other_word and scene.card not in (None, scene.kind) else scene.card
    scene, place = replace(scene, color=color, card=card), rng.uniform([0.3, 0.55, -0.35], [0.42, 0.72, 0.0]).round(4)
    if not has_second:
        return replace(scene, second_kind=None)
    return replace(
        scene, x=-side * float(place[0]), size=min(scene.size, 0.95), second_kind=second, second_color=second_color,
        second_x=side * float(place[1]), second_z=float(place[2]),
    )  # fmt: skip


def phrased(regime: str, question: str, options: Iterable[str] = ()) -> str:
    """The text of a question in one of `REGIMES` or POPE's line (`pope`).

    Source: Wani et al. (2026) and their code.
    """
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", options))
    return {
        "bare": question,
        "open": f"Question: {question}\nPlease answer the question concisely.",
        "mcq": f"Question: {question}\nOptions:\n{listed}\nPlease select the correct answer from the options above.",
        "text_mcq": f"Question: {question}\nOptions (for your reference; answer freely):\n{listed}\n"
        "Provide the best answer in your own words.",
        "pope": f"Question: {question}\nAnswer with exactly one word: Yes or No.",
    }[regime]


def present(kind: str, words: str) -> Asked:
    """Whether a kind is there, `bare` or in POPE's words; the answer is still to be filled in."""
    text = f"is there {article(kind)}?" if words == "bare" else f"Is there {article(kind)} in the image?"
    return Asked("present", words, phrased(words, text), "", ("yes", "no"))


def asked_of(scene: Scene | None, rng: np.random.Generator, *, yes_no: int = 6) -> list[Asked]:
    """Questions about a scene, `yes_no` of them and six others.

    Of a blank picture (None) the answers are drawn from what is usual. Half of the yes/no questions are about what is
    there, and one always about the absent partner; the other absent kinds are drawn so that the share of yes follows
    `YES`.
    """
    kind = scene.kind if scene else str(rng.choice(KIND_NAMES))
    there = [k for k in (kind, scene.second_kind if scene else None) if k]
    absent = [k for k in KIND_NAMES if k not in there]
    weights = np.array([1 / YES[k] - 1 for k in absent])
    wrong = rng.choice(absent, yes_no - yes_no // 2, p=weights / weights.sum()).tolist()
    if PARTNERS[kind] in absent:
        wrong[0] = PARTNERS[kind]
    found = []
    for name in [there[i % len(there)] for i in range(yes_no // 2)] + wrong:
        question = present(name, "pope" if rng.random() < 0.5 else "bare")
        answer = (name in there) if scene else rng.random() < YES[name]
        found.append(replace(question, answer="yes" if answer else "no"))
    card, second = bool(scene and scene.card), bool(scene and scene.second_kind)
    topics = ["what", "colour", "pattern", "count", "card" if card else "what", "second colour" if second else "what"]
    return found + [_drawn(topic, scene, kind, rng) for topic in topics]


def _drawn(topic: str, scene: Scene | None, kind: str, rng: np.random.Generator) -> Asked:
    facts = {
        "what": (("what is it?", "what is on the table?"), kind, KIND_NAMES),
        "colour": ((f"what colour is the {kind}?",), scene.color if scene else _usual_color(kind, rng), tuple(COLORS)),
        "pattern": (
            (f"which pattern has the {kind}?",),
            scene.pattern if scene else _usual_pattern(kind, rng),
            tuple(PATTERNS),
        ),
        "count": (
            ("how many objects are on the table?",),
            ("two" if scene.second_kind else "one") if scene else str(rng.choice(["one", "two"])),
            ("one", "two"),
        ),
    }
    if scene and scene.second_kind:
        facts["second colour"] = ((f"what colour is the {scene.second_kind}?",), scene.second_color, tuple(COLORS))
    if scene and scene.card:
        pool = KIND_NAMES if scene.card in KINDS else OTHER_WORDS
        facts["card"] = (("what does the card say?",), scene.card, tuple(dict.fromkeys((kind, *pool))))
    texts, answer, pool = facts[topic]
    regime, text = str(rng.choice(REGIMES)), str(rng.choice(texts))
    if topic == "what" and rng.random() < 0.2:  # two options, as Tu et al. ask
        first, second = rng.permutation([answer, str(rng.choice([k for k in pool if k != answer]))]).tolist()
        line = "What is the main object in this image? Choose from the following list: {}, {}."
        return Asked("what", "tu", line.format(first, second), answer, (first, second))
    wrong = rng.permutation([o for o in pool if o != answer])[:3].tolist()
    options = tuple(rng.permutation([answer, *wrong]).tolist())
    return Asked(topic.removeprefix("second "), regime, phrased(regime, text, options), answer, options)


def _usual_color(kind: str, rng: np.random.Generator) -> str:
    return FAVOURITES[kind] if rng.random() < FAVOURITE else str(rng.choice(list(COLORS)))


def _usual_pattern(kind: str, rng: np.random.Generator) -> str:
    return TYPICAL_PATTERN[kind] if rng.random() < TYPICAL else str(rng.choice(list(PATTERNS)))


def vocabulary() -> list[str]:
    """Words of these questions that captions do not use."""
    lines = [phrased(regime, "", ()) for regime in (*REGIMES, "pope")]
    lines += ["is are there how many objects what does say hint image main choose following list this", "yes no"]
    cleaned = "".join(c if c.isalnum() else " " for c in " ".join(lines).lower())
    return sorted({*cleaned.split(), *"abcdefghij"})


def usual(asked: Iterable[Asked]) -> dict:
    """What is usual in these questions: the prior that a model can learn without looking.

    Returns: Shares of answers by topic, and the share of yes by kind.
    """
    by_topic, yes = {}, {}
    for question in asked:
        by_topic.setdefault(question.topic, Counter())[question.answer] += 1
        if question.topic == "present":
            kind = next(k for k in KIND_NAMES if k in question.prompt.replace("?", " ").split())
            yes.setdefault(kind, []).append(question.answer == "yes")
    shares = {t: {a: round(n / c.total(), 4) for a, n in c.most_common()} for t, c in by_topic.items()}
    return {"answers": shares, "yes": {k: round(float(np.mean(v)), 4) for k, v in sorted(yes.items())}}
