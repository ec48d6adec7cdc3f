import itertools
import re
from collections import Counter

import pytest

from common.data import UNLABELLED, MultiTaskDataset, SentenceDataset
from common.errors import UserError
from common.rows import (
    SAMPLES,
    LabelledRows,
    label_of,
    read_labelled_rows,
    read_scored_pairs,
    read_training_rows,
    training_tasks,
)


def test_a_batch_of_pairs_stands_column_by_column(tokenizer):
    data = SentenceDataset([("a", "b b"), ("c c c", "d")], tokenizer, [0.5, 1.5])
    batch = data.collate([data[1], data[0]])
    expected = tokenizer(["c c c", "a", "d", "b b"])
    got = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert got == expected
    assert batch["scores"].tolist() == [1.5, 0.5]
    assert batch["index"].tolist() == [1, 0]


def test_a_row_costs_its_longest_sentence_for_each_of_them(tokenizer):
    data = SentenceDataset([("a", "b b"), ("c c c", "d")], tokenizer)
    assert data.lengths == [2 * 4, 2 * 5]
    assert data[0] == {"index": 0, "ids": tokenizer(["a", "b b"]), "length": 2 * 4}


def test_the_data_set_reads_any_number_of_sentences_a_row(tokenizer):
    for row in (("a",), ("a", "b"), ("a", "b", "c c")):
        batch = SentenceDataset([row, row], tokenizer).collate([{"index": 1, "ids": tokenizer(row), "length": 9}])
        assert len(batch["input_ids"]) == len(row) and "scores" not in batch


def test_a_digest_depends_on_rows_order_and_scores_alone(tokenizer):
    def made(rows, scores):
        return SentenceDataset(rows, tokenizer, scores).digest()

    rows, scores = [("a", "b"), ("c", "d")], [0.5, 1.5]
    assert made(rows, scores) == made([list(row) for row in rows], tuple(scores))
    others = [
        made(rows[::-1], scores),
        made(rows, scores[::-1]),
        made(rows, None),
        made([("a", "b"), ("c", "e")], scores),
    ]
    assert len({made(rows, scores), *others}) == 5


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
    "two kinds": (
        ["sentence1", "sentence2", "score", "near_miss"],
        [["a", "b", "1", "c"]],
        'a.csv: has both "score" and "near_miss", which train in different ways; leave one out',
    ),
    "no text": (["body"], [["a"]], 'no columns "sentence1" and "sentence2", and no "text" (found: body)'),
}


