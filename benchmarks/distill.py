"""Which way of distilling works best? Short runs that differ in one choice each, judged on stsb_dev alone.

    python -m benchmarks.distill DATA VARIANT [VARIANT ...]    train and measure; a result that is there is kept
    python -m benchmarks.distill DATA starts                   measure widened teachers before any training
    python -m benchmarks.distill DATA table                    print what was recorded as a table

DATA is the folder with `sts/` and `corpus/`. Every variant sees the same first sentences of the corpus, and about as
many tokens: 200 steps of 2,048, or as many fewer as its batches are larger.
"""

import argparse
import json
from pathlib import Path

from accelerate.utils import set_seed

import task1
from benchmarks.record import RESULTS, record
from benchmarks.sts import corpus_part, minilm_folder
from common.checkpoint import NAME as CHECKPOINT
from common.cli import ROOT
from common.data import read_scored_pairs
from common.devices import resolve_precision
from common.distillation import PROBE_SENTENCES
from common.encoder import EncoderConfig, SentenceEncoder
from common.metrics import pair_similarities, spearman
from common.widening import head_importance, most_important_heads, widen

RUNS = ROOT / "runs" / "distill"
SENTENCES = 20_000
BASE = {
    "--widen": None,
    "--learning-rate": "2e-4",
    "--schedule": "cosine",
    "--batch-tokens": "2048",
    "--max-steps": "200",
    "--dropout": "0",
    "--similarity-weight": "5",
}
# What each variant changes in BASE; an option set to False is left out.
VARIANTS: dict[str, tuple[str, dict[str, str | bool | None]]] = {
    "base": ("widened teacher, rate 2e-4, no dropout, similarity weight 5, batches of 2,048 tokens", {}),
    "rate-1e-4": ("rate 1e-4", {"--learning-rate": "1e-4"}),
    "rate-4e-4": ("rate 4e-4", {"--learning-rate": "4e-4"}),
    "dropout": ("dropout 0.1", {"--dropout": "0.1"}),
    "distance": ("embeddings only (similarity weight 0)", {"--similarity-weight": "0"}),
    "similarity": ("similarity weight 50", {"--similarity-weight": "50"}),
    "batch-4096": ("batches of 4,096 tokens, half the steps", {"--batch-tokens": "4096", "--max-steps": "100"}),
    "tokens": (
        "random layers, the teacher's token embeddings",
        {"--widen": False, "--from-scratch": None, "--learning-rate": "4e-4"},
    ),
}


def train(data: Path, variant: str) -> dict[str, object]:
    """Train one variant with task1.py, going on where it was stopped."""
    words, changes = VARIANTS[variant]
    chosen = {name: value for name, value in {**BASE, **changes}.items() if value is not False}
    options = [word for pair in chosen.items() for word in pair if word is not None]
    output = RUNS / variant
    files = [str(corpus_part(data, SENTENCES)), "--teacher", minilm_folder(), "--dev", str(data / "sts/stsb_dev.csv")]
    looks = ["--evaluate-every", str(int(chosen["--max-steps"]) // 4)]
    if not (output / "training.json").is_file():
        resume = ["--resume"] if (output / CHECKPOINT).is_file() else []
        task1.main(["train", *files, *options, *looks, "--output", str(output), *resume])
    trained = json.loads((output / "training.json").read_text())
    return {"variant": words, "training": " ".join(options), **{k: trained[k] for k in ("seconds", "history")}}


def measure_starts(data: Path) -> dict[str, float]:
    """The teacher, and what is left of it on stsb_dev when it is widened in each way, before any training."""
    pairs = read_scored_pairs(data / "sts" / "stsb_dev.csv")
    teacher = SentenceEncoder.from_pretrained(minilm_folder())
    sentences = corpus_part(data, SENTENCES).read_text(encoding="utf-8").splitlines()[:PROBE_SENTENCES]
    kept = most_important_heads(head_importance(teacher, sentences), EncoderConfig.num_attention_heads)
    set_seed(0)
    starts = {
        "the teacher": teacher,
        "widened, all heads, its own positions": widen(teacher, None, "learned", 0),
        "the 8 most important of 12 heads": widen(teacher, kept, "learned", 0),
        "the first 8 of 12 heads": widen(teacher, [range(8)] * len(kept), "learned", 0),
        "all heads, sinusoids for positions": widen(teacher, None, "sinusoidal", 0),
        "8 heads and sinusoids": widen(teacher, kept, "sinusoidal", 0),
        "8 heads, sinusoids and noise: the start": widen(teacher, kept),
    }
    left, right = zip(*pairs.rows, strict=True)
    precision = resolve_precision("auto", teacher.device)
    return {
        name: spearman(pair_similarities(encoder.eval(), left, right, precision=precision), pairs.scores)
        for name, encoder in starts.items()
    }


def print_table() -> None:
    """The recorded results as a table."""
    starts = json.loads((RESULTS / "distill" / "starts.json").read_text())["stsb_dev"]
    print("| before training | stsb_dev |\n|---|---|")
    print("\n".join(f"| {name} | {value:.3f} |" for name, value in starts.items()) + "\n")
    header = ["variant", "stsb_dev after ¼", "½", "¾", "all", "minutes"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for variant, (words, _) in VARIANTS.items():
        path = RESULTS / "distill" / f"{variant}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            looks = [f"{row['dev spearman']:.3f}" for row in result["history"]]
            print(f"| {words} | {' | '.join(looks)} | {result['seconds'] / 60:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("variants", nargs="+", choices=[*VARIANTS, "starts", "table"], metavar="variant")
    arguments = parser.parse_args()
    for variant in arguments.variants:
        path = RESULTS / "distill" / f"{variant}.json"
        if variant == "table":
            print_table()
        elif variant == "starts":
            record(path, {"stsb_dev": measure_starts(arguments.data)})
        elif not path.is_file():
            print(f"\n{variant}: {VARIANTS[variant][0]}", flush=True)
            record(path, train(arguments.data, variant))


if __name__ == "__main__":
    main()
