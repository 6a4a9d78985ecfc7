"""Chapter 19: published accuracies of many models, and a family whose whole pre-training is known."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from markupsafe import Markup
from scipy import stats

from zsr_utils import jacobian
from zsr_utils._progress import progress
from zsr_utils.conditions import ORIGINAL, Head, gaussian_noise, made_before
from zsr_utils.conditions.alignment import Settings, saved_as_png
from zsr_utils.datasets import PUBLISHED_IMAGES, Dataset, blank_cards, load_dataset, published, tabletop_splits
from zsr_utils.experiments import representation_drift as drift
from zsr_utils.experiments.pairs import aligned_pairs, in_balls
from zsr_utils.measure import Pixels, measure
from zsr_utils.models import Model, load_model, resolve_device, training
from zsr_utils.scores import Estimate, decide, estimate_of, holm, paired_changes, proportion, trends


SHIFTS = {
    "imagenet-v2": "ImageNet-V2", "imagenet-sketch": "ImageNet Sketch", "imagenet-r": "ImageNet-R",
    "objectnet": "ObjectNet", "imagenet-a": "ImageNet-A",
}  # fmt: skip
BROKEN = "imagenet-a"  # what a ResNet-50 got wrong: the standard line breaks at its accuracy
FEWER_CLASSES = ("imagenet-r", "objectnet", "imagenet-a")  # sets that ask for some of ImageNet's classes
REFERENCES = ("zero-shot CLIP", "more data", "self-supervised", "robust", "adversarial")  # groups of the testbed
CLEANED = ("DataComp", "CommonPool")  # of near-duplicates of the test images; LAION was not
NEAR = 0.1  # of a slope: over ten points of ImageNet in the middle, one point under shift
CEILING = 0.98  # shares that both lie above it, or as near to 0, leave no room for a difference
DRIFTS = ("scale_pad", "rotation", "text_semantic")  # families of which the drift is kept
UNITS = {
    "alignment/rms": "grey levels", "jacobian/sensitivity": "ratio", "jacobian/effective_rank": "directions",
    "margin/validation": "logits", "word_beyond_blank/margin": "logits",
    **{f"drift/{family}": "ratio" for family in DRIFTS},
}  # fmt: skip
DUPLICATES = {
    "more": "room for near-duplicates to carry a part of it",
    "less": "no sign that near-duplicates of test images carry it",
    "undecided": "no decision whether near-duplicates carry a tenth of it",
}
BLANK = "word_beyond_blank/accuracy", "word_beyond_blank/margin"  # a wrong name on a card, less a blank card
DIFFERENCES = ("stability/word_beyond_box", BLANK[0])  # measurements that are themselves differences of shares


class Published:
    """Published accuracies by model and shift, and lines through them.

    `rows` has one a model and shift: `checkpoint`, `group` (`standard`, a training source, or another group of the
    testbed), the accuracies `x` and `y`, `set`, `shift` (its title), and `value`, the distance above the line. `lines`
    go through the standard models, by set, `fits` through the checkpoints of a source, by set and source. Checkpoints
    take part from the `least` accuracy on ImageNet on, where standard models begin; a source's line needs `fewest`.
    """

    def __init__(self, *, least: float, fewest: int = 5, resamples: int = 1000, seed: int = 0):
        self.least, self.resamples, self.seed = least, resamples, seed
        self.testbed = published("imagenet-testbed").rename(columns={"model": "checkpoint"})
        counted = published("openclip").query("counted")
        self.table = own = counted[counted.imagenet >= least]
        self.counted, self.left_out = len(counted), len(counted) - len(own)
        sizes = own.source.value_counts()
        self.sources, lined = list(sizes.index), list(sizes.index[sizes >= fewest])
        if missing := {"LAION", *CLEANED[:1]} - set(lined):
            given = f"least is {least} and fewest {fewest}"
            raise ValueError(f"{given}, which leaves no line for {min(missing)}: take lower ones.")
        order = ["standard", *self.sources, *REFERENCES]
        own = own.assign(checkpoint=own.model + ", " + own.pretrained, group=own.source)
        rows = pd.concat([self.testbed[self.testbed.group.isin(order)], own]).rename(columns={"imagenet": "x"})
        rows = rows.sort_values("group", key=lambda c: c.map(order.index), kind="stable")
        rows = rows.melt(["checkpoint", "group", "x"], list(SHIFTS), "set", "y").query("y > 0")  # the rest not measured
        self.lines = {s: self._line(s) for s in SHIFTS}
        values = [p.y - self.lines[s](p.x)[0] for s, p in rows.groupby("set", sort=False)]
        self.rows = rows.assign(shift=rows.set.map(SHIFTS), value=pd.concat(values))
        self.fits = {
            (s, g): trends.fit_line(p.x, p.y, resamples=resamples, seed=(seed, order.index(g)))
            for (s, g), p in rows[rows.group.isin(lined)].groupby(["set", "group"], sort=False)
        }

    def _testbed(self, group: str, s: str) -> pd.DataFrame:
        return self.testbed[(self.testbed.group == group) & (self.testbed[s] > 0)]

    def _line(self, s: str, x: str = "imagenet") -> trends.Line:
        standard, broken = self._testbed("standard", s), s == BROKEN
        pivot = self.testbed.set_index("checkpoint").at["resnet50", x] if broken else np.inf
        return trends.fit_line(standard[x], standard[s], pivot=pivot, resamples=self.resamples, seed=(self.seed, 0))

    def points(self) -> pd.DataFrame:
        """Standard models and checkpoints, with Wilson intervals of their accuracy under shift."""
        rows = self.rows[self.rows.group.isin(["standard", *self.sources])]
        ends = [proportion(round(y * n), n) for y, n in zip(rows.y, rows.set.map(PUBLISHED_IMAGES))]
        return rows.assign(name=rows.checkpoint, low=[e.low for e in ends], high=[e.high for e in ends])

    def bands(self) -> pd.DataFrame:
        """The standard lines with their bands, where there are checkpoints."""
        grid = np.linspace(self.table.imagenet.min(), self.table.imagenet.max(), 60)
        return pd.concat([line.band(grid).assign(shift=SHIFTS[s], group="standard") for s, line in self.lines.items()])

    def above(self) -> pd.DataFrame:
        """Share of checkpoints farther above the line than any standard model, by set and on `all shifts`."""
        largest = self.rows[self.rows.group == "standard"].groupby("set").value.max()
        own = self.rows.assign(above=self.rows.value > self.rows.set.map(largest)).query("group in @self.sources")
        parts = [*own.groupby("set", sort=False).above, ("all shifts", own.groupby("checkpoint").above.all())]
        return pd.DataFrame([{"set": s, **asdict(proportion(int(part.sum()), len(part)))} for s, part in parts])

    def distances(self) -> pd.DataFrame:
        """Mean distance above the line of every group, and of all checkpoints."""
        own = self.rows[self.rows.group.isin(self.sources)].assign(group="all checkpoints")
        groups = pd.concat([own, self.rows[self.rows.group != "standard"]]).groupby(["set", "group"], sort=False)
        draws = [(s, g, p.y.to_numpy() - self.lines[s](p.x)) for (s, g), p in groups]
        seeds = [(self.seed, 50, k) for k in range(len(draws))]
        return _table({(s, g): (trends.mean_over(d, seed), d.shape[1]) for seed, (s, g, d) in zip(seeds, draws)})

    def at_equal(self, accuracy: float) -> pd.DataFrame:
        """Distance above the line, at one accuracy on ImageNet, of every source's line."""
        return _table(self._at(accuracy))

    def lost(self, accuracy: float) -> pd.DataFrame:
        """Which share of LAION's distance the sources cleaned of near-duplicates lack at one accuracy on ImageNet."""
        at = self._at(accuracy)
        return _table({(s, g): (1 - d / at[s, "LAION"][0], n) for (s, g), (d, n) in at.items() if g in CLEANED})

    def _at(self, accuracy: float) -> dict[tuple[str, str], tuple[np.ndarray, int]]:
        at = [accuracy]
        return {(s, g): ((fit(at) - self.lines[s](at))[:, 0], fit.n) for (s, g), fit in self.fits.items()}

    def slopes(self) -> pd.DataFrame:
        """Slope less that of the standard line: the one that all sources share, and that of every source."""
        draws = {}
        for s in (s for s in SHIFTS if s != BROKEN):
            fits = {g: fit for (t, g), fit in self.fits.items() if t == s}
            standard, n = self.lines[s].slope[:, 0], sum(fit.n for fit in fits.values())
            draws[s, "all sources"] = trends.common_slope(list(fits.values())) - standard, n
            draws |= {(s, g): (fit.slope[:, 0] - standard, fit.n) for g, fit in fits.items()}
        return _table(draws, "slope")

    def same_classes(self) -> pd.DataFrame:
        """The testbed's zero-shot models above lines over all classes, and over those of the set alone."""
        found = []
        for s in FEWER_CLASSES:
            standard, clip = (self._testbed(group, s) for group in ("standard", "zero-shot CLIP"))
            for classes, x in (("all", "imagenet"), ("same", f"imagenet-on-{s}")):
                line = self._line(s, x)
                largest = (standard[s] - line(standard[x])[0]).max()
                for name, draws in zip(clip.checkpoint, (clip[s].to_numpy() - line(clip[x])).T):
                    row = _table({(s, name.removesuffix("_clip_zeroshot")): (draws, line.n)})
                    found.append(row.assign(classes=classes, beyond=draws[0] > largest))
        return pd.concat(found, ignore_index=True)

    def straightness(self, groups: Sequence[str]) -> pd.DataFrame:
        """Statistics of Huber's lines on the probit scale: rows by set, group and quantity."""
        found, options = [], {"method": "huber", "resamples": self.resamples, "seed": self.seed}
        rows = self.rows[self.rows.group.isin(groups) & (self.rows.set != BROKEN)]
        for (s, g), p in rows.groupby(["set", "group"], sort=False):
            fit = trends.straightness(p.x, p.y, **options)
            found += [{"set": s, "shift": SHIFTS[s], "group": g, "quantity": q, **asdict(e)} for q, e in fit.items()]
        return pd.DataFrame(found)

    def place(self, model: str, pretrained: str) -> str:
        """Where the model of a run stands among the published ones, in words."""
        own = self.rows[self.rows.checkpoint == f"{model}, {pretrained}"]
        if own.empty:
            return f"{model}, the model of this run, is not among them: for every such model this page is the same"
        points = ", ".join(f"{100 * v:+.1f} on {shift}" for v, shift in zip(own.value, own["shift"]))
        return f"{model} ({pretrained}), the model of this run, is among them; points above the line: {points}"


