import dataclasses
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.cli import ROOT
from common.config import InferenceConfig, TrainingConfig
from common.devices import place, resolve_batch, resolve_precision, without_gradients
from common.heads import MultiTaskModel
from common.rows import LabelledRows
from common.states import with_states

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TEXTS = ["a ball and an atom"] * 400
DEFAULT = resolve_batch(None, CPU)


def test_auto_precision_is_bf16_only_where_the_processor_has_it(monkeypatch):
    for capabilities, expected in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx2": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert resolve_precision("auto", CPU) == expected


def test_batches_on_a_processor_are_smaller_than_on_an_accelerator_unless_told():
    assert resolve_batch(None, GPU) > DEFAULT
    assert resolve_batch(300, CPU) == resolve_batch(300, GPU) == 300


def test_an_evaluation_within_a_training_keeps_to_its_memory():
    config = TrainingConfig(precision="fp32")
    assert without_gradients(config, CPU) == {"batch_tokens": DEFAULT, "precision": "fp32"}
    small = dataclasses.replace(config, batch_tokens=300)
    assert without_gradients(small, CPU)["batch_tokens"] == 300


def states(model: MultiTaskModel) -> None:
    data = model.dataset(LabelledRows(TEXTS, {"mood": ["good"] * len(TEXTS)}, TEXTS))
    options = place(model.encoder, InferenceConfig(device="cpu", precision="fp32"))
    with_states(data, model.encoder, np.empty((sum(data.lengths), model.encoder.dim), np.float32), **options)


@pytest.mark.parametrize(
    "compute", [lambda model: model.encoder.encode(TEXTS), lambda model: model.predict(TEXTS), states]
)
def test_batches_are_as_large_as_is_quickest_on_the_device(tiny_encoder, monkeypatch, compute):
    model = MultiTaskModel(tiny_encoder, {"mood": ["bad", "good"]}).eval()
    sizes, token_states = [], tiny_encoder.token_states

    def counting(input_ids, attention_mask):
        sizes.append(input_ids.numel())
        return token_states(input_ids, attention_mask)

    monkeypatch.setattr("common.embedding.lowered", lambda module, precision: module)
    monkeypatch.setattr("common.heads.lowered", lambda module, precision: module)
    monkeypatch.setattr(tiny_encoder, "token_states", counting)
    compute(model)
    length = len(tiny_encoder.tokenizer(TEXTS[:1])[0])
    assert max(sizes) == DEFAULT // length * length


@pytest.mark.parametrize(
    ("environment", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_spin_little_unless_told_otherwise(environment, spins):
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "import common, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=clean | environment, cwd=ROOT
    )
    assert ran.stdout.split() == [spins]


GROW_AND_SHRINK = """
import psutil, torch
from common.devices import release_memory

def used():
    return psutil.Process().memory_info().rss / 2**20

torch.ones(2**22).sum()  # freed: from now on glibc takes arrays of up to 16 MB from its heap
arrays = [torch.ones(2**18) for _ in range(400)]  # 1 MB each
kept = arrays[::40]
del arrays
before = used()
release_memory()
print(before - used())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's way")
def test_memory_that_was_freed_between_what_is_in_use_goes_back_to_the_system():
    run = subprocess.run([sys.executable, "-c", GROW_AND_SHRINK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) > 200
