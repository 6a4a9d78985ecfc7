"""Figures over many models: points where their accuracies are, ticks that can be read, names never markup."""

import numpy as np
import pandas as pd
import pytest
from scipy import special

from zsr_utils import plots
from zsr_utils.plots import _trends


EVIL = "<img src=x onerror=alert(1)>"
TITLES = {"x_title": "clean", "y_title": "shifted"}


def models(**columns):
    table = {"name": ["a", "b", EVIL], "group": ["standard", "standard", EVIL]}
    return pd.DataFrame({**table, "x": [0.5, 0.8, 0.6], "y": [0.3, 0.6, 0.55], **columns})


def line(**columns):
    x = np.array([0.5, 0.65, 0.8])
    return pd.DataFrame({"x": x, "value": x - 0.2, "low": x - 0.3, "high": x - 0.1, "group": "standard", **columns})


def traces(figure, mode, name=None):
    return [t for t in figure.data if t.mode == mode and name in (None, t.name)]


@pytest.mark.parametrize(("scale", "into"), [("logit", special.logit), ("probit", special.ndtri)])
def test_models_stand_at_their_accuracies_on_the_scale_and_ticks_read_back_as_percent(scale, into):
    figure = plots.trend(models(), line(), scale=scale, **TITLES)
    grey, other = traces(figure, "markers")
    np.testing.assert_allclose(grey.x, into([0.5, 0.8]))
    np.testing.assert_allclose(other.y, into([0.55]))
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        read = [float(text.rstrip("%")) / 100 for text in axis.ticktext]
        assert len(read) >= 3
        np.testing.assert_allclose(axis.tickvals, into(read))
        assert axis.range[0] < min(axis.tickvals) and max(axis.tickvals) < axis.range[1]


def test_hovering_names_the_model_and_both_accuracies_and_names_are_no_markup():
    figure = plots.trend(models(), line(), **TITLES)
    grey, other = traces(figure, "markers")
    assert list(grey.text) == ["a", "b"] and grey.customdata.tolist() == [[0.5, 0.3], [0.8, 0.6]]
    assert grey.hovertemplate == (
        "%{text}<br>clean: %{customdata[0]:.1%}<br>shifted: %{customdata[1]:.1%}<extra>standard</extra>"
    )
    assert "&lt;img" in other.hovertemplate and "<img" not in figure.to_json()


def test_the_line_the_band_and_the_diagonal_are_where_they_belong():
    figure = plots.trend(models(), line(), **TITLES)
    diagonal, band, fitted = traces(figure, "lines")
    assert list(diagonal.x) == list(diagonal.y) and diagonal.line.dash == "dot"
    np.testing.assert_allclose(fitted.y, special.logit([0.3, 0.45, 0.6]))
    np.testing.assert_allclose(band.y, special.logit([0.4, 0.55, 0.7, 0.5, 0.35, 0.2]))
    assert fitted.line.color == traces(figure, "markers", "standard")[0].marker.color
    assert [t.name for t in figure.data if t.showlegend] == [
        "y = x", "line of standard", "standard", "&lt;img src=x onerror=alert(1)&gt;"
    ]  # fmt: skip


def test_a_line_that_breaks_is_drawn_in_pieces_and_figures_without_lines_are_possible():
    broken = plots.trend(models(), line(piece=[False, True, True]), **TITLES)
    assert [len(t.x) for t in traces(broken, "lines", "line of standard")] == [1, 2]
    assert len(traces(plots.trend(models(), **TITLES), "lines")) == 1


def test_an_interval_is_drawn_on_the_scale_and_a_missing_one_is_not():
    figure = plots.trend(models(low=[0.2, np.nan, 0.5], high=[0.4, np.nan, 0.6]), line(), **TITLES)
    grey, _ = traces(figure, "markers")
    up, down = special.logit(0.4) - special.logit(0.3), special.logit(0.3) - special.logit(0.2)
    np.testing.assert_allclose(grey.error_y.array, [up, np.nan])
    np.testing.assert_allclose(grey.error_y.arrayminus, [down, np.nan])
    assert grey.error_x.array is None and "shifted: %{customdata[1]:.1%} [%{customdata[2]:.1%}, " in grey.hovertemplate
    certain = plots.trend(models(x_low=[0.0, 0.7, 0.5], x_high=[1.0, 0.9, 0.7]), line(), **TITLES)
    assert np.isfinite(traces(certain, "markers")[0].error_x.array).all()


