"""With the encoder frozen, which heads do best?

    python -m benchmarks.heads DATA ROWS [ROWS ...]    train and measure; a result that is there is kept

DATA is the folder with `topic/` and `sentiment/`: so many training rows, a third of them topic's, from the shipped
encoder; three seeds, each with another sample of the rows. Measured on 2,000 test rows of each task:

    linear          LinearHead, fitted
    attention       TaskHead, trained with the defaults
    random start    the same, its classifier not fitted before
    norm first      the same, fitted, with each state normed before the attention
    regression      no head: logistic regression on the embeddings, C = 1

Classes are balanced in all of them, and nothing is chosen by dev rows: there are none.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional as F

from benchmarks.freezing import test_rows, training_rows
from benchmarks.linear import EmbeddingFeatures, linear_classifier
from benchmarks.multitask import TASKS
from benchmarks.record import RESULTS, command_line, record
from common.config import InferenceConfig, MultiTaskConfig
from common.data import MultiTaskDataset
from common.devices import place
from common.encoder import SentenceEncoder
from common.exact import fit_linear_heads
from common.heads import MultiTaskModel, TaskHead, head_key
from common.metrics import evaluate_tasks
from common.multitask import MultiTaskObjective
from common.rows import LabelledRows, training_tasks
from common.states import with_states
from common.train import Trainer

SEEDS = 3


class WithStates(MultiTaskObjective):
    """Trains on rows whose token states are there already."""

    def prepare(self, folder: Path, **options: Any) -> None:
        self.fit_new_heads(self.data, **options)


class NormFirst(TaskHead):
    """Norms the states before the attention, and what that finds."""

    def attend(self, states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().attend(F.layer_norm(states, states.shape[-1:]), attention_mask)


RANDOM = "random start"
KINDS = {"attention": TaskHead, RANDOM: TaskHead, "norm first": NormFirst}


class Comparison:
    """All heads on the same frozen encoder, whose states of what is measured are computed once."""

    def __init__(self, data: Path) -> None:
        self.data, self.encoder = data, SentenceEncoder.from_pretrained()
        self.options = place(self.encoder, InferenceConfig())
        self.tasks = training_tasks(training_rows(data, "both", 100, 0))
        self.test = test_rows(data, "both")
        self.asked = self._with_states(self.test)

    def run(self, size: int, seed: int) -> dict[str, dict[str, float]]:
        """What each kind of head reaches with a sample of the training rows."""
        rows, reached = training_rows(self.data, "both", size, seed), {}
        model = MultiTaskModel(self.encoder, self.tasks, kind="linear").to(self.encoder.device)
        fit_linear_heads(model, self._dataset(rows), class_weight="balanced", **self.options)
        reached["linear"] = self._measured(model)
        data = self._with_states(rows)
        for name, kind in KINDS.items():
            print(f"\n{size} rows, seed {seed}: {name}", flush=True)
            reached[name] = self._measured(self._trained(data, kind, seed, fitted=name != RANDOM))
        reached["regression"] = self._regression(rows)
        return reached

    def _dataset(self, rows: LabelledRows) -> MultiTaskDataset:
        return MultiTaskDataset(rows, self.tasks, self.encoder.tokenizer)

    def _with_states(self, rows: LabelledRows) -> MultiTaskDataset:
        data = self._dataset(rows)
        store = np.empty((sum(data.lengths), self.encoder.dim), dtype=np.float32)
        return with_states(data, self.encoder, store, **self.options)

    def _trained(self, data: MultiTaskDataset, kind: type[TaskHead], seed: int, fitted: bool) -> MultiTaskModel:
        set_seed(seed)
        model = MultiTaskModel(self.encoder, self.tasks)
        for task, labels in self.tasks.items():
            model.heads[head_key(task)] = kind(self.encoder.dim, len(labels), model.attention_heads)
        model.new = model.new if fitted else set()
        config = MultiTaskConfig(freeze=("encoder",), class_weight="balanced", seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            Trainer(WithStates(model, data, config), config, folder).train()
        return model

    def _measured(self, model: MultiTaskModel) -> dict[str, float]:
        results = evaluate_tasks(model, self.asked, **self.options)
        return {task: results[task][measure] for task, measure in TASKS.items()}

    def _regression(self, rows: LabelledRows) -> dict[str, float]:
        features, found = EmbeddingFeatures(self.encoder), {}
        for task, measure in TASKS.items():
            found[task] = linear_classifier(features, rows, self.test, task)[measure]
        return found


def result_path(size: int, seed: int) -> Path:
    return RESULTS / "heads" / f"{size}-{seed}.json"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("sizes", nargs="+", type=int, metavar="rows")
    arguments = parser.parse_args()
    comparison = Comparison(arguments.data)
    for size in arguments.sizes:
        for seed in range(SEEDS):
            if not result_path(size, seed).is_file():
                found = {"rows": size, "seed": seed, "reached": comparison.run(size, seed)}
                record(result_path(size, seed), found)


if __name__ == "__main__":
    main()
