import copy

import pytest
import torch

from common.cli import UserError
from common.data import LabelledRows, MultiTaskDataset
from common.freezing import FrozenEncoderDataset, freeze, frozen_parts, gradual_unfreezing
from common.heads import MultiTaskModel
from common.losses import MultiTaskObjective
from common.metrics import evaluate_tasks
from common.pretrained import PretrainedEncoder
from common.trainer import MultiTaskTrainer, TrainingConfig
from tests.test_encoder import tiny_transformer

TASKS = {"topic": ["Science", "Sports"], "sentiment": ["bad", "good"]}
TEXTS = [
    f"text {word} with {'a ball' if i % 2 else 'an atom'}" + " and more" * (i % 3) for i, word in enumerate("abcdefgh")
]
CONFIG = TrainingConfig(epochs=3, batch_tokens=40, learning_rate=1e-2, weight_decay=0.5, device="cpu", precision="fp32")
WEIGHTS = {"topic": 0.5, "sentiment": 0.5}


def build(kind, tiny_encoder) -> MultiTaskModel:
    torch.manual_seed(0)
    if kind == "ours":
        return MultiTaskModel(tiny_encoder, TASKS)
    tokenizer = tiny_encoder.tokenizer
    return MultiTaskModel(PretrainedEncoder(tiny_transformer(kind, tokenizer.vocab_size), tokenizer), TASKS)


@pytest.fixture(params=["ours", "roberta", "deberta"])
def model(request, tiny_encoder) -> MultiTaskModel:
    return build(request.param, tiny_encoder)


@pytest.fixture
def ours(tiny_encoder) -> MultiTaskModel:
    return build("ours", tiny_encoder)


def data_for(model) -> MultiTaskDataset:
    labels = {task: [names[i % 2] for i in range(len(TEXTS))] for task, names in TASKS.items()}
    rows = LabelledRows(TEXTS, labels, [f"line {i}" for i in range(len(TEXTS))])
    return MultiTaskDataset(rows, TASKS, model.encoder.tokenizer)


def trainer_for(model, output, config=CONFIG, **options) -> MultiTaskTrainer:
    return MultiTaskTrainer(model, data_for(model), config, output, None, WEIGHTS, **options)


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


ENCODER = ["embeddings", "layer 1", "layer 2"]
TOPIC, SENTIMENT = ([f"{task} head {n}" for n in (1, 2, 3)] for task in TASKS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["none"], []),
        (["encoder"], ENCODER),
        (["all"], [*ENCODER, *TOPIC, *SENTIMENT]),
        (["head:topic"], TOPIC),
        (["head:sentiment", "stages:0-1"], ["embeddings", "layer 1", *SENTIMENT]),
        (["stages:2"], ["layer 2"]),
    ],
)
def test_each_word_names_its_parts(words, expected, model):
    assert frozen_parts(model, words) == expected


@pytest.mark.parametrize("word", ["encoders", "head:mood", "stages:2-1", "stages:0-3", "stages:a", ""])
def test_a_word_that_names_nothing_is_answered_with_those_that_do(word, ours):
    with pytest.raises(UserError, match="there are: none, all, encoder, head:topic, head:sentiment, stages:A-B"):
        frozen_parts(ours, [word])


def test_every_parameter_is_in_exactly_one_part(model):
    held = [id(parameter) for part in model.parts().values() for parameter in part.parameters()]
    assert sorted(held) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("words", [["encoder"], ["head:topic"], ["stages:0-1"], ["head:topic", "head:sentiment"]])
