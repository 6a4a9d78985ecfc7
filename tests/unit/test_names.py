"""A name is data wherever it goes: into Markdown, HTML, figures, YAML, numbers and folders."""

import html

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies as st
from markdown_it.renderer import RendererHTML
from markupsafe import Markup
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from tiny import tiny_images, tiny_model

from zsr_utils import plots, records, run, scores
from zsr_utils._text import as_html, markdown
from zsr_utils.records.chapters import ROOT
from zsr_utils.study import Study


LISTED = [
    "<script>alert(1)</script>", "R$20 note $5", "a*b*c", "# heading", "{x}", "{doc}`x`", "1. a", "- a", "+ a", "> a",
    "| a | b |", "```", "~~~", "===", "a\\", "\\(x\\)", "&amp;", "&#36;", "[a](b)", "![a](b)", "[^1]", "<a@b.c>",
    "%{x}", "{{ x }}", "$$", "__init__", "5\" o'clock", "--", "...", "no", "007", "1e3", "null", "~", "猫",
    "é", "a" * 300,
]  # fmt: skip
MARKS = "ab19 _*`#$%&{}<>[]()|\\/@^~+-=!?.,:;'\"éß猫²…—"
TEXT = st.one_of(
    st.text(MARKS, max_size=12), st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)
)
NAME = st.one_of(st.sampled_from(LISTED), TEXT).map(lambda name: " ".join(name.split())).filter(bool)
EXTENSIONS = yaml.safe_load((ROOT / "_config.yml").read_text())["parse"]["myst_enable_extensions"]
PARSER = create_md_parser(MdParserConfig(enable_extensions=set(EXTENSIONS)), RendererHTML)


def steady(examples: int) -> settings:
    """The same examples in every run, however slow the machine is."""
    fixtures = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=fixtures
    )


@steady(100)
@given(NAME)
def test_a_name_in_markdown_comes_out_as_it_was(name):
    safe, shown = markdown(name), html.escape(name, quote=False)
    whole, inside = (PARSER.render(text) for text in (safe, f"x *{safe}* (**{safe}**), “{safe}”."))
    assert html.unescape(whole) == f"<p>{html.unescape(shown)}</p>\n"
    assert inside.count("<") == 6
    assert html.unescape(inside) == f"<p>x <em>{name}</em> (<strong>{name}</strong>), “{name}”.</p>\n"


@steady(100)
@given(NAME)
def test_a_name_in_html_and_in_a_figure_comes_out_as_it_was(name):
    assert html.unescape(as_html(name)) == name and not set(as_html(name)) & set("<>{}$\"'`")


@steady(50)
@given(NAME)
def test_a_name_is_the_text_of_a_parameter_on_the_command_line_and_in_a_file(tmp_path, name):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"dataset": name}, allow_unicode=True), "utf-8")
    for given_as in (([], [["dataset", name]]), ([tmp_path / "p.yaml"], [])):
        assert run.read_parameters(*given_as, {"dataset": "tabletop"}) == {"dataset": name}


@steady(5)
@given(st.sets(NAME, min_size=40, max_size=60))
@example(set(LISTED))
def test_different_addresses_have_different_folders_that_can_be_made_and_read(tmp_path_factory, names):
    tmp_path = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSR_RESULTS", str(tmp_path))
        folders_of(names, tmp_path)


def folders_of(names, tmp_path):
    every = {*names, "photos/day 1", "photos/day-1", "/a/b", "/a-b", "a-b", "..", ".", "", "/", "A", "\udce9"}
    every = sorted({name.rstrip("/") or name for name in every})
    folders = [records.result_folder("m", name, "01-x") for name in every]
    folders += [records.result_folder(name, "d", "01-x") for name in every]
    folders += [records.result_folder("a", "d", "01-x", "b")]
    assert len({folder.parent.name for folder in folders}) == 2 * len(every) + 1
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        assert folder.parent.parent == tmp_path and len(folder.parent.name.encode()) < 100
    assert records.safe_name("ViT-B-32") == "ViT-B-32" and records.safe_name("/x/photos 1").startswith("x-photos-1-")


NUMBERS = ["1", "10", "19"]


@pytest.fixture
def table():
    row = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "interval": "i", "unit": "", "panel": "p"}
    return pd.DataFrame([row] * 3).assign(name=NUMBERS)


def test_names_that_are_digits_stay_names_on_every_axis(table):
    heat = plots.heatmap(np.eye(3, dtype=int), rows=NUMBERS, columns=NUMBERS, row_title="r", column_title="c")
    bars = plots.bars(table.assign(g="g"), "name", group="g", x_title="x", y_title="y")
    axes = [
        plots.forest(table, NUMBERS, title="t").layout.yaxis, heat.layout.xaxis, heat.layout.yaxis, bars.layout.xaxis,
        plots.forests(table, NUMBERS, panel="panel", title="t").layout.yaxis,
    ]  # fmt: skip
    assert [axis.type for axis in axes] == ["category"] * 5


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    monkeypatch.setenv("ZSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("zsr_utils.study.load_model", lambda name, tag, **_: tiny_model(name=name))
    monkeypatch.setattr("zsr_utils.study.load_dataset", lambda *_, **__: tiny_images())
    return Study("01-x", {"model": "one_model", "models": ["other_model", "third@tag"], "dataset": "d"})


def test_words_of_a_sentence_are_data_and_markdown_is_what_says_so(study, monkeypatch):
    said = []
    monkeypatch.setattr(study.run, "say", said.append)
    study.say("*{a}* {b[0]} {c} {n:.1f}", a="a*b {x}", b=["$1"], c=Markup("**c**"), n=2)
    study.say(Markup("{a} *is*"))
    assert said == [r"*a\*b \{x\}* \$1 **c** 2.0", "{a} *is*"]
    for name in LISTED:
        study.say("{name}", name=name)
        assert said[-1] == markdown(name)


def test_classes_whose_names_differ_in_marks_alone_have_numbers_of_their_own(study):
    classes = ["C", "C++", "c#", "猫", "犬", "a/b", "/", "race_car", "race car"]
    rows = pd.DataFrame([scores.proportion(1, 2).__dict__ | {"truth": name} for name in classes])
    first, again = (study.keep(rows, "zero_shot/class/{truth}").name.tolist() for _ in range(2))
    assert first == again and len(set(first)) == len(study.run.metrics) == len(classes)
    assert first[0] == "zero_shot/class/c" and first[1].startswith("zero_shot/class/c_")
    assert study.keep(rows.assign(model="other_model"), "a/b", ["model"]).label.iloc[0] == "other_model"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"models": "[]"}, r"models is '\[\]' \(str\), allowed is a value of type list"),
        ({"models": ["a", 3]}, "models holds 3, allowed are names such as"),
        ({"dataset": 7}, r"dataset is 7 \(int\), allowed is a value of type str such as 'tabletop'"),
        ({"limit": "3"}, r"limit is '3' \(str\), allowed is a value of type int"),
        ({"pretrained": "openai"}, "pretrained is 'openai', but one brings its own weights: allowed is ''"),
        ({"models": ["two@openai"]}, "pretrained is 'openai', but two brings its own weights: allowed is ''"),
    ],
)
def test_a_first_cell_refuses_what_papermill_gives_it(monkeypatch, wrong, words):
    monkeypatch.setattr("zsr_utils.study.load_model", lambda name, *_, **__: tiny_model(name=name, trained_on="d"))
    monkeypatch.setattr("zsr_utils.study.load_dataset", lambda *_, **__: tiny_images())
    with pytest.raises(ValueError, match=words):
        Study("01-x", {"model": "one", "dataset": "d", **wrong})
