"""What people look at: tables on the terminal, figures as PNG."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files: no display is needed

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from common.files import atomic_file


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under their header, text to the left and numbers to the right; floats with three decimals."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, cells)])


def shorten(text: str, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is longer than `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def terminal_width() -> int:
    """Columns of the terminal, within what a table can use."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 160)


def heading(text: str) -> None:
    """Print a heading with space above it."""
    print(f"\n{text}\n{'=' * len(text)}")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON for people and programs: indented, UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG and forget it."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def similarity_figure(sentences: Sequence[str], similarities: np.ndarray) -> Figure:
    """A heat map of an (n, n) table of cosine similarities, the sentences on both axes."""
    labels = [shorten(sentence, 42) for sentence in sentences]
    size = 3 + 0.42 * len(sentences)
    figure, axes = plt.subplots(figsize=(size + 1, size))
    image = axes.imshow(similarities, cmap="viridis", vmin=min(0, similarities.min()), vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for (row, column), value in np.ndenumerate(similarities):
        ink = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=ink)
    figure.colorbar(image, label="cosine similarity", fraction=0.046, pad=0.02)
    axes.set_title("How similar the sentences' embeddings are")
    return figure


def map_figure(sentences: Sequence[str], embeddings: np.ndarray) -> Figure:
    """The embeddings (n, dim) as numbered points on their two principal components, the sentences beside them."""
    centred = embeddings - embeddings.mean(axis=0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    points = centred @ components[:2].T  # (n, 2)
    share = singular[:2] ** 2 / max((singular**2).sum(), 1e-12)
    figure, axes = plt.subplots(figsize=(8, 7))
    axes.scatter(*points.T, s=260, color="tab:blue", alpha=0.25)
    for number, point in enumerate(points, 1):
        axes.annotate(str(number), point, ha="center", va="center", fontsize=9)
    legend = "\n".join(f"{number:>2}  {shorten(sentence, 52)}" for number, sentence in enumerate(sentences, 1))
    axes.text(1.03, 1, legend, transform=axes.transAxes, va="top", fontsize=9, linespacing=1.8)
    axes.margins(0.08)
    axes.set_xlabel(f"first principal component ({share[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({share[1]:.0%})")
    axes.set_title("The sentences in two dimensions")
    return figure


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write mappings as CSV: a line for each, a column for each name that occurs."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def curves_figure(history: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> Figure:
    """Each task's loss and accuracy over the steps, in training and on the dev set where there is one."""
    figure, grid = plt.subplots(2, len(tasks), figsize=(5 * len(tasks), 7), squeeze=False, sharex=True)
    for axes_column, task in zip(grid.T, tasks, strict=True):
        for axes, measure in zip(axes_column, ("loss", "accuracy"), strict=True):
            for where, style in (("train", "o--"), ("dev", "o-")):
                points = [(row["step"], row[key]) for row in history if (key := f"{where} {task} {measure}") in row]
                if points:
                    axes.plot(*zip(*points, strict=True), style, label="training" if where == "train" else "dev")
            axes.set_ylabel(measure)
            axes.grid(alpha=0.3)
            axes.legend()
        axes_column[0].set_title(plain(task))
        axes_column[1].set_xlabel("step")
    return figure


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, and behind ± the standard deviation where there are several values."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def by_strategy(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """A comparison's rows gathered by strategy: for each, the values of every measure."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            gathered.setdefault(row["strategy"], {}).setdefault(name, []).append(value)
    return gathered


def comparison_table(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> str:
    """A line for each strategy: how many trainings, and the mean and spread of each measure."""
    lines = [
        [strategy, len(values["seed"]), *(mean_and_spread(values[measure]) for measure in measures)]
        for strategy, values in by_strategy(rows).items()
    ]
    return table(["strategy", "runs", *measures], lines)


def moved_table(rows: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> str:
    """A line for each part, bottom up: how far each strategy moved it, on average, as a share of its length."""
    gathered = by_strategy(rows)
    lines = [
        [part, *(f"{100 * np.mean(values[f'moved: {part}']):.2g}%" for values in gathered.values())] for part in parts
    ]
    return table(["moved", *gathered], lines)


def rates_figure(rates: Mapping[str, float], base_rate: float) -> Figure:
    """Each part's learning rate as a bar, bottom up as the model stands, beside the base rate."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.36 * len(rates)))
    bars = axes.barh([plain(part) for part in rates], list(rates.values()), color="tab:blue", alpha=0.8)
    axes.bar_label(bars, [f"{rate / base_rate:.3f}" for rate in rates.values()], padding=3, fontsize=8)
    axes.axvline(base_rate, color="black", linestyle="--", linewidth=1, label=f"base rate {base_rate:g}")
    axes.set_xlabel("learning rate (beside each bar: its factor on the base rate)")
    axes.set_title("The learning rate of each part, from the embeddings up")
    axes.margins(x=0.12)
    axes.legend(loc="lower right")
    return figure


def comparison_figure(rows: Sequence[Mapping[str, Any]], measures: Sequence[str], stages: Sequence[str]) -> Figure:
    """What each strategy reaches (a dot for each training, a bar for the mean), and how far it moves each stage."""
    gathered = by_strategy(rows)
    figure, grid = plt.subplots(1, len(measures) + 1, figsize=(4 * len(measures) + 6, 4.5))
    for axes, measure in zip(grid, measures, strict=False):
        for place, values in enumerate(gathered.values()):
            axes.bar(place, np.mean(values[measure]), color=f"C{place}", alpha=0.4)
            axes.plot([place] * len(values[measure]), values[measure], "o", color=f"C{place}")
        found = [value for values in gathered.values() for value in values[measure] if np.isfinite(value)] or [0.0]
        margin = max(max(found) - min(found), 0.02)
        axes.set_ylim(max(min(found) - margin, -1), min(max(found) + margin, 1.02))
        axes.set_xticks(range(len(gathered)), [plain(name) for name in gathered], rotation=45, ha="right")
        axes.set_title(plain(measure))
        axes.grid(axis="y", alpha=0.3)
    for place, (strategy, values) in enumerate(gathered.items()):
        moved = [np.mean(values[f"moved: {stage}"]) for stage in stages]
        grid[-1].plot(range(len(stages)), moved, "o-", color=f"C{place}", label=plain(strategy))
    grid[-1].set_yscale("log")
    grid[-1].set_ylabel("change / length at the start")
    grid[-1].set_xticks(range(len(stages)), [plain(stage) for stage in stages], rotation=45, ha="right")
    grid[-1].set_title("how far each stage moved")
    grid[-1].grid(alpha=0.3)
    grid[-1].legend()
    figure.tight_layout()
    return figure


def training_figure(outcomes: Mapping[str, Mapping[str, Any]]) -> Figure:
    """How each strategy got there: the dev scores as it trained, and the gradient of each part, from blue up to yellow.

    Args:
        outcomes: for each strategy, `dev_scores` as (step, score) and `gradients` as norms over time by part.
    """
    columns = min(len(outcomes) + 1, 4)
    rows = -(-(len(outcomes) + 1) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.5 * columns, 3.8 * rows), squeeze=False)
    first, *panels = grid.flat
    for strategy, outcome in outcomes.items():
        first.plot(*zip(*outcome["dev_scores"], strict=True), "o-", label=plain(strategy))
    first.set_xlabel("step")
    first.set_title("dev score (macro F1, mean of the tasks)")
    first.legend(fontsize=8)
    for axes, (strategy, outcome) in zip(panels, outcomes.items(), strict=False):
        if axes is not panels[0]:
            axes.sharey(panels[0])
        gradients = outcome["gradients"]
        for place, (part, norms) in enumerate(gradients.items()):
            share = (np.arange(len(norms)) + 0.5) / len(norms)
            seen = np.where(np.array(norms) > 0, norms, np.nan)  # a frozen part has no gradient
            colour = plt.colormaps["viridis"](place / max(len(gradients) - 1, 1))
            axes.plot(share, seen, color=colour, label=plain(part), linewidth=1.2)
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the training")
        axes.set_title(f"gradient norms: {plain(strategy)}")
    panels[0].legend(fontsize=6, ncols=3, loc="lower center")
    panels[0].set_ylim(bottom=panels[0].get_ylim()[0] / 8)  # room for the legend
    for axes in grid.flat:
        axes.grid(alpha=0.3)
    for axes in panels[len(outcomes) :]:
        axes.set_visible(False)
    figure.tight_layout()
    return figure


def confusion_figure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """For each task, true classes against predicted ones: counts, shaded by the share of the true class."""
    figure, grid = plt.subplots(1, len(results), figsize=(5.5 * len(results), 5), squeeze=False)
    for axes, (task, result) in zip(grid[0], results.items(), strict=True):
        counts, labels = np.array(result["confusion"]), [plain(shorten(label, 18)) for label in result["classes"]]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(labels)), labels)
        if len(labels) <= 20:
            for (row, column), count in np.ndenumerate(counts):
                ink = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=ink)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"{plain(task)}: accuracy {result['accuracy']:.3f}")
    figure.tight_layout()
    return figure


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")
