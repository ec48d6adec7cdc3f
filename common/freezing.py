"""What does not train while the rest does: the freezing scenarios as words, and gradual unfreezing as a schedule.

A model's named stages (its encoder's, then its heads' layers, bottom up) are what can be frozen. Frozen means that no
gradient is computed for a stage, that the optimizer holds no state for it, and that it has no dropout.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from common.errors import UserError


def frozen_stages(encoder: Sequence[str], heads: Mapping[str, Sequence[str]], words: Sequence[str]) -> list[str]:
    """The stages that freezing words name, bottom up.

    Words: "none", "all", "encoder", "head:TASK", "stages:A-B" or "stages:A" (0 is the embeddings, then the layers).

    Args:
        encoder: the names of the encoder's stages.
        heads: the names of each task's stages.

    Raises:
        UserError: a word that names nothing.
    """
    every = [*encoder, *(stage for stages in heads.values() for stage in stages)]
    by_head = {f"head:{task}": list(stages) for task, stages in heads.items()}
    known = {"none": [], "all": every, "encoder": list(encoder), **by_head}
    named: set[str] = set()
    for word in words:
        numbers = re.fullmatch(r"stages:(\d+)(?:-(\d+))?", word)
        first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
        if word not in known and not first <= last < len(encoder):
            there = ", ".join([*known, f"stages:A-B from 0 (the embeddings) to {len(encoder) - 1}"])
            raise UserError(f'"{word}" names no stage of this model (there are: {there})', "freeze")
        named.update(known.get(word, encoder[first : last + 1]))
    return [stage for stage in every if stage in named]


def gradual_unfreezing(stages: Sequence[str], steps_between: float) -> dict[str, int]:
    """The step at which each of the encoder's stages thaws: the top one first, one every `steps_between` steps.

    The heads train alone until then (Howard & Ruder 2018, section 3.3).
    """
    return {stage: round(number * steps_between) for number, stage in enumerate(reversed(stages), 1)}


def freeze(stages: Mapping[str, nn.Module], frozen: Collection[str]) -> None:
    """Freeze these of the stages, and thaw the others: gradients on or off, training or evaluation mode."""
    for name, stage in stages.items():
        stage.requires_grad_(name not in frozen)
        stage.train(name not in frozen)


def is_frozen(stage: nn.Module) -> bool:
    """Whether no parameter of a stage trains."""
    return not any(parameter.requires_grad for parameter in stage.parameters())


@contextmanager
def restored_afterwards(model: nn.Module) -> Iterator[None]:
    """Give every parameter its `requires_grad` back after the block, and leave the model in evaluation mode."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter, trains in before.items():
            parameter.requires_grad_(trains)
        model.eval()
