"""Linear heads on a frozen encoder: scikit-learn's logistic regression, as an ordinary model."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch.nn import functional as F

from common.data import MultiTaskDataset
from common.exact import STRENGTHS, WITHOUT_DEV, can_be_fitted, fit_linear_heads
from common.heads import MultiTaskModel
from common.rows import LabelledRows

TASKS = {"topic": ["Science", "Sports"], "mood": ["bad", "good"]}
TEXTS = [f"number {i}: {('a ball', 'an atom')[i % 2]} and {('rain', 'sun', 'wind')[i % 3]}" for i in range(48)]
LABELS = {
    "topic": [("Sports", "Science")[i % 2] if i % 4 else None for i in range(48)],
    "mood": [("bad", "good", "good")[i % 3] for i in range(48)],
}


@pytest.fixture
def model(tiny_encoder) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(tiny_encoder, TASKS, kind="linear").eval()


def data_for(model, rows=range(48), **labels) -> MultiTaskDataset:
    every = LabelledRows(TEXTS, {**LABELS, **labels}, [f"line {i}" for i in range(48)])
    return model.dataset(every.pick(rows))


def scikit_learns(model, task, strength, **options):
    """The probabilities that scikit-learn's own regression gives, on embeddings of mean 0 and deviation 1."""
    features = F.layer_norm(torch.from_numpy(model.encoder.encode(TEXTS)) * 32**0.5, (32,)).numpy()
    known = [i for i, label in enumerate(LABELS[task]) if label]
    regression = LogisticRegression(C=strength, max_iter=2000, **options)
    regression.fit(features[known], [LABELS[task][i] for i in known])
    return dict(zip(regression.classes_, regression.predict_proba(features).T, strict=True))


@pytest.mark.parametrize("task", ["topic", "mood"])
@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_the_fit_is_scikit_learns_own(model, task, weight):
    fit_linear_heads(model, data_for(model), class_weight=weight)
    expected = scikit_learns(model, task, WITHOUT_DEV, class_weight=None if weight == "none" else weight)
    predicted = [row[task]["probabilities"] for row in model.predict(TEXTS)]
    for label, probabilities in expected.items():
        np.testing.assert_allclose([row[label] for row in predicted], probabilities, atol=1e-4)


def test_a_head_is_fitted_only_where_all_its_labels_have_rows(model):
    model.freeze("encoder")
    assert can_be_fitted(model, data_for(model))
    assert not can_be_fitted(model, data_for(model, mood=["good"] * 48))
    assert can_be_fitted(model, data_for(model, mood=[None] * 48))
    model.freeze("head:mood")
    assert can_be_fitted(model, data_for(model, mood=["good"] * 48))


def test_an_encoder_that_trains_or_another_kind_of_head_takes_the_training_loop(model, tiny_encoder):
    assert not can_be_fitted(model, data_for(model))
    attending = MultiTaskModel(tiny_encoder, TASKS)
    attending.freeze("encoder")
    assert not can_be_fitted(attending, data_for(attending))


def test_the_strength_is_the_best_on_the_dev_rows(model):
    train, dev = data_for(model, range(36)), data_for(model, range(36, 48))
    chosen = fit_linear_heads(model, train, dev)
    scores = {}
    for strength in STRENGTHS:
        features = F.layer_norm(torch.from_numpy(model.encoder.encode(TEXTS)) * 32**0.5, (32,)).numpy()
        regression = LogisticRegression(C=strength, max_iter=2000).fit(features[:36], train.classes["mood"])
        scores[strength] = f1_score(dev.classes["mood"], regression.predict(features[36:]), average="macro")
    assert chosen["mood"] == max(scores, key=scores.get)
    assert len(set(scores.values())) > 1


def test_tasks_without_labels_and_frozen_heads_stay_as_they_are(model):
    model.freeze("head:mood")
    before = {task: {k: v.clone() for k, v in model.head(task).state_dict().items()} for task in TASKS}
    chosen = fit_linear_heads(model, data_for(model, topic=[None] * 48))
    assert chosen == {}
    for task in TASKS:
        assert all(torch.equal(before[task][k], v) for k, v in model.head(task).state_dict().items())


def test_the_fitted_model_opens_as_it_was_saved_and_explains_itself(model, tmp_path):
    fit_linear_heads(model, data_for(model))
    model.save_pretrained(tmp_path)
    opened = MultiTaskModel.from_pretrained(tmp_path)
    assert opened.kind == "linear"
    assert opened.predict(TEXTS) == model.predict(TEXTS)
    shares = [share for _, share in opened.predict(TEXTS[:1], explain=True)[0]["mood"]["attention"]]
    assert shares == pytest.approx([shares[0]] * len(shares), abs=0.3)
    assert sum(shares) == pytest.approx(1)
