"""The optimizer: AdamW over named parameter groups, and the schedule of its rates."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

SCHEDULES = ("linear", "cosine", "constant")


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.01,
    rates: Mapping[nn.Module, float] | None = None,
) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) over a model's parameters; biases and norms have no weight decay.

    Args:
        rates: a learning rate of its own for each of these parts of the model; the rest takes `learning_rate`.
    """
    rate_of = {id(parameter): rate for part, rate in (rates or {}).items() for parameter in part.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate_of.get(id(parameter), learning_rate), decay), []).append(parameter)
    settings = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    # One fused kernel in place of some ten passes over 66 million numbers.
    return AdamW(settings, lr=learning_rate, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, kind: str, warmup: float, total_steps: int) -> LambdaLR:
    """Rates that rise over the first `warmup` share of the steps, then fall to 0 (or stay, if "constant")."""
    kind = "constant_with_warmup" if kind == "constant" else kind
    warmup_steps = round(warmup * total_steps)
    return get_scheduler(kind, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
