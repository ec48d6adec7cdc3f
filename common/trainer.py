"""The one training loop: any objective, any data set, resumable to the last bit."""

import dataclasses
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from common.checkpoint import NAME as CHECKPOINT
from common.checkpoint import read_progress, restore_checkpoint, save_checkpoint
from common.cli import Interrupted, UserError, option, progress_bar
from common.data import MultiTaskDataset, shuffled_batches
from common.devices import DEVICE_HELP, PRECISION_HELP, PRECISIONS, build_accelerator
from common.files import make_folder
from common.freezing import FrozenEncoderDataset, fits_in_memory, freeze, gradual_unfreezing
from common.heads import HEADS, TASKS, MultiTaskModel
from common.losses import MultiTaskObjective
from common.metrics import evaluate_tasks
from common.optim import SCHEDULES, build_optimizer, build_schedule

CHECKPOINT_SECONDS = 300
# What a run of any of the scripts leaves in its folder.
RUN_FILES = (
    CHECKPOINT,
    "config.json",
    "model.safetensors",
    HEADS,
    TASKS,
    "training.json",
    "metrics.json",
    "history.csv",
)
Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; every field is an option of the command line."""

    epochs: int = option(3, "passes over the data")
    max_steps: int | None = option(None, "train for this many steps, whatever the epochs")
    learning_rate: float = option(1e-4, "the highest learning rate (default: 2e-5, from random weights 1e-4)")
    batch_tokens: int = option(2048, "the most tokens in one batch, padding included")
    accumulate: int = option(1, "batches whose gradients make one step")
    schedule: str = option("linear", "how the rate falls after the warm-up", choices=SCHEDULES)
    warmup: float = option(0.1, "share of the steps in which the rate rises")
    weight_decay: float = option(0.01, "AdamW's weight decay (biases and norms have none)")
    clip_norm: float = option(1.0, "gradients longer than this are scaled down to it")
    evaluate_every: int | None = option(None, "steps between two looks at the dev file; without it, each epoch")
    patience: int | None = option(None, "stop after this many looks at the dev file without a gain")
    seed: int = option(0, "the same seed gives the same model")
    precision: str = option("auto", PRECISION_HELP, choices=PRECISIONS[:3])
    device: str = option("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "batch_tokens", "accumulate", "evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--weight-decay {self.weight_decay}: must be 0 or more")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: must be from 0 to {2**32 - 1}")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"--warmup {self.warmup}: must be from 0 to 1")


class TrainingData(Protocol):
    """What the loop asks of a data set."""

    lengths: Sequence[int]

    def digest(self) -> str: ...

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]: ...


@dataclass
class Progress:
    """Where a training stands, beside the tensors: all of it goes into the checkpoint."""

    step: int = 0
    best: Metrics | None = None
    looks_since_best: int = 0
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, list[float]] = field(default_factory=dict)  # name to [sum, count] since the history's last row
    gradients: dict[str, list[float]] = field(default_factory=dict)  # part to its gradient's norm at each step
    schedule: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # spent training, all parts of an interrupted run together
    run: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains an objective: a module whose forward turns a batch into {"loss": ..., and any parts to track}.

    Args:
        objective: what is trained, all parameters that require a gradient.
        data: what `collate`s a batch from row indices.
        output: the folder for the checkpoint; `save` writes the model there.
        save: called with no argument whenever the model is the best so far (without `evaluate`: at the end).
        evaluate: gives dev metrics, of which `score` is to be high.
        parts: parts of the objective by name, each with parameter groups of its own.
        rates: the learning rate of each part; without one it has the configuration's.
        frozen: the parts that stand still.
        watch_gradients: keep the norm of each part's gradient, before clipping, at every step.
        description: what else a resumed run must share with the first, by name.
    """

    def __init__(
        self,
        objective: nn.Module,
        data: TrainingData,
        config: TrainingConfig,
        output: str | Path,
        save: Callable[[], None],
        evaluate: Callable[[], Metrics] | None = None,
        parts: Mapping[str, nn.Module] | None = None,
        rates: Mapping[str, float] | None = None,
        frozen: Collection[str] = (),
        watch_gradients: bool = False,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.data, self.output = config, data, Path(output)
        self.save, self.evaluate, self.watch_gradients = save, evaluate, watch_gradients
        self.parts, self.frozen = dict(parts or {}), set(frozen)
        self.thaw: dict[str, int] = {}  # the step at which a part begins to train; until then it is frozen
        self.accelerator = build_accelerator(config.device, config.precision)
        self.total_steps = config.max_steps or sum(len(self._plan(epoch)) for epoch in range(config.epochs))
        freeze(self.parts, self.frozen)
        optimizer = build_optimizer(objective, config.learning_rate, config.weight_decay, self.parts, rates)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.schedule = build_schedule(optimizer, config.schedule, config.warmup, self.total_steps)
        self.progress = Progress(run=self._fingerprint(description or {}))

    def train(self, resume: bool = False) -> Progress:
        """Run to the end, from the start or from the checkpoint in `output`.

        Raises:
            Interrupted: a signal asked to stop; the checkpoint holds everything up to the last step.
            UserError: nothing to resume, a folder that cannot be written, or the loss is no longer a number.
        """
        if resume:
            self._restore()
        else:
            make_folder(self.output)
            clear_run(self.output)
            set_seed(self.config.seed)
        self._train_mode()
        begun, saved_at = time.monotonic() - self.progress.seconds, time.monotonic()
        first = self.progress.step
        bar = progress_bar(self.total_steps, " steps", "training", first)
        with stop_requests() as stop, bar:
            for batches, ends_epoch in self._steps_from(first):
                if self.progress.step in self.thaw.values():
                    self._train_mode()
                losses = self._step(batches)
                self.progress.seconds = time.monotonic() - begun
                bar.update()
                bar.set_postfix_str(f"loss {losses['loss']:.4f}", refresh=False)
                every = self.config.evaluate_every
                done = self.progress.step == self.total_steps
                if done or (self.progress.step % every == 0 if every else ends_epoch):
                    self._look(bar)
                    saved_at = -math.inf  # a new best model on disk needs a checkpoint that knows of it
                if self.progress.stopped_early or done:
                    break
                if stop or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    self._checkpoint()
                    saved_at = time.monotonic()
                if stop:
                    raise Interrupted(
                        f"stopped after step {self.progress.step} of {self.total_steps}; "
                        f"the same command with --resume goes on from there"
                    )
        if self.evaluate is None:
            self.save()
        return self.progress

    def finish(self) -> None:
        """Drop the checkpoint, once all that is to be made of the training is on disk."""
        (self.output / CHECKPOINT).unlink(missing_ok=True)

    @property
    def precision(self) -> str:
        """The precision it trains in: fp32, bf16."""
        return self.accelerator.mixed_precision.replace("no", "fp32")

    def _plan(self, epoch: int) -> list[list[list[int]]]:
        """An epoch's steps, each a list of batches: a function of the seed and the epoch alone."""
        batches = shuffled_batches(self.data.lengths, self.config.batch_tokens, self.config.seed, epoch)
        size = self.config.accumulate
        return [batches[i : i + size] for i in range(0, len(batches), size)]

    def _steps_from(self, step: int) -> Iterator[tuple[list[list[int]], bool]]:
        """The batches of each step from number `step` on, and whether the step ends its epoch."""
        epoch = 0
        while True:
            plan = self._plan(epoch)
            for number in range(min(step, len(plan)), len(plan)):
                yield plan[number], number == len(plan) - 1
            step = max(step - len(plan), 0)
            epoch += 1

    def _step(self, batches: list[list[int]]) -> dict[str, float]:
        """One optimizer step over the batches; the mean of each of their losses, where a batch has it."""
        seen: dict[str, list[float]] = defaultdict(list)
        for indices in batches:
            batch = {k: v.to(self.accelerator.device) for k, v in self.data.collate(indices).items()}
            losses = self.objective(batch)
            if losses["loss"].requires_grad:  # a batch may have labels for frozen heads alone
                self.accelerator.backward(losses["loss"] / len(batches))
            for name, value in losses.items():
                seen[name].append(value.item())
        means = {name: sum(values) / len(values) for name, values in seen.items()}
        if self.watch_gradients:
            for name, part in self.parts.items():
                self.progress.gradients.setdefault(name, []).append(gradient_norm(part))
        norm = float(self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.clip_norm))
        if not math.isfinite(means["loss"]) or not math.isfinite(norm):
            self._diverged(means["loss"], norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        for name, value in means.items():
            total, count = self.progress.sums.get(name, (0.0, 0))
            self.progress.sums[name] = [total + value, count + 1]
        return means

    def _train_mode(self) -> None:
        """Everything to training mode, but for what is frozen at this step."""
        self.objective.train()
        freeze(self.parts, self.frozen | {part for part, step in self.thaw.items() if self.progress.step < step})

    def _diverged(self, loss: float, norm: float) -> None:
        path = self.output / CHECKPOINT
        kept = (
            f"the checkpoint of step {read_progress(self.output)['step']} is kept"
            if path.is_file()
            else "nothing was saved yet"
        )
        raise UserError(
            f"step {self.progress.step + 1}: the loss is {loss} and its gradient's norm {norm}, so training stopped; "
            f"{kept} in {self.output}; a lower --learning-rate or more --warmup usually helps"
        )

    def _look(self, bar: tqdm) -> None:
        """Evaluate, keep the model if it is the best, and add a row to the history."""
        progress = self.progress
        row: dict[str, Any] = {"step": progress.step}
        row |= {f"train {name}": total / count for name, (total, count) in progress.sums.items()}
        progress.sums = {}
        if self.evaluate is not None:
            metrics = self.evaluate()
            self._train_mode()
            row |= {f"dev {name}": value for name, value in metrics.items()}
            score = metrics["score"] if math.isfinite(metrics["score"]) else -math.inf  # a correlation may be nan
            if progress.best is None or score > progress.best["score"]:
                progress.best, progress.looks_since_best = {"step": progress.step, **metrics, "score": score}, 0
                self.save()
            else:
                progress.looks_since_best += 1
            progress.stopped_early = progress.looks_since_best >= (self.config.patience or math.inf)
        progress.history.append(row)
        bar.write(self.describe(row))

    def describe(self, row: Mapping[str, Any]) -> str:
        """A row of the history as it is printed while training."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("step", "dev score"))
        return f"step {row['step']:>6}  {values}"

    def _fingerprint(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """What a resumed run must share with the one it goes on from: the settings and the data."""
        settings = {**dataclasses.asdict(self.config), **description}
        return {"settings": settings, "data": self.data.digest()}

    def _checkpoint(self) -> None:
        self.progress.schedule = self.schedule.state_dict()
        save_checkpoint(self.output, self.objective, self.optimizer, dataclasses.asdict(self.progress))

    def _restore(self) -> None:
        """Take up the checkpoint in `output`, if this run is the one that wrote it."""
        saved, run = read_progress(self.output)["run"], self.progress.run
        for name, value in run["settings"].items():
            if saved["settings"].get(name) != value:
                raise UserError(
                    f"{self.output}: the unfinished run there has --{name.replace('_', '-')} "
                    f"{saved['settings'].get(name)}, not {value}; resume with the same options"
                )
        if saved["data"] != run["data"]:
            raise UserError(
                f"{self.output}: the unfinished run there was trained on other data; resume with the same files"
            )
        self.progress = Progress(**restore_checkpoint(self.output, self.objective, self.optimizer))
        self.schedule.load_state_dict(self.progress.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate


class MultiTaskTrainer(Trainer):
    """Trains a multi-task model: tasks balanced by their weights, each one's loss tracked on its own.

    With a dev set the model kept is the one with the highest macro F1, averaged over the tasks.

    Args:
        weights: each task's share of the loss; None learns them from the tasks' uncertainty.
        class_weights: weights of a task's classes, as `balanced_class_weights` gives them.
        rates, frozen: by the names of the model's parts. With the whole encoder frozen its token states are computed
            once, before training, where they fit into memory.
        unfreeze: epochs between the thawing of two stages (`gradual_unfreezing`); 0 spreads them over the first half
            of the training; None: all train from the start.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        data: MultiTaskDataset,
        config: TrainingConfig,
        output: str | Path,
        dev: MultiTaskDataset | None = None,
        weights: Mapping[str, float] | None = None,
        class_weights: Mapping[str, Tensor] | None = None,
        rates: Mapping[str, float] | None = None,
        frozen: Collection[str] = (),
        unfreeze: float | None = None,
        watch_gradients: bool = False,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.dev = model, dev
        objective = MultiTaskObjective(model, weights, class_weights)
        save = partial(model.save_pretrained, output)
        described = {"task-weight": weights, "dev": dev.digest()[:12] if dev else None, **(description or {})}
        evaluate = self._evaluate_dev if dev else None
        super().__init__(
            objective,
            data,
            config,
            output,
            save,
            evaluate,
            parts=model.parts(),
            rates=rates,
            frozen=frozen,
            watch_gradients=watch_gradients,
            description=described,
        )
        if unfreeze is not None:
            spread = self.total_steps / 2 / len(model.encoder.parts())
            thaw = gradual_unfreezing(model, unfreeze * len(self._plan(0)) or spread)
            self.thaw = {part: step for part, step in thaw.items() if part not in self.frozen}
        elif set(model.encoder.parts()) <= self.frozen and fits_in_memory(model.encoder, data, dev):
            settings = (model.encoder, config.batch_tokens, self.precision)
            self.data = FrozenEncoderDataset(data, *settings)
            self.dev = FrozenEncoderDataset(dev, *settings) if dev else None

    def _evaluate_dev(self) -> Metrics:
        results = evaluate_tasks(self.model, self.dev, precision=self.precision)
        shown = ("loss", "accuracy", "macro_f1")
        metrics = {f"{task} {name}": result[name] for task, result in results.items() for name in shown}
        return {**metrics, "score": sum(result["macro_f1"] for result in results.values()) / len(results)}

    def describe(self, row: Mapping[str, Any]) -> str:
        """A row of the history: one line for each task."""
        lines, width = [f"step {row['step']}: training loss {row['train loss']:.3f}"], max(map(len, self.model.tasks))
        for task in self.model.tasks:
            parts = [
                f"{where} {word} {row[key]:.3f}"
                for where in ("train", "dev")
                for word, name in (("loss", "loss"), ("accuracy", "accuracy"), ("macro F1", "macro_f1"))
                if (key := f"{where} {task} {name}") in row
            ]
            if parts:  # a task that an added one's rows do not label has none
                lines.append(f"  {task:<{width}}  {'  '.join(parts)}")
        return "\n".join(lines)


def gradient_norm(part: nn.Module) -> float:
    """The length of a part's gradient; 0 where nothing in it has one."""
    return float(get_total_norm([p.grad for p in part.parameters() if p.grad is not None]))


def refuse_existing(output: str | Path, resume: bool, overwrite: bool) -> None:
    """UserError where training into `output` would lose what is there: a model, or a run that can be resumed."""
    output = Path(output)
    if overwrite and resume:
        raise UserError("--resume goes on with a run, --overwrite discards it: choose one")
    if overwrite or resume:
        return
    if (output / CHECKPOINT).is_file():
        raise UserError(f"{output}: holds an unfinished run; --resume goes on with it, --overwrite discards it")
    if (output / "config.json").is_file():
        raise UserError(f"{output}: holds a model already; choose another --output, or add --overwrite")


def clear_run(output: Path) -> None:
    """Remove what an earlier run left in a folder, so that no old file is taken for the new run's."""
    if (output / CHECKPOINT).is_file() or (output / "config.json").is_file():
        for name in RUN_FILES:
            (output / name).unlink(missing_ok=True)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or a termination signal asks for a stop; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's business
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
