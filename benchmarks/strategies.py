"""Layer-wise rates on real data: what does each strategy reach, at its best base rate, and what does it forget?

    python -m benchmarks.strategies DATA STRATEGY [STRATEGY ...]    train and test; a result that is there is kept
    python -m benchmarks.strategies DATA STRATEGY --also RATE       the other seeds at this base rate as well

DATA is the folder with `topic/`, `sentiment/` and `sts/`. Every strategy trains on the same random rows with each
of three base rates; the one with the best dev score is then trained with two more seeds, each with another sample of
the rows. So no strategy is judged by a rate that suits another. Tests are a fixed random 2,000 rows of each task, and
stsb_test for what is forgotten.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.multitask import DEV_ROWS, TASKS, TEST_ROWS, part_of
from benchmarks.record import RESULTS, command_line, record
from common.cli import ROOT
from common.comparison import Setting, compare_strategies
from common.config import MultiTaskConfig
from common.rows import LabelledRows, read_labelled_rows, read_scored_pairs

RUNS = ROOT / "runs" / "strategies"
STRATEGIES = ("uniform", "layerwise", "gradual", "decay:0.9")
BASE_RATES = (2e-5, 5e-5, 1e-4)
SEEDS = 3
ROWS = {"topic": 600, "sentiment": 1_200}
CONFIG = {"epochs": 2, "batch_size": 32, "evaluate_every": 29}
STAGES = ("embeddings", "layer 1", "layer 3", "layer 6", "topic head 3", "sentiment head 3")


def rows_of(data: Path, part: str, seed: int = 0) -> LabelledRows:
    """The rows of both tasks that every training of a seed is given: "train", "dev" or "test"."""
    limits = {"train": ROWS, "dev": dict.fromkeys(TASKS, DEV_ROWS), "test": dict.fromkeys(TASKS, TEST_ROWS)}
    return read_labelled_rows(
        [part_of(data, task, part, limits[part][task], seed if part == "train" else 0) for task in TASKS]
    )


def run_strategy(data: Path, strategy: str, rate: float, seed: int) -> dict[str, Any]:
    """One training, with the program's own `task4.py compare`."""
    train, dev, test = (rows_of(data, part, seed) for part in ("train", "dev", "test"))
    pairs = read_scored_pairs(data / "sts" / "stsb_test.csv")
    config = MultiTaskConfig(**CONFIG, learning_rate=rate)
    setting = Setting(None, train, dev, test, pairs, config)
    return asdict(compare_strategies(setting, [strategy], [seed], RUNS / f"{rate:g}")[0])


def result_path(strategy: str, rate: float, seed: int) -> Path:
    return RESULTS / "strategies" / f"{strategy.replace(':', '-')}-{rate:g}-{seed}.json"


def recorded(strategy: str, rate: float, seed: int) -> dict[str, Any] | None:
    """A training's outcome, if it is there."""
    path = result_path(strategy, rate, seed)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def of_seeds(strategy: str, rate: float) -> list[dict[str, Any]]:
    """What was recorded at a base rate, of all seeds."""
    return [found for seed in range(SEEDS) if (found := recorded(strategy, rate, seed))]


def dev_score(outcome: dict[str, Any]) -> float:
    """Macro F1 averaged over the tasks, of the model that is kept."""
    return max(score for _, score in outcome["dev_scores"])


def best_rate(strategy: str) -> float:
    """The base rate with the highest dev score, of those whose first training is there."""
    scores = {rate: dev_score(found) for rate in BASE_RATES if (found := recorded(strategy, rate, 0))}
    return max(scores, key=scores.get)


def train(data: Path, strategy: str, also: float | None) -> None:
    """The sweep over base rates, then the other seeds at the best of them, and at one more."""
    chosen = [None] if also is None else [None, also]
    runs = [(rate, 0) for rate in BASE_RATES] + [(rate, seed) for rate in chosen for seed in range(1, SEEDS)]
    for rate, seed in runs:
        rate = rate or best_rate(strategy)
        if recorded(strategy, rate, seed) is None:
            print(f"\n{strategy}, base rate {rate:g}, seed {seed}", flush=True)
            outcome = run_strategy(data, strategy, rate, seed)
            about = {"learning_rate": rate, "rows": ROWS, "training": CONFIG}
            record(result_path(strategy, rate, seed), {**about, **outcome})


def at_best_rate() -> dict[str, tuple[float, list[dict[str, Any]]]]:
    """For each strategy: its best base rate, and what was recorded at it."""
    trained = [strategy for strategy in STRATEGIES if any(recorded(strategy, r, 0) for r in BASE_RATES)]
    return {strategy: (rate := best_rate(strategy), of_seeds(strategy, rate)) for strategy in trained}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("strategies", nargs="+", choices=STRATEGIES, metavar="strategy")
    parser.add_argument("--also", type=float, choices=BASE_RATES, metavar="RATE", help="the other seeds at it as well")
    arguments = parser.parse_args()
    for strategy in arguments.strategies:
        train(arguments.data, strategy, arguments.also)


if __name__ == "__main__":
    main()
