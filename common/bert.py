"""The encoder's weights under BertModel's names and back, every key accounted for; and the compact weights' reader."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from common.errors import UserError
from common.folders import open_from_folder, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPACT, SCALE = "model.safetensors.gz", ".scale"
# Our names and BertModel's; the position table and layer i's query_key_value stand apart.
EMBEDDING_NAMES = {
    "embeddings.tokens.weight": "embeddings.word_embeddings.weight",
    "embeddings.positions.table": "embeddings.position_embeddings.weight",
    "embeddings.positions.token_types": "embeddings.token_type_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
LAYER_NAMES = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward": "intermediate.dense",
    "feed_forward_output": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
KINDS = ("weight", "bias")


def to_bert_names(ours: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """An encoder's tensors, position table and token types among them, under BertModel's names."""
    named = {bert: ours[name] for name, bert in EMBEDDING_NAMES.items()}
    for i in range(layers):
        for kind in KINDS:
            for name, bert in LAYER_NAMES.items():
                named[f"encoder.layer.{i}.{bert}.{kind}"] = ours[f"layers.{i}.{name}.{kind}"]
            parts = ours[f"layers.{i}.query_key_value.{kind}"].chunk(3)  # (3 dim, ...) to three of (dim, ...)
            for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                named[f"encoder.layer.{i}.attention.self.{part}.{kind}"] = tensor
    return named


def from_bert_names(bert: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A BertModel's tensors under the encoder's names: the inverse of `to_bert_names`. The pooler is left out.

    Raises:
        UserError: the BertModel holds a tensor that the encoder has no place for.
    """
    left = dict(bert)
    named = {name: left.pop(theirs) for name, theirs in EMBEDDING_NAMES.items()}
    for i in range(layers):
        layer = f"encoder.layer.{i}."
        for kind in KINDS:
            for name, theirs in LAYER_NAMES.items():
                named[f"layers.{i}.{name}.{kind}"] = left.pop(f"{layer}{theirs}.{kind}")
            parts = [left.pop(f"{layer}attention.self.{part}.{kind}") for part in ("query", "key", "value")]
            named[f"layers.{i}.query_key_value.{kind}"] = torch.cat(parts)
    if unused := [name for name in left if not name.startswith("pooler.")]:
        raise UserError(f"the encoder has no place for {_listed(unused)}")
    return named


def open_backbone(folder: Path) -> "PreTrainedModel":
    """A transformers model in fp32 from a folder, from safetensors alone, every weight of it from the checkpoint.

    Weights of other heads (of a masked language model, say) and of the pooler are left out.

    Raises:
        UserError: there is none, or its checkpoint lacks a weight or holds one that the model has no place for.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model there (a model folder holds config.json and model.safetensors)")
    from transformers import AutoModel  # a second, which only models that others made need

    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    model, found = open_from_folder(AutoModel.from_pretrained, folder, "model", **options)
    if missing := [name for name in found["missing_keys"] if "pooler." not in name]:
        raise UserError(f"{folder}: the checkpoint lacks {_listed(missing)}")
    # Saved with a head, a backbone's weights stand behind its prefix, and all others belong to the head.
    prefix = model.base_model_prefix + "."
    prefixed = any(key.startswith(prefix) for key in _checkpoint_keys(folder))
    known = ("pooler.", "position_ids")
    unused = [name for name in found["unexpected_keys"] if not any(word in name for word in known)]
    if unused := [name for name in unused if name.startswith(prefix) or not prefixed]:
        raise UserError(f"{folder}: the model has no place for {_listed(unused)} of its checkpoint")
    return model


def _checkpoint_keys(folder: Path) -> Iterable[str]:
    for path in folder.glob("model*.safetensors"):  # other files hold heads, or a training's state
        with safe_open(path, framework="pt") as stored:
            yield from stored.keys()


def _listed(keys: Iterable[str]) -> str:
    """A few of the names, and how many more there are."""
    first, *others = sorted(keys)
    return f"{first} and {len(others)} more" if others else first


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """The (rows, columns) float32 matrix that int8 values and (rows,) scales stand for."""
    return values.float().mul_(scale[:, None])


def checksum(described: Mapping[str, Any], content: bytes) -> str:
    """SHA-256 over a description and the weights it belongs to."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode() + content).hexdigest()


def read_compact(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors, under our names, of weights in few bits.

    The file is safetensors inside gzip; each row of a matrix is whole numbers with a scale of its own.

    Raises:
        UserError: the files are missing or damaged.
    """
    path, described = folder / COMPACT, read_json(folder / "config.json", dict)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the weights cannot be read ({error.strerror})") from None
    if described.pop("sha256", None) != checksum(described, content):
        raise UserError(
            f"{path}: the weights or the config.json beside them are damaged or cut short (their checksum is wrong); "
            "fetch both again"
        )
    stored = load(gzip.decompress(content))
    weights = {
        name: dequantize(tensor, stored[name + SCALE]) if name + SCALE in stored else tensor
        for name, tensor in stored.items()
        if not name.endswith(SCALE)
    }
    return described, weights