@pytest.mark.parametrize("mistake", PAIR_MISTAKES)
def test_rows_that_cannot_be_trained_on_are_named(write_csv, mistake):
    header, rows, message = PAIR_MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        read_training_rows([write_csv("a.csv", header, rows)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_pairs_without_scores_cannot_be_measured(write_csv):
    with pytest.raises(UserError, match=r'no column "score" \(found: sentence1, sentence2\)'):
        read_scored_pairs(write_csv("a.csv", ["sentence1", "sentence2"], [["a", "b"]]))


def test_scores_that_are_all_alike_cannot_be_ranked(write_csv):
    with pytest.raises(UserError, match="all scores are 2"):
        read_scored_pairs(write_csv("a.csv", ["sentence1", "sentence2", "score"], [["a", "b", 2], ["c", "d", 2]]))


def test_scores_that_are_all_alike_teach_nothing(write_csv):
    with pytest.raises(UserError, match="all scores are 2; pairs are ranked by different ones"):
        read_training_rows([write_csv("a.csv", ["sentence1", "sentence2", "score"], [["a", "b", 2], ["c", "d", 2]])])


def test_a_column_named_of_lines_alone_is_a_mistake(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"text: .*a.txt has no columns: each line is a text"):
        read_training_rows([tmp_path / "a.txt"], "body")


def test_a_column_of_texts_that_is_named_comes_before_pairs(write_csv):
    path = write_csv("a.csv", ["sentence1", "sentence2", "body"], [["a", "b", "c"], ["d", "e", "f"]])
    assert read_training_rows([path], "body").rows == [("c",), ("f",)]
    with pytest.raises(UserError, match=r'no "story" \(found: sentence1, sentence2, body\)'):
        read_training_rows([path], "story")


def shared_words(left: str, right: str) -> float:
    a, b = set(left.lower().split()), set(right.lower().split())
    return len(a & b) / len(a | b)


def test_sample_pairs_have_near_misses_that_share_more_words_than_the_paraphrase():
    train, dev = (read_training_rows([SAMPLES / name]).rows for name in ("pairs.csv", "pairs_dev.csv"))
    assert len(train) >= 300 and len(dev) >= 80
    misleading = [shared_words(a, c) > shared_words(a, b) for a, b, c in train + dev]
    assert sum(misleading) / len(misleading) > 0.95


def test_sample_pairs_held_out_are_not_in_the_training_part():
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


@pytest.fixture
def gaps(write_csv, tokenizer) -> MultiTaskDataset:
    path = write_csv("a.csv", ["text", "topic", "mood"], [["one", "b", ""], ["two", "", "x"], ["three", "a", "y"]])
    rows = read_labelled_rows([path])
    return MultiTaskDataset(rows, rows.classes(), tokenizer)


def test_missing_labels_are_marked(gaps, tokenizer):
    assert gaps[0] == {"index": 0, "ids": tokenizer(["one"])[0], "labels": [1, UNLABELLED], "length": 3}
    assert gaps.collate([gaps[1], gaps[2]])["labels"].tolist() == [[UNLABELLED, 0], [0, 1]]
    assert gaps.labelled("mood") == 2


def test_a_batch_of_labelled_texts_is_padded_to_its_longest(tokenizer):
    rows = LabelledRows(["one two three", "one"], {"topic": ["a", "b"]}, ["f, line 2", "f, line 3"])
    data = MultiTaskDataset(rows, rows.classes(), tokenizer)
    batch = data.collate([data[0], data[1]])
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["input_ids"][1, :3].tolist() == tokenizer(["one"])[0]


def test_a_digest_of_labelled_texts_does_not_depend_on_the_files_they_came_from(write_csv, tokenizer):
    def made(*paths):
        rows = read_labelled_rows(paths)
        return MultiTaskDataset(rows, {"topic": ["x", "y"]}, tokenizer).digest()

    header, rows = ["text", "topic"], [["a", "x"], ["b", "y"], ["c", "y"]]
    whole = made(write_csv("whole.csv", header, rows))
    assert made(write_csv("one.csv", header, rows[:1]), write_csv("two.csv", header, rows[1:])) == whole
    assert made(write_csv("other.csv", header, [["a", "x"], ["b", "x"], ["c", "y"]])) != whole
    assert made(write_csv("turned.csv", header, rows[::-1])) != whole


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ("1", "1"),
        ("1.0", "1"),
        (" 1.00 ", "1"),
        ("-1.0", "-1"),
        ("1.5", "1.5"),
        ("v1.0", "v1.0"),
        ("1.0.0", "1.0.0"),
        ("10", "10"),
        ("Very good", "Very good"),
        ("  ", None),
        ("", None),
    ],
)
def test_a_label_is_its_cell_and_a_whole_number_has_no_point(cell, label):
    assert label_of(cell) == label


def test_a_number_written_with_a_point_in_one_file_is_the_same_class(write_csv, tmp_path):
    table = write_csv("a.csv", ["text", "stars"], [["good", "1.0"], ["bad", "2"], ["so-so", "1.5"]])
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": "fine", "stars": 1}\n{"text": "poor", "stars": 2.0}\n')
    assert read_labelled_rows([table, lines]).labels == {"stars": ["1", "2", "1.5", "1", "2"]}


def test_rows_without_a_label_of_the_tasks_named_are_left_out_and_counted(write_csv):
    path = write_csv("a.csv", ["text", "topic", "mood"], [["a", "x", ""], ["b", "y", "good"], ["c", "", "bad"]])
    with pytest.warns(UserWarning, match=r"a.csv: rows without a label for mood are left out: 1"):
        rows = read_labelled_rows([path], ["mood"])
    assert (rows.texts, rows.labels) == (["b", "c"], {"mood": ["good", "bad"]})


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_no_row_with_a_label_of_the_tasks_named_is_said(write_csv):
    path = write_csv("a.csv", ["text", "topic", "mood"], [["a", "x", ""], ["b", "y", ""]])
    with pytest.raises(UserError, match=r"a.csv: no row has a label for mood"):
        read_labelled_rows([path], ["mood"])


LABEL_MISTAKES = {
    "semicolons": (["text;topic"], [["a;x"]], 'columns are separated by commas here, not by ";"'),
    "no text": (["body", "topic"], [["a", "x"]], 'no column "text" with texts (found: body, topic)'),
    "no task": (["text"], [["a"]], "no column besides it to take labels from"),
    "no label": (["text", "topic", "mood"], [["a", "x", "y"], ["b", "", " "]], "line 3: no label (for topic or mood)"),
    "empty text": (["text", "topic"], [["", "x"]], 'line 2: the cell "text" is empty'),
    "one class": (["text", "topic"], [["a", "x"], ["b", "x"]], 'column "topic": every label is "x"'),
    "unlabelled": (["text", "topic", "mood"], [["a", "x", ""], ["b", "y", ""]], 'column "mood": no row has a label'),
    "an id": (["text", "id"], [["a", f"r{i}"] for i in range(5)], 'column "id" holds 5 different values in 5 rows'),
    "prose": (["text", "why"], [["a", f"w {i // 2}"] for i in range(120)] + [["a", "x"]], '"why" holds 61 different'),
    "prices": (
        ["text", "price"],
        [["a", f"${i},000.50"] for i in range(21)] * 9,
        'column "price" holds 21 different numbers',
    ),
    "dates": (["text", "day"], [["a", f"2026-11-{i:02}T10:00"] for i in (1, 2)] * 9, 'column "day" holds dates'),
}


