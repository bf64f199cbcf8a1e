"""Additions that TensorRT fuses with the convolution or product before them, and their shortcuts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import TensorProto

from ..operators import normal_domain
from ..partition.network import Network

__all__ = ["Residuals"]

_ADDITIONS = ("Add", "Sum")


class Residuals:
    """Finds the shortcuts of a network.

    Args:
        network: Its nodes are in an order in which none reads from a later one.
        types: Types of its values.
        multiplying: Names of the nodes that are quantized.
    """

    def __init__(
        self, network: Network, types: Mapping[str, onnx.TypeProto], multiplying: Collection[str]
    ) -> None:
        self._network = network
        self._types = types
        self._multiplying = multiplying
        self._depth: list[int] = []
        for needs in network.needs:
            self._depth.append(1 + max((self._depth[index] for index in needs), default=0))

    def shortcut(self, node: onnx.NodeProto) -> tuple[int, str] | None:
        """The input of an addition that is added to the result of a multiplying node.

        Where both inputs are such results, the one at the end of the longer path is fused and the other is
        the shortcut.

        Returns:
            Which input, and the name of the multiplying node that the addition is fused with; None when the
            node is no such addition.
        """
        if node.op_type not in _ADDITIONS or normal_domain(node.domain) or len(node.input) != 2:
            return None
        if node.input[0] == node.input[1] or not self._alike(*node.input):
            return None
        found = []
        for index, name in enumerate(node.input):
            source = self._source(name)
            if source is not None:
                found.append((self._depth[source], -index, source))
        if not found:
            return None
        _, place, source = max(found)
        return 1 + place, self._network.nodes[source].name

    def _source(self, name: str) -> int | None:
        """The multiplying node whose result this is, with a constant added at most, read by one node only."""
        producer = self._only_reader(name)
        if producer is None:
            return None
        node = self._network.nodes[producer]
        if node.op_type == "Add" and node.name not in self._multiplying:
            summands = [given for given in node.input if given not in self._network.constants]
            producer = self._only_reader(summands[0]) if len(summands) == 1 else None
        if producer is None or self._network.nodes[producer].name not in self._multiplying:
            return None
        return producer

    def _only_reader(self, name: str) -> int | None:
        if len(self._network.consumers.get(name, ())) != 1 or name in self._network.outputs:
            return None
        return self._network.producers.get(name)

    def _alike(self, left: str, right: str) -> bool:
        """Whether both are activations of one float32 shape: TensorRT does not fuse a broadcast."""
        shapes = []
        for name in (left, right):
            type_ = self._types.get(name)
            if name in self._network.constants or type_ is None:
                return False
            tensor = type_.tensor_type
            if tensor.elem_type != TensorProto.FLOAT or not tensor.HasField("shape"):
                return False
            shapes.append([dim.dim_param or dim.dim_value for dim in tensor.shape.dim])
        return shapes[0] == shapes[1]
