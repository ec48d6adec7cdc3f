"""Reading users' files, and cutting what was read into batches of nearly equal length."""

import csv
import gzip
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.cli import UserError
from common.tokenizer import SentenceTokenizer

SAMPLES = Path(__file__).parent / "samples"
KINDS = (".txt", ".csv", ".tsv", ".jsonl")
STDIN = "-"

csv.field_size_limit(2**31 - 1)

Row = dict[str, str]


def file_kind(path: str | Path) -> str:
    """The ending that says how to read a file, a last `.gz` aside; standard input is read as .txt."""
    if str(path) == STDIN:
        return ".txt"
    suffixes = Path(path).suffixes
    kind = (suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]) or [""]
    if kind[0].lower() not in KINDS:
        raise UserError(f"{path}: unknown kind of file (one of {', '.join(KINDS)}, or any of them with .gz)")
    return kind[0].lower()


def _open(path: str | Path) -> BinaryIO:
    if str(path) == STDIN:
        return sys.stdin.buffer
    try:
        return gzip.open(path) if str(path).endswith(".gz") else Path(path).open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, one at a time.

    Raises:
        UserError: there is no such file, or a line is not UTF-8 (the message names it).
    """
    with _open(path) as stream:
        number = 0
        try:
            for number, line in enumerate(stream, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not UTF-8 text (byte {error.object[error.start]:#04x}); save the file as UTF-8"
            ) from None
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: cannot be read after line {number} ({error})") from None


def read_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """The rows of a .csv, .tsv or .jsonl file as (line number, column to cell), one at a time.

    A .txt file counts as one column, `text`. Blank lines of a table are no rows.

    Raises:
        UserError: a row that does not fit the header, a column named twice, a broken line, an empty file.
    """
    kind = file_kind(path)
    if kind == ".txt":
        rows = ((n, {"text": line.rstrip("\r\n")}) for n, line in enumerate(read_lines(path), 1))
    elif kind == ".jsonl":
        rows = _read_jsonl(path)
    else:
        rows = _read_table(path, "\t" if kind == ".tsv" else ",")
    empty = True
    for item in rows:
        empty = False
        yield item
    if empty:
        raise UserError(f"{path}: the file holds no rows")


def _read_table(path: str | Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1  # of the row's start: a quoted cell may run over several lines
    try:
        for cells in reader:
            if not cells:
                pass
            elif header is None:
                header = [name.strip() for name in cells]
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise UserError(f'{path}, line {line}: the header names column "{twice[0]}" more than once')
            elif len(cells) != len(header):
                raise UserError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)} columns")
            else:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not a well-formed row ({error})") from None


def _read_jsonl(path: str | Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object, but {type(row).__name__}")
        yield number, {key: _cell(value) for key, value in row.items()}


def _cell(value: object) -> str:
    """A JSON value as the cell a CSV would hold: null is empty."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def columns_of(path: str | Path) -> list[str]:
    """The column names of a file (of its first row, where it is .jsonl)."""
    _, row = next(read_rows(path))
    return list(row)


def cell_of(path: str | Path, line: int, row: Row, column: str) -> str:
    """One cell; UserError naming the columns there are where the row has none of that name."""
    if column not in row:
        raise UserError(f'{path}, line {line}: no column "{column}" (found: {", ".join(row)})')
    return row[column]


def read_texts(path: str | Path, column: str = "text") -> Iterator[str]:
    """The texts of one column (of a .txt: its lines) in file order, read as they are asked for."""
    for line, row in read_rows(path):
        yield cell_of(path, line, row, "text" if file_kind(path) == ".txt" else column)


