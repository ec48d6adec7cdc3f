"""Do topic and sentiment help each other? One shared encoder trained on both, against one for each alone.

    python -m benchmarks.multitask DATA SYSTEM [SYSTEM ...]    train and test; a result that is there is kept
    python -m benchmarks.multitask DATA table                  print what was recorded as the README's table

DATA is the folder with `topic/` and `sentiment/`. All systems see the same part of the training rows, so that
a run stays within half an hour on two cores, and are tested on 2,000 test rows of each task. Systems: together,
topic, sentiment (the same training with one task left out), tfidf and tfidf-all (word 1,2-grams and logistic
regression with balanced classes, on the same rows and on
all).
"""

import argparse
import csv
import json
import random
from pathlib import Path

import task2
from benchmarks.bag_of_words import bag_of_words
from benchmarks.record import RESULTS, record
from common.checkpoint import NAME as CHECKPOINT
from common.cli import ROOT
from common.data import MultiTaskDataset, read_labelled_rows
from common.heads import MultiTaskModel
from common.metrics import evaluate_tasks

RUNS = ROOT / "runs" / "multitask"
TASKS = {"topic": "accuracy", "sentiment": "macro_recall"}
ROWS = {"topic": 1_200, "sentiment": 2_400}
DEV_ROWS, TEST_ROWS = 300, 2_000
TRAINING = ["--epochs", "2", "--learning-rate", "1e-4", "--class-weight", "balanced", "--schedule", "linear"]
WORDS = {
    "together": "shared encoder, both tasks",
    "topic": "topic alone",
    "sentiment": "sentiment alone",
    "tfidf": "TF-IDF + logistic regression, the same rows",
    "tfidf-all": "TF-IDF + logistic regression, all rows",
}


def part_of(data: Path, task: str, part: str, rows: int) -> Path:
    """A fixed random part of a file, as a file of its own."""
    source, target = data / task / f"{part}.csv", RUNS / f"{task}-{part}-{rows}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open(encoding="utf-8", newline="") as stream:
        header, *lines = csv.reader(stream)
    chosen = random.Random(0).sample(lines, min(rows, len(lines)))
    with target.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *chosen])
    return target


def train(data: Path, system: str, seed: int) -> dict[str, object]:
    """Train one or both tasks with task2.py (going on where it was stopped) and test it."""
    tasks = list(TASKS) if system == "together" else [system]
    output = RUNS / f"{system}-{seed}"
    files = [str(part_of(data, task, "train", ROWS[task])) for task in tasks]
    dev = [str(part_of(data, task, "dev", DEV_ROWS)) for task in tasks]
    if not (output / "metrics.json").is_file():
        resume = ["--resume"] if (output / CHECKPOINT).is_file() else []
        command = ["train", *files, "--dev", *dev, "--output", str(output), *TRAINING, "--seed", str(seed)]
        task2.main([*command, *resume])
    model = MultiTaskModel.from_pretrained(output)
    test = {}
    for task in tasks:
        rows = read_labelled_rows([part_of(data, task, "test", TEST_ROWS)])
        test |= evaluate_tasks(model, MultiTaskDataset(rows, model.tasks, model.encoder.tokenizer))
    trained = json.loads((output / "metrics.json").read_text())
    return {
        "training": " ".join(TRAINING),
        "rows": {t: ROWS[t] for t in tasks},
        "seconds": trained["seconds"],
        "best": trained["best"],
        "test": test,
    }


def tfidf(data: Path, limits: dict[str, int]) -> dict[str, object]:
    """The bag-of-words peer, trained on at most so many rows of each task."""
    rows, test = {}, {}
    for task in TASKS:
        learned = read_labelled_rows([part_of(data, task, "train", limits[task])])
        asked = read_labelled_rows([part_of(data, task, "test", TEST_ROWS)])
        rows[task] = len(learned.texts)
        test[task] = bag_of_words(learned, asked, task)
    return {"rows": rows, "test": test}


def print_table() -> None:
    """The recorded results as the README shows them."""
    header = ("system", "seed", "topic accuracy", "sentiment macro recall", "training rows", "training")
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for system, words in WORDS.items():
        for path in sorted((RESULTS / "multitask").glob(f"{system}-[0-9]*.json")):
            result = json.loads(path.read_text())
            cells = [
                f"{result['test'][task][measure]:.3f}" if task in result["test"] else ""
                for task, measure in TASKS.items()
            ]
            rows = " + ".join(f"{count:,}" for count in result["rows"].values())
            minutes = f"{result['seconds'] / 60:.0f} min" if "seconds" in result else ""
            print(f"| {words} | {result['seed']} | {' | '.join(cells)} | {rows} | {minutes} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("systems", nargs="+", choices=[*WORDS, "table"], metavar="system")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for system in arguments.systems:
        path = RESULTS / "multitask" / f"{system}-{arguments.seed}.json"
        if system == "table":
            print_table()
        elif not path.is_file():
            print(f"\n{system}: {WORDS[system]}", flush=True)
            if system.startswith("tfidf"):
                rows = ROWS if system == "tfidf" else dict.fromkeys(TASKS, 10**6)
                result = tfidf(arguments.data, rows)
            else:
                result = train(arguments.data, system, arguments.seed)
            record(path, {"system": WORDS[system], "seed": arguments.seed, **result})


if __name__ == "__main__":
    main()
