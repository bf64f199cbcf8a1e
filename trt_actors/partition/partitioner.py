"""Finds the largest convex parts of a network that TensorRT takes, by asking until the answers settle."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import onnx

from ..operators import normal_domain
from ..walk import subgraphs
from .clean import clean
from .cut import cut
from .multiply_adds import multiply_adds
from .network import Network
from .partition import NativeNode, Partition, Segment
from .segments import Group, group_nodes
from .support import Answer, SupportQuery
from .types import sizes, value_types

__all__ = ["partition_model"]

_UNNAMED = "TensorRT's parser takes no subgraph with this node"
_CRASH = "TensorRT's parser crashes on this node"
_IDLE = "beside native nodes and without multiply-adds: not worth a segment"
_WHOLE_NUMBERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
# What the parser says of an operator that this TensorRT does not have at all.
_NO_OPERATOR = re.compile(r"plugin.*not found|no importer registered", re.IGNORECASE)


def partition_model(
    model: onnx.ModelProto,
    query: SupportQuery,
    *,
    flavour: str,
    original: onnx.ModelProto | None = None,
    min_subgraph_size: int = 3,
    exclude_ops: Collection[str] = (),
    free_sizes: Mapping[str, int] | None = None,
) -> Partition:
    """Cuts a model into segments for TensorRT and for the native runtime.

    The parser is asked about each candidate segment. A node it cannot parse makes it report nearly the whole
    candidate as unsupported, so the nodes it blames become native, and what is left is cut and asked anew.

    Args:
        model: The model; not changed. It is cleaned first, unless ``original`` is given.
        query: Tells what TensorRT takes.
        flavour: Whose parser that is, for the report.
        original: What ``model`` was cleaned from, for the report.
        min_subgraph_size: Segments with fewer nodes are given back to the native runtime.
        exclude_ops: Operator types that stay native.
        free_sizes: Sizes of free dimensions by name, to count multiply-adds with; 1 for others.

    Raises:
        ModelError: ONNX Runtime cannot load the model, or its shapes contradict each other.
    """
    cleaned = model if original is not None else clean(model)
    network, types = Network(cleaned), value_types(cleaned)
    shapes = _sizes(network, types, free_sizes or {})
    costs = [multiply_adds(node, shapes) for node in network.nodes]
    never = _never_supported(network, types, exclude_ops)
    search = _Search(network, types, query, min_subgraph_size, costs, never)
    groups = search.run()
    segments = []
    for place, group in enumerate(groups):
        kind = "tensorrt" if group.chosen else "native"
        takes, gives = network.boundary(group.nodes)
        segments.append(
            Segment(
                name=f"{kind}-{place}",
                kind="tensorrt" if group.chosen else "native",
                nodes=group.nodes,
                inputs=takes,
                outputs=gives,
                multiply_adds=sum(costs[index] for index in group.nodes),
            )
        )
    native = [
        NativeNode(
            index=index,
            name=cleaned.graph.node[index].name,
            op_type=cleaned.graph.node[index].op_type,
            reason=search.reasons[index],
        )
        for index in sorted(search.reasons)
    ]
    return Partition(
        original=model if original is None else original,
        cleaned=cleaned,
        segments=tuple(segments),
        native=tuple(native),
        types=types,
        flavour=flavour,
    )


class _Search:
    """The nodes not yet refused, and the answers so far."""

    def __init__(
        self,
        network: Network,
        types: Mapping[str, onnx.TypeProto],
        query: SupportQuery,
        min_subgraph_size: int,
        costs: Sequence[int],
        reasons: dict[int, str],
    ) -> None:
        self._network = network
        self._types = types
        self._query = query
        self._least = min_subgraph_size
        self._costs = costs
        self._settled: set[frozenset[int]] = set()
        self.reasons = reasons

    def run(self) -> list[Group]:
        while True:
            wanted = set(range(len(self._network.nodes))) - self.reasons.keys()
            groups = group_nodes(self._network.needs, wanted)
            refused = self._refuse_some([group.nodes for group in groups if group.chosen])
            if not refused:
                return groups
            self.reasons.update(refused)

    def _refuse_some(self, candidates: Sequence[tuple[int, ...]]) -> dict[int, str]:
        """Asks about the candidates; returns newly native nodes. Small ones go when all others settle."""
        refused: dict[int, str] = {}
        for nodes in candidates:
            if frozenset(nodes) not in self._settled and len(nodes) >= self._least:
                refused |= self._ask(nodes)
        if refused:
            return refused
        smallest = min((len(nodes) for nodes in candidates), default=self._least)
        if smallest >= self._least:
            return self._idle(candidates)
        # The smallest first: what it gives back may join others to segments that are large enough.
        return {
            index: f"in a segment of {smallest} nodes, min_subgraph_size is {self._least}"
            for nodes in candidates
            if len(nodes) == smallest
            for index in nodes
        }

    def _idle(self, candidates: Sequence[tuple[int, ...]]) -> dict[int, str]:
        """Segments that only rearrange values, where others multiply: crossing over costs more than that."""
        costs = [sum(self._costs[index] for index in nodes) for nodes in candidates]
        if not any(costs):
            return {}
        idle = [nodes for nodes, cost in zip(candidates, costs, strict=True) if not cost]
        return {index: _IDLE for nodes in idle for index in nodes}

    def _ask(self, nodes: tuple[int, ...]) -> dict[int, str]:
        answer = self._query.ask(self._cut(nodes))
        if answer.supported and answer.sizes:
            return self._sized_by(answer.sizes, nodes)
        if answer.supported:
            self._settled.add(frozenset(nodes))
            return {}
        if answer.crashed:
            return {nodes[self._culprit(nodes)]: _CRASH}
        return self._blamed(nodes, answer)

    def _blamed(self, nodes: Sequence[int], answer: Answer) -> dict[int, str]:
        inside = range(len(nodes))
        named = {nodes[place]: text for place, text in answer.errors if place in inside}
        if named:
            return self._and_alike(named)
        words = next((text for _, text in answer.errors), "")
        reason = f"{_UNNAMED}: {words}" if words else _UNNAMED
        places = [place for place in answer.unsupported if place in inside] or list(inside)
        return {nodes[place]: reason for place in places}

    def _sized_by(self, names: Collection[str], nodes: Sequence[int]) -> dict[int, str]:
        """The nodes of a segment that turn outside sizes into shapes, up to where numbers become data."""
        sizes = dict.fromkeys(names)
        found: dict[int, str] = {}
        for index in nodes:
            source = next(
                (name for name in self._network.proto.graph.node[index].input if name in sizes), None
            )
            if source is not None:
                origin = sizes[source] or source
                found[index] = f"its shape depends on the value of {origin}"
                outputs = self._network.proto.graph.node[index].output
                sizes |= {name: origin for name in outputs if self._element(name) in _WHOLE_NUMBERS}
        return found

    def _element(self, name: str) -> int:
        type_ = self._types.get(name)
        return type_.tensor_type.elem_type if type_ is not None else onnx.TensorProto.UNDEFINED

    def _and_alike(self, named: Mapping[int, str]) -> dict[int, str]:
        """Adds all nodes of an operator that TensorRT lacks, so that it need not be asked about each."""
        ops = [node.op_type for node in self._network.nodes]
        lacking = {ops[index]: text for index, text in named.items() if _NO_OPERATOR.search(text)}
        alike = {index: lacking[op] for index, op in enumerate(ops) if op in lacking}
        return {**{i: text for i, text in alike.items() if i not in self.reasons}, **named}

    def _culprit(self, nodes: Sequence[int]) -> int:
        """The place of the node that completes the shortest crashing beginning, by halving."""
        fine, crashing = 0, len(nodes)
        while crashing - fine > 1:
            middle = (fine + crashing) // 2
            if self._query.ask(self._cut(nodes[:middle])).crashed:
                crashing = middle
            else:
                fine = middle
        return crashing - 1

    def _cut(self, nodes: Sequence[int]) -> onnx.ModelProto:
        return cut(self._network, nodes, self._types)


def _never_supported(
    network: Network, types: Mapping[str, onnx.TypeProto], exclude_ops: Collection[str]
) -> dict[int, str]:
    """Nodes that are not even asked about, with the reasons."""
    reasons: dict[int, str] = {}
    for index, node in enumerate(network.nodes):
        domain = normal_domain(node.domain)
        unknown = [
            name for name in (*network.node_reads[index], *node.output) if not _is_known(name, network, types)
        ]
        if node.op_type in exclude_ops:
            reasons[index] = f"excluded by --exclude-op {node.op_type}"
        elif any(True for _ in subgraphs(node)):
            reasons[index] = f"control flow ({node.op_type}) stays native"
        elif domain:
            reasons[index] = f"operator of the custom domain {domain}"
        elif unknown:
            reasons[index] = f"the type of its value {sorted(unknown)[0]!r} is not known"
    return reasons


def _is_known(name: str, network: Network, types: Mapping[str, onnx.TypeProto]) -> bool:
    if not name or name in network.constants:
        return True
    type_ = types.get(name)
    return (
        type_ is not None and type_.WhichOneof("value") == "tensor_type" and bool(type_.tensor_type.elem_type)
    )


def _sizes(
    network: Network, types: Mapping[str, onnx.TypeProto], free: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    found = {name: tuple(tensor.dims) for name, tensor in network.constants.items()}
    for name, type_ in types.items():
        shape = sizes(type_, free)
        if shape is not None:
            found[name] = shape
    return found
