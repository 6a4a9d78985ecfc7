"""Chapter 10: what the words around a class name change, whether words can be found that help, and what breaks them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from zsr_utils import datasets, scores
from zsr_utils._text import read_yaml
from zsr_utils.conditions import ORIGINAL, Batch, Condition, Head, Seen, attack, generator
from zsr_utils.datasets import Dataset
from zsr_utils.experiments.distribution_shifts import seen
from zsr_utils.experiments.out_of_distribution import foreign, odds, outside_sets
from zsr_utils.measure import embed
from zsr_utils.models import Model, training
from zsr_utils.prompts import PROMPT_SETS, START, TEMPLATES, best_of, search
from zsr_utils.study import Study


PLAIN = "plain prompt"
DRAWN = ("cartoon", "sketch", "silhouette", "backdrop", "viewpoint", "lighting")  # splits of Tabletop that are shifts
OWN, CARRIED = "attacked", "attack on plain"  # by each set's own gradient, and by that of the plain prompt
VALUES = {"accuracy": "right", "Brier score": "brier", "AUROC": "auroc"}  # columns by quantity
BOUNDS = {"accuracy": 1, "AUROC": 2}
HARMLESS = ("upper case", "capitals", "no article", "definite article", "plural", "full stop")
# templates of all classes, templates of each, or a whole text for each
Texts = Sequence[str] | Mapping[str, Sequence[str]] | Mapping[str, str]


def words_of(images: Dataset, file: str = "") -> dict[str, dict]:
    """Descriptions, synonyms and other names of every class, from a file or Tabletop's own; those it lacks are none."""
    known = read_yaml(Path(file)) if file else datasets.tabletop_words() if images.name == "tabletop" else {}
    return {name: known[name] for name in images.class_names} if set(images.class_names) <= set(known) else {}


def weights_of(net: Model, names: Sequence[str], texts: Texts) -> torch.Tensor:
    """A classifier of such texts; refused where the tokenizer does not read them to the end."""
    own = texts if isinstance(texts, Mapping) else dict.fromkeys(names, tuple(texts))
    if isinstance(own[names[0]], str):
        net.check_read([own[name] for name in names])
        return net.classifier([own[name] for name in names], ["{}"])
    net.check_read([t.replace("{}", name) for name in names for t in own[name]])
    if not isinstance(texts, Mapping):
        return net.classifier(names, texts)
    return torch.cat([net.classifier([name], own[name]) for name in names])


def prompt_sets(names: Sequence[str], words: Mapping[str, dict]) -> dict[str, Texts]:
    """The sets by name, the plain prompt first; descriptions where there are any, and those of another class."""
    found = {PLAIN: PROMPT_SETS[PLAIN], "bare name": PROMPT_SETS["bare name"], **TEMPLATES}
    if all("descriptions" in words.get(name, {}) for name in names):
        said = {name: tuple(words[name]["descriptions"]) for name in names}
        others = dict(zip(names, [*list(said.values())[1:], said[names[0]]]))
        found |= {"class descriptions": said, "descriptions of others": others}
    return found


def plural(name: str) -> str:
    """English plural by its three rules.

    Examples:
        >>> [plural(word) for word in ("duck", "box", "berry")]
        ['ducks', 'boxes', 'berries']
    """
    if name.endswith("y") and name[-2:-1] not in tuple("aeiou"):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("s", "x", "z", "ch", "sh")) else "s")


def misspelt(name: str, seed: int = 0) -> str:
    """A name with two neighbouring letters exchanged, its first and last in their places where it is long enough."""
    places = [k for k in range(1, len(name) - 2) if name[k] != name[k + 1]]
    k = int(generator(name, [seed]).choice(places)) if places else max(0, len(name) - 2)
    return name[:k] + name[k : k + 2][::-1] + name[k + 2 :]


