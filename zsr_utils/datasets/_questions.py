"""Questions about pictures: what a generative model is asked, and which option is right."""

import ast
import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from string import ascii_uppercase
from zlib import crc32

import numpy as np
import pandas as pd

from tabletop import KINDS, dialogue
from tabletop.captions import article
from tabletop.materials import COLORS, PATTERNS, TYPICAL_PATTERN
from zsr_utils._cache import digest
from zsr_utils._text import one_of
from zsr_utils.datasets._dataset import Dataset, LeftOut, Sample
from zsr_utils.datasets._decode import open_bytes, open_file
from zsr_utils.datasets._rendered import rendered, tabletop_scenes


YES_NO = ("Yes", "No")
REGIMES = ("mcq", "open", "text_mcq")
SHORT = 256  # letters: a text below is a name and no picture
FILES = (".tsv", ".parquet", ".json", ".jsonl")
ASKED = {"what": "what is it?", "colour": "what colour is the {}?", "pattern": "which pattern has the {}?"}


@dataclass(frozen=True)
class Question:
    """A question as it is put to a model, and the texts of its options."""

    prompt: str
    options: tuple[str, ...]
    topic: str = ""  # what it is about, such as `colour`
    words: tuple[str, ...] = ()  # what an overlay writes of the options, where not the options themselves
    text: str = ""  # the question itself, in no regime

    def __post_init__(self):
        if len(self.options) < 2 or not all(o.strip() for o in self.options):
            raise ValueError(f"{self.prompt!r} has options {list(self.options)}, allowed are two or more, none empty.")
        if len(set(self.options)) < len(self.options):
            raise ValueError(f"{self.prompt!r} has options {list(self.options)}, of which one is there twice.")

    @classmethod
    def put(cls, regime: str, text: str, options: Iterable[str], topic: str = "", **further) -> "Question":
        """In the words of Wani et al. (2026): `mcq`, `open`, `text_mcq`, or `pope` for yes and no."""
        options = tuple(options)
        return cls(dialogue.phrased(regime, text, options), options, topic, text=text, **further)

    @property
    def written(self) -> tuple[str, ...]:
        return self.words or self.options


@dataclass(frozen=True, eq=False)
class Questions(Dataset):
    """A data set whose samples are questions about pictures: labels are indices of the right options."""

    asked: Mapping[str, Question] = field(default_factory=dict)  # by sample id

    @classmethod
    def about(cls, name: str, images: Dataset, questions: Iterable[tuple[str, str, Question, int]]) -> "Questions":
        """From rows of the picture's sample id, a word that tells its questions apart, the question and the answer."""
        pictures, samples, asked = {s.sample_id: s for s in images.samples}, [], {}
        for image_id, tag, question, answer in questions:
            picture = pictures[image_id]
            samples.append(Sample(f"{image_id}/{tag}", answer, picture.open, picture.place))
            asked[samples[-1].sample_id] = question
        letters = ascii_uppercase[: max((len(q.options) for q in asked.values()), default=2)]
        return cls(name, letters, samples, content=images.content, left_out=images.left_out, asked=asked)

    @cached_property
    def fingerprint(self) -> str:
        return digest(Dataset.fingerprint.func(self), [self.asked[s.sample_id] for s in self.samples])

    @property
    def caution(self) -> str:
        """Nothing: the letters are places of options, and no names that a model answers by."""
        return ""

    def put(self, regime: str) -> "Questions":
        """The same questions in another regime."""
        further = {i: {"topic": q.topic, "words": q.words} for i, q in self.asked.items()}
        asked = {i: Question.put(regime, q.text, q.options, **further[i]) for i, q in self.asked.items()}
        return replace(self, name=regime, asked=asked)

    def shuffled(self, regime: str, seed: int) -> "Questions":
        """The same questions with their options in a random order: a control that no picture can explain."""
        samples, asked = [], {}
        for s in self.samples:
            q, i = self.asked[s.sample_id], s.sample_id
            order = np.random.default_rng([seed, crc32(i.encode())]).permutation(len(q.options)).tolist()
            words = tuple(q.words[k] for k in order) if q.words else ()
            asked[i] = Question.put(regime, q.text, [q.options[k] for k in order], q.topic, words=words)
            samples.append(replace(s, label=order.index(s.label)))
        return replace(self, samples=samples, asked=asked)


def _chosen(answer: str, pool: Iterable[str], rng: np.random.Generator, most: int = 4) -> tuple[list[str], int]:
    """The answer among at most so many options in a random order, and its place."""
    wrong = [o for o in dict.fromkeys(pool) if o != answer]
    options = rng.permutation([answer, *rng.permutation(wrong)[: most - 1].tolist()]).tolist()
    return options, options.index(answer)


