import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import common.metrics
import common.states
from common.checkpoint import CHECKPOINT
from common.config import MultiTaskConfig, TrainingConfig, task_weight, unfreezing
from common.data import UNLABELLED
from common.errors import Interrupted, UserError
from common.heads import MultiTaskModel
from common.losses import balanced_class_weights
from common.metrics import evaluate_tasks
from common.multitask import MultiTaskObjective
from tests.conftest import changed
from tests.multitask import CONFIG, GAPS, TASKS, TEXTS, data_for, mean_losses, one_step, trainer_for
from tests.trainings import at_step, interrupt

OWN = dataclasses.fields(MultiTaskConfig)[len(dataclasses.fields(TrainingConfig)) :]
OTHERS = {"task_weight": (("topic", 0.7),), "freeze": ("stages:0",), "rates": "layerwise", "unfreeze": 0.5}


def test_every_labelled_row_weighs_the_same_whatever_batch_it_is_in(still, tmp_path):
    reference = copy.deepcopy(still)
    row, gradients = one_step(still, tmp_path, GAPS)
    losses = mean_losses(reference, GAPS)
    loss = sum(losses.values()) / 2
    loss.backward()
    assert row["train loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert row["train sentiment loss"] == pytest.approx(losses["sentiment"].item(), abs=1e-6)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_the_token_budget_changes_no_gradient(still, tmp_path):
    other = copy.deepcopy(still)
    _, small = one_step(still, tmp_path / "a", GAPS, batch_tokens=12)
    _, large = one_step(other, tmp_path / "b", GAPS, batch_tokens=8192)
    for name, gradient in small.items():
        torch.testing.assert_close(gradient, large[name], atol=1e-6, rtol=1e-4)


def test_fifty_steps_have_the_same_losses_under_any_token_budget(still, tmp_path):
    histories = []
    for budget, model in ((24, still), (8192, copy.deepcopy(still))):
        config = dataclasses.replace(
            CONFIG, batch_tokens=budget, batch_size=8, max_steps=50, evaluate_every=1, learning_rate=1e-3
        )
        trainer, batches = trainer_for(model, tmp_path / str(budget), config, GAPS), []
        backward = trainer.objective.backward
        trainer.objective.backward = lambda step, f=backward, b=batches: b.append(len(step.batches)) or f(step)
        histories.append(trainer.train().history)
        assert set(batches) == {1} if budget == 8192 else min(batches) > 3
    for small, large in zip(*histories, strict=True):
        assert small == pytest.approx(large, abs=1e-4)


def test_class_weights_count_in_a_step_of_one_class(still, tmp_path):
    classes = {"topic": [0] * 6 + [1] * 2, "sentiment": GAPS["sentiment"]}
    weights = balanced_class_weights(data_for(still, classes))["topic"]
    reference = copy.deepcopy(still)
    row, _ = one_step(still, tmp_path, classes, class_weight="balanced")
    logits = reference(*reference.encoder.tokenizer.pad(reference.encoder.tokenizer(TEXTS)))["topic"]
    each = F.cross_entropy(logits, torch.tensor(classes["topic"]), reduction="none") * weights[classes["topic"]]
    assert row["train topic loss"] == pytest.approx(each.mean().item(), abs=1e-6)


def test_learned_task_weights_follow_the_formula_whatever_the_batches(still, tmp_path):
    reference = copy.deepcopy(still)
    row, gradients = one_step(still, tmp_path, GAPS, balance="uncertainty")
    loss = sum(mean_losses(reference, GAPS).values())  # exp(0) × loss + 0 / 2
    loss.backward()
    assert row["train loss"] == pytest.approx(loss.item(), abs=1e-6)
    name = "encoder.layers.0.feed_forward.weight"
    torch.testing.assert_close(gradients[name], dict(reference.named_parameters())[name].grad, atol=1e-6, rtol=1e-4)


def test_learned_task_weights_move_whatever_the_rate_of_the_weights(still, tmp_path):
    config = dataclasses.replace(CONFIG, balance="uncertainty", learning_rate=1e-6, epochs=10)
    history = trainer_for(still, tmp_path, config, GAPS).train().history
    # At a standstill, where the loss stays at about log 2, the weight goes from 1 to 1 / (2 log 2) = 0.72.
    assert history[0]["train topic weight"] > 0.97
    assert history[-1]["train topic weight"] < 0.95
    assert "weight 0.9" in trainer_for(still, tmp_path, config).objective.describe(history[-1])


def test_a_task_without_labels_takes_no_share_of_the_loss(still, tmp_path):
    row, _ = one_step(still, tmp_path, {"topic": [UNLABELLED] * len(TEXTS), "sentiment": GAPS["sentiment"]})
    assert row["train loss"] == pytest.approx(row["train sentiment loss"])


def test_task_weights_weigh_the_tasks(still, tmp_path):
    losses = mean_losses(still, GAPS)
    expected = 0.8 * losses["topic"].item() + 0.2 * losses["sentiment"].item()
    row, _ = one_step(still, tmp_path, GAPS, task_weight=(("topic", 0.8),))
    assert row["train loss"] == pytest.approx(expected, abs=1e-6)


def test_losses_are_computed_in_float32_outside_autocast(ours, tmp_path, monkeypatch):
    seen, loss = [], F.cross_entropy

    def watching(logits, *arguments, **options):
        seen.append((logits.dtype, torch.is_autocast_enabled("cpu")))
        return loss(logits, *arguments, **options)

    monkeypatch.setattr(F, "cross_entropy", watching)
    trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, precision="bf16")).train()
    assert set(seen) == {(torch.float32, False)}


