"""How few bits do the weights need? And: write the encoder that ships.

    python -m benchmarks.ship DATA ENCODER

ENCODER is the folder that `task1.py train` wrote (the command is in common/weights/README.md). Its matrices are rounded
to 8 bits and fewer, each time measured on stsb_dev; the choice below is written to common/weights, and the
similarities of some reference sentences recorded.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS, record
from benchmarks.sts import minilm_folder
from common.data import SAMPLES, read_scored_pairs, read_training_rows
from common.encoder import QUANTIZED, SHIPPED, SentenceEncoder
from common.metrics import pair_similarities, spearman
from common.quantization import save_quantized
from common.tokenizer import MAX_LENGTH
from common.widening import widen

CHOICES: dict[str, Callable[[str], int]] = {
    "8 bits": lambda _: 8,
    "7 bits": lambda _: 7,
    "6 bits": lambda _: 6,
    "5 bits": lambda _: 5,
    "4 bits": lambda _: 4,
    "7 bits, tokens 6": lambda name: 6 if "tokens" in name else 7,
    "6 bits, tokens 5": lambda name: 5 if "tokens" in name else 6,
}
SHIPS = "6 bits"
REFERENCE_PAIRS = 20
LOADINGS = 5


def reference_pairs() -> list[tuple[str, str]]:
    """Sentences with their paraphrase and their near miss, from the embedded pairs."""
    rows = read_training_rows([SAMPLES / "pairs_dev.csv"]).rows[: REFERENCE_PAIRS // 2]
    return [(row[0], other) for row in rows for other in row[1:]]


def widening_difference(sentences: list[str]) -> float:
    """The largest difference between the teacher's embeddings and its exact widening's, which are [e; e] / sqrt(2)."""
    teacher = SentenceEncoder.from_pretrained(minilm_folder())
    wide = widen(teacher, positions="learned", noise=0).eval()
    return float(np.abs(wide.encode(sentences) - np.tile(teacher.encode(sentences), 2) / 2**0.5).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("encoder")
    arguments = parser.parse_args()
    dev = read_scored_pairs(arguments.data / "sts" / "stsb_dev.csv")
    left, right = zip(*dev.rows, strict=True)
    encoder = SentenceEncoder.from_pretrained(arguments.encoder)
    encoder.cut_at(MAX_LENGTH)  # a widened teacher would go on cutting at the teacher's length
    full = pair_similarities(encoder, left, right)
    rounded = {"as trained": {"megabytes": 4 * sum(p.numel() for p in encoder.parameters()) / 1e6}}
    rounded["as trained"]["stsb_dev"] = spearman(full, dev.scores)
    for name, bits in CHOICES.items():
        with tempfile.TemporaryDirectory() as folder:
            save_quantized(encoder, folder, bits)
            similarities = pair_similarities(SentenceEncoder.from_pretrained(folder), left, right)
            size = (Path(folder) / QUANTIZED).stat().st_size / 1e6
        rounded[name] = {
            "megabytes": size,
            "stsb_dev": spearman(similarities, dev.scores),
            "largest_difference": float(np.abs(similarities - full).max()),
        }
    for name, row in rounded.items():
        print(f"{name:<18} {row['megabytes']:6.1f} MB  stsb_dev {row['stsb_dev']:.4f}")
    save_quantized(encoder, SHIPPED, CHOICES[SHIPS])
    seconds = []
    for _ in range(LOADINGS):
        started = time.perf_counter()
        shipped = SentenceEncoder.from_pretrained()
        seconds.append(time.perf_counter() - started)
    pairs = reference_pairs()
    reference = {"pairs": pairs, "similarities": pair_similarities(shipped, *zip(*pairs, strict=True)).tolist()}
    loading = {"ships": SHIPS, "seconds_to_load": statistics.median(seconds)}
    difference = widening_difference([*left[:100], *right[:100]])
    print(f"widened with all its heads and its positions, the teacher's embeddings differ by {difference:.1e}")
    print(f"{SHIPS} written to common/weights, loaded in {loading['seconds_to_load']:.2f} s")
    trained = json.loads((Path(arguments.encoder) / "training.json").read_text(encoding="utf-8"))
    settings = {name: value for name, value in trained["settings"].items() if name != "teacher"}
    training = {"settings": settings, **{name: trained[name] for name in ("seconds", "best", "history")}}
    record(
        RESULTS / "ship.json",
        {
            "training": training,
            "widening_difference": difference,
            "rounded": rounded,
            **loading,
            "reference": reference,
        },
    )


if __name__ == "__main__":
    main()
