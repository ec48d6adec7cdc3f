"""The multi-task model: one shared encoder, a head for each task, trained together.

python task2.py                                          train and test it on the sample data
python task2.py --from-scratch                           the same from random weights
python task2.py train FILE [FILE ...] --output DIR       train it on labelled texts
python task2.py evaluate FILE [FILE ...] --model DIR     measure it
python task2.py predict --model DIR TEXT [TEXT ...]      use it

python task2.py COMMAND --help                           the options of a command
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import (
    ROOT,
    Config,
    above,
    interrupted_hint,
    is_main_process,
    names,
    only_help,
    option,
    run,
    run_command,
    within,
)
from common.config import (
    HEAD_KINDS,
    SHIPPED_WORDS,
    TASK_RATE,
    TASK_SCRATCH_RATE,
    InferenceConfig,
    MultiTaskConfig,
)
from common.errors import UserError

if not only_help(__name__):  # what follows takes seconds to load
    from accelerate.utils import set_seed

    from common.checkpoint import CHECKPOINT, START, refuse_existing, remove_leftovers, same_folder
    from common.data import MultiTaskDataset
    from common.devices import place, resolve_device, without_gradients
    from common.encoder import SentenceEncoder
    from common.exact import begin_fitted, can_be_fitted, fit_linear_heads, to_fit
    from common.files import to_json, write_json
    from common.folders import TASKS
    from common.freezing import is_frozen
    from common.heads import MultiTaskModel
    from common.load import load_encoder
    from common.metrics import calibrate, judge_tasks
    from common.multitask import MultiTaskTrainer, learning, refuse_untrainable
    from common.objective import RESULT_FILES
    from common.optim import describe
    from common.predictions import predictions, print_csv, print_jsonl, print_table
    from common.readers import STDIN, columns_of, read_texts_and_rows
    from common.report import heading, parts_table, print_classes, results_table, shorten, table, write_rows
    from common.rows import SAMPLES, LabelledRows, read_labelled_rows, training_tasks

Parts = Mapping[str, "MultiTaskDataset | None"]  # "dev" and "test"
Results = dict[str, dict[str, dict[str, Any]]]  # of these to what `judge_tasks` gives
RUN = ROOT / "runs" / "task2"
NONE = ("none",)
HELD_OUT, FEWEST_TO_SPLIT = 10, 100  # with fewer rows, too few would be held out to choose by
# The options of training that count where no head is trained, and where linear heads are fitted.
STANDING = ("freeze", "seed", "batch_tokens", "precision", "device")
FITTED_BY = (*STANDING, "class_weight")
FEW = 300  # rows; with 100 of a task training everything was ahead on all of four tasks, with 1,000 on one
MODEL_HELP = "a trained model's folder (default: runs/task2)"


@dataclass(frozen=True, kw_only=True)
class Train(MultiTaskConfig):
    """Train on labelled texts: every column but the one of texts is a task. The files may label different tasks."""

    files: tuple[str, ...] = option(
        help=".csv, .tsv or .jsonl", positional=True, compared=False, nargs="+", metavar="FILE"
    )
    output: str = option(help="the folder for the trained model", compared=False, metavar="DIR")
    text: str = option("text", "the column of texts", compared=False, metavar="COLUMN")
    tasks: tuple[str, ...] = option((), "the columns that are tasks (default: all others)", type=names, metavar="A,B")
    dev: tuple[str, ...] = option(
        (),
        "labelled texts to choose the best model by; none trains on all rows and keeps the last model "
        f"(default: one row in {HELD_OUT}, held out of the training, from {FEWEST_TO_SPLIT} rows on)",
        compared=False,
        nargs="+",
        metavar="FILE",
    )
    test: tuple[str, ...] = option(
        (), "labelled texts to measure the best model on, once", compared=False, nargs="+", metavar="FILE"
    )
    encoder: str | None = option(None, "start from this encoder (default: the shipped one)", metavar="DIR")
    model: str | None = option(
        None, "go on from this multi-task model: its encoder, and its heads beside new ones", metavar="DIR"
    )
    from_scratch: bool = option(False, "start from random weights")
    head: str | None = option(
        None,
        "attention, or linear: norm and classifier alone (default: attention, or what --model has)",
        choices=HEAD_KINDS,
    )
    dropout: float | None = option(
        None, "while training (default: the encoder's own, and 0.1 in the heads)", check=within(0, 1), metavar="SHARE"
    )
    max_length: int | None = option(None, "cut texts there (default: as the encoder does)", metavar="TOKENS")
    resume: bool = option(False, "go on with the unfinished run in --output", compared=False)
    overwrite: bool = option(False, "replace what --output holds", compared=False)
    learning_rate: float | None = option(
        None,
        f"the base learning rate (default: {TASK_RATE:g}; from random weights {TASK_SCRATCH_RATE:g})",
        check=above(0),
    )

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", task_rate(self.from_scratch))
        super().__post_init__()
        starts = {"--encoder": self.encoder, "--model": self.model, "--from-scratch": self.from_scratch}
        if len(given := [name for name, value in starts.items() if value]) > 1:
            raise UserError(f"{' and '.join(given)} each say what to start from: choose one")
        if set(NONE) < set(self.dev):
            raise UserError("--dev none stands alone: name the files to train on before it")

    def run(self) -> None:
        rows = read_labelled_rows(self.files, self.tasks or None, self.text)
        refuse_existing(self.output, self.resume, self.overwrite)
        set_seed(self.seed)
        model = self.starting_model(rows)
        if self.max_length is not None:
            model.encoder.cut_at(self.max_length)
        if self.dropout is not None:
            model.set_dropout(self.dropout)
        model.freeze(*self.freeze)
        if self.from_scratch and model.encoder_is_frozen:
            raise UserError("freezes an encoder of random weights, which would stay random", "freeze")
        all_frozen = all(map(is_frozen, model.named_stages().values())) and not model.new | model.grown
        rows, dev_rows = self.dev_rows(rows, list(model.tasks), splits=not all_frozen)
        test_rows = read_labelled_rows(self.test, list(model.tasks), self.text) if self.test else None
        data, dev, test = (model.dataset(part) if part else None for part in (rows, dev_rows, test_rows))
        if all_frozen:
            self.refuse_idle("where nothing is trained", STANDING)
            print("everything is frozen, so nothing is trained: the model stays as it stands")
            self.write(model, {"dev": dev, "test": test})
        elif can_be_fitted(model, data):
            self.fit_exactly(model, data, {"dev": dev, "test": test})
        else:
            self.train(model, data, dev, test)

    def train(
        self, model: MultiTaskModel, data: MultiTaskDataset, dev: MultiTaskDataset | None, test: MultiTaskDataset | None
    ) -> None:
        """Say what is to be trained and how, and train it."""
        trainer = MultiTaskTrainer(model, data, self, output=self.output, dev=dev)
        for task in learning(model, data):
            if dev and not dev.labelled(task):
                print(f"{task}: no dev row has a label, so that it plays no part in choosing the best model")
            if lost := [label for i, label in enumerate(model.tasks[task]) if i not in data.classes[task]]:
                print(f"{task}: no row to train on has {shorten(', '.join(lost), 60)}, which may be unlearned")
        if same_folder(self.model or self.encoder, self.output):
            if self.keep_similarity:
                raise UserError("--keep-similarity holds on to the start, which --output would replace")
            del trainer.objective.contents[START]  # this run's own saves replace them
        start = "random weights" if self.from_scratch else self.encoder or self.model or SHIPPED_WORDS
        print(f"start: {start}; learning rate {self.learning_rate:g} ({self.rates}); seed {self.seed}")
        if fitted := begin_fitted(model, data):
            print(f"heads that begin as logistic regression on these rows: {', '.join(fitted)}")
        print(parts_table(describe(model, trainer.objective.rates)))
        total = self.total_steps(len(data))
        for stage, step in trainer.objective.thaw.items():
            late = "" if step < total else f", never: there are only {total} steps"
            print(f"thaws at step {step}: {stage}{late}")
        with interrupted_hint("the same command with --resume goes on from there"):
            fit(trainer, test, self.resume, self.overwrite)
        confusion = ", confusion.png" if dev or test else ""
        print(f"\n{self.output}: the model, metrics.json, history.csv, curves.png{confusion}")

    def dev_rows(
        self, rows: LabelledRows, tasks: Sequence[str], splits: bool
    ) -> tuple[LabelledRows, LabelledRows | None]:
        """The rows to train on and the dev rows: those of --dev, or, where it `splits`, some held out of the others."""
        if self.dev and self.dev != NONE:
            return rows, read_labelled_rows(self.dev, tasks, self.text)
        if not splits:
            return rows, None
        left, held_out = rows.hold_out(HELD_OUT, self.seed)
        if self.dev == NONE:
            why = ""
        elif len(rows.texts) < FEWEST_TO_SPLIT:
            why = f", for there are fewer than {FEWEST_TO_SPLIT} rows"
        elif not held_out.texts:
            why = ", for no label has a row to spare"
        else:
            print(f"dev rows: {len(held_out.texts)} held out, {len(left.texts)} left to train on (--dev none: all)")
            return left, held_out
        print(f"dev rows: none{why}; all {len(rows.texts)} are trained on, and the last model is kept")
        return rows, None

    def starting_model(self, rows: LabelledRows) -> MultiTaskModel:
        """The model that training starts from, with a head for each of the tasks and all their labels."""
        if not self.model:
            tasks = training_tasks(rows, self.tasks)
            encoder = SentenceEncoder() if self.from_scratch else load_encoder(self.encoder)
            return MultiTaskModel(encoder, tasks, kind=self.head or HEAD_KINDS[0])
        trained = MultiTaskModel.from_pretrained(self.model)
        if self.head and self.head != trained.kind:
            raise UserError(f"is {self.head}, but the heads of {self.model} are {trained.kind}", "head")
        tasks = training_tasks(rows, self.tasks, trained.tasks)
        for task, labels in trained.tasks.items():
            if new := [label for label in tasks.get(task, []) if label not in labels]:
                print(f"new labels: {', '.join(new)}, beside the {len(labels)} that {task} has learned")
        return trained.with_tasks(tasks)

    def fit_exactly(self, model: MultiTaskModel, data: MultiTaskDataset, asked: Parts) -> None:
        """Fit linear heads on a frozen encoder, which takes no training loop."""
        refuse_untrainable(model, data)
        self.refuse_idle("where linear heads are fitted at once", FITTED_BY)
        if known := [task for task in to_fit(model, data) if task not in model.new]:
            print(f"the heads of {', '.join(known)} are fitted anew, from these rows alone")
        print("linear heads on a frozen encoder are fitted at once: rates, steps and epochs play no part")
        if len(data) < FEW:
            print("with few rows training everything did better in our trials: it fits the embeddings to the labels")
        print(tasks_table(data))
        model.to(resolve_device(self.device))
        strengths = fit_linear_heads(model, data, asked["dev"], self.class_weight, **self.options)
        print("C of the logistic regression: " + ", ".join(f"{c:g} for {task}" for task, c in strengths.items()))
        if asked["dev"]:
            calibrate(model, asked["dev"], **self.options)
        self.write(model, asked, strengths=strengths)

    def refuse_idle(self, where: str, used: Sequence[str]) -> None:
        """UserError where an option of training is given that is not among those `used`."""
        rate = task_rate(self.from_scratch)
        for name in ("resume", "dropout", *(field.name for field in fields(MultiTaskConfig))):
            default = rate if name == "learning_rate" else getattr(type(self), name)
            if name not in used and getattr(self, name) != default:
                raise UserError(f"plays no part {where}: leave it out", name)

    def write(self, model: MultiTaskModel, asked: Parts, **about: Any) -> None:
        """Write and measure a model that no training loop has written."""
        results = judge_parts(model.to(resolve_device(self.device)), asked, self.options)
        if is_main_process():
            model.save_pretrained(self.output)
            if self.overwrite:
                remove_leftovers(self.output, (*RESULT_FILES, CHECKPOINT))
            write_results(Path(self.output), {"command": asdict(self), **about, **results}, results)
        print_parts(results)
        print(f"\n{self.output}: the model, metrics.json{', confusion.png' if results else ''}")

    @property
    def options(self) -> dict[str, Any]:
        """How to run a model outside the training loop."""
        return without_gradients(self, resolve_device(self.device))


def task_rate(from_scratch: bool) -> float:
    """The default base learning rate."""
    return TASK_SCRATCH_RATE if from_scratch else TASK_RATE


def fit(
    trainer: MultiTaskTrainer, test: MultiTaskDataset | None = None, resume: bool = False, overwrite: bool = False
) -> tuple[MultiTaskModel, Results]:
    """Train, then write and print what came of it; gives the best model and how it does."""
    from common.figures import curves_figure, save_figure  # matplotlib loads slowly

    objective, output = trainer.objective, trainer.output
    data = objective.data
    print(tasks_table(data, objective.weights))
    progress = trainer.train(resume, overwrite)
    model = trainer.best_model()
    results = judge_parts(model, {"dev": objective.dev, "test": test}, trainer.options)
    if is_main_process():
        write_rows(output / "history.csv", progress.history)
        learned = [task for task in data.tasks if data.labelled(task)]
        save_figure(curves_figure(progress.history, learned), output / "curves.png")
        write_results(output, training_record(trainer, **results), results)
    trainer.finish()
    if progress.best:
        print(f"\nbest model: step {progress.best['step']}, by its mean macro F1 on the dev rows")
    print_parts(results)
    return model, results


def tasks_table(data: MultiTaskDataset, weights: Mapping[str, float] | None = None) -> str:
    """What is learned: each task's labelled rows, its weight where there is one, and how many rows each label has."""
    lines = []
    for task, labels in data.tasks.items():
        counts = ", ".join(f"{label} {data.classes[task].count(i)}" for i, label in enumerate(labels))
        lines.append([task, data.labelled(task), *([weights[task]] if weights else []), shorten(counts, 60)])
    return table(["task", "labelled rows", *(["weight"] if weights else []), "rows of each label"], lines)


