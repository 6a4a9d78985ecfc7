"""Chapter 16: pictures found by words and words by pictures, and what the words have to say for it."""

from collections.abc import Sequence
from dataclasses import asdict
from zlib import crc32

import numpy as np
import pandas as pd
import torch

from zsr_utils import scores
from zsr_utils._cache import code, digest, kept
from zsr_utils.datasets import Captioned, captioned, captioned_scenes, changed_words, class_captions
from zsr_utils.measure import embed
from zsr_utils.models import Model
from zsr_utils.study import Study


DIRECTIONS = ("text to image", "image to text")
KS = (1, 5, 10)
AS_IT_IS, A_PHOTO_OF, SHUFFLED = FORMS = ("as it is", "a photo of", "words shuffled")
TAKEN = scores.share_of("value")  # of the two captions, the true one
BINDING = {
    ("more", "more"): "it joins colours to things whichever comes first",
    ("more", "less"): "it goes by the place of a word in the sentence, not by what the word belongs to",
    ("undecided", "undecided"): "nothing here tells it from a reader of words without order",
}


def asked(study: Study, captions: str, split: str, per_image: int) -> Captioned:
    """Captions on disk; without any, what is known of Tabletop's scenes, or the names of a data set's classes."""
    p = study.parameters
    if captions:
        return captioned(captions, split, per_image=per_image, limit=p["limit"], seed=p["seed"])
    if study.images.name == "tabletop":
        return captioned_scenes(study.images, p["split"], per_image, p["seed"])
    return class_captions(study.images)


def said(text: str, form: str, seed: int = 0) -> str:
    """A caption in one of the forms.

    Examples:
        >>> said("two dogs", A_PHOTO_OF), said("a photo of two dogs", A_PHOTO_OF)
        ('a photo of two dogs', 'a photo of two dogs')

    Source: Radford et al. (2021), appendix, for "a photo of", here only before captions that do not begin so.
    """
    if form == SHUFFLED:
        return " ".join(np.random.default_rng([seed, crc32(text.encode())]).permutation(text.split()))
    return text if form == AS_IT_IS or text.startswith(form) else f"{form} {text}"


def encoded(net: Model, texts: Sequence[str]) -> np.ndarray:
    """Text features (T, D), kept on disk; equal texts get the same ones, and so they tie."""
    once, which = np.unique(np.array(texts), return_inverse=True)
    key = digest(net.fingerprint, net.precision, once, code("models"))
    return kept("texts", key, lambda: {"features": net.encode_text(once.tolist()).cpu().numpy()})["features"][which]


def searches(study: Study, pictures: Captioned, forms: Sequence[str] = (AS_IT_IS,), models=()) -> pd.DataFrame:
    """Every caption and every picture as a query, for every model and form; they become the chapter's rows.

    Returns: The columns of `scores.placed` for the query's own picture or captions and, with the suffix `_true`, for
        all that is true where that is known; `direction`, `sample_id` (of the picture), `form`, `model`.
    """
    p, frames = study.parameters, []
    for name in models or study.nets:
        seen = embed(study.nets[name], pictures.images, batch_size=p["batch_size"])
        part = pictures.readable(seen.sample_ids)
        for form in forms:
            texts = encoded(study.nets[name], [said(text, form, p["seed"]) for text in part.texts])
            frames.append(_searched(part, texts, seen.features).assign(form=form, model=name))
    return study.keep_rows(pd.concat(frames, ignore_index=True))


def _searched(a: Captioned, texts: np.ndarray, images: np.ndarray) -> pd.DataFrame:
    ids, n = np.array([s.sample_id for s in a.images.samples]), np.arange(len(images))
    sides = (
        ((texts, images, ids[a.owners]), (lambda p: a.owners[p, None] == n, lambda p: a.holds[a.claim[p]])),
        ((images, texts, ids), (lambda p: n[p, None] == a.owners, lambda p: a.holds[:, p][a.claim].T)),
    )
    known = ["", "_true"][: 1 + (a.holds is not None)]
    frames = [scores.placed(*pair, dict(zip(known, which))).assign(sample_id=of) for (*pair, of), which in sides]
    return pd.concat([f.assign(direction=d) for f, d in zip(frames, DIRECTIONS)], ignore_index=True)