def wordings(names: Sequence[str], words: Mapping[str, dict], *, seed: int = 0) -> dict[str, dict[str, str]]:
    """The plain prompt said otherwise, by kind of change: a text for every class."""
    said: dict[str, Callable[[str], str]] = {
        "upper case": lambda n: f"{START} {n}".upper(), "capitals": lambda n: f"{START} {n}".title(),
        "no article": lambda n: f"a photo of {n}", "definite article": lambda n: f"a photo of the {n}",
        "plural": lambda n: f"a photo of {plural(n)}", "full stop": lambda n: f"{START} {n}.",
        "misspelling": lambda n: f"{START} {misspelt(n, seed)}",
    }  # fmt: skip
    for kind in ("synonym", "german"):
        if all(kind in words.get(name, {}) for name in names):
            said[kind] = lambda n, kind=kind: f"{START} {words[n][kind]}"
    return {kind: {name: change(name) for name in names} for kind, change in said.items()}


@dataclass(frozen=True)
class Asked:
    """Answers of several heads to one embedding, as facts; the first is the one that others are compared with."""

    heads: Mapping[str, Head]

    def facts(self, batch: Batch, seen: Seen) -> dict:
        found, label = {}, batch.labels.long()[:, None]
        every = {name: head.scores(batch.net, seen.features) for name, head in self.heads.items()}
        best_other = next(iter(every.values())).scatter(1, label, -torch.inf).amax(1)
        for name, logits in every.items():
            p = logits.softmax(1)
            told = {"prediction": logits.argmax(1), "confidence": p.amax(1)}
            told["brier"] = (p - F.one_hot(label[:, 0], p.shape[1])).square().sum(1)
            told["alone"] = logits.gather(1, label)[:, 0] > best_other
            told["mcm"] = odds(logits / float(batch.net.logit_scale))
            found |= {f"{name}|{k}": values.numpy() for k, values in told.items()}
        return found


def asked(study: Study, sets: Mapping[str, Texts], shown: Mapping[str, tuple[Dataset, Sequence | Callable]]):
    """Every picture under every condition once, and the answer of every prompt set to it, a row each.

    Args:
        shown: By measurement, such as `clean` or `shifted`: the images and how they are shown, or a function that gives
            the conditions for a model and the heads of all sets. Under `OWN` each is an attack on the prompt set of its
            name; names that begin with `outside:` are sets of which no class is true.

    Returns: The rows of `measure` with `measurement`, `prompts`, `right`, `brier` (squared distance of the
        probabilities from the truth) and `alone` (right where the label's text alone is exchanged); `sample_id` is that
        of the scene, where several pictures show one. Of outside pictures and clean ones beside them `auroc` alone is
        told, by `scores.auroc_parts` of MCM.
    """
    parts = []

    @cache
    def heads_of(net: Model, names: tuple[str, ...]) -> dict[str, Head]:
        return {n: Head(weights_of(net, names, texts), names) for n, texts in sets.items()}

    for measurement, (images, conditions) in shown.items():

        def with_answers(net: Model, conditions=conditions, names=images.class_names) -> list[Condition]:
            heads = heads_of(net, tuple(names))
            made = conditions(net, heads) if callable(conditions) else conditions
            return [replace(condition, facts=Asked(heads).facts) for condition in made]

        wide = study.measure(with_answers, images=images, keep=False)
        wide["sample_id"] = wide.sample_id.str.replace(r"^(shift-\d+)/.*", r"\1", regex=True)
        common = wide[["sample_id", "label", "condition", "severity", "draw", "model"]]
        for name in sets:
            answers = {k: wide[f"{name}|{k}"] for k in ("prediction", "confidence", "brier", "alone", "mcm")}
            parts.append(common.assign(measurement=measurement, prompts=name, **answers))
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.assign(right=(rows.prediction == rows.label).astype(float), auroc=np.nan)
    outside, attacked = rows.measurement.str.startswith("outside:"), rows.measurement == OWN
    kept = rows[~outside & (~attacked | (rows.condition == rows.prompts))]
    parts = [kept, rows[attacked & (rows.condition == PLAIN)].assign(measurement=CARRIED)]
    clean, by = kept[kept.measurement == "clean"].groupby(["model", "prompts"]), ["model", "prompts", "measurement"]
    for key, part in rows[outside].groupby(by, sort=False):
        sides = [p.set_index("sample_id").mcm for p in (clean.get_group(key[:2]), part)]
        told = scores.auroc_parts(*sides).rename(columns={"value": "auroc"})
        parts.append(told.assign(label=-1, prediction=-1, **dict(zip(by, key))))
    every = pd.concat(parts, ignore_index=True).drop(columns="mcm")
    return study.keep_rows(
        every.assign(measurement=every.measurement.str.replace(r"outside:|(?<=shifted):.*", "", regex=True))
    )


