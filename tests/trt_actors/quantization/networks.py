"""Small networks to quantize, and ranges for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from trtfleet.trt_actors.calibration.statistics import TensorStatistics
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.thresholds import Method
from trtfleet.trt_actors.quantization.placement import Placement, place
from trtfleet.trt_actors.quantization.source import quantizable
from trtfleet.trt_actors.reference import compute

Dims = Sequence[int | str]


def network(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Dims],
    outputs: Sequence[str],
    weights: Mapping[str, Sequence[int]],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of these nodes with seeded normal weights of these shapes."""
    rng = np.random.default_rng(7)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op_type: str, reads: str, writes: str, name: str | None = None, **attributes: object) -> NodeProto:
    """A node by the names of its values, separated by blanks; named as its first result by default."""
    outputs = writes.split()
    return helper.make_node(
        op_type, reads.split(), outputs, outputs[0] if name is None else name, **attributes
    )


def block(*, downsample: bool = False) -> onnx.ModelProto:
    """A residual block: two convolutions and a shortcut, with a convolution of its own or without."""
    nodes = [
        node("Relu", "x", "start"),
        node("Conv", "start w1 b1", "conv1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "conv1 gamma beta mean var", "norm1"),
        node("Relu", "norm1", "relu1"),
        node("Conv", "relu1 w2 b2", "conv2", pads=[1, 1, 1, 1]),
        *([node("Conv", "start w3", "conv3")] if downsample else []),
        node("Add", "conv2 conv3" if downsample else "conv2 start", "sum"),
        node("Relu", "sum", "y"),
    ]
    weights: dict[str, Sequence[int]] = {"w1": (4, 4, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,)}
    weights |= {"w3": (4, 4, 1, 1)} if downsample else {}
    model = network(nodes, {"x": ("N", 4, 8, 8)}, ["y"], weights)
    for name, value in (("gamma", 1.5), ("beta", 0.25), ("mean", 0.5), ("var", 2.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(4, value, np.float32), name))
    return model


def attention(dims: Dims = ("N", 7, 16)) -> onnx.ModelProto:
    """One head of attention with biases and a shortcut around it."""
    nodes = [
        node("MatMul", "x wq", "q0"),
        node("Add", "q0 bq", "q"),
        node("MatMul", "x wk", "k"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "scores"),
        node("Mul", "scores size", "scaled"),
        node("Softmax", "scaled", "p", axis=-1),
        node("MatMul", "x wv", "v"),
        node("MatMul", "p v", "mixed"),
        node("MatMul", "mixed wo", "o0"),
        node("Add", "bo o0", "o"),
        node("Add", "x o", "y"),
    ]
    weights = dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)) | {"bq": (16,), "bo": (16,)}
    model = network(nodes, {"x": dims}, ["y"], weights)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.02, np.float32), "size"))
    return model


def feeds_of(model: onnx.ModelProto, free: int = 2) -> dict[str, np.ndarray]:
    """Seeded input; free dimensions get one size."""
    rng = np.random.default_rng(5)
    return {
        value.name: rng.standard_normal(
            [dim.dim_value or free for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }


def ranges_of(
    model: onnx.ModelProto, placement: Placement, feeds: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Scales that just hold the values that one run has."""
    inner = [name for name in placement.activations if name not in feeds]
    values = {**feeds, **(compute(model, feeds, inner) if inner else {})}
    return {name: max(float(np.abs(values[name]).max()), 1e-3) / 127 for name in placement.activations}


def reads_of(model: onnx.ModelProto, name: str) -> list[str]:
    """What a node's inputs come from: the operator of their producer, else ``input`` or ``constant``."""
    producers = {out: made.op_type for made in model.graph.node for out in made.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    (found,) = [made for made in model.graph.node if made.name == name]
    return [producers.get(x, "constant" if x in constants else "input") for x in found.input]


def table_of(model: onnx.ModelProto, digest: str, *, exclude: tuple[str, ...] = ()) -> CalibrationTable:
    """A table made from one run of a model."""
    source = quantizable(model)
    feeds = feeds_of(source)
    tensors = place(source, exclude).activations
    inner = [name for name in tensors if name not in feeds]
    values = {**feeds, **(compute(source, feeds, inner) if inner else {})}
    return CalibrationTable.from_statistics(
        {name: TensorStatistics.of(values[name]) for name in tensors},
        model=digest,
        model_name="model.onnx",
        method=Method.parse("minmax"),
        samples=2,
        seed=0,
        batch_size=2,
        excluded=exclude,
    )
