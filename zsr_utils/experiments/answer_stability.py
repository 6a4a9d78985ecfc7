"""Chapter 06: the same questions to models that answer in words, about pictures that are changed.

Flip rates and transitions, representation channels against other pictures, and the drift towards what a model answers
without looking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from scipy import special
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Batch, Condition, Spoken, as_conditions, families, generator
from zsr_utils.datasets import Dataset, Questions, prior_questions
from zsr_utils.experiments.representation_drift import energy_changes, token_facts
from zsr_utils.models import Model
from zsr_utils.study import Study


FEW = ("scale", "rotation", "text_semantic", "text_empty")  # families of the smaller measurements
CHANNELS = ("scale", "rotation", "text_semantic")
TOKENS = ("translation", "scale_pad", "rotation", "text_semantic", "text_empty")
BLANKS = ("white", "grey", "mean")
WAYS = ("right_to_right", "right_to_wrong", "wrong_to_right", "wrong_to_wrong")
LEAST = 0.5  # nats between the margins of a picture and the blank one, from which a drift between them is told
QUADRANTS = {(0, 0): "right yes to no", (1, 1): "right no to yes", (0, 1): "wrong yes to no", (1, 0): "wrong no to yes"}


@dataclass(frozen=True)
class Blank:
    """One picture in place of every other."""

    picture: Float[Tensor, "3 h w"]

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        shown = F.interpolate(self.picture[None], batch.pixels.shape[2:], mode="bilinear", antialias=True)
        return shown.to(batch.pixels).clamp(0, 1).expand_as(batch.pixels)


def blanks(net: Model, images: Dataset) -> list[Condition]:
    """A white, a grey and the mean picture: what is answered without looking."""
    small = [
        F.interpolate(pixels, (64, 64), mode="bilinear", antialias=True).mean(0)
        for _, pixels, _ in images.batches(net.from_pil, 1)
    ]
    pictures = torch.full((3, 64, 64), 1.0), torch.full((3, 64, 64), 0.5), torch.stack(small).mean(0)
    return [Condition(name, 1, Blank(p).change, draws=1) for name, p in zip(BLANKS, pictures)]


@dataclass(frozen=True)
class Other:
    """The picture of another question, the question staying as it is."""

    instead: Mapping[str, Sequence[str]] = field(repr=False)  # a sample a draw, by sample id

    def change(self, batch: Batch) -> Float[Tensor, "n 3 h w"]:
        others = [batch.open(self.instead[i][batch.draw]) for i in batch.sample_ids]
        return torch.stack([batch.net.from_pil(picture) for picture in others]).to(batch.pixels.device)


def others(questions: Questions, draws: int, seed: int) -> Condition:
    """Every question about other pictures, and what is said then: the distance that a drift is compared with."""
    ids = [s.sample_id for s in questions.samples]
    instead = {}
    for i in ids:
        pool = [j for j in ids if picture_of(j) != picture_of(i)]
        instead[i] = generator(i, (seed, "other")).choice(pool, min(draws, len(pool)), replace=False).tolist()
    return Condition("other_picture", 1, Other(instead).change, Spoken().facts, min(map(len, instead.values())))


def views(questions: Questions, names: Sequence[str] | None = None, *, further=None, **options) -> list[Condition]:
    """The unchanged pictures and the families, overlays with words of options that the model did not choose.

    Args:
        further: `tokens` for the facts of the image tokens, as in chapter 05; `spoken` for what is said greedily.
        options: As `families` takes them.
    """
    words = min(3, min(len(q.options) for q in questions.asked.values()) - 1)
    facts = {"tokens": _tokens, "spoken": Spoken().facts, None: None}[further]
    return [ORIGINAL, *as_conditions(families(names, words=words, **options), facts)]


def _tokens(*given) -> dict:
    return token_facts(*given, layers=False)


def picture_of(sample_id: str) -> str:
    """The picture that a question is about."""
    return sample_id.rsplit("/", 1)[0]


def by_picture(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the picture, the unit that is resampled, in place of the question, which stays as `asked`."""
    return rows.assign(sample_id=rows.sample_id.map(picture_of), asked=rows.sample_id)


