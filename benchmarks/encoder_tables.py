"""The tables on the encoder: its data, how its similarities agree with people, how it was made, how quick it is."""

from collections.abc import Mapping

import numpy as np

from benchmarks import distill, sts
from benchmarks.data import read_manifest
from benchmarks.record import RESULTS
from benchmarks.table import Table, load, load_all, with_interval

# Records of the encoders that shipped before the present one.
EARLIER_STS = {
    "bge-tweets": "bge-small-en-v1.5, fine-tuned on tweets, a teacher of the third encoder",
    "third-teachers": "the third encoder's teachers, joined",
    "third": "the third encoder, of bge-small, mpnet and a bge-small of tweets",
    "second": "the second encoder, of bge-small and mpnet",
    "first": "the first encoder, of all-MiniLM-L6-v2 alone",
    "first-stsb": "the first encoder, then stsb_train (ranking loss)",
    "first-pairs": "the first encoder, then the sample pairs (contrastive)",
    "first-simcse": "the first encoder, then SimCSE on 16,000 sentences",
}
# Of `benchmarks.speed`; ours among them.
SYSTEMS = {
    "fp32": "sentence-transformers, fp32, its default",
    "bf16": "sentence-transformers, bf16 weights",
    "onnx": "sentence-transformers, ONNX Runtime",
    "onnx int8": "sentence-transformers, ONNX Runtime, dynamic int8",
    "openvino": "sentence-transformers, OpenVINO",
    "openvino int8": "sentence-transformers, OpenVINO, static int8",
    "ours fp32": '`encode(texts, precision="fp32")`',
    "ours auto": "**`encode(texts)`**",
    "ours int8": '`encode(texts, precision="int8")`',
    "ours predict": "`predict(texts)` of two tasks",
}


def data_files() -> Table:
    entries = read_manifest().items()
    rows = [[f"`{name}`", f"{entry['rows']:,}", f"`{entry['sha256'][:16]}…`"] for name, entry in entries]
    return Table(["file in DATA", "rows", "sha256"], rows)


def similarity() -> Table:
    rows = []
    for system, words in {**sts.WORDS, **EARLIER_STS}.items():
        for found in load_all([RESULTS / "sts" / f"{system}.json"]):
            cells = []
            for name in sts.TESTS:
                low, high = (100 * bound for bound in found["files"][name]["interval_95"])
                cells.append(f"{100 * found['files'][name]['spearman']:.1f} ({low:.0f} to {high:.0f})")
            mean = 100 * np.mean([found["files"][name]["spearman"] for name in sts.TESTS[1:]])
            minutes = f"{found['seconds'] / 60:.0f}" if "seconds" in found else ""
            rows.append([words, *cells, f"{mean:.1f}", minutes])
    return Table(["system", *sts.TESTS, "mean of 12 to 15", "minutes"], rows)


def short_similarity() -> Table:
    shown = {sts.WORDS[name] for name in ("untrained", "tfidf-characters", "minilm", "mpnet", "bge-mean", "shipped")}
    return similarity().pick(["system", "stsb_test", "mean of 12 to 15"], lambda row: row[0] in shown)


def paired() -> Table:
    compared = {
        "the shipped encoder less all-MiniLM-L6-v2": "paired",
        "the shipped encoder less all-mpnet-base-v2": "paired-mpnet",
        "the third less all-MiniLM-L6-v2": "third-paired",
        "the second less all-MiniLM-L6-v2": "second-paired",
        "the first less all-MiniLM-L6-v2": "first-paired",
    }
    records = [load(f"sts/{name}")["files"] for name in compared.values()]
    rows = []
    for name in sts.TESTS:
        cells = []
        for found in (record[name] for record in records):
            mean, low, high = (100 * value for value in (found["difference"], *found["interval_95"]))
            cells.append(with_interval(mean, low, high, 1))
        rows.append([name, f"{found['pairs']:,}", *cells])
    return Table(["set", "pairs", *compared], rows)


def near_misses() -> Table:
    """How often the meaning is preferred to the words."""
    rows = []
    for system, found in load("sts/near-misses")["systems"].items():
        cosines = [f"{found[of]:.2f}" for of in ("paraphrases", "near_misses")]
        score = f"{100 * found['stsb_test']['spearman']:.1f}"
        rows.append([sts.WORDS[system], f"{found['prefers_the_paraphrase']:.0%}", *cosines, score])
    header = ["system", "prefers the paraphrase", "mean cosine of paraphrases", "of near misses", "stsb_test"]
    return Table(header, rows)


def distillation_starts() -> Table:
    rows = [[start, f"{100 * score:.1f}"] for start, score in load("distill/starts")["stsb_dev"].items()]
    return Table(["before training", "stsb_dev"], rows)


