"""How hard is the sample data? `python task2.py`, bare and from scratch, beside logistic regression on the same rows.

python -m benchmarks.samples
"""

import json

import task2
from benchmarks.linear import MEASURES, EmbeddingFeatures, linear_classifier, word_features
from benchmarks.record import RESULTS, command_line, record
from common.encoder import SentenceEncoder
from common.rows import SAMPLES, read_labelled_rows


def run_task2(*arguments: str) -> dict[str, object]:
    """What `python task2.py` reaches on the test rows, how it was trained, and how long it took."""
    task2.main(arguments)
    metrics = json.loads((task2.RUN / "metrics.json").read_text())
    test = {task: {name: result[name] for name in ("rows", *MEASURES)} for task, result in metrics["test"].items()}
    return {"test": test, "settings": metrics["settings"], "seconds": metrics["seconds"]}


def main() -> None:
    command_line(__doc__, data=False).parse_args()
    learned, asked = (read_labelled_rows([SAMPLES / f"{part}.csv"]) for part in ("train", "test"))
    frozen = EmbeddingFeatures(SentenceEncoder.from_pretrained())
    results: dict[str, dict[str, object]] = {
        name: {"test": {task: linear_classifier(features, learned, asked, task) for task in learned.labels}}
        for name, features in {"bag of words": word_features(), "shipped encoder, frozen": frozen}.items()
    }
    results["task2.py --from-scratch"] = run_task2("--from-scratch")
    results["task2.py"] = run_task2()
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{task} {row['accuracy']:.3f}" for task, row in result["test"].items()))
    record(RESULTS / "samples.json", results)


if __name__ == "__main__":
    main()
