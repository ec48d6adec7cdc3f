"""A module's copy in a lower precision, for inference: cast once, where autocast would cast at every call.

On a processor its linear layers are packed as well: their weights lie as oneDNN multiplies them, where torch would lay
them out at every call.
"""

from copy import deepcopy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from common.devices import resolve_dtype, resolve_precision
from common.packed import pack_bf16, pack_int8

Module = TypeVar("Module", bound=nn.Module)
_copies: WeakKeyDictionary[nn.Module, tuple[list[Any], list[torch.Tensor], nn.Module]] = WeakKeyDictionary()
# A copy is known to be old by the versions of the weights, which count what is written into them. Fused optimizers do
# not count; nor does a write through `.data`, which stays unseen.
register_optimizer_step_post_hook(
    lambda optimizer, *_: increment_version([p for group in optimizer.param_groups for p in group["params"]])
)


def lowered(module: Module, precision: str) -> Module:
    """A module as it computes in a precision: itself for fp32, else a copy in evaluation mode with its weights cast.

    The copy is kept, and made anew once a weight has been trained, loaded or moved.

    Raises:
        UserError: there is no such precision, or not here, or not for this module.
    """
    weights = list(module.parameters())
    device = weights[0].device
    precision, dtype = resolve_precision(precision, device), resolve_dtype(precision, device)
    if precision == "fp32":
        return module
    versions = (None if weight.is_inference() else weight._version for weight in weights)  # made there they have none
    state = [precision, *((weight.data_ptr(), version) for weight, version in zip(weights, versions, strict=True))]
    known, _, copy = _copies.get(module, (None, None, None))
    if known != state:
        same = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in weights}
        copy = deepcopy(module, same).eval()
        if precision == "int8":
            pack_int8(copy)  # from the weights as they are
        for weight in copy.parameters():
            weight.data = weight.data.to(dtype)
        if device.type == "cpu":
            pack_bf16(copy)
        _copies[module] = state, weights, copy  # the weights too, for else others might come to lie at their address
    return copy
