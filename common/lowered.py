"""A module's copy in half precision, for inference: cast once, where autocast would cast at every call.

On a processor its linear layers are packed as well: their weights lie as oneDNN multiplies them, where torch would lay
them out at every call.
"""

from copy import deepcopy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from common.devices import DTYPES, resolve_precision

Module = TypeVar("Module", bound=nn.Module)
_copies: WeakKeyDictionary[nn.Module, tuple[list[Any], list[torch.Tensor], nn.Module]] = WeakKeyDictionary()
# A copy is known to be old by the versions of the weights, which count what is written into them. Fused optimizers do
# not count; nor does a write through `.data`, which stays unseen.
register_optimizer_step_post_hook(
    lambda optimizer, *_: increment_version([p for group in optimizer.param_groups for p in group["params"]])
)


class PackedLinear(nn.Module):
    """A linear layer in bf16 that computes the same product, quicker."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), None)

    @property
    def weight(self) -> Tensor:
        """(out, in), laid out as usual, for modules that read it."""
        return self.packed.to_dense()

    def forward(self, vectors: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(vectors.to(self.packed.dtype), self.packed, self.bias, "none", [], "")


def can_pack() -> bool:
    """Whether this processor is one for which oneDNN packs bf16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _pack(module: nn.Module) -> None:
    for name, part in module.named_children():
        if type(part) is nn.Linear:
            setattr(module, name, PackedLinear(part))
        else:
            _pack(part)


def lowered(module: Module, precision: str) -> Module:
    """A module as it computes in a precision: itself for fp32, else a copy in evaluation mode with its weights cast.

    The copy is kept, and made anew once a weight has been trained, loaded or moved.

    Raises:
        UserError: there is no such precision.
    """
    weights = list(module.parameters())
    dtype = DTYPES[resolve_precision(precision, weights[0].device)]
    if dtype == torch.float32:
        return module
    # Weights made in inference mode have no version.
    state = [dtype, *((weight.data_ptr(), None if weight.is_inference() else weight._version) for weight in weights)]
    known, _, copy = _copies.get(module, (None, None, None))
    if known != state:
        cast = {id(weight): nn.Parameter(weight.detach().to(dtype), requires_grad=False) for weight in weights}
        copy = deepcopy(module, cast).eval()
        if dtype == torch.bfloat16 and weights[0].device.type == "cpu" and can_pack():
            _pack(copy)
        _copies[module] = state, weights, copy  # the weights too, for else others might come to lie at their address
    return copy
