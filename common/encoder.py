"""The sentence encoder: token embeddings and positions, transformer layers, mean pooling, L2 norm.

The block is BERT's (Devlin et al. 2019; post-norm, GELU), the positions are the sinusoids of Vaswani et al.
2017. Number for number it is a `BertModel` whose position table holds the sinusoids, and it is saved as one.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, BertModel, PreTrainedModel
from transformers.activations import ACT2FN

from common.cli import UserError
from common.data import token_budget_batches
from common.devices import InferenceConfig, autocast
from common.files import atomic_folder
from common.tokenizer import SentenceTokenizer, open_local_or_hub

BATCH_TOKENS = InferenceConfig.batch_tokens
QUANTIZED = "model.safetensors.gz"
SHIPPED = Path(__file__).parent / "weights"  # the trained encoder that comes with the repository


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder's shape, under BERT's own names; the defaults are this project's encoder.

    `positions` is "sinusoidal" (fixed, from the formula) or "learned" (a BERT checkpoint's table, which also
    brings BERT's token types).
    """

    vocab_size: int = 30_522
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    positions: str = "sinusoidal"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise UserError(f"sinusoidal positions need an even hidden_size, not {self.hidden_size}")


def mean_pool(token_states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of each row's real tokens: (batch, length, dim) and (batch, length) to (batch, dim)."""
    mask = attention_mask.unsqueeze(-1).to(token_states.dtype)
    return (token_states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class Encoder(nn.Module):
    """What every encoder can do, whatever its layers: text in, unit vectors out.

    A subclass has a `tokenizer`, a width `dim`, `max_positions` (None where length has no bound), `token_states`,
    `stages` and `write_model`.
    """

    tokenizer: SentenceTokenizer
    dim: int
    max_positions: int | None

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Each token's vector after the last layer: (batch, length) ids and mask to (batch, length, dim)."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The encoder's parts from the bottom up: the embeddings, then each layer. Every parameter is in one."""
        raise NotImplementedError

    def parts(self) -> dict[str, nn.Module]:
        """The stages by name, bottom up: "embeddings", "layer 1", ..."""
        return {f"layer {n}" if n else "embeddings": stage for n, stage in enumerate(self.stages())}

    def write_model(self, folder: Path) -> None:
        """Write the files of the model alone (its configuration and weights) into an existing folder."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Sentence embeddings with unit norm: (batch, length) ids and mask to (batch, dim)."""
        return F.normalize(mean_pool(self.token_states(input_ids, attention_mask), attention_mask), dim=-1)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def cut_at(self, max_length: int) -> None:
        """Cut texts at this many tokens from now on, special tokens counted; a saved model remembers it.

        Raises:
            UserError: too few to hold a word, or more than the encoder has positions.
        """
        if not 3 <= max_length <= (self.max_positions or max_length):
            raise UserError(f"a maximum length of {max_length}: must be from 3 to the encoder's {self.max_positions}")
        self.tokenizer = SentenceTokenizer(self.tokenizer.backend, max_length)

    def set_dropout(self, share: float) -> None:
        """The share of values dropped while training from now on; a saved model's configuration keeps its own."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = share
            if isinstance(module, TransformerLayer):
                module.attention_dropout = share

    def encode(self, sentences: Sequence[str], batch_tokens: int = BATCH_TOKENS, precision: str = "fp32") -> np.ndarray:
        """Embed sentences: (n, dim) float32 with unit rows, in the order given.

        Args:
            sentences: any strings; one with no known token still gets a unit vector, and a warning counts them.
            batch_tokens: the most tokens in one batch, padding included. Only speed and memory depend on it.
            precision: "fp32", or "bf16" / "fp16" for autocast.

        Raises:
            TypeError: an element is not a string, or `sentences` is a single string.
        """
        if isinstance(sentences, str):
            raise TypeError("encode takes a list of sentences, not a single string")
        chunks = list(self.encode_stream([list(sentences)], batch_tokens, precision))
        return chunks[0] if chunks else np.zeros((0, self.dim), dtype=np.float32)

    def encode_stream(
        self, chunks: Iterable[list[str]], batch_tokens: int = BATCH_TOKENS, precision: str = "fp32"
    ) -> Iterator[np.ndarray]:
        """Embed lists of sentences one after another, each as `encode` does; memory holds one list at a time.

        Raises:
            TypeError: an element is not a string.
        """
        blank = total = 0
        for chunk in chunks:
            rows = self.tokenizer(chunk)
            blank += sum(map(self.tokenizer.is_blank, rows))
            total += len(rows)
            yield self._embed(rows, batch_tokens, precision)
        if blank:
            warnings.warn(
                f"{blank} of {total} sentences are empty or hold only unknown characters; "
                "their embeddings mean nothing",
                stacklevel=2,
            )

    @torch.inference_mode()
    def _embed(self, rows: list[list[int]], batch_tokens: int, precision: str) -> np.ndarray:
        embeddings = np.empty((len(rows), self.dim), dtype=np.float32)
        with evaluating(self), autocast(self.device, precision):
            for batch in token_budget_batches([len(row) for row in rows], batch_tokens):
                input_ids, attention_mask = self.tokenizer.pad([rows[i] for i in batch])
                states = self.token_states(input_ids.to(self.device), attention_mask.to(self.device))
                pooled = mean_pool(states.float(), attention_mask.to(self.device))
                embeddings[batch] = F.normalize(pooled, dim=-1).cpu().numpy()
        return embeddings

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers and sentence-transformers open as it is.

        Each file is whole or not there; all are written before the first is moved into place.

        Raises:
            UserError: the folder cannot be written.
        """
        with atomic_folder(folder) as temporary:
            self.write_folder(temporary)

    def write_folder(self, folder: Path) -> None:
        """Write model, tokenizer and sentence-transformers' description into an existing folder."""
        self.write_model(folder)
        self.tokenizer.save_pretrained(folder)
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        kind = "sentence_transformers.models."
        descriptions = {
            "modules.json": [
                {"idx": i, "name": str(i), "path": path, "type": kind + name} for i, (path, name) in enumerate(modules)
            ],
            "sentence_bert_config.json": {
                "max_seq_length": self.tokenizer.max_length,
                "do_lower_case": False,
            },
            "1_Pooling/config.json": {"word_embedding_dimension": self.dim, "pooling_mode_mean_tokens": True},
        }
        (folder / "1_Pooling").mkdir()
        for name, description in descriptions.items():
            (folder / name).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = SHIPPED) -> "Encoder":
        """Open the shipped encoder, a saved one, any BERT checkpoint, or any other transformers encoder.

        A folder needs no network; a hub name is taken from the local cache or fetched. BERT's kind becomes a
        `SentenceEncoder`, any other a `PretrainedEncoder` behind the same methods.

        It is in evaluation mode: no dropout. A folder that asks for another pooling than the mean is warned about.

        Raises:
            UserError: there is no such model, it cannot be reached, it holds no safetensors weights, or the shipped
                weights are damaged.
        """
        if (Path(name_or_path) / QUANTIZED).is_file():
            from common.quantization import load_quantized  # it builds on this file

            return load_quantized(name_or_path)
        backbone = open_backbone(name_or_path)
        length = read_description(name_or_path, "sentence_bert_config.json").get("max_seq_length")
        tokenizer = SentenceTokenizer.from_pretrained(name_or_path, length)
        pooling = read_description(name_or_path, "1_Pooling/config.json")
        if pooling and not (pooling.get("pooling_mode_mean_tokens") or pooling.get("pooling_mode") == "mean"):
            warnings.warn(f"{name_or_path} was made for another pooling; here the mean is taken", stacklevel=2)
        if type(backbone) is BertModel and not backbone.config.is_decoder:
            return SentenceEncoder.from_bert(backbone, tokenizer).eval()
        from common.pretrained import PretrainedEncoder  # it builds on this file

        return PretrainedEncoder(backbone, tokenizer).eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of a block; afterwards each part is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class PositionalEncoding(nn.Module):
    """Adds the fixed sinusoids of Vaswani et al. 2017, section 3.5, to token vectors.

    PE(pos, 2i) = sin(pos / 10000^(2i/dim)), PE(pos, 2i+1) = cos(pos / 10000^(2i/dim)).
    """

    def __init__(self, max_positions: int, dim: int) -> None:
        super().__init__()
        position = torch.arange(max_positions, dtype=torch.float64)[:, None]
        angle = position / 10_000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)  # (positions, dim / 2)
        table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # sin and cos in turn
        self.register_buffer("table", table.float(), persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(batch, length, dim) to the same, each position's sinusoids added."""
        return vectors + self.table[: vectors.size(1)]


class LearnedPositions(nn.Module):
    """BERT's own alternative: a trained vector for each position, and one that says "first segment"."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(config.max_position_embeddings, config.hidden_size) * 0.02)
        self.token_types = nn.Parameter(torch.randn(config.type_vocab_size, config.hidden_size) * 0.02)

    def forward(self, vectors: Tensor) -> Tensor:
        """(batch, length, dim) to the same, the position's and the first segment's vectors added."""
        return vectors + self.token_types[0] + self.table[: vectors.size(1)]


class Embeddings(nn.Module):
    """Token ids to the vectors the first layer reads: token + position, layer norm, dropout."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        # Deviation 1, as in the transformer paper once its sqrt(dim) is multiplied in: the sinusoids are of
        # size 1, and tokens of BERT's 0.02 would be lost under them.
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        if config.positions == "sinusoidal":
            self.positions = PositionalEncoding(config.max_position_embeddings, config.hidden_size)
        else:
            self.positions = LearnedPositions(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) ids to (batch, length, dim)."""
        return self.dropout(self.norm(self.positions(self.tokens(input_ids))))


class TransformerLayer(nn.Module):
    """BERT's block: self-attention, then a feed-forward network, each with a residual and a norm after it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_output = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.feed_forward = nn.Linear(dim, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.feed_forward_output = nn.Linear(config.intermediate_size, dim)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(batch, length, dim) to the same; `attention_mask` (batch, 1, 1, length) is True at real tokens."""
        batch, length, dim = states.shape
        projected = self.query_key_value(states).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, dim / heads)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout)
        attended = self.attention_output(attended.transpose(1, 2).reshape(batch, length, dim))
        states = self.attention_norm(states + self.dropout(attended))
        expanded = self.activation(self.feed_forward(states))  # (batch, length, intermediate_size)
        return self.feed_forward_norm(states + self.dropout(self.feed_forward_output(expanded)))


