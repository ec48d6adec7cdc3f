"""Small encoders and files that the tests share. Nothing here needs the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import csv
import dataclasses
import shutil
import signal
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

import task2
from common.encoder import EncoderConfig, SentenceEncoder
from common.heads import MultiTaskModel
from common.pretrained import PretrainedEncoder
from common.rows import SAMPLES
from common.tokenizer import SentenceTokenizer
from common.train import Trainer
from tests.labelled import QUICK, ROWS
from tests.multitask import TASKS
from tests.trainings import trainer_for

# The encoders here are too small to gain from a second thread, and lose much where another program runs.
torch.set_num_threads(1)

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision "auto" means fp32 on every machine; what computes in bf16 asks for it."""
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)


@pytest.fixture(scope="session")
def tokenizer() -> SentenceTokenizer:
    return SentenceTokenizer(max_length=64)


@pytest.fixture
def tiny_encoder(tokenizer: SentenceTokenizer) -> SentenceEncoder:
    torch.manual_seed(0)
    return SentenceEncoder(EncoderConfig(**TINY), tokenizer).eval()


@pytest.fixture
def tiny_folder(tiny_encoder: SentenceEncoder, tmp_path: Path) -> Path:
    tiny_encoder.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def uninterrupted(tiny_encoder: SentenceEncoder, tmp_path: Path) -> Trainer:
    """A small training, run to its end."""
    trainer = trainer_for(tiny_encoder, tmp_path / "whole")
    trainer.train()
    return trainer


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table under a name and gives its path."""

    def write(name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writerow(header)
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def labelled(write_csv: Callable[..., Path]) -> Path:
    """A table of labelled rows."""
    return write_csv("labelled.csv", ["text", "topic", "mood"], ROWS)


@pytest.fixture
def trained(labelled: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    """The folder of a model that has learned them."""
    task2.main(["train", str(labelled), "--encoder", str(tiny_folder), "--output", str(tmp_path / "model"), *QUICK])
    return tmp_path / "model"


def build(kind, tiny_encoder) -> MultiTaskModel:
    torch.manual_seed(0)
    if kind == "ours":
        return MultiTaskModel(tiny_encoder, TASKS)
    tokenizer = tiny_encoder.tokenizer
    return MultiTaskModel(PretrainedEncoder(tiny_transformer(kind, tokenizer.vocab_size), tokenizer), TASKS)


@pytest.fixture(params=["ours", "roberta", "deberta"])
def model(request, tiny_encoder) -> MultiTaskModel:
    return build(request.param, tiny_encoder)


@pytest.fixture
def ours(tiny_encoder) -> MultiTaskModel:
    return build("ours", tiny_encoder)


@pytest.fixture
def still(ours) -> MultiTaskModel:
    """A model without dropout, whose training begins with its heads as they are: for another computation beside it."""
    ours.set_dropout(0.0)
    ours.new = set()
    return ours


def changed(config: object, field: dataclasses.Field) -> dict[str, object]:
    """Another value for a field of a configuration, as an argument for `dataclasses.replace`."""
    value = getattr(config, field.name)
    hint = typing.get_type_hints(type(config))[field.name]
    kind = next((t for t in typing.get_args(hint) if t not in (type(None), ...)), hint)
    choices = field.metadata["argparse"].get("choices")
    if choices:
        return {field.name: next(choice for choice in choices if choice not in (value, "auto"))}
    if kind is bool:
        return {field.name: not value}
    if kind in (int, float):
        return {field.name: (value or 0) + 1 if kind is int else (value or 1) / 2}
    return {field.name: ("other",) if isinstance(value, tuple) else "other"}


def random_bert(**settings: object) -> BertModel:
    """A small BertModel without its pooler, all of whose weights are random and large enough to be told apart."""
    torch.manual_seed(1)
    bert = BertModel(BertConfig(vocab_size=30_522, type_vocab_size=2, **TINY, **settings), add_pooling_layer=False)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.normal_(std=0.2)
    return bert.eval()


def tiny_transformer(kind: str, vocab_size: int) -> PreTrainedModel:
    """A small transformers model with random weights: "roberta", "deberta", "distilbert", "modernbert" or "gpt2"."""
    torch.manual_seed(2)
    if kind == "roberta":
        return RobertaModel(RobertaConfig(vocab_size=vocab_size, **TINY))
    if kind == "deberta":
        relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
        return DebertaV2Model(DebertaV2Config(vocab_size=vocab_size, norm_rel_ebd="layer_norm", **TINY, **relative))
    if kind == "modernbert":
        dropout = dict.fromkeys(("attention_dropout", "mlp_dropout", "embedding_dropout"), 0.1)
        special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
        return ModernBertModel(ModernBertConfig(vocab_size=vocab_size, **TINY, **dropout, **special))
    if kind == "gpt2":
        return GPT2Model(GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    return DistilBertModel(DistilBertConfig(vocab_size=vocab_size, dim=32, n_layers=2, n_heads=4, hidden_dim=64))


@pytest.fixture
def few_samples(tmp_path: Path) -> Path:
    """The sample data with every eighth of its labelled rows, for trainings that need not reach anything."""
    folder = tmp_path / "samples"
    shutil.copytree(SAMPLES, folder)
    for name in ("train", "dev", "test"):
        with (SAMPLES / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([header, *rows[::8]])
    return folder


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Within the block, a training is sent Ctrl-C during the step of that number."""
    backward = Trainer._backward

    def disturbed(trainer: Trainer, *arguments: object) -> object:
        if trainer.progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return backward(trainer, *arguments)

    Trainer._backward = disturbed
    try:
        yield
    finally:
        Trainer._backward = backward
