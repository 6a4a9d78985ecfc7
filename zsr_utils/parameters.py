"""Which values a notebook's parameters may have: told by name before anything is loaded."""

from collections.abc import Mapping
from itertools import pairwise

from zsr_utils._text import check_type, one_of


# what a chapter need not name among its parameters
DEFAULTS = {
    "pretrained": "", "models": (), "split": "validation", "classes": 0, "ids": "", "limit": 0,
    "prompts": "plain prompt", "batch_size": 64, "device": "auto", "precision": "fp32", "seed": 0,
}  # fmt: skip
# of a parameter, or of every item of a list: what it must be, a rule for numbers, and whose
RULES = (
    ("0 or more", lambda v: v >= 0, "annotated budget_pairs budgets classes few_pairs limit number seed split_seed"),
    ("1 or more", lambda v: v >= 1,
     "adaptive_draws adaptive_pairs anchors answers asked_images attack_steps attacked_images band_images "
     "batch_size border_images budget_steps candidates copies corruption_images descent_steps draws family_images "
     "family_scenes few_classes filters fitted max_steps model_pairs noisy_images observed orders ordinary "
     "outside_images pairs patterns per_class per_image per_pair pool queries resamples scenes searches "
     "sequence_images shift_images shown spectra starts steps targets test_images training_images variant_images "
     "views"),
    ("above 1", lambda v: v > 1, "numbers_of_classes resolutions tiles"),
    ("0 to below 1", lambda v: 0 <= v < 1, "momentum surface"),
    ("3 or more", lambda v: v >= 3, "channel_images cloud cloud_images compared fewest probes strongest"),
    ("above 0", lambda v: v > 0,
     "adaptive_times attack_rms blurs descent_step sigma sigmas sizes temperature temperatures"),
    ("above 0 and below 1", lambda v: 0 < v < 1,
     "equal_accuracy false_alarms heights least_accuracy margin present text_height"),
    ("above 0 and at most 255, in grey levels", lambda v: 0 < v <= 255, "radii radius"),
    ("above -1 and below 1", lambda v: -1 < v < 1, "cosine text_cosine"),
    ("1 to 5", lambda v: v in (1, 2, 3, 4, 5), "severities severity"),
)  # fmt: skip
ALLOWED = {name: (words, rule) for words, rule, names in RULES for name in names.split()}
# lists of growing numbers, and lists that may be empty
GROWING = (
    "adaptive_draws", "adaptive_times", "attack_rms", "blurs", "budgets", "numbers_of_classes", "radii",
    "resolutions", "sigmas", "sizes", "surface", "temperatures", "tiles",
)  # fmt: skip
MAY_BE_EMPTY = ("models", "outside", "shifts", "videos")
CHOICES = {"adaptive_goals": ("named", "aligned"), "units": ("relative", "pixels")}  # and lists of them


def check_parameters(given: Mapping, **least: float) -> None:
    """Refuse values that mean nothing, or less of single parameters than the `least` that a chapter needs."""
    given = {k: v for k, v in given.items() if k != "classes" or not isinstance(v, list | tuple)}  # a list is of names
    for name, like in {"model": "tabletop-base", "dataset": "tabletop", **DEFAULTS}.items():
        if name in given:
            value, like = (list(v) if isinstance(v, tuple) else v for v in (given[name], like))
            check_type(name, value, like)  # papermill may take it for another type
    for name, value in given.items():
        items = value if isinstance(value, list) else [value]
        words, rule = ALLOWED.get(name, ("", None))
        if name in least:
            words, rule = f"{least[name]} or more", lambda v, name=name: v >= least[name]
        for item in items:
            if name in CHOICES:
                one_of(name, item, CHOICES[name])
            if rule and not (type(item) in (int, float) and rule(item)):
                raise ValueError(f"{name} is {item!r}, allowed is {words}.")
        if not items and name not in MAY_BE_EMPTY:
            raise ValueError(f"{name} is empty, allowed is one value or more.")
        if name in GROWING and any(b <= a for a, b in pairwise(items)):
            raise ValueError(f"{name} is {value}, allowed are growing numbers.")
    for name in given.get("models", ()):
        if not isinstance(name, str) or name.count("@") > 1 or not name.split("@")[0].strip():
            raise ValueError(f"models holds {name!r}, allowed are names such as 'ViT-B-32' or 'ViT-B-32@openai'.")
