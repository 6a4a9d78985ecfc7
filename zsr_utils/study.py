"""What every chapter opens with, and one way from rows to numbers to sentences."""

import hashlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from math import isnan

import numpy as np
import pandas as pd
from markupsafe import Markup

from zsr_utils._text import markdown, unknown
from zsr_utils.conditions import Condition, Head, OptionHead
from zsr_utils.datasets import Dataset, Questions, imagenet_classes, imagenet_templates, load_dataset
from zsr_utils.measure import Embedded, Pixels, embed, measure
from zsr_utils.models import Model, SupervisedModel, load_model, load_vlm, seed_everything
from zsr_utils.parameters import DEFAULTS, check_parameters
from zsr_utils.prompts import prompt_set
from zsr_utils.records import Run, parameters
from zsr_utils.scores import Estimate, Statistic, decide, estimates


NOTHING = "nothing was measured that could decide it"
OWN_PROMPTS = "own prompts of the data set"


class Study:
    """Models, images and prompts of one notebook: `study = zsr.open_study("01-zero-shot-baseline", globals())`.

    `nets` are model handles by name, the chapter's own first, and `heads` by the same names who answers. A generative
    study is of its `language_models`, by the names that `load_vlm` takes, which have no head before they are asked
    something; its results lie where those of the book's model do.

    Args:
        namespace: Holds the notebook's variables after the `parameters` cell, which are checked before anything is
            loaded.
        images, least: How many images the chapter needs, and the least value of single parameters.

    Raises: ValueError for a parameter outside its range, and for a data set with fewer images or classes than needed.
    """

    def __init__(self, notebook: str, namespace: Mapping, *, images: int = 2, generative: bool = False, **least: float):
        given = parameters(namespace)
        self.parameters = DEFAULTS | given
        check_parameters(self.parameters, **least)
        p = self.parameters
        seed_everything(p["seed"])
        own = f"{p['model']}@{p['pretrained']}" if p["pretrained"] else p["model"]
        wanted = {own: (p["model"], p["pretrained"])} | {name: name.partition("@")[::2] for name in p["models"]}
        wanted = dict.fromkeys(p["language_models"], ("", "")) if generative else wanted
        self.images: Dataset = load_dataset(
            p["dataset"], split=p["split"], classes=p["classes"], ids=p["ids"], limit=p["limit"], seed=p["seed"]
        )
        if isinstance(self.images, Questions) and not generative:
            raise ValueError(f"{p['dataset']} holds questions, {notebook} needs images: chapter 06 asks questions.")
        for what, n, least in (("images", len(self.images), images), ("classes", len(self.names), 2)):
            if n < least:
                raise ValueError(f"{self.images.name} has {n} of the {least} {what} that {notebook} needs at least.")
        options = {"device": p["device"], "precision": p["precision"]}
        self.nets: dict[str, Model] = {
            name: load_vlm(name, **options) if generative else load_model(*address, **options)
            for name, address in wanted.items()
        }
        for (name, tag), net in zip(wanted.values(), self.nets.values()):
            if tag and net.trained_on:
                raise ValueError(f"pretrained is {tag!r}, but {name} brings its own weights: allowed is ''.")
        self.run = Run(notebook, self.net, self.images, **given)
        self.templates = () if generative else self._prompts(p["prompts"])
        self.heads = {} if generative else {name: self.head(net) for name, net in self.nets.items()}
        self._rows: list[pd.DataFrame] = []
        self._numbers: dict[str, str] = {}  # what was to be called so, by the names of numbers
        pd.set_option("display.html.use_mathjax", False)  # a dollar in a table is one

    @property
    def net(self) -> Model:
        """The chapter's own model."""
        return self.nets[self.name]

    @property
    def name(self) -> str:
        """The name of the chapter's own model."""
        return next(iter(self.nets))

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""
        return self.images.class_names

    @cached_property
    def embedded(self) -> Embedded:
        """Features of all images by the chapter's own model."""
        return embed(self.net, self.images, batch_size=self.parameters["batch_size"])

    def opened(self) -> None:
        """Say which models and images this run is about, and what must be known before believing a number."""
        models, classes = ", ".join(self.nets), len(self.names)
        said = [f"{models}; {len(self.images)} images, {classes} classes", self.run.caution, *self.images.notes]
        print(*filter(None, said), sep="\n")

    def head(
        self, net: Model, templates: Sequence[str] | None = None, names: Sequence[str] | None = None, *,
        merged: bool | None = None,
    ) -> Head:  # fmt: skip
        """The zero-shot classifier of a model for this data set's classes, or those of these names.

        If `merged`, and by default where it was trained with labels, it answers with ImageNet's 1,000 classes, of which
        each class of the data set is several.
        """
        names = tuple(names or self.names)
        if self.images.merged and (isinstance(net, SupervisedModel) if merged is None else merged):
            every = net.classifier(list(imagenet_classes().values()), imagenet_templates())
            return Head(every, names, self.images.merged)
        return Head(net.classifier(names, templates or self.templates), names)

    def _prompts(self, name: str | Sequence[str]) -> tuple[str, ...]:
        if isinstance(name, str):
            templates = self.images.templates if name == OWN_PROMPTS else prompt_set(name)
        else:
            name, templates = name[0], tuple(name)
        self.run.prompts[name] = list(templates)
        return templates

    def measure(
        self, conditions: Sequence[Condition] | Callable[[Model], Sequence[Condition]], *,
        images: Dataset | Pixels | None = None, models: Sequence[str] | None = None,
        prompts: str | Sequence[str] | None = None, merged: bool | None = None, keep: bool = True, **options,
    ) -> pd.DataFrame:  # fmt: skip
        """Rows of conditions for every model, in a column `model`; they become the chapter's rows.

        Args:
            conditions: Or a function that makes them for a model, such as those of its own aligned images.
            images, prompts: In place of the chapter's data set and prompt set (or `OWN_PROMPTS`, or templates). The
                classes of such images are the answers then, or the options of such questions.
            keep: Whether the rows are among those that the chapter leaves behind.
            options: `draws` and `detail`, as `measure.measure` takes them.
        """
        templates, frames = self._prompts(prompts) if prompts else None, []
        asked = getattr(images, "class_names", self.names)
        other = templates or merged is not None or asked != self.names
        for name in models or self.nets:
            net = self.nets[name]
            shown = conditions(net) if callable(conditions) else conditions
            if isinstance(images, Questions):
                head = OptionHead({s.sample_id: images.asked[s.sample_id] for s in images.samples})
            else:
                head = self.head(net, templates, asked, merged=merged) if other else self.heads[name]
            size = self.parameters["batch_size"] if net.image_size else 1  # pictures of their own size pass alone
            given = {"seed": self.parameters["seed"], "batch_size": size, **options}
            what = self.images if images is None else images  # none to show is not all of them
            frames.append(measure(net, what, head, shown, **given).assign(model=name))
        rows = pd.concat(frames, ignore_index=True)
        return self.keep_rows(rows) if keep else rows

    def keep_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Put rows among those that the chapter leaves behind."""
        self._rows.append(rows)
        return rows

    def estimate(self, rows: pd.DataFrame, name: str, statistic: Statistic, by: Sequence[str] = ()) -> pd.DataFrame:
        """One number a group of rows, told apart by the columns `by` beside `model`, and the table of `keep`.

        The values of `by` follow the name `topic/quantity`, and the model's name where it is not the chapter's own.
        """
        keys = [*by, *(["model"] if "model" in rows else [])]
        table = estimates(rows, keys, statistic) if keys else pd.DataFrame([asdict(statistic(rows))])
        table = self.keep(table, f"{name}/{'_'.join(f'{{{column}}}' for column in by)}".rstrip("/"), by)
        if "sample_id" in rows:
            parts = rows.groupby(keys, sort=False, observed=True) if keys else [((), rows)]
            for number, (_, part) in zip(table.name, parts):
                self.run.made_of([number], part, lambda half: [statistic(half).value])
        return table

    def keep(
        self, table: pd.DataFrame | Callable[[pd.DataFrame], pd.DataFrame], name: str, by: Sequence[str] = (), *,
        rows: pd.DataFrame | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Keep a table of estimates, one number a row, and give it back with a `name` and a `label` in words.

        Args:
            table: Or what makes it of these `rows`, so that checkpoints are compared image by image.
            name: Format of the numbers' names over those columns, such as `drift/{quantity}/{family}`; what may not
                stand in a name becomes `_`. Rows of compared models get the model's name as a further part.
            by: Columns that make the label; those of the format by default.
        """
        make, table = table, table if rows is None else table(rows)
        by = list(by) or re.findall(r"\{(\w+)", name)
        numbers, labels = [], []
        for row in table.to_dict("records"):
            model = row.get("model", self.name)
            number = name.format(**{k: _plain(v) for k, v in row.items()}) + (f"/{model}" if model != self.name else "")
            number = self._number(number)
            self.run.metric(number, Estimate(**{f.name: row[f.name] for f in fields(Estimate)}))
            numbers.append(number)
            words = (_plain(row[c]) if c == "model" else _plain(row[c]).replace("_", " ") for c in by)
            labels.append(", ".join(words) or model)
        if rows is not None:
            own, known = (
                rows[rows.model == self.name] if "model" in rows else rows,
                dict(zip(_lines(table, name), numbers)),
            )

            def again(half: pd.DataFrame) -> np.ndarray:  # a half may lack some lines
                part = make(half)
                return pd.Series(part.value.to_numpy(), _lines(part, name).map(known)).reindex(numbers).to_numpy()

            self.run.made_of(numbers, own, again)
        return table.assign(name=numbers, label=labels)

    def _number(self, name: str) -> str:
        """A number's name as records allow it; classes such as `C`, `C++` and `犬` do not share one."""
        number = re.sub("/+", "/", re.sub(r"[^a-z0-9_/]+", "_", name.lower())).strip("_")
        if self._numbers.setdefault(number, name) != name or number.endswith("/"):
            number += f"_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        return number

    def number(self, name: str, estimate: Estimate | Statistic, rows: pd.DataFrame | None = None) -> Estimate:
        """Keep one number, or a statistic of rows, so that checkpoints are compared image by image."""
        if rows is None:
            return self.run.metric(name, estimate)
        self.run.made_of([name], rows, lambda half: [estimate(half).value])
        return self.run.metric(name, estimate(rows))

    def __getitem__(self, name: str) -> Estimate:
        return _Recorded(self.run.metrics)[name]

    def decide(self, name: str, reference: float = 0.0, *, margin: float | None = None, **words: str) -> str:
        """The words that fit a number by `scores.decide`: `more`, `less`, `undecided`, and `same` with a margin.

        A number that was not measured decides nothing, and says so whatever the words.
        """
        words = dict.fromkeys(words, NOTHING) if isnan(self[name].value) else words
        return words[decide(self[name], reference, margin=margin)]

    def say(self, text: str, **words) -> None:
        """Show a sentence of the report, as Markdown: the place for results in prose.

        Numbers enter by their recorded names, `{zero_shot/accuracy:pct}`, and further words by theirs. Words are data,
        such as names, and shown as they are; what is Markdown already is `Markup`, as a word and as the text. A
        chapter's one sentence, *in short*, carries the caution.
        """
        if not isinstance(text, Markup):
            if text.startswith("**In short:**") and self.run.caution:
                text, words = text + " **Caution:** {caution}.", words | {"caution": self.run.caution}
            text = _Sentence().vformat(text, (), _Recorded(self.run.metrics | words))
        self.run.say(text)

    def close(self) -> None:
        """Write rows, numbers and provenance, and show the numbers and where they come from."""
        from IPython.display import display

        if self._rows:
            self.run.save_rows(pd.concat(self._rows, ignore_index=True))
        self.run.save()
        display(self.run.table()[["name", "value", "low", "high", "interval", "n", "unit"]].round(4))
        display(self.run.show_provenance())


class _Sentence(string.Formatter):
    """Markdown, into which texts enter as data."""

    def format_field(self, value, format_spec: str) -> str:
        shown = super().format_field(value, format_spec)
        return markdown(shown) if isinstance(value, str) and not isinstance(value, Markup) else shown


class _Recorded(dict):
    """Numbers by name, and further words."""

    def __missing__(self, name: str) -> Estimate:
        raise ValueError(unknown("recorded number", name, self))


open_study = Study  # as notebooks call it


def _lines(table: pd.DataFrame, name: str) -> pd.Series:
    """What tells the lines of a table apart: the columns that a format of names has, and the model."""
    columns = [column for column in ("model", *re.findall(r"\{(\w+)", name)) if column in table]
    return table[columns].astype(str).agg("/".join, axis=1)


def _plain(value) -> str:
    """A value of a column as it stands in names and labels: whole numbers without a point."""
    return f"{value:g}" if isinstance(value, float) else str(value)
