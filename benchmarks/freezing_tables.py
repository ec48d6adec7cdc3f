"""The tables on what is frozen, kept and added: costs, scenarios, heads, similarity kept, new labels, new tasks."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

from benchmarks import adding, freezing, growing, keeping
from benchmarks import heads as heads_of
from benchmarks.multitask import TASKS
from benchmarks.table import Record, Table, difference, load, load_all, result
from common.report import mean_and_spread

SEEDS = freezing.SEEDS
PEER = "regression"  # of the heads


def costs() -> Table:
    found = load("costs")["scenarios"]
    whole = found["nothing"]["milliseconds_per_step"]
    rows = []
    for scenario, cost in found.items():
        step = cost["milliseconds_per_step"]
        once = f"{cost['milliseconds_per_text_before']:.1f}"
        memory = [f"{cost['added_megabytes']:,.0f}", f"{cost['optimizer_megabytes']:.1f}"]
        rows.append([scenario, f"{cost['trainable'] / 1e6:.2f}", f"{step:,.0f}", f"{step / whole:.0%}", once, *memory])
    header = ["frozen", "trainable (million)", "ms a step", "of nothing frozen", "once before, ms a text"]
    return Table([*header, "memory it added (MB)", "optimizer (MB)"], rows)


def frozen_results(target: str, scenario: str, size: int) -> list[dict[str, float]]:
    """What the trainings of one scenario reached."""
    paths = [freezing.result_path(target, scenario, size, seed) for seed in range(SEEDS)]
    return [found["reached"] for found in load_all(paths)]


def freezing_scenarios() -> Table:
    rows = []
    for size in freezing.SIZES:
        for scenario in freezing.SCENARIOS:
            if found := frozen_results("both", scenario, size):
                cells = [result(name, [f[name] for f in found]) for name in (*TASKS, "stsb_test")]
                rows.append([f"{size:,}", scenario, len(found), *cells])
    return Table(["rows", "frozen", "seeds", "topic accuracy", "sentiment macro recall", "stsb_test"], rows)


def freezing_differences() -> Table:
    rows = []
    for size in freezing.SIZES:
        nothing = frozen_results("both", "nothing", size)
        for scenario in freezing.SCENARIOS:
            found = frozen_results("both", scenario, size)
            if scenario != "nothing" and len(found) == len(nothing) == SEEDS:
                cells = [
                    difference(name, [f[name] for f in found], [f[name] for f in nothing])
                    for name in (*TASKS, "stsb_test")
                ]
                rows.append([f"{size:,}", scenario, *cells])
    return Table(["rows", "frozen, less nothing frozen", "topic accuracy", "sentiment macro recall", "stsb_test"], rows)


def short_freezing() -> Table:
    """Cost and result beside each other, with 1,000 rows."""
    cost = {row[0]: row[1:] for row in costs().pick(["frozen", "of nothing frozen", "memory it added (MB)"]).rows}
    words = {"nothing": "nothing", "the lower half": "the lower half", "the encoder": "the encoder"}
    words |= {freezing.OUTSIDE: "everything; logistic regression"}
    columns = ["frozen", "topic accuracy", "sentiment macro recall", "stsb_test"]
    reached = freezing_scenarios().pick(columns, lambda row: row[0] == "1,000" and row[1] in words)
    rows = [[words[name], *cost.get(name, ("", "")), *cells] for name, *cells in reached.rows]
    return Table(["frozen", "time a step", "MB", "topic", "sentiment", "stsb_test"], rows)


def near_and_far() -> Table:
    rows = []
    for size in freezing.SIZES:
        for scenario in freezing.SCENARIOS:
            cells, seeds = [], []
            for target, task in (("topic", "topic"), ("code", "package")):
                if found := frozen_results(target, scenario, size):
                    cells += [result(name, [f[name] for f in found]) for name in (task, "stsb_test")]
                    seeds.append(len(found))
            if len(seeds) == 2:  # of both targets
                rows.append([f"{size:,}", scenario, min(seeds), *cells])
    header = ["rows", "frozen", "seeds", "news (near): accuracy", "stsb_test", "code (far): accuracy", "stsb_test"]
    return Table(header, rows)


def near_and_far_differences() -> Table:
    rows, zero = [], np.zeros(SEEDS)
    for scenario in ("the encoder", freezing.OUTSIDE):
        lost = {}
        for target, task in (("topic", "topic"), ("code", "package")):
            found, nothing = ([f[task] for f in frozen_results(target, name, 1_000)] for name in (scenario, "nothing"))
            lost[target] = np.subtract(found, nothing)
        compared = [(lost["topic"], zero), (lost["code"], zero), (lost["code"], lost["topic"])]
        rows.append([scenario, *(difference("accuracy", *pair) for pair in compared)])
    return Table(["1,000 rows, frozen, less nothing frozen", "news (near)", "code (far)", "far less near"], rows)


def heads() -> Table:
    """What each kind of head on a frozen encoder reaches, and how far that is from logistic regression."""
    rows = []
    for size in (100, 1_000, 10_000):
        found = [one["reached"] for one in load_all(heads_of.result_path(size, seed) for seed in range(SEEDS))]
        for kind in found[0] if found else ():
            own, peers = ({task: [one[k][task] for one in found] for task in TASKS} for k in (kind, PEER))
            reached = [mean_and_spread(values) for values in own.values()]
            compared = kind != PEER and len(found) == SEEDS
            lost = [difference(task, own[task], peers[task]) if compared else "" for task in TASKS]
            rows.append([f"{size:,}", kind, len(found), *reached, *lost])
    header = ["rows", "head", "seeds", "topic accuracy", "sentiment macro recall"]
    return Table([*header, "topic, less regression", "sentiment, less regression"], rows)


def keeping_ways() -> Table:
    """What each way to keep similarity reaches, and what that is less the training that does nothing for it."""
    measures: Mapping[str, Callable[[Record], float]] = {
        "topic accuracy": lambda one: one["test"]["topic"]["accuracy"],
        "sentiment macro recall": lambda one: one["test"]["sentiment"]["macro_recall"],
        "stsb_test": lambda one: one["stsb_test"],
    }
    rows, nothing = [], {}
    for way in keeping.WAYS:
        found = load_all(keeping.result_path(way, seed) for seed in range(SEEDS))
        values = {name: [of(one) for one in found] for name, of in measures.items()}
        nothing = nothing or values
        lost = [""] * len(values)
        if values is not nothing and len(found) == len(nothing["stsb_test"]) == SEEDS:
            lost = [difference(name, values[name], nothing[name]) for name in measures]
        if found:
            rows.append([way, len(found), *(result(name, own) for name, own in values.items()), *lost])
    less = [f"{name}, less nothing" for name in ("topic", "sentiment", "stsb_test")]
    return Table(["way", "seeds", *measures, *less], rows)


def keeping_order() -> Table:
    """The ways from the one that keeps most of stsb_test down, each less the next."""
    kept = {
        way: [one["stsb_test"] for one in load_all(keeping.result_path(way, seed) for seed in range(SEEDS))]
        for way in keeping.WAYS
        if way != keeping.RANDOM  # which is no way to keep anything
    }
    order = sorted((way for way, values in kept.items() if len(values) == SEEDS), key=lambda way: -np.mean(kept[way]))
    return Table(
        ["stsb_test, seed by seed", "difference"],
        [[f"{way} less {lower}", difference("stsb_test", kept[way], kept[lower])] for way, lower in pairwise(order)],
    )


def growing_ways() -> Table:
    """The share right of the test rows of old, new and all labels when a label has been added: over the labels."""
    found = [one["reached"] for one in load_all(growing.result_path(new) for new in growing.LABELS)]
    names, rows = (growing.OLD, growing.NEW, growing.ALL), []
    for way in found[0]:
        of_names = [[one[way][name] for one in found] for name in names]
        rows.append([way, *(f"{np.mean(own):.3f} ({min(own):.3f} to {max(own):.3f})" for own in of_names)])
    return Table(["the new label is learned from", *names], rows)


def added_task() -> Table:
    rows = []
    for scenario in adding.SCENARIOS:
        found = load_all(adding.result_path(scenario, 1_000, seed) for seed in range(SEEDS))
        reached = {name: [f["reached"][name] for f in found] for name in (*TASKS, "stsb_test")}
        before = [f["sentiment_before"] for f in found]
        spread = [mean_and_spread(values) for values in (reached["topic"], before, reached["sentiment"])]
        change, kept = difference("sentiment", reached["sentiment"], before), result("stsb_test", reached["stsb_test"])
        rows.append([scenario, len(found), *spread, change, kept])
    header = ["frozen while topic is added", "seeds", "topic accuracy", "sentiment before", "after", "change"]
    return Table([*header, "stsb_test"], rows)
