"""Fine-tuning the same encoder in several ways: what each reaches, what it moves, and what it forgets."""

import json
import random
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from common.checkpoint import CHECKPOINT, model_digest
from common.config import MultiTaskConfig
from common.data import digest
from common.devices import processes, resolve_device, resolve_precision
from common.embedding import Encoder
from common.errors import UserError
from common.files import write_json
from common.heads import MultiTaskModel
from common.load import load_encoder
from common.metrics import evaluate_tasks, pair_similarities, spearman
from common.multitask import MultiTaskObjective, MultiTaskTrainer
from common.optim import learning_rates
from common.rows import LabelledRows, TrainingRows, training_tasks

GRADUAL = "gradual"
PAIRS = 1000
GRADIENT_POINTS = 20
RESULT, TRAINING = "result.json", "training"


@dataclass(frozen=True)
class Setting:
    """What all trainings of a comparison share.

    `pairs` are sentences whose similarities show what is forgotten; with scores, also how well they agree with them.
    `encoder` is a folder or hub name (None: the shipped encoder), `tasks` the columns that are tasks (None: all).
    """

    encoder: str | None
    train: LabelledRows
    dev: LabelledRows
    test: LabelledRows
    pairs: TrainingRows
    config: MultiTaskConfig
    tasks: Sequence[str] | None = None

    def config_for(self, strategy: str, seed: int) -> MultiTaskConfig:
        """The configuration of one training."""
        rates, unfreeze = split_strategy(strategy)
        return replace(self.config, rates=rates, unfreeze=unfreeze, seed=seed)

    def description(self, model: MultiTaskModel, strategy: str) -> dict[str, Any]:
        """What an earlier training must have shared with this setting, its seed aside, to be kept for it."""
        config = self.config_for(strategy, seed=0)
        rows = [[part.texts, part.labels] for part in (self.train, self.dev, self.test)]
        described = {
            **config.compared(),
            "precision": resolve_precision(config.precision, resolve_device(config.device)),
            "data": digest(rows, self.pairs.rows, self.pairs.scores),
            "encoder": model_digest(model.encoder),
            "rates": learning_rates(config.rates, model, config.learning_rate),
        }
        return json.loads(json.dumps(described))  # as it is read back

    def similarities(self, encoder: Encoder) -> np.ndarray:
        """The cosine similarity of each pair, (pairs,)."""
        return pair_similarities(encoder, *zip(*self.pairs.rows, strict=True), precision=self.config.precision)


@dataclass(frozen=True)
class Outcome:
    """One training: each task's test results, and what became of the encoder.

    `moved` is, for each stage, the length of its change over its length at the start (those that begin at zero are left
    out). `similarity_kept` is Spearman's correlation of the pairs' similarities before and after; `scored` that with
    their scores, before and after. `dev_scores` are (step, macro F1 averaged over the tasks) at each evaluation;
    `gradients` is, for each stage, the norm of its gradient before clipping, averaged over each of (up to) 20 equal
    stretches of the training.
    """

    strategy: str
    seed: int
    test: dict[str, dict[str, float]]
    moved: dict[str, float]
    similarity_kept: float
    scored: tuple[float, float] | None
    dev_scores: list[tuple[int, float]]
    gradients: dict[str, list[float]]
    seconds: float

    def flat(self) -> dict[str, Any]:
        """As one row of a table."""
        measures = {f"{task} {name}": value for task, result in self.test.items() for name, value in result.items()}
        scored = {"sts before": self.scored[0], "sts after": self.scored[1]} if self.scored else {}
        moved = {f"moved: {stage}": value for stage, value in self.moved.items()}
        kept = {"similarity kept": self.similarity_kept, "seconds": self.seconds}
        return {"strategy": self.strategy, "seed": self.seed, **measures, **kept, **scored, **moved}


def random_pairs(texts: Sequence[str], count: int = PAIRS) -> TrainingRows:
    """Pairs of different texts drawn at random, always the same ones, without scores.

    Raises:
        UserError: fewer than three texts.
    """
    draw = random.Random(0)
    if len(texts) < 3:
        raise UserError(f"only {len(texts)} texts: similarities can be compared from 3 on (or of the pairs of --sts)")
    pairs = [tuple(draw.sample(range(len(texts)), 2)) for _ in range(count)]
    return TrainingRows([(texts[i], texts[j]) for i, j in pairs], None, ("sentence1", "sentence2"))


def split_strategy(strategy: str) -> tuple[str, float | None]:
    """The learning rates of a strategy, and its epochs between two thaws (0: spread evenly; None: all at once).

    "gradual" unfreezes gradually at one rate, "gradual+layerwise" at layer-wise rates; others are rates alone.
    """
    if strategy == GRADUAL:
        return "uniform", 0.0
    if strategy.startswith(GRADUAL + "+"):
        return strategy.removeprefix(GRADUAL + "+"), 0.0
    return strategy, None


