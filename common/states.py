"""A frozen encoder's token states, computed once and used in every epoch in the place of the texts."""

import shutil
from collections.abc import Sequence
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
from common.devices import autocast, processes
from common.embedding import BATCH_TOKENS, Encoder, evaluating
from common.heads import pad_states

STORE = ".token-states-{}.partial"


class FrozenEncoderDataset:
    """A data set whose items have the frozen encoder's token states, as `states` (length, dim) float32.

    Args:
        store: (tokens of all rows, dim) float32, to be filled.
    """

    def __init__(self, data: MultiTaskDataset, encoder: Encoder, store: np.ndarray, precision: str) -> None:
        self.data, self.tasks, self.classes, self.lengths = data, data.tasks, data.classes, data.lengths
        self.store, self.starts = store, np.cumsum([0, *data.lengths])
        self._fill(encoder, precision)

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
    def _fill(self, encoder: Encoder, precision: str) -> None:
        """Compute each row's states without dropout; each process those of its share."""
        joined = processes()
        rows = range(joined.process_index, len(self), joined.num_processes)
        bar = progress_bar(len(rows), " texts", "frozen encoder, once")
        with evaluating(encoder), autocast(encoder.device, precision), bar:
            for batch in token_budget_batches([self.lengths[i] for i in rows], BATCH_TOKENS):
                input_ids, attention_mask = encoder.tokenizer.pad([self.data.ids[rows[i]] for i in batch])
                states = encoder.token_states(input_ids.to(encoder.device), attention_mask.to(encoder.device))
                for row, own in zip([rows[i] for i in batch], states.float().cpu().numpy(), strict=True):
                    self.store[self.starts[row] : self.starts[row + 1]] = own[: self.lengths[row]]
                bar.update(len(batch))
        joined.wait_for_everyone()


def state_store(data: MultiTaskDataset, dim: int, folder: Path) -> np.ndarray | None:
    """Room for the token states of a data set, (tokens, dim) float32: memory, or else a file that only this run sees.

    Half of the memory that is free is taken at most, and half of the disk; None where neither is enough.
    """
    shape = (sum(data.lengths), dim)
    size, joined = 4 * shape[0] * shape[1], processes()
    if joined.num_processes == 1 and size <= psutil.virtual_memory().available / 2:
        return np.empty(shape, dtype=np.float32)
    if size > shutil.disk_usage(folder).free / 2:
        return None
    path = folder / STORE.format(data.digest()[:12])
    with joined.main_process_first():
        store = np.memmap(path, np.float32, "w+" if joined.is_main_process else "r+", shape=shape)
    joined.wait_for_everyone()
    if joined.is_main_process:
        with suppress(PermissionError):  # some systems keep the name of an open file
            path.unlink()
    return store
