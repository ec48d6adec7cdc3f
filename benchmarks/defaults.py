"""At what rate, and for how many steps, should a person's rows be trained on who has tried nothing yet?

    python -m benchmarks.defaults DATA ROWS [ROWS ...]    train and measure; a result that is there is kept

DATA is the folder with `topic/`, `sentiment/`, `emotion/` and `question/`: so many training rows of each task (every
label among them; all where there are fewer), from the shipped encoder, seed 0, at each of the choices below; each task
alone, but for one choice. The best model by 300 dev rows of a task is measured on them and on 1,000 test rows.
"""

import csv
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import task2
from benchmarks.multitask import DEV_ROWS, part_of
from benchmarks.record import RESULTS, command_line, record, trained
from common.cli import ROOT

RUNS = ROOT / "runs" / "defaults"
TASKS = {"topic": "accuracy", "sentiment": "macro_recall", "emotion": "macro_f1", "question": "accuracy"}
TEST_ROWS = 1_000
TOGETHER = "the default, one model for all four"
CHOICES = {
    "encoder frozen, linear heads": ["--freeze", "encoder", "--head", "linear"],
    **{rate: ["--learning-rate", rate] for rate in ("2e-5", "5e-5", "1e-4", "2e-4")},
    TOGETHER: [],
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


def reached(data: Path, tasks: Sequence[str], rows: int, choice: str) -> dict[str, dict[str, object]]:
    """What each of some tasks, in one model, reaches with a choice of rate and length."""
    files = [str(rows_of_every_label(data, task, rows)) for task in tasks]
    for part, count in (("dev", DEV_ROWS), ("test", TEST_ROWS)):
        files += [f"--{part}", *(str(part_of(data, task, part, count)) for task in tasks)]
    with tempfile.TemporaryDirectory() as folder:
        metrics = trained(task2.main, [*files, *CHOICES[choice]], Path(folder) / "model", "metrics.json")
    about = {name: metrics.get(name) for name in ("contents", "seconds", "best")}
    found = {}
    for task in tasks:
        names = (TASKS[task], "calibration_error")
        parts = {part: {name: metrics[part][task][name] for name in names} for part in ("dev", "test")}
        found[task] = {"measure": TASKS[task], **about, **parts}
    return found


def result_path(task: str, rows: int, choice: str) -> Path:
    return RESULTS / "defaults" / f"{task}-{rows}-{choice.replace(', ', '-').replace(' ', '-')}.json"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES), metavar="choice")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="task")
    arguments = parser.parse_args()
    for rows in arguments.rows:
        for choice in arguments.choices:
            for tasks in [list(TASKS)] if choice == TOGETHER else [[task] for task in arguments.tasks]:
                paths = {task: result_path(task, rows, choice) for task in tasks}
                if not all(path.is_file() for path in paths.values()):
                    print(f"\n{', '.join(tasks)}, {rows} rows, {choice}", flush=True)
                    for task, found in reached(arguments.data, tasks, rows, choice).items():
                        record(paths[task], {"task": task, "rows": rows, "choice": choice, **found})


if __name__ == "__main__":
    main()
