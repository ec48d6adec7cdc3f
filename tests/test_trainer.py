import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import common.checkpoint
from common.checkpoint import NAME, restore_checkpoint, save_checkpoint
from common.cli import Interrupted, UserError
from common.data import SentenceDataset
from common.devices import resolve_precision
from common.losses import PairObjective
from common.optim import build_optimizer, build_schedule
from common.pretrained import PretrainedEncoder
from common.trainer import Trainer, TrainingConfig, refuse_existing
from tests.test_encoder import tiny_transformer

ROWS = [
    (f"sentence number {i} speaks of {word}", f"{word}, says line {i}") for i, word in enumerate("abcdefghijklmnop")
]
CONFIG = TrainingConfig(epochs=3, batch_tokens=100, learning_rate=1e-3, device="cpu", precision="fp32")
Weights = dict[str, torch.Tensor]


def trainer_for(encoder, output, config=CONFIG, before_batch=lambda trainer: None, **options) -> Trainer:
    """A trainer on a copy of the encoder; `before_batch` may disturb it at any step."""
    data = SentenceDataset(ROWS, encoder.tokenizer)
    objective = PairObjective(copy.deepcopy(encoder))
    collate = data.collate

    def disturbed(indices):
        before_batch(trainer)
        return collate(indices)

    data.collate = disturbed
    trainer = Trainer(objective, data, config, output, lambda: None, **options)
    return trainer


def weights(trainer: Trainer) -> Weights:
    return {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}


def equal(left: Weights, right: Weights) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def uninterrupted(tiny_encoder, tmp_path):
    trainer = trainer_for(tiny_encoder, tmp_path / "whole")
    trainer.train()
    return trainer


def at_step(step, act):
    return lambda trainer: act() if trainer.progress.step == step else None


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_training_moves_every_weight_and_the_loss_falls(tiny_encoder, uninterrupted):
    before = PairObjective(tiny_encoder).state_dict()
    same = [name for name, tensor in weights(uninterrupted).items() if torch.equal(tensor, before[name])]
    assert same == []
    history = uninterrupted.progress.history
    assert history[-1]["train loss"] < history[0]["train loss"]


def test_same_seed_same_weights_and_another_seed_others(tiny_encoder, uninterrupted, tmp_path):
    again = trainer_for(tiny_encoder, tmp_path / "again")
    again.train()
    other = trainer_for(tiny_encoder, tmp_path / "other", dataclasses.replace(CONFIG, seed=1))
    other.train()
    assert equal(weights(again), weights(uninterrupted))
    assert not equal(weights(other), weights(uninterrupted))


@pytest.mark.parametrize("step", [1, 4, 5])
def test_interrupted_and_resumed_is_bit_identical(tiny_encoder, uninterrupted, tmp_path, step):
    with pytest.raises(Interrupted, match=f"stopped after step {step + 1}"):
        trainer_for(tiny_encoder, tmp_path / "run", before_batch=at_step(step, interrupt)).train()
    resumed = trainer_for(tiny_encoder, tmp_path / "run")
    resumed.train(resume=True)
    assert equal(weights(resumed), weights(uninterrupted))
    assert resumed.progress.history == uninterrupted.progress.history
    resumed.finish()
    assert not (tmp_path / "run" / NAME).exists()


def test_a_crash_within_a_step_resumes_from_the_last_checkpoint(tiny_encoder, uninterrupted, tmp_path):
    def crash():
        raise MemoryError

    with pytest.raises(MemoryError):
        trainer_for(tiny_encoder, tmp_path / "run", before_batch=at_step(7, crash)).train()
    resumed = trainer_for(tiny_encoder, tmp_path / "run")
    resumed.train(resume=True)
    assert equal(weights(resumed), weights(uninterrupted))


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import common.checkpoint
from common.encoder import SentenceEncoder
from tests.test_trainer import at_step, interrupt, trainer_for

write, saves = common.checkpoint.save_file, 0

def die_in_the_middle(tensors, path, metadata):
    global saves
    saves += 1
    if saves == 1:
        return write(tensors, path, metadata)
    write(tensors, path, metadata)
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


