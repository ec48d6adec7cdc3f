"""One way of embedding, in a process of its own: `benchmarks/speed.py` starts it, in an environment that has it.

The first line of input is JSON, {"system", "folder", "texts", "sentences"}. Each further line is a command, answered by
a line of JSON: "all" and "one" by the seconds that embedding all texts and the first took, "save PATH" by null once
the embeddings of texts and sentences are there.
"""

import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

Encode = Callable[[list[str]], np.ndarray]
CALLS = 10  # with one sentence, of which the median counts
PEERS = ("fp32", "bf16", "onnx", "onnx int8", "openvino", "openvino int8")
TASKS = {"topic": ["a", "b", "c", "d", "e"], "sentiment": ["a", "b", "c"]}  # those of the sample data, by size


def ours(how: str, folder: str) -> Encode:
    """This project's `encode` in a precision, or its `predict` for two tasks."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from common.encoder import SentenceEncoder
    from common.heads import MultiTaskModel

    encoder = SentenceEncoder.from_pretrained(folder)
    return MultiTaskModel(encoder, TASKS).predict if how == "predict" else partial(encoder.encode, precision=how)


def peer(system: str, folder: str, texts: list[str]) -> Encode:
    """sentence-transformers, with torch, ONNX Runtime or OpenVINO beneath it; static int8 is fitted to the texts."""
    from sentence_transformers import (
        SentenceTransformer,
        export_dynamic_quantized_onnx_model,
        export_static_quantized_openvino_model,
    )

    backend, _, quantized = system.partition(" ")
    if backend in ("fp32", "bf16"):
        options = {"model_kwargs": {"torch_dtype": "bfloat16"}} if backend == "bf16" else {}
        model = SentenceTransformer(folder, device="cpu", **options)
        return partial(model.encode, normalize_embeddings=True)
    model = SentenceTransformer(folder, device="cpu", backend=backend, model_kwargs={"export": True})
    if quantized:
        output = f"{folder}/{backend}-int8"
        model.save_pretrained(output)
        if backend == "onnx":
            export_dynamic_quantized_onnx_model(model, "avx512_vnni", output)
            name = "model_qint8_avx512_vnni.onnx"
        else:
            export_static_quantized_openvino_model(model, None, output, *written(texts, Path(folder) / "texts"))
            name = "openvino_model_qint8_quantized.xml"
        options = {"file_name": f"{backend}/{name}"}
        model = SentenceTransformer(output, device="cpu", backend=backend, model_kwargs=options)
    return partial(model.encode, normalize_embeddings=True)


def written(texts: list[str], folder: Path) -> tuple[str, str, str, str]:
    """Texts as a data set: its folder, configuration, split and column."""
    folder.mkdir(exist_ok=True)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in texts)])
    return str(folder), "default", "train", "text"


def seconds(encode: Encode, texts: list[str]) -> float:
    started = time.perf_counter()
    encode(texts)
    return time.perf_counter() - started


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not stand between the answers
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.readline())
    system, texts = asked["system"], asked["texts"]
    encode = (
        peer(system, asked["folder"], texts) if system in PEERS else ours(system.removeprefix("ours "), asked["folder"])
    )
    encode(texts[:8])
    for command in map(str.split, sys.stdin):
        answer = None
        if command[0] == "save":
            np.save(command[1], np.asarray(encode([*texts, *asked["sentences"]]), dtype=np.float32))
        elif command[0] == "all":
            answer = seconds(encode, texts)
        else:
            answer = statistics.median(seconds(encode, texts[:1]) for _ in range(CALLS))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
