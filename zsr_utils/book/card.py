"""The report card of a checkpoint: every headline number, and what is decided against another checkpoint.

`python -m zsr_utils.book.card RESULTS [OTHER] --to FOLDER`, where each is a folder `results/<model>@<data set>` or the
`card.json` that somebody else made: cards are compared image by image without the images.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from zsr_utils import scores
from zsr_utils._cache import digest
from zsr_utils.datasets import published_accuracy
from zsr_utils.records import read_numbers, read_provenance
from zsr_utils.records._files import write_json, write_whole
from zsr_utils.records.chapters import read_chapters, valid


PROTOCOL = 2  # goes up when the definition of a headline number changes: cards of two protocols are not compared
SCHEMA = Path(__file__).with_name("card.schema.yaml")
OTHERWISE = ("model", "pretrained", "models", "device", "precision", "batch_size", "seed")  # may differ between runs
POWER = float(stats.norm.ppf(0.8))
MARGINS = {"fraction": 0.02}  # within which two numbers count as the same, where chapters.yaml names none
MANY = 1_000_000
WORDS = {  # by which way is better
    "more": {"more": "better", "less": "worse"}, "less": {"more": "worse", "less": "better"},
    None: {"more": "higher", "less": "lower"},
}  # fmt: skip
PAIRED, APART = "image by image", "from both intervals"


def card_of(folder: Path | str, known: Mapping[str, Mapping] | None = None) -> dict:
    """The card of one folder of results: whose it is, its headline numbers, and why others are missing.

    Args:
        known: The chapters, as `read_chapters` gives them.

    Raises: ValueError where the folder has no result of any chapter, or a damaged one.
    """
    folder, known = Path(folder), read_chapters() if known is None else known
    numbers, missing, whose = [], {}, None
    for chapter, entry in known.items():
        if not (folder / chapter / "metrics.json").is_file():
            missing[chapter] = "it has no result: its run failed, or it was not run"
            continue
        facts = read_provenance(folder / chapter)
        whose = whose or facts
        beside = folder / chapter / "halves.json"
        halves = json.loads(beside.read_text()) if beside.is_file() else {}
        measured = {m["name"]: m for m in read_numbers(folder / chapter)}
        settings = {k: v for k, v in (facts.get("parameters") or {}).items() if k not in OTHERWISE}
        made_of = {
            "images": (facts.get("dataset_fingerprint") or "")[:16],
            "prompts": digest(facts.get("prompts") or {})[:16],
            "settings": digest(settings)[:16],
        }
        for name, about in entry["numbers"].items():
            if name not in measured:
                missing[name] = "it was not measured on these images"
                continue
            number = measured[name] | {"chapter": chapter, "says": about["says"], "made_of": made_of}
            number |= {key: about[key] for key in ("better", "margin", "best", "chance", "model") if key in about}
            if (reported := about.get("published")) == "table":
                found = published_accuracy(facts["model"], facts.get("pretrained"), facts["dataset"])
                reported = found and {"value": found.accuracy, "of": "this checkpoint", "source": found.source}
            number |= {"published": reported} if reported else {}
            if number.get("chance") == "1/classes":
                number["chance"] = 1 / len(facts["class_names"])
            numbers.append(number | ({"halves": halves[name]} if name in halves else {}))
    if whose is None:
        raise ValueError(f"There is no result of a chapter in {str(folder)!r}: run `make book` first.")
    facts = ("model", "pretrained", "fingerprint", "precision", "dataset", "git", "versions", "device", "caution")
    run = {key: whose.get(key) for key in facts} | {"seed": (whose.get("parameters") or {}).get("seed")}
    return {"card": PROTOCOL, "of": run, "numbers": numbers, "missing": missing}


def read_card(path: Path | str) -> dict:
    """A card from a folder of results or a file; ValueError where it is none, in one sentence."""
    path = Path(path)
    if path.is_dir():
        return card_of(path)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no card ({getattr(error, 'strerror', None) or error}).") from error
    if isinstance(card, dict) and card.get("card") != PROTOCOL and isinstance(card.get("card"), int):
        raise ValueError(f"{str(path)!r} is a card of protocol {card['card']}, allowed is {PROTOCOL}: make it again.")
    valid(card, SCHEMA, path.name)
    return card


def name_of(card: Mapping) -> str:
    """Model, tag and data set, as a reader says them."""
    of = card["of"]
    return " ".join(filter(None, (of["model"], of["pretrained"]))) + f" on {of['dataset']}"


def key_of(number: Mapping) -> tuple[str, str]:
    """Chapter and name: two chapters may give a number the same name."""
    return number["chapter"], number["name"]


def compare(card: Mapping, other: Mapping) -> pd.DataFrame:
    """One checkpoint against another: a row a number that both have and that depends on them, in the order of the card.

    The difference is that of the card less the other. Where both left what they are on the same halves of the images,
    it is paired; else its interval comes from both intervals as if their images were different ones, and is wider than
    it need be.

    Returns: `chapter`, `name`, `value` and `against` (the numbers), `difference`, `low`, `high`, `how`, `p`, `p_holm`
        over the whole card, `decision` and `needed`: with how many times the sample a difference of this size would be
        decided in four of five repetitions if no other number were; missing where it is decided.

    Raises: ValueError where the cards are of one run, or of other images, prompts or settings.

    Source: Holm (1979); Zou & Donner (2008) for two intervals; Schuirmann (1987) for "the same".
    """
    ours, theirs = ({key_of(n): n for n in c["numbers"]} for c in (card, other))
    facts = ("model", "pretrained", "fingerprint", "precision", "seed", "device", "git")
    whose = [{key: c["of"].get(key) for key in facts} for c in (card, other)]
    if whose[0] == whose[1]:
        raise ValueError(
            f"Both cards are of the same run, of {name_of(card)}: another checkpoint, seed or precision is needed."
        )
    common = [key for key in ours if key in theirs and ours[key].get("model", True)]
    again = card["of"]["fingerprint"] == other["of"]["fingerprint"]  # another seed may draw other images
    for key in common:
        one, two = ours[key]["made_of"], theirs[key]["made_of"]
        if differ := [what for what in one if one[what] != two.get(what) and not (again and what == "images")]:
            both = f"{name_of(card)} and {name_of(other)} cannot be compared"
            raise ValueError(f"{both}: {key[1]} of {key[0]} has other {' and '.join(differ)}.")
    if not common:
        raise ValueError(f"{name_of(card)} and {name_of(other)} have no headline number in common.")
    table = pd.DataFrame([_difference(ours[key], theirs[key]) for key in common])
    table["p_holm"] = scores.holm(table.p)
    table["decision"] = [decision(ours[k], theirs[k], row) for k, row in zip(common, table.to_dict("records"))]
    level = stats.norm.isf(0.025 / max(1, table.p.count()))  # of the first step of Holm
    table["needed"] = [_needed(row, level) for row in table.to_dict("records")]
    return table


def _difference(one: Mapping, other: Mapping) -> dict:
    unit = one["unit"]
    values, same = (other["value"], one["value"]), one["made_of"]["images"] == other["made_of"]["images"]
    found, how = None, PAIRED
    if same and one.get("halves") and other.get("halves"):
        found, p = scores.halves_difference(other["halves"], one["halves"], values, unit)
    if not found or np.isnan(found.low):
        bounds = ([np.nan if n[k] is None else n[k] for k in ("value", "low", "high")] for n in (other, one))
        found, how = scores.unpaired_difference(*(scores.Estimate(*b, "", one["n"], unit) for b in bounds)), APART
        p = scores.no_difference(found)
    numbers = {"chapter": one["chapter"], "name": one["name"], "value": one["value"], "against": other["value"]}
    return numbers | {"difference": found.value, "low": found.low, "high": found.high, "how": how, "p": float(p)}


def decision(one: Mapping, other: Mapping, row: Mapping) -> str:
    """What a difference and its corrected p decide, in words.

    `better` or `worse` (`higher` or `lower` where neither is) need the p and the interval; `same` needs the whole
    interval within the margin stated before. Nothing is decided where both are as good as can be, for there no
    difference could show.
    """
    if not np.isfinite([row["low"], row["high"]]).all():
        return "no interval"
    best = one.get("best")
    if best is not None and all(n["low"] is not None and n["low"] <= best <= n["high"] for n in (one, other)):
        return "both at the best possible"
    if row["p_holm"] < 0.05 and (row["low"] > 0 or row["high"] < 0):
        way = "more" if row["difference"] > 0 else "less"
        return WORDS[one.get("better")][way]
    margin = one.get("margin", MARGINS.get(one["unit"]))
    if margin and -margin <= row["low"] and row["high"] <= margin:
        return f"same within {margin:g}"
    return "not decided"


def _needed(row: Mapping, level: float) -> float:
    if row["decision"] != "not decided" or not row["difference"] or not np.isfinite(row["low"]):
        return float("nan")
    error = (row["high"] - row["low"]) / 2 / stats.norm.ppf(0.975)
    return float(max(1, ((level + POWER) * error / abs(row["difference"])) ** 2))


def watched(one: Path, other: Path) -> dict | None:
    """Accuracy of one folder's model less that of another's, as somebody sees it who looks after every image.

    Returns: The difference on all images, the bounds of `confidence_sequence` after the last one, after how many images
        they left zero first (0 where they never did), and the `price`; None without rows of chapter 01 in both.
    """
    rows = [folder / "01-zero-shot-baseline" / "samples.parquet" for folder in (one, other)]
    if not all(path.is_file() for path in rows):
        return None
    columns, clean = ["sample_id", "label", "prediction"], [("condition", "==", "original")]
    one, other = (pd.read_parquet(path, columns=columns, filters=clean) for path in rows)
    both = one.merge(other, on=["sample_id", "label"], suffixes=("", "_other"))
    both = both.loc[both.sample_id.map(digest).sort_values().index]  # an order that no answer chose
    d = (both.prediction == both.label).to_numpy(float) - (both.prediction_other == both.label).to_numpy(float)
    if not len(d):
        return None
    low, high = (2 * bound - 1 for bound in scores.confidence_sequence((d + 1) / 2))
    left = np.flatnonzero((low > 0) | (high < 0))
    ends = {"value": float(d.mean()), "low": float(low[-1]), "high": float(high[-1]), "unit": "fraction"}
    return ends | {"n": len(d), "first": int(left[0]) + 1 if len(left) else 0, "price": scores.price((d + 1) / 2)}


def summary(table: pd.DataFrame) -> dict[str, int]:
    """How many numbers got each decision."""
    return table.decision.str.partition(" within")[0].value_counts().to_dict()


def flat(card: Mapping, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """A card as a table of plain columns, with the comparison beside its numbers."""
    wanted = ("chapter", "name", "says", "value", "low", "high", "interval", "n", "unit", "chance", "best")
    rows = pd.DataFrame([{key: n.get(key) for key in wanted} for n in card["numbers"]])
    if table is None:
        return rows
    beside = table.drop(columns="value").rename(columns={"low": "difference_low", "high": "difference_high"})
    return rows.merge(beside, on=["chapter", "name"], how="left")


def model_card(card: Mapping) -> str:
    """Metadata for a model card on a hub: the `model-index` that Hugging Face reads."""
    from huggingface_hub import EvalResult, ModelCardData

    of = card["of"]
    results = [
        EvalResult(
            task_type="zero-shot-image-classification", dataset_type=of["dataset"], dataset_name=of["dataset"],
            metric_type=n["name"], metric_value=round(n["value"], 6), metric_name=n["says"],
            metric_args={"low": n["low"], "high": n["high"], "interval": n["interval"], "n": n["n"], "unit": n["unit"]},
        )
        for n in card["numbers"]
    ]  # fmt: skip
    return f"---\n{ModelCardData(model_name=of['model'], eval_results=results, tags=['zsr']).to_yaml()}\n---\n"


def write(card: Mapping, folder: Path | str, table: pd.DataFrame | None = None) -> list[Path]:
    """Write `card.json`, `card.csv` and `model-index.md`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "card.json", card)
    write_whole(folder / "card.csv", lambda path: flat(card, table).to_csv(path, index=False))
    write_whole(folder / "model-index.md", lambda path: path.write_text(model_card(card), encoding="utf-8"))
    return [folder / name for name in ("card.json", "card.csv", "model-index.md")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zsr_utils.book.card", description=__doc__.splitlines()[0])
    parser.add_argument("card", help="a folder of results, or a card.json")
    parser.add_argument("against", nargs="?", help="another one")
    parser.add_argument("--to", default=".", help="folder for card.json, card.csv and model-index.md")
    options = parser.parse_args(arguments)
    try:
        card = read_card(options.card)
        table = compare(card, read_card(options.against)) if options.against else None
        write(card, options.to, table)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    shown = flat(card, table)
    print(shown[["name", "value", *(["against", "difference", "decision"] if options.against else [])]].to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
