"""The multi-task model: one shared encoder, a head for each task, trained together.

python task2.py                                          train and test it on the embedded data
python task2.py train FILE [FILE ...] --output DIR       train it on labelled texts
python task2.py evaluate FILE [FILE ...] --model DIR     measure it
python task2.py predict --model DIR TEXT [TEXT ...]      use it
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from common.checkpoint import weights_digest
from common.cli import ROOT, Interrupted, Parser, UserError, add_options, config_from, names, refuse_several, run
from common.data import SAMPLES, MultiTaskDataset, digest, read_labelled_rows, training_tasks
from common.devices import InferenceConfig, resolve_device, resolve_precision
from common.encoder import SHIPPED, Encoder, SentenceEncoder
from common.files import make_folder
from common.freezing import frozen_parts
from common.heads import MultiTaskModel
from common.losses import balanced_class_weights, complete_weights
from common.metrics import evaluate_tasks
from common.optim import STRATEGIES, learning_rates
from common.readers import STDIN, chunked, read_texts
from common.report import (
    confusion_figure,
    curves_figure,
    heading,
    save_figure,
    shorten,
    table,
    terminal_width,
    write_json,
    write_rows,
)
from common.trainer import MultiTaskTrainer, Progress, TrainingConfig, clear_run, refuse_existing

RUN = ROOT / "runs" / "task2"
CHUNK = 1024
SHIPPED_WORDS = "the shipped encoder"
SCRATCH_RATE, FINE_TUNING_RATE = 1e-4, 2e-5
EMBEDDED = TrainingConfig(epochs=5, learning_rate=1e-4, batch_tokens=1024)
EMBEDDED_FROM_SCRATCH = TrainingConfig(epochs=4, learning_rate=2e-4, batch_tokens=1024)


def build_parser() -> Parser:
    parser = Parser("task2.py", description="The multi-task model. Without a command: train it on the embedded data.")
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        dest="show_from_scratch",
        help="without a command: start from random weights, to see what the shipped encoder is worth",
    )
    commands = parser.add_subparsers(dest="command", parser_class=Parser)

    train = commands.add_parser("train", help="train on labelled texts: every column but `text` is a task")
    train.add_argument("files", nargs="+", metavar="file", help=".csv, .tsv or .jsonl; they may label different tasks")
    train.add_argument("--output", required=True, metavar="DIR", help="the folder for the trained model")
    train.add_argument("--dev", nargs="+", metavar="FILE", help="labelled texts to choose the best model by")
    train.add_argument("--tasks", type=names, metavar="A,B", help="the columns that are tasks (default: all but text)")
    train.add_argument(
        "--encoder", metavar="DIR", help="start from this encoder, a folder or hub name (default: the shipped one)"
    )
    train.add_argument("--from-scratch", action="store_true", help="start from random weights")
    train.add_argument(
        "--task-weight",
        action="append",
        type=task_weight,
        default=[],
        metavar="TASK=WEIGHT",
        help="a task's share of the loss (default: all alike, 1 in sum)",
    )
    train.add_argument(
        "--balance",
        default="fixed",
        choices=("fixed", "uncertainty"),
        help="task weights as given, or learned (default: fixed)",
    )
    train.add_argument(
        "--class-weight",
        default="none",
        choices=("none", "balanced"),
        help="balanced: rare labels weigh more (default: none)",
    )
    train.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="cut texts there (default: as the encoder does)"
    )
    train.add_argument(
        "--model", metavar="DIR", help="go on from this multi-task model: its encoder, and its heads beside new ones"
    )
    train.add_argument(
        "--freeze",
        action="append",
        default=[],
        metavar="WHAT",
        help="encoder, head:TASK, stages:A-B (0 is the embeddings), all or none; may be given again (default: none)",
    )
    train.add_argument(
        "--unfreeze",
        metavar="gradual[:EPOCHS]",
        type=unfreezing,
        help="the heads alone first, then a stage more every so many epochs from the top (default: all thaw by half)",
    )
    train.add_argument("--rates", default="uniform", metavar="STRATEGY", help=f"{STRATEGIES} (default: uniform)")
    train.add_argument("--resume", action="store_true", help="go on with the unfinished run in --output")
    train.add_argument("--overwrite", action="store_true", help="discard what --output holds")
    add_options(train, TrainingConfig, learning_rate=None)

    evaluate = commands.add_parser("evaluate", help="measure a model on labelled texts")
    evaluate.add_argument("files", nargs="+", metavar="file")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of tables")
    evaluate.add_argument("--model", metavar="DIR", help="a trained model's folder (default: runs/task2)")
    add_options(evaluate, InferenceConfig)

    predict = commands.add_parser("predict", help="classify texts")
    predict.add_argument("texts", nargs="*", metavar="text", help="texts to classify (none: --input or standard input)")
    predict.add_argument(
        "--input", metavar="FILE", help=".txt (a text a line), .csv, .tsv, .jsonl; - is standard input"
    )
    predict.add_argument("--column", default="text", help="the column to read from a table (default: text)")
    predict.add_argument("--format", default="table", choices=("table", "jsonl", "csv"), help="(default: table)")
    predict.add_argument("--explain", action="store_true", help="show which words each task's head looked at")
    predict.add_argument("--model", metavar="DIR", help="a trained model's folder (default: runs/task2)")
    add_options(predict, InferenceConfig)
    return parser


def task_weight(text: str) -> tuple[str, float]:
    """One `--task-weight TASK=WEIGHT`."""
    task, _, weight = text.rpartition("=")
    try:
        return task, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give it as TASK=WEIGHT, such as topic=0.7") from None


def unfreezing(text: str) -> float:
    """The epochs between two stages in `--unfreeze gradual[:EPOCHS]`; 0 where they are left to the script."""
    kind, _, epochs = text.partition(":")
    try:
        every = float(epochs) if epochs else 0.0
    except ValueError:
        every = -1.0
    if kind != "gradual" or not 0 <= every < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give it as gradual or gradual:EPOCHS, such as gradual:0.5")
    return every


def open_model(arguments: argparse.Namespace) -> tuple[MultiTaskModel, dict[str, Any]]:
    """The model that `--model` names, on its device, and the options to run it with."""
    config = config_from(arguments, InferenceConfig)
    if arguments.model is None and not (RUN / "config.json").is_file():
        raise UserError("no --model given and none in runs/task2 yet: `python task2.py` trains a first one there")
    model = MultiTaskModel.from_pretrained(arguments.model or RUN)
    return model, config.place(model)


def train(arguments: argparse.Namespace) -> None:
    """Train on the user's files; the best model on --dev (or the last) is in --output afterwards."""
    refuse_several(arguments, "--encoder", "--model", "--from-scratch")
    if arguments.learning_rate is None:
        arguments.learning_rate = SCRATCH_RATE if arguments.from_scratch else FINE_TUNING_RATE
    config, output = config_from(arguments, TrainingConfig), Path(arguments.output)
    rows = read_labelled_rows(arguments.files, arguments.tasks)
    labelled = training_tasks(rows, arguments.tasks)
    learned = arguments.balance == "uncertainty"
    if learned and arguments.task_weight:
        raise UserError("--balance uncertainty learns the weights of the tasks: leave --task-weight out")
    weights = None if learned else complete_weights(list(labelled), dict(arguments.task_weight))
    if arguments.patience and not arguments.dev:
        raise UserError("--patience waits for a gain on --dev: give it too")
    refuse_existing(output, arguments.resume, arguments.overwrite)
    set_seed(config.seed)
    model = starting_model(arguments, labelled)
    if arguments.max_length is not None:
        model.encoder.cut_at(arguments.max_length)
    data = MultiTaskDataset(rows, model.tasks, model.encoder.tokenizer)
    dev_rows = read_labelled_rows(arguments.dev, list(model.tasks)) if arguments.dev else None
    dev = MultiTaskDataset(dev_rows, model.tasks, model.encoder.tokenizer) if dev_rows else None
    frozen = frozen_parts(model, arguments.freeze)
    if arguments.unfreeze is not None and set(model.encoder.parts()) <= set(frozen):
        raise UserError("--unfreeze gradual thaws the encoder, and --freeze holds all of it: leave one out")
    if frozen == list(model.parts()):
        keep_as_it_is(model, arguments.model, dev, config, output)
        return
    rates = learning_rates(arguments.rates, model, config.learning_rate)
    start = "random weights" if arguments.from_scratch else arguments.encoder or arguments.model or SHIPPED_WORDS
    print(f"start: {start}; learning rate {config.learning_rate:g} ({arguments.rates}); seed {config.seed}")
    if frozen:
        print(f"frozen: {', '.join(frozen)}")
    class_weights = balanced_class_weights(data) if arguments.class_weight == "balanced" else None
    settings = ("encoder", "model", "from_scratch", "class_weight", "freeze", "unfreeze")
    described = {name.replace("_", "-"): vars(arguments)[name] for name in settings}
    described["rates"] = f"{arguments.rates} ({digest(rates)[:8]})"
    described["weights at the start"] = weights_digest(model)
    trainer = MultiTaskTrainer(
        model, data, config, output, dev, weights, class_weights, rates, frozen, arguments.unfreeze, described
    )
    for part, step in trainer.thaw.items():
        late = "" if step < trainer.total_steps else f", never: there are only {trainer.total_steps} steps"
        print(f"thaws at step {step}: {part}{late}")
    fit(trainer, arguments.resume)
    print(f"\n{output}: the model, metrics.json, history.csv, curves.png" + (", confusion.png" if dev else ""))


