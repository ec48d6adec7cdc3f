"""At what rate, and for how many steps, should a person's rows be trained on who has tried nothing yet?

    python -m benchmarks.defaults DATA ROWS [ROWS ...]    train and measure; a result that is there is kept

DATA is the folder with `topic/`, `sentiment/`, `emotion/` and `question/`: each task alone, so many of its training
rows (every label among them), from the shipped encoder, seed 0, at each of the choices below. The best model by 300 dev
rows is measured on them and on 1,000 test rows.
"""

import argparse
import csv
import random
import tempfile
from pathlib import Path

import task2
from benchmarks.multitask import DEV_ROWS, part_of
from benchmarks.record import RESULTS, record, trained
from common.cli import ROOT

RUNS = ROOT / "runs" / "defaults"
TASKS = {"topic": "accuracy", "sentiment": "macro_recall", "emotion": "macro_f1", "question": "accuracy"}
TEST_ROWS = 1_000
CHOICES = {
    "encoder frozen, linear heads": ["--freeze", "encoder", "--head", "linear"],
    "2e-5, 3 epochs": ["--learning-rate", "2e-5", "--epochs", "3"],
    "the default": [],
}


def rows_of_every_label(data: Path, task: str, rows: int) -> Path:
    """So many random training rows of a task as a file of their own: one of each label, then any."""
    target = RUNS / f"{task}-{rows}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (data / task / "train.csv").open(encoding="utf-8", newline="") as stream:
        header, *lines = csv.reader(stream)
    random.Random(0).shuffle(lines)
    label = header.index(task)
    firsts = list({line[label]: line for line in reversed(lines)}.values())
    with target.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *firsts, *[line for line in lines if line not in firsts]][: rows + 1])
    return target


def reached(data: Path, task: str, rows: int, choice: str) -> dict[str, object]:
    """What a task reaches with a choice of rate and length."""
    measured = {"--dev": part_of(data, task, "dev", DEV_ROWS), "--test": part_of(data, task, "test", TEST_ROWS)}
    parts = [str(word) for pair in measured.items() for word in pair]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(rows_of_every_label(data, task, rows)), *parts, *CHOICES[choice]]
        metrics = trained(task2.main, arguments, Path(folder) / "model", "metrics.json")
    found = {part: metrics[part][task] for part in ("dev", "test")}
    names = (TASKS[task], "calibration_error")
    return {
        "measure": TASKS[task],
        **{name: metrics.get(name) for name in ("contents", "seconds", "best")},
        **{part: {name: row[name] for name in names} for part, row in found.items()},
    }


def result_path(task: str, rows: int, choice: str) -> Path:
    return RESULTS / "defaults" / f"{task}-{rows}-{choice.replace(', ', '-').replace(' ', '-')}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("rows", type=int, nargs="+")
    arguments = parser.parse_args()
    for rows in arguments.rows:
        for choice in CHOICES:
            for task in TASKS:
                path = result_path(task, rows, choice)
                if not path.is_file():
                    print(f"\n{task}, {rows} rows, {choice}", flush=True)
                    found = reached(arguments.data, task, rows, choice)
                    record(path, {"task": task, "rows": rows, "choice": choice, **found})


if __name__ == "__main__":
    main()
