import csv
import dataclasses
import gzip
import io
import json
import os
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from transformers import AutoModel

import task1
from common.cli import run
from common.encoder import EncoderConfig, SentenceEncoder
from common.errors import Interrupted, UserError
from common.files import atomic_file
from common.tokenizer import SentenceTokenizer
from tests.conftest import TINY, changed, interrupted_at

SENTENCES = ["A cat sat.", "The dog ran across the field.", "Yes", "One two three."]
PAIRS = [(f"this is line {i}", f"line {i} it is, a {w}", i % 3) for i, w in enumerate("abcdefghijkl")]
QUICK = ["--epochs", "2", "--batch-size", "4", "--device", "cpu", "--learning-rate", "1e-3"]


@pytest.fixture
def sentences_file(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(SENTENCES) + "\n")
    return path


@pytest.fixture
def pairs_file(write_csv):
    return write_csv("pairs.csv", ["sentence1", "sentence2", "score"], PAIRS)


def outcome(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Exit code and standard error of the script run with these arguments."""
    monkeypatch.setattr(sys, "argv", ["task1.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as leave:
        run(task1.main, "task1.py")
    return leave.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.txt.gz", "-"])
def test_embed_reads_each_kind_of_file(name, tiny_folder, tiny_encoder, tmp_path, monkeypatch):
    lines = "".join(f"{sentence}\n" for sentence in SENTENCES)
    content = {
        ".csv": "text,n\n" + "".join(f'"{sentence}",1\n' for sentence in SENTENCES),
        ".tsv": "n\ttext\n" + "".join(f"1\t{sentence}\n" for sentence in SENTENCES),
        ".jsonl": "".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES),
    }.get(name[1:], lines)
    path = tmp_path / name if name != "-" else "-"
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    task1.main(["embed", str(path), "--model", str(tiny_folder), "--output", str(tmp_path / "out.npy")])
    array = np.load(tmp_path / "out.npy")
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, tiny_encoder.encode(SENTENCES), atol=1e-6)


def test_embed_writes_half_precision_and_reads_a_named_column(tiny_folder, tiny_encoder, write_csv, tmp_path):
    path = write_csv("a.csv", ["body"], [[sentence] for sentence in SENTENCES])
    out = tmp_path / "out.npy"
    task1.main(
        [
            "embed",
            str(path),
            "--text",
            "body",
            "--dtype",
            "float16",
            "--model",
            str(tiny_folder),
            "--output",
            str(out),
        ]
    )
    assert np.load(out).dtype == np.float16
    np.testing.assert_allclose(np.load(out), tiny_encoder.encode(SENTENCES), atol=1e-3)


def test_embed_streams_in_blocks_and_keeps_the_order(tiny_folder, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(task1, "CHUNK", 3)
    texts = [f"{'long ' * (i % 7)}sentence {i}" for i in range(11)]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(texts))
    task1.main(["embed", str(path), "--model", str(tiny_folder), "--output", str(tmp_path / "out.npy")])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), tiny_encoder.encode(texts), atol=1e-5)


def test_a_blank_line_keeps_its_row(tiny_folder, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    with pytest.warns(UserWarning, match="1 of 3 sentences"):
        task1.main(["embed", str(path), "--model", str(tiny_folder), "--output", str(tmp_path / "out.npy")])
    assert np.load(tmp_path / "out.npy").shape == (3, 32)


def test_an_error_in_a_late_line_leaves_no_file(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(task1, "CHUNK", 2)
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "fine\n" * 9 + "ragged,row\n")
    out = tmp_path / "out.npy"
    code, error = outcome(monkeypatch, capsys, "embed", path, "--model", tiny_folder, "--output", out)
    assert code == 2 and "line 11" in error
    assert not [p for p in tmp_path.iterdir() if "out.npy" in p.name]


def test_an_interrupted_embed_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.npy"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.npy"]


def test_evaluate_prints_scipys_correlations(tiny_folder, tiny_encoder, pairs_file, capsys):
    task1.main(["evaluate", str(pairs_file), "--model", str(tiny_folder), "--json"])
    result = json.loads(capsys.readouterr().out)
    left, right, scores = zip(*PAIRS, strict=True)
    cosine = (tiny_encoder.encode(left) * tiny_encoder.encode(right)).sum(axis=1)
    assert result["pairs"] == len(PAIRS)
    assert result["spearman"]["value"] == pytest.approx(scipy.stats.spearmanr(cosine, scores).statistic, abs=1e-5)
    assert result["pearson"]["value"] == pytest.approx(scipy.stats.pearsonr(cosine, scores).statistic, abs=1e-5)
    low, high = result["spearman"]["interval_95"]
    assert low < result["spearman"]["value"] < high


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (["sentence1", "sentence2"], "contrastive"),
        (["sentence1", "sentence2", "near_miss"], "near misses"),
        (["sentence1", "sentence2", "score"], "ranking"),
        (["text"], "SimCSE"),
    ],
)
def test_the_columns_choose_the_objective_and_the_run_says_so(header, words, tiny_folder, write_csv, tmp_path, capsys):
    rows = [[f"line {i}", f"it is line {i}", str(i)][: len(header)] for i in range(8)]
    path, output = write_csv("train.csv", header, rows), tmp_path / "out"
    task1.main(["train", str(path), "--model", str(tiny_folder), "--output", str(output), *QUICK])
    assert words in capsys.readouterr().out
    before, after = (SentenceEncoder.from_pretrained(folder).state_dict() for folder in (tiny_folder, output))
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_distillation_brings_the_student_nearer_and_drops_the_projection(
    tiny_folder, tokenizer, write_csv, tmp_path, capsys
):
    path, output = write_csv("train.csv", ["text"], [[f"some text, number {i}"] for i in range(16)]), tmp_path / "out"
    torch.manual_seed(5)
    config = SentenceEncoder.from_pretrained(tiny_folder).config
    SentenceEncoder(config, tokenizer).save_pretrained(tmp_path / "teacher")
    start = ["--model", str(tiny_folder), "--teacher", str(tmp_path / "teacher")]
    task1.main(["train", str(path), *start, "--output", str(output), *QUICK, "--epochs", "8"])
    assert "distillation" in capsys.readouterr().out
    history = json.loads((output / "training.json").read_text())["history"]
    assert history[-1]["train loss"] < history[0]["train loss"]
    assert set(history[0]) == {"step", "train loss", "train distance", "train similarity"}
    saved = SentenceEncoder.from_pretrained(output)
    assert saved.state_dict().keys() == SentenceEncoder.from_pretrained(tiny_folder).state_dict().keys()


def test_two_teachers_are_learned_from_at_once_and_kept_beside_the_output(
    tiny_folder, tokenizer, write_csv, tmp_path, capsys
):
    path = write_csv("train.csv", ["text"], [[f"some text, number {i}"] for i in range(16)])
    config = dataclasses.replace(SentenceEncoder.from_pretrained(tiny_folder).config, hidden_size=48)
    SentenceEncoder(config, tokenizer).save_pretrained(tmp_path / "wide")
    teachers = ["--teacher", str(tmp_path / "wide"), "--teacher", str(tiny_folder)]
    task1.main(["train", str(path), "--model", str(tiny_folder), *teachers, "--output", str(tmp_path / "out"), *QUICK])
    assert f"embed as {tmp_path / 'wide'} and {tiny_folder}" in capsys.readouterr().out
    shapes = sorted(np.load(kept).shape for kept in (tmp_path / "teachers").iterdir())
    assert shapes == [(16, 32 + 1), (16, 48 + 1)]


def test_training_keeps_the_best_model_on_the_dev_file(tiny_folder, pairs_file, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [
        "train",
        str(pairs_file),
        "--dev",
        str(pairs_file),
        "--model",
        str(tiny_folder),
        "--output",
        str(output),
    ]
    task1.main([*arguments, *QUICK])
    training = json.loads((output / "training.json").read_text())
    assert training["best"]["spearman"] == max(row["dev spearman"] for row in training["history"])
    capsys.readouterr()
    task1.main(["evaluate", str(pairs_file), "--model", str(output), "--json"])
    value = json.loads(capsys.readouterr().out)["spearman"]["value"]
    assert value == pytest.approx(training["best"]["spearman"], abs=1e-6)


def test_several_files_are_trained_on_together(tiny_folder, write_csv, tmp_path, capsys):
    paths = [str(write_csv(f"{n}.csv", ["text"], [[f"{n} {i}"] for i in range(5)])) for n in "ab"]
    task1.main(["train", *paths, "--model", str(tiny_folder), "--output", str(tmp_path / "out"), *QUICK])
    assert "10 rows" in capsys.readouterr().out


def test_a_stopped_training_resumes_to_the_same_model(tiny_folder, pairs_file, tmp_path, monkeypatch):
    def arguments(output):
        return ["train", str(pairs_file), "--model", str(tiny_folder), "--output", str(tmp_path / output), *QUICK]

    task1.main(arguments("whole"))
    with interrupted_at(1), pytest.raises(Interrupted, match="the same command with --resume goes on from there"):
        task1.main(arguments("parts"))
    task1.main([*arguments("parts"), "--resume"])
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


OTHERS = {"teacher": None, "similarity_weight": None, "model": None, "from_scratch": None, "device": None}
FIELDS = [f for f in dataclasses.fields(task1.Train) if f.metadata["compared"] and f.name not in OTHERS]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The command of a training that was stopped after two steps."""
    folder = tmp_path_factory.mktemp("unfinished")
    SentenceEncoder(EncoderConfig(**TINY), SentenceTokenizer(max_length=64)).save_pretrained(folder / "tiny")
    for name, header, rows in (
        ("train.csv", ["text", "other"], [[f"line {i}", f"line {i}"] for i in range(8)]),
        ("dev.csv", ["sentence1", "sentence2", "score"], PAIRS),
    ):
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([header, *rows])
    arguments = {"files": (f"{folder}/train.csv",), "output": f"{folder}/o", "model": f"{folder}/tiny"}
    numbers = {"max_steps": 9, "batch_size": 4, "max_length": 20, "dropout": 0.5}
    first = task1.Train(**arguments, dev=f"{folder}/dev.csv", precision="bf16", device="cpu", **numbers)
    with interrupted_at(1), pytest.raises(Interrupted):
        first.run()
    return first


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_resuming_with_any_other_option_is_refused(field, unfinished):
    with pytest.raises(UserError, match=f"^{field.name}: is .*, but .* in the unfinished run"):
        dataclasses.replace(unfinished, **changed(unfinished, field), resume=True).run()


def test_resuming_from_another_model_or_teacher_is_refused(tiny_folder, tokenizer, write_csv, tmp_path):
    path = write_csv("train.csv", ["text"], [[f"line {i}"] for i in range(8)])
    torch.manual_seed(5)
    other = SentenceEncoder(SentenceEncoder.from_pretrained(tiny_folder).config, tokenizer)
    other.save_pretrained(tmp_path / "other")
    arguments = {"files": (str(path),), "output": str(tmp_path / "o"), "model": str(tiny_folder), "device": "cpu"}
    first = task1.Train(**arguments, teacher=(str(tiny_folder),))
    with interrupted_at(0), pytest.raises(Interrupted):
        first.run()
    changes = ({"model": str(tmp_path / "other")}, {"teacher": (str(tmp_path / "other"),)}, {"similarity_weight": 2.0})
    for change in changes:
        with pytest.raises(UserError, match=f"^{next(iter(change))}: is .*, but"):
            dataclasses.replace(first, **change, resume=True).run()


MISTAKES = {
    "unknown command": (["embbed"], 'no command "embbed" (there are: embed, train, evaluate, export'),
    "unknown option": (["embed", "a.txt", "--outptu", "x"], "task1.py embed --help"),
    "no such file": (["embed", "none.txt", "--output", "o.npy", "--model", "{model}"], "none.txt: no such file"),
    "no such model": (["embed", "{text}", "--output", "o.npy", "--model", "./none"], "none: no such model folder"),
    "unknown hub name": (["embed", "{text}", "--output", "o.npy", "--model", "some-org/some-model"], "the hub cannot"),
    "text as output": (
        ["embed", "{text}", "--output", "o.txt", "--model", "{model}"],
        "--output: o.txt: what is written is a NumPy array; give it a name that ends in .npy",
    ),
    "output under a file": (
        ["embed", "{text}", "--output", "{text}/o.npy", "--model", "{model}"],
        "cannot be made a folder",
    ),
    "no tokens a batch": (
        ["embed", "{text}", "--output", "o.npy", "--model", "{model}", "--batch-tokens", "0"],
        "1 or more",
    ),
    "no such device": (
        ["embed", "{text}", "--output", "o.npy", "--model", "{model}", "--device", "tpu9"],
        '--device: this machine has no "tpu9"',
    ),
    "evaluate on text": (["evaluate", "{text}", "--model", "{model}"], 'no column "score"'),
    "dev without scores": (["train", "{text}", "--dev", "{text}", "--output", "o"], 'no column "score"'),
    "train into a model": (["train", "{text}", "--output", "{model}"], "holds a model already"),
    "resume nothing": (
        ["train", "{text}", "--output", "o", "--model", "{model}", "--resume"],
        "no checkpoint to resume",
    ),
    "no epochs": (["train", "{text}", "--output", "o", "--epochs", "0"], "--epochs: must be 1 or more, not 0"),
    "patience without dev": (["train", "{text}", "--output", "o", "--patience", "2"], "--patience needs --dev"),
    "teacher option alone": (["train", "{text}", "--output", "o", "--similarity-weight", "2"], "needs --teacher"),
    "two starts": (["train", "{text}", "--output", "o", "--from-scratch", "--model", "{model}"], "choose one"),
    "dropout of all": (["train", "{text}", "--output", "o", "--dropout", "1"], "from 0 to below 1"),
    "no noise to learn from": (
        ["train", "{text}", "--output", "o", "--model", "{model}", "--dropout", "0"],
        "--dropout 0",
    ),
    "negative weight": (["train", "{text}", "--output", "o", "--similarity-weight", "-1"], "must be 0 or more"),
    "too long": (
        ["train", "{text}", "--output", "o", "--model", "{model}", "--max-length", "999"],
        "must be from 3 to",
    ),
    "into a new folder": (["embed", "none.txt", "--output", "new/o.npy", "--model", "{model}"], "no such file"),
    "train on standard input": (["train", "-", "--output", "o"], "standard input can only be"),
    "no number": (["train", "{text}", "--output", "o", "--epochs", "two"], "invalid int value"),
    "no teacher": (
        ["train", "{text}", "--output", "o", "--model", "{model}", "--teacher", "./none"],
        "no such model folder",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_exit_code_2_and_nothing_written(
    mistake, sentences_file, tiny_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    before = sorted(tmp_path.rglob("*"))
    filled = [argument.format(text=sentences_file, model=tiny_folder) for argument in arguments]
    code, error = outcome(monkeypatch, capsys, *filled)
    assert code == 2
    assert message in error
    assert error.startswith("task1.py: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_model_the_shipped_encoder_embeds(sentences_file, tiny_folder, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("common.load.SHIPPED", tiny_folder)
    task1.main(["embed", str(sentences_file), "--output", str(tmp_path / "o.npy"), "--precision", "fp32"])
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), tiny_encoder.encode(SENTENCES), atol=1e-6)


def test_export_writes_a_folder_that_transformers_opens(tiny_folder, tmp_path, monkeypatch, capsys):
    task1.main(["export", str(tmp_path / "out"), "--model", str(tiny_folder)])
    assert AutoModel.from_pretrained(tmp_path / "out").config.hidden_size == 32
    code, error = outcome(monkeypatch, capsys, "export", tmp_path / "out", "--model", tiny_folder)
    assert code == 2 and "holds a model already" in error


def test_without_dropout_a_training_step_is_not_random(tiny_encoder, tokenizer):
    batch = tokenizer.pad(tokenizer(SENTENCES))
    tiny_encoder.train().set_dropout(0)
    assert torch.equal(tiny_encoder(*batch), tiny_encoder(*batch))
    tiny_encoder.set_dropout(0.5)
    assert not torch.equal(tiny_encoder(*batch), tiny_encoder(*batch))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_cannot_be_written_is_said(sentences_file, tiny_folder, tmp_path, monkeypatch, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    code, error = outcome(
        monkeypatch, capsys, "embed", sentences_file, "--model", tiny_folder, "--output", locked / "o.npy"
    )
    assert code == 2 and "cannot be written" in error


def test_training_runs_in_bf16(tiny_folder, pairs_file, tmp_path):
    output = tmp_path / "out"
    arguments = ["train", str(pairs_file), "--model", str(tiny_folder), "--teacher", str(tiny_folder)]
    task1.main([*arguments, "--output", str(output), *QUICK, "--precision", "bf16"])
    assert SentenceEncoder.from_pretrained(output).dim == 32


def test_evaluate_prints_null_where_a_correlation_is_undefined(tiny_folder, write_csv, capsys):
    same = write_csv("same.csv", ["sentence1", "sentence2", "score"], [["a", "a", 1], ["b", "b", 2], ["c", "c", 3]])
    task1.main(["evaluate", str(same), "--model", str(tiny_folder), "--json"])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["pairs"] == 3


def test_export_over_a_multi_task_model_leaves_no_heads(tiny_folder, tmp_path, capsys):
    for name in ("config.json", "heads.safetensors", "tasks.json", "metrics.json"):
        (tmp_path / name).write_text("old")
    task1.main(["export", str(tmp_path), "--model", str(tiny_folder), "--overwrite"])
    assert not any((tmp_path / name).exists() for name in ("heads.safetensors", "tasks.json", "metrics.json"))


def test_resuming_with_another_dev_file_is_refused(tiny_folder, pairs_file, tmp_path, monkeypatch, capsys):
    arguments = ["train", pairs_file, "--model", tiny_folder, "--output", tmp_path / "out", *QUICK]
    with interrupted_at(1):
        assert outcome(monkeypatch, capsys, *arguments, "--dev", pairs_file)[0] == 130
    code, error = outcome(monkeypatch, capsys, *arguments, "--resume")
    assert code == 2 and "the dev rows changed since" in error


def test_an_overwriting_run_stopped_before_its_first_save_leaves_the_model(tiny_folder, pairs_file):
    before = {path.name: path.read_bytes() for path in tiny_folder.iterdir() if path.is_file()}
    arguments = ["train", str(pairs_file), "--model", str(tiny_folder), "--output", str(tiny_folder), "--overwrite"]
    with interrupted_at(1), pytest.raises(Interrupted):
        task1.main([*arguments, *QUICK])
    assert all((tiny_folder / name).read_bytes() == content for name, content in before.items())
    task1.main([*arguments[:-1], *QUICK, "--resume"])
    assert (tiny_folder / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_bare_it_embeds_measures_and_writes_everything(tiny_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("common.load.SHIPPED", tiny_folder)
    monkeypatch.setattr(task1, "RUN", tmp_path / "task1")
    task1.main([])
    shown = capsys.readouterr().out
    for word in ("What training gave it", "random weights", "nearest", "array (16, 32), norms 1.000000"):
        assert word in shown
    for figure in ("similarity.png", "map.png"):
        assert min(Image.open(tmp_path / "task1" / figure).size) > 500
    assert np.load(tmp_path / "task1" / "embeddings.npy").shape == (16, 32)
    assert SentenceEncoder.from_pretrained(tmp_path / "task1").dim == 32
