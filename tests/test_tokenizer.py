import warnings

import pytest
from tokenizers import BertWordPieceTokenizer

from common.errors import UserError
from common.tokenizer import VOCABULARY, SentenceTokenizer

TEXTS = ["Hello, world!", "Naïve café — unaffable.", "", "   ", "日本語 text", "🤖", "a" * 200, "don't\tstop\n"]


def test_ids_are_those_of_an_independent_bert_wordpiece():
    reference = BertWordPieceTokenizer(str(VOCABULARY), lowercase=True)
    assert SentenceTokenizer(max_length=500)(TEXTS) == [reference.encode(text).ids for text in TEXTS]


def test_known_ids_of_bert_base_uncased():
    assert SentenceTokenizer()(["Hello, world!"]) == [[101, 7592, 1010, 2088, 999, 102]]


def test_long_texts_are_cut_and_keep_their_last_special_token():
    with pytest.warns(UserWarning, match="1 of 2 texts were longer than 8 tokens"):
        rows = SentenceTokenizer(max_length=8)(["word " * 50, "short"])
    assert len(rows[0]) == 8
    assert rows[0][0] == 101 and rows[0][-1] == 102


def test_truncation_is_said_once():
    tokenizer = SentenceTokenizer(max_length=8)
    with pytest.warns(UserWarning):
        tokenizer(["word " * 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["word " * 50])


def test_a_text_of_exactly_the_greatest_length_is_not_called_cut():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(SentenceTokenizer(max_length=8)(["one two three four five six"])[0]) == 8


@pytest.mark.parametrize(("sentences", "position"), [(["a", None], 1), ([3], 0), (["a", "b", b"c"], 2)])
def test_a_non_string_is_named_by_its_position(sentences, position):
    with pytest.raises(TypeError, match=f"sentence {position} is a "):
        SentenceTokenizer()(sentences)


def test_empty_and_unknown_texts_are_blank():
    tokenizer = SentenceTokenizer()
    blank = [tokenizer.is_blank(row) for row in tokenizer(["", "🤖🤖", "word", "  "])]
    assert blank == [True, True, False, True]


def test_padding_and_mask():
    input_ids, mask = SentenceTokenizer().pad([[5, 6, 7], [8]])
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_saved_tokenizer_opens_again_with_the_same_ids(tmp_path):
    tokenizer = SentenceTokenizer(max_length=40)
    tokenizer.save_pretrained(tmp_path)
    again = SentenceTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS[:-2]) == tokenizer(TEXTS[:-2])
    assert again.max_length == 40


def test_a_missing_tokenizer_is_a_users_mistake():
    with pytest.raises(UserError, match="no-such/tokenizer"):
        SentenceTokenizer.from_pretrained("no-such/tokenizer")
