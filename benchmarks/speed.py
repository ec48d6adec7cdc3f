"""How quick is embedding, beside what a person would pick instead?

    python -m venv PEERS && PEERS/bin/pip install -r benchmarks/peers.txt
    python -m benchmarks.speed DATA PEERS/bin/python [--quick]

The shipped encoder's folder, opened here and by sentence-transformers with each of its backends, each in a process of
its own. They take turns: 256 news texts of DATA, and one alone; medians of five rounds (--quick: 128 texts, three
rounds), beside the machine's own rate of matrix multiplication in the same rounds, and how far the embeddings are from
ours in fp32. Then commands from start to end, in turns with sentence-transformers doing the same, and a training step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import RESULTS, record
from benchmarks.speed_worker import PEERS
from common.cli import ROOT
from common.config import MultiTaskConfig
from common.devices import cpu_computes_bf16, resolve_precision
from common.encoder import SentenceEncoder
from common.heads import MultiTaskModel
from common.multitask import MultiTaskTrainer
from common.rows import read_labelled_rows, training_tasks

OURS = ("ours fp32", "ours auto")
TEXTS, ROUNDS = 256, 5
QUICK_TEXTS, QUICK_ROUNDS = 128, 3
START_TEXTS, TRAINED_TEXTS = 100, 320
SHAPE = (1024, 768, 3072)
THEIR_START = (
    "import sys, numpy; from sentence_transformers import SentenceTransformer; "
    "lines = open(sys.argv[2]).read().splitlines(); "
    "numpy.save(sys.argv[3], SentenceTransformer(sys.argv[1], device='cpu').encode(lines))"
)


class Worker:
    """A system in a process of its own."""

    def __init__(self, python: str, system: str, folder: Path, texts: Sequence[str]) -> None:
        command, pipe = [python, str(ROOT / "benchmarks" / "speed_worker.py")], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._say(json.dumps({"system": system, "folder": str(folder), "texts": texts}))

    def _say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> float | None:
        """A command's answer."""
        self._say(command)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def multiply_rate(dtype: torch.dtype) -> float:
    """The machine's operations a second, in the shape of the encoder's own largest product."""
    rows, inner, columns = SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    left @ right
    started, times = time.perf_counter(), 20
    for _ in range(times):
        left @ right
    return times * 2 * rows * inner * columns / (time.perf_counter() - started)


def compare(python: str, folder: Path, texts: Sequence[str], rounds: int) -> dict[str, object]:
    """Every system's median seconds for all texts and for one, and how near its embeddings are to ours in fp32."""
    workers = {name: Worker(python if name in PEERS else sys.executable, name, folder, texts) for name in PEERS + OURS}
    found = {name: {"all": [], "one": []} for name in workers}
    with tempfile.TemporaryDirectory() as saved:
        for name, worker in workers.items():
            path = f"{saved}/{name.replace(' ', '-')}.npy"
            worker.ask(f"save {path}")
            found[name]["embeddings"] = np.load(path)
    exact = found["ours fp32"]["embeddings"]
    for one in found.values():
        one["lowest_cosine"] = float((one.pop("embeddings") * exact).sum(axis=1).min())
    rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for name, worker in workers.items():
            for command in ("all", "one"):
                found[name][command].append(worker.ask(command))
        rates["fp32"].append(multiply_rate(torch.float32))
        rates["bf16"].append(multiply_rate(torch.bfloat16))
    for worker in workers.values():
        worker.close()
    for one in found.values():
        one |= {command: statistics.median(one[command]) for command in ("all", "one")}
    return {"systems": found, "multiply_rate": {name: statistics.median(values) for name, values in rates.items()}}


def compare_starts(python: str, folder: Path, texts: Sequence[str], rounds: int) -> dict[str, float]:
    """The median seconds of commands from start to end."""
    with tempfile.TemporaryDirectory() as place:
        lines = Path(place) / "texts.txt"
        lines.write_text("\n".join(" ".join(text.split()) for text in texts), encoding="utf-8")
        embed = [sys.executable, "task1.py", "embed", str(lines), "--output", f"{place}/a.npy"]
        commands = {f"{script} --help": [sys.executable, script, "--help"] for script in ("task1.py", "task2.py")}
        commands["embed"] = embed
        commands["sentence-transformers embeds"] = [python, "-c", THEIR_START, str(folder), str(lines), f"{place}/b"]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def training_share(data: Path, rounds: int) -> dict[str, float]:
    """What share of the machine's rate a training uses: an epoch over 320 news texts, all that a step does."""
    rows = read_labelled_rows([data / "topic" / "train.csv"]).pick(range(TRAINED_TEXTS))
    tasks, shares, steps = training_tasks(rows), [], []
    for _ in range(rounds):
        model = MultiTaskModel(SentenceEncoder.from_pretrained(), tasks)
        asked, config = model.dataset(rows), MultiTaskConfig(epochs=1)
        with tempfile.TemporaryDirectory() as folder:
            seconds = MultiTaskTrainer(model, asked, config, output=folder).train().seconds
        weights = sum(p.numel() for p in model.encoder.layers.parameters())
        precision = torch.bfloat16 if cpu_computes_bf16() else torch.float32
        shares.append(6 * weights * sum(asked.lengths) / seconds / multiply_rate(precision))
        steps.append(1000 * seconds / config.total_steps(TRAINED_TEXTS))
    return {"share_of_multiply_rate": statistics.median(shares), "ms_a_step": statistics.median(steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("python", help="of the environment with the peers")
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds; nothing is recorded")
    arguments = parser.parse_args()
    count, rounds = (QUICK_TEXTS, QUICK_ROUNDS) if arguments.quick else (TEXTS, ROUNDS)
    texts = read_labelled_rows([arguments.data / "topic" / "test.csv"]).texts[:count]
    encoder = SentenceEncoder.from_pretrained()
    tokens, weights = sum(map(len, encoder.tokenizer(texts))), sum(p.numel() for p in encoder.layers.parameters())
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        found = compare(arguments.python, Path(folder), texts, rounds)
        starts = compare_starts(arguments.python, Path(folder), texts[:START_TEXTS], rounds)
    training = training_share(arguments.data, rounds)
    slowest = found["systems"]["fp32"]
    for name, one in found["systems"].items():
        one |= {"sentences_per_second": count / one["all"], "ratio": slowest["all"] / one["all"]}
        print(f"{name:<12} {one['sentences_per_second']:7.1f} sentences/s  {one['ratio']:.2f} ×  "
              f"one {1000 * one['one']:.1f} ms  cosine {one['lowest_cosine']:.5f}")  # fmt: skip
    for name, precision in (("ours fp32", "fp32"), ("ours auto", resolve_precision("auto", encoder.device))):
        share = 2 * weights * tokens / found["systems"][name]["all"] / found["multiply_rate"][precision]
        found["systems"][name]["share_of_multiply_rate"] = share
        print(f"{name}: {share:.0%} of the machine's {precision} matrix-multiply rate")
    for name, seconds in starts.items():
        print(f"{name}: {seconds:.2f} s")
    print(f"a training step: {training['share_of_multiply_rate']:.0%} of the matrix-multiply rate")
    if not arguments.quick:
        about = {"texts": count, "tokens": tokens}
        record(RESULTS / "speed.json", {**about, **found, "seconds_from_start": starts, "training": training})


if __name__ == "__main__":
    main()
