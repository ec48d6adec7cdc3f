"""What the training loop trains: an objective, and one step as it sees it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from common.bert import COMPACT

Batch = dict[str, Tensor]
Metrics = dict[str, float]
# What may stand beside a model and belongs to it alone: a script's results, the weights in compact form.
RESULT_FILES = (COMPACT, "training.json", "metrics.json", "history.csv", "curves.png", "confusion.png")


class TrainingData(Protocol):
    """What the loop asks of a data set; an item is a mapping with its `length` in tokens."""

    lengths: Sequence[int]

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def digest(self) -> str: ...

    def collate(self, items: Sequence[dict[str, Any]]) -> Batch: ...


class Step:
    """One step as an objective sees it: this process's batches, and what is measured on the way.

    Each batch is the data set's own, with `place` (rows,): the rows' places in this process's share of the step.

    Args:
        batch_tokens: the most tokens that may be computed at once.
    """

    def __init__(self, batches: list[Batch], forward: Callable[[int, Batch], Any], batch_tokens: int) -> None:
        self.batches, self._forward = batches, forward
        self.fits = len(batches) == 1 or sum(int(batch["attention_mask"].sum()) for batch in batches) <= batch_tokens
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # name to [sum, count]

    def forward(self, number: int) -> Any:
        """The objective's `forward` of a batch in the training's precision; a second call has the same dropout."""
        return self._forward(number, self.batches[number])

    def track(self, name: str, total: Tensor | float, count: float = 0) -> None:
        """Add to a sum of which the history shows the mean. "loss" is the whole step's, counted once a step."""
        self.sums[name][0] += float(total)
        self.sums[name][1] += count


class Objective(nn.Module):
    """A model to train with its data and its judge; the loop knows nothing else of it.

    Attributes:
        data: the rows to train on.
        rates: the peak learning rate of each stage; those left out have the configuration's.
        thaw: the step at which a stage begins to train; until then it is frozen.
        contents: digests of what else a resumed run must share with the first, by what they are of.
        tracked: the names that `backward` tracks.
        leftovers: files that an earlier run may have left, and a save of this one would not replace.
        smallest_step: the fewest rows that a step may have.
    """

    data: TrainingData
    rates: Mapping[str, float]
    thaw: Mapping[str, int]
    contents: dict[str, Any]
    tracked: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = RESULT_FILES
    smallest_step = 1
    evaluates = False

    @property
    def max_padding(self) -> float:
        """Tokens of padding in a batch beyond which two batches cost less than one."""
        raise NotImplementedError

    def named_stages(self) -> dict[str, nn.Module]:
        """What can be frozen or have a rate of its own, by name, bottom up."""
        raise NotImplementedError

    def prepare(self, folder: Path, **options: Any) -> None:
        """Get ready for the first step, on the device and frozen already; `options` as those of `evaluate`.

        A checkpoint to be resumed is taken up after this.
        """

    def backward(self, step: Step) -> None:
        """Add to the parameters' gradients those that, added up over the processes, are the step's loss's."""
        raise NotImplementedError

    def traces(self) -> dict[str, float]:
        """Give numbers to keep of every step; called between its gradient and its update."""
        return {}

    def evaluate(self, **options: Any) -> Metrics:
        """Measure on the dev set; `score` is to be high. Called where `evaluates`.

        Args:
            options: `precision` and `batch_tokens` of the training.
        """
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the model."""
        raise NotImplementedError

    def describe(self, row: Mapping[str, Any]) -> str:
        """A row of the history as it is printed while training."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("step", "dev score"))
        return f"step {row['step']:>6}  {values}"
