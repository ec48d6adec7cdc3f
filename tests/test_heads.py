import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.data import pad_states
from common.encoder import SentenceEncoder
from common.errors import UserError
from common.heads import SHARPNESS, AttentionPooling, LinearHead, MultiTaskModel, TaskHead
from common.load import load_encoder
from common.pretrained import PretrainedEncoder
from tests.conftest import tiny_transformer

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


def test_attention_pooling_is_torchs_attention_with_learned_queries():
    pooling, states = AttentionPooling(12, 3), torch.randn(2, 5, 12)
    torch.nn.init.normal_(pooling.query)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    parts = states.view(2, 5, 3, 4).transpose(1, 2)  # (batch, heads, length, width)
    keys, queries = (
        F.layer_norm(states, (12,))[:, None].expand(2, 3, 5, 12),
        pooling.query[None, :, None].expand(2, 3, 1, 12),
    )
    real = mask[:, None, None].bool()
    expected = F.scaled_dot_product_attention(queries, keys, parts, real, scale=SHARPNESS)
    eye = torch.eye(5).expand(2, 3, 5, 5)  # to attend to is to find the weights
    expected_weights = F.scaled_dot_product_attention(queries, keys, eye, real, scale=SHARPNESS).mean(dim=1)
    attended, weights = pooling(states, mask)
    torch.testing.assert_close(attended, expected.flatten(1))
    torch.testing.assert_close(weights, expected_weights[:, 0])


def test_a_head_is_attention_norm_classifier():
    head, states, mask = TaskHead(12, 4, 3).eval(), torch.randn(2, 5, 12), torch.ones(2, 5)
    torch.nn.init.normal_(head.attention.query)
    attended, _ = head.attention(states, mask)
    features = F.layer_norm(attended, (12,), eps=1e-12)
    torch.testing.assert_close(head(states, mask)[0], features @ head.classifier.weight.T + head.classifier.bias)
    held = [id(p) for layer in head.layers() for p in layer.parameters()]
    assert sorted(held) == sorted(map(id, head.parameters()))


