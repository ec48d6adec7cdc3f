"""Small trainings for the tests, to be disturbed at any step."""

import copy
import os
import signal

import pytest
import torch

from common.config import TrainingConfig
from common.data import SentenceDataset
from common.errors import Interrupted
from common.sentences import PairObjective
from common.train import Trainer

ROWS = [
    (f"sentence number {i} speaks of {word}" + " at length" * (i % 4), f"{word}, says line {i}")
    for i, word in enumerate("abcdefghijklmnop")
]
CONFIG = TrainingConfig(epochs=3, batch_size=6, learning_rate=1e-3, device="cpu", precision="fp32")
Weights = dict[str, torch.Tensor]


class Judged(PairObjective):
    """A pair objective whose dev scores are given, and which remembers the steps at which it was saved."""

    def __init__(self, encoder, data, scores=None):
        super().__init__(encoder, data)
        self.evaluates, self.scores, self.saved = scores is not None, iter(scores or []), []

    def evaluate(self, **options):
        return {"score": next(self.scores)}

    def save(self, folder):
        self.saved.append(folder)
        super().save(folder)


def trainer_for(encoder, output, config=CONFIG, before_step=lambda trainer: None, scores=None, rows=ROWS) -> Trainer:
    """A trainer on a copy of the encoder; `before_step` may disturb it at any step."""
    data = SentenceDataset(rows, encoder.tokenizer)
    trainer = Trainer(Judged(copy.deepcopy(encoder), data, scores), config, output)
    backward = trainer._backward

    def disturbed(*arguments):
        before_step(trainer)
        return backward(*arguments)

    trainer._backward = disturbed
    return trainer


def weights(trainer: Trainer) -> Weights:
    return {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}


def equal(left: Weights, right: Weights) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def at_step(step, act):
    return lambda trainer: act() if trainer.progress.step == step else None


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def stopped(tiny_encoder, output, step=1, config=CONFIG):
    """Leave an unfinished run in a folder."""
    with pytest.raises(Interrupted, match=f"stopped after step {step + 1} of"):
        trainer_for(tiny_encoder, output, config, before_step=at_step(step, interrupt)).train()
