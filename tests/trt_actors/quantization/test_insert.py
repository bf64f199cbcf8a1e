"""Networks with quantizers: exact where they must be, near where they may differ, buildable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, numpy_helper
from trtfleet.errors import InternalError
from trtfleet.tests.trt_actors.quantization.networks import (
    attention,
    block,
    feeds_of,
    network,
    node,
    ranges_of,
    reads_of,
)
from trtfleet.trt_actors.building.builder import build_plan
from trtfleet.trt_actors.building.flavour import find_flavour
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.building.profiles import input_profiles
from trtfleet.trt_actors.quantization.insert import insert_quantizers, quantize_weights
from trtfleet.trt_actors.quantization.placement import place
from trtfleet.trt_actors.quantization.source import quantizable
from trtfleet.trt_actors.reference import compute


def quantized(
    model: onnx.ModelProto, exclude: tuple[str, ...] = ()
) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, np.ndarray]]:
    """A model's network, the same with quantizers, and input for both."""
    source = quantizable(model)
    placement, feeds = place(source, exclude), feeds_of(source)
    return source, insert_quantizers(source, placement, ranges_of(source, placement, feeds)), feeds


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    (found,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    return np.array(numpy_helper.to_array(found))


def single(
    op_type: str, reads: str, x: Sequence[int | str], w: Sequence[int], **attributes: object
) -> onnx.ModelProto:
    """One node that reads ``x``, weights ``w`` and a bias ``b`` of 8, as far as it names them."""
    weights = {"w": w, "b": (8,)} if "b" in reads.split() else {"w": w}
    return network([node(op_type, reads, "y", **attributes)], {"x": x}, ["y"], weights)


CASES = {
    "block": block(),
    "downsample": block(downsample=True),
    "attention": attention(),
    "attention of a fixed batch": attention((2, 7, 16)),
    "conv of one axis": single("Conv", "x w b", ("N", 4, 16), (8, 4, 3)),
    "conv of three axes": single("Conv", "x w", ("N", 4, 8, 8, 8), (8, 4, 3, 3, 3)),
    "conv of depth": single("Conv", "x w", ("N", 4, 8, 8), (4, 1, 3, 3), group=4),
    "conv transposed": single("ConvTranspose", "x w", ("N", 4, 8, 8), (4, 8, 2, 2)),
    "conv transposed in groups": single("ConvTranspose", "x w", ("N", 4, 8, 8), (4, 4, 2, 2), group=2),
    "gemm": single("Gemm", "x w b", ("N", 16), (16, 8), alpha=0.5, beta=2.0),
    "gemm of turned inputs": single("Gemm", "x w", (16, 6), (8, 16), transA=1, transB=1),
    "gemm of weights first": single("Gemm", "w x", (16, 6), (8, 16)),
    "matmul": single("MatMul", "x w", ("N", 5, 16), (16, 8)),
    "matmul of weights first": single("MatMul", "w x", ("N", 16, 5), (8, 16)),
    "matmul of stacked weights": single("MatMul", "x w", ("N", 3, 5, 16), (3, 16, 8)),
    "matmul with a vector": single("MatMul", "x w", ("N", 5, 16), (16,)),
    "matmul with itself": network([node("MatMul", "x x", "y")], {"x": ("N", 8, 8)}, ["y"], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_near_and_optimizations_keep_them_so(name: str) -> None:
    source, int8, feeds = quantized(CASES[name])
    onnx.checker.check_model(int8, full_check=True)
    expected = compute(source, feeds, ["y"])["y"]
    plain = compute(int8, feeds, ["y"])["y"]
    session = ort.InferenceSession(int8.SerializeToString(), providers=["CPUExecutionProvider"])
    (optimized,) = session.run(["y"], feeds)
    scale = np.abs(expected).max()
    assert 0 < np.abs(plain - expected).max() / scale < 0.05
    assert np.abs(optimized - plain).max() / scale < 0.02
    np.testing.assert_array_equal(optimized, session.run(["y"], feeds)[0])


@pytest.mark.parametrize("name", CASES)
def test_tensorrt_builds_it(name: str) -> None:
    _, int8, _ = quantized(CASES[name])
    options = BuildOptions(precision="int8", max_batch_size=4)
    plan = build_plan(find_flavour(), int8.SerializeToString(), options, input_profiles(int8, options))
    assert sum(plan.types.values()) >= 1


def test_both_inputs_of_a_convolution_are_dequantized_and_its_bias_is_not() -> None:
    _, int8, _ = quantized(block())
    assert reads_of(int8, "conv2") == ["DequantizeLinear", "DequantizeLinear", "constant"]


def test_nothing_comes_between_a_convolution_and_its_activation() -> None:
    _, int8, _ = quantized(block())
    assert reads_of(int8, "relu1") == ["Conv"]
    assert reads_of(int8, "sum") == ["Conv", "DequantizeLinear"]


def test_a_relu_reads_its_convolution_even_where_a_shortcut_starts() -> None:
    nodes = [
        node("Conv", "x w", "conv", pads=[1, 1, 1, 1]),
        node("Relu", "conv", "relu"),
        node("Conv", "relu v", "next", pads=[1, 1, 1, 1]),
        node("Add", "next conv", "y"),
    ]
    model = network(nodes, {"x": ("N", 4, 8, 8)}, ["y"], {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)})
    _, int8, _ = quantized(model)
    assert reads_of(int8, "relu") == ["Conv"]
    assert reads_of(int8, "y") == ["Conv", "DequantizeLinear"]


def test_a_tensor_that_many_read_is_quantized_once() -> None:
    _, int8, _ = quantized(block(downsample=True))
    made = [n for n in int8.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "start"]
    assert len(made) == 1
    _, products, _ = quantized(CASES["matmul with itself"])
    assert [n.op_type for n in products.graph.node] == ["QuantizeLinear", "DequantizeLinear", "MatMul"]


def test_weights_are_stored_as_int8_and_the_floats_are_gone() -> None:
    source, int8, _ = quantized(block())
    kinds = {tensor.name: tensor.data_type for tensor in int8.graph.initializer}
    conv = next(made for made in source.graph.node if made.name == "conv2")
    assert kinds[f"{conv.input[1]}_quantized"] == TensorProto.INT8
    assert conv.input[1] not in kinds
    assert conv.input[2] in kinds


def test_weights_that_others_read_stay_as_well() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Gemm", "a w", "b", transB=1),
        node("Mul", "b w", "c"),
        node("MatMul", "c w", "y"),
    ]
    source, int8, feeds = quantized(network(nodes, {"x": (8, 8)}, ["y"], {"w": (8, 8)}))
    made = [n for n in int8.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("w_")]
    # One for each axis of channels, whoever reads it.
    assert sorted(n.attribute[0].i for n in made) == [0, 1]
    np.testing.assert_array_equal(constant(int8, "w"), constant(source, "w"))
    assert np.isfinite(compute(int8, feeds, ["y"])["y"]).all()


def test_an_output_of_the_network_stays_exact() -> None:
    nodes = [node("Tanh", "x", "seen"), node("MatMul", "seen w", "y")]
    source, int8, feeds = quantized(network(nodes, {"x": (4, 8)}, ["y", "seen"], {"w": (8, 8)}))
    np.testing.assert_array_equal(
        compute(int8, feeds, ["seen"])["seen"], compute(source, feeds, ["seen"])["seen"]
    )


def test_an_excluded_node_reads_what_it_read() -> None:
    _, int8, _ = quantized(block(), ("conv1",))
    assert reads_of(int8, "conv1") == ["Relu", "constant", "constant"]


def test_scales_and_zero_points_are_what_was_given() -> None:
    source = quantizable(CASES["matmul"])
    int8 = insert_quantizers(source, place(source), {"x": 0.03})
    (made,) = [n for n in int8.graph.node if n.op_type == "QuantizeLinear"]
    scale, zero = constant(int8, made.input[1]), constant(int8, made.input[2])
    assert (scale.dtype, scale, scale.shape) == (np.float32, np.float32(0.03), ())
    assert (zero.dtype, zero) == (np.int8, 0)


def test_names_in_use_are_left_alone() -> None:
    nodes = [
        node("Tanh", "x", "x_scale"),
        node("Add", "x x_scale", "x_quantized"),
        node("MatMul", "x w", "m"),
    ]
    nodes.append(node("Add", "m x_quantized", "y"))
    source, int8, feeds = quantized(network(nodes, {"x": (8, 8)}, ["y"], {"w": (8, 8)}))
    near = compute(int8, feeds, ["y"])["y"] - compute(source, feeds, ["y"])["y"]
    assert np.abs(near).max() < 0.5


def test_the_network_given_is_not_changed() -> None:
    source = quantizable(block())
    before = source.SerializeToString(deterministic=True)
    placement = place(source)
    insert_quantizers(source, placement, dict.fromkeys(placement.activations, 0.1))
    assert source.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("scale", [None, 0.0, -1.0, float("nan"), float("inf"), 1e-45])
def test_scales_that_cannot_be(scale: float | None) -> None:
    source = quantizable(CASES["matmul"])
    with pytest.raises(InternalError, match="the scale of tensor 'x' is"):
        insert_quantizers(source, place(source), {} if scale is None else {"x": scale})


WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.floats(-(2.0**60), 2.0**60, width=32),
)


@given(values=WEIGHTS, data=st.data())
def test_rounded_weights_are_within_half_a_step(values: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.sampled_from([None, *range(values.ndim)]))
    steps, scales = quantize_weights(values, axis)
    assert (steps.dtype, steps.shape, scales.dtype) == (np.int8, values.shape, np.float32)
    assert scales.shape == (() if axis is None else (values.shape[axis],))
    assert (scales >= np.finfo(np.float32).tiny).all()
    assert np.abs(steps.astype(int)).max() <= 127
    others = () if axis is None else tuple(other for other in range(values.ndim) if other != axis)
    wide = np.expand_dims(scales, others).astype(np.float64)
    error = np.abs(steps * wide - values.astype(np.float64))
    assert (error <= wide * (0.5 + 1e-4)).all()


def test_the_largest_weight_of_each_channel_is_127() -> None:
    values = np.array([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0], [-3e-3, 1e-3, 0.0]], np.float32)
    steps, scales = quantize_weights(values, 0)
    np.testing.assert_array_equal(steps, [[32, -127, 64], [0, 0, 0], [-127, 42, 0]])
    np.testing.assert_allclose(scales, [2 / 127, 1, 3e-3 / 127], rtol=1e-6)
