"""A label is added to a model that has learned others: what becomes of these, with their rows there again or not?

    python -m benchmarks.growing DATA    train and test; a result that is there is kept

DATA is the folder with `topic/`. Each of its four labels is left out once. A model learns the others from their rows
among 1,000, from the shipped encoder; then its head grows, and it learns the new label's rows in the ways below. All
with the defaults of `task2.py train` and seed 0: a tenth of the rows, the same in all ways, is held out to choose the
best model by, and with new rows alone these are all of the new label, as they would be for a user. 2,000 test rows.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed

from benchmarks.multitask import TEST_ROWS, part_of
from benchmarks.record import RESULTS, command_line, record
from common.config import MultiTaskConfig
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.multitask import MultiTaskTrainer
from common.rows import LabelledRows, read_labelled_rows, training_tasks

ROWS, HELD_OUT, SEED = 1_000, 10, 0
LABELS = ("Business", "Sci/Tech", "Sports", "World")
OLD, NEW, ALL = "the old labels", "the new label", "all labels"
BEFORE, AT_ONCE = "before", "all labels at once"
# Which rows the grown model learns from, and how.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "old and new rows": (ALL, {}),
    "new rows alone": (NEW, {}),
    "new rows alone, encoder frozen": (NEW, {"freeze": ("encoder",)}),
}


class Topic:
    """The rows of AG News, with one label that is new."""

    def __init__(self, data: Path, new: str) -> None:
        self.new = new
        rows, self.test = (
            read_labelled_rows([part_of(data, "topic", part, size)])
            for part, size in (("train", ROWS), ("test", TEST_ROWS))
        )
        self.parts = rows.hold_out(HELD_OUT, SEED)  # to train on, and to choose by

    def of(self, rows: LabelledRows, which: str) -> list[int]:
        """The numbers of the rows with the old labels, the new one, or any."""
        wanted = {OLD: (False,), NEW: (True,), ALL: (False, True)}[which]
        return [i for i, label in enumerate(rows.labels["topic"]) if (label == self.new) in wanted]

    def learn(self, model: MultiTaskModel, which: str, **settings: Any) -> tuple[MultiTaskModel, dict[str, Any]]:
        """Train on the rows of some labels; gives the best model, and what it reaches."""
        data, dev = (model.dataset(rows.pick(self.of(rows, which))) for rows in self.parts)
        with tempfile.TemporaryDirectory() as folder:
            trainer = MultiTaskTrainer(model, data, MultiTaskConfig(**settings), output=folder, dev=dev)
            best = trainer.fit()
        steps = {"rows": len(data), "steps": trainer.total_steps, "best_step": trainer.progress.best["step"]}
        return best, {**self.right(best), **steps}

    def right(self, model: MultiTaskModel) -> dict[str, float]:
        """The share of the test rows of the old labels, of the new one, and of all that a model gets right."""
        found = [result["topic"]["label"] for result in model.predict(self.test.texts)]
        right = np.equal(found, self.test.labels["topic"])
        return {name: float(right[self.of(self.test, name)].mean()) for name in (OLD, NEW, ALL)}

    def new_model(self, which: str) -> MultiTaskModel:
        """A model of the shipped encoder that has yet to learn some labels."""
        rows = self.parts[0]
        set_seed(SEED)
        return MultiTaskModel(SentenceEncoder.from_pretrained(), training_tasks(rows.pick(self.of(rows, which))))


def result_path(name: str) -> Path:
    return RESULTS / "growing" / f"{name.replace('/', '-')}.json"


def measure(data: Path, new: str, at_once: MultiTaskModel) -> dict[str, Any]:
    """All ways to add a label, from one and the same model of the others; beside one that learned all at once."""
    topic = Topic(data, new)
    first, before = topic.learn(topic.new_model(OLD), OLD)
    reached = {BEFORE: before}
    for words, (which, settings) in WAYS.items():
        print(f"\nnew: {new}; {words}", flush=True)
        set_seed(SEED)
        grown = copy.deepcopy(first).with_tasks({"topic": [new]})
        _, reached[words] = topic.learn(grown, which, **settings)
        print(reached[words], flush=True)
    reached[AT_ONCE] = topic.right(at_once)
    return {"new": new, "reached": reached}


def main() -> None:
    parser = command_line(__doc__)
    arguments = parser.parse_args()
    missing = [new for new in LABELS if not result_path(new).is_file()]
    if missing:
        topic = Topic(arguments.data, missing[0])
        at_once, _ = topic.learn(topic.new_model(ALL), ALL)
    for new in missing:
        record(result_path(new), measure(arguments.data, new, at_once))


if __name__ == "__main__":
    main()
