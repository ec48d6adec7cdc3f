"""A module's copy in half precision, for inference: cast once, where autocast would cast at every call."""

from copy import deepcopy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
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
        _copies[module] = state, weights, copy  # the weights too, for else others might come to lie at their address
    return copy
