"""The network that quantization starts from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.errors import ModelError
from trtfleet.tests.trt_actors.quantization.networks import block, feeds_of, network, node
from trtfleet.trt_actors.partition.types import value_types
from trtfleet.trt_actors.quantization.source import quantizable
from trtfleet.trt_actors.reference import compute


def ops(model: onnx.ModelProto) -> list[str]:
    return [made.op_type for made in model.graph.node]


def old(opset: int) -> onnx.ModelProto:
    """A classifier whose Softmax meant something else before opset 13; most nodes have no name."""
    nodes = [
        node("Conv", "x w", "conv", ""),
        node("Relu", "conv", "relu", ""),
        node("Softmax", "relu", "soft", "", axis=1),
        node("Flatten", "soft", "flat", ""),
        node("Gemm", "flat v b", "y", "classify"),
    ]
    shapes = {"w": (8, 4, 3, 3), "v": (288, 5), "b": (5,)}
    return network(nodes, {"x": ("N", 4, 8, 8)}, ["y"], shapes, opset=opset)


def test_batch_normalization_becomes_part_of_the_convolution() -> None:
    assert ops(quantizable(block())) == ["Relu", "Conv", "Relu", "Conv", "Add", "Relu"]


def test_it_computes_what_the_model_computes() -> None:
    model = block(downsample=True)
    feeds = feeds_of(model)
    np.testing.assert_allclose(
        compute(quantizable(model), feeds, ["y"])["y"],
        compute(model, feeds, ["y"])["y"],
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_interface_stays_and_inner_values_have_types() -> None:
    source = quantizable(block())
    types = value_types(source)
    assert ([v.name for v in source.graph.input], [v.name for v in source.graph.output]) == (["x"], ["y"])
    named = [out for made in source.graph.node for out in made.output]
    assert {types[name].tensor_type.elem_type for name in named} == {TensorProto.FLOAT}


def test_the_model_given_is_not_changed() -> None:
    model = old(9)
    before = model.SerializeToString(deterministic=True)
    quantizable(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 22])
def test_old_opsets_are_raised_and_compute_the_same(opset: int) -> None:
    model = old(opset)
    source = quantizable(model)
    assert source.opset_import[0].version == max(13, opset)
    onnx.checker.check_model(source, full_check=True)
    feeds = feeds_of(model)
    np.testing.assert_allclose(
        compute(source, feeds, ["y"])["y"], compute(model, feeds, ["y"])["y"], rtol=1e-5, atol=1e-5
    )


def test_every_node_gets_a_name_that_is_the_same_each_time() -> None:
    first, second = quantizable(old(9)), quantizable(old(9))
    names = [made.name for made in first.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert names == [made.name for made in second.graph.node]
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert {"Conv_0", "Relu_1", "classify"} <= set(names)


def test_names_given_twice_are_told_apart_and_the_first_keeps_it() -> None:
    nodes = [
        node("MatMul", "x w", "a", "same"),
        node("Tanh", "a", "b", "Tanh_2"),
        node("Tanh", "b", "c", "same"),
        node("MatMul", "c w", "y", "same"),
    ]
    source = quantizable(network(nodes, {"x": ("N", 8)}, ["y"], {"w": (8, 8)}))
    assert [made.name for made in source.graph.node] == ["same", "Tanh_2", "Tanh_2_", "MatMul_3"]


def test_a_merged_product_keeps_its_name() -> None:
    nodes = [node("MatMul", "x w", "a", "fc"), node("Add", "a b", "y", "bias")]
    source = quantizable(network(nodes, {"x": ("N", 8)}, ["y"], {"w": (8, 8), "b": (8,)}))
    assert [(made.op_type, made.name) for made in source.graph.node] == [("Gemm", "fc")]


@pytest.mark.parametrize(
    ("op_type", "reads"),
    [
        ("QuantizeLinear", "x s z"),
        ("DynamicQuantizeLinear", "x"),
        ("ConvInteger", "x w"),
        ("MatMulInteger", "x w"),
        ("QLinearConv", "x s z w s z s z"),
    ],
)
def test_a_quantized_model_is_refused(op_type: str, reads: str) -> None:
    model = network([node(op_type, reads, "y", "done")], {"x": ("N", 8)}, ["y"], {})
    with pytest.raises(ModelError, match=f"already quantized: node 'done' is a {op_type}") as caught:
        quantizable(model)
    assert "FP32 model" in caught.value.hint


def test_a_quantizer_in_a_branch_is_found() -> None:
    branch = helper.make_graph([node("QuantizeLinear", "x s z", "q")], "then", [], [])
    choice = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
    with pytest.raises(ModelError, match="node 'q' is a QuantizeLinear"):
        quantizable(network([choice], {"x": ("N", 8)}, ["y"], {}))


def test_half_precision_is_refused() -> None:
    model = block()
    values = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1"))
    with pytest.raises(ModelError, match="the model computes in float16") as caught:
        quantizable(model)
    assert "FP32 model" in caught.value.hint


def test_an_opset_that_cannot_be_raised_is_named() -> None:
    scan = node("Scan", "x", "y", num_scan_inputs=1)
    body = helper.make_graph(
        [node("Tanh", "i", "o")],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, [8])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [8])],
    )
    scan.attribute.append(helper.make_attribute("body", body))
    model = network([scan], {"x": (1, 4, 8)}, ["y"], {}, opset=8)
    with pytest.raises(ModelError, match="uses opset 8, quantizers with an axis need 13") as caught:
        quantizable(model)
    assert "opset 13 or later" in caught.value.hint
