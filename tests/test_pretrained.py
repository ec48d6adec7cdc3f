import numpy as np
import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel, AutoModel, BartConfig, BartModel, T5Config, T5Model

from common.encoder import SentenceEncoder
from common.errors import UserError
from common.heads import MultiTaskModel
from common.load import load_encoder
from common.pretrained import PretrainedEncoder
from tests.conftest import TINY, tiny_transformer

SENTENCES = ["A cat sat.", "The dog ran across the whole wide field.", "Yes", "One two three four five six seven."]
KINDS = ["roberta", "deberta", "distilbert", "modernbert", "gpt2"]


@pytest.fixture
def build(tokenizer):
    def made(kind, pooling="mean") -> PretrainedEncoder:
        return PretrainedEncoder(tiny_transformer(kind, tokenizer.vocab_size), tokenizer, pooling).eval()

    return made


@pytest.fixture(params=KINDS)
def encoder(request, build) -> PretrainedEncoder:
    return build(request.param)


@pytest.fixture
def batch(tokenizer):
    return tokenizer.pad(tokenizer(SENTENCES))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_an_embedding_is_what_transformers_computes_pooled_with_unit_norm(kind, pooling, build, tokenizer):
    encoder, embeddings = build(kind, pooling), []
    for sentence in SENTENCES:
        ids, mask = tokenizer.pad(tokenizer([sentence]))
        with torch.no_grad():
            states = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state[0].numpy()
        pooled = {"mean": states.mean(axis=0), "cls": states[0], "max": states.max(axis=0)}[pooling]
        embeddings.append(pooled / np.linalg.norm(pooled))
    np.testing.assert_allclose(encoder.encode(SENTENCES), embeddings, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_company(encoder):
    alone = np.concatenate([encoder.encode([sentence]) for sentence in SENTENCES])
    np.testing.assert_allclose(encoder.encode(SENTENCES), alone, atol=1e-5)


def test_in_bf16_it_computes_nearly_the_same(encoder):
    exact, rough = (encoder.encode(SENTENCES, precision=precision) for precision in ("fp32", "bf16"))
    assert (exact * rough).sum(axis=1).min() > 0.99
    model = MultiTaskModel(encoder, {"mood": ["good", "bad"]}).eval()
    for one, other in zip(*(model.predict(SENTENCES, precision=name) for name in ("fp32", "bf16")), strict=True):
        assert one["mood"]["probabilities"] == pytest.approx(other["mood"]["probabilities"], abs=0.05)


def test_steps_are_cut_to_spare_padding_and_less_so_on_an_accelerator(encoder):
    on_the_processor = encoder.max_padding
    assert 0 < on_the_processor < encoder.to("meta").max_padding < SentenceEncoder.max_padding


@pytest.mark.parametrize("kind", KINDS)
def test_it_saves_and_opens_again_bit_for_bit(kind, build, tmp_path):
    encoder = build(kind, "max")
    encoder.cut_at(20)
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    assert isinstance(again, PretrainedEncoder) and not again.training
    assert (again.pooling, again.tokenizer.max_length) == ("max", 20)
    np.testing.assert_array_equal(again.encode(SENTENCES), encoder.encode(SENTENCES))


def test_the_saved_folder_opens_in_transformers(build, batch, tmp_path):
    encoder = build("roberta")
    encoder.save_pretrained(tmp_path)
    roberta = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            roberta(input_ids=batch[0], attention_mask=batch[1]).last_hidden_state, encoder.token_states(*batch)
        )


def test_it_has_no_pooler(build):
    assert not [name for name, _ in build("roberta").named_parameters() if "pooler" in name]


def test_half_precision_gives_nearly_the_same_embeddings(encoder):
    rough, exact = (encoder.encode(SENTENCES, precision=precision) for precision in ("bf16", "fp32"))
    np.testing.assert_allclose(rough, exact, atol=0.03)


