"""The learning rates: one for each stage of a model, AdamW over parameter groups by stage, the schedule."""

import json
import math
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import AdamW

from common.config import STRATEGIES
from common.embedding import Encoder
from common.errors import UserError
from common.freezing import is_frozen
from common.heads import MultiTaskModel

ENCODER_BASE = 0.9
HEAD_BASES = {"topic": 1.2, "sentiment": 0.8}
OTHER = "other"  # the group of the parameters that are in no stage


def stage_factor(stage: int, layers: int) -> float:
    """A stage's learning rate as a multiple of the base rate: stage 0 is the embeddings, then layers 1 to `layers`.

    0.9^(2L - n) for the embeddings and the early third of the layers, 0.9^(L - n) for those above: the rates rise
    from the embeddings to the last layer, which has the base rate itself.
    """
    return ENCODER_BASE ** (_times_layers(stage, layers) * layers - stage)


def _times_layers(stage: int, layers: int) -> int:
    """The exponent of a stage's factor counts down from so many times L."""
    return 2 if 3 * stage <= layers else 1


def layerwise_learning_rates(
    model: Encoder | MultiTaskModel, base_lr: float, head_bases: Mapping[str, float] = HEAD_BASES
) -> dict[str, float]:
    """The learning rate of each stage of the encoder and each layer of each head, bottom up, by name.

    Stages as `stage_factor` says; layer n of a head, counted from the encoder, has 1.2^n for topic, 0.8^n for
    sentiment, 1 for any other task.

    Args:
        head_bases: the base for a task's head, by the task's name.
    """
    factors = _by_stage(model, stage_factor)
    for task, stages in _head_stages(model).items():
        factors |= {stage: head_bases.get(task, 1.0) ** n for n, stage in enumerate(stages, 1)}
    return {stage: base_lr * factor for stage, factor in factors.items()}


def layerwise_formulas(model: Encoder | MultiTaskModel, head_bases: Mapping[str, float] = HEAD_BASES) -> dict[str, str]:
    """The factor of each stage in `layerwise_learning_rates` as a formula, L layers counted by n from the bottom."""
    times = {1: "L", 2: "2L"}
    formulas = _by_stage(model, lambda n, layers: f"0.9^({times[_times_layers(n, layers)]}{'-n' if n else ''})")
    for task, stages in _head_stages(model).items():
        formulas |= dict.fromkeys(stages, f"{head_bases.get(task, 1.0):g}^n")
    return formulas


def learning_rates(strategy: str, model: Encoder | MultiTaskModel, base_lr: float) -> dict[str, float]:
    """The rate of each stage by a strategy's name.

    "uniform": one rate. "layerwise": `layerwise_learning_rates`. "decay:X": the heads have the base rate, and each
    stage below X times the rate of the one above (Howard & Ruder 2018, section 3.2, with X = 1/2.6). A JSON file gives
    factors by the names of stages; those it leaves out have 1.

    Raises:
        UserError: there is no such strategy, or the file names what is no stage or gives what is no factor.
    """
    heads = {stage: base_lr for stages in _head_stages(model).values() for stage in stages}
    if strategy == "layerwise":
        return layerwise_learning_rates(model, base_lr)
    if strategy == "uniform":
        return {**_by_stage(model, lambda *_: base_lr), **heads}
    if strategy.endswith(".json"):
        factors = _read_factors(Path(strategy), list(model.named_stages()))
        return {stage: base_lr * factors.get(stage, 1.0) for stage in model.named_stages()}
    kind, _, number = strategy.partition(":")
    try:
        decay = float(number) if kind == "decay" else math.nan
    except ValueError:
        decay = math.nan
    if not 0 < decay <= 1:
        known = f"there are: {STRATEGIES}; X above 0 and up to 1"
        raise UserError(f'no learning rates are called "{strategy}" ({known})', "rates")
    return {**_by_stage(model, lambda n, layers: base_lr * decay ** (layers + 1 - n)), **heads}


def describe(model: MultiTaskModel, rates: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """What trains, bottom up: `part`, `parameters`, `rate`, `frozen` and `dropout`; like neighbours are one part.

    Args:
        rates: the peak rate of each stage, as `learning_rates` gives them.
    """
    stages = model.named_stages()

    def how(name: str) -> dict[str, Any]:
        dropouts = [module.p for module in stages[name].modules() if isinstance(module, nn.Dropout)]
        frozen, rate = is_frozen(stages[name]), (rates or {}).get(name)
        return {"rate": rate, "frozen": frozen, "dropout": max(dropouts, default=0.0)}

    lines = []
    for shared, alike in groupby(stages, how):
        first, *others = alike
        parameters = sum(p.numel() for name in (first, *others) for p in stages[name].parameters())
        lines.append({"part": f"{first} to {others[-1]}" if others else first, "parameters": parameters, **shared})
    return lines


def _by_stage(model: Encoder | MultiTaskModel, value: Callable[[int, int], Any]) -> dict[str, Any]:
    """`value` of each of the encoder's stages, from its number n (0 is the embeddings) and the number of layers."""
    encoder = model.encoder if isinstance(model, MultiTaskModel) else model
    stages = list(encoder.named_stages())
    return {stage: value(n, len(stages) - 1) for n, stage in enumerate(stages)}


def _head_stages(model: Encoder | MultiTaskModel) -> dict[str, list[str]]:
    return {task: list(model.head_stages(task)) for task in model.tasks} if isinstance(model, MultiTaskModel) else {}


def _read_factors(path: Path, stages: list[str]) -> dict[str, float]:
    try:
        factors = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error})") from None
    if not isinstance(factors, dict):
        raise UserError(f'{path}: must be an object of factors by stage, such as {{"embeddings": 0.3}}')
    for stage, factor in factors.items():
        if stage not in stages:
            raise UserError(f'{path}: "{stage}" is no stage of this model (there are: {", ".join(stages)})')
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise UserError(f'{path}: the factor of "{stage}" is {factor!r}; it must be a number, 0 or more')
    return factors


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.01,
    stages: Mapping[str, nn.Module] | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """An optimizer's groups over a model's trainable parameters: two for each stage, with and without weight decay.

    Biases, norms and other vectors have none. A group's `name` is its stage's; what is in no stage is "other". The
    rate at the top of the schedule is its `peak`.

    Args:
        rates: the rate of each stage; those left out have `learning_rate`.
    """
    stage_of: dict[int, str] = {}
    for name, stage in (stages or {}).items():
        for parameter in stage.parameters():
            assert stage_of.setdefault(id(parameter), name) == name, f"a parameter of {name} is in another stage too"
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        name, decays = stage_of.get(id(parameter), OTHER), parameter.dim() > 1
        rate = (rates or {}).get(name, learning_rate)
        settings = {"lr": rate, "peak": rate, "weight_decay": weight_decay if decays else 0.0}
        group = groups.setdefault((name, decays), {"name": name, "params": [], **settings})
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.01,
    stages: Mapping[str, nn.Module] | None = None,
    rates: Mapping[str, float] | None = None,
) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) over `parameter_groups`: `optimizer.param_groups` is the plan, by name."""
    # One fused kernel in place of some ten passes over 66 million numbers.
    return AdamW(parameter_groups(model, learning_rate, weight_decay, stages, rates), lr=learning_rate, fused=True)


def schedule_factor(kind: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """A step's learning rate as a share of its peak, for steps 0 to `total_steps` - 1; it is never 0.

    (step + 1) / `warmup_steps` while it warms up, then a straight line or half a cosine down to 0, which it would
    reach after the last step; "constant" stays at 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[kind]
