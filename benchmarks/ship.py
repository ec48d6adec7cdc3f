"""How few bits do the weights need? And: make the encoder that ships.

    python -m benchmarks.ship DATA ENCODER

ENCODER is a folder of its own for the trained encoder; a training that is there is kept, or goes on where it was
stopped. It begins with the shipped encoder (the first came from all-MiniLM-L6-v2 alone) and learns from those of
`benchmarks/teachers.py`, on the corpus in DATA and on its sentences changed a little; these and the teachers'
embeddings of them (5 GB) are kept beside ENCODER. Meant for a GPU: elsewhere the teachers alone take hours.
Its matrices are then rounded to 8 bits and fewer, each time measured on stsb_dev; the choice below is written to
common/weights, and the similarities of some reference sentences recorded.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import task1
from benchmarks.quantization import save_quantized
from benchmarks.record import RESULTS, command_line, record, trained
from benchmarks.teachers import FOLDER, TAUGHT_BY, TWEETS, teacher_folder
from benchmarks.variants import changed_sentences
from common.bert import COMPACT
from common.devices import resolve_device
from common.encoder import SHIPPED, SentenceEncoder
from common.load import load_encoder
from common.metrics import pair_similarities, spearman
from common.rows import SAMPLES, TrainingRows, read_scored_pairs, read_training_rows
from common.teachers import KEPT, KeptEmbeddings

TRAINING = [
    *("--learning-rate", "4e-4", "--schedule", "cosine", "--dropout", "0"),
    *("--batch-size", "512", "--batch-tokens", "16384", "--max-steps", "2500", "--evaluate-every", "312"),
]
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
BLOCK = 16_384


def reference_pairs() -> list[tuple[str, str]]:
    """Sentences with their paraphrase and their near miss, from the sample pairs."""
    rows = read_training_rows([SAMPLES / "pairs_dev.csv"]).rows[: REFERENCE_PAIRS // 2]
    return [(row[0], other) for row in rows for other in row[1:]]


def embed(teacher: str, files: Sequence[Path], kept: Path) -> None:
    """Keep what a teacher says of all sentences, in blocks of many, which is quicker than step by step.

    They are kept where a training on the same files, in the default precision, looks for them.
    """
    texts = [row[0] for row in read_training_rows(files).rows]
    embeddings = KeptEmbeddings(load_encoder(teacher).to(resolve_device("auto")), texts, kept)
    for block in tqdm(range(0, len(texts), BLOCK), desc=teacher, unit_scale=BLOCK, unit=" sentences"):
        embeddings[range(block, min(block + BLOCK, len(texts)))]


def distil(data: Path, output: Path) -> dict[str, object]:
    """Train the encoder where that is not done (going on where it was stopped); gives how it was trained."""
    corpus, changed = data / "corpus" / "sentences.txt.gz", output.parent / "changed.txt"
    files, teachers = [corpus, changed], [teacher_folder(name, data) for name in TAUGHT_BY]
    if not (output / "training.json").is_file():
        changed_sentences(corpus, changed)
        for folder in teachers:
            embed(folder, files, output.parent / KEPT)
    taught = [word for folder in teachers for word in ("--teacher", folder)]
    dev = ["--dev", str(data / "sts" / "stsb_dev.csv")]
    arguments = [*map(str, files), *taught, *dev, *TRAINING]
    training = trained(task1.main, arguments, output, "training.json")
    # The digests of start and teachers, among the contents, are kept; the folders that these lay in are not.
    settings = {name: value for name, value in training["settings"].items() if name not in ("model", "teacher")}
    return {"settings": settings, **{name: training[name] for name in ("contents", "seconds", "best", "history")}}


def tweets() -> dict[str, object]:
    """How the teacher of sentiment was trained, and what it reached on the dev rows."""
    trained_teacher = json.loads((FOLDER / TWEETS / "metrics.json").read_text(encoding="utf-8"))
    return {name: trained_teacher[name] for name in ("seconds", "best")}


def round_weights(encoder: SentenceEncoder, dev: TrainingRows) -> dict[str, dict[str, float]]:
    """For each choice of bits: the size of the weights, and what the encoder then reaches on the dev pairs."""
    left, right = zip(*dev.rows, strict=True)
    full = pair_similarities(encoder, left, right)
    size = 4 * sum(p.numel() for p in encoder.parameters()) / 1e6
    rounded = {"as trained": {"megabytes": size, "stsb_dev": spearman(full, dev.scores)}}
    for name, bits in CHOICES.items():
        with tempfile.TemporaryDirectory() as folder:
            save_quantized(encoder, folder, bits)
            similarities = pair_similarities(SentenceEncoder.from_pretrained(folder), left, right)
            size = (Path(folder) / COMPACT).stat().st_size / 1e6
        rounded[name] = {
            "megabytes": size,
            "stsb_dev": spearman(similarities, dev.scores),
            "largest_difference": float(np.abs(similarities - full).max()),
        }
    return rounded


def seconds_to_load() -> float:
    """The median over a few loadings of the shipped encoder."""
    seconds = []
    for _ in range(LOADINGS):
        started = time.perf_counter()
        SentenceEncoder.from_pretrained()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("encoder", type=Path)
    arguments = parser.parse_args()
    training = distil(arguments.data, arguments.encoder)
    dev = read_scored_pairs(arguments.data / "sts" / "stsb_dev.csv")
    encoder = SentenceEncoder.from_pretrained(arguments.encoder)
    rounded = round_weights(encoder, dev)
    for name, row in rounded.items():
        print(f"{name:<18} {row['megabytes']:6.1f} MB  stsb_dev {row['stsb_dev']:.4f}")
    save_quantized(encoder, SHIPPED, CHOICES[SHIPS])
    loading = {"ships": SHIPS, "seconds_to_load": seconds_to_load()}
    print(f"{SHIPS} written to common/weights, loaded in {loading['seconds_to_load']:.2f} s")
    pairs = reference_pairs()
    similarities = pair_similarities(SentenceEncoder.from_pretrained(), *zip(*pairs, strict=True))
    record(
        RESULTS / "ship.json",
        {
            "training": training,
            TWEETS: tweets(),
            "rounded": rounded,
            **loading,
            "reference": {"pairs": pairs, "similarities": similarities.tolist()},
        },
    )


if __name__ == "__main__":
    main()
