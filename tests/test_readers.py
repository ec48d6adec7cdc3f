import csv
import gzip
import io
import json
from types import SimpleNamespace

import pytest

from common.errors import UserError
from common.readers import STDIN, read_lines, read_rows, read_texts

CELLS = ["plain", "with, comma", 'with "quotes"', "two\nlines", "a bare\rreturn", "naïve 🤖"]


def table_bytes(delimiter, line_end):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(CELLS))
    return stream.getvalue().encode()


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_tables_are_read_with_quotes_commas_and_line_breaks(tmp_path, name, delimiter, line_end):
    path = tmp_path / name
    path.write_bytes(table_bytes(delimiter, line_end))
    assert list(read_texts(path)) == CELLS


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_json_lines_are_read(tmp_path, line_end):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line_end.join(json.dumps({"text": cell, "n": 1}) for cell in CELLS).encode())
    assert list(read_texts(path)) == CELLS


def test_plain_text_keeps_every_line_blank_ones_too(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\nthrée\u2028still three".encode())
    assert list(read_texts(path)) == ["one", "", "thrée\u2028still three"]


def test_lines_end_at_any_of_the_three_line_ends_and_at_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\rtwo\r\nthree\n\r\rsi\x0bx\x0c\x1c\x85\u2028\r".encode())
    assert list(read_lines(path)) == ["one\r", "two\r\n", "three\n", "\r", "\r", "si\x0bx\x0c\x1c\x85\u2028\r"]
    assert list(read_texts(path)) == ["one", "two", "three", "", "", "si\x0bx\x0c\x1c\x85\u2028"]


def test_a_row_has_the_number_of_the_line_it_starts_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,score\r"a\rb\nc\r\nd",1\r\r\ne,2\n')
    assert list(read_rows(path)) == [
        (2, {"text": "a\rb\nc\r\nd", "score": "1"}),
        (7, {"text": "e", "score": "2"}),
    ]


def test_gzip_is_read_as_what_it_holds(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\rthree\n"))
    assert list(read_texts(path)) == ["one", "two", "three"]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext\nhello\n")
    assert list(read_texts(path)) == ["hello"]


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\nfine\n" + b"x,ragged\n")
    assert next(read_texts(path)) == "fine"


MISTAKES = {
    "empty.csv": (b"", "holds no rows"),
    "header_only.csv": (b"text,score\n", "holds no rows"),
    "ragged.csv": (b"text,score\na,1\nb\n", "line 3: 1 cells, but the header has 2 columns"),
    "ragged_old_mac.csv": (b"text,score\ra,1\rb\r", "line 3: 1 cells, but the header has 2 columns"),
    "after_a_long_cell.csv": (b'text,score\n"a\nb\nc",1\nb\n', "line 5: 1 cells"),
    "after_a_long_old_mac_cell.csv": (b'text,score\n"a\rb\rc",1\nb\n', "line 5: 1 cells"),
    "twice.csv": (b"text,text\na,b\n", 'line 1: the header names column "text" more than once'),
    "latin.csv": ("text\nok\ncaf\u00e9\n".encode("latin-1"), "line 3: not UTF-8 text (byte 0xe9)"),
    "latin_old_mac.txt": ("one\rok\rcaf\u00e9\r".encode("latin-1"), "line 3: not UTF-8 text (byte 0xe9)"),
    "unclosed.csv": (b'text\nok\n"never closed\n', "line 3: not a well-formed row"),
    "no_column.csv": (b"body,label\na,b\n", 'line 2: no column "text" (found: body, label)'),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "broken_old_mac.jsonl": (b'{"text": "a"}\r\r{"text": \r', "line 3: not JSON"),
    "list.jsonl": (b'["a"]\n', "line 1: not a JSON object"),
    "utf16.txt": ("text".encode("utf-16"), "line 1: not UTF-8"),
    "kind.docx": (b"PK", "unknown kind of file"),
    "cut.txt.gz": (gzip.compress(b"one\n" * 1000)[:20], "cannot be read ("),
    "no.txt.gz": (b"plain", "cannot be read ("),
    "corrupt.txt.gz": (gzip.compress(b"one\n" * 1000)[:12] + b"\xff" * 40, "cannot be read ("),
    "surrogate.jsonl": (b'{"text": "\\ud83d"}\n', "line 1: half of a surrogate pair"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_broken_file_is_named_with_its_line(tmp_path, name):
    content, message = MISTAKES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_texts(path))
    assert str(caught.value).startswith(f"{path}")
    assert message in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list(read_rows(tmp_path / "none.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(tmp_path / "folder.csv"))


@pytest.fixture
def standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\rthree\n")))


@pytest.mark.parametrize("processes", [None, "1"])
def test_standard_input_is_read_as_plain_text(monkeypatch, standard_input, processes):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("WORLD_SIZE", processes)
    assert list(read_texts(STDIN)) == ["one", "two", "three"]


def test_several_processes_cannot_share_standard_input_but_read_files(monkeypatch, standard_input, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="standard input cannot be shared out among processes; give the name of a file"):
        next(read_texts(STDIN))
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n")
    assert list(read_texts(path)) == ["one"]
