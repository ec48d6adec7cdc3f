"""The tables on layer-wise learning rates: what the strategies reach, what they move, and at which rates."""

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.strategies import BASE_RATES, SEEDS, STAGES, STRATEGIES, at_best_rate, dev_score, of_seeds, recorded
from benchmarks.table import Record, Table, difference, load, result
from common.encoder import SentenceEncoder
from common.freezing import gradual_unfreezing
from common.heads import MultiTaskModel
from common.optim import layerwise_learning_rates, schedule_factor
from common.report import by_strategy

MEASURES: Mapping[str, Callable[[Record], float]] = {
    "topic accuracy": lambda found: found["test"]["topic"]["accuracy"],
    "sentiment macro recall": lambda found: found["test"]["sentiment"]["macro_recall"],
    "stsb_test": lambda found: found["scored"][1],
    "dev at half": lambda found: found["dev_scores"][len(found["dev_scores"]) // 2 - 1][1],
}


def strategies() -> Table:
    """What was trained with every seed; a strategy's best rate on the dev rows in bold."""
    rows = []
    for name, (best, _) in at_best_rate().items():
        for rate in BASE_RATES:
            found = of_seeds(name, rate)
            if len(found) == SEEDS:
                shown = f"**{rate:g}**" if rate == best else f"{rate:g}"
                cells = [result(measure, [of(f) for f in found]) for measure, of in MEASURES.items()]
                rows.append([name, shown, *cells])
    return Table(["strategy", "base rate", *MEASURES], rows)


def strategy_differences() -> Table:
    """Less uniform rates: each strategy at its best rate, then both at one and the same."""
    compared = {"each at its best": {name: found for name, (_, found) in at_best_rate().items()}}
    for rate in BASE_RATES:
        compared[f"both at {rate:g}"] = {name: of_seeds(name, rate) for name in STRATEGIES}
    rows = []
    for words, found in compared.items():
        uniform = found.pop("uniform")
        for name, outcomes in found.items():
            if len(outcomes) == len(uniform) == SEEDS:
                pairs = {m: ([of(f) for f in outcomes], [of(f) for f in uniform]) for m, of in MEASURES.items()}
                rows.append([name, words, *(difference(measure, *pair) for measure, pair in pairs.items())])
    return Table(["strategy, less uniform", "base rate", *MEASURES], rows)


def sweep() -> Table:
    rows = []
    for name in at_best_rate():
        found = [recorded(name, rate, 0) for rate in BASE_RATES]
        rows.append([name, *(f"{dev_score(f):.3f} ({100 * f['scored'][1]:.1f})" for f in found)])
    return Table(["strategy", *(f"{rate:g}" for rate in BASE_RATES)], rows)


def moved() -> Table:
    rows = [
        [name, *(f"{100 * np.mean([f['moved'][stage] for f in found]):.2g}%" for stage in STAGES)]
        for name, (_, found) in at_best_rate().items()
    ]
    return Table(["strategy", *STAGES], rows)


def gradients() -> Table:
    """Averages over the first quarter of the training and over the last, which have five recorded moments each."""
    rows, quarters = [], (slice(5), slice(-5, None))
    for name, (_, found) in at_best_rate().items():
        norms = [[np.mean([np.mean(f["gradients"][stage][q]) for f in found]) for q in quarters] for stage in STAGES]
        rows.append([name, *(f"{first:.2g}, {last:.2g}" for first, last in norms)])
    return Table(["strategy", *STAGES], rows)


def rate_budget() -> Table:
    """Each stage's rate summed over a training with a linear schedule, as a share of what one rate for all sums to."""
    model, steps = MultiTaskModel(SentenceEncoder(), {}), 1_000
    factors = [schedule_factor("linear", step, steps // 10, steps) for step in range(steps)]
    stages = list(model.encoder.named_stages())
    thaw = gradual_unfreezing(stages, steps / 2 / len(stages))
    layerwise = layerwise_learning_rates(model, 1.0)
    gradual = {stage: sum(factors[thaw[stage] :]) / sum(factors) for stage in stages}
    rows = [
        [name, *(f"{of[stage]:.2f}" for stage in stages)]
        for name, of in (("layerwise", layerwise), ("gradual", gradual))
    ]
    return Table(["strategy", *stages], rows)


def sample_rates() -> Table:
    found = by_strategy(load("rates")["rows"])
    measures = ["topic accuracy", "sentiment accuracy", "similarity kept", *(f"moved: {stage}" for stage in STAGES)]
    rows = []
    for measure in measures:
        values = [float(strategy[measure][0]) for strategy in found.values()]
        rows.append([measure, *(f"{100 * v:.2g}%" if measure.startswith("moved") else f"{v:.3f}" for v in values)])
    return Table(["", *found], rows)
