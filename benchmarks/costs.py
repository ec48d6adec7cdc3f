"""What does each freezing scenario cost? Time a step, memory, the optimizer's memory, trainable parameters.

    python -m benchmarks.costs DATA    measure, in turns

DATA is the folder with `topic/` and `sentiment/`. Every round trains each scenario for a dozen steps of 32 rows, the
same ones, in a process of its own, so that its peak memory is its own. A step is timed from its gradient to the next
one's, the update and the data between them included; the first steps warm up and are not counted. Medians over the
rounds are quoted. Let nothing else run meanwhile.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from accelerate.utils import set_seed

from benchmarks.freezing import OUTSIDE, SCENARIOS, training_rows
from benchmarks.record import RESULTS, command_line, record
from common.config import MultiTaskConfig
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.multitask import MultiTaskObjective
from common.rows import training_tasks
from common.train import Trainer

PATH = RESULTS / "costs.json"
MEASURED = [scenario for scenario in SCENARIOS if scenario != OUTSIDE]  # with all frozen there is no step
ROWS, STEPS, WARM_UP, ROUNDS = 320, 12, 4, 3


class TimedObjective(MultiTaskObjective):
    """Keeps the moment at which each step has its gradient, and the seconds that went before the first."""

    def prepare(self, folder: Path, **options: Any) -> None:
        started = time.perf_counter()
        super().prepare(folder, **options)
        self.seconds_before = time.perf_counter() - started

    def traces(self) -> dict[str, float]:
        return {"moment": time.perf_counter()}


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The process's memory in bytes: first at the start, then a hundred times a second."""
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def measure(data: Path, scenario: str) -> dict[str, float]:
    """A dozen steps of one scenario."""
    set_seed(0)
    rows = training_rows(data, "both", ROWS, 0)
    model = MultiTaskModel(SentenceEncoder.from_pretrained(), training_tasks(rows))
    words = tuple(SCENARIOS[scenario])
    # No evaluation on the way: a checkpoint follows each.
    config = MultiTaskConfig(max_steps=STEPS, evaluate_every=STEPS, freeze=words)
    dataset = model.dataset(rows)
    with peak_memory() as seen, tempfile.TemporaryDirectory() as folder:
        objective = TimedObjective(model, dataset, config)
        trainer = Trainer(objective, config, folder)
        seconds = np.diff(trainer.train().traces["moment"])
    state = trainer.optimizer.state.values()
    return {
        "milliseconds_per_step": 1000 * float(np.median(seconds[WARM_UP - 1 :])),
        "milliseconds_per_text_before": 1000 * objective.seconds_before / ROWS,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "added_megabytes": (max(seen) - seen[0]) / 1e6,
        "optimizer_megabytes": sum(t.nbytes for values in state for t in values.values()) / 1e6,
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--one", choices=MEASURED, help="measure this scenario once, and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.data, arguments.one)))
    else:
        rounds = {scenario: [] for scenario in MEASURED}
        for number in range(ROUNDS):
            for scenario in MEASURED:
                print(f"round {number + 1} of {ROUNDS}: {scenario}", flush=True)
                one = [sys.executable, "-m", "benchmarks.costs", str(arguments.data), "--one", scenario]
                shown = subprocess.run(one, check=True, capture_output=True, text=True).stdout
                rounds[scenario].append(json.loads(shown.splitlines()[-1]))
        medians = {
            scenario: {name: statistics.median(found[name] for found in all_found) for name in all_found[0]}
            for scenario, all_found in rounds.items()
        }
        record(PATH, {"rounds": ROUNDS, "steps": STEPS - WARM_UP, "scenarios": medians})


if __name__ == "__main__":
    main()
