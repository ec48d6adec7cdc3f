"""What can be chosen for a run of a model and for a training, with its defaults: the options that commands share."""

import math
from dataclasses import dataclass

from common.cli import Config, above, at_least, between, option
from common.errors import UserError

SHIPPED_WORDS = "the shipped encoder"
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
PRECISION_HELP = "auto is bf16 where the processor computes in it, else fp32"
DEVICE_HELP = "cpu, cuda, mps; auto takes an accelerator where there is one"
# Tokens of a batch. On a processor the states of larger ones no longer fit into its caches.
BATCH, CPU_BATCH = 4096, 1024
SCHEDULES = ("linear", "cosine", "constant")
STRATEGIES = "layerwise, uniform, decay:X (such as decay:0.9), or a .json file of factors"
HEAD_KINDS = ("attention", "linear")
# Learning rates. For an encoder: from a trained one, from random weights, from a teacher's embeddings.
FINE_TUNING_RATE, SCRATCH_RATE, DISTILLATION_RATE = 2e-5, 1e-4, 2e-4
TASK_RATE, TASK_SCRATCH_RATE = 5e-5, 2e-4  # for tasks (benchmarks/README.md, Rate and length); from random weights
TASK_EPOCHS, LEAST_STEPS = 5, 100
EVALUATIONS = 10
SIMILARITY_WEIGHT = 5.0  # in a distillation, of the similarities against the distances


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Config):
    """How to run the model."""

    batch_tokens: int | None = option(
        None,
        f"the most tokens in one batch, padding included (default: {CPU_BATCH}, on an accelerator {BATCH})",
        check=at_least(1),
    )
    precision: str = option("auto", f"{PRECISION_HELP}; int8: quicker, rougher", choices=("auto", *PRECISIONS))
    device: str = option("auto", DEVICE_HELP)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """How to train."""

    epochs: int = option(3, "passes over the data", check=at_least(1))
    max_steps: int | None = option(None, "train for this many steps, whatever the epochs", check=at_least(1))
    learning_rate: float = option(1e-4, "the highest learning rate", check=above(0))
    batch_size: int = option(32, "rows in a step", check=at_least(1))
    batch_tokens: int = option(BATCH, "the most tokens computed at once, for memory alone", check=at_least(1))
    schedule: str = option("linear", "how the rate falls after the warm-up", choices=SCHEDULES)
    warmup: float = option(0.1, "share of the steps in which the rate rises", check=between(0, 1))
    weight_decay: float = option(0.01, "AdamW's weight decay (biases and norms have none)", check=at_least(0))
    clip_norm: float = option(1.0, "gradients longer than this are scaled down to it", check=above(0))
    evaluate_every: int | None = option(
        None,
        "steps between two evaluations (default: an epoch, or a tenth of the training where that is longer)",
        check=at_least(1),
    )
    patience: int | None = option(None, "stop after this many evaluations without a gain", check=at_least(1))
    seed: int = option(0, "the same seed gives the same model", check=between(0, 2**32 - 1))
    precision: str = option("auto", PRECISION_HELP, choices=("auto", "fp32", "bf16"))
    device: str = option("auto", DEVICE_HELP)

    def steps_per_epoch(self, rows: int) -> int:
        return math.ceil(rows / self.batch_size)

    def total_steps(self, rows: int) -> int:
        return self.max_steps or self.epochs * self.steps_per_epoch(rows)

    def evaluation_steps(self, rows: int) -> int:
        """The steps between two evaluations."""
        return self.evaluate_every or max(self.steps_per_epoch(rows), self.total_steps(rows) // EVALUATIONS)


def task_weight(text: str) -> tuple[str, float]:
    """Read one `TASK=WEIGHT`; UserError where it is none."""
    task, _, weight = text.rpartition("=")
    try:
        return task, float(weight)
    except ValueError:
        raise UserError(f"{text}: give it as TASK=WEIGHT, such as topic=0.7", "task_weight") from None


def unfreezing(text: str) -> float:
    """Read the epochs between two stages in `gradual[:EPOCHS]`; 0 spreads them over the first half of the training.

    Raises:
        UserError: it is written otherwise, or the epochs are negative.
    """
    kind, _, epochs = text.partition(":")
    try:
        every = float(epochs) if epochs else 0.0
    except ValueError:
        every = -1.0
    if kind != "gradual" or not 0 <= every < float("inf"):
        raise UserError(f"{text}: give it as gradual or gradual:EPOCHS, such as gradual:0.5", "unfreeze")
    return every


@dataclass(frozen=True, kw_only=True)
class MultiTaskConfig(TrainingConfig):
    """How the tasks are weighed, and what trains."""

    epochs: int | None = option(
        None,
        f"passes over the data (default: {TASK_EPOCHS}, more where those are fewer than {LEAST_STEPS} steps)",
        check=at_least(1),
    )
    learning_rate: float = option(TASK_RATE, "the base learning rate", check=above(0))
    task_weight: tuple[tuple[str, float], ...] = option(
        (),
        "a task's share of the loss (default: all alike, 1 in sum)",
        action="append",
        type=task_weight,
        metavar="TASK=WEIGHT",
    )
    balance: str = option("fixed", "task weights as given, or learned", choices=("fixed", "uncertainty"))
    class_weight: str = option("none", "balanced: rare labels weigh more", choices=("none", "balanced"))
    freeze: tuple[str, ...] = option(
        (),
        "encoder, head:TASK, stages:A-B (0 is the embeddings), all or none; may be given again (default: none)",
        action="append",
        metavar="WHAT",
    )
    unfreeze: float | None = option(
        None,
        "the heads alone first, then a stage more every so many epochs from the top (default: all thaw by half)",
        check=at_least(0),
        type=unfreezing,
        metavar="gradual[:EPOCHS]",
    )
    rates: str = option("uniform", STRATEGIES, metavar="STRATEGY")
    keep_similarity: float = option(
        0.0,
        "hold the embeddings of the training texts to those of the start, with this weight against the tasks' loss",
        check=at_least(0),
        metavar="WEIGHT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        weighed = [task for task, _ in self.task_weight]
        if twice := [task for task in weighed if weighed.count(task) > 1]:
            raise UserError(f"gives {twice[0]} more than one weight", "task_weight")
        if self.balance == "uncertainty" and self.task_weight:
            raise UserError("the weights of the tasks are learned under uncertainty: give none", "task_weight")

    def total_steps(self, rows: int) -> int:
        each = self.steps_per_epoch(rows)
        epochs = self.epochs or max(TASK_EPOCHS, math.ceil(LEAST_STEPS / each))
        return self.max_steps or epochs * each
