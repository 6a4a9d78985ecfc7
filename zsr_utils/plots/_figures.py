"""Frames -> figures. Nothing here reads files, computes statistics or shows anything."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from zsr_utils._text import as_html, short
from zsr_utils.plots._style import BLUE, CLASS_COLORS, CLASS_SYMBOLS, GREY, HEIGHT, ORANGE, SEQUENTIAL, SERIES, faded


BOUNDS = "[%{{customdata[0]:{0}}}, %{{customdata[1]:{0}}}]"


def escaped(names: Sequence[str]) -> list[str]:
    """Names as text: class and file names are data and never markup."""
    return [as_html(name) for name in names]


def series(table: pd.DataFrame, group: str | None) -> Iterator[tuple]:
    """Name as text, rows, colour, mark and dash of every value of a column, at most eight; of all rows without one."""
    groups = table.groupby(group, sort=False) if group else [("", table)]
    return ((as_html(name), part, *style) for (name, part), style in zip(groups, SERIES))


def forest(
    table: pd.DataFrame, names: Sequence[str] | None = None, *, title: str, group: str | None = None,
    unit: str | None = None, reference: tuple[float, str] | None = None,
) -> go.Figure:  # fmt: skip
    """Dots with intervals, one a row of a table such as `study.estimate` gives; rows of one name share a line.

    Args:
        group: Column whose values, at most eight, are told apart; `model` by default, where there are several.
        unit: `percent` shows a share on an axis from 0 to 100 %, `share` one that may pass 100 %, `points` a difference
            of shares in percentage points, `number` anything else; by default that of the table.
        reference: A value to compare with and its name, drawn as a dotted line.
    """
    names = table["label"] if names is None else names
    group = group or ("model" if "model" in table and table["model"].nunique() > 1 else None)
    if not unit:
        shares = "unit" not in table or table["unit"].eq("fraction").all()
        inside = table["low"].min() >= 0 and table["high"].max() <= 1
        unit = ("percent" if inside else "share") if shares else "number"
    ends = (100 if unit == "points" else 1) * table[["value", "low", "high"]]
    table = table.assign(**ends, line=escaped(names))
    number = {"percent": ".1%", "share": ".1%", "points": "+.2f", "number": ".3g"}[unit]
    figure = go.Figure()
    for name, part, color, symbol, _ in series(table, group):
        if unit == "points" and not group:
            color, symbol = ORANGE, "diamond"
        error = {"array": part["high"] - part["value"], "arrayminus": part["value"] - part["low"]}
        figure.add_scatter(
            x=part["value"], y=part["line"], mode="markers", name=name, orientation="h", offsetgroup=name,
            marker={"color": color, "size": 9, "symbol": symbol}, customdata=part[["low", "high", "n"]].to_numpy(),
            error_x={"type": "data", "symmetric": False, "color": color, "thickness": 1.6, **error},
            hovertemplate=f"%{{y}}: %{{x:{number}}} {BOUNDS.format(number)}, n = %{{customdata[2]:,}}"
            f"<extra>{name}</extra>",
        )  # fmt: skip
    kinds = as_html(", ".join(dict.fromkeys(table["interval"])))
    same = f", n = {int(table['n'].iloc[0]):,} each" if table["n"].nunique() == 1 else ""
    axis = {} if unit in ("number", "points") else {"tickformat": ".0%", "range": [-0.02, 1.02]}
    if unit == "points":
        reach = 1.15 * max(1.0, float(ends.abs().to_numpy().max()))
        kinds, axis = f"percentage points, {kinds}", {"range": [-reach, reach]}
        reference = reference or (0, "no change")
    if unit == "share":
        low, high = min(0, ends["low"].min()), max(ends["high"].max(), reference[0] if reference else -np.inf)
        axis["range"] = [low - 0.03 * (high - low), high + 0.06 * (high - low)]
    figure.update_xaxes(title=f"{as_html(title)}<br><sub>{kinds}{same}</sub>", **axis)
    if reference:
        named = {"annotation_text": as_html(reference[1]), "annotation_position": "top"}
        figure.add_vline(reference[0], line={"dash": "dot", "color": GREY}, **named)
    lines = table.groupby("line", sort=False).size()
    figure.update_yaxes(type="category", autorange="reversed", categoryorder="array", categoryarray=list(lines.index))
    height = max(240, 100 + (22 + 12 * lines.max()) * len(lines))
    if group:  # the legend leaves room for the name of the reference below it
        legend = {"y": 1 + 26 / (height - 140), "yanchor": "bottom"}
        figure.update_layout(scattermode="group", scattergap=0.4, legend=legend, margin={"t": 70})
    return figure.update_layout(height=height, showlegend=group is not None)


def curves(
    table: pd.DataFrame, x: str, *, group: str, x_title: str, y_title: str, percent: bool = False, log_x: bool = False,
    log_y: bool = False, markers: bool = True, reference: tuple[float, str] | None = None,
) -> go.Figure:  # fmt: skip
    """Lines with their intervals as bands (columns `x`, `group`, value, low, high), at most eight groups."""
    figure, number = go.Figure(), ".1%" if percent else ".3g"
    for name, part, color, symbol, dash in series(table, group):
        figure.add_scatter(
            x=[*part[x], *part[x][::-1]], y=[*part["high"], *part["low"][::-1]], fill="toself", legendgroup=name,
            fillcolor=faded(color), line={"width": 0}, mode="lines", hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=part[x], y=part["value"], name=name, legendgroup=name, mode="lines+markers" if markers else "lines",
            line={"color": color, "dash": dash, "width": 2}, marker={"symbol": symbol, "size": 8},
            customdata=part[["low", "high"]],
            hovertemplate=f"%{{x:.4g}}: %{{y:{number}}} {BOUNDS.format(number)}<extra>{name}</extra>",
        )  # fmt: skip
    figure.update_xaxes(title=as_html(x_title), type="log" if log_x else "linear")
    figure.update_yaxes(title=as_html(y_title), type="log" if log_y else "linear", exponentformat="power")
    steps = sorted(set(table[x]))
    if len(steps) < 12 and (log_x or all(float(v).is_integer() for v in steps)):
        figure.update_xaxes(tickvals=steps)
    if percent:
        figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
    if reference:
        at = np.log10(reference[0]) if log_y else reference[0]  # annotations are placed by the power
        named = {"annotation_text": as_html(reference[1]), "annotation_position": "top left", "annotation_y": at}
        figure.add_hline(y=reference[0], line={"dash": "dot", "color": GREY}, **named)
    return figure


def agreement(
    table: pd.DataFrame, x: str, y: str, *, group: str, x_title: str, y_title: str, log: bool = False
) -> go.Figure:
    """Points of two measurements of the same thing, and the line where they are equal; hover names the sample."""
    figure, both = go.Figure(), table[[x, y]].to_numpy()
    ends = [np.nanmin(both[both > 0] if log else both), np.nanmax(both)]
    dotted = {"mode": "lines", "line": {"dash": "dot", "color": GREY}, "hoverinfo": "skip"}
    figure.add_scatter(x=ends, y=ends, name="equal", **dotted)
    for name, part, color, symbol, _ in series(table, group):
        figure.add_scatter(
            x=part[x], y=part[y], mode="markers", name=name, text=escaped(part["sample_id"]),
            marker={"color": color, "symbol": symbol, "size": 6, "opacity": 0.6},
            hovertemplate=f"%{{text}}: %{{x:.3g}}, %{{y:.3g}}<extra>{name}</extra>",
        )  # fmt: skip
    kind = "log" if log else "linear"
    return figure.update_xaxes(title=as_html(x_title), type=kind).update_yaxes(title=as_html(y_title), type=kind)


def bars(table: pd.DataFrame, x: str, *, group: str, x_title: str, y_title: str) -> go.Figure:
    """Grouped bars (columns `x`, `group`, value), at most eight groups."""
    figure = go.Figure()
    for name, part, color, _, _ in series(table, group):
        hover = f"%{{x}}: %{{y:.3g}}<extra>{name}</extra>"
        figure.add_bar(x=escaped(part[x]), y=part["value"], name=name, marker_color=color, hovertemplate=hover)
    figure.update_xaxes(title=as_html(x_title), type="category").update_yaxes(title=as_html(y_title))
    return figure.update_layout(barmode="group")


def heatmap(
    values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], row_title: str, column_title: str,
    format: str = "d", hover: str = "%{y} → %{x}: %{z}",
) -> go.Figure:  # fmt: skip
    """A labelled matrix with its numbers in the cells; zeros are left blank."""
    shown = [[f"{v:{format}}" if v >= 10**-2 or (format == "d" and v) else "" for v in row] for row in values]
    figure = go.Figure(
        go.Heatmap(
            z=values, x=escaped(columns), y=escaped(rows), text=shown, texttemplate="%{text}",
            colorscale=SEQUENTIAL, zmin=0, showscale=False, xgap=2, ygap=2, hovertemplate=hover + "<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title=as_html(column_title), type="category", side="bottom", showgrid=False, tickangle=-40)
    figure.update_yaxes(title=as_html(row_title), type="category", autorange="reversed", showgrid=False)
    return figure.update_layout(height=max(HEIGHT, 120 + 32 * len(rows)))


def similarity_histogram(
    within: np.ndarray, between: np.ndarray, *, others: dict[str, np.ndarray] | None = None, bins: int = 80
) -> go.Figure:
    """Densities of the cosine of image pairs, same class against different class, and of other pairs by name."""
    groups = {"different class": between, "same class": within, **(others or {})}
    groups = {name: values for name, values in groups.items() if len(values)}
    low, high = min(v.min() for v in groups.values()), max(v.max() for v in groups.values())
    edges = np.linspace(low, high, bins + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    figure = go.Figure()
    colors = (ORANGE, BLUE, *(color for color, _, _ in SERIES[2:]))
    for (name, values), color, dash in zip(groups.items(), colors, ("dash", "solid", "dot", "dashdot")):
        density = np.histogram(values, edges, density=True)[0]
        name = as_html(name)
        figure.add_scatter(
            x=middle, y=density, name=f"{name} ({len(values):,} pairs)", mode="lines", line_shape="hvh",
            fill="tozeroy" if name in ("same class", "different class") else None,
            line={"color": color, "dash": dash, "width": 1.8},
            hovertemplate="cosine %{x:.2f}: density %{y:.2f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title="cosine similarity of two images")
    figure.update_yaxes(title="density", rangemode="tozero")
    return figure


def projection(points: pd.DataFrame, class_names: Sequence[str]) -> go.Figure:
    """UMAP plane of images (points) and class texts (large ringed marks); hover names the sample."""
    figure, texts = go.Figure(), points[points.modality == "text"]
    trace = go.Scatter if len(points) <= 5000 else go.Scattergl  # the latter is fast, and hides what lies behind
    for modality in ("image", "text"):
        for k, label in enumerate(sorted(set(points.label))):
            part, image = points[(points.label == label) & (points.modality == modality)], modality == "image"
            n, whole = len(CLASS_COLORS), class_names[label]
            name, called = as_html(whole), as_html(short(whole, 24))
            mark = {"color": CLASS_COLORS[k % n], "symbol": CLASS_SYMBOLS[(k + k // n) % n]}
            ring = {"size": 6, "opacity": 0.75, "line": {"color": GREY, "width": 0.5}}
            ring = ring if image else {"size": 15, "line": {"color": "#FFFFFF", "width": 2}}
            figure.add_trace((trace if image else go.Scatter)(
                x=part.x, y=part.y, mode="markers", name=called, legendgroup=name, showlegend=image, marker=mark | ring,
                text=escaped(part.sample_id) if image else None,
                hovertemplate=(f"%{{text}}<br>{name}" if image else f"text “{name}”") + "<extra></extra>",
            ))  # fmt: skip
            for x, y in [] if image else part[["x", "y"]].to_numpy():
                look = {"showarrow": False, "bgcolor": "rgba(255,255,255,0.75)", "borderpad": 1, **_away(x, y, texts)}
                figure.add_annotation(x=x, y=y, text=f"<b>{called}</b>", **look)
    hidden = {"showticklabels": False, "showgrid": False, "title": ""}
    figure.update_xaxes(**hidden).update_yaxes(**hidden)
    return figure.update_layout(height=520)


def _away(x: float, y: float, texts: pd.DataFrame) -> dict[str, float]:
    """Where the name of a class text stands, so that it is clear of the nearest other one."""
    apart = np.array([x, y]) - texts[["x", "y"]].to_numpy()
    others = apart[np.abs(apart).sum(1) > 0]
    across, up = others[np.square(others).sum(1).argmin()] if len(others) else (0, 1)
    if abs(up) >= abs(across):
        return {"yshift": 20 if up > 0 else -20}
    return {"xshift": 12, "xanchor": "left"} if across > 0 else {"xshift": -12, "xanchor": "right"}
