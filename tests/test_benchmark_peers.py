"""The peers that our ways are measured beside: they must be what they are called."""

import pytest
import torch

from benchmarks.heads import NormFirst
from benchmarks.keeping import HeldWeights
from common.config import MultiTaskConfig
from common.heads import MultiTaskModel, TaskHead
from common.rows import LabelledRows
from common.train import Trainer

TEXTS = ["a ball and an atom", "rain", "the sun and the wind, over and over", "an atom"]
CONFIG = MultiTaskConfig(
    max_steps=20, batch_size=4, learning_rate=1e-3, device="cpu", precision="fp32", weight_decay=0, clip_norm=1e9
)


def moved(model, strength, folder):
    """The squared distance of the encoder's weights from where they started, after a training."""
    start = [parameter.detach().clone() for parameter in model.encoder.parameters()]
    data = model.dataset(LabelledRows(TEXTS, {"mood": ["bad", "good", "bad", "good"]}, TEXTS))
    Trainer(HeldWeights(model, data, CONFIG, strength=strength), CONFIG, folder).train()
    return sum((p - s).square().sum() for p, s in zip(model.encoder.parameters(), start, strict=True)).item()


@pytest.fixture
def model(tiny_encoder):
    torch.manual_seed(0)
    model = MultiTaskModel(tiny_encoder, {"mood": ["bad", "good"]})
    model.set_dropout(0.0)
    return model


def test_weights_that_are_held_harder_move_less(model, tmp_path):
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.new, distances = set(), []  # each begins with the same heads
    for strength in (0.0, 10.0, 1000.0):
        model.load_state_dict(start)
        distances.append(moved(model, strength, tmp_path / str(strength)))
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0


def test_a_norm_before_the_attention_takes_the_states_lengths(model):
    head, states, mask = NormFirst(12, 2, 3).eval(), torch.randn(2, 5, 12), torch.ones(2, 5)
    scaled = states * (0.5 + torch.rand(2, 5, 1))
    torch.testing.assert_close(head(states, mask), head(scaled, mask), atol=1e-2, rtol=1e-2)
    ours = TaskHead(12, 2, 3).eval()
    assert not torch.allclose(ours(states, mask)[0], ours(scaled, mask)[0], atol=1e-2)