def test_an_attention_head_begins_as_the_linear_head_of_the_mean():
    attending, linear = TaskHead(12, 4, 3).eval(), LinearHead(12, 4, "mean").eval()
    linear.classifier = attending.classifier
    states, mask = torch.randn(2, 5, 12), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    for ours, theirs in zip(attending(states, mask), linear(states, mask), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_do_not_depend_on_padding(model):
    input_ids, mask = batch_of(model)
    wider = [F.pad(tensor, (0, 9)) for tensor in (input_ids, mask)]
    with torch.no_grad():
        for task, logits in model(*wider).items():
            torch.testing.assert_close(logits, model(input_ids, mask)[task], atol=1e-5, rtol=0)


def test_each_task_has_a_logit_for_each_of_its_labels(model):
    logits = model(*batch_of(model))
    assert {task: tuple(values.shape) for task, values in logits.items()} == {"topic": (3, 2), "sentiment": (3, 3)}


def test_the_heads_see_the_encoders_token_states(model):
    input_ids, mask = batch_of(model)
    with torch.no_grad():
        states = model.encoder.token_states(input_ids, mask)
        for task, logits in model(input_ids, mask).items():
            assert torch.equal(logits, model.head(task)(states, mask)[0])


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
def test_logits_of_many_texts_come_in_the_order_given(model, batch_tokens):
    items = [{"ids": ids} for ids in model.encoder.tokenizer(TEXTS)]
    logits = model.logits(items, batch_tokens)
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            alone = model(*batch_of(model, [text]))
        for task in TASKS:
            torch.testing.assert_close(logits[task][i], alone[task][0], atol=1e-5, rtol=0)


def test_token_states_computed_already_stand_in_for_the_encoder(model, monkeypatch):
    items = [{"ids": ids} for ids in model.encoder.tokenizer(TEXTS)]
    with torch.no_grad():
        states = [model.encoder.token_states(*batch_of(model, [text]))[0] for text in TEXTS]
    expected = model.logits(items)
    monkeypatch.setattr(model.encoder, "token_states", None)
    given = model.logits([{**item, "states": rows} for item, rows in zip(items, states, strict=True)])
    for task, logits in expected.items():
        torch.testing.assert_close(given[task], logits, atol=1e-5, rtol=0)


def test_padded_states_are_zero_behind_each_rows_end():
    rows = [torch.ones(2, 3), torch.ones(4, 3)]
    padded = pad_states(rows)
    assert padded.shape == (2, 4, 3) and padded[0, 2:].eq(0).all() and padded.sum() == 18


def test_logits_of_no_texts_are_empty(model):
    assert {task: tuple(logits.shape) for task, logits in model.logits([]).items()} == {
        "topic": (0, 2),
        "sentiment": (0, 3),
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
    torch.nn.init.normal_(model.head("topic").attention.query)
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


def test_heads_sit_on_any_transformers_encoder(tokenizer, tmp_path):
    encoder = PretrainedEncoder(tiny_transformer("roberta", tokenizer.vocab_size), tokenizer)
    model = MultiTaskModel(encoder, TASKS).eval()
    model.save_pretrained(tmp_path)
    assert MultiTaskModel.from_pretrained(tmp_path).predict(TEXTS) == model.predict(TEXTS)
    assert isinstance(load_encoder(tmp_path), PretrainedEncoder)


def test_a_new_model_has_trained_no_head_and_an_opened_one_all(model, tmp_path):
    assert model.new == {"topic", "sentiment"}
    model.save_pretrained(tmp_path)
    assert MultiTaskModel.from_pretrained(tmp_path).new == set()


def test_an_added_task_leaves_the_heads_there_are_as_they_were(model):
    model.new = set()
    more = model.with_tasks({"mood": ["low", "high"], "topic": ["Sports"]})
    assert more.tasks == {**TASKS, "mood": ["low", "high"]}
    before, after = model(*batch_of(model)), more.eval()(*batch_of(model))
    assert all(torch.equal(before[task], after[task]) for task in TASKS)
    assert after["mood"].shape == (3, 2)
    assert more.encoder is model.encoder


@pytest.mark.parametrize(("new", "expected"), [(set(), {"mood"}), ({"topic"}, {"topic", "mood"})])
def test_with_an_added_task_the_added_head_is_new_beside_those_that_were(model, new, expected):
    model.new = new
    more = model.with_tasks({**TASKS, "mood": ["low", "high"]})
    assert more.new == expected and more.grown == set()
    assert model.new == new


def test_a_head_grows_by_new_labels_and_says_of_the_old_ones_what_it_did(model):
    model.new = {"sentiment"}
    more = model.with_tasks({"topic": ["Art", "Sports"], "sentiment": ["Mixed"]}).eval()
    assert more.tasks == {"topic": ["Science", "Sports", "Art"], "sentiment": [*TASKS["sentiment"], "Mixed"]}
    assert more.grown == {"topic"} and more.new == {"sentiment"}
    before, after = model(*batch_of(model)), more(*batch_of(model))
    assert torch.equal(before["topic"], after["topic"][:, :2])
    torch.testing.assert_close(before["sentiment"], after["sentiment"][:, :3])
    torch.testing.assert_close(after["topic"][:, 2], before["topic"].mean(dim=1))


def test_every_parameter_of_a_model_is_in_exactly_one_stage(model):
    held = [id(parameter) for stage in model.named_stages().values() for parameter in stage.parameters()]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_the_models_stages_are_the_encoders_then_each_heads_layers(model):
    heads = [f"{task} head {n}" for task in TASKS for n in (1, 2, 3)]
    assert list(model.named_stages()) == ["embeddings", "layer 1", "layer 2", *heads]


@pytest.mark.parametrize(
    ("words", "frozen"),
    [
        (["encoder"], ["encoder."]),
        (["head:topic"], ["heads.task topic."]),
        (["stages:0-1"], ["encoder.embeddings.", "encoder.layers.0."]),
        (["stages:2", "head:sentiment"], ["encoder.layers.1.", "heads.task sentiment."]),
        (["all"], [""]),
        (["none"], []),
        ([], []),
    ],
)
def test_freezing_takes_the_gradient_of_what_is_named_and_of_nothing_else(model, words, frozen):
    model.freeze(*words)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name


def test_what_is_frozen_stays_so_when_more_is_frozen(model):
    model.freeze("head:topic")
    model.freeze("stages:0")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith(("heads.task topic.", "encoder.embeddings.")) for name in frozen)
    assert any(name.startswith("heads.task topic.") for name in frozen)


def test_a_word_that_names_nothing_freezes_nothing(model):
    with pytest.raises(UserError, match='"head:mood" names no stage'):
        model.freeze("encoder", "head:mood")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_attention_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="a width of 10 is no multiple of 4 attention heads"):
        AttentionPooling(10, 4)


def test_predicting_in_bf16_gives_nearly_the_same_probabilities(model):
    (rough, *_), (exact, *_) = model.predict(TEXTS, precision="bf16"), model.predict(TEXTS)
    assert rough["topic"]["probabilities"] == pytest.approx(exact["topic"]["probabilities"], abs=0.02)


def test_predicting_in_a_precision_there_is_none_of_is_answered_with_the_choices(model):
    with pytest.raises(UserError, match='precision: must be one of auto, fp32, bf16, fp16, int8, not "int4"'):
        model.predict(TEXTS, precision="int4")


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
    with pytest.raises(UserError, match=r"heads\.safetensors or tasks\.json cannot be read") as caught:
        MultiTaskModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
