"""A table of results as Markdown, and how a result, its spread and a difference are written in it."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import ttest_1samp

from benchmarks.record import RESULTS
from common.report import mean_and_spread

Record = dict[str, Any]


class Table(NamedTuple):
    """Cells as text, under their header."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)

    def pick(self, columns: Sequence[str], rows: Callable[[Sequence[object]], bool] = lambda row: True) -> "Table":
        """Some of its columns, and the rows that a condition holds for."""
        places = [self.header.index(column) for column in columns]
        return Table(columns, [[row[place] for place in places] for row in self.rows if rows(row)])


def load(name: str) -> Record:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def load_all(paths: Iterable[Path]) -> list[Record]:
    """Those of the records that are there."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def result(measure: str, values: Sequence[float]) -> str:
    """The mean over the seeds and their standard deviation; Spearman in hundredths, as is usual."""
    if measure != "stsb_test":
        return mean_and_spread(values)
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def difference(measure: str, values: Sequence[float], others: Sequence[float]) -> str:
    """The mean of the differences seed by seed, with its 95% interval (Student's t)."""
    scale, decimals = (100, 1) if measure == "stsb_test" else (1, 3)
    lost = scale * np.subtract(values, others)
    if np.ptp(lost) == 0:
        return f"{lost[0]:.{decimals}f}"  # the same for every seed
    return with_interval(np.mean(lost), *ttest_1samp(lost, 0).confidence_interval(), decimals)


def with_interval(mean: float, low: float, high: float, decimals: int) -> str:
    """A difference with its interval, in bold where that leaves out zero."""
    text = f"{mean:+.{decimals}f} ({low:+.{decimals}f} to {high:+.{decimals}f})"
    return f"**{text}**" if low > 0 or high < 0 else text
