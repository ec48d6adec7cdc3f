"""Linear layers laid out for inference on a processor: bf16 and int8."""

import numpy as np
import pytest
import torch
from torch import nn

from common.devices import cpu_multiplies_int8
from common.encoder import SentenceEncoder
from common.errors import UserError
from common.heads import MultiTaskModel
from common.load import load_encoder
from common.lowered import lowered
from common.packed import Int8Linear, PackedLinear, SideBySide, can_pack, pack_int8

SENTENCES = ["A cat sat.", "The dog ran across the whole wide field.", "Yes", "One two three four five six seven."]
CAPABILITIES = torch.cpu.get_capabilities()  # which conftest hides from the tests
needs_int8 = pytest.mark.skipif(not cpu_multiplies_int8(), reason="this processor multiplies no int8")


@pytest.fixture(autouse=True)
def all_capabilities(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: CAPABILITIES)


needs_packing = pytest.mark.skipif(not can_pack(), reason="this processor packs no bf16")


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_what_torchs_does_and_shows_its_weights(bias):
    layer, vectors = torch.nn.Linear(24, 40, bias).bfloat16(), torch.randn(3, 7, 24).bfloat16()
    packed = PackedLinear(layer)
    assert torch.equal(packed.weight, layer.weight)
    torch.testing.assert_close(packed(vectors), layer(vectors))
    torch.testing.assert_close(packed(vectors.float()), layer(vectors))


@needs_packing
def test_every_linear_layer_of_the_copy_is_packed(tiny_encoder):
    kinds = [type(module) for module in lowered(tiny_encoder, "bf16").modules()]
    assert torch.nn.Linear not in kinds and kinds.count(PackedLinear) == 4 * len(tiny_encoder.layers)


def test_where_nothing_can_be_packed_the_copy_computes_the_same(tiny_encoder, monkeypatch):
    expected = tiny_encoder.encode(SENTENCES, precision="bf16")
    monkeypatch.setattr("common.packed.can_pack", lambda: False)
    other = SentenceEncoder(tiny_encoder.config, tiny_encoder.tokenizer).eval()
    other.load_state_dict(tiny_encoder.state_dict())
    assert PackedLinear not in map(type, lowered(other, "bf16").modules())
    np.testing.assert_allclose(other.encode(SENTENCES, precision="bf16"), expected, atol=0.01)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(axis=1)


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_layer_is_near_the_exact_product_however_long_each_token_is(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    vectors = torch.randn(10, 64) * torch.logspace(-3, 3, 10)[:, None]
    exact = nn.functional.linear(vectors, layer.weight)
    found = Int8Linear(layer)
    found.bias = nn.Parameter(torch.zeros(48, dtype=dtype))
    error = (found(vectors.to(dtype)).float() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 0.02


@needs_int8
def test_whole_numbers_and_weights_of_six_bits_are_multiplied_without_an_error():
    whole = torch.Generator().manual_seed(0)
    layer = nn.Linear(32, 8)
    weight = torch.randint(-31, 32, (8, 32), generator=whole).float()
    weight[:, 0] = 31
    layer.weight.data, layer.bias.data = weight * 0.25, torch.arange(8.0)
    vectors = torch.randint(-126, 127, (5, 32), generator=whole).float()
    vectors[:, 1] = -126
    with torch.no_grad():
        assert torch.equal(Int8Linear(layer)(vectors), layer(vectors))


@needs_int8
def test_a_token_of_zeros_gives_the_bias():
    layer = nn.Linear(16, 4)
    assert torch.equal(Int8Linear(layer)(torch.zeros(1, 16))[0], layer.bias)


@needs_int8
def test_what_has_to_be_precise_stays_so():
    layer = nn.Linear(16, 12)
    layer.precise_from = 8
    module = nn.Sequential(layer)
    pack_int8(module)
    vectors = torch.randn(3, 16)
    rough, exact = module(vectors), layer(vectors)
    torch.testing.assert_close(rough[:, 8:], exact[:, 8:])
    assert not torch.allclose(rough[:, :8], exact[:, :8], atol=1e-5)


@needs_int8
def test_the_values_of_attention_are_precise_and_all_other_products_in_int8(tiny_encoder):
    copy = lowered(tiny_encoder, "int8")
    kinds = [type(module) for module in copy.modules()]
    layers = len(tiny_encoder.layers)
    assert kinds.count(Int8Linear) == 4 * layers and kinds.count(SideBySide) == layers
    values = [type(layer.query_key_value.layers[1]) for layer in copy.layers]
    assert not {Int8Linear} & set(values)


@needs_int8
def test_int8_gives_nearly_the_embeddings_of_the_shipped_encoder_and_leaves_its_weights():
    encoder = load_encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    rough, exact = (encoder.encode(SENTENCES, precision=precision) for precision in ("int8", "fp32"))
    assert cosines(rough, exact).min() > 0.999
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


@needs_int8
def test_int8_does_not_depend_on_what_else_is_embedded(tiny_encoder):
    together = tiny_encoder.encode(SENTENCES, precision="int8")
    alone = np.concatenate([tiny_encoder.encode([sentence], precision="int8") for sentence in SENTENCES])
    assert cosines(together, alone).min() > 0.9999


@needs_int8
def test_int8_works_where_the_processor_computes_in_no_bf16(tiny_encoder, monkeypatch):
    monkeypatch.setattr("common.devices.cpu_computes_bf16", lambda: False)
    copy = lowered(tiny_encoder, "int8")
    assert {tensor.dtype for tensor in copy.parameters()} == {torch.float32}
    rough, exact = (tiny_encoder.encode(SENTENCES, precision=precision) for precision in ("int8", "fp32"))
    assert cosines(rough, exact).min() > 0.99


@needs_int8
def test_predicting_in_int8_gives_nearly_the_same_probabilities(tiny_encoder):
    model = MultiTaskModel(tiny_encoder, {"mood": ["bad", "good"]}).eval()
    (rough, *_), (exact, *_) = (model.predict(SENTENCES, precision=precision) for precision in ("int8", "fp32"))
    assert rough["mood"]["probabilities"] == pytest.approx(exact["mood"]["probabilities"], abs=0.05)


def test_int8_is_refused_where_it_would_be_slow(tiny_encoder, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(UserError, match="precision: int8 needs a processor with AVX512-VNNI; auto works everywhere"):
        tiny_encoder.encode(SENTENCES, precision="int8")
