"""Grouping the nodes of a graph into segments that can run one after the other: no tensors, no ONNX."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Group", "group_nodes"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodes that one runtime executes together.

    Attributes:
        chosen: Whether these are nodes of the chosen set (TensorRT's), or all others (the native runtime's).
        nodes: Their indices, ascending.
    """

    chosen: bool
    nodes: tuple[int, ...]


def group_nodes(needs: Sequence[Collection[int]], chosen: Collection[int]) -> list[Group]:
    """Groups nodes so that each group holds only chosen or only other nodes, and groups form no cycle.

    A node's level counts how often a path to it changes between the two kinds, at most: chosen nodes have
    even levels, others odd ones. A path that leaves a level never returns to it, so the nodes of one level
    are a convex set, and executing levels in ascending order meets every need. No grouping has fewer groups
    on its longest path.

    Args:
        needs: For each node, in topological order, the nodes whose results it reads.
        chosen: Indices of the chosen nodes.

    Returns:
        The groups in an order in which they can run; together they hold every node once.
    """
    chosen = frozenset(chosen)
    levels: list[int] = []
    for node, sources in enumerate(needs):
        is_chosen = node in chosen
        level = 0 if is_chosen else 1
        for source in sources:
            # Parity tells the kinds apart: an equal one continues the level, another starts the next.
            level = max(level, levels[source] + ((source in chosen) != is_chosen))
        levels.append(level)
    members: dict[int, list[int]] = {}
    for node, level in enumerate(levels):
        members.setdefault(level, []).append(node)
    return [Group(chosen=level % 2 == 0, nodes=tuple(members[level])) for level in sorted(members)]
