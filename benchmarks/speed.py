"""How quick is embedding, beside what a person would pick instead?

    python -m venv PEERS && PEERS/bin/pip install -r benchmarks/peers.txt
    python -m benchmarks.speed DATA PEERS/bin/python [--quick]

The shipped encoder's folder, opened here and by sentence-transformers with each of its backends, each in a process of
its own. They take turns: 256 news texts of DATA, and one alone; medians of five rounds (--quick: 128 texts, three
rounds), beside the machine's own rate of matrix multiplication in the same rounds, how far the embeddings are from ours
in fp32 (of these texts and of the sentences of stsb_dev), and Spearman on stsb_dev. The defaults of both without bf16
and AVX-512 as well, which torch and its libraries are told to leave alone; two of the same at once; and whole commands,
in turns with sentence-transformers doing the same.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import RESULTS, command_line, record
from benchmarks.speed_worker import PEERS
from common.cli import ROOT
from common.devices import cpu_multiplies_int8, resolve_precision
from common.encoder import SentenceEncoder
from common.metrics import spearman
from common.rows import TrainingRows, read_labelled_rows, read_scored_pairs

CLASSIFIES = "ours predict"
OURS = ("ours fp32", "ours auto", *(["ours int8"] if cpu_multiplies_int8() else []), CLASSIFIES)
DEFAULTS = ("fp32", "ours fp32")  # of both sides on a processor without bf16
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# Two at once: ours, ours with the waiting of GNU's OpenMP, and sentence-transformers.
SIDE_BY_SIDE = {
    "ours": ("ours auto", {}),
    "spinning": ("ours auto", {"GOMP_SPINCOUNT": "300000"}),
    "fp32": ("fp32", {}),
}
PEERS_FILE = Path(__file__).with_name("peers.txt")
TEXTS, ROUNDS = 256, 5
QUICK_TEXTS, QUICK_ROUNDS = 128, 3
SIDE_BY_SIDE_ROUNDS = 3
START_TEXTS = 100
RATES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPE = (1024, 768, 3072)
THEIR_START = (
    "import sys, numpy; from sentence_transformers import SentenceTransformer; "
    "lines = open(sys.argv[2]).read().splitlines(); "
    "numpy.save(sys.argv[3], SentenceTransformer(sys.argv[1], device='cpu').encode(lines))"
)


class Worker:
    """A system in a process of its own."""

    def __init__(self, python: str, about: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        command, pipe = [python, str(ROOT / "benchmarks" / "speed_worker.py")], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **environment})
        self.say(json.dumps(about))

    def say(self, line: str) -> None:
        """Give a command, whose answer is to be read."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> float | None:
        """The answer of a command that was given."""
        return json.loads(self.process.stdout.readline())

    def ask(self, command: str) -> float | None:
        """A command's answer."""
        self.say(command)
        return self.answer()

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


def start(
    systems: Sequence[str], python: str, asked: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Worker]:
    """A worker for each system, those of peers in their own environment."""
    return {
        name: Worker(python if name in PEERS else sys.executable, {"system": name, **asked}, environment)
        for name in systems
    }


def compare(workers: Mapping[str, Worker], rounds: int, pairs: TrainingRows) -> dict[str, dict[str, float]]:
    """Every system's median seconds for all texts and for one, how near it is to ours in fp32, Spearman on the pairs.

    Beside them, the machine's `multiply_rate` in the same rounds, in fp32 and in bf16.
    """
    seconds = {name: {"all": [], "one": []} for name in workers}
    rates = {name: [] for name in RATES}
    embeddings = {name: embeddings_of(worker) for name, worker in workers.items() if name != CLASSIFIES}
    for worker in workers.values():
        worker.ask("all")  # the first pass is slower
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for name, worker in workers.items():
            for command, values in seconds[name].items():
                values.append(worker.ask(command))
        for name, dtype in RATES.items():
            rates[name].append(multiply_rate(dtype))
    found = {}
    for name, worker in workers.items():
        worker.close()
        found[name] = {command: statistics.median(values) for command, values in seconds[name].items()}
        found[name]["ratio"] = statistics.median(seconds["fp32"]["all"]) / found[name]["all"]
        if name in embeddings:
            found[name]["lowest_cosine"] = float((embeddings[name] * embeddings["ours fp32"]).sum(axis=1).min())
            left, right = np.split(embeddings[name][-2 * len(pairs.rows) :], 2)
            found[name]["stsb_dev"] = spearman((left * right).sum(axis=1), np.array(pairs.scores))
    return {"systems": found, "multiply_rate": {name: statistics.median(values) for name, values in rates.items()}}


