"""What does `python task4.py`, bare, reach? One rate for all stages beside layer-wise rates, on the sample data.

python -m benchmarks.rates          train, measure, record
python -m benchmarks.rates table    print what was recorded as the README's table
"""

import csv
import json
import sys

import task4
from benchmarks.record import RESULTS, record
from common.report import by_strategy

PATH = RESULTS / "rates.json"
STAGES = ("embeddings", "layer 1", "layer 3", "layer 6", "topic head 3", "sentiment head 3")


def print_table() -> None:
    """The recorded results as the README shows them."""
    results = by_strategy(json.loads(PATH.read_text())["rows"])
    measures = ["topic accuracy", "sentiment accuracy", "similarity kept", *(f"moved: {stage}" for stage in STAGES)]
    print("| | " + " | ".join(results) + " |\n" + "|---" * (len(results) + 1) + "|")
    for measure in measures:
        found = [float(values[measure][0]) for values in results.values()]
        cells = [f"{100 * value:.2g}%" if measure.startswith("moved") else f"{value:.3f}" for value in found]
        print(f"| {measure} | " + " | ".join(cells) + " |")


def main() -> None:
    if sys.argv[1:] == ["table"]:
        print_table()
        return
    task4.main([])
    with (task4.RUN / "comparison.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    record(PATH, {"rows": rows})


if __name__ == "__main__":
    main()
