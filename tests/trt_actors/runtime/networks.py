"""Small networks cut into segments, and what one session of ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from trtfleet.datasets.signature import TensorSpec
from trtfleet.tests.trt_actors.runtime.doubles import double_plan
from trtfleet.trt_actors.partition.clean import clean
from trtfleet.trt_actors.partition.cut import cut
from trtfleet.trt_actors.partition.network import Network
from trtfleet.trt_actors.partition.segments import group_nodes
from trtfleet.trt_actors.partition.types import value_types
from trtfleet.trt_actors.runtime.program import NetworkProgram, SegmentProgram

Array = np.ndarray


def info(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "network", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolutional(batch: int | str = "N") -> onnx.ModelProto:
    """Convolutions with a shortcut, pooling, a linear layer and softmax; two outputs."""
    random = np.random.default_rng(1)
    node = helper.make_node
    return make(
        [
            node("Conv", ["image", "w1"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
            node("Add", ["b", "c"], ["d"]),
            node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
            node("GlobalAveragePool", ["e"], ["f"]),
            node("Flatten", ["f"], ["embedding"]),
            node("Gemm", ["embedding", "w3", "b3"], ["logits"]),
            node("Softmax", ["logits"], ["scores"]),
        ],
        [info("image", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [
            info("scores", TensorProto.FLOAT, [batch, 5]),
            info("embedding", TensorProto.FLOAT, [batch, 4]),
        ],
        {
            "w1": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "w2": random.normal(size=(4, 4, 3, 3)).astype(np.float32),
            "w3": random.normal(size=(4, 5)).astype(np.float32),
            "b3": random.normal(size=5).astype(np.float32),
        },
    )


def branching() -> onnx.ModelProto:
    """Two inputs of different types, branches that meet, a value read by many, integers and booleans."""
    node = helper.make_node
    return make(
        [
            node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
            node("Mul", ["x", "number"], ["scaled"]),
            node("Sin", ["scaled"], ["wave"]),
            node("Less", ["wave", "zero"], ["is_low"]),
            node("Where", ["is_low", "x", "wave"], ["chosen"]),
            node("Concat", ["chosen", "scaled"], ["pair"], axis=1),
            node("ReduceSum", ["pair", "axis"], ["total"], keepdims=1),
            node("Sub", ["pair", "total"], ["centred"]),
            node("Cast", ["is_low"], ["flags"], to=TensorProto.INT64),
            node("ArgMax", ["centred"], ["best"], axis=1, keepdims=0),
        ],
        [info("x", TensorProto.FLOAT, ["N", 6]), info("count", TensorProto.INT64, ["N", 1])],
        [
            info("centred", TensorProto.FLOAT, ["N", 12]),
            info("flags", TensorProto.INT64, ["N", 6]),
            info("best", TensorProto.INT64, ["N"]),
        ],
        {"zero": np.float32(0), "axis": np.array([1])},
    )


def data_dependent() -> onnx.ModelProto:
    """Values whose size depends on the data, in the middle: rows are sums over the positive elements."""
    node = helper.make_node
    return make(
        [
            node("Relu", ["x"], ["r"]),
            node("NonZero", ["r"], ["where"]),
            node("Transpose", ["where"], ["places"], perm=[1, 0]),
            node("GatherND", ["r", "places"], ["positives"]),
            node("Exp", ["positives"], ["grown"]),
            node("ReduceSum", ["grown"], ["sum"], keepdims=0),
            node("Mul", ["x", "sum"], ["y"]),
        ],
        [info("x", TensorProto.FLOAT, ["N", 4])],
        [info("y", TensorProto.FLOAT, ["N", 4])],
    )


def reshaping() -> onnx.ModelProto:
    """A shape that is computed and crosses segments."""
    node = helper.make_node
    return make(
        [
            node("Shape", ["x"], ["shape"]),
            node("Mul", ["shape", "twice"], ["doubled"]),
            node("Div", ["doubled", "half"], ["target"]),
            node("Abs", ["x"], ["positive"]),
            node("Reshape", ["positive", "target"], ["folded"]),
            node("ReduceMax", ["folded"], ["largest"], axes=[1], keepdims=0),
            node("Reshape", ["largest", "pairs"], ["y"]),
        ],
        [info("x", TensorProto.FLOAT, ["N", 6])],
        [info("y", TensorProto.FLOAT, ["N", 2])],
        {"twice": np.array([2, 1]), "half": np.array([1, 2]), "pairs": np.array([-1, 2])},
    )


NETWORKS = {each.__name__: each for each in (convolutional, branching, data_dependent, reshaping)}


def specs(values: Sequence[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """What an engine is told of inputs or outputs."""
    found = []
    for value in values:
        dims = [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param
            for dim in value.type.tensor_type.shape.dim
        ]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        batch = dims[0] if isinstance(dims[0], int) else None
        found.append(TensorSpec(name=value.name, dtype=dtype, row_shape=tuple(dims[1:]), batch=batch))
    return tuple(found)


def cut_up(
    model: onnx.ModelProto, chosen: Collection[int], rows: int = 8, *, values: Mapping[str, Any] | None = None
) -> NetworkProgram:
    """A network in segments: the chosen nodes as plans of the double for up to ``rows`` rows."""
    cleaned = clean(model)
    network, types = Network(cleaned), value_types(cleaned)
    segments = []
    for group in group_nodes(network.needs, chosen):
        part = cut(network, group.nodes, types)
        takes, gives = network.boundary(group.nodes)
        segments.append(
            SegmentProgram(
                kind="tensorrt" if group.chosen else "native",
                inputs=takes,
                outputs=gives,
                onnx=part.SerializeToString(),
                plan=plan_of(part, rows, values) if group.chosen else None,
            )
        )
    return NetworkProgram(segments=tuple(segments))


def plan_of(part: onnx.ModelProto, rows: int, values: Mapping[str, Any] | None = None) -> bytes:
    """A double's plan of a segment for 1 to ``rows`` rows; other free dimensions may be up to 1,000."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in part.graph.input}
    ranges = {}
    for name, dims in shapes.items():
        if any(not dim.HasField("dim_value") for dim in dims):
            most = tuple(
                dim.dim_value if dim.HasField("dim_value") else rows if dim.dim_param == "N" else 1000
                for dim in dims
            )
            least = tuple(
                dim.dim_value if dim.HasField("dim_value") else 1 if dim.dim_param == "N" else 0
                for dim in dims
            )
            ranges[name] = (least, most, most)
    known = {name: found for name, found in (values or {}).items() if name in shapes}
    return double_plan(part, [ranges], values=known)


def batch_of(model: onnx.ModelProto, rows: int, seed: int = 0) -> dict[str, Array]:
    """Random inputs."""
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for spec in specs(model.graph.input):
        shape = (rows, *(int(dim) for dim in spec.row_shape))
        if spec.dtype.kind == "f":
            made[spec.name] = random.normal(size=shape).astype(spec.dtype)
        else:
            made[spec.name] = random.integers(1, 5, shape).astype(spec.dtype)
    return made


def expected(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What one session makes of the whole network."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_same(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Integers are equal, and floats but for the order of additions."""
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)
