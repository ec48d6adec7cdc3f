"""Plans, as pure functions: which rows make a step, each process's share of it, and how that is cut into batches."""

import math
from collections.abc import Iterator, Sequence

import numpy as np


def token_budget_batches(lengths: Sequence[int], batch_tokens: float, padding: float = math.inf) -> list[list[int]]:
    """Indices sorted by length and cut so that rows × longest row ≤ `batch_tokens` in each batch.

    A row longer than the budget is a batch by itself. Long batches come first, so that memory is at its
    highest at once and not at the end.

    Args:
        padding: the most padding tokens in one batch; more than that, and a batch more costs less.
    """
    batches: list[list[int]] = []
    widest = padded = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        padded += widest - lengths[index]
        if not batches or (len(batches[-1]) + 1) * widest > batch_tokens or padded > padding:
            batches.append([])
            widest, padded = max(lengths[index], 1), 0
        batches[-1].append(index)
    return batches


def epoch_steps(rows: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's steps: every row once, at random, in steps of equal size (to one row) of at most `batch_size` rows.

    Length plays no part in it: sorted by length, tasks whose texts differ in length would stand apart, and a row of
    one would weigh more in some steps than in others. The result depends on the arguments alone, so that training can
    resume within an epoch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return [step.tolist() for step in np.array_split(order, math.ceil(rows / batch_size))]


def planned_steps(rows: int, batch_size: int, seed: int, steps: range) -> Iterator[list[int]]:
    """The rows of some steps, which are counted from the first epoch's first, epoch after epoch."""
    planned, plan = None, []
    for step in steps:
        epoch, place = divmod(step, math.ceil(rows / batch_size))
        if epoch != planned:
            planned, plan = epoch, epoch_steps(rows, batch_size, seed, epoch)
        yield plan[place]
