import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from common import folders
from common.bert import open_backbone
from common.encoder import EncoderConfig, SentenceEncoder
from common.errors import UserError
from common.folders import POOLINGS, Description, model_folder
from common.heads import MultiTaskModel
from common.load import load_encoder
from common.pretrained import PretrainedEncoder
from common.tokenizer import SentenceTokenizer
from tests.conftest import TINY, tiny_transformer

SENTENCES = ["A cat sat.", "The dog ran across the whole wide field.", "Yes"]
NAME, COMMIT = "some-organisation/some-model", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty local cache of the hub; any attempt to reach the hub itself fails the test or is offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def cached(hub_cache):
    """Puts a folder into the cache under a hub name, laid out as the hub's client does: links to blobs by hash."""

    def put(folder, name=NAME):
        root = hub_cache / f"models--{name.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT)
        (root / "blobs").mkdir()
        for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
            shutil.copy(path, root / "blobs" / str(number))
            link = root / "snapshots" / COMMIT / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(root / "blobs" / str(number))
        return root

    return put


def described_folder(encoder, tmp_path):
    encoder.cut_at(17)
    encoder.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_bert_in_the_local_cache_opens_by_name_without_a_network(cached, tokenizer, tmp_path):
    torch.manual_seed(0)
    encoder = SentenceEncoder(EncoderConfig(**TINY, pooling="cls"), tokenizer).eval()
    cached(described_folder(encoder, tmp_path))
    opened = SentenceEncoder.from_pretrained(NAME)
    assert (opened.pooling, opened.tokenizer.max_length) == ("cls", 17)
    np.testing.assert_array_equal(opened.encode(SENTENCES), encoder.encode(SENTENCES))


def test_another_architecture_in_the_local_cache_opens_by_name(cached, tokenizer, tmp_path):
    encoder = PretrainedEncoder(tiny_transformer("roberta", tokenizer.vocab_size), tokenizer, "max").eval()
    cached(described_folder(encoder, tmp_path))
    opened = load_encoder(NAME)
    assert isinstance(opened, PretrainedEncoder)
    assert (opened.pooling, opened.tokenizer.max_length) == ("max", 17)
    np.testing.assert_array_equal(opened.encode(SENTENCES), encoder.encode(SENTENCES))


def test_a_multi_task_model_in_the_local_cache_opens_by_name(cached, tiny_encoder, tmp_path):
    model = MultiTaskModel(tiny_encoder, {"topic": ["a", "b"]}).eval()
    model.save_pretrained(tmp_path / "model")
    cached(tmp_path / "model")
    assert MultiTaskModel.from_pretrained(NAME).predict(SENTENCES) == model.predict(SENTENCES)


def test_a_tokenizer_in_the_local_cache_opens_by_name(cached, tiny_folder):
    cached(tiny_folder)
    assert SentenceTokenizer.from_pretrained(NAME)(SENTENCES) == SentenceTokenizer()(SENTENCES)


