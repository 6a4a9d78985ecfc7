"""The strict runner: what papermill would silently get wrong is refused."""

import nbformat as nf
import papermill
import pytest
from filelock import FileLock

from zsr_utils import run


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def notebook(path, *sources, tags=(("parameters",),)):
    cells = [nf.v4.new_code_cell(s) for s in sources]
    for cell, tag in zip(cells, tags):
        cell.metadata["tags"] = list(tag)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nf.write(nf.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


PARAMETERS = 'model = "tabletop-base"\ndataset = "tabletop"\nlimit = 5\neps = 0.5\nnames = ["a"]'


@pytest.fixture
def good(tmp_path):
    return notebook(tmp_path / "01-x.ipynb", PARAMETERS, "print(limit, eps)\nassert limit != 7, 'seven is not liked'")


def test_parameters_override_defaults_and_integers_serve_as_floats(good):
    assert run.check(good, {"limit": 9, "eps": 1}) == {
        "model": "tabletop-base", "dataset": "tabletop", "limit": 9, "eps": 1, "names": ["a"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"limt": 3}, "has no parameter 'limt' .*nearest names are limit"),
        ({"limit": "8/255"}, r"'limit' is '8/255' \(str\), allowed is a value of type int such as 5"),
        ({"eps": "1e-3"}, r"'eps' is '1e-3' \(str\), allowed is a value of type float"),
        ({"limit": True}, r"\(bool\), allowed is a value of type int"),
        ({"names": "a"}, r"allowed is a value of type list"),
    ],
)
def test_misspelt_or_mistyped_parameters_are_refused(good, parameters, words):
    with pytest.raises(ValueError, match=words):
        run.check(good, parameters)


def test_a_notebook_needs_exactly_one_parameters_cell(tmp_path):
    none = notebook(tmp_path / "none.ipynb", "x = 1", tags=((),))
    two = notebook(tmp_path / "two.ipynb", "x = 1", "x = 2", tags=(("parameters",), ("parameters",)))
    for path, count in ((none, 0), (two, 2)):
        with pytest.raises(ValueError, match=f"has {count} cells tagged 'parameters', exactly 1"):
            run.defaults(path)


def test_a_parameters_cell_holds_plain_values_only(tmp_path):
    path = notebook(tmp_path / "x.ipynb", "import os")
    with pytest.raises(ValueError, match="must hold plain values only"):
        run.defaults(path)


@pytest.mark.parametrize("text", ["alignment:\n  eps: 3\n", "- a\n- b\n"])
def test_a_profile_is_flat(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match="flat list"):
        run.read_parameters([tmp_path / "p.yaml"], [])


def test_later_files_and_pairs_win(tmp_path):
    (tmp_path / "a.yaml").write_text("limit: 1\neps: 0.1\n")
    (tmp_path / "b.yaml").write_text("limit: 2\n")
    merged = run.read_parameters([tmp_path / "a.yaml", tmp_path / "b.yaml"], [["eps", "0.2"]])
    assert merged == {"limit": 2, "eps": 0.2}


@pytest.mark.slow
def test_a_good_run_and_a_failed_one(good, results, capsys):
    assert run.main([str(good), "--no-progress", "-p", "limit", "3"]) == 0
    final = results / "tabletop-base@tabletop" / "01-x" / "01-x.ipynb"
    before = final.read_bytes()
    assert b"3 0.5" in before

    assert run.main([str(good), "--no-progress", "-p", "limit", "7"]) == 1
    assert "01-x failed in cell" in capsys.readouterr().err.splitlines()[-1]
    assert final.read_bytes() == before, "a failed run must not replace a good result"
    assert b"seven is not liked" in (final.parent / "failed" / "01-x.ipynb").read_bytes()
    assert sorted(p.name for p in final.parent.iterdir()) == ["01-x.ipynb", "failed"]


