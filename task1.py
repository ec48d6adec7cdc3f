"""The sentence encoder: text in, sentence embeddings out.

python task1.py                                        show what it does, on sample sentences
python task1.py embed FILE --output FILE.npy           embed a file of sentences
python task1.py train FILE [FILE ...] --output DIR     train it on pairs, scored pairs or plain sentences
python task1.py evaluate FILE [--model DIR]            measure it on scored pairs
python task1.py export DIR [--model DIR]               write it as other tools read it

python task1.py COMMAND --help                         the options of a command
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from common.cli import (
    ROOT,
    Config,
    above,
    at_least,
    interrupted_hint,
    is_main_process,
    only_help,
    option,
    progress_bar,
    run,
    run_command,
    within,
)
from common.config import (
    DISTILLATION_RATE,
    FINE_TUNING_RATE,
    SCRATCH_RATE,
    SHIPPED_WORDS,
    SIMILARITY_WEIGHT,
    InferenceConfig,
    TrainingConfig,
)
from common.errors import UserError

if not only_help(__name__):  # what follows takes seconds to load
    import numpy as np
    from accelerate.utils import set_seed

    from common.checkpoint import CHECKPOINT, START, refuse_existing, remove_leftovers, same_folder
    from common.data import SentenceDataset
    from common.devices import interleaved, place, share_of
    from common.embedding import Encoder
    from common.encoder import SentenceEncoder
    from common.files import ArrayWriter, atomic_file, to_json, write_json
    from common.load import load_encoder
    from common.metrics import bootstrap_interval, pair_similarities, pearson, spearman
    from common.readers import chunked, read_texts
    from common.report import heading, shorten, table, terminal_width
    from common.rows import SAMPLES, TrainingRows, read_scored_pairs, read_training_rows
    from common.sentences import DistillationObjective, SentenceObjective, pair_objective
    from common.teachers import KEPT
    from common.train import Trainer

RUN = ROOT / "runs" / "task1"
CHUNK = 4096
MODEL_HELP = "an encoder's folder or hub name (default: the shipped one)"
OBJECTIVES = {
    "sentence2": "contrastive: each sentence finds its partner among those of the step",
    "near_miss": "contrastive: each sentence finds its partner among those of the step and the near misses",
    "score": "ranking: pairs with higher scores get higher cosine similarities",
}
SIMCSE = "SimCSE: each sentence finds itself under another dropout mask"


@dataclass(frozen=True, kw_only=True)
class Embed(InferenceConfig):
    """Embed a file of sentences, in the order of the file."""

    file: str = option(help=".txt (a sentence a line), .csv, .tsv, .jsonl, any with .gz; - is stdin", positional=True)
    output: str = option(help="the (sentences, dim) array to write", metavar="FILE.npy")
    text: str = option("text", "the column of texts in a table", metavar="COLUMN")
    dtype: str = option("float32", "of the array", choices=("float32", "float16"))
    model: str | None = option(None, MODEL_HELP, metavar="DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output.endswith(".npy"):
            raise UserError(
                f"{self.output}: what is written is a NumPy array; give it a name that ends in .npy", "output"
            )

    def run(self) -> None:
        texts = read_texts(self.file, self.text)
        first = [next(texts)]  # a wrong file is said before a model is loaded
        encoder = load_encoder(self.model)
        options = place(encoder, self)
        chunks = (share_of(chunk) for chunk in chunked(chain(first, texts), CHUNK))
        # Of several processes only one writes the file.
        opened = atomic_file(self.output) if is_main_process() else nullcontext(Path(os.devnull))
        with opened as temporary, progress_bar(None, " sentences", "embedding") as bar:
            writer = ArrayWriter(temporary, encoder.dim, self.dtype)
            for share in encoder.encode_stream(chunks, **options):
                block = interleaved(share)
                writer.write(block)
                bar.update(len(block))
            writer.close()
        print(f"{self.output}: {writer.rows} × {writer.dim}, {self.dtype}, computed in {options['precision']}")


@dataclass(frozen=True, kw_only=True)
class Evaluate(InferenceConfig):
    """Measure how well similarities agree with people's scores."""

    file: str = option(help="a table with sentence1, sentence2 and score (or near_miss)", positional=True)
    json: bool = option(False, "print JSON in place of a table")
    model: str | None = option(None, MODEL_HELP, metavar="DIR")

    def run(self) -> None:
        pairs = read_scored_pairs(self.file)
        encoder = load_encoder(self.model)
        similarities = pair_similarities(encoder, *zip(*pairs.rows, strict=True), **place(encoder, self))
        result = {"file": self.file, "model": self.model or SHIPPED_WORDS, "pairs": len(similarities)}
        for name, statistic in (("spearman", spearman), ("pearson", pearson)):
            interval = bootstrap_interval(statistic, similarities, np.array(pairs.scores))
            result[name] = {"value": statistic(similarities, pairs.scores), "interval_95": interval}
        if self.json:
            print(to_json(result))
            return
        rows = [
            [name.capitalize(), result[name]["value"], "{:.3f} to {:.3f}".format(*result[name]["interval_95"])]
            for name in ("spearman", "pearson")
        ]
        print(f"{self.file}: {result['pairs']} pairs, model {result['model']}")
        print(table(["correlation", "value", "95% interval (bootstrap)"], rows))