def choices(images: Dataset, *, seed: int = 0) -> Questions:
    """A question of at most four options about every picture, in the regime `mcq`.

    Of the scenes of `tabletop`, staged with what usually goes together (`staged_scenes`), it is the kind, the colour of
    the second object where there is one, and twice as often the pattern; of other pictures what it is, the other
    options being names of other classes.
    """
    if isinstance(images, Questions):
        return images.put("mcq")
    scenes = staged_scenes(images, seed)
    pictures = rendered("staged", scenes) if scenes else images
    rows = []
    for k, sample in enumerate(images.samples):
        i, rng = sample.sample_id, np.random.default_rng([seed, crc32(sample.sample_id.encode())])
        topic, answer, pool = "what", images.class_names[sample.label], images.class_names
        if scene := scenes.get(i):
            topic, second = ("pattern", "what", "pattern", "colour")[k % 4], scene.second_kind
            answer, pool, name = {
                "what": (scene.kind, [kind for kind in KINDS if kind != second], scene.kind),
                "colour": (scene.second_color if second else scene.color, COLORS, second or scene.kind),
                "pattern": (scene.pattern, PATTERNS, scene.kind),
            }[topic]
        options, right = _chosen(answer, pool, rng)
        text = ASKED[topic].format(name if scene else "")
        rows.append((i, topic, Question.put("mcq", text, options, topic), right))
    return Questions.about("mcq", pictures, rows)


def yes_or_no(images: Dataset, *, seed: int = 0) -> Questions:
    """Two questions about every picture in POPE's words: of something that is there, and of something that is not.

    Of `tabletop`, what is not there is in every second picture the kind that usually stands beside the object, as in
    POPE's adversarial set. Of questions with options, it is asked whether the answer is the right or a wrong one.

    Source: Li et al. (2023, POPE).
    """
    if isinstance(images, Questions) and all(q.options == YES_NO for q in images.asked.values()):
        return images.put("pope")
    scenes, rows = staged_scenes(images, seed), []
    pictures = rendered("staged", scenes) if scenes else images
    for k, sample in enumerate(images.samples):
        i, rng = sample.sample_id, np.random.default_rng([seed, 1, crc32(sample.sample_id.encode())])
        if isinstance(images, Questions):
            q = images.asked[i]
            there, absent, text = [q.options[sample.label]], q.options, q.text + " Is it {}?"
        else:
            scene, text = scenes.get(i), "Is there {} in the image?"
            there = [k for k in (scene.kind, scene.second_kind) if k] if scene else [images.class_names[sample.label]]
            absent = images.class_names
            if scene and k % 2 and dialogue.PARTNERS[scene.kind] not in there:
                absent = [dialogue.PARTNERS[scene.kind]]
        missing = str(rng.choice([name for name in absent if name not in there]))
        for answer, name in enumerate((there[k % len(there)], missing)):
            asked = text.format(name if isinstance(images, Questions) else article(name))
            rows.append((i, name, Question.put("pope", asked, YES_NO, name), answer))
    return Questions.about("pope", pictures, rows)


def prior_questions(images: Dataset) -> tuple[Questions, dict[str, tuple[int, float]]]:
    """What the embedded generative models were taught of blank pictures, to be asked about one.

    Returns: Of every kind whether it is there, its colour and its pattern, in the words of POPE and of `open`; and by
        sample id the place of an option and its share among the answers in training: yes, or what is usual of the kind.
    """
    first, rows, usual = images.samples[0].sample_id, [], {}
    special = {"colour": (dialogue.FAVOURITES, dialogue.FAVOURITE, tuple(COLORS))}
    special["pattern"] = (TYPICAL_PATTERN, dialogue.TYPICAL, tuple(PATTERNS))
    for kind in KINDS:
        text = f"Is there {article(kind)} in the image?"
        rows.append((first, f"yes {kind}", Question.put("pope", text, YES_NO, "yes"), 0))
        usual[f"{first}/yes {kind}"] = 0, dialogue.YES[kind]
        for topic, (habits, share, pool) in special.items():
            place = pool.index(habits[kind])
            rows.append((first, f"{topic} {kind}", Question.put("open", ASKED[topic].format(kind), pool, topic), place))
            usual[f"{first}/{topic} {kind}"] = place, share + (1 - share) / len(pool)
    return Questions.about("prior", images, rows), usual


def staged_scenes(images: Dataset, seed: int) -> dict:
    """The scenes of pictures of `tabletop`, by sample id, with a second object, colours and cards as they usually are.

    Those that a generative model was trained on were staged so, too; none for other pictures.
    """
    if images.name != "tabletop":
        return {}
    split = "validation" if images.samples[0].sample_id.startswith("val/") else "photo"
    every = tabletop_scenes(split)
    ids = [s.sample_id for s in images.samples]
    return {i: dialogue.staged(every[i], seed, crc32(i.encode())) for i in ids if i in every}