def test_resuming_with_another_option_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(Interrupted):
        trainer_for(tiny_encoder, tmp_path, before_batch=at_step(1, interrupt)).train()
    other = trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, epochs=4))
    with pytest.raises(UserError, match=r"--epochs 3, not 4"):
        other.train(resume=True)


def test_resuming_on_other_data_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(Interrupted):
        trainer_for(tiny_encoder, tmp_path, before_batch=at_step(1, interrupt)).train()
    data = SentenceDataset(ROWS[1:], tiny_encoder.tokenizer)
    other = Trainer(PairObjective(tiny_encoder), data, CONFIG, tmp_path, lambda: None)
    with pytest.raises(UserError, match="other data"):
        other.train(resume=True)


def test_nothing_to_resume_is_said(tiny_encoder, tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        trainer_for(tiny_encoder, tmp_path).train(resume=True)


def test_a_damaged_checkpoint_is_said(tiny_encoder, tmp_path):
    (tmp_path / NAME).write_bytes(b"\x08\0\0\0\0\0\0\0damaged!")
    with pytest.raises(UserError, match="damaged"):
        trainer_for(tiny_encoder, tmp_path).train(resume=True)


def test_a_run_is_not_lost_by_starting_another(tmp_path):
    (tmp_path / NAME).touch()
    with pytest.raises(UserError, match="unfinished run"):
        refuse_existing(tmp_path, resume=False, overwrite=False)
    refuse_existing(tmp_path, resume=True, overwrite=False)
    (tmp_path / NAME).rename(tmp_path / "config.json")
    refuse_existing(tmp_path, resume=False, overwrite=True)
    assert (tmp_path / "config.json").exists()
    with pytest.raises(UserError, match="holds a model already"):
        refuse_existing(tmp_path, resume=False, overwrite=False)


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_checkpoint(tiny_encoder, tmp_path):
    def spoil(trainer):
        if trainer.progress.step == 7:
            trainer.objective.encoder.layers[0].feed_forward.bias.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"step 8: the loss is nan.*checkpoint of step 6 is kept"):
        trainer_for(
            tiny_encoder, tmp_path, before_batch=spoil, config=dataclasses.replace(CONFIG, evaluate_every=3)
        ).train()
    resumed = trainer_for(tiny_encoder, tmp_path, config=dataclasses.replace(CONFIG, evaluate_every=3))
    resumed.train(resume=True)
    assert all(torch.isfinite(tensor).all() for tensor in weights(resumed).values())


def test_the_best_model_is_saved_and_patience_ends_the_training(tiny_encoder, tmp_path):
    scores, saved = iter([float("nan"), 0.5, 0.4, 0.3, 0.9]), []
    config = dataclasses.replace(CONFIG, evaluate_every=1, patience=2)
    trainer = trainer_for(tiny_encoder, tmp_path, config, evaluate=lambda: {"score": next(scores)})
    trainer.save = lambda: saved.append(trainer.progress.step)
    progress = trainer.train()
    assert saved == [1, 2]
    assert progress.best == {"step": 2, "score": 0.5}
    assert progress.step == 4 and progress.stopped_early


def test_accumulated_batches_take_the_step_of_their_mean_loss(tiny_encoder, tmp_path):
    config = dataclasses.replace(CONFIG, accumulate=2, max_steps=1, clip_norm=1e9, warmup=0.0)
    for module in tiny_encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in tiny_encoder.layers:
        layer.attention_dropout = 0.0
    trainer = trainer_for(tiny_encoder, tmp_path, config)
    batches = trainer._plan(0)[0]
    reference = PairObjective(copy.deepcopy(tiny_encoder))
    optimizer = build_optimizer(reference, config.learning_rate, config.weight_decay)
    data = SentenceDataset(ROWS, tiny_encoder.tokenizer)
    (sum(reference(data.collate(batch))["loss"] for batch in batches) / 2).backward()
    optimizer.step()
    trainer.train()
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(weights(trainer)[name], tensor, atol=1e-6, rtol=1e-5)