def pictures(study: Study, corruptions: Sequence[Condition], attacked: Sequence[str]) -> dict:
    """What prompts are compared on: the images as they are, corrupted, shifted, attacked, and beside foreign ones.

    Args:
        attacked: Prompt sets along whose gradient PGD goes; it does not stop when the model errs.
    """
    p, images = study.parameters, study.images
    shown = {
        "clean": (images, [ORIGINAL]),
        "corrupted": (images.subset(p["corruption_images"], p["seed"]), corruptions),
    }
    if images.name == "tabletop":
        shifts = {name: datasets.load_dataset("tabletop", split=name) for name in DRAWN}
        outside = {"held-out kinds": datasets.tabletop_outside(p["outside_images"], p["seed"])["held-out kinds"]}
    else:
        options = {k: p[k] for k in ("split", "limit", "seed")}
        shifts = {n: s.shown for n, s in datasets.natural_shifts(images, p["shifts"], **options).items()}
        outside = outside_sets(study, p["outside"], p["outside_images"])
    shifts = {f"shifted:{name}": (shift, seen(name)) for name, shift in shifts.items()}
    outside = {f"outside:{name}": (foreign(few, study.names), seen(name)) for name, few in outside.items()}

    def attacks(net: Model, heads: Mapping[str, Head]) -> list[Condition]:
        how = {"eps": p["radius"] / 255, "steps": p["attack_steps"]}
        return [attack("pgd", substitute=(net, heads[name]), called=name, **how) for name in attacked]

    return shown | shifts | {OWN: (images.subset(p["attacked_images"], p["seed"]), attacks)} | outside


def compared(rows: pd.DataFrame, *, base: str = PLAIN) -> pd.DataFrame:
    """Differences from a prompt set on the same pictures, of accuracy, Brier score and AUROC, corrected together.

    The verdict is `better`, `worse` or `undecided`: a Brier score is better where it is lower.
    """
    long = pd.concat([rows.assign(quantity=q, value=rows[c]) for q, c in VALUES.items()]).dropna(subset="value")
    keys = ["model", "prompts", "measurement", "quantity"]
    table = scores.changes_from(long, "prompts", base, keys, bounds=BOUNDS, within="model")
    better = table.verdict == np.where(table.quantity == "Brier score", "less", "more")
    ways = np.select([table.verdict == "undecided", better], ["undecided", "better"], "worse")
    return table.assign(verdict=ways)


def reworded(rows: pd.DataFrame) -> pd.DataFrame:
    """The part of `compared` that accuracy is of."""
    table = compared(rows)
    return table[table.quantity == "accuracy"]


def in_words(table: pd.DataFrame, model: str, than: str = "the plain prompt") -> str:
    """In what a set does better or worse, after the correction, and how often that is decided for other models."""
    lines = table.assign(what=table.quantity + " (" + table.measurement + ")")
    words = {"better": "is better in", "worse": "is worse in"}
    each = {
        name: scores.by_verdict(part, "what", words, mark=" and ")
        for name, part in lines[lines.model == model].groupby("prompts", sort=False)
    }
    said = [f"“{name}” {text}" for name, text in each.items() if text]
    same = ", ".join(name for name, text in each.items() if not text)
    said += [f"not told from it: {same}"] if same else []
    counts = [f"for {m}, {counted(part)}" for m, part in table[table.model != model].groupby("model", sort=False)]
    return ". ".join([f"Beside {than}, for {model}, {'; '.join(said)}", *(f"And {c}" for c in counts)]) + "."


