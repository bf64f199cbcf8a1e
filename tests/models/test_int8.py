"""Every classification network quantizes, and TensorRT builds what comes out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from trtfleet.tests.models.running import run_model
from trtfleet.tests.models.selection import parameters
from trtfleet.tests.models.zoo import image, load
from trtfleet.trt_actors.building.builder import build_plan
from trtfleet.trt_actors.building.flavour import find_flavour
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.building.profiles import input_profiles
from trtfleet.trt_actors.quantization.insert import insert_quantizers
from trtfleet.trt_actors.quantization.placement import MULTIPLYING, place
from trtfleet.trt_actors.quantization.source import quantizable
from trtfleet.trt_actors.reference import compute

OPTIONS = BuildOptions(precision="int8", max_batch_size=8)

# Additions in the fused blocks of each; where a convolution is followed by a gate or a slice there is none.
SHORTCUTS = {
    "resnet50": 16,
    "resnext50": 16,
    "se_resnext50": 4,
    "light_resnet50": 16,
    "light_shufflenet": 13,
}

# Half a gigabyte of the layers that AlexNet is made of, too.
SLOW = ("vgg16",)

RUN = ("mobilenet_v1", "resnet50", "googlenet")


def inputs_of(model: onnx.ModelProto, op_types: tuple[str, ...]) -> list[list[str]]:
    """For each node of some operators the operators that make its first two inputs."""
    makers = {out: made.op_type for made in model.graph.node for out in made.output}
    nodes = [made for made in model.graph.node if made.op_type in op_types]
    return [[makers.get(name, "") for name in made.input[:2]] for made in nodes]


@pytest.mark.parametrize("name", parameters("classification", also_slow=SLOW))
def test_it_quantizes_and_builds(name: str) -> None:
    source = quantizable(load(name))
    placement = place(source)
    assert dict(placement.skipped) == {}
    int8 = insert_quantizers(source, placement, dict.fromkeys(placement.activations, 0.05))
    total = len(inputs_of(source, MULTIPLYING))
    assert total >= 5
    assert inputs_of(int8, MULTIPLYING) == [["DequantizeLinear", "DequantizeLinear"]] * total
    shortcuts = [found for found in inputs_of(int8, ("Add", "Sum")) if "DequantizeLinear" in found]
    assert len(shortcuts) == SHORTCUTS.get(name, 0)
    assert all(set(found) == {"DequantizeLinear", "Conv"} for found in shortcuts)
    activations = inputs_of(int8, ("Relu", "Clip"))
    assert all("DequantizeLinear" not in found for found in activations)
    assert int8.ByteSize() < 0.4 * source.ByteSize()
    # Before another builder's copy of half a gigabyte is made.
    del source
    plan = build_plan(find_flavour(), int8.SerializeToString(), OPTIONS, input_profiles(int8, OPTIONS))
    assert sum(plan.types.values()) == total


@pytest.mark.parametrize("name", RUN)
def test_its_answers_are_near(name: str) -> None:
    source, feeds = quantizable(load(name)), image(name, batch=2)
    placement = place(source)
    values = {**feeds, **compute(source, feeds, [x for x in placement.activations if x not in feeds])}
    scales = {x: float(np.abs(values[x]).max()) / 127 for x in placement.activations}
    int8 = insert_quantizers(source, placement, scales)
    (wanted,), (found,) = run_model(source, feeds).values(), run_model(int8, feeds).values()
    assert 0 < np.abs(wanted - found).max() < 0.06 * np.abs(wanted).max()
    again = run_model(int8, feeds)
    np.testing.assert_array_equal(found, *again.values())
