"""Chapter 15: does a confidence mean what it says, does a temperature mend it, and does that last under shifts?"""

from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from scipy import special, stats
from sklearn.model_selection import train_test_split
from torch import Tensor

from zsr_utils import scores
from zsr_utils.conditions import Batch, Condition, Seen, Settings, made_before, sizes, unchanged
from zsr_utils.conditions.alignment import Answer, align, saved_as_png
from zsr_utils.datasets import Dataset, Shift
from zsr_utils.models import Model
from zsr_utils.scores import Estimate
from zsr_utils.study import Study


ERRORS = {"ece_15": {}, "ece_10": {"bins": 10}, "ece_equal_mass": {"mass": True}, "rms_debiased": {"debiased": True}}
SURE = {"more": "too sure", "less": "not sure enough", "undecided": "not decided which"}
NONE = "no temperature is best, since all images to fit it on are named rightly"
SEES = {
    "more": "what it is sure of lies farther from the border", "less": "what it is sure of lies nearer to the border",
    "undecided": "whether the two go together is not decided",
}  # fmt: skip
AS_IS, SCALED, SIGMOID = "as trained", "scaled", "as sigmoids"


def logits(batch: Batch, seen: Seen) -> dict:
    """Facts: the logits, from which all of this chapter is computed; float32 keeps those of 1,000 names small."""
    return {"logits": list(seen.logits.float().numpy())}


