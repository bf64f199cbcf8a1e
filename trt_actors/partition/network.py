"""An ONNX graph as a partitioner sees it: which node reads whose results, and what crosses a boundary."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx

from ..walk import defined_names, subgraphs

__all__ = ["Network", "reads"]


def reads(node: onnx.NodeProto) -> set[str]:
    """The values of the surrounding graph that a node reads, those its subgraphs capture included."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        names |= _free_names(graph)
    return names


def _free_names(graph: onnx.GraphProto) -> set[str]:
    used = {value.name for value in graph.output}
    for node in graph.node:
        used |= reads(node)
    return used - defined_names(graph)


@dataclass(frozen=True)
class Network:
    """A model whose nodes are in topological order.

    Attributes:
        proto: The model; not changed.
    """

    proto: onnx.ModelProto = field(repr=False)

    @cached_property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes of the main graph."""
        return tuple(self.proto.graph.node)

    @cached_property
    def constants(self) -> Mapping[str, onnx.TensorProto]:
        """The initializers by name."""
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that need data."""
        sparse = {tensor.values.name for tensor in self.proto.graph.sparse_initializer}
        return tuple(
            value.name
            for value in self.proto.graph.input
            if value.name not in self.constants and value.name not in sparse
        )

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The results of the model."""
        return tuple(value.name for value in self.proto.graph.output)

    @cached_property
    def node_reads(self) -> tuple[frozenset[str], ...]:
        """For each node the values it reads, constants included."""
        return tuple(frozenset(reads(node)) for node in self.proto.graph.node)

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """For each value that a node makes, that node."""
        return {
            name: index for index, node in enumerate(self.proto.graph.node) for name in node.output if name
        }

    @cached_property
    def consumers(self) -> Mapping[str, frozenset[int]]:
        """For each value the nodes that read it."""
        found: dict[str, set[int]] = {}
        for index, names in enumerate(self.node_reads):
            for name in names:
                found.setdefault(name, set()).add(index)
        return {name: frozenset(nodes) for name, nodes in found.items()}

    @cached_property
    def needs(self) -> tuple[frozenset[int], ...]:
        """For each node the nodes whose results it reads."""
        producers = self.producers
        return tuple(
            frozenset(producers[name] for name in names if name in producers) for names in self.node_reads
        )

    def boundary(self, nodes: Collection[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a set of nodes reads from outside and what others read of it, constants left out.

        Returns:
            Names of the values it takes, in order of first use, and of those it gives, in order of creation.
        """
        inside = frozenset(nodes)
        ordered = sorted(inside)
        made = {name for index in ordered for name in self.proto.graph.node[index].output}
        results = set(self.outputs)
        takes = dict.fromkeys(
            name
            for index in ordered
            for name in _in_order(self.proto.graph.node[index], self.node_reads[index])
            if name not in made and name not in self.constants
        )
        gives = dict.fromkeys(
            name
            for index in ordered
            for name in self.proto.graph.node[index].output
            if name and (name in results or self.consumers.get(name, frozenset()) - inside)
        )
        return tuple(takes), tuple(gives)


def _in_order(node: onnx.NodeProto, names: Iterable[str]) -> list[str]:
    direct = [name for name in node.input if name]
    return [*direct, *sorted(set(names) - set(direct))]
