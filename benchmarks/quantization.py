"""Weights in few bits: each row of a matrix as small integers with its own scale, in a checksummed file.

The file is safetensors inside gzip. A row is divided by its largest entry, so that the integers of a trained matrix lie
mostly near zero; gzip's Huffman code then spends on each about as many bits as it has information. `common/bert.py`
reads it.
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from common.bert import COMPACT, SCALE, checksum
from common.encoder import SentenceEncoder
from common.files import atomic_folder
from common.tokenizer import SentenceTokenizer


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


def save_quantized(encoder: SentenceEncoder, folder: str | Path, bits: Callable[[str], int]) -> None:
    """Write an encoder as a small folder that `SentenceEncoder.from_pretrained` opens; biases and norms as they are.

    Args:
        bits: how many each number of a matrix gets, by the name of the matrix.

    Raises:
        ValueError: the encoder has a vocabulary of its own.
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
        (temporary / COMPACT).write_bytes(content)
        (temporary / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
