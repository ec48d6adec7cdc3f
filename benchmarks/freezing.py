"""What does each freezing scenario reach and forget, with how much data, near to the training corpus and far from it?

    python -m benchmarks.freezing DATA TARGET SIZE [SIZE ...]   train and test; a result that is there is kept
    python -m benchmarks.freezing DATA nearness                 how near each target's texts are to the corpus

DATA is the folder with `topic/`, `sentiment/`, `sts/` and `corpus/`. A SIZE is the number of training rows, another
sample of them for each seed; tests are a fixed random 2,000 rows of each task, and all of stsb_test for what is
forgotten. All is trained with the defaults of `task2.py train` and balanced classes, without dev rows. A TARGET is

    both    topic and sentiment, a third of the rows topic and two thirds sentiment
    topic   news alone: near to the corpus, which has news in it
    code    far from it: four lines of the Python standard library, and which of five packages they are from
"""

import gzip
import random
import sysconfig
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed

from benchmarks.linear import EmbeddingFeatures, linear_classifier
from benchmarks.multitask import TASKS, TEST_ROWS, part_of
from benchmarks.record import RESULTS, command_line, record
from common.config import MultiTaskConfig
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.metrics import correlation, evaluate_tasks
from common.multitask import MultiTaskTrainer
from common.rows import LabelledRows, read_labelled_rows, read_scored_pairs, training_tasks

OUTSIDE = "everything, then logistic regression on its embeddings"
SCENARIOS = {
    "nothing": [],
    "the lower half": ["stages:0-3"],
    "topic's head": ["head:topic"],
    "sentiment's head": ["head:sentiment"],
    "the encoder": ["encoder"],
    OUTSIDE: ["all"],
}
PACKAGES = ("asyncio", "email", "multiprocessing", "unittest", "xml")
TARGETS = {"both": tuple(TASKS), "topic": ("topic",), "code": ("package",)}
MEASURES = {**TASKS, "package": "accuracy"}
SEEDS = 3
SIZES = (100, 1_000, 10_000)
CORPUS_ROWS, NEARNESS_ROWS = 10_000, 500


def learn(
    model: MultiTaskModel, rows: LabelledRows, words: list[str], seed: int, output: str | Path
) -> MultiTaskConfig:
    """Train with some stages frozen, in place."""
    config = MultiTaskConfig(seed=seed, freeze=tuple(words), class_weight="balanced")
    data = model.dataset(rows)
    MultiTaskTrainer(model, data, config, output=output).train()
    return config


