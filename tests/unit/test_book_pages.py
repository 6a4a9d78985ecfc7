"""The generated pages hold the numbers of the records, and names are never markup."""

import json
import re

import pytest

from zsr_utils.book import _chromium, _notebook
from zsr_utils.book._build import chapter_names, table_of_contents
from zsr_utils.book._chapters import Chapter, caption, chapters, figures_of, specification
from zsr_utils.book._chromium import pages, print_book
from zsr_utils.book._notebook import answer, answers, framed, repository, with_links
from zsr_utils.book._pages import comparison, every_number, figure_index, headline


EVIL = "<img src=x onerror=alert(1)>"
STORED = (
    '<div><div id="a" class="plotly-graph-div"></div><script>if (x) { Plotly.newPlot("a", '
    '[{"x":[1,2],"name":"\\u003cb\\u003e"}], {"height":300,"template":{"layout":{"height":400}},'
    '"xaxis":{"title":{"text":"AUROC\\u003cbr\\u003e\\u003csub\\u003en = 3\\u003c\\u002fsub\\u003e"}}}, '
    '{"responsive":true}) }</script></div>'
)


def metric(name: str, value: float = 0.5, **more) -> dict:
    given = {"low": value - 0.1, "high": value + 0.1, "interval": "wilson 95 %", "n": 1200, "unit": "fraction"}
    return {"name": name, "value": value, **given, **more}


def chapter(root, *, folder="m@d", name="07-shift", model="m", metrics=(), rows=("samples", "bands")) -> Chapter:
    place = root / "results" / folder / name
    place.mkdir(parents=True)
    cells = [
        {"cell_type": "markdown", "source": ["# Under *shift*\n", "\n", "How far?"]},
        {"cell_type": "code", "source": "", "outputs": []},
        {"cell_type": "markdown", "source": "text\n\n## By style\n"},
        {"cell_type": "code", "source": "", "outputs": [{"data": {"text/html": STORED}}, {"name": "stdout"}]},
    ]
    (place / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
    (place / "metrics.json").write_text(json.dumps(list(metrics or [metric("shift/accuracy")])))
    (place / "provenance.json").write_text(json.dumps({"model": model, "pretrained": None, "dataset": "d"}))
    for stem in rows:
        (place / f"{stem}.parquet").touch()
    return Chapter(place.relative_to(root), root)


def test_a_chapter_knows_its_title_its_run_and_its_files(tmp_path):
    found = chapter(tmp_path)
    assert (found.title, found.number, found.run) == ("Under shift", "7", "m on d")
    assert found.docname == "results/m@d/07-shift/07-shift"
    names = [p.name for p in found.files()]
    assert names == ["07-shift.ipynb", "samples.parquet", "bands.parquet", "metrics.json", "provenance.json"]


def test_a_figure_is_read_back_as_it_was_stored(tmp_path):
    (figure,) = chapter(tmp_path).figures
    assert figure.spec["data"] == [{"x": [1, 2], "name": "<b>"}] and figure.height == 300
    assert (figure.label, figure.anchor, figure.caption) == ("7.1", "figure-1", "By style: AUROC")


def test_a_stored_figure_without_a_call_is_refused():
    with pytest.raises(ValueError, match="a call of Plotly"):
        specification("<div class='plotly-graph-div'></div>")


def test_a_caption_is_plain_text():
    layout = {"yaxis": {"title": {"text": "a&lt;b"}}, "xaxis": {"title": {"text": "sigma<sub>2</sub>"}}}
    assert caption("Drift", {"layout": layout}) == "Drift: a<b against sigma 2"


def test_links_stand_below_the_title_and_the_rest_is_kept(tmp_path):
    found = chapter(tmp_path)
    notebook = with_links(found.notebook, found, "someone/zsr@dev")
    title, _, head, _, *rest = notebook["cells"][0]["source"].split("\n")
    assert title == "# Under *shift*" and "\n".join(rest).strip().startswith("How far?\n")
    assert 'href="https://colab.research.google.com/github/someone/zsr/blob/dev/notebooks/07-shift.ipynb"' in head
    assert re.findall(r'href="([^"/]+)" download', head) == [
        "07-shift.ipynb", "samples.parquet", "bands.parquet", "metrics.json",
    ]  # fmt: skip
    assert [f.anchor for _, f in figures_of(notebook, "7")] == ["figure-1"]


def test_without_a_known_repository_there_is_no_way_to_colab(tmp_path):
    found = chapter(tmp_path)
    assert "colab" not in with_links(found.notebook, found, "")["cells"][0]["source"]


def test_a_figure_keeps_its_html_and_gets_a_picture_or_a_word(tmp_path):
    (figure,) = chapter(tmp_path).figures
    with_picture, without = framed(STORED, figure, True), framed(STORED, figure, False)
    assert STORED in with_picture and STORED in without
    assert 'src="figure-1.webp" alt="Figure 7.1. By style: AUROC"' in with_picture and "needs JavaScript" in without
    assert all('id="figure-1"' in text and 'href="samples.parquet"' in text for text in (with_picture, without))
    assert "figure-1.webp" not in without


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("someone/zsr", "someone/zsr@main"),
        ("someone/zsr@v1.0", "someone/zsr@v1.0"),
        ("https://github.com/someone/my.zsr.git", "someone/my.zsr@main"),
        ("git@github.com:someone/zsr.git@dev/x", "someone/zsr@dev/x"),
    ],
)
def test_the_repository_is_read_from_the_setting(monkeypatch, given, wanted):
    monkeypatch.setenv("ZSR_REPOSITORY", given)
    assert repository() == wanted


