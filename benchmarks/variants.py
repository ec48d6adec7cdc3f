"""Sentences changed a little, for distillation: what teachers say of them tells a student what a small change means.

Changed by rules of thumb, so that not all of them are English; teachers are asked of what comes out, whatever it is.
"""

import gzip
import random
import re
from collections.abc import Callable
from pathlib import Path

from common.files import atomic_file

SEED = 0
AUXILIARY = re.compile(r"\b(is|are|was|were|can|could|will|would|should|must|did|does|do|has|have|had)\b( not\b)?")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twenty", "hundred")
NUMBER = re.compile(r"\b(\d+|" + "|".join(NUMBERS) + r")\b")


def shortened(words: list[str], draw: random.Random) -> list[str]:
    """A stretch of 6 to 9 tenths of the words."""
    length = max(1, round(len(words) * draw.uniform(0.6, 0.9)))
    start = draw.randint(0, len(words) - length)
    return words[start : start + length]


def thinned(words: list[str], draw: random.Random) -> list[str]:
    """Without a sixth of the words."""
    return [word for word in words if draw.random() > 1 / 6]


def swapped(words: list[str], draw: random.Random) -> list[str]:
    """Two names in each other's place, or two long words where there are no two names."""
    names = [i for i, word in enumerate(words) if i and word[:1].isupper()]
    long = [i for i, word in enumerate(words) if len(word) > 3]
    places = names if len(names) > 1 else long
    if len(places) < 2:
        return words
    i, j = draw.sample(places, 2)
    return [words[{i: j, j: i}.get(n, n)] for n in range(len(words))]


def negated(words: list[str], _: random.Random) -> list[str]:
    """With a "not" after its first auxiliary verb, or without the one that is there."""
    return AUXILIARY.sub(lambda m: m[1] if m[2] else f"{m[1]} not", " ".join(words), count=1).split()


def recounted(words: list[str], draw: random.Random) -> list[str]:
    """With other numbers."""

    def other(found: re.Match[str]) -> str:
        return str(int(found[0]) + draw.randint(1, 9)) if found[0].isdecimal() else draw.choice(NUMBERS)

    return NUMBER.sub(other, " ".join(words)).split()


WAYS: tuple[Callable[[list[str], random.Random], list[str]], ...] = (shortened, thinned, swapped, negated, recounted)


def changed(sentence: str, draw: random.Random) -> str:
    """The sentence changed in one of these ways, at random, of those that change it; itself where none does."""
    words = sentence.split()
    for way in draw.sample(WAYS, len(WAYS)):
        other = way(words, draw)
        if other and other != words:
            return " ".join(other)
    return " ".join(words)


def changed_sentences(source: Path, target: Path) -> Path:
    """Write a file with each line of a gzip file changed, blank ones aside; the same again for the same lines."""
    draw = random.Random(SEED)
    with (
        gzip.open(source, "rt", encoding="utf-8") as lines,
        atomic_file(target) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
    ):
        stream.writelines(changed(line, draw) + "\n" for line in lines if line.strip())
    return target