def training_rows(data: Path, target: str, size: int, seed: int) -> LabelledRows:
    """A random part of a target's training rows, the same for a seed."""
    if target == "code":
        return code_rows(random.Random(seed).sample(code_snippets()[TEST_ROWS:], size))
    if target == "topic":
        return read_labelled_rows([part_of(data, "topic", "train", size, seed)])
    counts = {"topic": size // 3, "sentiment": size - size // 3}
    return read_labelled_rows([part_of(data, task, "train", counts[task], seed) for task in TASKS])


def test_rows(data: Path, target: str) -> LabelledRows:
    """2,000 test rows for each task of a target."""
    if target == "code":
        return code_rows(code_snippets()[:TEST_ROWS])
    return read_labelled_rows([part_of(data, task, "test", TEST_ROWS) for task in TARGETS[target]])


def code_rows(snippets: Sequence[tuple[str, str]]) -> LabelledRows:
    texts, labels = zip(*snippets, strict=True)
    return LabelledRows(list(texts), {"package": list(labels)}, [sysconfig.get_path("stdlib")] * len(texts))


def code_snippets() -> list[tuple[str, str]]:
    """Four lines of code and the package they stand in, shuffled; as many of each package."""
    library = Path(sysconfig.get_path("stdlib"))
    snippets = {name: [] for name in PACKAGES}
    for name in PACKAGES:
        for path in sorted((library / name).rglob("*.py")):
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            snippets[name] += [(" ".join(lines[i : i + 4]), name) for i in range(0, len(lines) - 3, 4)]
    draw = random.Random(0)
    fewest = min(map(len, snippets.values()))
    chosen = [snippet for found in snippets.values() for snippet in draw.sample(found, fewest)]
    draw.shuffle(chosen)
    return chosen


def measure(model: MultiTaskModel, data: Path, target: str) -> dict[str, float]:
    """Each task's test result, and Spearman on stsb_test."""
    asked = model.dataset(test_rows(data, target))
    results = evaluate_tasks(model, asked)
    reached = {task: results[task][MEASURES[task]] for task in results}
    return {**reached, "stsb_test": similarity(model.encoder, data)}


def similarity(encoder: SentenceEncoder, data: Path) -> float:
    return correlation(encoder, read_scored_pairs(data / "sts" / "stsb_test.csv"))


def run_scenario(data: Path, target: str, scenario: str, size: int, seed: int) -> dict[str, object]:
    """One scenario, from the shipped encoder to its test."""
    set_seed(seed)
    encoder = SentenceEncoder.from_pretrained()
    rows = training_rows(data, target, size, seed)
    if scenario == OUTSIDE:
        asked, reached = test_rows(data, target), {}
        for task in TARGETS[target]:
            reached[task] = linear_classifier(EmbeddingFeatures(encoder), rows, asked, task)[MEASURES[task]]
        return {"reached": {**reached, "stsb_test": similarity(encoder, data)}}
    model = MultiTaskModel(encoder, training_tasks(rows))
    with tempfile.TemporaryDirectory() as folder:
        config = learn(model, rows, SCENARIOS[scenario], seed, folder)
    training = {"steps": config.total_steps(len(rows.texts)), "learning_rate": config.learning_rate}
    return {**training, "reached": measure(model, data, target)}


def nearness(data: Path) -> dict[str, float]:
    """For each target: the cosine similarity of a text to the nearest of 10,000 corpus sentences, on average."""
    encode = SentenceEncoder.from_pretrained().encode
    with gzip.open(data / "corpus" / "sentences.txt.gz", "rt", encoding="utf-8") as lines:
        corpus = encode([line.strip() for line in islice(lines, CORPUS_ROWS)])
    parts = {
        "topic": test_rows(data, "topic"),
        "sentiment": read_labelled_rows([part_of(data, "sentiment", "test", TEST_ROWS)]),
        "code": test_rows(data, "code"),
    }
    return {
        name: float(np.mean((encode(rows.texts[:NEARNESS_ROWS]) @ corpus.T).max(axis=1)))
        for name, rows in parts.items()
    }


def result_path(target: str, scenario: str, size: int, seed: int) -> Path:
    name = scenario.split(",")[0] + " outside" * (scenario == OUTSIDE)
    words = "-".join("".join(c if c.isalnum() else " " for c in name).split())
    return RESULTS / "freezing" / f"{target}-{words}-{size}-{seed}.json"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("target", choices=[*TARGETS, "nearness"])
    parser.add_argument("sizes", nargs="*", type=int, metavar="size", help=", ".join(map(str, SIZES)))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), metavar="scenario")
    arguments = parser.parse_args()
    if unknown := set(arguments.sizes) - set(SIZES):
        parser.error(f"size {min(unknown)}: there are {', '.join(map(str, SIZES))}")
    if arguments.target == "nearness":
        record(RESULTS / "freezing" / "nearness.json", {"nearness": nearness(arguments.data)})
        return
    heads = [f"{task}'s head" for task in TASKS]
    for size in arguments.sizes:
        for seed in arguments.seeds:
            for scenario in arguments.scenarios:
                about = (arguments.target, scenario, size, seed)
                path = result_path(*about)
                if path.is_file() or (scenario in heads and arguments.target != "both"):
                    continue
                print(f"\n{arguments.target}, {size} rows, seed {seed}; frozen: {scenario}", flush=True)
                named = dict(zip(("target", "scenario", "rows", "seed"), about, strict=True))
                record(path, {**named, **run_scenario(arguments.data, *about)})


if __name__ == "__main__":
    main()
