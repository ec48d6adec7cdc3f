"""Which way of distilling works best? Short runs that differ in one choice each, judged on stsb_dev alone.

    python -m benchmarks.distill DATA VARIANT [VARIANT ...]    train and measure; a result that is there is kept
    python -m benchmarks.distill DATA starts                   measure widened teachers before any training

DATA is the folder with `sts/` and `corpus/`. Every variant starts from the teacher made twice as wide, and sees as many
of the same first sentences of the corpus: 200 steps of 80, or as many fewer as its steps are larger.

Before the training loop was changed, a step was 2,048 tokens, which 80 of these sentences come to; `batch-160` stands
in the place of one of 4,096. A start from random layers with the teacher's token embeddings is no longer there.
"""

from pathlib import Path

from accelerate.utils import set_seed

import task1
from benchmarks.record import RESULTS, command_line, record, trained
from benchmarks.sts import corpus_part, minilm_folder
from benchmarks.widening import PROBE_SENTENCES, head_importance, most_important_heads, widen, widened_teacher
from common.cli import ROOT
from common.encoder import EncoderConfig, SentenceEncoder
from common.metrics import correlation
from common.rows import read_scored_pairs

RUNS = ROOT / "runs" / "distill"
SENTENCES = 20_000
BASE = {
    "--learning-rate": "2e-4",
    "--schedule": "cosine",
    "--batch-size": "80",
    "--max-steps": "200",
    "--dropout": "0",
    "--similarity-weight": "5",
}
# What each variant changes in BASE.
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "base": ("widened teacher, rate 2e-4, no dropout, similarity weight 5, steps of 80 sentences", {}),
    "rate-1e-4": ("rate 1e-4", {"--learning-rate": "1e-4"}),
    "rate-4e-4": ("rate 4e-4", {"--learning-rate": "4e-4"}),
    "dropout": ("dropout 0.1", {"--dropout": "0.1"}),
    "distance": ("embeddings only (similarity weight 0)", {"--similarity-weight": "0"}),
    "similarity": ("similarity weight 50", {"--similarity-weight": "50"}),
    "batch-160": ("steps of 160 sentences, half as many", {"--batch-size": "160", "--max-steps": "100"}),
}


def probe_sentences(data: Path) -> list[str]:
    """The sentences by which the teacher's heads are chosen."""
    return corpus_part(data, SENTENCES).read_text(encoding="utf-8").splitlines()[:PROBE_SENTENCES]


def start_folder(data: Path) -> Path:
    """The folder of the start, the widened teacher; written where it is not there yet."""
    folder = RUNS / "start"
    if not (folder / "config.json").is_file():
        set_seed(0)
        teacher = SentenceEncoder.from_pretrained(minilm_folder())
        widened_teacher(teacher, probe_sentences(data)).save_pretrained(folder)
    return folder


def train(data: Path, variant: str) -> dict[str, object]:
    """Train one variant with task1.py, going on where it was stopped."""
    words, changes = VARIANTS[variant]
    chosen = {**BASE, **changes}
    options = [word for pair in chosen.items() for word in pair]
    start = ["--model", str(start_folder(data)), "--teacher", minilm_folder()]
    dev = ["--dev", str(data / "sts/stsb_dev.csv"), "--evaluate-every", str(int(chosen["--max-steps"]) // 4)]
    arguments = [str(corpus_part(data, SENTENCES)), *start, *dev, *options]
    training = trained(task1.main, arguments, RUNS / variant, "training.json")
    return {"variant": words, "training": " ".join(options), **{k: training[k] for k in ("seconds", "history")}}


def measure_starts(data: Path) -> dict[str, float]:
    """The teacher, and what is left of it on stsb_dev when it is widened in each way, before any training."""
    pairs = read_scored_pairs(data / "sts" / "stsb_dev.csv")
    teacher = SentenceEncoder.from_pretrained(minilm_folder())
    kept = most_important_heads(head_importance(teacher, probe_sentences(data)), EncoderConfig.num_attention_heads)
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
    return {name: correlation(encoder.eval(), pairs) for name, encoder in starts.items()}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("variants", nargs="+", choices=[*VARIANTS, "starts"], metavar="variant")
    arguments = parser.parse_args()
    for variant in arguments.variants:
        path = RESULTS / "distill" / f"{variant}.json"
        if variant == "starts":
            record(path, {"stsb_dev": measure_starts(arguments.data)})
        elif not path.is_file():
            print(f"\n{variant}: {VARIANTS[variant][0]}", flush=True)
            record(path, train(arguments.data, variant))


if __name__ == "__main__":
    main()
