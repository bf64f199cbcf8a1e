"""Puts QuantizeLinear and DequantizeLinear nodes where a placement says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...errors import InternalError
from ..partition.network import Network
from ..walk import used_names
from .placement import Placement, Site

__all__ = ["insert_quantizers", "quantize_weights"]

_LARGEST = 127
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def insert_quantizers(
    model: onnx.ModelProto, placement: Placement, scales: Mapping[str, float]
) -> onnx.ModelProto:
    """Makes a network whose multiplying nodes read int8 values.

    Activations get a QuantizeLinear and a DequantizeLinear, one pair for each tensor however many nodes read
    it; weights are stored as int8 with a DequantizeLinear. Zero points are 0.

    Args:
        model: As `quantizable` made it; not changed.
        placement: Of this model.
        scales: For each of ``placement.activations`` the width of one step of its int8 values, > 0.

    Returns:
        The quantized network, with the inputs and outputs of the model.

    Raises:
        InternalError: A scale is missing or is no positive normal float32.
    """
    for name in placement.activations:
        if not _SMALLEST_SCALE <= scales.get(name, 0.0) < float("inf"):
            raise InternalError(
                f"the scale of tensor {name!r} is {scales.get(name)}", "it must be a positive float32"
            )
    return _Inserter(model, scales).run(placement)


def quantize_weights(values: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rounds weights to symmetric int8, the largest magnitude of each channel to 127.

    Args:
        values: float32, finite and not empty.
        axis: The axis of channels; None for one scale.

    Returns:
        int8 values of the same shape, and float32 scales: one for each channel, or a scalar. A channel of
        zeros has scale 1.
    """
    others = None if axis is None else tuple(other for other in range(values.ndim) if other != axis)
    largest = np.maximum(values.max(axis=others), -values.min(axis=others))
    scales = np.where(largest > 0, np.maximum(largest / np.float32(_LARGEST), _SMALLEST_SCALE), 1)
    scales = scales.astype(np.float32)
    steps = values / (scales if axis is None else np.expand_dims(scales, others or ()))
    np.clip(np.rint(steps, out=steps), -_LARGEST, _LARGEST, out=steps)
    return steps.astype(np.int8), scales


class _Inserter:
    """Builds one quantized network.

    ONNX Runtime's QDQQuantizer would quantize whole tensors, for every reader and for outputs of the network:
    also between a convolution and its ReLU when a shortcut starts there, and both inputs of an addition.
    """

    def __init__(self, model: onnx.ModelProto, scales: Mapping[str, float]) -> None:
        self._model = model
        self._scales = scales
        self._constants = Network(model).constants
        self._taken = used_names(model.graph)
        self._made: dict[tuple[str, int | None], str] = {}
        self._zeros: dict[int | None, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def run(self, placement: Placement) -> onnx.ModelProto:
        sites: dict[str, list[Site]] = {}
        for site in placement.sites:
            sites.setdefault(site.node, []).append(site)
        for node in self._model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for site in sites.get(node.name, ()):
                copy.input[site.input] = self._dequantized(site)
            self._nodes.append(copy)
        return self._finished()

    def _dequantized(self, site: Site) -> str:
        key = (site.tensor, site.axis)
        if key not in self._made:
            self._made[key] = self._weight(site) if site.is_weight else self._activation(site.tensor)
        return self._made[key]

    def _activation(self, tensor: str) -> str:
        scale = self._constant(f"{tensor}_scale", np.array(self._scales[tensor], np.float32))
        zero = self._zero(None)
        quantized = self._add("QuantizeLinear", [tensor, scale, zero], f"{tensor}_quantized", None)
        return self._add("DequantizeLinear", [quantized, scale, zero], f"{tensor}_dequantized", None)

    def _weight(self, site: Site) -> str:
        name = site.tensor
        values, scales = quantize_weights(numpy_helper.to_array(self._constants[name]), site.axis)
        stored = self._constant(f"{name}_quantized", values)
        scale = self._constant(f"{name}_scale", scales)
        zero = self._zero(None if site.axis is None else len(scales))
        return self._add("DequantizeLinear", [stored, scale, zero], f"{name}_dequantized", site.axis)

    def _add(self, op_type: str, inputs: list[str], output: str, axis: int | None) -> str:
        output = self._free(output)
        node = helper.make_node(op_type, inputs, [output], self._free(f"{output}_node"))
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self._nodes.append(node)
        return output

    def _zero(self, channels: int | None) -> str:
        if channels not in self._zeros:
            name = "zero_point" if channels is None else f"zero_points_{channels}"
            shape = () if channels is None else (channels,)
            self._zeros[channels] = self._constant(name, np.zeros(shape, np.int8))
        return self._zeros[channels]

    def _constant(self, name: str, value: np.ndarray) -> str:
        name = self._free(name)
        self._tensors.append(numpy_helper.from_array(value, name))
        return name

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _finished(self) -> onnx.ModelProto:
        """The network, without the constants that nobody reads any more."""
        whole, old = onnx.ModelProto(), self._model
        whole.ir_version = old.ir_version
        whole.producer_name = "trtfleet"
        whole.doc_string, whole.domain, whole.model_version = old.doc_string, old.domain, old.model_version
        whole.opset_import.extend(old.opset_import)
        whole.functions.extend(old.functions)
        whole.metadata_props.extend(old.metadata_props)
        graph = whole.graph
        graph.name, graph.doc_string = old.graph.name, old.graph.doc_string
        graph.node.extend(self._nodes)
        for kind in ("input", "output", "value_info", "sparse_initializer"):
            getattr(graph, kind).extend(getattr(old.graph, kind))
        network = Network(whole)
        read = network.consumers.keys() | set(network.outputs)
        graph.initializer.extend(tensor for tensor in old.graph.initializer if tensor.name in read)
        graph.initializer.extend(self._tensors)
        return whole