def test_a_setting_that_is_no_repository_is_refused(monkeypatch):
    monkeypatch.setenv("ZSR_REPOSITORY", "https://example.org/zsr/x")
    with pytest.raises(ValueError, match="allowed is 'owner/name'"):
        repository()


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ("https://github.com/a/b.git\n", "a/b@main"),
        ("git@github.com:a/b\n", "a/b@main"),
        ("/srv/b.git\n", ""),
        ("", ""),
    ],
)
def test_only_an_origin_on_github_is_a_repository(monkeypatch, origin, wanted):
    monkeypatch.delenv("ZSR_REPOSITORY", raising=False)
    monkeypatch.setattr(_notebook.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": origin}))
    assert repository() == wanted


def test_cards_show_the_listed_numbers_and_link_to_their_chapter(tmp_path):
    found = chapter(tmp_path, metrics=[metric("a/b"), metric("shift/accuracy", 0.25)])
    text = headline([[found]], {"07-shift": {"numbers": {"shift/accuracy": "accuracy on sketches"}}})
    assert text.count("grid-item-card") == 1 and ":link: /results/m@d/07-shift/07-shift\n:link-type: doc" in text
    assert r"25\.0 \%" in text and r"\[15\.0\, 35\.0\], n = 1,200" in text and "accuracy on sketches" in text


@pytest.mark.parametrize("labels", [{}, {"07-shift": {"numbers": {"of/another_run": "x"}}}])
def test_a_chapter_without_listed_numbers_shows_its_first(tmp_path, labels):
    found = chapter(tmp_path, metrics=[metric("a/first"), metric("a/second")])
    text = headline([[found]], labels)
    assert r"a\/first" in text and "second" not in text


def test_a_chapter_begins_with_its_answer_in_numbers_and_a_picture(tmp_path):
    found = chapter(tmp_path, metrics=[metric("a/b"), metric("shift/accuracy", 0.25)])
    known = {"07-shift": {"numbers": {"shift/accuracy": f"accuracy on {EVIL}"}, "figure": 1}}
    text = answer(found, known, {found.figures[0].digest: ""})
    assert "<strong>25.0 %</strong> <span>[15.0, 35.0]</span> accuracy on &lt;img src=x" in text and "a/b" not in text
    assert '<a href="#figure-1"><img src="figure-1.webp" alt="Figure 7.1. By style: AUROC"' in text
    assert "<img" not in answer(found, known, {})  # without a picture the numbers stand alone
    shown = "".join(with_links(json.loads(json.dumps(found.notebook)), found, "")["cells"][0]["source"])
    assert shown.index("How far?") < shown.index("zsr-answer")


def test_answers_are_given_for_chapters_that_exist():
    assert set(answers()) <= set(chapter_names())
    for known in answers().values():
        assert known["numbers"] and known["figure"] >= 1


def test_every_number_is_in_the_table_unrounded_for_sorting(tmp_path):
    one = chapter(tmp_path, metrics=[metric("a/b", 1 / 3), metric("a/c", 2.0, unit="rank", interval=EVIL)])
    text = every_number([[one]])
    assert text.count("<tr>") == 3 and f'data-value="{1 / 3!r}">0.3333<' in text and 'data-value="1200">1,200<' in text
    assert "../../results/m@d/07-shift/metrics.json" in text and EVIL not in text and "&lt;img src=x" in text


def test_the_index_links_every_figure_to_its_anchor(tmp_path):
    found = chapter(tmp_path)
    (figure,) = found.figures
    text = figure_index([[found]], {figure.digest: ""})
    assert 'href="../../results/m@d/07-shift/07-shift.html#figure-1"' in text and "figure-1.webp" in text
    assert "Figure 7.1. By style: AUROC" in text and "figure-1.webp" not in figure_index([[found]], {})


def test_models_stand_side_by_side_where_both_have_the_number(tmp_path):
    one = chapter(tmp_path, metrics=[metric("a/b", 0.5), metric("a/own", 0.6)])
    other = chapter(tmp_path, folder="e@d", model=EVIL, metrics=[metric("a/b", 0.25)])
    alone = chapter(tmp_path, name="09-text")
    text = comparison([[one, alone], [other]])
    row = re.search(r"<tr><td><code>a/b</code></td>(.*?)</tr>", text)[1]
    assert re.findall(r">([^<]+)</td>", row) == ["50.0 % [40.0, 60.0]", "25.0 % [15.0, 35.0]"]
    assert "a/own" not in text and "1 numbers of one model alone" in text and EVIL not in text
    assert r"Not measured: \<img src\=x" in text


def test_the_contents_give_every_model_a_part_and_the_comparison_a_page(tmp_path):
    books = [[chapter(tmp_path)], [chapter(tmp_path, folder="e@d", model="e")]]
    captions = [p.get("caption") for p in table_of_contents(books)["parts"]]
    assert captions == [None, "Comparison", "m on d", "e on d", "Reference"]
    alone = table_of_contents(books[:1])["parts"]
    assert [p.get("caption") for p in alone] == [None, "Chapters", "Reference"]
    assert alone[1]["chapters"] == [{"file": "results/m@d/07-shift/07-shift"}]


def test_chapters_that_were_not_run_are_left_out(tmp_path):
    chapter(tmp_path)
    assert [c.name for c in chapters("results/m@d", tmp_path, ["01-none", "07-shift"])] == ["07-shift"]
    assert "01-zero-shot-baseline" in chapter_names()


def test_without_a_browser_nothing_is_drawn_and_nothing_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_chromium, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(_chromium, "chromium", lambda: None)
    _chromium.draw(chapter(tmp_path).figures, tmp_path / "plotly.js")
    assert "1 figures get no picture for print" in capsys.readouterr().err and _chromium.pictures() == {}
    with pytest.raises(RuntimeError, match="Chromium, which is not installed"):
        print_book(tmp_path, tmp_path / "pdf")


def test_pictures_of_figures_that_are_gone_are_removed(tmp_path, monkeypatch):
    (figure,) = chapter(tmp_path).figures
    monkeypatch.setattr(_chromium, "PICTURES", tmp_path)
    for stem in (figure.digest, "gone"):
        (tmp_path / f"{stem}.webp").touch()
    _chromium.draw([figure], tmp_path / "plotly.js")
    assert set(_chromium.pictures()) == {figure.digest}


def test_pages_come_in_the_order_of_the_menu(tmp_path):
    (tmp_path / "book").mkdir()
    menu = "".join(f'<a class="reference internal" href="{h}">' for h in ("how.html", "../results/a.html", "#"))
    (tmp_path / "book" / "preface.html").write_text(f'<nav class="bd-links">{menu}</nav><a href="x.html">')
    assert [p.relative_to(tmp_path).as_posix() for p in pages(tmp_path)] == [
        "book/preface.html", "book/how.html", "results/a.html",
    ]  # fmt: skip
