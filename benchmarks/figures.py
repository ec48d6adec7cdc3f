"""The README's figures, from the records and the encoder that ships: nothing is trained.

python -m benchmarks.figures    write them into benchmarks/results/figures
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import task4
from benchmarks.diagram import model_diagram
from benchmarks.encoder_tables import SYSTEMS
from benchmarks.multitask import TASKS
from benchmarks.record import RESULTS
from benchmarks.strategies import BASE_RATES, at_best_rate, of_seeds
from benchmarks.table import load
from common.config import TASK_RATE
from common.encoder import SentenceEncoder
from common.figures import gradients_figure, rates_figure, save_figure, similarity_figure
from common.files import atomic_file
from common.heads import MultiTaskModel
from common.optim import layerwise_learning_rates
from common.readers import read_texts
from common.rows import SAMPLES

FOLDER = RESULTS / "figures"
COMPARED = ("uniform", "layerwise")
SENTENCES = 12  # of the samples
MARKERS = dict(zip(BASE_RATES, "os^", strict=True))


def forgetting_figure() -> Figure:
    """What each strategy reaches against what it keeps, at each base rate: means over the seeds, and deviations."""
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    trained = list(at_best_rate())
    for place, strategy in enumerate(trained):
        points = []
        for rate, marker in MARKERS.items():
            if outcomes := of_seeds(strategy, rate):
                before = 100 * outcomes[0]["scored"][0]
                kept = [100 * outcome["scored"][1] for outcome in outcomes]
                reached = [np.mean([o["test"][task][measure] for task, measure in TASKS.items()]) for o in outcomes]
                points.append((np.mean(kept), np.mean(reached)))
                bars = {"xerr": deviation(kept), "yerr": deviation(reached), "elinewidth": 1, "capsize": 2}
                axes.errorbar(*points[-1], **bars, fmt=marker, color=f"C{place}")
        axes.plot(*zip(*points, strict=True), color=f"C{place}", linewidth=0.7, alpha=0.5)
    axes.set_xlabel("Spearman × 100 on stsb_test after training (what is kept)")
    axes.set_ylabel("mean of topic accuracy and sentiment macro recall")
    axes.grid(alpha=0.3)
    colours = [Line2D([], [], color=f"C{place}", linewidth=3, label=name) for place, name in enumerate(trained)]
    rates = [Line2D([], [], color="black", lw=0, marker=m, label=f"base rate {r:g}") for r, m in MARKERS.items()]
    start = axes.axvline(before, color="black", linestyle="--", linewidth=1, label="before training")
    figure.legend(handles=[*colours, *rates, start], loc="outside lower center", ncols=4)
    return figure


def speed_figure() -> Figure:
    """How many texts a second each system embeds; ours in colour."""
    record = load("speed")
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    rates = {
        name: record["texts"] / record["systems"][name]["all"]
        for name in reversed(SYSTEMS)
        if name in record["systems"]
    }
    names = [SYSTEMS[name].replace("`", "").replace("*", "") for name in rates]
    colours = ["C0" if name.startswith("ours") else "silver" for name in rates]
    axes.bar_label(axes.barh(names, rates.values(), color=colours), fmt="%.0f", padding=3)
    axes.set_xlabel(f"texts a second, two threads of {record['machine']['processor']}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    return figure


def deviation(values: Sequence[float]) -> float:
    """The standard deviation over the seeds; 0 of a single one, which has no bar."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def main() -> None:
    encoder = SentenceEncoder.from_pretrained()
    model = MultiTaskModel(encoder, task4.TASKS)
    with atomic_file(FOLDER / "model.svg") as temporary:
        temporary.write_text(model_diagram(model), encoding="utf-8")
    sentences = list(read_texts(SAMPLES / "sentences.txt"))[:SENTENCES]
    embeddings = encoder.encode(sentences)
    best = at_best_rate()
    figures = {
        "rates": rates_figure(layerwise_learning_rates(model, TASK_RATE), TASK_RATE),
        "forgetting": forgetting_figure(),
        "speed": speed_figure(),
        "similarity": similarity_figure(sentences, embeddings @ embeddings.T),
        "gradients": gradients_figure([outcome for strategy in COMPARED for outcome in best[strategy][1]]),
    }
    for name, figure in figures.items():
        save_figure(figure, FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
