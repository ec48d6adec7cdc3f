"""Layer-wise rates on real data: what does each strategy reach, at its best base rate, and what does it forget?

    python -m benchmarks.strategies DATA STRATEGY [STRATEGY ...]    train and test; a result that is there is kept

DATA is the folder with `topic/`, `sentiment/` and `sts/`. Every strategy trains on the same fixed random rows with
each of three base rates; the one with the best dev score is then trained with two more seeds. So no strategy is judged
by a rate that suits another. Tests are a fixed random 2,000 rows of each task, and stsb_test for what is forgotten.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.multitask import DEV_ROWS, TASKS, TEST_ROWS, part_of
from benchmarks.record import RESULTS, record
from benchmarks.sts import minilm_folder
from common.cli import ROOT
from common.comparison import Setting, compare_strategies
from common.config import MultiTaskConfig
from common.rows import LabelledRows, read_labelled_rows, read_scored_pairs

RUNS = ROOT / "runs" / "strategies"
STRATEGIES = ("uniform", "layerwise", "decay:0.95", "decay:0.9", "decay:0.75", "gradual", "gradual+layerwise")
BASE_RATES = (3e-5, 1e-4, 3e-4)
SEEDS = 3
ROWS = {"topic": 600, "sentiment": 1_200}
CONFIG = {"epochs": 2, "batch_size": 32, "evaluate_every": 29}
STAGES = ("embeddings", "layer 1", "layer 3", "layer 6", "topic head 3", "sentiment head 3")


def rows_of(data: Path, part: str) -> LabelledRows:
    """The rows of both tasks that every training here is given: "train", "dev" or "test"."""
    limits = {"train": ROWS, "dev": dict.fromkeys(TASKS, DEV_ROWS), "test": dict.fromkeys(TASKS, TEST_ROWS)}
    return read_labelled_rows([part_of(data, task, part, limits[part][task]) for task in TASKS])


def run_strategy(data: Path, encoder: str, strategy: str, rate: float, seed: int) -> dict[str, Any]:
    """One training, with the program's own `task4.py compare`."""
    train, dev, test = (rows_of(data, part) for part in ("train", "dev", "test"))
    pairs = read_scored_pairs(data / "sts" / "stsb_test.csv")
    config = MultiTaskConfig(**CONFIG, learning_rate=rate)
    setting = Setting(minilm_folder() if encoder == "minilm" else None, train, dev, test, pairs, config)
    folder = RUNS / encoder / f"{rate:g}"
    return asdict(compare_strategies(setting, [strategy], [seed], folder)[0])


def result_path(encoder: str, strategy: str, rate: float, seed: int) -> Path:
    return RESULTS / "strategies" / f"{encoder}-{strategy.replace(':', '-')}-{rate:g}-{seed}.json"


def recorded(encoder: str, strategy: str, rate: float, seed: int) -> dict[str, Any] | None:
    """A training's outcome, if it is there."""
    path = result_path(encoder, strategy, rate, seed)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def dev_score(outcome: dict[str, Any]) -> float:
    """Macro F1 averaged over the tasks, of the model that is kept."""
    return max(score for _, score in outcome["dev_scores"])


def best_rate(encoder: str, strategy: str) -> float:
    """The base rate with the highest dev score, of those whose first training is there."""
    scores = {rate: dev_score(found) for rate in BASE_RATES if (found := recorded(encoder, strategy, rate, 0))}
    return max(scores, key=scores.get)


def train(data: Path, encoder: str, strategy: str) -> None:
    """The sweep over base rates, then the other seeds at the best of them."""
    runs = [(rate, 0) for rate in BASE_RATES] + [(None, seed) for seed in range(1, SEEDS)]
    for rate, seed in runs:
        rate = rate or best_rate(encoder, strategy)
        if recorded(encoder, strategy, rate, seed) is None:
            print(f"\n{strategy} from {encoder}, base rate {rate:g}, seed {seed}", flush=True)
            outcome = run_strategy(data, encoder, strategy, rate, seed)
            about = {"encoder": encoder, "learning_rate": rate, "rows": ROWS, "training": CONFIG}
            record(result_path(encoder, strategy, rate, seed), {**about, **outcome})


def at_best_rate(encoder: str) -> dict[str, tuple[float, list[dict[str, Any]]]]:
    """For each strategy: its best base rate, and what was recorded at it."""
    trained = [strategy for strategy in STRATEGIES if any(recorded(encoder, strategy, r, 0) for r in BASE_RATES)]
    found = {}
    for strategy in trained:
        rate = best_rate(encoder, strategy)
        outcomes = [recorded(encoder, strategy, rate, seed) for seed in range(SEEDS)]
        found[strategy] = (rate, [outcome for outcome in outcomes if outcome])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("strategies", nargs="+", choices=STRATEGIES, metavar="strategy")
    parser.add_argument("--encoder", choices=["shipped", "minilm"], default="shipped")
    arguments = parser.parse_args()
    for strategy in arguments.strategies:
        train(arguments.data, arguments.encoder, strategy)


if __name__ == "__main__":
    main()
