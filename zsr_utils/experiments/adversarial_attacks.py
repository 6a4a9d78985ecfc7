"""Chapter 08: how small a change makes a model err, by which attack, and whether the attack is to be believed."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch

from zsr_utils import scores
from zsr_utils.conditions import GRADIENTS, WHOLE, Batch, Condition, Head, attack, random_noise
from zsr_utils.models import Model, load_model
from zsr_utils.study import Study


PAPER = ("fgsm", "bim", "mim", "dim")  # of Wang et al., from the victim or from a substitute
RADII, EPS = ({"x": column, "x_title": "radius (grey levels)"} for column in ("severity", "eps"))  # for `plots.curves`
SHOWN = ["model", "alarm", "value", "low", "high", "limit", "raised"]  # of the table of alarms
Substitute = tuple[Model, Head]


def substitute_of(study: Study, name: str) -> Substitute | None:
    """The network that transfer attacks follow, and its answers to the chapter's classes; else None, and why."""
    options = {key: study.parameters[key] for key in ("device", "precision")}
    try:
        net = study.nets.get(name) or load_model(*name.partition("@")[::2], **options)
        if net.image_size != study.net.image_size:
            raise ValueError(f"{name} takes {net.image_size} pixels, {study.name} {study.net.image_size}.")
        return net, study.head(net)
    except ValueError as error:
        print(f"No transfer attacks: {error}")
    return None


def ladder(
    radii: Sequence[float], *, steps: int, answers: int, starts: int = 2, targets: int = 3,
    substitute: Substitute | None = None,
) -> list[Condition]:  # fmt: skip
    """Noise, attacks of growing strength, ones that see less, in growing balls (grey levels); last one without bounds.

    Args:
        steps, answers: Of the gradient attacks, and of `square`.
        starts: Random starts of `pgd`.
        targets: Classes that `apgd_dlr` asks for, one after the other.
    """
    made = [GRADIENTS]
    for k, eps in enumerate(radius / 255 for radius in radii):
        made += [random_noise(eps), attack("fgsm", eps), attack("pgd", eps, steps=steps, draws=starts)]
        made += [attack("apgd_ce", eps, steps=steps), attack("apgd_dlr", eps, steps=steps, targets=targets)]
        if k >= len(radii) // 2:  # what sees less needs room
            made.append(attack("square", eps, steps=answers))
            made += [transferred("mim", eps, substitute, steps)] if substitute else []
    return [*made, attack("apgd_ce", WHOLE / 255, steps=max(steps, 10))]


def transferred(name: str, eps: float, substitute: Substitute, steps: int) -> Condition:
    """An attack on a substitute, shown to the victim."""
    return attack(name, eps, steps=steps if name != "fgsm" else 1, substitute=substitute, called=f"transfer_{name}")


def by_queries(eps: float, *, steps: int, queries: int) -> list[Condition]:
    """Attacks that estimate the gradient from answers."""
    return [attack(name, eps, steps=steps, queries=queries) for name in ("nes", "spsa")]


def losses(eps: float, *, steps: int, temperature: float) -> list[Condition]:
    """APGD by losses that keep a gradient where the softmax saturates; by the cross-entropy the ladder has it."""
    kinds: dict[str, dict] = {name: {"loss": name} for name in ("margin", "dlr")}
    kinds[f"temperature {temperature:g}"] = {"temperature": temperature}
    return [attack("apgd_ce", eps, steps=steps, called=f"apgd, {name}", **given) for name, given in kinds.items()]


def ladder_of(study: Study, substitute: Substitute | None) -> Callable[[Model], list[Condition]]:
    """The ladder of a chapter's parameters for a model; the substitute's own gradient is no transfer."""
    given = {key: study.parameters[key] for key in ("radii", "steps", "answers", "starts", "targets")}
    return lambda net: ladder(**given, substitute=substitute if substitute and net is not substitute[0] else None)


def eleven(study: Study, radius: float, substitute: Substitute | None) -> pd.DataFrame:
    """Rows of the white-box attacks of Wang et al. that the ladder has not, and of transfer ones where there are some.

    In one ball, but for `deepfool`, which stops by itself.
    """
    steps = study.parameters["steps"]
    made = [attack(name, radius / 255, steps=steps) for name in PAPER[1:]]
    parts = [study.measure([*made, attack("deepfool", WHOLE / 255, steps=steps)])]
    victims = [name for name, net in study.nets.items() if substitute and net is not substitute[0]]
    if victims:
        shown = [transferred(name, radius / 255, substitute, steps) for name in PAPER]
        parts.append(study.measure(shown, models=victims))
    return pd.concat(parts, ignore_index=True)


