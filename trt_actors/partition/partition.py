"""The outcome of partitioning: segments in the order in which they run, and why some nodes stay native."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx

from .cut import cut
from .network import Network

__all__ = ["NativeNode", "Partition", "Segment"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Nodes that one runtime executes together.

    Attributes:
        name: ``tensorrt-0``, ``native-1``, ...: the runtime, and the place in the order of execution.
        kind: Which runtime.
        nodes: Indices into the cleaned model's nodes, ascending.
        inputs: Values it takes: model inputs, or outputs of earlier segments.
        outputs: Values it gives to later segments or as results of the model.
        multiply_adds: What its nodes cost at the sizes that the partition was made for.
    """

    name: str
    kind: Literal["tensorrt", "native"]
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class NativeNode:
    """A node that TensorRT does not run.

    Attributes:
        index: In the cleaned model.
        name: Its name; may be empty.
        op_type: Its operator.
        reason: Why: TensorRT's parser in its own words, or ours.
    """

    index: int
    name: str
    op_type: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A network cut into segments.

    Attributes:
        original: The model as given.
        cleaned: The model that was cut: constants folded, dead nodes gone, nodes in topological order.
        segments: In the order in which they run; together they hold every node of ``cleaned`` once.
        native: The nodes of native segments with the reasons, in order.
        types: Types of the values of ``cleaned``, by name.
        flavour: Whose parser was asked, with its version.
    """

    original: onnx.ModelProto = field(repr=False)
    cleaned: onnx.ModelProto = field(repr=False)
    segments: tuple[Segment, ...]
    native: tuple[NativeNode, ...]
    types: Mapping[str, onnx.TypeProto] = field(repr=False)
    flavour: str

    @property
    def tensorrt(self) -> tuple[Segment, ...]:
        """The segments that TensorRT runs."""
        return tuple(segment for segment in self.segments if segment.kind == "tensorrt")

    @property
    def is_whole(self) -> bool:
        """Whether TensorRT runs the whole network in one segment."""
        return len(self.segments) == 1 and self.segments[0].kind == "tensorrt"

    @property
    def node_share(self) -> float:
        """Nodes in TensorRT by all nodes."""
        nodes = len(self.cleaned.graph.node)
        return sum(len(segment.nodes) for segment in self.tensorrt) / nodes if nodes else 0.0

    @property
    def multiply_add_share(self) -> float:
        """Multiply-adds in TensorRT by all; the share of nodes where nothing multiplies."""
        whole = sum(segment.multiply_adds for segment in self.segments)
        return sum(s.multiply_adds for s in self.tensorrt) / whole if whole else self.node_share

    def model_of(self, segment: Segment) -> onnx.ModelProto:
        """A segment as a model of its own, with the constants it uses."""
        return cut(Network(self.cleaned), segment.nodes, self.types)

    def as_json(self) -> dict[str, Any]:
        """The partition in plain values."""
        return {
            "flavour": self.flavour,
            "nodes": len(self.cleaned.graph.node),
            "nodes_before_cleaning": len(self.original.graph.node),
            "node_share": self.node_share,
            "multiply_add_share": self.multiply_add_share,
            "segments": [
                {
                    "name": segment.name,
                    "kind": segment.kind,
                    "nodes": len(segment.nodes),
                    "multiply_adds": segment.multiply_adds,
                    "inputs": list(segment.inputs),
                    "outputs": list(segment.outputs),
                }
                for segment in self.segments
            ],
            "native": [
                {"name": node.name, "op_type": node.op_type, "reason": node.reason} for node in self.native
            ],
        }

    def lines(self) -> list[str]:
        """The partition in words."""
        nodes, in_tensorrt = len(self.cleaned.graph.node), sum(len(s.nodes) for s in self.tensorrt)
        lines = [
            f"{in_tensorrt:,} of {nodes:,} nodes ({self.node_share:.1%}) and {self.multiply_add_share:.1%} "
            f"of the multiply-adds in {len(self.tensorrt)} TensorRT segments ({self.flavour})"
        ]
        lines += [
            f"  {segment.name}: {len(segment.nodes):,} nodes, {segment.multiply_adds:,} multiply-adds"
            for segment in self.segments
        ]
        by_reason: dict[str, list[NativeNode]] = {}
        for node in self.native:
            by_reason.setdefault(node.reason, []).append(node)
        lines += [f"  native: {_named(group)}: {reason}" for reason, group in by_reason.items()]
        return lines


def _named(nodes: Sequence[NativeNode]) -> str:
    """Nodes of one reason: their operators with numbers, and the first one's name."""
    if len(nodes) == 1:
        return f"{nodes[0].op_type} ({nodes[0].name})" if nodes[0].name else nodes[0].op_type
    counts = Counter(node.op_type for node in nodes)
    ops = ", ".join(f"{count} {op}" for op, count in counts.most_common())
    return f"{ops} ({nodes[0].name}, ...)" if nodes[0].name else ops