def judge_parts(model: MultiTaskModel, asked: Parts, options: Mapping[str, Any]) -> Results:
    """How a model does on each part that there is."""
    return {part: judge_tasks(model, data, **options) for part, data in asked.items() if data}


def print_parts(results: Results) -> None:
    """Print the results of each part."""
    for part, found in results.items():
        chosen = " (the model was chosen by them, so that test rows judge it more fairly)" if part == "dev" else ""
        print(f"\non the {part} rows{chosen}\n{results_table(found)}")


def training_record(trainer: MultiTaskTrainer, **results: Mapping[str, Any]) -> dict[str, Any]:
    """What `metrics.json` says of a training: its options, what it stood on, how long it took, the results."""
    progress = trainer.progress
    took = {"seconds": round(progress.seconds), "best": progress.best}
    return {"command": asdict(trainer.config), **progress.run, **took, **results}


def write_results(output: Path, record: Mapping[str, Any], results: Results) -> None:
    """Write `metrics.json` and, with results, `confusion.png`: of the test rows where there are any."""
    from common.figures import confusion_figure, save_figure

    write_json(output / "metrics.json", record)
    if found := results.get("test") or results.get("dev"):
        save_figure(confusion_figure(found), output / "confusion.png")


def open_model(config: InferenceConfig, folder: str | None) -> tuple[MultiTaskModel, dict[str, Any]]:
    """The model in a folder, on its device, and the options to run it with."""
    if folder is None and not (RUN / "config.json").is_file():
        raise UserError("no --model given and none in runs/task2 yet: `python task2.py` trains a first one there")
    if folder and Path(folder).is_dir() and not (Path(folder) / TASKS).is_file():
        raise UserError(f"{folder}: no multi-task model there (no {TASKS}); `task2.py train` makes one")
    model = MultiTaskModel.from_pretrained(folder or RUN)
    return model, place(model, config)


