"""Chapter 03: singular values of the encoder's Jacobian, and where its linear account ends."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from zsr_utils import jacobian, scores
from zsr_utils.conditions import ORIGINAL, gaussian_noise, unit_noise
from zsr_utils.conditions.alignment import Answer, align, saved_as_png
from zsr_utils.experiments.pairs import Pairs, pair_names, settings_of
from zsr_utils.measure import Pixels
from zsr_utils.models import Model
from zsr_utils.study import Study


KINDS = ("original", "aligned")
QUANTITIES = {
    "largest": "s₁", "frobenius": "‖J‖ (Frobenius)", "effective_rank": "effective rank",
    "condition_number": "condition",
}  # fmt: skip
FLIPPED = {
    "more": "noise changes more answers than it allows",
    "less": "noise changes fewer answers than it says",
    "undecided": "the account is not refuted",
}
DIRECTIONS = ("attack", "first_pattern", "random")
TESTABLE = (0.05, 0.5)  # predicted flip rates at which the prediction can be seen to fail


def spectra_of(net: Model, pairs: Pairs) -> dict[str, jacobian.Spectra]:
    """Spectra of the source images and of their aligned versions, as an 8-bit file keeps them."""
    return dict(zip(KINDS, (jacobian.spectra(net, pixels) for pixels in (pairs.sources, pairs.pixels))))


def by_rank(found: Mapping[str, jacobian.Spectra]) -> pd.DataFrame:
    """The median spectrum, rank by rank, and the range that holds nine in ten images, with a column `kind`."""
    frames = [scores.spectrum_by_rank(s.values.numpy()).assign(kind=kind) for kind, s in found.items()]
    return pd.concat(frames, ignore_index=True)


def measured(study: Study, pairs: Mapping[str, Pairs], found: Mapping[str, Mapping]) -> pd.DataFrame:
    """Rows of every model's sources and aligned images, with the numbers of their spectra as facts."""
    frames = []
    for name, made in pairs.items():
        ids = list(made.table.sample_id)
        shown = [ORIGINAL, made.condition()]
        rows = study.measure(shown, images=study.images.only(ids), models=[name], keep=False)
        spectra = {kind: scores.spectrum_summary(s.values.numpy(), ids) for kind, s in found[name].items()}
        tables = [table.assign(condition=kind) for kind, table in spectra.items()]
        frames.append(rows.merge(pd.concat(tables), on=["sample_id", "condition"]))
    return study.keep_rows(pd.concat(frames, ignore_index=True))


def ratios(rows: pd.DataFrame, quantities: Sequence[str] = tuple(QUANTITIES)) -> pd.DataFrame:
    """Aligned over original, image by image: columns `model`, `sample_id`, `quantity`, `ratio`."""
    wide = rows.pivot(index=["model", "sample_id"], columns="condition", values=list(quantities))
    change = pd.DataFrame({q: wide[q]["aligned"] / wide[q]["original"] for q in quantities}).reset_index()
    return change.melt(["model", "sample_id"], list(quantities), "quantity", "ratio")


def patterns(net: Model, pairs: Pairs, found: Mapping[str, jacobian.Spectra], k: int) -> tuple[list, list[str]]:
    """The first pair's images, each before its k right singular vectors, as arrays and captions."""
    shown, captions = [], []
    for (kind, values), pixels in zip(found.items(), (pairs.sources, pairs.pixels)):
        vectors = jacobian.right_singular_images(net, pixels[:1], values.left[:1], k)[0]
        shown += [pixels[0], *vectors]
        captions += [kind, *(f"{kind}\ns{i + 1} = {v:.2f}" for i, v in enumerate(values.values[0, :k]))]
    return shown, captions


def linear_errors(
    net: Model, pairs: Pairs, left: Float[Tensor, "n d d"], sizes: Sequence[float], *, seed: int = 0
) -> pd.DataFrame:
    """Rows of `jacobian.linear_error` along the attack, the first right singular vector, and noise."""
    ids = list(pairs.table.sample_id)
    along = {
        "attack": pairs.pixels - pairs.sources,
        "first_pattern": jacobian.right_singular_images(net, pairs.sources, left, 1)[:, 0].float(),
        "random": unit_noise(pairs.sources.shape[1:], ids, (seed, "direction")),
    }
    frames = []
    for name, direction in along.items():
        moves = np.flatnonzero(direction.flatten(1).any(1))  # one that is aligned from the start has no attack
        if len(moves):
            of = pairs.sources[moves], direction[moves], sizes
            errors = jacobian.linear_error(net, *of, sample_ids=[ids[i] for i in moves])
            frames.append(errors.assign(direction=name))
    return pd.concat(frames, ignore_index=True)


def reaches(errors: pd.DataFrame) -> pd.DataFrame:
    """Sizes up to which the linear prediction stays within 10 %; a direction in which no image moves has no number."""
    found = scores.linear_reach(errors, 0.1, by=["direction", "sample_id"])
    still = [{"direction": d, "sample_id": "", "reach": np.nan} for d in sorted({*DIRECTIONS} - {*found.direction})]
    return pd.concat([found, pd.DataFrame(still)], ignore_index=True) if still else found


