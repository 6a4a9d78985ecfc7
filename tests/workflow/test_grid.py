"""A grid is checked before anything runs, and says in one sentence what is wrong with it.

The notebooks here have nothing but parameters; names of models and data sets are real where they are looked up.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat as nf
import pytest


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow"))
import grid  # noqa: E402

from zsr_utils import run  # noqa: E402
from zsr_utils._text import read_yaml  # noqa: E402
from zsr_utils.records import result_folder, safe_name  # noqa: E402
from zsr_utils.records.chapters import read_chapters  # noqa: E402


PARAMETERS = 'model = "m"\npretrained = ""\ndataset = "d"\nlimit = 0\neps = 0.5\ndevice = "cpu"\nprecision = "fp32"'


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    chapters = ["01-x", "02-embedding-alignment"]
    for chapter in (*chapters, "03-jacobian-spectra"):
        cell = nf.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        nf.write(nf.v4.new_notebook(cells=[cell]), tmp_path / "notebooks" / f"{chapter}.ipynb")
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    models = ["tabletop-base", "tabletop-conv"]
    return {"models": models, "datasets": ["tabletop"], "chapters": chapters, "notebooks": str(tmp_path / "notebooks")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ["x"]}, "The grid: Unknown key 'model': nearest known names are models"),
        ({"models": []}, r"The grid: models is \[\], allowed is a list with one entry at least"),
        ({"models": "tabletop-base"}, "models is 'tabletop-base', allowed is a list"),
        ({"models": [{"nam": "x"}]}, "The grid: models: entry 1 has no name"),
        ({"models": [""]}, "models: entry 1 is '', allowed is a name"),
        ({"datasets": [{"name": ""}]}, "datasets: entry 1: name is '', allowed is a name"),
        ({"models": [{"name": "a", "pretrained": 5}]}, "pretrained is 5, allowed is a tag or a weight file"),
        ({"models": [{"name": 3}]}, "models: entry 1: name is 3, allowed is a name"),
        ({"chapters": ["01-y"]}, "Unknown chapter '01-y': nearest known names are 01-x"),
        ({"chapters": {"01-x": {"epps": 1}}}, "01-x: Unknown parameter 'epps': nearest known names are eps"),
        ({"chapters": {"01-x": {"limit": "8"}}}, r"'limit' is '8' \(str\), allowed is a value of type int"),
        ({"chapters": {"01-x": {"dataset": "d"}}}, "'dataset' is set by the lists of models and data sets alone"),
        ({"chapters": {"01-x": 3}}, "chapters: 01-x is 3, allowed is 'parameter: value' lines"),
        ({"parameters": {"limt": 1}}, "parameters: Unknown parameter 'limt': nearest known names are limit"),
        ({"models": [{"name": "a", "precison": "fp16"}]}, "models: Unknown parameter 'precison'"),
        ({"exclude": [{"model": "b"}]}, "exclude: {model: b} matches no job"),
        ({"exclude": [{"notebook": "b"}]}, "exclude: entry 1: Unknown key 'notebook'"),
        (
            {"exclude": [{}]},
            "exclude: entry 1 is {}, allowed is one of model, pretrained, dataset and chapter at least",
        ),
        ({"exclude": [{"chapter": "01-x"}, {"chapter": "02-embedding-alignment"}]}, "The grid has no job"),
        ({"resources": {"gpus": 1}}, "Unknown resource 'gpus': nearest known names are gpu"),
        ({"resources": {"01-x": {"threads": 0}}}, "threads is 0, allowed is a whole number from 1"),
        ({"resources": {"01-x": {"thread": 1}}}, "Unknown key 'thread': nearest known names are threads"),
        ({"results": "../x"}, "results is '../x', allowed is the name of a folder"),
    ],
)
def test_a_grid_is_checked(small, changes, words):
    with pytest.raises(ValueError, match=words) as error:
        grid.jobs(small | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "entries"),
    [
        ("models", [{"name": "a"}, {"name": "a", "precision": "fp16"}]),
        ("datasets", ["/photos/pacs", "/photos/pacs/"]),
    ],
)
def test_two_entries_for_one_results_folder_are_refused_naming_both(small, key, entries):
    with pytest.raises(ValueError, match="write to the same folder") as error:
        grid.jobs(small | {key: entries})
    for entry in entries:
        assert (entry if isinstance(entry, str) else str(entry).replace("'", "")) in str(error.value)


def test_parameters_come_from_grid_data_set_chapter_and_model_in_this_order(small):
    content = small | {
        "models": ["a", {"name": "b", "limit": 4}], "datasets": [{"name": "d", "limit": 2}],
        "chapters": {"01-x": {"limit": 3}, "02-embedding-alignment": None}, "parameters": {"limit": 1, "eps": 0.25},
        "exclude": [{"model": "a", "chapter": "02-embedding-alignment"}],
    }  # fmt: skip
    found = {(job.pair, job.chapter): job.parameters["limit"] for job in grid.jobs(content)}
    assert found == {("a@d", "01-x"): 3, ("b@d", "01-x"): 4, ("b@d", "02-embedding-alignment"): 4}
    assert all(job.parameters["eps"] == 0.25 for job in grid.jobs(content))


def test_the_order_of_lines_and_a_given_default_are_no_new_parameters(small):
    one = grid.jobs(small | {"parameters": {"limit": 1, "eps": 0.25}})
    other = grid.jobs(small | {"parameters": {"precision": "fp32", "eps": 0.25, "limit": 1}})
    assert [job.arguments for job in one] == [job.arguments for job in other]


def test_a_chapter_waits_only_for_chapters_of_the_grid(small):
    alone = grid.jobs(small | {"chapters": ["03-jacobian-spectra"]})
    assert {job.before for job in alone} == {()}
    both = grid.jobs(small | {"chapters": ["02-embedding-alignment", "03-jacobian-spectra"]})
    assert [job.before for job in both[:2]] == [(), ("02-embedding-alignment",)]


def test_jobs_ask_for_a_gpu_unless_they_run_on_the_cpu(small):
    content = small | {"resources": {"threads": 2, "01-x": {"runtime": 9}}, "models": [{"name": "a", "device": "auto"}]}
    first, second = grid.jobs(content)
    assert first.resources == {"threads": 2, "gpu": 1, "mem_mb": 16_000, "runtime": 9}
    assert second.resources["runtime"] == 240
    assert grid.jobs(small)[0].resources["gpu"] == 0


def test_arguments_of_a_job_come_back_as_they_were(small, monkeypatch):
    value = {"limit": 3, "eps": 1e-5, "precision": "it's", "device": ""}
    job = grid.jobs(small | {"parameters": value})[0]
    shown = "import sys; print('\\0'.join(sys.argv[1:]))"
    words = subprocess.run(
        f"{sys.executable} -c {shlex.quote(shown)} {job.arguments}", shell=True, capture_output=True, text=True
    ).stdout.rstrip("\n").split("\0")  # fmt: skip
    pairs = [words[i + 1 : i + 3] for i in range(0, len(words), 3)]
    assert run.read_parameters([], pairs, run.defaults(job.notebook)) | {"pretrained": ""} == job.parameters


def test_a_gpu_that_is_not_there_is_told_before_anything_runs(small, monkeypatch):
    found = grid.jobs(small | {"parameters": {"device": "cuda"}})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match="device is 'cuda' for tabletop-base@tabletop, and this machine has no"):
        grid.check_place(found)
    grid.check_place(found, local=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    grid.check_place(found)


def test_a_results_folder_that_cannot_be_written_is_told_before_anything_runs(small, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "file" / "results"))
    with pytest.raises(ValueError, match=r"file/results' cannot be written \(Not a directory\)"):
        grid.check_place(grid.jobs(small))
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(grid.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"results' cannot be written \(it is read-only\)"):
        grid.check_place(grid.jobs(small))


def test_the_grid_that_comes_with_the_project_is_right():
    found = grid.jobs(read_yaml(ROOT / "workflow" / "sweep.yaml"))
    grid.check_addresses(job.parameters for job in found)
    assert [job.folder.relative_to(ROOT / "results").as_posix() for job in found] == [
        f"sweep/{model}@tabletop/01-zero-shot-baseline" for model in ("tabletop-base", "tabletop-conv")
    ]


def test_a_grid_file_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("models: [a\n")
    (tmp_path / "list.yaml").write_text("[1]")
    assert [grid.main([str(tmp_path / f"{name}.yaml")]) for name in ("none", "bad", "list")] == [2, 2, 2]
    missing, malformed, other = capsys.readouterr().err.splitlines()
    assert "No such file" in missing and "bad.yaml' cannot be read" in malformed
    assert other == "The grid is [1], allowed is 'key: value' lines."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ["tabletop-bas"]}, "Unknown model 'tabletop-bas': nearest known names are tabletop-base"),
        ({"models": [{"name": "ViT-B-32", "pretrained": "laion2b"}]}, "Unknown pretrained tag of ViT-B-32 'laion2b'"),
        ({"datasets": ["imagenete"]}, "imagenette"),
        ({"models": [".."]}, "Unknown model '..'"),
        ({"models": ["/etc"]}, "Unknown model '/etc'"),
        ({"models": [{"name": "tabletop-small", "pretrained": "openai"}]}, "tabletop-small brings its own weights"),
    ],
)
def test_unknown_names_are_told_with_the_nearest_ones(small, changes, words):
    with pytest.raises(ValueError, match=words):
        grid.check_addresses(job.parameters for job in grid.jobs(small | changes))


def test_the_book_of_the_defaults_is_every_chapter_with_one_model():
    found = grid.jobs(grid.of_profile())
    assert [job.chapter for job in found] == list(read_chapters()) == sorted(read_chapters())
    assert {job.folder.parent for job in found} == {ROOT / "results" / "tabletop-base@tabletop"}
    assert all(job.parameters.keys() <= {"model", "pretrained", "dataset"} for job in found)


def test_a_part_of_the_book_waits_for_nothing_outside_of_it():
    assert [job.chapter for job in grid.jobs(grid.of_profile(chapters="3 01"))] == [
        "01-zero-shot-baseline", "03-jacobian-spectra",
    ]  # fmt: skip
    (alone,) = grid.jobs(grid.of_profile(chapters="03-jacobian-spectra"))
    _, behind = grid.jobs(grid.of_profile(chapters="02 03"))
    assert (alone.before, behind.before) == ((), ("02-embedding-alignment",))


def test_chapters_that_others_wait_for_come_first():
    minutes = {job.chapter: job.minutes for job in grid.jobs(grid.of_profile())}
    alone = read_chapters()["02-embedding-alignment"]["minutes"]
    assert minutes["02-embedding-alignment"] == alone + max(
        minutes[c] for c in ("03-jacobian-spectra", "04-noise-detection")
    )


def test_a_profile_has_results_of_its_own_and_a_file_only_for_what_differs():
    found = {job.chapter: job for job in grid.jobs(grid.of_profile("imagenette", model="ViT-B-32@laion2b_s34b_b79k"))}
    assert found.keys() == read_chapters().keys() - set(grid.not_for("imagenette"))
    first = found["01-zero-shot-baseline"]
    assert first.folder.parent == ROOT / "results" / "imagenette" / "ViT-B-32@laion2b_s34b_b79k@imagenette"
    assert first.parameters["batch_size"] == 256 and first.parameters["dataset"] == "imagenette"
    assert not (ROOT / "profiles" / "imagenette" / "19-model-trends.yaml").exists()
    assert found["19-model-trends"].parameters.keys() == {"model", "pretrained", "dataset"}


def test_of_several_models_the_first_runs_what_does_not_depend_on_them():
    found = grid.jobs(grid.of_profile("", "", "tabletop-base ViT-B-32@laion2b_s34b_b79k ViT-B-32@openai"))
    models = ["tabletop-base", "ViT-B-32@laion2b_s34b_b79k", "ViT-B-32@openai"]
    assert [job.pair for job in found if job.chapter == "01-zero-shot-baseline"] == [f"{m}@tabletop" for m in models]
    assert [job.pair for job in found if job.chapter == "19-model-trends"] == ["tabletop-base@tabletop"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("imagenete",), "Unknown profile 'imagenete': nearest known names are imagenette"),
        (("", "99"), "Unknown chapter '99': nearest known names are"),
        (("a b",), "Unknown profile 'a b'"),
        (("..",), "Unknown profile '..'"),
        (("/etc",), "Unknown profile '/etc'"),
        (("", "", "'a"), 'MODEL is "\'a", and a quotation mark has no partner there'),
        (("", "01-zero-shot"), "Unknown chapter '01-zero-shot': nearest known names are 01-zero-shot-baseline"),
    ],
)
def test_an_unknown_profile_or_chapter_is_told_with_the_nearest_ones(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        grid.of_profile(*words)


def test_a_job_that_said_nothing_was_killed(small, tmp_path):
    found = grid.jobs(small | {"models": ["tabletop-base"]})
    for job, text in zip(found, ("[IPKernelApp] WARNING | plain TCP\n", "x\n02 failed in cell 3: ValueError: no\n")):
        log = tmp_path / "logs" / job.pair / f"{job.chapter}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
    assert grid.report(found, tmp_path / "logs", 0) == [
        "tabletop-base@tabletop: failed: 01-x was killed before it said anything",
        "tabletop-base@tabletop: failed: 02 failed in cell 3: ValueError: no",
        "0 of 2 results are there.",
    ]


def test_a_model_and_a_data_set_of_ones_own_are_a_book(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    models = "ViT-B-32@openai 'local-dir:/my models/x'"
    found = grid.jobs(grid.of_profile(chapters="01 02", model=models, dataset="my photos"))
    photos = result_folder("m", str(tmp_path / "my photos"), "").name.removeprefix("m")
    pairs = {f"ViT-B-32@openai{photos}", f"{safe_name('local-dir:/my models/x')}{photos}"}
    assert {job.pair for job in found} == pairs and len(found) == 4
    assert all(job.parameters["dataset"] == str(tmp_path / "my photos") for job in found)
    assert all(job.parameters["models"] == [] for job in found), "the embedded one is no peer of it"
    assert "models" not in grid.jobs(grid.of_profile(model="tabletop-base", dataset="tabletop"))[0].parameters


def test_results_of_other_parameters_are_kept_and_run_again(small, tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path / "results"))
    job, other = grid.jobs(small | {"models": ["tabletop-base"], "parameters": {"limit": 3}})
    assert not grid.differs(job)
    for one, given in ((job, {"limit": 9}), (other, {"limit": 3})):
        one.folder.mkdir(parents=True)
        provenance = {"model": "m", "dataset": "d", "parameters": run.defaults(one.notebook) | one.parameters | given}
        (one.folder / "provenance.json").write_text(json.dumps(provenance))
    assert grid.differs(job) and not grid.differs(other)
    (said,) = grid.make_room([job, other])
    assert said.startswith(f"{job.pair}: an earlier {job.chapter} is kept in") and not grid.differs(job)
    assert len(list(job.folder.glob("earlier/*/provenance.json"))) == 1 and (other.folder / "provenance.json").is_file()


def test_a_chapter_without_pictures_for_its_question_is_left_out_but_for_those_who_name_it(tmp_path):
    def run(**words):
        return [job.chapter for job in grid.jobs(grid.of_profile(**words))]

    shape = "13-shape-bias"
    assert shape in run() and shape not in run(dataset="imagenet-v2") and shape not in run(profile="imagenette")
    assert shape in grid.not_for(dataset="imagenet-v2") and not grid.not_for()
    assert grid.not_for(model="tabletop-conv") == ["18-language-interplay"]  # whose language model sees by another
    assert not grid.not_for(model="tabletop-base tabletop-conv") and not grid.not_for(against="tabletop-conv")
    with pytest.raises(ValueError, match="AGAINST is 'tabletop-base', the model itself: allowed is another checkpoint"):
        grid.of_profile(against="tabletop-base")
    assert run(dataset="imagenet-v2", chapters="13") == [shape]
    (questions := tmp_path / "SEEDBench_IMG.tsv").touch()
    assert run(dataset=str(questions), profile="questions") == ["06-answer-stability"]
    with pytest.raises(ValueError, match="PROFILE is 'questions', which asks a file of questions: DATASET has to name"):
        grid.of_profile(profile="questions")
