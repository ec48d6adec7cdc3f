import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModel, BertModel

from common.attention import Tokens
from common.embedding import evaluating, pool
from common.encoder import EncoderConfig, PositionalEncoding, SentenceEncoder
from common.errors import UserError
from tests.conftest import TINY, random_bert

SENTENCES = ["A cat sat.", "The dog ran across the whole wide field.", "Yes", "One two three four five six seven."]


def test_the_default_is_the_projects_encoder():
    config = EncoderConfig()
    shape = (config.num_hidden_layers, config.num_attention_heads, config.hidden_size, config.intermediate_size)
    assert shape == (6, 8, 768, 3072)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.1


def test_positional_encoding_is_the_formula_in_float64():
    table = PositionalEncoding(200, 48).table.numpy()
    expected = np.empty((200, 48))
    for position in range(200):
        for i in range(24):
            angle = position / 10_000 ** (2 * i / 48)
            expected[position, 2 * i], expected[position, 2 * i + 1] = np.sin(angle), np.cos(angle)
    np.testing.assert_array_equal(table, expected.astype(np.float32))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_is_a_loop_over_the_real_tokens(pooling):
    states, lengths = torch.randn(3, 7, 5), [7, 1, 4]
    mask = torch.tensor([[1] * n + [0] * (7 - n) for n in lengths])
    by_hand = {
        "mean": lambda rows: sum(rows) / len(rows),
        "cls": lambda rows: rows[0],
        "max": lambda rows: torch.tensor([max(float(row[i]) for row in rows) for i in range(5)]),
    }
    expected = torch.stack([by_hand[pooling](list(states[i, :n])) for i, n in enumerate(lengths)])
    torch.testing.assert_close(pool(states, mask, pooling), expected)


@pytest.mark.parametrize("padded", [False, True])
def test_equals_transformers_bert_with_the_same_weights(tokenizer, padded):
    bert = random_bert()
    encoder = SentenceEncoder.from_bert(bert, tokenizer).eval()
    rows = tokenizer(SENTENCES if padded else SENTENCES[:1])
    input_ids, mask = tokenizer.pad(rows)
    with torch.no_grad():
        ours, theirs = encoder.token_states(input_ids, mask), bert(input_ids, mask).last_hidden_state
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)


def test_layer_equals_torchs_own_post_norm_layer():
    config = EncoderConfig(**TINY)
    layer = SentenceEncoder(config).layers[0].eval()
    reference = torch.nn.TransformerEncoderLayer(
        32, 4, 64, activation=F.gelu, layer_norm_eps=1e-12, batch_first=True
    ).eval()
    names = {
        "self_attn.in_proj_": "query_key_value.",
        "self_attn.out_proj.": "attention_output.",
        "linear1.": "feed_forward.",
        "linear2.": "feed_forward_output.",
        "norm1.": "attention_norm.",
        "norm2.": "feed_forward_norm.",
    }
    ours = layer.state_dict()
    weights = {a + kind: ours[b + kind] for a, b in names.items() for kind in ("weight", "bias")}
    reference.load_state_dict(weights)
    states = torch.randn(2, 6, 32)
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        expected = reference(states, src_key_padding_mask=~real)
        torch.testing.assert_close(layer(states[real], Tokens(real)), expected[real], atol=1e-5, rtol=0)


def test_our_folder_opens_in_transformers_with_the_same_states(tiny_encoder, tiny_folder):
    bert = AutoModel.from_pretrained(tiny_folder).eval()
    assert type(bert) is BertModel
    input_ids, mask = tiny_encoder.tokenizer.pad(tiny_encoder.tokenizer(SENTENCES))
    with torch.no_grad():
        ours, theirs = tiny_encoder.token_states(input_ids, mask), bert(input_ids, mask).last_hidden_state
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)


def test_save_and_load_is_bit_exact(tiny_encoder, tiny_folder):
    again = SentenceEncoder.from_pretrained(tiny_folder)
    assert again.config == tiny_encoder.config
    assert again.tokenizer.max_length == tiny_encoder.tokenizer.max_length
    for name, tensor in tiny_encoder.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_berts_weights_come_back_bit_exactly(tokenizer, tmp_path):
    bert = random_bert()
    SentenceEncoder.from_bert(bert, tokenizer).save_pretrained(tmp_path)
    again = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).state_dict()
    for name, tensor in bert.state_dict().items():
        assert torch.equal(tensor, again[name]), name


