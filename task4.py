"""Layer-wise learning rates: a rate for each part of the multi-task model, and what they change.

python task4.py                                            the plan, and one rate against layer-wise rates
python task4.py plan [--encoder NAME_OR_DIR]               the rates of any encoder, without training
python task4.py compare --data FILE --dev FILE             train with each strategy, and measure
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.cli import ROOT, Interrupted, Parser, UserError, add_options, config_from, names, run
from common.comparison import Outcome, Setting, compare_strategies, random_pairs
from common.data import SAMPLES, read_labelled_rows, read_scored_pairs
from common.encoder import SHIPPED, SentenceEncoder
from common.heads import MultiTaskModel
from common.optim import STRATEGIES, layerwise_formulas, learning_rates
from common.report import (
    comparison_figure,
    comparison_table,
    heading,
    moved_table,
    rates_figure,
    save_figure,
    table,
    training_figure,
    write_rows,
)
from common.trainer import TrainingConfig

RUN, COMPARISON = ROOT / "runs" / "task4", ROOT / "runs" / "comparison"
BASE_RATE = 2e-5
# The heads that a plan is shown for: the tasks of the embedded data.
TASKS = {
    "topic": ["Technology", "Science", "Politics", "Entertainment", "Sports"],
    "sentiment": ["Negative", "Neutral", "Positive"],
}
EMBEDDED = TrainingConfig(epochs=3, learning_rate=1e-4, batch_tokens=1024)


def build_parser() -> Parser:
    parser = Parser("task4.py", description="Layer-wise learning rates. Without a command: the plan, and what it does.")
    commands = parser.add_subparsers(dest="command", parser_class=Parser)

    plan = commands.add_parser("plan", help="the rate of every part of an encoder with its heads, without training")
    plan.add_argument("--encoder", metavar="DIR", help="a folder or hub name (default: the shipped encoder)")
    plan.add_argument("--base-lr", type=float, default=BASE_RATE, help="the base rate (default: %(default)g)")
    plan.add_argument("--rates", default="seed", metavar="STRATEGY", help=f"{STRATEGIES} (default: seed)")
    plan.add_argument("--json", action="store_true", help="print JSON in place of a table")

    compare = commands.add_parser("compare", help="train with each strategy from the same start, and measure")
    compare.add_argument("--data", nargs="+", required=True, metavar="FILE", help="labelled texts to train on")
    compare.add_argument("--dev", nargs="+", required=True, metavar="FILE", help="labelled texts to choose by")
    compare.add_argument("--test", nargs="+", metavar="FILE", help="labelled texts to measure on (default: --dev)")
    compare.add_argument("--sts", metavar="FILE", help="scored pairs: how much similarity is forgotten")
    compare.add_argument(
        "--strategies",
        default="uniform,seed",
        metavar="A,B",
        help=f"comma-separated: {STRATEGIES}, gradual, or gradual+ any of them (default: %(default)s)",
    )
    compare.add_argument("--seeds", type=int, default=1, help="trainings with each strategy (default: %(default)s)")
    compare.add_argument("--encoder", metavar="DIR", help="a folder or hub name (default: the shipped encoder)")
    compare.add_argument(
        "--tasks", type=names, metavar="A,B", help="the columns that are tasks (default: all but text)"
    )
    compare.add_argument(
        "--output", default=str(COMPARISON), metavar="DIR", help="for the results (default: runs/comparison)"
    )
    compare.add_argument("--overwrite", action="store_true", help="train again what --output holds already")
    add_options(compare, TrainingConfig, learning_rate=BASE_RATE)
    return parser


def plan(arguments: argparse.Namespace) -> None:
    """Print the learning rate of every part, bottom up."""
    if not 0 < arguments.base_lr < float("inf"):
        raise UserError(f"--base-lr {arguments.base_lr}: must be above 0")
    model = MultiTaskModel(SentenceEncoder.from_pretrained(arguments.encoder or SHIPPED), TASKS)
    lines = planned(model, arguments.rates, arguments.base_lr)
    print(json.dumps(lines, indent=2) if arguments.json else plan_table(lines))


def planned(model: MultiTaskModel, strategy: str, base_lr: float) -> list[dict[str, Any]]:
    """Each part with its number of parameters, factor and rate, and for the seed's rates the formula they follow."""
    formulas = layerwise_formulas(model) if strategy == "seed" else {}
    rates, parts = learning_rates(strategy, model, base_lr), model.parts()
    return [
        {
            "part": name,
            "parameters": sum(parameter.numel() for parameter in parts[name].parameters()),
            "factor": rate / base_lr,
            "rate": rate,
            **({"formula": formulas[name]} if formulas else {}),
        }
        for name, rate in rates.items()
    ]


