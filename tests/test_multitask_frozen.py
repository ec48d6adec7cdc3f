"""What is frozen, thaws or is reused in a multi-task training."""

import copy
import dataclasses

import psutil
import pytest
import torch

import common.metrics
import common.states
from common.attention import Tokens
from common.data import UNLABELLED
from common.errors import UserError
from common.freezing import freeze
from common.metrics import evaluate_tasks
from common.train import Trainer
from tests.multitask import CONFIG, TASKS, TEXTS, copied, data_for, one_step, trainer_for

FROZEN = dataclasses.replace(CONFIG, freeze=("encoder",))


def gradual(epochs):
    return dataclasses.replace(CONFIG, unfreeze=epochs)


@pytest.mark.parametrize("words", [("encoder",), ("head:topic",), ("stages:0-1",), ("head:topic", "head:sentiment")])
def test_what_is_frozen_keeps_every_bit_and_all_else_moves(words, model, tmp_path):
    model.new = set()
    before, frozen = copied(model), model.frozen_stages(*words)
    trainer = trainer_for(model, tmp_path, dataclasses.replace(CONFIG, freeze=words))
    trainer.train()
    still = {id(parameter) for name in frozen for parameter in model.named_stages()[name].parameters()}
    vocabulary = max(len(parameter) for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if id(parameter) in still:
            assert torch.equal(parameter, before[name]), name
            assert parameter.grad is None and parameter not in trainer.optimizer.state, name
        elif "position" not in name and len(parameter) < vocabulary and "token_type" not in name:
            assert not torch.equal(parameter, before[name]), name


def test_what_the_model_froze_itself_stays_frozen(ours, tmp_path):
    ours.freeze("stages:0-1")
    before = copied(ours)
    trainer_for(ours, tmp_path).train()
    after = ours.state_dict()
    assert torch.equal(before["encoder.embeddings.tokens.weight"], after["encoder.embeddings.tokens.weight"])
    assert not torch.equal(before["encoder.layers.1.feed_forward.bias"], after["encoder.layers.1.feed_forward.bias"])
    assert not ours.encoder.embeddings.tokens.weight.requires_grad
    assert ours.encoder.layers[1].feed_forward.weight.requires_grad


def test_a_frozen_stage_has_no_dropout_and_the_rest_has(ours):
    freeze(ours.named_stages(), ours.frozen_stages("encoder"))
    batch = ours.encoder.tokenizer.pad(ours.encoder.tokenizer(TEXTS))
    assert torch.equal(ours.encoder(*batch), ours.encoder(*batch))
    assert not torch.equal(ours(*batch)["topic"], ours(*batch)["topic"])


def test_a_frozen_head_has_no_dropout(ours, tmp_path):
    ours.new, seen = set(), []
    trainer = trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, freeze=("head:topic",)))
    backward = trainer._backward
    modes = lambda: [ours.head(task).dropout.training for task in TASKS]  # noqa: E731
    trainer._backward = lambda *arguments: seen.append(modes()) or backward(*arguments)
    trainer.train()
    assert seen[0] == [False, True]


def test_the_backward_pass_stops_above_what_is_frozen(ours):
    ours.freeze("stages:0-1")
    batch = ours.encoder.tokenizer.pad(ours.encoder.tokenizer(TEXTS))
    tokens = Tokens(batch[1])
    below = ours.encoder.layers[0](tokens.take(ours.encoder.embeddings(batch[0])), tokens)
    assert not below.requires_grad
    assert ours.encoder.layers[1](below, tokens).requires_grad


def test_reusing_the_frozen_encoders_outputs_changes_nothing(model, tmp_path, monkeypatch):
    other = copy.deepcopy(model)
    reusing = trainer_for(model, tmp_path / "a", FROZEN)
    reusing.train()
    assert reusing.objective.data.states is not None
    monkeypatch.setattr("common.states.state_store", lambda *_: None)
    computing = trainer_for(other, tmp_path / "b", FROZEN)
    computing.train()
    assert computing.objective.data.states is None
    for name, tensor in copied(model).items():
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding, which Adam makes a step of
            torch.testing.assert_close(tensor, other.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_with_reuse_the_encoder_computes_each_row_once(ours, tmp_path, monkeypatch):
    passed, token_states = [], ours.encoder.token_states

    def counting(input_ids, attention_mask):
        passed.append(len(input_ids))
        return token_states(input_ids, attention_mask)

    monkeypatch.setattr(ours.encoder, "token_states", counting)
    trainer_for(ours, tmp_path, FROZEN).train()
    assert sum(passed) == len(TEXTS)


def test_dev_rows_are_measured_with_reused_outputs_as_without(ours, tmp_path):
    trainer = trainer_for(ours, tmp_path, FROZEN, dev=True)
    trainer.train()
    assert trainer.objective.dev.states is not None
    reused, computed = evaluate_tasks(ours, trainer.objective.dev), evaluate_tasks(ours, data_for(ours))
    assert reused["topic"]["loss"] == pytest.approx(computed["topic"]["loss"], abs=1e-6)


@pytest.mark.parametrize(("free", "kind"), [(1e12, "ndarray"), (100, "memmap")])
def test_the_states_stay_in_memory_or_else_go_to_a_file_that_is_gone_afterwards(
    free, kind, ours, tmp_path, monkeypatch
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    stores, state_store = [], common.states.state_store
    monkeypatch.setattr("common.states.state_store", lambda *a: stores.append(state_store(*a)) or stores[-1])
    trainer_for(ours, tmp_path, FROZEN).train()
    assert [type(store).__name__ for store in stores] == [kind]
    assert not list(tmp_path.glob(".token*"))


def test_with_neither_memory_nor_disk_the_states_are_computed_anew(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100}))
    monkeypatch.setattr(common.states.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 100}))
    trainer = trainer_for(ours, tmp_path, FROZEN)
    trainer.train()
    assert trainer.objective.data.states is None


