"""Every table of results, in README.md, benchmarks/README.md and the weights' card, made from the records alone.

    python -m benchmarks.tables NAME    print one, as Markdown
    python -m benchmarks.tables         bring the pages up to date

A page names its tables in comments, `<!-- python -m benchmarks.tables NAME -->`, each with its table right beneath it.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, ttest_1samp

from benchmarks import adding, defaults, distill, freezing, multitask, sts
from benchmarks.data import read_manifest
from benchmarks.multitask import FROZEN_TASKS, TASKS
from benchmarks.record import RESULTS
from benchmarks.strategies import BASE_RATES, SEEDS, at_best_rate, dev_score, recorded
from common.cli import ROOT
from common.encoder import SentenceEncoder
from common.files import atomic_file
from common.freezing import gradual_unfreezing
from common.heads import MultiTaskModel
from common.optim import layerwise_learning_rates, schedule_factor
from common.report import by_strategy, mean_and_spread

PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "common" / "weights" / "README.md")
MARKED = re.compile(r"(<!-- python -m benchmarks\.tables (\S+) -->\n)((?:\|.*\n)*)")
STAGES = ("embeddings", "layer 1", "layer 3", "layer 6", "topic head 3", "sentiment head 3")
# Records of the encoders that shipped before the present one.
EARLIER_STS = {
    "second": "the second encoder, of bge-small and mpnet",
    "first": "the first encoder, of all-MiniLM-L6-v2 alone",
    "first-stsb": "the first encoder, then stsb_train (ranking loss)",
    "first-pairs": "the first encoder, then the sample pairs (contrastive)",
    "first-simcse": "the first encoder, then SimCSE on 16,000 sentences",
}
EARLIER_MULTITASK = {
    "first-together": "both tasks, from the first encoder",
    "first-topic": "topic alone, from the first encoder",
    "first-sentiment": "sentiment alone, from the first encoder",
    "first-all": "both tasks, from the first encoder",
    "frozen-second": "second encoder, frozen + logistic regression",
    "frozen-first": "first encoder, frozen + logistic regression",
}
ON_ALL = ("shipped-all", "first-all", "frozen", "frozen-second", "frozen-first", "frozen-minilm", "tfidf-all")
Record = dict[str, Any]


class Table(NamedTuple):
    """Cells as text, under their header."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)

    def pick(self, columns: Sequence[str], rows: Callable[[Sequence[object]], bool] = lambda row: True) -> "Table":
        """Some of its columns, and the rows that a condition holds for."""
        places = [self.header.index(column) for column in columns]
        return Table(columns, [[row[place] for place in places] for row in self.rows if rows(row)])


