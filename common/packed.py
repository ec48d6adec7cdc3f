"""Linear layers for inference on a processor, their weights laid out once as oneDNN multiplies them: bf16 and int8."""

import torch
from torch import Tensor, nn

from common.errors import UserError

LARGEST_WEIGHT = 124  # of int8; a multiple of 31, so that weights of 6 bits, like the shipped ones, are not rounded
LARGEST_VALUE = 126  # not 127: a scale that bf16 rounds down may make it one more
ZERO = 128  # in uint8: with values in int8, the product was too slow to be timed


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


class Int8Linear(nn.Module):
    """A linear layer that multiplies whole numbers of 8 bits; each row of the weights and each token has its scale.

    Token-wise quantization (ZeroQuant, Yao et al. 2022). torch's product takes one scale for all tokens: here that is
    1, and each token's own is multiplied in behind it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.bias = linear.weight.detach().float(), linear.bias
        self.scale = weight.abs().amax(dim=1).clamp(min=1e-12) / LARGEST_WEIGHT  # (out,)
        whole = (weight / self.scale[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(whole, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)

    def forward(self, vectors: Tensor) -> Tensor:
        """(tokens, in) to (tokens, out)."""
        scale = largest(vectors).clamp(min=1e-12) / LARGEST_VALUE  # (tokens, 1)
        whole = vectors.to(torch.float32, copy=True).mul_(1 / scale.float()).round_().to(torch.int8)
        shifted = whole.view(torch.uint8).bitwise_xor_(ZERO)  # the conversion to uint8 took ten times as long
        factors = (1.0, ZERO, self.packed, self.scale, self.zeros)
        product = torch.ops.onednn.qlinear_pointwise(shifted, *factors, None, 1.0, 0, vectors.dtype, "none", [], "")
        return torch.addcmul(self.bias, product, scale)


def largest(vectors: Tensor) -> Tensor:
    """The largest absolute value of each of (tokens, dim) vectors: (tokens, 1)."""
    values = vectors.abs()
    if values.dtype == torch.bfloat16:  # the same bits as whole numbers have the same order, and are quickly compared
        return values.view(torch.int16).amax(dim=1, keepdim=True).view(torch.bfloat16)
    return values.amax(dim=1, keepdim=True)


class SideBySide(nn.Module):
    """What several layers make of the same vectors, one behind the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """(tokens, in) to (tokens, the sum of their out)."""
        return torch.cat([layer(vectors) for layer in self.layers], dim=1)


def can_pack() -> bool:
    """Whether this processor is one for which oneDNN packs bf16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_bf16(module: nn.Module) -> None:
    """Replace, in place, the linear layers in bf16 by packed ones, where the processor is one for that."""
    for parent, name, linear in _linear_layers(module):
        if linear.weight.dtype == torch.bfloat16 and can_pack():
            setattr(parent, name, PackedLinear(linear))


def pack_int8(module: nn.Module) -> None:
    """Replace, in place, the linear layers by layers in int8; of one with `precise_from` the outputs up to there.

    Raises:
        UserError: no layer has it, so that it is not known what has to be precise.
    """
    layers = _linear_layers(module)
    if not any(hasattr(linear, "precise_from") for _, _, linear in layers):
        raise UserError("int8 is for encoders of BERT's kind", "precision")
    for parent, name, linear in layers:
        first = getattr(linear, "precise_from", None)
        coarse = Int8Linear(linear if first is None else _outputs(linear, slice(first)))
        setattr(parent, name, coarse if first is None else SideBySide(coarse, _outputs(linear, slice(first, None))))


def _linear_layers(module: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Each linear layer, with the module that it stands in and its name there."""
    parts = [(parent, *child) for parent in module.modules() for child in parent.named_children()]
    return [part for part in parts if type(part[2]) is nn.Linear]


def _outputs(linear: nn.Linear, rows: slice) -> nn.Linear:
    """A linear layer of some of the outputs of another."""
    found = nn.Linear(1, 1, device="meta")
    for name, values in linear.named_parameters():
        setattr(found, name, nn.Parameter(values.detach()[rows], requires_grad=False))
    return found
