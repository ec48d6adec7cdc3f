"""A task is added to a model that has learned another: what becomes of the old task, with its head frozen or not?

    python -m benchmarks.adding DATA SIZE [SIZE ...]    train and test; a result that is there is kept

DATA is the folder with `topic/`, `sentiment/` and `sts/`. Sentiment is learned first, on two thirds of SIZE rows, from
the shipped encoder; then topic is added, on the other third. In the second phase sentiment's labels are there again or
not, and some stages are frozen. Tests are a fixed random 2,000 rows of each task, and all of stsb_test.
"""

import tempfile
from pathlib import Path

from accelerate.utils import set_seed

from benchmarks.freezing import SEEDS, SIZES, learn, measure, test_rows, training_rows
from benchmarks.multitask import part_of
from benchmarks.record import RESULTS, command_line, record
from common.cli import ROOT
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.metrics import evaluate_tasks
from common.rows import read_labelled_rows, training_tasks

RUNS = ROOT / "runs" / "adding"
BOTH, TOPIC = "topic and sentiment", "topic"
# What is frozen while topic is added, and which labels there are. Without labels a head has no gradient: freezing it
# or not is then the same.
SCENARIOS = {
    "nothing, labels of both": ([], BOTH),
    "its head, labels of both": (["head:sentiment"], BOTH),
    "its head, labels of topic": (["head:sentiment"], TOPIC),
    "its head and the lower half, labels of topic": (["head:sentiment", "stages:0-3"], TOPIC),
    "its head and the encoder, labels of topic": (["head:sentiment", "encoder"], TOPIC),
}


def first_model(data: Path, size: int, seed: int) -> Path:
    """The folder of a model that has learned sentiment."""
    folder = RUNS / f"sentiment-{size}-{seed}"
    if not (folder / "config.json").is_file():
        set_seed(seed)
        rows = read_labelled_rows([part_of(data, "sentiment", "train", size - size // 3, seed)])
        model = MultiTaskModel(SentenceEncoder.from_pretrained(), training_tasks(rows))
        learn(model, rows, [], seed, folder)
    return folder


def sentiment_before(model: MultiTaskModel, data: Path) -> float:
    asked = model.dataset(test_rows(data, "both"))
    results = evaluate_tasks(model, asked)
    return results["sentiment"]["macro_recall"]


def add_topic(data: Path, scenario: str, size: int, seed: int) -> dict[str, object]:
    """The second phase, from the model of the first."""
    words, labels = SCENARIOS[scenario]
    first = MultiTaskModel.from_pretrained(first_model(data, size, seed))
    before = sentiment_before(first, data)
    set_seed(seed)
    topic = read_labelled_rows([part_of(data, "topic", "train", size // 3, seed)])
    rows = training_rows(data, "both", size, seed) if labels == BOTH else topic
    model = first.with_tasks(training_tasks(topic))
    with tempfile.TemporaryDirectory() as folder:
        config = learn(model, rows, words, seed, folder)
    training = {"steps": config.total_steps(len(rows.texts)), "learning_rate": config.learning_rate}
    return {**training, "sentiment_before": before, "reached": measure(model, data, "both")}


def result_path(scenario: str, size: int, seed: int) -> Path:
    return RESULTS / "adding" / f"{scenario.replace(', ', '-').replace(' ', '-')}-{size}-{seed}.json"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("sizes", nargs="+", type=int, choices=SIZES, metavar="size")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        for seed in range(SEEDS):
            for scenario in SCENARIOS:
                path = result_path(scenario, size, seed)
                if not path.is_file():
                    print(f"\nfrozen: {scenario}; {size} rows, seed {seed}", flush=True)
                    about = {"scenario": scenario, "rows": size, "seed": seed}
                    record(path, {**about, **add_topic(arguments.data, scenario, size, seed)})


if __name__ == "__main__":
    main()
