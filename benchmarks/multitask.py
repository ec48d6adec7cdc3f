"""Do topic and sentiment help each other, and what is the shipped encoder worth to them?

    python -m benchmarks.multitask DATA SYSTEM [SYSTEM ...]    train and test; a result that is there is kept

DATA is the folder with `topic/`, `sentiment/`, `emotion/` and `question/`. The first systems see a part of the training
rows, three seeds each, another part for each seed, and are tested on 2,000 test rows of each task: together, topic,
sentiment (both tasks, or one alone, from random weights), shipped-together, shipped-topic, shipped-sentiment (the same
from the shipped encoder) and tfidf (word 1,2-grams and logistic regression with balanced classes). The others see all
training rows and are tested on all test rows: shipped-all, tfidf-all, and frozen and frozen-minilm (logistic regression
on the embeddings of the shipped encoder and of all-MiniLM-L6-v2, of emotion and question too).
"""

import csv
import random
from pathlib import Path

import task2
from benchmarks.linear import EmbeddingFeatures, linear_classifier, word_features
from benchmarks.record import RESULTS, command_line, record, trained
from benchmarks.sts import minilm_folder
from common.cli import ROOT
from common.encoder import SHIPPED, SentenceEncoder
from common.files import atomic_file
from common.heads import MultiTaskModel
from common.metrics import evaluate_tasks
from common.rows import read_labelled_rows

RUNS = ROOT / "runs" / "multitask"
TASKS = {"topic": "accuracy", "sentiment": "macro_recall"}
FROZEN_TASKS = {**TASKS, "emotion": "macro_f1", "question": "accuracy"}
ROWS = {"topic": 1_200, "sentiment": 2_400}
DEV_ROWS, TEST_ROWS = 300, 2_000
ALL = 10**6
SEEDS = 3
ON_SOME_ROWS = ["--epochs", "2", "--class-weight", "balanced"]
ON_ALL_ROWS = ["--epochs", "2", "--learning-rate", "5e-5", "--class-weight", "balanced", "--evaluate-every", "200"]
WORDS = {
    "together": "both tasks, from random weights",
    "topic": "topic alone, from random weights",
    "sentiment": "sentiment alone, from random weights",
    "shipped-together": "both tasks, from the shipped encoder",
    "shipped-topic": "topic alone, from the shipped encoder",
    "shipped-sentiment": "sentiment alone, from the shipped encoder",
    "tfidf": "TF-IDF + logistic regression",
    "shipped-all": "both tasks, from the shipped encoder",
    "frozen": "shipped encoder, frozen + logistic regression",
    "frozen-minilm": "all-MiniLM-L6-v2, frozen + logistic regression",
    "tfidf-all": "TF-IDF + logistic regression",
}
ON_ALL = ("shipped-all", "frozen", "frozen-minilm", "tfidf-all")


def part_of(data: Path, task: str, part: str, rows: int, seed: int = 0) -> Path:
    """A random part of a file, the same for a seed, as a file of its own."""
    source, target = data / task / f"{part}.csv", RUNS / f"{task}-{part}-{rows}-{seed}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open(encoding="utf-8", newline="") as stream:
        header, *lines = csv.reader(stream)
    chosen = random.Random(seed).sample(lines, min(rows, len(lines)))
    with atomic_file(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *chosen])
    return target


def train(data: Path, system: str, seed: int) -> dict[str, object]:
    """Train one or both tasks with task2.py (going on where it was stopped) and test it."""
    task = system.removeprefix("shipped-")
    tasks = [task] if task in TASKS else list(TASKS)
    rows = dict.fromkeys(TASKS, ALL) if system in ON_ALL else ROWS
    options = ON_ALL_ROWS if system in ON_ALL else ON_SOME_ROWS
    options = options if system.startswith("shipped") else ["--from-scratch", *options]
    output = RUNS / f"{system}-{seed}"
    files = [str(part_of(data, task, "train", rows[task], seed)) for task in tasks]
    dev = [str(part_of(data, task, "dev", ALL if system in ON_ALL else DEV_ROWS)) for task in tasks]
    arguments = [*files, "--dev", *dev, *options, "--seed", str(seed)]
    metrics = trained(task2.main, arguments, output, "metrics.json")
    model = MultiTaskModel.from_pretrained(output)
    test = {}
    for task in tasks:
        asked = read_labelled_rows([part_of(data, task, "test", ALL if system in ON_ALL else TEST_ROWS)])
        labelled = model.dataset(asked)
        test |= evaluate_tasks(model, labelled)
    return {
        "training": " ".join(options),
        "rows": {task: count_rows(data, task, rows[task]) for task in tasks},
        "seconds": metrics["seconds"],
        "best": metrics["best"],
        "test": test,
    }


def count_rows(data: Path, task: str, limit: int) -> int:
    """How many training rows of a task there are, up to a limit."""
    return len(read_labelled_rows([part_of(data, task, "train", limit)]).texts)


def classify(data: Path, system: str) -> dict[str, object]:
    """What needs no training of an encoder: a bag of words, or logistic regression on embeddings."""
    limits = ROWS if system == "tfidf" else dict.fromkeys(FROZEN_TASKS, ALL)
    rows, test = {}, {}
    if system.startswith("frozen"):
        encoder = SentenceEncoder.from_pretrained(minilm_folder() if system == "frozen-minilm" else SHIPPED)
        features = EmbeddingFeatures(encoder)
    for task in FROZEN_TASKS if system.startswith("frozen") else TASKS:
        learned = read_labelled_rows([part_of(data, task, "train", limits[task])])
        asked = read_labelled_rows([part_of(data, task, "test", TEST_ROWS if system == "tfidf" else ALL)])
        rows[task] = len(learned.texts)
        test[task] = linear_classifier(
            features if system.startswith("frozen") else word_features(), learned, asked, task
        )
    return {"rows": rows, "test": test}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("systems", nargs="+", choices=list(WORDS), metavar="system")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings of the first systems (default: 3)")
    arguments = parser.parse_args()
    for system in arguments.systems:
        trains = not system.startswith(("tfidf", "frozen"))
        for seed in range(arguments.seeds if trains and system not in ON_ALL else 1):
            path = RESULTS / "multitask" / f"{system}-{seed}.json"
            if not path.is_file():
                print(f"\n{system}, seed {seed}: {WORDS[system]}", flush=True)
                result = train(arguments.data, system, seed) if trains else classify(arguments.data, system)
                record(path, {"system": WORDS[system], "seed": seed, **result})


if __name__ == "__main__":
    main()
