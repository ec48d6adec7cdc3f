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
from safetensors.torch import save_file as torch_save
from torch.utils._python_dispatch import TorchDispatchMode

import common.checkpoint
import common.train
from common.checkpoint import CHECKPOINT, refuse_existing, restore_checkpoint, save_checkpoint
from common.cli import at_least
from common.config import TrainingConfig
from common.data import SentenceDataset
from common.devices import resolve_precision
from common.encoder import EncoderConfig, SentenceEncoder
from common.errors import Interrupted, UserError
from common.metrics import pair_similarities, spearman
from common.optim import build_optimizer
from common.pretrained import PretrainedEncoder
from common.rows import TrainingRows
from common.sentences import PairObjective
from common.tokenizer import SentenceTokenizer
from common.train import Trainer
from tests.conftest import TINY, changed, tiny_transformer

ROWS = [
    (f"sentence number {i} speaks of {word}" + " at length" * (i % 4), f"{word}, says line {i}")
    for i, word in enumerate("abcdefghijklmnop")
]
CONFIG = TrainingConfig(epochs=3, batch_size=6, learning_rate=1e-3, device="cpu", precision="fp32")
Weights = dict[str, torch.Tensor]


class Judged(PairObjective):
    """A pair objective whose dev scores are given, and which remembers the steps at which it was saved."""

    def __init__(self, encoder, data, scores=None):
        super().__init__(encoder, data)
        self.evaluates, self.scores, self.saved = scores is not None, iter(scores or []), []

    def evaluate(self, **options):
        return {"score": next(self.scores)}

    def save(self, folder):
        self.saved.append(folder)
        super().save(folder)


def trainer_for(encoder, output, config=CONFIG, before_step=lambda trainer: None, scores=None, rows=ROWS) -> Trainer:
    """A trainer on a copy of the encoder; `before_step` may disturb it at any step."""
    data = SentenceDataset(rows, encoder.tokenizer)
    trainer = Trainer(Judged(copy.deepcopy(encoder), data, scores), config, output)
    backward = trainer._backward

    def disturbed(*arguments):
        before_step(trainer)
        return backward(*arguments)

    trainer._backward = disturbed
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


def stopped(tiny_encoder, output, step=1, config=CONFIG):
    """Leave an unfinished run in a folder."""
    with pytest.raises(Interrupted, match=f"stopped after step {step + 1} of"):
        trainer_for(tiny_encoder, output, config, before_step=at_step(step, interrupt)).train()


def test_training_moves_every_weight(tiny_encoder, uninterrupted):
    before = uninterrupted.objective.state_dict().keys()
    start = PairObjective(tiny_encoder, uninterrupted.objective.data).state_dict()
    assert [name for name in before if torch.equal(weights(uninterrupted)[name], start[name])] == []


def test_the_loss_falls_over_the_epochs(tiny_encoder, tmp_path):
    history = trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, epochs=8)).train().history
    assert history[-1]["train loss"] < 0.8 * history[0]["train loss"]


def test_same_seed_same_weights_and_another_seed_others(tiny_encoder, uninterrupted, tmp_path):
    again = trainer_for(tiny_encoder, tmp_path / "again")
    again.train()
    other = trainer_for(tiny_encoder, tmp_path / "other", dataclasses.replace(CONFIG, seed=1))
    other.train()
    assert equal(weights(again), weights(uninterrupted))
    assert not equal(weights(other), weights(uninterrupted))


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
import common.checkpoint, common.train
from common.encoder import SentenceEncoder
from tests.test_train import trainer_for

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


def test_resuming_from_another_start_is_refused(tiny_encoder, tmp_path):
    stopped(tiny_encoder, tmp_path)
    tiny_encoder.layers[0].feed_forward.bias.data += 1
    with pytest.raises(UserError, match="the starting weights changed since the unfinished run"):
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


@pytest.mark.parametrize(("scores", "checkpoints"), [(None, 0), ([0.5, 0.4, 0.3, 0.6], 2)])
def test_a_checkpoint_is_written_for_a_new_best_model_and_not_at_each_evaluation(
    scores, checkpoints, tiny_encoder, tmp_path, monkeypatch
):
    written = []
    monkeypatch.setattr(common.train, "save_checkpoint", lambda *_: written.append(1))
    config = dataclasses.replace(CONFIG, evaluate_every=1, max_steps=5)
    trainer_for(tiny_encoder, tmp_path, config, scores=scores and [*scores, 0.1]).train()
    assert len(written) == checkpoints


