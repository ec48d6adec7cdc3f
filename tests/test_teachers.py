"""What teachers say is computed once, kept on disk, and joined so that none outweighs the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

import task1
from benchmarks.ship import embed
from common.encoder import EncoderConfig, SentenceEncoder
from common.errors import UserError
from common.teachers import KEPT, JoinedTeachers, KeptEmbeddings
from common.tokenizer import VOCABULARY, SentenceTokenizer
from tests.conftest import TINY

TEXTS = [f"a text about {word}" for word in ("apples", "rivers", "engines", "music", "law")]
EVERY = range(len(TEXTS))
# float16 keeps 11 bits of each value, and all are below 1.
ROUNDING = 2**-11
FULL = Path("/dev/full")


@pytest.fixture
def teachers(tokenizer) -> list[SentenceEncoder]:
    torch.manual_seed(1)
    return [SentenceEncoder(EncoderConfig(**{**TINY, "hidden_size": width}), tokenizer).eval() for width in (48, 32)]


def counting(encoder, monkeypatch) -> list[str]:
    """The texts that an encoder is asked for from now on."""
    asked, encode = [], encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts, **options: asked.extend(texts) or encode(texts, **options))
    return asked


def test_what_is_kept_is_what_the_encoder_says(teachers, tmp_path):
    kept = KeptEmbeddings(teachers[0], TEXTS, tmp_path)
    np.testing.assert_allclose(kept[[3, 0]], teachers[0].encode([TEXTS[3], TEXTS[0]]), atol=ROUNDING)
    np.testing.assert_allclose(kept[EVERY], teachers[0].encode(TEXTS), atol=ROUNDING)


def test_no_text_is_embedded_twice(teachers, tmp_path, monkeypatch):
    asked = counting(teachers[0], monkeypatch)
    first = KeptEmbeddings(teachers[0], TEXTS, tmp_path)[[1, 2]]
    again = KeptEmbeddings(teachers[0], TEXTS, tmp_path)[EVERY]
    assert sorted(asked) == sorted(TEXTS)
    np.testing.assert_array_equal(first, again[1:3])


@pytest.mark.parametrize("change", ["weights", "pooling", "texts", "length", "precision", "tokenizer"])
def test_another_teacher_or_text_or_way_to_embed_is_kept_apart(change, teachers, tmp_path):
    encoder, texts, options = teachers[0], TEXTS, {"precision": "fp32"}
    KeptEmbeddings(encoder, texts, tmp_path, **options)
    if change == "weights":
        torch.nn.init.normal_(encoder.embeddings.tokens.weight)
    elif change == "pooling":
        encoder.pooling = "cls"
    elif change == "length":
        encoder.cut_at(5)
    elif change == "tokenizer":
        cased = BertTokenizer(vocab=str(VOCABULARY), do_lower_case=False)
        encoder.tokenizer = SentenceTokenizer(cased, encoder.tokenizer.max_length)
    elif change == "texts":
        texts = [*TEXTS[1:], "another"]
    else:
        options = {"precision": "bf16"}
    KeptEmbeddings(encoder, texts, tmp_path, **options)
    assert len(list(tmp_path.iterdir())) == 2


def test_trainings_begun_together_read_what_either_wrote(teachers, tmp_path):
    first = KeptEmbeddings(teachers[0], TEXTS, tmp_path)
    first.path.unlink()
    KeptEmbeddings(teachers[0], TEXTS, tmp_path)  # puts its own file in the place of the first's
    np.testing.assert_allclose(first[EVERY], teachers[0].encode(TEXTS), atol=ROUNDING)


def test_teachers_of_equal_texts_are_joined(teachers, tmp_path):
    kept = [KeptEmbeddings(teacher, ["the same text"] * 3, tmp_path) for teacher in teachers]
    joined = JoinedTeachers(kept, range(3))[[0, 1, 2]]
    torch.testing.assert_close(joined.norm(dim=1), torch.ones(3))


def test_a_file_that_nothing_was_written_to_takes_no_room(teachers, tmp_path):
    kept = KeptEmbeddings(teachers[0], ["a text"] * 100_000, tmp_path)
    assert kept.path.stat().st_size > 9_000_000 > 100 * 512 * kept.path.stat().st_blocks


@pytest.mark.skipif(not FULL.exists(), reason="this system has no disk that is always full")
def test_a_disk_that_fills_up_is_named(teachers, tmp_path, monkeypatch):
    kept = KeptEmbeddings(teachers[0], TEXTS, tmp_path)
    kept.path.unlink()
    kept.path.symlink_to(FULL)
    with pytest.raises(UserError, match=f"{kept.path}: cannot be written"):
        kept[[0]]


def test_teachers_are_joined_side_by_side_each_over_the_root_of_its_cosines_deviation(teachers, tmp_path):
    joined = JoinedTeachers([KeptEmbeddings(one, TEXTS, tmp_path) for one in teachers], EVERY)[EVERY]
    parts = []
    for teacher in teachers:
        embeddings = teacher.encode(TEXTS)
        cosines = [embeddings[i] @ embeddings[j] for i in EVERY for j in EVERY if i < j]
        parts.append(embeddings / np.sqrt(np.std(cosines)))
    expected = np.concatenate(parts, axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(joined.numpy(), expected, atol=2 * ROUNDING)


def test_a_training_finds_what_was_kept_of_its_texts_before(teachers, tmp_path, monkeypatch):
    files = [tmp_path / "some.txt", tmp_path / "others.txt"]
    for file, texts in zip(files, (TEXTS[:3], TEXTS[3:]), strict=True):
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    teachers[0].save_pretrained(tmp_path / "teacher")
    embed(str(tmp_path / "teacher"), files, tmp_path / KEPT)
    monkeypatch.setattr(KeptEmbeddings, "_keep", lambda *_: pytest.fail("a teacher was asked again"))
    arguments = [
        "train",
        *map(str, files),
        "--teacher",
        str(tmp_path / "teacher"),
        "--output",
        str(tmp_path / "student"),
    ]
    teachers[1].save_pretrained(tmp_path / "start")
    task1.main([*arguments, "--model", str(tmp_path / "start"), "--epochs", "1", "--batch-size", "3"])
    assert len(list((tmp_path / KEPT).iterdir())) == 1


def test_one_teacher_alone_is_itself(teachers, tmp_path):
    joined = JoinedTeachers([KeptEmbeddings(teachers[0], TEXTS, tmp_path)], EVERY)
    np.testing.assert_allclose(joined[EVERY].numpy(), teachers[0].encode(TEXTS), atol=ROUNDING)
