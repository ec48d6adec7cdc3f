"""The copy of an encoder that inference in half precision runs on."""

import gc
import weakref

import numpy as np
import pytest
import torch

from common.encoder import SentenceEncoder
from common.lowered import lowered
from common.optim import build_optimizer

SENTENCES = ["A cat sat.", "The dog ran across the whole wide field.", "Yes", "One two three four five six seven."]


def test_fp32_is_the_encoder_itself(tiny_encoder):
    assert lowered(tiny_encoder, "fp32") is tiny_encoder


def test_the_copy_holds_half_precision_and_the_encoder_keeps_its_weights(tiny_encoder):
    before = {name: tensor.clone() for name, tensor in tiny_encoder.state_dict().items()}
    copy = lowered(tiny_encoder, "bf16")
    assert {tensor.dtype for tensor in copy.parameters()} == {torch.bfloat16}
    after = tiny_encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_copy_is_made_once(tiny_encoder):
    assert lowered(tiny_encoder, "bf16") is lowered(tiny_encoder, "bf16")


def train_a_step(encoder: SentenceEncoder) -> None:
    for parameter in encoder.parameters():
        parameter.grad = torch.randn_like(parameter)
    build_optimizer(encoder, 0.5).step()  # fused, which counts no version


def train_a_step_of_sgd(encoder: SentenceEncoder) -> None:
    for parameter in encoder.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.SGD(encoder.parameters(), lr=0.5).step()


def load_others(encoder: SentenceEncoder) -> None:
    encoder.load_state_dict(SentenceEncoder(encoder.config).state_dict())


def replace_a_layer(encoder: SentenceEncoder) -> None:
    other = SentenceEncoder(encoder.config).eval().layers[1]
    torch.nn.init.normal_(other.feed_forward.weight)
    encoder.layers[1] = other


@pytest.mark.parametrize("change", [train_a_step, train_a_step_of_sgd, load_others, replace_a_layer])
def test_changed_weights_are_seen(tiny_encoder, change):
    encoder = SentenceEncoder(tiny_encoder.config, tiny_encoder.tokenizer).eval()
    before = encoder.encode(SENTENCES, precision="bf16")
    change(encoder)
    after, exact = (encoder.encode(SENTENCES, precision=precision) for precision in ("bf16", "fp32"))
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(after, exact, atol=0.02)


def test_another_pooling_is_seen(tiny_encoder):
    encoder = SentenceEncoder(tiny_encoder.config, tiny_encoder.tokenizer).eval()
    encoder.encode(SENTENCES, precision="bf16")
    encoder.pooling = "cls"
    rough, exact = (encoder.encode(SENTENCES, precision=precision) for precision in ("bf16", "fp32"))
    np.testing.assert_allclose(rough, exact, atol=0.02)


def test_an_encoder_made_in_inference_mode_can_be_lowered(tiny_encoder):
    with torch.inference_mode():
        encoder = SentenceEncoder(tiny_encoder.config, tiny_encoder.tokenizer).eval()
    assert lowered(encoder, "bf16") is not encoder


def test_the_copy_goes_with_its_encoder(tiny_encoder):
    encoder = SentenceEncoder(tiny_encoder.config, tiny_encoder.tokenizer)
    copy = weakref.ref(lowered(encoder, "bf16"))
    del encoder
    gc.collect()
    assert copy() is None


def test_auto_is_half_precision_where_the_processor_computes_in_it(tiny_encoder, monkeypatch):
    half, full = (tiny_encoder.encode(SENTENCES, precision=precision) for precision in ("bf16", "fp32"))
    np.testing.assert_array_equal(tiny_encoder.encode(SENTENCES), full)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    np.testing.assert_array_equal(tiny_encoder.encode(SENTENCES), half)