def test_what_is_frozen_keeps_every_bit_and_all_else_moves(words, model, tmp_path):
    frozen = frozen_parts(model, words)
    before = copied(model)
    trainer = trainer_for(model, tmp_path, frozen=frozen)
    trainer.train()
    still = {id(parameter) for name in frozen for parameter in model.parts()[name].parameters()}
    vocabulary = max(len(parameter) for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if id(parameter) in still:
            assert torch.equal(parameter, before[name]), name
            assert parameter.grad is None and parameter not in trainer.optimizer.state, name
        elif "position" not in name and len(parameter) < vocabulary and "token_type" not in name:
            assert not torch.equal(parameter, before[name]), name


def test_a_frozen_part_has_no_dropout_and_the_rest_has(ours):
    freeze(ours.parts(), frozen_parts(ours, ["encoder"]))
    batch = ours.encoder.tokenizer.pad(ours.encoder.tokenizer(TEXTS))
    assert torch.equal(ours.encoder(*batch), ours.encoder(*batch))
    assert not torch.equal(ours(*batch)["topic"], ours(*batch)["topic"])


def test_the_backward_pass_stops_above_what_is_frozen(ours):
    freeze(ours.parts(), frozen_parts(ours, ["stages:0-1"]))
    batch = ours.encoder.tokenizer.pad(ours.encoder.tokenizer(TEXTS))
    below = ours.encoder.layers[0](ours.encoder.embeddings(batch[0]), batch[1].bool()[:, None, None, :])
    assert not below.requires_grad
    assert ours.encoder.layers[1](below, None).requires_grad


def test_reusing_the_frozen_encoders_outputs_changes_nothing(model, tmp_path, monkeypatch):
    frozen = frozen_parts(model, ["encoder"])
    other = copy.deepcopy(model)
    reusing = trainer_for(model, tmp_path / "a", frozen=frozen)
    assert isinstance(reusing.data, FrozenEncoderDataset)
    monkeypatch.setattr("common.freezing.REUSE_BYTES", 0)
    computing = trainer_for(other, tmp_path / "b", frozen=frozen)
    assert isinstance(computing.data, MultiTaskDataset)
    reusing.train()
    computing.train()
    for name, tensor in copied(model).items():
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding, which Adam makes a step of
            torch.testing.assert_close(tensor, other.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_with_reuse_the_encoder_computes_each_row_once(ours, tmp_path, monkeypatch):
    passed, token_states = [], ours.encoder.token_states

    def counting(input_ids, attention_mask):
        passed.append(len(input_ids))
        return token_states(input_ids, attention_mask)

    monkeypatch.setattr(ours.encoder, "token_states", counting)
    trainer_for(ours, tmp_path, frozen=frozen_parts(ours, ["encoder"])).train()
    assert sum(passed) == len(TEXTS)


def test_dev_rows_are_measured_with_reused_outputs_as_without(ours, tmp_path):
    data = data_for(ours)
    trainer = MultiTaskTrainer(ours, data, CONFIG, tmp_path, data, WEIGHTS, frozen=frozen_parts(ours, ["encoder"]))
    assert isinstance(trainer.dev, FrozenEncoderDataset)
    reused, computed = evaluate_tasks(ours, trainer.dev), evaluate_tasks(ours, data)
    assert reused["topic"]["loss"] == pytest.approx(computed["topic"]["loss"], abs=1e-6)


def test_gradual_unfreezing_thaws_from_the_top(ours):
    assert gradual_unfreezing(ours, 2.5) == {"layer 2": 2, "layer 1": 5, "embeddings": 8}


def test_a_stage_gets_its_optimizer_state_when_it_thaws(ours, tmp_path):
    trainer = trainer_for(ours, tmp_path, unfreeze=1.0)
    steps = len(trainer._plan(0))
    trainer.config = trainer.config.__class__(**{**vars(CONFIG), "epochs": 2})
    trainer.total_steps = 2 * steps
    trainer.train()
    assert trainer.thaw == {"layer 2": steps, "layer 1": 2 * steps, "embeddings": 3 * steps}
    for name, part in ours.parts().items():
        thawed = name not in ("layer 1", "embeddings")
        assert all((parameter in trainer.optimizer.state) == thawed for parameter in part.parameters()), name


def test_thawing_half_way_is_what_no_epochs_ask_for(ours, tmp_path):
    trainer = trainer_for(ours, tmp_path, unfreeze=0.0)
    assert max(trainer.thaw.values()) == pytest.approx(trainer.total_steps / 2, abs=1)


def test_a_frozen_head_still_teaches_the_encoder(ours):
    objective = MultiTaskObjective(ours, WEIGHTS)
    freeze(ours.parts(), frozen_parts(ours, ["head:topic"]))
    data = data_for(ours)
    data.classes["sentiment"] = [-100] * len(TEXTS)
    objective(data.collate(range(len(TEXTS))))["loss"].backward()
    assert ours.encoder.layers[0].feed_forward.weight.grad.abs().sum() > 0
    assert ours.head("topic").classifier.weight.grad is None


def test_watched_gradients_are_those_that_clipping_measures(ours, tmp_path, monkeypatch):
    trainer = trainer_for(ours, tmp_path, frozen=frozen_parts(ours, ["stages:0-1"]), watch_gradients=True)
    clip, lengths = trainer.accelerator.clip_grad_norm_, []
    monkeypatch.setattr(
        trainer.accelerator, "clip_grad_norm_", lambda *given: lengths.append(clip(*given)) or lengths[-1]
    )
    norms = torch.tensor(list(trainer.train().gradients.values()))  # (parts, steps)
    assert torch.allclose(norms.square().sum(dim=0).sqrt(), torch.stack(lengths))
    assert (norms[:2] == 0).all() and (norms[2:] > 0).all()


def test_a_task_without_labels_has_no_line_in_the_history(ours, tmp_path):
    shown = trainer_for(ours, tmp_path).describe({"step": 3, "train loss": 0.5, "train topic loss": 0.5})
    assert "topic" in shown and "sentiment" not in shown
