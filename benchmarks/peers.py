"""The same folder opened by sentence-transformers: are the embeddings the same, and which is quicker?

    python -m benchmarks.peers DATA

Two models, this project's encoder (random weights; speed and equality do not depend on them) and
all-MiniLM-L6-v2, embed the same sentences of the corpus in DATA: here, and through sentence-transformers with
its defaults. They take turns, five rounds each; medians are given, beside the machine's own rate of fp32 matrix
multiplication measured in the same rounds.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.record import RESULTS, record
from benchmarks.sts import minilm_folder
from common.encoder import SentenceEncoder

ROUNDS, SENTENCES = 5, 300


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def multiply() -> torch.Tensor:
    """68 billion floating point operations in the shape of the encoder's own largest product."""
    left, right = torch.ones(2048, 768), torch.ones(768, 3072)
    for _ in range(7):
        product = left @ right
    return product


MULTIPLY_OPERATIONS = 7 * 2 * 2048 * 768 * 3072


def compare(folder: str, sentences: list[str]) -> dict[str, object]:
    """Embed the sentences both ways in turns."""
    ours, theirs = SentenceEncoder.from_pretrained(folder), SentenceTransformer(folder, device="cpu")
    theirs.max_seq_length = ours.tokenizer.max_length
    difference = np.abs(ours.encode(sentences) - theirs.encode(sentences, normalize_embeddings=True)).max()
    times: dict[str, list[float]] = {"ours": [], "sentence-transformers": [], "matmul": []}
    for _ in range(ROUNDS):
        times["ours"].append(seconds(lambda: ours.encode(sentences)))
        times["sentence-transformers"].append(seconds(lambda: theirs.encode(sentences)))
        times["matmul"].append(seconds(multiply))
    median = {name: statistics.median(values) for name, values in times.items()}
    tokens = sum(map(len, ours.tokenizer(sentences)))
    layers = sum(p.numel() for p in ours.layers.parameters())
    rate = 2 * layers * tokens / median["ours"]
    return {
        "largest_difference": float(difference),
        "sentences_per_second": {name: SENTENCES / median[name] for name in ("ours", "sentence-transformers")},
        "speed_over_sentence_transformers": median["sentence-transformers"] / median["ours"],
        "share_of_matmul_rate": rate / (MULTIPLY_OPERATIONS / median["matmul"]),
        "seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    with gzip.open(arguments.data / "corpus" / "sentences.txt.gz", "rt", encoding="utf-8") as lines:
        sentences = [line.rstrip("\n") for line in islice(lines, SENTENCES)]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        SentenceEncoder().save_pretrained(folder)
        result = {"encoder": compare(folder, sentences), "minilm": compare(minilm_folder(), sentences)}
    for name, compared in result.items():
        print(
            f"{name}: largest difference {compared['largest_difference']:.1e}, "
            f"{compared['speed_over_sentence_transformers']:.2f} times sentence-transformers' speed, "
            f"{compared['share_of_matmul_rate']:.0%} of the machine's matrix-multiply rate"
        )
    record(RESULTS / "peers.json", result)


if __name__ == "__main__":
    main()