def test_the_best_model_is_saved_and_patience_ends_the_training(tiny_encoder, tmp_path):
    config = dataclasses.replace(CONFIG, evaluate_every=1, patience=2)
    trainer = trainer_for(tiny_encoder, tmp_path, config, scores=[float("nan"), 0.5, 0.4, 0.3, 0.9])
    progress = trainer.train()
    assert len(trainer.objective.saved) == 2
    assert progress.best == {"step": 2, "score": 0.5}
    assert progress.step == 4 and progress.stopped_early


def test_patience_without_an_evaluation_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(UserError, match="patience: needs a dev set"):
        trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, patience=1))


def test_the_first_step_already_moves_the_weights(tiny_encoder, tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=10, warmup=1.0)
    rates = []
    trainer = trainer_for(
        tiny_encoder, tmp_path, config, before_step=lambda t: rates.append(t.optimizer.param_groups[0]["lr"])
    )
    before = weights(trainer)
    trainer_update = trainer._update
    moved = []

    def update(loss):
        trainer_update(loss)
        moved.append(not equal(before, weights(trainer)))

    trainer._update = update
    trainer.train()
    assert moved[0]
    assert rates[1:] == pytest.approx([1e-3 * (step + 1) / 10 for step in range(9)])


def gradients(trainer, step=0):
    """The gradient of every parameter before clipping, at a step."""
    found = {}
    update = trainer._update

    def keep(loss):
        if trainer.progress.step == step:
            found.update({n: p.grad.clone() for n, p in trainer.objective.named_parameters() if p.grad is not None})
        update(loss)

    trainer._update = keep
    trainer.train()
    return found


@pytest.mark.parametrize("scored", [False, True])
def test_the_token_budget_changes_no_gradient(scored, tiny_encoder, tmp_path, monkeypatch):
    tiny_encoder.set_dropout(0)
    found, data_scores = [], [i % 5 for i in range(len(ROWS))] if scored else None
    for budget in (40, 8192):
        data = SentenceDataset(ROWS, tiny_encoder.tokenizer, data_scores)
        config = dataclasses.replace(CONFIG, batch_size=16, batch_tokens=budget, max_steps=1)
        trainer = Trainer(PairObjective(copy.deepcopy(tiny_encoder), data), config, tmp_path / str(budget))
        monkeypatch.setattr(common.train, "MAX_PADDING", 10**9)
        cut = [len(batches) for batches in [next(iter(begun(trainer)._share_of_each_step()))]]
        assert cut[0] == 1 if budget == 8192 else cut[0] > 5
        found.append(gradients(trainer))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-4)


def test_in_bf16_too_a_step_run_twice_has_the_gradient_of_one_run_once(tiny_encoder, tmp_path):
    tiny_encoder.set_dropout(0)
    found = []
    for budget in (40, 8192):
        config = dataclasses.replace(CONFIG, batch_size=16, batch_tokens=budget, max_steps=1, precision="bf16")
        data = SentenceDataset(ROWS, tiny_encoder.tokenizer)
        found.append(
            gradients(Trainer(PairObjective(copy.deepcopy(tiny_encoder), data), config, tmp_path / str(budget)))
        )
    once = torch.cat([gradient.flatten() for gradient in found[1].values()])
    twice = torch.cat([found[0][name].flatten() for name in found[1]])
    assert torch.cosine_similarity(once, twice, dim=0) > 0.999


