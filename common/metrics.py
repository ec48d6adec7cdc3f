"""What results are measured by: correlations with an interval, and how well classes are told apart."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from common.data import UNLABELLED, MultiTaskDataset
from common.encoder import BATCH_TOKENS, Encoder
from common.heads import MultiTaskModel

Statistic = Callable[[np.ndarray, np.ndarray], float]


def pearson(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's linear correlation of two (n,) arrays; nan where one of them is constant."""
    left, right = np.asarray(left, float) - np.mean(left), np.asarray(right, float) - np.mean(right)
    scale = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / scale) if scale > 0 else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each of (n,) values, from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation of two (n,) arrays, ties included; nan where one of them is constant."""
    return pearson(ranks(left), ranks(right))


def bootstrap_interval(
    statistic: Statistic,
    left: np.ndarray,
    right: np.ndarray,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of paired values (Efron & Tibshirani 1993, chapter 13).

    Resamples in which the statistic is undefined are left out; (nan, nan) where it always is.
    """
    generator = np.random.default_rng(seed)
    left, right = np.asarray(left), np.asarray(right)
    samples = [generator.integers(0, len(left), len(left)) for _ in range(resamples)]
    values = np.array([statistic(left[sample], right[sample]) for sample in samples])
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pair_similarities(encoder: Encoder, left: Sequence[str], right: Sequence[str], **options: object) -> np.ndarray:
    """The cosine similarity of each left sentence with its right one: (n,) float32."""
    embeddings = encoder.encode([*left, *right], **options)
    return (embeddings[: len(left)] * embeddings[len(left) :]).sum(axis=1)


def confusion_matrix(truth: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """(classes, classes) counts: rows are the true class, columns the predicted one."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (np.asarray(truth, int), np.asarray(predicted, int)), 1)
    return counts


def class_table(confusion: np.ndarray) -> list[dict[str, float]]:
    """Precision, recall, F1 and the number of rows of each class; 0 where a share has no rows to be taken of."""
    hits, predicted, actual = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    columns = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(actual, 1),
        "f1": 2 * hits / np.maximum(predicted + actual, 1),
        "rows": actual,
    }
    return [{name: values[i].item() for name, values in columns.items()} for i in range(len(confusion))]


def classification_metrics(confusion: np.ndarray) -> dict[str, float]:
    """Accuracy, and the macro averages of recall and F1 over the classes that occur, true or predicted.

    A class that occurs nowhere counts in no average, one that was only predicted counts with 0.
    """
    occurs = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    rows = [row for row, counts in zip(class_table(confusion), occurs, strict=True) if counts]
    return {
        "accuracy": float(confusion.diagonal().sum() / max(confusion.sum(), 1)),
        "macro_recall": float(np.mean([row["recall"] for row in rows])) if rows else float("nan"),
        "macro_f1": float(np.mean([row["f1"] for row in rows])) if rows else float("nan"),
    }


def evaluate_tasks(
    model: MultiTaskModel, data: MultiTaskDataset, batch_tokens: int = BATCH_TOKENS, precision: str = "fp32"
) -> dict[str, dict[str, Any]]:
    """How a model does on each task that has labels in the data.

    For each: `rows`, `loss` (mean cross-entropy), `accuracy`, `macro_recall`, `macro_f1`, `classes` (a table by
    label) and `confusion` (a list of rows).
    """
    results = {}
    states = getattr(data, "states", None)  # a FrozenEncoderDataset has them
    for task, logits in model.logits(data.ids, batch_tokens, precision, states).items():
        truth = torch.tensor(data.classes[task])
        known = truth != UNLABELLED
        if not bool(known.any()):
            continue
        confusion = confusion_matrix(truth[known].tolist(), logits[known].argmax(dim=-1).tolist(), logits.size(1))
        results[task] = {
            "rows": int(known.sum()),
            "loss": F.cross_entropy(logits[known], truth[known]).item(),
            **classification_metrics(confusion),
            "classes": dict(zip(data.tasks[task], class_table(confusion), strict=True)),
            "confusion": confusion.tolist(),
        }
    return results
