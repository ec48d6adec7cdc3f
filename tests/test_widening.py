import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.widening import head_importance, most_important_heads, widen, widened_teacher
from common.encoder import EncoderConfig, SentenceEncoder
from common.errors import UserError
from tests.conftest import TINY

SENTENCES = ["A cat sat on the mat.", "Stocks fell sharply.", "Yes", "Where did everyone go after the long concert?"]


@pytest.fixture
def teacher(tokenizer) -> SentenceEncoder:
    """A random BERT with learned positions; its biases, norms and positions are large enough to matter."""
    torch.manual_seed(1)
    bert = BertModel(BertConfig(**TINY), add_pooling_layer=False).eval()
    for parameter in bert.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return SentenceEncoder.from_bert(bert, tokenizer).eval()


def test_widened_with_all_heads_and_its_own_positions_it_embeds_as_the_teacher(teacher):
    wide = widen(teacher, positions="learned", noise=0).eval()
    expected = np.tile(teacher.encode(SENTENCES), 2) / 2**0.5
    np.testing.assert_allclose(wide.encode(SENTENCES), expected, atol=1e-5)


def test_a_widened_teacher_is_saved_as_a_start_for_training(teacher, tmp_path):
    wide = widen(teacher, [[0, 3], [1, 2]]).eval()
    wide.save_pretrained(tmp_path)
    opened = SentenceEncoder.from_pretrained(tmp_path)
    assert opened.config == wide.config
    np.testing.assert_array_equal(opened.encode(SENTENCES), wide.encode(SENTENCES))


def test_with_fewer_heads_it_embeds_as_the_teacher_without_the_others(teacher):
    kept = [[0, 3], [1, 2]]
    wide = widen(teacher, kept, positions="learned", noise=0).eval()
    width = teacher.dim // 4
    with torch.no_grad():
        for layer, heads in zip(teacher.layers, kept, strict=True):
            for head in set(range(4)) - set(heads):
                layer.attention_output.weight[:, head * width : (head + 1) * width] = 0
    assert wide.config.num_attention_heads == 2
    np.testing.assert_allclose(wide.encode(SENTENCES), np.tile(teacher.encode(SENTENCES), 2) / 2**0.5, atol=1e-5)


def test_every_part_of_it_gets_a_gradient(teacher, tokenizer):
    wide = widen(teacher, [[0, 3], [1, 2]])
    embeddings = wide(*tokenizer.pad(tokenizer(SENTENCES)))
    (embeddings @ embeddings.T).square().sum().backward()
    for name, parameter in wide.named_parameters():
        if "tokens" not in name:
            unmoved = (parameter.grad.flatten(1) == 0).all(dim=1) if parameter.dim() > 1 else parameter.grad == 0
            # A key's bias adds the same to every score of a query, and the softmax takes it away again.
            assert "query_key_value.bias" in name or not unmoved.any(), name


def test_noise_lets_the_halves_differ(teacher):
    torch.manual_seed(0)
    weight = widen(teacher, positions="learned").layers[0].feed_forward.weight
    left, right = weight.chunk(2, dim=1)
    assert not torch.equal(left, right)


def test_with_sinusoids_tokens_keep_their_weight_against_positions(teacher):
    wide = widen(teacher, noise=0)
    length = teacher.tokenizer.max_length
    differences = {}
    for name, encoder in {"narrow": teacher, "wide": wide}.items():
        tokens, positions = encoder.embeddings.tokens.weight, encoder.embeddings.positions.table[:length]
        spread = [(table - table.mean(dim=0)).norm() / len(table) ** 0.5 for table in (tokens, positions)]
        differences[name] = (spread[0] / spread[1]).item()
    assert wide.config.positions == "sinusoidal"
    assert differences["wide"] == pytest.approx(differences["narrow"], rel=1e-3)


def test_a_head_that_says_nothing_has_no_importance_and_the_measuring_leaves_no_trace(teacher):
    with torch.no_grad():
        teacher.layers[1].attention_output.weight[:, 8:16] = 0
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    importance = head_importance(teacher, SENTENCES)
    assert importance.shape == (2, 4)
    assert importance[1, 1] == pytest.approx(0, abs=1e-6)
    assert (importance[0] > 1e-6).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_most_important_heads_keep_their_order():
    assert most_important_heads(torch.tensor([[0.1, 0.4, 0.2, 0.3], [9.0, 1.0, 8.0, 2.0]]), 2) == [[1, 3], [0, 2]]


def test_what_cannot_be_widened_is_said(tiny_encoder, teacher):
    with pytest.raises(UserError, match="learned positions"):
        widen(tiny_encoder)
    with pytest.raises(UserError, match="3 heads"):
        widen(teacher, [[0, 1, 2]] * 2)


def test_a_teacher_of_half_the_projects_shape_is_widened_to_it(monkeypatch, teacher):
    ours = EncoderConfig(**{**TINY, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128})
    monkeypatch.setattr("benchmarks.widening.EncoderConfig", lambda: ours)
    assert widened_teacher(teacher, SENTENCES).config == ours


def test_a_teacher_of_another_shape_is_refused(teacher):
    with pytest.raises(UserError, match="6 layers, 384 wide, with 8 heads or more"):
        widened_teacher(teacher, SENTENCES)