def test_saved_model_embeds_bit_identically_in_a_new_process(tiny_encoder, tiny_folder, tmp_path):
    program = (
        "import sys, numpy; from common.encoder import SentenceEncoder; "
        "numpy.save(sys.argv[2], SentenceEncoder.from_pretrained(sys.argv[1]).encode(sys.argv[3:], precision='fp32'))"
    )
    output = tmp_path / "new.npy"
    subprocess.run([sys.executable, "-c", program, str(tiny_folder), str(output), *SENTENCES], check=True)
    np.testing.assert_array_equal(np.load(output), tiny_encoder.encode(SENTENCES))


words = st.text(st.sampled_from("abc de.é🤖 "), max_size=60)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sentences=st.lists(words, min_size=1, max_size=12), batch_tokens=st.integers(1, 200), data=st.data())
@pytest.mark.filterwarnings("ignore:.*empty or hold only unknown")
def test_an_embedding_does_not_depend_on_its_company(tiny_encoder, sentences, batch_tokens, data):
    alone = np.concatenate([tiny_encoder.encode([sentence]) for sentence in sentences])
    order = data.draw(st.permutations(range(len(sentences))))
    together = tiny_encoder.encode([sentences[i] for i in order], batch_tokens=batch_tokens)
    np.testing.assert_allclose(together, alone[list(order)], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_more_padding_does_not_change_an_embedding(tiny_encoder):
    input_ids, mask = tiny_encoder.tokenizer.pad(tiny_encoder.tokenizer(SENTENCES))
    wider = [F.pad(tensor, (0, 20)) for tensor in (input_ids, mask)]
    with torch.no_grad():
        torch.testing.assert_close(tiny_encoder(*wider), tiny_encoder(input_ids, mask), atol=1e-5, rtol=0)


def test_what_stands_at_padded_positions_does_not_matter(tiny_encoder):
    input_ids, mask = tiny_encoder.tokenizer.pad(tiny_encoder.tokenizer(SENTENCES))
    other = torch.where(mask.bool(), input_ids, 2057)
    with torch.no_grad():
        torch.testing.assert_close(tiny_encoder(other, mask), tiny_encoder(input_ids, mask), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_an_embedding_is_its_pooled_states_with_unit_norm(pooling, tokenizer):
    torch.manual_seed(0)
    encoder = SentenceEncoder(EncoderConfig(**TINY, pooling=pooling), tokenizer).eval()
    for sentence in SENTENCES:
        ids, mask = tokenizer.pad(tokenizer([sentence]))
        with torch.no_grad():
            states = encoder.token_states(ids, mask)[0].numpy()
        expected = {"mean": states.mean(axis=0), "cls": states[0], "max": states.max(axis=0)}[pooling]
        expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(encoder.encode(SENTENCES)[SENTENCES.index(sentence)], expected, atol=1e-6)


def test_lists_one_after_another_are_embedded_as_one_is(tiny_encoder):
    stream = tiny_encoder.encode_stream([SENTENCES[:1], [], SENTENCES[1:]])
    chunks = list(stream)
    assert [len(chunk) for chunk in chunks] == [1, 0, 3]
    np.testing.assert_allclose(np.concatenate(chunks), tiny_encoder.encode(SENTENCES), atol=1e-6)


def test_a_stream_holds_one_list_at_a_time(tiny_encoder):
    given = iter([["one"], ["two"]])
    next(tiny_encoder.encode_stream(given))
    assert next(given) == ["two"]


def test_blank_sentences_get_unit_vectors_and_a_count(tiny_encoder):
    with pytest.warns(UserWarning, match="3 of 4 sentences are empty or hold only unknown characters"):
        embeddings = tiny_encoder.encode(["", "🤖", "word", " \n"])
    assert np.isfinite(embeddings).all()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_no_sentences_give_no_rows(tiny_encoder):
    assert tiny_encoder.encode([]).shape == (0, 32)


def test_a_single_string_is_refused(tiny_encoder):
    with pytest.raises(TypeError, match="list of sentences"):
        tiny_encoder.encode("a sentence")


@pytest.mark.parametrize("sentences", [SENTENCES, []])
def test_a_precision_there_is_none_of_is_answered_with_the_choices(tiny_encoder, sentences):
    with pytest.raises(UserError, match='precision: must be one of auto, fp32, bf16, fp16, int8, not "int4"'):
        tiny_encoder.encode(sentences, precision="int4")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_unit_vectors(tiny_encoder, precision):
    embeddings = tiny_encoder.encode(SENTENCES, precision=precision)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embeddings, tiny_encoder.encode(SENTENCES), atol=0.02)


def test_word_order_matters(tiny_encoder):
    one, other = tiny_encoder.encode(["the dog bit the man", "the man bit the dog"])
    assert abs(one - other).max() > 1e-3


def test_too_long_a_batch_is_refused(tiny_encoder):
    ids = torch.ones(1, 65, dtype=torch.long)
    with pytest.raises(UserError, match="65 tokens long, but the encoder has 64 positions"):
        tiny_encoder(ids, ids)


def test_an_odd_width_has_no_sinusoids():
    with pytest.raises(UserError, match="sinusoidal positions need an even hidden_size, not 33"):
        EncoderConfig(hidden_size=33, num_attention_heads=3)


def test_a_pooling_there_is_none_of_is_answered_with_the_choices():
    with pytest.raises(UserError, match="pooling: must be one of mean, cls, max, not last"):
        EncoderConfig(pooling="last")


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="hidden_size 30 is no multiple of 4 heads"):
        EncoderConfig(hidden_size=30, num_attention_heads=4)


