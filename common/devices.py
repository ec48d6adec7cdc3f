"""Where computation runs, in which precision and memory, and how several processes work as one."""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from common.config import BATCH, CPU_BATCH, PRECISIONS, InferenceConfig, TrainingConfig
from common.errors import ProcessLost, UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def place(model: nn.Module, config: InferenceConfig) -> dict[str, Any]:
    """Put a model on its device, and give the options to run it with: `batch_tokens` and `precision`."""
    device = resolve_device(config.device)
    model.to(device)
    batch = resolve_batch(config.batch_tokens, device)
    return {"batch_tokens": batch, "precision": resolve_precision(config.precision, device)}


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is the accelerator where there is one, else the processor.

    Several processes get an accelerator each.

    Raises:
        UserError: this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        device = accelerator or torch.device("cpu")
    else:
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError):
            raise UserError(f'this machine has no "{name}" (cpu always works)', "device") from None
        device = torch.device(name)
        if device.type != "cpu" and (accelerator is None or device.type != accelerator.type):
            raise UserError(f'nothing can be computed on "{name}" (cpu always works)', "device")
    joined = processes(device.type == "cpu")
    if joined.num_processes > 1 and device.type == "cuda" and device.index is None:
        return torch.device("cuda", joined.local_process_index)
    return device


def resolve_batch(tokens: int | None, device: torch.device) -> int:
    """The most tokens in a batch that is computed without gradients; None: what is quickest on a device."""
    return tokens if tokens is not None else CPU_BATCH if device.type == "cpu" else BATCH


def without_gradients(config: TrainingConfig, device: torch.device) -> dict[str, Any]:
    """The `batch_tokens` and `precision` of what a training computes without gradients, within its memory."""
    batch = min(config.batch_tokens, resolve_batch(None, device))
    return {"batch_tokens": batch, "precision": resolve_precision(config.precision, device)}


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bf16 where the processor computes in it, else fp32. Others mean themselves.

    Raises:
        UserError: there is no such precision, or it is int8 and the device has no quick products of that.
    """
    if precision == "int8" and not (device.type == "cpu" and cpu_multiplies_int8()):
        raise UserError("int8 needs a processor with AVX512-VNNI; auto works everywhere", "precision")
    if precision in PRECISIONS:
        return precision
    if precision != "auto":
        raise UserError(f'must be one of auto, {", ".join(PRECISIONS)}, not "{precision}"', "precision")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and cpu_computes_bf16() else "fp32"


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of numbers in a precision; under int8, of all but the products in it.

    Raises:
        UserError: what `resolve_precision` refuses.
    """
    precision = resolve_precision(precision, device)
    return DTYPES[resolve_precision("auto", device) if precision == "int8" else precision]


def cpu_computes_bf16() -> bool:
    """Whether the processor has instructions for bf16 products (AVX512-BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def cpu_multiplies_int8() -> bool:
    """Whether the processor has instructions for products of int8 (AVX512-VNNI)."""
    return bool(torch.cpu.get_capabilities().get("avx512_vnni"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """A context that computes in a precision on the device; fp32 changes nothing.

    Raises:
        UserError: there is no such precision.
    """
    dtype = resolve_dtype(precision, device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def weights_cast_once(device: torch.device) -> AbstractContextManager:
    """A context within which `autocast` casts a weight once, where it would anew each time that it is entered."""
    return torch.autocast(device.type, enabled=False)  # its cache is emptied when the outermost one is left


def processes(cpu: bool = True) -> PartialState:
    """The processes launched together with this one: `num_processes`, `process_index`, `wait_for_everyone()`, ...

    The first call joins the process group: gloo for `cpu`, else the accelerator's own backend.
    """
    return PartialState(cpu=cpu)


@contextmanager
def _none_lost() -> Iterator[None]:
    """Turn the error of a collective operation into a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost("another of the processes has ended") from error


def wait_for_all() -> None:
    """Wait until every process is here.

    Raises:
        ProcessLost: one of the processes has ended.
    """
    with _none_lost():
        processes().wait_for_everyone()


def copy_from_main(*tensors: Tensor) -> None:
    """Give every process the main one's values of each tensor, in place.

    Raises:
        ProcessLost: one of the processes has ended.
    """
    if processes().num_processes > 1:
        with _none_lost():
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)


def sum_over_processes(*tensors: Tensor) -> None:
    """Put into each tensor the sum of what the processes hold in it, in place.

    Raises:
        ProcessLost: one of the processes has ended.
    """
    if processes().num_processes == 1:
        return
    with _none_lost():
        for work in [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


def share_of(items: Sequence[Any]) -> Sequence[Any]:
    """This process's share of some items: every so many-th, as many as there are processes."""
    return items[processes().process_index :: processes().num_processes]


def interleaved(share: Sequence[Any]) -> Sequence[Any]:
    """Join what the processes hold for their shares, in the order of the items; each gets the whole.

    Raises:
        ProcessLost: one of the processes has ended.
    """
    count = processes().num_processes
    if count == 1:
        return share
    with _none_lost():
        shares = gather_object([list(share)])
    return [shares[i % count][i // count] for i in range(sum(map(len, shares)))]


def share_out(compute: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> Sequence[Any]:
    """Compute on each process its share of the items, and give all of them the whole, in order.

    Raises:
        ProcessLost: one of the processes has ended.
    """
    return interleaved(compute(share_of(items)))


def release_memory() -> None:
    """Give freed memory back to the system. glibc would keep it, in pieces, and ask for more where none fits."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
