"""`task2.py train` where something is frozen, fitted at once, or learned already."""

import json

import pytest
import torch

import task2
from common.encoder import SentenceEncoder
from common.errors import UserError
from common.heads import MultiTaskModel
from tests.labelled import QUICK, ROWS, evaluated


def weights_of(folder):
    return MultiTaskModel.from_pretrained(folder).state_dict()


def test_a_frozen_encoder_is_bit_identical_after_training_and_the_heads_have_moved(labelled, tiny_folder, tmp_path):
    arguments = ["train", str(labelled), "--encoder", str(tiny_folder), "--output", str(tmp_path / "o"), *QUICK]
    task2.main([*arguments, "--freeze", "encoder", "--weight-decay", "0.5"])
    trained = MultiTaskModel.from_pretrained(tmp_path / "o")
    start = SentenceEncoder.from_pretrained(tiny_folder).state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in trained.encoder.state_dict().items())
    assert trained.head("topic").norm.bias.abs().max() > 0


def test_a_task_is_added_to_a_model_whose_own_head_stands_still(trained, write_csv, tmp_path, capsys):
    added = write_csv(
        "added.csv", ["text", "tone"], [[row[0], "dry" if i % 2 else "warm"] for i, row in enumerate(ROWS)]
    )
    arguments = ["train", str(added), "--model", str(trained), "--freeze", "head:topic", "--output"]
    task2.main([*arguments, str(tmp_path / "both"), *QUICK])
    before, after = MultiTaskModel.from_pretrained(trained), MultiTaskModel.from_pretrained(tmp_path / "both")
    assert set(after.tasks) == {"topic", "mood", "tone"}
    old, new = before.head("topic").state_dict(), after.head("topic").state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert not torch.equal(before.encoder.embeddings.norm.weight, after.encoder.embeddings.norm.weight)


def test_a_label_is_added_to_a_trained_model_behind_those_it_has(trained, write_csv, tmp_path, capsys):
    rows = [[text, "Art" if i % 2 else topic] for i, (text, topic, _) in enumerate(ROWS)]
    path, output = write_csv("more.csv", ["text", "topic"], rows), tmp_path / "more"
    task2.main(["train", str(path), "--model", str(trained), "--output", str(output), *QUICK])
    assert "new labels: Art, beside the 2 that topic has learned" in capsys.readouterr().out
    old, new = MultiTaskModel.from_pretrained(trained).tasks, MultiTaskModel.from_pretrained(output).tasks
    assert new == {**old, "topic": [*old["topic"], "Art"]}


def test_labels_that_a_model_has_learned_and_no_row_has_are_named(trained, write_csv, tmp_path, capsys):
    path = write_csv("art.csv", ["text", "topic"], [[text, "Art"] for text, *_ in ROWS])
    task2.main(["train", str(path), "--model", str(trained), "--output", str(tmp_path / "more"), *QUICK])
    assert "topic: no row to train on has Science, Sports, which may be unlearned" in capsys.readouterr().out


def test_labels_of_a_frozen_model_are_not_unlearned(trained, write_csv, tmp_path, capsys):
    path = write_csv("mood.csv", ["text", "topic", "mood"], [[t, "Science", mood] for t, _, mood in ROWS])
    frozen = ["--freeze", "encoder", "--freeze", "head:topic"]
    task2.main(["train", str(path), "--model", str(trained), *frozen, "--output", str(tmp_path / "more"), *QUICK])
    assert "unlearned" not in capsys.readouterr().out


def test_linear_heads_on_a_frozen_encoder_are_fitted_at_once(labelled, tiny_folder, tmp_path, capsys):
    start = ["--encoder", str(tiny_folder), "--freeze", "encoder", "--head", "linear"]
    task2.main(["train", str(labelled), "--dev", str(labelled), *start, "--output", str(tmp_path / "o")])
    said = capsys.readouterr().out
    assert "fitted at once" in said and "with few rows training everything did better" in said
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert set(metrics["strengths"]) == {"topic", "mood"}
    assert evaluated(tmp_path / "o", labelled, capsys)["topic"]["loss"] == pytest.approx(
        metrics["dev"]["topic"]["loss"]
    )
    more = ["train", str(labelled), "--model", str(tmp_path / "o"), "--output", str(tmp_path / "more"), *QUICK]
    task2.main(more)
    assert MultiTaskModel.from_pretrained(tmp_path / "more").kind == "linear"
    with pytest.raises(UserError, match=r"is attention, but the heads of .* are linear"):
        task2.main([*more[:-1], more[-1], "--overwrite", "--head", "attention"])