def counted(table: pd.DataFrame) -> str:
    """How many comparisons are decided, and which way."""
    n = table.verdict.value_counts()
    return f"better in {n.get('better', 0)} and worse in {n.get('worse', 0)} of {len(table)} comparisons"


def training_pictures(study: Study, number: int, folder: str = "") -> Dataset | None:
    """Training pictures of the chapter's model: scenes of its own set, or a folder's; never those it is measured on."""
    if folder:
        p = study.parameters
        split = "validation" if Path(folder).is_dir() else "train"
        if (folder, split) == (p["dataset"], p["split"]):
            raise ValueError(f"training is {folder!r}, which is the test set: allowed are other pictures.")
        try:
            found = datasets.load_dataset(folder, split=split, classes=list(study.names), limit=number, seed=p["seed"])
        except FileNotFoundError as error:
            print(f"No search for words: {error}")
            return None
        if found.class_names != study.names:
            raise ValueError(f"training is {folder!r}, whose classes stand in another order than {p['dataset']!r}'s.")
        return found
    if study.images.name == "tabletop" and study.net.trained_on:
        return datasets.pretraining_part(training(study.name), [], number)
    return None


def found_prompts(study: Study, pictures: Dataset | None, *, seeds: int, steps: int, shuffled=False):
    """Prompts searched for with several seeds on one half of training pictures, each the best on the other half.

    Args:
        shuffled: Whether the labels of the half that is searched on are mixed up: what a search finds in nothing.

    Returns: `seed`, `prompt`, `held_out` and `plain`, the losses of both on the half not searched on, and `tried`.
    """
    columns = ["seed", "prompt", "held_out", "plain", "tried"]
    if pictures is None:
        return pd.DataFrame(columns=columns)
    known = embed(study.net, pictures, batch_size=study.parameters["batch_size"])
    features, labels = torch.from_numpy(known.features), torch.from_numpy(known.labels)
    n, found = len(labels) // 2, []
    half = torch.from_numpy(np.random.default_rng(study.parameters["seed"]).permutation(len(labels)) < n)
    for seed in range(seeds):
        mixed = torch.from_numpy(np.random.default_rng([seed, 11]).permutation(n))
        own = labels[half][mixed] if shuffled else labels[half]
        options = {"seed": seed, "steps": steps, "batch": min(64, n // 2)}
        log = search(study.net, study.names, features[half], own, **options)
        # where labels are mixed up, what the search ends with; else the best on pictures that it did not see
        prompts = [log.prompt.iloc[0], log.prompt.iloc[-1]] if shuffled else list(log.prompt)
        best, losses = best_of(study.net, study.names, prompts, features[~half], labels[~half])
        chosen = (prompts[-1], losses[-1]) if shuffled else (best, losses.min())
        found.append((seed, *chosen, losses[0], len(log) - 1))
    return pd.DataFrame(found, columns=columns)


KINDS = {"found": "found words", "mixed": "mixed-up labels", "random": "random words"}


def named(net: Model, found: pd.DataFrame, mixed: pd.DataFrame, *, slots: int = 4, seed: int = 0) -> dict[str, Texts]:
    """The prompts of every search by kind and number, and as many of words drawn at random; none without a search."""
    rng, known = np.random.default_rng([seed, 12]), list(net.words().values()) if len(found) else []
    drawn = [" ".join(rng.choice(known, slots)) + " {}" for _ in found.prompt]
    each = zip(KINDS.values(), (found.prompt, mixed.prompt, drawn))
    return {f"{kind} {k + 1}": (prompt,) for kind, prompts in each for k, prompt in enumerate(prompts)}


def search_in_words(found: pd.DataFrame, mixed: pd.DataFrame) -> str:
    """What the searches took, and what they did to the loss on held-out training pictures."""
    if found.empty:
        return "No training pictures of these classes are known, so nothing is searched for."
    better, worse = ((t.held_out < t.plain).sum() for t in (found, mixed))
    text = f"{len(found)} searches found {', '.join(f'“{p}”' for p in found.prompt)}; {better} of them have a lower"
    return f"{text} held-out loss than the plain prompt, of those on mixed-up labels {worse} of {len(mixed)}."


def by_kind(rows: pd.DataFrame, searched: Mapping[str, Texts]) -> pd.DataFrame:
    """Rows of the plain prompt and of every search, called by its kind."""
    kept = rows[rows.prompts.isin([PLAIN, *searched])]
    kind = kept.prompts.where(kept.prompts == PLAIN, kept.prompts.str.replace(r" \d+$", "", regex=True))
    return kept.assign(search=kept.prompts, prompts=kind)


def beside_random(study: Study, kinds: pd.DataFrame) -> str:
    """Found words against random ones, and on how many of the searches they gain on the harder pictures there are."""
    table = compared(kinds[kinds.prompts != PLAIN], base=KINDS["random"])
    table = study.keep(table[table.prompts == KINDS["found"]], "prompts/beside_random/{quantity}/{measurement}")
    hard = "shifted" if "shifted" in set(kinds.measurement) else "corrupted"
    each = compared(kinds[(kinds.measurement == hard) & (kinds.model == study.name)].assign(prompts=lambda t: t.search))
    each = each[(each.quantity == "accuracy") & each.prompts.str.startswith(KINDS["found"])]
    said = f"Significant or not, {(each.value > 0).sum()} of {len(each)} searches beat the plain prompt's accuracy"
    return f"{in_words(table, study.name, KINDS['random'])} {said} on {hard} pictures."


def carried_over(rows: pd.DataFrame) -> pd.DataFrame:
    """Pictures that the attack on the plain prompt broke, and whether each other set errs there too, in `broken`.

    Counted are pictures that both named rightly before the attack.
    """
    both = rows[rows.measurement.isin(["clean", CARRIED])]
    wide = both.pivot_table("right", ["model", "prompts", "sample_id"], "measurement").dropna()
    known = wide[wide["clean"] == 1].reset_index().assign(broken=lambda t: t[CARRIED] == 0)
    fell = known[(known.prompts == PLAIN) & known.broken][["model", "sample_id"]]
    return known[known.prompts != PLAIN].merge(fell)


def carried_in_words(table: pd.DataFrame, model: str) -> str:
    """For which prompt set the attack on the plain one does least, and whether it carries over to each of them."""
    own = table[table.model == model]
    if own.empty:
        return "The attack on the plain prompt broke no picture that another set names rightly."
    own = scores.tested(own, 0.5)
    words = {"more": "more than half are broken for", "less": "less than half are broken for"}
    words["undecided"] = "whether more than half are broken is not decided for"
    said, least = scores.by_verdict(own, "prompts", words), own.loc[own.value.idxmin()]
    text = f"Of the pictures that the attack on the plain prompt broke, {said} (Holm-corrected)"
    return f"{text}; least are for “{least.prompts}”, {scores.estimate_of(least):pct}."


def moved(net: Model, names: Sequence[str], sets: Mapping[str, Texts]) -> pd.DataFrame:
    """How far each wording moves a class's text, relative to the mean distance of two classes: a row a class.

    A wording that the tokenizer reads as the plain prompt has none.
    """
    plain = weights_of(net, names, PROMPT_SETS[PLAIN]).double()
    apart = 1 - plain @ plain.T
    unit = apart.sum() / (len(names) * (len(names) - 1))
    far = {k: (1 - (weights_of(net, names, t).double() * plain).sum(1)).clamp_min(0) / unit for k, t in sets.items()}
    rows = [(k, name, float(d)) for k, each in far.items() for name, d in zip(names, each)]
    table = pd.DataFrame(rows, columns=["prompts", "sample_id", "moved"])
    return table[table.groupby("prompts").moved.transform("max") > 1e-6]


def flipped(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether the answer to each wording is another one than that to the plain prompt, in the column `flip`."""
    keys = ["model", "measurement", "condition", "severity", "draw", "sample_id"]
    plain = rows[rows.prompts == PLAIN].set_index(keys).prediction.rename("plain")
    return rows[rows.prompts != PLAIN].join(plain, on=keys).assign(flip=lambda t: t.prediction != t.plain)


def moves_in_words(flips: pd.DataFrame, moves: pd.DataFrame, model: str) -> str:
    """Which wording moves texts and answers most, and which the tokenizer undoes."""
    own = flips[flips.model == model].set_index("prompts")
    still = [name for name in own.index if name not in set(moves.prompts)]
    far, most = moves.loc[moves.value.idxmax()], own.value.idxmax()
    said = f"The tokenizer undoes {', '.join(still)}. " if still else ""
    said += f"“{far.prompts}” moves texts farthest, by {far.value:.2f} of the distance of two classes, "
    return said + f"and “{most}” changes most answers, {scores.estimate_of(own.loc[most]):pct}."


def worst_harmless(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Each class's worst harmless change of its own text, chosen on one half of its scenes and measured on the other.

    The texts of all other classes stay as they are, so that what is lost is due to this one. To choose and to measure
    on the same pictures would find a loss where there is none.
    """
    known = rows[rows.prompts.isin([PLAIN, *HARMLESS])]
    first = np.array([generator(i, ["half"]).random() < 0.5 for i in known.sample_id])
    kept = known[first].groupby(["model", "label", "prompts"], sort=False).alone.mean().drop(PLAIN, level="prompts")
    worst = kept.groupby(["model", "label"]).idxmin()
    other = known[~first].assign(value=known[~first].alone.astype(float))
    plain = other[other.prompts == PLAIN]
    chosen = pd.MultiIndex.from_frame(other[["model", "label", "prompts"]]).isin(list(worst))
    table = scores.paired_changes(plain, other[chosen], ["model", "label"], bounds=1, within="model")
    change = [worst[key][2] for key in zip(table.model, table.label)]
    return table.assign(change=change, **{"class": [names[k] for k in table.label]})


def worst_in_words(table: pd.DataFrame) -> str:
    """How many classes lose by their worst harmless change after the correction, and the one that loses most."""
    lost, most = table[table.verdict == "less"], table.loc[table.value.idxmin()]
    said = f"{len(lost)} of {len(table)} classes lose by a harmless change of their name alone"
    least = f"; the largest loss is that of {most['class']} by “{most.change}”, {scores.estimate_of(most):points}"
    return said + (least if most.value < 0 else "; none was lower on the other half") + "."


def in_short(study: Study, table: pd.DataFrame, gained: pd.DataFrame, reworded: pd.DataFrame) -> str:
    """The chapter in a sentence: usual sets, found words and rewordings beside the plain prompt."""
    own = [t[t.model == study.name] if len(t) else t for t in (table, gained, reworded)]
    said = [f"{counted(own[0])} where the plain prompt gives way to {own[0].prompts.nunique()} usual sets"]
    if len(own[1]):
        found = own[1][own[1].prompts == KINDS["found"]]
        said.append(f"{counted(found)} where it gives way to found words")
    worst = own[2].loc[own[2].value.idxmin()]
    change = scores.estimate_of(worst)
    return "; ".join([*said, f"the rewording that costs most, “{worst.prompts}”, changes accuracy by {change:points}"])


def beside_published(study: Study) -> pd.DataFrame:
    """The accuracy with the prompts that a published one was measured with, and with the user's, beside it."""
    p, images = study.parameters, study.images
    published = datasets.published_accuracy(p["model"], p["pretrained"] or None, images.name)
    theirs, found = TEMPLATES["eighty templates"] if images.name == "imagenet" else images.templates, []
    for name, templates in {"its prompts": theirs, "yours": study.templates}.items():
        rows = study.measure([ORIGINAL], prompts=templates, models=[study.name], keep=False)
        found.append({"whose": f"{name}: {templates[0]}", **asdict(scores.accuracy(rows))})
    return scores.against_published(pd.DataFrame(found), [published, published])


def published_in_words(table: pd.DataFrame) -> str:
    """Whether the published accuracy lies in the interval of each measurement."""
    if table.published.isna().all():
        return "No accuracy of this model on these images is published here."
    said = [f"{'inside' if r.covered else 'outside'} the interval with {r.whose}" for r in table.itertuples()]
    return f"The published {table.published.iloc[0]:.1%} ({table.source.iloc[0]}) lies {', '.join(said)}."
