"""Small encoders and files that the tests share. Nothing here needs the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from common.encoder import EncoderConfig, SentenceEncoder
from common.tokenizer import SentenceTokenizer

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
