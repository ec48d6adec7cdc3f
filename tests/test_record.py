import json

from benchmarks import record


def test_a_record_says_how_it_was_made_without_a_path_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr("sys.argv", ["benchmarks/sts.py", str(tmp_path / "data"), "../near", "shipped", "--seeds", "2"])
    path = record.RESULTS / "made.json"
    record.record(path, {"found": 1})
    written = json.loads(path.read_text())
    assert written["command"] == "python -m benchmarks.sts data ../near shipped --seeds 2"
    assert written["found"] == 1
    assert str(tmp_path) not in path.read_text()
    assert set(record.PACKAGES) <= set(written["versions"])
