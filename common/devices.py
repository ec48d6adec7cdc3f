"""Where computation runs and in which precision, for training and for use."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from common.cli import UserError, option

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PRECISION_HELP = "auto is bf16 where the processor computes in it, else fp32"
DEVICE_HELP = "cpu, cuda, mps; auto takes an accelerator where there is one"


@dataclass(frozen=True)
class InferenceConfig:
    """How to run a trained model; every field is an option of the command line."""

    batch_tokens: int = option(4096, "the most tokens in one batch, padding included")
    precision: str = option("auto", PRECISION_HELP, choices=PRECISIONS)
    device: str = option("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise UserError(f"--batch-tokens {self.batch_tokens}: must be 1 or more")

    def place(self, model: nn.Module) -> dict[str, Any]:
        """Put the model on the device, and give the options to run it with: `batch_tokens` and `precision`."""
        device = resolve_device(self.device)
        model.to(device)
        return {"batch_tokens": self.batch_tokens, "precision": resolve_precision(self.precision, device)}


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is the accelerator where there is one, else the processor.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: this machine has no such device (cpu always works)") from None
    device, accelerator = torch.device(name), torch.accelerator.current_accelerator(check_available=True)
    if device.type != "cpu" and (accelerator is None or device.type != accelerator.type):
        raise UserError(f"--device {name}: nothing can be computed there (cpu always works)")
    return device


def build_accelerator(device_name: str, precision: str) -> Accelerator:
    """accelerate's Accelerator on a device by name, in a precision; either may be "auto".

    Raises:
        UserError: this machine has no such device, or several processes were launched.
    """
    device = resolve_device(device_name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    mixed = resolve_precision(precision, device)
    # Accelerate keeps one state for the whole process; a second training may want another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no" if mixed == "fp32" else mixed)
    if accelerator.num_processes > 1:
        raise UserError("several processes are not supported; start the script with python")
    return accelerator


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bf16 where the processor computes in it, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and cpu_computes_bf16() else "fp32"


def cpu_computes_bf16() -> bool:
    """Whether the processor has instructions for bf16 products (AVX512-BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """A context that computes in bf16 or fp16 on the device; "fp32" changes nothing."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
