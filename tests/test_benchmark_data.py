import gzip
import hashlib
import random
from pathlib import Path

import pytest

from benchmarks import data
from common.errors import UserError
from common.readers import read_rows

DATA = Path(__file__).parents[2] / "shared" / "data"
QUESTIONS = [("Who?", "human"), ("How many , then ?", "number"), ("Where is “it” &c", "location"), ("Who?", "human")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A DATA of one test file, of which the manifest was recorded, and a small corpus."""
    monkeypatch.setattr(data, "MANIFEST", tmp_path / "data.json")
    monkeypatch.setattr(data, "DIGESTS", tmp_path / "data.digests")
    monkeypatch.setattr(data, "SOURCES", {"question/test.csv": data.SOURCES["question/test.csv"]})
    folder = tmp_path / "DATA"
    for name in ("question", "corpus"):
        (folder / name).mkdir(parents=True)
    (folder / "question/test.csv").write_bytes(data.as_csv(["text", "question"], QUESTIONS, "\n"))
    (folder / data.CORPUS).write_bytes(gzip.compress(b"One sentence.\n"))
    data.record(folder)
    return folder


def publish(monkeypatch, rows):
    """Let the hub have these rows."""
    codes = {name: code for code, name in data.QUESTIONS.items()}
    public = [{"text": text, "label_coarse_original": codes[label]} for text, label in rows]
    monkeypatch.setattr(data, "download", lambda source: public)


def test_public_rows_in_another_order_and_among_others_make_the_recorded_file(folder, monkeypatch):
    path = folder / "question/test.csv"
    before = path.read_bytes()
    path.unlink()
    publish(monkeypatch, [("Who is it?", "human"), ("who", "human"), *reversed(QUESTIONS), ("Who?", "location")])
    data.build(folder, [])
    assert path.read_bytes() == before


def test_a_row_that_the_public_release_lacks_is_said_to_be_missing(folder, monkeypatch, capsys):
    (folder / "question/test.csv").unlink()
    publish(monkeypatch, QUESTIONS[1:])
    data.build(folder, [])
    assert "question/test.csv is not the recorded file: 3 rows where it has 4 (1 missing)" in capsys.readouterr().out


def test_a_file_that_is_the_recorded_one_is_not_downloaded(folder, monkeypatch):
    monkeypatch.setattr(data, "download", lambda source: pytest.fail("downloaded"))
    data.build(folder, [])


def test_a_corpus_is_left_out_where_no_sentences_are_given(folder, capsys):
    (folder / data.CORPUS).unlink()
    data.build(folder, [])
    assert f"{data.CORPUS} is left out" in capsys.readouterr().out


def test_a_set_without_any_of_the_rows_leaves_the_file_as_it_was(folder, monkeypatch):
    path = folder / "question/test.csv"
    path.write_text("text,question\nmine,human\n")
    publish(monkeypatch, [("Other", "human")])
    with pytest.raises(UserError, match="holds no row"):
        data.build(folder, [])
    assert path.read_text() == "text,question\nmine,human\n"


def test_check_tells_the_recorded_file_from_a_changed_one_and_a_missing_one(folder, capsys):
    (folder / data.CORPUS).unlink()
    data.check(folder)
    with (folder / "question/test.csv").open("a") as stream:
        stream.write("more,human\n")
    data.check(folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["question/test.csv is the recorded file", f"{data.CORPUS} is not there"]
    assert "5 rows where it has 4" in lines[2]


def test_sentences_lose_duplicates_and_the_texts_of_tests(folder, tmp_path):
    (folder / data.CORPUS).unlink()
    (tmp_path / "mine.txt").write_text("How many, then?\nA  new one.\na new one\nWHO\nAnother\n\n")
    data.build(folder, [tmp_path / "mine.txt"])
    lines = gzip.decompress((folder / data.CORPUS).read_bytes()).decode().splitlines()
    assert sorted(lines) == ["A new one.", "Another"]


@pytest.mark.parametrize(
    ("kind", "row", "cells"),
    [
        (
            "pool",
            {"tweet": '"Hi @me_1\\u002c &amp; http://t.co/x  @ 3"', "sentiment": 2},
            ("Hi @user, & http @ 3", "positive"),
        ),
        ("sentiment", {"text": "a  &amp; b\\u2019s ", "label": 0}, ("a &amp; b\\u2019s", "negative")),
        ("emotion", {"text": "so  &lt;3 ", "label": 1}, ("so  <3", "joy")),
        (
            "topic",
            {"title": "A #39;s  quot;B quot;", "description": " C\\D &lt;E.N&gt; paid \\$5 to F amp; G ", "label": 4},
            ('A\'s "B" . C D paid $5 to F amp; G', "Sci/Tech"),
        ),
        ("sts", {"sentence1": "a  b ", "sentence2": "c", "score": 3}, ("a  b", "c", "3.0")),
    ],
)
def test_a_public_row_is_written_as_the_file_has_it(kind, row, cells):
    assert data.written(kind, row) == cells


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
@pytest.mark.parametrize("name", data.SOURCES)
def test_the_committed_manifest_rebuilds_each_file_from_its_rows_shuffled_among_others(name):
    manifest = data.read_manifest()
    others = "question/test.csv" if name.startswith("emotion") else "emotion/test.csv"
    rows, strange = ([tuple(row.values()) for _, row in read_rows(DATA / file)] for file in (name, others))
    random.Random(0).shuffle(public := rows + strange)
    built = data.as_csv(
        manifest[name]["columns"], data.chosen(public, manifest[name]["digests"]), manifest[name]["line_end"]
    )
    assert hashlib.sha256(built).hexdigest() == manifest[name]["sha256"] == data.sha256(DATA / name)