def test_a_folder_of_that_path_comes_before_the_hubs_model_of_that_name(cached, tiny_folder, tmp_path, monkeypatch):
    cached(tiny_folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert model_folder(NAME).resolve() == tmp_path / NAME


@pytest.mark.parametrize("open_it", [load_encoder, SentenceEncoder.from_pretrained, MultiTaskModel.from_pretrained])
def test_a_name_that_is_not_in_the_cache_is_one_sentence_without_a_network(open_it, hub_cache):
    with pytest.raises(UserError) as caught:
        open_it("no-such-organisation/no-such-model")
    assert str(caught.value) == (
        "no-such-organisation/no-such-model: no such folder, not in the local cache, "
        "and the hub cannot be reached to fetch it"
    )


def test_a_cached_configuration_without_weights_is_no_model(cached, tiny_folder):
    (tiny_folder / "model.safetensors").unlink()
    cached(tiny_folder)
    with pytest.raises(UserError, match="cannot be reached"):
        load_encoder(NAME)


def test_what_is_not_in_the_cache_is_fetched_without_pickles_or_other_formats(
    hub_cache, tiny_folder, tiny_encoder, monkeypatch
):
    asked = {}

    def fetch(name, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError(name)
        asked.update(name=name, patterns=allow_patterns)
        return str(tiny_folder)

    monkeypatch.setattr(folders, "snapshot_download", fetch)
    monkeypatch.setattr(folders, "get_session", lambda: type("Online", (), {"head": lambda *_, **__: None}))
    np.testing.assert_array_equal(load_encoder(NAME).encode(SENTENCES), tiny_encoder.encode(SENTENCES))
    assert asked["name"] == NAME
    assert not {"*.bin", "*.pt", "*.h5", "*.onnx", "*"} & set(asked["patterns"])


def test_a_name_the_hub_does_not_know_is_one_sentence(hub_cache, monkeypatch):
    def refuse(name, **_):
        raise RuntimeError("404 Client Error. (Request ID: x)\n\nRepository Not Found for url\nmore")

    monkeypatch.setattr(folders, "snapshot_download", refuse)
    monkeypatch.setattr(folders, "get_session", lambda: type("Online", (), {"head": lambda *_, **__: None}))
    with pytest.raises(UserError, match="some-model: the hub has no such model") as caught:
        load_encoder(NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all"])
@pytest.mark.parametrize("open_it", [load_encoder, SentenceEncoder.from_pretrained, SentenceTokenizer.from_pretrained])
def test_a_path_that_is_not_there_is_never_looked_for_on_the_hub(open_it, name, monkeypatch):
    monkeypatch.setattr(folders, "snapshot_download", None)
    with pytest.raises(UserError, match=f"{name}: no such model folder"):
        open_it(name)


def test_a_file_is_no_model_folder(tiny_folder):
    with pytest.raises(UserError, match="no such model folder"):
        load_encoder(tiny_folder / "config.json")


@pytest.mark.parametrize("open_it", [load_encoder, SentenceEncoder.from_pretrained])
def test_an_empty_folder_is_no_model(open_it, tmp_path):
    with pytest.raises(UserError, match="no model there"):
        open_it(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("open_it", [load_encoder, SentenceEncoder.from_pretrained])
def test_a_damaged_model_is_refused_in_one_sentence(open_it, tiny_folder, name):
    path = tiny_folder / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"cannot be (opened|read)") as caught:
        open_it(tiny_folder)
    assert "\n" not in str(caught.value)


def test_weights_that_would_have_to_be_unpickled_are_refused(tiny_encoder, tiny_folder):
    (tiny_folder / "model.safetensors").unlink()
    torch.save(tiny_encoder.state_dict(), tiny_folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be opened"):
        SentenceEncoder.from_pretrained(tiny_folder)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_description_is_named(tiny_folder, name, content):
    (tiny_folder / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: (cannot be read|holds no JSON object)"):
        SentenceEncoder.from_pretrained(tiny_folder)


def test_load_encoder_takes_bert_for_ours_and_any_other_for_what_it_is(tiny_folder, tokenizer, tmp_path):
    tiny_transformer("distilbert", tokenizer.vocab_size).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert type(load_encoder(tiny_folder)) is SentenceEncoder
    assert type(load_encoder(tmp_path / "other")) is PretrainedEncoder


def test_what_is_no_bert_is_sent_to_load_encoder(tokenizer, tmp_path):
    tiny_transformer("roberta", tokenizer.vocab_size).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a roberta model is no BERT; load_encoder opens it"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_a_bert_decoder_opens_as_a_model_of_its_own(tokenizer, tmp_path):
    BertModel(BertConfig(vocab_size=30_522, is_decoder=True, **TINY)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(load_encoder(tmp_path)) is PretrainedEncoder


def test_a_backbone_is_opened_in_fp32_whatever_it_was_saved_in(tiny_folder):
    open_backbone(tiny_folder).half().save_pretrained(tiny_folder)
    assert next(load_encoder(tiny_folder).parameters()).dtype == torch.float32


def test_the_folder_describes_itself_to_sentence_transformers(tiny_encoder, tiny_folder):
    def read(name):
        return json.loads((tiny_folder / name).read_text())

    modules = read("modules.json")
    assert [module["type"].rsplit(".", 1)[1] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    assert read(f"{modules[1]['path']}/config.json") == {
        "word_embedding_dimension": 32,
        "pooling_mode_mean_tokens": True,
    }
    assert read("sentence_bert_config.json")["max_seq_length"] == tiny_encoder.tokenizer.max_length


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pooling_is_saved_and_opened_again(pooling, tokenizer, tmp_path):
    torch.manual_seed(0)
    encoder = SentenceEncoder(EncoderConfig(**TINY, pooling=pooling), tokenizer).eval()
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    assert again.pooling == again.config.pooling == pooling
    np.testing.assert_array_equal(again.encode(SENTENCES), encoder.encode(SENTENCES))


FLAGS = {
    f"pooling_mode_{name}": False
    for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
}
# As sentence-transformers wrote it until version 5 (a flag for each), and writes it since.
WRITTEN = {
    "mean": [FLAGS | {"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}, {"pooling_mode": ["mean"]}],
    "cls": [FLAGS | {"pooling_mode_cls_token": True}, {"pooling_mode": "cls"}],
    "max": [FLAGS | {"pooling_mode_max_tokens": True}, {"pooling_mode": "max"}],
}
UNKNOWN = [
    FLAGS | {"pooling_mode_lasttoken": True},
    FLAGS | {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
    FLAGS | {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True},
    {"pooling_mode": "weightedmean"},
    {"pooling_mode": ["mean", "cls"]},
]


def write_pooling(folder, content):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **content}))


@pytest.mark.parametrize(("pooling", "content"), [(name, content) for name in WRITTEN for content in WRITTEN[name]])
def test_a_pooling_is_read_as_sentence_transformers_writes_it(pooling, content, tiny_folder):
    write_pooling(tiny_folder, content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Description.read(tiny_folder).pooling == pooling


@pytest.mark.parametrize("content", UNKNOWN)
def test_an_unknown_pooling_is_warned_about_and_the_mean_taken(content, tiny_folder):
    write_pooling(tiny_folder, content)
    with pytest.warns(UserWarning, match="made for a pooling not known here; the mean is taken instead"):
        assert Description.read(tiny_folder).pooling == "mean"


@pytest.mark.parametrize("open_it", [SentenceEncoder.from_pretrained, PretrainedEncoder.from_pretrained])
def test_an_opened_encoder_pools_as_its_folder_says(open_it, tiny_folder):
    write_pooling(tiny_folder, {"pooling_mode": "cls"})
    assert open_it(tiny_folder).pooling == "cls"


@pytest.mark.parametrize("content", [None, {}, FLAGS])
def test_a_folder_that_names_no_pooling_means_the_mean(content, tiny_folder):
    if content is None:
        shutil.rmtree(tiny_folder / "1_Pooling")
    else:
        write_pooling(tiny_folder, content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Description.read(tiny_folder).pooling == "mean"


def test_a_model_without_a_description_is_cut_where_its_tokenizer_says(tiny_folder):
    (tiny_folder / "sentence_bert_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert isinstance(tokenizer, BertTokenizer)
    tokenizer.model_max_length = 23
    tokenizer.save_pretrained(tiny_folder)
    assert load_encoder(tiny_folder).tokenizer.max_length == 23


def test_a_described_length_beyond_the_positions_is_cut_at_them(tiny_folder):
    (tiny_folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert load_encoder(tiny_folder).tokenizer.max_length == 64


def test_a_description_without_a_length_leaves_it_to_the_tokenizer(tiny_folder):
    (tiny_folder / "sentence_bert_config.json").write_text("{}")
    path = tiny_folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 40}))
    assert load_encoder(tiny_folder).tokenizer.max_length == 40
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 10**30}))
    assert Description.read(tiny_folder).max_length is None


def test_a_module_that_is_not_known_is_said_to_be_left_out(tiny_folder):
    path = tiny_folder / "modules.json"
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    path.write_text(json.dumps([*json.loads(path.read_text()), dense]))
    with pytest.warns(UserWarning, match="its Dense is not known here and left out"):
        load_encoder(tiny_folder)