def test_stages_are_embeddings_then_layers_and_hold_every_parameter_once(tiny_encoder):
    stages = tiny_encoder.stages()
    assert stages == [tiny_encoder.embeddings, *tiny_encoder.layers]
    held = [id(parameter) for stage in stages for parameter in stage.parameters()]
    assert sorted(held) == sorted(map(id, tiny_encoder.parameters()))


def test_stages_are_named_from_the_bottom_up(tiny_encoder):
    assert list(tiny_encoder.named_stages()) == ["embeddings", "layer 1", "layer 2"]


def test_a_failed_save_leaves_the_old_model(tiny_encoder, tiny_folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in tiny_folder.iterdir() if path.is_file()}
    monkeypatch.setattr("common.encoder.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_encoder.save_pretrained(tiny_folder)
    assert {path.name: path.read_bytes() for path in tiny_folder.iterdir() if path.is_file()} == before
    assert not list(tiny_folder.glob(".partial*"))


def test_texts_may_be_cut_elsewhere_and_the_folder_remembers(tiny_encoder, tmp_path):
    tiny_encoder.cut_at(10)
    tiny_encoder.save_pretrained(tmp_path)
    assert SentenceEncoder.from_pretrained(tmp_path).tokenizer.max_length == 10


@pytest.mark.parametrize("length", [0, 65])
def test_a_length_the_encoder_cannot_hold_is_refused(tiny_encoder, length):
    with pytest.raises(UserError, match=f"maximum length of {length}: must be from 3 to the encoder's 64"):
        tiny_encoder.cut_at(length)


def test_without_dropout_training_mode_computes_what_evaluation_mode_does(tiny_encoder, tokenizer):
    batch = tokenizer.pad(tokenizer(SENTENCES))
    with torch.no_grad():
        assert not torch.equal(tiny_encoder.train()(*batch), tiny_encoder.eval()(*batch))
        tiny_encoder.set_dropout(0)
        assert torch.equal(tiny_encoder.train()(*batch), tiny_encoder.eval()(*batch))


def test_dropout_taken_away_comes_back_in_every_part(tiny_encoder):
    tiny_encoder.set_dropout(0)
    tiny_encoder.set_dropout(0.3)
    layer = tiny_encoder.layers[0]
    assert layer.attention_dropout == layer.dropout.p == tiny_encoder.embeddings.dropout.p == 0.3


def test_a_share_dropped_while_training_is_not_saved(tiny_encoder, tmp_path):
    tiny_encoder.set_dropout(0.5)
    tiny_encoder.save_pretrained(tmp_path)
    assert SentenceEncoder.from_pretrained(tmp_path).embeddings.dropout.p == 0.1


def test_an_opened_encoder_has_no_dropout(tiny_folder, tokenizer):
    encoder = SentenceEncoder.from_pretrained(tiny_folder)
    batch = tokenizer.pad(tokenizer(SENTENCES))
    with torch.no_grad():
        assert torch.equal(encoder(*batch), encoder(*batch))


def test_encode_leaves_each_part_in_its_own_mode(tiny_encoder):
    tiny_encoder.train()
    tiny_encoder.layers[0].eval()
    tiny_encoder.encode(SENTENCES)
    assert tiny_encoder.layers[1].training and not tiny_encoder.layers[0].training


def test_afterwards_each_part_is_in_the_mode_it_was_in_even_after_an_error(tiny_encoder):
    tiny_encoder.train()
    tiny_encoder.embeddings.eval()
    with pytest.raises(ZeroDivisionError), evaluating(tiny_encoder):
        assert not any(module.training for module in tiny_encoder.modules())
        1 / 0  # noqa: B018
    assert tiny_encoder.training and tiny_encoder.layers[0].training and not tiny_encoder.embeddings.dropout.training
