"""The sentence encoder: text in, sentence embeddings out.

python task1.py                                        show what it does, on sample sentences
python task1.py embed FILE --output FILE.npy           embed a file of sentences
python task1.py train FILE [FILE ...] --output DIR     train it on pairs, scored pairs or plain sentences
python task1.py evaluate FILE [--model DIR]            measure it on scored pairs
python task1.py export DIR [--model DIR]               write it as other tools read it
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
from torch import Tensor

from common.cli import ROOT, Parser, UserError, add_options, config_from, progress_bar, refuse_several, run
from common.data import SAMPLES, SentenceDataset, TrainingRows, digest, read_scored_pairs, read_training_rows
from common.devices import InferenceConfig, resolve_device, resolve_precision
from common.distillation import DistillationObjective, random_projection, start_from_teacher, widened_teacher
from common.encoder import SHIPPED, Encoder, SentenceEncoder
from common.files import ArrayWriter, atomic_file
from common.losses import SIMILARITY_WEIGHT, PairObjective
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
SCRATCH_RATE, FINE_TUNING_RATE, DISTILLATION_RATE = 1e-4, 2e-5, 4e-4
SHIPPED_WORDS = "the shipped encoder"


def build_parser() -> Parser:
    parser = Parser("task1.py", description="The sentence encoder. Without a command: show what it does.")
    commands = parser.add_subparsers(dest="command", parser_class=Parser)

    embed = commands.add_parser("embed", help="embed a file of sentences")
    embed.add_argument("file", help=".txt (a sentence a line), .csv, .tsv, .jsonl, any with .gz; - is standard input")
    embed.add_argument("--output", required=True, metavar="FILE.npy", help="the (sentences, dim) array to write")
    embed.add_argument("--column", default="text", help="the column to read from a table (default: text)")
    embed.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the array (float32)")
    embed.add_argument("--model", metavar="DIR", help="an encoder's folder or hub name (default: the shipped one)")
    add_options(embed, InferenceConfig)

    evaluate = commands.add_parser("evaluate", help="measure an encoder on scored pairs")
    evaluate.add_argument("file", help="a table with sentence1, sentence2 and score (or near_miss)")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of a table")
    evaluate.add_argument("--model", metavar="DIR", help="an encoder's folder or hub name (default: the shipped one)")
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
    train.add_argument("--model", metavar="DIR", help="start from this encoder (default: the shipped one)")
    train.add_argument("--from-scratch", action="store_true", help="start from random weights")
    train.add_argument("--teacher", metavar="DIR", help="learn this model's embeddings (a folder or hub name)")
    train.add_argument(
        "--no-teacher-embeddings",
        action="store_true",
        help="with --teacher and --from-scratch: do not start from the teacher's token embeddings",
    )
    train.add_argument(
        "--widen", action="store_true", help="with --teacher: start from the teacher itself, made twice as wide"
    )
    train.add_argument(
        "--similarity-weight",
        type=float,
        default=SIMILARITY_WEIGHT,
        metavar="WEIGHT",
        help="with --teacher: how much similarities weigh against embeddings (default: %(default)g)",
    )
    train.add_argument("--column", default="text", help="the column of plain sentences (default: text)")
    train.add_argument("--dropout", type=float, metavar="SHARE", help="while training (default: the encoder's own)")
    train.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="cut texts there (default: as the encoder does)"
    )
    train.add_argument("--resume", action="store_true", help="go on with the unfinished run in --output")
    train.add_argument("--overwrite", action="store_true", help="discard what --output holds")
    add_options(train, TrainingConfig, learning_rate=None)

    export = commands.add_parser("export", help="write an encoder as transformers and sentence-transformers read it")
    export.add_argument("output", metavar="DIR", help="the folder to write")
    export.add_argument("--overwrite", action="store_true", help="replace the model that the folder holds")
    export.add_argument("--model", metavar="DIR", help="an encoder's folder or hub name (default: the shipped one)")
    return parser


def open_encoder(arguments: argparse.Namespace) -> tuple[Encoder, dict[str, Any]]:
    """The encoder that `--model` names, on its device, and the options to run it with."""
    config = config_from(arguments, InferenceConfig)
    encoder = SentenceEncoder.from_pretrained(arguments.model or SHIPPED)
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
    result = {"file": arguments.file, "model": arguments.model or SHIPPED_WORDS, "pairs": len(left)}
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
        begins = arguments.from_scratch or arguments.widen
        arguments.learning_rate = (
            FINE_TUNING_RATE if not begins else DISTILLATION_RATE if arguments.teacher else SCRATCH_RATE
        )
    check_start(arguments)
    config = config_from(arguments, TrainingConfig)
    rows = read_training_rows(arguments.files, arguments.column)
    dev = read_scored_pairs(arguments.dev) if arguments.dev else None
    if arguments.patience and not dev:
        raise UserError("--patience waits for a gain on --dev: give it too")
    refuse_existing(arguments.output, arguments.resume, arguments.overwrite)
    set_seed(config.seed)
    teacher = open_teacher(arguments) if arguments.teacher else None
    encoder, projection, start = starting_encoder(arguments, teacher, [text for row in rows.rows for text in row])
    if arguments.max_length is not None:
        encoder.cut_at(arguments.max_length)
    if arguments.dropout is not None:
        encoder.set_dropout(arguments.dropout)
    if teacher is None:
        objective, data, words = learn_pairs(encoder, rows)
    else:
        objective, data, words = distil(encoder, teacher, projection, rows, arguments)
    print(f"objective: {words}\ndata: {len(data)} rows of {', '.join(rows.columns)}")
    print(f"start: {start}; learning rate {config.learning_rate:g}; seed {config.seed}")
    described = {
        "model": arguments.model,
        "teacher": arguments.teacher,
        "from-scratch": arguments.from_scratch,
        "widen": arguments.widen,
        "no-teacher-embeddings": arguments.no_teacher_embeddings,
        "similarity-weight": arguments.similarity_weight,
        "dropout": arguments.dropout,
        "dev": digest(dev.rows, dev.scores)[:12] if dev else None,
    }
    output = Path(arguments.output)
    progress = fit(objective, data, config, output, dev, arguments.resume, described)
    if progress.best:
        print(f"best on {arguments.dev}: Spearman {progress.best['spearman']:.4f} at step {progress.best['step']}")
    print(f"{output}: the trained encoder, and how it went in training.json")


def check_start(arguments: argparse.Namespace) -> None:
    """UserError where the options that say what training starts from contradict each other."""
    refuse_several(arguments, "--model", "--from-scratch", "--widen")
    if arguments.widen and not arguments.teacher:
        raise UserError("--widen makes the start from a teacher: name it with --teacher")
    if arguments.no_teacher_embeddings and not (arguments.teacher and arguments.from_scratch):
        raise UserError("--no-teacher-embeddings goes with --teacher and --from-scratch")
    if not 0 <= arguments.similarity_weight < float("inf"):
        raise UserError(f"--similarity-weight {arguments.similarity_weight}: must be 0 or more")
    if arguments.dropout is not None and not 0 <= arguments.dropout < 1:
        raise UserError(f"--dropout {arguments.dropout}: must be from 0 to below 1")


def open_teacher(arguments: argparse.Namespace) -> Encoder:
    """The encoder that `--teacher` names, on the device that trains."""
    teacher = SentenceEncoder.from_pretrained(arguments.teacher)
    return teacher.to(resolve_device(arguments.device))


def starting_encoder(
    arguments: argparse.Namespace, teacher: Encoder | None, texts: list[str]
) -> tuple[Encoder, Tensor | None, str]:
    """The encoder that training starts from, the projection to its teacher (if it has one), and both in words."""
    if arguments.widen:
        encoder, projection = widened_teacher(teacher, texts)
        return encoder, projection, f"{arguments.teacher}, widened to {encoder.dim}"
    if arguments.from_scratch:
        encoder, start = SentenceEncoder(), "random weights"
    else:
        encoder, start = SentenceEncoder.from_pretrained(arguments.model or SHIPPED), arguments.model or SHIPPED_WORDS
    if teacher is None:
        return encoder, None, start
    projection = random_projection(teacher.dim, encoder.dim)
    may_start = arguments.from_scratch and not arguments.no_teacher_embeddings
    if may_start and start_from_teacher(encoder, teacher, projection):
        start += f", token embeddings from {arguments.teacher}"
    return encoder, projection, start


def learn_pairs(encoder: Encoder, rows: TrainingRows) -> tuple[PairObjective, SentenceDataset, str]:
    """The objective that the columns ask for, its data set, and what it is in words."""
    data = SentenceDataset(rows.rows, encoder.tokenizer, rows.scores, passes=2 if len(rows.columns) == 1 else 1)
    words = {
        "sentence2": "contrastive: each sentence finds its partner among those of the batch",
        "near_miss": "contrastive: each sentence finds its partner among those of the batch and the near misses",
        "score": "ranking: pairs with higher scores get higher cosine similarities",
    }
    simcse = "SimCSE: each sentence finds itself under another dropout mask"
    return PairObjective(encoder), data, words[rows.columns[-1]] if len(rows.columns) > 1 else simcse


def distil(
    encoder: Encoder, teacher: Encoder, projection: Tensor, rows: TrainingRows, arguments: argparse.Namespace
) -> tuple[DistillationObjective, SentenceDataset, str]:
    """The distillation objective over all sentences of the rows, their data set, and what it is in words."""
    texts = [text for row in rows.rows for text in row]
    precision = resolve_precision(arguments.precision, teacher.device)

    def teach(batch: list[str]) -> Tensor:
        return torch.from_numpy(teacher.encode(batch, precision=precision))

    objective = DistillationObjective(encoder, texts, teach, projection, arguments.similarity_weight)
    data = SentenceDataset([(text,) for text in texts], encoder.tokenizer)
    return objective, data, f"distillation: embed as {arguments.teacher} does"


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


def export(arguments: argparse.Namespace) -> None:
    """Write an encoder as a standard folder."""
    refuse_existing(arguments.output, resume=False, overwrite=arguments.overwrite)
    SentenceEncoder.from_pretrained(arguments.model or SHIPPED).save_pretrained(arguments.output)
    print(f"{arguments.output}: transformers' AutoModel and SentenceTransformer open it as it is")


def show() -> None:
    """The whole of task 1 on the embedded data, with the shipped encoder."""
    encoder = SentenceEncoder.from_pretrained(SHIPPED)
    config, size = encoder.config, sum(parameter.numel() for parameter in encoder.parameters())
    heading("The encoder")
    print(
        f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, {config.hidden_size} wide, "
        f"{size:,} parameters\nweights: {SHIPPED_WORDS}, described in common/weights/README.md"
    )
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

    heading("What training gave it")
    rows = read_training_rows([SAMPLES / "pairs_dev.csv"]).rows
    set_seed(0)
    encoders = {"random weights": SentenceEncoder(encoder.config).eval(), "shipped weights": encoder}
    found, preferred = f"finds its paraphrase among {len(rows)}", "prefers it to a near miss"
    measures = [[name, *(f"{m:.0%}" for m in paraphrase_measures(e, rows))] for name, e in encoders.items()]
    print(table(["a sentence ...", found, preferred], measures))
    print("The near misses are hard: they share more words with the sentence than its paraphrase does.")

    encoder.save_pretrained(RUN)
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
    commands = {"embed": embed, "evaluate": evaluate, "train": train, "export": export}
    commands[parsed.command](parsed) if parsed.command else show()


if __name__ == "__main__":
    run(main, "task1.py")
