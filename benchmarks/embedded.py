"""How hard is the embedded data? `python task2.py`, bare, beside a bag of words on the same rows.

python -m benchmarks.embedded
"""

import json

import task2
from benchmarks.bag_of_words import bag_of_words
from benchmarks.record import RESULTS, record
from common.data import SAMPLES, read_labelled_rows


def main() -> None:
    learned, asked = (read_labelled_rows([SAMPLES / f"{part}.csv"]) for part in ("train", "test"))
    words = {task: bag_of_words(learned, asked, task) for task in learned.labels}
    task2.main([])
    metrics = json.loads((task2.RUN / "metrics.json").read_text())
    trained = {
        task: {name: result[name] for name in ("rows", "accuracy", "macro_recall", "macro_f1")}
        for task, result in metrics["test"].items()
    }
    for task in words:
        print(f"{task}: bag of words {words[task]['accuracy']:.3f}, task2.py {trained[task]['accuracy']:.3f}")
    settings = {"settings": metrics["settings"], "seconds": metrics["seconds"]}
    record(RESULTS / "embedded.json", {"bag_of_words": words, "task2": trained, **settings})


if __name__ == "__main__":
    main()
