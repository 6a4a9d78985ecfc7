"""The generated pages hold the numbers of the records, names are never markup, and the list of chapters is right."""

import hashlib
import json
import re

import pytest
import yaml

from zsr_utils.book import __main__, _build, _chromium, _notebook
from zsr_utils.book._chapters import Chapter, caption, chapters, figures_of, specification
from zsr_utils.book._chromium import pages, print_book
from zsr_utils.book._notebook import folded, prepared, repository
from zsr_utils.book._pages import generated, rendered, table_of_contents
from zsr_utils.records.chapters import chosen, read_chapters


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


ENTRY = {"numbers": {"shift/accuracy": {"says": "accuracy on sketches"}}, "figure": 1}


def chapter(
    root, *, folder="m@d", name="07-shift", model="m", metrics=(), rows=("samples", "bands"), data="d", **entry
) -> Chapter:
    place = root / "results" / folder / name
    place.mkdir(parents=True)
    cells = [
        {"cell_type": "markdown", "source": ["# Under *shift*\n", "\n", "How far?"]},
        {"cell_type": "code", "source": "", "outputs": []},
        {"cell_type": "markdown", "source": "text\n\n## By style\n"},
        {"cell_type": "code", "source": "", "outputs": [{"data": {"text/html": STORED}}, {"name": "stdout"}]},
    ]
    (place / f"{name}.ipynb").write_text(json.dumps({"cells": [c | {"metadata": {}} for c in cells]}))
    (place / "metrics.json").write_text(json.dumps(list(metrics or [metric("shift/accuracy")])))
    facts = {
        "model": model,
        "pretrained": None,
        "dataset": data,
        "images": 1200,
        "seconds": 73.6,
        "device": "cpu (x86)",
    }
    (place / "provenance.json").write_text(json.dumps(facts))
    for stem in rows:
        (place / f"{stem}.parquet").touch()
    return Chapter(place.relative_to(root).as_posix(), root, ENTRY | entry)


def test_a_chapter_knows_its_title_its_run_and_its_files(tmp_path):
    found = chapter(tmp_path)
    assert (found.title, found.number, found.run) == ("Under shift", "7", "m on d")
    assert found.docname == "results/m@d/07-shift/07-shift"
    names = [p.name for p in found.files]
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


def test_of_a_profile_that_is_not_the_default_a_chapter_says_so(tmp_path):
    assert chapter(tmp_path, folder="tabletop-full/m@d").run == "m on d (tabletop-full)"
    assert chapter(tmp_path, folder="d/m@d").run == "m on d"  # a profile that is called as its data set


def test_links_and_cost_stand_below_the_title_and_the_rest_is_kept(tmp_path):
    found = chapter(tmp_path)
    notebook = prepared(found.notebook, found, "someone/zsr@dev", {})
    title, head, rest = notebook["cells"][0]["source"].partition('<p class="zsr-head">')
    head, _, rest = rest.partition("</p>")
    assert title.strip() == "# Under *shift*" and rest.strip().startswith("How far?\n")
    assert "m on d, 1,200 images, 74 s on cpu (x86)" in head
    assert 'href="https://colab.research.google.com/github/someone/zsr/blob/dev/notebooks/07-shift.ipynb"' in head
    assert re.findall(r'href="([^"/]+)" download', head) == [
        "07-shift.ipynb", "samples.parquet", "bands.parquet", "metrics.json",
    ]  # fmt: skip
    assert [f.anchor for _, f in figures_of(notebook, "7")] == ["figure-1"]


def test_code_is_folded_but_for_the_method():
    cells = [
        ("markdown", "# A\n\n## What you need", []),
        ("code", "seed = 0", ["parameters"]),
        ("code", "seed = 1", ["injected-parameters"]),
        ("markdown", "## Setup", []),
        ("code", "import zsr_utils as zsr", []),
        ("markdown", "## Accuracy", []),
        ("code", "rows = study.measure(conditions)", ["method"]),
        ("code", "plots.forest(rows)", []),
        ("code", "print(1)", ["keep_output"]),
        ("code", "run.table().round(4)", []),
        ("code", "chapter.beside_the_paper(study.run.table())", []),
        ("code", "table = run.table()", ["remove-input"]),
        ("code", "x", ["hide-output"]),
    ]  # fmt: skip
    notebook = {"cells": [{"cell_type": k, "source": [s], "metadata": {"tags": [*t]}} for k, s, t in cells]}
    found = [cell["metadata"]["tags"][-1] for cell in folded(notebook)["cells"] if cell["cell_type"] == "code"]
    assert found == [
        "hide-cell", "hide-cell", "hide-cell", "method", "hide-input", "hide-cell", "hide-cell", "hide-input",
        "remove-input", "hide-output",
    ]  # fmt: skip


