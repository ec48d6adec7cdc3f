"""What stands still while the rest trains: the freezing scenarios as words, and gradual unfreezing as a schedule.

A model's `parts()` (its encoder's stages and its heads' layers, by name, bottom up) are what can be frozen. Frozen
means that no gradient is computed for a part, that the optimizer holds no state for it, and that it has no dropout.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from common.cli import UserError, progress_bar
from common.data import MultiTaskDataset, token_budget_batches
from common.devices import autocast
from common.encoder import Encoder, evaluating
from common.heads import MultiTaskModel, pad_states

REUSE_BYTES = 4 * 2**30  # of token states kept in memory; more than that is computed anew in every epoch


def frozen_parts(model: MultiTaskModel, words: Sequence[str]) -> list[str]:
    """The parts that freezing words name, bottom up.

    Words: "none", "all", "encoder", "head:TASK", "stages:A-B" or "stages:A" (0 is the embeddings, then the layers).

    Raises:
        UserError: a word that names nothing.
    """
    named = {part for word in words for part in _parts_of(model, word)}
    return [part for part in model.parts() if part in named]


def _parts_of(model: MultiTaskModel, word: str) -> list[str]:
    stages = list(model.encoder.parts())
    heads = {f"head:{task}": list(model.head_parts(task)) for task in model.tasks}
    known = {"none": [], "all": list(model.parts()), "encoder": stages, **heads}
    if word in known:
        return known[word]
    if numbers := re.fullmatch(r"stages:(\d+)(?:-(\d+))?", word):
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if first <= last < len(stages):
            return stages[first : last + 1]
    words = ", ".join([*known, f"stages:A-B from 0 (the embeddings) to {len(stages) - 1}"])
    raise UserError(f"--freeze {word}: names no part of this model (there are: {words})")


def gradual_unfreezing(model: MultiTaskModel, steps_between: float) -> dict[str, int]:
    """The step at which each stage of the encoder thaws: the top one first, one every `steps_between` steps.

    The heads train alone until then (Howard & Ruder 2018, section 3.3).
    """
    stages = reversed(list(model.encoder.parts()))
    return {part: round(number * steps_between) for number, part in enumerate(stages, 1)}


def freeze(parts: Mapping[str, nn.Module], frozen: Collection[str]) -> None:
    """Freeze these of the parts, and thaw the others: gradients on or off, training mode or evaluation mode."""
    for name, part in parts.items():
        part.requires_grad_(name not in frozen)
        part.train(name not in frozen)


@torch.inference_mode()
def encoder_states(encoder: Encoder, rows: Sequence[Sequence[int]], batch_tokens: int, precision: str) -> list[Tensor]:
    """Each row's own token states without dropout, (length, dim) float32 on the CPU, in the order given."""
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    bar = progress_bar(len(rows), " texts", "frozen encoder, once")
    with evaluating(encoder), autocast(encoder.device, precision), bar:
        for batch in token_budget_batches([len(row) for row in rows], batch_tokens):
            input_ids, attention_mask = encoder.tokenizer.pad([rows[i] for i in batch])
            found = encoder.token_states(input_ids.to(encoder.device), attention_mask.to(encoder.device))
            for place, i in enumerate(batch):
                states[i] = found[place, : len(rows[i])].float().cpu().clone()
            bar.update(len(batch))
    return states


def fits_in_memory(encoder: Encoder, *parts: MultiTaskDataset | None) -> bool:
    """Whether the token states of these data sets together stay within `REUSE_BYTES`."""
    tokens = sum(sum(part.lengths) for part in parts if part is not None)
    return 4 * tokens * encoder.dim <= REUSE_BYTES


class FrozenEncoderDataset:
    """A data set with the frozen encoder's token states, computed once, to be used in place of token ids.

    `states` holds (length, dim) float32 for each row.
    """

    def __init__(self, data: MultiTaskDataset, encoder: Encoder, batch_tokens: int, precision: str) -> None:
        self.data, self.tasks, self.classes = data, data.tasks, data.classes
        self.ids, self.lengths = data.ids, data.lengths
        self.states = encoder_states(encoder, data.ids, batch_tokens, precision)

    def __len__(self) -> int:
        return len(self.data)

    def digest(self) -> str:
        """That of the data set itself."""
        return self.data.digest()

    def labelled(self, task: str) -> int:
        """How many rows have a label for a task."""
        return self.data.labelled(task)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch as the data set's own, and `states` (rows, length, dim) with zeros behind each row's end."""
        return {**self.data.collate(indices), "states": pad_states([self.states[i] for i in indices])}