def test_int8_is_refused_for_it_is_not_known_what_has_to_be_precise(encoder, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_vnni": True})
    with pytest.raises(UserError, match="precision: int8 is for encoders of BERT's kind"):
        encoder.encode(SENTENCES, precision="int8")


def test_every_parameter_is_in_exactly_one_stage(encoder):
    held = [id(parameter) for stage in encoder.stages() for parameter in stage.parameters()]
    assert sorted(held) == sorted(map(id, encoder.parameters()))


def test_stages_are_embeddings_and_each_layer(encoder):
    assert list(encoder.named_stages()) == ["embeddings", "layer 1", "layer 2"]


def test_the_stages_leave_the_models_own_names_alone(encoder):
    assert {name.removeprefix("model.") for name in encoder.state_dict()} == set(encoder.model.state_dict())


def inside(stage: nn.Module, module: nn.Module) -> bool:
    return any(part is module for part in stage.modules())


def test_gpt2s_embedding_dropout_is_in_the_embeddings_stage_and_its_final_norm_in_the_last(build):
    gpt2 = build("gpt2")
    first, _, last = gpt2.stages()
    assert inside(first, gpt2.model.drop) and inside(first, gpt2.model.wte) and inside(first, gpt2.model.wpe)
    assert inside(last, gpt2.model.ln_f) and inside(last, gpt2.model.h[1])


def test_modernberts_final_norm_is_in_the_last_stage(build):
    modernbert = build("modernbert")
    first, _, last = modernbert.stages()
    assert inside(last, modernbert.model.final_norm) and inside(last, modernbert.model.layers[1])
    assert inside(first, modernbert.model.embeddings) and not inside(first, modernbert.model.final_norm)


def test_debertas_relative_positions_and_their_norm_are_in_the_embeddings_stage(build):
    deberta = build("deberta")
    first, _, last = deberta.stages()
    assert inside(first, deberta.model.encoder.rel_embeddings) and inside(first, deberta.model.encoder.LayerNorm)
    assert last is deberta.model.encoder.layer[1]


def test_training_mode_drops_values(encoder, batch):
    encoder.train()
    assert not torch.equal(encoder(*batch), encoder(*batch))


def test_with_every_stage_in_evaluation_mode_nothing_is_dropped(encoder, batch):
    expected = encoder(*batch)
    encoder.train()
    for stage in encoder.stages():
        stage.eval()
    assert encoder.training
    assert torch.equal(encoder(*batch), expected)


def test_a_dropout_of_zero_drops_nothing_in_training_mode(encoder, batch):
    expected = encoder(*batch)
    encoder.set_dropout(0)
    assert torch.equal(encoder.train()(*batch), expected)


def test_dropout_taken_away_comes_back(encoder, batch):
    encoder.set_dropout(0)
    encoder.set_dropout(0.5)
    assert not torch.equal(encoder.train()(*batch), encoder(*batch))


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_heads_have_as_many_attention_heads_as_the_encoder(kind, build):
    assert MultiTaskModel(build(kind), {"mood": ["bad", "good"]}).attention_heads == TINY["num_attention_heads"]


def test_a_stack_of_one_shared_layer_is_one_stage(tokenizer, batch):
    albert = AlbertModel(AlbertConfig(vocab_size=tokenizer.vocab_size, embedding_size=16, **TINY))
    encoder = PretrainedEncoder(albert, tokenizer).eval()
    assert list(encoder.named_stages()) == ["embeddings", "layer 1"]
    held = [id(parameter) for stage in encoder.stages() for parameter in stage.parameters()]
    assert sorted(held) == sorted(map(id, encoder.parameters()))


def test_finding_the_stages_leaves_the_mode_and_the_random_state_alone(tokenizer):
    model = tiny_transformer("gpt2", tokenizer.vocab_size).train()
    before = torch.get_rng_state()
    encoder = PretrainedEncoder(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.training and all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_robertas_positions_begin_after_its_padding(build):
    roberta = build("roberta")
    assert roberta.max_positions == 64 - 2
    with pytest.warns(UserWarning, match="longer than 62 tokens"):
        roberta.encode(["word " * 100])
    with pytest.raises(UserError, match="must be from 3 to the encoder's 62"):
        roberta.cut_at(63)


@pytest.mark.parametrize("model", [T5Model, BartModel])
def test_a_model_with_a_decoder_is_refused(model, tokenizer):
    if model is T5Model:
        small = T5Model(T5Config(vocab_size=99, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    else:
        ends = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        small = BartModel(BartConfig(vocab_size=99, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, **ends))
    with pytest.raises(UserError, match="model has a decoder too; choose an encoder"):
        PretrainedEncoder(small, tokenizer)