def test_without_a_known_repository_there_is_no_way_to_colab(tmp_path):
    found = chapter(tmp_path)
    assert "colab" not in prepared(found.notebook, found, "", {})["cells"][0]["source"]


def test_a_figure_keeps_its_html_and_gets_a_picture_or_a_word(tmp_path):
    (figure,) = chapter(tmp_path).figures
    with_picture, without = (rendered("figure.html", figure=figure, stored=STORED, pictured=p) for p in (True, False))
    assert STORED in with_picture and STORED in without
    assert 'src="figure-1.webp" alt="Figure 7.1. By style: AUROC"' in with_picture and "needs JavaScript" in without
    assert all('id="figure-1"' in text and 'href="samples.parquet"' in text for text in (with_picture, without))
    assert "figure-1.webp" not in without


def test_all_numbers_of_a_chapter_are_a_folded_box_at_its_end():
    outputs = [{"data": {"text/html": html}} for html in ('<table class="dataframe"></table>', "<details></details>")]
    cell = {"cell_type": "code", "source": ["study.close()"], "metadata": {}, "outputs": outputs}
    (found,) = folded({"cells": [cell]})["cells"]
    table, provenance = (output["data"]["text/html"] for output in found["outputs"])
    assert found["metadata"]["tags"] == ["remove-input"] and provenance == "<details></details>"
    assert table.startswith("<details") and table.endswith("</table></details>") and "All numbers" in table


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


def test_the_first_page_shows_one_number_a_chapter_and_links_to_it(tmp_path):
    numbers = {"shift/accuracy": {"says": "accuracy on sketches"}, "a/b": {"says": "another"}}
    found = chapter(tmp_path, metrics=[metric("a/b"), metric("shift/accuracy", 0.25)], numbers=numbers)
    text = generated([[found]], {})["headline.md"]
    assert text.count("* - ") == 2 and "* - {doc}`/results/m@d/07-shift/07-shift`\n  - accuracy on sketches" in text
    assert r"**25\.0 \%** \[15\.0\, 35\.0\]" in text and "another" not in text


def test_the_card_holds_every_headline_number_and_says_what_is_missing(tmp_path):
    numbers = {"shift/accuracy": {"says": f"of {EVIL}", "best": 1, "chance": 0.1}}
    found = chapter(tmp_path, metrics=[metric("shift/accuracy", 0.25)], numbers=numbers)
    text = generated([[found]], {}, {"07-shift": found.entry, "08-other": ENTRY})["card.md"]
    assert (
        "<td>25.0 % <span>[15.0, 35.0]</span></td>" in text
        and "<td>10\N{NO-BREAK SPACE}%</td><td>100\N{NO-BREAK SPACE}%</td>" in text
    )
    assert EVIL not in text and "- `08-other`: it has no result" in text
    assert "\n\n" not in text[text.index("<div") : text.index("</div>")], "Markdown would end the table there"