def keep_as_it_is(
    model: MultiTaskModel, start: str | None, dev: MultiTaskDataset | None, config: TrainingConfig, output: Path
) -> None:
    """What training comes to with everything frozen: the model is written, and measured on the dev rows.

    Raises:
        UserError: a head is new, so that nothing would ever have trained it.
    """
    learned = MultiTaskModel.from_pretrained(start).tasks if start else {}
    if new := [task for task in model.tasks if task not in learned]:
        raise UserError(
            f"--freeze all would leave the new head of {', '.join(new)} at random: name a trained model with --model, "
            "or freeze the encoder only"
        )
    make_folder(output)
    clear_run(output)
    model.save_pretrained(output)
    print(f"everything is frozen, so nothing is trained: {output} holds the model as it stands")
    if dev:
        device = resolve_device(config.device)
        results = evaluate_tasks(model.to(device), dev, precision=resolve_precision(config.precision, device))
        write_metrics(output, Progress(), "dev", results)
        print_results(results)


def starting_model(arguments: argparse.Namespace, tasks: Mapping[str, Sequence[str]]) -> MultiTaskModel:
    """The model that training starts from, with a head for each of the tasks."""
    if arguments.model:
        return MultiTaskModel.from_pretrained(arguments.model).with_tasks(tasks)
    return MultiTaskModel(starting_encoder(arguments.from_scratch, arguments.encoder), tasks)


