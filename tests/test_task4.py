import csv
import json
import sys

import pytest
from PIL import Image

import task4
from common.cli import run
from common.comparison import random_pairs, split_strategy, stretches
from common.errors import Interrupted
from common.tokenizer import SentenceTokenizer
from tests.conftest import interrupted_at, tiny_transformer

QUICK = ["--epochs", "2", "--batch-size", "3", "--device", "cpu", "--learning-rate", "1e-3"]
ROWS = [
    [f"text {w} number {i}, {'ball' if i % 2 else 'atom'}", ["Science", "Sports"][i % 2], ["bad", "good"][i % 3 > 0]]
    for i, w in enumerate("abcdefghijklmnop")
]


@pytest.fixture
def labelled(write_csv):
    return write_csv("labelled.csv", ["text", "topic", "mood"], ROWS)


@pytest.fixture
def comparing(labelled, tiny_folder, tmp_path):
    """The arguments of a comparison of two strategies on a tiny encoder."""
    files = ["compare", "--data", str(labelled), "--dev", str(labelled), "--encoder", str(tiny_folder)]
    return [*files, "--output", str(tmp_path / "out"), *QUICK]


def outcome(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Exit code and standard error of the script run with these arguments."""
    monkeypatch.setattr(sys, "argv", ["task4.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as leave:
        run(task4.main, "task4.py")
    return leave.value.code, capsys.readouterr().err


def test_the_plan_names_every_stage_with_its_rate(tiny_folder, capsys):
    task4.main(["plan", "--encoder", str(tiny_folder), "--base-lr", "1e-4", "--json"])
    plan = {line["stage"]: line for line in json.loads(capsys.readouterr().out)}
    assert list(plan)[:3] == ["embeddings", "layer 1", "layer 2"]
    assert plan["embeddings"]["factor"] == pytest.approx(0.9**4)
    assert plan["topic head 2"]["rate"] == pytest.approx(1.44e-4)
    assert plan["layer 1"]["parameters"] == 8544
    task4.main(["plan", "--encoder", str(tiny_folder)])
    assert "0.9^(2L)" in capsys.readouterr().out


def test_the_plan_has_the_rate_that_training_would_have(tiny_folder, capsys):
    task4.main(["plan", "--encoder", str(tiny_folder), "--rates", "uniform", "--json"])
    assert {line["rate"] for line in json.loads(capsys.readouterr().out)} == {5e-5}


def test_a_plan_for_another_architecture_and_other_rates(tmp_path, capsys):
    tokenizer = SentenceTokenizer(max_length=32)
    tiny_transformer("roberta", tokenizer.vocab_size).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task4.main(["plan", "--encoder", str(tmp_path), "--rates", "decay:0.5"])
    shown = capsys.readouterr().out
    assert "layer 2" in shown and "0.1250" in shown and "0.9^" not in shown


def test_a_comparison_measures_each_strategy_from_the_same_start(comparing, tmp_path, capsys):
    task4.main([*comparing, "--strategies", "uniform,layerwise,gradual+decay:0.5", "--seeds", "2"])
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [(row["strategy"], row["seed"]) for row in rows] == [
        (strategy, seed) for seed in "01" for strategy in ("uniform", "layerwise", "gradual+decay:0.5")
    ]
    moved = {row["strategy"]: float(row["moved: embeddings"]) for row in rows if row["seed"] == "0"}
    assert moved["gradual+decay:0.5"] < moved["layerwise"] < moved["uniform"]
    assert all(-1 <= float(row["similarity kept"]) <= 1 for row in rows)
    assert min(Image.open(tmp_path / "out" / "comparison.png").size) > 400
    shown = capsys.readouterr().out
    assert "topic accuracy" in shown and "±" in shown


def test_what_is_done_is_kept_and_what_was_stopped_goes_on(comparing, tmp_path, monkeypatch, capsys):
    task4.main([*comparing, "--output", str(tmp_path / "whole")])
    with interrupted_at(8), pytest.raises(Interrupted, match="goes on from there"):
        task4.main([*comparing, "--strategies", "uniform"])
    task4.main([*comparing, "--strategies", "uniform"])
    capsys.readouterr()
    task4.main(comparing)
    assert capsys.readouterr().out.count("kept from an earlier run") == 1
    results = []
    for place in ("whole", "out"):
        rows = list(csv.DictReader((tmp_path / place / "comparison.csv").open()))
        results.append([{name: value for name, value in row.items() if name != "seconds"} for row in rows])
    assert results[0] == results[1]


def test_scored_pairs_show_how_similarity_changed(comparing, write_csv, tmp_path, capsys):
    pairs = write_csv(
        "pairs.csv", ["sentence1", "sentence2", "score"], [["a b", "a c", 3], ["d", "e f", 1], ["g", "g", 5]]
    )
    task4.main([*comparing, "--strategies", "uniform", "--sts", str(pairs)])
    (row,) = csv.DictReader((tmp_path / "out" / "comparison.csv").open())
    assert -1 <= float(row["sts before"]) <= 1 and -1 <= float(row["sts after"]) <= 1


def test_an_outcome_tells_how_the_training_went(comparing, tmp_path):
    task4.main([*comparing, "--strategies", "gradual", "--max-steps", "30", "--evaluate-every", "10"])
    result = json.loads((tmp_path / "out" / "gradual-0" / "result.json").read_text())
    assert [step for step, _ in result["dev_scores"]] == [10, 20, 30]
    zero = ["topic head 1", "mood head 1"]  # attention begins even
    assert [stage for stage in result["gradients"] if stage not in zero] == list(result["moved"])
    assert {len(norms) for norms in result["gradients"].values()} == {20}
    assert result["gradients"]["embeddings"][0] == 0 < result["gradients"]["embeddings"][-1]


def test_stretches_are_means_of_equal_parts():
    assert stretches(list(range(40))) == [2 * i + 0.5 for i in range(20)]
    assert stretches([1.0, 3.0]) == [1.0, 3.0]


def test_strategies_are_rates_with_or_without_unfreezing():
    assert split_strategy("gradual") == ("uniform", 0.0)
    assert split_strategy("gradual+layerwise") == ("layerwise", 0.0)
    assert split_strategy("decay:0.9") == ("decay:0.9", None)


def test_random_pairs_are_the_same_each_time_and_never_a_text_with_itself():
    pairs = random_pairs(["a", "b", "c"], 20).rows
    assert pairs == random_pairs(["a", "b", "c"], 20).rows
    assert all(left != right for left, right in pairs)


MISTAKES = {
    "no such rates": ([*("--strategies", "uniform,faster")], 'no learning rates are called "faster"'),
    "a rate of nothing": ([*("--learning-rate", "0")], "--learning-rate: must be above 0, not 0.0"),
    "no seeds": ([*("--seeds", "0")], "--seeds: must be 1 or more, not 0"),
    "no strategies": ([*("--strategies", ",")], 'argument --strategies: "," names none'),
    "rates beside strategies": ([*("--rates", "layerwise")], "leave --rates and --unfreeze out"),
    "an unfreezing of what is frozen": (
        [*("--strategies", "uniform,gradual", "--freeze", "encoder")],
        "--strategies: gradual: needs an encoder that is not all frozen",
    ),
    "rates of what is frozen": (
        [*("--strategies", "uniform,decay:0.9", "--freeze", "encoder")],
        "--strategies: decay:0.9: decay:0.9 changes no rate of what is not frozen",
    ),
    "no such test file": ([*("--test", "none.csv")], "none.csv: no such file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(mistake, comparing, tmp_path, monkeypatch, capsys):
    options, message = MISTAKES[mistake]
    code, error = outcome(monkeypatch, capsys, *comparing, *options)
    assert code == 2 and message in error
    assert error.startswith("task4.py: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_for_an_output_is_a_mistake(comparing, monkeypatch, capsys):
    arguments = list(comparing)
    data = arguments[arguments.index("--data") + 1]
    arguments[arguments.index("--output") + 1] = data
    code, error = outcome(monkeypatch, capsys, *arguments)
    assert code == 2 and f"{data}: cannot be made a folder" in error


def test_the_column_of_texts_may_have_another_name(comparing, write_csv, capsys):
    path = str(write_csv("bodies.csv", ["body", "topic"], [row[:2] for row in ROWS * 4]))
    files = ["--data", path, "--dev", path, "--text", "body"]
    rest = comparing[comparing.index("--dev") + 2 :]
    task4.main(["compare", *files, *rest, "--strategies", "uniform"])
    assert "topic accuracy" in capsys.readouterr().out


def test_a_rate_of_nothing_is_a_mistake(monkeypatch, capsys, tiny_folder):
    code, error = outcome(monkeypatch, capsys, "plan", "--encoder", tiny_folder, "--base-lr", "0")
    assert code == 2 and "must be above 0" in error


def test_results_of_other_settings_are_not_taken_for_these(comparing, monkeypatch, capsys):
    task4.main([*comparing, "--strategies", "uniform"])
    code, error = outcome(monkeypatch, capsys, *comparing, "--strategies", "uniform", "--epochs", "1")
    assert code == 2 and "other settings, weights or data" in error


def test_an_edited_file_of_factors_is_another_setting(comparing, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rates.json"
    path.write_text('{"embeddings": 0.5}')
    task4.main([*comparing, "--strategies", str(path)])
    path.write_text('{"embeddings": 0.1}')
    code, error = outcome(monkeypatch, capsys, *comparing, "--strategies", path)
    assert code == 2 and "or overwrite it" in error
    task4.main([*comparing, "--strategies", str(path), "--overwrite"])
    assert "kept from an earlier run" not in capsys.readouterr().out


def test_columns_that_are_no_tasks_can_be_left_out(comparing, write_csv, capsys):
    numbered = write_csv("numbered.csv", ["text", "topic", "id"], [[*row[:2], i] for i, row in enumerate(ROWS * 4)])
    at = comparing.index("--data") + 1
    task4.main([*comparing[:at], str(numbered), *comparing[at + 1 :], "--tasks", "topic", "--strategies", "uniform"])
    shown = capsys.readouterr().out
    assert "topic accuracy" in shown and "id accuracy" not in shown


def test_too_few_dev_texts_to_compare_are_said(comparing, write_csv, monkeypatch, capsys):
    one = write_csv("one.csv", ["text", "topic"], [["a", "Sports"]])
    arguments = list(comparing)
    arguments[arguments.index("--dev") + 1] = str(one)
    code, error = outcome(monkeypatch, capsys, *arguments)
    assert code == 2 and "from 3 on" in error


def test_bare_it_shows_the_plan_compares_and_writes_everything(tiny_folder, few_samples, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(task4, "SAMPLES", few_samples)
    monkeypatch.setattr("common.load.SHIPPED", tiny_folder)
    monkeypatch.setattr(task4, "RUN", tmp_path / "task4")
    task4.main([])
    shown = capsys.readouterr().out
    for word in ("0.9^(2L)", "uniform", "layerwise", "similarity kept", "layer 2"):
        assert word in shown
    for figure in ("learning_rates.png", "comparison.png", "training.png"):
        assert min(Image.open(tmp_path / "task4" / figure).size) > 400