def _table(draws: Mapping[tuple[str, str], tuple[np.ndarray, int]], unit: str = "fraction") -> pd.DataFrame:
    """Estimates by set and group, from draws and the number of models behind them."""
    found = {key: asdict(trends.summary(*d, unit)) for key, d in draws.items()}
    return pd.DataFrame([{"set": s, "shift": SHIFTS[s], "group": g, **e} for (s, g), e in found.items()])


def way(slope: Estimate) -> str:
    """Where better models of one source move, from their slope less the standard one."""
    if slope.low > -NEAR and slope.high < NEAR:
        return "along it"
    words = {"more": "off it, upwards", "less": "off it, downwards", "undecided": "in no decided direction"}
    return words[decide(slope)]


def by_words(words: Mapping[str, str]) -> str:
    """What is said of each, together where it is the same."""
    of = {w: " and ".join(k for k, v in words.items() if v == w) for w in words.values()}
    return "; ".join(f"{w} on {those}" for w, those in of.items())


def shifted_sets(limit: int, seed: int) -> dict[str, Dataset]:
    """The shifted sets of Tabletop, so many scenes each, and `blank_card`: the scenes of `card` without the word."""
    sets = {s: load_dataset("tabletop", split=s, limit=limit, seed=seed) for s in tabletop_splits()[1:]}
    return sets | {"blank_card": blank_cards([sample.sample_id for sample in sets["card"].samples])}


