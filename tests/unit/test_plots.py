"""Figures hold the data they were given, and names are never markup."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from zsr_utils import plots


EVIL = "<img src=x onerror=alert(1)>"


def estimates(values, low, high, **columns):
    return pd.DataFrame({"value": values, "low": low, "high": high, "interval": "wilson 95 %", "n": 10, **columns})


def test_a_forest_draws_points_intervals_and_its_reference():
    figure = plots.forest(estimates([0.5, 0.9], [0.4, 0.8], [0.6, 0.95]), ["a", EVIL], title="t", reference=(0.1, "r"))
    (trace,) = figure.data
    assert list(trace.x) == [0.5, 0.9]
    np.testing.assert_allclose(trace.error_x.array, [0.1, 0.05])
    assert figure.layout.shapes[0].x0 == 0.1 and "wilson 95 %, n = 10 each" in figure.layout.xaxis.title.text
    assert "<img" not in figure.to_json()


def test_a_forest_of_differences_is_in_percentage_points_around_zero():
    figure = plots.forest(estimates([-0.02, 0.0], [-0.03, 0.0], [-0.01, 0.0]), ["a", "b"], title="t", unit="points")
    assert list(figure.data[0].x) == [-2, 0] and figure.layout.shapes[0].x0 == 0
    assert figure.layout.xaxis.range[0] == -figure.layout.xaxis.range[1] < -3


def test_a_forest_of_groups_puts_them_on_one_line_and_may_pass_100_percent():
    table = estimates([0.5, 0.9, 1.2], [0.4, 0.8, 1.1], [0.6, 0.95, 1.3], model=["m", "m", EVIL])
    figure = plots.forest(table, ["a", "b", "a"], title="t", group="model", unit="share")
    one, other = figure.data
    assert list(one.y) == ["a", "b"] and list(other.y) == ["a"] and list(other.x) == [1.2]
    assert one.marker.color != other.marker.color and one.marker.symbol != other.marker.symbol
    assert list(figure.layout.yaxis.categoryarray) == ["a", "b"] and figure.layout.scattermode == "group"
    assert figure.layout.xaxis.range[0] < 0 and figure.layout.xaxis.range[1] > 1.3
    assert figure.layout.showlegend and "<img" not in figure.to_json()


def test_curves_mark_whole_steps_and_no_others():
    table = estimates([0.1, 0.2], [0, 0.1], [0.2, 0.3], block=[1, 2], g="a")
    assert list(plots.curves(table, "block", group="g", x_title="x", y_title="y").layout.xaxis.tickvals) == [1, 2]
    table = table.assign(block=[0.5, 1.25])
    assert plots.curves(table, "block", group="g", x_title="x", y_title="y").layout.xaxis.tickvals is None


def test_curves_draw_a_line_and_a_band_a_group():
    table = estimates(
        [0.1, 0.2, 0.3, 0.4], [0, 0.1, 0.2, 0.3], [0.2, 0.3, 0.4, 0.5], eps=[1, 2] * 2, g=["a", "a", EVIL, EVIL]
    )
    figure = plots.curves(table, "eps", group="g", x_title="x", y_title="y", percent=True, reference=(0.5, "half"))
    band, line, _, other = figure.data
    assert list(band.x) == [1, 2, 2, 1] and list(band.y) == [0.2, 0.3, 0.1, 0]
    assert list(line.y) == [0.1, 0.2] and list(other.y) == [0.3, 0.4]
    assert line.line.color != other.line.color and line.line.dash != other.line.dash
    assert "<img" not in figure.to_json()


def test_agreement_draws_the_line_of_equals():
    table = pd.DataFrame({"sample_id": ["s", EVIL], "a": [1.0, 2.0], "b": [2.0, 4.0], "g": "g"})
    figure = plots.agreement(table, "a", "b", group="g", x_title="x", y_title="y")
    assert list(figure.data[0].x) == list(figure.data[0].y) == [1, 4]
    assert list(figure.data[1].y) == [2, 4] and "<img" not in figure.to_json()


def test_pictures_keep_their_values():
    pixels = np.arange(12).reshape(3, 2, 2) / 255
    np.testing.assert_array_equal(np.asarray(plots.picture(pixels)), np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0))
    signed = np.asarray(plots.signed_picture(np.array([-1.0, 0, 2]).reshape(3, 1, 1), reach=2))
    assert signed[0, 0].tolist() == [64, 128, 255]


def test_heatmap_blanks_zeros():
    figure = plots.heatmap(np.array([[3, 0], [1, 2]]), rows="ab", columns="ab", row_title="r", column_title="c")
    assert [list(r) for r in figure.data[0].text] == [["3", ""], ["1", "2"]]


def test_histogram_is_a_density():
    rng = np.random.default_rng(0)
    others = {EVIL: rng.normal(0.3, 0.1, 900)}
    figure = plots.similarity_histogram(rng.normal(0.6, 0.1, 5000), rng.normal(0, 0.1, 9000), others=others)
    assert len(figure.data) == 3 and "<img" not in figure.to_json()
    for trace in figure.data:
        assert np.sum(trace.y) * (trace.x[1] - trace.x[0]) == pytest.approx(1, abs=0.01)


def test_projection_names_every_sample():
    points = pd.DataFrame({"sample_id": ["s1", "t"], "label": 0, "modality": ["image", "text"], "x": range(2), "y": 0})
    figure = plots.projection(points, [EVIL])
    assert list(figure.data[0].text) == ["s1"] and "<img" not in figure.to_json()


def test_a_map_of_some_classes_has_no_line_in_the_legend_for_others():
    points = pd.DataFrame({"sample_id": ["s", "t"], "label": 7, "modality": ["image", "text"], "x": range(2), "y": 0})
    figure = plots.projection(points, [str(k) for k in range(9)])
    assert [t.name for t in figure.data] == ["7", "7"] and figure.data[0].marker.color == plots._style.CLASS_COLORS[0]


def test_long_names_are_short_on_a_map_and_whole_beside_the_pointer():
    points = pd.DataFrame({"sample_id": ["s", "t"], "label": 0, "modality": ["image", "text"], "x": range(2), "y": 0})
    name = "African hunting dog, hyena dog, Lycaon pictus"
    figure = plots.projection(points, [name])
    assert figure.data[0].name == "African hunting dog, hy…" and name in figure.data[0].hovertemplate
    assert figure.layout.annotations[0].text == "<b>African hunting dog, hy…</b>"


def test_names_of_class_texts_stand_away_from_their_neighbours():
    points = pd.DataFrame(
        {"sample_id": list("abc"), "label": range(3), "modality": "text", "x": [0.0, 1.0, 9.0], "y": [0.0, 0.1, 5.0]}
    )
    left, right, above = plots.projection(points, ["left", "right", "above"]).layout.annotations
    assert (left.xanchor, right.xanchor) == ("right", "left") and left.xshift < 0 < right.xshift
    assert above.text == "<b>above</b>" and (above.x, above.y) == (9, 5) and above.xshift > 0


def luminance(color):
    """Of sRGB, as WCAG defines it."""
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_every_colour_of_a_series_or_class_has_a_partner_that_is_seen_on_a_dark_page():
    carried = plots._style.TEMPLATE.layout.meta["dark"]
    page = luminance(carried["#ffffff"])
    colors = [*plots._style.CLASS_COLORS, *(color for color, _, _ in plots._style.SERIES), plots._style.TEXT]
    for color in colors:
        assert (luminance(carried[color.lower()]) + 0.05) / (page + 0.05) > 4.5, color
    partners = [carried[c.lower()] for c in plots._style.CLASS_COLORS]
    assert len(set(partners)) == len(partners)


def test_thumbnails_are_those_of_the_samples_that_have_a_point():
    shades = {"a": (250, 0, 0), "b": (0, 250, 0), "c": (0, 0, 250), "<d>": (250, 250, 0)}
    samples = [(name, Image.new("RGB", (60, 30), shade), 0) for name, shade in shades.items()]
    points = pd.DataFrame({"sample_id": ["c", "a", "<d>"], "label": 0, "modality": "image", "x": range(3), "y": 0})
    figure = plots.with_thumbnails(plots.projection(points, ["one"]), samples[:2], samples[2:], size=16)
    found = figure.layout.meta["thumbnails"]
    assert found["ids"] == ["a", "c", "&lt;d&gt;"] and found["columns"] == 2
    sprite = Image.open(io.BytesIO(base64.b64decode(found["sprite"].split(",")[1]))).convert("RGB")
    assert sprite.size == (32, 32)
    for name, (x, y) in zip(("a", "c", "<d>"), ((8, 8), (24, 8), (8, 24))):
        assert np.abs(np.subtract(sprite.getpixel((x, y)), shades[name])).max() < 12


def test_a_figure_of_too_many_samples_opens_no_picture():
    points = pd.DataFrame({"sample_id": list("abc"), "label": 0, "modality": "image", "x": range(3), "y": 0})
    opened = (pytest.fail("a picture was opened") for _ in range(1))
    assert plots.with_thumbnails(plots.projection(points, ["one"]), opened, limit=2).layout.meta is None


def test_a_gallery_keeps_small_pictures_exactly_and_photographs_small():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    photograph = Image.fromarray(noise).resize((16, 16)).resize((256, 256), Image.Resampling.BICUBIC)
    shown = plots.gallery([Image.fromarray(noise[:64, :64]), photograph], ["small", "large"]).data
    small, large = (base64.b64decode(text) for text in re.findall('base64,([^"]+)', shown))
    assert (np.asarray(Image.open(io.BytesIO(small))) == noise[:64, :64]).all()
    apart = np.asarray(Image.open(io.BytesIO(large)).convert("RGB"), dtype=float) - np.asarray(photograph)
    assert np.abs(apart).mean() < 3
    photograph.save(exact := io.BytesIO(), "PNG", optimize=True)
    assert len(large) < len(exact.getvalue()) / 3


def test_gallery_escapes_captions_and_has_alternative_text():
    shown = plots.gallery([Image.new("RGB", (8, 8))], [f"{EVIL}\nsecond line"]).data
    assert "<img src=x" not in shown and 'alt="&lt;img' in shown and "<br>second line" in shown
    with pytest.raises(ValueError, match="1 images and 2 captions"):
        plots.gallery([Image.new("RGB", (8, 8))], ["a", "b"])
