"""Writes ``docs/models.md``: how each network of the zoo is cut and built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trtfleet.tests.models.zoo import ZOO
from trtfleet.trt_actors.partition.partition import Partition

__all__ = ["Record", "document", "facts", "native_lines"]

_HEAD = """\
# Networks

How the networks of `tests/models` are cut and built with {flavour}. Their structure comes from the
definitions named, their weights are random; `tests/models/export.py` says how they were exported.
`TRTFLEET_WRITE_DOCS=1 python -m pytest --slow tests/models/test_partitions.py` writes this file, a run
without the variable checks it.

Multiply-adds are those of one image, and of one box where their number depends on the image. Times are
seconds of one run on two CPU cores; TensorRT-RTX builds without a GPU.

"""
_COLUMNS = {
    "network": "---",
    "for": "---",
    "input": "---",
    "definition": "---",
    "nodes": "---:",
    "in TensorRT": "---:",
    "multiply-adds": "---:",
    "of these in TensorRT": "---:",
    "segments": "---:",
    "cut": "---:",
    "build": "---:",
}

_NATIVE = """
## What stays native

Nodes that ONNX Runtime runs, by the reason. Constants are folded before; these nodes are what is left.
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run found of one network.

    Attributes:
        partition: How it was cut.
        partition_s: How long that took.
        build_s: How long all its segments took to build.
    """

    partition: Partition
    partition_s: float
    build_s: float


def facts(name: str, partition: Partition) -> str:
    """A network's row of the table without its times."""
    entry = ZOO[name]
    millions = sum(segment.multiply_adds for segment in partition.segments) / 1e6
    inside = sum(len(segment.nodes) for segment in partition.tensorrt)
    cells = [
        entry.title,
        entry.family,
        "×".join(map(str, entry.shape)),
        entry.source,
        f"{len(partition.cleaned.graph.node):,}",
        f"{inside:,}",
        f"{millions:,.0f} M",
        f"{partition.multiply_add_share:.2%}",
        str(len(partition.tensorrt)),
    ]
    return _row(cells).rstrip("\n")


def native_lines(partition: Partition) -> list[str]:
    """The reasons for native nodes, each with the number of nodes and their operators."""
    by_reason: dict[str, list[str]] = {}
    for node in partition.native:
        by_reason.setdefault(_short(node.reason), []).append(node.op_type)
    return [
        f"- {len(ops):,} ({', '.join(sorted(set(ops)))}): {reason}"
        for reason, ops in sorted(by_reason.items())
    ]


def document(flavour: str, records: Mapping[str, Record]) -> str:
    """The whole file.

    Args:
        flavour: Whose parser and builder these are, with the version.
        records: What was found, by network.
    """
    lines = [_HEAD.format(flavour=flavour), _row(_COLUMNS), _row(_COLUMNS.values())]
    for name, record in records.items():
        lines.append(f"{facts(name, record.partition)} {record.partition_s:.1f} | {record.build_s:.1f} |\n")
    lines.append(_NATIVE)
    for name, record in records.items():
        if record.partition.native:
            lines.append(f"\n### {ZOO[name].title}\n\n{_joined(native_lines(record.partition))}")
    return "".join(lines)


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _short(reason: str) -> str:
    """The reason without the names of single values, so that nodes refused alike count together."""
    before, found, _ = reason.partition(" depends on the value of ")
    return f"{before} depends on a value that a native node computes" if found else reason
