"""A training's state in one file: written whole or not at all, read back to the last bit, never unpickled."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import UserError
from common.files import atomic_file, refuse_no_folder
from common.folders import TASKS

CHECKPOINT = "checkpoint.safetensors"
START = "the starting model"  # among what a resumed run must share with the first


def save_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer, progress: dict[str, Any]) -> None:
    """Write model, optimizer and `progress` (anything JSON holds) to one file in `folder`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    with atomic_file(folder / CHECKPOINT) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"progress": json.dumps(progress)})


def read_progress(folder: Path) -> dict[str, Any]:
    """The `progress` of the checkpoint in `folder`.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    progress = json.loads((_open(folder).metadata() or {}).get("progress", "null"))
    if not isinstance(progress, dict) or "step" not in progress:
        raise UserError(f"{folder / CHECKPOINT}: is no checkpoint of a training here")
    return progress


def restore_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put model and optimizer back as they were saved.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it belongs to another model.
    """
    saved = _open(folder)
    weights: dict[str, Tensor] = {}
    state: dict[int, dict[str, Tensor]] = {}
    for key in saved.keys():  # noqa: SIM118 (no mapping: it has only keys())
        kind, name = key.split(".", 1)
        if kind == "model":
            weights[name] = saved.get_tensor(key)
        else:
            index, name = name.split(".", 1)
            state.setdefault(int(index), {})[name] = saved.get_tensor(key)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes = {index: parameter.shape for index, parameter in enumerate(parameters)}
    fits = all(values["exp_avg"].shape == shapes.get(index) for index, values in state.items())
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        fits = False
    if not fits:
        raise UserError(f"{folder / CHECKPOINT}: belongs to a model of another shape")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def model_digest(model: Any, without: Sequence[str] = ()) -> str:
    """A short name for an encoder or a multi-task model: the same where weights and `description` are the same.

    Args:
        without: how the names begin of weights that make no difference.
    """
    found = hashlib.sha256(json.dumps(model.description()).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith(tuple(without)):
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def _open(folder: Path) -> Any:
    path = folder / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{folder}: no checkpoint to resume from")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: the checkpoint is damaged ({error})") from None


def refuse_existing(output: str | Path, resume: bool, overwrite: bool) -> None:
    """UserError where training into `output` would lose what is there, or has nothing there to resume."""
    if not str(output):
        raise UserError("is empty: give the name of a folder", "output")
    refuse_no_folder(output)
    output = Path(output)
    if overwrite and resume:
        raise UserError("cannot be combined with overwrite", "resume")
    if resume and not (output / CHECKPOINT).is_file():
        finished = " (the model there is finished)" if (output / "config.json").is_file() else ""
        raise UserError(f"{output}: no checkpoint to resume from{finished}")
    if overwrite or resume:
        return
    if (output / CHECKPOINT).is_file():
        what = "an unfinished run: resume it (--resume)"
    elif (output / "config.json").is_file():
        heads = " and its tasks' heads" if (output / TASKS).is_file() else ""
        what = f"a model{heads} already: choose another folder"
    else:
        return
    raise UserError(f"{output} holds {what}, or overwrite it (--overwrite)", "output")


def same_folder(start: str | None, output: str) -> bool:
    """Whether a training starts from the folder that it writes to."""
    return start is not None and Path(start).resolve() == Path(output).resolve()


def refuse_other_run(output: Path, saved: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """UserError where the unfinished run in `output` is not the one that is to go on."""
    for name in {**run["settings"], **saved["settings"]}:
        was, now = (settings["settings"].get(name) for settings in (saved, run))
        if was != now:
            raise UserError(
                f"is {_said(now)}, but {_said(was)} in the unfinished run in {output}; resume with the same options",
                name,
            )
    for name, digest in run["contents"].items():
        if digest != saved["contents"].get(name):
            raise UserError(f"{output}: {name} changed since the unfinished run there; resume with the same")


def _said(value: Any) -> str:
    """An option's value as a person would say it."""
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "not given"
    return "not given" if value is None else str(value)


def remove_leftovers(folder: str | Path, names: Iterable[str]) -> None:
    """Take away what an earlier run left in a folder beside a model that has just been replaced."""
    for name in names:
        (Path(folder) / name).unlink(missing_ok=True)
