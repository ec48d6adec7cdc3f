"""An encoder's copy in half precision, for inference: cast once, where autocast would cast at every call."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from common.devices import DTYPES, resolve_precision

if TYPE_CHECKING:
    from common.embedding import Encoder

_copies: WeakKeyDictionary["Encoder", tuple[list[Any], "Encoder"]] = WeakKeyDictionary()


def lowered(encoder: "Encoder", precision: str) -> "Encoder":
    """The encoder as it computes in a precision: itself for fp32, else a copy in evaluation mode, its weights cast.

    The copy is kept, and made anew once a weight has been trained, loaded or moved.

    Raises:
        UserError: there is no such precision.
    """
    dtype = DTYPES[resolve_precision(precision, encoder.device)]
    if dtype == torch.float32:
        return encoder
    tensors = [*encoder.parameters(), *encoder.buffers()]
    # Every write into a tensor counts up its version, but for those made in inference mode, which have none.
    state = [dtype, *((t.data_ptr(), None if t.is_inference() else t._version) for t in tensors)]
    known, copy = _copies.get(encoder, (None, None))
    if known != state:
        shared = {id(encoder.tokenizer): encoder.tokenizer}
        copy = deepcopy(encoder, shared | {id(tensor): _cast(tensor, dtype) for tensor in tensors}).eval()
        _copies[encoder] = state, copy
    copy.tokenizer, copy.pooling = encoder.tokenizer, encoder.pooling
    return copy


@torch.no_grad()
def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    lower = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return nn.Parameter(lower, requires_grad=False) if isinstance(tensor, nn.Parameter) else lower
