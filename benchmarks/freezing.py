"""What does each freezing scenario cost, reach and forget? Topic and sentiment, from the shipped encoder.

    python -m benchmarks.freezing DATA SIZE [SIZE ...]    train and measure; a result that is there is kept
    python -m benchmarks.freezing DATA table              print what was recorded as the README's tables

DATA is the folder with `topic/`, `sentiment/` and `sts/`. A SIZE is the number of training rows, a third of them topic
and two thirds sentiment; tests are a fixed random 2,000 rows of each task, and all of stsb_test. Each training runs in
a process of its own, so that its peak memory is its own. "add" is a sequence: sentiment is learned first, then topic
is added with what the scenario names frozen (and without sentiment's labels).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from accelerate.utils import set_seed

from benchmarks.multitask import TASKS, TEST_ROWS, part_of
from benchmarks.record import RESULTS, record
from common.data import LabelledRows, MultiTaskDataset, read_labelled_rows, read_scored_pairs, training_tasks
from common.devices import resolve_precision
from common.encoder import SentenceEncoder
from common.freezing import frozen_parts
from common.heads import MultiTaskModel
from common.losses import complete_weights
from common.metrics import evaluate_tasks, pair_similarities, spearman
from common.report import mean_and_spread
from common.trainer import MultiTaskTrainer, TrainingConfig

SCENARIOS = {
    "nothing": [],
    "the lower half": ["stages:0-3"],
    "topic's head": ["head:topic"],
    "sentiment's head": ["head:sentiment"],
    "the encoder": ["encoder"],
}
ADDED = {
    "add: sentiment's head": ["head:sentiment"],
    "add: its head and the lower half": ["head:sentiment", "stages:0-3"],
    "add: its head and the encoder": ["head:sentiment", "encoder"],
}
SEEDS = (0, 1, 2)
EPOCHS = {100: 10, 1_000: 4, 10_000: 2}
RATE, HEADS_RATE = 5e-5, 1e-3  # heads alone need a higher one


def learn(
    model: MultiTaskModel, rows: LabelledRows, words: list[str], size: int, seed: int
) -> tuple[MultiTaskModel, dict[str, float]]:
    """Train with some parts frozen; the model, and what the training cost."""
    frozen = frozen_parts(model, words)
    alone = set(model.encoder.parts()) <= set(frozen)
    config = TrainingConfig(epochs=EPOCHS[size], learning_rate=HEADS_RATE if alone else RATE, seed=seed)
    data = MultiTaskDataset(rows, model.tasks, model.encoder.tokenizer)
    with peak_memory() as seen, tempfile.TemporaryDirectory() as folder:
        weights = complete_weights([task for task in model.tasks if data.labelled(task)], {})
        started = time.monotonic()
        trainer = MultiTaskTrainer(model, data, config, folder, weights=weights, frozen=frozen)
        progress = trainer.train()
        seconds = time.monotonic() - started
    state = trainer.optimizer.optimizer.state.values()
    return model, {
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "learning_rate": config.learning_rate,
        "milliseconds_per_step": 1000 * progress.seconds / progress.step,
        "seconds": seconds,  # a frozen encoder's one pass over the data included
        "added_megabytes": (max(seen) - seen[0]) / 1e6,
        "optimizer_megabytes": sum(t.nbytes for values in state for t in values.values()) / 1e6,
    }


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The process's memory in bytes: first at the start, then twenty times a second."""
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def training_rows(data: Path, size: int, tasks: list[str]) -> LabelledRows:
    """A fixed random part of the training rows of these tasks."""
    rows = {"topic": size // 3, "sentiment": size - size // 3}
    return read_labelled_rows([part_of(data, task, "train", rows[task]) for task in tasks])


def measure(model: MultiTaskModel, data: Path) -> dict[str, float]:
    """Each task's test result, and Spearman on stsb_test."""
    precision = resolve_precision("auto", model.encoder.device)
    results = {}
    for task, name in TASKS.items():
        if task in model.tasks:
            rows = read_labelled_rows([part_of(data, task, "test", TEST_ROWS)])
            asked = MultiTaskDataset(rows, model.tasks, model.encoder.tokenizer)
            results[task] = evaluate_tasks(model, asked, precision=precision)[task][name]
    return {**results, "stsb_test": similarity(model.encoder, data)}


def similarity(encoder: SentenceEncoder, data: Path) -> float:
    pairs = read_scored_pairs(data / "sts" / "stsb_test.csv")
    precision = resolve_precision("auto", encoder.device)
    return spearman(pair_similarities(encoder, *zip(*pairs.rows, strict=True), precision=precision), pairs.scores)


def run_scenario(data: Path, scenario: str, size: int, seed: int) -> dict[str, object]:
    """One scenario from the shipped encoder, or from a model that has learned sentiment."""
    set_seed(seed)
    encoder = SentenceEncoder.from_pretrained()
    if scenario not in ADDED:
        rows = training_rows(data, size, list(TASKS))
        model, cost = learn(MultiTaskModel(encoder, training_tasks(rows)), rows, SCENARIOS[scenario], size, seed)
        return {"cost": cost, "reached": measure(model, data)}
    first = training_rows(data, size, ["sentiment"])
    model, _ = learn(MultiTaskModel(encoder, training_tasks(first)), first, [], size, seed)
    before = measure(model, data)
    second = training_rows(data, size, ["topic"])
    model, cost = learn(model.with_tasks(training_tasks(second)), second, ADDED[scenario], size, seed)
    return {"before": before, "cost": cost, "reached": measure(model, data)}


def result_path(scenario: str, size: int, seed: int) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in scenario)
    return RESULTS / "freezing" / f"{name}-{size}-{seed}.json"