@dataclass(frozen=True, kw_only=True)
class Evaluate(InferenceConfig):
    """Measure a model on labelled texts."""

    files: tuple[str, ...] = option(help="labelled texts", positional=True, nargs="+", metavar="FILE")
    text: str = option("text", "the column of texts", metavar="COLUMN")
    json: bool = option(False, "print JSON in place of tables")
    model: str | None = option(None, MODEL_HELP, metavar="DIR")

    def run(self) -> None:
        model, options = open_model(self, self.model)
        rows = read_labelled_rows(self.files, list(model.tasks), self.text)
        results = judge_tasks(model, model.dataset(rows), **options)
        if self.json:
            print(to_json(results))
            return
        print(results_table(results))
        print_classes(results)


@dataclass(frozen=True, kw_only=True)
class Predict(InferenceConfig):
    """Classify texts."""

    texts: tuple[str, ...] = option(
        (), "texts to classify (none: --input or standard input)", positional=True, nargs="*", metavar="TEXT"
    )
    input: str | None = option(None, ".txt (a text a line), .csv, .tsv, .jsonl; - is standard input", metavar="FILE")
    text: str = option("text", "the column of texts in a table", metavar="COLUMN")
    format: str = option(
        "table",
        "of the output; jsonl and csv keep all columns of a table, as text, and add predicted TASK",
        choices=("table", "jsonl", "csv"),
    )
    probabilities: bool = option(False, "in CSV, a column for every label's probability")
    explain: bool = option(False, "show which words each task's head attended to")
    model: str | None = option(None, MODEL_HELP, metavar="DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explain and self.format == "csv":
            raise UserError("--explain is shown by --format table and jsonl; a CSV row has no place for it")
        if self.probabilities and self.format != "csv":
            raise UserError("--probabilities is for --format csv; jsonl has them all, the table has the label's own")
        if self.texts and self.input:
            raise UserError("give texts, or --input FILE, not both")
        if self.texts and self.text != "text":
            raise UserError("names a column of --input: texts have none", "text")
        for number, text in enumerate(self.texts, 1):
            if text.encode(errors="replace").decode() != text:
                raise UserError(f"text {number} is not UTF-8: {text!a}")

    def run(self) -> None:
        asked, path = ((text, {"text": text}) for text in self.texts), self.input or STDIN
        columns = ["text"] if path == STDIN else columns_of(path)
        if not self.texts:
            if path != STDIN:
                deque(read_texts_and_rows(path, self.text), maxlen=0)  # a wrong row is said before any is written
            asked = read_texts_and_rows(path, self.text)
        model, options = open_model(self, self.model)
        if self.explain and model.kind == "linear":
            raise UserError("linear heads weigh all words alike: attention heads have words to show", "explain")
        printers = {
            "table": print_table,
            "jsonl": partial(print_jsonl, columns=columns),
            "csv": partial(print_csv, columns=columns, every=self.probabilities),
        }
        printers[self.format](model, predictions(model, asked, explain=self.explain, **options))


@dataclass(frozen=True, kw_only=True)
class Show(Config):
    """Train and test the multi-task model on the sample data."""

    from_scratch: bool = option(False, "start from random weights, to see what the shipped encoder is worth")

    def run(self) -> None:
        config = MultiTaskConfig(learning_rate=task_rate(self.from_scratch))
        set_seed(config.seed)
        encoder = SentenceEncoder() if self.from_scratch else load_encoder()
        parts = [read_labelled_rows([SAMPLES / f"{name}.csv"]) for name in ("train", "dev", "test")]
        model = MultiTaskModel(encoder, training_tasks(parts[0]))
        train, dev, test = (model.dataset(rows) for rows in parts)
        heading(f"Training on the sample data, from {'random weights' if self.from_scratch else SHIPPED_WORDS}")
        trainer = MultiTaskTrainer(model, train, config, output=RUN, dev=dev)
        with interrupted_hint("`python task2.py` begins anew"):
            model, results = fit(trainer, test, overwrite=True)
        print_classes(results["test"])

        heading("Sentences it has not seen")
        print_table(model, predictions(model, read_texts_and_rows(SAMPLES / "unseen.txt")))

        heading("Written to runs/task2")
        print(
            "metrics.json     the settings and the test results\nhistory.csv      losses and accuracies while training"
        )
        print("curves.png       the same as curves\nconfusion.png    what each class of the test rows was taken for")
        print('the other files  the model: python task2.py predict "some text" uses it')


COMMANDS = {"train": Train, "evaluate": Evaluate, "predict": Predict}
main = partial(run_command, program="task2.py", show=Show, commands=COMMANDS, help=__doc__)

if __name__ == "__main__":
    run(main, "task2.py")
