"""What keeps an encoder's similarities while it learns tasks, and what does that cost the tasks?

    python -m benchmarks.keeping DATA WAY [WAY ...]    train and test; a result that is there is kept

From the shipped encoder, 600 topic and 1,200 sentiment rows, another sample of them for each seed, two epochs at the
default rate; no dev rows, so that each way is measured after as many steps as the others. The ways:

    nothing      none of the others
    random start the same with heads that begin at random, and not as logistic regression
    keep:W       `--keep-similarity W`
    l2-sp:A      the encoder's weights held to their start: A / 2 times their squared distance from it joins the loss
                 (L2-SP, Li, Grandvalet & Davoine 2018, section 3)
    gradual      `--unfreeze gradual`
    layerwise    `--rates layerwise`
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from benchmarks.record import RESULTS, command_line, record
from benchmarks.strategies import rows_of
from common.comparison import GRADUAL
from common.config import TASK_RATE, MultiTaskConfig
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.metrics import correlation, evaluate_tasks
from common.multitask import MultiTaskObjective
from common.objective import Step
from common.rows import read_scored_pairs, training_tasks
from common.train import Trainer

SEEDS = 3
CONFIG = {"epochs": 2}
RANDOM = "random start"
WAYS = ("nothing", RANDOM, "keep:0.3", "keep:1", "keep:3", "l2-sp:0.01", "l2-sp:0.1", GRADUAL, "layerwise")


class HeldWeights(MultiTaskObjective):
    """The tasks' loss, and how far the encoder's weights are from their start."""

    def __init__(self, *arguments: Any, strength: float) -> None:
        super().__init__(*arguments)
        self.strength = strength

    def prepare(self, folder: Path, **options: Any) -> None:
        super().prepare(folder, **options)
        self.held = [parameter.detach().clone() for parameter in self.model.encoder.parameters()]

    def backward(self, step: Step) -> None:
        super().backward(step)
        moved = zip(self.model.encoder.parameters(), self.held, strict=True)
        penalty = sum((parameter - start).square().sum() for parameter, start in moved)
        (self.strength / 2 * penalty).backward()


def train(data: Path, way: str, seed: int) -> dict[str, Any]:
    """Train in one way, and measure the last model."""
    name, _, number = way.partition(":")
    strength = float(number or 0)
    options: dict[str, dict[str, Any]] = {
        "keep": {"keep_similarity": strength},
        GRADUAL: {"unfreeze": 0.0},
        "layerwise": {"rates": "layerwise"},
    }
    config = MultiTaskConfig(**CONFIG, seed=seed, **options.get(name, {}))
    set_seed(seed)
    rows, asked = rows_of(data, "train", seed), rows_of(data, "test")
    model = MultiTaskModel(SentenceEncoder.from_pretrained(), training_tasks(rows))
    if way == RANDOM:
        model.new = set()  # as if its heads had been fitted
    kind = partial(HeldWeights, strength=strength) if name == "l2-sp" else MultiTaskObjective
    with tempfile.TemporaryDirectory() as folder:
        progress = Trainer(kind(model, model.dataset(rows), config), config, folder).train()
    results = evaluate_tasks(model, model.dataset(asked))
    kept = correlation(model.encoder, read_scored_pairs(data / "sts" / "stsb_test.csv"))
    names = ("rows", "accuracy", "macro_recall")
    test = {task: {name: result[name] for name in names} for task, result in results.items()}
    return {"seconds": round(progress.seconds), "steps": progress.step, "test": test, "stsb_test": kept}


def result_path(way: str, seed: int) -> Path:
    return RESULTS / "keeping" / f"{way.replace(':', '-').replace(' ', '-')}-{seed}.json"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("ways", nargs="+", choices=WAYS, metavar="way")
    arguments = parser.parse_args()
    for seed in range(SEEDS):
        for way in arguments.ways:
            if not result_path(way, seed).is_file():
                print(f"\n{way}, seed {seed}", flush=True)
                about = {"way": way, "seed": seed, "training": CONFIG, "learning_rate": TASK_RATE}
                record(result_path(way, seed), {**about, **train(arguments.data, way, seed)})


if __name__ == "__main__":
    main()
