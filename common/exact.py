"""Classifiers fitted at once to what an encoder makes of the texts: logistic regression, scikit-learn's.

Linear heads on a frozen encoder take no other training. All other new heads begin so: an encoder that trains under
heads of random weights is distorted by their first gradients (Kumar et al. 2022).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.cli import progress_bar
from common.data import UNLABELLED, MultiTaskDataset
from common.devices import copy_from_main, interleaved, share_of
from common.freezing import is_frozen
from common.heads import Head, MultiTaskModel
from common.readers import chunked

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)  # C: the smaller, the more the weights are held to 0
WITHOUT_DEV = 0.001
CHUNK = 1024
START_ROWS = 10_000  # of a task at most: more would be slow, and training goes on from there


def can_be_fitted(model: MultiTaskModel, data: MultiTaskDataset) -> bool:
    """Whether the heads are linear, the encoder frozen, and each label of every head that is to learn has a row.

    A head that has learned labels which are not here would forget them: it takes training, which goes on from there.
    """
    if model.kind != "linear" or not model.encoder_is_frozen:
        return False
    return all(map(data.has_every_label, to_fit(model, data)))


def to_fit(model: MultiTaskModel, data: MultiTaskDataset) -> list[str]:
    """The tasks that have labels in the data, and a head that is new or not frozen."""
    return [t for t in model.tasks if data.labelled(t) and (t in model.new or not is_frozen(model.head(t)))]


def fit_linear_heads(
    model: MultiTaskModel,
    data: MultiTaskDataset,
    dev: MultiTaskDataset | None = None,
    class_weight: str = "none",
    **options: Any,
) -> dict[str, float]:
    """Fit the classifier of each task that has labels, and give the C of each; a frozen head stays, but if it is new.

    Multinomial logistic regression with an L2 penalty. C is the one with the highest macro F1 on the dev rows, 0.001
    for a task without any.

    Args:
        class_weight: "none" or "balanced".
        options: `precision` and `batch_tokens` of `encode`.
    """
    from sklearn.metrics import f1_score

    macro_f1 = partial(f1_score, average="macro")
    tasks, chosen = to_fit(model, data), {}
    if not tasks:
        return chosen
    read, asked = (pooled(model, tasks[0], part, range(len(part)), options) if part else None for part in (data, dev))
    for task in tasks:
        rows, truth = labelled(data, task)
        fit = partial(fit_classifier, model.head(task), read[rows], truth, class_weight)
        chosen[task] = WITHOUT_DEV
        if dev and dev.labelled(task):
            dev_rows, dev_truth = labelled(dev, task)
            scores = {c: macro_f1(dev_truth, fit(c)(asked[dev_rows]).argmax(dim=-1).numpy()) for c in STRENGTHS}
            chosen[task] = max(scores, key=scores.get)  # of equals the strongest
        fit(chosen[task])
        model.temperatures[task] = 1.0
    model.new -= chosen.keys()
    model.grown -= chosen.keys()
    return chosen


def begin_fitted(model: MultiTaskModel, data: MultiTaskDataset) -> list[str]:
    """The tasks whose heads begin as logistic regression: new ones, frozen or not, with a row for each label."""
    return [task for task in model.tasks if task in model.new and data.has_every_label(task)]


def fit_new_heads(
    model: MultiTaskModel, data: MultiTaskDataset, class_weight: str = "none", seed: int = 0, **options: Any
) -> None:
    """Fit the classifiers of the heads that begin so; C is 0.001.

    Args:
        seed: which rows are taken of a task that has more than START_ROWS.
        options: as for `fit_linear_heads`.
    """
    draw, taken = np.random.default_rng(seed), {}
    for task in begin_fitted(model, data):
        rows, truth = labelled(data, task)
        order = draw.permutation(len(rows))
        firsts = np.unique(truth[order], return_index=True)[1]  # of each label
        some = order[np.union1d(firsts, np.arange(min(len(order), START_ROWS)))]
        taken[task] = rows[some], truth[some]
    if not taken:
        return
    every = np.unique(np.concatenate([rows for rows, _ in taken.values()]))
    read = pooled(model, next(iter(taken)), data, every, options)
    for task, (rows, truth) in taken.items():
        fit_classifier(model.head(task), read[np.searchsorted(every, rows)], truth, class_weight, WITHOUT_DEV)


def pooled(
    model: MultiTaskModel, task: str, data: MultiTaskDataset, rows: Sequence[int], options: dict[str, Any]
) -> Tensor:
    """What the head of a task pools of some rows, and all heads that are linear or new: (rows, dim), on the CPU.

    The processes share the work.
    """
    own, parts = share_of(rows), []
    with progress_bar(len(own), " texts", "embeddings for the heads") as bar:
        for chunk in chunked(own, CHUNK):
            parts.extend(model.pooled(task, [data[i] for i in chunk], **options).numpy())
            bar.update(len(chunk))
    return torch.from_numpy(np.asarray(interleaved(parts)))


def labelled(data: MultiTaskDataset, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows that have a label for a task, and their classes."""
    classes = np.array(data.classes[task])
    rows = np.flatnonzero(classes != UNLABELLED)
    return rows, classes[rows]


@torch.no_grad()
def fit_classifier(head: Head, pooled: Tensor, truth: np.ndarray, class_weight: str, strength: float) -> Any:
    """Put into a head's classifier what logistic regression of what it pools, (rows, dim), on (rows,) classes finds.

    Gives the function from what is pooled to (rows, classes) logits, both on the CPU.
    """
    from sklearn.linear_model import LogisticRegression

    device = head.classifier.weight.device
    regression = LogisticRegression(
        C=strength, class_weight=None if class_weight == "none" else class_weight, max_iter=2000
    ).fit(head.norm(pooled.to(device)).cpu().numpy(), truth)
    weights, biases = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # one row, of the second class against the first
        weights, biases = (np.concatenate([-values, values]) / 2 for values in (weights, biases))
    head.classifier.weight.copy_(torch.from_numpy(weights))
    head.classifier.bias.copy_(torch.from_numpy(biases))
    copy_from_main(head.classifier.weight, head.classifier.bias)
    return torch.no_grad()(lambda asked: head.classifier(head.norm(asked.to(device))).cpu())
