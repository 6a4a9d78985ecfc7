"""Rows, numbers and provenance on disk."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_images, tiny_model

from zsr_utils import records, scores


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    run = records.Run("01-x", tiny_model(), tiny_images(), seed=3, dataset="tiny", prompts="plain prompt")
    run.metric("zero_shot/accuracy", scores.proportion(9, 10))
    run.prompts["plain prompt"] = ["a photo of a {}"]
    return run


def test_a_run_leaves_metrics_and_provenance(run, tmp_path):
    run.save_rows(pd.DataFrame({"sample_id": ["a"], "label": [0], "prediction": [0]}))
    folder = run.save()
    assert folder == tmp_path / "tiny@tiny" / "01-x"
    (metric,) = json.loads((folder / "metrics.json").read_text())
    assert set(metric) == {"name", "value", "low", "high", "interval", "n", "unit"}
    provenance = json.loads((folder / "provenance.json").read_text())
    wanted = {
        "model", "pretrained", "fingerprint", "activation", "precision", "dataset", "dataset_fingerprint",
        "prompts", "parameters", "seed", "versions", "git", "dirty", "device", "seconds", "unreadable",
        "preprocessing",
    }  # fmt: skip
    assert wanted <= set(provenance) and provenance["seed"] == 3
    assert provenance["prompts"] == {"plain prompt": ["a photo of a {}"]}


def test_provenance_says_what_was_left_out_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    images = replace(tiny_images(), left_out={"links to nothing": (3, "cat/1.png")}, class_names=["cat", "17", "dog"])
    written = json.loads((records.Run("01-x", tiny_model(), images).save() / "provenance.json").read_text())
    assert written["left_out"] == {"links to nothing": "3, such as 'cat/1.png'"}
    assert written["notes"] == list(images.notes) and "such as '17'" in written["caution"]


def test_rows_of_several_runs_are_read_together(run, tmp_path):
    run.save_rows(pd.DataFrame({"sample_id": ["a"], "label": [0], "prediction": [0]}))
    run.save()
    rows = records.read_rows(tmp_path)
    assert rows.model.tolist() == ["tiny"] and rows.dataset.tolist() == ["tiny"]
    assert records.read_metrics(tmp_path).name.tolist() == ["zero_shot/accuracy"]


def test_a_column_of_the_rows_that_is_called_model_is_kept(run, tmp_path):
    run.save_rows(pd.DataFrame({"sample_id": ["a"], "label": [0], "model": ["another"]}))
    run.save()
    rows = records.read_rows(tmp_path)
    assert (rows.model.tolist(), rows.row_model.tolist()) == (["tiny"], ["another"])


def test_provenance_says_how_images_were_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    how = {"image_size": 8, "interpolation": "bicubic", "mean": (0.5, 0.4, 0.3)}
    run = records.Run("01-x", tiny_model(preprocessing=how), tiny_images())
    written = json.loads((run.save() / "provenance.json").read_text())["preprocessing"]
    assert written == {**how, "mean": [0.5, 0.4, 0.3]}
    assert "interpolation: bicubic" in run.show_provenance().data


def one_row(answer):
    return pd.DataFrame({"sample_id": ["a"], "label": [0], "prediction": [answer]})


def test_results_of_another_checkpoint_of_the_name_move_aside(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    nets = [tiny_model(pretrained="x/w.pt"), tiny_model(pretrained="x/w.pt", config={"trained": "again"})]
    plain, aside = (
        tmp_path / f"tiny@{records.safe_name(f'x/w.pt{f}')}@tiny" / "01-x" for f in ("", f"-{nets[0].fingerprint[:8]}")
    )
    for answer, net in enumerate(nets):
        run = records.Run("01-x", net, tiny_images())
        (plain / "failed").mkdir(parents=True, exist_ok=True)
        (plain / ".01-x.running.ipynb").write_text(f"running {answer}")  # what `zsr_utils.run` has there
        run.save_rows(one_row(answer))
        assert (plain / ".01-x.running.ipynb").read_text() == f"running {answer}"
        assert run.save() == plain
        (plain / "01-x.ipynb").write_text(f"notebook {answer}")
    for answer, (net, folder) in enumerate(zip(nets, (aside, plain))):
        assert records.read_rows(folder).prediction.tolist() == [answer]
        assert json.loads((folder / "provenance.json").read_text())["fingerprint"] == net.fingerprint
        assert (folder / "01-x.ipynb").read_text() == f"notebook {answer}"
        assert (folder / "metrics.json").exists()
    both = records.read_rows(tmp_path).set_index("fingerprint").prediction
    assert both.to_dict() == {nets[0].fingerprint: 0, nets[1].fingerprint: 1}


@pytest.mark.parametrize("changes", [{}, {"trained_on": "tiny", "config": {"trained": "again"}}])
def test_the_same_checkpoint_and_an_embedded_one_trained_again_replace_their_results(run, tmp_path, changes):
    run.save_rows(one_row(0))
    run.save()
    again = records.Run("01-x", tiny_model(**changes), tiny_images())
    again.save_rows(one_row(1))
    again.save()
    assert [p.name for p in tmp_path.iterdir()] == ["tiny@tiny"]
    assert records.read_rows(tmp_path).prediction.tolist() == [1]


def test_missing_rows_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebook first"):
        records.read_rows(tmp_path)


@pytest.mark.parametrize("name", ["accuracy", "Zero/Shot", "a b/c", "a/"])
def test_a_metric_name_has_a_topic(run, name):
    with pytest.raises(ValueError, match="allowed is 'topic/quantity'"):
        run.metric(name, scores.proportion(1, 2))


def test_a_failed_write_keeps_what_was_there(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        records.write_whole(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_provenance_is_escaped(run):
    run.parameters["dataset"] = "<script>alert(1)</script>"
    assert "<script>" not in run.show_provenance().data


@pytest.mark.parametrize("name", ["..", "hf-hub:a/b", "C:\\x", "a@b", "/"])
def test_a_safe_name_stays_one_folder(name):
    safe = records.safe_name(name)
    assert safe and not set(safe) & set("/\\:@") and safe not in (".", "..")


def test_an_embedded_model_on_foreign_images_carries_a_caution(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    few, many = (replace(tiny_images(n), class_names=["ant", "bee", "cat"]) for n in (25, 40))
    away = records.Run("01-x", tiny_model(trained_on="tabletop"), few)
    assert away.caution == (
        "tiny was trained on tabletop alone: its accuracies on tiny mean nothing; "
        "25 images are too few for most comparisons to be decided"
    )
    assert away.provenance()["caution"] == away.caution
    assert records.Run("01-x", tiny_model(trained_on="tiny"), many).caution == ""
    assert records.Run("01-x", tiny_model(note="random weights"), many).caution == "random weights"


def test_what_was_not_measured_is_named_and_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    run = records.Run("01-x", tiny_model(), tiny_images())
    run.metric("a/none", scores.not_measured())
    run.metric(
        "a/one", scores.Estimate(np.float64(0.5), float("nan"), float("inf"), "none of a single draw", np.int64(1))
    )
    numbers = json.loads((run.save() / "metrics.json").read_text())
    assert [(n["name"], n["low"], n["high"]) for n in numbers] == [("a/one", None, None)]
    assert run.provenance()["not_measured"] == ["a/none"]
    assert records.read_metrics(tmp_path).low.isna().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limit": 20}, "of other parameters (limit 0)"),
        ({"models": ["a"]}, "of other parameters (models None)"),
    ],
)
def test_a_result_of_other_parameters_is_kept_and_said(tmp_path, monkeypatch, capsys, changes, words):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    for answer, given in enumerate(({}, {}, changes)):
        run = records.Run("01-x", tiny_model(), tiny_images(), **{"limit": 0, **given})
        run.save_rows(one_row(answer))
        assert list(run.folder.glob("*.parquet")) == ([run.folder / "samples.parquet"] if answer else []), "not yet"
        run.save()
        assert (words in capsys.readouterr().out) == (answer == 2)
    (aside,) = run.folder.glob("earlier/*")
    assert records.read_rows(tmp_path).prediction.tolist() == [2]
    assert records.read_rows(aside).prediction.tolist() == [1], "the same parameters replace their result"


def test_what_two_checkpoints_measured_with_two_sets_of_parameters_is_all_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSR_RESULTS", str(tmp_path))
    nets = [tiny_model(), tiny_model(config={"trained": "again"})]
    for limit in (1, 2):
        for net in nets:
            records.Run("01-x", net, tiny_images(), limit=limit).save()
    kept = [json.loads(path.read_text()) for path in tmp_path.rglob("provenance.json")]
    assert len({(known["fingerprint"], known["parameters"]["limit"]) for known in kept}) == len(kept) == 4


def test_a_result_of_other_images_is_kept_and_said(run, capsys):
    run.save()
    other = records.Run("01-x", tiny_model(), tiny_images().subset(4), **run.parameters)
    other.save()
    assert "of other images, is kept in 'tiny@tiny/01-x/earlier/" in capsys.readouterr().out
    assert len(list(other.folder.glob("earlier/*/provenance.json"))) == 1


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("metrics.json", "[{", "is damaged (Expecting property name"),
        ("provenance.json", "", "is damaged (Expecting value"),
        ("provenance.json", "[]", "is damaged (model is None)"),
        ("provenance.json", "{}", "is damaged (model is None)"),
        ("provenance.json", '{"model": "m", "dataset": "d", "format": "2"}', "is damaged (format is '2')"),
        ("provenance.json", "\xff", "is damaged ("),
        ("metrics.json", "{}", "it holds no list"),
        ("value", "NaN", "value of zero_shot/accuracy is nan"),
        ("high", "Infinity", "high of zero_shot/accuracy is inf"),
        ("high", "1e999", "high of zero_shot/accuracy is inf"),
        ("low", "0.99", "low of zero_shot/accuracy is 0.99, above high, 0.98"),
        ("n", '"ten"', "n of zero_shot/accuracy is 'ten'"),
        ("twice", "", "zero_shot/accuracy is there twice"),
    ],
)
def test_damaged_records_are_one_sentence_with_the_file(run, file, text, words):
    folder = run.save()
    if file.endswith(".json"):
        (folder / file).write_bytes(text.encode("latin-1"))
    else:
        (number,) = json.loads((folder / "metrics.json").read_text())
        number |= {"high": 0.98} | ({} if file == "twice" else {file: "HERE"})
        text = json.dumps([number] * (2 if file == "twice" else 1)).replace('"HERE"', text)
        (folder / "metrics.json").write_text(text)
    provenance = json.loads((folder / "provenance.json").read_text()) if file not in ("provenance.json",) else None
    if provenance:  # as if the damage were older than the digest
        provenance.pop("files")
        (folder / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ValueError) as error:
        records.read_metrics(folder)
    message = str(error.value)
    assert words in message and repr(str(folder))[:-1] in message and "\n" not in message


@pytest.mark.parametrize("name", ["metrics.json", "samples.parquet"])
def test_files_of_two_runs_in_one_folder_are_told(run, name):
    run.save_rows(one_row(0))
    run.save()
    later = records.Run("01-x", tiny_model(), tiny_images(), **run.parameters)
    later.metric("zero_shot/accuracy", scores.proportion(1, 10))
    later.save_rows(one_row(1))
    before = (run.folder / name).read_bytes()
    later.save()
    (run.folder / name).write_bytes(before)  # a kill before this file was replaced
    with pytest.raises(ValueError, match=f"{name}' is not of the run that its provenance.json tells of"):
        records.read_metrics(run.folder), records.read_rows(run.folder)


@pytest.mark.parametrize("wrong", [{"value": float("inf")}, {"unit": None}, {"low": 0.9, "value": 0.95, "high": 0.8}])
def test_a_number_that_is_none_is_refused_by_its_name(run, wrong):
    number = dataclasses.replace(scores.proportion(1, 2), **wrong)
    with pytest.raises(ValueError, match=r"of a/b is .*: allowed are finite numbers, low not above high"):
        run.metric("a/b", number)
