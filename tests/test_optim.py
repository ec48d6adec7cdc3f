import json

import pytest
import torch

from common.cli import UserError
from common.encoder import EncoderConfig, SentenceEncoder
from common.heads import MultiTaskModel
from common.optim import (
    build_optimizer,
    layerwise_formulas,
    layerwise_learning_rates,
    learning_rates,
    parameter_groups,
    stage_factor,
)
from common.pretrained import PretrainedEncoder
from tests.conftest import TINY
from tests.test_encoder import tiny_transformer

TASKS = {"topic": ["a", "b"], "sentiment": ["c", "d"], "mood": ["e", "f"]}


def deep(layers, tokenizer) -> MultiTaskModel:
    config = EncoderConfig(**{**TINY, "num_hidden_layers": layers, "hidden_size": 8, "intermediate_size": 8})
    return MultiTaskModel(SentenceEncoder(config, tokenizer), TASKS)


@pytest.fixture(params=["ours", "roberta", "deberta"])
def model(request, tiny_encoder) -> MultiTaskModel:
    tokenizer = tiny_encoder.tokenizer
    if request.param == "ours":
        return MultiTaskModel(tiny_encoder, TASKS)
    return MultiTaskModel(PretrainedEncoder(tiny_transformer(request.param, tokenizer.vocab_size), tokenizer), TASKS)


def test_the_rates_of_six_layers_are_the_seeds_to_the_last_digit(tokenizer):
    rates = layerwise_learning_rates(deep(6, tokenizer), 1.0)
    assert rates == {
        "embeddings": 0.9**12,
        "layer 1": 0.9**11,
        "layer 2": 0.9**10,
        "layer 3": 0.9**3,
        "layer 4": 0.9**2,
        "layer 5": 0.9**1,
        "layer 6": 1.0,
        **{f"topic head {n}": 1.2**n for n in (1, 2, 3)},
        **{f"sentiment head {n}": 0.8**n for n in (1, 2, 3)},
        **{f"mood head {n}": 1.0 for n in (1, 2, 3)},
    }


@pytest.mark.parametrize("layers", range(1, 49))
def test_rates_never_fall_from_the_embeddings_to_the_last_layer(layers):
    factors = [stage_factor(n, layers) for n in range(layers + 1)]
    assert factors == sorted(factors)
    assert factors[0] == 0.9 ** (2 * layers) and factors[-1] == 1
    early = [n for n in range(1, layers + 1) if n <= layers / 3]
    assert all(factors[n] == 0.9 ** (2 * layers - n) for n in early)
    assert all(factors[n] == 0.9 ** (layers - n) for n in range(1, layers + 1) if n not in early)


def test_formulas_stand_beside_the_rates(tokenizer):
    formulas = layerwise_formulas(deep(6, tokenizer))
    expected = {"embeddings": "0.9^(2L)", "layer 2": "0.9^(2L-n)", "layer 3": "0.9^(L-n)", "layer 6": "0.9^(L-n)"}
    assert formulas | expected == formulas
    assert [formulas[f"{task} head 2"] for task in TASKS] == ["1.2^n", "0.8^n", "1^n"]


def test_plain_decay_falls_by_the_same_factor_from_each_part_to_the_one_below(model):
    rates = learning_rates("decay:0.5", model, 1.0)
    assert [rates[part] for part in ("embeddings", "layer 1", "layer 2", "topic head 1")] == [0.125, 0.25, 0.5, 1.0]


def test_uniform_gives_every_part_the_base_rate(model):
    assert learning_rates("uniform", model, 3e-5) == dict.fromkeys(model.parts(), 3e-5)


def test_a_file_gives_factors_for_the_parts_it_names(model, tmp_path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"embeddings": 0, "layer 2": 0.5}))
    rates = learning_rates(str(path), model, 2.0)
    assert (rates["embeddings"], rates["layer 1"], rates["layer 2"]) == (0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"layer 9": 1}', '"layer 9" is no part of this model'),
        ('{"layer 1": -1}', "0 or more"),
        ('{"layer 1": "x"}', "must be a number"),
        ("[1]", "an object of factors"),
        ("{", "no JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_no_factors_is_refused(content, message, model, tmp_path):
    path = tmp_path / "rates.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        learning_rates(str(path), model, 1.0)


@pytest.mark.parametrize("name", ["decay:0", "decay:1.1", "decay:x", "decay", "seeds", "decay:nan", ""])
def test_rates_of_no_name_are_refused(name, model):
    with pytest.raises(UserError, match="there are: seed, uniform, decay:X"):
        learning_rates(name, model, 1.0)


def test_every_parameter_is_in_one_group_of_its_parts_name_and_rate(model):
    rates = layerwise_learning_rates(model, 1e-3)
    groups = parameter_groups(model, 1e-3, 0.1, model.parts(), rates)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    for group in groups:
        inside = {id(parameter) for parameter in model.parts()[group["name"]].parameters()}
        assert {id(parameter) for parameter in group["params"]} <= inside
        assert group["lr"] == rates[group["name"]]
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_one_step_of_sgd_moves_each_group_by_exactly_rate_times_gradient(model):
    groups = parameter_groups(model, 1e-2, 0.0, model.parts(), layerwise_learning_rates(model, 1e-2))
    optimizer = torch.optim.SGD(groups, lr=1e-2)
    before = {id(parameter): parameter.detach().clone() for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert torch.equal(parameter, before[id(parameter)].add(parameter.grad, alpha=-group["lr"]))


def test_a_changed_rate_shows_in_the_first_step_of_adamw(tiny_encoder):
    model = MultiTaskModel(tiny_encoder, TASKS)
    rates = learning_rates("decay:0.5", model, 1e-3)
    optimizer = build_optimizer(model, 1e-3, 0.0, model.parts(), rates)
    before = {name: part.state_dict() for name, part in model.parts().items()}
    before = {name: {k: v.clone() for k, v in state.items()} for name, state in before.items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # the first step of Adam is the rate itself, whatever the gradient's size
    for name, part in model.parts().items():
        for key, value in part.state_dict().items():
            torch.testing.assert_close(
                before[name][key] - value, torch.full_like(value, rates[name]), atol=1e-6, rtol=1e-3
            )


def test_what_is_in_no_part_takes_the_optimizers_own_rate(tiny_encoder):
    model = torch.nn.ModuleDict({"encoder": tiny_encoder, "projection": torch.nn.Linear(4, 4)})
    groups = parameter_groups(model, 0.5, 0.0, tiny_encoder.parts(), dict.fromkeys(tiny_encoder.parts(), 0.1))
    assert {group["lr"] for group in groups if group["name"] == "other"} == {0.5}
