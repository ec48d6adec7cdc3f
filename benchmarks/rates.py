"""What does `python task4.py`, bare, reach? One rate for all stages beside layer-wise rates, on the sample data.

python -m benchmarks.rates    train, measure, record
"""

import csv

import task4
from benchmarks.record import RESULTS, command_line, record

PATH = RESULTS / "rates.json"


def main() -> None:
    command_line(__doc__, data=False).parse_args()
    task4.main([])
    with (task4.RUN / "comparison.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    record(PATH, {"rows": rows})


if __name__ == "__main__":
    main()
