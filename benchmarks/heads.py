"""With the encoder frozen, which heads do best, and how fast and how long should they learn?

    python -m benchmarks.heads DATA    train and measure

DATA is the folder with `topic/` and `sentiment/`: 100 and 1,000 training rows from the shipped encoder, seed 0,
measured on 300 dev rows and 2,000 test rows of each task. Attention heads learn at each rate for each number of epochs,
linear heads are fitted, and logistic regression on the embeddings stands beside them; all with balanced classes.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed

from benchmarks.freezing import test_rows, training_rows
from benchmarks.linear import EmbeddingFeatures, linear_classifier
from benchmarks.multitask import DEV_ROWS, TASKS, part_of
from benchmarks.record import RESULTS, record
from common.config import InferenceConfig, MultiTaskConfig
from common.data import MultiTaskDataset
from common.devices import place
from common.encoder import SentenceEncoder
from common.exact import fit_linear_heads
from common.heads import MultiTaskModel
from common.metrics import evaluate_tasks
from common.multitask import MultiTaskObjective
from common.rows import LabelledRows, read_labelled_rows, training_tasks
from common.states import FrozenEncoderDataset
from common.train import Trainer

PATH = RESULTS / "heads.json"
SIZES = (100, 1_000)
RATES, EPOCHS = (3e-4, 1e-3), (4, 16)
Found = dict[str, Any]


class Comparison:
    """All heads on the same frozen encoder, whose states of what is measured are computed once."""

    def __init__(self, data: Path) -> None:
        self.data, self.encoder = data, SentenceEncoder.from_pretrained()
        self.options = place(self.encoder, InferenceConfig())
        self.tasks = training_tasks(training_rows(data, "both", max(SIZES)))
        self.rows = {
            "dev": read_labelled_rows([part_of(data, task, "dev", DEV_ROWS) for task in TASKS]),
            "test": test_rows(data, "both"),
        }
        self.asked = {part: self._with_states(rows) for part, rows in self.rows.items()}

    def _dataset(self, rows: LabelledRows) -> MultiTaskDataset:
        return MultiTaskDataset(rows, self.tasks, self.encoder.tokenizer)

    def _with_states(self, rows: LabelledRows) -> FrozenEncoderDataset:
        data = self._dataset(rows)
        store = np.empty((sum(data.lengths), self.encoder.dim), dtype=np.float32)
        return FrozenEncoderDataset(data, self.encoder, store, self.options)

    def run(self, size: int) -> Iterator[Found]:
        """What each kind of head reaches with so many training rows."""
        rows = training_rows(self.data, "both", size)
        for rate in RATES:
            for epochs in EPOCHS:
                set_seed(0)
                model = MultiTaskModel(self.encoder, self.tasks)
                settings = {"epochs": epochs, "learning_rate": rate, "freeze": ("encoder",)}
                config = MultiTaskConfig(**settings, class_weight="balanced")
                with tempfile.TemporaryDirectory() as folder:
                    Trainer(MultiTaskObjective(model, self._dataset(rows), config), config, folder).train()
                yield {"head": "attention", "learning_rate": rate, "epochs": epochs, **self._measured(model)}
        model = MultiTaskModel(self.encoder, self.tasks, kind="linear")
        dev = self._dataset(self.rows["dev"])
        strengths = fit_linear_heads(model, self._dataset(rows), dev, "balanced", **self.options)
        yield {"head": "linear", "strengths": strengths, **self._measured(model)}
        features, peer = EmbeddingFeatures(self.encoder), {}
        for part, asked in self.rows.items():
            own = {task: asked.pick([i for i, x in enumerate(asked.labels[task]) if x]) for task in TASKS}
            learned = {task: rows.pick([i for i, x in enumerate(rows.labels[task]) if x]) for task in TASKS}
            peer[part] = {
                task: linear_classifier(features, learned[task], own[task], task)[measure]
                for task, measure in TASKS.items()
            }
        yield {"head": "none; logistic regression", **peer}

    def _measured(self, model: MultiTaskModel) -> Found:
        found = {}
        for part, asked in self.asked.items():
            results = evaluate_tasks(model, asked, **self.options)
            found[part] = {task: results[task][measure] for task, measure in TASKS.items()}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    comparison = Comparison(parser.parse_args().data)
    found = []
    for size in SIZES:
        for row in comparison.run(size):
            print(size, row, flush=True)
            found.append({"rows": size, **row})
    record(PATH, {"found": found})


if __name__ == "__main__":
    main()