@pytest.mark.parametrize("mistake", LABEL_MISTAKES)
def test_labels_that_cannot_be_learned_are_named(write_csv, mistake):
    header, rows, message = LABEL_MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        training_tasks(read_labelled_rows([write_csv("a.csv", header, rows)]))
    assert message in str(caught.value)


def test_a_chosen_task_that_no_file_has_is_named(write_csv):
    path = write_csv("a.csv", ["text", "topic"], [["a", "x"]])
    with pytest.raises(UserError, match=r'no file has a column "mood" \(found: text, topic\)'):
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
def samples():
    return {part: read_labelled_rows([SAMPLES / f"{part}.csv"]) for part in PARTS}


def test_the_sample_data_has_its_labels_evenly(samples):
    assert sum(len(rows.texts) for rows in samples.values()) >= 1000
    for rows in samples.values():
        assert rows.classes() == {"topic": TOPICS, "sentiment": ["Negative", "Neutral", "Positive"]}
        cells = Counter(zip(rows.labels["topic"], rows.labels["sentiment"], strict=True))
        assert len(cells) == 15 and len(set(cells.values())) == 1


def four_grams(text):
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}


def test_no_sample_text_is_nearly_one_of_another_part(samples):
    grams = {part: [four_grams(text) for text in rows.texts] for part, rows in samples.items()}
    for one, other in itertools.combinations(PARTS, 2):
        for left in grams[one]:
            for right in grams[other]:
                assert len(left & right) <= 0.2 * max(min(len(left), len(right)), 1)


def test_no_sample_text_is_there_twice(samples):
    texts = [text.lower() for rows in samples.values() for text in rows.texts]
    assert len(texts) == len(set(texts))


def test_no_word_gives_a_sample_sentiment_away(samples):
    by_word: dict[str, Counter] = {}
    for rows in samples.values():
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


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_plain_text_beside_a_table_with_another_text_column_trains_together(order, write_csv, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    paths = [tmp_path / "a.txt", write_csv("b.csv", ["body", "id"], [["three", 1]])]
    read = read_training_rows([paths[i] for i in order], column="body")
    assert sorted(read.rows) == [("one",), ("three",), ("two",)]


def test_a_column_that_is_named_is_a_task_whatever_it_holds(write_csv):
    path = write_csv("a.csv", ["text", "year"], [["a", year] for year in range(2000, 2025)])
    assert len(training_tasks(read_labelled_rows([path]), ["year"])["year"]) == 25


def test_ratings_are_labels(write_csv):
    path = write_csv("a.csv", ["text", "stars"], [["a", stars] for stars in range(1, 11)] * 3)
    assert len(training_tasks(read_labelled_rows([path]))["stars"]) == 10


LABELS = {"topic": ["x"] * 100 + ["y"] * 40 + [None] * 20, "mood": ["good", "bad"] * 80}
MANY = LabelledRows([f"text {i}" for i in range(160)], LABELS, [f"line {i}" for i in range(160)])


def test_rows_held_out_have_every_combination_of_labels_in_its_share():
    kept, held_out = MANY.hold_out(10, seed=0)
    assert sorted([*kept.texts, *held_out.texts]) == sorted(MANY.texts)
    counts = Counter(zip(*held_out.labels.values(), strict=True))
    assert counts == {
        ("x", "good"): 5,
        ("x", "bad"): 5,
        ("y", "good"): 2,
        ("y", "bad"): 2,
        (None, "good"): 1,
        (None, "bad"): 1,
    }


def test_no_labels_last_row_is_held_out():
    labels = [f"only {i}" for i in range(100)] + ["x"] * 100
    rows = LabelledRows([f"{i}" for i in range(200)], {"topic": labels}, [""] * 200)
    _, held_out = rows.hold_out(10, seed=0)
    assert held_out.labels == {"topic": ["x"] * 10}


def test_rows_held_out_keep_their_labels_and_are_a_function_of_the_seed():
    kept, held_out = MANY.hold_out(10, seed=0)
    assert MANY.hold_out(10, seed=0) == (kept, held_out)
    assert MANY.hold_out(10, seed=1)[1].texts != held_out.texts
    for part in (kept, held_out):
        for text, mood, place in zip(part.texts, part.labels["mood"], part.places, strict=True):
            number = int(text.split()[1])
            assert (mood, place) == (LABELS["mood"][number], f"line {number}")
