"""A training of `task2.py` that was stopped, and one that takes the place of another."""

import csv
import dataclasses

import pytest

import task2
from common.encoder import EncoderConfig, SentenceEncoder
from common.errors import Interrupted, UserError
from common.tokenizer import SentenceTokenizer
from tests.conftest import TINY, changed, interrupted_at
from tests.labelled import QUICK, ROWS

WAYS = {
    "learned weights": ["--balance", "uncertainty", "--evaluate-every", "1"],
    "heads alone": ["--freeze", "encoder"],
    "gradual unfreezing": ["--unfreeze", "gradual", "--rates", "layerwise"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_training_resumes_to_the_same_model(way, labelled, tiny_folder, tmp_path):
    def arguments(output):
        start = ["train", str(labelled), "--encoder", str(tiny_folder), "--output", str(tmp_path / output)]
        return [*start, "--dev", str(labelled), *QUICK, "--batch-size", "3", *WAYS[way]]

    task2.main(arguments("whole"))
    with interrupted_at(4), pytest.raises(Interrupted, match="the same command with --resume goes on from there"):
        task2.main(arguments("parts"))
    task2.main([*arguments("parts"), "--resume"])
    for name in ("model.safetensors", "heads.safetensors", "history.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


OTHERS = {
    "task_weight": (("topic", 0.7),),
    "freeze": ("stages:0",),
    "rates": "layerwise",
    "unfreeze": 0.5,
    "tasks": ("topic", "mood"),
}


NOT_HERE = ("encoder", "model", "from_scratch", "device")


FIELDS = [f for f in dataclasses.fields(task2.Train) if f.metadata["compared"] and f.name not in NOT_HERE]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The command of a training that was stopped after two steps."""
    folder = tmp_path_factory.mktemp("unfinished")
    SentenceEncoder(EncoderConfig(**TINY), SentenceTokenizer(max_length=64)).save_pretrained(folder / "tiny")
    labelled = folder / "labelled.csv"
    with labelled.open("w", newline="") as stream:
        csv.writer(stream).writerows([["text", "topic", "mood"], *ROWS])
    arguments = {"files": (str(labelled),), "output": str(folder / "o"), "encoder": str(folder / "tiny")}
    numbers = {"max_steps": 9, "batch_size": 4, "max_length": 20, "dropout": 0.5}
    first = task2.Train(**arguments, dev=(str(labelled),), precision="bf16", device="cpu", **numbers)
    with interrupted_at(1), pytest.raises(Interrupted):
        first.run()
    return first


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_resuming_with_any_other_option_is_refused(field, unfinished):
    other = {field.name: OTHERS[field.name]} if field.name in OTHERS else changed(unfinished, field)
    with pytest.raises(UserError, match=f"^{field.name}: is .*, but .* in the unfinished run"):
        dataclasses.replace(unfinished, **other, resume=True).run()


STARTS = {
    "encoder": lambda folder: {"encoder": f"{folder}/model"},
    "model": lambda folder: {"encoder": None, "model": f"{folder}/model"},
    "scratch": lambda _: {"encoder": None, "from_scratch": True},
    "dev": lambda _: {"dev": ()},
}


@pytest.mark.parametrize("name", STARTS)
def test_resuming_from_another_start_is_refused(name, unfinished, trained, tmp_path, monkeypatch):
    config = SentenceEncoder.from_pretrained(unfinished.encoder).config
    monkeypatch.setattr(task2, "SentenceEncoder", lambda: SentenceEncoder(config))
    with pytest.raises(UserError, match=r"is .*, but .* in the unfinished run|changed since the unfinished run"):
        dataclasses.replace(unfinished, **STARTS[name](tmp_path), resume=True).run()


def test_other_labels_in_the_files_are_refused_on_resuming(labelled, tiny_folder, tmp_path):
    arguments = {"files": (str(labelled),), "output": str(tmp_path / "o"), "encoder": str(tiny_folder)}
    with interrupted_at(0), pytest.raises(Interrupted):
        task2.Train(**arguments).run()
    labelled.write_text(labelled.read_text().replace("Sports,good", "Science,good"))
    with pytest.raises(UserError, match="the training rows changed since"):
        task2.Train(**arguments, resume=True).run()


def test_a_model_trained_further_in_its_own_folder_is_there_until_its_successor_is(trained, labelled):
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    arguments = ["train", str(labelled), "--model", str(trained), "--output", str(trained), *QUICK]
    with interrupted_at(1), pytest.raises(Interrupted):
        task2.main([*arguments, "--overwrite"])
    assert all((trained / name).read_bytes() == content for name, content in before.items())
    task2.main([*arguments, "--resume"])
    assert (trained / "heads.safetensors").read_bytes() != before["heads.safetensors"]


def test_a_run_that_has_replaced_its_own_start_goes_on(trained, labelled):
    arguments = ["train", str(labelled), "--dev", str(labelled), "--model", str(trained), "--output", str(trained)]
    arguments += [*QUICK, "--evaluate-every", "1"]
    before = (trained / "heads.safetensors").read_bytes()
    with interrupted_at(2), pytest.raises(Interrupted):
        task2.main([*arguments, "--overwrite"])
    assert (trained / "heads.safetensors").read_bytes() != before
    task2.main([*arguments, "--resume"])


def test_a_run_without_dev_leaves_no_confusion_of_the_one_before(labelled, tiny_folder, tmp_path):
    arguments = ["train", str(labelled), "--encoder", str(tiny_folder), "--output", str(tmp_path / "o"), *QUICK]
    task2.main([*arguments, "--dev", str(labelled)])
    assert (tmp_path / "o" / "confusion.png").exists()
    task2.main([*arguments, "--overwrite"])
    assert not (tmp_path / "o" / "confusion.png").exists()
    assert (tmp_path / "o" / "curves.png").exists()