def changed(rows: pd.DataFrame) -> pd.DataFrame:
    """Views of the families, with where their answer went, a truth value for each of `WAYS`."""
    rows = rows[rows.family.notna()]
    was, now = rows.clean_prediction == rows.label, rows.prediction == rows.label
    return rows.assign(**dict(zip(WAYS, (was & now, was & ~now, ~was & now, ~was & ~now))))


def on_blanks(rows: pd.DataFrame, questions: Questions) -> pd.DataFrame:
    """Yes/no questions about blank pictures, with whether the answer is `yes`; the unit is a question's text."""
    rows = rows[rows.condition.isin(BLANKS)]
    return rows.assign(yes=rows.prediction == 0, sample_id=[questions.asked[i].text for i in rows.asked])


def accuracy_changes(rows: pd.DataFrame) -> pd.DataFrame:
    """What views do to the share of right answers, family by family: R→W and W→R may cancel."""
    was, now = (rows.assign(value=(c == rows.label).astype(float)) for c in (rows.clean_prediction, rows.prediction))
    return scores.paired_changes(was, now, "family", bounds=1.0)


def beyond_box(rows: pd.DataFrame) -> pd.DataFrame:
    """Changed answers of overlays with a word, and with random letters, beyond the empty box on the same pictures."""
    rows = rows.assign(value=(rows.prediction != rows.clean_prediction).astype(float))
    with_text = rows[rows.family.isin(["text_semantic", "text_random"])]
    boxes = pd.concat([rows[rows.family == "text_empty"].assign(family=f) for f in with_text.family.unique()])
    return scores.paired_changes(boxes, with_text, "family", bounds=1.0)


def entropy(rows: pd.DataFrame) -> scores.Estimate:
    """Visual entropy: Shannon entropy, in nats, of the answers to an image and all its views, mean over images."""
    shares = rows.groupby("sample_id").prediction.value_counts(normalize=True)
    each = -(shares * np.log(shares)).groupby(level=0).sum()
    return scores.bootstrap(np.mean, each.to_numpy(), unit="nats")


