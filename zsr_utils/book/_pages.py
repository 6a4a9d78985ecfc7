"""Records -> the generated pages and what stands around a chapter, by the templates in `templates/`.

Names of models, classes and files are data: the templates escape them, in Markdown as in HTML.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from zsr_utils._text import markdown
from zsr_utils.book._chapters import Chapter
from zsr_utils.book.contents import own
from zsr_utils.receipts import receipts


def value(metric: dict) -> str:
    """A number as a reader sees it, a fraction in percent.

    Examples:
        >>> fraction = {"value": 0.998, "low": 0.994, "high": 1, "unit": "fraction"}
        >>> value(fraction), interval(fraction), value({"value": 6.42, "unit": "rank"})
        ('99.8 %', '[99.4, 100.0]', '6.42')
    """
    if metric["value"] is None:
        return "not measured"
    return _digits(metric, "value") + (" %" if metric["unit"] == "fraction" else "")


def interval(metric: dict) -> str:
    if metric["low"] is None or metric["high"] is None:
        return "[no interval]"
    return f"[{_digits(metric, 'low')}, {_digits(metric, 'high')}]"


def _digits(metric: dict, end: str) -> str:
    return f"{100 * metric[end]:.1f}" if metric["unit"] == "fraction" else f"{metric[end]:.3g}"


PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
PAGES.filters |= {"plain": markdown, "value": value, "interval": interval}


def rendered(template: str, **content) -> str:
    return PAGES.get_template(template).render(content)


def generated(books: Sequence[Sequence[Chapter]], pictured: dict[str, object]) -> dict[str, str]:
    """The pages that records make, by file name: headline numbers, figures, every number, receipts, a comparison.

    Args:
        books: The chapters of each folder of results.
        pictured: Digests of the figures that have a picture.
    """
    content = {"books": books, "pictured": pictured, "receipts": receipts()}
    names = ["headline.md", "figures.md", "every-number.md", "receipts.md", *(["front.md"] if own(books) else [])]
    if len(books) > 1:
        content |= {"runs": [book[0].run for book in books], "compared": list(compared(books))}
        names.append("side-by-side.md")
    return {name: rendered(name, **content) for name in names}


def compared(books: Sequence[Sequence[Chapter]]) -> Iterator[tuple[str, list[str], dict[str, list], int]]:
    """Of each chapter its title, the runs without it, the numbers of two or more runs, and how many only one has."""
    for name in dict.fromkeys(chapter.name for book in books for chapter in book):
        having = [next((c for c in book if c.name == name), None) for book in books]
        known = [{m["name"]: m for m in chapter.metrics} if chapter else {} for chapter in having]
        every = {number: [of_run.get(number) for of_run in known] for of_run in known for number in of_run}
        common = {number: metrics for number, metrics in every.items() if sum(map(bool, metrics)) > 1}
        lacking = [book[0].run for book, chapter in zip(books, having) if not chapter]
        yield next(c.title for c in having if c), lacking, common, len(every) - len(common)
