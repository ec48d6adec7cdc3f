"""The tables on classification: the sample data, defaults, topic and sentiment together, alone, and frozen."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from benchmarks import defaults, multitask
from benchmarks.multitask import FROZEN_TASKS, SEEDS, TASKS
from benchmarks.record import RESULTS
from benchmarks.table import Table, difference, load, load_all
from common.report import mean_and_spread

# Records of the encoders that shipped before the present one, and of the heads before those of today.
EARLIER_MULTITASK = {
    "earlier-heads-all": "both tasks, from the shipped encoder, with the earlier heads",
    "third-all": "both tasks, from the third encoder",
    "frozen-third": "third encoder, frozen + logistic regression",
    "first-all": "both tasks, from the first encoder",
    "frozen-second": "second encoder, frozen + logistic regression",
    "frozen-first": "first encoder, frozen + logistic regression",
}
ON_ALL = (
    *("shipped-all", "earlier-heads-all", "third-all", "first-all"),
    *("frozen", "frozen-third", "frozen-second", "frozen-first", "frozen-minilm", "tfidf-all"),
)
ON_SOME = [name for name in (*multitask.WORDS, *EARLIER_MULTITASK) if name not in ON_ALL]


def default_choices() -> Table:
    """What each choice of rate and length reaches on the test rows."""
    rows = []
    for size in (100, 1_000, 5_000):
        for choice in defaults.CHOICES:
            paths = [defaults.result_path(task, size, choice) for task in defaults.TASKS]
            found = {record["task"]: record for record in load_all(paths)}
            cells = [f"{found[t]['test'][of]:.3f}" if t in found else "" for t, of in defaults.TASKS.items()]
            if found:
                rows.append([f"{size:,}", choice, *cells])
    return Table(["rows", "choice", *(f"{task} {of.replace('_', ' ')}" for task, of in defaults.TASKS.items())], rows)


def samples() -> Table:
    words = {
        "bag of words": "TF-IDF of words (1, 2) + logistic regression",
        "shipped encoder, frozen": "the shipped encoder, frozen + logistic regression",
        "task2.py --from-scratch": "`python task2.py --from-scratch`",
        "task2.py": "**`python task2.py`**, from the shipped encoder",
    }
    rows = [["guessing", "0.200", "0.333", ""]]
    for name, shown in words.items():
        found = load("samples")[name]
        minutes = f"{found['seconds'] / 60:.0f}" if "seconds" in found else ""
        rows.append([shown, *(f"{found['test'][task]['accuracy']:.3f}" for task in TASKS), minutes])
    return Table(["system", "topic accuracy", "sentiment accuracy", "minutes"], rows)


def classification(systems: Sequence[str]) -> Table:
    rows = []
    words = {**multitask.WORDS, **EARLIER_MULTITASK}
    for system in systems:
        found = load_all(sorted((RESULTS / "multitask").glob(f"{system}-[0-9]*.json")))
        if not found:
            continue
        cells = [
            mean_and_spread([f["test"][task][measure] for f in found]) if task in found[0]["test"] else ""
            for task, measure in TASKS.items()
        ]
        count = " + ".join(f"{found[0]['rows'][task]:,}" for task in TASKS if task in found[0]["rows"])
        minutes = f"{np.mean([f['seconds'] for f in found]) / 60:.0f}" if "seconds" in found[0] else ""
        rows.append([words[system], len(found), *cells, count, minutes])
    return Table(["system", "seeds", "topic accuracy", "sentiment macro recall", "training rows", "minutes"], rows)


def short_all_rows() -> Table:
    columns = ["system", "topic accuracy", "sentiment macro recall"]
    return classification(ON_ALL).pick(columns, lambda row: row[0] not in EARLIER_MULTITASK.values())


def transfer() -> Table:
    """What logistic regression on frozen embeddings reaches, on all rows of each task."""
    rows = []
    words = {**multitask.WORDS, **EARLIER_MULTITASK}
    for system in ("frozen", "frozen-third", "frozen-minilm"):
        found = load(f"multitask/{system}-0")["test"]
        rows.append([words[system], *(f"{found[task][of]:.3f}" for task, of in FROZEN_TASKS.items())])
    return Table(["system", *(f"{task} {of.replace('_', ' ')}" for task, of in FROZEN_TASKS.items())], rows)


def classification_interval() -> Table:
    """The sampling error of the test rows: a recall is a share of its class's rows."""
    rows = []
    for task, measure in TASKS.items():
        found = load("multitask/shipped-all-0")["test"][task]
        confusion = np.array(found["confusion"])
        count = confusion.sum(axis=1)  # (classes,)
        recall = np.diag(confusion) / count
        weight = count / count.sum() if measure == "accuracy" else np.full(len(count), 1 / len(count))
        margin = norm.ppf(0.975) * np.sqrt((weight**2 * recall * (1 - recall) / count).sum())
        low, high = found[measure] - margin, found[measure] + margin
        name = f"{task} {measure.replace('_', ' ')}"
        rows.append([name, f"{count.sum():,}", f"{found[measure]:.3f}", f"{low:.3f} to {high:.3f}"])
    return Table([multitask.WORDS["shipped-all"], "test rows", "result", "95% interval"], rows)


def sharing() -> Table:
    cells = []
    for task, measure in TASKS.items():
        together, alone = (
            [load(f"multitask/shipped-{system}-{seed}")["test"][task][measure] for seed in range(SEEDS)]
            for system in ("together", task)
        )
        cells.append(difference(task, together, alone))
    header = [f"{task} {measure.replace('_', ' ')}" for task, measure in TASKS.items()]
    return Table(["both tasks less one alone", "seeds", *header], [["from the shipped encoder", SEEDS, *cells]])