def plan_table(lines: Sequence[dict[str, Any]]) -> str:
    """The plan for people: a line for each part, from the bottom up."""
    shown = [
        [f"{line['parameters']:,}", f"{line['factor']:.4f}", f"{line['rate']:.3g}", line.get("formula", "")]
        for line in lines
    ]
    return table(
        ["part", "parameters", "factor", "rate", "formula"],
        [[line["part"], *cells] for line, cells in zip(lines, shown, strict=True)],
    )


def compare(arguments: argparse.Namespace) -> None:
    """Train with each strategy and seed (what is done already is kept), and show what came of it."""
    config = config_from(arguments, TrainingConfig)
    if arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: must be 1 or more")
    strategies = list(dict.fromkeys(names(arguments.strategies)))
    if not strategies:
        raise UserError(f"--strategies names none (there are: {STRATEGIES}, gradual, gradual+ any of them)")
    train, dev, test = (
        read_labelled_rows(files, arguments.tasks)
        for files in (arguments.data, arguments.dev, arguments.test or arguments.dev)
    )
    pairs = read_scored_pairs(arguments.sts) if arguments.sts else random_pairs(dev.texts)
    setting = Setting(arguments.encoder, train, dev, test, pairs, config, arguments.tasks)
    seeds = range(config.seed, config.seed + arguments.seeds)
    try:
        outcomes = compare_strategies(setting, strategies, seeds, Path(arguments.output), arguments.overwrite)
    except Interrupted:
        raise Interrupted("stopped; the same command (without --overwrite) goes on from there") from None
    show_outcomes(outcomes, Path(arguments.output))


def show_outcomes(outcomes: Sequence[Outcome], output: Path) -> None:
    """Print a comparison's tables, and write `comparison.csv`, `comparison.png` and `training.png`."""
    rows, parts = [outcome.flat() for outcome in outcomes], list(outcomes[0].moved)
    accuracies = [f"{task} accuracy" for task in outcomes[0].test]
    kept = ["similarity kept", *(["sts before", "sts after"] if outcomes[0].scored else [])]
    write_rows(output / "comparison.csv", rows)
    save_figure(comparison_figure(rows, [*accuracies, kept[-1]], parts), output / "comparison.png")
    first_seed = {outcome.strategy: asdict(outcome) for outcome in outcomes if outcome.seed == outcomes[0].seed}
    save_figure(training_figure(first_seed), output / "training.png")
    heading("What came of it")
    print(comparison_table(rows, [*accuracies, *kept, "seconds"]))
    print("\nHow far each part moved, as a share of its length at the start:")
    print(moved_table(rows, parts))


def show() -> None:
    """The whole of task 4 on the embedded data."""
    lines = planned(MultiTaskModel(SentenceEncoder.from_pretrained(SHIPPED), TASKS), "seed", EMBEDDED.learning_rate)
    heading(f"The plan, for a base rate of {EMBEDDED.learning_rate:g}")
    print(plan_table(lines))
    rates = {line["part"]: line["rate"] for line in lines}
    save_figure(rates_figure(rates, EMBEDDED.learning_rate), RUN / "learning_rates.png")
    train, dev, test = (read_labelled_rows([SAMPLES / f"{part}.csv"]) for part in ("train", "dev", "test"))
    setting = Setting(None, train, dev, test, random_pairs(test.texts), EMBEDDED)
    heading("The same fine-tuning with one rate for all, and layer-wise")
    try:
        outcomes = compare_strategies(setting, ["uniform", "seed"], [EMBEDDED.seed], RUN, overwrite=True)
    except Interrupted:
        raise Interrupted("stopped; `python task4.py` begins anew") from None
    show_outcomes(outcomes, RUN)
    print("Similarity kept: how the similarities of 1,000 pairs of test texts rank before and after (Spearman).")

    heading("Written to runs/task4")
    print("learning_rates.png  the plan\ncomparison.png      what each way reached, and how far it moved each part")
    print("training.png        the dev scores as each way trained, and the gradient of every part")
    print("comparison.csv      what comparison.png shows, as numbers")
    print("*/result.json       one training each: that, its dev scores and its gradients")


def main(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name; without one, show the whole of task 4."""
    parsed = build_parser().parse_args(arguments)
    commands = {"plan": plan, "compare": compare}
    commands[parsed.command](parsed) if parsed.command else show()


if __name__ == "__main__":
    run(main, "task4.py")
