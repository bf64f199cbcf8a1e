"""Edits a copy of a model at its two ends: nodes in front of its inputs and behind its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..datasets.signature import TensorSpec
from ..errors import ModelError
from .operators import normal_domain
from .walk import defined_names, subgraphs, used_names

__all__ = ["GraphEditor"]

# Sub and Mul broadcast as numpy does from here on.
_OLDEST_OPSET = 7
# For a model that imports no default domain: the oldest opset with today's Softmax.
_DEFAULT_OPSET = 13


class GraphEditor:
    """Holds the one copy of a model that is edited; the model given is never changed.

    Names asked for are made unique by a suffix. Constants are nodes, not initializers: those would have to be
    inputs as well before IR version 4.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = onnx.ModelProto()
        self._proto.CopyFrom(proto)
        self._graph = self._proto.graph
        self._names = used_names(self._graph)
        self._front: list[onnx.NodeProto] = []
        self._renamed: set[str] = set()

    @property
    def opset(self) -> int:
        """The version of the default operator set that new nodes are read by."""
        for opset in self._proto.opset_import:
            if normal_domain(opset.domain) == "":
                return int(opset.version)
        return _DEFAULT_OPSET

    def prepend(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output in front of the model, behind those already put there.

        Returns:
            The output's name.
        """
        return self._add(self._front, op_type, inputs, [output], attributes)[0]

    def append(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Adds a node at the end of the model and returns the names of its outputs."""
        return self._add(self._graph.node, op_type, inputs, outputs, attributes)

    def prepend_constant(self, value: np.ndarray, name: str) -> str:
        """Adds a constant in front of the model and returns its name."""
        return self._add(self._front, "Constant", [], [name], {"value": numpy_helper.from_array(value)})[0]

    def append_constant(self, value: np.ndarray, name: str) -> str:
        """Adds a constant at the end of the model and returns its name."""
        return self.append("Constant", [], [name], value=numpy_helper.from_array(value))[0]

    def replace_input(self, name: str, *, dtype: np.dtype, axes: Sequence[int], feed: str) -> None:
        """Gives an input another type and order of axes, and feeds its consumers from another value.

        Args:
            name: The input; it keeps its name and its symbolic dimensions.
            dtype: Its new element type.
            axes: For each new axis the old axis whose dimension it has.
            feed: The value that the nodes of the model, at any depth, read from now on.
        """
        value = next(value for value in self._graph.input if value.name == name)
        dims = list(value.type.tensor_type.shape.dim)
        tensor = onnx.TypeProto.Tensor(elem_type=helper.np_dtype_to_tensor_dtype(dtype))
        tensor.shape.dim.extend(dims[axis] for axis in axes)
        value.type.tensor_type.CopyFrom(tensor)
        _rename_reads(self._graph, name, feed)
        self._renamed.add(name)

    def keep_outputs(self, outputs: Sequence[tuple[TensorSpec, TensorSpec]]) -> None:
        """Makes these the only outputs of the graph.

        Args:
            outputs: Pairs of an output to have and the present graph output that it is, or is made from: free
                dimensions, the batch among them, keep their symbolic names from there.

        Raises:
            ModelError: One is an input that was replaced: its old value has no name left.
        """
        old = {value.name: value for value in self._graph.output}
        made: list[onnx.ValueInfoProto] = []
        for spec, source in outputs:
            if source.name in self._renamed:
                raise ModelError(
                    f"output {source.name!r} is the input of that name, unchanged",
                    "choose other outputs",
                )
            value = onnx.ValueInfoProto()
            value.CopyFrom(old[source.name])
            if spec != source:
                value.name = spec.name
                value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(spec.dtype)
                dims = value.type.tensor_type.shape.dim
                del dims[1 + len(spec.row_shape) :]
                for dim, size in zip(dims[1:], spec.row_shape, strict=True):
                    if isinstance(size, int):
                        dim.dim_value = size
            made.append(value)
        del self._graph.output[:]
        self._graph.output.extend(made)

    def serialize(self) -> bytes:
        """The edited model: the same bytes for the same model and edits. The editor is spent afterwards."""
        for index, node in enumerate(self._front):
            self._graph.node.insert(index, node)
        self._front.clear()
        data: bytes = self._proto.SerializeToString(deterministic=True)
        return data

    def _add(
        self,
        nodes: Any,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: dict[str, Any],
    ) -> list[str]:
        if self.opset < _OLDEST_OPSET:
            raise ModelError(
                f"uses opset {self.opset}, pre- and post-processing needs >= {_OLDEST_OPSET}",
                "convert it with onnx.version_converter",
            )
        if not any(normal_domain(opset.domain) == "" for opset in self._proto.opset_import):
            self._proto.opset_import.append(helper.make_opsetid("", _DEFAULT_OPSET))
        names = [self._unique(output) for output in outputs]
        nodes.append(
            helper.make_node(op_type, inputs, names, name=self._unique(f"{names[0]}_node"), **attributes)
        )
        return names

    def _unique(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate


def _rename_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Makes the nodes of a graph and its subgraphs read another value, unless they define the name anew."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for nested in subgraphs(node):
            if old not in defined_names(nested):
                _rename_reads(nested, old, new)
