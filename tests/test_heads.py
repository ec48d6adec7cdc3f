import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.cli import UserError
from common.encoder import SentenceEncoder
from common.heads import AttentionPooling, MultiTaskModel, TaskHead
from common.tokenizer import SentenceTokenizer

TASKS = {"topic": ["Science", "Sports"], "sentiment": ["Negative", "Neutral", "Positive"]}
ODD_TASKS = {
    "mood of the day": ["très bon", "so-so", "😡"],
    "v1.0": ["1", "2.5"],
    "v1%2E0": ["a", "b"],
    "keys": ["yes", "no"],
    "train": ["$x_1$", ""],
    "сорт": ["да", "нет"],
}
TEXTS = ["The striker scored twice.", "Rain.", "A comet passed close to the old observatory last night, said nobody."]


@pytest.fixture
def model(tiny_encoder):
    torch.manual_seed(0)
    return MultiTaskModel(tiny_encoder, TASKS).eval()


def batch_of(model, texts=TEXTS):
    return model.encoder.tokenizer.pad(model.encoder.tokenizer(texts))


def test_attention_is_zero_on_padding_and_adds_up_to_one(model):
    input_ids, mask = batch_of(model)
    for attention in model.outputs(input_ids, mask).attention.values():
        assert (attention[mask == 0] == 0).all()
        torch.testing.assert_close(attention.sum(dim=1), torch.ones(len(TEXTS)))


def test_attention_pooling_is_torchs_attention_with_a_learned_query():
    pooling, states = AttentionPooling(12, 3), torch.randn(2, 5, 12)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    reference = torch.nn.MultiheadAttention(12, 3, batch_first=True, bias=True)
    weight = torch.cat([torch.eye(12), pooling.key.weight, pooling.value.weight])
    bias = torch.cat([torch.zeros(12), pooling.key.bias, pooling.value.bias])
    reference.load_state_dict(
        {
            "in_proj_weight": weight,
            "in_proj_bias": bias,
            "out_proj.weight": pooling.output.weight,
            "out_proj.bias": pooling.output.bias,
        }
    )
    query = pooling.query.flatten().expand(2, 1, 12)
    expected, expected_weights = reference(query, states, states, key_padding_mask=mask == 0)
    attended, weights = pooling(states, mask)
    torch.testing.assert_close(attended, expected[:, 0])
    torch.testing.assert_close(weights, expected_weights[:, 0])


def test_a_head_is_norm_attention_classifier():
    head, states, mask = TaskHead(12, 4, 3).eval(), torch.randn(2, 5, 12), torch.ones(2, 5)
    attended, _ = head.attention(F.layer_norm(states, (12,), head.norm.weight, head.norm.bias), mask)
    torch.testing.assert_close(head(states, mask)[0], attended @ head.classifier.weight.T + head.classifier.bias)
    held = [id(p) for layer in head.layers() for p in layer.parameters()]
    assert sorted(held) == sorted(map(id, head.parameters()))


def test_logits_do_not_depend_on_padding(model):
    input_ids, mask = batch_of(model)
    wider = [F.pad(tensor, (0, 9)) for tensor in (input_ids, mask)]
    with torch.no_grad():
        for task, logits in model(*wider).items():
            torch.testing.assert_close(logits, model(input_ids, mask)[task], atol=1e-5, rtol=0)


def test_one_pass_gives_the_logits_and_the_sentence_embedding(model):
    input_ids, mask = batch_of(model)
    with torch.no_grad():
        output = model.outputs(input_ids, mask)
        torch.testing.assert_close(output.embeddings, model.encoder(input_ids, mask))
    assert {task: tuple(logits.shape) for task, logits in output.logits.items()} == {
        "topic": (3, 2),
        "sentiment": (3, 3),
    }


def test_predict_gives_labels_and_probabilities_in_the_order_given(model):
    results = model.predict(TEXTS, batch_tokens=20)
    alone = [model.predict([text])[0] for text in TEXTS]
    for result, single in zip(results, alone, strict=True):
        for task, labels in TASKS.items():
            probabilities = result[task]["probabilities"]
            assert list(probabilities) == labels
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
            assert probabilities == pytest.approx(single[task]["probabilities"], abs=1e-5)
            assert result[task]["label"] == max(probabilities, key=probabilities.get)
            assert "attention" not in result[task]


def test_explaining_gives_each_words_share_of_attention(model):
    text = "Unaffable wombats, naïve café!"
    result = model.predict(["longer than the other text by far, it is", text], explain=True)[1]
    for task in TASKS:
        words, shares = zip(*result[task]["attention"], strict=True)
        assert words == ("[CLS]", "Unaffable", "wombats", ",", "naïve", "café", "!", "[SEP]")
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert result["topic"]["attention"] != result["sentiment"]["attention"]


def test_predict_refuses_what_is_no_list_of_texts(model):
    with pytest.raises(TypeError, match="list of texts"):
        model.predict("a text")
    with pytest.raises(TypeError, match="sentence 1 is a NoneType"):
        model.predict(["a", None])


def test_no_texts_no_predictions(model):
    assert model.predict([]) == []


@pytest.mark.parametrize("tasks", [TASKS, ODD_TASKS])
def test_save_and_load_is_bit_exact_whatever_the_names(tiny_encoder, tasks, tmp_path):
    model = MultiTaskModel(tiny_encoder, tasks).eval()
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert again.tasks == {task: list(labels) for task, labels in tasks.items()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.predict(TEXTS) == model.predict(TEXTS)


def test_the_folder_is_also_the_encoders(model, tmp_path):
    model.save_pretrained(tmp_path)
    encoder = SentenceEncoder.from_pretrained(tmp_path)
    np.testing.assert_array_equal(encoder.encode(TEXTS), model.encoder.encode(TEXTS))


def test_heads_sit_on_any_transformers_encoder(tmp_path):
    from tests.test_encoder import tiny_transformer

    tokenizer = SentenceTokenizer(max_length=32)
    tiny_transformer("roberta", tokenizer.vocab_size).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    model = MultiTaskModel(SentenceEncoder.from_pretrained(tmp_path / "roberta"), TASKS)
    model.save_pretrained(tmp_path / "model")
    assert MultiTaskModel.from_pretrained(tmp_path / "model").predict(TEXTS) == model.predict(TEXTS)


def test_an_encoder_without_heads_is_refused(tiny_folder):
    with pytest.raises(UserError, match="no multi-task model there"):
        MultiTaskModel.from_pretrained(tiny_folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("heads.safetensors", b"\x08\0\0\0\0\0\0\0garbage!"),
        ("heads.safetensors", None),
        ("tasks.json", b"{"),
        ("tasks.json", b"[]"),
        ("tasks.json", json.dumps({"tasks": {"topic": ["a", "b", "c"]}, "attention_heads": 4}).encode()),
    ],
)
def test_damaged_heads_are_refused_in_one_sentence(model, tmp_path, name, content):
    model.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        MultiTaskModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
