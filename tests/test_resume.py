"""Stopping, resuming, checkpoints, and what a folder holds when a training replaces another."""

import copy
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file as torch_save

import common.checkpoint
import common.train
from common.checkpoint import CHECKPOINT, refuse_existing, restore_checkpoint, save_checkpoint
from common.config import TrainingConfig
from common.encoder import EncoderConfig, SentenceEncoder
from common.errors import Interrupted, ProcessLost, UserError
from common.optim import build_optimizer
from common.pretrained import PretrainedEncoder
from common.tokenizer import SentenceTokenizer
from tests.conftest import TINY, changed, tiny_transformer
from tests.trainings import CONFIG, ROWS, at_step, equal, interrupt, stopped, trainer_for, weights


@pytest.mark.parametrize("step", [1, 3, 7])
def test_interrupted_and_resumed_is_bit_identical(tiny_encoder, uninterrupted, tmp_path, step):
    stopped(tiny_encoder, tmp_path / "run", step)
    torch.rand(7)  # the random state of the process plays no part
    resumed = trainer_for(tiny_encoder, tmp_path / "run")
    resumed.train(resume=True)
    assert equal(weights(resumed), weights(uninterrupted))
    assert resumed.progress.history == uninterrupted.progress.history
    resumed.finish()
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_a_crash_within_a_step_resumes_from_the_last_checkpoint(tiny_encoder, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(common.train, "CHECKPOINT_SECONDS", -1)

    def crash():
        raise MemoryError

    with pytest.raises(MemoryError):
        trainer_for(tiny_encoder, tmp_path / "run", before_step=at_step(4, crash)).train()
    resumed = trainer_for(tiny_encoder, tmp_path / "run")
    resumed.train(resume=True)
    assert equal(weights(resumed), weights(uninterrupted))


KILLED_WHILE_SAVING = """
import os, signal, sys
import torch
import common.checkpoint, common.train
from common.encoder import SentenceEncoder
from tests.trainings import trainer_for

torch.set_num_threads(1)  # as the test itself
common.train.CHECKPOINT_SECONDS = -1
write, saves = common.checkpoint.save_file, 0

def die_in_the_middle(tensors, path, metadata):
    global saves
    saves += 1
    write(tensors, path, metadata)
    if saves == 2:
        with open(path, "r+b") as stream:
            stream.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

common.checkpoint.save_file = die_in_the_middle
trainer_for(SentenceEncoder.from_pretrained(sys.argv[1]), sys.argv[2]).train()
"""


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before(
    tiny_encoder, tiny_folder, uninterrupted, tmp_path
):
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tiny_folder), str(tmp_path / "run")]
    killed = subprocess.run(command, capture_output=True, cwd=Path(__file__).parent.parent)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = trainer_for(tiny_encoder, tmp_path / "run")
    resumed.train(resume=True)
    assert equal(weights(resumed), weights(uninterrupted))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """An encoder, the configuration and the folder of a training that was stopped after two steps."""
    torch.manual_seed(0)
    encoder = SentenceEncoder(EncoderConfig(**TINY), SentenceTokenizer(max_length=64)).eval()
    config, folder = dataclasses.replace(CONFIG, max_steps=9), tmp_path_factory.mktemp("unfinished")
    stopped(encoder, folder, config=config)
    return encoder, config, folder


@pytest.mark.parametrize("field", [f for f in dataclasses.fields(TrainingConfig) if f.name != "device"])
def test_resuming_with_any_other_option_is_refused(field, unfinished):
    encoder, config, folder = unfinished
    other = trainer_for(encoder, folder, dataclasses.replace(config, **changed(config, field)), scores=[0] * 9)
    with pytest.raises(UserError, match=f"{field.name}: is .*, but .* in the unfinished run"):
        other.train(resume=True)


def test_resuming_with_another_device_is_refused(tiny_encoder, tmp_path):
    stopped(tiny_encoder, tmp_path)
    with pytest.raises(UserError, match="device: is auto, but cpu"):
        trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, device="auto")).train(resume=True)


def test_resuming_where_auto_means_another_precision_is_refused(tiny_encoder, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, precision="auto")
    stopped(tiny_encoder, tmp_path, config=config)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    with pytest.raises(UserError, match="precision: is bf16, but fp32 in the unfinished run"):
        trainer_for(tiny_encoder, tmp_path, config).train(resume=True)


def test_resuming_on_other_data_is_refused(tiny_encoder, tmp_path):
    stopped(tiny_encoder, tmp_path)
    with pytest.raises(UserError, match="the training rows changed since the unfinished run"):
        trainer_for(tiny_encoder, tmp_path, rows=[*ROWS[1:], ROWS[0]]).train(resume=True)


ANOTHER_START = {
    "weights": lambda encoder: encoder.layers[0].feed_forward.bias.data.add_(1),
    "configuration": lambda encoder: setattr(encoder, "config", dataclasses.replace(encoder.config, hidden_act="relu")),
    "pooling": lambda encoder: setattr(encoder, "pooling", "cls"),
    "length": lambda encoder: encoder.cut_at(40),
}


