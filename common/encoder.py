"""The sentence encoder: token embeddings and positions, transformer layers, mean pooling, L2 norm.

The block is BERT's (Devlin et al. 2019; post-norm, GELU), the positions are the sinusoids of Vaswani et al.
2017. Number for number it is a `BertModel` whose position table holds the sinusoids, and it is saved as one.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from common.attention import Tokens
from common.bert import COMPACT, from_bert_names, open_backbone, read_compact, to_bert_names
from common.dropout import Dropout
from common.embedding import Encoder
from common.errors import UserError
from common.folders import POOLINGS, Description, model_folder
from common.tokenizer import SentenceTokenizer

if TYPE_CHECKING:
    from transformers import BertModel

SHIPPED = Path(__file__).parent / "weights"  # the trained encoder that comes with the repository


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder's shape, under BERT's own names; the defaults are this project's encoder.

    `positions` is "sinusoidal" (fixed, from the formula) or "learned" (a BERT checkpoint's table, which also
    brings BERT's token types). `pooling` is "mean", "cls" (the first token's vector) or "max".
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
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"must be one of {', '.join(POOLINGS)}, not {self.pooling}", "pooling")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise UserError(f"sinusoidal positions need an even hidden_size, not {self.hidden_size}")


def sinusoids(positions: int, dim: int) -> Tensor:
    """The (positions, dim) table of Vaswani et al. 2017, section 3.5.

    PE(pos, 2i) = sin(pos / 10000^(2i/dim)), PE(pos, 2i+1) = cos(pos / 10000^(2i/dim)).
    """
    position = torch.arange(positions, dtype=torch.float64)[:, None]
    angle = position / 10_000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)  # (positions, dim / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # sin and cos in turn: (positions, dim)


class PositionalEncoding(nn.Module):
    """Adds the fixed sinusoids to token vectors."""

    def __init__(self, max_positions: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(max_positions, dim), persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(batch, length, dim) to the same, each position's sinusoids added."""
        return vectors + self.table[: vectors.size(1)].to(vectors.dtype)


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
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) ids to (batch, length, dim)."""
        return self.dropout(self.norm(self.positions(self.tokens(input_ids))))


def activation(name: str) -> nn.Module:
    """The activation of a name: BERT's own, or any other that transformers knows."""
    if name == "gelu":
        return nn.GELU()
    from transformers.activations import ACT2FN  # a second, which only models that others made need

    return ACT2FN[name]


class TransformerLayer(nn.Module):
    """BERT's block: self-attention, then a feed-forward network, each with a residual and a norm after it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.query_key_value.precise_from = 2 * dim  # in int8 the values' error is most of what there is
        self.attention_output = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.feed_forward = nn.Linear(dim, config.intermediate_size)
        self.activation = activation(config.hidden_act)
        self.feed_forward_output = nn.Linear(config.intermediate_size, dim)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, tokens: Tokens) -> Tensor:
        """(tokens, dim) to the same."""
        share = self.attention_dropout if self.training else 0.0
        attended = self.attention_output(tokens.attend(self.query_key_value(states), self.heads, share))
        states = self.attention_norm(states + self.dropout(attended))
        expanded = self.activation(self.feed_forward(states))  # (tokens, intermediate_size)
        return self.feed_forward_norm(states + self.dropout(self.feed_forward_output(expanded)))


class SentenceEncoder(Encoder):
    """The project's encoder, and every BERT checkpoint: 6 layers, 8 heads and 768 wide unless told otherwise."""

    max_padding = math.inf  # little is computed for it

    def __init__(self, config: EncoderConfig | None = None, tokenizer: SentenceTokenizer | None = None) -> None:
        super().__init__()
        self.config = config = config or EncoderConfig()
        self.dim, self.pooling = config.hidden_size, config.pooling
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
        tokens = Tokens(attention_mask)
        states = tokens.take(self.embeddings(input_ids))
        for layer in self.layers:
            states = layer(states, tokens)
        return tokens.put_back(states)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = SHIPPED) -> "SentenceEncoder":
        """Open the shipped encoder, a saved one, or any BERT checkpoint, in evaluation mode: no dropout.

        A folder needs no network; a hub name is taken from the local cache or fetched.

        Raises:
            UserError: there is no such model, it is no BERT (`load_encoder` opens others), or it is damaged.
        """
        folder = model_folder(name_or_path)
        if (folder / COMPACT).is_file():
            return cls._from_compact(folder)
        backbone, described = open_backbone(folder), Description.read(folder)
        if type(backbone).__name__ != "BertModel" or backbone.config.is_decoder:
            raise UserError(f"{name_or_path}: a {backbone.config.model_type} model is no BERT; load_encoder opens it")
        tokenizer = SentenceTokenizer.from_pretrained(folder, described.max_length)
        return cls.from_bert(backbone, tokenizer, described.pooling).eval()

    @classmethod
    def from_bert(
        cls, bert: "BertModel", tokenizer: SentenceTokenizer | None = None, pooling: str = "mean"
    ) -> "SentenceEncoder":
        """The encoder that computes what a transformers `BertModel` computes (its pooler aside).

        Positions that its configuration calls sinusoidal are taken as learned where training has changed them.
        """
        known = {field.name for field in fields(EncoderConfig)}
        settings = {name: value for name, value in bert.config.to_dict().items() if name in known}
        config = EncoderConfig(**{"positions": "learned", **settings, "pooling": pooling})
        weights = from_bert_names(bert.state_dict(), config.num_hidden_layers)
        table, token_types = weights["embeddings.positions.table"], weights["embeddings.positions.token_types"]
        if config.positions == "sinusoidal":
            if token_types.any() or not torch.allclose(table, sinusoids(*table.shape), rtol=0, atol=1e-6):
                config = replace(config, positions="learned")
            else:
                del weights["embeddings.positions.table"], weights["embeddings.positions.token_types"]
        encoder = cls(config, tokenizer)
        encoder.load_state_dict(weights, strict=True)
        return encoder

    @classmethod
    def _from_compact(cls, folder: Path) -> "SentenceEncoder":
        """The encoder in a folder of compact weights; torch's random state is left alone."""
        described, weights = read_compact(folder)
        config = EncoderConfig(**{f.name: described[f.name] for f in fields(EncoderConfig) if f.name in described})
        with torch.device("meta"):  # no time is spent on random weights that are replaced at once
            encoder = cls(config, SentenceTokenizer(max_length=described["max_length"]))
        if config.positions == "sinusoidal":
            encoder.embeddings.positions = PositionalEncoding(config.max_position_embeddings, config.hidden_size)
        encoder.load_state_dict(weights, assign=True)
        return encoder.requires_grad_().eval()

    def write_model(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` as transformers writes a BertModel's."""
        bert = {"architectures": ["BertModel"], "model_type": "bert", "dtype": "float32"}
        config = json.dumps({**bert, **asdict(self.config)}, indent=2)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        state, positions = self.state_dict(), self.embeddings.positions
        if isinstance(positions, PositionalEncoding):
            token_types = torch.zeros(self.config.type_vocab_size, self.dim)
            state |= {"embeddings.positions.table": positions.table, "embeddings.positions.token_types": token_types}
        named = to_bert_names(state, len(self.layers))
        weights = {name: tensor.contiguous().cpu() for name, tensor in named.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
