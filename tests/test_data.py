import gzip
import itertools
import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import UserError
from common.data import (
    SAMPLES,
    UNLABELLED,
    MultiTaskDataset,
    SentenceDataset,
    read_labelled_rows,
    read_scored_pairs,
    read_training_rows,
    shuffled_batches,
    token_budget_batches,
    training_tasks,
)
from common.readers import read_rows, read_texts

CELLS = ["plain", "with, comma", 'with "quotes"', "two\nlines", "naïve 🤖"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_tables_are_read_with_quotes_commas_and_line_breaks(write_csv, name):
    path = write_csv(name, ["id", "text"], enumerate(CELLS))
    assert list(read_texts(path)) == CELLS


def test_json_lines_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": cell, "n": 1}) for cell in CELLS), encoding="utf-8")
    assert list(read_texts(path)) == CELLS


def test_plain_text_keeps_every_line_blank_ones_too(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\nthrée\u2028still three".encode())
    assert list(read_texts(path)) == ["one", "", "thrée\u2028still three"]


def test_gzip_is_read_as_what_it_holds(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert list(read_texts(path)) == ["one", "two"]


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
    "after_a_long_cell.csv": (b'text,score\n"a\nb\nc",1\nb\n', "line 5: 1 cells"),
    "twice.csv": (b"text,text\na,b\n", 'line 1: the header names column "text" more than once'),
    "latin.csv": ("text\nok\ncaf\u00e9\n".encode("latin-1"), "line 3: not UTF-8 text (byte 0xe9)"),
    "unclosed.csv": (b'text\nok\n"never closed\n', "line 3: not a well-formed row"),
    "no_column.csv": (b"body,label\na,b\n", 'line 2: no column "text" (found: body, label)'),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "list.jsonl": (b'["a"]\n', "line 1: not a JSON object"),
    "utf16.txt": ("text".encode("utf-16"), "line 1: not UTF-8"),
    "kind.docx": (b"PK", "unknown kind of file"),
    "cut.txt.gz": (gzip.compress(b"one\n" * 1000)[:20], "cannot be read after line"),
    "no.txt.gz": (b"plain", "cannot be read after line"),
    "corrupt.txt.gz": (gzip.compress(b"one\n" * 1000)[:12] + b"\xff" * 40, "cannot be read after line"),
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


lengths_lists = st.lists(st.integers(1, 50), max_size=60)


@given(lengths_lists, st.integers(1, 200))
def test_token_budget_holds_and_every_row_is_in_one_batch(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths_lists, st.integers(1, 200), st.integers(0, 3))
def test_shuffled_batches_hold_every_row_once_and_keep_the_budget(lengths, budget, epoch):
    batches = shuffled_batches(lengths, budget, seed=0, epoch=epoch)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)
    assert batches == shuffled_batches(lengths, budget, seed=0, epoch=epoch)


def test_epochs_differ():
    lengths = list(range(1, 41)) * 3
    assert shuffled_batches(lengths, 100, 0, epoch=0) != shuffled_batches(lengths, 100, 0, epoch=1)


def test_padding_is_a_few_per_cent():
    generator = __import__("random").Random(0)
    lengths = [max(3, int(generator.lognormvariate(2.9, 0.6))) for _ in range(4000)]
    for batches in (token_budget_batches(lengths, 2048), shuffled_batches(lengths, 2048, 0, 0)):
        padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
        assert sum(lengths) / padded > 0.95


def test_a_data_set_of_pairs_collates_column_by_column(tokenizer):
    data = SentenceDataset([("a", "b b"), ("c c c", "d")], tokenizer, [0.5, 1.5])
    batch = data.collate([1, 0])
    expected = tokenizer(["c c c", "a", "d", "b b"])
    got = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert got == expected
    assert batch["scores"].tolist() == [1.5, 0.5]
    assert batch["index"].tolist() == [1, 0]
    assert data.lengths == [2 * 4, 2 * 5]
    assert data[0] == ([expected[1], expected[3]], 0.5)


def test_columns_choose_what_is_read(write_csv):
    scored = read_training_rows([write_csv("a.csv", ["score", "sentence2", "sentence1"], [["1.5", "b", "a"]])])
    assert (scored.rows, scored.scores) == ([("a", "b")], [1.5])
    near = read_training_rows([write_csv("b.csv", ["sentence1", "sentence2", "near_miss"], [["a", "b", "c"]])])
    assert (near.rows, near.scores) == ([("a", "b", "c")], None)
    single = read_training_rows([write_csv("c.csv", ["body"], [["a"]])], column="body")
    assert single.rows == [("a",)]


def test_files_of_one_kind_are_joined_in_order(write_csv):
    paths = [write_csv(f"{n}.csv", ["text"], [[n]]) for n in "ab"]
    assert read_training_rows(paths).rows == [("a",), ("b",)]


PAIR_MISTAKES = {
    "no score": (["sentence1", "sentence2", "score"], [["a", "b", "x"]], 'line 2: the score is "x", not a number'),
    "nan": (["sentence1", "sentence2", "score"], [["a", "b", "1"], ["a", "b", "nan"]], "line 3: the score is"),
    "empty cell": (["sentence1", "sentence2"], [["a", " "]], 'line 2: the cell "sentence2" is empty'),
    "no text": (["body"], [["a"]], 'no columns "sentence1" and "sentence2", and no "text" (found: body)'),
}


@pytest.mark.parametrize("mistake", PAIR_MISTAKES)
def test_rows_that_cannot_be_trained_on_are_named(write_csv, mistake):
    header, rows, message = PAIR_MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        read_training_rows([write_csv("a.csv", header, rows)])
    assert message in str(caught.value)


def test_files_of_two_kinds_are_not_mixed(write_csv):
    paths = [
        write_csv("a.csv", ["sentence1", "sentence2"], [["a", "b"]]),
        write_csv("b.csv", ["sentence1", "sentence2", "score"], [["a", "b", "1"]]),
    ]
    with pytest.raises(UserError, match="files trained on together need the same columns"):
        read_training_rows(paths)


def test_a_near_miss_counts_as_a_pair_scored_zero(write_csv):
    path = write_csv("a.csv", ["sentence1", "sentence2", "near_miss"], [["a", "b", "c"]])
    pairs = read_scored_pairs(path)
    assert (pairs.rows, pairs.scores) == ([("a", "b"), ("a", "c")], [1.0, 0.0])


def test_scores_that_are_all_alike_cannot_be_ranked(write_csv):
    with pytest.raises(UserError, match="all scores are 2"):
        read_scored_pairs(write_csv("a.csv", ["sentence1", "sentence2", "score"], [["a", "b", 2], ["c", "d", 2]]))


def shared_words(left: str, right: str) -> float:
    a, b = set(left.lower().split()), set(right.lower().split())
    return len(a & b) / len(a | b)


def test_embedded_pairs_have_near_misses_that_share_more_words_than_the_paraphrase():
    train, dev = (read_training_rows([SAMPLES / name]).rows for name in ("pairs.csv", "pairs_dev.csv"))
    assert len(train) >= 300 and len(dev) >= 80
    misleading = [shared_words(a, c) > shared_words(a, b) for a, b, c in train + dev]
    assert sum(misleading) / len(misleading) > 0.95


def test_embedded_pairs_held_out_are_not_in_the_training_part():
    train, dev = (read_training_rows([SAMPLES / name]).rows for name in ("pairs.csv", "pairs_dev.csv"))
    assert not {s.lower() for row in train for s in row} & {s.lower() for row in dev for s in row}


def test_every_column_but_text_is_a_task_and_files_may_label_different_ones(write_csv):
    rows = read_labelled_rows(
        [
            write_csv("a.csv", ["text", "topic"], [["one", "Sports"], ["two", "Science"]]),
            write_csv("b.csv", ["mood", "text", "topic"], [["good", "three", ""], ["", "four", "Sports"]]),
        ]
    )
    assert rows.texts == ["one", "two", "three", "four"]
    assert rows.labels == {"topic": ["Sports", "Science", None, "Sports"], "mood": [None, None, "good", None]}
    assert rows.classes() == {"topic": ["Science", "Sports"], "mood": ["good"]}


def test_the_tasks_may_be_chosen_among_the_columns(write_csv):
    path = write_csv("a.csv", ["id", "text", "topic", "mood"], [[1, "one", "Sports", "good"]])
    assert list(read_labelled_rows([path], ["mood"]).labels) == ["mood"]


def test_missing_labels_are_marked(write_csv, tokenizer):
    path = write_csv("a.csv", ["text", "topic", "mood"], [["one", "b", ""], ["two", "", "x"], ["three", "a", "y"]])
    rows = read_labelled_rows([path])
    data = MultiTaskDataset(rows, rows.classes(), tokenizer)
    assert data[0] == (tokenizer(["one"])[0], {"topic": 1, "mood": UNLABELLED})
    assert data.collate([1, 2])["labels"].tolist() == [[UNLABELLED, 0], [0, 1]]
    assert data.labelled("mood") == 2


LABEL_MISTAKES = {
    "no text": (["body", "topic"], [["a", "x"]], 'no column "text" (found: body, topic)'),
    "no task": (["text"], [["a"]], "no column besides it to take labels from"),
    "no label": (["text", "topic", "mood"], [["a", "x", "y"], ["b", "", " "]], "line 3: no label (for topic or mood)"),
    "empty text": (["text", "topic"], [["", "x"]], 'line 2: the cell "text" is empty'),
    "one class": (["text", "topic"], [["a", "x"], ["b", "x"]], 'task "topic": every label is "x"'),
    "unlabelled": (["text", "topic", "mood"], [["a", "x", ""], ["b", "y", ""]], 'task "mood": no row has a label'),
    "an id": (["text", "id"], [["a", i] for i in range(60)], 'column "id": 60 different values in 60 rows'),
}


@pytest.mark.parametrize("mistake", LABEL_MISTAKES)
def test_labels_that_cannot_be_learned_are_named(write_csv, mistake):
    header, rows, message = LABEL_MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        training_tasks(read_labelled_rows([write_csv("a.csv", header, rows)]))
    assert message in str(caught.value)


def test_a_chosen_task_that_no_file_has_is_named(write_csv):
    path = write_csv("a.csv", ["text", "topic"], [["a", "x"]])
    with pytest.raises(UserError, match='no file has a column "mood"'):
        training_tasks(read_labelled_rows([path], ["topic", "mood"]), ["topic", "mood"])


def test_a_label_the_model_never_saw_is_named_with_its_place(write_csv, tokenizer):
    path = write_csv("dev.csv", ["text", "topic"], [["a", "x"], ["b", "zebra"]])
    with pytest.raises(
        UserError, match=r'dev.csv, line 3: the model knows no label "zebra" for topic \(it knows: x, y\)'
    ):
        MultiTaskDataset(read_labelled_rows([path]), {"topic": ["x", "y"]}, tokenizer)


def test_data_without_any_of_the_models_tasks_is_refused(write_csv, tokenizer):
    path = write_csv("dev.csv", ["text", "other"], [["a", "x"]])
    with pytest.raises(UserError, match=r"dev.csv: no labels for topic"):
        MultiTaskDataset(read_labelled_rows([path]), {"topic": ["x", "y"]}, tokenizer)


PARTS = ("train", "dev", "test")
TOPICS = ["Entertainment", "Politics", "Science", "Sports", "Technology"]


@pytest.fixture(scope="module")
def embedded():
    return {part: read_labelled_rows([SAMPLES / f"{part}.csv"]) for part in PARTS}


def test_embedded_data_has_the_seeds_labels_evenly(embedded):
    assert sum(len(rows.texts) for rows in embedded.values()) >= 1000
    for rows in embedded.values():
        assert rows.classes() == {"topic": TOPICS, "sentiment": ["Negative", "Neutral", "Positive"]}
        cells = Counter(zip(rows.labels["topic"], rows.labels["sentiment"], strict=True))
        assert len(cells) == 15 and len(set(cells.values())) == 1


def four_grams(text):
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}


def test_no_embedded_text_is_nearly_one_of_another_part(embedded):
    grams = {part: [four_grams(text) for text in rows.texts] for part, rows in embedded.items()}
    for one, other in itertools.combinations(PARTS, 2):
        for left in grams[one]:
            for right in grams[other]:
                assert len(left & right) <= 0.2 * max(min(len(left), len(right)), 1)


def test_no_embedded_text_is_there_twice(embedded):
    texts = [text.lower() for rows in embedded.values() for text in rows.texts]
    assert len(texts) == len(set(texts))


def test_no_word_gives_an_embedded_sentiment_away(embedded):
    by_word: dict[str, Counter] = {}
    for rows in embedded.values():
        for text, sentiment in zip(rows.texts, rows.labels["sentiment"], strict=True):
            for word in set(re.findall(r"[a-z']+", text.lower())):
                by_word.setdefault(word, Counter())[sentiment] += 1
    telling = [
        word for word, counts in by_word.items() if counts.total() >= 15 and max(counts.values()) > 0.8 * counts.total()
    ]
    assert telling == []


def test_a_key_that_json_rows_leave_out_is_a_missing_label(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "topic": "x"}\n{"text": "two", "mood": "good", "topic": null}\n')
    assert read_labelled_rows([path]).labels == {"topic": ["x", None], "mood": [None, "good"]}


def test_a_text_column_may_be_called_score(write_csv):
    path = write_csv("a.csv", ["score"], [["play it softly"]])
    assert read_training_rows([path], column="score").rows == [("play it softly",)]


def test_standard_input_cannot_be_trained_on():
    with pytest.raises(UserError, match="standard input can only be embedded or classified"):
        read_training_rows(["-"])


def test_sentences_seen_twice_cost_twice_their_tokens(tokenizer):
    assert SentenceDataset([("a",)], tokenizer, passes=2).lengths == [2 * 3]