@dataclass(frozen=True, kw_only=True)
class Train(TrainingConfig):
    """Train an encoder; the columns of the files choose how.

    sentence1, sentence2: each finds its partner in the step (near_miss: a harder one). score: pairs with higher scores
    get more similar. A .txt or a text column: dropout as the only noise, or, with --teacher, distillation.
    """

    files: tuple[str, ...] = option(
        help="training files, all with the same columns", positional=True, compared=False, nargs="+", metavar="FILE"
    )
    output: str = option(help="the folder for the trained encoder", compared=False, metavar="DIR")
    dev: str | None = option(
        None, "scored pairs; the model that ranks them best is kept", compared=False, metavar="FILE"
    )
    model: str | None = option(None, "start from this encoder (default: the shipped one)", metavar="DIR")
    from_scratch: bool = option(False, "start from random weights")
    teacher: tuple[str, ...] = option(
        (), "learn this model's embeddings (a folder or hub name); again for more", action="append", metavar="DIR"
    )
    similarity_weight: float | None = option(
        None,
        f"with a teacher: the similarities' weight against the embeddings' (default: {SIMILARITY_WEIGHT:g})",
        check=at_least(0),
        metavar="WEIGHT",
    )
    text: str = option("text", "the column of plain sentences", metavar="COLUMN")
    dropout: float | None = option(
        None, "while training (default: the encoder's own)", check=within(0, 1), metavar="SHARE"
    )
    max_length: int | None = option(None, "cut texts there (default: as the encoder does)", metavar="TOKENS")
    resume: bool = option(False, "go on with the unfinished run in --output", compared=False)
    overwrite: bool = option(False, "replace what --output holds", compared=False)
    learning_rate: float | None = option(
        None,
        f"the highest learning rate (default: {FINE_TUNING_RATE:g}; with a teacher {DISTILLATION_RATE:g}, "
        f"from random weights {SCRATCH_RATE:g})",
        check=above(0),
    )

    def __post_init__(self) -> None:
        rate = DISTILLATION_RATE if self.teacher else SCRATCH_RATE if self.from_scratch else FINE_TUNING_RATE
        object.__setattr__(self, "learning_rate", rate if self.learning_rate is None else self.learning_rate)
        super().__post_init__()
        if self.model and self.from_scratch:
            raise UserError("--model and --from-scratch each say what to start from: choose one")
        if self.similarity_weight is not None and not self.teacher:
            raise UserError("--similarity-weight needs --teacher")
        if self.patience and not self.dev:
            raise UserError("--patience needs --dev")

    def run(self) -> None:
        rows = read_training_rows(self.files, self.text)
        dev = read_scored_pairs(self.dev) if self.dev else None
        refuse_existing(self.output, self.resume, self.overwrite)
        set_seed(self.seed)
        encoder = SentenceEncoder() if self.from_scratch else load_encoder(self.model)
        if self.max_length is not None:
            encoder.cut_at(self.max_length)
        if self.dropout is not None:
            encoder.set_dropout(self.dropout)
        objective, words = self.objective(encoder, rows, dev)
        if same_folder(self.model, self.output):
            del objective.contents[START]  # this run's own saves replace them
        start = "random weights" if self.from_scratch else self.model or SHIPPED_WORDS
        columns = ("text",) if self.teacher else rows.columns
        print(f"objective: {words}\ndata: {len(objective.data)} rows of {', '.join(columns)}")
        print(f"start: {start}; learning rate {self.learning_rate:g}; seed {self.seed}")
        trainer = Trainer(objective, self, self.output)
        with interrupted_hint("the same command with --resume goes on from there"):
            progress = trainer.train(self.resume, self.overwrite)
        if is_main_process():
            result = {"seconds": round(progress.seconds), "best": progress.best, "history": progress.history}
            write_json(Path(self.output) / "training.json", {"command": asdict(self), **progress.run, **result})
        trainer.finish()
        if progress.best:
            print(f"best on {self.dev}: Spearman {progress.best['spearman']:.4f} at step {progress.best['step']}")
        print(f"{self.output}: the trained encoder, and how it went in training.json")

    def objective(
        self, encoder: Encoder, rows: TrainingRows, dev: TrainingRows | None
    ) -> tuple[SentenceObjective, str]:
        """The objective that the columns and the options ask for, and what it is in words."""
        if not self.teacher:
            if len(rows.columns) == 1 and self.dropout == 0:
                raise UserError(
                    "--dropout 0 leaves single sentences nothing to learn from: they need dropout or --teacher"
                )
            words = OBJECTIVES[rows.columns[-1]] if len(rows.columns) > 1 else SIMCSE
            return pair_objective(encoder, rows, dev), words
        sentences = SentenceDataset([(text,) for row in rows.rows for text in row], encoder.tokenizer)
        teachers, weight = [load_encoder(teacher) for teacher in self.teacher], self.similarity_weight
        weight = SIMILARITY_WEIGHT if weight is None else weight
        kept = Path(self.output).parent / KEPT
        objective = DistillationObjective(encoder, sentences, teachers, kept, similarity_weight=weight, dev=dev)
        size = 2 * objective.target_width * len(sentences) / 1e6
        words = f"embed as {' and '.join(self.teacher)} (their embeddings are kept in {kept}, up to {size:.0f} MB)"
        return objective, f"distillation: {words}"


