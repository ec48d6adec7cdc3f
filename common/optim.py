"""The learning rates: one for each part of a model, AdamW over parameter groups named after the parts, the schedule."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from common.cli import UserError
from common.encoder import Encoder
from common.heads import MultiTaskModel

SCHEDULES = ("linear", "cosine", "constant")
ENCODER_BASE = 0.9
HEAD_BASES = {"topic": 1.2, "sentiment": 0.8}
STRATEGIES = "seed, uniform, decay:X (such as decay:0.9), or a .json file of factors"


def stage_factor(stage: int, layers: int) -> float:
    """What the rate of an encoder's stage is to the base rate: stage 0 is the embeddings, then layers 1 to `layers`.

    0.9^(2L - n) for the embeddings and the early third of the layers, 0.9^(L - n) for those above: the rates rise
    from the embeddings to the last layer, which has the base rate itself.
    """
    top = 2 * layers if 3 * stage <= layers else layers
    return ENCODER_BASE ** (top - stage)


def layerwise_learning_rates(
    model: Encoder | MultiTaskModel, base_lr: float, head_bases: Mapping[str, float] = HEAD_BASES
) -> dict[str, float]:
    """The learning rate of each stage of the encoder and each layer of each head, bottom up, by name.

    Stages as `stage_factor` says; layer n of a head, counted from the encoder, has 1.2^n for topic, 0.8^n for
    sentiment, 1 for any other task.

    Args:
        head_bases: the base for a task's head, by the task's name.
    """
    factors = _stage_factors(model, stage_factor)
    for task, parts in _head_parts(model).items():
        factors |= {part: head_bases.get(task, 1.0) ** n for n, part in enumerate(parts, 1)}
    return {part: base_lr * factor for part, factor in factors.items()}


def layerwise_formulas(model: Encoder | MultiTaskModel, head_bases: Mapping[str, float] = HEAD_BASES) -> dict[str, str]:
    """The factor of each part in `layerwise_learning_rates` as a formula, L layers counted by n from the bottom."""
    words = {0: "0.9^(2L)"}
    formulas = _stage_factors(model, lambda n, layers: words.get(n, f"0.9^({2 if 3 * n <= layers else ''}L-n)"))
    for task, parts in _head_parts(model).items():
        formulas |= dict.fromkeys(parts, f"{head_bases.get(task, 1.0):g}^n")
    return formulas


def learning_rates(strategy: str, model: Encoder | MultiTaskModel, base_lr: float) -> dict[str, float]:
    """The rate of each part by a strategy's name.

    "uniform": one rate. "seed": `layerwise_learning_rates`. "decay:X": the heads have the base rate, and each stage
    below X times the rate of the one above (Howard & Ruder 2018, section 3.2, with X = 1/2.6). A JSON file gives
    factors by the names of parts; those it leaves out have 1.

    Raises:
        UserError: there is no such strategy, or the file names what is no part or gives what is no factor.
    """
    heads = {part: base_lr for parts in _head_parts(model).values() for part in parts}
    if strategy == "seed":
        return layerwise_learning_rates(model, base_lr)
    if strategy == "uniform":
        return {**_stage_factors(model, lambda *_: base_lr), **heads}
    if strategy.endswith(".json"):
        factors = _read_factors(Path(strategy), list(model.parts()))
        return {part: base_lr * factors.get(part, 1.0) for part in model.parts()}
    kind, _, number = strategy.partition(":")
    try:
        decay = float(number) if kind == "decay" else math.nan
    except ValueError:
        decay = math.nan
    if not 0 < decay <= 1:
        raise UserError(f'no learning rates are called "{strategy}" (there are: {STRATEGIES}; X above 0 and up to 1)')
    return {**_stage_factors(model, lambda n, layers: base_lr * decay ** (layers + 1 - n)), **heads}


def _stage_factors(model: Encoder | MultiTaskModel, factor: Callable[[int, int], Any]) -> dict[str, Any]:
    """What `factor` gives for each stage: its number n (0 is the embeddings) and the number of layers go in."""
    encoder = model.encoder if isinstance(model, MultiTaskModel) else model
    stages = list(encoder.parts())
    return {part: factor(n, len(stages) - 1) for n, part in enumerate(stages)}


def _head_parts(model: Encoder | MultiTaskModel) -> dict[str, list[str]]:
    return {task: list(model.head_parts(task)) for task in model.tasks} if isinstance(model, MultiTaskModel) else {}


def _read_factors(path: Path, parts: list[str]) -> dict[str, float]:
    try:
        factors = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error})") from None
    if not isinstance(factors, dict):
        raise UserError(f'{path}: must be an object of factors by part, such as {{"embeddings": 0.3}}')
    for part, factor in factors.items():
        if part not in parts:
            raise UserError(f'{path}: "{part}" is no part of this model (there are: {", ".join(parts)})')
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise UserError(f'{path}: the factor of "{part}" is {factor!r}; it must be a number, 0 or more')
    return factors


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.01,
    parts: Mapping[str, nn.Module] | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """An optimizer's groups over a model's trainable parameters: two for each part, with and without weight decay.

    Biases, norms and other vectors have none. A group's `name` is its part's; what is in no part is "other".

    Args:
        rates: the rate of each part; those left out have `learning_rate`.
    """
    part_of = {id(p): name for name, part in (parts or {}).items() for p in part.parameters()}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            name, decays = part_of.get(id(parameter), "other"), parameter.dim() > 1
            settings = {"lr": (rates or {}).get(name, learning_rate), "weight_decay": weight_decay if decays else 0.0}
            group = groups.setdefault((name, decays), {"name": name, "params": [], **settings})
            group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.01,
    parts: Mapping[str, nn.Module] | None = None,
    rates: Mapping[str, float] | None = None,
) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) over `parameter_groups`: `optimizer.param_groups` is the plan, by name."""
    # One fused kernel in place of some ten passes over 66 million numbers.
    return AdamW(parameter_groups(model, learning_rate, weight_decay, parts, rates), lr=learning_rate, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, kind: str, warmup: float, total_steps: int) -> LambdaLR:
    """Rates that rise over the first `warmup` share of the steps, then fall to 0 (or stay, if "constant")."""
    kind = "constant_with_warmup" if kind == "constant" else kind
    warmup_steps = round(warmup * total_steps)
    return get_scheduler(kind, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