def test_learned_linear_heads_are_fitted_anew_and_that_is_said(labelled, tiny_folder, tmp_path, capsys):
    start = ["--freeze", "encoder", "--head", "linear"]
    task2.main(["train", str(labelled), *start, "--encoder", str(tiny_folder), "--output", str(tmp_path / "old")])
    assert "fitted anew" not in capsys.readouterr().out
    task2.main(["train", str(labelled), *start, "--model", str(tmp_path / "old"), "--output", str(tmp_path / "new")])
    out = capsys.readouterr().out
    assert "the heads of topic, mood are fitted anew, from these rows alone" in out
    assert f"{tmp_path / 'new'}: the model, metrics.json" in out


LOOP = [
    *(["--balance", "uncertainty"], ["--keep-similarity", "1"], ["--rates", "layerwise"], ["--learning-rate", "1e-3"]),
    *(["--epochs", "3"], ["--max-steps", "3"], ["--dropout", "0.2"], ["--warmup", "0"], ["--batch-size", "8"]),
]


@pytest.mark.parametrize("option", LOOP)
def test_what_plays_no_part_in_an_exact_fit_is_refused(option, labelled, tiny_folder, tmp_path):
    arguments = ["train", str(labelled), "--encoder", str(tiny_folder), "--freeze", "encoder", "--head", "linear"]
    with pytest.raises(UserError, match="plays no part where linear heads are fitted at once"):
        task2.main([*arguments, *option, "--output", str(tmp_path / "o")])
    assert not (tmp_path / "o" / "config.json").exists()


def test_labels_added_to_linear_heads_leave_the_old_ones(labelled, write_csv, tiny_folder, tmp_path):
    start = ["--encoder", str(tiny_folder), "--freeze", "encoder", "--head", "linear"]
    task2.main(["train", str(labelled), *start, "--output", str(tmp_path / "old")])
    more = write_csv("more.csv", ["text", "topic"], [[f"a painting, number {i}", "Art"] for i in range(6)])
    arguments = ["train", str(more), "--model", str(tmp_path / "old"), "--freeze", "encoder", "--max-steps", "1"]
    task2.main([*arguments, "--learning-rate", "1e-6", "--output", str(tmp_path / "new")])
    old, new = (MultiTaskModel.from_pretrained(tmp_path / name) for name in ("old", "new"))
    assert new.tasks["topic"] == [*old.tasks["topic"], "Art"]
    weights = [model.head("topic").classifier.weight for model in (old, new)]
    assert weights[0].abs().max() > 1e-3
    torch.testing.assert_close(weights[1][:2], weights[0], atol=1e-5, rtol=0)


def test_with_everything_frozen_the_model_is_written_as_it_stands(trained, labelled, tmp_path, capsys):
    arguments = ["train", str(labelled), "--dev", str(labelled), "--model", str(trained), "--freeze", "all"]
    task2.main([*arguments, "--output", str(tmp_path / "o"), "--device", "cpu"])
    before, after = weights_of(trained), weights_of(tmp_path / "o")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "nothing is trained" in capsys.readouterr().out


@pytest.mark.parametrize("others", [["--freeze", "encoder"], ["--unfreeze", "gradual"]])
def test_a_step_with_labels_for_frozen_heads_alone_moves_nothing(others, trained, write_csv, tmp_path):
    topics = write_csv("topics.csv", ["text", "topic"], [row[:2] for row in ROWS])
    moods = write_csv("moods.csv", ["text", "mood"], [[row[0] + " and a much longer end " * 3, row[2]] for row in ROWS])
    arguments = ["train", str(topics), str(moods), "--model", str(trained), "--output", str(tmp_path / "o")]
    task2.main([*arguments, *QUICK, "--batch-size", "1", "--freeze", "head:topic", *others])
    before, after = (MultiTaskModel.from_pretrained(folder) for folder in (trained, tmp_path / "o"))
    assert not torch.equal(before.head("mood").norm.bias, after.head("mood").norm.bias)
    assert torch.equal(before.head("topic").norm.bias, after.head("topic").norm.bias)
