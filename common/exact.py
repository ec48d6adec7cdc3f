"""Linear heads on a frozen encoder, fitted exactly and at once: logistic regression, scikit-learn's."""

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

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)  # C: the smaller, the more the weights are held to 0
WITHOUT_DEV = 0.001
CHUNK = 4096


def can_be_fitted(model: MultiTaskModel, data: MultiTaskDataset) -> bool:
    """Whether the heads are linear, the encoder frozen, and each label of every head that is to learn has a row.

    A head that has learned labels which are not here would forget them: it takes training, which goes on from there.
    """
    if model.kind != "linear" or not model.encoder_is_frozen:
        return False
    return all(set(labelled(data, task)[1]) == set(range(len(model.tasks[task]))) for task in to_fit(model, data))


def to_fit(model: MultiTaskModel, data: MultiTaskDataset) -> list[str]:
    """The tasks that have labels in the data, and a head that is not frozen."""
    return [task for task in model.tasks if data.labelled(task) and not is_frozen(model.head(task))]


def fit_linear_heads(
    model: MultiTaskModel,
    data: MultiTaskDataset,
    dev: MultiTaskDataset | None = None,
    class_weight: str = "none",
    **options: Any,
) -> dict[str, float]:
    """Fit the classifier of each task that has labels, and give the C of each; a frozen head stays as it is.

    Multinomial logistic regression with an L2 penalty. C is the one with the highest macro F1 on the dev rows, 0.001
    for a task without any.

    Args:
        class_weight: "none" or "balanced".
        options: `precision` and `batch_tokens` of `encode`.
    """
    from sklearn.metrics import f1_score

    macro_f1 = partial(f1_score, average="macro")
    embeddings, asked = (embeddings_of(model, part, options) if part else None for part in (data, dev))
    chosen = {}
    for task in to_fit(model, data):
        rows, truth = labelled(data, task)
        fit = partial(fit_classifier, model.head(task), embeddings[rows], truth, class_weight)
        chosen[task] = WITHOUT_DEV
        if dev and dev.labelled(task):
            dev_rows, dev_truth = labelled(dev, task)
            scores = {c: macro_f1(dev_truth, fit(c)(asked[dev_rows]).argmax(dim=-1).numpy()) for c in STRENGTHS}
            chosen[task] = max(scores, key=scores.get)  # of equals the strongest
        fit(chosen[task])
        model.temperatures[task] = 1.0
    model.untrained -= set(chosen)
    return chosen


def embeddings_of(model: MultiTaskModel, data: MultiTaskDataset, options: dict[str, Any]) -> Tensor:
    """The (rows, dim) embeddings of a data set's texts, unit rows, on the CPU. The processes share the work."""
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
def fit_classifier(head: LinearHead, embeddings: Tensor, truth: np.ndarray, class_weight: str, strength: float) -> Any:
    """Put into a head's classifier what logistic regression of (rows, dim) embeddings on (rows,) classes finds.

    Gives the function from (rows, dim) embeddings to (rows, classes) logits, both on the CPU.
    """
    from sklearn.linear_model import LogisticRegression

    device = head.classifier.weight.device
    weight = None if class_weight == "none" else class_weight
    regression = LogisticRegression(C=strength, class_weight=weight, max_iter=2000)
    regression.fit(head.features(embeddings.to(device)).cpu().numpy(), truth)
    weights, biases = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # one row, of the second class against the first
        weights, biases = (np.concatenate([-values, values]) / 2 for values in (weights, biases))
    head.classifier.weight.copy_(torch.from_numpy(weights))
    head.classifier.bias.copy_(torch.from_numpy(biases))
    return torch.no_grad()(lambda asked: head.classifier(head.features(asked.to(device))).cpu())
