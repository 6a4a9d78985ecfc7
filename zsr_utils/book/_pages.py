"""Records -> the generated pages: the headline cards, the index of figures, every number, the comparison.

Names of models, classes and files are data: they are escaped, in Markdown as in HTML.
"""

import html
import re
from collections.abc import Sequence

from zsr_utils.book._chapters import Chapter, Figure, shown


MARKUP = re.compile(r"([!-/:-@\[-`{-~])")
ABOVE = "../../"  # from book/_generated/ to the top of the book


def plain(text: str) -> str:
    """Text that Markdown shows as it is.

    Examples:
        >>> plain("a_b <x>")
        'a\\\\_b \\\\<x\\\\>'
    """
    return MARKUP.sub(r"\\\1", " ".join(text.split()))


def headline(books: Sequence[Sequence[Chapter]], answers: dict[str, dict]) -> str:
    """The headline numbers of every chapter as cards, each a link to its chapter.

    Args:
        books: The chapters of each folder of results.
        answers: By chapter, `numbers`: names of headline numbers, each with what it says in a few words. A chapter
            without an entry, or whose run has none of them, shows the first number it recorded.
    """
    parts = []
    for book in books:
        if len(books) > 1:
            parts.append(f"**{plain(book[0].run)}**\n")
        cards = [card(chapter, metric, label) for chapter in book for metric, label in headlines(chapter, answers)]
        parts.append("::::{grid} 1 2 2 3\n:gutter: 2\n:class-container: zsr-headline\n\n" + "\n".join(cards) + "::::\n")
    return "\n".join(parts)


def headlines(chapter: Chapter, answers: dict[str, dict]) -> list[tuple[dict, str]]:
    wanted = answers.get(chapter.name, {}).get("numbers", {})
    found = [(metric, wanted[metric["name"]]) for metric in chapter.metrics if metric["name"] in wanted]
    return found or [(metric, metric["name"]) for metric in chapter.metrics[:1]]


def card(chapter: Chapter, metric: dict, label: str) -> str:
    value, interval = shown(metric).split(" [")
    return (
        f":::{{grid-item-card}} {plain(value)}\n:link: /{chapter.docname}\n:link-type: doc\n\n"
        f"{plain(label)}\n\n\\[{plain(interval)}, n = {metric['n']:,} · {plain(chapter.title)}\n:::\n"
    )


def figure_index(books: Sequence[Sequence[Chapter]], stills: dict[str, object]) -> str:
    """Every figure of every chapter: a picture where there is one, and its caption, linked to its place.

    Args:
        books: The chapters of each folder of results.
        stills: Digests of the figures that have a picture.
    """
    text = "# All figures\n\nEach leads to its place in the chapter, where it can be explored.\n"
    for chapter in (c for book in books for c in book if c.figures):
        items = "".join(figure_item(chapter, figure, figure.digest in stills) for figure in chapter.figures)
        run = f" ({plain(chapter.run)})" if len(books) > 1 else ""
        text += f'\n## {plain(chapter.title)}{run}\n\n<ul class="zsr-figures">{items}</ul>\n'
    return text


def figure_item(chapter: Chapter, figure: Figure, pictured: bool) -> str:
    folder = html.escape(ABOVE + chapter.folder.as_posix())
    picture = (
        f'<img src="{folder}/{figure.anchor}.webp" alt="" width="760" height="{figure.height}" loading="lazy">'
        if pictured
        else ""
    )
    return (
        f'<li><a href="{folder}/{html.escape(chapter.name)}.html#{figure.anchor}">{picture}'
        f"<span>Figure {figure.label}. {html.escape(figure.caption)}</span></a></li>"
    )


def every_number(books: Sequence[Sequence[Chapter]]) -> str:
    """One table of all numbers with interval, sample size, unit and the file they are from."""
    heads = ("Chapter", "Number", "Value", "Low", "High", "Interval", "n", "Unit", "File")
    body = "".join(number_row(chapter, metric) for book in books for chapter in book for metric in chapter.metrics)
    return (
        "# Every number\n\n"
        "All numbers of the book, as they stand in the `metrics.json` of their chapters; nothing is rounded there.\n"
        "A low and a high bound are the ends of a 95 % interval, explained in {doc}`/book/how-to-read`.\n"
        "A click on a column's head sorts by it.\n\n" + table("Every number", heads, body)
    )


def number_row(chapter: Chapter, metric: dict) -> str:
    folder = html.escape(ABOVE + chapter.folder.as_posix())
    ends = ("value", "low", "high")
    numbers = "".join(f'<td data-value="{metric[k]!r}">{metric[k]:.4g}</td>' for k in ends)
    return (
        f'<tr><td data-value="{int(chapter.number)}">'
        f'<a href="{folder}/{html.escape(chapter.name)}.html">{html.escape(chapter.name)}</a></td>'
        f"<td><code>{html.escape(metric['name'])}</code></td>{numbers}<td>{html.escape(metric['interval'])}</td>"
        f'<td data-value="{metric["n"]}">{metric["n"]:,}</td><td>{html.escape(metric["unit"])}</td>'
        f'<td><a href="{folder}/metrics.json">{html.escape(chapter.folder.as_posix())}/metrics.json</a></td></tr>'
    )


def comparison(books: Sequence[Sequence[Chapter]]) -> str:
    """The numbers that at least two models have, chapter by chapter, a column a model."""
    runs = [book[0].run for book in books]
    text = (
        "# Side by side\n\nThe same numbers of all models, each with its 95 % interval.\n"
        "Two separate intervals that overlap are no evidence that two models are equal, and numbers of models that "
        "saw other images are not comparable at all; {doc}`/book/how-to-read` says why.\n"
    )
    for name in dict.fromkeys(chapter.name for book in books for chapter in book):
        having = [next((c for c in book if c.name == name), None) for book in books]
        lacking = [run for run, chapter in zip(runs, having) if chapter is None]
        known = [{m["name"]: m for m in chapter.metrics} if chapter else {} for chapter in having]
        every = list(dict.fromkeys(number for of_model in known for number in of_model))
        common = [number for number in every if sum(number in of_model for of_model in known) > 1]
        title = next(c.title for c in having if c)
        text += f"\n## {plain(title)}\n\n"
        if lacking:
            text += f"Not measured: {plain(', '.join(lacking))}.\n\n"
        body = "".join(comparison_row(number, known) for number in common)
        if body:
            text += table(title, ("Number", *runs), body)
        if len(every) > len(common):
            text += f"\n{len(every) - len(common):,} numbers of one model alone are in {{doc}}`every-number`.\n"
    return text


def comparison_row(number: str, known: Sequence[dict[str, dict]]) -> str:
    cells = "".join(
        f'<td data-value="{m[number]["value"]!r}">{html.escape(shown(m[number]))}</td>' if number in m else "<td>–</td>"
        for m in known
    )
    return f"<tr><td><code>{html.escape(number)}</code></td>{cells}</tr>"


def table(name: str, heads: Sequence[str], body: str) -> str:
    """A table that zsr.js can sort and search; it scrolls in its own box."""
    columns = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
    return (
        f'<div class="zsr-numbers" role="region" aria-label="{html.escape(name)}" tabindex="0">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )
