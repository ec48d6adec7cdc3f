"""What a model says of texts, a chunk at a time: as a table for people, as JSON lines or CSV for programs."""

import csv
import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from common.devices import share_out
from common.heads import MultiTaskModel
from common.readers import chunked
from common.report import shorten, terminal_width

CHUNK = 1024
Predictions = Iterator[tuple[str, dict[str, Any]]]


def predictions(model: MultiTaskModel, texts: Iterator[str], **options: Any) -> Predictions:
    """Each text with its prediction, read and classified a chunk at a time."""
    for chunk in chunked(texts, CHUNK):
        yield from zip(chunk, share_out(partial(model.predict, **options), chunk), strict=True)


def print_table(model: MultiTaskModel, predicted: Predictions) -> None:
    """For people: a text, its label for each task with its probability, and (explained) the words attended to."""
    widths = {task: max(len(label) for label in [*labels, task]) for task, labels in model.tasks.items()}
    text_width = max(terminal_width() - sum(widths.values()) - 8 * len(widths), 24)
    print("  ".join(["text".ljust(text_width), *(task.ljust(width + 6) for task, width in widths.items())]).rstrip())
    for text, result in predicted:
        cells = [shorten(text, text_width).ljust(text_width)]
        for task, width in widths.items():
            label = result[task]["label"]
            cells.append(f"{label:<{width}} {result[task]['probabilities'][label]:>5.0%}")
        print("  ".join(cells))
        for task in widths:
            if "attention" in result[task]:
                words = " ".join(f"{w}({s:.0%})" if s >= 0.05 else w for w, s in result[task]["attention"])
                print(f"    {task}: {words}")


def print_jsonl(_: MultiTaskModel, predicted: Predictions) -> None:
    """For programs: a JSON object a line, the text beside what `predict` gives."""
    for text, result in predicted:
        print(json.dumps({"text": text, **result}, ensure_ascii=False))


def print_csv(model: MultiTaskModel, predicted: Predictions, every: bool = False) -> None:
    """For spreadsheets: text, and for each task its label and the label's probability, or `every` label's."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = {task: [f"{task}: {label}" for label in labels] for task, labels in model.tasks.items()}
    header = [name for task in columns for name in (task, *(columns[task] if every else [f"{task} probability"]))]
    writer.writerow(["text", *header])
    for text, result in predicted:
        cells = []
        for found in result.values():
            shown = found["probabilities"].values() if every else [found["probabilities"][found["label"]]]
            cells += [found["label"], *(f"{probability:.6f}" for probability in shown)]
        writer.writerow([text, *cells])
