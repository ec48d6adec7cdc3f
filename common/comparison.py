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

from common.checkpoint import NAME as CHECKPOINT
from common.checkpoint import weights_digest
from common.cli import UserError
from common.data import LabelledRows, MultiTaskDataset, TrainingRows, digest, training_tasks
from common.encoder import SHIPPED, SentenceEncoder
from common.heads import MultiTaskModel
from common.losses import complete_weights
from common.metrics import evaluate_tasks, pair_similarities, spearman
from common.optim import learning_rates
from common.report import write_json
from common.trainer import MultiTaskTrainer, TrainingConfig

GRADUAL = "gradual"
PAIRS = 1000
GRADIENT_POINTS = 20
RESULT, TRAINING = "result.json", "training"


@dataclass(frozen=True)
class Setting:
    """What all trainings of a comparison share.

    `pairs` are sentences whose similarities show what is forgotten; with scores, also how well they agree with them.
    `tasks` names the columns that are tasks (None: all of them).
    """

    encoder: str | None
    train: LabelledRows
    dev: LabelledRows
    test: LabelledRows
    pairs: TrainingRows
    config: TrainingConfig
    tasks: Sequence[str] | None = None

    def description(self, model: MultiTaskModel, strategy: str) -> dict[str, Any]:
        """What an earlier training must have shared with this setting, its seed aside, to be kept for it."""
        rows = [[part.texts, part.labels] for part in (self.train, self.dev, self.test)]
        rates, unfreeze = split_strategy(strategy)
        settings = {name: value for name, value in asdict(self.config).items() if name != "seed"}
        return {
            **settings,
            "data": digest(rows, self.pairs.rows, self.pairs.scores),
            "encoder": weights_digest(model.encoder),
            "rates": learning_rates(rates, model, self.config.learning_rate),
            "unfreeze": unfreeze,
        }


@dataclass(frozen=True)
class Outcome:
    """One training: each task's test results, and what became of the encoder.

    `moved` is, for each part, the length of its change over its length at the start. `similarity_kept` is Spearman's
    correlation of the pairs' similarities before and after; `scored` that with their scores, before and after.
    `dev_scores` are (step, macro F1 averaged over the tasks) at each look; `gradients` is, for each part, the norm of
    its gradient before clipping, averaged over each of (up to) 20 equal stretches of the training.
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
        moved = {f"moved: {part}": value for part, value in self.moved.items()}
        kept = {"similarity kept": self.similarity_kept, "seconds": self.seconds}
        return {"strategy": self.strategy, "seed": self.seed, **measures, **kept, **scored, **moved}


def random_pairs(texts: Sequence[str], count: int = PAIRS) -> TrainingRows:
    """Pairs of different texts drawn at random, always the same ones, without scores.

    Raises:
        UserError: fewer than three texts.
    """
    draw = random.Random(0)
    if len(texts) < 3:
        raise UserError(f"only {len(texts)} texts: similarities can be compared from 3 on")
    pairs = [tuple(draw.sample(range(len(texts)), 2)) for _ in range(count)]
    return TrainingRows([(texts[i], texts[j]) for i, j in pairs], None, ("sentence1", "sentence2"))


def split_strategy(strategy: str) -> tuple[str, float | None]:
    """The learning rates of a strategy, and its epochs between two thaws (0: spread evenly; None: all at once).

    "gradual" unfreezes gradually at one rate, "gradual+seed" with the rates called seed; others are rates alone.
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
    tasks = training_tasks(setting.train, setting.tasks)
    encoder = SentenceEncoder.from_pretrained(setting.encoder or SHIPPED)
    model = MultiTaskModel(encoder, tasks)
    # A wrong word is said before the first training.
    described = {strategy: setting.description(model, strategy) for strategy in strategies}
    before = pair_similarities(encoder, *zip(*setting.pairs.rows, strict=True))
    runs = [(strategy, seed) for seed in seeds for strategy in strategies]
    outcomes = []
    for number, (strategy, seed) in enumerate(runs, 1):
        print(f"\n{strategy}, seed {seed} ({number} of {len(runs)})", flush=True)
        place = folder / f"{strategy.replace('/', '_')}-{seed}"
        if overwrite:
            shutil.rmtree(place / TRAINING, ignore_errors=True)
            (place / RESULT).unlink(missing_ok=True)
        outcome = _kept_outcome(place, described[strategy])
        outcomes.append(outcome or _train(setting, tasks, strategy, seed, place, before, described[strategy]))
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
        raise UserError(f"{path}: cannot be read ({error}); add --overwrite to train anew") from None
    if earlier != described:
        raise UserError(
            f"{place}: holds the result of other settings, weights or data; choose another --output, or add --overwrite"
        )
    print("kept from an earlier run")
    return outcome


def _train(
    setting: Setting,
    tasks: dict[str, list[str]],
    strategy: str,
    seed: int,
    place: Path,
    before: np.ndarray,
    described: dict[str, Any],
) -> Outcome:
    """Train, measure, and keep the outcome alone."""
    config = replace(setting.config, seed=seed)
    set_seed(seed)
    model = MultiTaskModel(SentenceEncoder.from_pretrained(setting.encoder or SHIPPED), tasks)
    start = {name: copied(part) for name, part in model.parts().items()}
    train, dev, test = (
        MultiTaskDataset(rows, tasks, model.encoder.tokenizer) for rows in (setting.train, setting.dev, setting.test)
    )
    folder = place / TRAINING
    trainer = MultiTaskTrainer(
        model,
        train,
        config,
        folder,
        dev,
        complete_weights(list(tasks), {}),
        rates=described["rates"],
        unfreeze=described["unfreeze"],
        watch_gradients=True,
        description=described,
    )
    progress = trainer.train(resume=(folder / CHECKPOINT).is_file())
    best = MultiTaskModel.from_pretrained(folder).to(trainer.accelerator.device)
    after = pair_similarities(best.encoder, *zip(*setting.pairs.rows, strict=True))
    names = ("rows", "accuracy", "macro_recall", "macro_f1")
    scores = setting.pairs.scores
    outcome = Outcome(
        strategy=strategy,
        seed=seed,
        test={
            task: {name: result[name] for name in names}
            for task, result in evaluate_tasks(best, test, precision=trainer.precision).items()
        },
        moved={name: distance(start[name], copied(part)) for name, part in best.parts().items()},
        similarity_kept=spearman(before, after),
        scored=(spearman(before, scores), spearman(after, scores)) if scores else None,
        dev_scores=[(row["step"], row["dev score"]) for row in progress.history],
        gradients={name: stretches(norms) for name, norms in progress.gradients.items()},
        seconds=progress.seconds,
    )
    write_json(place / RESULT, {**asdict(outcome), "setting": described})
    shutil.rmtree(folder)  # a model for each training would fill the disk
    return outcome


def stretches(values: Sequence[float]) -> list[float]:
    """The means of up to `GRADIENT_POINTS` equal stretches of a sequence."""
    return [float(stretch.mean()) for stretch in np.array_split(values, min(GRADIENT_POINTS, len(values)))]


def copied(part: nn.Module) -> Tensor:
    """All parameters of a part as one vector on the CPU."""
    return torch.cat([parameter.detach().flatten().cpu().clone() for parameter in part.parameters()])


def distance(start: Tensor, end: Tensor) -> float:
    """The length of the change of a vector over its length at the start."""
    return float((end - start).norm() / start.norm().clamp(min=1e-12))