def halves(images: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Images to fit a temperature on, and others to evaluate on: halves by sorted id, as Tu et al. (2024) may do."""
    both = train_test_split(sorted(s.sample_id for s in images.samples), test_size=0.5, random_state=seed)
    return tuple(images.only(ids) for ids in both)


def measured(study: Study, fit: Dataset, evaluation: Dataset, shifts: Mapping[str, Shift]) -> pd.DataFrame:
    """Rows with logits of both halves (sets `fit` and `clean`) and of every shift; no image is in two of the sets."""
    shown, frames = {"fit": fit, "clean": evaluation, **{name: shift.shown for name, shift in shifts.items()}}, []
    for name, images in shown.items():
        condition = Condition(name, float(name in shifts), unchanged, logits, draws=1)
        frames.append(study.measure([condition], images=images, keep=False).assign(set=name))
    rows = pd.concat(frames, ignore_index=True)
    study.keep_rows(rows.drop(columns="logits"))
    return rows


def logits_of(rows: pd.DataFrame) -> np.ndarray:
    """Logits (N, K) of rows of one set; a shift with fewer classes has fewer names, cut before the softmax."""
    return np.stack(rows.logits.to_list()).astype(float)


def temperatures(rows: pd.DataFrame) -> pd.DataFrame:
    """The temperature of every model, fitted on the set `fit` alone."""
    fit = rows[rows.set == "fit"]
    return scores.estimates(fit, "model", lambda p: scores.fit_temperature(logits_of(p), p.label.to_numpy()))


def answers(z: np.ndarray, labels: np.ndarray, *, sigmoid: bool = False) -> dict[str, np.ndarray]:
    """What logits (N, K) say: `right`, `confidence`, `nll` (nats; none of sigmoids) and `brier`, summed over names.

    Examples:
        >>> found = answers(np.log([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1]))
        >>> found["confidence"].round(3).tolist(), found["brier"].round(3).tolist()
        ([0.8, 0.6], [0.08, 0.72])
    """
    p = special.expit(z) if sigmoid else special.softmax(z, axis=1)
    rows = np.arange(len(z))
    nll = np.full(len(z), np.nan) if sigmoid else -special.log_softmax(z, axis=1)[rows, labels]
    brier = (p**2).sum(1) - 2 * p[rows, labels] + 1
    return {"right": z.argmax(1) == labels, "confidence": p.max(1), "nll": nll, "brier": brier}


def read(rows: pd.DataFrame, found: pd.DataFrame, nets: Mapping[str, Model]) -> pd.DataFrame:
    """Rows of all sets but `fit` with their `answers`, once a `reading`: as they are, scaled, and as sigmoids.

    Where `temperatures` found none nothing is scaled; sigmoids are those of models whose logits have a bias.
    """
    frames, of = [], found.set_index("model").value
    for (model, _), part in rows[rows.set != "fit"].groupby(["model", "set"], sort=False):
        z, labels = logits_of(part), part.label.to_numpy()
        readings = {AS_IS: answers(z, labels)}
        if np.isfinite(of[model]):
            readings[SCALED] = answers(z / of[model], labels)
        if isinstance(nets[model].logit_bias, Tensor):
            readings[SIGMOID] = answers(z, labels, sigmoid=True)
        frames += [part.assign(reading=reading, **said) for reading, said in readings.items()]
    return pd.concat(frames, ignore_index=True)


def ece(rows: pd.DataFrame, **options) -> Estimate:
    """`scores.calibration_error` of rows."""
    return scores.calibration_error(rows.confidence.to_numpy(), rows.right.to_numpy(bool), **options)


def every_measure(rows: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """All measures of one model's rows of one set and reading, a row each: errors, class-wise, NLL, Brier's parts."""
    table = {kind: ece(rows, **options) for kind, options in ERRORS.items()}
    z = logits_of(rows) / (found.set_index("model").value[rows.model.iloc[0]] if rows.reading.iloc[0] == SCALED else 1)
    truth = rows.label.to_numpy()[:, None] == np.arange(z.shape[1])
    table["ece_classwise"] = scores.calibration_error(special.softmax(z, axis=1), truth, resamples=200)
    table |= {name: scores.mean_of(name, unit)(rows) for name, unit in (("nll", "nats"), ("brier", "1"))}
    parts = scores.brier_parts(rows.confidence.to_numpy(), rows.right.to_numpy())
    table |= {f"right_{name}": estimate for name, estimate in parts.items()}
    return pd.DataFrame([{"measure": name, **asdict(e)} for name, e in table.items()])


def temperatures_in_words(rows: pd.DataFrame, found: pd.DataFrame) -> str:
    """Every model's mistakes among the images to fit on, its temperature, and what that says."""
    wrong = (rows.label != rows.prediction)[rows.set == "fit"].groupby(rows.model).sum()
    all_of = {row.model: scores.estimate_of(row) for row in found.itertuples()}
    told = {m: f"{e:.2f}, {SURE[scores.decide(e, 1.0)]}" if wrong[m] else NONE for m, e in all_of.items()}
    return "; ".join(f"{model}: {wrong[model]} mistakes, {text}" for model, text in told.items())


def scaling_in_words(table: pd.DataFrame) -> str:
    """On which sets the temperature of the clean half lowers or raises each model's NLL, after the correction."""
    words = {"less": "falls on", "more": "rises on", "undecided": "is not decided on"}
    each = table.groupby("model", sort=False)
    said = [f"the NLL of {model} {scores.by_verdict(own, 'set', words, mark=', ')}" for model, own in each]
    tested = "Scaled by the temperature of clean images and with each model's sets tested at once (Holm)"
    return f"{tested}, {'; '.join(said)}" if said else NONE.capitalize()


def diagram(rows: pd.DataFrame) -> pd.DataFrame:
    """Reliability of one set's rows by reading: the lines of `plots.curves`, bands of consistency around equality."""
    frames = []
    for reading, part in rows.groupby("reading", sort=False):
        bins = scores.reliability(part.confidence.to_numpy(), part.right.to_numpy())
        equal = bins.assign(value=bins.confidence, line=f"{reading}: 95 % of calibrated samples")
        frames += [equal, bins.assign(low=bins.value, high=bins.value, line=f"{reading}: accuracy")]
    return pd.concat(frames, ignore_index=True)


def at_coverage(share: float) -> scores.Statistic:
    """Accuracy among the share of rows with the highest confidence, and those that tie with the last of them."""

    def statistic(rows: pd.DataFrame) -> Estimate:
        last = np.sort(rows.confidence)[-max(1, round(share * len(rows)))]
        kept = rows[rows.confidence >= last]
        return scores.proportion(int(kept.right.sum()), len(kept))

    return statistic


def to_the_border(study: Study, images: Dataset, *, max_steps: int = 40) -> pd.DataFrame:
    """Rows of images that chapter 02's steps bring to the runner-up's border; `rms` is how far, in grey levels."""
    net, head = study.net, study.heads[study.name]
    if head.merged:  # their border is that of no single row
        return pd.DataFrame({"model": [], "sample_id": [], "rms": []})
    ids = [s.sample_id for s in images.samples]
    sources = images.pixels(ids, net.from_pil)
    second = head.see(net, sources.to(net.device)).logits.topk(2).indices[:, 1]
    settings = Settings(step=1.05, max_steps=max_steps, eight_bit=True)
    ends = align(net, sources, Answer(net, head.weights, second), settings, names=ids, keep=True)
    made = made_before("runner_up", 1.0, ids, saved_as_png(ends.pixels))
    rows = study.measure([replace(made, facts=sizes)], images=images, models=[study.name])
    return rows[rows.prediction != rows.clean_prediction]


def sees_fragility(rows: pd.DataFrame, border: pd.DataFrame) -> Estimate:
    """Spearman's correlation of an image's confidence with its distance to the runner-up's border."""
    clean = rows[(rows.set == "clean") & (rows.reading == AS_IS)]
    both = clean.merge(border[["model", "sample_id", "rms"]], on=["model", "sample_id"])
    if len(both) < 6:
        return scores.not_measured("1")
    columns = both.confidence.to_numpy(), both.rms.to_numpy()
    return scores.bootstrap(lambda a, b: stats.spearmanr(a, b).statistic, *columns, unit="1")
