"""What results are measured by: correlations with an interval, and how well classes are told apart.

The statistics are scikit-learn's and scipy's, imported when they are used: that takes a second.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.calibration import FEWEST_ROWS, calibration_error, fitted_temperature
from common.data import UNLABELLED, MultiTaskDataset
from common.devices import share_out
from common.embedding import Encoder
from common.heads import MultiTaskModel
from common.rows import TrainingRows

Statistic = Callable[[np.ndarray, np.ndarray], float]


def pearson(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's linear correlation of two (n,) arrays; nan where one of them is constant."""
    from scipy.stats import pearsonr

    return float("nan") if _constant(left) or _constant(right) else float(pearsonr(left, right).statistic)


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation of two (n,) arrays, ties included; nan where one of them is constant."""
    from scipy.stats import spearmanr

    return float("nan") if _constant(left) or _constant(right) else float(spearmanr(left, right).statistic)


def _constant(values: np.ndarray) -> bool:
    return bool(np.ptp(np.asarray(values, float)) == 0)


def bootstrap_interval(
    statistic: Statistic, left: np.ndarray, right: np.ndarray, resamples: int = 1000
) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of a statistic of paired values (Efron & Tibshirani 1993, chapter 13).

    Resamples in which the statistic is undefined are left out; (nan, nan) where it always is.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    options = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": resamples, "rng": 0}
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of scipy's own interval, in which nan spreads
        values = bootstrap((np.asarray(left), np.asarray(right)), statistic, **options).bootstrap_distribution
    values = values[np.isfinite(values)]
    return tuple(np.quantile(values, [0.025, 0.975]).tolist()) if len(values) else (float("nan"), float("nan"))


def pair_similarities(encoder: Encoder, left: Sequence[str], right: Sequence[str], **options: object) -> np.ndarray:
    """The cosine similarity of each left sentence with its right one: (n,) float32. The processes share the work."""
    embeddings = np.asarray(share_out(partial(encoder.encode, **options), [*left, *right]))
    return (embeddings[: len(left)] * embeddings[len(left) :]).sum(axis=1)


def correlation(encoder: Encoder, pairs: TrainingRows, **options: object) -> float:
    """Spearman's correlation of the similarities that an encoder gives scored pairs with their scores."""
    return spearman(pair_similarities(encoder, *zip(*pairs.rows, strict=True), **options), pairs.scores)


def classification_metrics(truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """`accuracy`, `macro_recall`, `macro_f1`, `classes` (a table by label) and `confusion` (a row for a true class).

    The macro averages are over the classes that occur, true or predicted; a share of no rows counts as 0.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    shares = partial(precision_recall_fscore_support, truth, predicted, zero_division=0)
    _, recall, f1, _ = shares(average="macro")
    each = zip(*(values.tolist() for values in shares(labels=range(len(labels)))), strict=True)
    names = ("precision", "recall", "f1", "rows")
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
        "classes": {label: dict(zip(names, row, strict=True)) for label, row in zip(labels, each, strict=True)},
        "confusion": confusion_matrix(truth, predicted, labels=range(len(labels))).tolist(),
    }


def judge_tasks(model: MultiTaskModel, data: MultiTaskDataset, **options: Any) -> dict[str, dict[str, Any]]:
    """What `evaluate_tasks` gives, with the accuracy's `interval_95` (Wilson's) and the largest class's share."""
    from scipy.stats import binomtest

    results = evaluate_tasks(model, data, **options)
    for result in results.values():
        right = round(result["accuracy"] * result["rows"])
        low, high = binomtest(right, result["rows"]).proportion_ci(method="wilson")
        result["interval_95"] = [float(low), float(high)]
        result["majority"] = max(row["rows"] for row in result["classes"].values()) / result["rows"]
    return results


def evaluate_tasks(
    model: MultiTaskModel, data: MultiTaskDataset, batch_tokens: int | None = None, precision: str = "auto"
) -> dict[str, dict[str, Any]]:
    """How a model does on each task that has labels in the data.

    `rows`, `loss` (mean cross-entropy), `calibration_error`, and what `classification_metrics` gives. The processes
    share the work, and each has all the results.
    """
    results = {}
    for task, (logits, truth) in labelled_logits(model, data, batch_tokens, precision).items():
        results[task] = {
            "rows": len(truth),
            "loss": F.cross_entropy(logits / model.temperatures[task], truth).item(),
            "calibration_error": calibration_error(model.probabilities(task, logits), truth),
            **classification_metrics(truth.tolist(), logits.argmax(dim=-1).tolist(), data.tasks[task]),
        }
    return results


def calibrate(model: MultiTaskModel, data: MultiTaskDataset, **options: Any) -> None:
    """Fit the temperature of each task that has 100 labels or more in the data; the others keep theirs.

    The model must not have been trained on these rows.
    """
    for task, (logits, truth) in labelled_logits(model, data, **options).items():
        if len(truth) >= FEWEST_ROWS:
            model.temperatures[task] = fitted_temperature(logits, truth)


def labelled_logits(
    model: MultiTaskModel, data: MultiTaskDataset, batch_tokens: int | None = None, precision: str = "auto"
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each task that has labels in the data, those rows' (rows, classes) logits and (rows,) classes."""

    def logits_of(rows: Sequence[int]) -> list[tuple[np.ndarray, ...]]:
        logits = model.logits([data[i] for i in rows], batch_tokens, precision)
        return list(zip(*(values.numpy() for values in logits.values()), strict=True))

    by_row, found = share_out(logits_of, range(len(data))), {}
    for number, task in enumerate(data.tasks):
        truth = torch.tensor(data.classes[task])
        if known := (truth != UNLABELLED).nonzero().flatten().tolist():
            found[task] = torch.tensor(np.stack([by_row[i][number] for i in known])), truth[known]
    return found
