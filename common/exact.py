"""Linear heads on a frozen encoder, fitted exactly and at once: logistic regression, scikit-learn's."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.cli import progress_bar
from common.data import UNLABELLED, MultiTaskDataset
from common.devices import interleaved, share_of
from common.freezing import is_frozen
from common.heads import LinearHead, MultiTaskModel
from common.readers import chunked

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C: the smaller, the more the weights are held to 0
WITHOUT_DEV = 0.003
CHUNK = 4096
NEVER_SEEN = -1e4  # the logit of a label that no row has


def fit_linear_heads(
    model: MultiTaskModel,
    data: MultiTaskDataset,
    dev: MultiTaskDataset | None = None,
    class_weight: str = "none",
    **options: Any,
) -> dict[str, float]:
    """Fit the classifier of each task that has labels, and give the C of each.

    Multinomial logistic regression with an L2 penalty. C is the one with the lowest cross-entropy on the dev rows,
    0.003 for a task without any. A frozen head stays as it is.

    Args:
        class_weight: "none" or "balanced".
        options: `precision` and `batch_tokens` of `encode`.
    """
    embeddings, asked = (embeddings_of(model, part, options) if part else None for part in (data, dev))
    chosen = {}
    for task in model.tasks:
        rows, truth = labelled(data, task)
        head = model.head(task)
        if not len(rows) or is_frozen(head):
            continue
        fit = partial(fitted, head, embeddings[rows], truth, class_weight)
        dev_rows, dev_truth = labelled(dev, task) if dev else ([], [])
        strengths = STRENGTHS if len(dev_rows) else [WITHOUT_DEV]
        losses = {}
        for strength in strengths:
            fit(strength)
            losses[strength] = dev_loss(head, asked[dev_rows], dev_truth) if len(dev_rows) else 0.0
        chosen[task] = min(losses, key=losses.get)
        fit(chosen[task])
    model.untrained -= set(chosen)
    return chosen


def embeddings_of(model: MultiTaskModel, data: MultiTaskDataset, options: dict[str, Any]) -> Tensor:
    """The (rows, dim) embeddings of a data set's texts, unit rows. The processes share the work."""
    own, parts = share_of(data.texts), []
    with progress_bar(len(own), " texts", "frozen encoder, once") as bar:
        for chunk in chunked(own, CHUNK):
            parts.extend(model.encoder.encode(chunk, **options))
            bar.update(len(chunk))
    return torch.from_numpy(np.asarray(interleaved(parts)))


def labelled(data: MultiTaskDataset, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows that have a label for a task, and their classes."""
    classes = np.array(data.classes[task])
    rows = np.flatnonzero(classes != UNLABELLED)
    return rows, classes[rows]


@torch.no_grad()
def fitted(head: LinearHead, embeddings: Tensor, truth: Sequence[int], class_weight: str, strength: float) -> None:
    """Put into a head's classifier what logistic regression of (rows, dim) embeddings on (rows,) classes finds."""
    from sklearn.linear_model import LogisticRegression

    weight = None if class_weight == "none" else class_weight
    regression = LogisticRegression(C=strength, class_weight=weight, max_iter=2000)
    regression.fit(head.features(embeddings).numpy(), truth)
    weights, biases = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # one row, of the second class against the first
        weights, biases = (np.concatenate([-values, values]) / 2 for values in (weights, biases))
    head.classifier.weight.zero_()
    head.classifier.bias.fill_(NEVER_SEEN)
    head.classifier.weight[regression.classes_] = torch.from_numpy(weights).float()
    head.classifier.bias[regression.classes_] = torch.from_numpy(biases).float()


@torch.no_grad()
def dev_loss(head: LinearHead, embeddings: Tensor, truth: Sequence[int]) -> float:
    """The mean cross-entropy of a head on (rows, dim) embeddings with (rows,) classes."""
    logits = head.classifier(head.features(embeddings))
    return torch.nn.functional.cross_entropy(logits, torch.as_tensor(truth)).item()