def distillation() -> Table:
    rows = []
    for found in load_all(RESULTS / "distill" / f"{variant}.json" for variant in distill.VARIANTS):
        looks = [f"{100 * look['dev spearman']:.1f}" for look in found["history"]]
        rows.append([found["variant"], *looks, f"{found['seconds'] / 60:.1f}"])
    return Table(["variant", "stsb_dev after ¼", "½", "¾", "all", "minutes"], rows)


def distillation_history() -> Table:
    """How the training of the shipped encoder went."""
    rows = [
        [
            row["step"],
            *(f"{row[f'train {name}']:.3f}" for name in ("distance", "similarity")),
            f"{100 * row['dev spearman']:.1f}",
        ]
        for row in load("ship")["training"]["history"]
    ]
    return Table(["step", "distance", "similarity", "stsb_dev"], rows)


def bits() -> Table:
    rows = []
    for words, record in (("third encoder", "ship-third"), ("**the encoder that ships**", "ship")):
        for name, row in load(record)["rounded"].items():
            moved = f"{row['largest_difference']:.3f}" if "largest_difference" in row else ""
            rows.append([f"{words}, {name}", f"{row['megabytes']:.1f}", f"{100 * row['stsb_dev']:.2f}", moved])
    return Table(["weights", "MB", "stsb_dev", "largest change of a similarity"], rows)


def speed() -> Table:
    """On the machine of the last record in full, and the rates and ratios on one that is quicker in bf16 beside it."""
    quicker = {row[0]: row[1:3] for row in speed_of("systems", SYSTEMS, "speed-quicker").rows}
    here = speed_of("systems", SYSTEMS)
    rows = [[*row, *quicker.get(row[0], ["", ""])] for row in here.rows]
    return Table([*here.header, "quicker machine: texts a second", "ratio there"], rows)


def speed_without_avx512() -> Table:
    return speed_of("without_avx512", {"fp32": "sentence-transformers' default", "ours fp32": "**`encode(texts)`**"})


def speed_of(systems: str, words: Mapping[str, str], name: str = "speed") -> Table:
    """What a record says of some systems, each under its words."""
    record, rows = load(name), []
    for system, shown in words.items():
        if not (found := record[systems].get(system)):  # int8 came later, and not every processor has it
            continue
        cells = [f"{record['texts'] / found['all']:.1f}", f"{found['ratio']:.2f}", f"{1000 * found['one']:.0f}"]
        if "stsb_dev" in found:
            cells += [f"{found['lowest_cosine']:.4f}", f"{100 * found['stsb_dev']:.2f}"]
        rows.append([shown, *cells, *[""] * (5 - len(cells))])
    return Table(["system", "texts a second", "ratio", "ms for one text", "lowest product with fp32", "stsb_dev"], rows)


def memory() -> Table:
    """The peak memory, and the rate of the texts beyond those of the row above, which has the start in it."""
    rows, before = [], {"texts": 0, "seconds": 0.0}
    for found in load("memory")["embedded"]:
        rate = (found["texts"] - before["texts"]) / (found["seconds"] - before["seconds"])
        rows.append([f"{found['texts']:,}", f"{found['peak_megabytes']:,.0f}", f"{rate:,.0f}" if rows else ""])
        before = found
    return Table(["texts", "MB at most", "texts a second (of those beyond the row above's)"], rows)


def side_by_side() -> Table:
    """What two programs embed together that run at once, beside what one embeds alone, on both machines."""
    words = {"ours": "**`encode(texts)`**", "spinning": "… with OpenMP's own waiting", "fp32": SYSTEMS["fp32"]}
    rows = [[shown] for shown in words.values()]
    for found in (load("speed"), load("speed-quicker")):
        for row, name in zip(rows, words, strict=True):
            alone, two = (found["texts"] * n / found["side_by_side"][name][of] for n, of in ((1, "alone"), (2, "two")))
            row += [f"{alone:.1f}", f"{two:.1f}", f"{two / alone:.2f}"]
    together = ["two at once, together", "of one alone"]
    return Table(["texts a second", "one alone", *together, "quicker machine: one alone", *together], rows)


def starts() -> Table:
    found = load("speed")["seconds_from_start"]
    words = {
        "task1.py --help": "`task1.py --help`",
        "task2.py --help": "`task2.py --help`",
        "embed": "`task1.py embed` of 100 texts",
        "sentence-transformers embeds": "sentence-transformers, the same",
    }
    return Table(["from start to end", "seconds"], [[words[name], f"{found[name]:.1f}"] for name in words])


def training_speed() -> Table:
    words = {
        "transformers": "transformers' Trainer, as it comes",
        "transformers, by length": "…, texts of like length in one step",
        "ours": "**ours**",
    }
    found, rows = load("training_speed")["systems"], []
    for name, shown in words.items():
        ratio = found["transformers"]["ms_a_step"] / found[name]["ms_a_step"]
        rows.append(
            [shown, f"{found[name]['ms_a_step']:.0f}", f"{ratio:.2f}", f"{found[name]['share_of_multiply_rate']:.0%}"]
        )
    return Table(["training", "ms a step", "ratio", "of the machine's rate"], rows)
