"""The peers every classifier here is set beside: logistic regression on a bag of words, or on frozen embeddings."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from common.embedding import Encoder
from common.metrics import classification_metrics
from common.rows import LabelledRows

MEASURES = ("accuracy", "macro_recall", "macro_f1")


def word_features() -> TfidfVectorizer:
    """TF-IDF of words and word pairs."""
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)


class EmbeddingFeatures(TransformerMixin, BaseEstimator):
    """A frozen encoder's sentence embeddings."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def fit(self, texts: list[str], labels: Any = None) -> "EmbeddingFeatures":
        """Nothing is learned from the texts."""
        return self

    def transform(self, texts: list[str]) -> np.ndarray:
        """Texts to (n, dim) float32."""
        return self.encoder.encode(list(texts))


def linear_classifier(
    features: BaseEstimator, learned: LabelledRows, asked: LabelledRows, task: str
) -> dict[str, float]:
    """Logistic regression with balanced classes on the features of one set of rows, measured on another.

    Rows without a label for the task are left out.
    """
    learned, asked = (
        rows.pick([i for i, label in enumerate(rows.labels[task]) if label is not None]) for rows in (learned, asked)
    )
    pipeline = make_pipeline(features, LogisticRegression(max_iter=2000, class_weight="balanced"))
    pipeline.fit(learned.texts, learned.labels[task])
    labels = learned.classes()[task]
    truth = [labels.index(label) for label in asked.labels[task]]
    predicted = [labels.index(label) for label in pipeline.predict(asked.texts)]
    metrics = classification_metrics(truth, predicted, labels)
    return {"rows": len(truth), **{name: metrics[name] for name in MEASURES}}