def chunked(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Consecutive lists of at most `size` items."""
    chunk: list[str] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def token_budget_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices sorted by length and cut so that rows × longest row ≤ `batch_tokens` in each batch.

    A row longer than the budget is a batch by itself. Long batches come first, so that memory is at its
    highest at once and not at the end.
    """
    batches: list[list[int]] = []
    widest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * widest > batch_tokens:
            batches.append([])
            widest = max(lengths[index], 1)
        batches[-1].append(index)
    return batches


def shuffled_batches(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's training batches: every index once, shuffled within buckets of like length, in random order.

    Rows are shuffled, sorted by length within stretches of about fifty batches, cut by the token budget, and
    the batches shuffled: padding stays small while batches differ from epoch to epoch. The result depends on
    the arguments alone, so that training can resume in the middle of an epoch.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    mean_length = max(sum(lengths) / max(len(lengths), 1), 1)
    bucket = max(int(50 * batch_tokens / mean_length), 1)
    batches = []
    for start in range(0, len(order), bucket):
        rows = order[start : start + bucket]
        for batch in token_budget_batches([lengths[i] for i in rows], batch_tokens):
            batches.append([rows[i] for i in batch])
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


class SentenceDataset(Dataset):
    """Rows of one or more sentences each, as token ids, with an optional score for the row.

    An item is `(ids of each sentence, score or None)`. One sentence a row serves SimCSE and distillation, two
    are a pair, three a pair with a near-miss.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[str]],
        tokenizer: SentenceTokenizer,
        scores: Sequence[float] | None = None,
    ) -> None:
        self.rows = [tuple(row) for row in rows]
        self.scores = None if scores is None else list(scores)
        self.tokenizer = tokenizer
        width = len(self.rows[0]) if self.rows else 1
        ids = tokenizer([sentence for row in self.rows for sentence in row])
        self.ids = [ids[i : i + width] for i in range(0, len(ids), width)]
        # What a row costs in a padded batch: all its sentences are as wide as the longest.
        self.lengths = [width * max(len(sentence) for sentence in row) for row in self.ids]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[list[list[int]], float | None]:
        return self.ids[index], None if self.scores is None else self.scores[index]

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: `input_ids` and `attention_mask` (columns × rows, length), column by column, and `scores`.

        `index` (rows,) says which rows of the data set these are.
        """
        width = len(self.ids[indices[0]])
        input_ids, attention_mask = self.tokenizer.pad([self.ids[i][c] for c in range(width) for i in indices])
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "index": torch.tensor(indices)}
        if self.scores is not None:
            batch["scores"] = torch.tensor([self.scores[i] for i in indices])
        return batch


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train an encoder on: one to three sentences each, all alike, perhaps with a score."""

    rows: list[tuple[str, ...]]
    scores: list[float] | None
    columns: tuple[str, ...]


PAIR = ("sentence1", "sentence2")
NEAR_MISS = "near_miss"
SCORE = "score"


def training_columns(path: str | Path, column: str = "text") -> tuple[str, ...]:
    """Which columns of a file training reads: scored pairs, pairs (with near misses), or one text column.

    Raises:
        UserError: the file has neither `sentence1,sentence2` nor the text column.
    """
    found = columns_of(path)
    if set(PAIR) <= set(found):
        extra = [name for name in (SCORE, NEAR_MISS) if name in found]
        return (*PAIR, *extra[:1])
    if file_kind(path) == ".txt":
        return ("text",)
    if column in found:
        return (column,)
    raise UserError(f'{path}: no columns "sentence1" and "sentence2", and no "{column}" (found: {", ".join(found)})')


def read_training_rows(paths: Sequence[str | Path], column: str = "text") -> TrainingRows:
    """Read files that all have the same kind of rows. Blank lines of a .txt are left out.

    Raises:
        UserError: files of different kinds, an empty cell, a score that is no number, no rows.
    """
    kinds = {str(path): training_columns(path, column) for path in paths}
    columns = next(iter(kinds.values()))
    for path, others in kinds.items():
        if len(others) != len(columns) or others[-1] != columns[-1]:
            first = next(iter(kinds))
            raise UserError(
                f"{path}: has {', '.join(others)}, but {first} has {', '.join(columns)}; "
                "files trained on together need the same columns"
            )
    rows, scores = [], []
    for path in paths:
        texts = tuple(name for name in columns if name != SCORE)
        for line, row in read_rows(path):
            if file_kind(path) == ".txt" and not row["text"].strip():
                continue
            rows.append(tuple(_text_cell(path, line, row, name) for name in texts))
            if SCORE in columns:
                scores.append(_score_cell(path, line, row))
    if not rows:
        raise UserError(f"{paths[0]}: the file holds no rows")
    return TrainingRows(rows, scores or None, columns)


def read_scored_pairs(path: str | Path) -> TrainingRows:
    """Pairs with scores to measure an encoder by. A row with a near miss becomes two pairs, scored 1 and 0.

    Raises:
        UserError: the file has pairs without scores or near misses, or fewer than two of them.
    """
    read = read_training_rows([path])
    if read.columns[-1] == NEAR_MISS:
        rows = [pair for a, b, c in read.rows for pair in ((a, b), (a, c))]
        return TrainingRows(rows, [1.0, 0.0] * len(read.rows), (*PAIR, SCORE))
    if read.scores is None:
        raise UserError(f'{path}: no column "score" (found: {", ".join(columns_of(path))})')
    if len(set(read.scores)) < 2:
        raise UserError(f"{path}: all scores are {read.scores[0]:g}; a correlation needs different ones")
    return read


def _text_cell(path: str | Path, line: int, row: Row, column: str) -> str:
    text = cell_of(path, line, row, column)
    if not text.strip():
        raise UserError(f'{path}, line {line}: the cell "{column}" is empty')
    return text


def _score_cell(path: str | Path, line: int, row: Row) -> float:
    try:
        score = float(cell_of(path, line, row, SCORE))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f'{path}, line {line}: the score is "{row[SCORE]}", not a number')
    return score
