"""What results are measured by: rank and linear correlation, with an interval."""

from collections.abc import Callable, Sequence

import numpy as np

from common.encoder import Encoder

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
