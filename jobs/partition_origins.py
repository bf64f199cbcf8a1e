"""What became of a model's nodes when it was made ready for partitioning."""

from __future__ import annotations

from collections.abc import Container, Sequence

import onnx

from ..trt_actors.partition.network import Network

__all__ = ["origins"]


def origins(original: Network, cleaned: Network) -> tuple[list[int], set[int]]:
    """What became of the original's nodes.

    Returns:
        For each node the cleaned node that does its work, or -1: the one that makes its value or has its
        name, else the one that all its readers were merged into. And the nodes that are gone without a trace:
        their results are constants by now, or nothing reads them.
    """
    named: dict[tuple[str, str], int] = {}
    for index, node in enumerate(cleaned.nodes):
        if node.name:
            named.setdefault((node.name, node.op_type), index)
    fed, homes = set(original.inputs), []
    for node, read in zip(original.nodes, original.node_reads, strict=True):
        made = next((cleaned.producers[name] for name in node.output if name in cleaned.producers), -1)
        homes.append(made if made >= 0 else named.get((node.name, node.op_type), -1))
        if read & fed:
            fed.update(name for name in node.output if name)
    gone: set[int] = set()
    results, constants = set(original.outputs), cleaned.constants
    before, after = original.nodes, cleaned.nodes
    for place, node in reversed(list(enumerate(before))):
        if homes[place] >= 0:
            continue
        readers = {
            reader
            for name in node.output
            for reader in original.consumers.get(name, ())
            if reader not in gone
            and not _reads_constant(name, before[reader], homes[reader], after, constants)
        }
        if not fed.intersection(node.output) or not (readers or results.intersection(node.output)):
            gone.add(place)
        else:
            into = {homes[reader] for reader in readers}
            homes[place] = into.pop() if len(into) == 1 else -1
    return homes, gone


def _reads_constant(
    name: str,
    reader: onnx.NodeProto,
    home: int,
    cleaned: Sequence[onnx.NodeProto],
    constants: Container[str],
) -> bool:
    """Whether the same operator reads a constant by now where it read this value."""
    if home < 0 or cleaned[home].op_type != reader.op_type or name not in reader.input:
        return False
    now = cleaned[home].input
    places = [place for place, other in enumerate(reader.input) if other == name]
    return all(place < len(now) and now[place] in constants for place in places)
