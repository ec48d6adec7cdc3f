"""What a model says of texts, a chunk at a time: as a table for people, as JSON lines or CSV for programs."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from common.devices import share_out
from common.errors import UserError
from common.heads import MultiTaskModel
from common.readers import Row, chunked
from common.report import shorten, terminal_width

CHUNK = 1024
Predictions = Iterator[tuple[str, Row, dict[str, Any]]]


def predictions(model: MultiTaskModel, asked: Iterable[tuple[str, Row]], **options: Any) -> Predictions:
    """Each text and the row it stands in, with its prediction, read and classified a chunk at a time."""
    for chunk in chunked(asked, CHUNK):
        texts, rows = zip(*chunk, strict=True)
        yield from zip(texts, rows, share_out(partial(model.predict, **options), texts), strict=True)


def print_table(model: MultiTaskModel, predicted: Predictions) -> None:
    """For people: a text, its label for each task with its probability, and (explained) the words attended to."""
    widths = {task: max(len(label) for label in [*labels, task]) for task, labels in model.tasks.items()}
    text_width = max(terminal_width() - sum(widths.values()) - 8 * len(widths), 24)
    print("  ".join(["text".ljust(text_width), *(task.ljust(width + 6) for task, width in widths.items())]).rstrip())
    for text, _, result in predicted:
        cells = [shorten(text, text_width).ljust(text_width)]
        for task, width in widths.items():
            label = result[task]["label"]
            cells.append(f"{label:<{width}} {result[task]['probabilities'][label]:>5.0%}")
        print("  ".join(cells))
        for task in widths:
            if "attention" in result[task]:
                words = " ".join(f"{w}({s:.0%})" if s >= 0.05 else w for w, s in result[task]["attention"])
                print(f"    {task}: {words}")


def print_jsonl(model: MultiTaskModel, predicted: Predictions, columns: Sequence[str]) -> None:
    """For programs: a JSON object a line, the row as text, and `predicted TASK`: what `predict` gives for it.

    Raises:
        UserError: one of the rows' columns has such a name.
    """
    refuse_taken([f"predicted {task}" for task in model.tasks], columns)
    for _, row, result in predicted:
        found = {f"predicted {task}": one for task, one in result.items()}
        print(json.dumps(row | found, ensure_ascii=False))


def print_csv(model: MultiTaskModel, predicted: Predictions, columns: Sequence[str], every: bool = False) -> None:
    """For spreadsheets: the row's columns, and for each task its label and the label's probability, or `every` label's.

    Raises:
        UserError: one of the rows' columns has the name of an added one.
    """
    added = []
    for task, labels in model.tasks.items():
        added.append(f"predicted {task}")
        added += [f"{task}: {label}" for label in labels] if every else [f"{task} probability"]
    refuse_taken(added, columns)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*columns, *added])
    for _, row, result in predicted:
        cells = [row.get(name, "") for name in columns]
        for found in result.values():
            shown = found["probabilities"].values() if every else [found["probabilities"][found["label"]]]
            cells += [found["label"], *(f"{probability:.6f}" for probability in shown)]
        writer.writerow(cells)


def refuse_taken(added: Sequence[str], columns: Sequence[str]) -> None:
    """UserError where the rows have a column already that predictions would be written under."""
    if taken := [name for name in added if name in columns]:
        raise UserError(f'the table has a column "{taken[0]}" already, where the prediction would go: rename it')
