"""Layer-wise learning rates: a rate for each stage of the multi-task model, and what they change.

python task4.py                                            the plan, and one rate against layer-wise rates
python task4.py plan [--encoder NAME_OR_DIR]               the rates of any encoder, without training
python task4.py compare --data FILE --dev FILE             train with each strategy, and measure

python task4.py COMMAND --help                             the options of a command
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import ROOT, Config, above, at_least, interrupted_hint, names, only_help, option, run, run_command
from common.config import STRATEGIES, TASK_RATE, MultiTaskConfig
from common.errors import UserError

if not only_help(__name__):  # what follows takes seconds to load
    from common.comparison import Outcome, Setting, compare_strategies, random_pairs
    from common.files import refuse_no_folder, to_json
    from common.heads import MultiTaskModel
    from common.load import load_encoder
    from common.optim import layerwise_formulas, learning_rates
    from common.report import comparison_table, heading, moved_table, table, write_rows
    from common.rows import SAMPLES, read_labelled_rows, read_scored_pairs

RUN, COMPARISON = ROOT / "runs" / "task4", ROOT / "runs" / "comparison"
# The heads that a plan is shown for: the tasks of the sample data.
TASKS = {
    "topic": ["Technology", "Science", "Politics", "Entertainment", "Sports"],
    "sentiment": ["Negative", "Neutral", "Positive"],
}
ENCODER_HELP = "a folder or hub name (default: the shipped encoder)"


@dataclass(frozen=True, kw_only=True)
class Plan(Config):
    """Print the learning rate of every stage of an encoder with its heads, without training."""

    encoder: str | None = option(None, ENCODER_HELP, metavar="DIR")
    base_lr: float = option(TASK_RATE, "the base rate", check=above(0))
    rates: str = option("layerwise", STRATEGIES, metavar="STRATEGY")
    json: bool = option(False, "print JSON in place of a table")

    def run(self) -> None:
        lines = planned(MultiTaskModel(load_encoder(self.encoder), TASKS), self.rates, self.base_lr)
        print(to_json(lines) if self.json else plan_table(lines))


def planned(model: MultiTaskModel, strategy: str, base_lr: float) -> list[dict[str, Any]]:
    """Each stage with its number of parameters, factor and rate; layer-wise rates with the formula they follow."""
    formulas = layerwise_formulas(model) if strategy == "layerwise" else {}
    rates, stages = learning_rates(strategy, model, base_lr), model.named_stages()
    return [
        {
            "stage": name,
            "parameters": sum(parameter.numel() for parameter in stages[name].parameters()),
            "factor": rate / base_lr,
            "rate": rate,
            **({"formula": formulas[name]} if formulas else {}),
        }
        for name, rate in rates.items()
    ]


def plan_table(lines: Sequence[dict[str, Any]]) -> str:
    """The plan for people: a line for each stage, from the bottom up."""
    shown = [
        [f"{line['parameters']:,}", f"{line['factor']:.4f}", f"{line['rate']:.3g}", line.get("formula", "")]
        for line in lines
    ]
    return table(
        ["stage", "parameters", "factor", "rate", "formula"],
        [[line["stage"], *cells] for line, cells in zip(lines, shown, strict=True)],
    )


@dataclass(frozen=True, kw_only=True)
class Compare(MultiTaskConfig):
    """Train with each strategy from the same start, and measure. What is done already is kept."""

    data: tuple[str, ...] = option(help="labelled texts to train on", nargs="+", metavar="FILE", compared=False)
    dev: tuple[str, ...] = option(help="labelled texts to choose by", nargs="+", metavar="FILE", compared=False)
    test: tuple[str, ...] = option(
        (), "labelled texts to measure on (default: --dev)", nargs="+", metavar="FILE", compared=False
    )
    sts: str | None = option(None, "scored pairs: how much similarity is forgotten", metavar="FILE", compared=False)
    strategies: tuple[str, ...] = option(
        ("uniform", "layerwise"),
        f"comma-separated: {STRATEGIES}, gradual, or gradual+ any of them",
        type=names,
        metavar="A,B",
        shown="uniform,layerwise",
        compared=False,
    )
    text: str = option("text", "the column of texts", metavar="COLUMN", compared=False)
    seeds: int = option(1, "trainings with each strategy", check=at_least(1), compared=False)
    encoder: str | None = option(None, ENCODER_HELP, metavar="DIR", compared=False)
    tasks: tuple[str, ...] = option((), "the columns that are tasks (default: all but text)", type=names, metavar="A,B")
    output: str = option(str(COMPARISON), "for the results", metavar="DIR", shown="runs/comparison", compared=False)
    overwrite: bool = option(False, "train again what --output holds already", compared=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strategies:
            raise UserError(f"names none (there are: {STRATEGIES}, gradual, gradual+ any of them)", "strategies")

    def run(self) -> None:
        if self.rates != "uniform" or self.unfreeze is not None:
            raise UserError(
                "--strategies says at which rates to train and what to thaw: leave --rates and --unfreeze out"
            )
        refuse_no_folder(self.output)
        tasks = self.tasks or None
        train, dev, test = (
            read_labelled_rows(f, tasks, self.text) for f in (self.data, self.dev, self.test or self.dev)
        )
        pairs = read_scored_pairs(self.sts) if self.sts else random_pairs(dev.texts)
        setting = Setting(self.encoder, train, dev, test, pairs, self, tasks)
        strategies, seeds = list(dict.fromkeys(self.strategies)), range(self.seed, self.seed + self.seeds)
        with interrupted_hint("the same command (without --overwrite) goes on from there"):
            outcomes = compare_strategies(setting, strategies, seeds, Path(self.output), self.overwrite)
        show_outcomes(outcomes, Path(self.output))


def show_outcomes(outcomes: Sequence[Outcome], output: Path) -> None:
    """Print a comparison's tables, and write `comparison.csv`, `comparison.png` and `training.png`."""
    from common.figures import comparison_figure, save_figure, training_figure  # matplotlib loads slowly

    rows, stages = [outcome.flat() for outcome in outcomes], list(outcomes[0].moved)
    accuracies = [f"{task} accuracy" for task in outcomes[0].test]
    kept = ["similarity kept", *(["sts before", "sts after"] if outcomes[0].scored else [])]
    write_rows(output / "comparison.csv", rows)
    save_figure(comparison_figure(rows, [*accuracies, kept[-1]], stages), output / "comparison.png")
    save_figure(training_figure([asdict(outcome) for outcome in outcomes]), output / "training.png")
    heading("What came of it")
    print(comparison_table(rows, [*accuracies, *kept, "seconds"]))
    print("\nHow far each stage moved, as a share of its length at the start:")
    print(moved_table(rows, stages))


