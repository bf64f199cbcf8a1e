"""What a picture of a partition shows, in plain values: nodes, segments, and two laid out graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from ..trt_actors.operators import normal_domain
from ..trt_actors.partition.network import Network
from ..trt_actors.partition.partition import Partition, Segment
from ..trt_actors.partition.types import value_types
from .layered_layout import lay_out
from .partition_origins import origins
from .value_text import LONGEST_LABEL, constant_text, count_text, counted, shape_text, short, type_text

__all__ = ["scene"]

_MOST_SINGLE = 12
_MOST_BOXES = 160
_CHARACTER = 7.0
_LEFT_FRAME, _RIGHT_FRAME = (680.0, 720.0), (440.0, 720.0)


@dataclass(frozen=True, kw_only=True)
class _Box:
    """One box of a graph: ``kind`` is node, segment, input or output; the others are indices or -1."""

    kind: str
    label: str
    detail: str
    node: int = -1
    segment: int = -1

    @property
    def size(self) -> tuple[float, float]:
        if self.kind == "segment":
            return max(190.0, _CHARACTER * len(self.detail) + 28), 58.0
        longest = max(len(self.label), min(len(self.detail), LONGEST_LABEL) * 0.8)
        return min(200.0, max(64.0, _CHARACTER * longest + 22)), 38.0


@dataclass
class _Values:
    """Names and types of values, each kept once."""

    rows: list[list[str]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, name: str, network: Network, types: Mapping[str, onnx.TypeProto]) -> int:
        if name not in self.places:
            self.places[name] = len(self.rows)
            constant = network.constants.get(name)
            text = constant_text(constant) if constant is not None else type_text(types.get(name))
            self.rows.append([name, text])
        return self.places[name]


def scene(partition: Partition) -> dict[str, Any]:
    """Everything the page draws, as JSON can hold it.

    Returns:
        ``segments`` (in order of execution), ``nodes`` (those of the cleaned model, then those of the
        original that cleaning merged or dropped), ``values``, ``reasons``, and the graphs ``original`` and
        ``transformed`` with ``boxes`` and ``edges``. Nodes that are gone, because they
        compute constants or nothing, have no box: ``original.leftOut`` counts them.
    """
    segment_of = {index: place for place, s in enumerate(partition.segments) for index in s.nodes}
    cleaned, original = Network(partition.cleaned), Network(partition.original)
    original_types = {**value_types(partition.original), **partition.types}
    values, reasons = _Values(), _Reasons(partition)
    nodes = [
        _node_row(node, index, segment_of[index], -1, reasons.of(index), values, cleaned, partition.types)
        for index, node in enumerate(partition.cleaned.graph.node)
    ]
    row_of = []
    homes, gone = origins(original, cleaned)
    for node, index in zip(original.nodes, homes, strict=True):
        if index >= 0 and partition.cleaned.graph.node[index].op_type == node.op_type:
            row_of.append(index)
        else:
            home = segment_of.get(index, -1)
            row_of.append(len(nodes))
            nodes.append(_node_row(node, -1, home, index, -1, values, original, original_types))
    return {
        "segments": [
            {
                "name": segment.name,
                "kind": segment.kind,
                "nodes": list(segment.nodes),
                "multiplyAdds": segment.multiply_adds,
                "inputs": [values.place(name, cleaned, partition.types) for name in segment.inputs],
                "outputs": [values.place(name, cleaned, partition.types) for name in segment.outputs],
            }
            for segment in partition.segments
        ],
        "nodes": nodes,
        "values": values.rows,
        "reasons": reasons.texts,
        "original": _original_graph(original, original_types, row_of, nodes, gone),
        "transformed": _transformed_graph(partition, cleaned),
    }


class _Reasons:
    """Why nodes are native, each sentence kept once."""

    def __init__(self, partition: Partition) -> None:
        self.texts = list(dict.fromkeys(node.reason for node in partition.native))
        numbers = {text: number for number, text in enumerate(self.texts)}
        self._of = {node.index: numbers[node.reason] for node in partition.native}

    def of(self, index: int) -> int:
        return self._of.get(index, -1)


def _node_row(
    node: onnx.NodeProto,
    index: int,
    segment: int,
    into: int,
    reason: int,
    values: _Values,
    network: Network,
    types: Mapping[str, onnx.TypeProto],
) -> dict[str, Any]:
    domain = normal_domain(node.domain)
    return {
        "name": node.name,
        "op": f"{domain}.{node.op_type}" if domain else node.op_type,
        "segment": segment,
        # Its place in the cleaned model, or that of the node it was merged into.
        "index": index,
        "into": into,
        "reason": reason,
        "inputs": [values.place(name, network, types) for name in node.input if name],
        "outputs": [values.place(name, network, types) for name in node.output if name],
    }


def _original_graph(
    network: Network,
    types: Mapping[str, onnx.TypeProto],
    row_of: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    gone: set[int],
) -> dict[str, Any]:
    boxes: list[_Box] = []
    unit_of: dict[int, int] = {}
    for index, node in enumerate(network.nodes):
        row = row_of[index]
        # Neither constants nor what computes them is worth a box.
        if index not in gone:
            unit_of[index] = len(boxes)
            boxes.append(_node_box(node, types, row, rows[row]["segment"]))
    left_out = len(network.nodes) - len(boxes)
    return {**_graph(boxes, unit_of, network, types, _LEFT_FRAME), "leftOut": left_out}


def _transformed_graph(partition: Partition, network: Network) -> dict[str, Any]:
    single = _shown_singly(partition.segments)
    boxes: list[_Box] = []
    unit_of: dict[int, int] = {}
    for place, segment in enumerate(partition.segments):
        if place in single:
            for index in segment.nodes:
                unit_of[index] = len(boxes)
                boxes.append(_node_box(partition.cleaned.graph.node[index], partition.types, index, place))
        else:
            unit_of.update((index, len(boxes)) for index in segment.nodes)
            detail = counted(len(segment.nodes), "node")
            if segment.multiply_adds:
                detail += f", {count_text(segment.multiply_adds)} multiply-adds"
            boxes.append(_Box(kind="segment", label=segment.name, detail=detail, segment=place))
    return _graph(boxes, unit_of, network, partition.types, _RIGHT_FRAME)


def _shown_singly(segments: Sequence[Segment]) -> set[int]:
    """The native segments whose nodes get boxes of their own: small ones first, while there is room."""
    native = [place for place, segment in enumerate(segments) if segment.kind == "native"]
    room = _MOST_BOXES - len(segments)
    chosen: set[int] = set()
    for place in sorted(native, key=lambda place: (len(segments[place].nodes), place)):
        room -= len(segments[place].nodes) - 1
        if len(segments[place].nodes) > _MOST_SINGLE or room < 0:
            break
        chosen.add(place)
    return chosen


def _node_box(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], row: int, segment: int) -> _Box:
    first = next((name for name in node.output if name), "")
    detail = shape_text(types.get(first))
    return _Box(kind="node", label=short(node.op_type), detail=detail, node=row, segment=segment)


def _graph(
    boxes: list[_Box],
    unit_of: Mapping[int, int],
    network: Network,
    types: Mapping[str, onnx.TypeProto],
    frame: tuple[float, float],
) -> dict[str, Any]:
    makers = {name: unit_of[index] for name, index in network.producers.items() if index in unit_of}
    for name in network.inputs:
        if name not in network.consumers and name not in network.outputs:
            continue
        makers[name] = len(boxes)
        boxes.append(_Box(kind="input", label=short(name), detail=shape_text(types.get(name))))
    edges: dict[tuple[int, int], None] = {}
    for index, names in enumerate(network.node_reads):
        if index in unit_of:
            ends = {(makers[name], unit_of[index]) for name in names if name in makers}
            edges.update((edge, None) for edge in sorted(ends) if edge[0] != edge[1])
    for name in network.outputs:
        if name in makers:
            edges[makers[name], len(boxes)] = None
        boxes.append(_Box(kind="output", label=short(name), detail=shape_text(types.get(name))))
    pairs = list(edges)
    layout = lay_out([box.size for box in boxes], pairs, frame=frame)
    return {
        "width": round(layout.width, 1),
        "height": round(layout.height, 1),
        "boxes": [
            {
                "x": round(x, 1),
                "y": round(y, 1),
                "w": round(box.size[0], 1),
                "h": box.size[1],
                "kind": box.kind,
                "label": box.label,
                "detail": box.detail,
                "node": box.node,
                "segment": box.segment,
            }
            for box, (x, y) in zip(boxes, layout.places, strict=True)
        ],
        "edges": [
            [source, target, int(number in layout.loose), _flat(layout.routes[number])]
            for number, (source, target) in enumerate(pairs)
        ],
    }


def _flat(points: Iterable[tuple[float, float]]) -> list[float]:
    return [round(number, 1) for point in points for number in point]
