"""Text to token ids: BERT's uncased WordPiece with its vocabulary bundled, or any other tokenizer by name."""

import json
import os
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from common.folders import model_folder, open_from_folder

VOCABULARY = Path(__file__).parent / "vocabulary" / "bert-base-uncased-vocab.txt"
MAX_LENGTH = 128

# Texts arrive in thousands, so the tokenizer's own threads pay; without this it warns after a fork instead.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class SentenceTokenizer:
    """Turns sentences into token ids, cut at `max_length` tokens (the special ones counted).

    `SentenceTokenizer()` is BERT's uncased WordPiece: ids as bert-base-uncased gives them, with no network.
    """

    def __init__(self, backend: PreTrainedTokenizerBase | None = None, max_length: int = MAX_LENGTH) -> None:
        self.backend = backend if backend is not None else BertTokenizer(vocab=str(VOCABULARY))
        self.max_length = max_length
        self._said_truncation = False

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, max_length: int | None = None) -> "SentenceTokenizer":
        """Any tokenizer transformers can open, from a folder or (network or cache permitting) by hub name.

        Raises:
            UserError: there is no such tokenizer, or it cannot be reached.
        """
        backend = open_from_folder(AutoTokenizer.from_pretrained, model_folder(name_or_path), "tokenizer")
        return cls(backend, max_length or min(backend.model_max_length, MAX_LENGTH))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files (`tokenizer.json`, `tokenizer_config.json`) to a folder."""
        self.backend.model_max_length = self.max_length
        self.backend.save_pretrained(str(folder))

    @property
    def vocab_size(self) -> int:
        return len(self.backend)

    @property
    def pad_id(self) -> int:
        return self.backend.pad_token_id if self.backend.pad_token_id is not None else 0

    def description(self) -> list[Any]:
        """What decides which ids a text has; JSON holds it."""
        backend = getattr(self.backend, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend else self.backend.get_vocab()
        changing = ("truncation", "padding")  # as the last call left them
        return [self.max_length, {name: rule for name, rule in rules.items() if name not in changing}]

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence, special tokens included, at most `max_length` of them and at least one.

        Raises:
            TypeError: an element is not a string; the message says which.
        """
        for position, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise TypeError(f"sentence {position} is a {type(sentence).__name__}, not a string: {sentence!r}")
        if len(sentences) == 0:
            return []
        options = {"truncation": True, "max_length": self.max_length, "return_attention_mask": False}
        ids = self.backend(list(sentences), **options)["input_ids"]
        self._say_truncation(sentences, ids)
        return [row or [self.backend.unk_token_id or self.pad_id] for row in ids]

    def _say_truncation(self, sentences: Sequence[str], ids: list[list[int]]) -> None:
        full = [] if self._said_truncation else [i for i, row in enumerate(ids) if len(row) >= self.max_length]
        if full:
            lengths = [len(row) for row in self.backend([sentences[i] for i in full])["input_ids"]]
            cut = sum(length > self.max_length for length in lengths)
            if cut:
                self._said_truncation = True
                warnings.warn(
                    f"{cut} of {len(sentences)} texts were longer than {self.max_length} tokens and were cut there "
                    f"(the longest: {max(lengths)}); this is said once",
                    stacklevel=3,
                )

    def is_blank(self, ids: Sequence[int]) -> bool:
        """Whether a row of ids holds nothing the model knows: only special or unknown tokens."""
        return set(ids) <= set(self.backend.all_special_ids)

    def words(self, sentence: str) -> list[tuple[str, list[int]]]:
        """The words of a sentence as it is tokenized, special tokens too, with the token positions of each."""
        encoding = self.backend(sentence, truncation=True, max_length=self.max_length)
        ids = encoding["input_ids"]
        tokens = self.backend.convert_ids_to_tokens(ids)
        if not self.backend.is_fast or not ids:
            return [(token, [i]) for i, token in enumerate(tokens)]
        spans, numbers, words = encoding.encodings[0].offsets, encoding.word_ids(), []
        # A special token is of no word, and stands alone.
        for _, alike in groupby(range(len(ids)), lambda i: (numbers[i], i if numbers[i] is None else None)):
            positions = list(alike)
            start, end = spans[positions[0]][0], spans[positions[-1]][1]
            words.append((sentence[start:end].strip() or tokens[positions[0]], positions))
        return words

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids as one batch: `input_ids` and `attention_mask`, both (batch, longest row), int64."""
        width = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_id)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(row) for row in rows])
        attention_mask = (torch.arange(width) < lengths[:, None]).long()
        return input_ids, attention_mask
