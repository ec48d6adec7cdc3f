"""Labelled rows of two tasks, and what a model says of them."""

import json

import task2

QUICK = ["--epochs", "2", "--batch-size", "8", "--device", "cpu", "--learning-rate", "1e-3"]
TOPICS, MOODS = ["Science", "Sports"], ["bad", "good", "so-so"]
ROWS = [
    [f"text {w} number {i}, {'ball' if i % 2 else 'atom'}", TOPICS[i % 2], MOODS[i % 3]]
    for i, w in enumerate("abcdefghijklmnop")
]


def evaluated(folder, path, capsys):
    """What `evaluate` says of a model."""
    task2.main(["evaluate", str(path), "--model", str(folder), "--json"])
    return json.loads(capsys.readouterr().out)
