"""A model and its table together."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from trtfleet.errors import CalibrationError
from trtfleet.tests.trt_actors.quantization.networks import block, feeds_of, reads_of, table_of
from trtfleet.trt_actors.quantization.quantize import quantize, quantize_network
from trtfleet.trt_actors.reference import compute

DIGEST = "ab" * 32


def scale_of(model: onnx.ModelProto, tensor: str) -> np.ndarray:
    (made,) = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor]
    (found,) = [t for t in model.graph.initializer if t.name == made.input[1]]
    return np.array(numpy_helper.to_array(found))


def test_the_scales_are_those_of_the_table() -> None:
    model = block()
    table = table_of(model, DIGEST)
    int8 = quantize(model, table)
    for name in ("start", "relu1"):
        assert scale_of(int8, name) == np.float32(table.tensors[name].scale)


def test_the_model_given_is_not_changed_and_results_are_near() -> None:
    model = block(downsample=True)
    before = model.SerializeToString(deterministic=True)
    int8 = quantize(model, table_of(model, DIGEST))
    assert model.SerializeToString(deterministic=True) == before
    feeds = feeds_of(model)
    wanted, found = compute(model, feeds, ["y"])["y"], compute(int8, feeds, ["y"])["y"]
    assert 0 < np.abs(wanted - found).max() < 0.03 * np.abs(wanted).max()


def test_the_same_table_gives_the_same_bytes_that_name_their_origin() -> None:
    model = block()
    table = table_of(model, DIGEST)
    first, second = (quantize(model, table) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert {p.key: p.value for p in first.metadata_props} == {
        "trtfleet.quantized_from": DIGEST,
        "trtfleet.calibration": table.digest,
    }


def test_what_calibration_excluded_stays_excluded() -> None:
    model = block()
    int8 = quantize(model, table_of(model, DIGEST, exclude=("conv1",)))
    assert reads_of(int8, "conv1") == ["Relu", "constant", "constant"]
    assert reads_of(int8, "conv2")[0] == "DequantizeLinear"


def test_excluding_more_than_calibration_did_needs_no_new_table() -> None:
    model = block(downsample=True)
    table = table_of(model, DIGEST, exclude=("conv3",))
    for name in ("conv1", "conv2", "Add"):
        made = quantize_network(model, table, (name,))
        assert {"conv3"} < set(made.placement.excluded)


def test_missing_tensors_are_counted_and_named() -> None:
    model = block(downsample=True)
    table = table_of(model, DIGEST)
    few = dataclasses.replace(table, tensors={"conv3": table.tensors["conv3"]})
    with pytest.raises(CalibrationError, match="no range for 2 of 3 tensors: start, relu1"):
        quantize(model, few)
