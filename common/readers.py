"""Reading users' files: plain text, tables and JSON lines, one row at a time."""

import csv
import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from common.errors import UserError

KINDS = (".txt", ".csv", ".tsv", ".jsonl")
STDIN = "-"

csv.field_size_limit(2**31 - 1)

Row = dict[str, str]
Item = TypeVar("Item")


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
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("standard input cannot be shared out among processes; give the name of a file")
        return sys.stdin.buffer
    try:
        return gzip.open(path) if str(path).endswith(".gz") else Path(path).open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def name_of(path: str | Path) -> str:
    """What to call a file when speaking of it."""
    return "standard input" if str(path) == STDIN else str(path)


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends (\\n, \\r\\n or \\r), one at a time.

    Raises:
        UserError: there is no such file, a line is not UTF-8 (the message names it), or it is standard input and there
            are several processes.
    """
    number = 0
    with _open(path) as stream:
        try:
            # The stream ends its lines at \n alone; `bytes.splitlines` at \r too, and at nothing else.
            lines = (line for chunk in stream for line in chunk.splitlines(keepends=True))
            for number, line in enumerate(lines, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not UTF-8 text (byte {error.object[error.start]:#04x}); save the file as UTF-8"
            ) from None
        except (OSError, EOFError, zlib.error) as error:
            where = f" after line {number}" if number else ""
            raise UserError(f"{path}: cannot be read{where} ({error})") from None


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
        raise UserError(f"{name_of(path)}: holds no rows")


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
                if delimiter == "," and len(header) == 1 and ";" in header[0]:
                    raise UserError(f'{path}, line {line}: columns are separated by commas here, not by ";"')
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise UserError(f'{path}, line {line}: the header names column "{twice[0]}" more than once')
            elif len(cells) != len(header):
                raise UserError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)} columns")
            else:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: not a well-formed row ({error}); a quote at the "
            "start of a cell closes at its end, and is doubled inside"
        ) from None


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
        try:
            cells = {key: _cell(value) for key, value in row.items()}
            "".join(cells.values()).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{path}, line {number}: half of a surrogate pair, which is no character") from None
        yield number, cells


def _cell(value: object) -> str:
    """A JSON value as the cell a CSV would hold: null is empty."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def columns_of(path: str | Path) -> list[str]:
    """The column names of a file; of a .jsonl, every key that any of its rows has.

    Raises:
        UserError: standard input, which could not be read again for its rows.
    """
    if str(path) == STDIN:
        raise UserError("standard input can only be embedded or classified; give the name of a file")
    if file_kind(path) == ".jsonl":
        return list(dict.fromkeys(name for _, row in read_rows(path) for name in row))
    _, row = next(read_rows(path))
    return list(row)


def cell_of(path: str | Path, line: int, row: Row, column: str) -> str:
    """One cell; UserError naming the columns there are where the row has none of that name."""
    if column not in row:
        raise UserError(f'{path}, line {line}: no column "{column}" (found: {", ".join(row)})')
    return row[column]


def read_texts_and_rows(path: str | Path, column: str = "text") -> Iterator[tuple[str, Row]]:
    """The text of each row beside the whole row, in file order, read as they are asked for.

    Raises:
        UserError: what `read_rows` refuses, a row without the column, or a column named of a file that has none.
    """
    if file_kind(path) == ".txt" and column != "text":
        raise UserError(f"{name_of(path)} has no columns: each line is a text", "text")
    for line, row in read_rows(path):
        yield cell_of(path, line, row, column), row


def read_texts(path: str | Path, column: str = "text") -> Iterator[str]:
    """The texts of one column (of a .txt: its lines) in file order, read as they are asked for."""
    return (text for text, _ in read_texts_and_rows(path, column))


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of at most `size` items."""
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
