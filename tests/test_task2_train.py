"""What `task2.py train` can be asked for."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import task2
from common.heads import MultiTaskModel
from common.multitask import MultiTaskTrainer
from common.rows import LabelledRows
from tests.labelled import MOODS, QUICK, ROWS, TOPICS, evaluated


def test_train_writes_the_model_and_how_it_went(labelled, tiny_folder, tmp_path):
    output = tmp_path / "out"
    arguments = ["train", str(labelled), "--dev", str(labelled), "--encoder", str(tiny_folder), "--output", str(output)]
    task2.main([*arguments, *QUICK])
    assert MultiTaskModel.from_pretrained(output).tasks == {"topic": TOPICS, "mood": MOODS}
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["command"]["epochs"] == metrics["settings"]["epochs"] == 2
    assert metrics["dev"]["topic"]["rows"] == len(ROWS)
    history = list(csv.DictReader((output / "history.csv").open()))
    tracked = {
        f"{where} {task} {name}"
        for where in ("train", "dev")
        for task in ("topic", "mood")
        for name in ("loss", "accuracy")
    }
    assert tracked <= set(history[0]) and len(history) == 2
    for figure in ("curves.png", "confusion.png"):
        assert min(Image.open(output / figure).size) > 300
    assert not list(output.glob("*checkpoint*"))


def test_the_kept_model_is_the_one_that_was_best_on_dev(labelled, tiny_folder, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["train", str(labelled), "--dev", str(labelled), "--encoder", str(tiny_folder), "--output", str(output)]
    task2.main([*arguments, *QUICK, "--epochs", "6", "--evaluate-every", "2", "--learning-rate", "3e-3"])
    metrics = json.loads((output / "metrics.json").read_text())
    best = max(
        np.mean([float(row[f"dev {t} macro_f1"]) for t in ("topic", "mood")])
        for row in csv.DictReader((output / "history.csv").open())
    )
    assert metrics["best"]["score"] == pytest.approx(best)
    assert np.mean([metrics["dev"][t]["macro_f1"] for t in ("topic", "mood")]) == pytest.approx(best, abs=1e-6)


def test_a_tiny_encoder_learns_32_rows_of_two_tasks_by_heart(write_csv, tiny_folder, tmp_path):
    rows = [
        [f"{w} {i} of {'ball' if i % 2 else 'atom'}", TOPICS[i % 2], MOODS[i % 3]] for i, w in enumerate("abcdefgh" * 4)
    ]
    path, output = write_csv("a.csv", ["text", "topic", "mood"], rows), tmp_path / "out"
    arguments = ["train", str(path), "--dev", str(path), "--encoder", str(tiny_folder), "--output", str(output)]
    task2.main([*arguments, *QUICK, "--epochs", "60", "--learning-rate", "5e-3", "--evaluate-every", "30"])
    dev = json.loads((output / "metrics.json").read_text())["dev"]
    assert dev["topic"]["accuracy"] == dev["mood"]["accuracy"] == 1.0


def test_files_that_label_different_tasks_train_together(write_csv, tiny_folder, tmp_path, capsys):
    topics = write_csv("topics.csv", ["text", "topic"], [row[:2] for row in ROWS])
    moods = write_csv("moods.tsv", ["mood", "text"], [[row[2], row[0]] for row in ROWS[:9]])
    task2.main(
        ["train", str(topics), str(moods), "--encoder", str(tiny_folder), "--output", str(tmp_path / "out"), *QUICK]
    )
    shown = capsys.readouterr().out
    assert "topic             16" in shown and "mood               9" in shown


def test_names_and_labels_nobody_foresaw(write_csv, tiny_folder, tmp_path, capsys):
    header = ["text", "mood of the day", "v1.0", "сорт"]
    rows = [[f"text {i}", ["très bon", "😡", "$5"][i % 3], i % 2, ["да", "нет", ""][i % 3]] for i in range(12)]
    path, output = write_csv("a.csv", header, rows), tmp_path / "out"
    arguments = ["train", str(path), "--dev", str(path), "--encoder", str(tiny_folder), "--output", str(output)]
    task2.main([*arguments, *QUICK])
    capsys.readouterr()
    task2.main(["predict", "text 3", "--model", str(output), "--format", "jsonl"])
    result = json.loads(capsys.readouterr().out)
    assert set(result["predicted mood of the day"]["probabilities"]) == {"$5", "très bon", "😡"}
    assert set(result["predicted v1.0"]["probabilities"]) == {"0", "1"}
    assert result["predicted сорт"]["label"] in ("да", "нет")


@pytest.mark.parametrize(
    "options", [["--balance", "uncertainty"], ["--class-weight", "balanced"], ["--task-weight", "topic=0.9"]]
)
def test_ways_of_balancing_change_the_model(options, labelled, tiny_folder, trained, tmp_path):
    output = tmp_path / "other"
    skewed = labelled.with_name("skewed.csv")
    lines = labelled.read_text().splitlines()
    skewed.write_text(
        "\n".join(lines[:1] + [line for line in lines[1:] if not line.endswith("so-so")] + lines[3:4]) + "\n"
    )
    common_arguments = ["train", str(skewed), "--encoder", str(tiny_folder), *QUICK]
    task2.main([*common_arguments, "--output", str(tmp_path / "plain")])
    task2.main([*common_arguments, "--output", str(output), *options])
    one, other = (MultiTaskModel.from_pretrained(folder).state_dict() for folder in (tmp_path / "plain", output))
    assert one.keys() == other.keys()
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_tenth_of_the_rows_is_held_out_to_choose_by(write_csv, tiny_folder, tmp_path, capsys):
    rows = [[f"text number {i}", "often" if i % 4 else "seldom"] for i in range(200)]
    arguments = ["train", str(write_csv("a.csv", ["text", "how"], rows)), "--encoder", str(tiny_folder), *QUICK]
    task2.main([*arguments, "--output", str(tmp_path / "o")])
    assert "dev rows: 20 held out, 180 left to train on" in capsys.readouterr().out
    dev = json.loads((tmp_path / "o" / "metrics.json").read_text())["dev"]["how"]
    assert {label: row["rows"] for label, row in dev["classes"].items()} == {"often": 15, "seldom": 5}
    task2.main([*arguments, "--dev", "none", "--output", str(tmp_path / "all")])
    assert "all 200 are trained on" in capsys.readouterr().out
    assert "dev" not in json.loads((tmp_path / "all" / "metrics.json").read_text())


def test_test_rows_are_measured_at_the_end(labelled, write_csv, tiny_folder, tmp_path, capsys):
    test = write_csv("test.csv", ["text", "topic", "mood"], ROWS[:6])
    arguments = ["train", str(labelled), "--encoder", str(tiny_folder), "--test", str(test), *QUICK]
    task2.main([*arguments, "--output", str(tmp_path / "o")])
    assert "on the test rows\n" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["test"]["topic"]["rows"] == 6
    assert metrics["test"] == json.loads(json.dumps(evaluated(tmp_path / "o", test, capsys)))


def test_texts_are_read_from_the_column_that_is_named(write_csv, tiny_folder, tmp_path, capsys):
    rows = [[topic, text, mood] for text, topic, mood in ROWS]
    path = write_csv("a.csv", ["topic", "body", "mood"], rows)
    output = str(tmp_path / "o")
    task2.main(["train", str(path), "--text", "body", "--encoder", str(tiny_folder), "--output", output, *QUICK])
    capsys.readouterr()
    task2.main(["evaluate", str(path), "--text", "body", "--model", output, "--json"])
    assert set(json.loads(capsys.readouterr().out)) == {"topic", "mood"}
    task2.main(["predict", "--input", str(path), "--text", "body", "--model", output, "--format", "jsonl"])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["body"] == ROWS[0][0]


def test_what_trains_is_shown_before_it_does(labelled, tiny_folder, tmp_path, capsys):
    options = ["--freeze", "stages:0", "--rates", "layerwise", "--learning-rate", "1e-3", "--dropout", "0.3"]
    task2.main(
        ["train", str(labelled), "--encoder", str(tiny_folder), "--output", str(tmp_path / "o"), *QUICK, *options]
    )
    said = capsys.readouterr().out
    assert "heads that begin as logistic regression on these rows: topic, mood\n" in said
    assert re.search(r"^embeddings +[\d,]+ +frozen$", said, re.M)
    assert re.search(r"^layer 2 +[\d,]+ +0\.001 +0\.3$", said, re.M)


@pytest.mark.parametrize(
    ("start", "rate"), [({}, 5e-5), ({"model": "m"}, 5e-5), ({"encoder": "e"}, 5e-5), ({"from_scratch": True}, 2e-4)]
)
def test_the_default_rate_depends_on_the_start(start, rate):
    assert task2.Train(files=("a.csv",), output="o", **start).learning_rate == rate
    assert task2.Train(files=("a.csv",), output="o", learning_rate=3e-3, **start).learning_rate == 3e-3


def test_with_few_rows_the_default_length_is_a_least_number_of_steps():
    few, many = task2.Train(files=("a.csv",), output="o"), 32 * 100
    assert few.total_steps(64) == 100 and few.total_steps(65) == 102  # whole epochs, of 2 and of 3 steps
    assert few.total_steps(many) == 5 * 100
    assert dataclasses.replace(few, epochs=1).total_steps(64) == 2
    assert dataclasses.replace(few, max_steps=7).total_steps(64) == 7


def test_a_short_epoch_is_not_evaluated_each_time():
    config = task2.Train(files=("a.csv",), output="o")
    assert config.evaluation_steps(64) == 10  # a tenth of 100 steps
    assert config.evaluation_steps(32 * 100) == 100
    assert dataclasses.replace(config, evaluate_every=3).evaluation_steps(64) == 3


def test_training_starts_from_the_shipped_encoder_unless_told_otherwise(tiny_folder, monkeypatch):
    monkeypatch.setattr("common.load.SHIPPED", tiny_folder)
    start, rows = {"files": ("a.csv",), "output": "o"}, LabelledRows(["", ""], {"a": ["x", "y"]}, ["", ""])
    assert task2.Train(**start).starting_model(rows).encoder.dim == 32
    assert task2.Train(**start, from_scratch=True).starting_model(rows).encoder.dim == 768


def test_dropout_reaches_the_encoder_and_the_heads(labelled, tiny_folder, tmp_path, monkeypatch):
    seen, backward = [], MultiTaskTrainer._backward

    def watching(trainer, *arguments):
        model = trainer.objective.model
        shares = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
        seen.append({*shares, *(layer.attention_dropout for layer in model.encoder.layers)})
        return backward(trainer, *arguments)

    monkeypatch.setattr(MultiTaskTrainer, "_backward", watching)
    arguments = ["train", str(labelled), "--encoder", str(tiny_folder), "--output", str(tmp_path / "o"), *QUICK]
    task2.main([*arguments, "--dropout", "0.25"])
    assert seen[0] == {0.25}


def test_rows_without_the_chosen_task_are_left_out(write_csv, tiny_folder, tmp_path):
    rows = [[f"text {i}", "xy"[i % 2], "" if i < 3 else "ab"[i % 2]] for i in range(12)]
    path = write_csv("gaps.csv", ["text", "topic", "mood"], rows)
    arguments = ["train", str(path), "--tasks", "mood", "--encoder", str(tiny_folder), "--output", str(tmp_path / "o")]
    with pytest.warns(UserWarning, match="rows without a label for mood are left out: 3"):
        task2.main([*arguments, *QUICK])
    assert MultiTaskModel.from_pretrained(tmp_path / "o").tasks == {"mood": ["a", "b"]}


@pytest.mark.filterwarnings("ignore:The number of unique classes")
def test_where_no_label_has_a_row_to_spare_all_are_trained_on(write_csv, tiny_folder, tmp_path, capsys):
    path = write_csv("unique.csv", ["text", "item"], [[f"text {i}", f"item {i}"] for i in range(100)])
    start = ["--encoder", str(tiny_folder), "--freeze", "encoder", "--head", "linear", "--tasks", "item"]
    task2.main(["train", str(path), *start, "--output", str(tmp_path / "o")])
    assert "dev rows: none, for no label has a row to spare; all 100 are trained on" in capsys.readouterr().out


def test_a_task_that_no_dev_row_labels_is_named(labelled, write_csv, tiny_folder, tmp_path, capsys):
    dev = write_csv("dev.csv", ["text", "topic", "Mood"], [["a ball", "Sports", "bad"], ["an atom", "Science", "good"]])
    arguments = ["train", str(labelled), "--dev", str(dev), "--encoder", str(tiny_folder), *QUICK]
    task2.main([*arguments, "--output", str(tmp_path / "o")])
    assert "mood: no dev row has a label" in capsys.readouterr().out


def test_the_temperatures_that_dev_rows_ask_for_are_saved(write_csv, tiny_folder, trained, tmp_path):
    many = write_csv("many.csv", ["text", "topic", "mood"], ROWS * 7)
    arguments = ["train", str(many), "--dev", str(many), "--encoder", str(tiny_folder), *QUICK]
    task2.main([*arguments, "--output", str(tmp_path / "o")])
    assert all(value != 1 for value in MultiTaskModel.from_pretrained(tmp_path / "o").temperatures.values())
    assert set(MultiTaskModel.from_pretrained(trained).temperatures.values()) == {1.0}  # without dev rows