def starting_encoder(from_scratch: bool, name: str | None = None) -> Encoder:
    """What training starts from: random weights, the encoder of that name, or the shipped one."""
    return SentenceEncoder() if from_scratch else SentenceEncoder.from_pretrained(name or SHIPPED)


def fit(trainer: MultiTaskTrainer, resume: bool = False) -> MultiTaskModel:
    """Train, then write and print what came of it; gives the best model."""
    data, output = trainer.data, trainer.output
    shares = trainer.objective.weights or dict.fromkeys(data.tasks, "learned")
    summary = [
        [task, data.labelled(task), shares.get(task, ""), shorten(", ".join(labels), 60)]
        for task, labels in data.tasks.items()
    ]
    print(table(["task", "labelled rows", "weight", "labels"], summary))
    progress = trainer.train(resume)
    write_rows(output / "history.csv", progress.history)
    save_figure(
        curves_figure(progress.history, [task for task in data.tasks if data.labelled(task)]), output / "curves.png"
    )
    model = MultiTaskModel.from_pretrained(output).to(trainer.accelerator.device)
    results = evaluate_tasks(model, trainer.dev, precision=trainer.precision) if trainer.dev else {}
    write_metrics(output, progress, "dev", results)
    trainer.finish()
    if results:
        print(f"\nbest model: step {progress.best['step']}, on the dev rows")
        print_results(results)
    return model


def write_metrics(output: Path, progress: Progress, part: str, results: Mapping[str, Any]) -> None:
    """Write `metrics.json` (how it was trained, and the results) and, with results, `confusion.png`."""
    write_json(
        output / "metrics.json",
        {**progress.run, "seconds": round(progress.seconds), "best": progress.best, part: results},
    )
    if results:
        save_figure(confusion_figure(results), output / "confusion.png")


