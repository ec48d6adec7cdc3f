"""What training and evaluation read from files: sentences, pairs and their scores, labelled texts."""

import math
import random
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UserError
from common.readers import Row, cell_of, columns_of, file_kind, read_rows

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train an encoder on: one to three sentences each, all alike, perhaps with a score."""

    rows: list[tuple[str, ...]]
    scores: list[float] | None
    columns: tuple[str, ...]


TEXT = "text"
PAIR = ("sentence1", "sentence2")
NEAR_MISS = "near_miss"
SCORE = "score"


def training_columns(path: str | Path, column: str = TEXT) -> tuple[str, ...]:
    """Which columns of a file training reads: scored pairs, pairs (with near misses), or one text column.

    Raises:
        UserError: the file has neither `sentence1,sentence2` nor the text column, or both scores and near misses.
    """
    found = columns_of(path)
    if set(PAIR) <= set(found) and column == TEXT:
        extra = [name for name in (SCORE, NEAR_MISS) if name in found]
        if len(extra) > 1:
            raise UserError(
                f'{path}: has both "{SCORE}" and "{NEAR_MISS}", which train in different ways; leave one out'
            )
        return (*PAIR, *extra)
    if file_kind(path) == ".txt":
        return (TEXT,)
    if column in found:
        return (column,)
    pair = 'columns "sentence1" and "sentence2", and no ' if column == TEXT else ""
    raise UserError(f'{path}: no {pair}"{column}" (found: {", ".join(found)})')


def read_training_rows(paths: Sequence[str | Path], column: str = TEXT) -> TrainingRows:
    """Read files that all have the same kind of rows. Blank lines of a .txt are left out.

    Raises:
        UserError: files of different kinds, an empty cell, a score that is no number, no rows.
    """
    if column != TEXT and all(file_kind(path) == ".txt" for path in paths):
        raise UserError(f"{paths[0]} has no columns: each line is a text", "text")
    kinds = {str(path): training_columns(path, column) for path in paths}
    columns = next(iter(kinds.values()))
    for path, others in kinds.items():
        if len(others) != len(columns) or (len(columns) > 1 and others != columns):
            first = next(iter(kinds))
            raise UserError(
                f"{path}: has {', '.join(others)}, but {first} has {', '.join(columns)}; "
                "files trained on together need the same columns"
            )
    scored = columns[:2] == PAIR and columns[-1] == SCORE
    rows, scores = [], []
    for path in paths:
        plain, texts = file_kind(path) == ".txt", kinds[str(path)][: -1 if scored else None]
        for line, row in read_rows(path):
            if plain and not row[TEXT].strip():
                continue
            rows.append(tuple(_text_cell(path, line, row, name) for name in texts))
            if scored:
                scores.append(_score_cell(path, line, row))
    if not rows:
        raise UserError(f"{paths[0]}: holds no rows")
    if scored and len(rows) > 1 and len(set(scores)) == 1:
        raise UserError(f"{paths[0]}: all scores are {scores[0]:g}; pairs are ranked by different ones")
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


NUMBER = re.compile(r"[-+]?[$€£]?[.,]?\d[\d.,' ]*(e[-+]?\d+)?%?", re.IGNORECASE)
DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})(?!\d)")
MOST_RATINGS = 20  # different numbers that may still be labels


@dataclass(frozen=True)
class LabelledRows:
    """Texts with a label, or None, for each of some tasks.

    `labels` holds one list a task, as long as `texts`; `places` says where each row stood ("file, line 3"); `columns`
    are all that their files have.
    """

    texts: list[str]
    labels: dict[str, list[str | None]]
    places: list[str]
    columns: tuple[str, ...] = ()

    def classes(self) -> dict[str, list[str]]:
        """The labels that occur for each task, sorted."""
        return {task: sorted({label for label in labels if label is not None}) for task, labels in self.labels.items()}

    def pick(self, rows: Sequence[int]) -> "LabelledRows":
        """The rows of these numbers."""
        labels = {task: [column[i] for i in rows] for task, column in self.labels.items()}
        return replace(self, texts=[self.texts[i] for i in rows], labels=labels, places=[self.places[i] for i in rows])

    def hold_out(self, every: int, seed: int) -> tuple["LabelledRows", "LabelledRows"]:
        """Split at random into most rows and about one in `every`, with labels in the same shares in both.

        No label's last row is held out.
        """
        order = list(range(len(self.texts)))
        random.Random(seed).shuffle(order)
        order.sort(key=lambda i: [column[i] or "" for column in self.labels.values()])  # alike side by side
        left = Counter((task, label) for task, column in self.labels.items() for label in column)
        held_out = set()
        for i in order[every // 2 :: every]:
            own = [(task, column[i]) for task, column in self.labels.items() if column[i] is not None]
            if all(left[label] > 1 for label in own):
                left.subtract(own)
                held_out.add(i)
        return self.pick(sorted(set(order) - held_out)), self.pick(sorted(held_out))


def read_labelled_rows(
    paths: Sequence[str | Path], tasks: Sequence[str] | None = None, text: str = TEXT
) -> LabelledRows:
    """Read labelled texts: every column but the one of texts is a task, unless `tasks` names those that are.

    A file need not have every task, and an empty cell is no label. Rows without any label of the `tasks` named are left
    out, with a warning.

    Raises:
        UserError: no column of texts, no task, an empty text, a row without any label where no tasks are named.
    """
    left_out: Counter[str] = Counter()
    texts: list[str] = []
    labels: dict[str, list[str | None]] = {}
    places: list[str] = []
    columns: dict[str, None] = {}
    for path in paths:
        found = columns_of(path)
        columns |= dict.fromkeys(found)
        if text not in found:
            raise UserError(f'{path}, line 1: no column "{text}" with texts (found: {", ".join(found)})', "text")
        here = [name for name in found if name != text and (tasks is None or name in tasks)]
        if not here:
            wanted = "besides it" if tasks is None else f"named {' or '.join(tasks)}"
            raise UserError(f"{path}, line 1: no column {wanted} to take labels from (found: {', '.join(found)})")
        for task in here:
            labels.setdefault(task, [None] * len(texts))
        for line, row in read_rows(path):
            cells = {task: label_of(row.get(task, "")) for task in here}
            if not any(cells.values()):
                if tasks is None:
                    raise UserError(f"{path}, line {line}: no label (for {' or '.join(here)})")
                left_out[str(path)] += 1
                continue
            texts.append(_text_cell(path, line, row, text))
            places.append(f"{path}, line {line}")
            for task, column in labels.items():
                column.append(cells.get(task))
    for path, count in left_out.items():
        warnings.warn(f"{path}: rows without a label for {' or '.join(tasks)} are left out: {count}", stacklevel=2)
    if not texts:
        raise UserError(f"{paths[0]}: no row has a label for {' or '.join(tasks)}")
    return LabelledRows(texts, labels, places, tuple(columns))


def label_of(cell: str) -> str | None:
    """The label that a cell holds; None where it is blank. A whole number written with a point is the number."""
    return re.sub(r"^([-+]?\d+)\.0+$", r"\1", cell.strip()) or None


def training_tasks(
    rows: LabelledRows, asked: Sequence[str] | None = None, learned: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[str]]:
    """The tasks to learn and their labels; `learned` are those that a model knows already.

    Raises:
        UserError: a task that was asked for is in no file, has no labelled row or one label only; the cells of one
            that was not asked for are numbers, dates, or as many as there are rows.
    """
    for task in asked or []:
        if task not in rows.labels:
            raise UserError(f'no file has a column "{task}" (found: {", ".join(rows.columns)})', "tasks")
    tasks, learned = rows.classes(), learned or {}
    for task, labels in tasks.items():
        labelled = sum(label is not None for label in rows.labels[task])
        if not labels:
            raise UserError(f'column "{task}": no row has a label; name the columns that are tasks', "tasks")
        if len({*labels, *learned.get(task, [])}) == 1:
            raise UserError(
                f'column "{task}": every label is "{labels[0]}", and a classifier needs two or more; '
                "name the columns that are tasks",
                "tasks",
            )
        if task not in (*(asked or []), *learned) and (what := what_else(labels, labelled)):
            raise UserError(f'column "{task}" holds {what}, no labels: name the columns that are tasks', "tasks")
    return tasks


def what_else(labels: Sequence[str], rows: int) -> str | None:
    """What a column's different values are where they can be no labels; `rows` have one."""
    if len(labels) > MOST_RATINGS and all(NUMBER.fullmatch(label) for label in labels):
        return f"{len(labels)} different numbers"
    if all(DATE.match(label) for label in labels):
        return "dates"
    if len(labels) == rows >= 5 or len(labels) > max(50, rows / 2):
        return f"{len(labels)} different values in {rows} rows"
    return None
