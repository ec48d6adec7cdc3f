"""What every encoder can do, whatever its layers: text in, unit vectors out."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batching import token_budget_batches
from common.devices import resolve_batch
from common.errors import UserError
from common.files import atomic_folder
from common.folders import Description
from common.lowered import lowered
from common.tokenizer import SentenceTokenizer


def pool(token_states: Tensor, attention_mask: Tensor, pooling: str = "mean") -> Tensor:
    """One vector of each row's real tokens: (batch, length, dim) and (batch, length) to (batch, dim)."""
    if pooling == "cls":
        return token_states[:, 0]
    mask = attention_mask.bool().unsqueeze(-1)  # (batch, length, 1)
    if pooling == "max":
        return token_states.masked_fill(~mask, -torch.inf).amax(dim=1)
    return (token_states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class Encoder(nn.Module):
    """What every encoder can do, whatever its layers: text in, unit vectors out.

    A subclass has a `config`, a `tokenizer`, a width `dim`, a `pooling`, `max_positions` (None where length has no
    bound), `token_states`, `stages` and `write_model`.
    """

    config: Any  # the shape: an EncoderConfig, or transformers' own
    tokenizer: SentenceTokenizer
    dim: int
    pooling: str
    max_positions: int | None

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Each token's vector after the last layer: (batch, length) ids and mask to (batch, length, dim)."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The encoder's stages from the bottom up: the embeddings, then each layer. Every parameter is in one."""
        raise NotImplementedError

    def named_stages(self) -> dict[str, nn.Module]:
        """The stages by name, bottom up: "embeddings", "layer 1", ..."""
        return {f"layer {n}" if n else "embeddings": stage for n, stage in enumerate(self.stages())}

    def write_model(self, folder: Path) -> None:
        """Write the files of the model alone (its configuration and weights) into an existing folder."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Sentence embeddings with unit norm: (batch, length) ids and mask to (batch, dim)."""
        return self.embed_states(self.token_states(input_ids, attention_mask), attention_mask)

    def embed_states(self, token_states: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length, dim) states and (batch, length) mask to (batch, dim): pooled, unit norm, in float32."""
        return F.normalize(pool(token_states.float(), attention_mask, self.pooling), dim=-1)

    def description(self) -> list[Any]:
        """What decides, beside the weights, what the encoder makes of a text; JSON holds it."""
        return [str(self.config), self.pooling, self.tokenizer.description()]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def max_padding(self) -> float:
        """Tokens of padding in a batch beyond which two batches cost less than one.

        An accelerator waits for what starts a batch, so that it is far more there; how much more is an estimate, not
        timed.
        """
        return 128 if self.device.type == "cpu" else 4096

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
            for name, value in vars(module).items():  # what attention drops is a number, under several names
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, float(share))

    def encode(self, sentences: Sequence[str], batch_tokens: int | None = None, precision: str = "auto") -> np.ndarray:
        """Embed sentences: (n, dim) float32 with unit rows, in the order given.

        Args:
            sentences: any strings; one with no known token still gets a unit vector, and a warning counts them.
            batch_tokens: the most tokens in one batch, padding included; None: what is quickest on the device. Only
                speed and memory depend on it, and in half precision the last digits.
            precision: "fp32", "bf16", "fp16", or "auto": bf16 where the processor computes in it, else fp32; "int8"
                (encoders of BERT's kind, processors with AVX512-VNNI): quicker, rougher.

        Raises:
            TypeError: an element is not a string, or `sentences` is a single string.
            UserError: there is no such precision, or not here.
        """
        if isinstance(sentences, str):
            raise TypeError("encode takes a list of sentences, not a single string")
        chunks = list(self.encode_stream([list(sentences)], batch_tokens, precision))
        return chunks[0] if chunks else np.zeros((0, self.dim), dtype=np.float32)

    def encode_stream(
        self, chunks: Iterable[list[str]], batch_tokens: int | None = None, precision: str = "auto"
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
    def _embed(self, rows: list[list[int]], batch_tokens: int | None, precision: str) -> np.ndarray:
        embeddings = np.empty((len(rows), self.dim), dtype=np.float32)
        encoder = lowered(self, precision)  # its states alone: tokenizer and pooling may have changed since
        with evaluating(encoder):
            for batch in token_budget_batches([len(row) for row in rows], resolve_batch(batch_tokens, self.device)):
                input_ids, attention_mask = self.tokenizer.pad([rows[i] for i in batch])
                input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
                states = encoder.token_states(input_ids, attention_mask)
                embeddings[batch] = self.embed_states(states, attention_mask).cpu().numpy()
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
        Description(self.pooling, self.tokenizer.max_length).write(folder, self.dim)


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
