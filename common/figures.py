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
    """A heat map of an (n, n) table of cosine similarities, the sentences beside its rows, their numbers below."""
    numbers = range(1, len(sentences) + 1)
    labels = [f"{plain(shorten(sentence, 42))}  {number}" for number, sentence in zip(numbers, sentences, strict=True)]
    size = 1.5 + 0.36 * len(sentences)
    figure, axes = plt.subplots(figsize=(size + 1.2, size))
    image = axes.imshow(similarities, cmap="viridis", vmin=min(0, similarities.min()), vmax=1)
    axes.set_xticks(range(len(labels)), numbers)
    axes.set_yticks(range(len(labels)), labels)
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for (row, column), value in np.ndenumerate(similarities):
        ink = "white" if value < middle else "black"
        shown = f"{round(float(value), 2) + 0.0:.2f}"  # + 0.0: none is "-0.00"
        axes.text(column, row, shown, ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(image, label="cosine similarity", fraction=0.046, pad=0.02)
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
            if axes.lines:  # a task may have had no labels
                axes.legend()
        axes_column[0].set_title(plain(task))
        axes_column[1].set_xlabel("step")
    return figure


def rates_figure(rates: Mapping[str, float], base_rate: float) -> Figure:
    """Each stage's learning rate as a bar, bottom up as the model stands, beside the base rate."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.36 * len(rates)))
    bars = axes.barh([plain(stage) for stage in rates], list(rates.values()), color="tab:blue", alpha=0.8)
    axes.axvline(base_rate, color="black", linestyle="--", linewidth=1, label=f"base rate {base_rate:g}")
    factors = [f"{rate / base_rate:.3f}" for rate in rates.values()]
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # else the line at the base rate crosses the numbers
    axes.bar_label(bars, factors, padding=4, fontsize=9, bbox=paper)
    axes.set_xlabel("learning rate (beside each bar: its factor on the base rate)")
    axes.set_title("The learning rate of each stage, from the embeddings up")
    axes.margins(x=0.12)
    axes.legend(loc="lower right")
    return figure


def comparison_figure(rows: Sequence[Mapping[str, Any]], measures: Sequence[str], stages: Sequence[str]) -> Figure:
    """What each strategy reaches (a dot for each training, a bar for the mean), and how far it moves each stage."""
    gathered = by_strategy(rows)
    columns = min(len(measures), 3)
    lines = -(-len(measures) // columns)
    heights = [1 + 0.3 * len(gathered)] * lines + [4.5]
    figure = plt.figure(figsize=(9, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=heights)
    for number, measure in enumerate(measures):
        axes = figure.add_subplot(grid[divmod(number, columns)])
        _draw_measure(axes, {strategy: values[measure] for strategy, values in gathered.items()})
        axes.set_title(plain(measure))
        axes.tick_params(labelleft=number % columns == 0)
    axes = figure.add_subplot(grid[-1, :])
    _draw_stages(axes, {name: {s: values[f"moved: {s}"] for s in stages} for name, values in gathered.items()})
    axes.set_ylabel("change / length at the start")
    axes.set_title("how far each stage moved")
    _add_legend(figure)
    return figure


def _draw_measure(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """A bar across for the mean of each strategy, the first on top, and a dot for each of its values."""
    for place, found in enumerate(values.values()):
        axes.barh(place, np.mean(found), color=f"C{place}", alpha=0.4)
        axes.plot(found, [place] * len(found), "o", color=f"C{place}")
    finite = [value for found in values.values() for value in found if np.isfinite(value)] or [0.0]
    margin = max(max(finite) - min(finite), 0.02)
    axes.set_xlim(max(min(finite) - margin, -1), min(max(finite) + margin, 1.02))
    axes.set_yticks(range(len(values)), [_name(strategy) for strategy in values])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def training_figure(outcomes: Sequence[Mapping[str, Any]]) -> Figure:
    """Each strategy's scores on the dev set while it trained, and its gradient norms by depth, as `gradients_figure`.

    Args:
        outcomes: a training each: its `strategy`, `dev_scores` as (step, score), `gradients` as norms by stage.
    """
    figure, (above, below) = plt.subplots(2, figsize=(9, 8), layout="constrained")
    for place, (strategy, values) in enumerate(by_strategy(outcomes).items()):
        scores: dict[int, list[float]] = {}
        for step, score in (point for points in values["dev_scores"] for point in points):
            scores.setdefault(step, []).append(score)
        steps = sorted(scores)
        _draw_means(above, steps, [scores[step] for step in steps], color=f"C{place}", label=_name(strategy))
    above.set_xlabel("step")
    above.set_ylabel("macro F1 on dev, mean of tasks")
    above.grid(alpha=0.3)
    _draw_gradients(below, outcomes)
    _add_legend(figure)
    return figure


def gradients_figure(outcomes: Sequence[Mapping[str, Any]]) -> Figure:
    """Each strategy's gradient norms by depth: medians over a training, then mean and deviation over its trainings.

    Args:
        outcomes: a training each: its `strategy`, and `gradients` as norms over time by stage.
    """
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    _draw_gradients(axes, outcomes)
    _add_legend(figure)
    return figure


def _draw_gradients(axes: Axes, outcomes: Sequence[Mapping[str, Any]]) -> None:
    medians = [{"strategy": outcome["strategy"], **median_norms(outcome["gradients"])} for outcome in outcomes]
    stages = outcomes[0]["gradients"]
    _draw_stages(axes, {name: {s: values[s] for s in stages} for name, values in by_strategy(medians).items()})
    axes.set_ylabel("gradient norm, median over the training")


def median_norms(gradients: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each stage's gradient norms over time, without those of 0: it was frozen then (always: nan)."""
    return {stage: float(np.median([n for n in norms if n > 0] or [np.nan])) for stage, norms in gradients.items()}


def _draw_stages(axes: Axes, strategies: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """A line for each strategy over the stages, from the embeddings up: its trainings' values at each stage."""
    stages = list(next(iter(strategies.values())))
    # The heads stand beside one another: no line joins the top of one to the foot of the next.
    cuts = [place for place, stage in enumerate(stages) if stage.endswith("head 1")]
    for number, (strategy, values) in enumerate(strategies.items()):
        for part in np.split(np.arange(len(stages)), cuts):
            label = _name(strategy) if part[0] == 0 else None
            _draw_means(axes, part, [values[stages[place]] for place in part], color=f"C{number}", label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(stages)), [plain(stage) for stage in stages], rotation=45, ha="right")
    axes.set_xlabel("stage, from the embeddings up")
    axes.grid(alpha=0.3)


def _draw_means(axes: Axes, places: Sequence[float], values: Sequence[Sequence[float]], **style: Any) -> None:
    """A line through the mean at each place, and the standard deviation as a bar where there are several values."""
    spreads = [np.std(found, ddof=1) if len(found) > 1 else 0.0 for found in values]
    means = [np.mean(found) for found in values]
    axes.errorbar(places, means, spreads, marker="o", markersize=4, elinewidth=1, capsize=2, **style)


def _add_legend(figure: Figure) -> None:
    """The strategies' names under the last of the panels, which has them all."""
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)


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


def _name(strategy: str) -> str:
    """A strategy's name as a label: of a long path its beginning and its end."""
    return plain(strategy if len(strategy) <= 24 else f"{strategy[:9]}…{strategy[-14:]}")
