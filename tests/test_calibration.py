import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.calibration import calibration_error, fitted_temperature
from common.data import MultiTaskDataset
from common.heads import MultiTaskModel
from common.metrics import calibrate, evaluate_tasks
from common.rows import LabelledRows

DRAW = np.random.default_rng(0)
LOGITS = torch.tensor(DRAW.normal(size=(4000, 3)))
TRUTH = torch.tensor([DRAW.choice(3, p=p) for p in LOGITS.softmax(dim=-1).numpy()])
TEXTS = [f"text number {i}" for i in range(120)]


@pytest.mark.parametrize("surer", [0.5, 1, 4])
def test_logits_that_were_made_surer_are_taken_back(surer):
    assert fitted_temperature(surer * LOGITS, TRUTH) == pytest.approx(surer, rel=0.1)


def test_the_temperature_is_the_one_of_lowest_loss():
    fitted = fitted_temperature(3 * LOGITS, TRUTH)
    losses = {t: F.cross_entropy(3 * LOGITS / t, TRUTH).item() for t in np.linspace(0.5, 6, 56)}
    assert F.cross_entropy(3 * LOGITS / fitted, TRUTH).item() <= min(losses.values()) + 1e-9


def test_rows_all_right_make_it_no_lower_than_a_half():
    assert fitted_temperature(torch.eye(3)[TRUTH], TRUTH) == pytest.approx(0.5, abs=1e-3)


def test_the_calibration_error_by_hand():
    probabilities = torch.tensor([[0.95, 0.05], [0.92, 0.08], [0.45, 0.55], [0.3, 0.7]])
    # Bins: (0.9, 1]: 0.95 right, 0.92 wrong; (0.5, 0.6]: 0.55 right; (0.6, 0.7]: 0.7 right.
    expected = (abs(1 - 0.95 - 0.92) + abs(1 - 0.55) + abs(1 - 0.7)) / 4
    assert calibration_error(probabilities, torch.tensor([0, 1, 1, 1])) == pytest.approx(expected, abs=1e-6)


def test_probabilities_that_mean_what_they_say_have_hardly_any_error():
    assert calibration_error(LOGITS.softmax(dim=-1), TRUTH) < 0.03 < calibration_error((4 * LOGITS).softmax(-1), TRUTH)


@pytest.fixture
def model(tiny_encoder) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(tiny_encoder, {"topic": ["x", "y"], "mood": ["bad", "good"]}).eval()


@pytest.fixture
def data(model) -> MultiTaskDataset:
    rows = LabelledRows(TEXTS, {"topic": ["x", "y"] * 60, "mood": ["bad"] * 99 + [None] * 21}, ["here"] * 120)
    return model.dataset(rows)


def test_calibrating_lowers_the_loss_and_changes_no_label(model, data):
    before, labels = evaluate_tasks(model, data)["topic"], [p["topic"]["label"] for p in model.predict(TEXTS)]
    calibrate(model, data)
    assert model.temperatures["topic"] != 1
    assert model.temperatures["mood"] == 1  # it has too few labels here
    assert evaluate_tasks(model, data)["topic"]["loss"] < before["loss"]
    assert [p["topic"]["label"] for p in model.predict(TEXTS)] == labels


def test_temperatures_are_saved_with_the_model(model, tmp_path):
    model.temperatures["topic"] = 2.5
    model.save_pretrained(tmp_path)
    opened = MultiTaskModel.from_pretrained(tmp_path)
    assert opened.temperatures == {"topic": 2.5, "mood": 1.0}
    assert opened.predict(TEXTS[:1]) == model.predict(TEXTS[:1])
    assert opened.with_tasks({"more": ["a", "b"]}).temperatures == {"topic": 2.5, "mood": 1.0, "more": 1.0}