def test_the_card_of_two_models_says_what_is_decided(tmp_path):
    one, other = (
        chapter(tmp_path, folder=f"{m}@d", model=m, metrics=[metric("shift/accuracy", v, low=v - 0.01, high=v + 0.01)])
        for m, v in (("m", 0.5), ("e", 0.3))
    )
    one.entry["numbers"]["shift/accuracy"]["better"] = "more"
    pages = generated([[one], [other]], {})
    assert "of 1 numbers, 1 better." in pages["card.md"] and '<td class="zsr-better">better</td>' in pages["card.md"]
    assert "<td>+20.0 points <span>[18.6, 21.4]</span>" in pages["card.md"] and "  - better" in pages["headline.md"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"numbers": {"shift/acuracy": {"says": "x"}}},
            "07-shift recorded no number 'shift/acuracy': nearest are shift/accuracy.",
        ),
        ({"figure": 2}, "chapters.yaml: results/m@d/07-shift has no figure 2: its run drew 1."),
    ],
)
def test_an_answer_that_the_run_does_not_have_is_refused_before_anything_is_drawn(
    tmp_path, monkeypatch, capsys, entry, words
):
    chapter(tmp_path, data="tabletop")
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    monkeypatch.setattr(__main__, "read_chapters", lambda: {"07-shift": ENTRY | entry})
    assert __main__.main([str(tmp_path / "results" / "m@d")]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_folders_without_results_or_outside_of_the_project_are_one_sentence(tmp_path, capsys):
    assert __main__.main(["results/nowhere"]) == __main__.main([str(tmp_path)]) == 2
    nowhere, outside = capsys.readouterr().err.splitlines()
    assert "There are no results in 'results/nowhere'" in nowhere and f"no results in '{tmp_path}'" in outside


def test_a_chapter_begins_with_its_answer_in_numbers_and_a_picture(tmp_path):
    numbers = {"shift/accuracy": {"says": f"accuracy on {EVIL}"}}
    found = chapter(tmp_path, metrics=[metric("a/b"), metric("shift/accuracy", 0.25)], numbers=numbers)
    text = rendered("answer.html", chapter=found, pictured={found.figures[0].digest: ""})
    assert "<strong>25.0 %</strong> <span>[15.0, 35.0]</span> accuracy on &lt;img src=x" in text and "a/b" not in text
    assert '<a href="#figure-1"><img src="figure-1.webp" alt="Figure 7.1. By style: AUROC"' in text
    assert "<img" not in rendered("answer.html", chapter=found, pictured={})  # the numbers stand alone
    shown = prepared(json.loads(json.dumps(found.notebook)), found, "", {})["cells"][0]["source"]
    assert shown.index("How far?") < shown.index("zsr-answer")


def test_every_number_is_in_the_table_unrounded_for_sorting(tmp_path):
    metrics = [metric("shift/accuracy", 1 / 3), metric("a/c", 2.0, unit="rank", interval=EVIL)]
    text = generated([[chapter(tmp_path, metrics=metrics)]], {})["every-number.md"]
    assert text.count("<tr>") == 3 and f'data-value="{1 / 3!r}">0.3333<' in text and 'data-value="1200">1,200<' in text
    assert "../../results/m@d/07-shift/metrics.json" in text and EVIL not in text and "&lt;img src=x" in text
    assert "\n\n" not in text[text.index("<div") :], "Markdown would end the table there"


def test_the_index_links_every_figure_to_its_anchor(tmp_path):
    found = chapter(tmp_path)
    (figure,) = found.figures
    with_picture, without = (generated([[found]], p)["figures.md"] for p in ({figure.digest: ""}, {}))
    assert (
        'href="../../results/m@d/07-shift/07-shift.html#figure-1"' in with_picture and "figure-1.webp" in with_picture
    )
    assert "Figure 7.1. By style: AUROC" in with_picture and "figure-1.webp" not in without


def test_models_stand_side_by_side_where_both_have_the_number(tmp_path):
    one = chapter(tmp_path, metrics=[metric("shift/accuracy", 0.5), metric("a/own", 0.6)])
    other = chapter(tmp_path, folder="e@d", model=EVIL, metrics=[metric("shift/accuracy", 0.25)])
    alone = chapter(tmp_path, name="09-text")
    text = generated([[one, alone], [other]], {})["side-by-side.md"]
    row = re.search(r"<tr><td><code>shift/accuracy</code></td>(.*?)</tr>", text, re.S)[1]
    assert re.findall(r">([^<]+)</td>", row) == ["50.0 % [40.0, 60.0]", "25.0 % [15.0, 35.0]"]
    assert "a/own" not in text and "1 numbers of one model alone" in text and EVIL not in text
    assert r"Not measured: \<img src\=x" in text
    assert EVIL not in "".join(generated([[one], [other]], {}).values())


def test_the_contents_give_every_model_a_part_and_the_comparison_a_page(tmp_path):
    books = [[chapter(tmp_path)], [chapter(tmp_path, folder="e@d", model="e")]]
    captions = [p.get("caption") for p in table_of_contents(books)["parts"]]
    assert captions == [None, "In short", "m on d", "e on d", "Reference"]
    alone = table_of_contents(books[:1])["parts"]
    assert [p.get("caption") for p in alone] == [None, "In short", "Chapters", "Reference"]
    assert alone[1]["chapters"] == [{"file": "book/_generated/card"}]
    assert alone[2]["chapters"] == [{"file": "results/m@d/07-shift/07-shift"}]


def test_chapters_that_were_not_run_are_left_out(tmp_path):
    chapter(tmp_path)
    known = {"01-none": ENTRY, "07-shift": ENTRY}
    assert [c.name for c in chapters("results/m@d", tmp_path, known)] == ["07-shift"]


def test_the_first_page_of_ones_own_run_speaks_of_that_run(tmp_path):
    found = chapter(tmp_path, model="a*b")
    found.provenance["caution"] = "random weights: $1 means {nothing}"
    pages = generated([[found]], {})
    assert (
        pages["front.md"].startswith("# Zero-shot robustness of a\\*b on d\n") and "Tabletop" not in pages["front.md"]
    )
    assert "{doc}`/results/m@d/07-shift/07-shift`: 1\\,200 images" in pages["front.md"]
    assert "```{caution}\nrandom weights\\: \\$1 means \\{nothing\\}." in pages["headline.md"]
    assert all("random weights" in pages[page] for page in ("every-number.md", "headline.md"))
    assert "Caution: random weights" in rendered("answer.html", chapter=found, pictured={})
    assert table_of_contents([[found]])["root"] == "book/_generated/front"
    found.provenance.update(model="tabletop-conv", dataset="tabletop")
    assert "front.md" not in generated([[found]], {}) and table_of_contents([[found]])["root"] == "book/preface"


def test_a_caution_of_some_chapters_says_which(tmp_path):
    one, other = (chapter(tmp_path, name=name) for name in ("07-shift", "08-other"))
    other.provenance["caution"] = "few images"
    assert "```{caution}\nUnder shift: few images." in generated([[one, other]], {})["headline.md"]
    one.provenance["caution"] = "few images"
    assert "```{caution}\nfew images." in generated([[one, other]], {})["headline.md"]


def test_a_notebook_of_another_run_than_its_numbers_is_refused(tmp_path):
    found = chapter(tmp_path)
    digest = hashlib.sha256((found.path / "metrics.json").read_bytes()).hexdigest()
    facts = json.loads((found.path / "provenance.json").read_text()) | {"files": {"metrics.json": digest}}
    (found.path / "provenance.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"07-shift.ipynb' cannot be shown \(it is of another run than the numbers"):
        chapters("results/m@d", tmp_path, {"07-shift": ENTRY})


def test_results_outside_of_the_project_are_read_through_a_link_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "GENERATED", tmp_path / "generated")
    found = chapter(tmp_path / "elsewhere")
    link, again = (_build.linked(found.path.parent) for _ in range(2))
    assert link == again and link.name == "m@d" and link.is_relative_to(tmp_path / "generated")
    shown = Chapter((link / found.name).relative_to(tmp_path).as_posix(), tmp_path, ENTRY)
    assert shown.run == "m on d" and shown.metrics == found.metrics


def test_without_a_browser_nothing_is_drawn_and_nothing_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_chromium, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(_chromium, "chromium", lambda: None)
    _chromium.draw(chapter(tmp_path).figures, tmp_path / "plotly.js")
    assert "Figures 7.1 get no picture for print: Chromium is not installed" in capsys.readouterr().err
    assert _chromium.pictures() == {}
    with pytest.raises(RuntimeError, match="Chromium, which is not installed"):
        print_book(tmp_path, tmp_path / "pdf")


def test_pictures_of_figures_that_are_gone_are_removed(tmp_path, monkeypatch):
    (figure,) = chapter(tmp_path).figures
    monkeypatch.setattr(_chromium, "PICTURES", tmp_path)
    for stem in (figure.digest, "gone"):
        (tmp_path / f"{stem}.webp").touch()
    _chromium.draw([figure], tmp_path / "plotly.js")
    assert set(_chromium.pictures()) == {figure.digest}


def test_pages_come_in_the_order_of_the_contents(tmp_path):
    (tmp_path / "_toc.yml").write_text(json.dumps(table_of_contents([[chapter(tmp_path)]])))
    found = [p.relative_to(tmp_path / "html").as_posix() for p in pages(tmp_path / "html")]
    first = ["book/_generated/front.html", "book/how-to-read.html", "book/_generated/card.html"]
    assert found[:4] == [*first, "results/m@d/07-shift/07-shift.html"]
    assert found[-1] == "book/references.html"


GOOD = {"numbers": {"a/b": "words"}, "figure": 1}


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in ("01-x", "02-y"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()

    def read(**changes):
        content = {"01-x": GOOD, "02-y": GOOD | {"needs": ["01-x"], "minutes": 2, "per_model": False}} | changes
        text = yaml.safe_dump({name: entry for name, entry in content.items() if entry != "gone"}, sort_keys=False)
        (tmp_path / "chapters.yaml").write_text(text)
        return read_chapters(tmp_path)

    return read


def test_the_list_of_the_project_is_right():
    assert list(read_chapters()) == sorted(read_chapters())


def test_a_good_list_is_read_in_its_order(listed):
    assert list(listed()) == ["01-x", "02-y"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"02-y": "gone"}, "notebooks/02-y.ipynb has no entry in chapters.yaml."),
        ({"03-z": GOOD}, "chapters.yaml: 03-z has no notebook notebooks/03-z.ipynb."),
        (
            {"02-y": GOOD | {"needs": ["01-z"]}},
            "chapters.yaml: needs of 02-y: Unknown chapter '01-z': nearest known names are 01-x, 02-y.",
        ),
        ({"02-y": GOOD | {"needs": "01-x"}}, "chapters.yaml: 02-y: needs is '01-x', allowed is a list of chapters."),
        (
            {"02-y": GOOD | {"figur": 1}},
            "chapters.yaml: 02-y: Unknown key 'figur': nearest known names are figure.",
        ),
        ({"02-y": {"figure": 1}}, "chapters.yaml: 02-y has no numbers."),
        ({"02-y": GOOD | {"figure": 0}}, "chapters.yaml: 02-y: figure is 0, allowed is a whole number from 1."),
        ({"02-y": GOOD | {"numbers": {"a/b": 3}}}, "chapters.yaml: 02-y: numbers: a/b is 3, allowed is a few words."),
        ({"02-y": None}, "chapters.yaml: 02-y is None, allowed is 'key: value' lines."),
    ],
)
def test_a_malformed_list_is_one_sentence(listed, changes, sentence):
    with pytest.raises(ValueError) as error:
        listed(**changes)
    assert str(error.value) == sentence


