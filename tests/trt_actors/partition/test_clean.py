"""Cleaning: the same results from fewer nodes, and every value's type known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.trt_actors.partition.clean import clean
from trtfleet.trt_actors.partition.types import value_types
from trtfleet.trt_actors.reference import compute


def network(kind: int, *, batch: str | int = "N") -> onnx.ModelProto:
    """``y = x * (a + b)`` reshaped by sizes taken from ``x``, with an unused node besides."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Mul", ["x", "sum"], ["scaled"]),
        helper.make_node("Shape", ["scaled"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "one", "three"], ["tail"]),
        helper.make_node("ReduceProd", ["tail"], ["width"]),
        helper.make_node("Concat", ["minus", "width"], ["target"], axis=0),
        helper.make_node("Reshape", ["scaled", "target"], ["y"]),
        helper.make_node("Abs", ["scaled"], ["nobody"]),
    ]
    constants = {
        "a": np.array([1, 2, 3], dtype),
        "b": np.array([0.5, 0.25, 4], dtype),
        "one": np.array([1], np.int64),
        "three": np.array([3], np.int64),
        "minus": np.array([-1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "sizes",
        [helper.make_tensor_value_info("x", kind, [batch, 2, 3])],
        [helper.make_tensor_value_info("y", kind, [batch, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("batch", ["N", 4])
def test_it_computes_the_same_with_fewer_nodes(kind: int, batch: str | int) -> None:
    model = network(kind, batch=batch)
    cleaned = clean(model)
    onnx.checker.check_model(cleaned, full_check=True)
    feeds = {"x": np.arange(24).reshape(4, 2, 3).astype(helper.tensor_dtype_to_np_dtype(kind))}
    np.testing.assert_array_equal(compute(cleaned, feeds, ["y"])["y"], compute(model, feeds, ["y"])["y"])
    left = [node.op_type for node in cleaned.graph.node]
    assert "Add" not in left
    assert "Abs" not in left
    assert len(left) < len(model.graph.node)
    if batch == 4:
        assert left == ["Mul", "Reshape"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16], ids=["fp32", "fp16"])
def test_it_inserts_no_casts(kind: int) -> None:
    assert "Cast" not in {node.op_type for node in clean(network(kind)).graph.node}


def test_every_value_gets_a_type() -> None:
    cleaned = clean(network(TensorProto.FLOAT))
    types = value_types(cleaned)
    assert all(name in types for node in cleaned.graph.node for name in node.output)


def test_the_model_given_is_not_changed() -> None:
    model = network(TensorProto.FLOAT16, batch=4)
    before = model.SerializeToString(deterministic=True)
    clean(model)
    assert model.SerializeToString(deterministic=True) == before


def test_an_operator_only_onnxruntime_knows_gets_its_type_from_it() -> None:
    nodes = [
        helper.make_node("FastGelu", ["x"], ["inner"], domain="com.microsoft"),
        helper.make_node("Abs", ["inner"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gelu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    cleaned = clean(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert value_types(cleaned)["inner"].tensor_type.elem_type == TensorProto.FLOAT


def test_a_domain_that_nobody_knows_leaves_the_model_as_it_is() -> None:
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="org.example")],
        "unknown",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
    cleaned = clean(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert [node.op_type for node in cleaned.graph.node] == ["Frobnicate"]


def test_an_old_model_that_lists_its_constants_as_inputs() -> None:
    model = network(TensorProto.FLOAT)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    cleaned = clean(model)
    assert [value.name for value in cleaned.graph.input] == ["x"]
    types = value_types(cleaned)
    assert all(name in types for node in cleaned.graph.node for name in node.output)
