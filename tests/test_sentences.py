import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from common.config import TrainingConfig
from common.data import SentenceDataset
from common.encoder import EncoderConfig, SentenceEncoder
from common.losses import contrastive_loss, distance_loss, ranking_loss, similarity_loss
from common.rows import TrainingRows
from common.sentences import DistillationObjective, PairObjective, pair_objective, ridge_regression
from common.train import Trainer
from tests.conftest import TINY

TEXTS = [f"some text about {word}" + ", at length" * (i % 3) for i, word in enumerate("abcdefghij")]
PAIRS = [(text, text.upper() + " again") for text in TEXTS]
CONFIG = TrainingConfig(
    epochs=1, batch_size=10, batch_tokens=60, learning_rate=1e-3, device="cpu", precision="fp32", warmup=0.0
)


@pytest.fixture
def encoder(tiny_encoder) -> SentenceEncoder:
    tiny_encoder.set_dropout(0)
    return tiny_encoder


@pytest.fixture
def teacher(tokenizer) -> SentenceEncoder:
    torch.manual_seed(1)
    return SentenceEncoder(EncoderConfig(**{**TINY, "hidden_size": 48}), tokenizer).eval()


@pytest.fixture
def distillation(encoder, tmp_path):
    """Makes the objective that embeds TEXTS as some teachers do."""
    data = SentenceDataset([(text,) for text in TEXTS], encoder.tokenizer)
    return lambda *teachers, **options: DistillationObjective(encoder, data, teachers, tmp_path / "kept", **options)


def embedded(encoder, texts):
    return encoder(*encoder.tokenizer.pad(encoder.tokenizer(texts)))


def test_texts_that_the_student_cannot_tell_apart_are_other_texts(encoder, teacher, tmp_path):
    datas = [
        SentenceDataset([(text,) for text in texts], encoder.tokenizer) for texts in (TEXTS, map(str.upper, TEXTS))
    ]
    plain, shouted = (DistillationObjective(encoder, data, [teacher], tmp_path) for data in datas)
    assert plain.data.digest() == shouted.data.digest()
    assert plain.contents != shouted.contents


def first_step(objective, tmp_path, config=CONFIG):
    """The loss of a training's first step, and the gradient of every parameter."""
    trainer, found = Trainer(objective, dataclasses.replace(config, max_steps=1), tmp_path), {}
    update = trainer._update

    def keep(loss):
        found.update({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
        update(loss)

    trainer._update = keep
    return trainer.train().history[0]["train loss"], found


def check_against(reference, loss, objective, loss_seen, gradients, prefix=""):
    """A step's loss and gradients are those that autograd gives for the whole step at once."""
    loss.backward()
    assert loss_seen == pytest.approx(loss.item(), abs=1e-6)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[prefix + name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_pairs_find_their_partners_among_the_whole_step(encoder, tmp_path):
    reference = copy.deepcopy(encoder)
    loss, gradients = first_step(PairObjective(encoder, SentenceDataset(PAIRS, encoder.tokenizer)), tmp_path)
    left, right = (embedded(reference, column) for column in zip(*PAIRS, strict=True))
    check_against(reference, contrastive_loss(left, right).mean, encoder, loss, gradients, "encoder.")


def test_scored_pairs_are_ranked_among_the_whole_step(encoder, tmp_path):
    reference, scores = copy.deepcopy(encoder), [float(i % 4) for i in range(len(PAIRS))]
    data = SentenceDataset(PAIRS, encoder.tokenizer, scores)
    loss, gradients = first_step(PairObjective(encoder, data), tmp_path)
    left, right = (embedded(reference, column) for column in zip(*PAIRS, strict=True))
    check_against(reference, ranking_loss(left, right, torch.tensor(scores)).mean, encoder, loss, gradients, "encoder.")


def test_near_misses_are_candidates_of_every_row(encoder, tmp_path):
    reference, rows = copy.deepcopy(encoder), [(*pair, pair[0] + " not") for pair in PAIRS]
    loss, gradients = first_step(PairObjective(encoder, SentenceDataset(rows, encoder.tokenizer)), tmp_path)
    columns = [embedded(reference, column) for column in zip(*rows, strict=True)]
    check_against(reference, contrastive_loss(*columns).mean, encoder, loss, gradients, "encoder.")


def test_distillation_compares_the_whole_step_with_the_teacher(distillation, encoder, teacher, tmp_path):
    objective, reference = distillation(teacher, similarity_weight=3.0), copy.deepcopy(encoder)
    wanted = F.normalize(torch.from_numpy(teacher.encode(TEXTS)).half().float())  # as kept on disk
    projection = ridge_regression(torch.from_numpy(encoder.encode(TEXTS)), wanted).requires_grad_()
    loss, gradients = first_step(objective, tmp_path)
    student = embedded(reference, TEXTS)
    expected = distance_loss(student @ projection.T, wanted).mean + 3.0 * similarity_loss(student, wanted).mean
    check_against(reference, expected, encoder, loss, gradients, "encoder.")
    torch.testing.assert_close(gradients["projection"], projection.grad, atol=1e-6, rtol=1e-4)


def test_the_history_tells_the_two_losses_of_distillation_apart(distillation, teacher, tmp_path):
    (row,) = Trainer(distillation(teacher), CONFIG, tmp_path).train().history
    assert row["train loss"] == pytest.approx(row["train distance"] + row["train similarity"], abs=1e-6)


def test_the_teacher_is_no_part_of_what_is_trained_or_saved(distillation, encoder, teacher, tmp_path):
    before = copy.deepcopy(teacher.state_dict())
    Trainer(distillation(teacher), CONFIG, tmp_path).train()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert SentenceEncoder.from_pretrained(tmp_path).state_dict().keys() == encoder.state_dict().keys()


def test_ridge_regression_is_scikit_learns(encoder, teacher):
    texts = [f"sentence {i} about {word}" for i in range(8) for word in ["apple", "river", "engine", "music"]]
    student, wanted = encoder.encode(texts), teacher.encode(texts)
    ours = ridge_regression(torch.from_numpy(student), torch.from_numpy(wanted))
    np.testing.assert_allclose(
        ours.numpy(), Ridge(alpha=0.1, fit_intercept=False).fit(student, wanted).coef_, atol=1e-4
    )


def test_a_single_sentence_is_its_own_pair_under_another_dropout(tiny_encoder, tmp_path):
    rows = TrainingRows([(text,) for text in TEXTS], None, ("text",))
    objective = pair_objective(tiny_encoder, rows)
    trainer = Trainer(objective, dataclasses.replace(CONFIG, batch_tokens=9999), tmp_path)
    trainer._begin(resume=False)
    (batch,) = next(iter(trainer._share_of_each_step()))
    left, right = trainer._forward(0, batch).unbind(dim=1)
    assert left.shape == right.shape == (len(batch["place"]), 32)
    assert not torch.allclose(left, right, atol=1e-3)


def test_with_dev_pairs_the_encoder_that_ranks_them_best_is_kept(tiny_encoder, tmp_path):
    dev = TrainingRows(PAIRS, [float(i) for i in range(len(PAIRS))], ("sentence1", "sentence2", "score"))
    rows = TrainingRows(PAIRS, None, ("sentence1", "sentence2"))
    progress = Trainer(
        pair_objective(tiny_encoder, rows, dev), dataclasses.replace(CONFIG, epochs=3, batch_size=4), tmp_path
    ).train()
    assert progress.best["spearman"] == max(row["dev spearman"] for row in progress.history)
    assert progress.best["step"] in [row["step"] for row in progress.history]