@dataclass(frozen=True, kw_only=True)
class Export(Config):
    """Write an encoder as transformers and sentence-transformers read it."""

    output: str = option(help="the folder to write", positional=True, metavar="DIR")
    overwrite: bool = option(False, "replace the model that the folder holds")
    model: str | None = option(None, MODEL_HELP, metavar="DIR")

    def run(self) -> None:
        refuse_existing(self.output, resume=False, overwrite=self.overwrite)
        load_encoder(self.model).save_pretrained(self.output)
        if self.overwrite:
            remove_leftovers(self.output, (*SentenceObjective.leftovers, CHECKPOINT))
        print(f"{self.output}: transformers' AutoModel and SentenceTransformer open it as it is")


@dataclass(frozen=True, kw_only=True)
class Show(Config):
    """Show what the shipped encoder does, on sample sentences."""

    def run(self) -> None:
        from common.figures import map_figure, save_figure, similarity_figure  # matplotlib loads slowly

        encoder = load_encoder()
        config, size = encoder.config, sum(parameter.numel() for parameter in encoder.parameters())
        heading("The encoder")
        print(
            f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, {config.hidden_size} wide, "
            f"{size:,} parameters\nweights: {SHIPPED_WORDS}, described in common/weights/README.md"
        )
        sentences = list(read_texts(SAMPLES / "sentences.txt"))
        embeddings = encoder.encode(sentences)
        show_similarities(sentences, embeddings)
        show_what_training_gave(encoder)

        encoder.save_pretrained(RUN)
        save_figure(similarity_figure(sentences, embeddings @ embeddings.T), RUN / "similarity.png")
        save_figure(map_figure(sentences, embeddings), RUN / "map.png")
        with atomic_file(RUN / "embeddings.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, embeddings)
        heading("Written to runs/task1")
        print("similarity.png    every sentence against every other, as a heat map")
        print("map.png           the sentences in two dimensions")
        print("embeddings.npy    the sample sentences' embeddings")
        print("the other files   the encoder: transformers and sentence-transformers open the folder as it is")


def show_similarities(sentences: Sequence[str], embeddings: np.ndarray) -> None:
    """Print what the (n, dim) embeddings of n sentences are, and which sentences are close."""
    heading("Sample sentences as embeddings")
    norms, similarities = np.linalg.norm(embeddings, axis=1), embeddings @ embeddings.T
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


def show_what_training_gave(encoder: SentenceEncoder) -> None:
    """Print how an encoder of the same shape with random weights, and this one, do on the held-out sample pairs."""
    heading("What training gave it")
    rows = read_training_rows([SAMPLES / "pairs_dev.csv"]).rows
    set_seed(0)
    encoders = {"random weights": SentenceEncoder(encoder.config).eval(), "shipped weights": encoder}
    found, preferred = f"finds its paraphrase among {len(rows)}", "prefers it to a near miss"
    measures = [[name, *(f"{m:.0%}" for m in paraphrase_measures(e, rows))] for name, e in encoders.items()]
    print(table(["a sentence ...", found, preferred], measures))
    sentence, paraphrase, near_miss = rows[1]
    print(f"\nA near miss has the words and not the meaning, a paraphrase the meaning in other words:\n  {sentence}")
    print(f"  {near_miss} (near miss)\n  {paraphrase} (paraphrase)")
    print("An embedding averages over words, and hears little of who did what, of numbers and of not.")


def paraphrase_measures(encoder: Encoder, rows: Sequence[tuple[str, ...]]) -> list[float]:
    """How often a sentence finds its paraphrase among all of them, and prefers it to its own near miss."""
    sentences, paraphrases, near_misses = (encoder.encode(column) for column in zip(*rows, strict=True))
    found = (sentences @ paraphrases.T).argmax(axis=1) == np.arange(len(rows))
    preferred = (sentences * paraphrases).sum(axis=1) > (sentences * near_misses).sum(axis=1)
    return [float(found.mean()), float(preferred.mean())]


COMMANDS = {"embed": Embed, "train": Train, "evaluate": Evaluate, "export": Export}
main = partial(run_command, program="task1.py", show=Show, commands=COMMANDS, help=__doc__)

if __name__ == "__main__":
    run(main, "task1.py")
