"""What the programs share: the command line, a training that goes on, a result with all that is needed to repeat it.

Every recorded result carries the command, the date, the machine and the versions it ran with.
"""

import json
import platform
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import CHECKPOINT
from common.devices import cpu_computes_bf16
from common.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "accelerate", "numpy")


def command_line(description: str, data: bool = True) -> ArgumentParser:
    """The command line of a program, described by its docstring; `data` is the folder of the data sets."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    if data:
        parser.add_argument("data", type=Path)
    return parser


def machine() -> dict[str, Any]:
    """The processor, its cores as torch uses them, and any GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "threads": torch.get_num_threads(),
        "bf16": cpu_computes_bf16(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def trained(
    main: Callable[[Sequence[str]], None], arguments: Sequence[str], output: Path, result: str
) -> dict[str, Any]:
    """What a script's `train` writes into `result` beside its model; it trains, or goes on, where that is not there."""
    if not (output / result).is_file():
        resume = ["--resume"] if (output / CHECKPOINT).is_file() else []
        main(["train", *arguments, "--output", str(output), *resume])
    return json.loads((output / result).read_text(encoding="utf-8"))


def record(path: Path, result: dict[str, Any]) -> None:
    """Write a result under benchmarks/results/ with all that is needed to make it again; no path of the machine."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    about = {
        "command": " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *words]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**about, **result})
    print(f"recorded: {path.relative_to(RESULTS.parent.parent)}")
