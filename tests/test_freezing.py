import pytest
import torch
from torch import nn

from common.errors import UserError
from common.freezing import freeze, frozen_stages, gradual_unfreezing, is_frozen, restored_afterwards
from common.heads import MultiTaskModel
from common.pretrained import PretrainedEncoder
from tests.conftest import tiny_transformer

TASKS = {"topic": ["Science", "Sports"], "sentiment": ["bad", "good"]}
ENCODER = ["embeddings", "layer 1", "layer 2"]
TOPIC, SENTIMENT = ([f"{task} head {n}" for n in (1, 2, 3)] for task in TASKS)
HEADS = {"topic": TOPIC, "sentiment": SENTIMENT}


@pytest.fixture
def ours(tiny_encoder) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(tiny_encoder, TASKS)


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
        (["stages:2", "stages:0"], ["embeddings", "layer 2"]),
        (["none", "head:topic"], TOPIC),
        (["encoder", "stages:1-2", "encoder"], ENCODER),
    ],
)
def test_each_word_names_its_stages_bottom_up(words, expected):
    assert frozen_stages(ENCODER, HEADS, words) == expected


@pytest.mark.parametrize("word", ["encoders", "head:mood", "stages:2-1", "stages:0-3", "stages:a", "stages:-1", ""])
def test_a_word_that_names_nothing_is_answered_with_those_that_do(word):
    with pytest.raises(
        UserError, match="there are: none, all, encoder, head:topic, head:sentiment, stages:A-B"
    ) as caught:
        frozen_stages(ENCODER, HEADS, [word])
    assert caught.value.argument == "freeze"


@pytest.mark.parametrize("kind", ["roberta", "deberta", "modernbert", "gpt2"])
def test_the_words_mean_the_same_on_any_encoder(kind, tokenizer):
    model = MultiTaskModel(PretrainedEncoder(tiny_transformer(kind, tokenizer.vocab_size), tokenizer), TASKS)
    assert model.frozen_stages("encoder") == ENCODER
    assert model.frozen_stages("stages:0-1", "head:topic") == ["embeddings", "layer 1", *TOPIC]


def test_stages_thaw_from_the_top():
    assert gradual_unfreezing(ENCODER, 2.5) == {"layer 2": 2, "layer 1": 5, "embeddings": 8}


def test_a_stage_is_frozen_when_nothing_in_it_trains():
    stage = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not is_frozen(stage)
    stage[0].requires_grad_(False)
    assert not is_frozen(stage)
    stage[1].requires_grad_(False)
    assert is_frozen(stage)


def test_freezing_takes_gradient_and_dropout_and_thawing_gives_both_back(ours):
    stages = ours.named_stages()
    for frozen in (["embeddings", "topic head 1"], ["layer 2"], []):
        freeze(stages, frozen)
        for name, stage in stages.items():
            assert is_frozen(stage) == (name in frozen), name
            assert all(module.training != (name in frozen) for module in stage.modules()), name


def test_afterwards_every_parameter_trains_as_before_and_the_model_is_evaluated(ours):
    ours.freeze("head:topic")
    before = [parameter.requires_grad for parameter in ours.parameters()]
    with pytest.raises(KeyboardInterrupt), restored_afterwards(ours):
        freeze(ours.named_stages(), ENCODER)
        raise KeyboardInterrupt
    assert [parameter.requires_grad for parameter in ours.parameters()] == before
    assert not any(module.training for module in ours.modules())