def test_every_panel_has_its_own_models_and_the_legend_every_group_once():
    two = pd.concat([models(shift="V2"), models(shift=EVIL, y=[0.1, 0.2, 0.15])])
    lines = pd.concat([line(shift="V2"), line(shift=EVIL)])
    figure = plots.trend(two, lines, panel="shift", **TITLES)
    first, _, second, _ = traces(figure, "markers")
    assert (first.xaxis, second.xaxis) == ("x", "x2")
    np.testing.assert_allclose(second.y, special.logit([0.1, 0.2]))
    named = [t.name for t in figure.data if t.showlegend]
    assert len(named) == len(set(named)) == 4
    assert figure.layout.annotations[0].text == "V2" and "<img" not in figure.to_json()


def test_groups_after_the_eighth_are_one_other_and_the_first_eight_differ_in_colour_and_mark():
    names = [f"g{k}" for k in range(10)]
    many = pd.DataFrame({"name": names, "group": names, "x": np.linspace(0.3, 0.7, 10), "y": 0.5})
    figure = plots.trend(many, line(), **TITLES)
    points = traces(figure, "markers")
    assert len({t.marker.color for t in points[:8]}) == len({t.marker.symbol for t in points[:8]}) == 8
    assert [t.name for t in points[8:]] == ["other", "other"] and [t.showlegend for t in points[8:]] == [True, False]
    assert "<extra>g9</extra>" in points[9].hovertemplate


@pytest.mark.parametrize("wrong", [0.0, 1.0, np.nan, 63.3])
def test_an_accuracy_that_has_no_place_on_the_axis_is_named(wrong):
    with pytest.raises(ValueError, match=rf"y of 'b' is {wrong}, allowed is between 0 and 1 on a logit axis"):
        plots.trend(models(y=[0.3, wrong, 0.5]), line(), **TITLES)


@pytest.mark.parametrize(("low", "high"), [(0.55, 0.85), (0.005, 0.9), (0.2, 0.97), (0.44, 0.84)])
def test_tick_labels_stay_apart(low, high):
    ends = special.logit([low, high])
    ticks = special.logit(_trends._ticks(*ends, special.logit, 5))
    assert 3 <= len(ticks) <= 6 and ends[0] <= ticks[0] and ticks[-1] <= ends[1]
    assert (np.diff(ticks) >= np.ptp(ends) / 6 - 1e-12).all()


def test_forests_give_each_panel_its_rows_and_all_the_same_lines():
    table = pd.DataFrame({"value": [0.05, 0.3, 0.06], "low": [0.04, 0.2, 0.05], "high": [0.06, 0.4, 0.07], "n": 75})
    table = table.assign(interval="bootstrap 95 % (75 models)", shift=["V2", "R", "V2"], read=["mean", "mean", EVIL])
    figure = plots.forests(
        table, ["a", EVIL, "a"], panel="shift", group="read", title="t", unit="points", reference=(0, "line")
    )
    mean, other, second = figure.data
    assert list(mean.x) == [5] and list(other.x) == [6] and list(second.x) == [30]
    assert (mean.xaxis, other.xaxis, second.xaxis) == ("x", "x", "x2")
    assert [t.showlegend for t in figure.data] == [True, True, False]
    assert list(figure.layout.yaxis.categoryarray) == ["a", "&lt;img src=x onerror=alert(1)&gt;"]
    assert [s.x0 for s in figure.layout.shapes] == [0, 0] and figure.layout.xaxis.range is None
    assert "percentage points<br>bootstrap 95 %<br>dotted: line" in figure.layout.xaxis.title.text
    assert "<img" not in figure.to_json()
