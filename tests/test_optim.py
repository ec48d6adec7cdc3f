import json

import pytest
import torch

from common.config import SCHEDULES
from common.encoder import EncoderConfig, SentenceEncoder
from common.errors import UserError
from common.heads import MultiTaskModel
from common.optim import (
    build_optimizer,
    describe,
    layerwise_formulas,
    layerwise_learning_rates,
    learning_rates,
    parameter_groups,
    schedule_factor,
    stage_factor,
)
from common.pretrained import PretrainedEncoder
from tests.conftest import TINY, tiny_transformer

TASKS = {"topic": ["a", "b"], "sentiment": ["c", "d"], "mood": ["e", "f"]}


def deep(layers, tokenizer) -> MultiTaskModel:
    config = EncoderConfig(**{**TINY, "num_hidden_layers": layers, "hidden_size": 8, "intermediate_size": 8})
    return MultiTaskModel(SentenceEncoder(config, tokenizer), TASKS)


@pytest.fixture(params=["ours", "roberta", "deberta", "modernbert"])
def model(request, tiny_encoder) -> MultiTaskModel:
    tokenizer = tiny_encoder.tokenizer
    if request.param == "ours":
        return MultiTaskModel(tiny_encoder, TASKS)
    return MultiTaskModel(PretrainedEncoder(tiny_transformer(request.param, tokenizer.vocab_size), tokenizer), TASKS)


@pytest.fixture
def ours(tiny_encoder) -> MultiTaskModel:
    return MultiTaskModel(tiny_encoder, TASKS)


def test_the_layerwise_rates_of_six_layers_to_the_last_digit(tokenizer):
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


def test_plain_decay_falls_by_the_same_factor_from_each_stage_to_the_one_below(model):
    rates = learning_rates("decay:0.5", model, 1.0)
    assert [rates[stage] for stage in ("embeddings", "layer 1", "layer 2", "topic head 1")] == [0.125, 0.25, 0.5, 1.0]


def test_uniform_gives_every_stage_the_base_rate(model):
    assert learning_rates("uniform", model, 3e-5) == dict.fromkeys(model.named_stages(), 3e-5)