def embeddings_of(worker: Worker) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        worker.ask(f"save {folder}/a.npy")
        return np.load(f"{folder}/a.npy")


def compare_side_by_side(python: str, asked: Mapping[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    """The median seconds for all texts: of one alone, and of two at once, each with all of them."""
    found = {}
    for name, (system, environment) in SIDE_BY_SIDE.items():
        print(f"side by side: {name}", flush=True)
        pair = [start([system], python, asked, environment)[system] for _ in range(2)]
        for worker in pair:
            worker.ask("all")  # the first pass is slower
        alone = [pair[0].ask("all") for _ in range(rounds)]
        together = []
        for _ in range(rounds):
            for worker in pair:
                worker.say("all")
            together.append(max(worker.answer() for worker in pair))
        for worker in pair:
            worker.close()
        found[name] = {"alone": statistics.median(alone), "two": statistics.median(together)}
    return found


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


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("python", help="of the environment with the peers")
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds; nothing is recorded")
    arguments = parser.parse_args()
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):  # ours set the first for themselves, peers do not
        os.environ.pop(name, None)
    count, rounds = (QUICK_TEXTS, QUICK_ROUNDS) if arguments.quick else (TEXTS, ROUNDS)
    texts = read_labelled_rows([arguments.data / "topic" / "test.csv"]).texts[:count]
    pairs = read_scored_pairs(arguments.data / "sts" / "stsb_dev.csv")
    encoder = SentenceEncoder.from_pretrained()
    tokens, weights = sum(map(len, encoder.tokenizer(texts))), sum(p.numel() for p in encoder.layers.parameters())
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        asked = {"folder": folder, "texts": texts, "sentences": list(chain(*zip(*pairs.rows, strict=True)))}
        found = compare(start([*PEERS, *OURS], arguments.python, asked, {}), rounds, pairs)
        without = compare(start(DEFAULTS, arguments.python, asked, AVX2), rounds, pairs)["systems"]
        beside = compare_side_by_side(arguments.python, asked, SIDE_BY_SIDE_ROUNDS)
        starts = compare_starts(arguments.python, Path(folder), texts[:START_TEXTS], rounds)
    for name, precision in (("ours fp32", "fp32"), ("ours auto", resolve_precision("auto", encoder.device))):
        rate = 2 * weights * tokens / found["systems"][name]["all"]
        found["systems"][name]["share_of_multiply_rate"] = rate / found["multiply_rate"][precision]
    for about, systems in (("", found["systems"]), ("without AVX-512: ", without)):
        for name, one in systems.items():
            print(f"{about}{name:<13} {count / one['all']:7.1f} texts/s  {one['ratio']:.2f} ×  "
                  f"one {1000 * one['one']:.1f} ms  cosine {one.get('lowest_cosine', math.nan):.5f}  "
                  f"stsb_dev {100 * one.get('stsb_dev', math.nan):.2f}  "
                  f"{one.get('share_of_multiply_rate', math.nan):.0%} of the machine's rate")  # fmt: skip
    for name, one in beside.items():
        print(f"{name}: {count / one['alone']:.1f} texts/s alone, {2 * count / one['two']:.1f} as two at once")
    for name, seconds in starts.items():
        print(f"{name}: {seconds:.2f} s")
    if not arguments.quick:
        about = {"texts": count, "tokens": tokens, "peers": versions_of_peers(arguments.python)}
        parts = {"without_avx512": without, "side_by_side": beside, "seconds_from_start": starts}
        record(RESULTS / "speed.json", {**about, **found, **parts})


def versions_of_peers(python: str) -> dict[str, str]:
    """The versions of what `peers.txt` names, in the peers' environment."""
    named = [line.partition("==")[0].partition("[")[0] for line in PEERS_FILE.read_text().splitlines() if "==" in line]
    program = (
        "import json, sys; from importlib.metadata import version; print(json.dumps([*map(version, sys.argv[1:])]))"
    )
    said = subprocess.run([python, "-c", program, *named], check=True, capture_output=True, text=True).stdout
    return dict(zip(named, json.loads(said), strict=True))


if __name__ == "__main__":
    main()
