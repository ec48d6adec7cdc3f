"""A frozen encoder's token states, computed once and used in every epoch in the place of the texts."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from common.batching import token_budget_batches
from common.cli import progress_bar
from common.data import MultiTaskDataset
from common.devices import processes, resolve_batch, share_of, sum_over_processes, wait_for_all
from common.embedding import Encoder, evaluating
from common.heads import pad_states
from common.lowered import lowered

STORE = ".token-states.partial"


class FrozenEncoderDataset:
    """A data set whose items have the frozen encoder's token states, as `states` (length, dim) float32.

    Args:
        store: (tokens of all rows, dim) float32, to be filled.
        options: `precision` and `batch_tokens` to run the encoder with.
    """

    def __init__(self, data: MultiTaskDataset, encoder: Encoder, store: np.ndarray, options: Mapping[str, Any]) -> None:
        self.data, self.tasks, self.classes, self.lengths = data, data.tasks, data.classes, data.lengths
        self.store, self.starts = store, np.cumsum([0, *data.lengths])
        self._fill(encoder, **options)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        states = self.store[self.starts[index] : self.starts[index + 1]]
        return {**self.data[index], "states": torch.from_numpy(states)}

    def digest(self) -> str:
        """That of the data set itself."""
        return self.data.digest()

    def labelled(self, task: str) -> int:
        """How many rows have a label for a task."""
        return self.data.labelled(task)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch as the data set's own, and `states` (rows, length, dim) with zeros behind each row's end."""
        return {**self.data.collate(items), "states": pad_states([item["states"] for item in items])}

    @torch.inference_mode()
    def _fill(self, encoder: Encoder, precision: str, batch_tokens: int | None = None) -> None:
        """Compute each row's states without dropout; each process those of its share."""
        rows = share_of(range(len(self)))
        bar, encoder = progress_bar(len(rows), " texts", "frozen encoder, once"), lowered(encoder, precision)
        with evaluating(encoder), bar:
            budget = resolve_batch(batch_tokens, encoder.device)
            for batch in token_budget_batches([self.lengths[i] for i in rows], budget):
                input_ids, attention_mask = encoder.tokenizer.pad([self.data.ids[rows[i]] for i in batch])
                states = encoder.token_states(input_ids.to(encoder.device), attention_mask.to(encoder.device))
                for row, own in zip([rows[i] for i in batch], states.float().cpu().numpy(), strict=True):
                    self.store[self.starts[row] : self.starts[row + 1]] = own[: self.lengths[row]]
                bar.update(len(batch))
        wait_for_all()


def frozen_data(
    sets: Sequence[MultiTaskDataset], encoder: Encoder, folder: Path, options: Mapping[str, Any]
) -> list[MultiTaskDataset | FrozenEncoderDataset]:
    """Compute the token states of some data sets, where there is room for all of them; else give the sets as they are.

    Args:
        folder: where a file may be made.
        options: `precision` and `batch_tokens` to run the encoder with.
    """
    tokens = [sum(data.lengths) for data in sets]
    store = state_store(sum(tokens), encoder.dim, folder)
    if store is None:
        return list(sets)
    stores = np.split(store, np.cumsum(tokens)[:-1])
    return [FrozenEncoderDataset(data, encoder, own, options) for data, own in zip(sets, stores, strict=True)]


def state_store(tokens: int, dim: int, folder: Path) -> np.ndarray | None:
    """Make room for (tokens, dim) float32: in memory, or else in a file in `folder` that is gone after the run.

    Half of the memory that is free is taken at most, or half of the disk; None where neither is enough. Several
    processes share the file, so it must be one machine that they run on.
    """
    size, joined = 4 * tokens * dim, processes()
    if joined.num_processes == 1 and size <= psutil.virtual_memory().available / 2:
        return np.empty((tokens, dim), dtype=np.float32)
    on_one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", joined.num_processes)) == joined.num_processes
    refusals = torch.tensor([float(size > shutil.disk_usage(folder).free / 2 or not on_one_machine)])
    refusals = refusals.to(joined.device)
    sum_over_processes(refusals)
    if refusals.item():
        return None
    path = folder / STORE
    if joined.is_main_process:
        np.memmap(path, np.float32, "w+", shape=(tokens, dim))
    wait_for_all()
    store = np.memmap(path, np.float32, "r+", shape=(tokens, dim))
    wait_for_all()
    if joined.is_main_process:
        with suppress(PermissionError):  # some systems keep the name of an open file
            path.unlink()
    return store