@pytest.mark.parametrize(("budget", "runs"), [(8192, 1), (40, 2)])
def test_batches_are_run_twice_only_where_they_do_not_fit_together(budget, runs, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(common.train, "MAX_PADDING", 1)
    data, seen = SentenceDataset(ROWS, tiny_encoder.tokenizer), []
    config = dataclasses.replace(CONFIG, batch_size=16, batch_tokens=budget, max_steps=1)
    trainer = Trainer(PairObjective(tiny_encoder, data), config, tmp_path)
    trainer.objective.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    trainer.train()
    assert len(seen) > runs and sum(seen) == 16 * runs


def test_in_bf16_too_the_evaluations_are_of_the_model_as_it_then_is(tiny_encoder, tmp_path):
    pairs = TrainingRows(
        [(f"one text {i}", f"{i} is a text") for i in range(30)], [float(i % 7) for i in range(30)], ()
    )
    data = SentenceDataset(ROWS, tiny_encoder.tokenizer)
    settings = {"batch_size": 16, "max_steps": 3, "evaluate_every": 1, "precision": "bf16", "learning_rate": 1e-2}
    trainer = Trainer(PairObjective(tiny_encoder, data, pairs), dataclasses.replace(CONFIG, **settings), tmp_path)
    history, fresh = trainer.train().history, copy.deepcopy(tiny_encoder)
    similarities = pair_similarities(fresh, *zip(*pairs.rows, strict=True), precision="bf16")
    assert history[-1]["dev spearman"] == spearman(similarities, pairs.scores)


class Casts(TorchDispatchMode):
    """Counts how often a tensor is cast."""

    def __init__(self, tensor):
        super().__init__()
        self.tensor, self.count = tensor, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._to_copy.default and arguments[0] is self.tensor
        return function(*arguments, **options or {})


def test_in_bf16_a_weight_is_cast_once_a_step_however_many_batches_there_are(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(common.train, "MAX_PADDING", 1)
    data, steps = SentenceDataset(ROWS, tiny_encoder.tokenizer), 2
    config = dataclasses.replace(CONFIG, batch_size=16, batch_tokens=8192, max_steps=steps, precision="bf16")
    trainer = Trainer(PairObjective(tiny_encoder, data), config, tmp_path)
    with Casts(tiny_encoder.layers[0].feed_forward.weight) as casts:
        trainer.train()
    assert casts.count == steps


def begun(trainer):
    """A trainer as it is before its first step."""
    trainer._begin(resume=False)
    return trainer


def test_a_small_token_budget_gives_the_losses_of_a_large_one(tiny_encoder, tmp_path):
    tiny_encoder.set_dropout(0)
    losses = []
    for budget in (256, 8192):
        config = dataclasses.replace(CONFIG, batch_size=16, batch_tokens=budget, max_steps=50, evaluate_every=1)
        history = trainer_for(tiny_encoder, tmp_path / str(budget), config).train().history
        losses.append([row["train loss"] for row in history])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_step_cut_in_pieces_has_the_same_dropout_in_both_passes(tiny_encoder, tmp_path):
    trainer = trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, batch_tokens=40))
    begun(trainer)
    batches = next(iter(trainer._share_of_each_step()))
    assert len(batches) > 1
    assert torch.equal(trainer._forward(1, batches[1]), trainer._forward(1, batches[1]))
    assert not torch.equal(trainer._forward(1, batches[1]), trainer._forward(2, batches[1]))


@pytest.mark.parametrize(("rows", "batch_size"), [(16, 1), (3, 2)])
def test_a_step_of_a_single_row_has_nothing_to_compare(rows, batch_size, tiny_encoder, tmp_path):
    with pytest.raises(UserError, match="batch_size: a step compares 2 rows or more"):
        trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, batch_size=batch_size), rows=ROWS[:rows])


def test_a_training_of_no_rows_and_one_of_a_single_row_are_refused(tiny_encoder, tmp_path):
    data = SentenceDataset(ROWS[:1], tiny_encoder.tokenizer)
    with pytest.raises(UserError, match="only one row"):
        PairObjective(tiny_encoder, data)
    objective = PairObjective(tiny_encoder, SentenceDataset(ROWS[:2], tiny_encoder.tokenizer))
    objective.data = SentenceDataset([], tiny_encoder.tokenizer)
    with pytest.raises(UserError, match="no rows to train on"):
        Trainer(objective, CONFIG, tmp_path)


