import json
import re

import pytest

from benchmarks import table
from benchmarks.table import Table, difference
from benchmarks.tables import MARKED, PAGES, TABLES, updated

RESULTS = re.compile(r"(?<![\d.])(?:0\.\d{3}|\d\d\.\d)(?![\d.])")  # 0.871, 82.4
# Published by others: GloVe, SBERT and SimCSE on STS-B; TweetEval's systems on sentiment.
PUBLISHED = {"58.0", "77.0", "76.9", "0.583", "0.629", "0.713", "0.734"}


def words(page):
    """A page's text without its code and without the tables that are made from records."""
    return re.sub(r"```.*?```", "", MARKED.sub("", page.read_text(encoding="utf-8")), flags=re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_marked_table_is_what_its_records_say(page):
    text = page.read_text(encoding="utf-8")
    assert MARKED.search(text)
    assert updated(text) == text, "run python -m benchmarks.tables"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_result_in_the_text_stands_in_a_table_of_the_records(page):
    recorded = set(RESULTS.findall("\n".join(str(table()) for table in TABLES.values())))
    assert set(RESULTS.findall(words(page))) <= recorded | PUBLISHED


def test_the_headline_is_the_shipped_encoders_own():
    reached = 100 * table.load("sts/shipped")["files"]["stsb_test"]["spearman"]
    assert f"**Embeddings:** {reached:.1f} on stsb_test" in PAGES[0].read_text(encoding="utf-8")


def test_every_table_is_on_a_page():
    assert {name for page in PAGES for _, name, _ in MARKED.findall(page.read_text("utf-8"))} == set(TABLES)


def test_a_changed_record_changes_the_page(tmp_path, monkeypatch):
    found = table.load("distill/starts")
    found["stsb_dev"]["the teacher"] = 0.1234
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "starts.json").write_text(json.dumps(found))
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    page = "<!-- python -m benchmarks.tables distillation-starts -->\n| old |\n| --- |\n\nText.\n"
    assert "| the teacher | 12.3 |" in updated(page)
    assert "old" not in updated(page)
    assert updated(page).endswith("|\n\nText.\n")


def test_a_difference_is_in_bold_only_where_its_interval_leaves_out_zero():
    # Differences 1, 2, 3: mean 2, standard error 1/√3, and t(0.975, 2) = 4.303.
    assert difference("topic", [0.1, 0.2, 0.3], [0, 0, 0]) == "+0.200 (-0.048 to +0.448)"
    assert difference("topic", [0.1, 0.11, 0.12], [0, 0, 0]) == "**+0.110 (+0.085 to +0.135)**"
    assert difference("topic", [0.3, 0.4, 0.5], [0.3, 0.4, 0.5]) == "0.000"


def test_similarity_is_given_in_hundredths():
    assert difference("stsb_test", [0.8, 0.81, 0.82], [0.7, 0.7, 0.7]) == "**+11.0 (+8.5 to +13.5)**"


def test_columns_and_rows_are_picked_by_name():
    small = Table(["a", "b"], [[1, 2], [3, 4]])
    assert str(small.pick(["b"], lambda row: row[0] == 3)) == "| b |\n| --- |\n| 4 |\n"