def compare_strategies(
    setting: Setting, strategies: Sequence[str], seeds: Iterable[int], folder: Path, overwrite: bool = False
) -> list[Outcome]:
    """Train with each strategy and seed in turn; what `folder` holds of them already is kept or gone on with.

    Args:
        overwrite: discard what the folder holds of them.

    Raises:
        UserError: a strategy there is not, or a folder with results of another setting.
        Interrupted: a signal asked to stop; the same call goes on from there.
    """
    if processes().num_processes > 1:
        raise UserError("strategies are compared on one process; start the script without a launcher")
    tasks = training_tasks(setting.train, setting.tasks)
    encoder = load_encoder(setting.encoder).to(resolve_device(setting.config.device))
    model = MultiTaskModel(encoder, tasks)
    for strategy in strategies:  # what cannot be trained is said before the first training
        try:
            MultiTaskObjective(model, model.dataset(setting.train), setting.config_for(strategy, seed=0))
        except UserError as error:
            argument = "strategies" if error.argument in ("rates", "unfreeze") else error.argument
            raise UserError(f"{strategy}: {error.message}", argument) from None
    described = {strategy: setting.description(model, strategy) for strategy in strategies}
    before = setting.similarities(encoder)
    runs = [(strategy, seed) for seed in seeds for strategy in strategies]
    outcomes = []
    for number, (strategy, seed) in enumerate(runs, 1):
        print(f"\n{strategy}, seed {seed} ({number} of {len(runs)})", flush=True)
        place = folder / f"{strategy.replace('/', '_')}-{seed}"
        unfinished = (place / TRAINING / CHECKPOINT).is_file() and not overwrite
        outcome = None if unfinished or overwrite else _kept_outcome(place, described[strategy])
        if outcome is None:
            outcome = Training(setting, strategy, seed).outcome(place / TRAINING, before, resume=unfinished)
            write_json(place / RESULT, {**asdict(outcome), "setting": described[strategy]})
            shutil.rmtree(place / TRAINING)  # a model for each training would fill the disk
        outcomes.append(outcome)
    return outcomes


def _kept_outcome(place: Path, described: dict[str, Any]) -> Outcome | None:
    """The outcome that an earlier call left, if it did."""
    path = place / RESULT
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        earlier, outcome = saved.pop("setting"), Outcome(**saved)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); overwrite it to train anew") from None
    if earlier != described:
        raise UserError(
            f"{place}: holds the result of other settings, weights or data; choose another folder, "
            "or overwrite it (--overwrite)"
        )
    print("kept from an earlier run")
    return outcome


@dataclass(frozen=True)
class Training:
    """One training of a comparison."""

    setting: Setting
    strategy: str
    seed: int

    def outcome(self, folder: Path, before: np.ndarray, resume: bool) -> Outcome:
        """Train in a folder, or go on there, and measure; `before` are the pairs' similarities at the start."""
        setting, config = self.setting, self.setting.config_for(self.strategy, self.seed)
        set_seed(self.seed)
        model = MultiTaskModel(load_encoder(setting.encoder), training_tasks(setting.train, setting.tasks))
        train, dev, test = (model.dataset(rows) for rows in (setting.train, setting.dev, setting.test))
        trainer = MultiTaskTrainer(model, train, config, output=folder, dev=dev, watch=True)
        progress = trainer.train(resume, overwrite=not resume)
        best = MultiTaskModel.from_pretrained(folder).to(trainer.device)
        begun, after = trainer.objective.begun, setting.similarities(best.encoder)
        names, scores = ("rows", "accuracy", "macro_recall", "macro_f1"), setting.pairs.scores
        results = evaluate_tasks(best, test, precision=trainer.precision)
        return Outcome(
            strategy=self.strategy,
            seed=self.seed,
            test={task: {name: result[name] for name in names} for task, result in results.items()},
            moved={name: moved(begun[name], stage) for name, stage in best.named_stages().items() if begun[name].any()},
            similarity_kept=spearman(before, after),
            scored=(spearman(before, scores), spearman(after, scores)) if scores else None,
            dev_scores=[(row["step"], row["dev score"]) for row in progress.history],
            gradients={name: stretches(norms) for name, norms in progress.traces.items()},
            seconds=progress.seconds,
        )


def stretches(values: Sequence[float]) -> list[float]:
    """The means of up to `GRADIENT_POINTS` equal stretches of a sequence."""
    return [float(stretch.mean()) for stretch in np.array_split(values, min(GRADIENT_POINTS, len(values)))]


@torch.no_grad()
def moved(begun: Tensor, stage: nn.Module) -> float:
    """The length of the change of a stage's parameters over their length as it began."""
    return float((parameters_to_vector(stage.parameters()) - begun).norm() / begun.norm())