def test_bad_input_on_the_command_line_is_one_sentence(good, results, capsys):
    assert run.main([str(good), "-p", "limt", "3"]) == 2
    assert run.main(["notebooks/01-zero-shot-baselin.ipynb"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 2 and "nearest are 01-zero-shot-baseline.ipynb" in error
    assert not results.exists()


def test_a_full_disk_is_one_sentence_and_leaves_no_result(good, results, monkeypatch, capsys):
    def full(notebook, working, *_, **__):
        working.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", full)
    assert run.main([str(good), "--no-progress"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("01-x stopped: No space left on device;") and len(error.splitlines()) == 1
    assert not [p for p in results.rglob("*") if p.is_file()]


@pytest.mark.parametrize("value", ["/x/set #2", "[x", "007", "no", "~", "{a}", "a: b", "1e3", ""])
def test_a_value_for_text_is_that_text(good, value):
    parameters = run.read_parameters([], [["dataset", value], ["limit", "3"]], run.defaults(good))
    assert parameters == {"dataset": value, "limit": 3}


def test_parameters_are_listed_with_their_comments(good, capsys):
    assert run.main([str(good), "--parameters"]) == 0
    assert capsys.readouterr().out == PARAMETERS + "\n"
    with pytest.raises(SystemExit):
        run.main(["--help"])
    assert "text is taken as it is" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ("model tabletop-bas", "Unknown model 'tabletop-bas': nearest known names are tabletop-base"),
        ("model ..", "Unknown model '..'"),
        ("model /etc", "Unknown model '/etc'"),
        ("model local-dir:/none", "model is 'local-dir:/none', and there is no such folder."),
        ("pretrained openai", "pretrained is 'openai', but tabletop-base brings its own weights: allowed is ''."),
        ("models [tabletop-conv@x]", "pretrained is 'x', but tabletop-conv brings its own weights"),
        (
            "model ViT-B-32 pretrained opena",
            "Unknown pretrained tag of ViT-B-32 'opena': nearest known names are openai",
        ),
        ("dataset /nowhere", "Unknown data set '/nowhere'"),
        ("models [a,3]", "'models' holds 3 (int), allowed are values of type str such as 'a'"),
        ("limit [", "Parameter 'limit' is '[', which is no YAML value"),
        ("eps .nan", "'eps' is nan, allowed is a finite number such as 0.5"),
    ],
)
def test_what_cannot_be_is_told_before_a_kernel_starts_and_leaves_no_folder(tmp_path, results, capsys, pairs, words):
    path = notebook(tmp_path / "01-x.ipynb", PARAMETERS + '\npretrained = ""\nmodels = ["a"]')
    words_of = pairs.split()
    given = [word for name, value in zip(words_of[::2], words_of[1::2]) for word in ("-p", name, value)]
    assert run.main([str(path), *(given if "models" in pairs else [*given, "-p", "models", "[]"])]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1 and not results.exists()


def test_paths_are_those_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "tabletop", "cifar10", "openai"):
        (tmp_path / name).mkdir()
    (tmp_path / "w.pt").touch()
    given = {
        "dataset": "photos/",
        "pretrained": "w.pt",
        "models": ["a@w.pt", "b@openai"],
        "model": "photos",
        "limit": 3,
    }
    found = run.from_here(given)
    assert found == given | {
        "dataset": f"{tmp_path}/photos", "pretrained": f"{tmp_path}/w.pt", "models": [f"a@{tmp_path}/w.pt", "b@openai"],
    }  # fmt: skip
    assert run.from_here({"model": "local-dir:photos"})["model"] == f"local-dir:{tmp_path}/photos"
    for known in ("tabletop", "cifar10", "no-folder", "wds:no/folder"):
        assert run.from_here({"dataset": known}) == {"dataset": known}


def test_of_two_runs_at_one_address_the_second_is_refused(good, results, capsys):
    folder = results / "tabletop-base@tabletop" / "01-x"
    with FileLock(folder / ".01-x.lock"):
        assert run.main([str(good), "--no-progress"]) == 1
        assert (
            capsys.readouterr().err
            == f"{str(folder)!r} cannot be written: another run is writing there: wait until it ends.\n"
        )