def test_fit_gives_the_best_model_calibrated_as_it_then_stands_in_the_folder(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(common.metrics, "FEWEST_ROWS", 1)
    trainer = trainer_for(ours, tmp_path, dev=True)
    best = trainer.fit()
    saved = MultiTaskModel.from_pretrained(tmp_path)
    results = evaluate_tasks(saved, trainer.objective.dev, precision="fp32")
    assert sum(result["macro_f1"] for result in results.values()) / 2 == trainer.progress.best["score"]
    assert best.temperatures == saved.temperatures and set(saved.temperatures.values()) != {1.0}
    assert best.predict(TEXTS) == saved.predict(TEXTS)
    assert not (tmp_path / CHECKPOINT).is_file()


def test_watched_gradients_are_those_that_clipping_measures(ours, tmp_path, monkeypatch):
    clip, lengths = torch.nn.utils.clip_grad_norm_, []
    monkeypatch.setattr("common.train.clip_grad_norm_", lambda *given: lengths.append(clip(*given)) or lengths[-1])
    trainer = trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, freeze=("stages:0-1",)), watch=True)
    norms = torch.tensor(list(trainer.train().traces.values()))  # (stages, steps)
    assert torch.allclose(norms.square().sum(dim=0).sqrt(), torch.stack(lengths))
    assert (norms[:2] == 0).all() and (norms[2:] > 0).all()


def test_gradients_are_kept_only_when_they_are_watched(ours, tmp_path):
    assert trainer_for(ours, tmp_path).train().traces == {}


def test_a_task_without_labels_has_no_line_in_the_history(ours, tmp_path):
    objective = trainer_for(ours, tmp_path).objective
    shown = objective.describe({"step": 3, "train loss": 0.5, "train topic loss": 0.5})
    assert "topic" in shown and "sentiment" not in shown


@pytest.mark.parametrize("field", OWN)
def test_resuming_with_any_other_option_is_refused(field, ours, tmp_path):
    trainer = trainer_for(copy.deepcopy(ours), tmp_path)
    backward = trainer._backward
    stop = at_step(1, interrupt)
    trainer._backward = lambda *arguments: stop(trainer) or backward(*arguments)
    with pytest.raises(Interrupted):
        trainer.train()
    other = {field.name: OTHERS[field.name]} if field.name in OTHERS else changed(CONFIG, field)
    with pytest.raises(UserError, match=f"{field.name}: is .*, but .* in the unfinished run"):
        trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, **other)).train(resume=True)


def test_a_training_resumes_whatever_the_new_heads_held_that_a_fit_replaced(ours, tmp_path):
    ours.new, other = {"topic", "sentiment"}, copy.deepcopy(ours)
    for task in TASKS:
        other.head(task).classifier.reset_parameters()
    whole = copy.deepcopy(ours)
    trainer_for(whole, tmp_path / "whole").train()
    first, again = (trainer_for(model, tmp_path / "parts") for model in (ours, other))
    backward, stop = first._backward, at_step(1, interrupt)
    first._backward = lambda *arguments: stop(first) or backward(*arguments)
    with pytest.raises(Interrupted):
        first.train()
    again.train(resume=True)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items())


