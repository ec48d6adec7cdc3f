"""With the encoder frozen, how fast and how long should the heads learn?

    python -m benchmarks.heads DATA    train and measure

DATA is the folder with `topic/` and `sentiment/`: 1,000 training rows from the shipped encoder, seed 0, each rate and
number of epochs, measured on 300 dev rows and 2,000 test rows of each task.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed

from benchmarks.freezing import test_rows, training_rows
from benchmarks.multitask import DEV_ROWS, TASKS, part_of
from benchmarks.record import RESULTS, record
from common.data import LabelledRows, MultiTaskDataset, read_labelled_rows, training_tasks
from common.devices import InferenceConfig
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.metrics import evaluate_tasks
from common.multitask import MultiTaskConfig, MultiTaskObjective
from common.states import FrozenEncoderDataset
from common.train import Trainer

PATH = RESULTS / "freezing" / "heads.json"
ROWS = 1_000
RATES, EPOCHS = (1e-4, 3e-4, 1e-3, 3e-3), (4, 16)


def sweep(data: Path) -> list[dict[str, object]]:
    """A training for each rate and number of epochs; the encoder's states of what is measured are computed once."""
    rows = training_rows(data, "both", ROWS)
    tasks, encoder = training_tasks(rows), SentenceEncoder.from_pretrained()
    options = InferenceConfig().place(encoder)

    def with_states(part: LabelledRows) -> FrozenEncoderDataset:
        data = MultiTaskDataset(part, tasks, encoder.tokenizer)
        store = np.empty((sum(data.lengths), encoder.dim), dtype=np.float32)
        return FrozenEncoderDataset(data, encoder, store, options)

    dev = with_states(read_labelled_rows([part_of(data, task, "dev", DEV_ROWS) for task in TASKS]))
    test = with_states(test_rows(data, "both"))
    found = []
    for rate in RATES:
        for epochs in EPOCHS:
            set_seed(0)
            model = MultiTaskModel(encoder, tasks)
            config = MultiTaskConfig(epochs=epochs, learning_rate=rate, freeze=("encoder",))
            learned = MultiTaskDataset(rows, tasks, encoder.tokenizer)
            with tempfile.TemporaryDirectory() as folder:
                Trainer(MultiTaskObjective(model, learned, config), config, folder).train()
            measured = {}
            for name, part in (("dev", dev), ("test", test)):
                results = evaluate_tasks(model, part, **options)
                measured[name] = {task: results[task][measure] for task, measure in TASKS.items()}
            found.append({"learning_rate": rate, "epochs": epochs, **measured})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    record(PATH, {"rows": ROWS, "found": sweep(arguments.data)})


if __name__ == "__main__":
    main()
