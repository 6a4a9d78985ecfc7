"""Records -> the generated pages and what stands around a chapter, by the templates in `templates/`.

Names of models, classes and files are data: the templates escape them, in Markdown as in HTML.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from zsr_utils._text import markdown
from zsr_utils.book import card as cards
from zsr_utils.book._chapters import Chapter
from zsr_utils.receipts import receipts


FIRST, OWN, SECOND = "book/preface", "book/_generated/front", "book/how-to-read"
REFERENCE = "own-model tabletop-data tabletop-model"
GENERATED = "_generated/figures _generated/every-number _generated/receipts"
LAST = ("Reference", [f"book/{page}" for page in f"{REFERENCE} {GENERATED} glossary references".split()])


def value(metric: dict) -> str:
    """A number as a reader sees it, a fraction in percent."""
    if metric["value"] is None:
        return "not measured"
    return _digits(metric, "value") + (" %" if metric["unit"] == "fraction" else "")


def interval(metric: dict) -> str:
    if metric["low"] is None or metric["high"] is None:
        return "[no interval]"
    return f"[{_digits(metric, 'low')}, {_digits(metric, 'high')}]"


def _digits(metric: dict, end: str) -> str:
    share = metric["unit"] == "fraction"
    return (f"{100 * metric[end]:z.1f}" if share else f"{metric[end]:.3g}").replace("-", "−")


PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip


def rendered(template: str, **content) -> str:
    return PAGES.get_template(template).render(content)


def generated(
    books: Sequence[Sequence[Chapter]], pictured: Mapping[str, object], known: Mapping[str, Mapping] | None = None,
    card: dict | None = None,
) -> dict[str, str]:  # fmt: skip
    """The pages that records make, by file name: the card, small and whole, figures, every number, and a comparison.

    Args:
        books: The chapters of each folder of results.
        pictured: Digests of the figures that have a picture.
        known: The chapters that were asked for, so that the card says which of them failed; else those of the books.
        card: That of the first folder, if it is made already.
    """
    content = {"books": books, "pictured": pictured, "runs": [book[0].run for book in books], "receipts": receipts()}
    content |= carded(books, known or {chapter.name: chapter.entry for book in books for chapter in book}, card)
    names = ["headline.md", "card.md", "figures.md", "every-number.md", "receipts.md"]
    names += ["front.md"] if own(books) else []
    if len(books) > 1:
        names.append("side-by-side.md")
        content["sides"] = list(compared(books))
    return {name: rendered(name, **content) for name in names}


def carded(books: Sequence[Sequence[Chapter]], known: Mapping[str, Mapping], card: dict | None) -> dict:
    """What the templates of the report card take; with two folders of results the first is held against the second."""
    folders, pages = [book[0].path.parent for book in books], {c.name: c for book in reversed(books) for c in book}
    card = card or cards.card_of(folders[0], known)
    found = {"card": card, "compared": None, "refused": "", "tally": "", "others": {}, "watched": None, "bound": _bound}
    found |= {"pages": {n: c.docname for n, c in pages.items()}, "titles": {n: c.title for n, c in pages.items()}}
    found["small"] = list(_small(books, known))
    if len(folders) != 2:
        return found
    other = cards.card_of(folders[1], known)
    try:
        table = cards.compare(card, other)
    except ValueError as error:
        return found | {"refused": str(error)}
    found["again"] = card["of"]["fingerprint"] == other["of"]["fingerprint"]
    units, rows = {cards.key_of(n): n["unit"] for n in card["numbers"]}, {}
    for r in table.to_dict("records"):
        shown = {k: None if isnan(r[k]) else r[k] for k in ("low", "high")}
        shown |= {"value": r["difference"], "unit": units[cards.key_of(r)]}
        rows[cards.key_of(r)] = r | {"shown": shown, "needed": _times(r["needed"])}
    tally = ", ".join(f"{n} {what}" for what, n in cards.summary(table).items())
    others = {cards.key_of(n): n for n in other["numbers"]}
    return found | {"compared": rows, "tally": tally, "others": others, "watched": cards.watched(*folders)}


def _times(n: float) -> str:
    return "" if isnan(n) else f"{n:.1f}" if n < 10 else f"{n:,.0f}" if n < cards.MANY else "over a million"


def _small(
    books: Sequence[Sequence[Chapter]], known: Mapping[str, Mapping]
) -> Iterator[tuple[tuple[str, str], dict, list]]:
    """The first headline number of every chapter, of each folder of results."""
    for name in known:
        having = [next((c for c in book if c.name == name), None) for book in books]
        if first := next(filter(None, having), None):
            number, says = first.headlines[0]
            page = {"docname": first.docname, "says": says}
            yield (name, number["name"]), page, [c.headlines[0][0] if c else None for c in having]


def _bound(number: dict, which: str) -> str:
    """Chance or the best possible, as a reader sees it."""
    bound, share = number.get(which), number["unit"] == "fraction"
    return "–" if bound is None else f"{100 * bound:.3g}\N{NO-BREAK SPACE}%" if share else f"{bound:.3g}"


def own(books: Sequence[Sequence]) -> bool:
    """Whether a book shows a reader's own run, of another world than Tabletop: its first page then speaks of that."""
    known = [chapter.provenance for book in books for chapter in book]
    return any(k["dataset"] != "tabletop" or not k["model"].startswith("tabletop-") for k in known)


def table_of_contents(books: Sequence[Sequence]) -> dict:
    """What Jupyter Book takes for one; several folders of chapters get a part each, after one that compares them."""
    parts = [(book[0].run if len(books) > 1 else "Chapters", [chapter.docname for chapter in book]) for book in books]
    short = ["book/_generated/card", *(["book/_generated/side-by-side"] if len(books) > 1 else [])]
    parts = [("In short", short), *parts, LAST]
    listed = [{"caption": caption, "chapters": [{"file": page} for page in pages]} for caption, pages in parts]
    first = OWN if own(books) else FIRST
    return {"format": "jb-book", "root": first, "parts": [{"chapters": [{"file": SECOND}]}, *listed]}


def difference(row: dict) -> str:
    """A difference as a reader sees it, of fractions in points.

    Examples:
        >>> difference({"value": -0.25, "unit": "fraction"}), difference({"value": 6.156, "unit": "rank"})
        ('−25.0 points', '+6.16')
    """
    share = row["unit"] == "fraction"
    return (f"{100 * row['value']:+.1f} points" if share else f"{row['value']:+.3g}").replace("-", "−")


def compared(books: Sequence[Sequence[Chapter]]) -> Iterator[tuple[str, list[str], dict[str, list], int]]:
    """Of each chapter its title, the runs without it, the numbers of two or more runs, and how many only one has."""
    for name in dict.fromkeys(chapter.name for book in books for chapter in book):
        having = [next((c for c in book if c.name == name), None) for book in books]
        known = [{m["name"]: m for m in chapter.metrics} if chapter else {} for chapter in having]
        every = {number: [of_run.get(number) for of_run in known] for of_run in known for number in of_run}
        common = {number: metrics for number, metrics in every.items() if sum(map(bool, metrics)) > 1}
        lacking = [book[0].run for book, chapter in zip(books, having) if not chapter]
        yield next(c.title for c in having if c), lacking, common, len(every) - len(common)


PAGES.filters |= {"plain": markdown, "value": value, "interval": interval, "difference": difference}