def print_results(results: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each task."""
    header = ["task", "rows", "loss", "accuracy", "macro recall", "macro F1"]
    columns = ("rows", "loss", "accuracy", "macro_recall", "macro_f1")
    print(table(header, [[task, *(result[name] for name in columns)] for task, result in results.items()]))


def print_classes(results: Mapping[str, Mapping[str, Any]]) -> None:
    """For each task, its classes, and what they were taken for."""
    for task, result in results.items():
        labels = [shorten(label, 14) for label in result["classes"]]
        rows = [
            [label, row["rows"], row["precision"], row["recall"], row["f1"], *counts]
            for label, row, counts in zip(labels, result["classes"].values(), result["confusion"], strict=True)
        ]
        header = ["class", "rows", "precision", "recall", "F1", *(f"→ {label}" for label in labels)]
        print(f"\n{task} (right of F1: how many of the class's rows were taken for each class)")
        print(table(header, rows))


def evaluate(arguments: argparse.Namespace) -> None:
    """Print how a model does on labelled texts."""
    model, options = open_model(arguments)
    rows = read_labelled_rows(arguments.files, list(model.tasks))
    data = MultiTaskDataset(rows, model.tasks, model.encoder.tokenizer)
    results = evaluate_tasks(model, data, **options)
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
        return
    print_results(results)
    print_classes(results)


def predict(arguments: argparse.Namespace) -> None:
    """Print the label and the probabilities of each text, as they are made."""
    if arguments.explain and arguments.format == "csv":
        raise UserError("--explain is shown by --format table and jsonl; a CSV row has no place for it")
    if arguments.texts and arguments.input:
        raise UserError("give texts, or --input FILE, not both")
    texts = iter(arguments.texts) if arguments.texts else read_texts(arguments.input or STDIN, arguments.column)
    if not arguments.texts:
        texts = chain([next(texts)], texts)  # a wrong file is said before a model is loaded
    model, options = open_model(arguments)
    printers = {"table": print_table, "jsonl": print_jsonl, "csv": print_csv}
    printers[arguments.format](model, predictions(model, texts, arguments.explain, options))


def predictions(
    model: MultiTaskModel, texts: Iterator[str], explain: bool, options: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each text with its prediction, read and classified a chunk at a time."""
    for chunk in chunked(texts, CHUNK):
        yield from zip(chunk, model.predict(chunk, explain, **options), strict=True)


def print_table(model: MultiTaskModel, predicted: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """For people: a text, its label for each task with its probability, and (explained) the words looked at."""
    widths = {task: max(len(label) for label in [*labels, task]) for task, labels in model.tasks.items()}
    text_width = max(terminal_width() - sum(widths.values()) - 8 * len(widths), 24)
    print("  ".join(["text".ljust(text_width), *(task.ljust(width + 6) for task, width in widths.items())]).rstrip())
    for text, result in predicted:
        cells = [shorten(text, text_width).ljust(text_width)]
        for task, width in widths.items():
            label = result[task]["label"]
            cells.append(f"{label:<{width}} {result[task]['probabilities'][label]:>5.0%}")
        print("  ".join(cells))
        for task in widths:
            if "attention" in result[task]:
                words = " ".join(f"{w}({s:.0%})" if s >= 0.05 else w for w, s in result[task]["attention"])
                print(f"    {task}: {words}")


def print_jsonl(_: MultiTaskModel, predicted: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """For programs: a JSON object a line, the text beside what `predict` gives."""
    for text, result in predicted:
        print(json.dumps({"text": text, **result}, ensure_ascii=False))


def print_csv(model: MultiTaskModel, predicted: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """For programs: text, and for each task its label and every label's probability."""
    header = [n for task, labels in model.tasks.items() for n in (task, *(f"{task}: {label}" for label in labels))]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["text", *header])
    for text, result in predicted:
        cells = [c for r in result.values() for c in (r["label"], *(f"{p:.6f}" for p in r["probabilities"].values()))]
        writer.writerow([text, *cells])


def show(from_scratch: bool) -> None:
    """The whole of task 2 on the embedded data."""
    config = EMBEDDED_FROM_SCRATCH if from_scratch else EMBEDDED
    set_seed(config.seed)
    encoder = starting_encoder(from_scratch)
    parts = {name: read_labelled_rows([SAMPLES / f"{name}.csv"]) for name in ("train", "dev", "test")}
    tasks = training_tasks(parts["train"])
    data = {name: MultiTaskDataset(rows, tasks, encoder.tokenizer) for name, rows in parts.items()}
    heading(f"Training on the embedded data, from {'random weights' if from_scratch else 'the shipped encoder'}")
    weights = complete_weights(list(tasks), {})
    described = {"from-scratch": from_scratch}
    model = MultiTaskModel(encoder, tasks)
    trainer = MultiTaskTrainer(model, data["train"], config, RUN, data["dev"], weights, description=described)
    try:
        model = fit(trainer)
    except Interrupted:
        raise Interrupted("stopped; `python task2.py` begins anew") from None

    heading("Test")
    results = evaluate_tasks(model, data["test"])
    write_metrics(RUN, trainer.progress, "test", results)
    print_results(results)
    chance = ", ".join(f"{1 / len(labels):.3f} for {task}" for task, labels in tasks.items())
    print(f"Guessing would reach an accuracy of {chance}.")
    print_classes(results)

    heading("Sentences it has not seen")
    unseen = list(read_texts(SAMPLES / "unseen.txt"))
    print_table(model, predictions(model, iter(unseen), explain=False, options={}))

    heading("Written to runs/task2")
    print("metrics.json     the settings and the test results\nhistory.csv      losses and accuracies while training")
    print("curves.png       the same as curves\nconfusion.png    what each class of the test rows was taken for")
    print('the other files  the model: python task2.py predict "some text" uses it')


def main(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name; without one, show the whole of task 2."""
    parsed = build_parser().parse_args(arguments)
    commands = {"train": train, "evaluate": evaluate, "predict": predict}
    if parsed.command and parsed.show_from_scratch:
        raise UserError(f"put --from-scratch behind {parsed.command}, if it is meant for it")
    commands[parsed.command](parsed) if parsed.command else show(parsed.show_from_scratch)


if __name__ == "__main__":
    run(main, "task2.py")