def test_a_file_gives_factors_for_the_stages_it_names(ours, tmp_path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"embeddings": 0, "layer 2": 0.5}))
    rates = learning_rates(str(path), ours, 2.0)
    assert (rates["embeddings"], rates["layer 1"], rates["layer 2"]) == (0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"layer 9": 1}', '"layer 9" is no stage of this model'),
        ('{"layer 1": -1}', "0 or more"),
        ('{"layer 1": "x"}', "must be a number"),
        ("[1]", "an object of factors"),
        ("{", "no JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_no_factors_is_refused(content, message, ours, tmp_path):
    path = tmp_path / "rates.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        learning_rates(str(path), ours, 1.0)


def test_layerwise_is_a_strategys_name(model):
    assert learning_rates("layerwise", model, 3e-5) == layerwise_learning_rates(model, 3e-5)


@pytest.mark.parametrize("strategy", ["layerwise", "uniform", "decay:0.5"])
def test_every_strategy_gives_every_stage_a_rate_in_the_order_of_the_stages(strategy, model):
    assert list(learning_rates(strategy, model, 1.0)) == list(model.named_stages())


@pytest.mark.parametrize("strategy", ["layerwise", "uniform", "decay:0.5"])
def test_an_encoder_alone_has_the_rates_it_has_in_a_model(strategy, tiny_encoder):
    whole = learning_rates(strategy, MultiTaskModel(tiny_encoder, TASKS), 1.0)
    assert learning_rates(strategy, tiny_encoder, 1.0) == {stage: whole[stage] for stage in tiny_encoder.named_stages()}


@pytest.mark.parametrize("name", ["decay:0", "decay:1.1", "decay:x", "decay", "seed", "layerwise:2", "decay:nan", ""])
def test_rates_of_no_name_are_refused(name, ours):
    with pytest.raises(UserError, match="there are: layerwise, uniform, decay:X") as caught:
        learning_rates(name, ours, 1.0)
    assert caught.value.argument == "rates"


def test_every_parameter_is_in_one_group_of_its_stages_name_and_rate(model):
    rates = layerwise_learning_rates(model, 1e-3)
    groups = parameter_groups(model, 1e-3, 0.1, model.named_stages(), rates)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    for group in groups:
        inside = {id(parameter) for parameter in model.named_stages()[group["name"]].parameters()}
        assert {id(parameter) for parameter in group["params"]} <= inside
        assert group["lr"] == group["peak"] == rates[group["name"]]
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_one_step_of_sgd_moves_each_group_by_exactly_rate_times_gradient(model):
    groups = parameter_groups(model, 1e-2, 0.0, model.named_stages(), layerwise_learning_rates(model, 1e-2))
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
    optimizer = build_optimizer(model, 1e-3, 0.0, model.named_stages(), rates)
    before = {name: stage.state_dict() for name, stage in model.named_stages().items()}
    before = {name: {k: v.clone() for k, v in state.items()} for name, state in before.items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # the first step of Adam is the rate itself, whatever the gradient's size
    for name, stage in model.named_stages().items():
        for key, value in stage.state_dict().items():
            torch.testing.assert_close(
                before[name][key] - value, torch.full_like(value, rates[name]), atol=1e-6, rtol=1e-3
            )


def test_what_is_in_no_stage_takes_the_optimizers_own_rate(tiny_encoder):
    model = torch.nn.ModuleDict({"encoder": tiny_encoder, "projection": torch.nn.Linear(4, 4)})
    groups = parameter_groups(
        model, 0.5, 0.0, tiny_encoder.named_stages(), dict.fromkeys(tiny_encoder.named_stages(), 0.1)
    )
    assert {group["lr"] for group in groups if group["name"] == "other"} == {0.5}


def test_what_does_not_train_is_in_no_group(model):
    model.freeze("stages:0-1", "head:topic")
    groups = parameter_groups(model, 1e-3, 0.1, model.named_stages())
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert not {"embeddings", "layer 1", "topic head 1"} & {group["name"] for group in groups}


def test_vectors_have_no_weight_decay_and_matrices_have(tiny_encoder):
    groups = parameter_groups(tiny_encoder, 1e-3, 0.25)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in tiny_encoder.named_parameters():
        vector = name.endswith("bias") or "norm" in name
        assert decays[id(parameter)] == (0.0 if vector else 0.25), name


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (1, 10), (4, 10), (9, 10), (10, 10), (0, 1), (1, 1)])
def test_no_step_has_a_rate_of_zero_or_above_the_peak(kind, warmup, total):
    factors = [schedule_factor(kind, step, warmup, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_first_step_has_its_share_of_the_warm_up(kind):
    assert schedule_factor(kind, 0, 8, 100) == 1 / 8
    assert [schedule_factor(kind, step, 4, 100) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak(kind):
    assert schedule_factor(kind, 0, 0, 100) == 1


def test_after_the_warm_up_the_rate_falls_or_stays():
    linear, cosine, constant = ([schedule_factor(kind, step, 5, 50) for step in range(5, 50)] for kind in SCHEDULES)
    assert linear == sorted(linear, reverse=True) and cosine == sorted(cosine, reverse=True)
    assert constant == [1.0] * 45
    assert linear[-1] == pytest.approx(1 / 45)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (2, 20), (6, 20), (19, 20)])
def test_the_schedule_is_torchs_own(kind, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers, falling = torch.optim.lr_scheduler, total - warmup
    after = {
        "linear": lambda: schedulers.LinearLR(optimizer, 1.0, 0.0, total_iters=falling),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, falling),
        "constant": lambda: schedulers.ConstantLR(optimizer, 1.0),
    }[kind]()
    scheduler = after
    if warmup:
        rising = schedulers.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
        scheduler = schedulers.SequentialLR(optimizer, [rising, after], [warmup])
    for step in range(total):
        assert schedule_factor(kind, step, warmup, total) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_what_trains_is_described_with_like_neighbours_as_one_part(tiny_encoder):
    model = MultiTaskModel(tiny_encoder, {"topic": ["x", "y"]})
    model.freeze("stages:0-1")
    lines = describe(model, learning_rates("uniform", model, 0.01))
    assert [(line["part"], line["frozen"], line["rate"]) for line in lines] == [
        ("embeddings to layer 1", True, 0.01),
        ("layer 2", False, 0.01),
        ("topic head 1 to topic head 2", False, 0.01),
        ("topic head 3", False, 0.01),
    ]
    assert sum(line["parameters"] for line in lines) == sum(p.numel() for p in model.parameters())
    assert [line["dropout"] for line in lines] == [0.1, 0.1, 0.0, 0.1]
