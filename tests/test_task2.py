import csv
import io
import json
import sys

import numpy as np
import pytest

import task2
from common.checkpoint import CHECKPOINT
from common.cli import run
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.report import classes_table
from tests.labelled import MOODS, ROWS


def outcome(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Exit code and standard error of the script run with these arguments."""
    monkeypatch.setattr(sys, "argv", ["task2.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as leave:
        run(task2.main, "task2.py")
    return leave.value.code, capsys.readouterr().err


def test_evaluate_counts_what_predict_says(trained, labelled, capsys):
    task2.main(["evaluate", str(labelled), "--model", str(trained), "--json"])
    results = json.loads(capsys.readouterr().out)
    predicted = MultiTaskModel.from_pretrained(trained).predict([row[0] for row in ROWS])
    right = [p["topic"]["label"] == row[1] for p, row in zip(predicted, ROWS, strict=True)]
    assert results["topic"]["accuracy"] == pytest.approx(np.mean(right))
    assert np.sum(results["mood"]["confusion"]) == len(ROWS)


def test_evaluate_shows_each_class_in_a_table(trained, labelled, capsys):
    task2.main(["evaluate", str(labelled), "--model", str(trained)])
    shown = capsys.readouterr().out
    for word in ("macro recall", "macro F1", "→ Sports", "so-so"):
        assert word in shown


def test_of_many_classes_the_table_names_the_one_most_often_taken_for_each():
    counts = [[0] * 20 for _ in range(20)]
    counts[3][3], counts[3][7], counts[3][8] = 5, 2, 1
    numbers = {"rows": 8, "precision": 1.0, "recall": 0.625, "f1": 0.77}
    shown = classes_table({"classes": {f"class {i}": numbers for i in range(20)}, "confusion": counts})
    assert "most often taken for" in shown and "→" not in shown
    assert shown.splitlines()[2 + 3].endswith("class 7 2")
    assert shown.splitlines()[2 + 4].endswith("0.770")


def test_predict_streams_a_file_as_csv_with_all_probabilities(trained, labelled, capsys, monkeypatch):
    monkeypatch.setattr("common.predictions.CHUNK", 5)
    arguments = ["predict", "--input", str(labelled), "--model", str(trained), "--format", "csv"]
    task2.main([*arguments, "--probabilities"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["text"] for row in rows] == [row[0] for row in ROWS]
    for row in rows:
        assert sum(float(row[f"mood: {label}"]) for label in MOODS) == pytest.approx(1, abs=1e-5)
    task2.main(arguments)
    for short, row in zip(csv.DictReader(io.StringIO(capsys.readouterr().out)), rows, strict=True):
        assert short["mood probability"] == row[f"mood: {short['predicted mood']}"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_predict_keeps_all_columns_of_a_file_labels_among_them(kind, trained, write_csv, capsys):
    rows = [["7", "a ball game", "so-so"], ["8", "the vote", ""]]
    table = write_csv("new.csv", ["id", "text", "mood"], rows)
    task2.main(["predict", "--input", str(table), "--model", str(trained), "--format", kind])
    shown = capsys.readouterr().out
    found = list(csv.DictReader(io.StringIO(shown)) if kind == "csv" else map(json.loads, shown.splitlines()))
    assert [[row["id"], row["text"], row["mood"]] for row in found] == rows
    for row, result in zip(found, MultiTaskModel.from_pretrained(trained).predict([r[1] for r in rows]), strict=True):
        for task in ("topic", "mood"):
            said = row[f"predicted {task}"]
            assert (said if kind == "csv" else said["label"]) == result[task]["label"]


@pytest.fixture
def ragged(tmp_path):
    """JSON lines of which the first has fewer keys than the next."""
    path = tmp_path / "new.jsonl"
    path.write_text('{"text": "a ball game"}\n{"id": 8, "mood": "bad", "text": "the vote"}\n')
    return str(path)


def test_every_row_of_json_lines_has_its_predictions_under_the_same_names(ragged, trained, capsys):
    task2.main(["predict", "--input", ragged, "--model", str(trained), "--format", "jsonl"])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(first) == {"text", "predicted topic", "predicted mood"}
    assert set(second) - set(first) == {"id", "mood"}
    assert second["mood"] == "bad"


def test_csv_has_a_column_for_every_key_of_json_lines(ragged, trained, capsys):
    task2.main(["predict", "--input", ragged, "--model", str(trained), "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["id"], row["mood"]) for row in rows] == [("", ""), ("8", "bad")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_predictions_are_not_written_over_a_column_of_that_name(kind, trained, write_csv, monkeypatch, capsys):
    table = write_csv("new.csv", ["text", "predicted mood"], [["a ball game", "good"]])
    arguments = ["predict", "--input", table, "--model", trained, "--format", kind]
    code, said = outcome(monkeypatch, capsys, *arguments)
    assert (code, 'a column "predicted mood" already' in said) == (2, True)


def test_predict_reads_standard_input_when_given_nothing_else(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one text\nanother\n")))
    task2.main(["predict", "--model", str(trained), "--format", "jsonl"])
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["one text", "another"]


def test_explaining_shows_a_row_of_words_for_each_task(trained, capsys):
    task2.main(["predict", "a ball game", "--model", str(trained), "--explain"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in shown[2:]] == ["topic", "mood"]
    assert all("ball" in line and "%" in line for line in shown[2:])


MISTAKES = {
    "no text column": (["train", "{no_text}", "--output", "o"], 'no column "text"'),
    "unseen dev label": (
        ["train", "{data}", "--dev", "{unseen}", "--output", "o", "--encoder", "{encoder}"],
        '"volcano"',
    ),
    "one class": (["train", "{one_class}", "--output", "o"], "a classifier needs two or more"),
    "duplicate header": (["train", "{twice}", "--output", "o"], "more than once"),
    "unlabelled task": (["train", "{unlabelled}", "--output", "o"], "no row has a label"),
    "unknown task weight": (["train", "{data}", "--output", "o", "--task-weight", "tpoic=1"], 'no task "tpoic"'),
    "no task weight": (["train", "{data}", "--output", "o", "--task-weight", "topic"], "TASK=WEIGHT"),
    "both balances": (
        ["train", "{data}", "--output", "o", "--task-weight", "topic=1", "--balance", "uncertainty"],
        "the weights of the tasks are learned",
    ),
    "unknown task": (["train", "{data}", "--output", "o", "--tasks", "colour"], "no column named colour"),
    "no such encoder": (["train", "{data}", "--output", "o", "--encoder", "./none"], "no such model folder"),
    "an encoder is no model": (["predict", "x", "--model", "{encoder}"], "no multi-task model there"),
    "two starts": (["train", "{data}", "--output", "o", "--from-scratch", "--model", "x"], "choose one"),
    "from scratch for what": (["--from-scratch", "predict", "x"], "unrecognized arguments: predict x"),
    "freeze nothing known": (
        ["train", "{data}", "--output", "o", "--encoder", "{encoder}", "--freeze", "haed:topic"],
        "there are: none, all, encoder, head:topic, head:mood, stages:A-B",
    ),
    "freeze and unfreeze": (
        ["train", "{data}", "--output", "o", "--encoder", "{encoder}", "--freeze", "encoder", "--unfreeze", "gradual"],
        "--unfreeze: needs an encoder that is not all frozen",
    ),
    "freeze all of a new model": (
        ["train", "{data}", "--output", "o", "--encoder", "{encoder}", "--freeze", "all"],
        "--freeze: nothing that trains has labelled rows to learn from",
    ),
    "freeze what has labels": (
        ["train", "{topics}", "--output", "o", "--model", "{model}", "--freeze", "encoder", "--freeze", "head:topic"],
        "nothing that trains has labelled rows",
    ),
    "resume what is all frozen": (
        ["train", "{data}", "--output", "{unfinished}", "--model", "{model}", "--freeze", "all", "--resume"],
        "--resume: plays no part where nothing is trained",
    ),
    "patience without dev": (
        ["train", "{data}", "--output", "o", "--encoder", "{encoder}", "--patience", "2"],
        "--patience: needs a dev set to evaluate on",
    ),
    "two starts from folders": (
        ["train", "{data}", "--output", "o", "--encoder", "x", "--model", "y"],
        "--encoder and --model each say what to start from",
    ),
    "what is to be kept is replaced": (
        ["train", "{data}", "--model", "{model}", "--output", "{model}", "--overwrite", "--keep-similarity", "1"],
        "--keep-similarity holds on to the start",
    ),
    "unfreeze how": (["train", "{data}", "--output", "o", "--unfreeze", "slowly"], "gradual:EPOCHS"),
    "rates of no name": (
        ["train", "{data}", "--output", "o", "--encoder", "{encoder}", "--rates", "decay:2"],
        'no learning rates are called "decay:2"',
    ),
    "none beside dev files": (
        ["train", "{data}", "--dev", "none", "{unseen}", "--output", "o"],
        "--dev none stands alone: name the files to train on before it",
    ),
    "no model": (["predict", "x", "--model", "./none"], "no such model folder"),
    "not UTF-8": (["predict", "a tea", "caf\udce9", "--model", "{model}"], "text 2 is not UTF-8"),
    "a column of texts that have none": (["predict", "x", "--text", "body", "--model", "{model}"], "texts have none"),
    "explained by linear heads": (
        ["predict", "x", "--explain", "--model", "{linear}"],
        "--explain: linear heads weigh all words alike",
    ),
    "a wrong row behind many": (
        ["predict", "--input", "{late}", "--format", "csv", "--model", "{model}"],
        "line 1502: 1 cells, but the header has 2 columns",
    ),
    "no name of an output": (["train", "{data}", "--output", ""], "--output: is empty"),
    "an output that is a file": (
        [*("train", "{data}", "--encoder", "{encoder}", "--output"), *("{data}/x", "--head", "linear")],
        "cannot be made a folder",
    ),
    "frozen at random": (
        ["train", "{data}", "--from-scratch", "--freeze", "encoder", "--output", "o"],
        "--freeze: freezes an encoder of random weights",
    ),
    "rates of what is frozen": (
        ["train", "{moods}", "--encoder", "{encoder}", "--freeze", "encoder", "--rates", "layerwise", "--output", "o"],
        "--rates: layerwise changes no rate of what is not frozen",
    ),
    "no tasks": (["train", "{data}", "--tasks", ",,", "--output", "o"], '",," names none'),
    "a weight twice": (
        ["train", "{data}", "--task-weight", "mood=0.1", "--task-weight", "mood=0.3", "--output", "o"],
        "--task-weight: gives mood more than one weight",
    ),
    "trained where all is frozen": (
        ["train", "{data}", "--model", "{model}", "--freeze", "all", "--max-steps", "3", "--output", "o"],
        "--max-steps: plays no part where nothing is trained",
    ),
    "texts and input": (["predict", "x", "--input", "{data}"], "not both"),
    "no input file": (["predict", "--input", "none.txt"], "no such file"),
    "evaluate unknown label": (
        ["evaluate", "{unseen}", "--model", "{model}"],
        'line 3: the model knows no label "volcano"',
    ),
    "diverged": (
        [
            *("train", "{data}", "--encoder", "{encoder}", "--output", "o", "--device", "cpu", "--epochs", "9"),
            *("--learning-rate", "1e38", "--warmup", "0", "--clip-norm", "1e38", "--batch-size", "3"),
        ],
        "so training stopped",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    mistake, labelled, trained, tiny_folder, write_csv, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    files = {
        "data": labelled,
        "model": trained,
        "encoder": tiny_folder,
        "no_text": write_csv("no_text.csv", ["body", "topic"], [["a", "x"]]),
        "unseen": write_csv("unseen.csv", ["text", "topic"], [["a", "Sports"], ["b", "volcano"]]),
        "one_class": write_csv("one_class.csv", ["text", "topic"], [["a", "x"], ["b", "x"]]),
        "twice": write_csv("twice.csv", ["text", "topic", "topic"], [["a", "x", "y"]]),
        "late": tmp_path / "late.csv",
        "linear": tmp_path / "linear",
        "moods": write_csv("moods.csv", ["text", "feeling"], [[row[0], row[2]] for row in ROWS]),
        "topics": write_csv("topics.csv", ["text", "topic"], [row[:2] for row in ROWS]),
        "unlabelled": write_csv("unlabelled.csv", ["text", "topic", "mood"], [["a", "x", ""], ["b", "y", ""]]),
    }
    arguments, message = MISTAKES[mistake]
    files["unfinished"] = tmp_path / "unfinished"
    files["unfinished"].mkdir()
    (files["unfinished"] / CHECKPOINT).touch()
    files["late"].write_text("text,topic\n" + "a,x\n" * 1500 + "b\n")
    if "{linear}" in arguments:
        start = ["--encoder", str(tiny_folder), "--freeze", "encoder", "--head", "linear"]
        task2.main(["train", str(labelled), *start, "--output", str(files["linear"])])
    capsys.readouterr()
    before = sorted(path for path in tmp_path.rglob("*"))
    code, error = outcome(monkeypatch, capsys, *(argument.format(**files) for argument in arguments))
    said = error.replace("\r", "\n").strip().splitlines()[-1]
    assert code == 2
    assert said.startswith("task2.py: ") and message in said
    if mistake != "diverged":  # its output folder was rightly made before the loss was lost
        assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("from_scratch", [False, True])
def test_bare_it_trains_tests_and_writes_everything(
    from_scratch, tiny_folder, few_samples, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(task2, "SAMPLES", few_samples)
    tiny = SentenceEncoder.from_pretrained(tiny_folder)
    monkeypatch.setattr(task2, "load_encoder", lambda *_: tiny)
    monkeypatch.setattr(task2, "SentenceEncoder", lambda *_: tiny)
    monkeypatch.setattr(task2, "RUN", tmp_path / "task2")
    task2.main(["--from-scratch"] if from_scratch else [])
    shown = capsys.readouterr().out
    start = "random weights" if from_scratch else "the shipped encoder"
    for word in (start, "topic", "sentiment", "macro F1", "→ Positive", "Sentences it has not seen"):
        assert word in shown
    written = {path.name for path in (tmp_path / "task2").iterdir()}
    assert {"metrics.json", "history.csv", "curves.png", "confusion.png", "heads.safetensors"} <= written
    assert json.loads((tmp_path / "task2" / "metrics.json").read_text())["test"]["topic"]["rows"] == 30
