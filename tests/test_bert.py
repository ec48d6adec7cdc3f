import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from common.bert import from_bert_names, to_bert_names
from common.encoder import EncoderConfig, PositionalEncoding, SentenceEncoder
from common.errors import UserError
from common.load import load_encoder
from tests.conftest import TINY, random_bert

SENTENCES = ["A cat sat.", "The dog ran across the whole wide field.", "Yes"]
SHAPE = {"vocab_size": 30_522, **TINY}


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def edit(folder, change):
    """Rewrite the checkpoint in a folder under what `change` makes of its tensors by name."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def mean_embeddings(model, tokenizer):
    """What a transformers model, mean pooling and a norm give, written down once more."""
    rows = []
    for sentence in SENTENCES:
        ids, mask = tokenizer.pad(tokenizer([sentence]))
        with torch.no_grad():
            mean = model(input_ids=ids, attention_mask=mask).last_hidden_state[0].mean(dim=0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


def check_equal(encoder, model, tokenizer):
    torch.testing.assert_close(
        torch.from_numpy(encoder.encode(SENTENCES)), mean_embeddings(model, tokenizer), atol=1e-5, rtol=0
    )


def test_names_there_and_back_are_the_same_tensors():
    state = random_bert().state_dict()
    again = to_bert_names(from_bert_names(state, 2), 2)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_a_tensor_without_a_place_is_named():
    more = {"encoder.layer.5.output.dense.weight": torch.ones(1), "what": torch.ones(1)}
    with pytest.raises(UserError, match=r"no place for encoder\.layer\.5\.output\.dense\.weight and 1 more"):
        from_bert_names(random_bert().state_dict() | more, 2)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining, BertForSequenceClassification])
def test_a_bert_opens_with_any_head_as_its_own_backbone(kind, tokenizer, tmp_path):
    bert = saved(kind(BertConfig(**SHAPE)), tokenizer, tmp_path)
    encoder = SentenceEncoder.from_pretrained(tmp_path)
    assert encoder.config.positions == "learned"
    check_equal(encoder, getattr(bert, "bert", bert), tokenizer)


@pytest.mark.parametrize("kind", [RobertaModel, RobertaForMaskedLM])
def test_a_roberta_opens_with_or_without_its_head(kind, tokenizer, tmp_path):
    roberta = saved(kind(RobertaConfig(pad_token_id=0, **SHAPE)), tokenizer, tmp_path)
    check_equal(load_encoder(tmp_path), getattr(roberta, "roberta", roberta), tokenizer)


def test_names_of_the_first_berts_are_known(tokenizer, tmp_path):
    bert = saved(BertForPreTraining(BertConfig(**SHAPE)), tokenizer, tmp_path)
    with torch.no_grad():
        for name, parameter in bert.named_parameters():
            if "LayerNorm" in name:
                parameter.add_(0.3)
    bert.save_pretrained(tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def older(tensors):
        for new, name in old.items():
            tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
        return tensors | {"bert.embeddings.position_ids": torch.arange(64)[None]}

    edit(tmp_path, older)
    check_equal(SentenceEncoder.from_pretrained(tmp_path), bert.bert, tokenizer)


KINDS = {
    "bert": lambda: BertModel(BertConfig(**SHAPE)),
    "bert with a head": lambda: BertForMaskedLM(BertConfig(**SHAPE)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SHAPE)),
    "roberta with a head": lambda: RobertaForMaskedLM(RobertaConfig(**SHAPE)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_lacks_a_layer_is_refused(kind, tokenizer, tmp_path):
    saved(KINDS[kind](), tokenizer, tmp_path)
    edit(tmp_path, lambda tensors: {key: tensor for key, tensor in tensors.items() if ".layer.1." not in key})
    with pytest.raises(UserError, match=r"the checkpoint lacks encoder\.layer\.1\.\S+ and 15 more$"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["encoder.layer.2.output.dense.weight", "encoder.layer.0.output.novel"])
def test_a_weight_of_the_checkpoint_that_would_not_be_used_is_named(kind, name, tokenizer, tmp_path):
    saved(KINDS[kind](), tokenizer, tmp_path)
    prefix = f"{kind.split()[0]}." if "head" in kind else ""
    edit(tmp_path, lambda tensors: tensors | {prefix + name: torch.ones(2)})
    with pytest.raises(UserError, match=f"the model has no place for {prefix}{name} of its checkpoint"):
        load_encoder(tmp_path)


def test_other_files_of_weights_in_the_folder_do_not_matter(tokenizer, tmp_path):
    saved(KINDS["bert"](), tokenizer, tmp_path)
    (tmp_path / "heads.safetensors").write_bytes(b"no weights at all")
    save_file({"bert.something": torch.ones(1)}, tmp_path / "checkpoint.safetensors")
    assert isinstance(load_encoder(tmp_path), SentenceEncoder)
    edit(tmp_path, lambda tensors: tensors | {"novel": torch.ones(2)})
    with pytest.raises(UserError, match="no place for novel"):
        load_encoder(tmp_path)


@pytest.fixture
def retrained(tiny_folder):
    """Our folder as transformers opens it, and a way to save it there again."""
    bert = AutoModel.from_pretrained(tiny_folder)
    assert bert.config.positions == "sinusoidal"
    return bert.eval()


@pytest.mark.parametrize("table", ["position_embeddings", "token_type_embeddings"])
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_a_table_trained_elsewhere_opens_as_learned(table, size, retrained, tiny_folder, tokenizer):
    weight = getattr(retrained.embeddings, table).weight
    with torch.no_grad():
        weight.add_(size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    retrained.save_pretrained(tiny_folder)
    encoder = SentenceEncoder.from_pretrained(tiny_folder)
    assert encoder.config.positions == "learned"
    assert torch.equal(encoder.embeddings.positions.table, retrained.embeddings.position_embeddings.weight)
    assert torch.equal(encoder.embeddings.positions.token_types, retrained.embeddings.token_type_embeddings.weight)
    check_equal(encoder, retrained, tokenizer)


def test_a_table_that_was_only_carried_along_stays_sinusoidal(retrained, tiny_folder, tokenizer):
    with torch.no_grad():
        retrained.encoder.layer[0].output.dense.weight.mul_(2)
    retrained.save_pretrained(tiny_folder)
    encoder = SentenceEncoder.from_pretrained(tiny_folder)
    assert isinstance(encoder.embeddings.positions, PositionalEncoding)
    check_equal(encoder, retrained, tokenizer)


def test_what_opened_as_learned_is_saved_and_opened_as_learned(retrained, tiny_folder, tokenizer, tmp_path):
    with torch.no_grad():
        retrained.embeddings.position_embeddings.weight[1:3] += 1
    retrained.save_pretrained(tiny_folder)
    SentenceEncoder.from_pretrained(tiny_folder).save_pretrained(tmp_path / "again")
    check_equal(SentenceEncoder.from_pretrained(tmp_path / "again"), retrained, tokenizer)
    assert BertConfig.from_pretrained(tmp_path / "again").positions == "learned"


def test_a_decoder_is_no_bert_encoder(tokenizer, tmp_path):
    saved(BertModel(BertConfig(is_decoder=True, **SHAPE)), tokenizer, tmp_path)
    with pytest.raises(UserError, match="no BERT"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_a_config_says_every_setting_of_the_encoder(tokenizer, tmp_path):
    config = EncoderConfig(**TINY, hidden_act="relu", hidden_dropout_prob=0.3, layer_norm_eps=1e-5, positions="learned")
    encoder = SentenceEncoder(config, tokenizer).eval()
    encoder.save_pretrained(tmp_path)
    bert = AutoModel.from_pretrained(tmp_path).eval()
    assert bert.config.hidden_dropout_prob == 0.3
    check_equal(encoder, bert, tokenizer)
