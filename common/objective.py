"""What the training loop trains: an objective, and one step as it sees it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

Batch = dict[str, Tensor]
Metrics = dict[str, float]
# What the scripts write beside a model once a training has ended.
RESULT_FILES = ("training.json", "metrics.json", "history.csv", "curves.png", "confusion.png")


class TrainingData(Protocol):
    """What the loop asks of a data set; an item is a mapping with its `length` in tokens."""

    lengths: Sequence[int]

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def digest(self) -> str: ...

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch: ...


class Step:
    """One step as an objective sees it: this process's batches, and what is measured on the way.

    Each batch is the data set's own, with `place` (rows,): the rows' places in this process's share of the step.
    """

    def __init__(self, batches: list[Batch], forward: Callable[[int, Batch], Any]) -> None:
        self.batches, self._forward = batches, forward
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # name to [sum, count]

    def forward(self, number: int) -> Any:
        """The objective's `forward` of a batch in the training's precision; a second call has the same dropout."""
        return self._forward(number, self.batches[number])

    def track(self, name: str, total: Tensor | float, count: float = 0) -> None:
        """Add to a sum of which the history shows the mean. "loss" is the whole step's, counted once a step."""
        self.sums[name][0] += float(total)
        self.sums[name][1] += count


class Objective(nn.Module):
    """What is trained, on which data, and how it is judged; the loop knows nothing else of it.

    Attributes:
        data: the rows to train on.
        rates: the peak learning rate of each stage; those left out have the configuration's.
        thaw: the step at which a stage begins to train; until then it is frozen.
        settings: what else a resumed run must share with the first, by name.
        tracked: the names that `losses` tracks.
        stale: files that an earlier run may have left, and a save of this one would not replace.
    """

    data: TrainingData
    rates: Mapping[str, float]
    thaw: Mapping[str, int]
    settings: Mapping[str, Any]
    tracked: tuple[str, ...] = ()
    stale: tuple[str, ...] = RESULT_FILES
    evaluates = False

    def named_stages(self) -> dict[str, nn.Module]:
        """What can be frozen or have a rate of its own, by name, bottom up."""
        raise NotImplementedError

    def prepare(self, folder: Path, precision: str) -> None:
        """Called once before the first step, the objective on its device and frozen as it will be."""

    def losses(self, step: Step) -> Iterator[Tensor]:
        """What to call `backward` on: the sum of it over the processes has the gradient of the step's loss."""
        raise NotImplementedError

    def traces(self) -> dict[str, float]:
        """Numbers to keep of every step, between its gradient and its update."""
        return {}

    def evaluate(self, precision: str) -> Metrics:
        """Metrics on the dev set, of which `score` is to be high; called where `evaluates`."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the model."""
        raise NotImplementedError

    def describe(self, row: Mapping[str, Any]) -> str:
        """A row of the history as it is printed while training."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("step", "dev score"))
        return f"step {row['step']:>6}  {values}"
