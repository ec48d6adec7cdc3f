"""Every table of results, in README.md, benchmarks/README.md and the weights' card, made from the records alone.

    python -m benchmarks.tables NAME    print one, as Markdown
    python -m benchmarks.tables         bring the pages up to date

A page names its tables in comments, `<!-- python -m benchmarks.tables NAME -->`, each with its table right beneath it.
"""

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks import encoder_tables, freezing_tables, rate_tables, task_tables
from benchmarks.table import Table
from common.cli import ROOT
from common.files import atomic_file

PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "common" / "weights" / "README.md")
MARKED = re.compile(r"(<!-- python -m benchmarks\.tables (\S+) -->\n)((?:\|.*\n)*)")

TABLES: Mapping[str, Callable[[], Table]] = {
    "data": encoder_tables.data_files,
    "similarity": encoder_tables.similarity,
    "paired": encoder_tables.paired,
    "near-misses": encoder_tables.near_misses,
    "distillation-starts": encoder_tables.distillation_starts,
    "distillation": encoder_tables.distillation,
    "distillation-history": encoder_tables.distillation_history,
    "bits": encoder_tables.bits,
    "speed": encoder_tables.speed,
    "speed-without-avx512": encoder_tables.speed_without_avx512,
    "memory": encoder_tables.memory,
    "starts": encoder_tables.starts,
    "side-by-side": encoder_tables.side_by_side,
    "training-speed": encoder_tables.training_speed,
    "samples": task_tables.samples,
    "defaults": task_tables.default_choices,
    "all-rows": partial(task_tables.classification, task_tables.ON_ALL),
    "all-rows-interval": task_tables.classification_interval,
    "some-rows": partial(task_tables.classification, task_tables.ON_SOME),
    "transfer": task_tables.transfer,
    "sharing": task_tables.sharing,
    "costs": freezing_tables.costs,
    "freezing": freezing_tables.freezing_scenarios,
    "freezing-differences": freezing_tables.freezing_differences,
    "near-and-far": freezing_tables.near_and_far,
    "near-and-far-differences": freezing_tables.near_and_far_differences,
    "heads": freezing_tables.heads,
    "keeping": freezing_tables.keeping_ways,
    "keeping-order": freezing_tables.keeping_order,
    "growing": freezing_tables.growing_ways,
    "added-task": freezing_tables.added_task,
    "strategies": rate_tables.strategies,
    "strategy-differences": rate_tables.strategy_differences,
    "sweep": rate_tables.sweep,
    "moved": rate_tables.moved,
    "gradients": rate_tables.gradients,
    "rate-budget": rate_tables.rate_budget,
    "sample-rates": rate_tables.sample_rates,
    "short-similarity": encoder_tables.short_similarity,
    "short-all-rows": task_tables.short_all_rows,
    "short-freezing": freezing_tables.short_freezing,
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
