"""What people read on the terminal: tables and headings; and their rows as CSV."""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_file

MOST_COLUMNS = 12  # classes that a table has a column for


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under their header, text to the left and numbers to the right; floats with three decimals."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, cells)])


def shorten(text: str, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is longer than `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def terminal_width() -> int:
    """Columns of the terminal, within what a table can use."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 160)


def heading(text: str) -> None:
    """Print a heading with space above it."""
    print(f"\n{text}\n{'=' * len(text)}")


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write mappings as CSV: a line for each, a column for each name that occurs."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def parts_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """What trains, from what `describe` gives."""
    rows = []
    for line in lines:
        rate = "" if line["rate"] is None else f"{line['rate']:.3g}"
        how = ["frozen", ""] if line["frozen"] else [rate, f"{line['dropout']:g}"]
        rows.append([line["part"], f"{line['parameters']:,}", *how])
    return table(["what trains", "parameters", "rate", "dropout"], rows)


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each task, and what its last two columns mean."""
    lines = [
        [
            task,
            result["rows"],
            "{:.3f} ({:.2f} to {:.2f})".format(result["accuracy"], *result["interval_95"]),
            *(result[name] for name in ("macro_recall", "macro_f1", "majority", "calibration_error")),
        ]
        for task, result in results.items()
    ]
    header = ["task", "rows", "accuracy (95% interval)", "macro recall", "macro F1", "majority", "ECE"]
    return (
        f"{table(header, lines)}\nmajority: the accuracy of always saying the most frequent class; "
        "ECE: how far probabilities are from the share that is right"
    )


def classes_table(result: Mapping[str, Any]) -> str:
    """A line for each class of a task, and what its rows were taken for: each class, or of many the most frequent."""
    many = len(result["classes"]) > MOST_COLUMNS
    labels = [shorten(label, 40 if many else 14) for label in result["classes"]]
    rows = []
    for i, (row, counts) in enumerate(zip(result["classes"].values(), result["confusion"], strict=True)):
        wrong = max((j for j in range(len(labels)) if j != i), key=counts.__getitem__)
        others = [f"{labels[wrong]} {counts[wrong]}" if counts[wrong] else ""] if many else counts
        rows.append([labels[i], row["rows"], row["precision"], row["recall"], row["f1"], *others])
    taken_for = ["most often taken for"] if many else [f"→ {label}" for label in labels]
    return table(["class", "rows", "precision", "recall", "F1", *taken_for], rows)


def print_classes(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print for each task its classes, and what they were taken for."""
    for task, result in results.items():
        print(f"\n{task} (right of F1: what its rows were taken for)\n{classes_table(result)}")


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, and behind ± the standard deviation where there are several values."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def by_strategy(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """A comparison's rows gathered by strategy: for each, the values under every name."""
    gathered: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        for name, value in row.items():
            gathered.setdefault(row["strategy"], {}).setdefault(name, []).append(value)
    return gathered


def comparison_table(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> str:
    """A line for each strategy: how many trainings, and the mean and spread of each measure."""
    lines = [
        [strategy, len(values["seed"]), *(mean_and_spread(values[measure]) for measure in measures)]
        for strategy, values in by_strategy(rows).items()
    ]
    return table(["strategy", "runs", *measures], lines)


def moved_table(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> str:
    """A line for each stage, bottom up: how far each strategy moved it, on average, as a share of its length."""
    gathered = by_strategy(rows)
    lines = [
        [stage, *(f"{100 * np.mean(values[f'moved: {stage}']):.2g}%" for values in gathered.values())]
        for stage in stages
    ]
    return table(["moved", *gathered], lines)