def test_an_unknown_chapter_is_told_with_the_nearest(listed):
    with pytest.raises(ValueError, match="Unknown chapter '3': nearest known names are"):
        chosen("3", listed())
    assert chosen("2 01-x", listed()) == ["01-x", "02-y"] == chosen("", listed())


def test_what_was_not_measured_and_what_has_no_interval_is_said(tmp_path):
    numbers = {"shift/none": {"says": "x"}, "shift/other": {"says": "y"}}
    found = chapter(tmp_path, metrics=[metric("shift/other", low=None, high=None)], numbers=numbers)
    assert [number["value"] for number, _ in found.headlines] == [None, 0.5]  # other data have not all of it
    found.provenance["dataset"] = "tabletop"
    with pytest.raises(ValueError, match="recorded no number 'shift/none'"):
        found.headlines  # noqa: B018
    found.entry["numbers"]["shift/none"]["model"] = False  # of models that this run did not compare
    assert found.headlines[0][0]["value"] is None
    del found.entry["numbers"]["shift/none"]["model"]
    found.provenance["not_measured"] = ["shift/none"]
    pages = generated([[found]], {})
    assert "not measured" in pages["headline.md"] and "`shift/none`: it was not measured" in pages["card.md"]
    assert "[no interval]" in pages["card.md"]
    assert ">none</td>" in pages["every-number.md"]
