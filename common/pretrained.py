"""Any other transformers encoder (RoBERTa, DeBERTa, ...) behind the same face as the project's own."""

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from common.cli import UserError
from common.encoder import Encoder
from common.tokenizer import SentenceTokenizer


class PretrainedEncoder(Encoder):
    """A transformers `AutoModel` as a sentence encoder: its token states, mean pooling, L2 norm.

    Raises:
        UserError: the model has no stack of layers to tell apart, or is no encoder of text.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: SentenceTokenizer) -> None:
        super().__init__()
        if model.config.is_encoder_decoder:
            raise UserError(f"a {model.config.model_type} model has a decoder too; choose an encoder")
        if hasattr(model, "pooler"):
            model.pooler = None  # mean pooling stands in its place, and untrained it would only weigh
        self.model = model
        self.tokenizer = tokenizer
        self.dim = model.config.hidden_size
        if not any(isinstance(module, nn.ModuleList) for module in model.modules()):
            raise UserError(f"no stack of layers was found in a {model.config.model_type} model")
        self.max_positions = getattr(model.config, "max_position_embeddings", None)
        offset = getattr(getattr(model, "embeddings", None), "padding_idx", None)
        if self.max_positions and offset:
            self.max_positions -= offset + 1  # RoBERTa's kind counts positions from padding_idx + 1
        self.cut_at(min(tokenizer.max_length, self.max_positions or tokenizer.max_length))

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Each token's vector after the last layer: (batch, length) ids and mask to (batch, length, dim)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def stages(self) -> list[nn.Module]:
        """All that stands outside the stack of layers (embeddings, relative positions, ...), then each layer."""
        layers = max((module for module in self.model.modules() if isinstance(module, nn.ModuleList)), key=len)
        return [nn.ModuleList(_outside(self.model, layers)), *layers]

    def write_model(self, folder: Path) -> None:
        """Write the model's own `config.json` and `model.safetensors`."""
        self.model.save_pretrained(folder)


def _outside(module: nn.Module, stack: nn.ModuleList) -> list[nn.Module]:
    """The largest parts of `module` that hold parameters and do not contain `stack`."""
    parts: list[nn.Module] = []
    for child in module.children():
        if child is stack:
            continue
        if any(descendant is stack for descendant in child.modules()):
            parts += _outside(child, stack)
        elif next(child.parameters(), None) is not None:
            parts.append(child)
    return parts