def of(rows: pd.DataFrame, model: str, shown: Condition) -> pd.DataFrame:
    """A model's rows of one condition."""
    return rows[(rows.model == model) & (rows.condition == shown.name) & (rows.severity == shown.severity)]


def by_radius(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Robust accuracy by attack and radius."""
    bounded = rows[(rows.severity < WHOLE) & (rows.severity > 0)]
    table = study.estimate(bounded, "attacks/robust_accuracy", scores.robust_accuracy, ["condition", "severity"])
    return table.assign(label=table.condition.str.replace("_", " "))


def grid(rows: pd.DataFrame, model: str, name: str) -> pd.DataFrame:
    """A model's rows of one attack in growing balls, unchanged images first."""
    return rows[(rows.model == model) & rows.condition.isin(["original", name]) & (rows.severity < WHOLE)]


def in_ball(parts: Sequence[pd.DataFrame], radius: float) -> pd.DataFrame:
    """Rows of one ball; of `deepfool`, which stops by itself, an image holds where its change is larger."""
    rows = pd.concat(parts, ignore_index=True)
    alone = rows.condition == "deepfool"
    margin = rows.margin.where(~alone | (rows.linf <= radius + scores.LEVEL), rows.margin.abs())
    return rows.assign(margin=margin)[alone | (rows.severity == radius)]


def curve(rows: pd.DataFrame, radii: Sequence[float]) -> pd.DataFrame:
    """Robust accuracy by model and radius against every attack at once, unchanged images at 0."""
    models = rows.groupby("model", sort=False)
    return pd.concat([scores.robustness_curve(part, [0, *radii]).assign(model=m) for m, part in models])


def compared(rows: pd.DataFrame, base: str, radii: Sequence[float]) -> pd.DataFrame:
    """Robust accuracy against every attack at once, of each other model less that of `base`, image by image."""
    smallest = {m: scores.smallest_change(part) for m, part in rows.groupby("model", sort=False)}
    held = {(m, float(r)): (s > r + scores.LEVEL).astype(float) for m, s in smallest.items() for r in radii}
    long = pd.concat(held, names=["rival", "eps"]).rename("value").reset_index()
    table = scores.changes_from(long, "rival", base, ["rival", "eps"], bounds=1.0)
    return table.assign(line=[f"{r}, {e:g} grey level{'s'[: e != 1]}" for r, e in zip(table.rival, table.eps)])


def against(base: pd.DataFrame, other: pd.DataFrame | Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Robust accuracy under each condition of some rows, or of tables by name, less that under the one of `base`."""
    if not isinstance(other, pd.DataFrame):
        other = pd.concat([rows.assign(condition=name) for name, rows in other.items()])
    both = pd.concat([scores.held(base), scores.held(other)])
    return scores.changes_from(both, "condition", base.condition.iloc[0], "condition", bounds=1.0)


def raised(table: pd.DataFrame) -> str:
    """The alarms of a table that were raised, in words."""
    up = [f"{row.model}: {row.alarm} ({scores.estimate_of(row):pct})" for row in table[table.raised].itertuples()]
    return "; ".join(up) or "none"


def matrix(table: pd.DataFrame) -> dict:
    """Robust accuracy by attack and model, as `plots.heatmap` takes it."""
    attacks, models = (list(dict.fromkeys(table[column])) for column in ("condition", "model"))
    values = table.set_index(["condition", "model"]).value.unstack().loc[attacks, models]
    return {"values": values.to_numpy(), "rows": [name.replace("_", " ") for name in attacks], "columns": models}


def examples(study: Study, made: Condition, number: int) -> tuple[list, list[str]]:
    """The first images that an attack breaks: as they were, as they are, and their change, made larger."""
    few, head = study.images.subset(4 * number, study.parameters["seed"]), study.heads[study.name]
    ids, labels = [s.sample_id for s in few.samples], torch.tensor([s.label for s in few.samples])
    pixels = few.pixels(ids, study.net.from_pil).to(study.net.device)
    batch = Batch(study.net, head, ids, labels, head.see(study.net, pixels), seed=study.parameters["seed"])
    changed = made.change(batch)
    answers = head.see(study.net, changed).predictions
    shown, captions = [], []
    for row in ((answers != labels) & (batch.clean.predictions == labels)).nonzero()[:number, 0].tolist():
        before, after = pixels[row].cpu(), changed[row].cpu()
        shown.append((before.numpy(), after.numpy(), ((after - before) / (2 * made.severity / 255)).numpy()))
        captions.append(f"{head.class_names[labels[row]]}\n{head.class_names[answers[row]]}")
    return shown, captions
