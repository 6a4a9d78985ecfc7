"""What an interval lets one say: the one rule behind every sentence that compares."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from zsr_utils.scores._intervals import Estimate, estimate_of


CHANGES = {"more": "higher, ", "less": "lower, ", "undecided": "not decided, "}


def decide(estimate: Estimate, reference: float = 0.0, *, margin: float | None = None) -> str:
    """Whether an estimate lies above a reference, below it, or cannot be told from it.

    "No difference" is a claim of its own, and only a margin stated beforehand allows it: an interval that holds the
    reference says that nothing was found, not that nothing is there.

    Examples:
        >>> wide, narrow = (Estimate(0.01, 0.01 - half, 0.01 + half, "95 %", 100) for half in (0.03, 0.005))
        >>> decide(wide), decide(narrow), decide(narrow, 0.5)
        ('undecided', 'more', 'less')
        >>> decide(narrow, margin=0.02), decide(wide, margin=0.02)
        ('same', 'undecided')

    Args:
        reference: What it is compared with: 0 for a difference, 1 for a ratio, 0.5 for an AUROC.
        margin: The largest distance from the reference that counts as none, in the estimate's unit.

    Returns: `same` if the whole interval lies within the margin, else `more` or `less` if it lies on one side of the
        reference, else `undecided`. A bound that touches the reference does not exclude it, and bounds that are not
        numbers decide nothing.

    Source: Two one-sided tests of Schuirmann (1987) for `same`: at 95 % intervals stricter than their 5 %.
    """
    if margin is not None and not margin > 0:
        raise ValueError(f"margin is {margin}, allowed is above 0, or None to claim no equality.")
    if margin is not None and reference - margin <= estimate.low and estimate.high <= reference + margin:
        return "same"
    if estimate.low > reference:
        return "more"
    if estimate.high < reference:
        return "less"
    return "undecided"


def in_words(table: pd.DataFrame, spec: str = "pct", column: str = "model") -> str:
    """Estimates of a table, each after what a column says of it and, where the table has one, its verdict.

    Examples:
        >>> in_words(pd.DataFrame({"model": []}))
        ''
        >>> shown = pd.DataFrame([vars(Estimate(0.5, 0.4, 0.6, "", 9)) | {"line": "other_name, ViT-B-32@laion2b_e16"}])
        >>> in_words(shown, column="line")
        'other name, ViT-B-32@laion2b_e16: 50.0 % [40.0, 60.0]'
    """
    verdicts = table.verdict.map(CHANGES) if "verdict" in table else [""] * len(table)
    said = zip(_spoken(table, column), verdicts, map(estimate_of, table.itertuples()))
    return "; ".join(f"{name}: {verdict}{estimate:{spec}}" for name, verdict, estimate in said)


def _spoken(table: pd.DataFrame, column: str) -> pd.Series:
    """A column in words: an underscore is a space, but in the name of a model."""
    said = table[column].astype(str)
    return said if column == "model" else said.str.replace(r"(?<!\S)[^\s@]+(?!\S)", _spaced, regex=True)


def _spaced(word: re.Match) -> str:
    return word[0].replace("_", " ")


def by_verdict(table: pd.DataFrame, column: str, words: Mapping[str, str], spec: str = "", *, mark: str = "; ") -> str:
    """Values of a column behind the words for their verdict, and their estimates where there is a `spec`.

    Examples:
        >>> table = pd.DataFrame({"model": ["a", "b", "c"], "verdict": ["more", "less", "more"]})
        >>> by_verdict(table, "model", {"more": "better are", "less": "worse is", "undecided": "not decided:"})
        'better are a, c; worse is b'
        >>> by_verdict(table[:0], "model", {"more": "better are"}, "pct")
        ''
    """
    said = _spoken(table, column)
    if spec and len(table):
        said += [f" ({estimate_of(row):{spec}})" for row in table.itertuples()]
    of = {way: ", ".join(said[table.verdict == way]) for way in words}
    return mark.join(f"{words[way]} {names}" for way, names in of.items() if names)


def within(table: pd.DataFrame, reference: float, margin: float) -> pd.DataFrame:
    """Rows of estimates whose whole interval lies within a margin of a reference; to hold it alone is no agreement.

    Examples:
        >>> within(pd.DataFrame({"low": [0.95, 0.5], "high": [1.05, 1.5]}), 1, 0.1).index.tolist()
        [0]
    """
    return table[(table.low > reference - margin) & (table.high < reference + margin)]


def against_published(measured: pd.DataFrame, published: Sequence[tuple[float, str] | None]) -> pd.DataFrame:
    """Measured accuracies beside published ones, for each row accuracy and source, or None where nothing is published.

    The interval of a measurement is one for other images like these. On the very images that the published accuracy is
    of, only rounding should differ, so that a difference inside the interval may still be a mistake.

    Returns: `measured` with `published`, `difference` (measured less published; both missing where nothing is
        published), `covered` (whether the interval holds the published value) and `source`.

    Examples:
        >>> rows = pd.DataFrame({"value": [0.63, 0.5], "low": [0.62, 0.4], "high": [0.64, 0.6]})
        >>> against_published(rows, [(0.6332, "table"), None])[["published", "covered"]].values.tolist()
        [[0.6332, True], [nan, False]]
    """
    values = [p[0] if p else float("nan") for p in published]
    table = measured.assign(published=values, source=[p[1] if p else "" for p in published])
    table["difference"] = table["value"] - table["published"]
    table["covered"] = table["published"].between(table["low"], table["high"])
    return table
