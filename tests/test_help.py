"""Help is said at once: without the libraries that take seconds to load."""

import subprocess
import sys

import pytest

import task1
import task2
import task4
from common.cli import ROOT, only_help

SCRIPTS = {"task1.py": task1, "task2.py": task2, "task4.py": task4}
SLOW = ("torch", "transformers", "accelerate", "scipy", "numpy")
PROGRAM = """
import runpy, sys
slow, *sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("loaded:", sorted(sys.modules.keys() & set(slow.split())))
"""


def help_of(*words: str) -> str:
    """What a script prints, and which of the slow libraries it has loaded."""
    command = [sys.executable, "-c", PROGRAM, " ".join(SLOW), *words]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_scripts_help_names_its_commands_and_loads_nothing_slow(script):
    said = help_of(script, "--help")
    assert all(f"{script} {command}" in said for command in SCRIPTS[script].COMMANDS)
    assert said.endswith("loaded: []\n")


@pytest.mark.parametrize(
    ("script", "command"), [(script, command) for script in SCRIPTS for command in SCRIPTS[script].COMMANDS]
)
def test_a_commands_help_names_its_options_and_loads_nothing_slow(script, command):
    said = help_of(script, command, "-h")
    assert f"usage: {script} {command}" in said and "--help" in said
    assert said.endswith("loaded: []\n")


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
    assert only_help("__main__") is expected


def test_a_program_that_imports_a_script_has_a_help_of_its_own(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["other.py", "--help"])
    assert not only_help("task2")