def member(
    net: Model, images: Dataset, shifted: Mapping[str, Dataset], templates: Sequence[str], *,
    pairs: int = 16, budgets: Sequence[float] = (4,), steps: int = 8, spectra: int = 2, sigma: float = 4,
    draws: int = 2, views: int = 12, batch_size: int = 64, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Rows of one model on the measurements of several chapters, few images each.

    Images, pairs and noise depend on the data and the seed alone, so those of two models belong together. The column
    `part` says what a row is for: the name of a set (`validation`, or one of `shifted`); `pairs`, aligned with another
    image and in balls of `budgets` grey levels; `jacobian`, of the first `spectra` of them (`sensitivity`, the share of
    the embedding's length by which one grey level can move it by the linear account, and `effective_rank`);
    `noise_aligned` and `noise_clean`, under noise of `sigma` grey levels; or `views` of the first, in every
    perturbation (with `unrelated`, the mean distance of unrelated images).
    """
    head = Head(net.classifier(images.class_names, templates), images.class_names)
    options = {"batch_size": batch_size, "seed": seed}
    draw = {"per_class": -(-pairs // len(images.class_names)), "number": pairs, "one_a_source": True}
    made = aligned_pairs(net, images, Settings(momentum=0.3, seed=seed), **draw, **options)
    table, ids = made.table, list(made.table.sample_id)
    bounded = in_balls(net, head, made, budgets, max_steps=steps, batch_size=batch_size)

    few, pixels = ids[:spectra], made.sources[:spectra]
    squares, length = jacobian.spectra(net, pixels).values.square(), made.embedded.of(few).norm(dim=1)
    facts = {  # one grey level everywhere is sqrt(P) / 255 long
        "sensitivity": (squares[:, 0] * pixels[0].numel()).sqrt() / 255 / length,
        "effective_rank": squares.sum(1).square() / squares.square().sum(1),
    }
    spectrum = made_before("jacobian", 0, few, pixels, {name: values.numpy() for name, values in facts.items()})

    rest = [i for i in made.embedded.sample_ids if i not in {*ids, *table.target_id}]
    if not rest:
        raise ValueError(f"{images.name}: {pairs} pairs use all its {len(images)} images, allowed are fewer.")
    names, labels = zip(*((s.sample_id, s.label) for s in images.only(rest).subset(2 * pairs, seed).samples))
    clean, noise = saved_as_png(images.pixels(names, net.from_pil)), gaussian_noise([sigma], conversion="round")
    shown = {name: (data, [ORIGINAL]) for name, data in {"validation": images, **shifted}.items()} | {
        "pairs": (images.only(ids), [made.condition(), *bounded]),
        "jacobian": (images.only(few), [spectrum]),
        "noise_aligned": (Pixels(ids, np.array(table.label), made.pixels), noise),
        "noise_clean": (Pixels(names, np.array(labels), clean), noise),
        "views": (images.only(ids[:views]), drift.views(detail="answers")),
    }
    found = [measure(net, of, head, how, draws=draws, **options).assign(part=p) for p, (of, how) in shown.items()]
    apart = drift.unrelated(made.embedded, seed=seed).query("kind == 'any'").distance.mean()
    return pd.concat(found, ignore_index=True).assign(unrelated=apart)


def members(
    names: Sequence[str], *data, device: str = "auto", precision: str = "fp32", workers: int | None = None, **settings
) -> pd.DataFrame:
    """Rows of several models, as of `member`, in a column `model`; on a CPU by a worker a thread that torch may use."""
    workers = workers or (torch.get_num_threads() if resolve_device(device).type == "cpu" else 1)

    def one(name: str) -> pd.DataFrame:
        return member(load_model(name, device=device, precision=precision), *data, **settings).assign(model=name)

    found, one_thread = [], parallel_config("loky", n_jobs=min(workers, len(names)), inner_max_num_threads=1)
    with one_thread, progress(len(names), "members", unit="model") as bar:
        for rows in Parallel(return_as="generator")(delayed(one)(name) for name in names):
            found.append(rows)
            bar.update()
    return pd.concat(found, ignore_index=True)


def measurements(rows: pd.DataFrame) -> pd.DataFrame:
    """Values by model, measurement and image: columns `model`, `measurement`, `sample_id`, `value`.

    `noise/auroc` is the share of clean images that drift less under noise than this aligned one;
    `stability/word_beyond_box` the flips under a written name less those under the empty box in its place;
    `word_beyond_blank/…` what a wrong name on a card does beyond a blank one; `drift/<family>` the drift of views with
    unchanged answer over the mean distance of unrelated images.
    """
    right, flip = rows.prediction == rows.label, rows.prediction != rows.clean_prediction
    original, views, spectra = rows.condition == "original", rows.part == "views", rows.part == "jacobian"
    word = rows.family.map({"text_semantic": 2, "text_empty": -2})  # as many views each: their mean is the difference
    card = rows.part.map({"card": 2, "blank_card": -2})
    parts = [
        (original, "accuracy/" + rows.part, right),
        (original & (rows.part == "validation"), "margin/" + rows.part, rows.margin),
        (rows.condition == "named_in_ball", "alignment/systematic_" + rows.severity.map("{:g}_255".format), right),
        (rows.condition == "aligned", "alignment/rms", rows.rms),
        (spectra, "jacobian/sensitivity", rows.sensitivity),
        (spectra, "jacobian/effective_rank", rows.effective_rank),
        (rows.part == "noise_aligned", "noise/auroc", _below(rows)),
        (views, "stability/flips", flip),
        (views & word.notna(), DIFFERENCES[0], word * flip),
        (card.notna(), BLANK[0], card * right),
        (card.notna(), BLANK[1], card * rows.margin),
        (views & ~flip & rows.family.isin(DRIFTS), "drift/" + rows.family.astype(str), rows.drift / rows.unrelated),
    ]
    keys = ["model", "measurement", "sample_id"]
    named = [rows.assign(measurement=name, value=value.astype(float))[kept] for kept, name, value in parts]
    return pd.concat([part[[*keys, "value"]] for part in named]).groupby(keys, sort=False).value.mean().reset_index()


def _below(rows: pd.DataFrame) -> pd.Series:
    """Of each aligned image, the share of clean ones that drift less under noise, ties counted half."""
    found = pd.Series(np.nan, rows.index)
    for _, own in rows.groupby("model"):
        drifts = own.groupby(["part", "sample_id"]).drift.transform("mean")  # over the draws of the noise
        aligned, clean = (drifts[own.part == f"noise_{kind}"] for kind in ("aligned", "clean"))
        found[aligned.index] = (np.sign(aligned.to_numpy()[:, None] - clean.to_numpy()).mean(1) + 1) / 2
    return found


def changes(values: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Every member against the first, image by image; members `<name>-seed<k>` are further training runs of one.

    Returns: What `paired_changes` gives by `member` and `measurement`, with `seen`: `higher` or `lower` (the interval
        without 0 and `p_holm` below 0.05), `no change` (of a share, its whole interval within the margin), `not
        decided`, or `at a ceiling`, where nothing is tested. Those compare two models; `run_low`, `run_high` and
        `run_p`, of Welch's test with a training run as the unit, compare the two ways to train, and are missing with
        one run, as is `between_runs`, the standard deviation of the member's mean.
    """
    values = values.assign(member=values.model.str.replace(r"-seed\d+$", "", regex=True))
    keys = ["member", "measurement"]
    means = values.groupby([*keys, "model"]).value.mean()
    runs = means.groupby(keys).agg(runs="count", between_runs="std")
    bounds = dict.fromkeys(set(values.measurement) - set(UNITS), 1.0) | dict.fromkeys(DIFFERENCES, 2.0)
    (default, base), *others = values.groupby("member", sort=False)
    tables = [paired_changes(base, other, "measurement", bounds=bounds).assign(member=name) for name, other in others]
    table = pd.concat(tables, ignore_index=True).join(runs, on=keys)
    table["runs"] = table.runs.clip(upper=base.model.nunique())
    both = [(means[member, m], means[default, m]) for member, m in zip(table.member, table.measurement)]
    table[["run_low", "run_high", "run_p"]] = [_between_runs(*pair) for pair in both]
    return _seen(table, margin)


def beyond_blank(values: pd.DataFrame, margin: float) -> pd.DataFrame:
    """What a wrong name does beyond a blank card, in every model by itself, scene by scene: a table as of `changes`."""
    some = values[values.measurement.isin(BLANK)].rename(columns={"model": "member"})
    keys = ["member", "measurement"]
    return _seen(paired_changes(some.assign(value=0.0), some, keys, bounds={BLANK[0]: 1.0}), margin)


def of_cards(table: pd.DataFrame) -> dict:
    """Words for `beyond_blank`: the first model's two differences, and how many models have which."""
    accuracy, logits = (table[table.measurement == measurement] for measurement in BLANK)
    first = {"accuracy": estimate_of(accuracy.iloc[0]), "logits": estimate_of(logits.iloc[0])}
    return first | {"name": table.member.iloc[0], "a": counts(accuracy.seen), "m": counts(logits.seen)}


def _between_runs(other: pd.Series, base: pd.Series) -> tuple[float, float, float]:
    """Bounds and p of the difference of two ways to train, from one mean a training run."""
    found = stats.ttest_ind(other, base, equal_var=False) if min(len(other), len(base)) > 1 else None
    return (*found.confidence_interval(), found.pvalue) if found else (np.nan,) * 3


def _seen(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Differences with their unit, the `p_holm` of this table, and what is seen."""
    table = table.assign(unit=table.measurement.map(UNITS).fillna("fraction"))
    both, share = table[["base", "other"]], table.unit == "fraction"
    ends = (both.min(axis=1) >= CEILING) | (both.max(axis=1) <= 1 - CEILING)
    full = share & ~table.measurement.isin(DIFFERENCES) & ends
    table = table.assign(p_holm=holm(table.p.mask(full)))
    same, sure = share & (table.low > -margin) & (table.high < margin), table.p_holm < 0.05
    cases = [full, same, sure & (table.low > 0), sure & (table.high < 0)]
    return table.assign(seen=np.select(cases, ["at a ceiling", "no change", "higher", "lower"], "not decided"))


def beside_claims(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """What is reported of a factor beside what its pair shows (`seen`).

    The `verdict` is on the factor, so it takes training runs as the unit, and with one run there is none: `one run`.
    """
    claims = published("claims").rename(columns={"model": "member"})
    found = _seen(claims.merge(table, on=["member", "measurement"]), margin)
    runs = _seen(found.assign(low=found.run_low, high=found.run_high, p=found.run_p), margin).seen
    expected = found.expected.map({1: "higher", 0: "no change", -1: "lower"})
    cases = [found.runs < 2, runs.isin(["not decided", "at a ceiling"]), runs == expected]
    return found.assign(expected=expected, verdict=np.select(cases, ["one run", runs, "as reported"], "otherwise"))


def against_claims(table: pd.DataFrame) -> Markup:
    """The table of `beside_claims`: how many verdicts there are of each kind, and a sentence a statement.

    Examples:
        >>> row = {"factor": "loss", "member": "m", "reported": "r", "source": "s", "measurement": "accuracy/a_b"}
        >>> row |= {"other": 0.5, "base": 0.25, "value": 0.25, "low": 0.1, "high": 0.4, "p_holm": 0.01}
        >>> row |= {"seen": "higher", "expected": "higher", "verdict": "one run"}
        >>> print(against_claims(pd.DataFrame([row])).splitlines()[0])
        Of 1 pairs 1 are of one training run each, of which no verdict on the factor follows.
    """
    n = counts(table.verdict)
    said = f"Of {n['n']} pairs {n['one_run']} are of one training run each, of which no verdict on the factor follows"
    if n["one_run"] < n["n"]:
        said += f"; of the others {n['as_reported']} differ as reported and {n['otherwise']} otherwise, "
        said += f"{n['not_decided']} are not decided, and {n['at_a_ceiling']} are at a ceiling"
    each = [
        f"- *{c.factor}*, {c.member}: {c.reported} ({c.source}). {c.measurement.replace('_', ' ')}: {c.other:.3g}, "
        f"of the default {c.base:.3g}, {c.value:+.3g} [{c.low:+.3g}, {c.high:+.3g}], p {c.p_holm:.2g}: "
        f"{c.seen} between these models, expected {c.expected}; **{c.verdict}**."
        for c in table.itertuples()
    ]
    return Markup("\n".join([said + ".\n", *each]))


def counts(verdicts: pd.Series) -> dict[str, int]:
    """How many there are of each verdict that `changes` and `beside_claims` may give, and `n`, how many in all."""
    possible = "higher", "lower", "no change", "as reported", "otherwise", "not decided", "at a ceiling", "one run"
    return {"n": len(verdicts)} | {v.replace(" ", "_"): int((verdicts == v).sum()) for v in possible}


def family_table(names: Sequence[str]) -> pd.DataFrame:
    """The members, and the one thing in which each differs from the default."""
    rows = {
        name: {"differs in": ", ".join(t["changes"]) or "nothing", **t} for name, t in zip(names, map(training, names))
    }
    return pd.DataFrame(rows, ["differs in", "tower", "loss", "scenes", "samples", "seed"]).T
