"""Two processes do what one does: forked from this one where that is enough, else under torchrun and accelerate."""

import csv
import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import psutil
import pytest
from accelerate import PartialState

import task1
import task2
from common import predictions
from common.checkpoint import CHECKPOINT

ROOT = Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# An odd number of rows; the one row with a tone is seen by a single process of the two.
ROWS = [
    [f"text {w} number {i}" + " and so on" * (i % 4), ["Science", "Sports"][i % 2], {2: "dry", 5: "warm"}.get(i, "")]
    for i, w in enumerate("abcdefghijklmnopqrs")
]
PAIRS = [[f"this is line {i}", f"line {i} it is" + " again" * (i % 3), i % 4] for i in range(11)]
EXACT = ["--precision", "fp32", "--device", "cpu", "--learning-rate", "1e-4"]


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
PORTS = iter(range(29_610 + 100 * WORKER, 29_710 + 100 * WORKER))


def launched(*arguments, launch=TORCHRUN):
    """A started script under torchrun or accelerate."""
    command = [*launch, str(next(PORTS)), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, **pipes)


def child(rank, port, main, arguments, output):
    """One of two processes, forked so that nothing has to be imported again."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    PartialState._reset_state()
    with output.open("w") if rank == 0 else Path(os.devnull).open("w") as stream, redirect_stdout(stream):
        main(list(map(str, arguments)))


def run(main, *arguments, processes, output):
    """What a script's main prints, on one process or on two."""
    if processes == 1:
        with output.open("w") as stream, redirect_stdout(stream):
            main(list(map(str, arguments)))
    else:
        fork, port = multiprocessing.get_context("fork"), next(PORTS)
        workers = [fork.Process(target=child, args=(rank, port, main, arguments, output)) for rank in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
    return output.read_text()


def losses(folder):
    """The training losses in a run's history."""
    if (folder / "training.json").is_file():
        return [row["train loss"] for row in json.loads((folder / "training.json").read_text())["history"]]
    with (folder / "history.csv").open() as stream:
        return [float(row["train loss"]) for row in csv.DictReader(stream)]


@pytest.fixture
def labelled(write_csv):
    return write_csv("labelled.csv", ["text", "topic", "tone"], ROWS)


@pytest.fixture
def pairs(write_csv):
    return write_csv("pairs.csv", ["sentence1", "sentence2", "score"], PAIRS)


STEPS = ["--evaluate-every", "1", "--batch-size", "5", "--dropout", "0"]


def same_losses(main, *command, tmp_path, steps=50):
    """The folders of a training on one process and on two, whose losses are the same at each of so many steps."""
    command = (*command, "--max-steps", steps)
    folders = [tmp_path / "one", tmp_path / "two"]
    for processes, folder in enumerate(folders, 1):
        run(main, *command, "--output", folder, processes=processes, output=tmp_path / "out")
    one, two = map(losses, folders)
    assert len(one) == steps
    assert two == pytest.approx(one, abs=1e-4)
    return folders


@pytest.mark.parametrize("frozen", [[], ["--freeze", "encoder"]])
def test_task2_trains_to_the_losses_of_one_process(frozen, labelled, tiny_folder, tmp_path):
    command = ["train", labelled, "--encoder", tiny_folder, *STEPS, *EXACT, *frozen]
    _, two = same_losses(task2.main, *command, tmp_path=tmp_path, steps=15 if frozen else 50)
    assert not list(two.glob(".token*"))


@pytest.mark.parametrize("columns", [2, 3])
def test_task1_trains_to_the_losses_of_one_process(columns, write_csv, tiny_folder, tmp_path):
    header = ["sentence1", "sentence2", "score"][:columns]
    pairs = write_csv("train.csv", header, [row[:columns] for row in PAIRS])
    same_losses(
        task1.main,
        "train",
        pairs,
        "--model",
        tiny_folder,
        *STEPS,
        *EXACT,
        tmp_path=tmp_path,
        steps=50 if columns == 2 else 15,
    )


def test_distillation_has_the_losses_of_one_process(write_csv, tiny_folder, tmp_path):
    texts = write_csv("texts.csv", ["text"], [[row[0]] for row in PAIRS])
    command = ["train", texts, "--model", tiny_folder, "--teacher", tiny_folder, *STEPS, *EXACT]
    same_losses(task1.main, *command, tmp_path=tmp_path, steps=15)


@pytest.mark.parametrize("launch", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_the_launchers_give_the_losses_of_one_process(launch, labelled, tiny_folder, tmp_path):
    command = ["train", labelled, "--encoder", tiny_folder, *STEPS, *EXACT, "--max-steps", "10"]
    worker = launched("task2.py", *command, "--output", tmp_path / "two", launch=launch)
    _, said = worker.communicate()
    assert worker.returncode == 0, said[-3000:]
    run(task2.main, *command, "--output", tmp_path / "one", processes=1, output=tmp_path / "out")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_a_step_smaller_than_the_processes_trains_too(labelled, tiny_folder, tmp_path):
    command = ["train", labelled, "--encoder", tiny_folder, *STEPS, *EXACT, "--batch-size", "1"]
    same_losses(task2.main, *command, tmp_path=tmp_path, steps=15)


def test_embed_shares_the_sentences_and_keeps_their_order(labelled, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(task1, "CHUNK", 7)
    arrays = [tmp_path / "1.npy", tmp_path / "2.npy"]
    for processes, array in enumerate(arrays, 1):
        command = ["embed", labelled, "--model", tiny_folder, "--output", array]
        run(task1.main, *command, processes=processes, output=tmp_path / "out")
    np.testing.assert_allclose(np.load(arrays[1]), np.load(arrays[0]), atol=1e-6)


def test_evaluate_shares_the_pairs(pairs, tiny_folder, tmp_path):
    command = ["evaluate", pairs, "--model", tiny_folder, "--json"]
    one, two = (
        json.loads(run(task1.main, *command, processes=processes, output=tmp_path / "out")) for processes in (1, 2)
    )
    assert two["spearman"]["value"] == pytest.approx(one["spearman"]["value"], abs=1e-6)


def test_predict_and_evaluate_share_the_texts_and_keep_their_order(labelled, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "CHUNK", 7)
    model, out = tmp_path / "model", tmp_path / "out"
    run(task2.main, "train", labelled, "--encoder", tiny_folder, "--output", model, processes=1, output=out)
    predict = ["predict", "--input", labelled, "--model", model, "--format", "jsonl"]
    one, two = (run(task2.main, *predict, processes=n, output=out).splitlines() for n in (1, 2))
    one, two = ([json.loads(line) for line in lines] for lines in (one, two))
    assert [row["text"] for row in two] == [row["text"] for row in one] == [row[0] for row in ROWS]
    for left, right in zip(one, two, strict=True):
        found, same = (row["predicted topic"]["probabilities"] for row in (left, right))  # "topic" is the file's own
        assert same == pytest.approx(found, abs=1e-5)
    evaluate = ["evaluate", labelled, "--model", model, "--json"]
    one, two = (json.loads(run(task2.main, *evaluate, processes=n, output=out)) for n in (1, 2))
    assert two["topic"]["confusion"] == one["topic"]["confusion"]


def test_a_killed_worker_ends_the_run_in_one_sentence_and_one_process_goes_on(labelled, tiny_folder, tmp_path):
    command = ["train", labelled, "--encoder", tiny_folder, "--dev", labelled, *EXACT, "--dropout", "0"]
    command += ["--max-steps", "40", "--evaluate-every", "5", "--batch-size", "5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    launcher = launched("task2.py", *command, "--output", parts)
    while not (parts / CHECKPOINT).is_file() and launcher.poll() is None:
        time.sleep(0.05)
    workers = psutil.Process(launcher.pid).children()
    workers[1].kill()
    _, said = launcher.communicate()
    assert launcher.returncode != 0
    ours = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("task2.py: ")]
    assert len(ours) == 1 and "--resume goes on from there" in ours[0]
    for folder, options in ((parts, ["--resume"]), (whole, [])):
        run(task2.main, *command, "--output", folder, *options, processes=1, output=tmp_path / "out")
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-3)


def test_a_mistake_is_said_once(tmp_path):
    launcher = launched("task2.py", "train", "none.csv", "--output", tmp_path / "o")
    _, said = launcher.communicate()
    assert launcher.returncode != 0 and said.count("none.csv: no such file") == 1
    assert not (tmp_path / "o").exists()
