import torch

from common.distillation import DistillationObjective, random_projection, start_from_teacher
from common.encoder import EncoderConfig, SentenceEncoder
from common.losses import distillation_loss
from common.pretrained import PretrainedEncoder
from tests.conftest import TINY
from tests.test_encoder import tiny_transformer


def wide_encoder(tokenizer) -> SentenceEncoder:
    return SentenceEncoder(EncoderConfig(**{**TINY, "hidden_size": 48}), tokenizer)


def test_projection_keeps_lengths_and_angles_of_the_teachers_space():
    projection = random_projection(8, 12)
    torch.testing.assert_close(projection @ projection.T, torch.eye(8), atol=1e-5, rtol=0)


def test_token_embeddings_start_as_the_teachers_turned_and_scaled_to_the_positions(tiny_encoder, tokenizer):
    student, projection = wide_encoder(tokenizer), random_projection(32, 48)
    assert start_from_teacher(student, tiny_encoder, projection)
    ours, theirs = student.embeddings.tokens.weight[1000:1010], tiny_encoder.embeddings.tokens.weight[1000:1010]
    torch.testing.assert_close(
        torch.nn.functional.normalize(ours @ ours.T), torch.nn.functional.normalize(theirs @ theirs.T)
    )

    def token_to_position(encoder, tokens):
        return tokens.norm(dim=1) / encoder.embeddings.positions.table[:64].norm(dim=1).mean()

    torch.testing.assert_close(token_to_position(student, ours), token_to_position(tiny_encoder, theirs))


def test_another_kind_of_teacher_lends_no_token_embeddings(tokenizer):
    student = wide_encoder(tokenizer)
    before = student.embeddings.tokens.weight.clone()
    teacher = PretrainedEncoder(tiny_transformer("roberta", tokenizer.vocab_size), tokenizer)
    assert not start_from_teacher(student, teacher, random_projection(32, 48))
    assert torch.equal(student.embeddings.tokens.weight, before)


def test_the_objective_asks_the_teacher_for_the_sentences_of_the_batch(tiny_encoder, tokenizer):
    texts, asked, teacher = ["one", "two words", "three"], [], torch.nn.functional.normalize(torch.randn(2, 5), dim=-1)

    def teach(sentences):
        asked.append(sentences)
        return teacher

    objective = DistillationObjective(tiny_encoder, texts, teach, random_projection(5, 32)).eval()
    input_ids, mask = tokenizer.pad(tokenizer(["three", "one"]))
    losses = objective({"input_ids": input_ids, "attention_mask": mask, "index": torch.tensor([2, 0])})
    assert asked == [["three", "one"]]
    student = tiny_encoder(input_ids, mask)
    distance, similarity = distillation_loss(student, student @ objective.projection.T, teacher)
    torch.testing.assert_close(losses["loss"], distance + similarity)
