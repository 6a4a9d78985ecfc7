"""Questions about pictures: what a generative model is asked, and which option is right."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from string import ascii_uppercase

from zsr_utils._cache import digest
from zsr_utils.datasets._dataset import Dataset, Sample


@dataclass(frozen=True)
class Question:
    """A question as it is put to a model, and the texts of its options."""

    prompt: str
    options: tuple[str, ...]
    topic: str = ""  # what it is about, such as `colour`
    words: tuple[str, ...] = ()  # what an overlay writes of the options, where not the options themselves

    def __post_init__(self):
        if len(self.options) < 2 or not all(o.strip() for o in self.options):
            raise ValueError(f"{self.prompt!r} has options {list(self.options)}, allowed are two or more, none empty.")
        if len(set(self.options)) < len(self.options):
            raise ValueError(f"{self.prompt!r} has options {list(self.options)}, of which one is there twice.")

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