@pytest.mark.parametrize("change", ANOTHER_START)
def test_resuming_from_another_start_is_refused(change, tiny_encoder, tmp_path):
    stopped(tiny_encoder, tmp_path)
    ANOTHER_START[change](tiny_encoder)
    with pytest.raises(UserError, match="the starting model changed since the unfinished run"):
        trainer_for(tiny_encoder, tmp_path).train(resume=True)


def test_resuming_with_other_stages_frozen_is_refused(tiny_encoder, tmp_path):
    stopped(tiny_encoder, tmp_path)
    tiny_encoder.layers[0].requires_grad_(False)
    with pytest.raises(UserError, match="the frozen stages changed since the unfinished run"):
        trainer_for(tiny_encoder, tmp_path).train(resume=True)


def test_nothing_to_resume_is_said(tiny_encoder, tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        trainer_for(tiny_encoder, tmp_path).train(resume=True)


def test_a_damaged_checkpoint_is_said(tiny_encoder, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"\x08\0\0\0\0\0\0\0damaged!")
    with pytest.raises(UserError, match="damaged"):
        trainer_for(tiny_encoder, tmp_path).train(resume=True)


def test_a_run_is_not_lost_by_starting_another(tmp_path):
    (tmp_path / CHECKPOINT).touch()
    with pytest.raises(UserError, match="unfinished run"):
        refuse_existing(tmp_path, resume=False, overwrite=False)
    refuse_existing(tmp_path, resume=True, overwrite=False)
    (tmp_path / CHECKPOINT).rename(tmp_path / "config.json")
    refuse_existing(tmp_path, resume=False, overwrite=True)
    assert (tmp_path / "config.json").exists()
    with pytest.raises(UserError, match="holds a model already"):
        refuse_existing(tmp_path, resume=False, overwrite=False)
    (tmp_path / "tasks.json").touch()
    with pytest.raises(UserError, match="holds a model and its tasks' heads already"):
        refuse_existing(tmp_path, resume=False, overwrite=False)


def test_from_python_a_model_is_not_replaced_unless_asked(tiny_encoder, tiny_folder):
    before = (tiny_folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a model already"):
        trainer_for(tiny_encoder, tiny_folder).train()
    assert (tiny_folder / "model.safetensors").read_bytes() == before
    trainer_for(tiny_encoder, tiny_folder).train(overwrite=True)
    assert (tiny_folder / "model.safetensors").read_bytes() != before


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_overwriting_run_stopped_before_its_first_save_leaves_the_old_one(tiny_encoder, tiny_folder):
    (tiny_folder / "metrics.json").write_text("old")
    before = files_in(tiny_folder)
    with pytest.raises(Interrupted):
        trainer_for(tiny_encoder, tiny_folder, before_step=at_step(2, interrupt)).train(overwrite=True)
    after = files_in(tiny_folder)
    assert after.pop(CHECKPOINT)
    assert after == before


@pytest.mark.parametrize("begun_with", ["config.json", CHECKPOINT])
def test_what_an_old_run_left_goes_when_its_successor_is_whole(begun_with, tiny_encoder, tmp_path):
    leftovers = ("heads.safetensors", "tasks.json", "metrics.json", "confusion.png")
    for name in (*leftovers, begun_with):
        (tmp_path / name).write_text("old")
    trainer = trainer_for(tiny_encoder, tmp_path)
    trainer.train(overwrite=True)
    assert not any((tmp_path / name).exists() for name in leftovers)


def test_files_that_belong_to_no_run_are_left_alone(tiny_encoder, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    trainer_for(tiny_encoder, tmp_path).train()
    assert (tmp_path / "metrics.json").read_text() == "mine"


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_checkpoint(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(common.train, "CHECKPOINT_SECONDS", -1)

    def spoil(trainer):
        if trainer.progress.step == 5:
            trainer.objective.encoder.layers[0].feed_forward.bias.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"step 6: the loss is nan.*checkpoint of step 5 is kept"):
        trainer_for(tiny_encoder, tmp_path, before_step=spoil).train()
    resumed = trainer_for(tiny_encoder, tmp_path)
    resumed.train(resume=True)
    assert all(torch.isfinite(tensor).all() for tensor in weights(resumed).values())


@pytest.mark.parametrize("evaluated", [0, 1, 2])
def test_an_evaluation_in_which_a_process_was_lost_is_made_up_for(evaluated, tiny_encoder, tmp_path):
    scores = [0.1, 0.2, 0.3]  # after each of three epochs

    def until_lost():
        yield from scores[:evaluated]
        raise ProcessLost

    whole = trainer_for(tiny_encoder, tmp_path / "whole", scores=scores)
    whole.train()
    with pytest.raises(ProcessLost):
        trainer_for(tiny_encoder, tmp_path / "run", scores=until_lost()).train()
    resumed = trainer_for(tiny_encoder, tmp_path / "run", scores=scores[evaluated:])
    resumed.train(resume=True)
    assert resumed.progress.history == whole.progress.history
    assert resumed.progress.best == whole.progress.best
    assert equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("scores", [None, [0.1, 0.2, 0.3]])
def test_a_run_stopped_after_its_last_step_goes_on_to_its_end(scores, tiny_encoder, tmp_path):
    trained = trainer_for(tiny_encoder, tmp_path, scores=scores)
    trained.train()  # and no `finish`
    again = trainer_for(tiny_encoder, tmp_path, scores=scores)
    again.train(resume=True)
    assert again.progress.history == trained.progress.history
    assert equal(weights(again), weights(trained))


def test_an_overwriting_runs_first_model_ends_the_old_unfinished_run(tiny_encoder, tmp_path, monkeypatch):
    def crash(*_):
        raise MemoryError

    stopped(tiny_encoder, tmp_path)
    monkeypatch.setattr(common.train, "save_checkpoint", crash)
    with pytest.raises(MemoryError):
        trainer_for(tiny_encoder, tmp_path, scores=[0.1] * 3).train(overwrite=True)
    assert (tmp_path / "config.json").exists()
    assert not (tmp_path / CHECKPOINT).exists()


def test_what_a_killed_save_left_is_taken_away(tiny_encoder, tmp_path):
    stopped(tiny_encoder, tmp_path)
    (tmp_path / ".checkpoint.safetensors.123.partial").touch()
    (tmp_path / ".tmpAb3dEf").touch()
    (tmp_path / ".partial-abc").mkdir()
    (tmp_path / ".partial-abc" / "model.safetensors").touch()
    trainer_for(tiny_encoder, tmp_path).train(resume=True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("scores", "checkpoints"), [(None, 1), ([0.5, 0.4, 0.3, 0.6], 3)])
def test_a_checkpoint_is_written_for_a_new_best_model_and_at_the_end(
    scores, checkpoints, tiny_encoder, tmp_path, monkeypatch
):
    written = []
    monkeypatch.setattr(common.train, "save_checkpoint", lambda *_: written.append(1))
    config = dataclasses.replace(CONFIG, evaluate_every=1, max_steps=5)
    trainer_for(tiny_encoder, tmp_path, config, scores=scores and [*scores, 0.1]).train()
    assert len(written) == checkpoints


def test_checkpoint_gives_back_every_bit(tiny_encoder, tmp_path):
    optimizer = build_optimizer(tiny_encoder, 1e-3)
    tiny_encoder(torch.tensor([[5, 6, 7]]), torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before, state = copy.deepcopy(tiny_encoder.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    save_checkpoint(tmp_path, tiny_encoder, optimizer, {"step": 3})
    with torch.no_grad():
        for parameter in tiny_encoder.parameters():
            parameter.zero_()
    fresh = build_optimizer(tiny_encoder, 1e-3)
    restore_checkpoint(tmp_path, tiny_encoder, fresh)
    assert common.checkpoint.read_progress(tmp_path) == {"step": 3}
    assert equal(before, tiny_encoder.state_dict())
    restored = fresh.state_dict()["state"]
    assert all(torch.equal(restored[i][name], value) for i, values in state.items() for name, value in values.items())


def test_a_checkpoint_of_a_model_of_another_shape_is_refused(tiny_encoder, tmp_path):
    optimizer = build_optimizer(tiny_encoder, 1e-3)
    tiny_encoder(torch.tensor([[5, 6, 7]]), torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, tiny_encoder, optimizer, {})
    with pytest.raises(UserError, match="another shape"):
        restore_checkpoint(tmp_path, torch.nn.Linear(2, 2), optimizer)
    with pytest.raises(UserError, match="another shape"):
        restore_checkpoint(tmp_path, tiny_encoder, build_optimizer(tiny_encoder.layers[0], 1e-3))


def test_a_file_that_is_no_checkpoint_of_ours_is_said(tiny_encoder, tmp_path):
    torch_save({"a": torch.zeros(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="is no checkpoint of a training here"):
        trainer_for(tiny_encoder, tmp_path).train(resume=True)


def test_progress_in_the_checkpoint_is_plain_json(tiny_encoder, tmp_path):
    stopped(tiny_encoder, tmp_path)
    progress = common.checkpoint.read_progress(tmp_path)
    assert json.loads(json.dumps(progress)) == progress
    assert progress["step"] == 2


def test_an_encoder_of_another_architecture_trains_and_resumes(tiny_encoder, tmp_path):
    tokenizer = tiny_encoder.tokenizer
    roberta = PretrainedEncoder(tiny_transformer("roberta", tokenizer.vocab_size), tokenizer)
    whole = trainer_for(roberta, tmp_path / "whole")
    whole.train()
    stopped(roberta, tmp_path / "run", 4)
    resumed = trainer_for(roberta, tmp_path / "run")
    resumed.train(resume=True)
    assert equal(weights(resumed), weights(whole))
