"""What does `--keep-similarity` keep, and what does it cost the tasks?

    python -m benchmarks.keeping DATA WEIGHT [WEIGHT ...]    train and test; a result that is there is kept

The trainings of `benchmarks/strategies.py` at one rate, 1e-4, from the shipped encoder, with each of the weights.
"""

import argparse
from pathlib import Path

from benchmarks.record import RESULTS, record
from benchmarks.strategies import run_strategy

RATE = 1e-4


def result_path(weight: float, seed: int) -> Path:
    return RESULTS / "keeping" / f"{weight:g}-{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", nargs="+", type=float)
    parser.add_argument("--seeds", type=int, default=1, help="trainings with each weight (default: 1)")
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for weight in arguments.weights:
            if not result_path(weight, seed).is_file():
                print(f"\nweight {weight:g}, seed {seed}", flush=True)
                found = run_strategy(arguments.data, "shipped", "uniform", RATE, seed, keep_similarity=weight)
                record(result_path(weight, seed), {"weight": weight, "learning_rate": RATE, **found})


if __name__ == "__main__":
    main()
