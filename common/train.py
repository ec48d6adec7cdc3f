"""The one training loop: any objective, resumable to the last bit, on one process or several.

A step is `batch_size` rows. Each process takes its share of them, cut into batches by the token budget; losses are sums
divided by the count over the whole step, so that neither the cut nor the number of processes changes a gradient.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from common.batching import planned_steps, token_budget_batches
from common.checkpoint import (
    CHECKPOINT,
    read_progress,
    refuse_existing,
    refuse_other_run,
    remove_leftovers,
    restore_checkpoint,
    save_checkpoint,
)
from common.cli import progress_bar, stop_requests
from common.config import TrainingConfig
from common.devices import (
    autocast,
    copy_from_main,
    processes,
    release_memory,
    resolve_device,
    resolve_precision,
    share_of,
    sum_over_processes,
    wait_for_all,
    weights_cast_once,
    without_gradients,
)
from common.errors import Interrupted, ProcessLost, UserError
from common.files import make_folder, remove_unfinished
from common.freezing import freeze, is_frozen, restored_afterwards
from common.objective import Batch, Metrics, Objective, Step
from common.optim import build_optimizer, schedule_factor

CHECKPOINT_SECONDS = 300
RELEASE_STEPS = 10  # between two releases of memory; each takes a tenth of a second


@dataclass
class Progress:
    """Where a training stands, beside the tensors: all of it goes into the checkpoint."""

    step: int = 0
    best: Metrics | None = None
    evaluations_since_best: int = 0
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, list[float]] = field(default_factory=dict)  # name to [sum, count] since the history's last row
    traces: dict[str, list[float]] = field(default_factory=dict)  # name to a number for each step
    seconds: float = 0.0  # spent training, all stretches of an interrupted run together
    replaces_run: bool = False  # whether the folder held another run at the start
    run: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains an objective into a folder: the checkpoint, and the best model so far (without `evaluates`: the last).

    Raises:
        UserError: no rows, nothing to train, patience without an evaluation, a device that is not there.
    """

    def __init__(self, objective: Objective, config: TrainingConfig, output: str | Path) -> None:
        rows = len(objective.data.lengths)
        if not rows:
            raise UserError("there are no rows to train on")
        if not any(parameter.requires_grad for parameter in objective.parameters()):
            raise UserError("everything is frozen: there is nothing to train")
        if config.patience and not objective.evaluates:
            raise UserError("needs a dev set to evaluate on", "patience")
        self.objective, self.config, self.output = objective, config, Path(output)
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.steps_per_epoch, self.total_steps = config.steps_per_epoch(rows), config.total_steps(rows)
        self.evaluation_steps = config.evaluation_steps(rows)
        if rows // self.steps_per_epoch < objective.smallest_step:
            raise UserError(f"a step compares {objective.smallest_step} rows or more; give a larger one", "batch_size")
        self.options = without_gradients(config, self.device)
        self.progress = Progress()

    def train(self, resume: bool = False, overwrite: bool = False) -> Progress:
        """Run to the end, from the start or from the checkpoint in the folder.

        Afterwards the model is in evaluation mode, its parameters as trainable as before. `finish` drops the
        checkpoint. Torch's random state is set at every step.

        Args:
            overwrite: replace the model or the unfinished run in the folder; it goes when this run's own is whole.

        Raises:
            Interrupted: a signal asked to stop (the checkpoint holds everything), or another process ended.
            UserError: nothing to resume, something to lose, a folder that cannot be written, a loss that is no number.
        """
        refuse_existing(self.output, resume, overwrite)
        with restored_afterwards(self.objective), stop_requests() as stops, self._kept_if_alone():
            self._begin(resume)
            progress, saved_at = self.progress, time.monotonic()
            begun = saved_at - progress.seconds
            with progress_bar(self.total_steps, " steps", "training", progress.step) as bar:
                if self._evaluation_is_due():  # a process was lost in it
                    self._evaluate(bar)
                for batches in () if progress.stopped_early else self._share_of_each_step():
                    freeze(self.stages, self.frozen | self._not_thawed())
                    loss, stop = self._backward(batches, stops)
                    self._update(loss)
                    progress.seconds = time.monotonic() - begun
                    bar.update()
                    bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
                    if self._evaluation_is_due() and self._evaluate(bar):
                        saved_at = -math.inf  # a new best model on disk needs a checkpoint that knows of it
                    done = progress.step == self.total_steps or progress.stopped_early
                    if done or stop or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                        self._checkpoint()
                        saved_at = time.monotonic()
                    if done:
                        break
                    if stop:
                        wait_for_all()
                        raise Interrupted(f"stopped after step {progress.step} of {self.total_steps}")
            if not self.objective.evaluates:
                self._save()
            wait_for_all()
        return progress

    @contextmanager
    def _kept_if_alone(self) -> Iterator[None]:
        """Write a checkpoint of the last whole step where another process ends within the block."""
        try:
            yield
        except ProcessLost:
            if self.progress.step:
                self._checkpoint()
            raise

    def finish(self) -> None:
        """Drop the checkpoint, once all that is to be made of the training is on disk."""
        if processes().is_main_process:
            (self.output / CHECKPOINT).unlink(missing_ok=True)

    def _begin(self, resume: bool) -> None:
        """Freeze, make the optimizer, and take up the checkpoint where one is to be resumed."""
        self.progress = Progress(run=self._identity())
        saved = read_progress(self.output) if resume else None
        if saved:
            refuse_other_run(self.output, saved["run"], self.progress.run)
        self.has_checkpoint = bool(saved)  # of its own: there may be another run's
        make_folder(self.output)
        if processes().is_main_process:
            remove_unfinished(self.output)
        self.objective.to(self.device)
        self.stages = self.objective.named_stages()
        self.frozen = {name for name, stage in self.stages.items() if is_frozen(stage)}
        copy_from_main(*self.objective.state_dict().values())
        rate, decay = self.config.learning_rate, self.config.weight_decay
        self.optimizer = build_optimizer(self.objective, rate, decay, self.stages, self.objective.rates)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.objective.train()
        freeze(self.stages, self.frozen)
        self.objective.prepare(self.output, **self.options)
        self.progress.replaces_run = any((self.output / name).is_file() for name in (CHECKPOINT, "config.json"))
        if saved:
            restore_checkpoint(self.output, self.objective, self.optimizer)
            self.progress = Progress(**saved)

    def _not_thawed(self) -> set[str]:
        """The stages that begin to train at a later step."""
        return {stage for stage, due in self.objective.thaw.items() if self.progress.step < due}

    def _share_of_each_step(self) -> Iterator[list[Batch]]:
        """This process's batches of each step that is left, from the same plan on every process."""
        left, data = range(self.progress.step, self.total_steps), self.objective.data
        padding = self.objective.max_padding
        for rows in planned_steps(len(data.lengths), self.config.batch_size, self.config.seed, left):
            items = [data[row] for row in share_of(rows)]
            cut = token_budget_batches([item["length"] for item in items], self.config.batch_tokens, padding)
            yield [{**data.collate([items[i] for i in batch]), "place": torch.tensor(batch)} for batch in cut]

    def _forward(self, number: int, batch: Batch) -> Any:
        torch.manual_seed(dropout_seed(self.config.seed, self.progress.step, processes().process_index, number))
        with autocast(self.device, self.precision):
            return self.objective(batch)

    def _backward(self, batches: list[Batch], stops: list[int]) -> tuple[float, bool]:
        """Compute the step's gradient over all processes; give its loss, and whether a process was asked to stop."""
        batches = [{k: v.to(self.device) for k, v in batch.items()} for batch in batches]
        step = Step(batches, self._forward, self.config.batch_tokens)
        with weights_cast_once(self.device):
            self.objective.backward(step)
        self._sum_gradients()
        names = ("loss", *self.objective.tracked)
        shared = torch.tensor([[len(stops), 0], *(step.sums[name] for name in names)], device=self.device)
        sum_over_processes(shared)
        (stop, _), (loss, _), *others = shared.tolist()
        for name, sums in zip(names, [(loss, 1), *others], strict=True):
            before = self.progress.sums.get(name, (0.0, 0.0))
            self.progress.sums[name] = [old + new for old, new in zip(before, sums, strict=True)]
        return loss, stop > 0

    def _sum_gradients(self) -> None:
        """Add up the processes' gradients; a parameter that none of them has used is left without one.

        DistributedDataParallel would do so while it computes them, but takes its parameters once for all: they differ
        from step to step here, with the tasks that have labels and the stages that have thawed.
        """
        if processes().num_processes == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in self.trained], device=self.device)
        sum_over_processes(used)
        shared = [p for p, users in zip(self.trained, used.tolist(), strict=True) if users]
        for parameter in shared:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        sum_over_processes(*(parameter.grad for parameter in shared))

    def _update(self, loss: float) -> None:
        """Clip the gradient, and move the parameters by this step's rates."""
        for name, value in self.objective.traces().items():
            self.progress.traces.setdefault(name, []).append(value)
        norm = float(clip_grad_norm_(self.trained, self.config.clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._diverged(loss, norm)
        warmup_steps = round(self.config.warmup * self.total_steps)
        factor = schedule_factor(self.config.schedule, self.progress.step, warmup_steps, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        if self.progress.step % RELEASE_STEPS == 0:
            release_memory()

    def _evaluation_is_due(self) -> bool:
        """Whether this is a step to evaluate after, and that is not done."""
        step, history = self.progress.step, self.progress.history
        due = step == self.total_steps or (step > 0 and step % self.evaluation_steps == 0)
        return due and not (history and history[-1]["step"] == step)

    def _evaluate(self, bar: tqdm) -> bool:
        """Add a row to the history; with a dev set, evaluate on it, and keep the model if it is the best: True then."""
        progress, best = self.progress, False
        row: dict[str, Any] = {"step": progress.step}
        row |= {f"train {name}": total / count for name, (total, count) in progress.sums.items() if count}
        if self.objective.evaluates:
            metrics = self.objective.evaluate(**self.options)
            row |= {f"dev {name}": value for name, value in metrics.items()}
            score = metrics["score"] if math.isfinite(metrics["score"]) else -math.inf  # a correlation may be nan
            if progress.best is None or score > progress.best["score"]:
                progress.best, progress.evaluations_since_best = {"step": progress.step, **metrics, "score": score}, 0
                self._save()
                best = True
            else:
                progress.evaluations_since_best += 1
            progress.stopped_early = progress.evaluations_since_best >= (self.config.patience or math.inf)
        progress.sums = {}
        progress.history.append(row)
        if processes().is_main_process:
            bar.write(self.objective.describe(row))
        return best

    def _save(self) -> None:
        """Write the model, and take away what an earlier run left beside the one that it replaces."""
        if processes().is_main_process:
            self.objective.save(self.output)
            if self.progress.replaces_run:
                stale = () if self.has_checkpoint else (CHECKPOINT,)
                remove_leftovers(self.output, (*self.objective.leftovers, *stale))

    def _checkpoint(self) -> None:
        self.has_checkpoint = True
        if processes().is_main_process:
            save_checkpoint(self.output, self.objective, self.optimizer, asdict(self.progress))

    def _diverged(self, loss: float, norm: float) -> None:
        kept = "nothing was saved yet"
        saved = read_progress(self.output) if (self.output / CHECKPOINT).is_file() else {}
        if saved.get("run") == self.progress.run:
            kept = f"the checkpoint of step {saved['step']} is kept"
        raise UserError(
            f"step {self.progress.step + 1}: the loss is {loss} and its gradient's norm {norm}, so training stopped; "
            f"{kept} in {self.output}; a lower learning rate or a longer warm-up usually helps"
        )

    def _identity(self) -> dict[str, Any]:
        """Describe what a resumed run must share with the one it goes on from: options, data, start."""
        settings = {**self.config.compared(), "precision": self.precision}
        frozen = [name for name, stage in self.objective.named_stages().items() if is_frozen(stage)]
        contents = {"the training rows": self.objective.data.digest(), "the frozen stages": frozen}
        return json.loads(json.dumps({"settings": settings, "contents": {**contents, **self.objective.contents}}))


def dropout_seed(seed: int, step: int, process: int, batch: int) -> int:
    """A seed for each batch of each step on each process, so that no random state needs to be kept."""
    return int(np.random.SeedSequence([seed, step, process, batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
