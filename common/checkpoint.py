"""A training's state in one file: written whole or not at all, read back to the last bit, never unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from common.cli import UserError
from common.files import atomic_file

NAME = "checkpoint.safetensors"


def save_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer, progress: dict[str, Any]) -> None:
    """Write model, optimizer, torch's random states and `progress` (anything JSON holds) to one file in `folder`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    with atomic_file(folder / NAME) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"progress": json.dumps(progress)})


def read_progress(folder: Path) -> dict[str, Any]:
    """The `progress` of the checkpoint in `folder`.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    return json.loads(_open(folder).metadata()["progress"])


def restore_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Put model, optimizer and random states back as they were saved; returns the saved `progress`.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it belongs to another model.
    """
    saved = _open(folder)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
    for key in saved.keys():  # noqa: SIM118 (no mapping: it has only keys())
        group, name = key.split(".", 1)
        groups[group][name] = saved.get_tensor(key)
    try:
        model.load_state_dict(groups["model"])
    except RuntimeError:
        raise UserError(f"{folder / NAME}: belongs to a model of another shape") from None
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in groups["optimizer"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(groups["random"]["cpu"])
    if "cuda" in groups["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(groups["random"]["cuda"])
    return json.loads(saved.metadata()["progress"])


def weights_digest(model: nn.Module) -> str:
    """A short name for a model's weights: the same for the same weights."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def _open(folder: Path) -> Any:
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder}: no checkpoint to resume from")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: the checkpoint is damaged ({error})") from None