def test_checkpoint_gives_back_every_bit(tiny_encoder, tmp_path):
    optimizer = build_optimizer(tiny_encoder, 1e-3)
    tiny_encoder(torch.tensor([[5, 6, 7]]), torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before, state = copy.deepcopy(tiny_encoder.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    save_checkpoint(tmp_path, tiny_encoder, optimizer, {"step": 3})
    drawn = torch.rand(4)
    with torch.no_grad():
        for parameter in tiny_encoder.parameters():
            parameter.zero_()
    fresh = build_optimizer(tiny_encoder, 1e-3)
    assert restore_checkpoint(tmp_path, tiny_encoder, fresh) == {"step": 3}
    assert equal(before, tiny_encoder.state_dict())
    for index, values in state.items():
        assert equal(values, fresh.state_dict()["state"][index])
    assert torch.equal(torch.rand(4), drawn)


def test_biases_and_norms_have_no_weight_decay_and_each_parameter_one_group(tiny_encoder):
    optimizer = build_optimizer(tiny_encoder, 1e-3, 0.01, tiny_encoder.parts(), {"embeddings": 1e-4})
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, tiny_encoder.parameters()))
    for group in optimizer.param_groups:
        assert all((p.dim() > 1) == (group["weight_decay"] == 0.01) for p in group["params"])
    embeddings = {id(p) for p in tiny_encoder.embeddings.parameters()}
    for group in optimizer.param_groups:
        assert all((id(p) in embeddings) == (group["lr"] == 1e-4) for p in group["params"])


def test_rates_rise_through_the_warm_up_and_fall_to_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, "linear", warmup=0.2, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup", 1.5),
        ("seed", -1),
        ("weight_decay", -1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(UserError, match=setting.replace("_", "-")):
        TrainingConfig(**{setting: value})


def test_a_device_that_is_not_there_is_said(tiny_encoder, tmp_path):
    with pytest.raises(UserError, match="--device nonsense"):
        trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, device="nonsense"))


def test_progress_in_the_checkpoint_is_plain_json(tiny_encoder, tmp_path):
    with pytest.raises(Interrupted):
        trainer_for(tiny_encoder, tmp_path, before_batch=at_step(1, interrupt)).train()
    progress = common.checkpoint.read_progress(tmp_path)
    assert json.loads(json.dumps(progress)) == progress
    assert progress["step"] == 2


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_trains_in_the_precision_asked_for(tiny_encoder, tmp_path, precision):
    trainer = trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, precision=precision))
    seen = set()
    layer = trainer.objective.encoder.layers[0].feed_forward
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.train()
    assert seen == {{"bf16": torch.bfloat16, "fp32": torch.float32}[precision]}
    assert {p.dtype for p in trainer.objective.parameters()} == {torch.float32}


def test_auto_precision_is_bf16_only_where_the_processor_has_it(monkeypatch):
    for capabilities, expected in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx2": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert resolve_precision("auto", torch.device("cpu")) == expected


def test_a_new_run_removes_what_an_old_one_left(tiny_encoder, tmp_path):
    for name in ("heads.safetensors", "tasks.json", NAME):
        (tmp_path / name).write_text("old")
    trainer_for(tiny_encoder, tmp_path).train()
    assert not any((tmp_path / name).exists() for name in ("heads.safetensors", "tasks.json"))


def test_files_that_are_no_runs_are_left_alone(tiny_encoder, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    trainer_for(tiny_encoder, tmp_path).train()
    assert (tmp_path / "metrics.json").read_text() == "mine"


def test_an_encoder_of_another_architecture_trains_and_resumes(tiny_encoder, tmp_path):
    tokenizer = tiny_encoder.tokenizer
    roberta = PretrainedEncoder(tiny_transformer("roberta", tokenizer.vocab_size), tokenizer)
    whole = trainer_for(roberta, tmp_path / "whole")
    whole.train()
    with pytest.raises(Interrupted):
        trainer_for(roberta, tmp_path / "run", before_batch=at_step(4, interrupt)).train()
    resumed = trainer_for(roberta, tmp_path / "run")
    resumed.train(resume=True)
    assert equal(weights(resumed), weights(whole))
