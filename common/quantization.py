"""Weights in few bits: each row of a matrix as small integers with its own scale, in a checksummed file.

The file is safetensors inside gzip. A row is divided by its largest entry, so that the integers of a trained matrix lie
mostly near zero; gzip's Huffman code then spends on each about as many bits as it has information.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from common.cli import UserError
from common.encoder import QUANTIZED, EncoderConfig, PositionalEncoding, SentenceEncoder, read_description
from common.files import atomic_folder
from common.tokenizer import SentenceTokenizer

SCALE = ".scale"


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(rows, columns) to int8 of the same shape, from -(2^(bits-1) - 1) to its opposite, and (rows,) scales.

    Values times scale is within half a scale of the weight.

    Raises:
        ValueError: `bits` is not from 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be from 2 to 8, not {bits}")
    scale = weight.abs().amax(dim=1) / (2 ** (bits - 1) - 1)
    values = weight / torch.where(scale > 0, scale, 1.0)[:, None]
    return values.round().to(torch.int8), scale


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """The (rows, columns) float32 matrix that int8 values and (rows,) scales stand for."""
    return values.float().mul_(scale[:, None])


def save_quantized(encoder: SentenceEncoder, folder: str | Path, bits: Callable[[str], int]) -> None:
    """Write an encoder as a small folder that only `load_quantized` opens; biases and norms stay as they are.

    Args:
        bits: how many each number of a matrix gets, by the name of the matrix.

    Raises:
        UserError: the folder cannot be written.
    """
    if encoder.tokenizer.backend.get_vocab() != SentenceTokenizer().backend.get_vocab():
        raise ValueError("the folder holds no tokenizer: only an encoder with the bundled vocabulary can be written so")
    stored: dict[str, Tensor] = {}
    widths: dict[str, int] = {}
    for name, tensor in encoder.state_dict().items():
        if tensor.dim() == 2:
            widths[name] = bits(name)
            stored[name], stored[name + SCALE] = quantize(tensor.cpu(), widths[name])
        else:
            stored[name] = tensor.cpu()
    # Huffman codes alone: weights hold no repetitions to look for, and the search would only break the codes up.
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS + 16, 9, zlib.Z_HUFFMAN_ONLY)
    content = compressor.compress(save(stored)) + compressor.flush()
    described = {**asdict(encoder.config), "max_length": encoder.tokenizer.max_length, "bits": widths}
    described["sha256"] = checksum(described, content)
    with atomic_folder(folder) as temporary:
        (temporary / QUANTIZED).write_bytes(content)
        (temporary / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def checksum(described: Mapping[str, Any], content: bytes) -> str:
    """SHA-256 over a description and the weights it belongs to."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode() + content).hexdigest()


def load_quantized(folder: str | Path) -> SentenceEncoder:
    """The encoder that `save_quantized` wrote, in evaluation mode; torch's random state is left alone.

    Raises:
        UserError: its files are missing or damaged.
    """
    path, described = Path(folder) / QUANTIZED, read_description(folder, "config.json")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the weights cannot be read ({error.strerror})") from None
    if described.pop("sha256", None) != checksum(described, content):
        raise UserError(
            f"{path}: the weights or the config.json beside them are damaged or cut short (their checksum is wrong); "
            "fetch both again"
        )
    config = EncoderConfig(**{field.name: described[field.name] for field in fields(EncoderConfig)})
    stored = load(gzip.decompress(content))
    weights = {
        name: dequantize(tensor, stored[name + SCALE]) if name + SCALE in stored else tensor
        for name, tensor in stored.items()
        if not name.endswith(SCALE)
    }
    with torch.device("meta"):  # no time is spent on random weights that are replaced at once
        encoder = SentenceEncoder(config, SentenceTokenizer(max_length=described["max_length"]))
    if config.positions == "sinusoidal":
        encoder.embeddings.positions = PositionalEncoding(config.max_position_embeddings, config.hidden_size)
    encoder.load_state_dict(weights, assign=True)
    return encoder.requires_grad_().eval()
