"""The sentence encoder: text in, sentence embeddings out.

python task1.py                                        show what it does, on sample sentences
python task1.py embed FILE --output FILE.npy           embed a file of sentences
python task1.py train FILE [FILE ...] --output DIR     train it on pairs, scored pairs or plain sentences
python task1.py evaluate FILE [--model DIR]            measure it on scored pairs
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from common.cli import ROOT, Interrupted, Parser, UserError, add_options, config_from, progress_bar, run
from common.data import SAMPLES, SentenceDataset, TrainingRows, digest, read_scored_pairs, read_training_rows
from common.devices import InferenceConfig, resolve_device
from common.distillation import DistillationObjective, random_projection, start_from_teacher
from common.encoder import Encoder, SentenceEncoder
from common.files import ArrayWriter, atomic_file
from common.losses import PairObjective
from common.metrics import bootstrap_interval, pair_similarities, pearson, spearman
from common.readers import chunked, read_texts
from common.report import (
    heading,
    map_figure,
    save_figure,
    shorten,
    similarity_figure,
    table,
    terminal_width,
    write_json,
)
from common.trainer import Progress, Trainer, TrainingConfig, refuse_existing

RUN = ROOT / "runs" / "task1"
CHUNK = 4096
SCRATCH_RATE, FINE_TUNING_RATE = 1e-4, 2e-5
SHORT_TRAINING = TrainingConfig(epochs=2, learning_rate=3e-4, batch_tokens=700)
SHORT_TRAINING_ROWS = 96


def build_parser() -> Parser:
    parser = Parser("task1.py", description="The sentence encoder. Without a command: show what it does.")
    commands = parser.add_subparsers(dest="command", parser_class=Parser)

    embed = commands.add_parser("embed", help="embed a file of sentences")
    embed.add_argument("file", help=".txt (a sentence a line), .csv, .tsv, .jsonl, any with .gz; - is standard input")
    embed.add_argument("--output", required=True, metavar="FILE.npy", help="the (sentences, dim) array to write")
    embed.add_argument("--column", default="text", help="the column to read from a table (default: text)")
    embed.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the array (float32)")
    embed.add_argument("--model", metavar="DIR", help="an encoder's folder or hub name (default: runs/task1)")
    add_options(embed, InferenceConfig)

    evaluate = commands.add_parser("evaluate", help="measure an encoder on scored pairs")
    evaluate.add_argument("file", help="a table with sentence1, sentence2 and score (or near_miss)")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of a table")
    evaluate.add_argument("--model", metavar="DIR", help="an encoder's folder or hub name (default: runs/task1)")
    add_options(evaluate, InferenceConfig)

    train = commands.add_parser(
        "train",
        help="train an encoder; the columns of the files choose how",
        description="Columns sentence1, sentence2: each finds its partner in the batch (near_miss: harder). score: "
        "more similar pairs rank higher. A .txt or text column: dropout as the only noise, or, with "
        "--teacher, distillation.",
    )
    train.add_argument("files", nargs="+", metavar="file", help="training files, all with the same columns")
    train.add_argument("--output", required=True, metavar="DIR", help="the folder for the trained encoder")
    train.add_argument("--dev", metavar="FILE", help="scored pairs; the model that ranks them best is kept")
    train.add_argument("--model", metavar="DIR", help="start from this encoder (default: random weights)")
    train.add_argument("--teacher", metavar="DIR", help="learn this model's embeddings (a folder or hub name)")
    train.add_argument(
        "--no-teacher-embeddings",
        action="store_true",
        help="with --teacher and random weights: do not start from the teacher's token embeddings",
    )
    train.add_argument("--column", default="text", help="the column of plain sentences (default: text)")
    train.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="cut texts there (default: as the encoder does)"
    )
    train.add_argument("--resume", action="store_true", help="go on with the unfinished run in --output")
    train.add_argument("--overwrite", action="store_true", help="discard what --output holds")
    add_options(train, TrainingConfig, learning_rate=None)
    return parser


def open_encoder(arguments: argparse.Namespace) -> tuple[Encoder, dict[str, Any]]:
    """The encoder that `--model` names, on its device, and the options to run it with."""
    config = config_from(arguments, InferenceConfig)
    if arguments.model is None and not (RUN / "config.json").is_file():
        raise UserError("no --model given and none in runs/task1 yet: `python task1.py` trains a first one there")
    encoder = SentenceEncoder.from_pretrained(arguments.model or RUN)
    return encoder, config.place(encoder)


def embed(arguments: argparse.Namespace) -> None:
    """Stream a file's sentences into an array file, in input order."""
    texts = read_texts(arguments.file, arguments.column)
    first = [next(texts)]  # a wrong file is said before a model is loaded
    encoder, options = open_encoder(arguments)
    with atomic_file(arguments.output) as temporary:
        writer = ArrayWriter(temporary, encoder.dim, arguments.dtype)
        with progress_bar(None, " sentences", "embedding") as bar:
            for block in encoder.encode_stream(chunked(chain(first, texts), CHUNK), **options):
                writer.write(block)
                bar.update(len(block))
        writer.close()
    print(f"{arguments.output}: {writer.rows} × {writer.dim}, {arguments.dtype}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Print how well similarities agree with people's scores."""
    pairs = read_scored_pairs(arguments.file)
    encoder, options = open_encoder(arguments)
    left, right = zip(*pairs.rows, strict=True)
    similarities = pair_similarities(encoder, left, right, **options)
    result = {"file": arguments.file, "model": arguments.model or "runs/task1", "pairs": len(left)}
    for name, statistic in (("spearman", spearman), ("pearson", pearson)):
        interval = bootstrap_interval(statistic, similarities, np.array(pairs.scores))
        result[name] = {"value": statistic(similarities, pairs.scores), "interval_95": interval}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    rows = [
        [name.capitalize(), result[name]["value"], "{:.3f} to {:.3f}".format(*result[name]["interval_95"])]
        for name in ("spearman", "pearson")
    ]
    print(f"{arguments.file}: {len(left)} pairs, model {result['model']}")
    print(table(["correlation", "value", "95% interval (bootstrap)"], rows))


def train(arguments: argparse.Namespace) -> None:
    """Train an encoder on the user's files; the best on --dev (or the last) is in --output afterwards."""
    if arguments.learning_rate is None:
        arguments.learning_rate = FINE_TUNING_RATE if arguments.model else SCRATCH_RATE
    config = config_from(arguments, TrainingConfig)
    rows = read_training_rows(arguments.files, arguments.column)
    dev = read_scored_pairs(arguments.dev) if arguments.dev else None
    if arguments.patience and not dev:
        raise UserError("--patience waits for a gain on --dev: give it too")
    if arguments.no_teacher_embeddings and (arguments.model or not arguments.teacher):
        raise UserError("--no-teacher-embeddings goes with --teacher and random weights (no --model)")
    refuse_existing(arguments.output, arguments.resume, arguments.overwrite)
    set_seed(config.seed)
    encoder = SentenceEncoder.from_pretrained(arguments.model) if arguments.model else SentenceEncoder()
    if arguments.max_length is not None:
        encoder.cut_at(arguments.max_length)
    objective, data, words = choose_objective(encoder, rows, arguments)
    print(f"objective: {words}\ndata: {len(data)} rows of {', '.join(rows.columns)}")
    print(f"start: {arguments.model or 'random weights'}; learning rate {config.learning_rate:g}; seed {config.seed}")
    described = {
        "model": arguments.model,
        "teacher": arguments.teacher,
        "no-teacher-embeddings": arguments.no_teacher_embeddings,
        "dev": digest(dev.rows, dev.scores)[:12] if dev else None,
    }
    output = Path(arguments.output)
    progress = fit(objective, data, config, output, dev, arguments.resume, described)
    if progress.best:
        print(f"best on {arguments.dev}: Spearman {progress.best['spearman']:.4f} at step {progress.best['step']}")
    print(f"{output}: the trained encoder, and how it went in training.json")


def choose_objective(
    encoder: Encoder, rows: TrainingRows, arguments: argparse.Namespace
) -> tuple[PairObjective | DistillationObjective, SentenceDataset, str]:
    """The objective that the columns (and --teacher) ask for, its data set, and what it is in words."""
    if arguments.teacher:
        return distil(encoder, [text for row in rows.rows for text in row], arguments)
    data = SentenceDataset(rows.rows, encoder.tokenizer, rows.scores, passes=2 if len(rows.columns) == 1 else 1)
    words = {
        "sentence2": "contrastive: each sentence finds its partner among those of the batch",
        "near_miss": "contrastive: each sentence finds its partner among those of the batch and the near misses",
        "score": "ranking: pairs with higher scores get higher cosine similarities",
    }
    simcse = "SimCSE: each sentence finds itself under another dropout mask"
    return PairObjective(encoder), data, words[rows.columns[-1]] if len(rows.columns) > 1 else simcse


def distil(
    encoder: Encoder, texts: list[str], arguments: argparse.Namespace
) -> tuple[DistillationObjective, SentenceDataset, str]:
    """The distillation objective, from the teacher's token embeddings where both share a vocabulary."""
    teacher = SentenceEncoder.from_pretrained(arguments.teacher)
    teacher.to(resolve_device(arguments.device))
    projection = random_projection(teacher.dim, encoder.dim)
    words = f"distillation: embed as {arguments.teacher} does"
    if not (arguments.model or arguments.no_teacher_embeddings) and start_from_teacher(encoder, teacher, projection):
        words += ", starting from its token embeddings"
    objective = DistillationObjective(encoder, texts, lambda batch: torch.from_numpy(teacher.encode(batch)), projection)
    return objective, SentenceDataset([(text,) for text in texts], encoder.tokenizer), words


def fit(
    objective: PairObjective | DistillationObjective,
    data: SentenceDataset,
    config: TrainingConfig,
    output: Path,
    dev: TrainingRows | None = None,
    resume: bool = False,
    description: dict[str, object] | None = None,
) -> Progress:
    """Train, keep the best encoder on `dev` (or the last) in `output`, and write down how it went."""
    encoder = objective.encoder

    def look() -> dict[str, float]:
        similarities = pair_similarities(encoder, *zip(*dev.rows, strict=True), precision=trainer.precision)
        correlation = spearman(similarities, dev.scores)
        return {"spearman": correlation, "score": correlation}

    save = partial(encoder.save_pretrained, output)
    trainer = Trainer(objective, data, config, output, save, look if dev else None, description=description)
    progress = trainer.train(resume)
    result = {"seconds": round(progress.seconds), "best": progress.best, "history": progress.history}
    write_json(output / "training.json", {**progress.run, **result})
    trainer.finish()
    return progress


def paraphrase_measures(encoder: Encoder, rows: Sequence[tuple[str, ...]]) -> list[float]:
    """How often a sentence finds its paraphrase among all of them, and prefers it to its own near miss."""
    sentences, paraphrases, near_misses = (encoder.encode(column) for column in zip(*rows, strict=True))
    found = (sentences @ paraphrases.T).argmax(axis=1) == np.arange(len(rows))
    preferred = (sentences * paraphrases).sum(axis=1) > (sentences * near_misses).sum(axis=1)
    return [float(found.mean()), float(preferred.mean())]


def first_training() -> Encoder:
    """Train the encoder on some of the embedded pairs for half a minute, measuring it before and after."""
    set_seed(SHORT_TRAINING.seed)
    encoder = SentenceEncoder()
    trained = read_training_rows([SAMPLES / "pairs.csv"]).rows[:SHORT_TRAINING_ROWS]
    parts = {"trained on": trained[:60], "held out": read_training_rows([SAMPLES / "pairs_dev.csv"]).rows[:60]}
    config, size = encoder.config, sum(parameter.numel() for parameter in encoder.parameters())
    heading("The encoder")
    print(
        f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, {config.hidden_size} wide, "
        f"{size:,} parameters\nweights: random (seed {SHORT_TRAINING.seed}), then a short training on "
        f"{len(trained)} pairs of common/samples/pairs.csv"
    )
    before = {name: paraphrase_measures(encoder, rows) for name, rows in parts.items()}
    data = SentenceDataset(trained, encoder.tokenizer)
    fit(PairObjective(encoder), data, SHORT_TRAINING, RUN)
    heading("Does training matter?")
    rows = []
    for name, part in parts.items():
        after = paraphrase_measures(encoder, part)
        for i, measure in enumerate(("finds its paraphrase among 60", "prefers it to the near miss")):
            rows.append([name, measure, f"{before[name][i]:.0%}", f"{after[i]:.0%}"])
    print(table(["pairs", "a sentence ...", "before", "after"], rows))
    print(
        "The near misses share more words with the sentence than its paraphrase does. Half a minute from random\n"
        "weights begins to learn the pairs it sees; what carries over to others takes far more text (see the README)."
    )
    return encoder


def show() -> None:
    """The whole of task 1 on the embedded data."""
    try:
        encoder = first_training()
    except Interrupted:
        raise Interrupted("stopped; `python task1.py` begins anew") from None
    sentences = list(read_texts(SAMPLES / "sentences.txt"))
    embeddings = encoder.encode(sentences)
    similarities = embeddings @ embeddings.T

    heading("Sample sentences as embeddings")
    norms = np.linalg.norm(embeddings, axis=1)
    print(f"{len(sentences)} sentences → array {embeddings.shape}, norms {norms.min():.6f} to {norms.max():.6f}")

    heading("Each sentence's nearest neighbour")
    others = similarities - 2 * np.eye(len(sentences), dtype=np.float32)
    width = (terminal_width() - 10) // 2
    rows = [
        [shorten(sentence, width), shorten(sentences[nearest], width), float(row[nearest])]
        for sentence, row, nearest in zip(sentences, others, others.argmax(axis=1), strict=True)
    ]
    print(table(["sentence", "nearest", "cosine"], rows))

    heading("Cosine similarities")
    few = range(8)
    rows = [[f"{i + 1} {shorten(sentences[i], 38)}", *(float(similarities[i, j]) for j in few)] for i in few]
    print(table(["", *(str(i + 1) for i in few)], rows))

    save_figure(similarity_figure(sentences, similarities), RUN / "similarity.png")
    save_figure(map_figure(sentences, embeddings), RUN / "map.png")
    with atomic_file(RUN / "embeddings.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, embeddings)
    heading("Written to runs/task1")
    print("similarity.png    every sentence against every other, as a heat map")
    print("map.png           the sentences in two dimensions")
    print("embeddings.npy    the sample sentences' embeddings")
    print("the other files   the encoder: transformers and sentence-transformers open the folder as it is")


def main(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name; without one, show the whole of task 1."""
    parsed = build_parser().parse_args(arguments)
    commands = {"embed": embed, "evaluate": evaluate, "train": train}
    commands[parsed.command](parsed) if parsed.command else show()


if __name__ == "__main__":
    run(main, "task1.py")