def tested(study: Study, pairs: Pairs) -> dict[str, Pixels]:
    """The sources, and those that could be moved until just named as the target: there a prediction can fail."""
    goal = Answer(study.net, study.heads[study.name].weights, torch.tensor(pairs.table.target_label.to_numpy()))
    names, size = pair_names(pairs.table), study.parameters["batch_size"]
    settings = replace(settings_of(study), eight_bit=True)
    ends = align(study.net, pairs.sources, goal, settings, names=names, batch_size=size, keep=True)
    every = {"original": (pairs.sources, np.arange(len(names)))}
    every["just named"] = saved_as_png(ends.pixels), np.flatnonzero(ends.reached)
    labels = pairs.table.label.to_numpy()
    return {k: Pixels([names[i] for i in at], labels[at], pixels[at]) for k, (pixels, at) in every.items() if len(at)}


def flips_by_noise(
    study: Study, images: Mapping[str, Pixels], known: Mapping[str, jacobian.Spectra], sigmas: Sequence[float],
    draws: int, probes: int,
) -> pd.DataFrame:  # fmt: skip
    """How often noise changes the answer, image by image: `measured`, and `predicted` (lower bound) and `at_most`.

    There is a row for each of `scores.ACCOUNTS`, `kind` of images and `sigma` (grey levels).
    """
    net, head, frames, levels = study.net, study.heads[study.name], [], [s / 255 for s in sigmas]
    for kind, shown in images.items():
        pixels = shown.pixels
        rows = study.measure(gaussian_noise(sigmas), images=shown, models=[study.name], draws=draws, keep=False)
        flips = (rows.prediction != rows.clean_prediction).groupby([rows.sample_id, rows.severity]).mean()
        spectra, options = known.get(kind) or jacobian.spectra(net, pixels), {"sample_ids": shown.sample_ids}
        gram = spectra.gram[: len(shown)]
        curvature = jacobian.second_order(net, pixels, probes, seed=study.parameters["seed"], **options)
        for account, second in zip(scores.ACCOUNTS, (None, curvature)):
            found = jacobian.flip_prediction(net, pixels, gram, head.weights, levels, curvature=second, **options)
            found["sigma"] = np.tile([float(s) for s in sigmas], len(pixels))
            found["measured"] = [flips[row.sample_id, row.sigma] for row in found.itertuples()]
            found = found.rename(columns={"flip": "predicted", "flip_at_most": "at_most"})
            frames.append(found.assign(kind=kind, account=account))
    return pd.concat(frames, ignore_index=True)


def accounts(flips: pd.DataFrame) -> pd.DataFrame:
    """Predicted and measured flip rates as one column `flip`, with `account`."""
    measured = flips[flips.account == scores.ACCOUNTS[0]].assign(account="measured", flip=flips.measured)
    return pd.concat([flips.assign(flip=flips.predicted), measured])


def testable(flips: pd.DataFrame) -> pd.DataFrame:
    """Rows of images and sigmas of which an account predicts a rate of 5 to 50 %: not at a floor or a ceiling."""
    can_fail = flips.predicted.between(*TESTABLE)
    return flips[can_fail.groupby([flips.sample_id, flips.kind, flips.sigma]).transform("any")]


def medians(study: Study, rows: pd.DataFrame) -> None:
    """Keep the medians of the spectra's numbers, of original and aligned images of the chapter's own model."""
    own = rows[rows.model == study.name]
    for quantity in QUANTITIES:
        unit = scores.JACOBIAN_UNITS.get(quantity, "ratio")
        study.estimate(own, f"jacobian/{quantity}", scores.median_of(quantity, unit), ["condition"])


def how_linear(study: Study) -> str:
    """Whether the linear account covers whole attacks."""
    reach, length = study["linear/reach/attack"], study["linear/attack_rms"]
    if reach.high < length.low:
        return "only their first steps are linear"
    return "they are linear from end to end" if reach.low > length.high else "how much of them is linear is not decided"


def test_of_flips(study: Study, flips: pd.DataFrame) -> None:
    """Keep measured less predicted flip rate where a prediction can fail, image by image, and say what it is."""
    kept = testable(flips)
    images = kept.sample_id.nunique()
    if images < 2:
        study.say("Predictions of 5 to 50 % were made for fewer than two images, so the accounts were not tested.")
        return
    words = []
    for account, part in kept.groupby("account"):
        name, found = f"linear/flips_beyond/{account.replace(' ', '_')}", []
        for bound in ("predicted", "at_most"):
            beyond = scores.paired_change(part.assign(flip=part[bound]), part.assign(flip=part.measured), "flip")
            found.append(scores.decide(study.number(f"{name}_{bound}", beyond)))
        verdict = FLIPPED["more" if found[1] == "more" else "less" if found[0] == "less" else "undecided"]
        bounds = f"{{{name}_predicted:points}} from the lower and {{{name}_at_most:points}} from the upper bound"
        words.append(f"to {account} by {bounds}: {verdict}")
    study.say(
        "Where an account predicts that between 5 and 50 % of the answers change ({n} images at σ from {low:g} to "
        "{high:g} grey levels), measured flips differ from the prediction " + "; ".join(words) + ".",
        n=images, low=kept.sigma.min(), high=kept.sigma.max(),
    )  # fmt: skip


def common(table: pd.DataFrame, quantities: Sequence[str]) -> pd.DataFrame:
    """Rows of some quantities, of the images that all models have."""
    models = table.groupby("sample_id").model.transform("nunique")
    return table[(models == table.model.nunique()) & table.quantity.isin(quantities)]


def root_p(study: Study, pairs: Pairs) -> scores.Estimate:
    """How much further a margin moves along its gradient than along noise of the same length."""
    options = {"seed": study.parameters["seed"], "sample_ids": list(pairs.table.sample_id)}
    rows = jacobian.directed_against_random(study.net, pairs.sources, study.heads[study.name].weights, **options)
    return scores.median_of("factor", "ratio")(rows)
