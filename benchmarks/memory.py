"""Does `task1.py embed` need more memory, or longer for a text, where there are more of them?

    python -m benchmarks.memory

Files of 10,000 to 1,000,000 texts are embedded by the command in a process of its own: its peak memory, and its
seconds (on Linux, which counts memory in kB). A text is one word: longer ones need more memory in a batch, which is
never above its budget of tokens.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS, command_line, record
from common.cli import ROOT
from common.tokenizer import VOCABULARY

COUNTS = (10_000, 100_000, 1_000_000)
SHORTEST_WORD = 3


def texts(count: int) -> list[str]:
    """Words drawn from the vocabulary, so that each is one token."""
    words = [word for word in VOCABULARY.read_text(encoding="utf-8").splitlines() if word.isalpha() and word.isascii()]
    words = [word for word in words if len(word) >= SHORTEST_WORD]
    return [words[i] for i in np.random.default_rng(0).integers(len(words), size=count)]


def embed(count: int) -> dict[str, float]:
    """The seconds, and the peak memory in MB, of embedding so many texts."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "texts.txt"
        lines.write_text("\n".join(texts(count)), encoding="utf-8")
        command = [
            sys.executable,
            str(ROOT / "task1.py"),
            "embed",
            str(lines),
            "--output",
            f"{folder}/a.npy",
            "--dtype",
            "float16",
        ]
        started = time.perf_counter()
        process = os.posix_spawn(sys.executable, command, os.environ)
        _, status, used = os.wait4(process, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        return {"texts": count, "seconds": time.perf_counter() - started, "peak_megabytes": used.ru_maxrss / 1024}


def main() -> None:
    command_line(__doc__, data=False).parse_args()
    found = [embed(count) for count in COUNTS]
    for one in found:
        print(f"{one['texts']:>9,} texts: {one['seconds']:6.1f} s, {one['peak_megabytes']:.0f} MB at most")
    record(RESULTS / "memory.json", {"embedded": found})


if __name__ == "__main__":
    main()