class SentenceEncoder(Encoder):
    """The project's encoder, and every BERT checkpoint: 6 layers, 8 heads and 768 wide unless told otherwise."""

    def __init__(self, config: EncoderConfig | None = None, tokenizer: SentenceTokenizer | None = None) -> None:
        super().__init__()
        self.config = config = config or EncoderConfig()
        self.dim = config.hidden_size
        self.tokenizer = tokenizer or SentenceTokenizer()
        self.max_positions = config.max_position_embeddings
        self.cut_at(min(self.tokenizer.max_length, self.max_positions))
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_hidden_layers))
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def stages(self) -> list[nn.Module]:
        """The embeddings, then each transformer layer, bottom up."""
        return [self.embeddings, *self.layers]

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Each token's vector after the last layer: (batch, length) ids and mask to (batch, length, dim).

        Raises:
            UserError: the batch is longer than the encoder has positions.
        """
        if input_ids.size(1) > self.config.max_position_embeddings:
            raise UserError(
                f"a batch is {input_ids.size(1)} tokens long, but the encoder has "
                f"{self.config.max_position_embeddings} positions; truncate when tokenizing"
            )
        # Without padding no mask is needed, and attention is quicker without one.
        mask = None if bool(attention_mask.all()) else attention_mask.bool()[:, None, None, :]
        states = self.embeddings(input_ids)
        for layer in self.layers:
            states = layer(states, mask)
        return states

    @classmethod
    def from_bert(cls, bert: BertModel, tokenizer: SentenceTokenizer | None = None) -> "SentenceEncoder":
        """The encoder that computes what a transformers `BertModel` computes (its pooler aside)."""
        known = {field.name for field in fields(EncoderConfig)}
        settings = {name: value for name, value in bert.config.to_dict().items() if name in known}
        encoder = cls(EncoderConfig(**{"positions": "learned", **settings}), tokenizer)
        encoder.load_state_dict(from_bert_names(bert.state_dict(), encoder.config), strict=True)
        return encoder

    def write_model(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` as transformers writes a BertModel's."""
        bert = {"architectures": ["BertModel"], "model_type": "bert", "dtype": "float32"}
        config = json.dumps({**bert, **asdict(self.config)}, indent=2)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        weights = {name: tensor.contiguous().cpu() for name, tensor in to_bert_names(self).items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# Our parameter names in layer {i} and those of BertModel; the fused query_key_value stands apart.
LAYER_NAMES = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward": "intermediate.dense",
    "feed_forward_output": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
KINDS = ("weight", "bias")


def to_bert_names(encoder: SentenceEncoder) -> dict[str, Tensor]:
    """The encoder's tensors under BertModel's names, the sinusoids (or learned positions) as its table."""
    config, positions = encoder.config, encoder.embeddings.positions
    sinusoidal = isinstance(positions, PositionalEncoding)
    token_types = torch.zeros(config.type_vocab_size, config.hidden_size) if sinusoidal else positions.token_types
    named = {
        "embeddings.word_embeddings.weight": encoder.embeddings.tokens.weight,
        "embeddings.position_embeddings.weight": positions.table,
        "embeddings.token_type_embeddings.weight": token_types,
        "embeddings.LayerNorm.weight": encoder.embeddings.norm.weight,
        "embeddings.LayerNorm.bias": encoder.embeddings.norm.bias,
    }
    for i, layer in enumerate(encoder.layers):
        for kind in KINDS:
            for ours, bert in LAYER_NAMES.items():
                named[f"encoder.layer.{i}.{bert}.{kind}"] = getattr(getattr(layer, ours), kind)
            parts = getattr(layer.query_key_value, kind).chunk(3)
            for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                named[f"encoder.layer.{i}.attention.self.{part}.{kind}"] = tensor
    return {name: tensor.detach() for name, tensor in named.items()}


def from_bert_names(bert: dict[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """A BertModel's tensors under the encoder's names: the inverse of `to_bert_names`."""
    named = {
        "embeddings.tokens.weight": bert["embeddings.word_embeddings.weight"],
        "embeddings.norm.weight": bert["embeddings.LayerNorm.weight"],
        "embeddings.norm.bias": bert["embeddings.LayerNorm.bias"],
    }
    if config.positions == "learned":
        named["embeddings.positions.table"] = bert["embeddings.position_embeddings.weight"]
        named["embeddings.positions.token_types"] = bert["embeddings.token_type_embeddings.weight"]
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}."
        for kind in KINDS:
            for ours, name in LAYER_NAMES.items():
                named[f"layers.{i}.{ours}.{kind}"] = bert[f"{layer}{name}.{kind}"]
            parts = [bert[f"{layer}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            named[f"layers.{i}.query_key_value.{kind}"] = torch.cat(parts)
    return named


def open_backbone(name_or_path: str | Path) -> PreTrainedModel:
    """A transformers model in fp32, from a folder or by hub name, from safetensors alone.

    Raises:
        UserError: there is none, it cannot be reached, or its weights are no safetensors.
    """
    path = Path(name_or_path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{path}: no model there (a model folder holds config.json and model.safetensors)")
    options = {"dtype": torch.float32, "use_safetensors": True}
    return open_local_or_hub(AutoModel.from_pretrained, name_or_path, "model", **options)


def read_description(folder: str | Path, name: str) -> dict[str, Any]:
    """One of the JSON files that sentence-transformers puts into a model's folder; empty where it is not there.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / name
    if not path.is_file():
        return {}
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(described, dict):
        raise UserError(f"{path}: holds no JSON object")
    return described
