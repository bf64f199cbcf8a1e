"""What a user keeps out of INT8: nodes by name, operator or pattern."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import onnx

from ...errors import UsageError

__all__ = ["excluded_nodes"]

_MOST_SHOWN = 3


def excluded_nodes(
    nodes: Sequence[onnx.NodeProto], exclude: Sequence[str], likely: Collection[str]
) -> frozenset[str]:
    """The names of the nodes that a list of names, operators and patterns means.

    Args:
        nodes: The nodes of a network, each with a name of its own.
        exclude: Names, operators, or patterns of these with ``*``, ``?`` and ``[]``.
        likely: Names to suggest for one that is unknown.

    Raises:
        UsageError: An entry means no node.
    """
    found: set[str] = set()
    for entry in exclude:
        # Brackets are common in the names that exporters give: what is literally there comes first.
        meant = {node.name for node in nodes if entry in (node.name, node.op_type)}
        meant = meant or {
            node.name for node in nodes if fnmatchcase(node.name, entry) or fnmatchcase(node.op_type, entry)
        }
        if not meant:
            known = [*likely, *sorted({node.op_type for node in nodes})]
            near = difflib.get_close_matches(entry, known, n=_MOST_SHOWN, cutoff=0.5) or known[:_MOST_SHOWN]
            raise UsageError(
                f"exclude names {entry!r}, and no node or operator of the network is called so",
                f"there are: {', '.join(near)}",
            )
        found |= meant
    return frozenset(found)
