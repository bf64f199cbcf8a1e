"""Small models and datasets to calibrate, and what there is to observe in them, computed in the plain way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from trtfleet.trt_actors.calibration.observer import Observer
from trtfleet.trt_actors.calibration.statistics import Statistics

NORMALIZE = "128:64"


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    shape: Sequence[int | str],
    output: Sequence[int | str],
) -> Path:
    """Writes a model with input ``x`` and output ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def convolutional(path: Path, batch: int | str = "N") -> Path:
    """Two convolutions with a shortcut around the second, and a linear layer; observed are x, b, d and f."""
    random = np.random.default_rng(1)
    node = helper.make_node
    return save(
        path,
        [
            node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
            node("Add", ["c", "b"], ["d"]),
            node("Conv", ["d", "w2"], ["e"], pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", ["e"], ["g"]),
            node("Flatten", ["g"], ["f"]),
            node("Gemm", ["f", "w3"], ["y"]),
        ],
        {
            "w1": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "w2": random.normal(size=(4, 4, 3, 3)).astype(np.float32),
            "w3": random.normal(size=(4, 5)).astype(np.float32),
        },
        [batch, 3, 8, 8],
        [batch, 5],
    )


def linear(path: Path, inputs: int = 4, hidden: int = 8) -> Path:
    """Two products with a ReLU in between; observed are x and h."""
    random = np.random.default_rng(2)
    node = helper.make_node
    return save(
        path,
        [
            node("MatMul", ["x", "w1"], ["p"]),
            node("Relu", ["p"], ["h"]),
            node("MatMul", ["h", "w2"], ["y"]),
        ],
        {
            "w1": random.normal(size=(inputs, hidden)).astype(np.float32),
            "w2": random.normal(size=(hidden, 2)).astype(np.float32),
        },
        ["N", inputs],
        ["N", 2],
    )


def images(rows: int, seed: int = 0) -> np.ndarray:
    """uint8[rows, 8, 8, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)


def write_images(folder: Path, rows: Sequence[int] = (70, 50), row_group_rows: int = 20) -> Path:
    """Writes Parquet files of images as ``x``, with numbers as ``id``, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, count in enumerate(rows):
        made = images(sum(rows))[first : first + count]
        table = pa.table(
            {
                "id": np.arange(first, first + count),
                "x": pa.FixedShapeTensorArray.from_numpy_ndarray(made),
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=row_group_rows)
        first += count
    return folder


def write_vectors(path: Path, values: np.ndarray, row_group_rows: int = 1000) -> Path:
    """Writes float32[rows, n] as column ``x``."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    pq.write_table(pa.table({"x": lists}), path, row_group_size=row_group_rows)
    return path


def activations(model: onnx.ModelProto, feeds: Mapping[str, Any], names: Sequence[str]) -> list[np.ndarray]:
    """Inner values of a model, on one thread, all rows in one batch."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(list(names), dict(feeds))
    return found


def observe(observer: Observer, batches: Sequence[np.ndarray]) -> Statistics:
    """The statistics of some batches of the input ``x``; opens and closes the observer."""
    opened = observer.open()
    try:
        collection = opened.collection()
        for batch in batches:
            collection.add({"x": batch})
        found = collection.statistics()
        collection.close()
        return found
    finally:
        opened.close()
