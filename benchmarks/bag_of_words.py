"""The peer every classifier here is set beside: TF-IDF of words and word pairs, and logistic regression."""

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from common.data import LabelledRows
from common.metrics import classification_metrics, confusion_matrix


def bag_of_words(learned: LabelledRows, asked: LabelledRows, task: str) -> dict[str, float]:
    """Train on one set of rows (balanced class weights), and measure on another."""
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(max_iter=2000, class_weight="balanced"),
    ).fit(learned.texts, learned.labels[task])
    labels = learned.classes()[task]
    truth = [labels.index(label) for label in asked.labels[task]]
    predicted = [labels.index(label) for label in pipeline.predict(asked.texts)]
    return {"rows": len(truth), **classification_metrics(confusion_matrix(truth, predicted, len(labels)))}
