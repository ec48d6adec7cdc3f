"""Training several tasks together: how they are weighed, what trains, and how the best model is chosen and kept."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm, parameters_to_vector

from common.checkpoint import START, model_digest
from common.config import MultiTaskConfig
from common.data import UNLABELLED, MultiTaskDataset
from common.devices import processes, share_out, sum_over_processes, wait_for_all
from common.errors import UserError
from common.exact import begin_fitted, fit_new_heads
from common.freezing import gradual_unfreezing, is_frozen
from common.heads import MultiTaskModel, head_key
from common.losses import balanced_class_weights, complete_weights, distance_loss, task_loss, uncertainty_weighted
from common.metrics import calibrate, evaluate_tasks
from common.objective import Batch, Metrics, Objective, Step
from common.optim import OTHER, learning_rates
from common.states import frozen_data
from common.train import Trainer

# Learned task weights begin at 1 and end near the loss's inverse: at the rates of fine-tuning they would not get there.
LOG_VARIANCE_RATE = 1e-2
SHOWN = (("loss", "loss"), ("accuracy", "accuracy"), ("macro F1", "macro_f1"), ("weight", "weight"))


class MultiTaskObjective(Objective):
    """Trains a multi-task model on the weighted sum of its tasks' mean losses; each task is tracked on its own.

    The classifiers of new heads begin as logistic regression (common/exact.py). With a dev set the model kept is the
    one with the highest macro F1, averaged over the tasks. What `config.freeze` names is frozen on top of what
    `model.freeze` froze. With the whole encoder frozen its token states are computed once, before training.
    `config.keep_similarity` adds the distance of each text's embedding to the one that the starting encoder gives it,
    so that what is trained still serves to compare texts: learning without forgetting (Li & Hoiem 2017) of similarity.

    Args:
        watch: keep the length of each stage's gradient, before clipping, at every step, and in `begun` each stage's
            parameters, as one vector, as the training begins.

    Raises:
        UserError: words that name nothing, a head that would stay at random, nothing that trains has labels, rates that
            make no difference.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        data: MultiTaskDataset,
        config: MultiTaskConfig,
        dev: MultiTaskDataset | None = None,
        watch: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.data, self.dev, self.watch = model, data, dev, watch
        self.evaluates, tasks = dev is not None, list(model.tasks)
        fixed = config.balance == "fixed"
        self.class_weights = balanced_class_weights(data) if config.class_weight == "balanced" else {}
        self.fit_new_heads = partial(fit_new_heads, model, class_weight=config.class_weight, seed=config.seed)
        self.rates = {**learning_rates(config.rates, model, config.learning_rate), OTHER: LOG_VARIANCE_RATE}
        model.freeze(*config.freeze)
        refuse_untrainable(model, data)
        learners = learning(model, data)
        weights = complete_weights(learners, dict(config.task_weight)) if fixed else {}
        self.weights = {**dict.fromkeys(tasks, 0.0), **weights} if fixed else None
        training = {self.rates[name] for name, stage in model.named_stages().items() if not is_frozen(stage)}
        if config.rates != "uniform" and training == {config.learning_rate}:
            raise UserError(f"{config.rates} changes no rate of what is not frozen: leave it out", "rates")
        self.log_variances = None if fixed else nn.Parameter(torch.zeros(len(tasks)))
        for task in learners:  # what training moves has to be calibrated anew
            model.temperatures[task] = 1.0
        self.thaw = self._thaw(config)
        self.keep_similarity, self.start = config.keep_similarity, None
        measures = ("loss", "accuracy") if fixed else ("loss", "accuracy", "weight")
        self.tracked = tuple(f"{task} {name}" for task in tasks for name in measures)
        if self.keep_similarity:
            if model.encoder_is_frozen:
                raise UserError("needs an encoder that is not all frozen", "keep_similarity")
            self.tracked += ("distance",)
        dev_digest = dev.digest() if dev else None
        fitted = [f"heads.{head_key(task)}." for task in begin_fitted(model, data)]  # the fit replaces what they hold
        start = model_digest(model, without=fitted)
        self.contents = {START: start, "the dev rows": dev_digest, "the file of rates": self.rates}
        self._texts = data, dev

    def _thaw(self, config: MultiTaskConfig) -> dict[str, int]:
        """The step at which each stage thaws under gradual unfreezing."""
        if config.unfreeze is None:
            return {}
        stages = self.model.encoder.named_stages()
        if self.model.encoder_is_frozen:
            raise UserError("needs an encoder that is not all frozen", "unfreeze")
        rows = len(self.data)
        between = config.unfreeze * config.steps_per_epoch(rows) or config.total_steps(rows) / 2 / len(stages)
        due = gradual_unfreezing(list(stages), between)
        return {stage: step for stage, step in due.items() if not is_frozen(stages[stage])}

    @property
    def max_padding(self) -> float:
        return self.model.encoder.max_padding

    def named_stages(self) -> dict[str, nn.Module]:
        return self.model.named_stages()

    def prepare(self, folder: Path, **options: Any) -> None:
        """Compute once what the starting encoder says, be it to train on, to keep, or to fit new heads to."""
        self.data, self.dev = self._texts
        if self.keep_similarity:
            embeddings = share_out(partial(self.model.encoder.encode, **options), self.data.texts)
            self.start = torch.from_numpy(np.asarray(embeddings))  # (rows, dim)
        if self.model.encoder_is_frozen:
            sets = [data for data in self._texts if data is not None]
            with_states = frozen_data(sets, self.model.encoder, folder, options)
            self.data, self.dev = with_states if self.dev else (with_states[0], None)
        self.fit_new_heads(self.data, **options)
        taught = {task for task in self.model.tasks if self.data.labelled(task)}
        self.model.new, self.model.grown = self.model.new - taught, self.model.grown - taught
        if self.watch:
            stages = self.named_stages().items()
            self.begun = {name: parameters_to_vector(stage.parameters()).detach() for name, stage in stages}

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """A batch of MultiTaskDataset to each task's (rows, classes) logits, and the (rows, dim) embeddings to be kept.

        `states` (rows, length, dim) in the batch stand in for a pass through the encoder.
        """
        states, mask = batch.get("states"), batch["attention_mask"]
        if states is None:
            states = self.model.encoder.token_states(batch["input_ids"], mask)
        embeddings = None if self.start is None else self.model.encoder.embed_states(states, mask)
        return self.model.classify(states, mask).logits, embeddings

    def backward(self, step: Step) -> None:
        """The gradient of the weighted sum of the tasks' means over the whole step, batch by batch."""
        device = self.model.encoder.device
        # The labelled rows of each task in the step, and at the end all rows.
        counts = torch.zeros(len(self.model.tasks) + 1, device=device)
        for batch in step.batches:
            counts[:-1] += (batch["labels"] != UNLABELLED).sum(dim=0)
            counts[-1] += len(batch["labels"])
        sum_over_processes(counts)
        *labelled, rows = counts.tolist()
        for number, batch in enumerate(step.batches):
            by_task, embeddings = step.forward(number)
            part = torch.zeros((), device=device)
            tasks = zip(self.model.tasks, by_task.values(), batch["labels"].T, labelled, strict=True)
            for i, (task, logits, labels, count) in enumerate(tasks):
                weights = self.class_weights.get(task)
                loss = task_loss(logits.float(), labels, None if weights is None else weights.to(device))
                if loss.count:
                    mean = loss.total / count
                    if self.log_variances is None:
                        part = part + self.weights[task] * mean
                    else:
                        part = part + uncertainty_weighted(mean, self.log_variances[i], loss.count / count)
                        step.track(f"{task} weight", torch.exp(-self.log_variances[i]).detach(), 1)
                    right = (logits.argmax(dim=-1) == labels).sum()
                    step.track(f"{task} loss", loss.total.detach(), loss.count)
                    step.track(f"{task} accuracy", right, loss.count)
            if embeddings is not None:
                distance = distance_loss(embeddings, self.start[batch["index"].cpu()].to(device))
                part = part + self.keep_similarity * distance.total / rows
                step.track("distance", distance.total.detach(), distance.count)
            step.track("loss", part.detach())
            if part.requires_grad:  # there may be labels for frozen heads alone
                part.backward()

    def traces(self) -> dict[str, float]:
        return {name: gradient_norm(stage) for name, stage in self.named_stages().items()} if self.watch else {}

    def evaluate(self, **options: Any) -> Metrics:
        """Give each task's loss, accuracy and macro F1 on the dev rows; the score is the mean macro F1."""
        results = evaluate_tasks(self.model, self.dev, **options)
        shown = ("loss", "accuracy", "macro_f1")
        metrics = {f"{task} {name}": result[name] for task, result in results.items() for name in shown}
        return {**metrics, "score": sum(result["macro_f1"] for result in results.values()) / len(results)}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def describe(self, row: Mapping[str, Any]) -> str:
        """A row of the history: one line for each task."""
        lines, width = [f"step {row['step']}: training loss {row['train loss']:.3f}"], max(map(len, self.model.tasks))
        if "train distance" in row:
            lines[0] += f", distance from the start's embeddings {row['train distance']:.3f}"
        for task in self.model.tasks:
            shown = [
                f"{where} {word} {row[key]:.3f}"
                for where in ("train", "dev")
                for word, name in SHOWN
                if (key := f"{where} {task} {name}") in row
            ]
            if shown:  # the rows of an added task may not label the old ones
                lines.append(f"  {task:<{width}}  {'  '.join(shown)}")
        return "\n".join(lines)


