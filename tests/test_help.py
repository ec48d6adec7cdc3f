"""Help is said at once: without torch, which takes seconds to load."""

import subprocess
import sys

import pytest

from common.cli import ROOT, only_help

COMMANDS = {
    "task1.py": ("embed", "train", "evaluate", "export"),
    "task2.py": ("train", "evaluate", "predict"),
    "task4.py": ("plan", "compare"),
}
PROGRAM = """
import runpy, sys
sys.argv.pop(0)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("torch" in sys.modules)
"""


def help_of(*words: str) -> str:
    """What a script prints, and whether it has loaded torch."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_a_scripts_help_names_its_commands_without_loading_torch(script):
    said = help_of(script, "--help")
    assert all(f"{script} {command}" in said for command in COMMANDS[script])
    assert said.endswith("False\n")


@pytest.mark.parametrize(("script", "command"), [(script, one) for script in COMMANDS for one in COMMANDS[script]])
def test_a_commands_help_names_its_options_without_loading_torch(script, command):
    said = help_of(script, command, "-h")
    assert f"usage: {script} {command}" in said and "--help" in said
    assert said.endswith("False\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], True),
        (["train", "a.csv", "-h"], True),
        ([], False),
        (["predict", "help"], False),
        (["predict", "--", "--help"], False),  # a text to classify
    ],
)
def test_help_is_told_from_a_text_of_that_name(monkeypatch, words, expected):
    monkeypatch.setattr(sys, "argv", ["task2.py", *words])
    assert only_help() is expected
