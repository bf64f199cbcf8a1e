"""Inner tensors of two networks: which can be compared, and where the two begin to differ."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import TensorProto, helper

from ..partition.network import Network
from ..partition.types import infer, value_types
from ..prepared import Prepared
from .difference import Difference

__all__ = ["Layer", "Lineage", "common_tensors", "explain", "with_tensors"]

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a compared tensor comes from.

    Attributes:
        node: The node that makes it.
        op_type: Its operator.
        before: The compared tensors that it is made of, without others in between.
        nodes: The nodes between these and the tensor, its own among them, in the order of the network.
    """

    node: str
    op_type: str
    before: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How far two networks are apart at one tensor.

    Attributes:
        tensor: Its name.
        node: The node that makes it.
        op_type: Its operator.
        relative_error: ``||a - b|| / ||a||``.
        before: The largest relative error of the tensors that it is made of; 0.0 without any.
        largest: The maximum of ``|a - b|``.
        sqnr_db: ``20 log10(||a|| / ||a - b||)``.
        suspects: The nodes to blame for what was added: of those between, the ones that may be excluded, or
            the tensor's own node.
    """

    tensor: str
    node: str
    op_type: str
    relative_error: float
    before: float
    largest: float
    sqnr_db: float
    suspects: tuple[str, ...]

    @property
    def added(self) -> float:
        """The error that is new here: ``sqrt(relative_error**2 - before**2)``, as independent errors add."""
        if math.isinf(self.relative_error):
            return 0.0 if math.isinf(self.before) else math.inf
        return math.sqrt(max(0.0, self.relative_error**2 - self.before**2))

    def as_json(self) -> dict[str, Any]:
        """The layer as plain values; what is infinite is None."""
        plain = {**vars(self), "added": self.added, "suspects": list(self.suspects)}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in plain.items()
        }


def common_tensors(
    a: Prepared, b: Prepared, wanted: Collection[str] | None = None
) -> tuple[dict[str, Lineage], dict[str, Lineage]]:
    """Finds the inner tensors that both networks name alike.

    Args:
        a: The first network.
        b: The second.
        wanted: The only tensors to look at; None for all that nodes make.

    Returns:
        Of each tensor where it comes from in the first network, in its order; and likewise in the second.
    """
    protos = [onnx.load_from_string(network.model_bytes) for network in (a, b)]
    made = [_float_results(proto) for proto in protos]
    shared = {name for name in made[0] if name in made[1] and (wanted is None or name in wanted)}
    first, second = (_lineages(proto, shared) for proto in protos)
    return first, second


def with_tensors(network: Prepared, tensors: Sequence[str]) -> Prepared:
    """Makes inner tensors results of a network, after its own, which ``outputs`` goes on to list alone."""
    proto = onnx.load_from_string(network.model_bytes)
    types = _float_results(proto)
    present = {value.name for value in proto.graph.output}
    # Without a shape: runtimes infer it, and find out for themselves where a dimension is free.
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, types[name], None) for name in tensors if name not in present
    )
    return replace(network, model_bytes=proto.SerializeToString(deterministic=True))


def explain(
    layers: Mapping[str, Difference], lineages: Mapping[str, Lineage], excludable: Collection[str]
) -> list[Layer]:
    """Says of each tensor how much of its error is new there.

    Args:
        layers: What was found, by tensor.
        lineages: Where each tensor comes from, in the order of the network.
        excludable: The nodes that may be kept out of a lower precision.

    Returns:
        The tensors in the order of the network.
    """
    found = []
    for tensor, lineage in lineages.items():
        if tensor not in layers:
            continue
        suspects = tuple(node for node in lineage.nodes if node in excludable)
        found.append(
            Layer(
                tensor=tensor,
                node=lineage.node,
                op_type=lineage.op_type,
                relative_error=layers[tensor].relative_error,
                before=max(
                    (layers[name].relative_error for name in lineage.before if name in layers), default=0.0
                ),
                largest=layers[tensor].largest,
                sqnr_db=layers[tensor].sqnr_db,
                suspects=suspects or (() if excludable else (lineage.node,)),
            )
        )
    return found


def _float_results(proto: onnx.ModelProto) -> dict[str, int]:
    """The element types of the floating values that nodes of the main graph make."""
    types = value_types(proto)
    made = [name for node in proto.graph.node for name in node.output if name]
    if any(name not in types for name in made):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        types = {**value_types(infer(copy)), **types}
    kinds = {name: types[name].tensor_type.elem_type for name in made if name in types}
    return {name: kind for name, kind in kinds.items() if kind in _FLOATS}


def _lineages(proto: onnx.ModelProto, tensors: Collection[str]) -> dict[str, Lineage]:
    network = Network(proto)
    found: dict[str, Lineage] = {}
    # Of each value: the compared tensors it comes from, and the nodes since then, in order.
    since: dict[str, tuple[frozenset[str], frozenset[int]]] = {}
    for index, node in enumerate(network.nodes):
        before: set[str] = set()
        between = {index}
        for name in network.node_reads[index]:
            if name in tensors:
                before.add(name)
            elif name in since:
                before |= since[name][0]
                between |= since[name][1]
        for name in node.output:
            since[name] = (frozenset(before), frozenset(between))
            if name in tensors:
                found[name] = Lineage(
                    node=node.name,
                    op_type=node.op_type,
                    before=tuple(sorted(before)),
                    nodes=tuple(network.nodes[i].name for i in sorted(between)),
                )
    return found
