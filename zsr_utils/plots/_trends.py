"""Many models in one figure: accuracy under shift against accuracy without it, and forests side by side."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly import express

from zsr_utils._text import as_html, one_of
from zsr_utils.plots._figures import escaped
from zsr_utils.plots._style import BLUE, GREY, SERIES, faded
from zsr_utils.scores.trends import SCALES


# round accuracies on both sides of one half, dense towards the ends as the scales are
TICKS = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *np.arange(1, 10) / 10, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999])
END = 1e-4  # an interval that reaches 0 or 1 is drawn to here


def trend(
    points: pd.DataFrame, lines: pd.DataFrame, *, x_title: str, y_title: str, group: str = "group",
    panel: str = "panel", baseline: str = "standard", scale: str = "logit", columns: int = 2,
) -> go.Figure:  # fmt: skip
    """Models as points on stretched axes with ticks in percent, lines with their bands, and y = x dotted.

    Args:
        points: A row a model and panel: `name`, the accuracies `x` and `y`, strictly between 0 and 1, the interval of
            y, `low` and `high`, and the columns `group`, at most eight beside the grey baseline, and `panel`.
        lines: Rows along lines of the baseline, in order: `x`, `value`, `low`, `high`, the column `panel`, and `piece`,
            which tells the parts of a line that breaks apart.
        scale: `logit` or `probit`, of both axes.
    """
    one_of("scale", scale, SCALES)
    into = SCALES[scale][0]
    for column in ("x", "y"):
        for name, value in zip(points["name"], points[column]):
            if not 0 < value < 1:
                raise ValueError(f"{column} of {name!r} is {value}, allowed is between 0 and 1 on a {scale} axis.")
    ends = into(points[["x", "y", "low", "high"]].clip(END, 1 - END))
    shown = points.assign(x=ends.x, y=ends.y, up=ends.high - ends.y, down=ends.y - ends.low)
    shown[["accuracy", "shifted"]] = points[["x", "y"]]
    x, y = as_html(x_title), as_html(y_title)
    numbers = {**dict.fromkeys(["accuracy", "shifted", "low", "high"], ":.1%"), "x": False, "y": False}
    options = {"hover_name": "name", "hover_data": numbers, "labels": {"x": x, "y": y, "accuracy": x, "shifted": y}}
    figure = _facets(shown, group, panel, columns, 250, baseline, **options)
    figure.update_traces(marker={"size": 6, "opacity": 0.85})
    figure.update_traces(marker_opacity=0.45, selector={"name": baseline})
    for title, part in points.groupby(panel, sort=False):
        # the panel's axes, which its marks carry among their data
        trace = next(t for t in figure.data if t.customdata is not None and t.customdata[0][0] == as_html(title))
        quiet = {"hoverinfo": "skip", "showlegend": False, "xaxis": trace.xaxis, "yaxis": trace.yaxis, "mode": "lines"}
        both = into([part[["x", "y"]].min(axis=None), part[["x", "y"]].max(axis=None)])
        figure.add_scatter(x=both, y=both, line={"dash": "dot", "width": 1.5, "color": GREY}, **quiet)
        for _, piece in lines[lines[panel] == title].groupby("piece"):
            at, low, value, high = (into(piece[c].clip(END, 1 - END)) for c in ("x", "low", "value", "high"))
            band = {"x": [*at, *at[::-1]], "y": [*high, *low[::-1]], "fill": "toself", "fillcolor": faded(GREY)}
            figure.add_scatter(**band, line_width=0, **quiet)
            figure.add_scatter(x=at, y=value, line_color=GREY, **quiet)
        # all panels have the same models, and so one horizontal range
        figure.layout["xaxis" + trace.xaxis[1:]].update(_axis(points["x"], into, most=4))
        figure.layout["yaxis" + trace.yaxis[1:]].update(_axis(part["y"], into, most=6))
    return figure


def forests(
    table: pd.DataFrame, names: Sequence[str], *, panel: str, title: str, group: str | None = None,
    unit: str = "number", reference: tuple[float, str] | None = None, baseline: str = "", columns: int = 2,
) -> go.Figure:  # fmt: skip
    """Forests, as `forest` draws one, with a panel for each value of a column, each with its own horizontal axis.

    The unit is `percent` for shares and their differences, else `number`; the baseline is the group drawn in grey.
    """
    order = escaped(dict.fromkeys(names))
    shown = table.assign(x=table["value"], y=escaped(names))
    number, height = ":.1%" if unit == "percent" else ":.3g", 75 + (24 if group else 20) * len(order)
    hover = {"x": number, "low": number, "high": number, "n": True}
    options = {"labels": {"x": as_html(title), "y": ""}, "hover_data": hover}
    figure = _facets(shown, group, panel, columns, height, baseline, along="x", **options)
    figure.update_traces(marker_size=7, orientation="h")
    figure.update_xaxes(matches=None, showticklabels=True, nticks=5, tickformat=".0%" if unit == "percent" else "")
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order[::-1])
    notes = [kind.split(" (")[0] for kind in table["interval"]]
    if reference:
        figure.add_vline(x=reference[0], line={"dash": "dot", "color": GREY})
        notes.append(f"dotted: {reference[1]}")
    figure.layout.xaxis.title.text = f"{as_html(title)}<br><sub>{', '.join(escaped(dict.fromkeys(notes)))}</sub>"
    return figure.update_layout(scattermode="group", scattergap=0.4)


def paths(table: pd.DataFrame, *, x_title: str, y_title: str) -> go.Figure:
    """Shares over `x_value` in a panel for each `panel`, joined in the order of the rows, a line for each `series`.

    `mark` stands beside a point; hover has its `label` and both intervals, `x_low` and `x_high` too.
    """
    shares, numbers = dict.fromkeys(["y", "low", "high"], ":.1%"), dict.fromkeys(["x", "x_low", "x_high"], ":.3f")
    shown = table.assign(x=table["x_value"], y=table["value"])
    options = {"labels": {"x": x_title, "y": y_title}, "hover_name": "label", "hover_data": {**shares, **numbers}}
    figure = _facets(shown, "series", "panel", 2, 250, draw=express.line, markers=True, text="mark", **options)
    figure.update_traces(textposition="middle right")
    return figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])


def doses(table: pd.DataFrame, names: Sequence[str], *, x_title: str, y_title: str) -> go.Figure:
    """Values over `share`, the dose over the largest: a panel for each `condition` named, a line a `model`."""
    shown = pd.concat([table[table["condition"] == name] for name in names])
    shown = shown.assign(x=shown["share"], y=shown["value"], panel=shown["condition"].str.replace("_", " "))
    labels = {"x": as_html(x_title), "y": as_html(y_title)}
    figure = _facets(shown, "model", "panel", 4, 170, draw=express.line, markers=True, labels=labels)
    return figure.update_yaxes(matches="y").update_traces(marker_size=5)


def _facets(
    table: pd.DataFrame, group: str | None, panel: str, columns: int, height: int, baseline: str = "",
    draw: Callable[..., go.Figure] = express.scatter, along: str = "y", **options,
) -> go.Figure:  # fmt: skip
    """Marks with intervals in a panel for each value of a column, its own vertical axis each, and one legend above."""
    if "up" not in table:
        table = table.assign(up=table["high"] - table["value"], down=table["value"] - table["low"])
    table = table.assign(**{column: escaped(table[column]) for column in {group, panel, "name"} & set(table)})
    groups = [name for name in dict.fromkeys(table[group] if group else []) if name != baseline]
    styles = {baseline: (GREY, "circle", "solid"), **dict(zip(groups, SERIES))}
    rows = -(-table[panel].nunique() // columns)
    figure = draw(
        table, x="x", y="y", color=group, symbol=group, facet_col=panel, facet_col_wrap=columns,
        facet_row_spacing=60 / (height * rows), facet_col_spacing=0.1, custom_data=[panel],
        color_discrete_map={name: color for name, (color, _, _) in styles.items()},
        symbol_map={name: symbol for name, (_, symbol, _) in styles.items()},
        color_discrete_sequence=[BLUE], **{f"error_{along}": "up", f"error_{along}_minus": "down"}, **options,
    )  # fmt: skip
    figure.update_traces({f"error_{along}": {"thickness": 1, "width": 0}})
    figure.for_each_annotation(lambda note: note.update(text=note.text.split("=", 1)[1], font_size=13))
    figure.update_xaxes(title_standoff=8, title_font_size=12, tickfont_size=11, tickangle=0)
    figure.update_yaxes(matches=None, title_font_size=12, tickfont_size=11)
    legend = {"title_text": "", "font_size": 12, "y": 1 + 25 / (height * rows)}
    return figure.update_layout(height=110 + height * rows, legend=legend, margin={"t": 85, "l": 50, "r": 10, "b": 60})


def _axis(accuracies: pd.Series, into, *, most: int) -> dict:
    """Range and ticks: round accuracies, at most so many that their labels stay apart."""
    low, high = into(accuracies.min()), into(accuracies.max())
    reach = 0.06 * (high - low) or 0.5
    low, high, kept = low - reach, high + reach, []
    for tick in TICKS:
        if low <= into(tick) <= high and (not kept or into(tick) - into(kept[-1]) >= (high - low) / (most + 1)):
            kept.append(tick)
    ticks = {"tickvals": into(np.array(kept)), "ticktext": [f"{100 * t:.3g}%" for t in kept]}
    return {"range": [low, high], "showticklabels": True, **ticks}