@pytest.mark.parametrize("rows", [2, 4, 5, 6, 7, 9])
def test_no_step_is_left_a_single_row(rows, tiny_encoder, tmp_path, recwarn):
    sizes = []
    config = dataclasses.replace(CONFIG, batch_size=4, epochs=1)
    trainer = trainer_for(tiny_encoder, tmp_path, config, rows=ROWS[:rows])
    losses = trainer.objective.losses
    trainer.objective.losses = lambda step: sizes.append(sum(len(b["place"]) for b in step.batches)) or losses(step)
    trainer.train()
    assert min(sizes) > 1 and sum(sizes) == rows
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_afterwards_the_model_is_in_evaluation_mode_and_as_trainable_as_before(tiny_encoder, tmp_path):
    tiny_encoder.layers[0].requires_grad_(False)
    trainer = trainer_for(tiny_encoder, tmp_path)
    encoder = trainer.objective.encoder
    before = [parameter.requires_grad for parameter in encoder.parameters()]
    trainer.train()
    assert not any(module.training for module in encoder.modules())
    assert [parameter.requires_grad for parameter in encoder.parameters()] == before
    assert torch.equal(encoder.layers[0].feed_forward.weight, tiny_encoder.layers[0].feed_forward.weight)


def test_a_training_of_what_is_all_frozen_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(UserError, match="nothing to train"):
        trainer_for(tiny_encoder.requires_grad_(False), tmp_path)


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


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("max_steps", 0),
        ("batch_size", 0),
        ("batch_tokens", 0),
        ("evaluate_every", 0),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("clip_norm", 0.0),
        ("warmup", 1.1),
        ("warmup", -0.1),
        ("seed", -1),
        ("weight_decay", -1.0),
        ("schedule", "steep"),
        ("precision", "int8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, value):
    with pytest.raises(UserError, match=f"^{setting}: must be"):
        TrainingConfig(**{setting: value})


def test_a_check_lets_none_through_and_says_what_would_be_right():
    assert TrainingConfig(max_steps=None).max_steps is None
    with pytest.raises(UserError, match="epochs: must be 2 or more, not 1"):
        at_least(2)(1, "epochs")


def test_a_device_that_is_not_there_is_said(tiny_encoder, tmp_path):
    with pytest.raises(UserError, match='device: this machine has no "nonsense"'):
        trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, device="nonsense"))


def test_progress_in_the_checkpoint_is_plain_json(tiny_encoder, tmp_path):
    stopped(tiny_encoder, tmp_path)
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


def test_losses_are_computed_in_float32_outside_autocast(tiny_encoder, tmp_path, monkeypatch):
    seen, losses = [], PairObjective.step_losses

    def watching(self, embeddings, targets):
        product = embeddings[:, 0] @ embeddings[:, 1].T
        seen.append((embeddings.dtype, product.dtype, torch.is_autocast_enabled("cpu")))
        return losses(self, embeddings, targets)

    monkeypatch.setattr(PairObjective, "step_losses", watching)
    trainer_for(tiny_encoder, tmp_path, dataclasses.replace(CONFIG, precision="bf16")).train()
    assert set(seen) == {(torch.float32, torch.float32, False)}


def test_a_second_trainer_leaves_the_first_ones_precision_alone(tiny_encoder, tmp_path):
    first = trainer_for(tiny_encoder, tmp_path / "a", dataclasses.replace(CONFIG, precision="bf16"))
    trainer_for(tiny_encoder, tmp_path / "b", dataclasses.replace(CONFIG, precision="fp32")).train()
    seen = set()
    layer = first.objective.encoder.layers[0].feed_forward
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    first.train()
    assert seen == {torch.bfloat16}


def test_auto_precision_is_bf16_only_where_the_processor_has_it(monkeypatch):
    for capabilities, expected in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx2": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert resolve_precision("auto", torch.device("cpu")) == expected


def test_an_encoder_of_another_architecture_trains_and_resumes(tiny_encoder, tmp_path):
    tokenizer = tiny_encoder.tokenizer
    roberta = PretrainedEncoder(tiny_transformer("roberta", tokenizer.vocab_size), tokenizer)
    whole = trainer_for(roberta, tmp_path / "whole")
    whole.train()
    stopped(roberta, tmp_path / "run", 4)
    resumed = trainer_for(roberta, tmp_path / "run")
    resumed.train(resume=True)
    assert equal(weights(resumed), weights(whole))
