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
    table = {"name": ["a", "b", EVIL], "group": ["standard", "standard", EVIL], "panel": "V2"}
    ends = {"low": [0.2, 0.5, 0.0], "high": [0.4, 0.7, 0.7]}
    return pd.DataFrame({**table, "x": [0.5, 0.8, 0.6], "y": [0.3, 0.6, 0.55], **ends, **columns})


def line(**columns):
    x = np.array([0.5, 0.65, 0.8])
    own = {"x": x, "value": x - 0.2, "low": x - 0.3, "high": x - 0.1, "piece": 0, "panel": "V2"}
    return pd.DataFrame({**own, **columns})


def traces(figure, mode, axis="x"):
    return [t for t in figure.data if t.mode == mode and t.xaxis in (None, axis)]


@pytest.mark.parametrize(("scale", "into"), [("logit", special.logit), ("probit", special.ndtri)])
def test_models_stand_at_their_accuracies_on_the_scale_and_ticks_read_back_as_percent(scale, into):
    figure = plots.trend(models(), line(), scale=scale, **TITLES)
    grey, other = traces(figure, "markers")
    np.testing.assert_allclose(grey.x, into([0.5, 0.8]))
    np.testing.assert_allclose(other.y, into([0.55]))
    np.testing.assert_allclose(grey.error_y.array[0], into(0.4) - into(0.3))
    np.testing.assert_allclose(grey.error_y.arrayminus[0], into(0.3) - into(0.2))
    assert np.isfinite(other.error_y.arrayminus).all()  # of an interval that reaches 0
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        read = [float(text.rstrip("%")) / 100 for text in axis.ticktext]
        assert len(read) >= 3
        np.testing.assert_allclose(axis.tickvals, into(np.array(read)))
        assert axis.range[0] < min(axis.tickvals) and max(axis.tickvals) < axis.range[1]


def test_hovering_names_the_model_and_its_accuracies_and_names_are_no_markup():
    figure = plots.trend(models(), line(), **TITLES)
    grey, other = traces(figure, "markers")
    assert list(grey.hovertext) == ["a", "b"] and [t.showlegend for t in (grey, other)] == [True, True]
    for words in ("clean=%{customdata[", "shifted=%{customdata[", ":.1%}"):
        assert words in grey.hovertemplate
    assert other.name == "&lt;img src=x onerror=alert(1)&gt;" and "<img" not in figure.to_json()


def test_the_line_its_pieces_the_band_and_the_diagonal_are_where_they_belong():
    figure = plots.trend(models(), line(piece=[0, 1, 1]), **TITLES)
    diagonal, *pieces = traces(figure, "lines")
    assert list(diagonal.x) == list(diagonal.y) and diagonal.line.dash == "dot"
    assert [len(t.x) for t in pieces] == [2, 1, 4, 2]
    np.testing.assert_allclose(pieces[3].y, special.logit([0.45, 0.6]))
    np.testing.assert_allclose(pieces[2].y, special.logit([0.55, 0.7, 0.5, 0.35]))
    assert pieces[3].line.color == traces(figure, "markers")[0].marker.color


def test_every_panel_has_its_own_models_and_the_legend_every_group_once():
    two = pd.concat([models(), models(panel=EVIL, y=[0.1, 0.2, 0.15])])
    figure = plots.trend(two, pd.concat([line(), line(panel=EVIL, value=[0.1, 0.2, 0.3])]), **TITLES)
    first, _ = traces(figure, "markers", "x2")
    np.testing.assert_allclose(first.y, special.logit([0.1, 0.2]))
    np.testing.assert_allclose(traces(figure, "lines", "x2")[-1].y, special.logit([0.1, 0.2, 0.3]))
    assert figure.layout.yaxis.range != figure.layout.yaxis2.range
    named = [t.name for t in figure.data if t.showlegend is not False]
    assert len(named) == len(set(named)) == 2
    assert figure.layout.annotations[0].text == "V2" and "<img" not in figure.to_json()


@pytest.mark.parametrize("wrong", [0.0, 1.0, np.nan, 63.3])
def test_an_accuracy_that_has_no_place_on_the_axis_is_named(wrong):
    with pytest.raises(ValueError, match=rf"y of 'b' is {wrong}, allowed is between 0 and 1 on a logit axis"):
        plots.trend(models(y=[0.3, wrong, 0.5]), line(), **TITLES)


@pytest.mark.parametrize(("low", "high"), [(0.55, 0.85), (0.005, 0.9), (0.2, 0.97), (0.44, 0.84)])
def test_tick_labels_stay_apart(low, high):
    axis = _trends._axis(pd.Series([low, high]), special.logit, most=5)
    assert 3 <= len(axis["tickvals"]) <= 6
    assert (np.diff(axis["tickvals"]) >= np.ptp(axis["range"]) / 6 - 1e-12).all()


def test_forests_give_each_panel_its_rows_and_all_the_same_lines():
    table = pd.DataFrame({"value": [0.05, 0.3, 0.06], "low": [0.04, 0.2, 0.05], "high": [0.06, 0.4, 0.07], "n": 75})
    table = table.assign(interval="bootstrap 95 % (75 models)", shift=["V2", "R", "V2"], read=["mean", "mean", EVIL])
    figure = plots.forests(
        table, ["a", EVIL, "a"], panel="shift", group="read", title="t", unit="percent", reference=(0, "line")
    )
    first, second, other = figure.data
    assert list(first.x) == [0.05] and list(second.x) == [0.3] and list(other.x) == [0.06]
    assert (first.xaxis, second.xaxis, other.xaxis) == ("x", "x2", "x")
    np.testing.assert_allclose([*first.error_x.array, *first.error_x.arrayminus], 0.01)
    assert first.marker.color == second.marker.color != other.marker.color
    assert list(figure.layout.yaxis.categoryarray) == ["&lt;img src=x onerror=alert(1)&gt;", "a"]
    assert {s.x0 for s in figure.layout.shapes} == {0}
    assert figure.layout.xaxis.title.text == "t<br><sub>bootstrap 95 %, dotted: line</sub>"
    assert "<img" not in figure.to_json()


def test_paths_join_marks_in_the_order_of_the_rows_and_hover_has_both_intervals():
    table = pd.DataFrame({"series": "answers", "panel": EVIL, "label": ["0", "2", "4"], "mark": ["0", "2", ""]})
    table = table.assign(value=[0.6, 0.2, 0.3], low=0.1, high=0.7, x_value=[0, 0.2, -0.1], x_low=-0.2, x_high=0.3)
    figure = plots.paths(table, x_title="extra", y_title="found")
    (path,) = figure.data
    assert path.mode == "lines+markers+text" and [*path.x] == [0, 0.2, -0.1] and [*path.text] == ["0", "2", ""]
    np.testing.assert_allclose(path.error_y.array, [0.1, 0.5, 0.4])
    np.testing.assert_allclose(path.error_y.arrayminus, [0.5, 0.1, 0.2])
    for name in ("low", "high", "x_low", "x_high"):
        assert f"{name}=%{{customdata[" in path.hovertemplate
    assert "<img" not in figure.to_json().replace("&lt;img", "")