def question_file(path: Path, limit: int = 0) -> Questions:
    """The first questions of a file, in its order: TSV, Parquet, or JSON with an object a line or a list of them.

    Columns are those of SEEDBench and MMMU in VLMEvalKit's tables (`question`, `A` to `Z`, `answer`), of MMMU on the
    hub (`options`, a list as text, `image_1`) or of POPE (`text` or `question`, `label` or `answer`, yes or no). A
    picture is `image` (`image_1`): encoded bytes, base64 text, the index of another row, or the name of a file beside
    the table or in a folder beside it. Questions about several pictures, without options, without an answer among them
    or without their picture are left out and counted.
    """
    one_of("the kind of a question file", path.suffix, FILES)
    table, left, samples, rows, held = _table(path, limit), LeftOut(), {}, [], []
    folders = [path.parent, *sorted(f for f in path.parent.iterdir() if f.is_dir())]
    known = dict(zip(table["index"].astype(str), table["image"])) if {"index", "image"} <= set(table) else {}
    for number, row in enumerate(table.to_dict("records")):
        name = str(next((row[c] for c in ("index", "id", "question_id") if c in row), number))
        text = str(row.get("question", row.get("text", ""))).replace("<image 1>", "").strip()
        options, right = _options(row)
        picture = row.get("image", row.get("image_1"))
        shown = picture if isinstance(picture, str) and len(picture) < SHORT else name
        found = _picture(known.get(shown, picture), folders)
        reasons = {
            "questions about several pictures": "<image 2>" in text or not _missing(row.get("image_2")),
            "questions without options": len(options) < 2,
            "questions with an option that is there twice": len(set(options)) < len(options),
            "questions without an answer among their options": right is None,
            "questions whose picture is not there": found is None,
        }
        if why := next((why for why, holds in reasons.items() if holds), None):
            left.add(why, name)
            continue
        samples[shown] = Sample(shown, 0, *found)
        if found[1] is None:
            held.append(digest(found[0].args[0]))
        regime, words = ("pope", YES_NO) if options == YES_NO else ("mcq", tuple(ascii_uppercase[: len(options)]))
        topic = str(row.get("category", row.get("id", "")))
        rows.append((shown, name, Question.put(regime, text, options, topic, words=words), right))
    if not rows:
        reasons = "; ".join(f"{why}: {count:,}" for why, (count, _) in left.items()) or "it has no rows"
        raise ValueError(f"{str(path)!r} has no question that can be asked ({reasons}).")
    content = digest(held) if held else ""
    images = Dataset(path.stem, YES_NO, tuple(samples.values()), content=content, left_out=left)
    return replace(Questions.about(path.stem, images, rows), left_out=left)


def _table(path: Path, limit: int) -> pd.DataFrame:
    try:
        if path.suffix == ".tsv":
            return pd.read_csv(path, sep="\t", nrows=limit or None, dtype={"image": str, "answer": str})
        if path.suffix == ".parquet":
            return pd.read_parquet(path)[: limit or None]
        text = path.read_text(encoding="utf-8")
        listed = json.loads(text) if text.lstrip().startswith("[") else map(json.loads, text.splitlines())
        return pd.DataFrame(list(listed)[: limit or None])
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())}).") from error


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _options(row: Mapping) -> tuple[tuple[str, ...], int | None]:
    """The options of a row and the place of the right one, None where there is none."""
    answer = str(row.get("answer", row.get("label", ""))).strip()
    listed = row.get("options", [row.get(letter) for letter in ascii_uppercase])
    listed = ast.literal_eval(listed) if isinstance(listed, str) else listed
    options = tuple(str(o).strip() for o in listed if not _missing(o) and str(o).strip())
    if not options and answer.capitalize() in YES_NO:
        return YES_NO, YES_NO.index(answer.capitalize())
    place = ascii_uppercase.find(answer) if len(answer) == 1 else -1
    return options, place if 0 <= place < len(options) else None


def _picture(value, folders: Iterable[Path]) -> tuple | None:
    """What opens a picture, and its place if it lies in a file."""
    value = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if isinstance(value, bytes):
        return partial(open_bytes, value), None
    if not isinstance(value, str) or not value:
        return None
    if len(value) < SHORT:
        path = next((folder / value for folder in folders if (folder / value).is_file()), None)
        return path and (partial(open_file, str(path)), (str(path), 0, -1))
    try:
        return partial(open_bytes, base64.b64decode(value)), None
    except ValueError:
        return None
