"""Many models in one figure: accuracy under shift against accuracy without it, and forests side by side."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from zsr_utils._text import one_of
from zsr_utils.plots._figures import _escaped, forest
from zsr_utils.plots._style import GREY, SERIES, faded
from zsr_utils.scores.trends import SCALES


# as many groups as stay apart by colour and by mark; what comes after them is drawn as one, OTHER
GROUPS = SERIES
OTHER = (GREY, "circle-open", "dot")
# round accuracies on both sides of one half, dense towards the ends as the scales are
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *np.arange(1, 10) / 10, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
ROW = 250  # pixels of a row of panels
X_ENDS, Y_ENDS = ("x_low", "x_high"), ("low", "high")
END = 1e-4  # an interval that reaches 0 or 1 is drawn to here


def trend(
    points: pd.DataFrame,
    lines: pd.DataFrame | None = None,
    *,
    x_title: str,
    y_title: str,
    group: str = "group",
    panel: str | None = None,
    baseline: str = "standard",
    scale: str = "logit",
    columns: int = 2,
) -> go.Figure:
    """Models as points on stretched axes with ticks in percent, lines with their bands, and y = x dotted.

    Args:
        points: One row a model and panel: `name`, the accuracies `x` and `y`, the columns `group` and
            `panel`; drawn where given, the interval of y, `low` and `high`, and of x, `x_low` and `x_high`.
        lines: Rows along lines, in order, if there are any: `x`, `value`, `low`, `high` and the same two
            columns. A line that breaks has a column `piece`, which tells its parts apart.
        x_title: Of all horizontal axes.
        y_title: Of all vertical axes.
        group: Column told apart by colour and mark, in order of appearance, after the eighth as "other".
        panel: Column with a panel for each of its values; None for one panel.
        baseline: The group drawn in grey behind the others.
        scale: `logit` or `probit`, of both axes.
        columns: Panels side by side; the legend takes the last cell if that is empty.

    Raises:
        ValueError: If the scale is unknown, or an accuracy is not strictly between 0 and 1.
    """
    one_of("scale", scale, SCALES)
    into = SCALES[scale][0]
    _inside(points, scale)
    lines = points.iloc[:0] if lines is None else lines
    panels = list(dict.fromkeys(points[panel])) if panel else [""]
    figure, cells = _grid(panels, columns, row_height=ROW, gap=0.1)
    styles = _styles([*points[group], *lines[group]], baseline)
    for title, (row, column) in zip(panels, cells):
        here, along = (t[t[panel] == title] if panel else t for t in (points, lines))
        keys = [group, *(["piece"] if "piece" in along else [])]
        traces = [_diagonal(here, into)]
        for (name, *_), part in along.groupby(keys, sort=False):
            traces += _line(part, name, styles[name], into, own=name == baseline)
        # in order of appearance in the whole figure, the baseline first and so behind the others
        for name in (n for n in styles if n in set(here[group])):
            marks = _marks(here[here[group] == name], name, styles[name], into, (x_title, str(title) or y_title))
            traces.append(marks.update(marker_opacity=0.45 if name == baseline else 0.85))
        figure.add_traces(traces, rows=row, cols=column)
        # all panels have the same models, and so one horizontal range
        figure.update_xaxes(**_axis(points["x"], into, most=4), row=row, col=column)
        figure.update_yaxes(**_axis(here["y"], into, most=6), row=row, col=column)
    _finish(figure, cells, x_title, "", y_title)
    across = max(c for _, c in cells)
    if len(panels) % across == 0:
        return figure.update_layout(**_above(figure))
    corner = {"x": figure.layout[f"xaxis{across}"].domain[0], "y": np.ptp(figure.layout.yaxis.domain)}
    return figure.update_layout(legend={"orientation": "v", "yanchor": "top", "xanchor": "left", **corner})


def forests(
    table: pd.DataFrame,
    names: Sequence[str],
    *,
    panel: str,
    title: str,
    group: str | None = None,
    unit: str = "percent",
    reference: tuple[float, str] | None = None,
    columns: int = 2,
) -> go.Figure:
    """Forests side by side, a panel for each value of a column, each with its own horizontal axis.

    Args:
        table, names, title, group, unit, reference: As for `forest`; axes of differences need not be
            symmetric here.
        panel: Column with a panel for each of its values.
        columns: Panels side by side.
    """
    table = table.assign(line=list(names))
    panels, order = list(dict.fromkeys(table[panel])), _escaped(dict.fromkeys(names))
    height = 65 + (24 if group else 20) * len(order)
    figure, cells = _grid(panels, columns, row_height=height, gap=0.05, shared_yaxes=True)
    for value, (row, column) in zip(panels, cells):
        part = table[table[panel] == value]
        single = forest(part, part["line"], title="", group=group, unit=unit)
        for trace in single.data:
            trace.update(legendgroup=trace.name, showlegend=group is not None, marker_size=7)
            figure.add_trace(trace, row=row, col=column)
        figure.update_xaxes(tickformat=single.layout.xaxis.tickformat, nticks=5, row=row, col=column)
        if reference:
            figure.add_vline(x=reference[0], line={"dash": "dot", "color": GREY}, row=row, col=column)
    figure.update_yaxes(categoryorder="array", categoryarray=order, range=[len(order) - 0.5, -0.5])
    notes = ["percentage points"] if unit == "points" else []
    notes += dict.fromkeys(kind.split(" (")[0] for kind in table["interval"])
    notes += [f"dotted: {reference[1]}"] if reference else []
    _finish(figure, cells, title, "<br>".join(_escaped(notes)))
    if group:
        figure.update_layout(scattermode="group", scattergap=0.4, **_above(figure))
    return figure.update_layout(margin_b=45 + 15 * len(notes))


def _grid(panels: Sequence, columns: int, *, row_height: int, gap: float, **options) -> tuple[go.Figure, list]:
    """Cells of equal size, row by row, and where each panel goes."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=_escaped(panels), horizontal_spacing=gap,
        vertical_spacing=60 / (row_height * rows), **options,
    )  # fmt: skip
    figure.update_annotations(font_size=13)
    figure.update_layout(height=110 + row_height * rows, margin={"t": 60, "l": 50, "r": 10, "b": 50})
    return figure, [(1 + i // columns, 1 + i % columns) for i in range(len(panels))]


def _finish(figure: go.Figure, cells: list, x_title: str, note: str, y_title: str = "") -> go.Figure:
    """Titles under the lowest panel of every column, note and vertical title once, as every name in the legend."""
    named: set[str] = set()
    for trace in figure.data:
        trace.showlegend = trace.showlegend is not False and trace.name not in named
        named |= {trace.name} if trace.showlegend else set()
    for column in sorted({c for _, c in cells}):
        text = x_title + (f"<br><sub>{note}</sub>" if note and column == 1 else "")
        figure.update_xaxes(title=text, row=max(r for r, c in cells if c == column), col=column)
    figure.update_xaxes(title_standoff=8, title_font_size=12, tickfont_size=11, tickangle=0)
    figure.update_yaxes(title=y_title, title_font_size=12, row=(1 + max(r for r, _ in cells)) // 2, col=1)
    figure.update_yaxes(tickfont_size=11)
    return figure.update_layout(legend={"tracegroupgap": 0, "font_size": 12})


def _above(figure: go.Figure) -> dict:
    """Room for a legend between the top and the panels' titles."""
    return {"legend_y": 1 + 25 / (figure.layout.height - 110), "margin_t": 85}


def _styles(names: Sequence[str], baseline: str) -> dict[str, tuple[str, str, str]]:
    others = [name for name in dict.fromkeys(names) if name != baseline]
    found = dict(zip(others, GROUPS))
    return {baseline: (GREY, "circle", "solid")} | {name: found.get(name, OTHER) for name in others}


def _inside(points: pd.DataFrame, scale: str) -> None:
    for column in ("x", "y"):
        wrong = points[~((points[column] > 0) & (points[column] < 1))]
        if len(wrong):
            row = wrong.iloc[0]
            raise ValueError(
                f"{column} of {row['name']!r} is {row[column]}, allowed is between 0 and 1 on a {scale} axis."
            )


def _label(name: str, style: tuple) -> str:
    return "other" if style is OTHER else _escaped([name])[0]


def _diagonal(points: pd.DataFrame, into) -> go.Scatter:
    ends = into([points[["x", "y"]].min().min(), points[["x", "y"]].max().max()])
    dotted = {"dash": "dot", "width": 1.5, "color": GREY}
    return go.Scatter(x=ends, y=ends, mode="lines", line=dotted, name="y = x", legendgroup="y = x", hoverinfo="skip")


def _line(part: pd.DataFrame, name: str, style: tuple, into, *, own: bool) -> list[go.Scatter]:
    """A band and its line, which the legend shows and hides with the group, or with an `own` entry."""
    color, _, dash = style
    label = _label(name, style)
    line = f"line of {label}"
    low, high = (part[end].clip(END, 1 - END) for end in ("low", "high"))
    band = go.Scatter(
        x=into([*part["x"], *part["x"][::-1]]), y=into([*high, *low[::-1]]), mode="lines", fill="toself",
        fillcolor=faded(color), line_width=0, legendgroup=line if own else label, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    middle = go.Scatter(
        x=into(part["x"]), y=into(part["value"]), mode="lines", name=line, legendgroup=band.legendgroup,
        showlegend=own, line={"color": color, "dash": dash, "width": 2}, customdata=part[["x", "value", "low", "high"]],
        hovertemplate=f"{_percent(0)}: {_percent(1)} [{_percent(2)}, {_percent(3)}]<extra>{line}</extra>",
    )  # fmt: skip
    return [band, middle]


def _marks(part: pd.DataFrame, name: str, style: tuple, into, titles: tuple[str, str]) -> go.Scatter:
    """The models of one group; hovering names them, and their accuracies with what intervals there are."""
    color, symbol, _ = style
    label, hover, errors = _label(name, style), "%{text}", {}
    columns = [c for c in ("x", "y", *X_ENDS, *Y_ENDS) if c in part]
    for axis, ends, title in zip("xy", (X_ENDS, Y_ENDS), _escaped(titles)):
        hover += f"<br>{title}: {_percent(columns.index(axis))}"
        if set(ends) <= set(columns):
            low, high = (into(part[end].clip(END, 1 - END)) for end in ends)
            errors[f"error_{axis}"] = {
                "type": "data", "symmetric": False, "array": high - into(part[axis]),
                "arrayminus": into(part[axis]) - low, "color": faded(color, 0.5), "thickness": 1, "width": 0,
            }  # fmt: skip
            hover += f" [{', '.join(_percent(columns.index(end)) for end in ends)}]"
    return go.Scatter(
        x=into(part["x"]), y=into(part["y"]), mode="markers", name=label, legendgroup=label, customdata=part[columns],
        text=_escaped(part["name"]), marker={"color": color, "symbol": symbol, "size": 6},
        hovertemplate=f"{hover}<extra>{_escaped([name])[0]}</extra>", **errors,
    )  # fmt: skip


def _percent(column: int) -> str:
    return f"%{{customdata[{column}]:.1%}}"


def _axis(accuracies: pd.Series, into, *, most: int) -> dict:
    low, high = into(accuracies.min()), into(accuracies.max())
    reach = 0.06 * (high - low) or 0.5
    ticks = _ticks(low - reach, high + reach, into, most)
    labels = [f"{100 * t:.3g}%" for t in ticks]
    return {"range": [low - reach, high + reach], "tickvals": into(ticks), "ticktext": labels}


def _ticks(low: float, high: float, into, most: int) -> np.ndarray:
    """Round accuracies between two places on the scale, at most so many that their labels stay apart."""
    inside = [t for t in TICKS if low <= into(t) <= high]
    kept: list[float] = []
    for tick in inside:
        if not kept or into(tick) - into(kept[-1]) >= (high - low) / (most + 1):
            kept.append(tick)
    return np.array(kept)
