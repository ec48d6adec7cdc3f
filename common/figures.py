"""Figures as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files: no display is needed

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import atomic_file
from common.report import by_strategy, shorten


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG and forget it."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def similarity_figure(sentences: Sequence[str], similarities: np.ndarray) -> Figure:
    """A heat map of an (n, n) table of cosine similarities, the sentences on both axes."""
    labels = [plain(shorten(sentence, 42)) for sentence in sentences]
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
    from sklearn.decomposition import PCA  # slow to import, and needed only here

    # Left to choose, PCA takes a randomized solver for 768 columns, whose points vary from run to run.
    pca = PCA(2, svd_solver="full")
    points = pca.fit_transform(embeddings)  # (n, 2)
    share = pca.explained_variance_ratio_
    figure, axes = plt.subplots(figsize=(8, 7))
    axes.scatter(*points.T, s=260, color="tab:blue", alpha=0.25)
    for number, point in enumerate(points, 1):
        axes.annotate(str(number), point, ha="center", va="center", fontsize=9)
    legend = "\n".join(f"{number:>2}  {plain(shorten(sentence, 52))}" for number, sentence in enumerate(sentences, 1))
    axes.text(1.03, 1, legend, transform=axes.transAxes, va="top", fontsize=9, linespacing=1.8)
    axes.margins(0.08)
    axes.set_xlabel(f"first principal component ({share[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({share[1]:.0%})")
    axes.set_title("The sentences in two dimensions")
    return figure


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


def rates_figure(rates: Mapping[str, float], base_rate: float) -> Figure:
    """Each stage's learning rate as a bar, bottom up as the model stands, beside the base rate."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.36 * len(rates)))
    bars = axes.barh([plain(stage) for stage in rates], list(rates.values()), color="tab:blue", alpha=0.8)
    axes.bar_label(bars, [f"{rate / base_rate:.3f}" for rate in rates.values()], padding=3, fontsize=8)
    axes.axvline(base_rate, color="black", linestyle="--", linewidth=1, label=f"base rate {base_rate:g}")
    axes.set_xlabel("learning rate (beside each bar: its factor on the base rate)")
    axes.set_title("The learning rate of each stage, from the embeddings up")
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
    """Each strategy's scores on the dev set while it trained, and a panel for each with the gradient of every stage.

    Args:
        outcomes: for each strategy, `dev_scores` as (step, score) and `gradients` as norms over time by stage.
    """
    columns = min(len(outcomes) + 1, 4)
    rows = -(-(len(outcomes) + 1) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.5 * columns, 3.8 * rows), squeeze=False)
    first, *panels = grid.flat
    for strategy, outcome in outcomes.items():
        first.plot(*zip(*outcome["dev_scores"], strict=True), "o-", label=plain(strategy))
    first.set_xlabel("step")
    first.set_title("score on the dev set (macro F1, mean of the tasks)", fontsize=10)
    first.legend(fontsize=8)
    first.grid(alpha=0.3)
    for axes, (strategy, outcome) in zip(panels, outcomes.items(), strict=False):
        if axes is not panels[0]:
            axes.sharey(panels[0])
        _draw_gradients(axes, outcome["gradients"])
        axes.set_title(f"gradient norms: {plain(strategy)}")
    panels[0].legend(fontsize=6, ncols=3, loc="lower center")
    panels[0].set_ylim(bottom=panels[0].get_ylim()[0] / 8)  # room for the legend
    for axes in panels[len(outcomes) :]:
        axes.set_visible(False)
    figure.tight_layout()
    return figure


def _draw_gradients(axes: Axes, gradients: Mapping[str, Sequence[float]]) -> None:
    """A line for each stage, bottom up from blue to yellow: the norm of its gradient over the training."""
    for place, (stage, norms) in enumerate(gradients.items()):
        share = (np.arange(len(norms)) + 0.5) / len(norms)
        seen = np.where(np.array(norms) > 0, norms, np.nan)  # a frozen stage has no gradient
        colour = plt.colormaps["viridis"](place / max(len(gradients) - 1, 1))
        axes.plot(share, seen, color=colour, label=plain(stage), linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the training")
    axes.grid(alpha=0.3)


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
