"""How quick is a training, beside the machine's limit and transformers' Trainer?

    python -m benchmarks.training_speed DATA

An epoch over 1,600 news texts of DATA, 32 in a step, from the shipped encoder with a linear head, in turns: ours, and
transformers' Trainer on the same encoder with a classifier, as it comes and with texts of like length in one step (ours
are at random). Medians of three rounds, beside the machine's rate of matrix multiplication.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence

import torch
from accelerate.utils import set_seed
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, TrainingArguments
from transformers import Trainer as TheirTrainer

from benchmarks.record import RESULTS, command_line, record
from benchmarks.speed import multiply_rate
from common.config import MultiTaskConfig
from common.data import MultiTaskDataset
from common.devices import cpu_computes_bf16
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.multitask import MultiTaskTrainer
from common.rows import LabelledRows, read_labelled_rows, training_tasks

ROWS, ROUNDS, SEED = 1600, 3, 0
CONFIG = MultiTaskConfig(epochs=1, batch_size=32, seed=SEED)
THEIRS = {"transformers": {}, "transformers, by length": {"train_sampling_strategy": "group_by_length"}}
Run = Callable[[str], float]


def ours(rows: LabelledRows) -> Run:
    """An epoch of ours, which writes into a folder; gives its seconds."""

    def run(folder: str) -> float:
        set_seed(SEED)
        model = MultiTaskModel(SentenceEncoder.from_pretrained(), training_tasks(rows), kind="linear")
        return MultiTaskTrainer(model, model.dataset(rows), CONFIG, output=folder).train().seconds

    return run


def theirs(encoder: str, data: MultiTaskDataset, tokenizer: object, options: dict[str, str]) -> Run:
    """An epoch of transformers' Trainer on the encoder in a folder."""
    task = next(iter(data.tasks))
    items = [{"input_ids": ids, "labels": label} for ids, label in zip(data.ids, data.classes[task], strict=True)]

    def run(folder: str) -> float:
        set_seed(SEED)
        model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(data.tasks[task]))
        how = {"num_train_epochs": 1, "per_device_train_batch_size": CONFIG.batch_size, "seed": SEED, "use_cpu": True}
        quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
        arguments = TrainingArguments(
            folder, learning_rate=CONFIG.learning_rate, bf16=cpu_computes_bf16(), **how, **quiet, **options
        )
        trainer = TheirTrainer(model, arguments, DataCollatorWithPadding(tokenizer), items)
        return trainer.train().metrics["train_runtime"]

    return run


def compare(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Each one's seconds, in turns; and of the machine, the rate of matrix multiplication."""
    found: dict[str, list[float]] = {name: [] for name in (*runs, "multiply_rate")}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for name, run in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run(folder))
        found["multiply_rate"].append(multiply_rate(torch.bfloat16 if cpu_computes_bf16() else torch.float32))
    return found


def share(seconds: Sequence[float], rates: Sequence[float], operations: float) -> float:
    """The median share of the machine's rate."""
    return statistics.median(operations / one / rate for one, rate in zip(seconds, rates, strict=True))


def main() -> None:
    parser = command_line(__doc__)
    rows = read_labelled_rows([parser.parse_args().data / "topic" / "train.csv"]).pick(range(ROWS))
    encoder = SentenceEncoder.from_pretrained()
    data = MultiTaskModel(encoder, training_tasks(rows), kind="linear").dataset(rows)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        backend = encoder.tokenizer.backend
        peers = {name: theirs(folder, data, backend, options) for name, options in THEIRS.items()}
        found = compare({"ours": ours(rows), **peers}, ROUNDS)
    rates = found.pop("multiply_rate")
    operations = 6.0 * sum(p.numel() for p in encoder.layers.parameters()) * sum(data.lengths)
    systems = {}
    for name, seconds in found.items():
        step = 1000 * statistics.median(seconds) / CONFIG.total_steps(ROWS)
        systems[name] = {"ms_a_step": step, "share_of_multiply_rate": share(seconds, rates, operations)}
        print(f"{name:<32} {step:7.0f} ms a step, {systems[name]['share_of_multiply_rate']:.0%} of the machine's rate")
    record(RESULTS / "training_speed.json", {"tokens": sum(data.lengths), "systems": systems})


if __name__ == "__main__":
    main()
