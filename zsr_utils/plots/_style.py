"""One look for every figure: colours, fonts, and the renderer of stored runs."""

import os

import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer


# Ten colours that stay apart for colour-blind readers (after Paul Tol's muted scheme), in class order.
CLASS_COLORS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777",
)  # fmt: skip
CLASS_SYMBOLS = (
    "circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star", "hexagon", "pentagon",
)  # fmt: skip
BLUE, ORANGE, GREY = "#3366AA", "#D4762C", "#808892"
# Colour, mark and dash of the series of one figure: any two differ in all three.
SERIES = (
    (BLUE, "circle", "solid"), (ORANGE, "diamond", "dash"), ("#117733", "square", "dot"),
    ("#882255", "triangle-up", "dashdot"), ("#88CCEE", "x", "longdash"), ("#999933", "cross", "longdashdot"),
    ("#AA4499", "star", "8px,2px"), ("#777777", "hexagon", "2px,6px"),
)  # fmt: skip
SEQUENTIAL = [[0, "#F7FBFF"], [0.5, "#6BAED6"], [1, "#08306B"]]  # from nearly the page to as far from it as blue goes
HEIGHT = 400
TEXT = "#59636e"
# On a dark page: the same hues, light enough to be seen there. The book's script puts them in place.
DARK = {
    "#332288": "#9990f0", "#88CCEE": "#88CCEE", "#44AA99": "#4FC0AE", "#117733": "#5DBB63", "#999933": "#BDBD4F",
    "#DDCC77": "#EFE2A0", "#CC6677": "#E58291", "#882255": "#CF5C9A", "#AA4499": "#D783CB", "#777777": "#A3A3A3",
    BLUE: "#76A9EA", ORANGE: "#F0A05A", GREY: "#9AA3AD", TEXT: "#C4CAD3", "#FFFFFF": "#14181E",
    "#F7FBFF": "#1B222C", "#6BAED6": "#3E7FB1", "#08306B": "#C3E1FA",
}  # fmt: skip


def faded(color: str, opacity: float = 0.18) -> str:
    """A `#rrggbb` colour as `rgba(…)`."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 20, "t": 30, "b": 55},
        "height": HEIGHT,
        "colorway": list(CLASS_COLORS),
        "xaxis": {"gridcolor": "rgba(128,136,146,0.25)", "zeroline": False, "automargin": True},
        "yaxis": {"gridcolor": "rgba(128,136,146,0.25)", "zeroline": False, "automargin": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE, "orientation": "v"},
        "hoverlabel": {"font": {"size": 12}},
        "meta": {"dark": {light.lower(): dark for light, dark in DARK.items()}},
    }
)


CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}


class BookRenderer(MimetypeRenderer):
    """A figure as an HTML fragment; the book loads plotly.js once for all of them."""

    def to_mimebundle(self, fig_dict):
        return {"text/html": pio.to_html(fig_dict, full_html=False, include_plotlyjs=False, config=CONFIG)}


def use() -> None:
    """Make the template the default, and in stored runs (`ZSR_BOOK=1`) the book's renderer."""
    pio.templates["zsr"] = TEMPLATE
    pio.templates.default = "zsr"
    if os.environ.get("ZSR_BOOK") == "1":
        pio.renderers["book"] = BookRenderer()
        pio.renderers.default = "book"