class MultiTaskTrainer(Trainer):
    """Trains a multi-task model into a folder; how, stands in the configuration and under MultiTaskObjective.

    Args:
        output: the folder.
        dev: labelled texts by which the best model is chosen; without any the last one is kept.
        watch: keep the length of each stage's gradient at every step.

    Raises:
        UserError: what MultiTaskObjective and Trainer refuse.
    """

    objective: MultiTaskObjective

    def __init__(
        self,
        model: MultiTaskModel,
        data: MultiTaskDataset,
        config: MultiTaskConfig,
        *,
        output: str | Path,
        dev: MultiTaskDataset | None = None,
        watch: bool = False,
    ) -> None:
        super().__init__(MultiTaskObjective(model, data, config, dev, watch), config, output)

    def fit(self, resume: bool = False, overwrite: bool = False) -> MultiTaskModel:
        """Train to the end, and give the best model, which is then in the folder; `train` says what is raised."""
        self.train(resume, overwrite)
        model = self.best_model()
        self.finish()
        wait_for_all()
        return model

    def best_model(self) -> MultiTaskModel:
        """After `train`: the model in the folder, on its device, its temperatures fitted on the dev rows and saved."""
        model = MultiTaskModel.from_pretrained(self.output).to(self.device)
        if self.objective.dev:
            calibrate(model, self.objective.dev, **self.options)
        if processes().is_main_process:
            model.write_tasks(self.output)
        return model


def learning(model: MultiTaskModel, data: MultiTaskDataset) -> list[str]:
    """The tasks that have labels in the data, and something that learns from them."""
    return [t for t in model.tasks if data.labelled(t) and not (model.encoder_is_frozen and is_frozen(model.head(t)))]


def refuse_untrainable(model: MultiTaskModel, data: MultiTaskDataset) -> None:
    """UserError where a frozen head has labels that it has not learned, or nothing that trains has labels to learn."""
    fitted = begin_fitted(model, data)
    for task in model.tasks:
        if task in model.new | model.grown and is_frozen(model.head(task)) and task not in fitted:
            raise UserError(f"the head of {task} has labels that it has not learned: it cannot be frozen", "freeze")
    if not learning(model, data):
        raise UserError("nothing that trains has labelled rows to learn from", "freeze")


def gradient_norm(stage: nn.Module) -> float:
    """The length of a stage's gradient; 0 where nothing in it has one."""
    return float(get_total_norm([p.grad for p in stage.parameters() if p.grad is not None]))
