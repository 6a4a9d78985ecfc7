"""Figures hold the data they were given, and names are never markup."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from zsr_utils import plots


EVIL = "<img src=x onerror=alert(1)>"


def test_accuracies_draw_points_intervals_and_chance():
    table = pd.DataFrame({"value": [0.5, 0.9], "low": [0.4, 0.8], "high": [0.6, 0.95], "n": [10, 10]})
    figure = plots.accuracies(table, ["a", EVIL], chance=0.1)
    (trace,) = figure.data
    assert list(trace.x) == [0.5, 0.9]
    np.testing.assert_allclose(trace.error_x.array, [0.1, 0.05])
    assert figure.layout.shapes[0].x0 == 0.1 and "n = 10 each" in figure.layout.xaxis.title.text
    assert "<img" not in figure.to_json()


def test_heatmap_blanks_zeros():
    figure = plots.heatmap(np.array([[3, 0], [1, 2]]), rows="ab", columns="ab", row_title="r", column_title="c")
    assert [list(r) for r in figure.data[0].text] == [["3", ""], ["1", "2"]]


def test_histogram_is_a_density():
    rng = np.random.default_rng(0)
    figure = plots.similarity_histogram(rng.normal(0.6, 0.1, 5000), rng.normal(0, 0.1, 9000))
    for trace in figure.data:
        assert np.sum(trace.y) * (trace.x[1] - trace.x[0]) == pytest.approx(1, abs=0.01)


def test_projection_names_every_sample():
    points = pd.DataFrame(
        {"sample_id": ["s1", "t"], "label": [0, 0], "modality": ["image", "text"], "x": [0, 1], "y": [0, 1]}
    )
    figure = plots.projection(points, [EVIL])
    assert list(figure.data[0].text) == ["s1"] and "<img" not in figure.to_json()


def test_gallery_escapes_captions_and_has_alternative_text():
    shown = plots.gallery([Image.new("RGB", (8, 8))], [f"{EVIL}\nsecond line"]).data
    assert "<img src=x" not in shown and 'alt="&lt;img' in shown and "<br>second line" in shown
    with pytest.raises(ValueError, match="1 images and 2 captions"):
        plots.gallery([Image.new("RGB", (8, 8))], ["a", "b"])


def test_changes_are_in_percentage_points_around_zero():
    table = pd.DataFrame({"value": [-0.02, 0.0], "low": [-0.03, 0.0], "high": [-0.01, 0.0]})
    figure = plots.changes(table, ["a", "b"], title="change")
    assert list(figure.data[0].x) == [-2, 0] and figure.layout.shapes[0].x0 == 0
    assert figure.layout.xaxis.range[0] == -figure.layout.xaxis.range[1] < -3
