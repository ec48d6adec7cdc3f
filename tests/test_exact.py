"""Heads that are fitted, or begin so: scikit-learn's logistic regression, as an ordinary model."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch.nn import functional as F

from common import exact
from common.config import MultiTaskConfig
from common.data import MultiTaskDataset
from common.exact import STRENGTHS, WITHOUT_DEV, can_be_fitted, fit_linear_heads, fit_new_heads
from common.heads import MultiTaskModel
from common.multitask import MultiTaskTrainer
from common.rows import LabelledRows
from common.states import frozen_data

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
    assert not can_be_fitted(model, data_for(model, mood=["good"] * 48))
    model.new = {"topic"}
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
    model.new = {"topic"}
    before = {task: {k: v.clone() for k, v in model.head(task).state_dict().items()} for task in TASKS}
    chosen = fit_linear_heads(model, data_for(model, topic=[None] * 48))
    assert chosen == {}
    for task in TASKS:
        assert all(torch.equal(before[task][k], v) for k, v in model.head(task).state_dict().items())


def test_a_new_head_is_fitted_though_it_is_frozen(model):
    model.freeze("all")
    assert set(fit_linear_heads(model, data_for(model))) == set(TASKS) and model.new == set()


def test_the_fitted_model_opens_as_it_was_saved_and_explains_itself(model, tmp_path):
    fit_linear_heads(model, data_for(model))
    model.save_pretrained(tmp_path)
    opened = MultiTaskModel.from_pretrained(tmp_path)
    assert opened.kind == "linear"
    assert opened.predict(TEXTS) == model.predict(TEXTS)
    shares = [share for _, share in opened.predict(TEXTS[:1], explain=True)[0]["mood"]["attention"]]
    assert shares == pytest.approx([shares[0]] * len(shares), abs=0.3)
    assert sum(shares) == pytest.approx(1)


@pytest.fixture
def attending(tiny_encoder) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(tiny_encoder, TASKS).eval()


def probabilities(model, task):
    rows = [row[task]["probabilities"] for row in model.predict(TEXTS)]
    return {label: np.array([row[label] for row in rows]) for label in TASKS[task]}


@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_new_heads_with_attention_begin_as_scikit_learns_regression(attending, weight):
    fit_new_heads(attending, data_for(attending), weight)
    for task in TASKS:
        expected = scikit_learns(attending, task, WITHOUT_DEV, class_weight=None if weight == "none" else weight)
        for label, found in probabilities(attending, task).items():
            np.testing.assert_allclose(found, expected[label], atol=1e-4)


def test_states_that_are_there_are_what_new_heads_are_fitted_to(attending, tmp_path):
    other, data = copy.deepcopy(attending), data_for(attending)
    fit_new_heads(attending, data)
    (known,) = frozen_data([data], attending.encoder, tmp_path, {"precision": "fp32"})
    other.encoder.token_states = None
    fit_new_heads(other, known)
    for task in TASKS:
        torch.testing.assert_close(other.head(task).classifier.weight, attending.head(task).classifier.weight)


def test_only_new_heads_with_rows_for_every_label_are_fitted(attending):
    attending.new = {"mood"}
    before = copy.deepcopy(attending.heads.state_dict())
    fit_new_heads(attending, data_for(attending, mood=["good"] * 48))
    assert all(torch.equal(before[name], values) for name, values in attending.heads.state_dict().items())
    fit_new_heads(attending, data_for(attending))
    after = attending.heads.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "task mood.classifier.weight",
        "task mood.classifier.bias",
    }


def test_of_many_rows_a_part_is_fitted_with_every_label_in_it(attending, monkeypatch):
    rare = ["good", *["bad"] * 47]
    monkeypatch.setattr("common.exact.START_ROWS", 4)
    seen, fit = {}, exact.fit_classifier
    keep = lambda head, features, truth, *rest: seen.update({head: truth}) or fit(head, features, truth, *rest)  # noqa: E731
    monkeypatch.setattr("common.exact.fit_classifier", keep)
    fit_new_heads(attending, data_for(attending, mood=rare))
    assert len(seen) == 2 and all(4 <= len(truth) <= 5 and set(truth) == {0, 1} for truth in seen.values())


def test_a_training_begins_with_fitted_heads_and_does_not_fit_them_again(attending, tmp_path):
    data, fitted = data_for(attending), copy.deepcopy(attending)
    fit_new_heads(fitted, data)
    config = MultiTaskConfig(max_steps=1, learning_rate=1e-12, freeze=("head:mood",), precision="fp32", device="cpu")
    MultiTaskTrainer(attending, data, config, output=tmp_path / "a").train()
    for task in TASKS:
        torch.testing.assert_close(attending.head(task).state_dict(), fitted.head(task).state_dict())
    attending.head("topic").classifier.weight.data += 1
    before = attending.head("topic").classifier.weight.clone()
    MultiTaskTrainer(attending, data, config, output=tmp_path / "b").train()
    torch.testing.assert_close(attending.head("topic").classifier.weight, before)


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_new_heads_begin_at_the_mean_whatever_the_encoder_pools(tiny_encoder, pooling):
    tiny_encoder.pooling = pooling
    model = MultiTaskModel(tiny_encoder, TASKS).eval()
    fit_new_heads(model, data_for(model))
    found = probabilities(model, "mood")
    tiny_encoder.pooling = "mean"
    expected = scikit_learns(model, "mood", WITHOUT_DEV)
    np.testing.assert_allclose(found["good"], expected["good"], atol=1e-4)
