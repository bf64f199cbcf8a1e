"""FP16 in the graph: what overflows half precision stays in single, and the loss is measured."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...errors import ModelError
from ..partition.network import Network
from ..partition.types import infer, value_types
from ..reference import compute
from ..walk import used_names

__all__ = ["HalfNetwork", "to_half"]

_LARGEST = float(np.finfo(np.float16).max)
_HEADROOM = 4.0
_MULTIPLIERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class HalfNetwork:
    """A network converted to half precision.

    Attributes:
        model: The converted network; its inputs and outputs keep their types.
        kept: Nodes that stay in single precision, with the reason, by name.
        loss: For each floating output the largest difference to the original, by the original's largest
            magnitude.
        halved: How many of the multiplying nodes compute in half precision.
        multiplying: How many multiplying nodes there are.
    """

    model: onnx.ModelProto = field(repr=False)
    kept: Mapping[str, str]
    loss: Mapping[str, float]
    halved: int
    multiplying: int

    def facts(self) -> dict[str, Any]:
        """What was done, in plain values."""
        loss = {name: value for name, value in self.loss.items() if math.isfinite(value)}
        return {
            "kept": dict(self.kept),
            "loss": loss,
            "halved": self.halved,
            "multiplying": self.multiplying,
        }


def to_half(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> HalfNetwork:
    """Converts a network to half precision with ONNX Runtime's converter.

    Values are observed on the given input. A node stays in single precision where a value or a constant next
    to it comes within a factor of four of half precision's largest number, 65,504.

    Args:
        model: In single precision, cleaned.
        feeds: Input to observe activations and to measure the loss with.

    Raises:
        ModelError: The network cannot be run or converted, or gives NaN or infinities in half precision only.
    """
    named = _with_names(model)
    kept = _overflowing(named, _magnitudes(named, feeds))
    halved = _convert(named, sorted(kept))
    outputs = _floating_outputs(model)
    before, after = compute(named, feeds, outputs), compute(halved, feeds, outputs)
    loss = {name: _relative(name, before[name], after[name]) for name in outputs}
    done, multiplying = _count(halved)
    return HalfNetwork(model=halved, kept=kept, loss=loss, halved=done, multiplying=multiplying)


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own: the converter takes exceptions by name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)
    return copy


def _convert(model: onnx.ModelProto, kept: Sequence[str]) -> onnx.ModelProto:
    before = list(sys.path)
    try:
        # The package appends its own folder to sys.path, whose modules have names like "benchmark".
        from onnxruntime.transformers import float16
    finally:
        sys.path[:] = before
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            # It warns of every weight that half precision rounds to zero; the loss is measured instead.
            warnings.simplefilter("ignore")
            converted = float16.convert_float_to_float16(copy, keep_io_types=True, node_block_list=list(kept))
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"the network cannot be converted to FP16: {text}", "use --precision fp32"
        ) from error
    # Types of inner values changed; old declarations would contradict them.
    del converted.graph.value_info[:]
    _sort(converted)
    return infer(converted)


def _sort(model: onnx.ModelProto) -> None:
    """Puts nodes behind those they read from: the converter appends its casts at the end."""
    network = Network(model)
    order = TopologicalSorter({index: sorted(sources) for index, sources in enumerate(network.needs)})
    nodes = [network.nodes[index] for index in order.static_order()]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _magnitudes(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest magnitude of each floating value on the given input; inf where it is not finite."""
    types = value_types(model)
    floats = [
        name
        for node in model.graph.node
        for name in node.output
        if name in types and types[name].tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    taken = used_names(probe.graph)
    # Reduced inside the network: the values themselves are never all in memory.
    results = {}
    for name in floats:
        flat, size = (_free_name(f"{name}_{kind}", taken) for kind in ("magnitudes", "magnitude"))
        probe.graph.node.append(helper.make_node("Abs", [name], [flat]))
        probe.graph.node.append(helper.make_node("ReduceMax", [flat], [size], keepdims=0))
        results[name] = size
    found = compute(probe, feeds, list(results.values()))
    largest = {}
    for name, size in results.items():
        value = found[size]
        largest[name] = (
            float(value) if value.size and np.isfinite(value) else float("inf" if value.size else 0)
        )
    return largest


def _free_name(wanted: str, taken: set[str]) -> str:
    while wanted in taken:
        wanted += "_"
    taken.add(wanted)
    return wanted


def _overflowing(model: onnx.ModelProto, magnitudes: Mapping[str, float]) -> dict[str, str]:
    limit = _LARGEST / _HEADROOM
    network = Network(model)
    constants = {
        name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
        for name, tensor in network.constants.items()
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    kept: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        for name in (*sorted(network.node_reads[index]), *node.output):
            size = magnitudes.get(name, constants.get(name, 0.0))
            # An infinity of the network's own (a mask, say) is one in half precision, too.
            if limit < size < float("inf"):
                kept[node.name] = f"{name} reaches {size:.3g}, half precision ends at {_LARGEST:.0f}"
                break
    return kept


def _floating_outputs(model: onnx.ModelProto) -> list[str]:
    return [
        value.name
        for value in model.graph.output
        if value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    ]


def _relative(name: str, before: np.ndarray, after: np.ndarray) -> float:
    if before.shape != after.shape:
        # How many boxes pass a threshold may differ by a rounding: nothing to compare one by one.
        return float("nan")
    finite = np.isfinite(before)
    if not np.isfinite(after[finite]).all():
        raise ModelError(
            f"output {name!r} is NaN or infinite in FP16 and finite in FP32",
            "use --precision fp32 for this model",
        )
    scale = float(np.abs(before[finite]).max(initial=0.0))
    difference = float(np.abs(before[finite] - after[finite]).max(initial=0.0))
    return difference / scale if scale else difference


def _count(model: onnx.ModelProto) -> tuple[int, int]:
    types = value_types(model)
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    done = total = 0
    for node in model.graph.node:
        if node.op_type in _MULTIPLIERS and len(node.input) > 1:
            total += 1
            left = types[node.input[0]].tensor_type.elem_type if node.input[0] in types else 0
            done += constants.get(node.input[1], left) == onnx.TensorProto.FLOAT16
    return done, total
