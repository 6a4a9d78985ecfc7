"""Frames -> figures. Nothing here reads files, computes statistics or shows anything."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from zsr_utils.plots._style import BLUE, GREY, HEIGHT, ORANGE, SEQUENTIAL, class_color, class_symbol


def _escaped(names: Sequence[str]) -> list[str]:
    """Names as text: class and file names are data and never markup."""
    return [html.escape(str(n)) for n in names]


def accuracies(table: pd.DataFrame, names: Sequence[str], *, chance: float, title: str = "accuracy") -> go.Figure:
    """Dots with intervals, one a row of `table` (columns value, low, high, n), and the chance level."""
    names = _escaped(names)
    figure = go.Figure(
        go.Scatter(
            x=table["value"],
            y=names,
            mode="markers",
            marker={"color": BLUE, "size": 9},
            error_x={
                "type": "data", "symmetric": False, "color": BLUE, "thickness": 1.6,
                "array": table["high"] - table["value"], "arrayminus": table["value"] - table["low"],
            },
            customdata=table[["low", "high", "n"]],
            hovertemplate="%{y}: %{x:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]"
            ", n = %{customdata[2]}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_vline(x=chance, line={"dash": "dot", "color": GREY}, annotation_text="chance", annotation_position="top")
    n = int(table["n"].iloc[0])
    same = "" if table["n"].nunique() > 1 else f", n = {n:,} each"
    figure.update_xaxes(title=f"{title}<br><sub>95 % Wilson interval{same}</sub>", range=[0, 1.02], tickformat=".0%")
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=max(240, 90 + 30 * len(names)), showlegend=False)


def changes(table: pd.DataFrame, names: Sequence[str], *, title: str) -> go.Figure:
    """Differences in percentage points with their intervals (columns value, low, high), and the line of no change."""
    points = 100 * table[["value", "low", "high"]]
    figure = go.Figure(
        go.Scatter(
            x=points["value"],
            y=_escaped(names),
            mode="markers",
            marker={"color": ORANGE, "size": 9, "symbol": "diamond"},
            error_x={
                "type": "data", "symmetric": False, "color": ORANGE, "thickness": 1.6,
                "array": points["high"] - points["value"], "arrayminus": points["value"] - points["low"],
            },
            customdata=points[["low", "high"]],
            hovertemplate="%{y}: %{x:+.2f} [%{customdata[0]:+.2f}, %{customdata[1]:+.2f}] points<extra></extra>",
        )
    )  # fmt: skip
    reach = 1.15 * max(1.0, float(points.abs().to_numpy().max()))
    figure.add_vline(x=0, line={"dash": "dot", "color": GREY}, annotation_text="no change", annotation_position="top")
    figure.update_xaxes(title=f"{title}<br><sub>percentage points, 95 % paired bootstrap</sub>", range=[-reach, reach])
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=max(240, 90 + 40 * len(names)), showlegend=False)


def heatmap(
    values: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str,
    column_title: str,
    format: str = "d",
    hover: str = "%{y} → %{x}: %{z}",
) -> go.Figure:
    """A labelled matrix with its numbers in the cells; zeros are left blank."""
    shown = [[f"{v:{format}}" if v >= 10**-2 or (format == "d" and v) else "" for v in row] for row in values]
    figure = go.Figure(
        go.Heatmap(
            z=values, x=_escaped(columns), y=_escaped(rows), text=shown, texttemplate="%{text}",
            colorscale=SEQUENTIAL, zmin=0, showscale=False, xgap=2, ygap=2, hovertemplate=hover + "<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title=column_title, side="bottom", showgrid=False, tickangle=-40)
    figure.update_yaxes(title=row_title, autorange="reversed", showgrid=False)
    return figure.update_layout(height=max(HEIGHT, 120 + 32 * len(rows)))


def similarity_histogram(within: np.ndarray, between: np.ndarray, *, bins: int = 80) -> go.Figure:
    """Densities of the cosine of image pairs, same class against different class."""
    edges = np.linspace(min(within.min(), between.min()), max(within.max(), between.max()), bins + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    figure = go.Figure()
    for name, values, color, dash in (
        ("different class", between, ORANGE, "dash"),
        ("same class", within, BLUE, "solid"),
    ):
        density = np.histogram(values, edges, density=True)[0]
        figure.add_scatter(
            x=middle, y=density, name=f"{name} ({len(values):,} pairs)", mode="lines", line_shape="hvh",
            fill="tozeroy", line={"color": color, "dash": dash, "width": 1.8},
            hovertemplate="cosine %{x:.2f}: density %{y:.2f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title="cosine similarity of two images")
    figure.update_yaxes(title="density", rangemode="tozero")
    return figure


def projection(points: pd.DataFrame, class_names: Sequence[str]) -> go.Figure:
    """UMAP plane of images (points) and class texts (large ringed marks); hover names the sample."""
    figure = go.Figure()
    trace = go.Scatter if len(points) <= 5000 else go.Scattergl  # the latter is fast, and hides what lies behind
    for label, name in enumerate(_escaped(class_names)):
        images = points[(points.label == label) & (points.modality == "image")]
        figure.add_trace(trace(
            x=images.x, y=images.y, mode="markers", name=name, legendgroup=name,
            marker={"color": class_color(label), "symbol": class_symbol(label), "size": 6, "opacity": 0.75},
            text=_escaped(images.sample_id), hovertemplate=f"%{{text}}<br>{name}<extra></extra>",
        ))  # fmt: skip
    for label, name in enumerate(_escaped(class_names)):
        text = points[(points.label == label) & (points.modality == "text")]
        figure.add_scatter(
            x=text.x, y=text.y, mode="markers+text", text=[name], textposition="top center", name=name,
            legendgroup=name, showlegend=False, hovertemplate=f"text “{name}”<extra></extra>",
            textfont={"size": 13, "weight": "bold"},
            marker={"color": class_color(label), "symbol": class_symbol(label), "size": 15,
                    "line": {"color": "white", "width": 2}},
        )  # fmt: skip
    hidden = {"showticklabels": False, "showgrid": False, "title": ""}
    figure.update_xaxes(**hidden).update_yaxes(**hidden)
    return figure.update_layout(height=520)
