"""Half precision: what overflows stays single, and the loss is measured."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.errors import ModelError
from trtfleet.trt_actors.building.half import to_half
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.building.precision import to_precision
from trtfleet.trt_actors.partition.types import infer, value_types


def dense(scale: float = 0.3, widths: tuple[int, ...] = (16, 16, 8)) -> onnx.ModelProto:
    """Matrix products one behind the other; ``scale`` multiplies the weights of the first."""
    rng = np.random.default_rng(3)
    nodes, weights, value, width = [], [], "x", 16
    for layer, size in enumerate(widths):
        weight = rng.standard_normal((width, size)).astype(np.float32) * (scale if layer == 0 else 0.3)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"], name=f"matmul{layer}"))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"], name=f"tanh{layer}"))
        value, width = f"t{layer}", size
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", widths[-1]])],
        weights,
    )
    return infer(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


FEEDS = {"x": np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)}


def test_every_product_is_halved_and_the_interface_stays() -> None:
    half = to_half(dense(), FEEDS)
    assert (half.halved, half.multiplying, dict(half.kept)) == (3, 3, {})
    types = value_types(half.model)
    assert types["x"].tensor_type.elem_type == TensorProto.FLOAT
    assert types["t2"].tensor_type.elem_type == TensorProto.FLOAT


def test_the_loss_is_small_and_not_nothing() -> None:
    loss = to_half(dense(), FEEDS).loss["t2"]
    assert 0 < loss < 0.01


def test_what_overflows_stays_in_single_precision() -> None:
    half = to_half(dense(scale=20_000.0), FEEDS)
    assert set(half.kept) == {"matmul0", "tanh0"}
    assert "half precision ends at 65504" in half.kept["matmul0"]
    assert (half.halved, half.multiplying) == (2, 3)
    assert half.loss["t2"] < 0.01


def test_a_constant_beyond_half_precision_keeps_its_node() -> None:
    model = dense()
    weight = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[0, 0] = 1e6
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "w1"))
    half = to_half(model, {"x": FEEDS["x"] * 0})
    assert "w1 reaches 1e+06" in half.kept["matmul1"]


def test_nodes_without_names_are_told_apart() -> None:
    model = dense(scale=20_000.0)
    for node in model.graph.node:
        node.ClearField("name")
    half = to_half(model, FEEDS)
    assert (half.halved, len(half.kept)) == (2, 2)


def test_the_model_given_is_not_changed() -> None:
    model = dense()
    before = model.SerializeToString(deterministic=True)
    to_half(model, FEEDS)
    assert model.SerializeToString(deterministic=True) == before


def test_single_precision_changes_nothing_in_the_types() -> None:
    network = to_precision(dense(), BuildOptions())
    assert network.half is None
    assert {t.tensor_type.elem_type for t in value_types(network.model).values()} == {TensorProto.FLOAT}


def test_int8_without_quantizers_is_refused() -> None:
    with pytest.raises(ModelError, match="precision int8 was asked for, the model has no QuantizeLinear"):
        to_precision(dense(), BuildOptions(precision="int8"))