def print_table() -> None:
    """The recorded results as the README shows them: means over the seeds, and their standard deviations."""
    costs = ("trainable", "milliseconds_per_step", "added_megabytes", "optimizer_megabytes")
    header = ["frozen", "rows", "seeds", "topic", "sentiment", "stsb_test", "sentiment before"]
    header += ["trainable (million)", "ms a step", "memory it added (MB)", "optimizer (MB)"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for size in EPOCHS:
        for scenario in (*SCENARIOS, *ADDED):
            paths = [result_path(scenario, size, seed) for seed in SEEDS]
            results = [json.loads(path.read_text()) for path in paths if path.is_file()]
            if results:
                reached = [mean_and_spread([r["reached"][name] for r in results]) for name in (*TASKS, "stsb_test")]
                before = mean_and_spread([r["before"]["sentiment"] for r in results]) if scenario in ADDED else ""
                means = [sum(r["cost"][name] for r in results) / len(results) for name in costs]
                spent = [f"{means[0] / 1e6:.1f}", *(f"{mean:,.0f}" for mean in means[1:])]
                if scenario in ADDED:
                    spent[2] = ""  # the first training's memory is still held by the process
                print(f"| {scenario} | {size:,} | {len(results)} | " + " | ".join([*reached, before, *spent]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sizes", nargs="*", metavar="size", help=f"{', '.join(map(str, EPOCHS))}, or table")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many (default: %(default)s)")
    parser.add_argument("--one", nargs=3, metavar=("SCENARIO", "SIZE", "SEED"), help="this training alone")
    arguments = parser.parse_args()
    if arguments.one:
        scenario, size, seed = arguments.one[0], int(arguments.one[1]), int(arguments.one[2])
        about = {"scenario": scenario, "rows": size, "seed": seed}
        record(result_path(scenario, size, seed), {**about, **run_scenario(arguments.data, scenario, size, seed)})
        return
    for size in arguments.sizes:
        if size not in (*map(str, EPOCHS), "table"):
            parser.error(f"size {size}: there are {', '.join(map(str, EPOCHS))}, and table")
        if size == "table":
            print_table()
            continue
        for seed in SEEDS[: arguments.seeds]:
            for scenario in (*SCENARIOS, *ADDED):
                if not result_path(scenario, int(size), seed).is_file():
                    print(f"\nfrozen: {scenario}; {size} rows, seed {seed}", flush=True)
                    one = [sys.executable, "-m", "benchmarks.freezing", str(arguments.data)]
                    subprocess.run([*one, "--one", scenario, size, str(seed)], check=True)


if __name__ == "__main__":
    main()