def normalised(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as they would be if options were compared by their mean log-likelihood a token."""
    rows = rows.assign(prediction=np.nanargmax(_columns(rows, "score") / _columns(rows, "length"), axis=1))
    clean = rows[rows.condition == "original"].set_index("sample_id").prediction
    return rows.assign(clean_prediction=rows.sample_id.map(clean))


def reordered(rows: pd.DataFrame, shuffled: Questions, questions: Questions) -> pd.DataFrame:
    """Answers to questions with shuffled options, as places in the order of the unshuffled ones."""
    texts = [shuffled.asked[i].options[k] for i, k in zip(rows.sample_id, rows.prediction)]
    return rows.assign(prediction=[questions.asked[i].options.index(t) for i, t in zip(rows.sample_id, texts)])


def controls(study: Study, questions: Questions, rows: pd.DataFrame, orders: int) -> None:
    """Numbers that change no pixel: random orders of the options, and scores a token in place of sums."""
    original, found = rows[rows.condition == "original"], []
    for order in range(orders):
        put = questions.shuffled("mcq", order)
        answers = study.measure([ORIGINAL], images=put, models=[study.name], keep=False)
        found.append(reordered(answers, put, questions))
    answers = pd.concat(found)
    answers["clean_prediction"] = answers.sample_id.map(original.set_index("sample_id").prediction)
    study.number("controls/order", scores.flip_rate(answers))
    by_length = normalised(rows)
    study.number("controls/right_by_length", scores.accuracy(by_length[by_length.condition == "original"]))
    study.number("controls/ifr_by_length", scores.flip_rate(changed(by_length)))


def channels(study: Study, questions: Questions, draws: int, **options) -> pd.DataFrame:
    """Drift of the five channels over the distance to other pictures under the same question.

    Columns `family` (`any` is all of them), `channel`, `answers` (`all`, or `same`: the option stays, and for what is
    said the whole text), `quantity` (`ratio`, or `cohens_d` of drift less distance over images), and an estimate.

    Source: Wani et al. (2026), whose averages hold all answers and whose control changes the question, too.
    """
    rows = {}
    for regime in ("mcq", "open"):
        put = questions.put(regime)
        shown = [*views(put, CHANNELS, further="spoken", **options), others(put, draws, study.parameters["seed"])]
        rows[regime] = study.measure(shown, images=put, models=[study.name], keep=False)
    wanted = [
        ("ctx_open", "open", "drift"), ("ctx_mcq", "mcq", "drift"), ("ans_open", "open", "drift_said"),
        ("ans_mcq", "mcq", "drift_option"), ("ans_mcq_free", "mcq", "drift_said"),
    ]  # fmt: skip
    found = []
    for channel, regime, column in wanted:
        part = rows[regime].assign(drift=rows[regime][column])
        other = part[part.condition == "other_picture"].groupby("sample_id").drift.mean()
        part = part[part.family.notna()]
        same = part.same_said.astype(bool) if column == "drift_said" else part.prediction == part.clean_prediction
        for family, (answers, kept) in product(("any", *CHANNELS), (("all", part), ("same", part[same]))):
            kept = kept if family == "any" else kept[kept.family == family]
            both = pd.concat([kept.groupby("sample_id").drift.mean(), other], axis=1, join="inner").to_numpy().T
            for quantity, statistic, unit in (("ratio", _ratio, "fraction"), ("cohens_d", cohens_d, "1")):
                what = {"family": family, "channel": channel, "answers": answers, "quantity": quantity}
                found.append(what | vars(scores.bootstrap(statistic, *both, unit=unit)))
    return pd.DataFrame(found)


def _ratio(drift: np.ndarray, distance: np.ndarray, axis: int = -1) -> np.ndarray:
    return drift.mean(axis) / distance.mean(axis)


def cohens_d(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
    """Difference of two means over their pooled standard deviation (ddof 1); NaN of one value each."""
    if one.shape[axis] < 2:
        return np.nan * one.mean(axis)
    pooled = np.sqrt((one.var(axis, ddof=1) + other.var(axis, ddof=1)) / 2)
    return (one.mean(axis) - other.mean(axis)) / np.maximum(pooled, 1e-12)


def predicts(rows: pd.DataFrame) -> scores.Estimate:
    """AUROC of telling right from wrong answers by the share of views that keep them, where there are six of each."""
    kept = rows.assign(kept=rows.prediction == rows.clean_prediction).groupby("sample_id").kept.mean()
    right = rows.groupby("sample_id").apply(lambda r: (r.clean_prediction == r.label).all(), include_groups=False)
    if not 6 <= right.sum() <= len(right) - 6:
        return scores.not_measured()
    return scores.separation(kept[right].to_numpy(), kept[~right].to_numpy())["auroc"]


def quadrants(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of yes/no questions with the way that a change of their answer would go, `quadrant`; label 0 is yes."""
    pairs = zip(rows.clean_prediction, rows.label)
    return rows.assign(quadrant=[QUADRANTS[int(base), int(truth)] for base, truth in pairs], share=1.0)


def yes_no_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """POPE's numbers, yes being positive, of original pictures and of views: columns `quantity`, `pictures`."""
    found = []
    for pictures, part in (("original", rows[rows.condition == "original"]), ("views", rows[rows.family.notna()])):
        yes, there = (part[c].to_numpy() == 0 for c in ("prediction", "label"))
        hits, every = yes & there, np.arange(len(part))
        twice = np.concatenate([np.flatnonzero(yes | there), np.flatnonzero(hits)])  # F1 counts what is found twice
        shares = {
            "accuracy": (yes == there, every), "precision": (there, yes), "recall": (yes, there), "f1": (hits, twice),
            "false_positives": (yes, ~there), "yes_rate": (yes, every),
        }  # fmt: skip
        for quantity, (hit, of) in shares.items():
            estimate = scores.grouped_proportion(hit[of], part.sample_id.to_numpy()[of])
            found.append({"quantity": quantity, "pictures": pictures, **vars(estimate)})
    return pd.DataFrame(found)


def yes_changes(rows: pd.DataFrame) -> pd.DataFrame:
    """What views do to the share of yes among the questions to which it is right, and wrong (column `truth`)."""
    truth = np.where(rows.label == 0, "there", "not there")
    was, now = (
        rows.assign(value=(c == 0).astype(float), truth=truth) for c in (rows.clean_prediction, rows.prediction)
    )
    return scores.paired_changes(was, now, "truth", bounds=1.0)


def towards_blank(rows: pd.DataFrame, blank: str = "white") -> pd.DataFrame:
    """Views with the share `dtp` of the way from their picture's answers to those of the blank one: 1 is there.

    Yes/no questions by the margin yes - no, of pictures that are at least 0.5 nats from the blank one, and whether the
    sign is the blank's (`same_side`); others by 1 - JS(view, blank) / JS(picture, blank) of the softmax of scores.

    Source: The formulas are this project's; Wani et al. (2026) keep margins of picture, views and blank.
    """
    p = _probabilities(rows)
    yes_no = p.shape[1] == 2
    ids = rows.asked if "asked" in rows else rows.sample_id
    at = pd.DataFrame(p, index=ids)
    clean, other = (at[(rows.condition == c).to_numpy()].loc[ids].to_numpy() for c in ("original", blank))
    if yes_no:
        margin, clean, other = (np.log(v[:, 0] / v[:, 1]) for v in (p, clean, other))
        way, gone = clean - other, clean - margin
        rows = rows.assign(dtp=np.where(np.abs(way) > LEAST, gone / way, np.nan), same_side=margin * other > 0)
    else:
        far, near = (divergence(v, other) for v in (clean, p))
        rows = rows.assign(dtp=np.where(far > 0.01, 1 - near / np.maximum(far, 1e-12), np.nan))
    return rows[rows.family.notna()]


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen and Shannon's, of distributions in rows (N, K), in nats; 0 of equal ones, where SciPy's may be NaN.

    Examples:
        >>> p, q = np.array([[1.0, 0.0], [0.3, 0.7]]), np.array([[0.0, 1.0], [0.3, 0.7]])
        >>> divergence(p, q).round(4).tolist()
        [0.6931, 0.0]
    """
    middle = (p + q) / 2
    return (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum(1).clip(0) / 2


def towards(study: Study, questions: Questions, rows: pd.DataFrame, polled: pd.DataFrame) -> pd.DataFrame:
    """`towards_blank` of questions with options and of yes/no questions, in a column `question`."""
    shown = blanks(study.net, questions)[:1]
    white = study.measure(shown, images=questions, models=[study.name], keep=False)
    both = {"options": pd.concat([rows, white], ignore_index=True), "yes or no": polled}
    return pd.concat([towards_blank(part).assign(question=kind) for kind, part in both.items()], ignore_index=True)


def tokens(study: Study, questions: Questions, **options) -> pd.DataFrame:
    """Relative changes of the Dirichlet energy of what the language model gets, as `energy_changes` gives them."""
    shown = views(questions, TOKENS, further="tokens", **options)
    rows = study.measure(shown, images=questions, models=[study.name], detail="tokens", keep=False)
    return energy_changes(changed(rows))


def known_prior(study: Study) -> pd.DataFrame:
    """What a model answers to a grey picture beside what it was taught of one: shares `known` and `found`.

    A row a kind and `topic` (`yes`, `colour`, `pattern`), of the answer that was usual in training; none of a model
    whose training is not known.
    """
    if study.net.trained_on != "tabletop":
        return pd.DataFrame(columns=["sample_id", "topic", "known", "found"])
    questions, usual = prior_questions(study.images)
    grey = blanks(study.net, study.images)[1:2]
    rows = study.measure(grey, images=questions, models=[study.name], keep=False)
    found = [row[usual[i][0]] for i, row in zip(rows.sample_id, _probabilities(rows))]
    topics = [questions.asked[i].topic for i in rows.sample_id]
    return rows.assign(topic=topics, known=[usual[i][1] for i in rows.sample_id], found=found)


def agreement(table: pd.DataFrame) -> scores.Estimate:
    """Spearman's correlation of `known` and `found` shares; the interval draws kinds."""

    def rho(known, found) -> float:
        return spearmanr(known, found).statistic if np.ptp(known) and np.ptp(found) else np.nan

    return scores.bootstrap(rho, table.known.to_numpy(float), table.found.to_numpy(float), unit="1")


def beside(rows: pd.DataFrame, column: str, own: str) -> pd.DataFrame:
    """Accuracy and flip rate less those of one value of a column, on the same views, by `quantity` and that column."""
    found = []
    hits = {"accuracy": rows.prediction == rows.label, "flips": rows.prediction != rows.clean_prediction}
    for quantity, hit in hits.items():
        table = rows.assign(value=hit.astype(float), quantity=quantity)
        mine, rest = table[table[column] == own], table[table[column] != own]
        found += [(mine.assign(**{column: name}), part) for name, part in rest.groupby(column, sort=False)]
    one, other = (pd.concat(parts) for parts in zip(*found)) if found else (rows.assign(value=0, quantity="")[:0],) * 2
    return scores.paired_changes(one, other, ["quantity", column], bounds=1.0)


def in_regimes(study: Study, questions: Questions, rows: pd.DataFrame, **options) -> pd.DataFrame:
    """Views of some families in all regimes, in a column `regime`; `rows` are those of `mcq`."""
    parts = {"mcq": rows}
    for regime in ("open", "text_mcq"):
        put = questions.put(regime)
        parts[regime] = study.measure(views(put, FEW, **options), images=put, models=[study.name], keep=False)
    every = pd.concat([changed(part).assign(regime=regime) for regime, part in parts.items()], ignore_index=True)
    return every[every.family.isin(FEW)]


def in_words(table: pd.DataFrame, more: str, less: str, none: str = "none") -> str:
    """The lines of a table of paired changes by what is decided of them."""
    said = []
    for verdict, words in (("more", more), ("less", less), ("undecided", "not decided")):
        part = table[table.verdict == verdict]
        lines = [f"{row.label} ({scores.estimate_of(row):points})" for row in part.itertuples()]
        said += [f"{words}: {', '.join(lines)}"] if lines else []
    return "; ".join(said) or none


def examples(*sets: Questions, number: int = 3) -> tuple[list[Image.Image], list[str]]:
    """The first pictures of some sets with their questions and options."""
    shown = [(s, questions.asked[s.sample_id]) for questions in sets for s in questions.samples[:number]]
    return [s.image() for s, _ in shown], [f"{q.text}\n{', '.join(q.options)}" for _, q in shown]


def _columns(rows: pd.DataFrame, what: str) -> Float[np.ndarray, "n k"]:
    return rows.filter(regex=rf"^{what}_\d+$").to_numpy(float)


def _probabilities(rows: pd.DataFrame) -> Float[np.ndarray, "n k"]:
    """Softmax of the scores, 0 for options that are not there; columns that no row has are left out."""
    values = _columns(rows, "score")
    values = np.where(np.isnan(values), -np.inf, values)[:, ~np.isnan(values).all(0)]
    return np.exp(values - np.logaddexp.reduce(values, axis=1, keepdims=True))