@dataclass(frozen=True, kw_only=True)
class Show(Config):
    """Show the plan, and train on the sample data with one rate for all and with layer-wise rates."""

    def run(self) -> None:
        from common.figures import rates_figure, save_figure

        config = MultiTaskConfig(epochs=3)
        lines = planned(MultiTaskModel(load_encoder(), TASKS), "layerwise", config.learning_rate)
        heading(f"The plan, for a base rate of {config.learning_rate:g}")
        print(plan_table(lines))
        rates = {line["stage"]: line["rate"] for line in lines}
        save_figure(rates_figure(rates, config.learning_rate), RUN / "learning_rates.png")

        heading("The same fine-tuning with one rate for all, and layer-wise")
        train, dev, test = (read_labelled_rows([SAMPLES / f"{part}.csv"]) for part in ("train", "dev", "test"))
        setting = Setting(None, train, dev, test, random_pairs(test.texts), config)
        with interrupted_hint("`python task4.py` begins anew"):
            outcomes = compare_strategies(setting, ["uniform", "layerwise"], [config.seed], RUN, overwrite=True)
        show_outcomes(outcomes, RUN)
        print("Similarity kept: how the similarities of 1,000 pairs of test texts rank before and after (Spearman).")

        heading("Written to runs/task4")
        print(
            "learning_rates.png  the plan\ncomparison.png      what each way reached, and how far it moved each stage"
        )
        print("training.png        the dev scores as each way trained, and the gradient norm by depth")
        print("comparison.csv      what comparison.png shows, as numbers")
        print("*/result.json       one training each: that, its dev scores and its gradients")


COMMANDS = {"plan": Plan, "compare": Compare}
main = partial(run_command, program="task4.py", show=Show, commands=COMMANDS, help=__doc__)

if __name__ == "__main__":
    run(main, "task4.py")