def load(name: str) -> Record:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def load_all(paths: Iterable[Path]) -> list[Record]:
    """Those of the records that are there."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def result(measure: str, values: Sequence[float]) -> str:
    """The mean over the seeds and their standard deviation; Spearman in hundredths, as is usual."""
    if measure != "stsb_test":
        return mean_and_spread(values)
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def difference(measure: str, values: Sequence[float], others: Sequence[float]) -> str:
    """The mean of the differences seed by seed, with its 95% interval (Student's t)."""
    scale, decimals = (100, 1) if measure == "stsb_test" else (1, 3)
    lost = scale * np.subtract(values, others)
    if np.ptp(lost) == 0:
        return f"{lost[0]:.{decimals}f}"  # the same for every seed
    return with_interval(np.mean(lost), *ttest_1samp(lost, 0).confidence_interval(), decimals)


def with_interval(mean: float, low: float, high: float, decimals: int) -> str:
    """A difference with its interval, in bold where that leaves out zero."""
    text = f"{mean:+.{decimals}f} ({low:+.{decimals}f} to {high:+.{decimals}f})"
    return f"**{text}**" if low > 0 or high < 0 else text


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


def paired() -> Table:
    compared = {"the shipped encoder": "paired", "the second": "second-paired", "the first": "first-paired"}
    records = [load(f"sts/{name}")["files"] for name in compared.values()]
    rows = []
    for name in sts.TESTS:
        cells = []
        for found in (record[name] for record in records):
            mean, low, high = (100 * value for value in (found["difference"], *found["interval_95"]))
            cells.append(with_interval(mean, low, high, 1))
        rows.append([name, f"{found['pairs']:,}", *cells])
    return Table(["less all-MiniLM-L6-v2", "pairs", *compared], rows)


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
    found = load("ship")
    rows = []
    for name, row in found["rounded"].items():
        moved = f"{row['largest_difference']:.3f}" if "largest_difference" in row else ""
        name = f"**{name}**" if name == found["ships"] else name
        rows.append([name, f"{row['megabytes']:.1f}", f"{100 * row['stsb_dev']:.2f}", moved])
    return Table(["weights", "MB", "stsb_dev", "largest change of a similarity"], rows)


def speed() -> Table:
    words = {
        "fp32": "sentence-transformers, fp32, its default",
        "bf16": "sentence-transformers, bf16 weights",
        "onnx": "sentence-transformers, ONNX Runtime",
        "onnx int8": "sentence-transformers, ONNX Runtime, dynamic int8",
        "openvino": "sentence-transformers, OpenVINO",
        "ours fp32": '`encode(texts, precision="fp32")`',
        "ours auto": "**`encode(texts)`**",
    }
    rows = []
    for name, shown in words.items():
        found = load("speed")["systems"][name]
        cells = [f"{found['sentences_per_second']:.1f}", f"{found['ratio']:.2f}", f"{1000 * found['one']:.0f}"]
        rows.append([shown, *cells, f"{found['lowest_cosine']:.4f}"])
    return Table(["system", "texts a second", "ratio", "ms for one text", "lowest cosine to fp32"], rows)


def starts() -> Table:
    found = load("speed")["seconds_from_start"]
    words = {
        "task1.py --help": "`task1.py --help`",
        "task2.py --help": "`task2.py --help`",
        "embed": "`task1.py embed` of 100 texts",
        "sentence-transformers embeds": "sentence-transformers, the same",
    }
    return Table(["from start to end", "seconds"], [[words[name], f"{found[name]:.1f}"] for name in words])


def default_choices() -> Table:
    """What each choice of rate and length reaches on the test rows."""
    rows = []
    for size in (100, 1_000):
        for choice in defaults.CHOICES:
            found = load_all(defaults.result_path(task, size, choice) for task in defaults.TASKS)
            if len(found) == len(defaults.TASKS):
                rows.append([f"{size:,}", choice, *(f"{one['test'][one['measure']]:.3f}" for one in found)])
    return Table(["rows", "choice", *(f"{task} {of.replace('_', ' ')}" for task, of in defaults.TASKS.items())], rows)


def samples() -> Table:
    words = {
        "bag of words": "TF-IDF of words (1, 2) + logistic regression",
        "shipped encoder, frozen": "the shipped encoder, frozen + logistic regression",
        "task2.py --from-scratch": "`python task2.py --from-scratch`",
        "task2.py": "**`python task2.py`**, from the shipped encoder",
    }
    rows = [["guessing", "0.200", "0.333", ""]]
    for name, shown in words.items():
        found = load("samples")[name]
        minutes = f"{found['seconds'] / 60:.0f}" if "seconds" in found else ""
        rows.append([shown, *(f"{found['test'][task]['accuracy']:.3f}" for task in TASKS), minutes])
    return Table(["system", "topic accuracy", "sentiment accuracy", "minutes"], rows)


def classification(systems: Sequence[str]) -> Table:
    rows = []
    words = {**multitask.WORDS, **EARLIER_MULTITASK}
    for system in systems:
        found = load_all(sorted((RESULTS / "multitask").glob(f"{system}-[0-9]*.json")))
        if not found:
            continue
        cells = [
            mean_and_spread([f["test"][task][measure] for f in found]) if task in found[0]["test"] else ""
            for task, measure in TASKS.items()
        ]
        count = " + ".join(f"{found[0]['rows'][task]:,}" for task in TASKS if task in found[0]["rows"])
        minutes = f"{np.mean([f['seconds'] for f in found]) / 60:.0f}" if "seconds" in found[0] else ""
        rows.append([words[system], len(found), *cells, count, minutes])
    return Table(["system", "seeds", "topic accuracy", "sentiment macro recall", "training rows", "minutes"], rows)


def transfer() -> Table:
    """What logistic regression on frozen embeddings reaches, on all rows of each task."""
    rows = []
    for system in ("frozen", "frozen-minilm"):
        found = load(f"multitask/{system}-0")["test"]
        rows.append([multitask.WORDS[system], *(f"{found[task][of]:.3f}" for task, of in FROZEN_TASKS.items())])
    return Table(["system", *(f"{task} {of.replace('_', ' ')}" for task, of in FROZEN_TASKS.items())], rows)


def classification_interval() -> Table:
    """The sampling error of the test rows: a recall is a share of its class's rows."""
    rows = []
    for task, measure in TASKS.items():
        found = load("multitask/first-all-0")["test"][task]
        confusion = np.array(found["confusion"])
        count = confusion.sum(axis=1)  # (classes,)
        recall = np.diag(confusion) / count
        weight = count / count.sum() if measure == "accuracy" else np.full(len(count), 1 / len(count))
        margin = norm.ppf(0.975) * np.sqrt((weight**2 * recall * (1 - recall) / count).sum())
        low, high = found[measure] - margin, found[measure] + margin
        name = f"{task} {measure.replace('_', ' ')}"
        rows.append([name, f"{count.sum():,}", f"{found[measure]:.3f}", f"{low:.3f} to {high:.3f}"])
    return Table([EARLIER_MULTITASK["first-all"], "test rows", "result", "95% interval"], rows)


def sharing() -> Table:
    rows = []
    for prefix, start in (("", "random weights"), ("first-", "the first encoder")):
        cells = []
        for task, measure in TASKS.items():
            together, alone = (
                [load(f"multitask/{prefix}{system}-{seed}")["test"][task][measure] for seed in range(SEEDS)]
                for system in ("together", task)
            )
            cells.append(difference(task, together, alone))
        rows.append([start, SEEDS, *cells])
    return Table(["both tasks less one alone, from", "seeds", "topic accuracy", "sentiment macro recall"], rows)


def costs() -> Table:
    found = load("costs")["scenarios"]
    whole = found["nothing"]["milliseconds_per_step"]
    rows = []
    for scenario, cost in found.items():
        step = cost["milliseconds_per_step"]
        once = f"{cost['milliseconds_per_text_before']:.1f}" if cost["milliseconds_per_text_before"] else ""
        memory = [f"{cost[name]:,.0f}" for name in ("added_megabytes", "optimizer_megabytes")]
        rows.append([scenario, f"{cost['trainable'] / 1e6:.1f}", f"{step:,.0f}", f"{step / whole:.0%}", once, *memory])
    header = ["frozen", "trainable (million)", "ms a step", "of nothing frozen", "once before, ms a text"]
    return Table([*header, "memory it added (MB)", "optimizer (MB)"], rows)


def frozen_results(encoder: str, target: str, scenario: str, size: int) -> list[dict[str, float]]:
    """What the trainings of one scenario reached."""
    paths = (freezing.result_path(encoder, target, scenario, size, seed) for seed in range(freezing.SEEDS))
    return [found["reached"] for found in load_all(paths)]


def freezing_scenarios(encoder: str) -> Table:
    rows = []
    for size in freezing.EPOCHS:
        for scenario in freezing.SCENARIOS:
            if found := frozen_results(encoder, "both", scenario, size):
                cells = [result(name, [f[name] for f in found]) for name in (*TASKS, "stsb_test")]
                rows.append([f"{size:,}", scenario, len(found), *cells])
    return Table(["rows", "frozen", "seeds", "topic accuracy", "sentiment macro recall", "stsb_test"], rows)


def freezing_differences() -> Table:
    rows = []
    for size in freezing.EPOCHS:
        nothing = frozen_results("shipped", "both", "nothing", size)
        for scenario in freezing.SCENARIOS:
            found = frozen_results("shipped", "both", scenario, size)
            if scenario not in ("nothing", "everything") and len(found) == len(nothing) == freezing.SEEDS:
                cells = [
                    difference(name, [f[name] for f in found], [f[name] for f in nothing])
                    for name in (*TASKS, "stsb_test")
                ]
                rows.append([f"{size:,}", scenario, *cells])
    return Table(["rows", "frozen, less nothing frozen", "topic accuracy", "sentiment macro recall", "stsb_test"], rows)


def near_and_far() -> Table:
    rows = []
    for size in freezing.EPOCHS:
        for scenario in freezing.SCENARIOS:
            cells, seeds = [], []
            for target, task in (("topic", "topic"), ("code", "package")):
                if found := frozen_results("shipped", target, scenario, size):
                    cells += [result(name, [f[name] for f in found]) for name in (task, "stsb_test")]
                    seeds.append(len(found))
            if cells:
                rows.append([f"{size:,}", scenario, min(seeds), *cells])
    header = ["rows", "frozen", "seeds", "news (near): accuracy", "stsb_test", "code (far): accuracy", "stsb_test"]
    return Table(header, rows)


def near_and_far_differences() -> Table:
    rows, zero = [], np.zeros(freezing.SEEDS)
    for scenario in ("the encoder", freezing.OUTSIDE):
        lost = {}
        for target, task in (("topic", "topic"), ("code", "package")):
            found, nothing = (
                [f[task] for f in frozen_results("shipped", target, name, 1_000)] for name in (scenario, "nothing")
            )
            lost[target] = np.subtract(found, nothing)
        compared = [(lost["topic"], zero), (lost["code"], zero), (lost["code"], lost["topic"])]
        rows.append([scenario, *(difference("accuracy", *pair) for pair in compared)])
    return Table(["1,000 rows, frozen, less nothing frozen", "news (near)", "code (far)", "far less near"], rows)


def heads() -> Table:
    parts = [(part, task) for part in ("dev", "test") for task in TASKS]
    rows = []
    for f in load("heads")["found"]:
        how = [f"{f['learning_rate']:g}", f["epochs"]] if "epochs" in f else ["", ""]
        rows.append([f"{f['rows']:,}", f["head"], *how, *(f"{f[part][task]:.3f}" for part, task in parts)])
    return Table(["rows", "head", "rate", "epochs", *(f"{part} {task}" for part, task in parts)], rows)


def keeping() -> Table:
    """What is kept and reached with each weight of `--keep-similarity`."""
    found: dict[float, list[Record]] = {}
    for path in sorted((RESULTS / "keeping").glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(one["weight"], []).append(one)
    measures = {name: of for name, of in MEASURES.items() if name != "dev at half"}
    rows = [
        [f"{weight:g}", len(records), *(result(name, [of(one) for one in records]) for name, of in measures.items())]
        for weight, records in sorted(found.items())
    ]
    nothing = found.pop(0.0)
    for weight, records in sorted(found.items()):
        if len(records) == len(nothing) == SEEDS:
            lost = [
                difference(name, [of(r) for r in records], [of(r) for r in nothing]) for name, of in measures.items()
            ]
            rows.append([f"{weight:g} less 0", len(records), *lost])
    return Table(["weight", "seeds", *measures], rows)


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


MEASURES: Mapping[str, Callable[[Record], float]] = {
    "topic accuracy": lambda found: found["test"]["topic"]["accuracy"],
    "sentiment macro recall": lambda found: found["test"]["sentiment"]["macro_recall"],
    "stsb_test": lambda found: found["scored"][1],
    "dev at half": lambda found: found["dev_scores"][len(found["dev_scores"]) // 2 - 1][1],
}


def strategies(encoder: str) -> Table:
    rows = [
        [name, f"{rate:g}", len(found), *(result(measure, [of(f) for f in found]) for measure, of in MEASURES.items())]
        for name, (rate, found) in at_best_rate(encoder).items()
    ]
    return Table(["strategy", "base rate", "seeds", *MEASURES], rows)


def strategy_differences(encoder: str) -> Table:
    best = at_best_rate(encoder)
    uniform = best.pop("uniform")[1]
    rows = [
        [name, *(difference(name, [of(f) for f in found], [of(f) for f in uniform]) for name, of in MEASURES.items())]
        for name, (_, found) in best.items()
        if len(found) == SEEDS
    ]
    return Table(["strategy, less uniform", *MEASURES], rows)


def sweep(encoder: str) -> Table:
    rows = []
    for name in at_best_rate(encoder):
        found = [recorded(encoder, name, rate, 0) for rate in BASE_RATES]
        rows.append([name, *(f"{dev_score(f):.3f} ({100 * f['scored'][1]:.1f})" for f in found)])
    return Table(["strategy", *(f"{rate:g}" for rate in BASE_RATES)], rows)


def moved() -> Table:
    rows = [
        [name, *(f"{100 * np.mean([f['moved'][stage] for f in found]):.2g}%" for stage in STAGES)]
        for name, (_, found) in at_best_rate("shipped").items()
    ]
    return Table(["strategy", *STAGES], rows)


def gradients() -> Table:
    """Averages over the first quarter of the training and over the last, which have five recorded moments each."""
    rows, quarters = [], (slice(5), slice(-5, None))
    for name, (_, found) in at_best_rate("shipped").items():
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


def short_similarity() -> Table:
    shown = {sts.WORDS[name] for name in ("untrained", "tfidf-characters", "minilm", "shipped")}
    return similarity().pick(["system", "stsb_test", "mean of 12 to 15"], lambda row: row[0] in shown)


def short_all_rows() -> Table:
    left_out = {EARLIER_MULTITASK[name] for name in ("frozen-second", "frozen-first")}
    columns = ["system", "topic accuracy", "sentiment macro recall"]
    return classification(ON_ALL).pick(columns, lambda row: row[0] not in left_out)


def short_freezing() -> Table:
    """Cost and result beside each other, with 1,000 rows."""
    cost = {row[0]: row[1:] for row in costs().pick(["frozen", "of nothing frozen", "memory it added (MB)"]).rows}
    words = {"nothing": "nothing", "the lower half": "the lower half", "the encoder": "the encoder"}
    words |= {freezing.OUTSIDE: "everything; logistic regression"}
    columns = ["frozen", "topic accuracy", "sentiment macro recall", "stsb_test"]
    reached = freezing_scenarios("shipped").pick(columns, lambda row: row[0] == "1,000" and row[1] in words)
    rows = [[words[name], *cost.get(name, ("", "")), *cells] for name, *cells in reached.rows]
    return Table(["frozen", "time a step", "MB", "topic", "sentiment", "stsb_test"], rows)


TABLES: Mapping[str, Callable[[], Table]] = {
    "data": data_files,
    "similarity": similarity,
    "paired": paired,
    "distillation-starts": distillation_starts,
    "distillation": distillation,
    "distillation-history": distillation_history,
    "bits": bits,
    "speed": speed,
    "starts": starts,
    "samples": samples,
    "defaults": default_choices,
    "all-rows": partial(classification, ON_ALL),
    "all-rows-interval": classification_interval,
    "some-rows": partial(
        classification, [name for name in (*multitask.WORDS, *EARLIER_MULTITASK) if name not in ON_ALL]
    ),
    "transfer": transfer,
    "sharing": sharing,
    "costs": costs,
    "freezing": partial(freezing_scenarios, "shipped"),
    "freezing-minilm": partial(freezing_scenarios, "minilm"),
    "freezing-differences": freezing_differences,
    "near-and-far": near_and_far,
    "near-and-far-differences": near_and_far_differences,
    "heads": heads,
    "keeping": keeping,
    "added-task": added_task,
    "strategies": partial(strategies, "shipped"),
    "strategies-minilm": partial(strategies, "minilm"),
    "strategy-differences": partial(strategy_differences, "shipped"),
    "strategy-differences-minilm": partial(strategy_differences, "minilm"),
    "sweep": partial(sweep, "shipped"),
    "sweep-minilm": partial(sweep, "minilm"),
    "moved": moved,
    "gradients": gradients,
    "rate-budget": rate_budget,
    "sample-rates": sample_rates,
    "short-similarity": short_similarity,
    "short-all-rows": short_all_rows,
    "short-freezing": short_freezing,
}


def updated(page: str) -> str:
    """A page's text with every table as its records have it."""
    return MARKED.sub(lambda match: match[1] + str(TABLES[match[2]]()), page)


def main() -> None:
    if names := sys.argv[1:]:
        print("\n".join(str(TABLES[name]()) for name in names), end="")
        return
    for path in PAGES:
        text = updated(path.read_text(encoding="utf-8"))
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
