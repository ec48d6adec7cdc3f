"""Sentences changed a little, for distillation."""

import gzip
import random

import pytest

from benchmarks.variants import changed, changed_sentences, negated, recounted, shortened, swapped, thinned

DRAW = random.Random(0)


@pytest.mark.parametrize(
    ("sentence", "other"),
    [
        ("The dog is barking.", "The dog is not barking."),
        ("The dog is not barking.", "The dog is barking."),
        ("The dog barks.", "The dog barks."),
    ],
)
def test_a_not_comes_or_goes_behind_the_first_auxiliary_verb(sentence, other):
    assert negated(sentence.split(), DRAW) == other.split()


def test_two_names_change_places_before_any_other_words():
    words = ["Yesterday", "Ann", "called", "Bob", "about", "another", "lovely", "evening"]
    assert swapped(words, DRAW) == ["Yesterday", "Bob", "called", "Ann", "about", "another", "lovely", "evening"]


def test_numbers_in_digits_become_others():
    (before, number, after) = recounted(["some", "1987", "people"], DRAW)
    assert (before, after) == ("some", "people") and number.isdecimal() and number != "1987"


def test_a_shortened_sentence_is_a_stretch_of_the_words():
    words = [str(i) for i in range(40)]
    found = shortened(words, DRAW)
    assert 24 <= len(found) <= 36 and " ".join(found) in " ".join(words)


def test_a_thinned_sentence_keeps_the_order_of_most_words():
    found = thinned([f"{i:03}" for i in range(600)], DRAW)
    assert found == sorted(found) and 450 < len(found) < 550


@pytest.mark.parametrize("sentence", ["word", "2", "Ann Bob", "it is", "a b c"])
def test_no_sentence_is_lost(sentence):
    assert all(changed(sentence, DRAW) for _ in range(20))


def test_every_line_of_a_file_is_changed_and_the_same_again(tmp_path):
    lines = [f"The {i} guests were late again, Ann told Bob.\n" for i in range(20)]
    with gzip.open(tmp_path / "lines.txt.gz", "wt", encoding="utf-8") as stream:
        stream.writelines([*lines, "\n"])
    first, again = (changed_sentences(tmp_path / "lines.txt.gz", tmp_path / name).read_text() for name in ("a", "b"))
    found = first.splitlines(keepends=True)
    assert first == again and len(found) == len(lines)
    assert all(other != line for other, line in zip(found, lines, strict=True))
