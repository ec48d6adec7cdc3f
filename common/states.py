"""A frozen encoder's token states, computed once and used in every epoch in the place of the texts."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from common.batching import token_budget_batches
from common.cli import progress_bar
from common.data import MultiTaskDataset
from common.devices import processes, resolve_batch, share_of, sum_over_processes, wait_for_all
from common.embedding import Encoder, evaluating
from common.lowered import lowered

STORE = ".token-states.partial"


def with_states(
    data: MultiTaskDataset, encoder: Encoder, store: np.ndarray, precision: str, batch_tokens: int | None = None
) -> MultiTaskDataset:
    """The data set with the frozen encoder's token states, without dropout; each process computes those of its share.

    Args:
        store: (tokens of all rows, dim) float32, to be filled.
    """
    rows, places = share_of(range(len(data))), torch.from_numpy(store).split(data.lengths)
    bar, encoder = progress_bar(len(rows), " texts", "frozen encoder, once"), lowered(encoder, precision)
    with torch.inference_mode(), evaluating(encoder), bar:
        budget = resolve_batch(batch_tokens, encoder.device)
        for batch in token_budget_batches([data.lengths[i] for i in rows], budget):
            input_ids, attention_mask = encoder.tokenizer.pad([data.ids[rows[i]] for i in batch])
            states = encoder.token_states(input_ids.to(encoder.device), attention_mask.to(encoder.device))
            for row, own in zip([rows[i] for i in batch], states.float().cpu(), strict=True):
                places[row].copy_(own[: data.lengths[row]])
            bar.update(len(batch))
    wait_for_all()
    found = copy(data)
    found.states = places
    return found


def frozen_data(
    sets: Sequence[MultiTaskDataset], encoder: Encoder, folder: Path, options: Mapping[str, Any]
) -> list[MultiTaskDataset]:
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
    return [with_states(data, encoder, own, **options) for data, own in zip(sets, stores, strict=True)]


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
