import copy
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.cli import at_least
from common.config import TrainingConfig
from common.data import SentenceDataset
from common.encoder import SentenceEncoder
from common.errors import UserError
from common.metrics import pair_similarities, spearman
from common.rows import TrainingRows
from common.sentences import PairObjective
from common.train import Trainer
from tests.trainings import CONFIG, ROWS, equal, trainer_for, weights


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


def test_a_trainer_that_trains_again_begins_anew(tiny_encoder, tmp_path):
    trainer = trainer_for(tiny_encoder, tmp_path)
    first = trainer.train()
    again = trainer.train(overwrite=True)
    assert again.step == first.step == trainer.total_steps
    assert len(again.history) == len(first.history)
    assert again.history != first.history  # from the weights that the first training left


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
        monkeypatch.setattr(SentenceEncoder, "max_padding", 10**9)
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
    monkeypatch.setattr(SentenceEncoder, "max_padding", 1)
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


def test_padding_runs_nothing_twice(tiny_encoder, tmp_path):
    rows = [("a b c", "c b a")] * 15 + [(" ".join(["word"] * 50), "a")]
    seen, config = [], dataclasses.replace(CONFIG, batch_size=16, batch_tokens=300, max_steps=1)
    trainer = Trainer(PairObjective(tiny_encoder, SentenceDataset(rows, tiny_encoder.tokenizer)), config, tmp_path)
    trainer.objective.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    trainer.train()
    assert len(seen) > 1 and sum(seen) == 16


class Casts(TorchDispatchMode):
    """Counts how often a tensor is cast."""

    def __init__(self, tensor):
        super().__init__()
        self.tensor, self.count = tensor, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._to_copy.default and arguments[0] is self.tensor
        return function(*arguments, **options or {})


def test_in_bf16_a_weight_is_cast_once_a_step_however_many_batches_there_are(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(SentenceEncoder, "max_padding", 1)
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
    backward = trainer.objective.backward
    trainer.objective.backward = lambda step: sizes.append(sum(len(b["place"]) for b in step.batches)) or backward(step)
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