def recalls(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """R@1, 5 and 10 both ways, with `chance`, that of a random order, and `perfect`, of who knows what is true."""
    tables = []
    for k in KS:
        table = study.estimate(rows.assign(k=k), "retrieval/recall", scores.recall(k), ["direction", "k"])
        parts = [part for _, part in rows.groupby(["direction", "model"], sort=False)]
        perfect = [scores.by_luck(part, k, "relevant_true") if "relevant_true" in part else np.nan for part in parts]
        tables.append(table.assign(chance=[scores.by_luck(part, k) for part in parts], perfect=perfect))
    return pd.concat(tables, ignore_index=True)


def reader_in_words(perfect: float) -> str:
    """R@1 of who knows what is true, where that is known."""
    known = f", and who knows of which pictures each caption is true would get {perfect:.1%}"
    return "" if np.isnan(perfect) else known


def forms_in_words(changes: pd.DataFrame) -> str:
    """What the forms do to R@1 of pictures by text."""
    verb = {"more": "helps", "less": "harms", "undecided": "makes no difference that could be decided"}
    part = changes[changes.direction == DIRECTIONS[0]]
    said = zip(part.form, part.verdict.map(verb), map(scores.estimate_of, part.itertuples()))
    return ", and ".join(f"“{form}” {verdict} ({estimate:points})" for form, verdict, estimate in said)


def changes_of_form(rows: pd.DataFrame, k: int) -> pd.DataFrame:
    """R@k of every other form less that of captions as they are, image by image; each model a family of tests."""
    values = rows.assign(value=scores.found(rows, k))
    return scores.changes_from(values, "form", AS_IT_IS, ["model", "form", "direction"], bounds=1, within="model")


def by_image(rows: pd.DataFrame) -> pd.DataFrame:
    """R@1 to R@10 of pictures by captions, where `any` of a picture's captions is enough, and where `each` must do."""
    part, found = rows[rows.direction == DIRECTIONS[0]], []
    for k in KS:
        values = scores.by_image(part, k)
        found += [{"by": c, "k": k, **asdict(scores.bootstrap(np.mean, values[c]))} for c in values]
    return pd.DataFrame(found)


def word_choices(study: Study, number: int) -> pd.DataFrame:
    """Whether a model takes the true caption for one that differs in a word, a row a model, scene and change.

    `value` is 1 for the true caption and 0.5 where both are as near.
    """
    images, captions = changed_words(number, study.parameters["seed"])
    found = []
    for name, net in study.nets.items():
        seen = embed(net, images, batch_size=study.parameters["batch_size"]).of(captions.sample_id).double()
        true, false = (torch.from_numpy(encoded(net, captions[column])).double() for column in ("true", "false"))
        apart = torch.cosine_similarity(seen, true) - torch.cosine_similarity(seen, false)
        value = np.where(apart.abs() <= scores.TIE, 0.5, apart > 0)
        found.append(captions.assign(model=name, value=value, direction="word choice"))
    return study.keep_rows(pd.concat(found, ignore_index=True))


def against_chance(choices: pd.DataFrame) -> pd.DataFrame:
    """Share of true captions taken less one half, a row a model and change; each model a family of tests."""
    return scores.paired_changes(choices.assign(value=0.5), choices, ["model", "change"], bounds=0.5, within="model")


def binding_in_words(table: pd.DataFrame, model: str) -> str:
    """What the two swaps of colours tell of a model."""
    of = table[table.model == model].set_index("change").verdict
    return BINDING.get((of["colors_swapped"], of["colors_swapped_reordered"]), "the two orders do not decide it")


def accuracy_and_recall(answers: pd.DataFrame, rows: pd.DataFrame, k: int) -> tuple[pd.DataFrame, scores.Estimate]:
    """Every model's accuracy and R@k by captions, and how far the two put the models in one order.

    Returns: A table for `plots.paths`, and Spearman's correlation over the models, not measured for fewer than three.
    """
    rows = rows[rows.direction == DIRECTIONS[0]]
    right = answers.assign(right=scores.correct(answers)).pivot(index="sample_id", columns="model", values="right")
    hits = rows.assign(hit=scores.found(rows, k)).pivot_table("hit", "sample_id", "model")[right.columns]
    table = scores.estimates(rows, "model", scores.recall(k))
    x = scores.estimates(answers, "model", scores.accuracy).set_index("model").loc[table.model]
    table = table.assign(x_value=x.value.values, x_low=x.low.values, x_high=x.high.values, panel="models", mark="")
    agreement = scores.not_measured("1")
    if len(table) > 2:
        agreement = scores.rank_agreement(*(scores.column_means(v.to_numpy()) for v in (right, hits)))
    return table.assign(series=table.model, label=table.model), agreement
