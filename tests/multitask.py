"""Small multi-task models, and trainings of them, for the tests."""

import dataclasses

import torch
import torch.nn.functional as F

from common.config import MultiTaskConfig
from common.data import UNLABELLED, MultiTaskDataset
from common.multitask import MultiTaskTrainer
from common.rows import LabelledRows

TASKS = {"topic": ["Science", "Sports"], "sentiment": ["bad", "good"]}
TEXTS = [
    f"text {word} with {'a ball' if i % 2 else 'an atom'}" + " and more" * (i % 5) for i, word in enumerate("abcdefgh")
]
CONFIG = MultiTaskConfig(
    epochs=3, batch_size=3, learning_rate=1e-2, weight_decay=0.5, device="cpu", precision="fp32", batch_tokens=40
)


def data_for(model, classes=None) -> MultiTaskDataset:
    labels = {task: [names[i % 2] for i in range(len(TEXTS))] for task, names in TASKS.items()}
    rows = LabelledRows(TEXTS, labels, [f"line {i}" for i in range(len(TEXTS))])
    data = MultiTaskDataset(rows, TASKS, model.encoder.tokenizer)
    data.classes |= classes or {}
    return data


def trainer_for(model, output, config=CONFIG, classes=None, dev=None, **options) -> MultiTaskTrainer:
    options = {**options, "dev": data_for(model) if dev else None}
    return MultiTaskTrainer(model, data_for(model, classes), config, output=output, **options)


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def one_step(model, tmp_path, classes=None, **settings):
    """The history's row and all gradients of one step over all rows, cut into batches of a row or two."""
    settings = {"batch_size": len(TEXTS), "batch_tokens": 12, "epochs": 1, "clip_norm": 1e9, **settings}
    trainer, found = trainer_for(model, tmp_path, dataclasses.replace(CONFIG, **settings), classes), {}
    update = trainer._update

    def keep(loss):
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        update(loss)

    trainer._update = keep
    return trainer.train().history[0], found


def mean_losses(model, classes):
    """Each task's loss over all rows in one batch, as torch averages it."""
    logits = model(*model.encoder.tokenizer.pad(model.encoder.tokenizer(TEXTS)))
    return {task: F.cross_entropy(logits[task], torch.tensor(labels)) for task, labels in classes.items()}


GAPS = {
    "topic": [0, UNLABELLED, 1, UNLABELLED, 0, 1, UNLABELLED, 1],
    "sentiment": [UNLABELLED, UNLABELLED, UNLABELLED, 1, UNLABELLED, UNLABELLED, UNLABELLED, 0],
}
