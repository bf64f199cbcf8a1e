"""Model-local functions: whoever inlines them must come to an end, and soon.

A file of two kilobytes can hold functions that call each other twice each, 2^60 nodes when they are inlined,
and one that calls itself never ends. Both are refused before anything looks into them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx

from ..errors import ModelError
from .operators import normal_domain
from .walk import nested_nodes

__all__ = ["MAX_FUNCTIONS", "MAX_INLINED_NODES", "check_functions"]

MAX_FUNCTIONS = 10_000
"""A model has at most so many functions."""

MAX_INLINED_NODES = 250_000
"""A model whose functions are inlined has at most so many nodes more than it had."""

_MAX_DEPTH = 64
_HINT = "export the model again, with its functions inlined"

_Name = tuple[str, str]


def check_functions(model: onnx.ModelProto) -> None:
    """Refuses functions that cannot be inlined, or only into a network beyond all measure.

    Raises:
        ModelError: There are too many, one reaches itself, calls are nested more than 64 deep, or more than
            250,000 nodes would come of them.
    """
    if not model.functions:
        return
    if len(model.functions) > MAX_FUNCTIONS:
        raise ModelError(
            f"has {len(model.functions):,} functions, at most {MAX_FUNCTIONS:,} are taken", _HINT
        )
    names = {_name(function.domain, function.name) for function in model.functions}
    calls: dict[_Name, Counter[_Name]] = {}
    own: dict[_Name, int] = {}
    for function in model.functions:
        name = _name(function.domain, function.name)
        calls[name], own[name] = _calls(function.node, names), sum(1 for _ in nested_nodes(function.node))
    sizes: dict[_Name, int] = {}
    depths: dict[_Name, int] = {}
    for name in _callees_first(calls):
        depths[name] = 1 + max((depths[callee] for callee in calls[name]), default=0)
        if depths[name] > _MAX_DEPTH:
            raise _too_deep()
        sizes[name] = own[name] + sum(sizes[callee] * times for callee, times in calls[name].items())
        # No number grows beyond all bounds in the meantime.
        sizes[name] = min(sizes[name], MAX_INLINED_NODES + 1)
    inlined = sum(sizes[name] * times for name, times in _calls(model.graph.node, names).items())
    if inlined > MAX_INLINED_NODES:
        raise ModelError(
            f"has functions that make more than {MAX_INLINED_NODES:,} nodes when they are inlined", _HINT
        )


def _name(domain: str, name: str) -> _Name:
    return normal_domain(domain), name


def _calls(nodes: Iterable[onnx.NodeProto], names: set[_Name]) -> Counter[_Name]:
    called = (_name(node.domain, node.op_type) for node in nested_nodes(nodes))
    return Counter(name for name in called if name in names)


def _callees_first(calls: dict[_Name, Counter[_Name]]) -> list[_Name]:
    """All functions, each after those that it calls."""
    order: list[_Name] = []
    done: set[_Name] = set()
    for start in calls:
        path, left = [start], [iter(calls[start])]
        while path and start not in done:
            callee = next(left[-1], None)
            if callee is None:
                left.pop()
                order.append(path.pop())
                done.add(order[-1])
            elif callee in path:
                raise ModelError(f"has a function {callee[1]!r} that calls itself", _HINT)
            elif callee not in done:
                path.append(callee)
                left.append(iter(calls[callee]))
            if len(path) > _MAX_DEPTH:
                raise _too_deep()
    return order


def _too_deep() -> ModelError:
    return ModelError(f"has functions that call each other more than {_MAX_DEPTH} deep", _HINT)