def test_the_model_kept_has_the_best_dev_score(ours, tmp_path):
    progress = trainer_for(ours, tmp_path, dev=True).train()
    best = evaluate_tasks(MultiTaskModel.from_pretrained(tmp_path), data_for(ours))
    score = sum(result["macro_f1"] for result in best.values()) / 2
    assert score == pytest.approx(max(row["dev score"] for row in progress.history), abs=1e-6)


@pytest.mark.parametrize("text", ["topic", "topic=much"])
def test_a_task_weight_is_a_name_and_a_number(text):
    assert task_weight("a=b=0.5") == ("a=b", 0.5)
    with pytest.raises(UserError, match="TASK=WEIGHT"):
        task_weight(text)


@pytest.mark.parametrize("text", ["slowly", "gradual:-1", "gradual:x", "gradual:inf"])
def test_unfreezing_is_gradual_with_or_without_epochs(text):
    assert (unfreezing("gradual"), unfreezing("gradual:0.5")) == (0.0, 0.5)
    with pytest.raises(UserError, match="gradual:EPOCHS"):
        unfreezing(text)


def test_learned_weights_and_given_ones_exclude_each_other():
    with pytest.raises(UserError, match="task_weight: the weights of the tasks are learned"):
        MultiTaskConfig(balance="uncertainty", task_weight=(("topic", 0.5),))


def test_keeping_similarity_adds_the_mean_distance_from_the_starts_embeddings(still, tmp_path, monkeypatch):
    noise, prepare = 0.3 * torch.randn(len(TEXTS), still.encoder.dim), MultiTaskObjective.prepare

    def prepare_elsewhere(self, *arguments, **options):  # at the start itself the distance and its gradient are 0
        prepare(self, *arguments, **options)
        self.start += noise

    monkeypatch.setattr(MultiTaskObjective, "prepare", prepare_elsewhere)
    reference = copy.deepcopy(still).eval()
    start = torch.from_numpy(reference.encoder.encode(TEXTS)) + noise
    row, gradients = one_step(still, tmp_path, keep_similarity=2.0)
    data = data_for(reference)
    batch = data.collate([data[i] for i in range(len(data))])
    states = reference.encoder.token_states(batch["input_ids"], batch["attention_mask"])
    embeddings = reference.encoder.embed_states(states, batch["attention_mask"])
    distance = (1 - F.cosine_similarity(embeddings, start)).mean()
    logits = reference.classify(states, batch["attention_mask"]).logits
    losses = [F.cross_entropy(logits[task], torch.tensor(data.classes[task])) for task in TASKS]
    (sum(losses) / 2 + 2.0 * distance).backward()
    assert row["train distance"] == pytest.approx(distance.item(), abs=1e-6)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_the_more_similarity_is_kept_the_nearer_the_embeddings_stay(ours, tmp_path):
    before, moved = ours.encoder.encode(TEXTS), {}
    for weight in (0.0, 3.0):
        model = copy.deepcopy(ours)
        trainer_for(model, tmp_path / str(weight), dataclasses.replace(CONFIG, keep_similarity=weight)).train()
        moved[weight] = float((1 - (before * model.encoder.encode(TEXTS)).sum(axis=1)).mean())
    assert 0 < moved[3.0] < moved[0.0] / 2


def test_without_weight_nothing_is_kept_or_computed(ours, tmp_path):
    trainer = trainer_for(ours, tmp_path)
    assert "train distance" not in trainer.train().history[0]
    assert trainer.objective.start is None


@pytest.mark.parametrize(
    ("frozen", "reset"), [((), True), (("encoder",), True), (("encoder", "head:topic"), False), (("head:topic",), True)]
)
def test_what_training_moves_is_no_longer_calibrated(ours, tmp_path, frozen, reset):
    ours.new, ours.temperatures = set(), {"topic": 3.0, "sentiment": 3.0}
    trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, freeze=frozen))
    assert ours.temperatures == {"topic": 1.0 if reset else 3.0, "sentiment": 1.0}


def test_similarity_cannot_be_kept_where_nothing_moves_it(ours, tmp_path):
    with pytest.raises(UserError, match="keep_similarity: needs an encoder that is not all frozen"):
        trainer_for(ours, tmp_path, dataclasses.replace(CONFIG, keep_similarity=1.0, freeze=("encoder",)))
