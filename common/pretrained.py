"""Any other transformers encoder (RoBERTa, DeBERTa, ...) behind the same face as the project's own."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.bert import open_backbone
from common.embedding import Encoder, evaluating
from common.errors import UserError
from common.folders import Description, model_folder
from common.tokenizer import SentenceTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PretrainedEncoder(Encoder):
    """A transformers `AutoModel` as a sentence encoder: its token states, pooling, L2 norm.

    Raises:
        UserError: the model has no stack of layers to tell apart, or is no encoder of text.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: SentenceTokenizer, pooling: str = "mean") -> None:
        super().__init__()
        kind = model.config.model_type
        if model.config.is_encoder_decoder:
            raise UserError(f"a {kind} model has a decoder too; choose an encoder")
        if hasattr(model, "pooler"):
            model.pooler = None  # our pooling stands in its place
        self.model, self.config, self.tokenizer, self.pooling = model, model.config, tokenizer, pooling
        self.dim = model.config.hidden_size
        self.max_positions = getattr(model.config, "max_position_embeddings", None)
        offset = getattr(getattr(model, "embeddings", None), "padding_idx", None)
        if self.max_positions and offset:
            self.max_positions -= offset + 1  # RoBERTa's kind counts positions from padding_idx + 1
        self.cut_at(min(tokenizer.max_length, self.max_positions or tokenizer.max_length))
        self._stages = self._find_stages(kind)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> "PretrainedEncoder":
        """Open a model from a folder or by hub name, in evaluation mode: no dropout.

        Raises:
            UserError: there is no such model, it cannot be opened, or is no encoder of text.
        """
        folder = model_folder(name_or_path)
        backbone, described = open_backbone(folder), Description.read(folder)
        tokenizer = SentenceTokenizer.from_pretrained(folder, described.max_length)
        return cls(backbone, tokenizer, described.pooling).eval()

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Each token's vector after the last layer: (batch, length) ids and mask to (batch, length, dim)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def stages(self) -> list[nn.Module]:
        """What works before the layers (embeddings, their dropout, relative positions), then each layer.

        What works after the last layer (a final norm) belongs to the last stage.
        """
        return self._stages

    def _find_stages(self, kind: str) -> list[nn.Module]:
        """The stages, told apart by the order in which the model calls its modules."""
        stacks = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        if not stacks:
            raise UserError(f"no stack of layers was found in a {kind} model")
        layers = max(stacks, key=len)
        outside, called = _outside(self.model, layers), []
        hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in (*outside, layers[-1])]
        with evaluating(self), torch.no_grad():
            self.token_states(torch.tensor([[1, 2]], device=self.device), torch.ones(1, 2, device=self.device).long())
        for hook in hooks:
            hook.remove()
        first = called.index(layers[-1]) + 1
        after = [module for module in called[first:] if module not in called[:first]]
        before = [module for module in outside if module not in after]
        # A plain list keeps the model's parameters under their own names alone.
        return [nn.ModuleList(before), *layers[:-1], nn.ModuleList([layers[-1], *after]) if after else layers[-1]]

    def write_model(self, folder: Path) -> None:
        """Write the model's own `config.json` and `model.safetensors`."""
        self.model.save_pretrained(folder)


def _outside(module: nn.Module, stack: nn.ModuleList) -> list[nn.Module]:
    """The largest modules within `module` that do not contain `stack`."""
    found: list[nn.Module] = []
    for child in module.children():
        if any(descendant is stack for descendant in child.modules()):
            found += _outside(child, stack) if child is not stack else []
        else:
            found.append(child)
    return found