def test_stages_thaw_from_the_top_one_every_so_many_epochs(ours, tmp_path):
    assert trainer_for(ours, tmp_path, gradual(1.0)).objective.thaw == {"layer 2": 3, "layer 1": 6, "embeddings": 9}


def test_a_stage_gets_its_optimizer_state_when_it_thaws(ours, tmp_path):
    trainer = trainer_for(ours, tmp_path, dataclasses.replace(gradual(1.0), epochs=2))
    trainer.train()
    for name, stage in ours.named_stages().items():
        thawed = name not in ("layer 1", "embeddings")
        assert all((parameter in trainer.optimizer.state) == thawed for parameter in stage.parameters()), name


def test_thawing_half_way_is_what_no_epochs_ask_for(ours, tmp_path):
    trainer = trainer_for(ours, tmp_path, gradual(0.0))
    assert max(trainer.objective.thaw.values()) == pytest.approx(trainer.total_steps / 2, abs=1)


def test_a_frozen_encoder_cannot_thaw(ours, tmp_path):
    with pytest.raises(UserError, match="unfreeze: needs an encoder that is not all frozen"):
        trainer_for(ours, tmp_path, dataclasses.replace(gradual(0.0), freeze=("encoder",)))


def test_a_frozen_head_still_teaches_the_encoder(still, tmp_path):
    still.new = set()
    _, gradients = one_step(still, tmp_path, {"sentiment": [UNLABELLED] * len(TEXTS)}, freeze=("head:topic",))
    assert gradients["encoder.layers.0.feed_forward.weight"].abs().sum() > 0
    assert not [name for name in gradients if name.startswith("heads.task topic")]


@pytest.mark.parametrize("state", ["new", "grown"])
def test_a_frozen_head_with_labels_that_it_will_not_learn_is_refused(state, ours, tmp_path):
    ours.new, ours.grown = set(), set()
    setattr(ours, state, {"topic"})
    only = {"topic": [1] * len(TEXTS)}
    with pytest.raises(UserError, match="freeze: the head of topic has labels that it has not learned"):
        trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, freeze=("head:topic",)), only)


@pytest.mark.parametrize("words", [("encoder", "head:topic"), ("all",)])
def test_a_training_in_which_nothing_that_trains_has_labels_is_refused(words, ours, tmp_path):
    ours.new, unlabelled = set(), {"sentiment": [UNLABELLED] * len(TEXTS)}
    with pytest.raises(UserError, match="nothing that trains has labelled rows"):
        trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, freeze=words), unlabelled)


def test_a_second_training_of_the_same_objective_begins_with_the_texts(ours, tmp_path):
    trainer = trainer_for(ours, tmp_path / "a", FROZEN, dev=True)
    trainer.train()
    first = [states.clone() for states in trainer.objective.data.states]
    ours.encoder.layers[0].feed_forward.bias.data += 1
    Trainer(trainer.objective, FROZEN, tmp_path / "b").train()
    assert not torch.equal(first[0], trainer.objective.data.states[0])


def test_a_head_stays_new_until_it_has_rows(ours, tmp_path):
    trainer_for(ours, tmp_path, classes={"sentiment": [UNLABELLED] * len(TEXTS)}).train()
    assert ours.new == {"sentiment"}


def test_a_grown_head_is_not_frozen_though_its_labels_have_rows(ours, tmp_path):
    ours.new, ours.grown = set(), {"topic"}
    with pytest.raises(UserError, match="freeze: the head of topic has labels that it has not learned"):
        trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, freeze=("head:topic",)))
